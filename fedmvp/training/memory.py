"""How much memory a piece of a batch needs, known before the first step, and how large a piece may be.

Rehearsals with invented records, of two, four and so on as long as they are small, show how many bytes are alive after
every operation. Where a larger piece runs the same operations, each of these numbers grows by the same amount with
every further record, so the last two rehearsals tell the peak of any size; where it does not, as where an engine works
in portions, the peak grows at most in proportion. What is rehearsed is what the engine does, whichever engine it is. No
private record is used: what is estimated or refused tells nothing of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedmvp.errors import ExitCode, UserError
from fedmvp.training.free_memory import GIB, room_on
from fedmvp.training.live_bytes import counted
from privacy.gradient_sums import GradientSums
from privacy.records import Data, Records, as_records, invent_records


@dataclass(frozen=True)
class Allocator:
    """What a device's memory loses beside the tensors.

    Args:
        margin: bytes taken for each byte of tensors, for what operations need inside themselves and for gaps between
            blocks, at least 1.
        reserve: bytes of threads and libraries.
    """

    margin: float
    reserve: int


# glibc keeps freed blocks that the next piece does not fit into: up to 1.8 bytes for one were measured over many
# pieces. The caching allocators of GPUs split large blocks and lose less.
ALLOCATORS = {"cpu": Allocator(2.0, 64 * 2**20), "mps": Allocator(1.5, 256 * 2**20)}
GPU = Allocator(1.25, 384 * 2**20)

REHEARSED_BYTES = 2**28
"""Rehearsals double while they need less than this: seconds on a processor, next to nothing on a GPU."""

_SMALLEST = 2
"""Records of the first rehearsal; with one, operations may take other ways."""


@dataclass(frozen=True)
class Rehearsal:
    """What a piece of invented records needed.

    Args:
        records: of the piece.
        trace: bytes of tensors alive after each operation.
        kept: bytes that the forward pass left for the backward pass.
    """

    records: int
    trace: NDArray[np.int64] = field(repr=False, compare=False)
    kept: int

    @property
    def peak(self) -> int:
        """Most bytes of tensors alive at once."""
        return int(self.trace.max(initial=0))


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a piece of a batch needs on one device, by the number of its records.

    Args:
        rehearsals: at least two, of more and more records.
        state: bytes that training holds whatever the size of the piece.
        allocator: of the device.
        ahead: bytes of one record, of the piece that may be fetched while this one is worked on.
    """

    rehearsals: tuple[Rehearsal, ...]
    state: int
    allocator: Allocator
    ahead: int = 0

    def activations(self, records: int) -> int:
        """Bytes that the forward pass of a piece leaves for the backward pass."""
        before, last = self.rehearsals[-2:]
        slope = (last.kept - before.kept) / (last.records - before.records)
        return max(0, round(last.kept + slope * (records - last.records)))

    def tensors(self, records: int) -> int:
        """Most bytes of tensors that are alive at once for a piece."""
        before, last = self.rehearsals[-2:]
        if records <= last.records:
            sizes = [rehearsal.records for rehearsal in self.rehearsals]
            return math.ceil(float(np.interp(records, sizes, [rehearsal.peak for rehearsal in self.rehearsals])))
        if len(before.trace) == len(last.trace):
            slopes = (last.trace - before.trace) / (last.records - before.records)
            return math.ceil(float((last.trace + slopes * (records - last.records)).max()))
        return math.ceil(last.peak * records / last.records)

    def peak(self, records: int) -> int:
        """Most bytes that training needs at once, with room for what cannot be counted.

        Args:
            records: of a piece, at least 1.
        """
        counted = self.tensors(records) + records * self.ahead + self.state
        return math.ceil(self.allocator.margin * counted) + self.allocator.reserve

    def largest(self, budget: int, most: int) -> int:
        """The largest piece of up to ``most`` records that needs no more than ``budget`` bytes; 0 if there is none."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.peak(middle) <= budget else (low, middle - 1)
        return low


def measure_step(sums: GradientSums, data: Data, *, most: int, momentum: bool = True) -> StepMemory:
    """Rehearse pieces of a batch and return what they need.

    Args:
        sums: an engine, or what computes for one.
        data: of which shapes and types are read.
        most: the largest piece of interest.
        momentum: whether the optimizer keeps one number a parameter.
    """
    device, records = sums.device, as_records(data)
    rehearsals = [_rehearse(sums, records, _SMALLEST), _rehearse(sums, records, 2 * _SMALLEST)]
    while (last := rehearsals[-1]).records < most and last.peak < REHEARSED_BYTES:
        rehearsals.append(_rehearse(sums, records, min(2 * last.records, most)))
    one = sum(part.nbytes for part in invent_records(records, device, 1))
    state = _state_bytes(sums.trained, device, momentum=momentum)
    return StepMemory(tuple(rehearsals), state, ALLOCATORS.get(device.type, GPU), ahead=one)


def _rehearse(sums: GradientSums, records: Records, count: int) -> Rehearsal:
    with counted(sums.device) as live:
        sums.rehearse(invent_records(records, sums.device, count))
    return Rehearsal(count, np.array(live.trace, dtype=np.int64), live.kept)


def _state_bytes(parameters: Sequence[nn.Parameter], device: torch.device, *, momentum: bool) -> int:
    """What training holds on a device apart from a piece: copies of the parameters, gradient, momentum, sums, noise."""
    held = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    copies = 3 + 1 + momentum  # at the start, now and after the last call; the gradient; the optimizer's
    in_float64 = 4 * 8 * sum(parameter.numel() for parameter in parameters)  # sum, noise, both together, scaled
    return copies * held + (in_float64 if device.type == "cpu" else 0)


@dataclass(frozen=True)
class MemoryRequest:
    """What a site wants of its memory.

    Args:
        physical_batch: records at once through the module, or "auto" for as many as fit.
        limit_gb: most that this process may use of the device, in 2^30 bytes; 0 sets no limit.
        sharers: processes of this site that use the same processor, at least 1.
    """

    physical_batch: int | str = "auto"
    limit_gb: float = 0.0
    sharers: int = 1


@dataclass(frozen=True)
class MemoryPlan:
    """What training will need.

    Args:
        physical_batch: records at once through the module.
        peak: estimated peak of this process on the device, bytes.
        usable: bytes it may use there altogether; None where nobody knows.
    """

    physical_batch: int
    peak: int
    usable: int | None


def plan_memory(sums: GradientSums, data: Data, request: MemoryRequest, *, logical: float) -> MemoryPlan:
    """Estimate what training needs, and let no more records through the module at once than fit.

    Args:
        sums: an engine, or what computes for one; its physical batch is set.
        data: what it will be given.
        request: what the site wants.
        logical: expected records of a whole batch; "auto" has no use for pieces that are never filled.

    Raises:
        UserError: the choice does not fit, or not even one record does.
    """
    device = sums.device
    most = math.ceil(logical + 4 * math.sqrt(logical))  # a Poisson batch is larger once in thirty thousand steps
    memory = measure_step(sums, data, most=most)
    room = room_on(device, limit_gb=request.limit_gb, sharers=request.sharers)
    physical_batch = fit_physical_batch(memory, request.physical_batch, most=most, room=room.free, where=str(device))
    sums.performance = replace(sums.performance, max_physical_batch=physical_batch)
    usable = None if room.free is None else room.used + room.free
    return MemoryPlan(physical_batch, room.used + memory.peak(physical_batch), usable)


def fit_physical_batch(memory: StepMemory, wanted: int | str, *, most: int, room: int | None, where: str) -> int:
    """Return how many records go through the module at once.

    Args:
        memory: from `measure_step`.
        wanted: the site's choice, or "auto" for the largest that fits.
        most: the largest that "auto" may take.
        room: bytes that may be used; None where nobody knows.
        where: the device, for messages.

    Raises:
        UserError: the choice does not fit, or not even one record does.
    """
    asked = wanted if isinstance(wanted, int) else most
    fits = asked if room is None else memory.largest(room, asked)
    if fits == asked or (fits and not isinstance(wanted, int)):
        return fits
    if fits == 0:
        raise UserError(
            f"training needs {_in_gb(memory.peak(1))} on {where} even with one image at a time, and {_in_gb(room)} "
            "may be used",
            remedy="free memory there, raise [compute] memory_limit_gb, or choose another [compute] device",
            exit_code=ExitCode.COMPUTE,
        )
    raise UserError(
        f"{asked} images at a time need {_in_gb(memory.peak(asked))} on {where}, and {_in_gb(room)} may be used",
        remedy=f'set [compute] max_physical_batch = {fits}, the largest that fits, or "auto"; it changes no result',
        exit_code=ExitCode.COMPUTE,
    )


def _in_gb(size: int | None) -> str:
    return f"{(size or 0) / GIB:.2f} GB"
