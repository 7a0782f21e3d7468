"""What a finished demo found: the exactness of its sums, its accuracies and budgets, as one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from demo.modes import DEFAULT_MODE, TRUST
from fedmvp.evaluation.accuracy import Accuracy
from privacy.ledger import PrivacySpent
from secure_agg.policy import SecureSumPolicy
from secure_agg.ring import decode_sum


@dataclass(frozen=True)
class Outcome:
    """Everything that the table, the page and summary.json show.

    Args:
        zero_shot: accuracy before tuning, on the public images; costs no privacy.
        tuned: after the last round.
        nonprivate: the same study without clipping and noise.
        probe: a private linear probe under the same mechanism.
        probe_epsilon: what the probe's ledgers show.
        spent: each site's ledger by name.
        rounds: the server's "round" events in order.
        dropped: (site, round) pairs that a round was completed without.
        max_abs_sum_error: largest difference between a published sum and the sum of what the sites wrote down.
        rounds_checked: how many published sums were compared.
        seconds: from the start of the first process to the end of the last.
        dimension: trained parameters.
        names: site names by number.
        mode: who added the noise, and to what.
    """

    zero_shot: Accuracy
    tuned: Accuracy
    nonprivate: Accuracy
    probe: Accuracy
    probe_epsilon: float
    spent: dict[str, PrivacySpent]
    rounds: Sequence[dict[str, Any]]
    dropped: tuple[tuple[str, int], ...]
    max_abs_sum_error: float
    rounds_checked: int
    seconds: float
    dimension: int
    names: dict[str, str]
    mode: str = DEFAULT_MODE

    @property
    def epsilon(self) -> float:
        """The largest epsilon of any site; sites hold different records, so the study's is their maximum."""
        return max(spent.epsilon for spent in self.spent.values())

    @property
    def bytes_up_by_site(self) -> dict[str, int]:
        """Bytes of protocol messages each site sent over all rounds."""
        totals = dict.fromkeys(self.names.values(), 0)
        for event in self.rounds:
            for site, count in event["bytes_up_by_site"].items():
                totals[self.names[str(site)]] += count
        return totals

    def returned_in(self, site: str, lost_in: int) -> int | None:
        """The first round after ``lost_in`` whose sum holds this site's update again; None when there is none."""
        return next(
            (
                event["round"]
                for event in self.rounds
                if event["round"] > lost_in and site in {self.names[str(number)] for number in event["survivors"]}
            ),
            None,
        )

    def dropouts(self) -> list[str]:
        """What became of each site that a round was completed without, in sentences."""
        sentences = []
        for site, number in self.dropped:
            back = self.returned_in(site, number)
            again = "it did not come back" if back is None else f"its update is in the sum again from round {back} on"
            sentences.append(f"Round {number} was completed without {site}, which was killed in it; {again}.")
        return sentences

    def guarantee(self) -> str:
        """What the epsilons stand on, in sentences."""
        spent = next(iter(self.spent.values()))
        return f"Mode {self.mode}, unit {spent.unit}, accountant {spent.accountant}. {TRUST[self.mode]}"

    def summary(self) -> dict[str, Any]:
        """The content of summary.json."""
        any_spent = next(iter(self.spent.values()))
        return {
            "rounds_completed": len(self.rounds),
            "zero_shot_accuracy": self.zero_shot.value,
            "tuned_accuracy": self.tuned.value,
            "nonprivate_accuracy": self.nonprivate.value,
            "probe_accuracy": self.probe.value,
            "intervals_95": {
                name: [found.low, found.high]
                for name, found in (
                    ("zero_shot", self.zero_shot),
                    ("tuned", self.tuned),
                    ("nonprivate", self.nonprivate),
                    ("probe", self.probe),
                )
            },
            "mode": self.mode,
            "trust": TRUST[self.mode],
            "epsilon": self.epsilon,
            "delta": any_spent.delta,
            "neighboring_relation": any_spent.neighboring_relation,
            "unit": any_spent.unit,
            "accountant": any_spent.accountant,
            "epsilon_by_site": {name: spent.epsilon for name, spent in self.spent.items()},
            "probe_epsilon": self.probe_epsilon,
            "max_abs_sum_error": self.max_abs_sum_error,
            "rounds_checked": self.rounds_checked,
            "seconds": round(self.seconds, 1),
            "bytes_up_per_client": round(np.mean(list(self.bytes_up_by_site.values()))),
            "bytes_up_by_site": self.bytes_up_by_site,
            "dropped_client_rounds": len(self.dropped),
            "dropped": [
                {"site": site, "round": number, "returned_in": self.returned_in(site, number)}
                for site, number in self.dropped
            ],
            "trained_parameters": self.dimension,
            "public_images": self.tuned.total,
        }


def check_sums(folder: Path, policy: SecureSumPolicy, roster_names: dict[int, str]) -> tuple[float, int]:
    """Compare every published sum with the integer sum of what its survivors wrote down before masking.

    Args:
        folder: one folder a site with ``sent-*.npy`` and ``published-*.npz``.
        policy: ring and fixed point of the study.
        roster_names: site names by number.

    Returns:
        The largest difference in units of the update, and the number of rounds compared.

    Raises:
        FileNotFoundError: a survivor wrote nothing down.
    """
    largest, checked = 0.0, {}
    for path in sorted(folder.glob("*/published-*.npz")):
        number = int(path.stem.removeprefix("published-"))
        with np.load(path) as published:
            total, survivors = published["total"], [int(site) for site in published["survivors"]]
        sent = [np.load(folder / roster_names[site] / f"sent-{number:05d}.npy") for site in survivors]
        decode_sum(policy, total, len(survivors))  # refuses what no such sites can make
        exact = np.sum(sent, axis=0, dtype=policy.dtype)  # in the ring, where no digit is lost
        off = (total - exact).view(f"i{policy.ring_bits // 8}")
        largest = max(largest, float(np.abs(off.astype(np.float64)).max()) / 2.0**policy.fraction_bits)
        checked[number] = True
    return largest, len(checked)
