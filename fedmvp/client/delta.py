"""Whether delta is small enough for this site's own data: decided at the site, because the count stays there."""

from __future__ import annotations

from fedmvp.data.dataset import ImageDataset
from fedmvp.errors import ExitCode, UserError
from fedmvp.study.policy import StudyPolicy

MARGIN = 10
"""Delta must not pass one over this many times the units, of whom it permits to publish that share outright."""


def units_of(policy: StudyPolicy, dataset: ImageDataset) -> int:
    """How many units of a study's privacy these images are: records, or patients.

    Raises:
        UserError: the study protects patients, and nothing says whose image each one is.
    """
    if policy.privacy.unit != "patient":
        return len(dataset)
    if dataset.patients is None:
        raise UserError(
            f"this study protects patients, and {dataset.source} does not say whose image each one is",
            remedy='list them in a CSV file with the columns image,label,patient, and set [data] kind = "manifest"',
        )
    return len(set(dataset.patients))


def largest_delta(units: int) -> float:
    """Return the largest delta that this many units of privacy take."""
    return 1 / (MARGIN * units)


def require_small_delta(policy: StudyPolicy, units: int) -> None:
    """Refuse a study whose delta is above 1 / (10 n); the count is named in the message, which stays at the site.

    Args:
        policy: the study.
        units: n, of the study's unit: records or patients of this site, or sites of the roster.

    Raises:
        UserError: as the summary says.
    """
    delta, limit = policy.privacy.delta, largest_delta(units)
    if policy.privacy.mode != "UNSAFE-no-dp" and delta > limit:
        raise UserError(
            f"[privacy] delta = {delta:g} of the study is above {limit:.3g}, one over {MARGIN} times the {units} "
            f"{policy.privacy.unit}s here: it would permit to publish some of them outright",
            remedy="take no part: ask the consortium for a study with a smaller delta",
            exit_code=ExitCode.BUDGET,
        )
