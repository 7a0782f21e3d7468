"""The commands from an empty folder to sites that could run, as docs/operations.md tells it."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from fedmvp.errors import ExitCode
from fedmvp.study.config import load_client_config, load_server_config
from fedmvp.study.credentials import load_server, load_site
from fedmvp.study.templates import policy_template


@pytest.fixture
def founded(run, tmp_path):
    result = run(
        "fedmvp-server",
        "init",
        tmp_path / "study",
        "--run-id",
        "run-1",
        "--address",
        "study.example:8443",
        "--listen",
        "0.0.0.0:8443",
    )
    assert result.code == 0, result.err
    return tmp_path / "study", result.out.strip()


def new_site(run, tmp_path, name, organisation, **options):
    folder = tmp_path / name
    arguments = {"--dataset-id": f"records-{name}", "--epsilon-max": "8", **options}
    result = run(
        "fedmvp-client",
        "init",
        folder,
        "--name",
        name,
        "--organisation",
        organisation,
        "--data",
        tmp_path / "images",
        *(part for pair in arguments.items() for part in pair),
    )
    assert result.code == 0, result.err
    return folder, result.out.strip()


def test_a_federation_is_founded_by_the_commands_alone(run, founded, tmp_path):
    study, root = founded
    sites = [new_site(run, tmp_path, f"site-{i}", f"Hospital {i}") for i in (1, 2, 3)]
    enrolled = run(
        "fedmvp-server", "enroll", "--study", study, "--yes", *(folder / "request.json" for folder, _ in sites)
    )
    assert enrolled.code == 0, enrolled.err
    packages = enrolled.out.split()
    assert [Path(path).name for path in packages] == ["site-1.json", "site-2.json", "site-3.json"]
    for (folder, shown), package in zip(sites, packages, strict=True):
        assert shown in enrolled.err
        joined = run("fedmvp-client", "join", package, "--root", root, "--config", folder / "client.toml")
        assert joined.code == 0, joined.err
        assert "record-local, unit record, add-or-remove-one, epsilon at most 8 at delta 1e-05" in joined.out
        config = load_client_config(folder / "client.toml", environment={})
        assert config.server.address == "study.example:8443"
        assert load_site(config).entry.name == folder.name
    config = load_server_config(study / "server" / "server.toml", environment={})
    assert config.server.listen == "0.0.0.0:8443"
    assert len(load_server(config)[0].roster.active_ids) == 3


def test_every_private_key_made_by_a_command_has_mode_0600(run, founded, tmp_path):
    study, _ = founded
    folder, _ = new_site(run, tmp_path, "site-1", "Hospital 1")
    keys = [*study.rglob("*.key"), *folder.rglob("*.key")]
    assert {path.name for path in keys} == {"root.key", "ca.key", "server.key", "identity.key", "tls.key"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    holders = [path for path in [*study.rglob("*"), *folder.rglob("*")] if path.is_file() and path not in keys]
    assert not [path for path in holders if b"PRIVATE KEY" in path.read_bytes()]


def test_enrolling_asks_for_the_fingerprints_first(run, founded, tmp_path, monkeypatch):
    study, _ = founded
    folder, _ = new_site(run, tmp_path, "site-1", "Hospital 1")
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _prompt: "n")
    result = run("fedmvp-server", "enroll", "--study", study, folder / "request.json")
    assert result.code == 130
    assert not (study / "consortium" / "roster.json").exists()


def test_too_few_sites_are_a_warning_at_enrolment(run, founded, tmp_path):
    study, _ = founded
    folder, _ = new_site(run, tmp_path, "site-1", "Hospital 1")
    result = run("fedmvp-server", "enroll", "--study", study, "--yes", folder / "request.json")
    assert result.code == 0
    assert "warning: rounds need 3 sites, 1 are enrolled" in result.err


def test_init_takes_a_complete_policy(run, tmp_path):
    (tmp_path / "mine.toml").write_text(policy_template("my-run"))
    arguments = ("--run-id", "my-run", "--address", "127.0.0.1:1", "--policy", tmp_path / "mine.toml")
    assert run("fedmvp-server", "init", tmp_path / "study", *arguments).code == 0
    assert (tmp_path / "study" / "consortium" / "policy.toml").read_text() == policy_template("my-run")


def test_a_site_is_revoked_and_the_server_gets_the_new_roster(run, study):
    result = run("fedmvp-server", "revoke", "site-2", "--study", study.folder)
    assert result.out == "roster version 2: site-2 revoked, 2 sites active\n"
    again = run("fedmvp-server", "enroll", "--revoke", "site-2", "--study", study.folder)
    assert (again.code, again.err) == (
        ExitCode.USAGE,
        "error: 'site-2' is not an active site of this study\nremedy: active sites: site-1, site-3\n",
    )
    roster = json.loads((study.folder / "server" / "study" / "roster.json").read_text())
    assert [site["revoked"] for site in roster["sites"]] == [False, True, False]


def test_renew_replaces_the_servers_certificate(run, study):
    certificate = study.folder / "server" / "server.pem"
    before = certificate.read_bytes()
    result = run("fedmvp-server", "renew", "--study", study.folder, "--host", "study.example")
    assert result.code == 0
    assert certificate.read_bytes() != before
    assert "study.example" in result.err


def test_a_consortium_away_from_the_server_says_what_to_copy(run, study, tmp_path):
    away = tmp_path / "vault"
    (study.folder / "consortium").rename(away)
    result = run("fedmvp-server", "enroll", "--study", away)
    assert result.code == 0
    assert "copy policy.toml, roster.json and their .sig files" in result.err
    assert run("fedmvp-server", "renew", "--study", away).code == ExitCode.USAGE
    named = run("fedmvp-server", "enroll", "--study", away, "--server", study.folder / "server")
    assert named.code == 0


INIT = ("init", "{tmp}/new", "--run-id", "r", "--address")
SERVER_TOML = "{tmp}/study/server/server.toml"

MISTAKES = [
    ([*INIT, "nohost"], ExitCode.USAGE, "--address nohost: write host:port"),
    ([*INIT, "0.0.0.0:1"], ExitCode.USAGE, "sites cannot connect to 0.0.0.0:1"),
    ([*INIT, "127.0.0.1:1", "--policy", "{tmp}/none"], ExitCode.CONFIG, "policy {tmp}/none does not exist"),
    ([*INIT, "127.0.0.1:1", "--host", "no such host"], ExitCode.USAGE, "'no such host' is not a host name"),
    (["init", "{tmp}/new", "--run-id", "Bad Id", "--address", "127.0.0.1:1"], ExitCode.CONFIG, "[study] run_id"),
    (["init", "{tmp}/study", "--run-id", "r", "--address", "127.0.0.1:1"], ExitCode.CONFIG, "not empty"),
    (["init", "{tmp}/new"], ExitCode.USAGE, "Missing option"),
    (["enroll", "--study", "{tmp}/nowhere"], ExitCode.CONFIG, "study description"),
    (["enroll", "--study", "{tmp}/study", "{tmp}/x.json"], ExitCode.CONFIG, "request {tmp}/x.json does not exist"),
    (["enroll", "--study", "{tmp}/study", "--server", "{tmp}"], ExitCode.USAGE, "is not a server's folder"),
    (["enroll", "--study", "{tmp}/study", "--revoke", "a", "b.json"], ExitCode.USAGE, "not both"),
    (["run", "--config", "{tmp}/x.toml"], ExitCode.CONFIG, "configuration {tmp}/x.toml does not exist"),
    (["run", "--config", SERVER_TOML, "--listen", "8443"], ExitCode.CONFIG, "(from a flag): write host:port"),
    (["run", "--config", SERVER_TOML, "--listen", "0.0.0.0:1", "--insecure"], ExitCode.IDENTITY, "is refused"),
    (["status", "--config", SERVER_TOML], ExitCode.CONFIG, "the server has not run yet"),
    (["status", "--config", SERVER_TOML, "--format", "xml"], ExitCode.USAGE, "'xml' is not one of"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), MISTAKES)
@pytest.mark.usefixtures("study")
def test_a_mistake_with_the_server_is_one_message_and_its_code(run, tmp_path, arguments, code, message):
    result = run("fedmvp-server", *(argument.format(tmp=tmp_path) for argument in arguments))
    assert result.code == code
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert message.format(tmp=tmp_path) in result.err
    assert result.err.count("error:") == 1
    assert "\nremedy: " in result.err
    assert "Traceback" not in result.err
