"""What a results file says of its study, and what every report of it must say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedmvp.errors import UserError
from fedmvp.experiments.material import Deal, Material
from fedmvp.experiments.scores import SCORES
from fedmvp.experiments.study import Study
from fedmvp.experiments.sweep import plan_cells
from fedmvp.model.embedded import embedded_data
from fedmvp.model.supported import EMBEDDED_NAMES

SEEDED_NOTE = (
    "Batches and noise are drawn from seeds, so that the study can be repeated. Its epsilons are the mechanism's; "
    "the images of the study itself are not protected by them."
)
CLEAR_NOTE = "Sums were made in the clear: no secure sum took part in this study."
UNKNOWN_DATA_NOTE = "Nobody lists the data that the weights of this tower have seen; they may include these images."
DENOMINATOR_NOTE = (
    "The denominator of a step was taken from the sites' sizes, which no epsilon here covers; a real study writes a "
    "public constant as expected_batch_size."
)
MULTI_LABEL_NOTE = (
    "Log-odds are calibrated once on the images of the first test set without their labels, which counts as public."
)


def study_facts(study: Study, material: Material, planned: Sequence[str]) -> dict[str, Any]:
    """Return the facts of a results file.

    Args:
        study: the study.
        material: its opened data.
        planned: names of all its cells.
    """
    deal = material.deal(material.site_counts[0], study.study.seeds[0])
    return {
        "name": study.study.name,
        "title": study.study.title,
        "setting": study.setting.kind,
        "score": _score_name(study, material),
        "sources": list(study.setting.sources),
        "targets": [test.group for test in deal.tests if not test.site],
        "classes": [name for opened in material.trained_data for name in opened.classes.names],
        "delta": study.privacy.delta,
        "unit": study.privacy.unit,
        "neighboring_relation": "add-or-remove-one",
        "accountant": _accountants(study),
        "tower": {"name": study.tower.name, "data": list(_seen(study) or ())},
        "data": {
            "name": " + ".join(opened.name for opened in material.trained_data),
            "images": sum(len(opened.collection) for opened in material.trained_data),
        },
        "sites": _sites(deal),
        "rule": deal.rule,
        "settings_from": f"{study.settings_from.kind}: {study.settings_from.note}",
        "settings_kind": study.settings_from.kind,
        "training": study.training.model_dump(mode="json"),
        "notes": _notes(study, material),
        "planned": list(planned),
    }


def require_unseen(study: Study) -> None:
    """Refuse a tower whose weights, teachers or settings have seen a data set of the study.

    Raises:
        UserError: as the summary says.
    """
    seen = _seen(study) or ()
    for section in (study.data, *study.joint, *study.others):
        if section.preset and section.preset in seen:
            raise UserError(
                f"tower {study.tower.name} was made with {section.preset}, which this study measures on",
                remedy="name another [tower]: what it has seen is listed in the model's card",
            )


def _seen(study: Study) -> tuple[str, ...] | None:
    """What the tower has seen; None where nobody says."""
    if study.tower.name in EMBEDDED_NAMES and not study.tower.checkpoint:
        return embedded_data(study.tower.name)
    return None


def _score_name(study: Study, material: Material) -> str:
    name = SCORES[study.setting.kind]
    if study.joint:
        name += ", each a mean over data sets"
    return name.replace("accuracy", "mean average precision") if material.data.collection.multi_label else name


def _accountants(study: Study) -> str:
    from privacy import accountant  # noqa: PLC0415 - seconds

    names = []
    if "record-local" in study.privacy.modes:
        names.append(f"{accountant.ACCOUNTANT} (record-local)")
    if any(mode.endswith("distributed") for mode in study.privacy.modes):
        names.append(f"{accountant.DISTRIBUTED_ACCOUNTANT} (distributed modes)")
    return "; ".join(names) or "none"


def _sites(deal: Deal) -> list[dict[str, Any]]:
    return [
        {
            "name": part.name,
            "images": len(part.images),
            "classes": len({label for record in part.images.records for label in record.labels}),
        }
        for part in deal.sites
    ]


def _notes(study: Study, material: Material) -> list[str]:
    notes = [SEEDED_NOTE]
    if not study.privacy.secure_sum:
        notes.append(CLEAR_NOTE)
    if _seen(study) is None:
        notes.append(UNKNOWN_DATA_NOTE)
    if material.data.collection.multi_label:
        notes.append(MULTI_LABEL_NOTE)
    if not all(plan.training.expected_batch_size for plan in plan_cells(study, material.site_counts) if plan.trains):
        notes.append(DENOMINATOR_NOTE)
    for section, opened in zip((study.data, *study.joint), material.trained_data, strict=True):
        if section.allow_incomplete:
            which = f"{opened.name} is" if study.joint else "The data set is"
            notes.append(f"{which} used as it was found, with {len(opened.collection)} images.")
    if study.settings_from.kind == "private-uncharged":
        notes.append("Settings were chosen on images of the study itself and not charged: epsilons leave that out.")
    return notes
