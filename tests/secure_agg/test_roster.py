"""The roster: one key for each site and one active site for each organisation."""

import dataclasses

import pytest

from secure_agg.errors import RosterError
from secure_agg.roster import Roster, RosterEntry
from tests.simulation.federation import make_roster

ENTRY = make_roster(1).entries[0]


def changed(**fields):
    return dataclasses.replace(ENTRY, **fields)


def other(site_id=99, **fields):
    values = {"name": "other", "organisation": "other", "verify_key": b"v" * 32, "tls_key_sha256": b"t" * 32}
    return RosterEntry(site_id=site_id, **(values | fields))


def test_entries_are_kept_in_the_order_of_their_ids():
    roster = Roster(1, tuple(reversed(make_roster(4).entries)))
    assert roster.active_ids == (11, 12, 13, 14)
    assert roster.hash == make_roster(4).hash


def test_share_indices_count_positions_from_one_revoked_sites_included():
    roster = make_roster(4, revoked=(12,))
    assert [roster.share_index(site_id) for site_id in (11, 12, 13, 14)] == [1, 2, 3, 4]
    assert roster.active_ids == (11, 13, 14)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "x"},
        {"organisation": "x"},
        {"verify_key": b"x" * 32},
        {"tls_key_sha256": b"x" * 32},
        {"revoked": True},
        {"site_id": 7},
    ],
)
def test_every_field_of_an_entry_is_in_the_hash(fields):
    assert Roster(1, (changed(**fields),)).hash != Roster(1, (ENTRY,)).hash


def test_the_version_is_in_the_hash():
    assert Roster(2, (ENTRY,)).hash != Roster(1, (ENTRY,)).hash


@pytest.mark.parametrize(
    ("second", "what"),
    [
        (other(site_id=ENTRY.site_id), "site id"),
        (other(name=ENTRY.name), "site name"),
        (other(verify_key=ENTRY.verify_key), "verify key"),
        (other(tls_key_sha256=ENTRY.tls_key_sha256), "TLS key"),
        (other(organisation=ENTRY.organisation), "organisation"),
    ],
)
def test_a_repeat_is_refused(second, what):
    with pytest.raises(RosterError, match=what):
        Roster(1, (ENTRY, second))


def test_an_organisation_may_keep_a_revoked_key_beside_its_new_one():
    roster = Roster(2, (changed(revoked=True), other(organisation=ENTRY.organisation)))
    assert roster.active_ids == (99,)


@pytest.mark.parametrize(
    "fields",
    [
        {"site_id": 0},
        {"site_id": 2**32},
        {"name": ""},
        {"organisation": ""},
        {"verify_key": bytes(31)},
        {"tls_key_sha256": bytes(33)},
    ],
)
def test_a_malformed_entry_is_refused(fields):
    with pytest.raises(RosterError):
        changed(**fields)


def test_a_version_below_one_is_refused():
    with pytest.raises(RosterError):
        Roster(0, (ENTRY,))


def test_an_unknown_site_is_refused():
    with pytest.raises(RosterError, match="site 5"):
        make_roster(3).entry(5)
    with pytest.raises(RosterError):
        make_roster(3).share_index(5)
