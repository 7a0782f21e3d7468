"""A site of a study's cells in a process of its own, perhaps on another machine: the real client, its own module.

It is told its folder (keys that were made for this one cell, and the signed study), which images are its own, and where
the server is. What it hands back when all is over is outside the protocol: it serves to check the sums.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedmvp.client.runner import run_client
from fedmvp.data.digits import write_class_folders
from fedmvp.experiments.cell import Prepared, SiteSource, load_tower
from fedmvp.experiments.feature_table import FeatureTable
from fedmvp.experiments.federation import LEDGER_FILE, recorded_session
from fedmvp.experiments.material import Deal
from fedmvp.experiments.study import Study, require_on_this_machine
from fedmvp.experiments.sweep import CellPlan
from fedmvp.methods.objective import Objective
from fedmvp.methods.tower import FrozenTower
from fedmvp.study.config import load_client_config
from fedmvp.study.policy import StudyPolicy
from fedmvp.study.site import CONFIG_FILE
from privacy.ledger import Ledger
from secure_agg.messages import PublishedSum

RECONNECT_SECONDS = 10.0
"""The server is there before its sites start; when it is gone for longer, the cell has failed."""

SERVER_ADDRESS = "FEDMVP_SERVER_ADDRESS"

PackedFolder = Mapping[str, tuple[int, bytes]]
"""Mode and content by relative path."""


@dataclass(frozen=True, repr=False)
class SiteTask:
    """What a site needs to know of a cell.

    Attributes:
        folder: the site's folder.
        study: the study.
        plan: the cell.
        deal: who holds what, of which there is this one site, and no test set.
        objective: the loss.
        root: the folder that --data names, or None.
        scratch: where packaged images lie for whoever dealt them.
    """

    folder: PackedFolder
    study: Study
    plan: CellPlan
    deal: Deal
    objective: Objective
    root: Path | None
    scratch: Path


@dataclass(frozen=True, eq=False)
class SiteReport:
    """What a site hands back after the run, outside the protocol.

    Attributes:
        epsilon: what its ledger says it spent.
        parameters: after the last round (d,).
        sums: what it put in, and what was published.
    """

    epsilon: float
    parameters: NDArray[np.float32]
    sums: RunningSums


class RunningSums:
    """What a site put into the published sums, and these sums, each added up over the rounds, modulo the ring.

    Attributes:
        rounds: sums published.
        inputs: what this site put in (d,), None before the first sum.
        totals: what was published (d,).
        contributors: how many sites were in each sum.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[int, int], NDArray[Any]] = {}
        self.rounds = 0
        self.inputs: NDArray[Any] | None = None
        self.totals: NDArray[Any] | None = None
        self.contributors: list[int] = []

    def keep(self, key: tuple[int, int], site: int, vector: NDArray[Any]) -> None:
        """Keep this site's input until its sum is there; an attempt that gives none has no part."""
        del site
        self._open[key] = vector.copy()

    def compare(self, key: tuple[int, int], published: PublishedSum) -> None:
        """Add an input and its sum."""
        vector = self._open.pop(key, None)
        if vector is None:  # the same sum again
            return
        self._open.clear()
        total = published.total
        if self.inputs is None or self.totals is None:
            self.inputs, self.totals = np.zeros_like(total), np.zeros_like(total)
        self.inputs += vector
        self.totals += total
        self.rounds += 1
        self.contributors.append(len(published.survivors))


class SiteHost:
    """Where one site of each of a study's cells runs, one cell after the other.

    Args:
        threads: of torch.
    """

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._task: SiteTask | None = None
        self._tower: FrozenTower | None = None
        self._prepared: Prepared | None = None
        self._key: object = None
        self._tables: dict[tuple[Path, ...], FeatureTable] = {}

    def prepare(self, task: SiteTask) -> None:
        """Read the site's images and build its module, before the server is started.

        Raises:
            UserError: an image or the tower's weights are not on this machine.
        """
        torch.set_num_threads(self._threads)
        key = (repr(task.plan.method), task.plan.cell.sites, task.plan.cell.seed)
        if key != self._key:
            self._prepared = None
            deal = self._here(task)
            require_on_this_machine(record.path for record in deal.sites[0].images.records)
            if self._tower is None:
                self._tower = load_tower(task.study, task.root)
            table = self._table(deal, self._tower.backbone.image_size)
            self._prepared = Prepared(task.plan.method, deal, self._tower, table, task.objective)
            self._key = key
        self._task = task

    def take_part(self, address: str) -> SiteReport:
        """Take part in all rounds of the cell that was prepared.

        Args:
            address: host:port of the server.

        Raises:
            UserError: the server is not reached, or what `run_client` refuses.
            PrivacyError: a budget was spent before the last round.
        """
        task, prepared = self._task, self._prepared
        assert task is not None and prepared is not None  # noqa: S101, PT018 - `prepare` comes first
        sums = RunningSums()

        def source(_config: object, policy: StudyPolicy, ledger: Ledger) -> Any:
            return SiteSource(prepared, 0, policy, task.plan, task.study).build(ledger)

        with tempfile.TemporaryDirectory(prefix="fedmvp-site-") as name:
            folder = Path(name)
            unpack_folder(task.folder, folder)
            outcome = run_client(
                load_client_config(folder / CONFIG_FILE, environment={SERVER_ADDRESS: address}),
                session_factory=recorded_session(sums),
                source_factory=source,
                reconnect_seconds=RECONNECT_SECONDS,
            )
            with Ledger.open(folder / LEDGER_FILE, read_only=True) as ledger:
                epsilon = ledger.spent().epsilon
        parameters = prepared.initial if outcome.state is None else outcome.state.parameters
        return SiteReport(epsilon, parameters, sums)

    def close(self) -> None:
        """Remove what was written here."""
        if self._scratch is not None:
            self._scratch.cleanup()

    def _here(self, task: SiteTask) -> Deal:
        """The deal with packaged images where this process keeps them."""
        part = task.deal.sites[0]
        packaged = task.scratch / "digits"
        if not any(record.path.is_relative_to(packaged) for record in part.images.records):
            return task.deal  # a site's images are of one data set: all of them are packaged, or none
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="fedmvp-site-")
        own = Path(self._scratch.name)
        write_class_folders(own / "digits")
        records = tuple(
            replace(record, path=own / record.path.relative_to(task.scratch)) for record in part.images.records
        )
        return replace(task.deal, sites=(replace(part, images=replace(part.images, records=records)),))

    def _table(self, deal: Deal, image_size: int) -> FeatureTable:
        paths = tuple(record.path for record in deal.sites[0].images.records)
        if paths not in self._tables:
            self._tables = {paths: FeatureTable(paths, image_size, threads=2)}
        return self._tables[paths]


def pack_folder(folder: Path) -> PackedFolder:
    """Return every file of a folder."""
    return {
        str(path.relative_to(folder)): (stat.S_IMODE(path.stat().st_mode), path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def unpack_folder(packed: PackedFolder, folder: Path) -> None:
    """Write a folder as it was; a key is never readable for others, not even for a moment."""
    for name, (mode, content) in packed.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
