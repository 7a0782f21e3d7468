"""``fedmvp-server status``: the run as the server's state folder tells it; needs no running server."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fedmvp.cli.presentation import print_json, print_pairs, print_table
from fedmvp.errors import UserError
from fedmvp.study.config import ServerConfig
from fedmvp.study.credentials import SignedStudy, load_study

EVENTS_FILE = "events.jsonl"
MEANINGFUL = ("epsilon", "delta", "neighboring_relation", "unit", "mode", "accountant")
"""Fields of a receipt that are shown together or not at all."""

STATES = {"run-finished": "finished", "run-failed": "failed", "run-stopped": "stopped"}
"""What the last event of its kind since the server was started means."""


def print_status(config: ServerConfig, style: str) -> None:
    """Print progress and the sites' last receipts.

    Raises:
        UserError: the server has not run yet, or its signed documents do not verify.
    """
    status = summarise(load_study(config.study), _events(config))
    if style == "json":
        print_json(status)
        return
    sites = status.pop("sites")
    pairs = [(name.replace("_", " "), "-" if value is None else str(value)) for name, value in status.items()]
    print_pairs(pairs)
    columns = ("site", "rounds", "dropped", "epsilon", "delta", "adjacency", "unit", "mode", "accountant", "")
    rows = [
        (
            name,
            site["rounds"],
            site["dropped"],
            *(site["privacy"].get(name) for name in MEANINGFUL),
            "ledger went back" if site["privacy"].get("ledger_went_back") else "",
        )
        for name, site in sites.items()
    ]
    print_table("Sites, as their signed receipts say", columns, rows)


def summarise(study: SignedStudy, events: list[dict[str, Any]]) -> dict[str, Any]:
    """Fold the event log into one answer.

    Args:
        study: the signed documents.
        events: the events, oldest first.

    Returns:
        JSON-ready fields; ``sites`` by name.
    """
    rounds = [event for event in events if event["event"] == "round"]
    last = events[-1]
    phase = next((event for event in reversed(events) if event["event"] == "phase"), None)
    begun = max((place for place, event in enumerate(events) if event["event"] == "run-started"), default=0)
    ends = [event["event"] for event in events[begun:] if event["event"] in STATES]
    state = STATES[ends[-1]] if ends else "running, or stopped without a word"
    finished = state == "finished"
    return {
        "run_id": study.policy.study.run_id,
        "mode": study.policy.privacy.mode,
        "state": state,
        "rounds_completed": len({event["round"] for event in rounds}),
        "rounds_planned": study.policy.study.rounds,
        "rounds_aborted": sum(event["event"] == "round-aborted" for event in events),
        "phase": phase.get("phase") if phase is not None and not finished else None,
        "accuracy_at_start": next((event.get("accuracy") for event in events if event["event"] == "run-started"), None),
        "accuracy": next((event["accuracy"] for event in reversed(rounds) if event.get("accuracy") is not None), None),
        "last_event": datetime.fromtimestamp(last["time"], UTC).isoformat(timespec="seconds"),
        "sites": {entry.name: _site(entry.site_id, rounds) for entry in study.roster.entries if not entry.revoked},
    }


def _site(site_id: int, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    key = str(site_id)
    by_round = {event["round"]: event["receipts"][key] for event in rounds if key in event.get("receipts", {})}
    receipts = list(by_round.values())
    return {
        "rounds": sum(site_id in event.get("survivors", ()) for event in rounds),
        "dropped": sum(site_id in event.get("dropped", ()) for event in rounds),
        "privacy": receipts[-1] if receipts else {},
        "epsilon_by_round": [
            {"round": number, **{name: item.get(name) for name in MEANINGFUL}} for number, item in by_round.items()
        ],
    }


def _events(config: ServerConfig) -> list[dict[str, Any]]:
    from fedmvp.server.events import read_events  # noqa: PLC0415

    path = config.server.state_dir / EVENTS_FILE
    try:
        events = read_events(path)
    except (OSError, ValueError):
        raise UserError(
            f"{path} cannot be read as events",
            remedy="the run is not harmed: move the file away and restart the server",
        ) from None
    if not events:
        raise UserError(f"the server has not run yet: {path} holds no event", remedy="start it with fedmvp-server run")
    return events
