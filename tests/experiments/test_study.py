from pathlib import Path
from typing import Any

import pytest

from fedmvp.errors import UserError
from fedmvp.experiments.facts import require_unseen
from fedmvp.experiments.material import Material
from fedmvp.experiments.study import Study, load_study
from fedmvp.experiments.sweep import plan_cells
from fedmvp.study.documents import validate
from tests.experiments.tiny_study import make_study, study_values, write_images

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.toml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_of_the_repository_parses_and_its_tower_has_not_seen_its_data(path: Path) -> None:
    study = load_study(path)
    require_unseen(study)
    assert study.study.name == path.stem
    assert plan_cells(study, study.sites.counts or (3,))


def test_an_unknown_key_is_named_with_its_file_and_the_key_that_was_meant(tmp_path: Path) -> None:
    path = tmp_path / "STUDY.toml"
    path.write_text('[study]\nname = "a"\ntitle = "a"\nsedes = [0]\n')
    with pytest.raises(UserError) as refused:
        load_study(path)
    assert str(path) in refused.value.what
    assert "[study] sedes" in refused.value.what
    assert "seeds" in refused.value.remedy


def test_a_missing_study_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_study(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("study", {"seeds": [1, 1]}, "different"),
        ("data", {"preset": "pacs"}, "either preset or layout"),
        ("data", {"attributes": ""}, "needs attributes"),
        ("data", {"layout": "manifest", "classes": []}, "needs classes"),
        ("setting", {"sources": []}, "need sources"),
        ("setting", {"targets": ["plain"]}, "either a source or a target"),
        ("setting", {"targets": []}, "need targets"),
        ("setting", {"base": 2}, "base-to-new"),
        ("setting", {"kind": "personalised"}, "takes no sources and targets"),
        ("setting", {"kind": "cross-dataset", "sources": [], "targets": []}, "needs .*others"),
        ("sites", {"counts": [3]}, "takes no counts"),
        ("sites", {"rule": "dirichlet"}, "needs counts"),
        ("sites", {"rule": "dirichlet", "counts": [2]}, "three sites"),
        ("sites", {"rule": "class-blocks", "counts": [3]}, "class blocks"),
        ("sites", {"trains_over": "own"}, "needs rule class-blocks"),
        ("sites", {"classes_per_site": 2}, "length of class-blocks"),
        ("sites", {"rule": "class-blocks", "classes_per_site": 2, "counts": [3]}, "in place of counts"),
        ("joint", [{"folder": "dtd", "preset": "dtd", "base": 24}], "needs base-to-new"),
        ("privacy", {"epsilons": []}, "need epsilons"),
        ("methods", [{"name": "promptfl"}, {"name": "promptfl"}], "one name"),
    ],
)
def test_what_contradicts_itself_is_refused(table: str, change: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        validate(Study, study_values(tmp_path, **{table: change}), source="STUDY.toml")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "prompts"}, "no method 'prompts'"),
        ({"name": "promptfl", "options": {"depth": 2}}, "no option 'depth'"),
        ({"name": "promptfl", "options": {"wording": "rhyme"}}, "none of template, attributes"),
        ({"name": "fedvpt", "options": {"n_prompts": "four"}}, "is no int"),
        ({"name": "linear-probe", "options": {"width": 3}}, "no option 'width'"),
    ],
)
def test_a_method_or_option_that_does_not_exist_is_named(entry: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        plan_cells(make_study(tmp_path, methods=[entry]), (3,))


def test_the_sweep_is_the_product_of_what_is_swept(tmp_path: Path) -> None:
    study = make_study(
        tmp_path,
        study={"seeds": [0, 1, 2]},
        methods=[
            {"name": "zero-shot-template"},
            {"name": "fedmvp-narrow", "sizes": [{"bottleneck_width": 2}, {"bottleneck_width": 4}]},
        ],
        privacy={"modes": ["non-private", "record-local", "record-distributed"], "epsilons": [8.0, 1.0]},
    )
    plans = plan_cells(study, (3, 5))
    per_seed_and_count = 1 + 2 * (
        1 + 2 * 2
    )  # zero-shot once; two sizes, each without privacy and in four private cells
    assert len(plans) == per_seed_and_count * 3 * 2
    assert len({plan.cell.name for plan in plans}) == len(plans)
    assert len({plan.digest(study) for plan in plans}) == len(plans)


def test_settings_go_from_the_general_to_the_particular(tmp_path: Path) -> None:
    entry = {
        "name": "promptfl",
        "training": {"learning_rate": 0.25, "max_grad_norm": 2.0},
        "modes": {"record-local": {"max_grad_norm": 3.0}},
    }
    study = make_study(
        tmp_path,
        methods=[entry],
        modes={"record-local": {"learning_rate": 9.0, "sample_rate": 0.125}},
        privacy={"modes": ["non-private", "record-local", "record-distributed"]},
        training={"local_steps": 7, "momentum": 0.5},
    )
    local, shared = (
        next(plan.training for plan in plan_cells(study, (3,)) if plan.cell.mode == mode)
        for mode in ("record-local", "record-distributed")
    )
    assert (local.learning_rate, local.max_grad_norm, local.sample_rate, local.local_steps) == (0.25, 3.0, 0.125, 7)
    assert (shared.max_grad_norm, shared.sample_rate, shared.local_steps, shared.momentum) == (2.0, 0.5, 1, 0.0)


def test_a_changed_setting_changes_the_digest_of_the_cells_that_it_touches_and_of_no_other(tmp_path: Path) -> None:
    methods = [{"name": "promptfl"}, {"name": "fedvpt", "training": {"learning_rate": 0.5}}]
    first = make_study(tmp_path, methods=methods)
    second = make_study(tmp_path, methods=[methods[0], {"name": "fedvpt", "training": {"learning_rate": 0.25}}])
    before, after = ({p.cell.name: p.digest(study) for p in plan_cells(study, (3,))} for study in (first, second))
    assert {name for name in before if before[name] != after[name]} == {n for n in before if n.startswith("fedvpt")}
    other_data = make_study(tmp_path, methods=methods, setting={"held_out": 0.5})
    assert all(p.digest(other_data) != before[p.cell.name] for p in plan_cells(other_data, (3,)))


def test_what_changes_candidates_or_data_changes_the_digest(tmp_path: Path) -> None:
    setting = {"kind": "base-to-new", "base": 2, "sources": [], "targets": []}
    sites = {"rule": "class-blocks", "classes_per_site": 2}
    joint = [{"folder": "dtd", "preset": "dtd", "base": 24}]
    studies = [
        make_study(tmp_path, setting=setting, sites={**sites, "trains_over": among}, joint=further)
        for among, further in (("all", []), ("own", []), ("own", joint))
    ]
    digests = [{plan.digest(study) for plan in plan_cells(study, (3,))} for study in studies]
    assert not digests[0] & digests[1]
    assert not digests[1] & digests[2]


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "studies").glob("*.toml")), ids=lambda p: p.stem)
def test_every_study_that_comes_with_the_project_can_be_planned(path: Path) -> None:
    assert plan_cells(load_study(path), (3,))


