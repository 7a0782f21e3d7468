"""Muon (Jordan et al. 2024) in float32: torch's own works in bfloat16, which these processors only emulate."""

from __future__ import annotations

from collections.abc import Iterable

import torch

# Quintic Newton-Schulz coefficients of Jordan et al.: singular values go to about one in five steps.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Bring all singular values of ``(n, rows, columns)`` matrices near one; rows may not exceed columns."""
    a, b, c = COEFFICIENTS
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for weight matrices; matrices of one shape are handled together.

    Args:
        matrices: two-dimensional parameters.
        lr: step size in units of AdamW's (the update is scaled to a root mean square of 0.2).
        momentum: Nesterov momentum.
        weight_decay: decoupled.
    """

    def __init__(
        self, matrices: Iterable[torch.nn.Parameter], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.05
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Apply one update."""
        del closure
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for matrix in group["params"]:
                by_shape.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in by_shape.items():
                updates = []
                for matrix in matrices:
                    velocity = self.state[matrix].setdefault("velocity", torch.zeros_like(matrix))
                    velocity.lerp_(matrix.grad, 1 - group["momentum"])
                    updates.append(matrix.grad.lerp(velocity, group["momentum"]))
                stack = torch.stack(updates)
                tall = shape[0] > shape[1]
                direction = orthogonalise(stack.mT if tall else stack)
                direction = (direction.mT if tall else direction) * (0.2 * max(shape) ** 0.5)
                for matrix, change in zip(matrices, direction, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(change, alpha=group["lr"])
