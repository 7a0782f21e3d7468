"""A site of two processes under torchrun: one takes part, the other computes for it and opens nothing secret."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from privacy.chain import EntryKind
from tests.e2e.federation import Federation, Process, policy_text
from tests.e2e.test_real_training import make_images

SECRET = re.compile(r"(identity|tls)\.key$|ledger\.sqlite|/state(/|$)")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def real_federation(federation: Callable[..., Federation], folder: Path) -> Federation:
    """Three sites with images of their own, for one private round."""
    policy = policy_text(rounds=1, private=True, training_seconds=90.0, join_seconds=90.0)
    made = federation(sites=3, policy=policy, epsilon_max=8.0)
    for number, config in enumerate(made.study.site_configs.values(), start=1):
        make_images(folder / f"site-{number}", count=5 + number, seed=number)
        text = config.read_text()
        line = next(line for line in text.splitlines() if line.startswith("path = "))
        config.write_text(text.replace(line, f'path = "{folder / f"site-{number}"}"'))
    return made


def start_pair(made: Federation, folder: Path, *extra: str | Path) -> Process:
    config = made.study.site_configs["site-1"]
    entry = ("-m", "tests.e2e.watched_client", folder, *extra, "run", "--config", config, "--device", "cpu")
    return made.start("site-1", [*TORCHRUN, *entry])


def opened(folder: Path, rank: int) -> set[str]:
    return set((folder / f"opened-{rank}").read_text().splitlines())


@pytest.fixture(scope="module")
def disagreeing(
    federation: Callable[..., Federation], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Federation, Path, Process]:
    """Two processes, the second of which is given other images; no server is needed to find out."""
    folder = tmp_path_factory.mktemp("pair")
    made = real_federation(federation, folder)
    pair = start_pair(made, folder, "--other-data", folder / "site-2")
    pair.finish()
    return made, folder, pair


def test_processes_that_read_other_images_refuse_before_the_server_hears_of_them(
    disagreeing: tuple[Federation, Path, Process],
) -> None:
    made, _, pair = disagreeing
    assert pair.finish() == 1
    assert pair.errors.count("error: process 1 of this site disagrees with process 0 about: data") == 2, pair.errors
    assert "remedy: nothing of this round was released" in pair.errors
    with made.ledger("site-1") as ledger:
        assert [entry.kind for entry in ledger.entries()] == [EntryKind.CREATED]


def test_only_the_leading_process_opens_keys_ledger_and_past(disagreeing: tuple[Federation, Path, Process]) -> None:
    _, folder, _ = disagreeing
    assert {SECRET.search(path) for path in opened(folder, 1)} == {None}
    assert any(path.endswith("policy.toml") for path in opened(folder, 1))
    assert any(path.endswith("0.png") for path in opened(folder, 1))
    found = " ".join(path for path in opened(folder, 0) if SECRET.search(path))
    assert all(name in found for name in ("identity.key", "tls.key", "ledger.sqlite", "/state/"))  # the same search


@pytest.mark.long
def test_a_site_of_two_processes_is_one_site_to_everybody_else(
    federation: Callable[..., Federation], tmp_path: Path
) -> None:
    made = real_federation(federation, tmp_path)
    server = made.start_server("--real")
    pair = start_pair(made, tmp_path)
    others = [made.start_site(name, "--real") for name in ("site-2", "site-3")]
    for process in (pair, *others, server):
        assert process.finish() == 0, process.errors
    (event,) = made.events("round")
    assert event["survivors"] == [1, 2, 3]
    assert len({receipt["epsilon"] for receipt in event["receipts"].values()}) == 1
    with made.ledger("site-1") as ledger:
        assert [entry.kind for entry in ledger.entries()].count(EntryKind.CHARGE) == 1
    assert (made.site_folder("site-1") / "state" / "prompts.safetensors").is_file()
    assert {SECRET.search(path) for path in opened(tmp_path, 1)} == {None}
