from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import numpy as np
import pytest

from fedmvp.client.trainer import build_trainer, choose_device
from fedmvp.errors import ExitCode, UserError
from fedmvp.study.config import load_client_config
from fedmvp.study.credentials import load_study
from fedmvp.study.policy import parse_policy
from fedmvp.study.prompts import read_prompts, write_prompts
from privacy.ledger import Ledger
from tests.cli.conftest import PROMPTS_POLICY, picture


@pytest.fixture
def charged(site):
    policy = load_study(load_client_config(site.config, environment={}).study).policy
    with Ledger.open(site.folder / "ledger.sqlite") as ledger:
        for number in (1, 2):
            ledger.reserve("run-1", number, policy.privacy_parameters(1), policy.hash).consume()
        return site, ledger.spent(), ledger.head


def test_the_ledger_is_shown_with_everything_an_epsilon_needs(run, charged):
    site, spent, head = charged
    result = run("fedmvp-client", "ledger", "--config", site.config, "--format", "json")
    answer = json.loads(result.out)
    assert result.err == ""
    assert answer["epsilon"] == spent.epsilon > 0
    assert (answer["delta"], answer["unit"], answer["neighboring_relation"]) == (1e-5, "record", "add-or-remove-one")
    assert answer["accountant"] == spent.accountant
    assert answer["head"] == head.hex()
    assert (answer["rounds"], answer["steps"]) == (2, 10)
    assert [entry["kind"] for entry in answer["entries"]] == ["created", "charge", "charge"]
    assert answer["entries"][2]["epsilon_after"] == pytest.approx(spent.epsilon)


def test_the_ledger_as_a_table_names_adjacency_delta_and_accountant(run, charged):
    site, spent, head = charged
    out = run("fedmvp-client", "ledger", "--config", site.config).out
    for part in ("add-or-remove-one", "1e-05", spent.accountant, head.hex(), f"{spent.epsilon:.6g}"):
        assert part in out


def test_the_ledger_can_be_shown_beside_a_running_site(run, charged):
    site, _, head = charged
    with Ledger.open(site.folder / "ledger.sqlite"):
        assert run("fedmvp-client", "ledger", "--config", site.config, "verify").out == head.hex() + "\n"


def test_a_changed_ledger_does_not_verify(run, charged):
    site, _, _ = charged
    with closing(sqlite3.connect(site.folder / "ledger.sqlite")) as database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {name}")
        (table,) = database.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'entr%'"
        ).fetchone()
        database.execute(f"DELETE FROM {table} WHERE rowid = (SELECT max(rowid) FROM {table})")
        database.commit()
    result = run("fedmvp-client", "ledger", "--config", site.config, "verify")
    assert result.code == ExitCode.LEDGER
    assert result.out == ""


