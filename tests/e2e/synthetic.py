"""Stand-ins for the model and the trainer, so that the real client and server run without torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedmvp.server.evaluator import PublicScore
from privacy.distributed import noisy_sum, noisy_update
from privacy.mechanism import Mode, PrivacyParameters


class SyntheticModel:
    """A model that is only a vector; its score says how far the parameters have moved."""

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension

    def initial_parameters(self) -> NDArray[np.float32]:
        return np.zeros(self._dimension, dtype=np.float32)

    def score(self, parameters: NDArray[np.float32]) -> PublicScore | None:
        share = float(min(1.0, abs(parameters).mean()))
        return PublicScore(share, share, share, 100)


class SyntheticSource:
    """A site with a number of samples, a loss and an accuracy, none of which is anybody else's business.

    The update of a round is drawn from the site's seed, its sample count and the round, so that no two are alike.
    """

    privacy: PrivacyParameters
    """Set where the study's noise is distributed."""

    def __init__(self, dimension: int, seed: int, samples: int = 1_234_567) -> None:
        self.dimension = dimension
        self.samples = samples
        self.size = 1.0
        self._random = np.random.default_rng((seed, samples))

    def initial_parameters(self) -> NDArray[np.float32]:
        return np.zeros(self.dimension, dtype=np.float32)

    def train_round(self, parameters: NDArray[np.float32]) -> NDArray[np.float64]:
        assert parameters.shape == (self.dimension,)
        self.loss, self.accuracy = self._random.uniform(0, 1, 2)
        return self._random.uniform(-1, 1, self.dimension)

    def train_on_grid(self, parameters: NDArray[np.float32], honest_survivors: int) -> NDArray[np.int64]:
        """As the real trainer: the same noise, on gradients and updates that are drawn."""
        update = self.train_round(parameters) * self.size
        if self.privacy.mode is Mode.SILO_DISTRIBUTED:
            return noisy_update(update, self.privacy, honest_survivors)
        return -noisy_sum(update, self.privacy, honest_survivors)

    def log(self, path: Path) -> None:
        """What the site alone knows, for the test to search for."""
        path.write_text(json.dumps({"loss": self.loss, "accuracy": self.accuracy, "samples": self.samples}))
