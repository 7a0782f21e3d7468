"""Draws the state diagrams of docs/secure-aggregation.md from the table the sessions look their next state up in.

    python -m tools.state_diagram

writes both between their markers; a test compares them with the table.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from secure_agg.transitions import TRANSITIONS, ClientEvent, ClientState, ServerState

PAGE = Path(__file__).parent.parent / "docs" / "secure-aggregation.md"
SIDES: dict[str, tuple[type[Enum], tuple[Enum, ...], Enum]] = {
    "site": (ClientState, (ClientState.START, ClientState.START_SPARSE), ClientState.DONE),
    "server": (ServerState, (ServerState.ADVERTISE_KEYS, ServerState.ADVERTISE_KEYS_SPARSE), ServerState.DONE),
}


def diagram(side: str) -> str:
    """Return one side's diagram in Mermaid's notation.

    Leaving (the event of an abort, or at the server a phase below its floor) is drawn once, from a box around every
    state in which it is possible.

    Args:
        side: "site" or "server".
    """
    states, starts, end = SIDES[side]
    own = {(state, event): target for (state, event), target in TRANSITIONS.items() if isinstance(state, states)}
    leaving = [state for state, event in own if event is ClientEvent.ABORT]
    over: Enum = ClientState.DEAD
    reason = "abort, a failed check or a crash"
    if side == "server":
        leaving, over = [state for state in states if any(source is state for source, _ in own)], ServerState.ABORTED
        reason = "too few answers, or a secret or a sum that cannot be"
    inside = [state for state in states if state in leaving and state is not over]
    lines = ["```mermaid", "stateDiagram-v2", '    state "attempt under way" as under_way {']
    lines += [f"        {state.name}: {state.value}" for state in inside]
    lines += [f"        [*] --> {state.name}" for state in starts]
    lines += [
        f"        {source.name} --> {target.name}: {event.value}"
        for (source, event), target in own.items()
        if source in inside and target in inside
    ]
    lines += ["    }", *(f"    {state.name}: {state.value}" for state in (end, over))]
    lines += [
        f"    {source.name} --> {target.name}: {event.value}"
        for (source, event), target in own.items()
        if target is end
    ]
    return "\n".join([*lines, f"    under_way --> {over.name}: {reason}", "```"])


def with_diagrams(page: str) -> str:
    """Return the page with what stands between its markers replaced by the present diagrams."""
    for side in SIDES:
        start, stop = f"<!-- {side} diagram -->\n", f"\n<!-- end of {side} diagram -->"
        before, _, rest = page.partition(start)
        _, _, after = rest.partition(stop)
        if not after:
            raise SystemExit(f"{PAGE} has no markers for the diagram of the {side}")
        page = before + start + diagram(side) + stop + after
    return page


def main() -> None:
    """Write the page."""
    PAGE.write_text(with_diagrams(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
