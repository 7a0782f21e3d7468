"""The clipped sum of a batch by book-keeping, by Opacus' hooks and by a loop over the records."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from privacy.mechanism import PerSampleEngine
from privacy.optimizer import NoisyOptimizer
from privacy.per_sample import Batch, LossPerSample, choose_engine, per_sample_pass, trainable_parameters
from tests.privacy.conftest import PARAMS
from tests.privacy.modules import gradients_one_by_one

BOUNDS = (1e-2, 1.0, 1e3)
"""Most records are clipped, some, none."""


def clipped_sum(
    module: nn.Module,
    loss: LossPerSample,
    parts: Sequence[Batch],
    bound: float,
    engine: PerSampleEngine = "book-keeping",
) -> Tensor:
    """The clipped sum (d,) of a batch that comes in parts, as the optimizer hands it on."""
    plain = torch.optim.SGD(trainable_parameters(module), lr=1.0)
    noisy = NoisyOptimizer(plain, replace(PARAMS, max_grad_norm=bound))
    with per_sample_pass(module, engine) as run:
        for part in parts:
            run(loss, part)
            noisy.accumulate(len(part[0]))
    return torch.from_numpy(noisy.take_sum())


def sum_by_loop(module: nn.Module, loss: LossPerSample, batch: Batch, bound: float) -> Tensor:
    each = gradients_one_by_one(module, loss, batch).double()
    return (each * (bound / (each.norm(dim=1) + 1e-6)).clamp(max=1)[:, None]).sum(dim=0)


def split(batch: Batch, largest: int) -> list[Batch]:
    return list(zip(*(torch.split(tensor, largest) for tensor in batch), strict=True))


def check_sums(
    module: nn.Module, loss: LossPerSample, batch: Batch, largest: int = 256, tolerance: float = 1.0
) -> None:
    """Assert that book-keeping, hooks and a loop over the records give one clipped sum, at every bound."""
    module.eval()
    assert choose_engine(module, "book-keeping") == "book-keeping"
    for bound in BOUNDS:
        by_loop = sum_by_loop(module, loss, batch, bound)
        by_books = clipped_sum(module, loss, split(batch, largest), bound)
        expectations = [by_loop]
        if all(part.bias is not None for part in module.modules() if isinstance(part, nn.LayerNorm)):
            expectations.append(
                clipped_sum(module, loss, [batch], bound, "hooks")
            )  # Opacus needs a norm to have a bias
        for expected in expectations:
            close = torch.allclose(by_books, expected, rtol=1e-4 * tolerance, atol=1e-5 * tolerance)
            assert close, "book-keeping gives another clipped sum"


def sum_of(grad_samples: Sequence[Tensor], bound: float) -> Tensor:
    """The clipped sum (d,) of gradients that are given, one tensor (B, *shape) a parameter."""
    parameters = [nn.Parameter(torch.zeros(gradient.shape[1:])) for gradient in grad_samples]
    noisy = NoisyOptimizer(torch.optim.SGD(parameters, lr=1.0), replace(PARAMS, max_grad_norm=bound))
    for parameter, gradient in zip(parameters, grad_samples, strict=True):
        parameter.grad_sample = gradient  # type: ignore[attr-defined]
    noisy.accumulate(len(grad_samples[0]))
    return torch.from_numpy(noisy.take_sum())


def clip_each(grad_samples: Sequence[Tensor], bound: float) -> Tensor:
    """What each record adds to the sum (B, d)."""
    size, length = len(grad_samples[0]), sum(gradient[:1].numel() for gradient in grad_samples)
    rows = [sum_of([gradient[i : i + 1] for gradient in grad_samples], bound) for i in range(size)]
    return torch.stack(rows) if rows else torch.zeros(0, length, dtype=torch.float64)
