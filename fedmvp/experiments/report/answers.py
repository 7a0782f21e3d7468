"""What a study shows, in sentences that say no more than its intervals do."""

from __future__ import annotations

from fedmvp.evaluation.intervals import OverSeeds
from fedmvp.experiments.report import wording
from fedmvp.experiments.report.questions import best_other, beyond, chosen, floor, kept, probe
from fedmvp.experiments.report.summary import PLAIN, Comparison, Terms


def in_short(comparison: Comparison) -> list[str]:
    """The answers in sentences; "above" and "below" only where the interval leaves 0 out."""
    ours, start = chosen(comparison), floor(comparison)
    if ours is None:
        return []
    lead = f"With {comparison.n_sites} sites: " if comparison.several else ""
    sentences = []
    if start is not None:
        plain = _side(comparison.gain((ours, PLAIN), (start, PLAIN)), start.label)
        sentences.append(f"{lead}Without privacy {ours.label} is {plain}.")
        private = []
        for terms in _ends(comparison):
            found, gain = kept(comparison, ours, terms), comparison.gain((ours, terms), (start, PLAIN))
            if found is None or gain is None:
                continue
            share = "" if found.share is None else f" and keeps {_kept_words(found.share)} of that gain"
            private.append(f"{_side(gain, start.label)} at ε = {terms.epsilon:g}{share}")
        if private:
            sentences.append(f"{lead}In {comparison.headline[0].mode} it is {'; '.join(private)}.")
    for other in (probe(comparison), best_other(comparison)):
        if other is None:
            continue
        gains = {terms: comparison.gain((ours, terms), (other, terms)) for terms in (PLAIN, *_ends(comparison))}
        parts = [
            f"{_side(gain, other.label)} {'without privacy' if terms == PLAIN else f'at ε = {terms.epsilon:g}'}"
            for terms, gain in gains.items()
            if gain is not None
        ]
        if parts:
            sentences.append(f"{lead}{ours.label} is {'; '.join(parts)}.")
    return sentences


def _kept_words(share: float) -> str:
    return f"{100 * share:.0f} %" if share > 0 else "nothing"


def _ends(comparison: Comparison) -> list[Terms]:
    """The loosest and the strictest epsilon of the mode that is shown where only one can be."""
    return list(dict.fromkeys([*comparison.headline[:1], *comparison.headline[-1:]]))


def _side(gain: OverSeeds | None, other: str) -> str:
    if gain is None:
        return f"not comparable with {other}"
    side = beyond(gain)
    if side == 0:
        return f"not told apart from {other} ({wording.with_interval(gain, signed=True)} points)"
    points = wording.with_interval(gain).removeprefix("−")
    where = "above" if gain.mean > 0 else "below"
    return f"{points} points {where} {other}" + (" (one seed, no interval)" if side is None else "")
