"""A site's secrets: shared once, one kind of share for each owner, and gone when they are forgotten."""

import os

import numpy as np
import pytest

from secure_agg.dealing import AttemptSecrets
from secure_agg.errors import LocalProtocolError, RemoteProtocolError
from secure_agg.keys import AgreementKey
from secure_agg.masks import add_masks
from secure_agg.messages import AdvertiseKeys, ShareKind
from secure_agg.shamir import recover
from tests.simulation.federation import counter_randomness

KEYS_HASH, SHARES_HASH = b"1" * 32, b"2" * 32
INDICES = {11: 1, 12: 2, 13: 3, 14: 4}


def dealt(threshold=3):
    """Four sites that have agreed with each other and dealt their secrets; and the sealed shares."""
    sites = {site_id: AttemptSecrets(site_id, counter_randomness(str(site_id))) for site_id in INDICES}
    adverts = {
        site_id: AdvertiseKeys(site_id, *secrets.draw_keys(), bytes(32), b"", bytes(64))
        for site_id, secrets in sites.items()
    }
    sealed = {}
    for site_id, secrets in sites.items():
        secrets.agree(adverts, set(INDICES) - {site_id})
        secrets.draw_self_mask()
        sealed[site_id] = secrets.deal(INDICES, threshold, KEYS_HASH)
    for holder, secrets in sites.items():
        for owner in INDICES:
            if owner != holder:
                secrets.open(owner, sealed[owner][holder], KEYS_HASH)
    return sites, adverts, sealed


def test_both_secrets_of_each_site_are_recovered_from_any_three_holders():
    sites, adverts, _ = dealt()
    for owner in INDICES:
        for missing in INDICES:
            holders = [holder for holder in INDICES if holder != missing]
            key = recover({INDICES[h]: sites[h].release(owner, ()).share for h in holders}, 3)
            mask = recover({INDICES[h]: sites[h].release(owner, {owner}).share for h in holders}, 3)
            assert AgreementKey(key).public == adverts[owner].mask_key
            assert mask == sites[owner]._self_mask


@pytest.mark.parametrize(("survivors", "kind"), [({11, 12}, ShareKind.SELF_MASK), ({11, 13}, ShareKind.MASK_KEY)])
def test_the_survivors_alone_decide_which_share_is_released(survivors, kind):
    sites, _, _ = dealt()
    share = sites[11].release(12, survivors)
    assert (share.owner, share.kind) == (12, kind)
    assert share.share == sites[11]._held[12][kind is ShareKind.SELF_MASK]


def test_the_masks_of_all_sites_cancel_but_for_their_self_masks():
    sites, _, _ = dealt()
    total = np.zeros(50, np.uint32)
    for site_id, secrets in sites.items():
        add_masks(total, secrets.mask_jobs(set(INDICES) - {site_id}, SHARES_HASH))
    for secrets in sites.values():
        seed, _ = secrets.mask_jobs((), SHARES_HASH)[0]
        add_masks(total, [(seed, True)])
    assert not total.any()


def test_masks_are_the_sites_own_first_and_then_its_neighbours_ascending():
    sites, _, _ = dealt()
    jobs = sites[12].mask_jobs({14, 11, 13}, SHARES_HASH)
    assert [subtract for _, subtract in jobs] == [False, False, True, True]
    assert len({seed for seed, _ in jobs}) == 4
    assert jobs[1][0] == sites[11].mask_jobs({12}, SHARES_HASH)[1][0]


def test_a_neighbours_key_of_low_order_is_its_own_fault():
    secrets = AttemptSecrets(11, os.urandom)
    encryption, mask = secrets.draw_keys()
    for public in ((bytes(32), mask), (encryption, bytes(32))):
        with pytest.raises(RemoteProtocolError, match="low order") as caught:
            secrets.agree({12: AdvertiseKeys(12, *public, bytes(32), b"", bytes(64))}, {12})
        assert caught.value.peer == 12


def test_a_sealed_share_that_does_not_open_is_its_senders_fault():
    sites, _, sealed = dealt()
    for wrong in (sealed[12][13], sealed[13][11], bytes(82)):
        with pytest.raises(RemoteProtocolError, match="does not open") as caught:
            sites[11].open(12, wrong, KEYS_HASH)
        assert caught.value.peer == 12


def test_what_was_forgotten_is_gone_and_cannot_be_used():
    sites, adverts, _ = dealt()
    secrets = sites[11]
    secrets.forget_channels()
    assert secrets._encryption_key is None
    assert not secrets._channels
    with pytest.raises(LocalProtocolError, match="has erased") as caught:
        secrets.agree(adverts, {12})
    assert caught.value.remedy
    secrets.forget_masks()
    assert secrets._mask_key is None
    assert not secrets._self_mask
    assert not secrets._mask_secrets
    with pytest.raises(LocalProtocolError, match="has erased"):
        secrets.deal(INDICES, 3, KEYS_HASH)
    assert secrets.release(12, {12}).kind is ShareKind.SELF_MASK  # others' shares are still needed


def test_a_nonce_is_fresh_and_kept():
    secrets = AttemptSecrets(11, os.urandom)
    assert secrets.nonce == b""
    drawn = secrets.draw_nonce()
    assert secrets.nonce == drawn
    assert len(drawn) == 32
    assert secrets.draw_nonce() != drawn


def test_the_representation_shows_nothing():
    assert repr(dealt()[0][11]) == "AttemptSecrets(<private>)"
