"""The long-running commands hand over to server and client, and leave the prompts behind."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest

from fedmvp.client.runner import ClientOutcome
from fedmvp.errors import ExitCode, UserError
from fedmvp.server.lobby import RunOver
from fedmvp.server.snapshot import Snapshot
from fedmvp.study.prompts import read_prompts
from fedmvp.training.aggregate import ServerState
from privacy.errors import RankLost

VALUES = np.arange(5, dtype=np.float32)


@dataclass
class Call:
    config: object = None


@pytest.fixture
def served(monkeypatch, study):
    call = Call()

    def run_server(config):
        call.config = config
        snapshot = Snapshot(
            "run-1", study.policy.hash, 7, 6, [("parameters", VALUES), ("adam_m", VALUES * 2)], "record-local"
        )
        config.server.state_dir.mkdir()
        snapshot.write(config.server.state_dir)
        return RunOver(6, "all rounds are complete")

    monkeypatch.setattr("fedmvp.cli.running.run_server", run_server)
    return call


def test_the_server_leaves_the_prompts_of_its_last_snapshot(run, study, served):
    result = run("fedmvp-server", "run", "--config", study.server_config, "--listen", "127.0.0.1:9000")
    path = study.folder / "server" / "state" / "prompts.safetensors"
    assert (result.code, result.out) == (0, f"{path}\n")
    assert result.err == "6 rounds completed: all rounds are complete\n"
    assert served.config.server.listen == "127.0.0.1:9000"
    assert not served.config.insecure
    prompts = read_prompts(path)
    assert (prompts.round, prompts.stamp, prompts.policy.hash) == (7, "record-local", study.policy.hash)
    np.testing.assert_array_equal(prompts.parameters, VALUES)


def test_insecure_reaches_the_server_only_when_spelled_out(run, study, served):
    result = run("fedmvp-server", "run", "--config", study.server_config, "--insecure")
    assert result.code == 0
    assert "warning: --insecure: no TLS" in result.err
    assert served.config.insecure


@pytest.fixture
def outcome(monkeypatch):
    held = ClientOutcome(3, "the study is over", ServerState(VALUES, VALUES * 0, VALUES * 0, 7), 9)
    monkeypatch.setattr("fedmvp.cli.running.run_client", lambda _config: held)


@pytest.mark.usefixtures("outcome")
def test_a_site_leaves_the_prompts_it_verified(run, site):
    result = run("fedmvp-client", "run", "--config", site.config)
    path = site.folder / "state" / "prompts.safetensors"
    assert (result.code, result.out) == (0, f"{path}\n")
    assert result.err == "took part in 3 published rounds: the study is over\n"
    assert read_prompts(path).round == 9


def test_a_site_that_verified_nothing_leaves_nothing(run, site, monkeypatch):
    monkeypatch.setattr("fedmvp.cli.running.run_client", lambda _config: ClientOutcome(0, "the study is over", None))
    result = run("fedmvp-client", "run", "--config", site.config)
    assert (result.code, result.out) == (0, "")
    assert not (site.folder / "state" / "prompts.safetensors").exists()


def test_flags_of_a_site_reach_its_run(run, site, monkeypatch):
    seen = []

    def run_client(config):
        seen.append(config)
        raise UserError("no server", remedy="start it", exit_code=ExitCode.NETWORK)

    monkeypatch.setattr("fedmvp.cli.running.run_client", run_client)
    result = run(
        "fedmvp-client", "run", "--config", site.config, "--server", "[::1]:7", "--device", "cpu", "--insecure"
    )
    assert result.code == ExitCode.NETWORK
    assert result.err.endswith("error: no server\nremedy: start it\n")
    assert (seen[0].server.address, seen[0].compute.device, seen[0].insecure) == ("[::1]:7", "cpu", True)


@pytest.fixture
def processes(monkeypatch):
    """Two processes whose work is only written down."""
    happened = []

    @contextmanager
    def leading(config, launch):
        happened.append(("leading", launch.rank))
        yield "a source"
        happened.append(("over", launch.rank))

    def run_client(config, source_factory):
        happened.append(("running", source_factory))
        return ClientOutcome(3, "the study is over", None)

    monkeypatch.setattr("fedmvp.client.processes.leading", leading)
    monkeypatch.setattr(
        "fedmvp.client.processes.compute", lambda _, launch: happened.append(("computing", launch.rank))
    )
    monkeypatch.setattr("fedmvp.cli.running.run_client", run_client)
    return happened


PAIR = {"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}


def test_of_several_processes_the_first_takes_part_with_the_others_help(run, site, processes):
    result = run("fedmvp-client", "run", "--config", site.config, RANK="0", LOCAL_RANK="0", **PAIR)
    assert result.code == 0
    assert processes == [("leading", 0), ("running", "a source"), ("over", 0)]


def test_of_several_processes_the_others_only_compute(run, site, processes):
    result = run("fedmvp-client", "run", "--config", site.config, RANK="1", LOCAL_RANK="1", **PAIR)
    assert (result.code, result.out, result.err) == (0, "", "")
    assert processes == [("computing", 1)]


def test_a_lost_process_is_two_lines_and_an_exit_code_of_its_own(run, site, monkeypatch):
    def run_client(_config):
        raise RankLost("process 1 of this site failed")

    monkeypatch.setattr("fedmvp.cli.running.run_client", run_client)
    result = run("fedmvp-client", "run", "--config", site.config)
    assert result.code == ExitCode.COMPUTE
    assert result.err.startswith("error: process 1 of this site failed\nremedy: nothing of this round was released")
