"""The messages of a round, as frozen values whose lengths are checked when they are made.

The edge of the program builds these from the wire; a malformed one raises RemoteProtocolError with the sender's id.
What needs a key or a transcript to be checked is the sessions' work. A ``repr`` shows names and lengths, never bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum, StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_agg.encoding import DIGEST_BYTES
from secure_agg.errors import RemoteProtocolError
from secure_agg.keys import PUBLIC_KEY_BYTES, SIGNATURE_BYTES
from secure_agg.policy import MAX_COHORT_SITES
from secure_agg.roster import MAX_SITE_ID
from secure_agg.transitions import Step

SHARE_BYTES = 33  # one element of the field of 2^256 + 297 elements
SEALED_SHARES_BYTES = 2 * SHARE_BYTES + 16  # both shares and the authentication tag
NONCE_BYTES = 32


class ShareKind(IntEnum):
    """Which of a site's two secrets a share belongs to."""

    SELF_MASK = 1
    MASK_KEY = 2


class AbortCode(StrEnum):
    """Why a site left a round; never depends on its data."""

    CHECK_FAILED = "check-failed"
    REFUSED = "refused"
    TIMED_OUT = "timed-out"
    SHUTTING_DOWN = "shutting-down"
    LOCAL_FAILURE = "local-failure"


class Message:
    """Base of all messages: a repr without content, and the checks they share."""

    def __repr__(self) -> str:
        shown = (f"{field.name}={_outline(getattr(self, field.name))}" for field in fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(shown)})"


def _outline(value: object) -> str:
    """Describe a field by its kind and size."""
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, np.ndarray):
        return f"<{value.dtype} {value.shape}>"
    if isinstance(value, tuple):
        return f"<{len(value)} items>"
    return repr(value)


def _need_site(step: Step, site_id: int, what: str = "sender") -> None:
    """Refuse an id that no site can have."""
    if not 1 <= site_id <= MAX_SITE_ID:
        raise RemoteProtocolError(None, step, f"the {what} of a message is not a site id")


def _need_bytes(peer: int | None, step: Step, value: bytes, size: int, what: str) -> None:
    """Refuse a field of the wrong length."""
    if len(value) != size:
        raise RemoteProtocolError(peer, step, f"{what} is {len(value)} bytes long instead of {size}")


def _need_items(peer: int | None, step: Step, items: tuple[Any, ...], what: str) -> None:
    """Refuse a list longer than any cohort."""
    if len(items) > MAX_COHORT_SITES:
        raise RemoteProtocolError(peer, step, f"more {what} than a cohort has sites")


@dataclass(frozen=True, repr=False)
class AdvertiseKeys(Message):
    """Phase 1, site to server: the site's two fresh public keys for this attempt.

    ``nonce_commitment`` is empty on the complete graph.
    """

    sender: int
    encryption_key: bytes
    mask_key: bytes
    ledger_head: bytes
    nonce_commitment: bytes
    signature: bytes

    def __post_init__(self) -> None:
        _need_site(Step.ADVERTISE_KEYS, self.sender)
        _need_bytes(self.sender, Step.ADVERTISE_KEYS, self.encryption_key, PUBLIC_KEY_BYTES, "the encryption key")
        _need_bytes(self.sender, Step.ADVERTISE_KEYS, self.mask_key, PUBLIC_KEY_BYTES, "the mask key")
        _need_bytes(self.sender, Step.ADVERTISE_KEYS, self.ledger_head, DIGEST_BYTES, "the ledger head")
        if self.nonce_commitment:
            _need_bytes(self.sender, Step.ADVERTISE_KEYS, self.nonce_commitment, DIGEST_BYTES, "the nonce commitment")
        _need_bytes(self.sender, Step.ADVERTISE_KEYS, self.signature, SIGNATURE_BYTES, "the signature")

    @property
    def content(self) -> tuple[bytes, ...]:
        """What is signed and enters the transcript, in its order."""
        return self.encryption_key, self.mask_key, self.ledger_head, self.nonce_commitment


@dataclass(frozen=True, repr=False)
class PeerKeys(Message):
    """Phase 1, server to site: the keys of every site that answered (U1), ascending by sender."""

    adverts: tuple[AdvertiseKeys, ...]

    def __post_init__(self) -> None:
        _need_items(None, Step.ADVERTISE_KEYS, self.adverts, "keys")


