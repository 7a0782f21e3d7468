"""The state diagrams of the specification are drawn from the table that the sessions use."""

import pytest

from secure_agg.transitions import TRANSITIONS, ClientEvent, ClientState
from tools import state_diagram


def test_the_diagrams_of_the_page_are_those_of_the_table():
    page = state_diagram.PAGE.read_text(encoding="utf-8")
    assert state_diagram.with_diagrams(page) == page


@pytest.mark.parametrize("side", state_diagram.SIDES)
def test_every_transition_that_goes_on_is_drawn(side):
    states, _, _ = state_diagram.SIDES[side]
    drawn = state_diagram.diagram(side)
    for (source, event), target in TRANSITIONS.items():
        if isinstance(source, states) and event is not ClientEvent.ABORT:
            assert f"{source.name} --> {target.name}: {event.value}" in drawn


def test_a_transition_that_is_added_to_the_table_changes_the_page(monkeypatch):
    page = state_diagram.PAGE.read_text(encoding="utf-8")
    monkeypatch.setitem(TRANSITIONS, (ClientState.INPUT_SENT, ClientEvent.CONFIRMATIONS), ClientState.REVEALED)
    assert state_diagram.with_diagrams(page) != page


def test_a_page_without_markers_is_refused():
    with pytest.raises(SystemExit, match="no markers"):
        state_diagram.with_diagrams("# A page without diagrams\n")
