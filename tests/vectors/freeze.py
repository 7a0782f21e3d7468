"""Describes one seeded round in hexadecimal; ``python -m tests.vectors.freeze`` prints it.

The file beside this one was made once. A change of it is a change of the protocol's version.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from secure_agg.keys import AgreementKey
from secure_agg.masks import add_mask
from secure_agg.shamir import split
from secure_agg.sharing import pair_mask_seed, self_mask_seed
from tests.simulation.federation import Federation, counter_randomness, signing_key

FROZEN = Path(__file__).parent / "secure_sum_v1.json"
DIMENSION = 16


def private_values(site_id: int) -> tuple[bytes, bytes, bytes]:
    """The encryption key, mask key and self mask that a seeded site draws, in this order."""
    draw = counter_randomness(f"site {site_id}")
    return draw(32), draw(32), draw(32)


def describe() -> dict[str, Any]:
    """Run the seeded round and write down everything a second implementation can be held to."""
    federation = Federation(3, dimension=DIMENSION, seeded=True)
    for i, site_id in enumerate(federation.context.cohort):
        federation.inputs[site_id] = np.arange(i, i + DIMENSION, dtype=np.uint32)
    result = federation.run()
    context = {
        key: value.hex() if isinstance(value, bytes) else value
        for key, value in dataclasses.asdict(federation.context).items()
    }
    server, one, other = federation.server, *federation.context.cohort[:2]
    mask = np.zeros(16, dtype=np.uint32)
    seed = self_mask_seed(private_values(one)[2], server._shares_hash, one)
    add_mask(mask, seed)
    shared = AgreementKey(private_values(one)[1]).exchange(AgreementKey(private_values(other)[1]).public)
    shares = split(bytes(range(32)), 3, (1, 2, 3, 4), counter_randomness("shamir"))
    return {
        "context": context | {"cohort": list(federation.context.cohort)},
        "context_hash": federation.context.hash.hex(),
        "sites": {
            str(site_id): {
                "verify_key": signing_key(site_id).verify_key.hex(),
                "encryption_private_key": private_values(site_id)[0].hex(),
                "mask_private_key": private_values(site_id)[1].hex(),
                "self_mask": private_values(site_id)[2].hex(),
                "ledger_head": federation.records["keys"][site_id].ledger_head.hex(),
                "advertise_signature": federation.records["keys"][site_id].signature.hex(),
                "commitment": federation.records["shares"][site_id].commitment.hex(),
                "first_sealed_share": federation.records["shares"][site_id].shares[0].ciphertext.hex(),
                "input": federation.inputs[site_id].tolist(),
                "masked_vector": federation.records["input"][site_id].vector.astype("<u4").tobytes().hex(),
                "masked_vector_hash": federation.records["input"][site_id].digest.hex(),
                "confirmation": federation.records["confirmation"][site_id].signature.hex(),
            }
            for site_id in federation.context.cohort
        },
        "keys_transcript": server._keys_hash.hex(),
        "shares_transcript": server._shares_hash.hex(),
        "self_mask_seed_of_first_site": seed.hex(),
        "pair_mask_seed_of_first_two_sites": pair_mask_seed(shared, server._shares_hash, one, other).hex(),
        "first_64_bytes_of_self_mask": mask.astype("<u4").tobytes().hex(),
        "shares_of_00_to_1f_with_threshold_3": {str(index): share.hex() for index, share in shares.items()},
        "sum": result.total.tolist(),
        "round_transcript": result.transcript_hash.hex(),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(describe(), indent=1) + "\n")
