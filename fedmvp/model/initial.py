"""Public initial weights: drawn by numpy in float64 from seed and name, so that all platforms have the same."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def orthogonal(shape: Sequence[int], name: str, seed: int) -> NDArray[np.float64]:
    """Return a matrix with orthonormal rows or columns, whichever are fewer.

    Args:
        shape: rows and columns.
        name: of the layer, so that layers differ whatever the order in which they are built.
        seed: of the study.
    """
    rows, columns = shape
    draws = np.random.default_rng([seed, zlib.crc32(name.encode())])
    gaussian = draws.standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(gaussian)
    q = q * np.sign(np.diag(r))
    return q if rows >= columns else q.T
