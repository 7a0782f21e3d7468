"""How many bytes of tensors are alive while something is computed, counted operation by operation.

Works on every device, also on torch's "meta" device, which has sizes and no memory. What an operation needs inside
itself is not seen; `fedmvp.training.memory` leaves room for it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


@contextmanager
def counted(device: torch.device) -> Iterator[LiveBytes]:
    """Count what is computed inside the block.

    Args:
        device: whose memory counts; tensors elsewhere are left out.

    Yields:
        The counts, which grow as operations run.
    """
    with LiveBytes(device) as live, saved_tensors_hooks(live.save, lambda tensor: tensor):
        yield live


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch does not type its hook for subclasses
    """While active, counts the storages that operations make, until nothing refers to them any more.

    Args:
        device: whose memory counts; tensors elsewhere are left out.

    Attributes:
        trace: bytes alive after each operation.
        kept: bytes, of those, that forward passes left for their backward passes.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace: list[int] = []
        self.kept = 0
        self._device = device
        self._alive = 0
        self._sizes: dict[int, int] = {}
        self._references: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._saved: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and count what it made."""
        given = kwargs or {}
        self._note((args, given), new=False)  # a parameter, a record: it was there before
        returned = func(*args, **given)
        self._note(returned, new=True)
        self.trace.append(self._alive)
        return returned

    def _note(self, values: Any, *, new: bool) -> None:
        for value in tree_iter(values):
            if not isinstance(value, Tensor) or value.device.type != self._device.type:
                continue
            storage = value.untyped_storage()
            key = storage._cdata  # noqa: SLF001 - its address, by which torch's own tools tell storages apart
            if key not in self._references:
                self._references[key] = weakref.ref(storage, partial(self._forget, key))
                self._sizes[key] = storage.nbytes() if new else 0
                self._alive += self._sizes[key]

    def _forget(self, key: int, _gone: object) -> None:
        self._alive -= self._sizes.pop(key)
        self._saved.discard(key)
        del self._references[key]

    def save(self, tensor: Tensor) -> Tensor:
        """Count what a forward pass keeps for its backward pass; a hook of autograd's."""
        key = tensor.untyped_storage()._cdata  # noqa: SLF001 - as above
        if key in self._sizes and key not in self._saved:
            self._saved.add(key)
            self.kept += self._sizes[key]
        return tensor
