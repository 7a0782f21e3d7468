"""Runs cells: each is a federation of its own, with keys, ledgers and sums that nothing else shares."""

from __future__ import annotations

import hashlib
import tempfile
import threading
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedmvp.data.records import ImageRecord
from fedmvp.errors import ExitCode, UserError
from fedmvp.experiments.cell_policy import CellTerms, cell_policy
from fedmvp.experiments.feature_table import FeatureTable, Progress, labels_of
from fedmvp.experiments.federation import FederationOutcome, run_federation
from fedmvp.experiments.material import Deal, Material, TestSet, count_units
from fedmvp.experiments.plain import run_in_the_clear
from fedmvp.experiments.results import SCORE, Measurement
from fedmvp.experiments.scores import PreparedTest, measure_all
from fedmvp.experiments.study import Study
from fedmvp.experiments.sweep import CellPlan
from fedmvp.methods.classes import ClassSet
from fedmvp.methods.method import Method, MethodModel
from fedmvp.methods.objective import MultiLabel, Objective, SingleLabel, calibrate
from fedmvp.methods.tower import FrozenTower
from fedmvp.model.features import FrozenFeatures
from fedmvp.model.loading import BackboneSpec, load_backbone
from fedmvp.model.parameters import Vector, get_vector
from fedmvp.server.evaluator import PublicModel, PublicScore
from fedmvp.study.policy import StudyPolicy
from fedmvp.training.from_policy import local_training_of
from fedmvp.training.local import LocalTrainer
from fedmvp.training.methods import method_trainer
from privacy.errors import BudgetExceeded
from privacy.ledger import Ledger
from privacy.seeded import SeededRandomness

CHECKPOINTS = 4
"""How often a run is measured on its way, beside its start and its end."""

_PREVALENCE, _SCALE = 0.1, 0.1
"""Of a label, and of the tower's logits, before anything is learned from several labels an image; public constants."""


class Bench:
    """A study's data and tower in memory, on which one cell after the other is run.

    Args:
        study: the study.
        root: the folder that --data names, or None.
        scratch: folder for packaged images.
        progress: hears how many images are decoded.

    Raises:
        UserError: anything wrong with the data or the tower.
    """

    def __init__(self, study: Study, root: Path | None, scratch: Path, progress: Progress | None = None) -> None:
        self.study = study
        self.material = Material(study, root, scratch)
        self.tower = load_tower(study, root)
        self._deals: dict[tuple[int, int], Deal] = {}
        paths = [
            record.path
            for count in self.material.site_counts
            for seed in study.study.seeds
            for record in self.records(self.deal(count, seed))
        ]
        self.table = FeatureTable(paths, self.tower.backbone.image_size, threads=2, progress=progress)
        self._prepared: tuple[object, Prepared] | None = None

    def deal(self, count: int, seed: int) -> Deal:
        """Return who holds what for a number of sites and a seed."""
        if (count, seed) not in self._deals:
            self._deals[count, seed] = self.material.deal(count, seed)
        return self._deals[count, seed]

    def run(self, plan: CellPlan) -> list[Measurement]:
        """Run one cell.

        Raises:
            UserError: it cannot be run; the message names it.
        """
        began = time.monotonic()
        kind = self.study.setting.kind
        prepared = self._prepare(plan)
        if not plan.trains:
            rows = measure_all(prepared.tests, kind, None, None)
            return [*rows, Measurement("parameters", 0), Measurement("seconds", time.monotonic() - began)]
        policy = cell_policy(plan, self.terms(prepared.deal))
        history = _History(prepared, kind, policy.study.rounds)
        try:
            outcome = self.federate(plan, policy, prepared, history)
        except BudgetExceeded as error:
            raise UserError(
                f"{plan.cell.name}: {error}",
                remedy="report this: noise is chosen so that every round fits",
                exit_code=ExitCode.BUDGET,
            ) from error
        end = measure_all(prepared.tests, kind, outcome.parameters, None)
        last = [replace(row, round=policy.study.rounds) for row in end if row.metric == SCORE]
        return [*history.rows, *end, *last, *_costs(outcome), Measurement("seconds", time.monotonic() - began)]

    def records(self, deal: Deal) -> list[ImageRecord]:
        """Return what of a deal is kept in memory here: everything."""
        return records_of(deal)

    def federate(
        self, plan: CellPlan, policy: StudyPolicy, prepared: Prepared, history: PublicModel
    ) -> FederationOutcome:
        """Carry out a cell's rounds: here with sites that are threads."""
        sources = {
            part.name: SiteSource(prepared, site, policy, plan, self.study).build
            for site, part in enumerate(prepared.deal.sites)
        }
        with tempfile.TemporaryDirectory(prefix="fedmvp-cell-") as folder:
            run = run_federation if self.study.privacy.secure_sum else run_in_the_clear
            return run(Path(folder) / "study", policy, sources, history)

    def terms(self, deal: Deal) -> CellTerms:
        """Return what the policies of a deal's cells have in common."""
        tower, privacy = self.study.tower, self.study.privacy
        mean = sum(count_units(part.images, privacy.unit) for part in deal.sites) / len(deal.sites)
        name = (tower.name, "" if tower.checkpoint else tower.pretrained)
        return CellTerms(deal.trained, len(deal.sites), mean, privacy.delta, privacy.unit, name)

    def _prepare(self, plan: CellPlan) -> Prepared:
        """Modules and features; kept while cells differ in mode and epsilon alone."""
        key = (repr(plan.method), plan.cell.sites, plan.cell.seed)
        if self._prepared is None or self._prepared[0] != key:
            self._prepared = None  # the old one's memory first
            deal = self.deal(plan.cell.sites, plan.cell.seed)
            self._prepared = (key, Prepared(plan.method, deal, self.tower, self.table))
        return self._prepared[1]


