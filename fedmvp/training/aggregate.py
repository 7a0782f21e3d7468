"""What everybody does with the published sum: one deterministic step of the server's optimizer.

The server computes the next state and every site computes it again from the same sum, so a server that publishes
another model than the sum implies is noticed. Arithmetic is elementwise numpy in float32 with no reduction, hence
equal everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from secure_agg.encoding import tensors_digest

if TYPE_CHECKING:  # numpy alone at run time: the server and a site's network side start without torch
    from fedmvp.model.parameters import Vector


class OptimizerKind(StrEnum):
    """How the mean update is applied."""

    SGD = "sgd"
    ADAM = "adam"


@dataclass(frozen=True)
class ServerOptimizer:
    """The server's step rule; the mean update takes the place of a descent direction (Reddi et al. 2021).

    Attributes:
        kind: plain step, or Adam.
        learning_rate: step size; 1 with `sgd` is federated averaging.
        beta1: decay of the mean; Adam only.
        beta2: decay of the square; Adam only.
        epsilon: added to the root; Adam only.
    """

    kind: OptimizerKind = OptimizerKind.SGD
    learning_rate: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8


@dataclass(frozen=True, eq=False)
class ServerState:
    """Everything that the next round depends on; its hash is in every round's context.

    Attributes:
        parameters: the trained parameters, float32 (dimension,).
        adam_m: running mean of updates, float32 (dimension,); zero until Adam steps.
        adam_v: running mean of their squares, float32 (dimension,).
        step: sums applied so far.
    """

    parameters: Vector
    adam_m: Vector
    adam_v: Vector
    step: int

    def __post_init__(self) -> None:
        shapes = {array.shape for array in (self.parameters, self.adam_m, self.adam_v)}
        if len(shapes) != 1 or self.parameters.ndim != 1 or self.step < 0:
            raise ValueError(f"a state needs three vectors of one length and a step, not shapes {sorted(shapes)}")
        if any(array.dtype != np.float32 for array in (self.parameters, self.adam_m, self.adam_v)):
            raise ValueError("a state holds float32 vectors")

    def __repr__(self) -> str:
        return f"ServerState(dimension={self.dimension}, step={self.step})"

    @classmethod
    def initial(cls, parameters: Vector) -> ServerState:
        """Return the state before the first round."""
        zeros = np.zeros_like(parameters, dtype=np.float32)
        return cls(parameters.astype(np.float32), zeros, zeros.copy(), 0)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[np.float32]]) -> ServerState:
        """Return the state that `tensors` described.

        Raises:
            ValueError: a tensor is missing or of the wrong shape or type, or a number is not finite.
        """
        if set(tensors) != {"parameters", "adam_m", "adam_v", "step"} or tensors["step"].shape != (1,):
            raise ValueError("a state has the tensors parameters, adam_m, adam_v and step")
        if (
            any(not np.isfinite(array).all() for array in tensors.values())
            or not float(tensors["step"][0]).is_integer()
        ):
            raise ValueError("a state holds finite numbers and a whole step")
        step = int(tensors["step"][0])
        return cls(tensors["parameters"], tensors["adam_m"], tensors["adam_v"], step)

    @property
    def dimension(self) -> int:
        """Number of trained parameters."""
        return int(self.parameters.shape[0])

    @property
    def tensors(self) -> tuple[tuple[str, NDArray[np.float32]], ...]:
        """The state as named float32 arrays in the order that is hashed and sent."""
        step = np.array([self.step], dtype=np.float32)  # exact to 2^24 rounds
        return (("parameters", self.parameters), ("adam_m", self.adam_m), ("adam_v", self.adam_v), ("step", step))

    @property
    def hash(self) -> bytes:
        """The model hash of a round context; 32 bytes."""
        return tensors_digest(self.tensors)


def apply_sum(
    state: ServerState, decoded_sum: NDArray[np.float64], n_survivors: int, optimizer: ServerOptimizer
) -> ServerState:
    """Apply the sum of the survivors' updates.

    Args:
        state: the state that the updates started from.
        decoded_sum: sum of updates, float64 (dimension,).
        n_survivors: how many updates are in it, at least 1; each weighs the same.
        optimizer: the step rule of the policy.

    Raises:
        ValueError: wrong length, numbers that are not finite, or no survivor.
    """
    if decoded_sum.shape != state.parameters.shape or n_survivors < 1 or not np.isfinite(decoded_sum).all():
        raise ValueError("the sum must be finite, of the model's dimension, and of at least one update")
    mean = (decoded_sum / n_survivors).astype(np.float32)
    step = state.step + 1
    rate = np.float32(optimizer.learning_rate)
    if optimizer.kind is OptimizerKind.SGD:
        return ServerState(state.parameters + rate * mean, state.adam_m, state.adam_v, step)
    beta1, beta2 = np.float32(optimizer.beta1), np.float32(optimizer.beta2)
    m = beta1 * state.adam_m + (np.float32(1) - beta1) * mean
    v = beta2 * state.adam_v + (np.float32(1) - beta2) * (mean * mean)
    m_hat = m / np.float32(1.0 - _power(optimizer.beta1, step))
    v_hat = v / np.float32(1.0 - _power(optimizer.beta2, step))
    moved = rate * (m_hat / (np.sqrt(v_hat) + np.float32(optimizer.epsilon)))
    parameters = np.asarray(state.parameters + moved, dtype=np.float32)
    return ServerState(parameters, m, v, step)


def _power(base: float, exponent: int) -> float:
    """Return base ** exponent by multiplication: `pow` of the C library differs between platforms in the last bit."""
    return math.prod([base] * exponent)
