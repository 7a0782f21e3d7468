"""The protocol as a list of facts: every case of cases/ holds, and the runner notices one that does not."""

from collections import Counter
from copy import deepcopy

import pytest

from secure_agg import errors
from secure_agg.transitions import Step
from tests.vectors.runner import ANSWERED, OPERATIONS, RECEIVED, error_class, key, load, run

CASES = load()
NEGATIVE = [case for case in CASES if "error" in case["expect"]]
CALLS = [case for case in CASES if case["what"].partition(".")[0] in {"client", "server"}]


def falsified(case):
    """The case with an expectation that cannot hold."""
    wrong = deepcopy(case)
    if "error" in case["expect"]:
        wrong["expect"]["says"] += " on a day that never was"
    else:
        wrong["expect"]["value"] = [case["expect"]["value"], "and more"]
    return wrong


def opposite(case):
    """The case with a success expected for a refusal, and a refusal for a success."""
    refused = "error" in case["expect"]
    expect = {"value": True} if refused else {"error": "RemoteProtocolError", "peer": None, "says": ""}
    return deepcopy(case) | {"expect": expect}


@pytest.mark.parametrize("case", CASES, ids=[f"{case['file']}: {case['name']}" for case in CASES])
def test_the_case_holds(case):
    run(case)


@pytest.mark.parametrize("change", [falsified, opposite])
@pytest.mark.parametrize("refused", [True, False], ids=["a refusal", "a value"])
@pytest.mark.parametrize("file", sorted({case["file"] for case in CASES}))
def test_the_runner_notices_a_case_that_does_not_hold(file, refused, change):
    case = next(case for case in CASES if case["file"] == file and ("error" in case["expect"]) is refused)
    run(case)
    with pytest.raises(AssertionError):
        run(change(case))


@pytest.mark.parametrize("part", ["error", "peer"])
def test_the_runner_notices_the_wrong_error_and_the_wrong_site_blamed(part):
    case = next(case for case in NEGATIVE if case["expect"].get("peer") == 12)
    wrong = deepcopy(case)
    wrong["expect"][part] = {"error": "LocalProtocolError", "peer": 13}[part]
    run(case)
    with pytest.raises(AssertionError):
        run(wrong)


def test_the_runner_notices_the_wrong_step():
    case = next(case for case in NEGATIVE if case["step"] == Step.UNMASK)
    with pytest.raises(AssertionError):
        run(case | {"step": str(Step.PUBLISH)})


@pytest.mark.parametrize("edited", [case for case in CALLS if case["in"].get("edits")], ids=lambda case: case["name"])
def test_without_its_edits_no_message_is_refused(edited):
    unedited = deepcopy(edited)
    unedited["in"].pop("edits")
    unedited["in"].pop("get", None)
    OPERATIONS[edited["what"]](unedited["in"])


def test_no_two_cases_state_the_same_fact():
    assert [fact for fact, count in Counter(map(key, CASES)).items() if count > 1] == []
    assert max(Counter(case["name"] for case in CASES).values()) == 1


def test_there_are_enough_cases_and_most_of_them_are_refusals():
    # Counted strictly: "PeerKeys.adverts (twice)" is a fact of its own, but the same field as "PeerKeys.adverts".
    plainly = {(step, outcome, field.partition(" ")[0]) for step, outcome, field in map(key, CASES)}
    assert len(plainly) >= 250
    assert len(CASES) >= 400
    assert len(NEGATIVE) >= 0.6 * len(CASES)


def test_every_step_and_every_error_class_occurs():
    raised = {name for name, item in vars(errors).items() if isinstance(item, type)} - {"SecureAggregationError"}
    assert {str(step) for step in Step} <= {case["step"] for case in NEGATIVE}
    assert raised <= {case["expect"]["error"] for case in NEGATIVE}
    assert all(issubclass(error_class(case["expect"]["error"]), Exception) for case in NEGATIVE)


def test_every_call_of_both_sides_refuses_and_answers_in_some_case():
    calls = {f"server.{name}" for name in RECEIVED} | {f"client.{name}" for name in ANSWERED}
    assert calls <= {case["what"] for case in NEGATIVE}
    assert calls <= {case["what"] for case in CASES if case not in NEGATIVE}


def test_a_refusal_says_why_and_whom_it_blames():
    assert all(case["expect"]["says"] for case in NEGATIVE)
    assert all("peer" in case["expect"] for case in NEGATIVE if case["expect"]["error"] == "RemoteProtocolError")