class Prepared:
    """A method's modules and features for one deal.

    Args:
        method: the method.
        deal: who holds what; a site that is a process of its own has a deal of itself alone.
        tower: the frozen tower.
        table: with the images of the deal that are here.
        objective: the loss, where it is known already.
    """

    def __init__(
        self,
        method: Method,
        deal: Deal,
        tower: FrozenTower,
        table: FeatureTable,
        objective: Objective | None = None,
    ) -> None:
        self.deal = deal
        self._table = table
        self._method = method
        self._tower = tower
        self._objective = objective
        self._trained: dict[tuple[str, ...], MethodModel] = {}
        self.models = [self._trained_for(part.candidates) for part in deal.sites]
        models: dict[tuple[str, ...], MethodModel] = {}
        self.tests = [self._test(test, models) for test in deal.tests]
        self.lock = threading.Lock()

    def build_for(self, candidates: ClassSet) -> MethodModel:
        """Build the module for some candidates."""
        return self._method.build(self._tower, candidates, trained=self.deal.trained)

    def _trained_for(self, candidates: ClassSet) -> MethodModel:
        """The module that sites with these candidates train, one after the other."""
        if candidates.names not in self._trained:
            self._trained[candidates.names] = self.build_for(candidates)
        return self._trained[candidates.names]

    @cached_property
    def features(self) -> list[FrozenFeatures]:
        """Of each site's images."""
        parts = zip(self.models, self.deal.sites, strict=True)
        return [self._table.complete(model, part.images) for model, part in parts]

    @cached_property
    def initial(self) -> Vector:
        """Where every party starts (d,)."""
        return get_vector(self.build_for(self.deal.trained))

    @cached_property
    def objective(self) -> Objective:
        """The loss of the labels; for several labels an image calibrated on test images, without their labels."""
        if self._objective is not None:
            return self._objective
        if not self.deal.sites[0].images.multi_label:
            return SingleLabel()
        public = self.tests[0]
        with torch.no_grad():
            logits = self._trained_for(self.deal.trained)(public.features.tensors)
        return MultiLabel.asymmetric(calibrate(logits, scale=_SCALE, prevalence=_PREVALENCE))

    def _test(self, test: TestSet, models: dict[tuple[str, ...], MethodModel]) -> PreparedTest:
        names = test.candidates.names
        if names not in models:
            models[names] = self.build_for(test.candidates)
        features = self._table.complete(models[names], test.images)
        return PreparedTest(
            test.group, test.site, models[names], features, labels_of(test.images), test.images.multi_label
        )


