"""The policy that a cell's server and sites sign and obey.

The policy's [model] and [task] speak of FedMVP on single labels and one data set; for another method the title binds it
by name and options. What the policy cannot say the modules alone know: several labels an image, the classes that a site
trains over, the sentences of further data sets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fedmvp.experiments.results import NON_PRIVATE
from fedmvp.experiments.sweep import CellPlan
from fedmvp.methods.classes import ClassSet
from fedmvp.methods.fedmvp import FedMvp
from fedmvp.model.prompt_config import PromptConfig
from fedmvp.study.calibration import calibrate
from fedmvp.study.policy import StudyPolicy, parse_policy
from fedmvp.study.templates import toml_text

_PROMPT_OPTIONS = ("n_prompts", "n_heads", "bottleneck_width", "lora_rank", "flip", "initial_seed", "probe_gain")
_ADAM = ("adam_beta1", "adam_beta2", "adam_epsilon")


@dataclass(frozen=True)
class CellTerms:
    """What a policy says that no cell decides.

    Attributes:
        trained: the classes.
        n_sites: sites, all of which are in every round.
        mean_units: records or patients of a site; with the sample rate the public denominator, if none is named.
        delta: of (epsilon, delta).
        unit: "record" or "patient".
        tower: name of the backbone, and "embedded", a tag, or "" where there is a file of weights.
    """

    trained: ClassSet
    n_sites: int
    mean_units: float
    delta: float
    unit: str
    tower: tuple[str, str]


def cell_policy(plan: CellPlan, terms: CellTerms) -> StudyPolicy:
    """Return the policy of a cell, with the noise that its epsilon needs.

    Raises:
        UserError: a budget out of reach, or settings that no policy allows.
    """
    tables = _tables(plan, terms)
    if plan.cell.epsilon is not None:
        tables["privacy"]["noise_multiplier"] = _noise_for(tables, plan.cell.epsilon)
    return parse_policy(toml_text(tables).encode(), source=f"policy of {plan.cell.name}")


def _noise_for(tables: dict[str, dict[str, Any]], epsilon: float) -> float:
    """Found once for all cells that differ in nothing that touches privacy."""
    document = toml_text({**tables, "study": {**tables["study"], "run_id": "calibration", "title": "calibration"}})
    return _found(document.encode(), epsilon)


@lru_cache(maxsize=256)
def _found(document: bytes, epsilon: float) -> float:
    return calibrate(parse_policy(document), epsilon)


def _tables(plan: CellPlan, terms: CellTerms) -> dict[str, dict[str, Any]]:
    cell, training, method = plan.cell, plan.training, plan.method
    config = method.config if isinstance(method, FedMvp) else PromptConfig()
    private, distributed = cell.mode != NON_PRIVATE, cell.mode.endswith("distributed")
    batch = training.expected_batch_size or max(1.0, round(training.sample_rate * terms.mean_units, 1))
    classes = [{"name": item.name, "attributes": list(item.attributes)} for item in terms.trained.task.classes]
    return {
        "study": {
            "run_id": cell.name[:64],
            "title": f"{plan.entry.name}: {method!r}"[:200],
            "rounds": training.rounds,
        },
        "model": {
            "backbone": terms.tower[0],
            "pretrained": terms.tower[1],
            "variant": config.variant.value,
            "injection": config.injection.value,
            "neutral_start": config.neutral_start.value,
            **{name: getattr(config, name) for name in _PROMPT_OPTIONS},
            "consistency_weight": float(config.consistency_weight),
        },
        "task": {"kind": "single-label", "template": terms.trained.task.template, "classes": classes},
        "training": {
            "local_steps": training.local_steps,
            "learning_rate": training.learning_rate,
            "momentum": training.momentum,
        },
        "privacy": {
            "mode": cell.mode if private else "UNSAFE-no-dp",
            "unit": "site" if cell.mode == "silo-distributed" else terms.unit,
            "neighboring_relation": "add-or-remove-one",
            "sample_rate": training.sample_rate,
            "noise_multiplier": 1.0 if private else 0.0,
            "max_grad_norm": training.max_grad_norm,
            "expected_batch_size": batch,
            "delta": terms.delta,
            "epsilon_max": math.inf if cell.epsilon is None else cell.epsilon,
        },
        "aggregation": {
            "colluders": 1,
            "min_cohort": terms.n_sites,
            "min_honest": 2,
            "max_cohort": terms.n_sites,
            "ring_bits": 64 if distributed else 32,
            "value_range": training.value_range,
            "server_optimizer": training.server_optimizer,
            "server_learning_rate": training.server_learning_rate,
            **{name: getattr(training, name) for name in _ADAM},
        },
    }
