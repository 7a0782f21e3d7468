"""Units of privacy, with their records, in pieces that fit in memory: what is done with a batch once it is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from privacy.optimizer import Units
from privacy.per_sample import Batch
from privacy.records import Records, take_checked

Piece = tuple[Batch, Units | None]
"""Records that go through the module together, and which unit each is of; None where every record is one."""


class UnitBatches:
    """Takes units from the records, in pieces that fit in memory.

    Args:
        records: where they come from.
        patients: whose record each one is; None where a record is the unit.
        device: where the pieces go.
        largest: most records in a piece.
    """

    def __init__(self, records: Records, patients: Sequence[int] | None, device: torch.device, largest: int) -> None:
        self._records = records
        self._device = device
        self._largest = largest
        self._records_of: list[npt.NDArray[np.int64]] | None = None
        self.n_units = len(records)
        if patients is not None:
            _, owners = np.unique(np.asarray(patients), return_inverse=True)
            order = np.argsort(owners, kind="stable")
            self._records_of = np.split(order, np.cumsum(np.bincount(owners))[:-1]) if len(owners) else []
            self.n_units = len(self._records_of)

    def sizes(self, chosen: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many records each of these units has."""
        if self._records_of is None:
            return np.ones_like(chosen)
        return np.array([len(self._records_of[unit]) for unit in chosen], dtype=np.int64)

    def pieces(self, chosen: npt.NDArray[np.int64]) -> Iterator[Piece]:
        """These units in pieces that fit. Nothing is dropped or cut short."""
        if self._records_of is None:
            for positions in np.split(chosen, range(self._largest, len(chosen), self._largest)):
                if len(positions):
                    yield self._take(positions), None
            return
        piece: list[npt.NDArray[np.int64]] = []
        for unit in chosen:
            records = self._records_of[unit]
            if piece and sum(map(len, piece)) + len(records) > self._largest:
                yield self._whole(piece)
                piece = []
            if len(records) > self._largest:
                yield from self._in_parts(records)
            else:
                piece.append(records)
        if piece:
            yield self._whole(piece)

    def _whole(self, piece: list[npt.NDArray[np.int64]]) -> tuple[Batch, Units]:
        """Some units with all their records."""
        owners = np.repeat(np.arange(len(piece)), [len(records) for records in piece])
        weights = np.concatenate([np.full(len(records), 1 / len(records)) for records in piece])
        units = Units(torch.from_numpy(owners), torch.from_numpy(weights), len(piece), complete=True)
        return self._take(np.concatenate(piece)), units

    def _in_parts(self, records: npt.NDArray[np.int64]) -> Iterator[tuple[Batch, Units]]:
        """One unit with more records than fit in a piece."""
        parts = np.split(records, range(self._largest, len(records), self._largest))
        for number, part in enumerate(parts, start=1):
            weights = torch.full((len(part),), 1 / len(records), dtype=torch.float64)
            units = Units(torch.zeros(len(part), dtype=torch.int64), weights, 1, complete=number == len(parts))
            yield self._take(part), units

    def _take(self, positions: npt.NDArray[np.int64]) -> Batch:
        return take_checked(self._records, positions, self._device)
