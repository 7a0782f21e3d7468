"""The processes of one site, one for each GPU, that compute one logical batch together.

Rank 0 leads: it alone draws batches and noise, takes steps and holds the ledger. It tells the others parameters and
positions; they give back sums of clipped gradients and nothing else. Whatever goes wrong with one of them is an error
at all: a rank that died, that holds other data or that does not answer in time ends the batch, never alters it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from privacy.errors import RankLost, RanksDisagree

Positions = npt.NDArray[np.int64]

JOIN_SECONDS = 300.0
"""How long a process waits for the others to appear: they only have to start and import torch."""

PREPARE_SECONDS = 7200.0
"""How long the first process to have read its records waits for the last: all of them read the same ones."""

_IDLE = timedelta(days=3650)
"""Between two orders the leader may wait days for its server. If it dies, its connections close, and the wait ends."""

DATA = "data"
"""The fact that every process must have stated before a batch is shared: on other data a record could count twice."""

_FAILED, _DONE = 0, 1


class Order(IntEnum):
    """What the leader asks of the others."""

    STOP = 0
    PREPARE = 1
    SUM = 2


@dataclass(frozen=True)
class Instruction:
    """One order as it arrives.

    Args:
        order: what to do.
        sequence: number of the batch, from 1; 0 where the order is about none.
        count: units in the whole logical batch, of all processes together.
    """

    order: Order
    sequence: int = 0
    count: int = 0


class Ranks:
    """What both sides do: join, agree, and move values between processes.

    Args:
        rank: this process, from 0.
        size: how many there are.
        device: where the module is; CUDA devices move values by NCCL, all others by gloo.
        timeout_seconds: longest wait for another process within one batch.
        meeting_point: where the processes find each other, as ``torch.distributed`` takes it.

    Raises:
        RankLost: the others did not appear.
    """

    def __init__(
        self, rank: int, size: int, *, device: torch.device, timeout_seconds: float, meeting_point: str = "env://"
    ) -> None:
        self.rank, self.size = rank, size
        self._device = device if device.type == "cuda" else torch.device("cpu")
        self._agreed: dict[str, str] = {}
        self._lost: str | None = None
        with self._together("while the processes met"):
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                init_method=meeting_point,
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=JOIN_SECONDS),
            )
            self._idle = dist.new_group(backend="gloo", timeout=_IDLE)
            self._prepared = dist.new_group(backend="gloo", timeout=timedelta(seconds=PREPARE_SECONDS))
            self._working = dist.new_group(timeout=timedelta(seconds=timeout_seconds))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.rank} of {self.size})"

    def agree(self, facts: Mapping[str, bytes]) -> None:
        """Compare facts with all other processes; every one of them calls this at the same point.

        Args:
            facts: name to value; only digests are exchanged.

        Raises:
            RanksDisagree: a process states another value, or other facts; it and all others raise.
            RankLost: one is gone.
        """
        mine = {name: hashlib.sha256(value).hexdigest() for name, value in facts.items()}
        with self._together("while the processes compared what they hold"):
            stated = [json.loads(text) for text in self._gather(json.dumps(mine).encode())]
        for rank, theirs in enumerate(stated):
            names = sorted(set(stated[0]) | set(theirs))
            differing = [name for name in names if stated[0].get(name) != theirs.get(name)]
            if differing:
                raise RanksDisagree(
                    f"process {rank} of this site disagrees with process 0 about: {', '.join(differing)}"
                )
        self._agreed.update(mine)

    def close(self) -> None:
        """Leave the group; harmless when repeated or when it is broken."""
        if self._lost is None and dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def _together(self, during: str) -> Iterator[None]:
        """Turn the error of a collective call into this package's, and refuse every call after it."""
        if self._lost is not None:
            raise RankLost(self._lost)
        try:
            yield
        except RuntimeError as error:
            reason = str(error).partition("\n")[0].partition("] ")[2].partition(". ")[0][:160]
            self._lost = f"a process of this site has died or does not answer, {during} ({reason})"
            raise RankLost(self._lost) from error

    def _gather(self, payload: bytes) -> list[bytes]:
        """The bytes of every process, at every process."""
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(payload)]), group=self._prepared)
        longest = max(int(length) for length in lengths)
        padded = torch.frombuffer(bytearray(payload.ljust(longest, b"\0")), dtype=torch.uint8)
        blocks = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(blocks, padded, group=self._prepared)
        return [block.numpy().tobytes()[: int(length)] for block, length in zip(blocks, lengths, strict=True)]

    def _broadcast(self, values: Tensor) -> Tensor:
        """The leader's values, at every process."""
        dist.broadcast(values, 0, group=self._working)
        return values

    def _report(self, sequence: int, status: int) -> None:
        """Say how this process did, and hear of the others; past this point all of them have their share.

        Raises:
            RankLost: one of them failed, or is at another batch.
        """
        told = [torch.zeros(2, dtype=torch.int64) for _ in range(self.size)]
        with self._together("while the shares of a batch were computed"):
            dist.all_gather(told, torch.tensor([sequence, status]), group=self._working)
        bad = [rank for rank, answer in enumerate(told) if answer.tolist() != [sequence, _DONE]]
        if bad:
            self._lost = f"process {bad[0]} of this site failed on its share of a batch; it says itself why"
            raise RankLost(self._lost)

    def _reduce(self, sums: Sequence[Tensor | None], sizes: Sequence[int]) -> tuple[Tensor, list[bool]]:
        """Add up, at the leader, float64 sums of these sizes; and say which of them any process had."""
        parts = [
            torch.zeros(size, dtype=torch.float64, device=self._device)
            if part is None
            else part.detach().to(self._device, torch.float64).reshape(-1)
            for part, size in zip(sums, sizes, strict=True)
        ]
        present = torch.tensor([part is not None for part in sums], dtype=torch.float64, device=self._device)
        total = torch.cat([*parts, present])
        with self._together("while the sums of a batch were added up"):
            dist.reduce(total, 0, group=self._working)
        values = total.cpu()
        return values[: -len(sizes)], [bool(count) for count in values[-len(sizes) :] > 0]


