"""The round context: a site answers only an announcement that its own files and memory allow."""

import dataclasses
import hashlib

import pytest

from secure_agg.context import check_agreement, validate_context
from secure_agg.errors import PolicyError, RemoteProtocolError
from secure_agg.graph import MAX_ATTEMPTS
from secure_agg.roster import Roster
from tests.simulation.federation import make_context, make_policy, make_roster

ROSTER = make_roster(6, revoked=(16,))
POLICY = make_policy(6)
CONTEXT = make_context(POLICY, ROSTER, cohort=(11, 12, 13, 14))


def validate(context=CONTEXT, *, policy=POLICY, roster=ROSTER, **own):
    known = {
        "site_id": 11,
        "run_id": "test-run",
        "policy_hash": CONTEXT.policy_hash,
        "model_hash": CONTEXT.model_hash,
        "last_round": 100,
        "last_round_released": 6,
        "last_attempt_seen": (7, 1),
    }
    validate_context(context, policy, roster, **(known | own))


def refused(reason, context=CONTEXT, **own):
    with pytest.raises(RemoteProtocolError, match=reason) as caught:
        validate(context, **own)
    assert caught.value.peer is None
    assert caught.value.step == "announce"


def test_an_honest_announcement_is_accepted():
    validate()


@pytest.mark.parametrize(
    "changed",
    [
        {"run_id": "other"},
        {"round": 8},
        {"attempt": 3},
        {"policy_hash": bytes(32)},
        {"roster_hash": bytes(32)},
        {"model_hash": bytes(32)},
        {"cohort": (11, 12, 13)},
        {"threshold": 4},
        {"colluders": 2},
        {"ring_bits": 64},
        {"length": 9},
        {"graph": "harary"},
        {"degree": 4},
        {"share_threshold": 2},
    ],
)
def test_every_field_is_in_the_hash(changed):
    assert dataclasses.replace(CONTEXT, **changed).hash != CONTEXT.hash


def test_a_run_that_is_not_the_sites_own_is_refused():
    refused("run", run_id="my-run")


def test_another_policy_is_refused():
    refused("policy", policy_hash=bytes(32))


def test_another_roster_is_refused():
    refused("roster", roster=Roster(2, ROSTER.entries))


def test_another_model_is_refused():
    refused("model", model_hash=hashlib.sha256(b"what the site received").digest())


@pytest.mark.parametrize("released", [7, 8])
def test_a_round_that_was_released_is_refused(released):
    refused("released", last_round_released=released)


@pytest.mark.parametrize("seen", [(7, 2), (7, 3), (8, 1)])
def test_a_stale_attempt_is_refused(seen):
    refused("attempt", last_attempt_seen=seen)


def test_a_new_attempt_at_a_round_that_was_not_released_is_accepted():
    validate(last_attempt_seen=(7, 1))


def test_a_cohort_without_this_site_is_refused():
    refused("not in the cohort", site_id=15)


def test_a_site_that_is_not_on_the_roster_is_refused():
    refused("site 77 .* not on the roster", make_context(POLICY, ROSTER, cohort=(11, 12, 13, 77)))


def test_a_revoked_site_is_refused():
    refused("site 16 .* revoked", make_context(POLICY, ROSTER, cohort=(11, 12, 13, 16)))


def test_a_second_site_of_one_organisation_is_refused():
    roster = make_roster(4)
    # The roster's own check would refuse this; a cohort is checked again in case a roster ever allows it.
    object.__setattr__(roster.entries[1], "organisation", roster.entries[0].organisation)
    context = make_context(POLICY, roster)
    with pytest.raises(RemoteProtocolError, match="organisation"):
        check_agreement(context, POLICY, roster)


def test_a_cohort_below_the_floor_is_refused():
    refused("below the floor of 5", CONTEXT, policy=make_policy(6, min_cohort=5))


def test_a_cohort_above_the_limit_is_refused():
    refused("above the limit", CONTEXT, policy=make_policy(3))


def test_a_cohort_outside_the_policy_has_no_context():
    with pytest.raises(PolicyError, match="below the floor of 5") as caught:
        make_context(make_policy(6, min_cohort=5), ROSTER, cohort=(11, 12, 13, 14))
    assert caught.value.remedy


@pytest.mark.usefixtures("sparse_from_seven_sites")
def test_a_site_joins_at_most_16_attempts_at_a_round_on_a_sparse_graph():
    roster, policy = make_roster(7), make_policy(7)
    context = make_context(policy, roster, attempt=16)
    assert context.graph == "harary"
    assert MAX_ATTEMPTS == 16
    check_agreement(context, policy, roster)
    with pytest.raises(RemoteProtocolError, match="16 attempts"):
        check_agreement(dataclasses.replace(context, attempt=17), policy, roster)
    check_agreement(make_context(make_policy(6), make_roster(6), attempt=17), make_policy(6), make_roster(6))


@pytest.mark.parametrize("threshold", [1, 2, 4])
def test_a_threshold_that_is_not_the_policys_is_refused(threshold):
    refused("threshold", dataclasses.replace(CONTEXT, threshold=threshold))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"colluders": 0}, "colluders"),
        ({"ring_bits": 16}, "ring"),
        ({"length": 7}, "vector length"),
        ({"graph": "harary"}, "graph is harary"),
        ({"degree": 2}, "degree"),
        ({"share_threshold": 2}, "share threshold"),
    ],
)
def test_a_parameter_that_is_not_the_policys_is_refused(changed, reason):
    refused(reason, dataclasses.replace(CONTEXT, **changed))


@pytest.mark.parametrize(
    "changed",
    [
        {"round": 0},
        {"round": 2**64},
        {"attempt": 0},
        {"attempt": 2**32},
        {"policy_hash": bytes(31)},
        {"roster_hash": bytes(33)},
        {"model_hash": b""},
        {"cohort": (12, 11, 13)},
        {"cohort": (11, 11, 12)},
        {"cohort": (11, 2**32)},
        {"threshold": -1},
        {"length": 2**64},
        {"degree": 2**32},
        {"share_threshold": -1},
        {"run_id": "übung"},
        {"run_id": "line\nbreak"},
        {"run_id": "null\0"},
        {"graph": "härary"},
    ],
)
def test_a_context_that_has_no_canonical_form_cannot_be_made(changed):
    with pytest.raises(RemoteProtocolError):
        dataclasses.replace(CONTEXT, **changed)


def test_a_round_beyond_the_policys_last_is_refused():
    validate(last_round=7)
    with pytest.raises(RemoteProtocolError, match="the policy ends with round 6"):
        validate(last_round=6)
