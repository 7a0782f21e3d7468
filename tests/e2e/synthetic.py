"""Stand-ins for the model and the trainer, so that the real client and server run without torch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedmvp.server.evaluator import PublicScore


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
    """Updates that a test can predict: the same vector each round, scaled by the site."""

    def __init__(self, dimension: int, seed: int) -> None:
        self.dimension = dimension
        self.update = np.random.default_rng(seed).uniform(-1, 1, dimension)

    def train_round(self, parameters: NDArray[np.float32]) -> NDArray[np.float64]:
        assert parameters.shape == (self.dimension,)
        return self.update
