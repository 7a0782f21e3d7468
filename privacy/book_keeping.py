"""Per-sample gradients by one ordinary backward pass, without a gradient a record in memory (Bu et al. 2023).

A trained layer's weights are held constant during the pass, so that autograd computes no gradient of theirs, and each
call of the layer leaves its inputs and the gradient at its output. A rule for the kind of layer turns the two into
:class:`~privacy.sample_gradients.SampleGradients`; the norms and the clipped sum are computed from those
(arXiv 2210.00038). Opacus' grad samplers are rules too, so every kind that Opacus knows can be trained this way.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from opacus import GradSampleModule
from torch import Tensor, nn

from privacy.errors import NotDecomposable
from privacy.sample_gradients import Outer, SampleGradients, combine

Rule = Callable[[Any, list[Tensor], Tensor], Mapping[Tensor, SampleGradients | Tensor]]
"""Maps a layer, the inputs of one call and the gradients of the summed loss by its output (B, ...) to the per-sample
gradients of the layer's parameters that require one: rows (B, *shape), or :class:`~privacy.sample_gradients.Outer`."""

_RULES: dict[type[nn.Module], Rule] = {}
_AnyRule = TypeVar("_AnyRule", bound=Rule)


def register_book_keeping(*layer_types: type[nn.Module]) -> Callable[[_AnyRule], _AnyRule]:
    """Decorate the rule of these kinds of layers; a subclass is another kind and needs its own.

    Args:
        layer_types: whose forward takes positional tensors and returns one tensor with the batch in front.
    """

    def register(rule: _AnyRule) -> _AnyRule:
        for layer_type in layer_types:
            _RULES[layer_type] = rule
        return rule

    return register


def rule_of(layer: nn.Module) -> Rule | None:
    """The rule of a layer's exact kind, ours before Opacus'; None if there is none."""
    own = _RULES.get(type(layer))
    return own or GradSampleModule.GRAD_SAMPLERS.get(type(layer))


def is_trained(layer: nn.Module) -> bool:
    """Whether a layer holds, itself, a parameter that requires a gradient."""
    return any(parameter.requires_grad for parameter in layer.parameters(recurse=False))


@contextlib.contextmanager
def book_keeping(module: nn.Module) -> Iterator[Callable[[Callable[[], Tensor]], None]]:
    """While active, the trained layers of a module leave what their per-sample gradients are made of.

    Yields:
        A function of a function that computes losses (B,). It calls that, runs one backward pass over their sum and
        leaves ``sample_gradients`` on every trained parameter that was reached.
    """
    book = _Book(module)
    handles = [layer.register_forward_hook(book.open, prepend=True, with_kwargs=True) for layer in book.layers]
    try:
        yield book.backward
    finally:
        book.forget()
        for handle in handles:
            handle.remove()


