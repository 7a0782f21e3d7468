"""One site of several processes: the leading one takes part in the study, the others compute for it.

Only the leading process reads keys, ledger and past, and only it talks to the server. The others read the signed
policy and the images. Nobody outside the site can tell how many there are.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version

import structlog
import torch

from fedmvp import __version__
from fedmvp.client.launch import Launch
from fedmvp.client.progress import Report
from fedmvp.client.trainer import (
    SiteRecords,
    SiteTrainer,
    choose_device,
    memory_request,
    read_records,
    tell_memory,
    trainer_on,
)
from fedmvp.client.update_source import SourceFactory
from fedmvp.data.digest import dataset_digest
from fedmvp.model.parameters import get_vector
from fedmvp.study.config import ClientConfig
from fedmvp.study.credentials import load_study
from fedmvp.study.policy import StudyPolicy
from fedmvp.training.from_policy import build_worker
from fedmvp.training.memory import plan_memory
from privacy.errors import RanksError
from privacy.ledger import Ledger
from privacy.ranks import DATA, ComputingRank, LeadingRank, Order

log = structlog.get_logger("fedmvp.client")

SHARE_SECONDS = 600.0
"""Longest wait for another process within one batch: all have about equal parts, so minutes mean that one hangs."""

READY = {"ready": b"with room for its share of a batch"}
"""Stated last: a process that stopped before is missed here, and not in the middle of the first round."""

_LIBRARIES = ("torch", "opacus", "open_clip_torch", "numpy")


@contextmanager
def leading(config: ClientConfig, launch: Launch) -> Iterator[SourceFactory]:
    """Join the site's other processes as the leading one, and send them home at the end.

    Args:
        config: a validated client.toml.
        launch: this process's place.

    Yields:
        What makes the source of updates, with the others' help.

    Raises:
        UserError: the study cannot be read, or there is no device for each process.
        RanksError: the others do not appear.
    """
    policy = load_study(config.study).policy
    device = choose_device(config.compute.device, launch)
    _bind(device)
    ranks = LeadingRank(
        launch.rank, launch.size, device=torch.device(device), timeout_seconds=_longest_share_seconds(policy)
    )

    def build(config: ClientConfig, policy: StudyPolicy, ledger: Ledger) -> SiteTrainer:
        records = read_records(config, policy, device)
        initial = get_vector(records.model)
        ranks.prepare()
        log.info("waiting for the other processes of this site", processes=launch.size)
        ranks.agree(site_facts(policy, records))
        trainer = trainer_on(records, config, policy, ledger, ranks=ranks)
        plan = trainer.plan_memory(memory_request(config, launch), logical=records.logical(policy) / launch.size)
        tell_memory(plan, records.model)
        ranks.agree(READY)
        return SiteTrainer(trainer, initial)

    try:
        yield build
    finally:
        with suppress(RanksError):  # one that is gone needs no telling, and what ended this run matters more
            ranks.stop()


def compute(config: ClientConfig, launch: Launch) -> None:
    """Compute for the leading process until it says that the run is over.

    Args:
        config: the same client.toml; its keys and its ledger are not opened.
        launch: this process's place.

    Raises:
        UserError: the study, an image or the device cannot be used.
        RanksError: the leading process is gone, or has other records, another study or other software.
    """
    logging.getLogger().setLevel(logging.WARNING)  # the leading process tells what happens
    policy = load_study(config.study).policy
    device = choose_device(config.compute.device, launch)
    _bind(device)
    ranks = ComputingRank(
        launch.rank, launch.size, device=torch.device(device), timeout_seconds=_longest_share_seconds(policy)
    )
    # What the leading process left in the cache need not be computed again.
    if ranks.next_instruction().order is Order.PREPARE:
        records = read_records(config, policy, device, _unseen)
        ranks.agree(site_facts(policy, records))
        worker = build_worker(
            policy,
            records.model,
            records.features,
            records.labels,
            ranks,
            patients=records.patients(policy),
            per_sample_engine=config.compute.per_sample_engine,
        )
        logical = records.logical(policy) / launch.size
        plan_memory(worker, worker.data, memory_request(config, launch), logical=logical)
        ranks.agree(READY)
        worker.serve()
    ranks.close()


def site_facts(policy: StudyPolicy, records: SiteRecords) -> dict[str, bytes]:
    """Return what all processes of a site must have alike.

    Args:
        policy: the signed study.
        records: what this process read.
    """
    versions = [f"{name} {version(name)}" for name in _LIBRARIES]
    return {
        "study": policy.hash,
        DATA: dataset_digest(records.dataset),
        "backbone": records.model.backbone.state_hash().encode(),
        "kind of device": records.model.backbone.device.type.encode(),
        "software": repr([f"fedmvp {__version__}", *versions]).encode(),
    }


def _longest_share_seconds(policy: StudyPolicy) -> float:
    return min(SHARE_SECONDS, policy.deadlines.training_seconds)


def _bind(device: str) -> None:
    """Take the device, and keep what the processes tell each other on this machine."""
    name = next((name for _, name in socket.if_nameindex() if name in {"lo", "lo0"}), None)
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
    if device.startswith("cuda"):
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")  # a late answer is an error here, not an abort
        torch.cuda.set_device(device)


@contextmanager
def _unseen(_label: str) -> Iterator[Report]:
    yield lambda _done, _total: None
