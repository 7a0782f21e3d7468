from __future__ import annotations

import datetime
import json
import shutil

import pytest

from fedmvp.errors import ExitCode
from fedmvp.study import identity
from fedmvp.study.consortium import enrol, open_consortium
from fedmvp.study.enrolment import parse_request


def one_mistake(result, code, *messages):
    assert result.code == code, result.err
    assert result.err.count("error: ") == 1
    assert result.err.count("remedy: ") == 1
    assert "Traceback" not in result.err
    for message in messages:
        assert message in result.err


def package(study, name="site-1"):
    return study.folder / "consortium" / "packages" / f"{name}.json"


def test_a_wrong_root_fingerprint_is_refused(run, study):
    config = study.site_configs["site-1"]
    result = run("fedmvp-client", "join", package(study), "--root", "ab" * 32, "--config", config)
    one_mistake(result, ExitCode.IDENTITY, "not the one you gave")


def test_a_short_root_fingerprint_is_refused(run, study):
    config = study.site_configs["site-1"]
    result = run("fedmvp-client", "join", package(study), "--root", "abcd", "--config", config)
    one_mistake(result, ExitCode.USAGE, "is not a root fingerprint")


def test_a_missing_package_is_named(run, study, tmp_path):
    config = study.site_configs["site-1"]
    result = run("fedmvp-client", "join", tmp_path / "p.json", "--root", "ab" * 32, "--config", config)
    one_mistake(result, ExitCode.CONFIG, f"study package {tmp_path / 'p.json'} does not exist")


def test_a_changed_package_is_refused(run, study):
    content = json.loads(package(study).read_text())
    content["policy"] = content["policy"].replace("noise_multiplier = 2.0", "noise_multiplier = 1.0")
    package(study).write_text(json.dumps(content))
    config = study.site_configs["site-1"]
    result = run("fedmvp-client", "join", package(study), "--root", study.root_fingerprint, "--config", config)
    one_mistake(result, ExitCode.IDENTITY, "does not carry a valid signature")


def test_a_run_without_a_study_says_to_join(run, tmp_path):
    arguments = ("--name", "a", "--organisation", "A", "--data", "d", "--dataset-id", "x", "--epsilon-max", "8")
    assert run("fedmvp-client", "init", tmp_path / "site", *arguments).code == 0
    result = run("fedmvp-client", "run", "--config", tmp_path / "site" / "client.toml")
    one_mistake(result, ExitCode.CONFIG, "[server] address is empty", "fedmvp-client join PACKAGE")


def test_a_ledger_before_the_study_says_to_join(run, tmp_path):
    arguments = ("--name", "a", "--organisation", "A", "--data", "d", "--dataset-id", "x", "--epsilon-max", "8")
    assert run("fedmvp-client", "init", tmp_path / "site", *arguments).code == 0
    result = run("fedmvp-client", "ledger", "--config", tmp_path / "site" / "client.toml", "create")
    one_mistake(result, ExitCode.CONFIG, "root.pub does not exist", "fedmvp-client join PACKAGE")


def test_a_run_with_a_readable_key_is_refused(run, site):
    (site.folder / "identity.key").chmod(0o644)
    result = run("fedmvp-client", "run", "--config", site.config)
    one_mistake(result, ExitCode.IDENTITY, "has mode 0644", "chmod 600")


def test_a_run_with_a_changed_policy_is_refused(run, site):
    policy = site.folder / "study" / "policy.toml"
    policy.write_text(policy.read_text().replace("rounds = 20", "rounds = 2000"))
    result = run("fedmvp-client", "run", "--config", site.config)
    one_mistake(result, ExitCode.IDENTITY, f"{policy} does not carry a valid signature")


def test_a_run_with_an_expired_certificate_is_refused(run, site, study, monkeypatch):
    consortium = open_consortium(study.folder)
    path = site.folder / "request.json"
    monkeypatch.setattr(identity, "CERTIFICATE_DAYS", 0)
    enrol(consortium, [parse_request(path.read_bytes(), source="request")], server=None)
    shutil.copy(consortium.folder / "certificates" / "site-1.pem", site.folder / "study" / "site.pem")
    result = run("fedmvp-client", "run", "--config", site.config)
    today = datetime.datetime.now(datetime.UTC)
    one_mistake(result, ExitCode.IDENTITY, f"expired on {today:%Y-%m}", "enrol the same request again")


def test_a_run_without_a_ledger_is_refused(run, site):
    for path in site.folder.glob("ledger.sqlite*"):
        path.unlink()
    one_mistake(run("fedmvp-client", "run", "--config", site.config), ExitCode.LEDGER, "ledger")


