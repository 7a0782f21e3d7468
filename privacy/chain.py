"""The hash chain of a ledger: what an entry is, how it is encoded, and the check that a chain holds.

The chain is the whole truth; whatever else is stored can be recomputed from it. Knows nothing of files.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from privacy.errors import LedgerCorrupt
from privacy.mechanism import DistributedGaussian, Mechanism, Mode, Rounding, SubsampledGaussian

GENESIS = bytes(32)
"""What the first entry names as its predecessor."""

_TAG = b"fedmvp/ledger-entry/v1"

Value = str | int | float


class EntryKind(StrEnum):
    """What an entry records."""

    CREATED = "created"
    CHARGE = "charge"
    ATTEMPT = "attempt"


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One link of the chain.

    Args:
        seq: position, from 0 without gaps.
        kind: creation, charge (with its release mark), or mark of an attempt.
        body: the recorded fields by name; every value is a string or a number.
        previous: hash of the entry before, 32 bytes.
        hash: hash of this entry, 32 bytes.
    """

    seq: int
    kind: EntryKind
    body: Mapping[str, Value]
    previous: bytes
    hash: bytes

    @property
    def run_id(self) -> str:
        """Run of a charge or an attempt."""
        return str(self.body["run_id"])

    @property
    def round(self) -> int:
        """Round of a charge or an attempt."""
        return int(self.body["round"])

    @property
    def is_unsafe(self) -> bool:
        """Whether this charge has no privacy guarantee."""
        return self.kind is EntryKind.CHARGE and self.body["mode"] == Mode.UNSAFE_NO_DP.value

    @property
    def mechanism(self) -> Mechanism:
        """What a charge in a private mode costs.

        Raises:
            ValueError: the recorded values are out of range.
        """
        noise_multiplier = float(self.body["noise_multiplier"])
        if Mode(str(self.body["mode"])).is_distributed:
            return DistributedGaussian(
                sample_rate=float(self.body["accounted_sample_rate"]),
                noise_multiplier=noise_multiplier,
                steps=1,
                dimension=int(self.body["dimension"]),
                shares=int(self.body["shares"]),
                grid=float(self.body["grid"]),
                rounding=Rounding(str(self.body["rounding"])),
            )
        return SubsampledGaussian(float(self.body["sample_rate"]), noise_multiplier, int(self.body["steps"]))

    @property
    def release_key(self) -> str | None:
        """The value that must be unique in a ledger: one release per run and round."""
        return f"{self.round}:{self.run_id}" if self.kind is EntryKind.CHARGE else None


def link(seq: int, kind: EntryKind, body: Mapping[str, Value], previous: bytes) -> LedgerEntry:
    """Build the entry that follows ``previous``."""
    frozen = MappingProxyType(dict(body))
    return LedgerEntry(seq, kind, frozen, previous, _digest(seq, kind, encode_body(frozen), previous))


def encode_body(body: Mapping[str, Value]) -> bytes:
    """One byte string for one body: sorted JSON; floats in their shortest exact form, infinity as ``"inf"``."""
    plain = {name: "inf" if isinstance(value, float) and math.isinf(value) else value for name, value in body.items()}
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def parse(seq: int, kind: str, body: bytes, previous: bytes, digest: bytes) -> LedgerEntry:
    """An entry from stored fields, with its own hash and its fields checked.

    Raises:
        LedgerCorrupt: the bytes do not hash to ``digest`` or do not describe an entry.
    """
    if _digest(seq, kind, body, previous) != digest:
        raise LedgerCorrupt(f"entry {seq} does not match its hash: the ledger was altered or damaged")
    try:
        fields = json.loads(body)
        entry = LedgerEntry(seq, EntryKind(kind), MappingProxyType(fields), previous, digest)
        _check_fields(entry)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LedgerCorrupt(f"entry {seq} is not a ledger entry: {error}") from error
    return entry


def verify(entries: Sequence[LedgerEntry]) -> None:
    """Check that entries, each already parsed, form one chain from its creation.

    Raises:
        LedgerCorrupt: an entry is missing, doubled, out of order, or a release occurs twice.
    """
    if not entries or entries[0].kind is not EntryKind.CREATED:
        raise LedgerCorrupt("the ledger does not begin with its creation")
    previous, releases = GENESIS, set()
    for position, entry in enumerate(entries):
        if entry.seq != position or entry.previous != previous or (position and entry.kind is EntryKind.CREATED):
            raise LedgerCorrupt(f"the chain breaks at entry {position}: an entry was removed, added or reordered")
        if entry.release_key is not None:
            if entry.release_key in releases:
                raise LedgerCorrupt(f"entry {position} releases a round a second time")
            releases.add(entry.release_key)
        previous = entry.hash


def _check_fields(entry: LedgerEntry) -> None:
    """A verified hash says who wrote the bytes last, not that this program understands them."""
    if entry.kind is EntryKind.CREATED:
        if not float(entry.body["epsilon_max"]) > 0 or not float(entry.body["delta"]) > 0:
            raise ValueError("no budget")
        if not (entry.body["dataset_id"] and entry.body["unit"]):
            raise ValueError("no dataset or unit")
        return
    if not entry.run_id or entry.round < 1:
        raise ValueError("no run or round")
    if entry.kind is EntryKind.ATTEMPT and int(entry.body["attempt"]) < 1:
        raise ValueError("attempts count from 1")
    if entry.kind is EntryKind.CHARGE and not (Mode(str(entry.body["mode"])) is Mode.UNSAFE_NO_DP or entry.mechanism):
        raise ValueError("no mechanism")


def _digest(seq: int, kind: str, body: bytes, previous: bytes) -> bytes:
    state = hashlib.sha256()
    for field in (_TAG, previous, seq.to_bytes(8, "big"), kind.encode(), body):
        state.update(len(field).to_bytes(4, "big"))
        state.update(field)
    return state.digest()
