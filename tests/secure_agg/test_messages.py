"""Messages: malformed ones cannot be made, and a repr never shows content."""

import dataclasses

import numpy as np
import pytest

from secure_agg import messages
from secure_agg.errors import RemoteProtocolError
from secure_agg.messages import (
    Abort,
    AdvertiseKeys,
    Confirmations,
    EncryptedShare,
    GraphNonce,
    InputDigest,
    MaskedInput,
    PeerKeys,
    PeerNonces,
    PeerShare,
    PeerShares,
    PublishedSum,
    ShareKeys,
    ShareKind,
    SurvivorConfirmation,
    Survivors,
    UnmaskShare,
    UnmaskShares,
)
from secure_agg.policy import MAX_COHORT_SITES

SECRET = b"\xa7"
ADVERT = AdvertiseKeys(11, SECRET * 32, SECRET * 32, SECRET * 32, SECRET * 32, SECRET * 64)
NONCE = GraphNonce(11, SECRET * 32)
SEALED = EncryptedShare(12, SECRET * 82, SECRET * 64)
SHARE_KEYS = ShareKeys(11, SECRET * 32, (SEALED,))
PEER_SHARE = PeerShare(12, SECRET * 32, SECRET * 82, SECRET * 64)
PEER_SHARES = PeerShares((PEER_SHARE,), ((11, SECRET * 32), (12, SECRET * 32)))
MASKED = MaskedInput(11, np.full(3, 0xA7A7A7A7, dtype=np.uint32), SECRET * 32, SECRET * 64)
DIGEST = InputDigest(11, SECRET * 32, SECRET * 64)
CONFIRMATION = SurvivorConfirmation(11, SECRET * 64)
UNMASK = UnmaskShare(11, ShareKind.SELF_MASK, SECRET * 33)
UNMASK_SHARES = UnmaskShares(11, (UNMASK,))
PUBLISHED = PublishedSum(np.full(3, 0xA7A7A7A7, dtype=np.uint32), (11, 12, 13), SECRET * 32)
ABORT = Abort(11, "unmask", "check-failed", SECRET * 64, accused=12)
MESSAGES = [
    ADVERT,
    PeerKeys((ADVERT,)),
    NONCE,
    PeerNonces((NONCE,)),
    SEALED,
    SHARE_KEYS,
    PEER_SHARE,
    PEER_SHARES,
    MASKED,
    DIGEST,
    Survivors((DIGEST,)),
    CONFIRMATION,
    Confirmations((CONFIRMATION,)),
    UNMASK,
    UNMASK_SHARES,
    PUBLISHED,
    ABORT,
]


def wrong_lengths():
    """Every field of bytes cut, lengthened and emptied, but for the one that is empty on the complete graph."""
    for message in MESSAGES:
        for field in dataclasses.fields(message):
            value = getattr(message, field.name)
            if isinstance(value, bytes):
                wrong = [value[:-1], value + b"\0"] + ([b""] if field.name != "nonce_commitment" else [])
                name = f"{type(message).__name__}.{field.name}"
                yield from (pytest.param(message, field.name, w, id=f"{name}-{len(w)}") for w in wrong)


def site_fields():
    for message in MESSAGES:
        for name in ("sender", "recipient", "owner"):
            if hasattr(message, name):
                yield pytest.param(message, name, id=f"{type(message).__name__}.{name}")


@pytest.mark.parametrize(("message", "name", "wrong"), list(wrong_lengths()))
def test_a_field_of_the_wrong_length_is_refused(message, name, wrong):
    with pytest.raises(RemoteProtocolError):
        dataclasses.replace(message, **{name: wrong})


@pytest.mark.parametrize(("message", "name"), list(site_fields()))
@pytest.mark.parametrize("site_id", [0, -1, 2**32])
def test_an_id_that_no_site_can_have_is_refused(message, name, site_id):
    with pytest.raises(RemoteProtocolError):
        dataclasses.replace(message, **{name: site_id})


@pytest.mark.parametrize(
    ("message", "name"),
    [
        (PeerKeys((ADVERT,)), "adverts"),
        (PeerNonces((NONCE,)), "nonces"),
        (SHARE_KEYS, "shares"),
        (PEER_SHARES, "shares"),
        (PEER_SHARES, "commitments"),
        (Survivors((DIGEST,)), "inputs"),
        (Confirmations((CONFIRMATION,)), "confirmations"),
        (UNMASK_SHARES, "shares"),
        (PUBLISHED, "survivors"),
    ],
)
def test_a_list_longer_than_any_cohort_is_refused(message, name):
    item = getattr(message, name)[0]
    dataclasses.replace(message, **{name: (item,) * MAX_COHORT_SITES})
    with pytest.raises(RemoteProtocolError, match="more"):
        dataclasses.replace(message, **{name: (item,) * (MAX_COHORT_SITES + 1)})


def test_a_commitment_of_the_wrong_length_is_refused():
    with pytest.raises(RemoteProtocolError):
        PeerShares((), ((11, bytes(31)),))
    with pytest.raises(RemoteProtocolError):
        PeerShares((), ((0, bytes(32)),))


def test_a_commitment_to_a_nonce_is_empty_on_the_complete_graph():
    assert dataclasses.replace(ADVERT, nonce_commitment=b"").content[-1] == b""


def test_a_repr_that_showed_bytes_would_be_noticed(monkeypatch):
    monkeypatch.setattr(messages, "_outline", repr)
    assert "\\xa7" in repr(ADVERT)


@pytest.mark.parametrize("kind", [0, 3, -1])
def test_a_share_of_an_unknown_kind_is_refused(kind):
    with pytest.raises(RemoteProtocolError, match="kind"):
        UnmaskShare(11, kind, bytes(33))


def test_a_kind_from_the_wire_becomes_the_named_one():
    assert UnmaskShare(11, 2, bytes(33)).kind is ShareKind.MASK_KEY


@pytest.mark.parametrize("fields", [{"step": "lunch"}, {"code": "loss was 0.3"}, {"accused": -1}, {"accused": 2**32}])
def test_an_abort_says_only_what_is_on_the_list(fields):
    with pytest.raises(RemoteProtocolError):
        dataclasses.replace(ABORT, **fields)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_the_representation_of_a_message_shows_names_and_lengths_only(message):
    shown = repr(message)
    assert shown.startswith(type(message).__name__ + "(")
    assert not any(trace in shown for trace in ("\\xa7", "a7a7", "2812782503", "[", "167"))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_cannot_be_changed(message):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(message, dataclasses.fields(message)[0].name, 1)


@pytest.mark.parametrize(
    "listed",
    [(SECRET * 32, 11), (11, SECRET * 32, SECRET * 32), (11,), (), (11, 12)],
    ids=["turned round", "one too many", "without commitment", "empty", "of another site"],
)
def test_a_commitment_that_is_not_listed_with_its_owner_is_refused_by_name(listed):
    with pytest.raises(RemoteProtocolError, match="not listed with its owner"):
        PeerShares((PEER_SHARE,), ((12, SECRET * 32), listed))
