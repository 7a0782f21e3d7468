"""Wherever an epsilon is printed, its delta, unit, neighbouring relation and accountant are printed with it."""

from __future__ import annotations

import csv
import json
import re

import pytest

from fedmvp.cli.program import as_user_error
from fedmvp.client.budget import budget_check
from fedmvp.client.runner import _Runner
from fedmvp.rpc.v1 import aggregation_pb2
from fedmvp.server.service import AggregationService
from fedmvp.study.config import load_client_config
from fedmvp.study.consortium import open_consortium
from fedmvp.study.credentials import load_study
from privacy.errors import BudgetExceeded
from privacy.ledger import Ledger
from tests.cli.test_claim_audit_export import SHARED, TEMPLATE, charged, install, released
from tests.cli.test_ledger_status_predict import RECEIPT, ROUND, STARTED, write_events
from tests.cli.test_program import CLIENT_COMMANDS, SERVER_COMMANDS
from tests.server.test_records import receipt

__all__ = ["charged", "released"]  # fixtures

PARTS = {
    "delta": r"1e-05",
    "unit": r"\brecord\b",
    "relation": r"add-or-remove-one|adding or removing one",
    "accountant": r"PLD|Renyi filter at order|RDP of summed",
}
LIMITS = {"epsilon_max", "study_epsilon_max", "target_epsilon"}
SILENT = {"fedmvp-client init", "fedmvp-server init", "fedmvp-server revoke", "fedmvp-server renew"}
"""Commands that know of no mechanism yet, or of none any more."""


def check_text(text: str) -> None:
    """Assert that a text that speaks of epsilon says what it means."""
    assert "epsilon" in text.lower()
    missing = [name for name, pattern in PARTS.items() if not re.search(pattern, text)]
    assert not missing, f"an epsilon without its {', '.join(missing)}"


def check_json(value: object, known: frozenset[str] = frozenset()) -> int:
    """Assert the same of a document: each part stands beside the number, or around it; how many numbers there were."""
    found = 0
    if isinstance(value, dict):
        known = known | {name for name, part in value.items() if part not in (None, "")}
        needed = {"delta", "unit", "neighboring_relation", "accountant"}
        numbers = [name for name in value if name.startswith("epsilon") and name not in LIMITS]
        for name in numbers:
            rows = value[name] if isinstance(value[name], list) else [{}]
            if any("epsilon" not in row for row in rows):  # else each row is looked at below
                assert needed <= known, f"{name} without its {', '.join(sorted(needed - known))}"
                found += 1
        found += sum(check_json(part, known) for part in value.values())
    elif isinstance(value, list):
        found += sum(check_json(part, known) for part in value)
    return found


def client(site, *arguments):
    return ("fedmvp-client", arguments[0], "--config", site.config, *arguments[1:])


AUDIT = ("audit", "--rounds", "1", "--canaries", "20", "--confidence", "0.999999")
SHOWN = {
    "fedmvp-client ledger": lambda study, site: client(site, "ledger"),
    "fedmvp-client claim": lambda study, site: client(site, "claim"),
    "fedmvp-client check": lambda study, site: client(site, "check", "--offline"),
    "fedmvp-client audit": lambda study, site: client(site, *AUDIT),
    "fedmvp-server plan": lambda study, site: ("fedmvp-server", "plan", "--study", study.folder),
    "fedmvp-server status": lambda study, site: ("fedmvp-server", "status", "--config", study.server_config),
}


@pytest.mark.parametrize("name", SHOWN)
def test_every_command_that_shows_an_epsilon_says_what_it_means(run, study, charged, name):
    site, _, _ = charged
    write_events(study, STARTED, ROUND | {"receipts": {"1": RECEIPT}})
    command = SHOWN[name](study, site)
    shown = run(*command)
    assert shown.code == 0, shown.err
    check_text(shown.out)
    assert check_json(json.loads(run(*command, "--format", "json").out)) > 0


def test_the_noise_for_a_target_epsilon_is_printed_with_what_it_means(run, study):
    command = ("fedmvp-server", "plan", "--study", study.folder, "--target-epsilon", "4")
    check_text(run(*command).err)
    assert check_json(json.loads(run(*command, "--format", "json").out)) == 1


def test_what_a_consortium_signs_and_a_site_agrees_to_says_what_it_means(run, study, site):
    check_text(run("fedmvp-server", "enroll", "--study", study.folder).err)
    package = study.folder / "consortium" / "packages" / "site-1.json"
    root = open_consortium(study.folder).root_fingerprint
    check_text(run("fedmvp-client", "join", package, "--root", root, "--config", site.config).out)


def test_the_limit_of_a_new_ledger_says_what_it_means(run, site):
    for path in site.folder.glob("ledger.sqlite*"):
        path.unlink()
    check_text(run("fedmvp-client", "ledger", "--config", site.config, "create").err)


def test_an_export_says_what_each_epsilon_means(run, charged, tmp_path):
    site, _, _ = charged
    for name in ("a.json", "a.csv"):
        assert run("fedmvp-client", "ledger", "--config", site.config, "export", tmp_path / name).code == 0
    assert check_json(json.loads((tmp_path / "a.json").read_text())) == 3
    with (tmp_path / "a.csv").open(newline="") as file:
        charges = [row for row in csv.DictReader(file) if row["kind"] == "charge"]
    assert [check_json(dict(row)) for row in charges] == [1, 1]


