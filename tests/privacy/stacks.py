"""Stacks of trained and frozen layers of any shape, for engines that must agree on all of them."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from privacy.per_sample import Batch

KINDS = (
    "linear",
    "no bias",
    "weight alone",
    "bias alone",
    "norm",
    "norm without bias",
    "plain norm",
    "frozen",
    "twice",
)


@dataclass(frozen=True)
class Shape:
    """What a stack is made of, and what its records look like.

    Args:
        kinds: of the layers, the last of which is followed by a trained linear layer.
        widths: of their outputs, of which a norm takes its input's.
        middle: dimensions between the batch and the width: none, tokens, or tokens of tokens.
        width: of the input; a norm of one or two numbers is nothing but rounding.
        size: records.
        seed: of weights and records.
    """

    kinds: tuple[str, ...]
    widths: tuple[int, ...]
    middle: tuple[int, ...]
    width: int
    size: int
    seed: int


SHAPES = st.integers(0, 4).flatmap(
    lambda depth: st.builds(
        Shape,
        kinds=st.tuples(*[st.sampled_from(KINDS)] * depth),
        widths=st.tuples(*[st.integers(3, 40)] * depth),
        middle=st.lists(st.integers(1, 12), max_size=2).map(tuple),
        width=st.integers(3, 40),
        size=st.integers(1, 7),
        seed=st.integers(0, 10**6),
    )
)


class Twice(nn.Module):
    """One layer used twice in a forward pass."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class Stack(nn.Module):
    """The layers of a shape, with a bend after each."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        torch.manual_seed(shape.seed)
        layers, width = [], shape.width
        for kind, wanted in zip(shape.kinds, shape.widths, strict=True):
            layers += [_layer(kind, width, wanted), nn.Tanh()]
            width = width if "norm" in kind or kind == "twice" else wanted
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


def _layer(kind: str, width: int, wanted: int) -> nn.Module:
    if kind == "twice":
        return Twice(width)
    if "norm" in kind:
        norm = nn.LayerNorm(width, elementwise_affine=kind != "plain norm", bias=kind == "norm")
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
        return norm
    layer = nn.Linear(width, wanted, bias=kind != "no bias").requires_grad_(kind != "frozen")
    if kind == "weight alone":
        layer.bias.requires_grad_(False)
    if kind == "bias alone":
        layer.weight.requires_grad_(False)
    return layer


def records_of(shape: Shape) -> Batch:
    """Inputs (B, *middle, width) and what the outputs are compared with."""
    generator = torch.Generator().manual_seed(shape.seed)
    full = (shape.size, *shape.middle)
    return torch.randn(*full, shape.width, generator=generator), torch.randn(*full, 3, generator=generator)


def distance(module: nn.Module, batch: Batch) -> Tensor:
    """Losses (B,): the squared distances of the outputs from the targets."""
    return (module(batch[0]) - batch[1]).square().flatten(1).sum(dim=1)
