"""Per-sample gradients by Opacus' hooks, and the refusal of modules and losses for which they would be wrong.

Clipping bounds what a record can do only if the gradient attributed to it is its own. What can be told from the
structure is refused when the engine is built; what cannot is compared with the gradients of records taken alone.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from opacus import GradSampleModule
from torch import Tensor, nn

from privacy.errors import NotDecomposable

Batch = tuple[Tensor, ...]
"""Tensors whose first dimension counts the records."""

LossPerSample = Callable[[nn.Module, Batch], Tensor]
"""Maps the module and a batch of B records to their B losses."""

PROBED_RECORDS = 3
"""How many records a loss is checked with: enough that every record has two others beside it."""

_REFUSED = (nn.MultiheadAttention, nn.RNNBase, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001 - its common base


def trainable_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained, in the module's order.

    Raises:
        ValueError: there are none, or one is of a precision too low to hold noise.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError("the module has nothing to train: no parameter requires a gradient")
    if any(parameter.dtype not in (torch.float32, torch.float64) for parameter in parameters):
        raise ValueError("trained parameters must be float32 or float64; use autocast for the frozen part instead")
    return parameters


def check_structure(module: nn.Module) -> None:
    """Refuse modules in which Opacus' hooks cannot give every record its own gradient.

    Raises:
        ValueError: names the part and what to write instead.
    """
    for name, part in module.named_modules():
        own = [parameter for parameter in part.parameters(recurse=False) if parameter.requires_grad]
        if not own:
            continue
        label = f"{name or 'the module itself'} ({type(part).__name__})"
        if isinstance(part, _REFUSED):
            raise ValueError(f"{label} has no correct per-sample gradient: freeze it, or build it from nn.Linear")
        if any(True for _ in part.buffers()):
            raise ValueError(f"{label} holds buffers beside trained parameters; they would leave the site unprotected")
        known = type(part) in GradSampleModule.GRAD_SAMPLERS
        if not known and any(p.requires_grad for child in part.children() for p in child.parameters()):
            raise ValueError(
                f"{label} holds trained parameters of its own beside trained children: move its own parameters into a "
                "small module whose forward takes one tensor with the batch in front"
            )


@contextlib.contextmanager
def per_sample_hooks(module: nn.Module) -> Iterator[None]:
    """While active, a backward pass leaves ``grad_sample`` (B, *shape) on every trained parameter that it reaches.

    Parts that hold trained parameters are in training mode meanwhile and everything else in evaluation mode, so that no
    dropout is drawn and no statistics of a frozen part move; the former modes come back afterwards.
    """
    former = {part: part.training for part in module.modules()}
    hooked = GradSampleModule(module, loss_reduction="sum", strict=True)
    for part in module.modules():
        part.training = any(parameter.requires_grad for parameter in part.parameters(recurse=False))
    try:
        yield
    finally:
        hooked.cleanup()
        for part, training in former.items():
            part.training = training
            for leftover in ("activations", "max_batch_len"):  # of a backward pass that failed half-way
                if leftover in part.__dict__:
                    delattr(part, leftover)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """While active, every part of a module is in evaluation mode; the former modes come back afterwards."""
    former = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in former.items():
            part.training = training


def compute_losses(module: nn.Module, loss_per_sample: LossPerSample, batch: Batch) -> Tensor:
    """The losses of a batch, refused unless there is one for each record.

    Raises:
        ValueError: the loss is not a vector of length B.
    """
    losses = loss_per_sample(module, batch)
    size = len(batch[0])
    if losses.shape != (size,):
        raise ValueError(
            f"loss_per_sample must return one loss per record, shape ({size},), not {tuple(losses.shape)}; "
            "a mean over the batch cannot be clipped by record"
        )
    return losses


def backward(module: nn.Module, loss_per_sample: LossPerSample, batch: Batch) -> None:
    """One forward and backward pass over the sum of the losses of ``batch``."""
    with warnings.catch_warnings():
        # Inputs of the first trained layer need no gradient here; the hooks do not use the one torch warns about.
        warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
        compute_losses(module, loss_per_sample, batch).sum().backward()  # type: ignore[no-untyped-call]


def check_decomposable(
    module: nn.Module, loss_per_sample: LossPerSample, batch: Batch, *, tolerance: float = 0.02
) -> None:
    """Compare the per-sample gradients of a batch with the gradients of its records taken one by one.

    Catches losses that couple records (contrastive losses, batch statistics), layers whose per-sample gradient is
    wrong, and forward passes that draw their own randomness. Trains nothing and leaves nothing behind.

    Args:
        module: as given to the engine, outside :func:`per_sample_hooks`.
        loss_per_sample: as given to the engine.
        batch: invented records to probe with, never private ones (the outcome is not charged for); the first three are
            used.
        tolerance: allowed difference relative to the largest gradient norm among the probed records.

    Raises:
        NotDecomposable: they differ, or a trained parameter is not reached.
    """
    parameters = trainable_parameters(module)
    probe = tuple(tensor[:PROBED_RECORDS] for tensor in batch)
    with per_sample_hooks(module):
        backward(module, loss_per_sample, probe)
        together = _flatten([take_grad_sample(parameter, len(probe[0])) for parameter in parameters])
        _forget_gradients(parameters)
        alone = []
        for record in range(len(probe[0])):
            backward(module, loss_per_sample, tuple(tensor[record : record + 1] for tensor in probe))
            alone.append(_flatten([parameter.grad[None] for parameter in parameters if parameter.grad is not None]))
            _forget_gradients(parameters)
    expected = torch.cat(alone)
    finite = torch.isfinite(together).all(dim=1) & torch.isfinite(expected).all(dim=1)  # the others are clipped to zero
    together, expected = together[finite], expected[finite]
    scale = float(torch.cat([together, expected]).norm(dim=1).max()) if len(expected) else 0.0
    if scale > 0 and float((together - expected).norm(dim=1).max()) > tolerance * scale:
        raise NotDecomposable(
            "the gradient of a record changes with the records beside it: the loss or a layer mixes records "
            "(contrastive loss, batch statistics, a leading dimension of 1), or draws randomness of its own; it cannot "
            "be trained privately"
        )


def take_grad_sample(parameter: nn.Parameter, size: int) -> Tensor:
    """The per-sample gradient (B, *shape) that the last backward pass left, checked.

    Raises:
        NotDecomposable: there is none, or it does not have one row per record.
    """
    grad_sample = getattr(parameter, "grad_sample", None)
    if not isinstance(grad_sample, Tensor) or grad_sample.shape != (size, *parameter.shape):
        found = tuple(grad_sample.shape) if isinstance(grad_sample, Tensor) else "none"
        raise NotDecomposable(
            f"a trained parameter of shape {tuple(parameter.shape)} has no per-sample gradient for {size} records "
            f"(found: {found}); every trained parameter must be used, with the batch in the first dimension"
        )
    return grad_sample


def as_rows(gradient: Tensor) -> Tensor:
    """(B, *shape) as (B, size); also for a scalar parameter and an empty batch."""
    return gradient.reshape(gradient.shape[0], math.prod(gradient.shape[1:]))


def _flatten(gradients: Sequence[Tensor]) -> Tensor:
    return torch.cat([as_rows(gradient.detach()).cpu().double() for gradient in gradients], dim=1)  # (B, d)


def _forget_gradients(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None
        parameter.grad_sample = None  # type: ignore[attr-defined]
