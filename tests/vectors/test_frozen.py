"""Our own answers, written down once: an accidental change of any format fails here."""

import json

import pytest

from tests.simulation.federation import Federation
from tests.simulation.naive import NaiveRound
from tests.vectors.freeze import DIMENSION, FROZEN, describe, private_values

ANSWERS = json.loads(FROZEN.read_text())


@pytest.fixture(scope="module")
def described():
    return json.loads(json.dumps(describe()))


@pytest.fixture(scope="module")
def naive():
    heads = {int(site): bytes.fromhex(values["ledger_head"]) for site, values in ANSWERS["sites"].items()}
    private = {int(site): tuple(bytes.fromhex(v[name]) for name in PRIVATE) for site, v in ANSWERS["sites"].items()}
    return NaiveRound(ANSWERS["context"], private, heads)


PRIVATE = ("encryption_private_key", "mask_private_key", "self_mask")


@pytest.mark.parametrize("name", [name for name in ANSWERS if name != "sites"])
def test_a_value_of_the_round_is_the_frozen_one(described, name):
    assert described[name] == ANSWERS[name]


@pytest.mark.parametrize("site", list(ANSWERS["sites"]))
@pytest.mark.parametrize("name", list(ANSWERS["sites"]["11"]))
def test_a_value_of_a_site_is_the_frozen_one(described, site, name):
    assert described["sites"][site][name] == ANSWERS["sites"][site][name]


def test_nothing_frozen_was_left_out(described):
    assert described.keys() == ANSWERS.keys()


@pytest.mark.parametrize("site", list(ANSWERS["sites"]))
def test_the_second_implementation_makes_the_frozen_masked_vectors(naive, site):
    assert naive.masked(int(site), ANSWERS["sites"][site]["input"]).hex() == ANSWERS["sites"][site]["masked_vector"]


def test_the_second_implementation_makes_the_frozen_transcripts_and_seeds(naive):
    assert naive.context_hash.hex() == ANSWERS["context_hash"]
    assert naive.t1.hex() == ANSWERS["keys_transcript"]
    assert naive.t2.hex() == ANSWERS["shares_transcript"]
    assert naive.self_seed(11).hex() == ANSWERS["self_mask_seed_of_first_site"]
    assert (
        naive.pair_seed(11, 12).hex() == naive.pair_seed(12, 11).hex() == ANSWERS["pair_mask_seed_of_first_two_sites"]
    )
    assert {str(site): value.hex() for site, value in naive.commitments.items()} == {
        site: values["commitment"] for site, values in ANSWERS["sites"].items()
    }


@pytest.mark.parametrize("ring_bits", [16, 64])
def test_the_second_implementation_agrees_in_the_other_rings(ring_bits):
    federation = Federation(4, dimension=DIMENSION, ring_bits=ring_bits, seeded=True)
    federation.run()
    context = ANSWERS["context"] | {
        "cohort": list(federation.context.cohort),
        "roster_hash": federation.roster.hash.hex(),
        "threshold": 3,
        "ring_bits": ring_bits,
    }
    heads = {site: message.ledger_head for site, message in federation.records["keys"].items()}
    second = NaiveRound(context, {site: private_values(site) for site in federation.clients}, heads)
    for site, message in federation.records["input"].items():
        first = message.vector.astype(message.vector.dtype.newbyteorder("<")).tobytes()
        assert second.masked(site, federation.inputs[site].tolist()) == first
