"""Per-sample gradients, and the refusal of modules and losses for which they would be wrong.

Clipping bounds what a record can do only if the gradient attributed to it is its own. What can be told from the
structure is refused when the engine is built; what cannot is compared with the gradients of records taken alone. Two
ways lead to the gradients: book-keeping, and Opacus' hooks, which need a gradient a record in memory.
"""

from __future__ import annotations

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from opacus import GradSampleModule
from torch import Tensor, nn

from privacy.book_keeping import book_keeping, is_trained, rule_of
from privacy.errors import NotDecomposable
from privacy.mechanism import PerSampleEngine
from privacy.sample_gradients import LARGEST_NORM, Rows, SampleGradients, joint_norms

Batch = tuple[Tensor, ...]
"""Tensors whose first dimension counts the records."""

LossPerSample = Callable[[nn.Module, Batch], Tensor]
"""Maps the module and a batch of B records to their B losses."""

Pass = Callable[[LossPerSample, Batch], None]
"""One forward and backward pass over a batch, which leaves every trained parameter's per-sample gradients on it."""

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


def choose_engine(module: nn.Module, wanted: PerSampleEngine) -> PerSampleEngine:
    """The wanted way, or Opacus' hooks where a trained layer is of a kind without a rule for book-keeping."""
    if all(rule_of(part) is not None for part in module.modules() if is_trained(part)):
        return wanted
    return "hooks"


def check_structure(module: nn.Module) -> None:
    """Refuse modules in which neither way can give every record its own gradient.

    Raises:
        ValueError: names the part and what to write instead.
    """
    for name, part in module.named_modules():
        if not is_trained(part):
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
def per_sample_pass(module: nn.Module, engine: PerSampleEngine) -> Iterator[Pass]:
    """While active, per-sample gradients can be computed in one way.

    Args:
        module: as given to :func:`choose_engine`.
        engine: as it returned.

    Yields:
        What runs a pass.
    """
    if engine == "hooks":
        with per_sample_hooks(module):
            yield functools.partial(backward, module)
    else:
        with _modes_for_training(module), book_keeping(module) as keep:
            yield lambda loss, batch: keep(lambda: compute_losses(module, loss, batch))


@contextlib.contextmanager
def per_sample_hooks(module: nn.Module) -> Iterator[None]:
    """While active, a backward pass leaves ``grad_sample`` (B, *shape) on every trained parameter that it reaches."""
    with _modes_for_training(module):
        hooked = GradSampleModule(module, loss_reduction="sum", strict=True)
        try:
            yield
        finally:
            hooked.cleanup()
            for part in module.modules():
                for leftover in ("activations", "max_batch_len"):  # of a backward pass that failed half-way
                    if leftover in part.__dict__:
                        delattr(part, leftover)


@contextlib.contextmanager
def _modes_for_training(module: nn.Module) -> Iterator[None]:
    """Parts that hold trained parameters are in training mode meanwhile and everything else in evaluation mode.

    So no dropout is drawn and no statistics of a frozen part move; the former modes come back afterwards.
    """
    former = {part: part.training for part in module.modules()}
    try:
        for part in module.modules():
            part.training = is_trained(part)
        yield
    finally:
        for part, training in former.items():
            part.training = training


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
    module: nn.Module,
    loss_per_sample: LossPerSample,
    batch: Batch,
    *,
    tolerance: float = 0.02,
    engine: PerSampleEngine = "book-keeping",
) -> None:
    """Compare the per-sample gradients of a batch with the gradients of its records taken one by one.

    Catches losses that couple records (contrastive losses, batch statistics), layers whose per-sample gradient is
    wrong, and forward passes that draw their own randomness. Trains nothing and leaves nothing behind.

    Args:
        module: as given to the engine, outside :func:`per_sample_pass`.
        loss_per_sample: as given to the engine.
        batch: invented records to probe with, never private ones (the outcome is not charged for); the first three are
            used.
        tolerance: allowed difference relative to the largest gradient norm among the probed records.
        engine: which way is asked for; where it is not possible, the other is compared.

    Raises:
        NotDecomposable: they differ, or a trained parameter is not reached.
    """
    parameters = trainable_parameters(module)
    probe = tuple(tensor[:PROBED_RECORDS] for tensor in batch)
    with per_sample_pass(module, choose_engine(module, engine)) as run:
        run(loss_per_sample, probe)
        gradients = [take_gradients(parameter, len(probe[0])) for parameter in parameters]
        _forget_gradients(parameters)
    norms = joint_norms(gradients).cpu().double()
    expected = _one_by_one(module, loss_per_sample, probe)
    kept = (norms < LARGEST_NORM) & torch.isfinite(expected).all(dim=1)  # the others are clipped to zero
    records = kept.nonzero().flatten().to(parameters[0].device)
    together = _one_at_a_time([gradient.take(records) for gradient in gradients], len(records))
    norms, expected = norms[kept], expected[kept]
    scale = _largest_norm(torch.cat([together, expected]))
    error = max(_largest_norm(together - expected), _largest_norm((norms - expected.norm(dim=1))[:, None]))
    if scale > 0 and error > tolerance * scale:
        raise NotDecomposable(
            "the gradient of a record changes with the records beside it: the loss or a layer mixes records "
            "(contrastive loss, batch statistics, a leading dimension of 1), or draws randomness of its own; it cannot "
            "be trained privately"
        )


