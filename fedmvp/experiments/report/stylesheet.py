"""How the page looks: light, dark, on paper and on a phone."""

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --card: #f5f7fa; --ink: #1c2430; --muted: #5b6675; --line:
  #dde3ea;
  --link: #0060b0; --red: #b3111f; --red-paper: #fdecec; --amber: #8a5a00; --amber-paper: #fff5de; --green: #00694d;
  --lead: #e6f1fb; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #141a22; --card: #1b232d; --ink: #e6eaf0;
  --muted: #9aa6b5; --line: #2f3945; --link: #6cb6ff; --red: #ff8a8a; --red-paper: #3a1a1f; --amber: #f0c24b;
  --amber-paper: #33290f; --green: #4fd6ab; --lead: #1c3450; } }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; color: var(--ink);
  background: var(--paper); max-width: 84rem; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: .5rem 0 .25rem; } a { color: var(--link); }
h2 { font-size: 1.4rem; line-height: 1.25; margin: 3.5rem 0 .25rem; padding-top: 1.25rem; border-top: 3px solid
  var(--ink); }
h3 { font-size: 1.1rem; margin: 2.25rem 0 .5rem; } p { margin: .4rem 0; max-width: 52rem; overflow-wrap: anywhere; }
.lead { font-size: 1.05rem; color: var(--muted); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; margin: 1rem 0; font-size: .92rem;
  max-width: 60rem; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
.alert { border-left: 4px solid var(--line); background: var(--card); padding: .55rem .9rem; margin: .6rem 0;
  border-radius: 0 6px 6px 0;
  font-size: .94rem; }
.alert p { margin: 0; } .alert ul { margin: .3rem 0 0; padding-left: 1.2rem; max-height: 15rem; overflow: auto; }
.alert li { overflow-wrap: anywhere; font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .84rem; }
.error { border-color: var(--red); background: var(--red-paper); border-left-width: 8px; } .error .kind { color:
  var(--red); }
.warning { border-color: var(--amber); background: var(--amber-paper); } .warning .kind { color: var(--amber); }
.kind { font-weight: 700; letter-spacing: .02em; margin-right: .35rem; }
.short { background: var(--lead); border-radius: 8px; padding: .7rem 1rem .7rem 2.1rem; margin: 1rem 0; list-style:
  disc; }
.short li { margin: .2rem 0; max-width: 60rem; }
.scroll { overflow-x: auto; margin: .6rem 0 .3rem; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; min-width: 40%; }
.caption { font-weight: 600; font-size: .95rem; margin: 1.2rem 0 0; }
th, td { padding: .28rem .42rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
thead th { font-weight: 600; color: var(--muted); vertical-align: bottom; border-bottom: 1px solid var(--ink); }
thead th.group { text-align: center; border-bottom: 1px solid var(--line); color: var(--ink); }
th.text, td.text { text-align: left; } tbody th { font-weight: 500; position: sticky; left: 0; background:
  var(--paper); }
td.span { text-align: center; color: var(--muted); }
td.first, th.first { border-left: 1px solid var(--line); }
td.strong { font-weight: 700; background: var(--lead); } td.muted { color: var(--muted); }
td.above { color: var(--green); } td.below { color: var(--red); }
td.alarm { background: var(--red); color: var(--paper); font-weight: 700; }
.notes { font-size: .84rem; color: var(--muted); max-width: 60rem; margin: .15rem 0 1.4rem; }
figure { margin: 1rem 0 1.6rem; } figure img { display: block; max-width: 100%; height: auto; }
figcaption { font-size: .84rem; color: var(--muted); max-width: 60rem; margin-top: .2rem; }
@media (max-width: 46rem) { body { padding: 1rem .8rem 3rem; font-size: 15px; } h1 { font-size: 1.45rem; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; }
  figure img { max-width: none; width: max(100%, 44rem); } tbody th { min-width: 7.5rem; max-width: 9rem;
  white-space: normal; } }
@page { size: A4 landscape; margin: 12mm; }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } section + section { break-before: page; }
  h2 { margin-top: 1rem; } h2, h3, .caption { break-after: avoid; } figure, tr, .alert { break-inside: avoid; }
  .scroll { overflow: visible; } table { font-size: 7.6pt; } th, td { padding: .15rem .3rem; }
  figure img { max-width: 100%; max-height: 140mm; width: auto; } tbody th { position: static; }
  .alert ul { max-height: none; } a { color: inherit; } }
"""
