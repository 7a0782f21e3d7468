"""The statements of a round that both sides must compute alike: what is hashed into T1 and T2, and what is signed.

Every statement of docs/secure-aggregation.md with its label is written down here once, as a function that returns the
tag and the fields for signing, verifying or hashing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from secure_agg.context import RoundContext
from secure_agg.encoding import digest, u32, u32_list, vector_digest
from secure_agg.messages import AdvertiseKeys, GraphNonce, InputDigest, SurvivorConfirmation

Statement = tuple[str, tuple[bytes, ...]]


def advertise_statement(context: RoundContext, sender: int, content: Sequence[bytes]) -> Statement:
    """What a site signs about its keys, ``AdvertiseKeys.content``: they are for this context and no other."""
    return "fedmvp/advertise/v1", (context.hash, u32(sender), *content)


def nonce_commitment(context: RoundContext, owner: int, nonce: bytes) -> bytes:
    """Commit to a site's part in the seed of a sparse graph (32 random bytes, which also hide it)."""
    return digest("fedmvp/nonce-commitment/v1", context.hash, u32(owner), nonce)


def keys_transcript(context: RoundContext, adverts: Iterable[AdvertiseKeys]) -> bytes:
    """T1: the context and every key of U1, ascending by site (32 bytes)."""
    fields = [context.hash]
    for advert in sorted(adverts, key=lambda advert: advert.sender):
        fields += [u32(advert.sender), *advert.content]
    return digest("fedmvp/keys-transcript/v1", *fields)


def graph_transcript(keys_hash: bytes, nonces: Iterable[GraphNonce]) -> bytes:
    """G: T1, the sites in a sparse graph and their nonces; the graph's seed, and T1's place in all that follows."""
    fields = [keys_hash]
    for item in sorted(nonces, key=lambda item: item.sender):
        fields += [u32(item.sender), item.nonce]
    return digest("fedmvp/graph-transcript/v1", *fields)


def self_mask_commitment(keys_hash: bytes, owner: int, self_mask: bytes) -> bytes:
    """Commit to a site's self mask seed b (32 random bytes, which also hide it)."""
    return digest("fedmvp/self-mask-commitment/v1", keys_hash, u32(owner), self_mask)


def share_statement(keys_hash: bytes, sender: int, recipient: int, commitment: bytes, ciphertext: bytes) -> Statement:
    """What a site signs about one sealed pair of shares."""
    sealed = hashlib.sha256(ciphertext).digest()
    return "fedmvp/share/v1", (keys_hash, u32(sender), u32(recipient), commitment, sealed)


def shares_transcript(keys_hash: bytes, commitments: Mapping[int, bytes]) -> bytes:
    """T2: T1, the members of U2 and their commitments (32 bytes)."""
    fields = [keys_hash]
    for site_id in sorted(commitments):
        fields += [u32(site_id), commitments[site_id]]
    return digest("fedmvp/shares-transcript/v1", *fields)


def input_statement(shares_hash: bytes, sender: int, vector_hash: bytes) -> Statement:
    """What a site signs about its masked vector."""
    return "fedmvp/masked-input/v1", (shares_hash, u32(sender), vector_hash)


def survivors_statement(shares_hash: bytes, inputs: Sequence[InputDigest]) -> Statement:
    """What a site signs about the survivor set: its members (U3) and the hash of every masked vector in the sum."""
    ordered = sorted(inputs, key=lambda item: item.sender)
    vectors = digest("fedmvp/masked-inputs/v1", *(item.digest for item in ordered))
    return "fedmvp/survivors/v1", (shares_hash, u32_list(item.sender for item in ordered), vectors)


def abort_statement(context: RoundContext, sender: int, step: str, code: str, accused: int) -> Statement:
    """What a site signs when it leaves a round."""
    return "fedmvp/abort/v1", (context.hash, u32(sender), step.encode(), code.encode(), u32(accused))


def round_transcript(
    shares_hash: bytes,
    inputs: Sequence[InputDigest],
    confirmations: Sequence[SurvivorConfirmation],
    total: NDArray[Any],
) -> bytes:
    """Hash a finished round for the audit log: survivors, their confirmations and the sum (32 bytes)."""
    _, survivors = survivors_statement(shares_hash, inputs)
    signatures = digest(
        "fedmvp/confirmations/v1",
        *(
            part
            for item in sorted(confirmations, key=lambda c: c.sender)
            for part in (u32(item.sender), item.signature)
        ),
    )
    return digest("fedmvp/round-transcript/v1", *survivors, signatures, vector_digest(total))
