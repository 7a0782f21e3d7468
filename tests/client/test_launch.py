"""What torchrun says of a process, and which device it takes."""

from __future__ import annotations

import pytest
import torch

from fedmvp.client.launch import Launch, launched
from fedmvp.client.trainer import choose_device
from fedmvp.errors import ExitCode, UserError

PAIR = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1", "RANK": "0"}, {"RANK": "3"}])
def test_a_process_that_was_not_started_with_others_is_alone(environment: dict[str, str]) -> None:
    assert launched(environment) is None


def test_torchruns_variables_say_who_leads() -> None:
    assert launched(PAIR) == Launch(1, 2)
    assert [Launch(rank, 2).leads for rank in (0, 1)] == [True, False]


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
@pytest.mark.parametrize("value", ["", "-1", "two"])
def test_variables_that_torchrun_would_not_set_are_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(UserError, match=f"not started by torchrun.*{name}=") as refused:
        launched({**PAIR, name: value})
    assert refused.value.exit_code is ExitCode.USAGE
    assert "torchrun --standalone" in refused.value.remedy


@pytest.mark.parametrize("change", [{"WORLD_SIZE": "4"}, {"RANK": "3", "WORLD_SIZE": "4"}])
def test_processes_on_several_machines_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(UserError, match="on several machines") as refused:
        launched({**PAIR, **change})
    assert "unencrypted" in refused.value.remedy


def test_each_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_device("auto", Launch(rank, 2)) for rank in (0, 1)] == ["cuda:0", "cuda:1"]
    assert choose_device("cuda", Launch(1, 2)) == "cuda:1"
    assert choose_device("cpu", Launch(1, 2)) == "cpu"
    with pytest.raises(UserError, match="3 processes were started for 2 GPUs"):
        choose_device("auto", Launch(0, 3))
    for single in ("cuda:1", "mps"):
        with pytest.raises(UserError, match=f"device {single} is one device, and 2 processes"):
            choose_device(single, Launch(0, 2))


def test_without_a_gpu_every_process_takes_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto", Launch(1, 2)) == "cpu"
