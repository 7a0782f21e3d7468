from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fedmvp.data.manifests import read_manifest
from fedmvp.errors import UserError
from tests.data.drawings import draw

CLASSES = ("cat", "dog")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        draw(tmp_path / f"{name}.png")
    return tmp_path / "list.csv"


def test_every_column_finds_its_place(table: Path) -> None:
    table.write_text(
        "path,label,site,patient,domain,split,age\na.png,dog,north,p1,ct,train,40\nb.png,cat,south,p2,mr,test,50\n",
        encoding="utf-8-sig",
    )
    first, second = read_manifest(table, CLASSES).records
    assert (first.path, first.labels, first.site, first.patient, first.domain, first.split) == (
        table.parent / "a.png",
        (1,),
        "north",
        "p1",
        "ct",
        "train",
    )
    assert (second.labels, second.split) == ((0,), "test")


def test_several_labels_are_separated_by_bars_and_may_be_none(table: Path) -> None:
    table.write_text("image,labels\na.png,dog|cat\nb.png,\nc.png, cat | cat \n")
    read = read_manifest(table, CLASSES)
    assert read.multi_label
    assert [record.labels for record in read.records] == [(0, 1), (), (0,)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\nz.png,cat\n", "line 2 of .*list.csv, column path: image .*z.png does not exist"),
        ("path,label\n,cat\n", "column path"),
        ("path,label\na.png,cat\nb.png,dgo\n", "line 3 of .*list.csv, column label: 'dgo' is no class"),
        ("path,labels\na.png,cat|lion\n", "column labels: 'lion' is no class"),
        ("path,label,patient\na.png,cat,p\nb.png,dog,\n", "line 3 .*column patient is empty"),
        ("path,label,patient_id\na.png,cat,p\n", "column 'patient_id', which is not read"),
        ("path,label,split\na.png,cat,dev\nb.png,dog,test\n", "split 'dev'"),
        ("file,label\na.png,cat\n", "no column path"),
        ("path,label,labels\na.png,cat,cat\n", "2 of the columns label and labels"),
        ("path,label\na.png,cat\na.png,dog\n", "a.png is listed twice"),
        ("path,label\na.png,cat,dog\n", "more cells than columns"),
        ("path,label\n", "holds no images"),
        ("path,label\na.png,cat\n", "class 'dog' of the study has no images"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_column(text: str, message: str, table: Path) -> None:
    table.write_text(text)
    with pytest.raises(UserError, match=message):
        read_manifest(table, CLASSES)


def test_a_site_may_hold_some_of_the_classes(table: Path) -> None:
    table.write_text("path,label\na.png,cat\n")
    assert len(read_manifest(table, CLASSES, require_every_class=False)) == 1


def test_a_table_that_is_missing_or_not_text_is_named(table: Path) -> None:
    with pytest.raises(UserError, match=r"list\.csv does not exist"):
        read_manifest(table, CLASSES)
    table.write_bytes(b"path,label\n\xff\xfe\x00,cat\n")
    with pytest.raises(UserError, match="UTF-8"):
        read_manifest(table, CLASSES)


def test_a_parquet_table_gives_the_same_records_as_the_csv(table: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table.write_text("path,labels,patient\na.png,dog|cat,1\nb.png,,2\nc.png,cat,2\n")
    written = {"path": ["a.png", "b.png", "c.png"], "labels": [["dog", "cat"], [], ["cat"]], "patient": [1, 2, 2]}
    parquet.write_table(pyarrow.table(written), table.with_suffix(".parquet"))
    from_csv = read_manifest(table, CLASSES)
    from_parquet = read_manifest(table.with_suffix(".parquet"), CLASSES)
    assert from_parquet.records == from_csv.records


def test_a_mistake_in_a_parquet_table_is_named_with_its_row(table: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = table.with_suffix(".parquet")
    parquet.write_table(pyarrow.table({"path": ["a.png", "b.png"], "label": ["cat", "dgo"]}), path)
    with pytest.raises(UserError, match=r"row 2 of .*parquet, column label: 'dgo'"):
        read_manifest(path, CLASSES)
    path.write_bytes(b"no table")
    with pytest.raises(UserError, match="is not a Parquet file"):
        read_manifest(path, CLASSES)


def test_a_parquet_table_without_its_extra_is_one_message_that_names_it(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table.with_suffix(".parquet")
    path.touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match="needs the package pyarrow") as caught:
        read_manifest(path, CLASSES)
    assert "fedmvp[parquet]" in caught.value.remedy
