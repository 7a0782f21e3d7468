"""What can be wrong with a document, found without importing the package: links, names, verbs, words."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("fedmvp", "secure_agg", "privacy", "demo", "tools", "tests", "benchmarks")
SKIPPED_FOLDERS = {"runs", "build", "dist", "node_modules", "__pycache__"}

# Paths of one machine, package indices, and numbers of a tracker have no meaning for a reader.
FORBIDDEN = re.compile(
    r"(?<![\w.:/])/(?:work|tmp|root|mnt|Users|home)(?:/|\b)"
    r"|\b(?:pypi|registry|mirror|files)\.[a-z]+\.?[a-z]*/|\bindex[-]url"
    r"|\bissues? #?\d",
    re.IGNORECASE,
)
_LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)")
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
_FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_INDENTED = re.compile(r"^(?: {4}|\t)(.*)$", re.MULTILINE)
_DOTTED = re.compile(rf"^(?:{'|'.join(PACKAGES)})(?:\.\w+)*(?=$|\()")
_PATH = re.compile(rf"^(?:{'|'.join((*PACKAGES, 'docs', 'protos'))})/[\w./-]*$")
_NOT_OURS = re.compile(r"^\w+\.md$|/v\d+$")  # a page beside this one, or the tag of a signed statement
_MAKE = re.compile(r"\bmake((?: +(?:[A-Z]+=\S+|[a-z][a-z-]*))+)")
_TEST_NAME = re.compile(r"^test_\w+$")
_TEST_FUNCTION = re.compile(r"^ *(?:async )?def (test_\w+)", re.MULTILINE)


@cache
def markdown_files() -> tuple[Path, ...]:
    """Every Markdown file of the working tree that is ours."""
    found: list[Path] = []
    for folder, names, files in os.walk(ROOT):
        names[:] = [name for name in names if not name.startswith(".") and name not in SKIPPED_FOLDERS]
        found.extend(Path(folder) / name for name in files if name.endswith(".md"))
    return tuple(sorted(found))


def prose(text: str) -> str:
    """The text without its fenced blocks, in which nothing is a link or a heading."""
    return _FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """The fragments that the headings of a document can be reached by."""
    plain = (re.sub(r"[`*_]|\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in _HEADING.findall(prose(text)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


def broken_links(text: str, folder: Path) -> list[str]:
    """Relative links of a document in `folder` whose file or heading does not exist."""
    return [link for link in _LINK.findall(_CODE.sub("", prose(text))) if not _resolves(link, text, folder)]


def _resolves(link: str, text: str, folder: Path) -> bool:
    if re.match(r"[a-z][a-z0-9+.-]*:", link, re.IGNORECASE):
        return True  # another site: not ours to keep alive
    path, _, fragment = unquote(link).partition("#")
    target = folder / path if path else None
    if target is not None and not target.exists():
        return False
    if not fragment:
        return True
    if target is not None and target.suffix != ".md":
        return True  # a line of a source file
    return fragment in anchors(target.read_text(encoding="utf-8") if target else text)


def code_spans(text: str) -> list[str]:
    """Inline code of a document."""
    return [span.strip() for span in _CODE.findall(prose(text))]


def unknown_names(text: str) -> list[str]:
    """Modules, functions and paths in inline code that begin like ours and do not exist."""
    unknown = []
    for span in code_spans(text):
        if _NOT_OURS.search(span):
            continue
        dotted, path = _DOTTED.match(span), _PATH.match(span)
        if (dotted and "." in dotted[0] and not _is_defined(dotted[0])) or (path and not _is_there(span)):
            unknown.append(span)
    return unknown


def _is_there(path: str) -> bool:
    """Whether a path exists; a page on tests may leave the folder `tests` out."""
    return (ROOT / path).exists() or (ROOT / "tests" / path).exists()


def _is_defined(dotted: str) -> bool:
    """Whether a dotted name is a module, or a name that a module defines."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:length])
        source = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
        if source.is_file():
            rest = parts[length:]
            return not rest or _defines(source, rest)
        if base.is_dir() and length == len(parts):
            return True
    return False


def _defines(source: Path, names: list[str]) -> bool:
    body: list[ast.stmt] = ast.parse(source.read_text(encoding="utf-8")).body
    for name in names:
        found = next((statement for statement in body if name in _names_of(statement)), None)
        if found is None:
            return False
        body = found.body if isinstance(found, ast.ClassDef) else []
    return True


def _names_of(statement: ast.stmt) -> Iterator[str]:
    """What one statement gives a name to."""
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield statement.name
        case ast.Assign():
            yield from (target.id for target in statement.targets if isinstance(target, ast.Name))
        case ast.AnnAssign(target=ast.Name(id=name)):
            yield name
        case ast.Import() | ast.ImportFrom():
            yield from (item.asname or item.name for item in statement.names)


def make_targets(makefile: str) -> set[str]:
    """The verbs of a Makefile."""
    return set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))


def verbs_used(text: str) -> set[str]:
    """What a document tells a reader to `make`, in inline code and in blocks."""
    blocks = [match[0] for match in _FENCE.finditer(text)]
    lines = [line for code in (*code_spans(text), *blocks, *_INDENTED.findall(text)) for line in code.splitlines()]
    verbs: set[str] = set()
    for line in lines:
        for words in _MAKE.findall(re.split(r"  +|#", line.strip())[0]):
            verbs.update(word for word in words.split() if "=" not in word)
    return verbs


def unknown_tests(text: str, known: set[str]) -> list[str]:
    """Names of tests in inline code that no test file defines."""
    return [span for span in code_spans(text) if _TEST_NAME.match(span) and span not in known]


@cache
def test_names() -> frozenset[str]:
    """The name of every test function."""
    return frozenset(
        name for path in (ROOT / "tests").rglob("test_*.py") for name in _TEST_FUNCTION.findall(path.read_text("utf-8"))
    )


test_names.__test__ = False  # type: ignore[attr-defined]
