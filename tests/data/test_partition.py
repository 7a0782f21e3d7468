from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmvp.data.manifests import read_manifest
from fedmvp.data.partition import (
    Partition,
    SiteShare,
    by_class_blocks,
    by_dirichlet,
    by_domain,
    by_patient,
    by_site,
    split_by_patient,
    write_manifests,
)
from fedmvp.data.records import ImageCollection, ImageRecord
from fedmvp.errors import UserError
from tests.data.drawings import draw

N_CLASSES = 5


@st.composite
def collections(draw_: st.DrawFn, *, multi_label: bool = False, patients: bool | None = None) -> ImageCollection:
    """Any collection; a patient has any number of images of any classes."""
    n_records = draw_(st.integers(1, 60))
    has_patients = draw_(st.booleans()) if patients is None else patients
    positions = st.integers(0, N_CLASSES - 1)
    labels = st.sets(positions, max_size=3) if multi_label else positions.map(lambda at: {at})
    records = tuple(
        ImageRecord(
            Path(f"{number}.png"),
            tuple(sorted(draw_(labels))),
            patient=str(draw_(st.integers(0, 12))) if has_patients else None,
            domain=draw_(st.sampled_from(["ct", "mr"])),
        )
        for number in range(n_records)
    )
    return ImageCollection(records, tuple("abcde"), Path("list.csv"), multi_label)


def assert_every_record_is_at_one_site(partition: Partition, collection: ImageCollection) -> None:
    held = sorted(index for share in partition.shares for index in share.indices)
    assert held == list(range(len(collection)))


def sites_of_patients(partition: Partition, collection: ImageCollection) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for share in partition.shares:
        for index in share.indices:
            if (patient := collection.records[index].patient) is not None:
                found.setdefault(patient, set()).add(share.name)
    return found


def assert_no_patient_is_at_two_sites(partition: Partition, collection: ImageCollection) -> None:
    assert all(len(sites) == 1 for sites in sites_of_patients(partition, collection).values())


@given(collections(patients=False), st.integers(1, 7))
def test_class_blocks_are_disjoint_contiguous_and_hold_every_record(collection: ImageCollection, length: int) -> None:
    partition = by_class_blocks(collection, classes_per_site=length)
    assert_every_record_is_at_one_site(partition, collection)
    assert [label for share in partition.shares for label in share.classes] == list(range(N_CLASSES))
    assert all(len(share.classes) == length for share in partition.shares[:-1])
    for share in partition.shares:
        assert {collection.records[index].labels[0] for index in share.indices} <= set(share.classes)


@given(collections(patients=False), st.integers(1, N_CLASSES))
def test_blocks_for_a_number_of_sites_differ_by_at_most_one_class(collection: ImageCollection, n_sites: int) -> None:
    sizes = [len(share.classes) for share in by_class_blocks(collection, n_sites=n_sites).shares]
    assert (len(sites := sizes), max(sites) - min(sites) <= 1) == (n_sites, True)


@settings(max_examples=60)
@given(
    st.booleans().flatmap(lambda several: collections(multi_label=several)),
    st.integers(1, 4),
    st.floats(0.05, 50),
    st.integers(0, 2**32),
)
def test_dirichlet_deals_every_record_once_parts_no_patient_and_follows_its_seed(
    collection: ImageCollection, n_sites: int, alpha: float, seed: int
) -> None:
    def deal() -> Partition | None:
        try:
            return by_dirichlet(collection, n_sites=n_sites, alpha=alpha, seed=seed)
        except UserError:  # fewer patients than sites, or an alpha that leaves one empty
            return None

    partition = deal()
    if partition is not None:
        assert_every_record_is_at_one_site(partition, collection)
        assert_no_patient_is_at_two_sites(partition, collection)
        assert all(share.indices for share in partition.shares)
    assert deal() == partition


@given(collections(patients=True), st.integers(1, 4), st.integers(0, 2**32))
def test_dealing_by_patient_parts_nobody_and_follows_its_seed(
    collection: ImageCollection, n_sites: int, seed: int
) -> None:
    if len({record.patient for record in collection.records}) < n_sites:
        with pytest.raises(UserError, match="fewer patients than"):
            by_patient(collection, n_sites=n_sites, seed=seed)
        return
    partition = by_patient(collection, n_sites=n_sites, seed=seed)
    assert_every_record_is_at_one_site(partition, collection)
    assert_no_patient_is_at_two_sites(partition, collection)
    assert all(share.indices for share in partition.shares)
    assert by_patient(collection, n_sites=n_sites, seed=seed) == partition


def test_the_check_for_parted_patients_catches_a_rule_that_parts_them() -> None:
    records = tuple(ImageRecord(Path(f"{at}.png"), (0,), patient="p") for at in range(4))
    collection = ImageCollection(records, ("a",), Path("list.csv"))
    careless = Partition("every second", (SiteShare("x", (0, 2), (0,)), SiteShare("y", (1, 3), (0,))), 4)
    with pytest.raises(AssertionError):
        assert_no_patient_is_at_two_sites(careless, collection)


@given(collections(), st.integers(0, 2**32))
def test_no_patient_is_in_two_splits(collection: ImageCollection, seed: int) -> None:
    try:
        split = split_by_patient(collection, fractions={"train": 0.6, "test": 0.4}, seed=seed)
    except UserError:
        assert len({record.patient or record.path for record in collection.records}) < 3
        return
    found: dict[str, set[str | None]] = {}
    for record in split.records:
        found.setdefault(record.patient or str(record.path), set()).add(record.split)
    assert all(len(splits) == 1 for splits in found.values())
    assert {record.split for record in split.records} == {"train", "test"}
    assert [replace(record, split=None) for record in split.records] == list(collection.records)


