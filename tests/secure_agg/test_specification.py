"""The specification and the code name the same labels, states and limits."""

import re
from pathlib import Path

import secure_agg
from secure_agg.reconstruction import MAX_ATTEMPTS
from secure_agg.transitions import CLIENT_TRANSITIONS, ClientEvent

CODE = "\n".join(path.read_text() for path in Path(secure_agg.__file__).parent.glob("*.py"))
PAGE = (Path(__file__).parent.parent.parent / "docs" / "secure-aggregation.md").read_text()


def test_every_label_of_the_code_is_specified():
    in_code = set(re.findall(r'"fedmvp/([a-z0-9-]+)/v1"', CODE))
    assert len(in_code) > 15
    assert in_code <= set(re.findall(r"\*\*([a-z-]+)\*\*", PAGE))


def test_the_table_of_states_is_the_one_in_the_code():
    rows = re.findall(r"^\| ([a-z ]+) \| ([a-z_]+) \| ([a-z ]+) \|$", PAGE, re.M)
    table = {(state.value, event.value): new.value for (state, event), new in CLIENT_TRANSITIONS.items()}
    forward = {key: new for key, new in table.items() if key[1] != ClientEvent.ABORT.value}
    assert {(state, event): new for state, event, new in rows if event in {e.value for e in ClientEvent}} == forward


def test_the_limit_of_the_search_for_liars_is_the_one_in_the_code():
    assert f"at most {MAX_ATTEMPTS:,} for one owner" in PAGE
