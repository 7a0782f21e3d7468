"""A study's cells, each with everything that decides its result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedmvp.experiments.options import method_with_options
from fedmvp.experiments.results import NON_PRIVATE, Cell
from fedmvp.experiments.study import MethodEntry, Study, TrainingSection
from fedmvp.methods.method import Method
from fedmvp.methods.zero_shot import ZeroShot


@dataclass(frozen=True)
class CellPlan:
    """One run to be done.

    Attributes:
        cell: which.
        entry: the method's entry.
        size: its options of this size.
        training: resolved settings.
    """

    cell: Cell
    entry: MethodEntry
    size: Mapping[str, int] = field(hash=False)
    training: TrainingSection

    @property
    def method(self) -> Method:
        """The method with its hyper-parameters."""
        return method_with_options(self.entry, self.size)

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return not isinstance(self.method, ZeroShot)

    def digest(self, study: Study) -> str:
        """Return a hash of all in the study's file that decides the result."""
        facts: dict[str, Any] = {
            name: getattr(study, name).model_dump(mode="json") for name in ("data", "setting", "sites", "tower")
        }
        facts["name"] = study.study.name  # seeds batches and noise
        facts["joint"] = [item.model_dump(mode="json") for item in study.joint]
        facts["others"] = [item.model_dump(mode="json") for item in study.others]
        facts["privacy"] = study.privacy.model_dump(mode="json", include={"delta", "unit", "secure_sum"})
        facts["sites"].pop("counts")
        facts["method"] = repr(self.method)
        facts["training"] = self.training.model_dump(mode="json")
        facts["cell"] = self.cell.name
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def plan_cells(study: Study, site_counts: Sequence[int]) -> tuple[CellPlan, ...]:
    """Return every cell of a study; those of one method follow each other, so that they share what they compute.

    Args:
        study: the study.
        site_counts: numbers of sites to sweep over.

    Raises:
        UserError: a method or option that does not exist.
    """
    plans: list[CellPlan] = []
    for entry in study.methods:
        for size in entry.sizes or ({},):
            method = method_with_options(entry, size)
            modes = [NON_PRIVATE] if isinstance(method, ZeroShot) else list(study.privacy.modes)
            for sites in site_counts:
                for mode in modes:
                    training = _resolved(study, entry, mode)
                    for epsilon in [None] if mode == NON_PRIVATE else study.privacy.epsilons:
                        for seed in study.study.seeds:
                            cell = Cell(entry.name, mode, epsilon, _label(size), sites, seed)
                            plans.append(CellPlan(cell, entry, size, training))
    return tuple(plans)


def _resolved(study: Study, entry: MethodEntry, mode: str) -> TrainingSection:
    """From the general to the particular: the study, its mode, the method, the method in this mode."""
    settings = study.training
    for change in (study.modes.get(mode), entry.training, entry.modes.get(mode)):  # type: ignore[call-overload]
        if change is not None:
            settings = change.apply(settings)
    if mode == "record-distributed":
        settings = settings.model_copy(update={"local_steps": 1, "momentum": 0.0})
    return settings


def _label(size: Mapping[str, int]) -> str:
    return " ".join(f"{name} {value}" for name, value in size.items())
