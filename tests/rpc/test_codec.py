"""Messages between protobuf and the values of secure_agg."""

from __future__ import annotations

from typing import Any

import pytest

from fedmvp.rpc import codec, limits
from fedmvp.rpc.errors import WireError
from fedmvp.rpc.fields import round_id, text
from fedmvp.rpc.v1 import aggregation_pb2, secure_sum_pb2
from secure_agg import messages as sa
from secure_agg.errors import RemoteProtocolError
from secure_agg.policy import MAX_COHORT_SITES

ID = codec.round_id_to_wire(7, 2)
KEY_A, KEY_B, HEAD = bytes([1] * 32), bytes([2] * 32), bytes([3] * 32)
SIGNATURE = bytes([4] * 64)
COMMITMENT = bytes([9] * 32)
ADVERT = sa.AdvertiseKeys(5, KEY_A, KEY_B, HEAD, COMMITMENT, SIGNATURE)
SEALED = bytes([6] * 82)

UP_KEYS = (codec.advertise_keys_to_wire, codec.advertise_keys_from_wire)
UP = [
    (ADVERT, *UP_KEYS),
    (
        sa.ShareKeys(5, HEAD, (sa.EncryptedShare(6, SEALED, SIGNATURE),)),
        codec.share_keys_to_wire,
        codec.share_keys_from_wire,
    ),
    (sa.SurvivorConfirmation(5, SIGNATURE), codec.confirmation_to_wire, codec.confirmation_from_wire),
    (
        sa.UnmaskShares(
            5,
            (
                sa.UnmaskShare(5, sa.ShareKind.SELF_MASK, bytes([7] * 33)),
                sa.UnmaskShare(6, sa.ShareKind.MASK_KEY, bytes([8] * 33)),
            ),
        ),
        codec.unmask_to_wire,
        codec.unmask_from_wire,
    ),
    (sa.Abort(5, "unmask", "check-failed", SIGNATURE, accused=6), codec.abort_to_wire, codec.abort_from_wire),
    (sa.AdvertiseKeys(5, KEY_A, KEY_B, HEAD, b"", SIGNATURE), *UP_KEYS),
    (sa.GraphNonce(5, KEY_A), codec.nonce_to_wire, codec.nonce_from_wire),
]
DOWN = [
    (sa.PeerKeys((ADVERT,)), codec.peer_keys_to_wire, codec.peer_keys_from_wire),
    (
        sa.PeerNonces((sa.GraphNonce(5, KEY_A), sa.GraphNonce(6, KEY_B))),
        codec.peer_nonces_to_wire,
        codec.peer_nonces_from_wire,
    ),
    (
        sa.PeerShares((sa.PeerShare(6, HEAD, SEALED, SIGNATURE),), ((5, KEY_A), (6, HEAD))),
        codec.peer_shares_to_wire,
        codec.peer_shares_from_wire,
    ),
    (sa.Survivors((sa.InputDigest(5, HEAD, SIGNATURE),)), codec.survivors_to_wire, codec.survivors_from_wire),
    (
        sa.Confirmations((sa.SurvivorConfirmation(5, SIGNATURE),)),
        codec.confirmations_to_wire,
        codec.confirmations_from_wire,
    ),
]


@pytest.mark.parametrize(("message", "to_wire", "from_wire"), UP, ids=lambda value: type(value).__name__)
def test_a_message_to_the_server_survives_the_wire(message: Any, to_wire: Any, from_wire: Any) -> None:
    wire = to_wire(message, ID)
    parsed = type(wire).FromString(wire.SerializeToString())

    assert from_wire(parsed) == message
    assert round_id(parsed) == (7, 2)


@pytest.mark.parametrize(("message", "to_wire", "from_wire"), DOWN, ids=lambda value: type(value).__name__)
def test_a_message_to_a_site_survives_the_wire(message: Any, to_wire: Any, from_wire: Any) -> None:
    wire = to_wire(message)

    assert from_wire(type(wire).FromString(wire.SerializeToString())) == message


@pytest.mark.parametrize("field", ["encryption_key", "mask_key", "ledger_head", "nonce_commitment", "signature"])
def test_a_field_that_is_one_byte_short_is_refused(field: str) -> None:
    wire = codec.advertise_keys_to_wire(ADVERT, ID)
    setattr(wire, field, getattr(wire, field)[:-1])

    with pytest.raises(RemoteProtocolError, match="bytes long"):
        codec.advertise_keys_from_wire(wire)


