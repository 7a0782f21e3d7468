from __future__ import annotations

import json
import shutil
import socket

import pytest
from PIL import Image

from fedmvp.errors import ExitCode
from fedmvp.study import identity
from fedmvp.study.config import load_client_config
from fedmvp.study.consortium import enrol, open_consortium
from fedmvp.study.credentials import load_study
from fedmvp.study.enrolment import parse_request
from privacy import accountant
from privacy.ledger import Ledger


def check(run, site, *options, **environment):
    result = run(
        "fedmvp-client", "check", "--config", site.config, "--offline", "--format", "json", *options, **environment
    )
    return result, json.loads(result.out)


def problems(answer):
    return {item["subject"]: item for item in answer["findings"] if item["verdict"] == "problem"}


def test_a_site_in_order_has_no_problem(run, site):
    result, answer = check(run, site)
    assert result.code == 0
    assert answer["ok"] is True
    assert problems(answer) == {}
    subjects = [item["subject"] for item in answer["findings"] if item["verdict"] == "ok"]
    study = ["root key", "policy", "roster", "identity", "certificate"]
    assert subjects == ["configuration", *study, "data", "delta", "ledger", "budget", "compute"]


def test_epsilon_is_printed_by_round_with_what_it_means(run, site):
    _, answer = check(run, site)
    budget = answer["budget"]
    assert (budget["delta"], budget["unit"], budget["neighboring_relation"]) == (1e-5, "record", "add-or-remove-one")
    assert (budget["rounds_planned"], budget["rounds_affordable"]) == (20, 20)
    rows = budget["epsilon_by_round"]
    assert [row["round"] for row in rows] == sorted({row["round"] for row in rows})
    assert (rows[0]["round"], rows[-1]["round"]) == (1, 20)
    assert [row["records"] for row in rows] == sorted(row["records"] for row in rows)
    text = run("fedmvp-client", "check", "--config", site.config, "--offline")
    title = f"Epsilon at delta 1e-05, adding or removing one record; {accountant.ACCOUNTANT}; limit 8"
    assert title in text.out
    assert budget["accountant"] == budget["study_accountant"] == accountant.ACCOUNTANT
    assert "ready to run" in text.err


def test_the_table_of_epsilon_is_what_the_ledger_then_charges(run, site):
    _, before = check(run, site)
    policy = load_study(load_client_config(site.config, environment={}).study).policy
    with Ledger.open(site.folder / "ledger.sqlite") as ledger:
        for number in (1, 2, 3):
            ledger.reserve("run-1", number, policy.privacy_parameters(1), policy.hash).consume()
        spent = ledger.spent().epsilon
    planned = {row["round"]: row["records"] for row in before["budget"]["epsilon_by_round"]}
    _, after = check(run, site)
    now = {row["round"]: row["records"] for row in after["budget"]["epsilon_by_round"]}
    assert now[3] == pytest.approx(spent, rel=1e-6)
    assert now[20] == pytest.approx(planned[20], rel=1e-3)


def test_a_budget_that_ends_early_is_a_warning_that_names_the_round(run, site):
    site.edit("epsilon_max = 8.0", "epsilon_max = 1.5")
    result, answer = check(run, site)
    last = answer["budget"]["rounds_affordable"]
    assert result.code == 0
    assert 1 <= last < 20
    warning = next(item for item in answer["findings"] if item["subject"] == "budget")
    assert (warning["verdict"], warning["detail"]) == ("warning", f"ends after round {last} of 20")
    costs = {row["round"]: row["records"] for row in answer["budget"]["epsilon_by_round"]}
    assert costs[last] <= 1.5 < costs[20]


def test_a_budget_too_small_for_one_round_is_a_problem(run, site):
    site.edit("epsilon_max = 8.0", "epsilon_max = 0.1")
    result, answer = check(run, site)
    assert result.code == ExitCode.BUDGET
    assert "round 1 would pass the limit of epsilon 0.1" in problems(answer)["budget"]["detail"]


def test_every_problem_is_named_in_one_visit(run, site):
    (site.folder / "tls.key").chmod(0o640)
    (site.folder / "study" / "policy.toml.sig").write_text("00")
    (site.folder / "ledger.sqlite").unlink()
    site.edit('device = "auto"', 'device = "cuda:99"')
    result, answer = check(run, site)
    found = problems(answer)
    assert set(found) == {"policy", "identity", "certificate", "ledger", "compute"}
    assert result.code == ExitCode.IDENTITY
    assert all(item["remedy"] for item in found.values())