def test_a_tower_that_has_seen_the_studys_data_is_refused(tmp_path: Path) -> None:
    seen = {"folder": "cifar10", "preset": "cifar10"}
    values = study_values(tmp_path)
    values["data"] = seen
    with pytest.raises(UserError, match="was made with cifar10"):
        require_unseen(validate(Study, values, source="STUDY.toml"))
    others = study_values(tmp_path, others=[seen])
    with pytest.raises(UserError, match="was made with cifar10"):
        require_unseen(validate(Study, others, source="STUDY.toml"))
    require_unseen(make_study(tmp_path))


def test_a_key_can_be_set_on_the_command_line_and_a_wrong_one_is_told_as_such(tmp_path: Path) -> None:
    path = STUDIES[0]
    study = load_study(path, ["study.seeds=[5]", "training.rounds = 3", 'study.name="other"'])
    assert (study.study.seeds, study.training.rounds, study.study.name) == ((5,), 3, "other")
    with pytest.raises(UserError, match="rouns"):
        load_study(path, ["training.rouns=3"])
    for change in ("rounds=3", "training.rounds", "training.rounds=three"):
        with pytest.raises(UserError, match="is no change"):
            load_study(path, [change])
    with pytest.raises(UserError, match="no table of keys"):
        load_study(path, ["methods.name=3"])


def test_shots_limit_the_images_of_every_class(tmp_path: Path) -> None:
    write_images(tmp_path)
    material = Material(make_study(tmp_path, sites={"shots": 12, "minimum": 2}), tmp_path, tmp_path / "scratch")
    deal = material.deal(3, 0)
    held = [part.images for part in deal.sites] + [test.images for test in deal.tests if test.site]
    counts = sum(images.label_matrix().sum(axis=0) for images in held)
    assert counts.tolist() == [12, 12, 12, 12]
