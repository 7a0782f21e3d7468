"""Who is waited for, and for how long: the lobby and one attempt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from fedmvp.rpc.v1 import aggregation_pb2 as pb
from fedmvp.server.attempt import Attempt
from fedmvp.server.coordinator import Coordinator
from fedmvp.server.errors import AttemptOverError
from fedmvp.server.lobby import Invitation, Lobby, RunOver
from fedmvp.study.policy import parse_policy
from secure_agg.client import ClientSession
from secure_agg.context import RoundContext
from secure_agg.keys import SigningKey
from secure_agg.policy import SecureSumPolicy
from secure_agg.roster import Roster, RosterEntry
from secure_agg.server import ServerSession
from secure_agg.transitions import Step
from tests.e2e.federation import policy_text
from tests.simulation.federation import make_context, make_policy, make_roster, signing_key

NEVER = 3600.0
SITES = (1, 2, 3, 4)
KEYS = {site: SigningKey.generate() for site in SITES}
ROSTER = Roster(
    1, tuple(RosterEntry(site, f"s{site}", f"o{site}", KEYS[site].verify_key, bytes([site] * 32)) for site in SITES)
)
POLICY = SecureSumPolicy.from_range(value_range=4.0, colluders=1, min_cohort=3, min_honest=2, max_cohort=8, dimension=4)
CONTEXT = RoundContext(
    run_id="run",
    round=1,
    attempt=1,
    policy_hash=bytes(32),
    roster_hash=ROSTER.hash,
    model_hash=bytes(32),
    cohort=SITES,
    threshold=3,
    colluders=1,
    ring_bits=32,
    length=4,
    graph="complete",
    degree=3,
    share_threshold=3,
)


def in_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())

    run.__name__ = test.__name__
    return run


def new_attempt() -> Attempt:
    return Attempt(CONTEXT, POLICY, ServerSession(policy=POLICY, roster=ROSTER, context=CONTEXT))


MANY = make_roster(101)


def new_sparse_attempt(dropout_permille: int) -> tuple[Attempt, SecureSumPolicy]:
    """An attempt on a sparse graph of 101 sites."""
    policy = make_policy(101, dropout_permille=dropout_permille)
    context = make_context(policy, MANY)
    return Attempt(context, policy, ServerSession(policy=policy, roster=MANY, context=context)), policy


async def ends_at_once(attempt: Attempt, step: Step) -> bool:
    """Whether a step is given up without waiting."""
    try:
        await asyncio.wait_for(attempt.collect(step, NEVER), 0.05)
    except TimeoutError:
        return False
    return True


def session(site: int) -> ClientSession:
    return ClientSession(
        policy=POLICY, roster=ROSTER, site_id=site, signing_key=KEYS[site], context=CONTEXT, ledger_head=bytes(32)
    )


def advertise(attempt: Attempt, site: int) -> asyncio.Task[Any]:
    message = session(site).advertise_keys()
    return asyncio.create_task(
        attempt.exchange(Step.ADVERTISE_KEYS, site, lambda server: server.receive_advertise_keys(message))
    )


@in_a_loop
async def test_a_cohort_is_complete_as_soon_as_the_whole_roster_waits() -> None:
    lobby = Lobby(SITES)
    gathering = asyncio.create_task(lobby.gather(3, timeout_seconds=NEVER, grace_seconds=NEVER))
    for site in SITES:
        lobby.enter(site)

    assert await gathering == SITES


@in_a_loop
async def test_a_site_that_let_its_grace_pass_is_not_waited_for_again() -> None:
    lobby = Lobby(SITES)
    for site in (1, 2, 3):
        lobby.enter(site)
    assert await lobby.gather(3, timeout_seconds=NEVER, grace_seconds=0.01) == (1, 2, 3)

    assert await lobby.gather(3, timeout_seconds=NEVER, grace_seconds=NEVER) == (1, 2, 3)


@in_a_loop
async def test_a_site_that_said_it_stops_is_not_waited_for() -> None:
    lobby = Lobby(SITES)
    for site in (1, 2, 3):
        lobby.enter(site)
    lobby.give_up(4)

    assert await lobby.gather(3, timeout_seconds=NEVER, grace_seconds=NEVER) == (1, 2, 3)


@in_a_loop
async def test_too_few_sites_are_what_gather_returns_when_the_time_is_up() -> None:
    lobby = Lobby(SITES)
    lobby.enter(2)

    assert await lobby.gather(3, timeout_seconds=0.01, grace_seconds=NEVER) == (2,)


@in_a_loop
async def test_a_second_call_of_a_site_replaces_the_first_and_drops_it_from_its_round() -> None:
    lobby, attempt = Lobby(SITES), new_attempt()
    for site in SITES:
        lobby.enter(site)
    lobby.invite(Invitation(attempt, pb.Announcement(), ()))
    lobby.enter(4)

    assert attempt.gone == {4}
    assert lobby.waiting == (4,)


@in_a_loop
async def test_everybody_is_told_that_the_run_is_over_now_and_later() -> None:
    lobby, over = Lobby(SITES), RunOver(3, "done")
    early = lobby.enter(1)
    lobby.close(over)
    late = lobby.enter(2)

    assert early.invitation.result() is over
    assert late.invitation.result() is over


@in_a_loop
async def test_a_step_closes_at_once_when_every_message_is_in() -> None:
    attempt = new_attempt()
    calls = [advertise(attempt, site) for site in SITES]
    await attempt.collect(Step.ADVERTISE_KEYS, NEVER)
    keys = attempt.session.close_advertise_keys()
    attempt.release(Step.ADVERTISE_KEYS, keys)

    assert await asyncio.gather(*calls) == [keys] * 4


@in_a_loop
async def test_a_step_does_not_wait_for_a_site_whose_connection_broke() -> None:
    attempt = new_attempt()
    calls = [advertise(attempt, site) for site in (1, 2, 3)]
    collecting = asyncio.create_task(attempt.collect(Step.ADVERTISE_KEYS, NEVER))
    await asyncio.sleep(0)
    attempt.drop(4)
    await collecting

    assert [advert.sender for advert in attempt.session.close_advertise_keys().adverts] == [1, 2, 3]
    attempt.abort("the test is over")
    await asyncio.gather(*calls, return_exceptions=True)


@in_a_loop
async def test_a_step_ends_at_once_when_too_few_sites_are_left_to_reach_the_floor() -> None:
    attempt = new_attempt()
    attempt.drop(3)
    attempt.drop(4)

    await attempt.collect(Step.ADVERTISE_KEYS, NEVER)
    assert attempt.gone == set(SITES)


@pytest.mark.parametrize(("lost", "ends"), [(6, False), (7, True)])
def test_the_keys_of_a_sparse_graph_are_given_up_once_the_graph_would_be_too_small(lost: int, ends: bool) -> None:
    async def keys() -> None:
        attempt, policy = new_sparse_attempt(50)
        assert policy.graph(101).key_floor == 101 - 6
        for site in MANY.active_ids[:lost]:
            attempt.drop(site)

        assert await ends_at_once(attempt, Step.ADVERTISE_KEYS) is ends

    asyncio.run(keys())


@pytest.mark.parametrize(("lost", "ends"), [(21, False), (22, True)])
def test_the_nonces_of_a_sparse_graph_are_given_up_once_more_are_withheld_than_may_be(lost: int, ends: bool) -> None:
    async def nonces() -> None:
        attempt, policy = new_sparse_attempt(200)
        assert policy.graph(101).max_withheld == 21 == 101 - policy.graph(101).key_floor
        calls = []
        for site in MANY.active_ids:
            client = ClientSession(
                policy=policy,
                roster=MANY,
                site_id=site,
                signing_key=signing_key(site),
                context=attempt.context,
                ledger_head=bytes(32),
            )
            message = client.advertise_keys()
            calls.append(
                asyncio.create_task(
                    attempt.exchange(
                        Step.ADVERTISE_KEYS,
                        site,
                        lambda server, message=message: server.receive_advertise_keys(message),
                    )
                )
            )
        await attempt.collect(Step.ADVERTISE_KEYS, NEVER)
        attempt.release(Step.ADVERTISE_KEYS, attempt.session.close_advertise_keys())
        await asyncio.gather(*calls)
        for site in MANY.active_ids[:lost]:
            attempt.drop(site)

        assert await ends_at_once(attempt, Step.REVEAL_NONCES) is ends

    asyncio.run(nonces())


@in_a_loop
async def test_on_the_complete_graph_no_nonce_is_taken() -> None:
    attempt = new_attempt()
    calls = [advertise(attempt, site) for site in SITES]
    await attempt.collect(Step.ADVERTISE_KEYS, NEVER)
    attempt.release(Step.ADVERTISE_KEYS, attempt.session.close_advertise_keys())
    await asyncio.gather(*calls)

    with pytest.raises(AttemptOverError, match="takes no reveal_nonces"):
        attempt.require_open(Step.REVEAL_NONCES, 1)
    attempt.require_open(Step.SHARE_KEYS, 1)


def test_of_more_sites_than_a_round_takes_each_is_in_the_cohort_now_and_then() -> None:
    async def cohorts() -> list[tuple[int, ...]]:
        lobby = Lobby(range(1, 13))
        for site in range(1, 13):
            lobby.enter(site)
        absent: Any = None
        coordinator = Coordinator(
            policy=parse_policy(policy_text().encode()),
            roster=ROSTER,
            state=absent,
            lobby=lobby,
            events=absent,
            reporter=absent,
            roster_grace_seconds=NEVER,
        )
        return [await coordinator._gather() for _ in range(100)]

    drawn = asyncio.run(cohorts())

    assert all(len(cohort) == 8 and list(cohort) == sorted(set(cohort)) for cohort in drawn)
    assert set().union(*drawn) == set(range(1, 13))  # (4/12)^100 of a chance for one site to be missing
    assert len(set(drawn)) > 50  # of 495


@in_a_loop
async def test_a_cancelled_call_means_that_the_site_is_gone_but_what_it_sent_counts() -> None:
    attempt = new_attempt()
    calls = {site: advertise(attempt, site) for site in SITES}
    await asyncio.sleep(0)
    calls[4].cancel()
    await asyncio.sleep(0)
    await attempt.collect(Step.ADVERTISE_KEYS, NEVER)

    assert attempt.gone == {4}
    assert [advert.sender for advert in attempt.session.close_advertise_keys().adverts] == [1, 2, 3, 4]
    attempt.abort("the test is over")
    await asyncio.gather(*calls.values(), return_exceptions=True)


@in_a_loop
async def test_a_message_after_its_step_is_refused() -> None:
    attempt = new_attempt()
    calls = [advertise(attempt, site) for site in (1, 2, 3)]
    await asyncio.sleep(0)
    await attempt.collect(Step.ADVERTISE_KEYS, 0.01)

    with pytest.raises(AttemptOverError):
        await advertise(attempt, 4)
    attempt.abort("the test is over")
    await asyncio.gather(*calls, return_exceptions=True)


@in_a_loop
async def test_an_aborted_attempt_fails_every_held_call_with_the_reason() -> None:
    attempt = new_attempt()
    call = advertise(attempt, 1)
    await asyncio.sleep(0)
    attempt.abort("too few sites")

    with pytest.raises(AttemptOverError, match="too few sites"):
        await call