@pytest.mark.parametrize(
    "indices", [((0, 1), (1, 2)), ((0,), (2,)), ((0, 1), (2, 3))], ids=["twice", "missing", "too many"]
)
def test_a_partition_cannot_hold_a_record_twice_or_lose_one(indices: tuple[tuple[int, ...], ...]) -> None:
    shares = tuple(SiteShare(f"s{at}", held, (0,)) for at, held in enumerate(indices))
    with pytest.raises(ValueError, match="exactly one site"):
        Partition("x", shares, 3)


def small(**columns: tuple[str, ...]) -> ImageCollection:
    records = tuple(
        ImageRecord(Path(f"{at}.png"), (at % 2,), **{name: values[at] for name, values in columns.items()})
        for at in range(4)
    )
    return ImageCollection(records, ("cat", "dog"), Path("list.csv"))


def test_domains_and_sites_become_sites_in_their_order() -> None:
    by = by_domain(small(domain=("ct", "mr", "mr", "ct")))
    assert [(share.name, share.indices) for share in by.shares] == [("ct", (0, 3)), ("mr", (1, 2))]
    assert [share.name for share in by_site(small(site=("south", "north", "south", "north"))).shares] == [
        "south",
        "north",
    ]


@pytest.mark.parametrize(("rule", "column"), [(by_domain, "domain"), (by_site, "site")])
def test_an_image_without_the_column_is_named(rule: Callable[[ImageCollection], Partition], column: str) -> None:
    with pytest.raises(UserError, match=rf"list.csv, column {column}: image 0.png has none"):
        rule(small())
    with pytest.raises(UserError, match="column patient"):
        by_patient(small(), n_sites=2, seed=0)


def test_a_patient_at_two_sites_is_refused_by_the_files_and_not_by_name() -> None:
    parted = small(patient=("Ada", "Ada", "Bob", "Bob"), domain=("ct", "mr", "mr", "ct"))
    for deal in (by_domain, lambda collection: by_class_blocks(collection, classes_per_site=1)):
        with pytest.raises(UserError, match=r"images 0.png of .* and 1.png of .* are of one patient") as caught:
            deal(parted)
        assert "Ada" not in caught.value.what


def test_a_small_alpha_is_more_one_sided_than_a_large_one() -> None:
    records = tuple(ImageRecord(Path(f"{at}.png"), (at % N_CLASSES,)) for at in range(1000))
    collection = ImageCollection(records, tuple("abcde"), Path("x"))

    def spread(alpha: float) -> float:
        partition = by_dirichlet(collection, n_sites=4, alpha=alpha, seed=1)
        counts = np.array([collection.take(share.indices).label_matrix().sum(axis=0) for share in partition.shares])
        return float((counts / counts.sum(axis=0)).std())

    assert spread(0.1) > 3 * spread(100)


@pytest.mark.parametrize(
    ("deal", "message"),
    [
        (by_class_blocks, "either classes per site or a number"),
        (lambda c: by_class_blocks(c, n_sites=1, classes_per_site=1), "either classes per site or a number"),
        (lambda c: by_class_blocks(c, classes_per_site=0), "classes per site: 0"),
        (lambda c: by_class_blocks(c, n_sites=3), "2 classes cannot be dealt to 3 sites"),
        (lambda c: by_class_blocks(replace(c, multi_label=True), n_sites=2), "no class block"),
        (lambda c: by_dirichlet(c, n_sites=2, alpha=0, seed=0), "alpha is 0"),
        (lambda c: by_dirichlet(c, n_sites=0, alpha=1, seed=0), "sites: 0"),
        (lambda c: by_dirichlet(c, n_sites=2, alpha=1, seed=-1), "seed is -1"),
        (lambda c: by_dirichlet(c, n_sites=2, alpha=1, seed=0, minimum_records=3), "draws with alpha 1"),
        (lambda c: split_by_patient(c, fractions={"train": 0.5}, seed=0), "do not split"),
        (lambda c: split_by_patient(c, fractions={"dev": 1.0}, seed=0), "do not split"),
        (lambda c: split_by_patient(c, fractions={"train": 0.95, "test": 0.05}, seed=0), "no patient is left"),
    ],
)
def test_a_parameter_out_of_range_is_refused_with_a_remedy(
    deal: Callable[[ImageCollection], object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        deal(small())
    assert caught.value.remedy


def test_a_site_in_class_blocks_sees_its_own_classes_only() -> None:
    records = tuple(ImageRecord(Path(f"{at}.png"), (at % 4,)) for at in range(8))
    collection = ImageCollection(records, tuple("abcd"), Path("x"))
    second = by_class_blocks(collection, classes_per_site=2).at("site-2", collection)
    assert second.classes == ("c", "d")
    assert sorted(record.labels[0] for record in second.records) == [0, 0, 1, 1]
    with pytest.raises(KeyError):
        by_class_blocks(collection, classes_per_site=2).at("site-9", collection)


@pytest.mark.parametrize("multi_label", [False, True])
def test_what_is_written_for_a_site_is_read_back_the_same(tmp_path: Path, multi_label: bool) -> None:
    records = tuple(
        ImageRecord(draw(tmp_path / f"{at}.png"), (0, 1) if multi_label else (at % 2,), patient=f"p{at}", split="train")
        for at in range(6)
    )
    collection = ImageCollection(records, ("cat", "dog"), tmp_path, multi_label)
    partition = by_patient(collection, n_sites=2, seed=3)
    for path, share in zip(write_manifests(partition, collection, tmp_path / "sites"), partition.shares, strict=True):
        assert read_manifest(path, ("cat", "dog"), require_every_class=False).records == tuple(
            records[index] for index in share.indices
        )
