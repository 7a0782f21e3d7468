"""What goes wrong in a federation of real processes, and what the others notice of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from fedmvp.errors import ExitCode
from privacy.chain import EntryKind
from privacy.errors import AlreadyReleased
from privacy.ledger import Ledger
from tests.e2e.federation import Federation, Process, policy_text

Federations = Callable[..., Federation]

STALLS = ("training", "share_keys", "reserve", "masked_input", "unmask")
"""Where site-4 is killed, round after round; before and after its vector has left."""


def published(federation: Federation) -> dict[int, dict[str, Any]]:
    """The rounds of the audit log, by number."""
    lines = (federation.state_dir / "audit.jsonl").read_text().splitlines()
    records = [json.loads(line)["record"] for line in lines]
    return {record["round"]: record for record in records if record["kind"] == "published"}


def charged_rounds(federation: Federation, name: str) -> list[int]:
    with federation.ledger(name) as ledger:
        return [entry.round for entry in ledger.entries() if entry.kind is EntryKind.CHARGE]


@pytest.fixture(scope="module")
def killed(federation: Federations) -> Federation:
    """A whole run in which site-4 is killed in each of the first rounds, each time at another step, and restarted."""
    made: Federation = federation(policy=policy_text(rounds=len(STALLS) + 1))
    server = made.start_server("--grace", "60")
    sites = [made.start_site(name) for name in ("site-1", "site-2", "site-3")]
    for step in STALLS:
        victim = made.start_site("site-4", "--stall-at", step)
        victim.wait_for(f"stalled {step}")
        victim.kill()
    last = made.start_site("site-4")
    for process in (server, *sites, last):
        assert process.finish() == 0, process.errors
    return made


def test_a_site_killed_at_any_step_costs_nobody_else_the_round(killed: Federation) -> None:
    rounds = published(killed)

    assert sorted(rounds) == list(range(1, len(STALLS) + 2))
    for number, step in enumerate(STALLS, start=1):
        assert set(rounds[number]["survivors"]) == ({1, 2, 3, 4} if step == "unmask" else {1, 2, 3})


def test_a_killed_site_is_back_in_the_next_round(killed: Federation) -> None:
    announced = {event["round"]: event["sites"] for event in killed.events("phase") if event["phase"] == "training"}

    assert announced == {number: [1, 2, 3, 4] for number in range(1, len(STALLS) + 2)}
    assert 4 in published(killed)[len(STALLS) + 1]["survivors"]


def test_a_killed_site_is_charged_exactly_for_what_may_have_left_it(killed: Federation) -> None:
    # Killed at "reserve" nothing was charged; at "masked_input" and "unmask" the charge was on disk before the kill.
    expected = [number for number, step in enumerate(STALLS, start=1) if step in {"masked_input", "unmask"}]

    assert charged_rounds(killed, "site-4") == [*expected, len(STALLS) + 1]
    assert charged_rounds(killed, "site-1") == list(range(1, len(STALLS) + 2))


def test_a_restarted_site_cannot_release_a_charged_round_again(killed: Federation) -> None:
    policy = killed.study.policy
    charged = charged_rounds(killed, "site-4")[0]

    with Ledger.open(killed.site_folder("site-4") / "ledger.sqlite") as ledger, pytest.raises(AlreadyReleased):
        ledger.reserve(policy.study.run_id, charged, policy.privacy_parameters(killed.dimension), policy.hash)


def test_every_round_is_reported_with_the_receipts_of_its_survivors(killed: Federation) -> None:
    for event in killed.events("round"):
        alive = set(event["survivors"]) - {4} if event["round"] <= len(STALLS) else set(event["survivors"])
        assert alive <= {int(site) for site in event["receipts"]}
        assert {"seconds_by_phase", "bytes_up_by_site", "accuracy", "dropped"} <= set(event)


def test_a_killed_server_goes_on_where_it_was_and_the_sites_come_back(federation: Federations) -> None:
    made = federation(sites=3, policy=policy_text(rounds=4))
    first = made.start_server()
    sites = made.start_sites("--seconds", "0.3")
    made.wait_for_event(lambda event: event["event"] == "phase" and event["round"] == 3)
    first.kill()
    second = made.start_server()
    for process in (*sites.values(), second):
        assert process.finish() == 0, process.errors
    started = made.events("run-started")

    assert [event["resumed"] for event in started] == [False, True]
    assert started[1]["rounds_completed"] >= 2
    assert {1, 2, 4} <= set(published(made))
    assert made.events("run-finished")[-1]["rounds_completed"] == len(published(made))
    for name in made.study.site_configs:
        charged = charged_rounds(made, name)
        assert len(charged) == len(set(charged)) <= 4


@pytest.fixture(scope="module")
def refused(federation: Federations) -> tuple[Federation, dict[str, Process]]:
    """Five sites of which one sends no number and one can afford one round only."""
    made: Federation = federation(
        sites=5, policy=policy_text(rounds=2, private=True), epsilon_max=8.0, budgets={"site-5": 1.5}
    )
    server = made.start_server("--grace", "60")
    sites = {name: made.start_site(name, *(["--nan"] if name == "site-4" else [])) for name in made.study.site_configs}
    for process in (*sites.values(), server):
        process.finish()
    assert server.finish() == 0, server.errors
    return made, sites


def test_an_update_that_is_no_number_is_refused_before_anything_is_charged(
    refused: tuple[Federation, dict[str, Process]],
) -> None:
    made, sites = refused

    assert sites["site-4"].finish() == ExitCode.CONFIG
    assert "cannot be sent" in sites["site-4"].errors
    assert charged_rounds(made, "site-4") == []


def test_a_site_stops_when_its_own_budget_is_spent_and_the_others_go_on(
    refused: tuple[Federation, dict[str, Process]],
) -> None:
    made, sites = refused

    assert sites["site-5"].finish() == ExitCode.BUDGET
    assert "over its budget" in sites["site-5"].errors
    assert charged_rounds(made, "site-5") == [1]
    assert [sites[name].finish() for name in ("site-1", "site-2", "site-3")] == [0, 0, 0]
    assert published(made)[1]["survivors"] == [1, 2, 3, 5]
    assert published(made)[2]["survivors"] == [1, 2, 3]


def test_a_corrupt_ledger_stops_the_site_before_it_connects(federation: Federations) -> None:
    made = federation(sites=3)
    ledger = made.site_folder("site-1") / "ledger.sqlite"
    content = bytearray(ledger.read_bytes())
    content[100:4000] = bytes(3900)
    ledger.write_bytes(content)
    site = made.start_site("site-1")

    assert site.finish() == ExitCode.LEDGER, site.errors
    assert "remedy:" in site.errors
    assert "Traceback" not in site.errors


def test_a_loss_that_three_sites_cannot_bear_is_tried_again_with_new_keys_under_the_same_number(
    federation: Federations,
) -> None:
    made = federation(sites=3, policy=policy_text(rounds=1))
    server = made.start_server()
    sites = [made.start_site(name) for name in ("site-1", "site-2")]
    victim = made.start_site("site-3", "--stall-at", "share_keys")
    victim.wait_for("stalled")
    victim.kill()
    made.wait_for_event(lambda event: event["event"] == "round-aborted")
    sites.append(made.start_site("site-3"))
    for process in (server, *sites):
        assert process.finish() == 0, process.errors
    first, second = (event for event in made.events("phase") if event["phase"] == "training")

    assert (first["round"], second["round"]) == (1, 1)
    assert second["attempt"] == first["attempt"] + 1
    assert published(made)[1]["attempt"] == second["attempt"]
    assert [charged_rounds(made, name) for name in made.study.site_configs] == [[1], [1], [1]]
