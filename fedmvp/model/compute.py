"""How the frozen tower is computed: precision, compilation, checkpoints. Speed, memory and rounding, and nothing else.

The trained module is not touched by any of it: it computes in float32.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import structlog
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

log = structlog.get_logger("fedmvp.model")

GRADIENT_SCALE = 1024.0
"""Gradients pass a float16 tower larger by this, or the small ones among them would become zero."""


class Precision(StrEnum):
    """What the frozen tower computes in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


_AUTOCAST = {Precision.BFLOAT16: torch.bfloat16, Precision.FLOAT16: torch.float16}


@dataclass(frozen=True)
class TowerOptions:
    """How the frozen tower runs.

    Attributes:
        precision: `auto` takes what `preferred_precision` says.
        channels_last: lay pixels and the first convolution out with the channels last.
        compile: compile the blocks; where that fails they run uncompiled.
        activation_checkpointing: keep no activations inside frozen blocks and compute them again on the way back:
            less memory for input injection, a quarter to a third more time.
    """

    precision: Precision = Precision.AUTO
    channels_last: bool = False
    compile: bool = False
    activation_checkpointing: bool = False


def preferred_precision(device: torch.device) -> Precision:
    """Return the fastest precision of a device that its tensor units have; a CPU is many times slower in bfloat16."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return Precision.BFLOAT16 if native else Precision.FLOAT16
    return Precision.FLOAT16 if device.type == "mps" else Precision.FLOAT32


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Return the context in which a tower of this precision runs."""
    if precision in _AUTOCAST:
        return torch.autocast(device.type, dtype=_AUTOCAST[precision])
    return nullcontext()


def compute_reproducibly() -> None:
    """Make PyTorch choose algorithms that give the same bits in every run on the same machine, for experiments.

    Noise and sampling stay random: they come from the operating system and have no seed. Operations that cannot be
    reproduced are refused by PyTorch.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


class BlockRunner:
    """Runs frozen transformer blocks.

    Args:
        options: whether they are compiled and checkpointed.
        backend: of torch.compile; tests alone choose another.
    """

    def __init__(self, options: TowerOptions, *, backend: str = "inductor") -> None:
        self._checkpointing = options.activation_checkpointing
        self._compiling = options.compile
        self._backend = backend
        self._compiled: dict[nn.Module, Any] = {}

    @property
    def is_compiling(self) -> bool:
        """Whether blocks run compiled, as far as known."""
        return self._compiling

    def __call__(self, block: nn.Module, states: Tensor) -> Tensor:
        """Return what a block makes of its input."""
        if self._checkpointing and torch.is_grad_enabled() and states.requires_grad:
            kept: Tensor = checkpoint(self._run, block, states, use_reentrant=False, preserve_rng_state=False)
            return kept
        return self._run(block, states)

    def _run(self, block: nn.Module, states: Tensor) -> Tensor:
        if self._compiling:
            try:
                if not self._compiled:
                    self._try_out(block, states)
                compiled: Tensor = self._compile(block)(states)
                return compiled
            except torch.OutOfMemoryError:
                raise
            except Exception as failure:  # noqa: BLE001 - compilers fail in ways of their own, and none may stop a run
                self._compiling = False
                log.warning("the tower cannot be compiled here and runs uncompiled", reason=type(failure).__name__)
        plain: Tensor = block(states)
        return plain

    def _compile(self, block: nn.Module) -> Any:
        if block not in self._compiled:
            self._compiled[block] = torch.compile(block, dynamic=True, backend=self._backend)
        return self._compiled[block]

    def _try_out(self, block: nn.Module, states: Tensor) -> None:
        """Compile forward and backward on zeros: a failure on the way back could not be answered any more."""
        with torch.enable_grad():
            probe = torch.zeros_like(states, requires_grad=True)
            self._compile(block)(probe).float().sum().backward()


class _Scale(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def scale_gradient(values: Tensor, factor: float) -> Tensor:
    """Return the values, such that the gradient that flows back is multiplied by `factor`."""
    scaled: Tensor = _Scale.apply(values, factor)  # type: ignore[no-untyped-call]
    return scaled