@pytest.mark.parametrize("command", [["ledger"], ["ledger", "create"], ["ledger", "verify"], ["claim"]])
def test_a_ledger_in_a_folder_that_cannot_be_entered_is_one_message_with_its_remedy(run, site, monkeypatch, command):
    def refuse(_path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("privacy.storage._exists", refuse)  # nothing refuses root
    result = run("fedmvp-client", command[0], "--config", site.config, *command[1:])
    assert (result.code, result.out) == (ExitCode.LEDGER, "")
    what, remedy = result.err.splitlines()
    assert what.startswith(f"error: the ledger {site.folder / 'ledger.sqlite'} ")
    assert what.endswith(": Permission denied")
    assert remedy.startswith(f"remedy: run as the user who owns {site.folder}")


def write_events(study, *events):
    state = study.folder / "server" / "state"
    state.mkdir()
    lines = [json.dumps({"time": 1_800_000_000.0 + place, **event}) for place, event in enumerate(events)]
    (state / "events.jsonl").write_text("\n".join(lines) + "\n" + '{"event": "torn')


RECEIPT = {
    "epsilon": 1.25, "delta": 1e-5, "neighboring_relation": "add-or-remove-one", "unit": "record",
    "mode": "record-local", "accountant": "PLD-1",
}  # fmt: skip
STARTED = {"event": "run-started", "accuracy": 0.5}
ROUND = {
    "event": "round", "round": 1, "survivors": [1, 2], "dropped": [3], "accuracy": 0.625, "receipts": {"1": RECEIPT},
}  # fmt: skip
PHASE = {"event": "phase", "round": 2, "phase": "masked_input"}


def test_status_folds_the_events_into_one_answer(run, study):
    write_events(study, STARTED, ROUND, {"event": "round-aborted", "round": 2}, PHASE)
    result = run("fedmvp-server", "status", "--config", study.server_config, "--format", "json")
    answer = json.loads(result.out)
    assert (answer["run_id"], answer["mode"]) == ("run-1", "record-local")
    assert (answer["rounds_completed"], answer["rounds_planned"], answer["rounds_aborted"]) == (1, 20, 1)
    assert (answer["phase"], answer["accuracy_at_start"], answer["accuracy"]) == ("masked_input", 0.5, 0.625)
    assert answer["last_event"] == "2027-01-15T08:00:03+00:00"
    by_round = [{"round": 1, **RECEIPT}]
    assert answer["sites"]["site-1"] == {"rounds": 1, "dropped": 0, "privacy": RECEIPT, "epsilon_by_round": by_round}
    assert answer["sites"]["site-3"] == {"rounds": 0, "dropped": 1, "privacy": {}, "epsilon_by_round": []}


@pytest.mark.parametrize(
    ("last", "state"), [("run-finished", "finished"), ("run-stopped", "stopped"), ("run-failed", "failed")]
)
def test_status_tells_how_a_run_ended(run, study, last, state):
    write_events(study, STARTED, {"event": last}, STARTED, ROUND, {"event": last})
    answer = run("fedmvp-server", "status", "--config", study.server_config, "--format", "json").out
    assert json.loads(answer)["state"] == state


def test_status_of_a_run_that_was_started_again_is_not_its_old_end(run, study):
    write_events(study, STARTED, {"event": "run-stopped"}, STARTED, ROUND)
    answer = run("fedmvp-server", "status", "--config", study.server_config, "--format", "json").out
    assert json.loads(answer)["state"].startswith("running")


def test_status_for_people_shows_epsilon_with_its_delta_and_adjacency(run, study):
    write_events(study, STARTED, ROUND)
    out = run("fedmvp-server", "status", "--config", study.server_config).out
    line = next(line for line in out.splitlines() if line.startswith("site-1"))
    assert line.split() == [
        "site-1", "1", "0", "1.25", "1e-05", "add-or-remove-one", "record", "record-local", "PLD-1",
    ]  # fmt: skip


def test_status_names_a_site_whose_ledger_went_back(run, study):
    write_events(study, STARTED, ROUND | {"receipts": {"1": RECEIPT | {"ledger_went_back": True}}})
    out = run("fedmvp-server", "status", "--config", study.server_config).out
    assert [line.split()[0] for line in out.splitlines() if "ledger went back" in line] == ["site-1"]


def test_status_with_a_damaged_log_is_one_message(run, study):
    state = study.folder / "server" / "state"
    state.mkdir()
    (state / "events.jsonl").write_text("hello\n")
    result = run("fedmvp-server", "status", "--config", study.server_config)
    assert result.code == ExitCode.CONFIG
    assert "cannot be read as events" in result.err


def test_predict_prints_classes_with_probabilities_that_sum_to_one(run, prompts, tmp_path):
    image = picture(tmp_path / "a.png")
    result = run("fedmvp-client", "predict", image, "--prompts", prompts, "--format", "json")
    assert result.code == 0, result.err
    answer = json.loads(result.out)
    assert (answer["stamp"], answer["round"], answer["unreadable"]) == ("record-local", 3, [])
    (shown,) = answer["images"]
    assert shown["image"] == str(image)
    assert {item["name"] for item in shown["classes"]} == {"cat", "dog"}
    values = [item["probability"] for item in shown["classes"]]
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1.0, abs=1e-5)