@pytest.mark.parametrize("kind", [0, 3])
def test_a_share_of_an_unknown_kind_is_refused(kind: int) -> None:
    wire = codec.unmask_to_wire(UP[3][0], ID)  # type: ignore[arg-type]
    wire.shares[0].kind = kind  # type: ignore[assignment]

    with pytest.raises(WireError, match="no known kind"):
        codec.unmask_from_wire(wire)


@pytest.mark.parametrize(("round_number", "attempt"), [(0, 1), (1, 0)])
def test_round_and_attempt_start_at_one(round_number: int, attempt: int) -> None:
    wire = secure_sum_pb2.ConfirmSurvivorsRequest(id=codec.round_id_to_wire(round_number, attempt))

    with pytest.raises(WireError):
        round_id(wire)


@pytest.mark.parametrize("value", ["x" * 201, "two\nlines", "\x1b[31m"])
def test_text_that_would_spoil_a_log_is_refused(value: str) -> None:
    with pytest.raises(WireError, match="reason"):
        text(value, "reason")


def largest_messages() -> dict[str, int]:
    """Bytes of the largest messages of a round with the most sites a policy allows, with ids as long as they get."""
    sites = range(2**32 - MAX_COHORT_SITES, 2**32)
    sealed = [sa.PeerShare(site, HEAD, SEALED, SIGNATURE) for site in sites]
    messages = [
        codec.peer_keys_to_wire(
            sa.PeerKeys(tuple(sa.AdvertiseKeys(site, KEY_A, KEY_B, HEAD, COMMITMENT, SIGNATURE) for site in sites))
        ),
        codec.share_keys_to_wire(
            sa.ShareKeys(5, HEAD, tuple(sa.EncryptedShare(site, SEALED, SIGNATURE) for site in sites)), ID
        ),
        codec.peer_shares_to_wire(sa.PeerShares(tuple(sealed), tuple((site, HEAD) for site in sites))),
    ]
    return {type(message).__name__: message.ByteSize() for message in messages}


def test_the_largest_cohorts_keys_and_shares_fit_into_one_message() -> None:
    sizes = largest_messages()

    assert sizes.keys() == {"AdvertiseKeysReply", "ShareKeysRequest", "ShareKeysReply"}
    assert limits.MESSAGE_BYTES / 2 < max(sizes.values()) < limits.MESSAGE_BYTES


ALLOWED_UP = {
    "JoinRequest": {"run_id", "policy_hash", "roster_hash", "software"},
    "AwaitRoundRequest": {"run_id", "after_round"},
    "AdvertiseKeysRequest": {
        *("id", "sender", "encryption_key", "mask_key", "ledger_head", "nonce_commitment", "signature"),
    },
    "RevealNonceRequest": {"id", "sender", "nonce"},
    "ShareKeysRequest": {"id", "sender", "commitment", "shares"},
    "SealedShare": {"recipient", "ciphertext", "signature"},
    "MaskedInputPart": {"header", "chunk", "trailer"},
    "MaskedInputHeader": {"id", "sender", "vector_bytes"},
    "MaskedInputTrailer": {"digest", "signature"},
    "ConfirmSurvivorsRequest": {"id", "sender", "signature"},
    "UnmaskRequest": {"id", "sender", "shares"},
    "UnmaskShare": {"owner", "kind", "share"},
    "SubmitReceiptRequest": {
        *("site_id", "run_id", "round", "mode", "unit", "neighboring_relation", "sample_rate", "noise_multiplier"),
        *("steps", "epsilon", "delta", "accountant", "ledger_head", "signature"),
    },
    "AbortRequest": {"id", "sender", "step", "code", "signature", "accused"},
    "StatusRequest": set[str](),
    "RoundId": {"round", "attempt"},
}
"""Every field of every message a site sends. A new one is a decision about what leaves a site, and belongs here."""


def sent_by_sites() -> dict[str, set[str]]:
    """The messages that the service takes, with everything inside them."""
    service = aggregation_pb2.DESCRIPTOR.services_by_name["Aggregation"]
    found: dict[str, set[str]] = {}
    waiting = [method.input_type for method in service.methods]
    while waiting:
        message = waiting.pop()
        if message.name not in found:
            found[message.name] = {field.name for field in message.fields}
            waiting += [field.message_type for field in message.fields if field.message_type is not None]
    return found


def test_a_site_has_no_field_for_a_loss_an_accuracy_or_a_count() -> None:
    assert sent_by_sites() == ALLOWED_UP
