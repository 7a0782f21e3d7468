"""Where a site's update comes from: the real trainer, or whatever a test or a benchmark puts in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedmvp.study.config import ClientConfig
from fedmvp.study.policy import StudyPolicy
from privacy.ledger import Ledger


class UpdateSource(Protocol):
    """Turns public parameters into this site's update."""

    dimension: int
    """Length of parameters and update."""

    def initial_parameters(self) -> NDArray[np.float32]:
        """The public starting point (d,) that follows from the policy alone."""

    def train_round(self, parameters: NDArray[np.float32]) -> NDArray[np.float64]:
        """Train from `parameters` (d,) and return the difference (d,)."""

    def train_on_grid(self, parameters: NDArray[np.float32], honest_survivors: int) -> NDArray[np.int64]:
        """In the distributed modes instead: the difference (d,) in steps of the ring, with a share of the noise.

        `honest_survivors` is the number of shares that the round's cohort guarantees.
        """


SourceFactory = Callable[[ClientConfig, StudyPolicy, Ledger], UpdateSource]


def load_trainer(config: ClientConfig, policy: StudyPolicy, ledger: Ledger) -> UpdateSource:
    """Build the real trainer on the site's images: backbone, attribute bank, cached features, DP-SGD."""
    from fedmvp.client.trainer import build_trainer  # noqa: PLC0415 - torch takes seconds to import

    return build_trainer(config, policy, ledger)
