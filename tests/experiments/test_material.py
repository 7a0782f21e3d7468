from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedmvp.data.records import ImageCollection
from fedmvp.errors import UserError
from fedmvp.experiments.material import Material
from fedmvp.experiments.run import LocalEngine, run_study
from tests.experiments.tiny_study import COLOURS, make_run, make_study, study_values, write_images


def opened(folder: Path, **changes: Any) -> Material:
    if not (folder / "squares").exists():
        write_images(folder)
    return Material(make_study(folder, **changes), folder, folder / "scratch")


def paths(images: ImageCollection) -> set[Path]:
    return {record.path for record in images.records}


def test_domains_are_sites_and_no_image_is_trained_on_and_measured_on(tmp_path: Path) -> None:
    deal = opened(tmp_path).deal(3, 0)
    assert [part.name for part in deal.sites] == ["dark", "noisy", "plain"]
    trained = [paths(part.images) for part in deal.sites]
    assert sum(map(len, trained)) == len(set().union(*trained))
    measured = set().union(*(paths(test.images) for test in deal.tests))
    assert not measured & set().union(*trained)
    target, *own = deal.tests
    assert (target.group, target.site, len(target.images)) == ("framed", "", 32)
    assert [(test.group, test.site) for test in own] == [("local", part.name) for part in deal.sites]


def test_equal_seeds_deal_equally_and_the_targets_images_do_not_depend_on_the_seed(tmp_path: Path) -> None:
    setting = {"most_test_images": 9}
    first, again, other = (opened(tmp_path, setting=setting).deal(3, seed) for seed in (0, 0, 1))
    assert [paths(part.images) for part in first.sites] == [paths(part.images) for part in again.sites]
    assert [paths(part.images) for part in first.sites] != [paths(part.images) for part in other.sites]
    assert paths(first.tests[0].images) == paths(other.tests[0].images)
    assert len(first.tests[0].images) == 9


def test_base_to_new_trains_some_classes_and_measures_all(tmp_path: Path) -> None:
    setting = {"kind": "base-to-new", "base": 2, "sources": [], "targets": []}
    sites = {"rule": "dirichlet", "counts": [3], "alpha": 5.0, "minimum": 5}
    deal = opened(tmp_path, setting=setting, sites=sites).deal(3, 0)
    base, new, together, *own = deal.tests
    assert deal.trained.names == base.candidates.names == ("red", "green")
    assert new.candidates.names == ("blue", "yellow")
    assert together.candidates.names == ("red", "green", "blue", "yellow")
    assert paths(together.images) == paths(base.images) | paths(new.images)
    assert len(new.images) == 2 * 4 * 8
    assert len(own) == 3
    assert not {path.parent.name for part in deal.sites for path in paths(part.images)} & set(new.candidates.names)


def test_as_many_base_classes_as_there_are_classes_leave_nothing_to_be_new(tmp_path: Path) -> None:
    setting = {"kind": "base-to-new", "base": 4, "sources": [], "targets": []}
    with pytest.raises(UserError, match="base is 4; the data have 4 classes"):
        opened(tmp_path, setting=setting, sites={"rule": "dirichlet", "counts": [3]}).deal(3, 0)


def test_a_site_holds_no_more_images_than_it_may(tmp_path: Path) -> None:
    deal = opened(tmp_path, sites={"most_images": 12}).deal(3, 0)
    assert [len(part.images) for part in deal.sites] == [12, 12, 12]


