"""Privacy receipts on the wire."""

from __future__ import annotations

import math

from fedmvp.rpc.errors import WireError
from fedmvp.rpc.fields import text
from fedmvp.rpc.v1 import aggregation_pb2 as pb
from fedmvp.study.policy import MAX_ROUNDS
from privacy.mechanism import ADD_OR_REMOVE_ONE, Mode, check_unit
from privacy.receipt import PrivacyReceipt
from secure_agg.encoding import DIGEST_BYTES

RECEIPT_TAG = "fedmvp/receipt/v1"
"""Domain of the signature over a receipt's canonical encoding."""


def receipt_to_wire(receipt: PrivacyReceipt, signature: bytes) -> pb.SubmitReceiptRequest:
    """A signed receipt, up."""
    return pb.SubmitReceiptRequest(
        site_id=receipt.site_id,
        run_id=receipt.run_id,
        round=receipt.round,
        mode=receipt.mode,
        unit=receipt.unit,
        neighboring_relation=receipt.neighboring_relation,
        sample_rate=receipt.sample_rate,
        noise_multiplier=receipt.noise_multiplier,
        steps=receipt.steps,
        epsilon=receipt.epsilon,
        delta=receipt.delta,
        accountant=receipt.accountant,
        ledger_head=receipt.ledger_head,
        signature=signature,
    )


def receipt_from_wire(wire: pb.SubmitReceiptRequest) -> tuple[PrivacyReceipt, bytes]:
    """A receipt and its signature, up; the signature is not checked here."""
    receipt = PrivacyReceipt(
        site_id=wire.site_id,
        run_id=text(wire.run_id, "run_id"),
        round=wire.round,
        mode=text(wire.mode, "mode"),
        unit=text(wire.unit, "unit"),
        neighboring_relation=text(wire.neighboring_relation, "neighboring_relation"),
        sample_rate=wire.sample_rate,
        noise_multiplier=wire.noise_multiplier,
        steps=wire.steps,
        epsilon=wire.epsilon,
        delta=wire.delta,
        accountant=text(wire.accountant, "accountant"),
        ledger_head=wire.ledger_head,
    )
    _check_numbers(receipt)
    return receipt, wire.signature


def _check_numbers(receipt: PrivacyReceipt) -> None:
    """Refuse numbers that no ledger could state; a site must not be able to stop the display of all others."""
    sensible = (
        0 < receipt.delta < 1
        and 0 < receipt.sample_rate <= 1
        and 0 <= receipt.noise_multiplier < math.inf
        and receipt.epsilon >= 0  # infinite for a run without privacy, never NaN
        and 1 <= receipt.round <= MAX_ROUNDS
        and receipt.mode in set(Mode)
        and _unit_fits(receipt)
        and receipt.neighboring_relation == ADD_OR_REMOVE_ONE
        and receipt.accountant
        and len(receipt.ledger_head) == DIGEST_BYTES
    )
    if not sensible:
        raise WireError("a number of the receipt is out of its range")


def _unit_fits(receipt: PrivacyReceipt) -> bool:
    try:
        check_unit(receipt.unit, Mode(receipt.mode))
    except ValueError:
        return False
    return True
