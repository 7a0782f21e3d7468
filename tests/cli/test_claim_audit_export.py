"""claim, audit, ledger export and plan, and the refusals of units and deltas that do not fit."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from PIL import Image

from fedmvp.cli import audit as audit_module
from fedmvp.cli.audit import STEPS_A_MINUTE, rounds_in_a_minute
from fedmvp.cli.plan import plan_study
from fedmvp.client.delta import require_small_delta
from fedmvp.errors import ExitCode, UserError
from fedmvp.model import from_policy, parameters
from fedmvp.study.calibration import calibrate
from fedmvp.study.config import load_client_config
from fedmvp.study.consortium import enrol, open_consortium
from fedmvp.study.credentials import load_study
from fedmvp.study.policy import parse_policy
from fedmvp.study.prompts import write_prompts
from fedmvp.study.site import join
from fedmvp.study.templates import policy_template
from privacy import accountant
from privacy.audit import canaries
from privacy.chain import parse, verify
from privacy.ledger import Ledger
from tests.model.tiny import tiny_backbone

TEMPLATE = policy_template("run-1")
LOCAL = 'mode = "record-local" '
SHARED = (
    TEMPLATE.replace(LOCAL, 'mode = "record-distributed" ')
    .replace("local_steps = 5 ", "local_steps = 1 ")
    .replace("ring_bits = 32", "ring_bits = 64")
)
SILO = (
    SHARED.replace('"record-distributed"', '"silo-distributed"')
    .replace('unit = "record"', 'unit = "site"')
    .replace("noise_multiplier = 2.0", "noise_multiplier = 8.0")
)
TIGHT = SHARED.replace("ring_bits = 64", "ring_bits = 32").replace("value_range = 4.0", "value_range = 127.0")
PATIENT = TEMPLATE.replace('unit = "record"', 'unit = "patient"')
UNSAFE = TEMPLATE.replace(LOCAL, 'mode = "UNSAFE-no-dp" ').replace("epsilon_max = 8.0", "epsilon_max = inf")


@pytest.fixture
def charged(site):
    policy = load_study(load_client_config(site.config, environment={}).study).policy
    with Ledger.open(site.folder / "ledger.sqlite") as ledger:
        for number in (1, 2):
            ledger.mark_attempt("run-1", number, 1)
            ledger.reserve("run-1", number, policy.privacy_parameters(1), policy.hash).consume()
        return site, ledger.spent(), ledger.head


def install(study, site, text):
    """Let the consortium sign another policy, and the site join with it."""
    consortium = open_consortium(study.folder)
    (consortium.folder / "policy.toml").write_text(text)
    enrol(consortium, [], server=None)
    package = consortium.folder / "packages" / "site-1.json"
    join(site.config, package, root_fingerprint=consortium.root_fingerprint)


def command(run, site, *arguments):
    return run("fedmvp-client", arguments[0], "--config", site.config, *arguments[1:])


def test_the_claim_shows_spending_trust_coverage_and_the_head(run, charged):
    site, spent, head = charged
    card = json.loads(command(run, site, "claim", "--format", "json").out)
    assert (card["dataset_id"], card["run_id"], card["stamp"]) == ("records-1", "run-1", "record-local")
    assert card["epsilon_spent"] == spent.epsilon
    assert (card["ledger_head"], card["rounds_charged"], card["rounds_planned"]) == (head.hex(), 2, 20)
    text = command(run, site, "claim").out
    for part in ("add-or-remove-one", "nobody", "all runs on this dataset", head.hex(), "k = 2", spent.accountant):
        assert part in text


def test_the_claim_is_shown_beside_a_running_client_and_changes_nothing(run, charged):
    site, _, head = charged
    with Ledger.open(site.folder / "ledger.sqlite") as ledger:
        assert command(run, site, "claim").code == 0
        assert ledger.head == head


def test_a_claim_without_a_ledger_is_one_message(run, site):
    (site.folder / "ledger.sqlite").unlink()
    result = command(run, site, "claim")
    assert (result.code, result.out) == (ExitCode.LEDGER, "")
    assert "Traceback" not in result.err


def test_a_claim_under_a_study_of_another_unit_is_refused_with_both_units(run, study, site):
    install(study, site, PATIENT)
    result = command(run, site, "claim")
    assert (result.code, result.out) == (ExitCode.LEDGER, "")
    assert "protects one patient at delta 1e-05" in result.err
    assert "created for one record" in result.err


@pytest.mark.parametrize(("text", "unit"), [(PATIENT, "patient"), (SILO, "site")], ids=["patient", "site"])
def test_a_ledger_is_created_for_the_unit_of_the_study_and_for_no_other(run, study, site, text, unit):
    for path in site.folder.glob("ledger.sqlite*"):
        path.unlink()
    install(study, site, text)
    refused = run("fedmvp-client", "ledger", "--config", site.config, "create", "--unit", "record")
    assert refused.code == ExitCode.USAGE
    assert f"--unit record does not fit: the study protects one {unit}" in refused.err
    assert not (site.folder / "ledger.sqlite").exists()
    made = run("fedmvp-client", "ledger", "--config", site.config, "create", "--unit", unit)
    assert made.code == 0, made.err
    with Ledger.open(site.folder / "ledger.sqlite", read_only=True) as ledger:
        assert ledger.unit == unit
    card = json.loads(command(run, site, "claim", "--format", "json").out)
    assert (card["unit"], card["group"]) == (unit, "")


def test_check_refuses_a_study_of_another_unit_than_the_ledger(run, study, site):
    install(study, site, PATIENT)
    answer = json.loads(command(run, site, "check", "--offline", "--format", "json").out)
    found = {item["subject"]: item for item in answer["findings"] if item["verdict"] == "problem"}
    assert "protects one patient" in found["budget"]["detail"]
    assert "does not say whose image each one is" in found["delta"]["detail"]


def test_check_refuses_a_delta_above_one_over_ten_times_the_sites_own_records(run, study, site):
    install(study, site, TEMPLATE.replace("delta = 1e-5", "delta = 0.009"))
    for number in range(2, 7):  # twelve images: one over 120
        for name in ("cat", "dog"):
            Image.new("RGB", (8, 8)).save(site.data / name / f"{number}.png")
    answer = json.loads(command(run, site, "check", "--offline", "--format", "json").out)
    found = {item["subject"]: item for item in answer["findings"] if item["verdict"] == "problem"}
    assert "delta = 0.009 of the study is above 0.00833" in found["delta"]["detail"]
    assert found["delta"]["exit_code"] == ExitCode.BUDGET


def test_the_largest_permitted_delta_is_one_over_ten_times_the_units():
    policy = parse_policy(TEMPLATE.encode())
    require_small_delta(policy, 10_000)
    with pytest.raises(UserError, match="above"):
        require_small_delta(policy, 10_001)
    require_small_delta(parse_policy(UNSAFE.encode()), 10_001)


def test_an_exported_ledger_holds_every_field_and_its_hashes_can_be_computed_again(run, charged, tmp_path):
    site, spent, head = charged
    result = run("fedmvp-client", "ledger", "--config", site.config, "export", tmp_path / "spent.json")
    assert (result.code, result.out) == (0, f"{tmp_path / 'spent.json'}\n")
    document = json.loads((tmp_path / "spent.json").read_text())
    assert document["total"]["epsilon"] == spent.epsilon

    def entries(document):
        encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
        return [
            parse(
                item["seq"], item["kind"], encode(item["body"]).encode(), bytes.fromhex(item["previous"]),
                bytes.fromhex(item["hash"]),
            )
            for item in document["entries"]
        ]  # fmt: skip

    chain = entries(document)
    verify(chain)
    assert chain[-1].hash == head
    assert [str(entry.kind) for entry in chain] == ["created", "attempt", "charge", "attempt", "charge"]
    document["entries"][2]["body"]["noise_multiplier"] *= 2
    with pytest.raises(Exception, match="does not match its hash"):
        entries(document)


def test_an_exported_table_has_a_line_for_each_entry_and_a_column_for_each_field(run, charged, tmp_path):
    site, _, head = charged
    assert run("fedmvp-client", "ledger", "--config", site.config, "export", tmp_path / "spent.csv").code == 0
    with (tmp_path / "spent.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with Ledger.open(site.folder / "ledger.sqlite", read_only=True) as ledger:
        stored = ledger.entries()
    assert len(rows) == len(stored)
    for row, entry in zip(rows, stored, strict=True):
        assert (row["hash"], row["previous"], row["kind"]) == (entry.hash.hex(), entry.previous.hex(), str(entry.kind))
        assert {name: row[name] for name in entry.body} == {name: str(value) for name, value in entry.body.items()}
    assert rows[-1]["hash"] == head.hex()


@pytest.mark.parametrize("name", ["spent.json", "spent.csv"])
def test_an_export_overwrites_nothing(run, charged, tmp_path, name):
    (tmp_path / name).write_text("mine")
    result = run("fedmvp-client", "ledger", "--config", charged[0].config, "export", tmp_path / name)
    assert (result.code, result.out) == (ExitCode.USAGE, "")
    assert "exists already" in result.err
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [("spent.xlsx", ExitCode.USAGE, "neither .json nor .csv"), ("nowhere/spent.json", ExitCode.CONFIG, "No such file")],
)
def test_an_export_to_what_cannot_be_is_one_message(run, charged, tmp_path, *, name, code, message):
    result = run("fedmvp-client", "ledger", "--config", charged[0].config, "export", tmp_path / name)
    assert (result.code, result.out) == (code, "")
    assert message in result.err


def test_the_ledger_is_exported_beside_a_running_client(run, charged, tmp_path):
    site, _, _ = charged
    with Ledger.open(site.folder / "ledger.sqlite"):
        assert run("fedmvp-client", "ledger", "--config", site.config, "export", tmp_path / "a.json").code == 0


def test_the_ledger_tells_how_many_rounds_are_left(run, charged):
    site, _, _ = charged
    assert json.loads(command(run, site, "ledger", "--format", "json").out)["rounds_remaining"] == 18
    site.edit("epsilon_max = 8.0", "epsilon_max = 1.2")
    left = json.loads(command(run, site, "ledger", "--format", "json").out)["rounds_remaining"]
    assert 0 < left < 18


def test_a_ledger_is_shown_without_a_study_too(run, charged):
    site, spent, _ = charged
    (site.folder / "study" / "policy.toml").unlink()
    answer = json.loads(command(run, site, "ledger", "--format", "json").out)
    assert answer["epsilon"] == spent.epsilon
    assert answer["rounds_remaining"].startswith("not known")


def audited(run, site, *arguments):
    chosen = ("--rounds", "2", "--canaries", "60", "--confidence", "0.999999")  # a sound one fails once in a million
    result = command(run, site, "audit", *chosen, "--format", "json", *arguments)
    return result, json.loads(result.out) if result.out else None


def test_an_audit_prints_its_bound_beside_the_claim_and_that_it_proves_nothing(run, charged):
    site, _, head = charged
    result, answer = audited(run, site)
    assert result.code == 0, result.err
    (report,) = answer["audits"]
    policy = parse_policy(TEMPLATE.encode())
    assert report["epsilon_claimed"] == accountant.composition([policy.privacy_parameters(1).mechanism] * 2, 1e-5)
    assert report["epsilon_lower"] <= report["epsilon_claimed"]
    assert (report["confidence"], report["canaries"], answer["contradicts_claim"]) == (0.999999, 60, False)
    assert "2 of 20 rounds" in report["audited"]
    assert "PROVES NOTHING" in answer["note"]
    assert "PROVES NOTHING" in result.err
    with Ledger.open(site.folder / "ledger.sqlite") as ledger:
        assert ledger.head == head


def test_an_audit_of_a_mechanism_without_noise_contradicts_the_claim_by_its_exit_code(run, charged, monkeypatch):
    """The control: the same command on an engine whose noise was taken away."""
    site, _, head = charged
    genuine = canaries._released_sum

    def without_noise(params, rounds, included, canary_norm, *, ledger, progress):
        genuine(params, rounds, included, canary_norm, ledger=ledger, progress=progress)  # charged as usual
        return included.astype(np.float64)

    monkeypatch.setattr(canaries, "_released_sum", without_noise)
    result, answer = audited(run, site, "--confidence", "0.95")
    assert result.code == ExitCode.AUDIT
    assert answer["contradicts_claim"] is True
    assert answer["audits"][0]["epsilon_lower"] > answer["audits"][0]["epsilon_claimed"]
    assert "CLAIM IS CONTRADICTED" in result.err
    with Ledger.open(site.folder / "ledger.sqlite", read_only=True) as ledger:
        assert ledger.head == head


def test_an_audit_for_people_states_bound_claim_and_confidence(run, charged):
    result = command(run, charged[0], "audit", "--rounds", "1", "--canaries", "20", "--confidence", "0.999999")
    assert result.code == 0, result.err
    for part in ("epsilon lower", "epsilon claimed", "confidence", "20 invented records", "contradicts claim"):
        assert part in result.out


def test_the_rounds_of_an_audit_fit_into_a_minute_and_are_at_least_one():
    policy = parse_policy(TEMPLATE.encode())
    assert rounds_in_a_minute(policy, 1000) == 20  # the whole study
    long = parse_policy(TEMPLATE.replace("rounds = 20", "rounds = 5000").encode())
    assert rounds_in_a_minute(long, 1000) == STEPS_A_MINUTE // 5
    assert rounds_in_a_minute(long, 2000) == STEPS_A_MINUTE // 20
    assert rounds_in_a_minute(long, 20000) == 1


@pytest.mark.parametrize(("text", "mode"), [(SHARED, "record-distributed"), (SILO, "silo-distributed")])
def test_a_distributed_mechanism_is_not_audited_at_one_site_and_the_message_says_why(run, study, site, text, mode):
    install(study, site, text)
    result, answer = audited(run, site)
    assert (result.code, answer) == (ExitCode.USAGE, None)
    assert f"mode {mode} cannot be audited at one site" in result.err
    assert "a share of the noise only" in result.err
    assert "--prompts FILE --held-out IMAGES" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "p"], "--prompts and --held-out belong together"),
        (["--held-out", "p"], "--prompts and --held-out belong together"),
        (["--confidence", "1"], "does not lie between 0 and 1"),
        (["--confidence", "nan"], "does not lie between 0 and 1"),
        (["--canaries", "1"], "1 is not in the range"),
        (["--rounds", "0"], "0 is not in the range"),
    ],
)
def test_an_audit_that_makes_no_sense_is_one_message(run, site, arguments, message):
    result = command(run, site, "audit", *arguments)
    assert (result.code, result.out) == (ExitCode.USAGE, "")
    assert message in result.err


SMALL = TEMPLATE.replace("n_prompts = 16", "n_prompts = 4").replace("n_heads = 4", "n_heads = 2")


@pytest.fixture
def released(site, tmp_path, monkeypatch):
    """A released module for a tiny backbone, and a folder of held-out images; returns a function for other policies."""
    monkeypatch.setattr(from_policy, "load_backbone", lambda _spec, **_options: tiny_backbone())
    for name, shade in (("cat", 20), ("dog", 120)):
        (tmp_path / "other" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (16, 16), (shade + number, 9, 9)).save(tmp_path / "other" / name / f"{number}.png")

    def make(text=SMALL):
        policy = parse_policy(text.encode())
        vector = parameters.get_vector(from_policy.build_prompted_model(policy))
        write_prompts(tmp_path / "p.safetensors", vector, policy, round_number=3)
        return tmp_path / "p.safetensors", tmp_path / "other"

    return make


def test_a_released_module_is_attacked_beside_its_claim_and_nothing_is_written(run, site, released):
    prompts, other = released()
    before = {path: path.read_bytes() for path in site.folder.rglob("*") if path.is_file()}
    result, answer = audited(run, site, "--prompts", prompts, "--held-out", other)
    assert result.code == 0, result.err
    report = answer["audits"][1]
    assert (report["members"], report["nonmembers"], report["unit"]) == (2, 4, "record")
    mechanism = parse_policy(SMALL.encode()).privacy_parameters(1).mechanism
    assert report["epsilon_claimed"] == accountant.composition([mechanism] * 3, 1e-5)
    assert 0 <= report["auc_low"] <= report["auc"] <= report["auc_high"] <= 1
    assert {path: path.read_bytes() for path in site.folder.rglob("*") if path.is_file()} == before


def test_a_module_that_remembers_contradicts_its_claim(run, site, released, monkeypatch):
    """The control: losses that give every member away are beyond any claim so small."""
    prompts, other = released()

    def losses(_config, _prompts, _datasets):
        return [np.zeros(2000), np.ones(2000)]

    monkeypatch.setattr(audit_module, "_losses", losses)
    result, answer = audited(run, site, "--prompts", prompts, "--held-out", other)
    assert result.code == ExitCode.AUDIT
    assert answer["audits"][1]["epsilon_lower"] > answer["audits"][1]["epsilon_claimed"]


def test_in_a_distributed_mode_the_module_alone_is_audited(run, study, site, released):
    install(study, site, SHARED)
    prompts, other = released(SMALL.replace(LOCAL, 'mode = "record-distributed" ').replace(
        "local_steps = 5 ", "local_steps = 1 ").replace("ring_bits = 32", "ring_bits = 64"))  # fmt: skip
    result, answer = audited(run, site, "--prompts", prompts, "--held-out", other)
    assert result.code == 0, result.err
    assert len(answer["audits"]) == 1
    assert "left out: the mechanism of mode record-distributed" in result.err


def test_a_module_that_protects_whole_sites_is_not_attacked_by_images(run, study, site, released):
    install(study, site, SILO)
    prompts, other = released(SILO.replace("n_prompts = 16", "n_prompts = 4").replace("n_heads = 4", "n_heads = 2"))
    result, answer = audited(run, site, "--prompts", prompts, "--held-out", other)
    assert (result.code, answer) == (ExitCode.USAGE, None)
    assert "protects whole sites" in result.err


def test_a_module_that_protects_patients_is_attacked_by_patient(run, site, released):
    prompts, other = released(SMALL.replace('unit = "record"', 'unit = "patient"'))
    result, _ = audited(run, site, "--prompts", prompts, "--held-out", other)
    assert result.code == ExitCode.CONFIG
    assert "does not say whose image each one is" in result.err
    for folder, files in ((site.data, ["cat/1.png", "dog/1.png"]), (other, ["cat/0.png", "cat/1.png", "dog/0.png"])):
        owners = ["a", "b", "b"]
        rows = [f"{name},{name[:3]},{owner}" for name, owner in zip(files, owners, strict=False)]
        (folder / "list.csv").write_text("\n".join(["image,label,patient", *rows]) + "\n")
    site.edit('kind = "image-folder"', 'kind = "manifest"')
    site.edit(f'"{site.data}"', f'"{site.data / "list.csv"}"')
    result, answer = audited(run, site, "--prompts", prompts, "--held-out", other / "list.csv")
    assert result.code == 0, result.err
    report = answer["audits"][1]
    assert (report["members"], report["nonmembers"], report["unit"]) == (2, 2, "patient")


@pytest.mark.parametrize("where", ["nowhere", "empty"])
def test_held_out_images_that_are_not_there_are_one_message(run, site, released, tmp_path, where):
    prompts, _ = released()
    (tmp_path / "empty").mkdir()
    result, answer = audited(run, site, "--prompts", prompts, "--held-out", tmp_path / where)
    assert (result.code, answer) == (ExitCode.CONFIG, None)
    assert str(tmp_path / where) in result.err


def test_predict_shows_the_claim_of_its_module_in_one_line(run, released, site):
    prompts, _ = released()
    result = run("fedmvp-client", "predict", site.data / "cat" / "1.png", "--prompts", prompts, "--format", "json")
    (line,) = [line for line in result.err.splitlines() if line.startswith("claim: ")]
    assert "at delta 1e-05 per record (add-or-remove-one), record-local, after 3 rounds" in line
    assert json.loads(result.out)["claim"] == line


def test_the_plan_of_a_study_is_the_accountants_curve(run, study):
    answer = json.loads(run("fedmvp-server", "plan", "--study", study.folder, "--format", "json").out)
    mechanism = study.policy.privacy_parameters(1).mechanism
    curve = accountant.curve(mechanism, 20, 1e-5)
    assert {row["round"]: row["epsilon"] for row in answer["epsilon_by_round"]}.items() <= dict(
        enumerate(curve, start=1)
    ).items()
    assert (answer["epsilon_by_round"][0]["round"], answer["epsilon_by_round"][-1]["round"]) == (1, 20)
    text = run("fedmvp-server", "plan", "--study", study.folder / "consortium").out
    meaning = f"at delta 1e-05, adding or removing one record; {accountant.ACCOUNTANT}"
    assert f"Epsilon {meaning}; mode record-local; limit 8" in text


@pytest.mark.parametrize("text", [TEMPLATE, SHARED, SILO], ids=["local", "distributed", "silo"])
def test_a_calibrated_multiplier_reaches_its_target_and_hardly_less(text):
    policy = parse_policy(text.encode())
    multiplier = calibrate(policy, 4.0)

    def reached(noise):
        section = policy.privacy.model_copy(update={"noise_multiplier": noise})
        return plan_study(policy.model_copy(update={"privacy": section})).lines[-1][1]

    assert reached(multiplier) <= 4.0 < reached(multiplier * 0.99)


def test_the_plan_prints_a_multiplier_that_can_be_pasted(run, tmp_path):
    (tmp_path / "policy.toml").write_text(TEMPLATE)
    result = run("fedmvp-server", "plan", "--policy", tmp_path / "policy.toml", "--target-epsilon", "2")
    assert result.code == 0, result.err
    assert float(result.out) == calibrate(parse_policy(TEMPLATE.encode()), 2.0)
    assert "write it as [privacy] noise_multiplier" in result.err


@pytest.mark.parametrize(
    ("text", "target", "code", "message"),
    [
        (TEMPLATE, "0", ExitCode.USAGE, "target_epsilon must be positive"),
        (TEMPLATE, "nan", ExitCode.USAGE, "target_epsilon must be positive"),
        (UNSAFE, "2", ExitCode.CONFIG, "has no noise to calibrate"),
        ("hello", "2", ExitCode.CONFIG, "policy.toml"),
        (TIGHT, "0.02", ExitCode.CONFIG, "does not fit the policy"),
    ],
    ids=["zero", "nan", "unsafe", "no policy", "no room"],
)
def test_a_plan_that_cannot_be_is_one_message(run, tmp_path, *, text, target, code, message):
    (tmp_path / "policy.toml").write_text(text)
    result = run("fedmvp-server", "plan", "--policy", tmp_path / "policy.toml", "--target-epsilon", target)
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert "internal error" not in result.err


def test_a_plan_without_privacy_says_infinity(run, tmp_path):
    (tmp_path / "policy.toml").write_text(UNSAFE)
    answer = json.loads(run("fedmvp-server", "plan", "--policy", tmp_path / "policy.toml", "--format", "json").out)
    assert {row["epsilon"] for row in answer["epsilon_by_round"]} == {"inf"}
    assert all(math.isinf(value) for _, value in plan_study(parse_policy(UNSAFE.encode())).lines)


def test_enrolling_shows_epsilon_by_round_before_anything_is_signed(run, study):
    consortium = study.folder / "consortium"
    (consortium / "policy.toml").write_text(TEMPLATE.replace("epsilon_max = 8.0", "epsilon_max = 1.0"))
    result = run("fedmvp-server", "enroll", "--study", study.folder)
    assert result.code == 0
    assert result.err.index("Epsilon at delta 1e-05") < result.err.index("signed policy")
    assert "warning: sites will stop before round" in result.err