def test_a_prediction_says_what_the_epsilon_of_its_prompts_means(run, released, site):
    prompts, _ = released()
    check_text(run("fedmvp-client", "predict", site.data / "cat" / "1.png", "--prompts", prompts).err)


def test_after_another_mechanism_the_plan_names_the_accountants_of_records_and_of_study(run, study, charged):
    site, _, _ = charged
    install(study, site, TEMPLATE.replace('run_id = "run-1"', 'run_id = "run-2"').replace("= 2.0 ", "= 3.0 "))
    shown = run(*client(site, "check", "--offline")).out
    check_text(shown)
    assert re.search(r"Renyi filter at order \d+, of this study by dp_accounting", shown)


@pytest.mark.parametrize("limit", ["the ledger", "the site", "the study"])
def test_a_refusal_of_the_budget_says_what_its_epsilon_means(site, tmp_path, limit):
    config = load_client_config(site.config, environment={})
    policy = load_study(config.study).policy
    small = {"update": {"epsilon_max": 0.5}}
    if limit == "the site":
        config = config.model_copy(update={"privacy": config.privacy.model_copy(**small)})
    if limit == "the study":
        policy = policy.model_copy(update={"privacy": policy.privacy.model_copy(**small)})
    budget = 0.5 if limit == "the ledger" else 8.0
    with Ledger.create(tmp_path / "l.db", dataset_id="records-1", delta=1e-5, epsilon_max=budget) as ledger:
        parameters = policy.privacy_parameters(1)
        check = budget_check(config, policy, ledger, parameters)

        def run_the_study():
            for number in range(1, 21):
                check()
                ledger.reserve("run-1", number, parameters, policy.hash)

        with pytest.raises(BudgetExceeded) as refused:
            run_the_study()
    check_text(as_user_error(refused.value).what)


def test_a_site_that_runs_says_what_the_epsilon_it_spent_means(site):
    said: list[dict[str, object]] = []
    runner = object.__new__(_Runner)

    class Here:
        policy = load_study(load_client_config(site.config, environment={}).study).policy
        site_id = 1

        def report(self, event, **fields):
            said.append(fields)

    class Gone:
        def submit_receipt(self, receipt):
            said.append({})

    with Ledger.open(site.folder / "ledger.sqlite") as ledger:
        ledger.reserve("run-1", 1, Here.policy.privacy_parameters(1), Here.policy.hash).consume()
        Here.ledger = ledger
        runner._site = Here()
        runner._send_receipt(Gone(), 1)
    assert check_json(said) == 1


def test_every_message_on_the_wire_with_an_epsilon_has_the_other_parts_too():
    with_epsilon = [
        message
        for message in aggregation_pb2.DESCRIPTOR.message_types_by_name.values()
        if "epsilon" in message.fields_by_name
    ]
    assert [message.name for message in with_epsilon] == ["SubmitReceiptRequest", "SiteStatus"]
    for message in with_epsilon:
        assert check_json(dict.fromkeys(message.fields_by_name, "filled")) == 1


@pytest.mark.parametrize("stated", [receipt(), None], ids=["receipt", "none"])
def test_the_status_of_a_site_repeats_its_receipt(stated):
    class Service:
        _tracker = _roster = _lobby = _coordinator = None

        def __getattr__(self, name):
            raise AssertionError(name)

    service = Service()
    service._tracker = type("T", (), {"latest": lambda self, site: stated})()
    service._roster = type("R", (), {"entry": lambda self, site: type("E", (), {"name": "site-1"})()})()
    service._lobby = type("L", (), {"present": {1}})()
    service._coordinator = type("C", (), {"last_round_of": lambda self, site: 3})()
    status = AggregationService._site_status(service, 1)
    assert status.has_receipt is (stated is not None)
    for name in ("epsilon", "delta", "unit", "neighboring_relation", "accountant"):
        assert getattr(status, name) == (getattr(stated, name) if stated else type(getattr(status, name))())


def test_no_command_that_shows_an_epsilon_was_forgotten():
    every = {f"fedmvp-client {name}" for name in CLIENT_COMMANDS} | {
        f"fedmvp-server {name}" for name in SERVER_COMMANDS
    }
    elsewhere = {"fedmvp-client join", "fedmvp-client predict", "fedmvp-client run", "fedmvp-server enroll"}
    elsewhere |= {"fedmvp-client export", "fedmvp-server export"}  # test_export_command.py
    without = {"fedmvp-server run"}  # counts rounds
    assert every == set(SHOWN) | SILENT | elsewhere | without


@pytest.mark.parametrize("part", PARTS)
def test_control_an_epsilon_without_one_part_fails_the_same_check(run, charged, part):
    site, _, _ = charged
    text = run(*client(site, "claim")).out
    with pytest.raises(AssertionError, match=f"an epsilon without its {part}"):
        check_text(re.sub(PARTS[part], "-", text))


@pytest.mark.parametrize("part", ["delta", "unit", "neighboring_relation", "accountant"])
def test_control_a_document_without_one_part_fails_the_same_check(run, charged, part):
    site, _, _ = charged
    document = json.loads(run(*client(site, "claim", "--format", "json")).out)
    del document[part]
    with pytest.raises(AssertionError, match=f"without its {part}"):
        check_json(document)


def test_a_policy_names_its_accountant_in_every_mode(run, study, site):
    install(study, site, SHARED)
    check_text(run("fedmvp-server", "plan", "--study", study.folder).out)
