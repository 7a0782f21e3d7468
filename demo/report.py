"""The demo's page: one HTML file with everything inside, to be opened or sent as it is."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

from demo.outcome import Outcome

mpl.use("svg")
import matplotlib.pyplot as plt

PAGE = Path(__file__).with_name("page.html")
BLUE, GREY, GREEN, ORANGE = "#2563a8", "#6b7280", "#2f855a", "#c05621"


@dataclass(frozen=True)
class SamplePrediction:
    """One public image and what the model says before and after tuning."""

    image: Path
    truth: str
    zero_shot: str
    tuned: str
    probability: float


def write_report(path: Path, outcome: Outcome, samples: Sequence[SamplePrediction]) -> None:
    """Write the page."""
    path.write_text(
        PAGE.read_text(encoding="utf-8").format(
            headline=html.escape(headline(outcome)),
            results=results_table(outcome),
            sites=sites_table(outcome),
            accuracy=accuracy_plot(outcome),
            epsilon=epsilon_plot(outcome),
            phases=phases_plot(outcome),
            samples="".join(sample_card(sample) for sample in samples),
            happened=happened(outcome),
        ),
        encoding="utf-8",
    )


def headline(outcome: Outcome) -> str:
    """One honest sentence: above zero-shot only if the intervals do not touch."""
    gain = outcome.tuned.value - outcome.zero_shot.value
    spent = next(iter(outcome.spent.values()))
    protected = "each site" if spent.unit == "site" else f"each {spent.unit} of each site"
    budget = f"at epsilon {outcome.epsilon:.2f}, delta {spent.delta:g} for {protected}, mode {outcome.mode}"
    if outcome.tuned.low > outcome.zero_shot.high:
        return f"{gain * 100:+.1f} points over zero-shot, beyond the 95 % intervals of both, {budget}."
    return f"{gain * 100:+.1f} points over zero-shot, within the 95 % intervals: no gain is shown, {budget}."


def results_table(outcome: Outcome) -> str:
    """Accuracies with their intervals and costs."""
    rows = [
        ("zero-shot, attribute classifier", outcome.zero_shot, "0"),
        ("tuned prompts, private", outcome.tuned, f"{outcome.epsilon:.2f}"),
        ("the same without privacy (UNSAFE-no-dp)", outcome.nonprivate, "unbounded"),
        ("linear probe, private, same mechanism", outcome.probe, f"{outcome.probe_epsilon:.2f}"),
    ]
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td class=n>{found.value:.3f}</td><td class=n>{found.low:.3f} – {found.high:.3f}</td><td class=n>{epsilon}</td></tr>"
        for name, found, epsilon in rows
    )
    return f"<table><tr><th>model</th><th>accuracy</th><th>95 % interval</th><th>epsilon</th></tr>{cells}</table>"


def sites_table(outcome: Outcome) -> str:
    """What each site's own ledger says."""
    cells = "".join(
        f"<tr><td>{html.escape(name)}</td><td class=n>{spent.epsilon:.3f}</td><td class=n>{spent.delta:g}</td><td>{spent.neighboring_relation} {spent.unit}</td>"
        f"<td>{html.escape(spent.accountant)}</td><td class=n>{spent.rounds}</td><td class=n>{spent.steps}</td><td class=n>{outcome.bytes_up_by_site[name] / 1e6:.2f}</td></tr>"
        for name, spent in outcome.spent.items()
    )
    head = "<tr><th>site</th><th>epsilon</th><th>delta</th><th>adjacency</th><th>accountant</th><th>rounds charged</th><th>noisy steps</th><th>MB sent</th></tr>"
    return f"<table>{head}{cells}</table>"


def accuracy_plot(outcome: Outcome) -> str:
    """Accuracy on the public images by round, beside the references."""
    figure, axes = plt.subplots(figsize=(7, 3.6))
    rounds = [event["round"] for event in outcome.rounds]
    axes.plot(
        rounds, [event["accuracy"] for event in outcome.rounds], color=BLUE, linewidth=1.8, label="tuned, private"
    )
    axes.fill_between(
        rounds,
        *zip(*(event["accuracy_interval"] for event in outcome.rounds), strict=True),
        color=BLUE,
        alpha=0.15,
        linewidth=0,
    )
    for found, colour, style, label in (
        (outcome.zero_shot, GREY, "--", "zero-shot"),
        (outcome.nonprivate, GREEN, ":", "without privacy"),
        (outcome.probe, ORANGE, "-.", "private linear probe"),
    ):
        axes.axhline(found.value, color=colour, linestyle=style, linewidth=1.4, label=label)
    for site, number in outcome.dropped:
        axes.axvline(number, color="#b91c1c", linewidth=0.8)
        axes.annotate(
            f"{site} killed",
            (number, axes.get_ylim()[0]),
            xytext=(3, 4),
            textcoords="offset points",
            fontsize=8,
            color="#b91c1c",
        )
    axes.set(xlabel="round", ylabel="accuracy, public images")
    axes.legend(fontsize=8, framealpha=0.9, edgecolor="none")
    return finish(figure)


def epsilon_plot(outcome: Outcome) -> str:
    """Epsilon by round, from the sites' signed receipts."""
    figure, axes = plt.subplots(figsize=(7, 3))
    for site, name in outcome.names.items():
        points = [
            (event["round"], float(event["receipts"][site]["epsilon"]))
            for event in outcome.rounds
            if site in event["receipts"]
        ]
        axes.plot(*zip(*points, strict=True), linewidth=1.4, marker="", label=name, alpha=0.8)
    axes.set(
        xlabel="round",
        ylabel=f"epsilon at delta {next(iter(outcome.spent.values())).delta:g}, {outcome.mode}",
        ylim=(0, None),
    )
    axes.legend(fontsize=8, framealpha=0.9, edgecolor="none")
    return finish(figure)


def phases_plot(outcome: Outcome) -> str:
    """Where the time of a round goes: the median of each phase."""
    names = list(outcome.rounds[-1]["seconds_by_phase"])
    medians = [
        sorted(event["seconds_by_phase"].get(name, 0.0) for event in outcome.rounds)[len(outcome.rounds) // 2] * 1000
        for name in names
    ]
    figure, axes = plt.subplots(figsize=(7, 2.4))
    bars = axes.barh([name.replace("_", " ") for name in names], medians, color=BLUE)
    axes.bar_label(bars, fmt="%.0f ms", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds, median over rounds")
    axes.margins(x=0.12)
    return finish(figure)


def finish(figure: plt.Figure) -> str:
    """A figure as inline SVG."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def sample_card(sample: SamplePrediction) -> str:
    """One image with its predictions."""
    data = base64.b64encode(sample.image.read_bytes()).decode()

    def word(name: str) -> str:
        return f'<b class="{"right" if name == sample.truth else "wrong"}">{html.escape(name)}</b>'

    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="handwritten {html.escape(sample.truth)}"><figcaption>zero-shot {word(sample.zero_shot)}<br>'
        f"tuned {word(sample.tuned)} {sample.probability:.2f}</figcaption></figure>"
    )


def happened(outcome: Outcome) -> str:
    """What went on, in sentences."""
    sentences = [
        f"{len(outcome.rounds)} rounds, {outcome.dimension:,} trained parameters, {outcome.seconds:.0f} seconds from the first process to the last.",
        f"The server recovered {outcome.rounds_checked} sums; the largest difference from the exact sum of what the sites wrote down before masking is {outcome.max_abs_sum_error:g}.",
    ]
    sentences += [outcome.guarantee(), *outcome.dropouts()]
    return "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences)
