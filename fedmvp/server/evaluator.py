"""What the coordinator knows about the model: how it starts, and how well it does on public images.

The rest of the server sees a model as a vector; torch is imported only when a real one is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PublicScore:
    """Accuracy on the public set.

    Args:
        accuracy: share of images classified correctly.
        low: lower end of the 95 % interval.
        high: upper end of the 95 % interval.
        images: size of the set.
    """

    accuracy: float
    low: float
    high: float
    images: int


class PublicModel(Protocol):
    """The model as the coordinator uses it."""

    def initial_parameters(self) -> NDArray[np.float32]:
        """The public starting point (d,) that follows from the policy alone."""

    def score(self, parameters: NDArray[np.float32]) -> PublicScore | None:
        """Accuracy on the public set, or None when there is none."""