@dataclass(frozen=True, repr=False)
class GraphNonce(Message):
    """Phase 1b on a sparse graph, site to server: the nonce that the site's keys committed to."""

    sender: int
    nonce: bytes

    def __post_init__(self) -> None:
        _need_site(Step.REVEAL_NONCES, self.sender)
        _need_bytes(self.sender, Step.REVEAL_NONCES, self.nonce, NONCE_BYTES, "the nonce")


@dataclass(frozen=True, repr=False)
class PeerNonces(Message):
    """Phase 1b on a sparse graph, server to site: the nonces that make the graph, ascending by sender."""

    nonces: tuple[GraphNonce, ...]

    def __post_init__(self) -> None:
        _need_items(None, Step.REVEAL_NONCES, self.nonces, "nonces")


@dataclass(frozen=True, repr=False)
class EncryptedShare(Message):
    """One recipient's sealed shares inside :class:`ShareKeys`."""

    recipient: int
    ciphertext: bytes
    signature: bytes

    def __post_init__(self) -> None:
        _need_site(Step.SHARE_KEYS, self.recipient, "recipient")
        _need_bytes(None, Step.SHARE_KEYS, self.ciphertext, SEALED_SHARES_BYTES, "a sealed share")
        _need_bytes(None, Step.SHARE_KEYS, self.signature, SIGNATURE_BYTES, "the signature")


@dataclass(frozen=True, repr=False)
class ShareKeys(Message):
    """Phase 2, site to server: the commitment to the self mask, and sealed shares for each neighbour."""

    sender: int
    commitment: bytes
    shares: tuple[EncryptedShare, ...]

    def __post_init__(self) -> None:
        _need_site(Step.SHARE_KEYS, self.sender)
        _need_bytes(self.sender, Step.SHARE_KEYS, self.commitment, DIGEST_BYTES, "the commitment")
        _need_items(self.sender, Step.SHARE_KEYS, self.shares, "shares")


@dataclass(frozen=True, repr=False)
class PeerShare(Message):
    """What one other site sealed for the recipient of :class:`PeerShares`."""

    sender: int
    commitment: bytes
    ciphertext: bytes
    signature: bytes

    def __post_init__(self) -> None:
        _need_site(Step.SHARE_KEYS, self.sender)
        _need_bytes(self.sender, Step.SHARE_KEYS, self.commitment, DIGEST_BYTES, "the commitment")
        _need_bytes(self.sender, Step.SHARE_KEYS, self.ciphertext, SEALED_SHARES_BYTES, "a sealed share")
        _need_bytes(self.sender, Step.SHARE_KEYS, self.signature, SIGNATURE_BYTES, "the signature")


@dataclass(frozen=True, repr=False)
class PeerShares(Message):
    """Phase 2, server to site: one sealed pair from each neighbour in U2, and (site, commitment) for all of U2."""

    shares: tuple[PeerShare, ...]
    commitments: tuple[tuple[int, bytes], ...]

    def __post_init__(self) -> None:
        _need_items(None, Step.SHARE_KEYS, self.shares, "shares")
        _need_items(None, Step.SHARE_KEYS, self.commitments, "commitments")
        for listed in self.commitments:
            if [type(item) for item in listed] != [int, bytes]:
                raise RemoteProtocolError(None, Step.SHARE_KEYS, "a commitment is not listed with its owner")
            site_id, commitment = listed
            _need_site(Step.SHARE_KEYS, site_id, "owner")
            _need_bytes(None, Step.SHARE_KEYS, commitment, DIGEST_BYTES, "a commitment")


@dataclass(frozen=True, repr=False, eq=False)
class MaskedInput(Message):
    """Phase 3, site to server: the masked vector (d,), its hash and the signature over the hash."""

    sender: int
    vector: NDArray[Any]
    digest: bytes
    signature: bytes

    def __post_init__(self) -> None:
        _need_site(Step.MASKED_INPUT, self.sender)
        _need_bytes(self.sender, Step.MASKED_INPUT, self.digest, DIGEST_BYTES, "the digest")
        _need_bytes(self.sender, Step.MASKED_INPUT, self.signature, SIGNATURE_BYTES, "the signature")