def test_a_run_with_a_deleted_ledger_is_refused_though_its_marker_is_there(run, site):
    (site.folder / "ledger.sqlite").unlink()
    one_mistake(run("fedmvp-client", "run", "--config", site.config), ExitCode.LEDGER, "ledger", "backup")


def test_a_second_ledger_for_the_same_records_is_refused(run, site):
    result = run("fedmvp-client", "ledger", "--config", site.config, "create")
    one_mistake(result, ExitCode.LEDGER, "ledger")


def test_a_ledger_by_a_name_of_studies_is_refused(run, site):
    for path in site.folder.glob("ledger.sqlite*"):
        path.unlink()
    name = site.config.read_text().split("dataset_id = ")[1].split('"')[1]
    site.config.write_text(site.config.read_text().replace(f'"{name}"', '"UNSAFE-seeded-x"'))
    result = run("fedmvp-client", "ledger", "--config", site.config, "create")
    one_mistake(result, ExitCode.CONFIG, "UNSAFE-seeded-x", "does not start with UNSAFE-seeded-")
    assert not list(site.folder.glob("ledger.sqlite*"))


def test_a_corrupt_ledger_is_refused(run, site):
    (site.folder / "ledger.sqlite").write_bytes(b"not a database, certainly not this one" * 100)
    for command in (("ledger",), ("ledger", "verify"), ("run",)):
        name, *rest = command
        one_mistake(run("fedmvp-client", name, "--config", site.config, *rest), ExitCode.LEDGER)


def test_an_unsafe_ledger_needs_both_words(run, site):
    site.edit('ledger = "ledger.sqlite"', 'ledger = "other.sqlite"')
    half = run("fedmvp-client", "ledger", "--config", site.config, "create", "--unsafe-no-dp")
    one_mistake(half, ExitCode.USAGE, "belong together")
    site.edit("epsilon_max = 8.0", "epsilon_max = inf")
    one_mistake(run("fedmvp-client", "ledger", "--config", site.config, "create"), ExitCode.USAGE, "belong together")
    both = run("fedmvp-client", "ledger", "--config", site.config, "create", "--unsafe-no-dp")
    assert both.code == 0
    assert "without any privacy" in both.err


def test_an_unknown_key_is_refused_with_the_nearest(run, site):
    site.edit("cache_dir =", "cache_dri =")
    result = run("fedmvp-client", "check", "--config", site.config)
    one_mistake(result, ExitCode.CONFIG, "unknown key [compute] cache_dri (line", "did you mean [compute] cache_dir?")


def test_broken_toml_is_named_by_line(run, site):
    site.edit('device = "auto"', "device = auto")
    line = site.config.read_text().split("device = auto")[0].count("\n") + 1
    one_mistake(run("fedmvp-client", "check", "--config", site.config), ExitCode.CONFIG, f"at line {line}, column")


def test_insecure_is_refused_off_loopback(run, site):
    result = run("fedmvp-client", "run", "--config", site.config, "--server", "study.example:1", "--insecure")
    one_mistake(result, ExitCode.IDENTITY, "--insecure is refused: study.example:1 is not a loopback address")


def test_a_study_the_ledger_does_not_fit_is_refused(run, site, study):
    consortium = open_consortium(study.folder)
    policy = consortium.folder / "policy.toml"
    policy.write_text(policy.read_text().replace("delta = 1e-5", "delta = 1e-6"))
    enrol(consortium, [], server=None)
    joined = run("fedmvp-client", "join", package(study), "--root", study.root_fingerprint, "--config", site.config)
    assert joined.code == 0
    one_mistake(run("fedmvp-client", "run", "--config", site.config), ExitCode.BUDGET, "delta 1e-06")


def test_a_spent_budget_is_said_before_anything_is_loaded(run, site):
    site.edit("epsilon_max = 8.0", "epsilon_max = 0.5")
    result = run("fedmvp-client", "run", "--config", site.config)
    one_mistake(result, ExitCode.BUDGET, "over its budget of 0.5")


@pytest.mark.parametrize("option", ["--name", "--organisation", "--data", "--dataset-id", "--epsilon-max"])
def test_init_asks_for_everything_it_needs(run, tmp_path, option):
    given = {"--name": "a", "--organisation": "A", "--data": "d", "--dataset-id": "x", "--epsilon-max": "8"}
    del given[option]
    result = run("fedmvp-client", "init", tmp_path / "site", *(part for pair in given.items() for part in pair))
    one_mistake(result, ExitCode.USAGE, f"Missing option '{option}'")
    assert not (tmp_path / "site").exists()
