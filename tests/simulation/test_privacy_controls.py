"""Why every vector has two masks: a server that declares a late site dropped gets noise, and without the self mask all.

Further down, what the server and a colluding site see of two honest inputs: a classifier cannot tell which site had
which, and can once a mask is of the wrong kind.
"""

import math

import numpy as np
import pytest

from secure_agg.errors import RemoteProtocolError
from secure_agg.keys import AgreementKey
from secure_agg.masks import add_masks
from secure_agg.messages import ShareKind
from secure_agg.shamir import recover
from secure_agg.sharing import pair_mask_seed
from tests.simulation.federation import Federation, Releases
from tests.simulation.test_dropouts import bytes_of, leaves_of
from tests.simulation.test_uniformity import VECTOR_BYTES, battery

pytestmark = [pytest.mark.timeout(400), pytest.mark.no_cover]  # coverage doubles its time and gains no branch

DIMENSION = VECTOR_BYTES // 4
ROUNDS = 240  # of each of two input sets: half to learn from, half to judge by


def without_self_mask(vector, jobs, *, cipher):
    """A broken masker that leaves out the first mask of a site, which is the self mask."""
    add_masks(vector, jobs[1:], cipher=cipher)


def late_input(masker):
    """A server that declares site 14 dropped although its vector came late, and takes its pair masks out.

    Returns what is left of site 14's vector, its input, and how many shares of its mask key the server has.
    """
    federation = Federation(4, dimension=DIMENSION, client_masker=lambda site: masker if site == 14 else add_masks)
    federation.inputs[14] = np.random.default_rng(1).integers(0, 1000, DIMENSION).astype(np.uint32)
    federation.keys()
    federation.shares()
    for site in federation.context.cohort:
        federation.clients[site].receive_peer_shares(federation.peer_shares[site])
        message = federation.clients[site].masked_input(federation.inputs[site], Releases())
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
    mask_key = AgreementKey(recover(shares, federation.context.share_threshold))
    left = late.vector.copy()
    for peer in (11, 12, 13):
        secret = mask_key.exchange(federation.records["keys"][peer].mask_key)
        seed = pair_mask_seed(secret, federation.server._shares_hash, 14, peer)
        add_masks(left, [(seed, peer < 14)])
    return left, federation.inputs[14], len(shares)


def test_without_the_self_mask_a_false_dropout_gives_the_input_away():
    left, secret, _ = late_input(without_self_mask)
    np.testing.assert_array_equal(left, secret)


def test_with_the_self_mask_a_false_dropout_gives_uniform_noise():
    left, secret, shares = late_input(add_masks)
    assert shares == 3
    assert battery([left], []) == set()
    assert battery([left - secret], []) == set()


def rounded_gaussian(vector, jobs, *, cipher):
    """A broken masker whose masks are real numbers, as large as the inputs, and rounded."""
    for seed, subtract in jobs:
        generator = np.random.Generator(np.random.Philox(int.from_bytes(seed[:16], "big")))
        mask = np.rint(generator.normal(0, 1000, vector.size)).astype(np.int64).astype(vector.dtype)
        (np.subtract if subtract else np.add)(vector, mask, out=vector)


def view_of_a_colluder(swapped, masker):
    """What the server and site 13 know after a round in which 11 and 12 hold two inputs, one way round or the other.

    Everything the server received, and the vectors of both honest sites without every mask that a seed the two
    adversaries hold takes out: only the mask that 11 and 12 share is left.
    """
    seeds = {}

    def recording(site):
        def mask(vector, jobs, *, cipher):
            seeds[site] = jobs
            masker(vector, jobs, cipher=cipher)

        return mask

    def recording_server(vector, jobs, *, cipher):
        seeds["server"] = list(jobs)
        masker(vector, seeds["server"], cipher=cipher)

    federation = Federation(3, dimension=32, client_masker=recording, server_masker=recording_server)
    low, high = np.zeros(32, np.uint32), np.full(32, 1000, np.uint32)
    federation.inputs.update({11: high, 12: low} if swapped else {11: low, 12: high})
    result = federation.run()
    assert result.total.tolist() == [1000 + 4] * 32
    _, with_11, with_12 = seeds[13]
    features = [np.frombuffer(bytes_of(leaves_of(federation.records)), np.uint8).astype(np.float64)]
    for position, (site, shared) in enumerate(((11, with_11), (12, with_12))):
        masked = federation.records["input"][site].vector
        left = masked.copy()
        masker(left, (seeds["server"][position], shared), cipher="aes-256-ctr")
        features += [masked.view(np.int32).astype(np.float64), left.view(np.int32).astype(np.float64)]
    return np.concatenate(features)


def area_under_curve(masker):
    """How well a logistic regression tells two input sets of equal sum apart, on rounds it has not seen."""
    views = [[view_of_a_colluder(swapped, masker) for _ in range(ROUNDS)] for swapped in (False, True)]
    learn = np.array([*views[0][: ROUNDS // 2], *views[1][: ROUNDS // 2]])
    judge = np.array([*views[0][ROUNDS // 2 :], *views[1][ROUNDS // 2 :]])
    truth = np.repeat([0.0, 1.0], ROUNDS // 2)
    centre, scale = learn.mean(axis=0), learn.std(axis=0) + 1e-9
    learn, judge = (learn - centre) / scale, (judge - centre) / scale
    weights = np.zeros(learn.shape[1])
    for _ in range(200):
        guesses = 1 / (1 + np.exp(-np.clip(learn @ weights, -30, 30)))
        weights -= 0.05 * (learn.T @ (guesses - truth) / truth.size + 0.01 * weights)
    scores = judge @ weights
    return float(np.mean(scores[truth == 1][:, None] > scores[truth == 0][None, :]))


def half_width():
    """Half the interval about 1/2 that the area leaves less than once in a million, if the classifier only guesses."""
    half = ROUNDS // 2
    return 4.9 * math.sqrt((2 * half + 1) / (12 * half * half))


def test_no_classifier_tells_two_input_sets_of_equal_sum_apart():
    assert abs(area_under_curve(add_masks) - 0.5) < half_width() < 0.2


def test_the_same_classifier_tells_them_apart_under_real_valued_masks():
    assert area_under_curve(rounded_gaussian) > 0.5 + half_width()