def test_classes_without_images_and_folders_without_a_class_are_all_named(run, site):
    shutil.rmtree(site.data / "cat")
    (site.data / "dog" / "1.png").unlink()
    (site.data / "horse").mkdir()
    result, answer = check(run, site)
    assert result.code == ExitCode.CONFIG
    detail = problems(answer)["data"]["detail"]
    assert "no class of the study: horse" in detail
    assert "no images of: cat, dog" in detail


def test_a_site_with_some_of_the_classes_may_say_so(run, site):
    shutil.rmtree(site.data / "cat")
    assert "data" in problems(check(run, site)[1])
    site.edit("require_every_class = true", "require_every_class = false")
    assert problems(check(run, site)[1]) == {}


def test_a_missing_data_folder_is_named(run, site):
    shutil.rmtree(site.data)
    assert str(site.data) in problems(check(run, site)[1])["data"]["detail"]


def test_a_manifest_with_an_unknown_class_is_named_by_its_line(run, site):
    Image.new("RGB", (4, 4)).save(site.data / "a.png")
    listing = site.data / "list.csv"
    listing.write_text("image,label\na.png,cat\na.png,dgo\n")
    site.edit('kind = "image-folder"', 'kind = "manifest"')
    _, answer = check(run, site, FEDMVP_DATA_PATH=str(listing))
    assert "line 3" in problems(answer)["data"]["detail"]
    assert "did you mean 'dog'?" in problems(answer)["data"]["remedy"]


def test_the_ledger_of_another_data_set_is_refused(run, site):
    site.edit('dataset_id = "records-1"', 'dataset_id = "records-2"')
    result, answer = check(run, site)
    assert result.code == ExitCode.LEDGER
    assert "belongs to data set 'records-1'" in problems(answer)["ledger"]["detail"]


def test_a_certificate_near_its_end_is_a_warning(run, site, study, monkeypatch):
    monkeypatch.setattr(identity, "CERTIFICATE_DAYS", 10)
    consortium = open_consortium(study.folder)
    request = parse_request((site.folder / "request.json").read_bytes(), source="request")
    enrol(consortium, [request], server=None)
    shutil.copy(consortium.folder / "certificates" / "site-1.pem", site.folder / "study" / "site.pem")
    result, answer = check(run, site)
    assert result.code == 0
    found = next(item for item in answer["findings"] if item["subject"] == "certificate")
    assert (found["verdict"], found["detail"]) == ("warning", "expires in 9 days")


def test_a_server_that_is_not_there_is_a_problem_with_its_code(run, site):
    with socket.socket() as taken:  # bound and not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        result = run(
            "fedmvp-client", "check", "--config", site.config, "--format", "json",
            FEDMVP_SERVER_ADDRESS=f"127.0.0.1:{port}",
        )  # fmt: skip
    assert result.code == ExitCode.NETWORK
    assert f"127.0.0.1:{port} cannot be reached" in problems(json.loads(result.out))["server"]["detail"]


def test_people_see_each_remedy_below_its_problem(run, site):
    (site.folder / "identity.key").chmod(0o604)
    result = run("fedmvp-client", "check", "--config", site.config, "--offline")
    lines = result.out.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("problem"))
    assert "identity" in lines[place]
    assert lines[place + 1].strip().startswith("remedy: chmod 600")
    assert "1 problem to put right before a run" in result.err


def test_a_cache_key_that_others_can_read_is_a_problem_unless_nothing_is_cached(run, site):
    key = site.folder / "cache.key"
    key.write_bytes(bytes(32))
    key.chmod(0o644)
    result, answer = check(run, site)
    assert result.code == ExitCode.IDENTITY
    assert "cache key" in problems(answer)["compute"]["detail"]
    assert f"chmod 600 {key}" in problems(answer)["compute"]["remedy"]
    result, answer = check(run, site, FEDMVP_COMPUTE_CACHE_MAX_GB="0")
    assert result.code == 0
    assert problems(answer) == {}
    key.chmod(0o600)
    result, _ = check(run, site)
    assert result.code == 0