class _Book:
    """What the calls of the layers leave in one pass."""

    def __init__(self, module: nn.Module) -> None:
        self._parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._trained = {
            layer: [parameter for parameter in layer.parameters(recurse=False) if parameter.requires_grad]
            for layer in module.modules()
            if is_trained(layer)
        }
        self._parts: dict[Tensor, list[SampleGradients | Tensor]] = {}
        self._size = 0
        # Part of every call's graph: the gradient at its output is computed even if its input needs none.
        self._anchor = torch.zeros((), requires_grad=True)

    @property
    def layers(self) -> list[nn.Module]:
        """The layers that hold trained parameters themselves."""
        return list(self._trained)

    def open(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        """See a call of a trained layer, as its forward hook."""
        if not torch.is_grad_enabled():
            return None
        if kwargs:
            args = inspect.signature(layer.forward).bind(*args, **kwargs).args
        tapped: Tensor = _Tap.apply(self._anchor, output, _Call(self, layer, args))  # type: ignore[no-untyped-call]
        return tapped

    def backward(self, losses: Callable[[], Tensor]) -> None:
        """Run one forward and one backward pass, and leave ``sample_gradients``."""
        self.forget()
        with _requires_grad(self._parameters, required=False):  # backwards too: a checkpoint runs its part again
            values = losses()
            if not values.requires_grad:
                raise NotDecomposable("the loss depends on no trained parameter")
            self._size = len(values)
            values.sum().backward()  # type: ignore[no-untyped-call]
        for parameter, parts in self._parts.items():
            parameter.sample_gradients = combine(parts)  # type: ignore[attr-defined]
        self._parts = {}

    def close(self, layer: nn.Module, inputs: list[Tensor], gradient: Tensor) -> None:
        """Take the gradient at the output of a call."""
        rule = rule_of(layer)
        if rule is None or gradient.dim() == 0 or gradient.shape[0] != self._size:
            raise NotDecomposable(
                f"a trained {type(layer).__name__} has no per-sample gradient for {self._size} records (its output has "
                f"shape {tuple(gradient.shape)}); the batch must be in the first dimension"
            )
        with _requires_grad(self._trained[layer], required=True):  # which is how a rule tells them from frozen ones
            for parameter, part in rule(layer, inputs, gradient).items():
                self._parts.setdefault(parameter, []).append(part)

    def forget(self) -> None:
        """Drop everything, of a pass that failed half-way too."""
        self._parts = {}
        for parameter in self._parameters:
            parameter.sample_gradients = None  # type: ignore[attr-defined]


class _Call:
    """One call of a trained layer: where the gradient at its output belongs."""

    def __init__(self, book: _Book, layer: nn.Module, args: tuple[Any, ...]) -> None:
        self._book = book
        self._layer = layer
        self._inputs = [value.detach() for value in args if isinstance(value, Tensor)]
        self._versions = [value._version for value in self._inputs]  # noqa: SLF001 - torch's count of changes in place

    def close(self, gradient: Tensor) -> None:
        """See :meth:`_Book.close`."""
        if [value._version for value in self._inputs] != self._versions:  # noqa: SLF001
            raise NotDecomposable(
                f"an input of a trained {type(self._layer).__name__} was changed in place after its use"
            )
        self._book.close(self._layer, self._inputs, gradient.detach())


class _Tap(torch.autograd.Function):
    """Hands its output on, and the gradient at it to a call."""

    @staticmethod
    def forward(ctx: Any, _anchor: Tensor, output: Tensor, call: _Call) -> Tensor:
        ctx.call = call
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor | None, None]:
        ctx.call.close(gradient)
        return None, gradient if ctx.needs_input_grad[1] else None, None


@contextlib.contextmanager
def _requires_grad(parameters: Sequence[nn.Parameter], *, required: bool) -> Iterator[None]:
    try:
        for parameter in parameters:
            parameter.requires_grad_(required)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(not required)


@register_book_keeping(nn.Linear)
def _linear_gradients(
    layer: nn.Linear, activations: list[Tensor], backprops: Tensor
) -> dict[Tensor, SampleGradients | Tensor]:
    dtype = layer.weight.dtype
    inputs, gradients = _by_token(activations[0].to(dtype), 1), _by_token(backprops.to(dtype), 1)
    found: dict[Tensor, SampleGradients | Tensor] = {}
    if layer.weight.requires_grad:
        found[layer.weight] = Outer(inputs, gradients)
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = gradients.sum(dim=1)
    return found


@register_book_keeping(nn.LayerNorm)
def _layer_norm_gradients(
    layer: nn.LayerNorm, activations: list[Tensor], backprops: Tensor
) -> dict[Tensor, SampleGradients | Tensor]:
    dtype, width = layer.weight.dtype, len(layer.normalized_shape)
    gradients = backprops.to(dtype)
    found: dict[Tensor, SampleGradients | Tensor] = {}
    if layer.weight.requires_grad:
        normalised = F.layer_norm(activations[0].to(dtype), layer.normalized_shape, eps=layer.eps)
        found[layer.weight] = _by_token(normalised * gradients, width).sum(dim=1)
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = _by_token(gradients, width).sum(dim=1)
    return found


def _by_token(values: Tensor, width: int) -> Tensor:
    """(B, ..., *shape) as (B, T, *shape), where shape has ``width`` dimensions."""
    middle = values.dim() - width
    if middle == 2:
        return values
    return values.reshape(values.shape[0], math.prod(values.shape[1:middle]), *values.shape[middle:])