class SiteSource:
    """Builds a site's trainer; trainers that share one module train one after the other.

    Args:
        prepared: modules and features.
        site: position in its deal.
        policy: the signed policy.
        plan: the cell, which batches and noise are seeded by.
        study: the study, likewise.
    """

    def __init__(self, prepared: Prepared, site: int, policy: StudyPolicy, plan: CellPlan, study: Study) -> None:
        self._prepared = prepared
        self._site = site
        self._policy = policy
        part = prepared.deal.sites[site]
        seed = f"{study.study.name}/{plan.cell.name}/{part.name}"
        self._randomness = SeededRandomness(hashlib.sha256(seed.encode()).digest())

    def build(self, ledger: Ledger) -> _LockedTrainer:
        """Return the trainer on an open ledger."""
        part, policy = self._prepared.deal.sites[self._site], self._policy
        patients: Sequence[Hashable] | None = None
        if policy.privacy.unit == "patient":
            patients = [record.patient or "" for record in part.images.records]
        with self._prepared.lock:
            initial = self._prepared.initial
            trainer = method_trainer(
                self._prepared.models[self._site],
                self._prepared.features[self._site],
                labels_of(part.images),
                self._prepared.objective,
                training=local_training_of(policy),
                privacy=policy.privacy_parameters(len(initial)),
                ledger=ledger,
                patients=patients,
                randomness=self._randomness,
            )
        return _LockedTrainer(trainer, initial, self._prepared.lock)


class _LockedTrainer:
    """An update source whose trainings take turns."""

    def __init__(self, trainer: LocalTrainer, initial: Vector, lock: threading.Lock) -> None:
        self._trainer = trainer
        self._initial = initial
        self._lock = lock
        self.dimension = len(initial)

    def initial_parameters(self) -> NDArray[np.float32]:
        return self._initial.copy()

    def train_round(self, parameters: NDArray[np.float32]) -> NDArray[np.float64]:
        with self._lock:
            return self._trainer.train_round(parameters)

    def train_on_grid(self, parameters: NDArray[np.float32], honest_survivors: int) -> NDArray[np.int64]:
        with self._lock:
            return self._trainer.train_on_grid(parameters, honest_survivors)


@dataclass
class _History:
    """The server's model, which measures some of the rounds."""

    prepared: Prepared
    kind: str
    rounds: int

    def __post_init__(self) -> None:
        self._asked = 0
        self._every = max(1, self.rounds // (CHECKPOINTS + 1))
        self.rows: list[Measurement] = []

    def initial_parameters(self) -> NDArray[np.float32]:
        return self.prepared.initial.copy()

    def score(self, parameters: NDArray[np.float32]) -> PublicScore | None:
        """Measure the start and every so many rounds; called once at the start and once after each round."""
        number, self._asked = self._asked, self._asked + 1
        if number % self._every == 0 and number < self.rounds:
            self.rows += measure_all(self.prepared.tests, self.kind, parameters, number)
        return None


def _costs(outcome: FederationOutcome) -> list[Measurement]:
    rows = [Measurement("parameters", outcome.parameters.size), Measurement("sum-error", outcome.sum_error)]
    rows += [Measurement("epsilon", value, site) for site, value in outcome.epsilons.items()]
    rows += [Measurement("bytes-up", value, site) for site, value in outcome.bytes_up.items()]
    return [*rows, *(Measurement("bytes-down", value, site) for site, value in outcome.bytes_down.items())]


def load_tower(study: Study, root: Path | None) -> FrozenTower:
    """Load a study's tower.

    Raises:
        UserError: it cannot be loaded.
    """
    tower = study.tower
    spec = BackboneSpec(tower.name, tower.pretrained, "", tower.checkpoint_below(root))
    return FrozenTower(load_backbone(spec))


def records_of(deal: Deal) -> list[ImageRecord]:
    """Return every image of a deal."""
    images = [part.images for part in deal.sites] + [test.images for test in deal.tests]
    return [record for collection in images for record in collection.records]
