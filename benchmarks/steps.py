"""One training step in six ways, from the same module, batch and loss to a step of the same optimizer.

Each way is a context that makes the module ready and yields the step; only the step is timed.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from torch.func import functional_call, grad, vmap

from benchmarks.workload import Trained
from privacy import ADD_OR_REMOVE_ONE, Mode, PrivacyParameters
from privacy.mechanism import PerSampleEngine
from privacy.noise import gaussian
from privacy.optimizer import Noise, NoisyOptimizer
from privacy.per_sample import per_sample_pass

Step = Callable[[], None]
Way = Callable[[Trained], contextlib.AbstractContextManager[Step]]

PARAMETERS = PrivacyParameters(
    mode=Mode.RECORD_LOCAL,
    unit="record",
    neighboring_relation=ADD_OR_REMOVE_ONE,
    sample_rate=0.1,
    noise_multiplier=1.0,
    max_grad_norm=0.1,
    expected_batch_size=64,
    steps_per_round=1,
    delta=1e-5,
)


LEARNING_RATE = 1e-3


def no_noise(size: int, _deviation: float) -> np.ndarray:
    return np.zeros(size)


@contextlib.contextmanager
def plain(trained: Trained) -> Iterator[Step]:
    """Without privacy."""
    optimizer = _sgd(trained)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        trained.losses(trained.model, trained.batch).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    yield step
    optimizer.zero_grad(set_to_none=True)


def _ours(engine: PerSampleEngine, noise: Noise) -> Way:
    @contextlib.contextmanager
    def way(trained: Trained) -> Iterator[Step]:
        optimizer = NoisyOptimizer(_sgd(trained), PARAMETERS, noise)
        with per_sample_pass(trained.model, engine) as run:

            def step() -> None:
                optimizer.zero_grad(set_to_none=True)
                run(trained.losses, trained.batch)
                optimizer.accumulate(len(trained.batch[0]))
                optimizer.step()

            yield step
        optimizer.zero_grad(set_to_none=True)

    return way


@contextlib.contextmanager
def functorch(trained: Trained) -> Iterator[Step]:
    """Functorch: vmap of grad over the whole model, clipped by the same optimizer."""
    if trained.model.probe is not None:
        raise ValueError("this way reaches what forward reads, and a probe is read by the loss")
    optimizer = NoisyOptimizer(_sgd(trained), PARAMETERS, no_noise)
    names = [name for name, parameter in trained.model.named_parameters() if parameter.requires_grad]

    def loss_of_one(values: dict[str, torch.Tensor], *record: torch.Tensor) -> torch.Tensor:
        batch = tuple(tensor[None] for tensor in record)
        return trained.losses(lambda part: functional_call(trained.model, values, (part,)), batch)[0]  # type: ignore[arg-type]

    each = vmap(grad(loss_of_one), in_dims=(None, *(0 for _ in trained.batch)))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        values = {name: parameter.detach() for name, parameter in zip(names, trained.parameters, strict=True)}
        found = each(values, *trained.batch)
        for name, parameter in zip(names, trained.parameters, strict=True):
            parameter.grad_sample = found[name]  # type: ignore[attr-defined]
        optimizer.accumulate(len(trained.batch[0]))
        optimizer.step()

    with _quiet("There is a performance drop because we have not yet implemented the batching rule"):
        yield step
    optimizer.zero_grad(set_to_none=True)


@contextlib.contextmanager
def ghost(trained: Trained) -> Iterator[Step]:
    """Opacus' ghost clipping: norms from a first backward pass, the clipped sum from a second."""
    optimizer = NoisyOptimizer(_sgd(trained), PARAMETERS, no_noise)
    former = [(part, part.training) for part in trained.model.modules()]
    for part in trained.model.modules():
        part.training = any(parameter.requires_grad for parameter in part.parameters(recurse=False))
    hooked = GradSampleModuleFastGradientClipping(
        trained.model, loss_reduction="sum", max_grad_norm=PARAMETERS.max_grad_norm, use_ghost_clipping=True
    )

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        losses = trained.losses(trained.model, trained.batch)
        hooked.enable_hooks()
        losses.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
        factors = hooked.get_clipping_coef()
        for parameter in trained.parameters:
            parameter.grad = None
        hooked.disable_hooks()
        (factors.detach() * losses).sum().backward()
        hooked.enable_hooks()
        for parameter in trained.parameters:
            assert parameter.grad is not None
            parameter.summed_grad = parameter.grad.double().cpu()  # type: ignore[attr-defined]
        optimizer.step()

    try:
        with _quiet("Full backward hook is firing"):
            yield step
    finally:
        hooked.cleanup()
        for part, training in former:
            part.training = training
        optimizer.zero_grad(set_to_none=True)


WAYS: dict[str, Way] = {
    "plain": plain,
    "book-keeping": _ours("book-keeping", no_noise),
    "book-keeping with noise": _ours("book-keeping", gaussian),
    "Opacus hooks": _ours("hooks", no_noise),
    "functorch": functorch,
    "ghost clipping": ghost,
}


def clipped_step(way: Way, trained: Trained) -> torch.Tensor:
    """What one step of a way without noise changes (dimension,); the parameters are put back."""
    before = [parameter.detach().clone() for parameter in trained.parameters]
    with way(trained) as step:
        step()
    changed = torch.cat([(p.detach() - b).flatten() for p, b in zip(trained.parameters, before, strict=True)])
    with torch.no_grad():
        for parameter, value in zip(trained.parameters, before, strict=True):
            parameter.copy_(value)
    return changed


def _sgd(trained: Trained) -> torch.optim.Optimizer:
    return torch.optim.SGD(trained.parameters, lr=LEARNING_RATE)


@contextlib.contextmanager
def _quiet(beginning: str) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=beginning, category=UserWarning)
        yield
