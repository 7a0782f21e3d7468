"""What a site tells the others about its spending: a value to be signed by the site's identity key elsewhere."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from privacy.chain import EntryKind
from privacy.errors import PrivacyRefused
from privacy.ledger import Ledger


@dataclass(frozen=True, slots=True)
class PrivacyReceipt:
    """The state of a dataset's budget after one released round; public by construction.

    Every number follows from the signed study and the rounds released, never from the records or their count.

    Args:
        site_id: the site in the roster.
        run_id: the run.
        round: the round this receipt follows.
        mode: one of :class:`privacy.mechanism.Mode`.
        unit: the privacy unit.
        neighboring_relation: which datasets count as neighbours.
        sample_rate: of the round.
        noise_multiplier: of the round.
        steps: noisy steps charged to the dataset so far, all runs together.
        epsilon: spent by the dataset so far, all runs together; infinite in ``UNSAFE-no-dp``.
        delta: the delta at which epsilon is stated.
        accountant: name and version of the accountant of record.
        ledger_head: hash of the ledger's last entry, 32 bytes.
    """

    site_id: int
    run_id: str
    round: int
    mode: str
    unit: str
    neighboring_relation: str
    sample_rate: float
    noise_multiplier: float
    steps: int
    epsilon: float
    delta: float
    accountant: str
    ledger_head: bytes

    def signed_fields(self) -> tuple[bytes, ...]:
        """The fields in order as bytes: text UTF-8, whole numbers u64-BE, floats IEEE binary64-BE, the head raw."""
        return tuple(_field(getattr(self, name)) for name in self.__slots__)

    def __repr__(self) -> str:
        return (
            f"PrivacyReceipt(site_id={self.site_id}, run_id={self.run_id!r}, round={self.round}, mode={self.mode!r}, "
            f"epsilon={self.epsilon:.4f}, delta={self.delta:g}, {self.neighboring_relation} {self.unit})"
        )


def make_receipt(ledger: Ledger, *, site_id: int, run_id: str, round: int) -> PrivacyReceipt:  # noqa: A002
    """The receipt of a round that this ledger has charged.

    Raises:
        PrivacyRefused: the round was never charged.
    """
    charge = next(
        (e for e in ledger.entries() if e.kind is EntryKind.CHARGE and (e.run_id, e.round) == (run_id, round)), None
    )
    if charge is None:
        raise PrivacyRefused(f"run {run_id!r} round {round} was never charged, so there is nothing to certify")
    spent = ledger.spent()
    return PrivacyReceipt(
        site_id=site_id,
        run_id=run_id,
        round=round,
        mode=str(charge.body["mode"]),
        unit=spent.unit,
        neighboring_relation=spent.neighboring_relation,
        sample_rate=float(charge.body["sample_rate"]),
        noise_multiplier=float(charge.body["noise_multiplier"]),
        steps=spent.steps,
        epsilon=spent.epsilon,
        delta=spent.delta,
        accountant=spent.accountant,
        ledger_head=ledger.head,
    )


def _field(value: str | int | float | bytes) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    return value.to_bytes(8, "big") if isinstance(value, int) else struct.pack(">d", value)