class LeadingRank(Ranks):
    """The process that decides: rank 0."""

    _sequence = 0
    _open = False

    def prepare(self) -> None:
        """Let the others read their records: this process has read its own and left what it could in the cache."""
        self._order(Instruction(Order.PREPARE))

    def share(self, parameters: Sequence[nn.Parameter], chosen: Positions, sizes: Positions) -> Positions:
        """Tell the others a batch and the parameters, and return this process's own part of it.

        Args:
            parameters: at which the gradients are taken.
            chosen: positions of the units of the logical batch (n,), drawn by this process alone.
            sizes: records of each of them (n,), by which the work is balanced.

        Returns:
            The positions that are left to this process. Each position belongs to one process, with all its records.

        Raises:
            RanksDisagree: the processes never compared their data.
            RankLost: one is gone, or an earlier batch is unfinished: left so by an error, or because this one was drawn
                too early, before the step that its parameters should have taken.
        """
        if DATA not in self._agreed:
            raise RanksDisagree("the processes of this site never compared their data: no batch may be shared")
        if self._open:
            self._lost = self._lost or "an earlier batch of this site was left unfinished"
        self._sequence += 1
        bounds = even_bounds(sizes, self.size)
        self._order(Instruction(Order.SUM, self._sequence, len(chosen)))
        self._open = True
        with self._together("while a batch was shared"):
            self._broadcast(torch.from_numpy(np.concatenate([chosen, bounds])))
            self._broadcast(flat(parameters).to(self._device))
        return part_of(chosen, bounds, self.rank)

    def add_up(self, sums: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> list[Tensor | None]:
        """Add the sums of all processes over the batch that was shared last.

        Args:
            sums: this process's own, one a parameter; None where it had no unit.
            parameters: of the same shapes.

        Returns:
            float64 on the CPU, one a parameter; None where no process had a unit.

        Raises:
            RankLost: a process failed or is gone: there is no sum.
        """
        self._report(self._sequence, _DONE)
        sizes = [parameter.numel() for parameter in parameters]
        total, present = self._reduce(sums, sizes)
        self._open = False
        pieces = zip(torch.split(total, sizes), parameters, present, strict=True)
        return [piece.view(parameter.shape) if there else None for piece, parameter, there in pieces]

    def stop(self) -> None:
        """Send the others home; where one of them cannot be told, it finds the connection closed."""
        if self._lost is None and not self._open:
            self._order(Instruction(Order.STOP))
        self.close()

    def _order(self, instruction: Instruction) -> None:
        with self._together("while it was given an order"):
            header = torch.tensor([instruction.order, instruction.sequence, instruction.count])
            dist.broadcast(header, 0, group=self._idle)


class ComputingRank(Ranks):
    """A process that computes what it is told: every rank but 0."""

    def next_instruction(self) -> Instruction:
        """Wait for the leader's next order, for as long as the leader lives.

        Raises:
            RankLost: the leader is gone.
        """
        header = torch.zeros(3, dtype=torch.int64)
        with self._together("while it waited for the leading process"):
            dist.broadcast(header, 0, group=self._idle)
        order, sequence, count = header.tolist()
        return Instruction(Order(order), sequence, count)

    def receive(self, instruction: Instruction, parameters: Sequence[nn.Parameter]) -> Positions:
        """Take over the leader's parameters, in place, and return this process's part of the batch.

        Raises:
            RankLost: the leader is gone.
        """
        with self._together("while a batch was shared"):
            told = self._broadcast(torch.zeros(instruction.count + self.size + 1, dtype=torch.int64)).numpy()
            values = self._broadcast(torch.empty_like(flat(parameters), device=self._device))
        with torch.no_grad():
            for parameter, value in zip(parameters, torch.split(values, [p.numel() for p in parameters]), strict=True):
                parameter.copy_(value.view(parameter.shape))
        return part_of(told[: instruction.count], told[instruction.count :], self.rank)

    def give(self, instruction: Instruction, sums: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> None:
        """Add this process's sums to the leader's.

        Raises:
            RankLost: another process failed or is gone.
        """
        self._report(instruction.sequence, _DONE)
        self._reduce(sums, [parameter.numel() for parameter in parameters])

    def give_up(self, instruction: Instruction) -> None:
        """Say that this process has no sum to give; every process raises :class:`RankLost` for it."""
        self._report(instruction.sequence, _FAILED)


def even_bounds(sizes: Positions, parts: int) -> Positions:
    """Where to cut a sequence of units into consecutive parts of about equally many records.

    Args:
        sizes: records of each unit (n,).
        parts: how many, at least 1.

    Returns:
        Positions (parts + 1,), ascending from 0 to n; a part may be empty.
    """
    passed = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    bounds: Positions = np.searchsorted(passed, passed[-1] * np.arange(parts + 1) / parts).astype(np.int64)
    return bounds


def part_of(chosen: Positions, bounds: Positions, rank: int) -> Positions:
    """The part of a process: consecutive units, each of them with all its records."""
    return chosen[bounds[rank] : bounds[rank + 1]]


def flat(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The values of parameters as one vector (d,), in a type that holds each of them exactly."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