def test_images_of_one_patient_are_either_trained_on_or_measured_on(tmp_path: Path) -> None:
    write_images(tmp_path)
    rows = ["image,label,patient,site"]
    for at, path in enumerate(sorted((tmp_path / "squares").rglob("*.png"))):
        rows.append(f"{path},{path.parent.name},p{at // 2},site-{at % 6 // 2}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    data = {"folder": "table.csv", "layout": "manifest", "classes": list(COLOURS)}
    setting = {"kind": "personalised", "sources": [], "targets": []}
    deal = opened(tmp_path, data=data, setting=setting, sites={"rule": "site"}).deal(3, 0)

    def patients(images: ImageCollection) -> set[str | None]:
        return {record.patient for record in images.records}

    for part in deal.sites:
        own = next(test for test in deal.tests if test.site == part.name)
        assert not patients(part.images) & patients(own.images)


def break_image(folder: Path) -> None:
    (folder / "squares/dark/red/3.png").write_bytes(b"no image")


def empty_class(folder: Path) -> None:
    for path in (folder / "squares/dark/red").iterdir():
        path.unlink()


def unknown_label(folder: Path) -> None:
    (folder / "squares/dark/pink").mkdir()


def one_class(folder: Path) -> None:
    rows = ["image,label,site"]
    rows += [
        f"{path},{path.parent.name},{'lonely' if path.parent.name == 'red' else f's{at % 3}'}"
        for at, path in enumerate(sorted((folder / "squares").rglob("*.png")))
    ]
    (folder / "table.csv").write_text("\n".join(rows))


def patient_in_two_splits(folder: Path) -> None:
    rows = ["image,label,site,patient,split"]
    rows += [
        f"{path},{path.parent.name},s{at % 3},p{at // 2},{'train' if at % 2 else 'test'}"
        for at, path in enumerate(sorted((folder / "squares").rglob("*.png")))
    ]
    (folder / "table.csv").write_text("\n".join(rows))


TABLE = {
    "data": {"folder": "table.csv", "layout": "manifest", "classes": list(COLOURS)},
    "setting": {"kind": "personalised", "sources": [], "targets": []},
    "sites": {"rule": "site"},
}


@pytest.mark.parametrize(
    ("spoil", "changes", "named"),
    [
        (break_image, {}, ["squares/dark/red/3.png"]),
        (empty_class, {}, ["red", "squares/dark/red"]),
        (unknown_label, {}, ["pink"]),
        (one_class, TABLE, ["lonely", "'red'", "minimum of 2"]),
        (patient_in_two_splits, TABLE, ["column patient", "one patient"]),
        (lambda folder: None, {"sites": {"minimum": 33}}, ["dark has 32", "minimum of 33"]),
        (lambda folder: None, {"setting": {"targets": ["embossed"]}}, ["embossed"]),
        (lambda folder: None, {"sites": {"rule": "site"}}, ["site"]),
        (lambda folder: (folder / "colours.toml").write_text("title = 1"), {}, ["colours.toml"]),
    ],
)
def test_what_is_wrong_with_the_data_is_said_before_any_training(
    spoil: Any, changes: dict[str, Any], named: list[str], tmp_path: Path
) -> None:
    run = make_run(tmp_path, **changes)
    spoil(tmp_path)
    with pytest.raises(UserError) as refused:
        run_study(run, LocalEngine())
    assert all(part in refused.value.what for part in named), refused.value.what
    assert refused.value.remedy
    assert not list(run.out.rglob("*.parquet"))


def test_a_study_without_its_data_folder_says_what_to_pass(tmp_path: Path) -> None:
    run = replace(make_run(tmp_path), root=None)
    with pytest.raises(UserError, match="none was given") as refused:
        run_study(run, LocalEngine())
    assert "--data" in refused.value.remedy


def test_an_image_that_would_be_trained_on_and_measured_on_is_named(tmp_path: Path) -> None:
    setting = {"kind": "cross-dataset", "sources": [], "targets": []}
    sites = {"rule": "dirichlet", "counts": [3], "alpha": 5.0}
    others = [make_study(tmp_path).data.model_dump()]
    with pytest.raises(UserError, match=r"\.png would be trained on and measured on \(squares\)"):
        opened(tmp_path, setting=setting, sites=sites, others=others).deal(3, 0)


@pytest.mark.parametrize("names", [("Base", "b", "c"), ("all", "b", "c"), ("St. A", "st a", "c")])
def test_sites_that_the_results_could_not_tell_apart_are_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    write_images(tmp_path)
    rows = ["image,label,site"]
    for at, path in enumerate(sorted((tmp_path / "squares").rglob("*.png"))):
        rows.append(f"{path},{path.parent.name},{names[at % 3]}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    data = {"folder": "table.csv", "layout": "manifest", "classes": list(COLOURS)}
    kind = {"kind": "personalised"} if "all" in names else {"kind": "base-to-new", "base": 2}
    setting = {**kind, "sources": [], "targets": []}
    with pytest.raises(UserError, match="would be called") as raised:
        opened(tmp_path, data=data, setting=setting, sites={"rule": "site"}).deal(3, 0)
    assert "rename the site" in str(raised.value.remedy)


def joint_of(tmp_path: Path, unit: str, plain: str, shared: bool) -> Any:
    """Two tables of the same classes, one after the other, with or without an image or a patient in both."""
    write_images(tmp_path)
    images = sorted((tmp_path / "squares").rglob("*.png"))
    halves = [images[::2], [*images[1::2], *(images[::2] if shared and unit == "image" else [])]]
    sections = []
    for name, half in zip(("one", "two"), halves, strict=True):
        whose = "p" if shared and unit == "patient" else name
        lines = ["image,label,patient", *(f"{path},{path.parent.name},{whose}{at}" for at, path in enumerate(half))]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
        sections.append({"folder": f"{name}.csv", "layout": "manifest", "classes": list(COLOURS)})
    base = study_values(tmp_path)["data"]
    return opened(
        tmp_path,
        data=sections[0],
        joint=[{**base, **sections[1], "plain_template": plain, "base": 3}],
        setting={"kind": "base-to-new", "base": 3, "sources": [], "targets": []},
        sites={"rule": "class-blocks", "classes_per_site": 3 if shared else 2, "minimum": 2, "trains_over": "own"},
        methods=[{"name": "promptfl"}],
    )


@pytest.mark.parametrize("unit", ["image", "patient"])
def test_an_image_or_a_patient_in_two_data_sets_that_train_together_is_refused(unit: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{unit} .* is at one-csv-site-1 and at two-csv-site-1") as raised:
        joint_of(tmp_path, unit, "a picture of a {name}", shared=True)
    assert "one site" in str(raised.value.remedy)


def test_learned_words_need_sentences_that_begin_alike(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"'promptfl' learns the words .* 'a picture of a' and 'a very small'"
    ) as raised:
        joint_of(tmp_path, "image", "a very small {name}", shared=False)
    assert "plain_template" in str(raised.value.remedy)


def test_a_target_that_is_listed_twice_would_count_once_and_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="called 'framed'"):
        opened(tmp_path, setting={"targets": ["framed", "framed"]}).deal(3, 0)


def test_with_several_labels_an_image_no_site_trains_among_its_own_classes(tmp_path: Path) -> None:
    write_images(tmp_path)
    images = sorted((tmp_path / "squares").rglob("*.png"))
    lines = ["image,labels", *(f"{path},{path.parent.name}|red" for path in images)]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    data = {"folder": "table.csv", "layout": "manifest", "classes": list(COLOURS)}
    setting = {"kind": "personalised", "sources": [], "targets": []}
    with pytest.raises(UserError, match="several labels") as raised:
        opened(
            tmp_path, data=data, setting=setting, sites={"rule": "class-blocks", "counts": [3], "trains_over": "own"}
        )
    assert "all" in str(raised.value.remedy)


def test_sites_that_differ_by_more_than_domain_are_measured_on_what_they_held_out(tmp_path: Path) -> None:
    write_images(tmp_path)
    rows = ["image,label,site,split"]
    for at, path in enumerate(sorted((tmp_path / "squares").rglob("*.png"))):
        rows.append(f"{path},{path.parent.name},s{at % 3},{'test' if at % 4 == 0 else 'train'}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    data = {"folder": "table.csv", "layout": "manifest", "classes": list(COLOURS)}
    setting = {"kind": "personalised", "sources": [], "targets": []}
    deal = opened(tmp_path, data=data, setting=setting, sites={"rule": "site"}).deal(3, 0)
    own = [paths(test.images) for test in deal.tests if test.site]
    assert sum(map(len, own)) == len(set().union(*own))
    assert {record.site for test in deal.tests if test.site == "s1" for record in test.images.records} == {"s1"}


def test_a_delta_that_no_site_of_the_product_would_take_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="above one over 10 times the 26 records of dark"):
        opened(tmp_path, privacy={"delta": 5e-3}).deal(3, 0)
    opened(tmp_path, privacy={"delta": 5e-3, "modes": ["non-private"]}).deal(3, 0)


def test_patients_are_not_protected_where_nobody_names_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="some images have no patient"):
        opened(tmp_path, privacy={"unit": "patient"}).deal(3, 0)


def test_the_fingerprint_changes_with_sentences_and_images_and_not_with_their_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = opened(tmp_path / "a")
    assert opened(tmp_path / "b").fingerprint == first.fingerprint
    words = tmp_path / "b" / "colours.toml"
    words.write_text(words.read_text().replace("a red square", "a red patch"))
    assert opened(tmp_path / "b").fingerprint != first.fingerprint
    (tmp_path / "a" / "squares/dark/red/3.png").unlink()
    assert opened(tmp_path / "a").fingerprint != first.fingerprint