def _one_by_one(module: nn.Module, loss_per_sample: LossPerSample, batch: Batch) -> Tensor:
    """The gradient of each record alone (B, d), by an ordinary backward pass in the same modes."""
    parameters, alone = trainable_parameters(module), []
    with _modes_for_training(module):
        for record in range(len(batch[0])):
            losses = compute_losses(module, loss_per_sample, tuple(tensor[record : record + 1] for tensor in batch))
            found = torch.autograd.grad(losses.sum(), parameters, allow_unused=True, materialize_grads=True)
            alone.append(torch.cat([gradient.flatten().cpu().double() for gradient in found]))
    return torch.stack(alone)


def _one_at_a_time(gradients: Sequence[SampleGradients], size: int) -> Tensor:
    """The gradient of each record (B, d): weighted sums, as clipping forms them, in which one weight is not zero."""
    rows, one_hot = [], torch.eye(size)
    for record in range(size):
        sums = [gradient.weighted_sum(one_hot[record]) for gradient in gradients]
        rows.append(torch.cat([summed.flatten().cpu().double() for summed in sums]))
    return torch.stack(rows) if rows else torch.zeros(0, sum(math.prod(gradient.shape) for gradient in gradients))


def _largest_norm(rows: Tensor) -> float:
    return float(rows.norm(dim=1).max()) if len(rows) else 0.0


def take_gradients(parameter: nn.Parameter, size: int) -> SampleGradients:
    """The per-sample gradients that the last pass left, in whichever way, checked.

    Raises:
        NotDecomposable: there are none, or not for that many records.
    """
    found: SampleGradients | None = getattr(parameter, "sample_gradients", None)
    if found is None:
        return Rows(take_grad_sample(parameter, size))
    _check_shape(parameter, size, (len(found), *found.shape))
    return found


def take_grad_sample(parameter: nn.Parameter, size: int) -> Tensor:
    """The per-sample gradient (B, *shape) that the last backward pass under Opacus' hooks left, checked.

    Raises:
        NotDecomposable: there is none, or it does not have one row per record.
    """
    grad_sample = getattr(parameter, "grad_sample", None)
    _check_shape(parameter, size, tuple(grad_sample.shape) if isinstance(grad_sample, Tensor) else None)
    return cast("Tensor", grad_sample)


def _check_shape(parameter: nn.Parameter, size: int, found: tuple[int, ...] | None) -> None:
    if found != (size, *parameter.shape):
        raise NotDecomposable(
            f"a trained parameter of shape {tuple(parameter.shape)} has no per-sample gradient for {size} records "
            f"(found: {found or 'none'}); every trained parameter must be used, with the batch in the first dimension"
        )


def _forget_gradients(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None
        parameter.grad_sample = None  # type: ignore[attr-defined]
