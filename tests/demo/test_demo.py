"""The demo's own parts: its split, its check of the sums, its display and its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from demo.__main__ import federate, prepare, print_outcome
from demo.digits import NAMES, PUBLIC_IMAGES, write_digits
from demo.modes import CHANGES, DEFAULT_MODE, TRUST, chosen_mode, policy_text
from demo.outcome import Outcome, check_sums
from demo.references import LabelledFeatures, nonprivate_accuracy, probe_accuracy
from demo.report import SamplePrediction, headline, write_report
from demo.watch import Display, EventTail, Progress
from fedmvp.errors import UserError
from fedmvp.evaluation.accuracy import Accuracy
from fedmvp.model.features import extract_features
from fedmvp.model.from_policy import build_prompted_model
from fedmvp.model.parameters import dimension
from fedmvp.study.policy import parse_policy
from privacy.accountant import composition, epsilon
from privacy.ledger import PrivacySpent
from privacy.mechanism import SubsampledGaussian
from secure_agg.policy import SecureSumPolicy

ROOT = Path(__file__).resolve().parents[2]
POLICY = SecureSumPolicy.from_range(value_range=4.0, colluders=1, min_cohort=3, min_honest=2, max_cohort=8, dimension=5)
SITES = {1: "site-1", 2: "site-2", 3: "site-3"}


def write_round(folder: Path, *, spoil: int = 0) -> None:
    """One round of three sites; `spoil` is added to one coordinate of the published sum."""
    vectors = {site: np.array([site, 0, 2**32 - site, 7, 2**20], dtype=np.uint32) for site in SITES}
    total = np.sum(list(vectors.values()), axis=0, dtype=np.uint32)
    total[1] += spoil
    for site, vector in vectors.items():
        (folder / SITES[site]).mkdir(parents=True)
        np.save(folder / SITES[site] / "sent-00004.npy", vector)
        np.savez(folder / SITES[site] / "published-00004.npz", total=total, survivors=np.array([1, 2, 3]))


def test_an_exact_published_sum_has_no_error(tmp_path: Path) -> None:
    write_round(tmp_path)

    assert check_sums(tmp_path, POLICY, SITES) == (0.0, 1)


def test_a_published_sum_that_is_off_by_one_unit_is_found(tmp_path: Path) -> None:
    write_round(tmp_path, spoil=1)

    assert check_sums(tmp_path, POLICY, SITES) == (2.0**-POLICY.fraction_bits, 1)


def test_a_survivor_that_wrote_nothing_down_is_not_passed_over(tmp_path: Path) -> None:
    write_round(tmp_path)
    (tmp_path / "site-2" / "sent-00004.npy").unlink()

    with pytest.raises(FileNotFoundError):
        check_sums(tmp_path, POLICY, SITES)


def test_no_image_is_at_two_parties_and_every_party_has_every_class(tmp_path: Path) -> None:
    folders = write_digits(tmp_path, 4)
    parties = [{path.name for path in folder.glob("*/*.png")} for folder in (folders.public, *folders.sites)]

    assert len(parties[0]) == PUBLIC_IMAGES
    assert [len(party) for party in parties[1:]] == [1000] * 4
    assert len(set.union(*parties)) == sum(len(party) for party in parties) == 5000
    for folder in (folders.public, *folders.sites):
        assert {path.name for path in folder.iterdir() if any(path.iterdir())} == set(NAMES)


def test_the_demos_policy_is_valid_and_stays_within_its_own_budget() -> None:
    policy = parse_policy((ROOT / "demo" / "policy.toml").read_bytes())
    privacy = policy.privacy
    steps = policy.study.rounds * policy.training.local_steps
    mechanism = SubsampledGaussian(privacy.sample_rate, privacy.noise_multiplier, steps)

    assert policy.task.class_names == NAMES
    assert policy.secure_sum(10).threshold(4) == 3
    assert policy.secure_sum(10).min_honest == 2
    assert epsilon([mechanism], privacy.delta) <= privacy.epsilon_max <= 8.0


@pytest.mark.parametrize("mode", list(CHANGES))
def test_the_demos_policy_in_every_mode_stays_within_its_own_budget(mode: str) -> None:
    policy = parse_policy(policy_text(mode).encode())
    cost = policy.privacy_parameters(4096).mechanism

    assert policy.privacy.mode == mode
    assert 7.8 < composition([cost] * policy.study.rounds, policy.privacy.delta) <= policy.privacy.epsilon_max == 8.0
    assert policy.secure_sum(4096).threshold(4) == 3


def test_the_default_is_the_policy_on_disk() -> None:
    assert policy_text(DEFAULT_MODE).encode() == (ROOT / "demo" / "policy.toml").read_bytes()


def test_the_mode_comes_from_the_option_then_the_environment_then_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODE", "silo-distributed")
    assert chosen_mode("record-distributed") == "record-distributed"
    assert chosen_mode(None) == "silo-distributed"
    monkeypatch.setenv("MODE", "")
    assert chosen_mode(None) == DEFAULT_MODE == "record-local"
    monkeypatch.setenv("MODE", "UNSAFE-no-dp")
    with pytest.raises(UserError, match="UNSAFE-no-dp") as caught:
        chosen_mode(None)
    assert "record-distributed" in caught.value.remedy


@pytest.mark.parametrize("mode", list(CHANGES))
def test_the_references_run_in_every_mode_and_the_probe_pays_what_the_study_pays(mode: str, tmp_path: Path) -> None:
    policy = parse_policy(policy_text(mode).replace("rounds = 60", "rounds = 2").encode())
    model = build_prompted_model(policy)
    images = torch.randint(0, 256, (12, 3, model.backbone.image_size, model.backbone.image_size), dtype=torch.uint8)
    site = LabelledFeatures(extract_features(model, images), torch.arange(12) % 10)
    probe, paid = probe_accuracy(policy, model, [site] * 4, site, tmp_path)
    plain = nonprivate_accuracy(policy, model, [site] * 4, site, tmp_path)

    assert probe.total == plain.total == 12
    assert paid == pytest.approx(composition([policy.privacy_parameters(4096).mechanism] * 2, 1e-5), rel=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("mode", ["record-distributed", "silo-distributed"])
def test_a_short_demo_runs_through_in_every_distributed_mode(mode: str, tmp_path: Path) -> None:
    prepared = prepare(tmp_path, policy_text(mode).replace("rounds = 60", "rounds = 4"))
    progress, _ = federate(tmp_path, prepared.study, killed_in_round=2)
    model = build_prompted_model(prepared.study.policy)
    names = {entry.site_id: entry.name for entry in prepared.study.roster.entries}

    assert progress.mode == mode
    assert len(progress.rounds_seen) == 4
    assert check_sums(tmp_path / "sums", prepared.study.policy.secure_sum(dimension(model)), names) == (0.0, 4)


def test_an_event_that_is_still_being_written_is_read_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)

    assert tail.read() == []
    path.write_text('{"event": "a"}\n{"event"')
    assert tail.read() == [{"event": "a"}]
    with path.open("a") as file:
        file.write(': "b"}\n')
    assert tail.read() == [{"event": "b"}]


TERMS = {"delta": 1e-5, "unit": "record", "accountant": "PLD"}


def round_event(number: int, dropped: list[int]) -> dict[str, Any]:
    return {
        "event": "round",
        "round": number,
        "accuracy": 0.7,
        "accuracy_interval": [0.6, 0.8],
        "dropped": dropped,
        "survivors": [site for site in (1, 2) if site not in dropped],
        "seconds_by_phase": {"training": 0.2, "unmask": 0.1},
        "bytes_up_by_site": {"1": 10, "2": 30},
        "receipts": {"1": {"epsilon": 1.5, **TERMS}, "2": {"epsilon": "2.5", **TERMS}},
    }


def outcome(**changes: Any) -> Outcome:
    spent = PrivacySpent(2.5, 1e-5, "add-or-remove-one", "record", "accountant", 2, 2)
    values: dict[str, Any] = {
        "zero_shot": Accuracy(500, 1000),
        "tuned": Accuracy(700, 1000),
        "nonprivate": Accuracy(800, 1000),
        "probe": Accuracy(650, 1000),
        "probe_epsilon": 2.4,
        "spent": {"site-1": spent, "site-2": spent},
        "rounds": [round_event(1, []), round_event(2, [2])],
        "dropped": (("site-2", 2),),
        "max_abs_sum_error": 0.0,
        "rounds_checked": 2,
        "seconds": 12.0,
        "dimension": 99,
        "names": {"1": "site-1", "2": "site-2"},
    }
    return Outcome(**{**values, **changes})


def test_the_display_learns_epsilon_and_losses_from_the_events() -> None:
    progress = Progress(rounds=2)
    progress.take({"event": "run-started", "accuracy": 0.5, "sites": {"1": "site-1", "2": "site-2"}})
    progress.take(round_event(1, [2]))

    assert progress.epsilon_by_site == {"site-1": 1.5, "site-2": 2.5}
    assert progress.terms == "at delta 1e-05, adding or removing one record; PLD"
    assert "without site-2" in progress.notes[0]
    assert not progress.finished


def test_a_run_that_the_server_gave_up_is_an_error_with_its_reason() -> None:
    with pytest.raises(UserError, match="too few sites"):
        Progress(rounds=2).take({"event": "run-failed", "reason": "too few sites", "remedy": "start them"})


def test_the_summary_has_the_keys_that_scripts_read() -> None:
    summary = json.loads(json.dumps(outcome().summary()))

    assert summary["rounds_completed"] == 2
    assert summary["dropped_client_rounds"] == 1
    assert summary["epsilon"] == max(summary["epsilon_by_site"].values())
    assert summary["bytes_up_per_client"] == 40
    for key in ("zero_shot_accuracy", "tuned_accuracy", "nonprivate_accuracy", "delta", "max_abs_sum_error", "seconds"):
        assert key in summary


@pytest.mark.parametrize(("correct", "claimed"), [(700, True), (520, False), (400, False)])
def test_a_gain_is_claimed_only_beyond_the_intervals(correct: int, claimed: bool) -> None:
    sentence = headline(outcome(tuned=Accuracy(correct, 1000)))

    assert ("beyond the 95 % intervals" in sentence) is claimed
    assert ("no gain is shown" in sentence) is not claimed


def test_the_readme_shows_the_tables_that_the_demo_prints(capsys: pytest.CaptureFixture[str]) -> None:
    print_outcome(outcome(), Path("runs/demo"))
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = [line.split() for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()]
    heads = [line for line in printed if line[:1] in (["model"], ["site"], ["Public"], ["Budgets,"])]

    assert len(heads) == 4
    assert [head for head in heads if head not in shown] == []
    for label in ("zero-shot", "tuned prompts, private", "without privacy (UNSAFE-no-dp)", "private linear probe"):
        words = label.split()
        assert [line for line in printed if line[: len(words)] == words]
        assert [line for line in shown if line[: len(words)] == words]


@pytest.mark.parametrize("mode", list(CHANGES))
def test_what_an_epsilon_stands_on_is_told_beside_it(
    mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unit = "site" if mode == "silo-distributed" else "record"
    spent = PrivacySpent(2.5, 1e-5, "add-or-remove-one", unit, "some accountant", 2, 2)
    one = outcome(mode=mode, spent={"site-1": spent, "site-2": spent})
    print_outcome(one, Path("runs/demo"))
    printed = " ".join(capsys.readouterr().out.split())
    write_report(tmp_path / "report.html", one, [])
    page = (tmp_path / "report.html").read_text()
    summary = one.summary()

    assert (TRUST[mode] in printed) is (mode != DEFAULT_MODE)
    assert "some accountant" in printed
    assert TRUST[mode].replace("'", "&#x27;") in page
    assert f"mode {mode}" in headline(one)
    assert (summary["mode"], summary["trust"], summary["accountant"]) == (mode, TRUST[mode], "some accountant")


def test_a_distributed_mode_is_in_every_line_of_progress_and_the_default_adds_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = {}
    for mode in CHANGES:
        progress = Progress(rounds=2)
        progress.take({"event": "run-started", "accuracy": 0.5, "sites": {"1": "site-1"}, "mode": mode})
        Display(progress).refresh(force=True)
        lines[mode] = json.loads(capsys.readouterr().err)

    assert "mode" not in lines[DEFAULT_MODE]
    assert all(line["mode"] == mode for mode, line in lines.items() if mode != DEFAULT_MODE)


def test_a_return_is_told_only_when_the_site_is_in_a_later_sum() -> None:
    gone = [round_event(1, []), round_event(2, [2])]

    assert "did not come back" in outcome(rounds=gone).dropouts()[0]
    assert "from round 3 on" in outcome(rounds=[*gone, round_event(3, [])]).dropouts()[0]


def test_the_page_holds_everything_inside_and_escapes_what_it_shows(tmp_path: Path) -> None:
    image = tmp_path / "one.png"
    image.write_bytes(b"\x89PNG")
    write_report(tmp_path / "report.html", outcome(), [SamplePrediction(image, "<one>", "two", "<one>", 0.9)])
    page = (tmp_path / "report.html").read_text()

    assert "<one>" not in page.replace("&lt;one&gt;", "")
    assert 'src="data:image/png;base64,' in page
    assert page.count("<svg") == 3
    assert 'src="http' not in page
    assert "<script" not in page
