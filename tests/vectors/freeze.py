"""Describes seeded rounds and single values in hexadecimal; ``python -m tests.vectors.freeze`` prints it.

The file beside this one was made once. A change of it is a change of the protocol's version.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from secure_agg.encoding import tensors_digest, vector_digest
from secure_agg.graph import Graph, shuffled
from secure_agg.keys import AgreementKey
from secure_agg.keystream import CipherName
from secure_agg.masks import add_masks
from secure_agg.policy import SecureSumPolicy
from secure_agg.shamir import split
from secure_agg.sharing import open_shares, pair_mask_seed, seal_shares, self_mask_seed
from secure_agg.signed import sign_document
from tests.simulation.federation import counter_randomness, signing_key
from tests.vectors.base import BASES, BaseRound, plain

FROZEN = Path(__file__).parent / "secure_sum_v1.json"
SEED = bytes(range(32))
COHORTS = [(n, c, p) for n in (101, 150, 300, 1000, 10_000) for c, p in ((1, 50), (n // 20, 50), (n // 10, 100))]
LONG = {"16 bits, 1 MiB and one value": ("<u2", 2**19 + 1), "32 bits, 2.5 MiB": ("<u4", 5 * 2**17)}
LONG |= {"64 bits, 17 values": ("<u8", 17), "32 bits, empty": ("<u4", 0)}


def hexadecimal(value: Any) -> Any:
    """Bytes as hexadecimal, all the way down."""
    if isinstance(value, dict):
        return {str(key): hexadecimal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [hexadecimal(item) for item in value]
    return value.hex() if isinstance(value, bytes | memoryview) else value


def little_endian(vector: Any) -> bytes:
    """A vector's values as they are hashed and sent."""
    return vector.astype(vector.dtype.newbyteorder("<")).tobytes()


def listed(sites: Iterable[int]) -> str:
    """Sites as words, which take one line."""
    return " ".join(str(site) for site in sorted(sites))


def private_values(site_id: int, *, sparse: bool) -> tuple[bytes, bytes, bytes]:
    """The encryption key, mask key and self mask that a seeded site draws, on a sparse graph after its nonce."""
    draw = counter_randomness(f"site {site_id}")
    if sparse:
        draw(32)
    return draw(32), draw(32), draw(32)


def describe_round(base: BaseRound, shown: int) -> dict[str, Any]:
    """A round: its hashes, the messages of one site, and everybody's masked vector."""
    federation = base.federation
    server, records = federation.server, federation.records
    other = sorted(federation.clients[shown].neighbours)[-1]
    sparse = federation.context.graph == "harary"
    keys = private_values(shown, sparse=sparse)
    pair = AgreementKey(keys[1]).exchange(AgreementKey(private_values(other, sparse=sparse)[1]).public)
    return {
        "policy": dataclasses.asdict(federation.policy),
        "answers": {phase: listed(messages) for phase, messages in records.items()},
        "inputs": {site: little_endian(vector) for site, vector in federation.inputs.items()},
        "roster_hash": federation.roster.hash,
        "context": dataclasses.asdict(federation.context),
        "context_hash": federation.context.hash,
        "site": shown,
        "encryption_private_key": keys[0],
        "mask_private_key": keys[1],
        "self_mask": keys[2],
        "messages": {phase: plain(messages[shown]) for phase, messages in records.items()},
        "masked_vectors": {site: little_endian(message.vector) for site, message in records["input"].items()},
        "keys_or_graph_transcript": server._keys_hash,
        "shares_transcript": server._shares_hash,
        "self_mask_seed": self_mask_seed(keys[2], server._shares_hash, shown),
        "pair_mask_seed": {"with": other, "seed": pair_mask_seed(pair, server._shares_hash, shown, other)},
        "neighbours_at_the_end": sorted(federation.clients[shown].neighbours),
        "published": plain(federation.result.message),
    }


def first_mask_bytes(cipher: CipherName) -> bytes:
    """The first 64 bytes of the mask of the seed 00 01 .. 1f."""
    mask = np.zeros(16, dtype=np.uint32)
    add_masks(mask, [(SEED, False)], cipher=cipher)
    return mask.astype("<u4").tobytes()


def long_vector(dtype: str, size: int) -> Any:
    """The values 0, 2654435761, 2 * 2654435761, ... in the ring of a type."""
    return (np.arange(size, dtype=np.uint64) * np.uint64(2654435761)).astype(dtype)


def chosen_graph(n: int, colluders: int, permille: int) -> list[Any]:
    """Name, degree, share threshold, key floor and most withheld nonces of a cohort's graph."""
    policy = SecureSumPolicy(
        colluders=colluders,
        min_cohort=3 + 2 * colluders,
        min_honest=2,
        max_cohort=n,
        dimension=1,
        fraction_bits=0,
        max_magnitude=1,
        dropout_permille=permille,
    )
    graph = policy.graph(n)
    return [graph.name, graph.degree, graph.share_threshold, graph.key_floor, graph.max_withheld]


def describe() -> dict[str, Any]:
    """Write down everything that a second implementation can be held to."""
    policy = BASES["sparse-101"]().federation.policy
    ends = {"sender": 11, "recipient": 12}
    halves = {"mask_key_share": bytes(32) + b"\x01", "self_mask_share": b"\x01" + bytes(32)}
    sealed = seal_shares(SEED, SEED[::-1], **ends, **halves)
    opened = open_shares(SEED, SEED[::-1], ciphertext=sealed, **ends)
    tensors = [("weight", np.arange(6, dtype=np.float32).reshape(2, 3)), ("bias", np.zeros(0, dtype=np.float16))]
    return hexadecimal(
        {
            "complete-4": describe_round(BASES["complete-4"](), 11),
            "weighted-4": describe_round(BASES["weighted-4"](), 12),
            "sparse-101": describe_round(BASES["sparse-101"](), 11),
            "graph parameters of n, colluders, permille": {str(row): chosen_graph(*row) for row in COHORTS},
            "graph order of 1 to 120 under 00..1f": shuffled(list(range(1, 121)), SEED),
            "neighbours of 1 in it": sorted(Graph(policy.graph(101), range(1, 121), SEED).neighbours(1)),
            "first 64 mask bytes of 00..1f": {name: first_mask_bytes(name) for name in ("aes-256-ctr", "chacha20")},
            "vector digests": {name: vector_digest(long_vector(*shape)) for name, shape in LONG.items()},
            "tensors digest": tensors_digest(tensors),
            "3 of 4 shares of 00..1f": split(SEED, 3, (1, 2, 3, 4), counter_randomness("shamir")),
            "sealed share": {"ciphertext": sealed, "opened": opened},
            "signature of a document": sign_document(signing_key(11), "fedmvp/roster-file/v1", b"a document"),
        }
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(describe(), indent=1) + "\n")
