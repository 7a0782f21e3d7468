"""What a masked vector shows: nothing, and the tests that say so fail when a mask is taken away."""

import numpy as np
import pytest

from secure_agg.errors import RemoteProtocolError
from secure_agg.keys import AgreementKey
from secure_agg.masks import add_mask
from secure_agg.messages import ShareKind
from secure_agg.shamir import recover
from secure_agg.sharing import pair_mask_seed
from tests.simulation.federation import Federation

DIMENSION = 4096
# 255 degrees of freedom: 373 is the 1 - 1e-6 quantile and 160 the 1e-6 quantile, so too even fails as too uneven does.
CHI_SQUARE_RANGE = (160, 373)


class WithoutSelfMask:
    """A broken mask generator that leaves out the first mask of each session, which is the self mask."""

    def __init__(self):
        self.calls = 0

    def __call__(self, vector, seed, *, subtract=False):
        self.calls += 1
        if self.calls > 1:
            add_mask(vector, seed, subtract=subtract)


def zero_masks(vector, seed, *, subtract=False):
    """A broken mask generator that masks nothing."""


def looks_uniform(vector):
    counts = np.bincount(np.ascontiguousarray(vector).view(np.uint8), minlength=256)
    mean = counts.sum() / 256
    statistic = float(((counts - mean) ** 2 / mean).sum())
    return CHI_SQUARE_RANGE[0] < statistic < CHI_SQUARE_RANGE[1]


def inputs_of(kind):
    if kind == "random":
        return np.random.default_rng(1).integers(0, 1000, DIMENSION).astype(np.uint32)
    return np.full(DIMENSION, {"zero": 0, "constant": 777, "largest": 1024, "smallest": 2**32 - 1024}[kind], np.uint32)


def masked_vectors(kind, stream=add_mask):
    federation = Federation(4, dimension=DIMENSION, seeded=True, client_stream=lambda _site: stream)
    federation.inputs.update({site: inputs_of(kind) for site in federation.context.cohort})
    federation.keys()
    federation.shares()
    federation.masked()
    return [message.vector for message in federation.records["input"].values()]


@pytest.mark.parametrize("kind", ["zero", "constant", "largest", "smallest", "random"])
def test_a_masked_vector_is_uniform_whatever_is_in_it(kind):
    assert all(looks_uniform(vector) for vector in masked_vectors(kind))


@pytest.mark.parametrize("kind", ["zero", "constant", "largest", "smallest", "random"])
def test_without_masks_the_same_test_fails(kind):
    assert not any(looks_uniform(vector) for vector in masked_vectors(kind, zero_masks))


def test_no_two_masked_vectors_agree_and_no_difference_shows_an_input():
    vectors = masked_vectors("constant")
    for i, one in enumerate(vectors):
        for other in vectors[i + 1 :]:
            assert looks_uniform(one - other)


def test_one_mask_for_all_is_seen_in_the_difference():
    vectors = masked_vectors("random", lambda vector, seed, *, subtract=False: add_mask(vector, bytes(32)))
    assert not looks_uniform(vectors[0] - vectors[1])


def test_a_fresh_attempt_masks_the_same_input_differently():
    one, other = (Federation(3, dimension=DIMENSION) for _ in range(2))
    one.run()
    other.run()
    assert looks_uniform(one.records["input"][11].vector - other.records["input"][11].vector)


def test_every_mask_is_stretched_from_its_own_256_bit_seed():
    seeds = []

    def recording(vector, seed, *, subtract=False):
        seeds.append(seed)
        add_mask(vector, seed, subtract=subtract)

    Federation(4, client_stream=lambda _site: recording).run()
    assert all(len(seed) == 32 for seed in seeds)
    assert len(seeds) == 16  # a self mask and three pair masks at each of four sites
    assert len(set(seeds)) == 4 + 6
    assert len({seed[i : i + 4] for seed in set(seeds) for i in (0, 28)}) == 20


def late_input(stream):
    """A server that declares site 14 dropped although its vector came late, and takes its pair masks out.

    Returns what is left of site 14's vector, and its input.
    """
    federation = Federation(
        4, dimension=DIMENSION, seeded=True, client_stream=lambda site: stream() if site == 14 else add_mask
    )
    federation.inputs[14] = inputs_of("random")
    federation.keys()
    federation.shares()
    for site in federation.context.cohort:
        federation.clients[site].receive_peer_shares(federation.peer_shares[site])
        message = federation.clients[site].masked_input(federation.inputs[site])
        if site == 14:
            late = message
        else:
            federation.server.receive_masked_input(message)
    federation.survivors = federation.server.close_masked_inputs()
    with pytest.raises(RemoteProtocolError, match="not of the phase") as caught:
        federation.server.receive_masked_input(late)
    assert caught.value.peer == 14
    federation.confirm()
    unmasked = federation.unmask()
    assert unmasked.survivors == (11, 12, 13)
    shares = {
        federation.roster.share_index(holder): share.share
        for holder, message in federation.records["unmask"].items()
        for share in message.shares
        if (share.owner, share.kind) == (14, ShareKind.MASK_KEY)
    }
    mask_key = AgreementKey(recover(shares, federation.context.threshold))
    left = late.vector.copy()
    for peer in (11, 12, 13):
        secret = mask_key.exchange(federation.records["keys"][peer].mask_key)
        seed = pair_mask_seed(secret, federation.server._shares_hash, 14, peer)
        add_mask(left, seed, subtract=True)
    return left, federation.inputs[14], shares


def test_without_the_self_mask_a_false_dropout_gives_the_input_away():
    left, secret, _ = late_input(WithoutSelfMask)
    np.testing.assert_array_equal(left, secret)


def test_with_the_self_mask_a_false_dropout_gives_uniform_noise():
    left, secret, shares = late_input(lambda: add_mask)
    assert len(shares) == 3
    assert looks_uniform(left)
    assert looks_uniform(left - secret)
