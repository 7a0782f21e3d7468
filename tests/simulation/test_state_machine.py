"""Whatever the network does, and whenever a site crashes: never a wrong sum, a second release or both kinds of share.

Hypothesis plays the network of :mod:`tests.simulation.world`. The machine is held to account itself: broken sessions
must be caught by the same rules, and its runs must reach sums, refusals and dropouts of every phase.
"""

import random
from collections import Counter
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from secure_agg import server as server_module
from secure_agg import transitions as transitions_module
from secure_agg.checks import ClientChecks
from secure_agg.errors import RemoteProtocolError
from secure_agg.graph import MAX_ATTEMPTS
from secure_agg.masks import add_masks
from secure_agg.messages import PeerShares
from secure_agg.transitions import TRANSITIONS, ServerEvent, ServerState
from tests.simulation.federation import Releases
from tests.simulation.world import World, tampered

pytestmark = [pytest.mark.timeout(400), pytest.mark.no_cover]  # coverage doubles its time and gains no branch

QUICK = settings(
    max_examples=300,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
FRESH = settings(QUICK, max_examples=1500, derandomize=False)
UNTIL_CAUGHT = settings(QUICK, phases=[Phase.generate], print_blob=False)

places = st.integers(0, 40)
sites = st.integers(11, 16)
phases_of_the_server = st.integers(0, 5)


def something_is_on_its_way(machine):
    return bool(machine.world.mailbox)


def the_attempt_is_running(machine):
    return not machine.world.over


def most_have_answered(machine):
    return not machine.world.over and len(machine.world.server.expected) <= 2


def another_attempt_may_help(machine):
    world = machine.world
    may_still_release = sum(site.last_round < world.round for site in world.sites.values())
    begun = world.server.state not in (ServerState.ADVERTISE_KEYS, ServerState.ADVERTISE_KEYS_SPARSE)
    return begun and may_still_release >= 2 and world.attempt < MAX_ATTEMPTS


def the_attempt_is_over(machine):
    return machine.world.over


class UnreliableNetwork(RuleBasedStateMachine):
    """The rules of the world, and its invariants after each of them."""

    tally: ClassVar[Counter[str]] = Counter()

    def make_world(self, n):
        return World(n)

    @initialize(n=st.integers(3, 5))
    def start(self, n):
        self.world = self.make_world(n)
        self.steps = 0
        self.tally["examples"] += 1

    def state(self, drawn):
        states = list(self.world.closings)
        return states[drawn % len(states)]

    def site(self, drawn):
        return 11 + (drawn - 11) % self.world.n

    @rule(count=st.sampled_from([1, 2, 3, 5, 100]))
    @precondition(something_is_on_its_way)
    def deliver(self, count):
        self.world.deliver(count)

    @rule(phases=st.integers(1, 5))
    @precondition(the_attempt_is_running)
    def go_on_for_some_phases(self, phases):
        self.world.go_on(phases)

    @rule()
    @precondition(most_have_answered)
    def close_phase(self):
        self.world.close()

    @rule(misled=sites)
    @precondition(lambda self: self.world.comes_before(ServerState.CONFIRM_SURVIVORS))
    def show_two_survivor_sets(self, misled):
        self.world.advance_to(ServerState.MASKED_INPUT)
        self.world.settle()
        if not self.world.over:
            self.world.close(misled=self.site(misled))

    @rule(phase=phases_of_the_server, index=places, seed=st.integers(0, 2**32), phases=st.integers(0, 5))
    @precondition(the_attempt_is_running)
    def change_an_answer_in_some_phase(self, phase, index, seed, phases):
        self.world.advance_to(self.state(phase))
        if self.world.mailbox:
            self.world.tamper(index, seed)
        self.world.go_on(phases)

    @rule(phase=phases_of_the_server, site=sites, phases=st.integers(0, 5))
    @precondition(the_attempt_is_running)
    def crash_in_some_phase(self, phase, site, phases):
        self.world.advance_to(self.state(phase))
        self.world.restart(self.site(site))
        self.world.go_on(phases)

    @rule(index=places)
    @precondition(something_is_on_its_way)
    def drop(self, index):
        self.world.drop(index)

    @rule(index=places)
    @precondition(something_is_on_its_way)
    def duplicate(self, index):
        self.world.duplicate(index)

    @rule(index=places)
    @precondition(something_is_on_its_way)
    def delay(self, index):
        self.world.delay(index)

    @rule(index=places, to=sites)
    @precondition(something_is_on_its_way)
    def misdeliver(self, index, to):
        self.world.misdeliver(index, self.site(to))

    @rule(index=places, seed=st.integers(0, 2**32))
    @precondition(something_is_on_its_way)
    def tamper(self, index, seed):
        self.world.tamper(index, seed)

    @rule(left_out=st.sampled_from([0, 11, 14]))
    @precondition(another_attempt_may_help)
    def new_attempt(self, left_out):
        self.world.new_attempt(left_out)

    @rule()
    @precondition(the_attempt_is_over)
    def next_round(self):
        self.world.next_round()

    @invariant()
    def nothing_forbidden_has_happened(self):
        self.steps += 1
        self.world.check()

    def teardown(self):
        """Whatever happened, a round on a network that works again ends in a sum."""
        world = self.world
        world.settle()
        world.next_round()
        while not world.over:
            world.settle()
            world.close()
        world.settle()
        world.check()
        self.tally["calm rounds at the end"] += world.calm
        self.tally["most steps"] = max(self.tally["most steps"], self.steps)
        self.tally.update(world.tally)


def run(machine, how):
    machine.tally.clear()
    run_state_machine_as_test(machine, settings=how)
    return machine.tally


def assert_the_runs_went_everywhere(tally, how):
    """The rules are no use if they never get far: count what they reached."""
    assert tally["examples"] >= how.max_examples
    assert tally["most steps"] == how.stateful_step_count
    assert tally["calm rounds at the end"] >= how.max_examples / 2
    for reached in ("sums", "sums that a site accepted", "sums after a fault"):
        assert tally[reached] >= how.max_examples / 3, reached
    for reached in ("sums without some site", "sums of a later attempt", "a site ignored what was out of order"):
        assert tally[reached] >= how.max_examples / 30, reached
    for step in ("advertise_keys", "share_keys", "masked_input", "confirm_survivors", "unmask"):
        assert tally[f"ended at {step}"], step


def test_the_quick_run_is_of_300_histories_of_up_to_50_steps():
    assert (QUICK.max_examples, QUICK.stateful_step_count, QUICK.deadline) == (300, 50, None)


def test_no_history_leads_to_a_wrong_sum_a_second_release_or_both_kinds_of_share():
    assert_the_runs_went_everywhere(run(UnreliableNetwork, QUICK), QUICK)


def test_whatever_is_changed_in_a_list_of_pairs_is_a_message_or_refused_as_one():
    pairs = PeerShares((), ((11, bytes(32)), (12, bytes([1] * 32))))
    changes = set()
    for seed in range(300):
        try:
            changes.add(tampered(pairs, random.Random(seed), (11, 12, 13)).commitments)
        except (RemoteProtocolError, OverflowError):
            changes.add("refused")
    assert len(changes - {pairs.commitments}) > 20


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_no_fresh_history_does_either():
    assert_the_runs_went_everywhere(run(UnreliableNetwork, FRESH), FRESH)


class SparseNetwork(UnreliableNetwork):
    """The same on a sparse graph, with its exchange of nonces."""

    tally: ClassVar[Counter[str]] = Counter()

    @initialize(n=st.integers(5, 6))
    def start(self, n):
        super().start(n)

    def make_world(self, n):
        return World(n, sparse=True)


def test_no_history_on_a_sparse_graph_does_either():
    tally = run(SparseNetwork, settings(QUICK, max_examples=60))
    assert tally["sums"] >= 60
    assert tally["sums without some site"]
    assert tally["ended at reveal_nonces"]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_no_fresh_history_on_a_sparse_graph_does_either():
    assert_the_runs_went_everywhere(run(SparseNetwork, FRESH), FRESH)
    assert SparseNetwork.tally["ended at reveal_nonces"]


class OffByOne(UnreliableNetwork):
    """One site's masker forgets a unit."""

    tally: ClassVar[Counter[str]] = Counter()

    def make_world(self, n):
        def careless(vector, jobs, *, cipher):
            add_masks(vector, jobs, cipher=cipher)
            vector[0] += 1

        return World(n, masker_of=lambda site: careless if site == 12 else add_masks)


class WithoutMasks(UnreliableNetwork):
    """One site does not mask."""

    tally: ClassVar[Counter[str]] = Counter()

    def make_world(self, n):
        def nothing(vector, jobs, *, cipher):
            pass

        return World(n, masker_of=lambda site: nothing if site == 12 else add_masks)


class Forgetful(UnreliableNetwork):
    """No site remembers what it released."""

    tally: ClassVar[Counter[str]] = Counter()

    def make_world(self, n):
        class NoMemory(Releases):
            """A register that keeps nothing."""

            def mark(self, run_id, round_number):
                pass

        return World(n, new_register=NoMemory)


class EqualToAll(bytes):
    """A digest that is never different."""

    def __ne__(self, other):
        return False

    __eq__ = object.__eq__
    __hash__ = bytes.__hash__


@pytest.mark.parametrize(
    ("machine", "caught_as"),
    [
        (OffByOne, "the sum is wrong"),
        (WithoutMasks, "an undisturbed attempt ends in a sum"),
        (Forgetful, "a site released twice"),
    ],
)
def test_a_broken_site_is_caught(machine, caught_as):
    with pytest.raises(AssertionError, match=caught_as):
        run(machine, UNTIL_CAUGHT)


def test_a_site_that_does_not_check_who_signed_the_survivors_is_caught(monkeypatch):
    monkeypatch.setattr(ClientChecks, "confirmations", lambda *_arguments, **_options: None)
    with pytest.raises(AssertionError, match="both kinds of one owner's shares"):
        run(UnreliableNetwork, UNTIL_CAUGHT)


def test_a_server_that_does_not_compare_a_vector_with_its_hash_is_caught(monkeypatch):
    digest = server_module.vector_digest
    monkeypatch.setattr(server_module, "vector_digest", lambda vector: EqualToAll(digest(vector)))
    with pytest.raises(AssertionError, match="the sum is wrong"):
        run(UnreliableNetwork, UNTIL_CAUGHT)


def test_a_server_that_moves_outside_the_table_is_caught(monkeypatch):
    skipped = (ServerState.MASKED_INPUT, ServerEvent.CLOSE_MASKED_INPUTS)
    # The sessions go by a table of their own, in which the phase of the inputs may be skipped.
    own = {**TRANSITIONS, skipped: ServerState.UNMASK}
    monkeypatch.setattr(transitions_module, "TRANSITIONS", own)
    with pytest.raises(AssertionError, match="outside the table"):
        run(UnreliableNetwork, UNTIL_CAUGHT)


def test_after_a_crash_a_site_that_had_released_sits_out_every_other_attempt_at_the_round():
    world = World(4)
    world.advance_to(ServerState.MASKED_INPUT)
    world.restart(12)
    world.settle()
    assert world.released == {(site, 1): 1 for site in world.sites}
    world.new_attempt()
    world.settle()
    assert world.sites[12].session is None
    assert world.server.expected == tuple(world.sites)
    world.next_round()
    world.go_on(5)
    assert world.tally["sums"] == 1
    assert world.released == {(site, number): 1 for site in world.sites for number in (1, 2)}


def test_after_a_crash_a_site_that_had_not_released_takes_part_in_the_next_attempt():
    world = World(4)
    world.advance_to(ServerState.SHARE_KEYS)
    world.restart(12)
    world.new_attempt()
    world.go_on(5)
    assert world.tally["sums"] == 1
    assert world.tally["sums without some site"] == 0
    assert world.released == {(site, 1): 1 for site in world.sites}
