"""What a vector of parameters is worth on a study's test sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fedmvp.evaluation.accuracy import Accuracy
from fedmvp.evaluation.average_precision import mean_average_precision
from fedmvp.evaluation.predictions import method_logits
from fedmvp.evaluation.settings import harmonic_mean
from fedmvp.experiments.results import SCORE, Measurement
from fedmvp.methods.method import MethodModel
from fedmvp.model.features import FrozenFeatures
from fedmvp.model.parameters import Vector

SCORES = {
    "domains": "accuracy on the target, averaged over targets",
    "cross-dataset": "accuracy on data sets that nobody trained on, averaged over them",
    "base-to-new": "harmonic mean of Local, Base and New accuracy",
    "personalised": "accuracy on each site's own held-out images, averaged over sites",
}


@dataclass(frozen=True, eq=False)
class PreparedTest:
    """A test set with the module that answers on it.

    Attributes:
        group: as in :class:`fedmvp.experiments.material.TestSet`.
        site: as there.
        model: for the candidates of this test; shares its parameters' meaning with what was trained.
        features: what the module reads of the images.
        labels: of the images.
        multi_label: whether the metric is mean average precision.
    """

    group: str
    site: str
    model: MethodModel
    features: FrozenFeatures
    labels: Tensor
    multi_label: bool

    def measure(self, parameters: Vector | None, round_number: int | None) -> Measurement:
        """Return the accuracy, or the mean average precision, of parameters (d,); None takes the module as it is."""
        logits = method_logits(self.model, self.features, parameters=parameters)
        count = len(self.labels)
        group = self.site or self.group
        if self.multi_label:
            value = mean_average_precision(logits, self.labels).value
            return Measurement("average-precision", value, group, round_number, count)
        correct = int((logits.argmax(dim=1) == self.labels).sum())
        return Measurement("accuracy", Accuracy(correct, count).value, group, round_number, count)


def measure_all(
    tests: Sequence[PreparedTest], kind: str, parameters: Vector | None, round_number: int | None
) -> list[Measurement]:
    """Return one value a test set and the score of the setting.

    Args:
        tests: the study's.
        kind: of the setting.
        parameters: (d,), or None for a method that trains nothing.
        round_number: after which round; None at the end.
    """
    measured = [(test, test.measure(parameters, round_number)) for test in tests]
    rows = [value for _, value in measured]
    named = {test.group: value.value for test, value in measured if not test.site}
    by_data: dict[str, list[float]] = {}
    for test, value in measured:
        if test.site:
            by_data.setdefault(test.group, []).append(value.value)
    local = _mean([_mean(values) for values in by_data.values()])
    if kind in ("domains", "cross-dataset"):
        score = _mean(list(named.values()))
    elif kind == "base-to-new":
        means = {"local": local}
        for part in ("base", "new"):  # of each data set, where there are several
            means[part] = _mean(
                [value for group, value in named.items() if group == part or group.endswith(f" {part}")]
            )
        rows += [
            Measurement(rows[0].metric, mean, part, round_number) for part, mean in means.items() if part not in named
        ]
        score = harmonic_mean(list(means.values()))
    else:
        score = local
    return [*rows, Measurement(SCORE, score, "", round_number)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