def test_predict_uses_the_parameters_of_the_file(run, prompts, tmp_path):
    image = picture(tmp_path / "a.png")
    before = run("fedmvp-client", "predict", image, "--prompts", prompts, "--format", "json").out
    values = read_prompts(prompts).parameters
    write_prompts(prompts, values + np.random.default_rng(0).normal(0, 2, values.shape), PROMPTS_POLICY, round_number=3)
    after = run("fedmvp-client", "predict", image, "--prompts", prompts, "--format", "json").out
    assert json.loads(before)["images"] != json.loads(after)["images"]


def test_predict_for_people_is_a_table_for_each_image(run, prompts, tmp_path):
    images = [picture(tmp_path / "a.png"), picture(tmp_path / "b.png", (0, 0, 90))]
    result = run("fedmvp-client", "predict", *images, "--prompts", prompts, "--top", "1")
    assert [line for line in result.out.splitlines() if line.strip() in {str(path) for path in images}]
    assert sum(line.split()[0] in {"cat", "dog"} for line in result.out.splitlines() if line.split()) == 2


def test_predict_with_parameters_of_another_model_is_refused(run, prompts, tmp_path):
    write_prompts(prompts, np.zeros(5, np.float32), PROMPTS_POLICY, round_number=1)
    result = run("fedmvp-client", "predict", picture(tmp_path / "a.png"), "--prompts", prompts)
    assert result.code == ExitCode.CONFIG
    assert "does not fit its own policy" in result.err


def test_predict_on_what_is_no_image_is_refused(run, prompts, tmp_path):
    (tmp_path / "a.png").write_text("hello")
    result = run("fedmvp-client", "predict", tmp_path / "a.png", "--prompts", prompts)
    assert result.code == ExitCode.CONFIG
    assert f"image {tmp_path / 'a.png'} cannot be decoded" in result.err


def test_predict_says_when_prompts_were_trained_without_privacy(run, prompts, tmp_path):
    text = PROMPTS_POLICY.document.decode().replace('mode = "record-local" ', 'mode = "UNSAFE-no-dp" ')
    unsafe = parse_policy(text.replace("epsilon_max = 8.0", "epsilon_max = inf").encode())
    write_prompts(prompts, read_prompts(prompts).parameters, unsafe, round_number=1)
    result = run("fedmvp-client", "predict", picture(tmp_path / "a.png"), "--prompts", prompts)
    assert result.code == 0
    assert "UNSAFE-no-dp: trained without differential privacy" in result.err


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cpu:0", ""])
def test_predict_on_what_is_no_device_is_refused(run, prompts, tmp_path, device):
    result = run("fedmvp-client", "predict", picture(tmp_path / "a.png"), "--prompts", prompts, "--device", device)
    assert result.code == ExitCode.USAGE
    assert f"error: --device {device!r} is not a device" in result.err


@pytest.mark.parametrize("device", ["cuda", "cuda:99", "mps"])
def test_predict_on_a_device_that_is_not_there_is_refused(run, prompts, tmp_path, monkeypatch, device):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    result = run("fedmvp-client", "predict", picture(tmp_path / "a.png"), "--prompts", prompts, "--device", device)
    assert result.code == ExitCode.CONFIG
    assert f"error: device {device} is not on this machine" in result.err


def test_a_device_beyond_those_of_the_machine_is_refused_and_auto_takes_the_fastest(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [choose_device(wanted) for wanted in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda", "cuda", "cuda:1", "cpu"]
    with pytest.raises(UserError, match="2 CUDA devices"):
        choose_device("cuda:2")


def test_a_run_on_a_device_that_is_not_there_stops_before_anything_is_loaded(site, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = load_client_config(site.config, overrides={"compute.device": "cuda:99"})
    with pytest.raises(UserError, match="cuda:99 is not on this machine"):
        build_trainer(config, PROMPTS_POLICY, None)