@dataclass(frozen=True, repr=False)
class InputDigest(Message):
    """The signed hash of one survivor's masked vector, without the vector."""

    sender: int
    digest: bytes
    signature: bytes

    def __post_init__(self) -> None:
        _need_site(Step.CONFIRM_SURVIVORS, self.sender)
        _need_bytes(self.sender, Step.CONFIRM_SURVIVORS, self.digest, DIGEST_BYTES, "the digest")
        _need_bytes(self.sender, Step.CONFIRM_SURVIVORS, self.signature, SIGNATURE_BYTES, "the signature")


@dataclass(frozen=True, repr=False)
class Survivors(Message):
    """Phase 3, server to site: the sites whose vectors are in the sum (U3), ascending by sender."""

    inputs: tuple[InputDigest, ...]

    def __post_init__(self) -> None:
        _need_items(None, Step.CONFIRM_SURVIVORS, self.inputs, "survivors")


@dataclass(frozen=True, repr=False)
class SurvivorConfirmation(Message):
    """Phase 4, site to server: the site's signature over the one survivor set it was shown."""

    sender: int
    signature: bytes

    def __post_init__(self) -> None:
        _need_site(Step.CONFIRM_SURVIVORS, self.sender)
        _need_bytes(self.sender, Step.CONFIRM_SURVIVORS, self.signature, SIGNATURE_BYTES, "the signature")


@dataclass(frozen=True, repr=False)
class Confirmations(Message):
    """Phase 4, server to site: the confirmations it received (U4), ascending by sender."""

    confirmations: tuple[SurvivorConfirmation, ...]

    def __post_init__(self) -> None:
        _need_items(None, Step.UNMASK, self.confirmations, "confirmations")


@dataclass(frozen=True, repr=False)
class UnmaskShare(Message):
    """One share of one of the owner's two secrets."""

    owner: int
    kind: ShareKind
    share: bytes

    def __post_init__(self) -> None:
        _need_site(Step.UNMASK, self.owner, "owner")
        _need_bytes(None, Step.UNMASK, self.share, SHARE_BYTES, "a share")
        try:
            object.__setattr__(self, "kind", ShareKind(self.kind))
        except ValueError:
            raise RemoteProtocolError(None, Step.UNMASK, "a share of an unknown kind") from None


@dataclass(frozen=True, repr=False)
class UnmaskShares(Message):
    """Phase 5, site to server: one share for itself and each neighbour in U2, of the kind that U3 decides."""

    sender: int
    shares: tuple[UnmaskShare, ...]

    def __post_init__(self) -> None:
        _need_site(Step.UNMASK, self.sender)
        _need_items(self.sender, Step.UNMASK, self.shares, "shares")


@dataclass(frozen=True, repr=False, eq=False)
class PublishedSum(Message):
    """The end, server to site: the sum over U3, and the hash of the round that everybody can compute."""

    total: NDArray[Any]
    survivors: tuple[int, ...]
    transcript_hash: bytes

    def __post_init__(self) -> None:
        _need_items(None, Step.PUBLISH, self.survivors, "survivors")
        _need_bytes(None, Step.PUBLISH, self.transcript_hash, DIGEST_BYTES, "the transcript hash")


@dataclass(frozen=True, repr=False)
class Abort(Message):
    """Any phase, site to server: the site has left the round and erased its keys.

    ``accused`` is the site whose message failed a check, or 0 for the server or nobody.
    """

    sender: int
    step: str
    code: str
    signature: bytes
    accused: int = 0

    def __post_init__(self) -> None:
        _need_site(Step.PUBLISH, self.sender)
        if self.step not in set(Step) or self.code not in set(AbortCode):
            raise RemoteProtocolError(self.sender, Step.PUBLISH, "an abort of an unknown step or code")
        if not 0 <= self.accused <= MAX_SITE_ID:
            raise RemoteProtocolError(self.sender, self.step, "an abort accuses something that is not a site")
        _need_bytes(self.sender, Step(self.step), self.signature, SIGNATURE_BYTES, "the signature")
