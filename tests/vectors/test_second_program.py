"""The second program and the sessions agree on every byte of whole rounds, on both graphs."""

import ast
import hashlib
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from secure_agg.encoding import vector_digest
from secure_agg.graph import sparse_parameters
from secure_agg.masks import add_masks
from secure_agg.shamir import split
from tests.simulation import naive
from tests.vectors.base import BASES, plain, second_program, seeded_bytes
from tests.vectors.freeze import LONG, long_vector


@pytest.fixture(scope="module")
def second():
    """The second program's round of each base, made when it is asked for."""
    return lru_cache(maxsize=None)(lambda name: second_program(BASES[name]()))


def differences(base, other):
    """Every phase, site or hash at which a round of the sessions and one of the second program differ."""
    federation, server = base.federation, base.federation.server
    found = {
        (phase, site)
        for phase, messages in federation.records.items()
        for site in messages.keys() | other.sent[phase].keys()
        if plain(messages.get(site)) != other.sent[phase].get(site)
    }
    pairs = {
        "context": (federation.context.hash, other.context_hash),
        "T1 or G": (server._keys_hash, other.g),
        "T2": (server._shares_hash, other.t2),
        "peer keys": (plain(federation.peer_keys), other.peer_keys),
        "peer shares": ({site: plain(inbox) for site, inbox in federation.peer_shares.items()}, other.peer_shares),
        "survivors": (plain(federation.survivors), other.survivors),
        "confirmations": (plain(federation.confirmations), other.confirmations),
        "published": (plain(federation.result.message), other.published),
    }
    if other.sparse:
        pairs["peer nonces"] = (plain(federation.peer_nonces), other.peer_nonces)
        pairs["circle"] = (server._graph._circle, other.circle)
    return found | {name for name, (one, another) in pairs.items() if one != another}


@pytest.mark.parametrize("name", list(BASES))
def test_every_message_hash_and_sum_is_the_same_byte_for_byte(second, name):
    assert differences(BASES[name](), second(name)) == set()


@pytest.mark.parametrize("name", list(BASES))
def test_every_secret_recovered_is_the_one_drawn_and_the_sum_is_that_of_the_survivors(second, name):
    other = second(name)
    drawn = {site: other.self_mask[site] if site in other.u3 else other.mask[site] for site in other.u2}
    columns = zip(*(other.inputs[site] for site in other.u3), strict=True)
    assert other.recovered == drawn
    assert other.total == [sum(column) % 2**other.bits for column in columns]


def test_the_rounds_hold_dropouts_in_every_phase_and_both_kinds_of_share(second):
    before = dict(zip(naive.PHASES, ("u0", "u1", "vertices", "u2", "u3", "u4"), strict=True))
    silent = {
        phase
        for name in BASES
        for phase, sites in before.items()
        if len(second(name).sent[phase]) not in (0, len(getattr(second(name), sites)))
    }
    kinds = {share["kind"] for message in second("sparse-101").sent["unmask"].values() for share in message["shares"]}
    assert silent == set(naive.PHASES)
    assert kinds == {naive.SELF_MASK, naive.MASK_KEY}


def test_the_comparison_sees_one_changed_random_byte():
    base = BASES["ragged-13"]()
    changed = second_program(base)
    one = seeded_bytes("site 11")
    draws = changed.draw | {site: seeded_bytes(f"site {site}") for site in changed.u0}
    draws[11] = lambda size: bytes([(first := one(size))[0] ^ 8]) + first[1:]
    again = naive.NaiveRound(
        roster=changed.roster,
        policy=changed.policy,
        announced=changed.announced,
        signing={site: hashlib.sha256(b"site %d" % site).digest() for site in changed.u0},
        draw=draws,
        heads=changed.heads,
        inputs=changed.inputs,
        answers=changed.answers,
        exchange=naive.borrowed_x25519,
    )
    found = differences(base, again)
    assert {("keys", 11), "T1 or G", "T2"} <= found
    assert ("keys", 13) not in found
    assert again.total == changed.total


@pytest.mark.parametrize(("n", "colluders", "dropped"), [(101, 1, 6), (101, 10, 11), (150, 7, 8), (300, 15, 15)])
def test_both_choose_the_same_degree_and_threshold(n, colluders, dropped):
    chosen = sparse_parameters(n, colluders, dropped)
    assert (chosen.degree, chosen.share_threshold) == naive.sparse_choice(n, colluders, dropped)


@pytest.mark.parametrize(("n", "colluders", "dropped"), [(101, 50, 10), (101, 1, 60), (101, 99, 6)])
def test_both_find_no_sparse_graph_for_too_many_colluders_or_dropouts(n, colluders, dropped):
    assert sparse_parameters(n, colluders, dropped) is None
    assert naive.sparse_choice(n, colluders, dropped) is None


@pytest.mark.parametrize("dtype_and_size", LONG.values(), ids=list(LONG))
def test_both_hash_long_odd_and_empty_vectors_alike(dtype_and_size):
    vector = long_vector(*dtype_and_size)
    assert naive.vector_hash(vector.tolist(), 8 * vector.itemsize) == vector_digest(vector)


@pytest.mark.parametrize("cipher", ["aes-256-ctr", "chacha20"])
@pytest.mark.parametrize("bits", [16, 32, 64])
def test_both_make_the_same_masks_of_an_odd_length(cipher, bits):
    mask = np.zeros(1001, dtype=f"u{bits // 8}")
    add_masks(mask, [(bytes(range(32)), False)], cipher=cipher)
    assert naive.mask_integers(bytes(range(32)), 1001, bits, cipher) == mask.tolist()


def test_any_threshold_of_the_shares_recombines_in_the_second_program():
    shares = split(bytes(range(32)), 3, (1, 2, 3, 4, 5), seeded_bytes("shares"))
    assert shares == naive.deal(bytes(range(32)), 3, [1, 2, 3, 4, 5], seeded_bytes("shares"))
    assert naive.recombine({index: shares[index] for index in (2, 4, 5)}) == bytes(range(32))
    assert naive.recombine({index: shares[index] for index in (2, 4)}) != bytes(range(32))


def test_the_ladder_is_the_librarys_curve():
    secret = hashlib.sha256(b"a scalar").digest()
    assert naive.x25519(secret, naive.BASE) == naive.borrowed_x25519(secret, naive.BASE)


def test_the_second_program_imports_nothing_of_the_first():
    tree = ast.parse(Path(naive.__file__).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    tops = {name.partition(".")[0] for name in names}
    assert tops - set(sys.stdlib_module_names) == {"cryptography"}
