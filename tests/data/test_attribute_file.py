from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pytest

from fedmvp.data.attribute_file import (
    GUIDE,
    MAX_WORDS,
    AttributeFile,
    as_toml,
    attributes_from,
    load_attributes,
    packaged_attributes,
    packaged_names,
    review_attributes,
)
from fedmvp.errors import UserError
from fedmvp.model.supported import EMBEDDED_NAMES
from fedmvp.model.tokens import token_counter
from fedmvp.study.policy import parse_policy
from tests.docs.documents import ROOT

GOOD = """
format = "fedmvp/attributes/v1"
title = "Two pets"
source = "the authors"
date = 2025-03-01
licence = "CC0-1.0"
[[classes]]
name = "cat"
attributes = ["whiskers", "soft fur"]
[[classes]]
name = "dog"
attributes = ["a wet nose", "the soft fur.", "a leash"]
"""


def written(path: Path, text: str = GOOD) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_classes_keep_their_order_and_their_own_number_of_attributes(tmp_path: Path) -> None:
    file = load_attributes(written(tmp_path / "a.toml"))
    assert file.class_names == ("cat", "dog")
    assert [len(item.attributes) for item in file.classes] == [2, 3]
    assert file.date == dt.date(2025, 3, 1)
    assert [item.name for item in file.for_classes(["dog", "cat"])] == ["dog", "cat"]


def test_json_says_the_same_as_toml(tmp_path: Path) -> None:
    file = load_attributes(written(tmp_path / "a.toml"))
    path = written(tmp_path / "a.json", json.dumps(file.model_dump(mode="json")))
    assert load_attributes(path) == file
    assert load_attributes(written(tmp_path / "b.toml", as_toml(file))) == file


def test_a_class_without_attributes_is_an_error_that_names_it(tmp_path: Path) -> None:
    file = load_attributes(written(tmp_path / "a.toml"))
    with pytest.raises(UserError, match="lacks 2 of 3 classes: dogs, owl") as caught:
        file.for_classes(["cat", "dogs", "owl"])
    assert "did you mean 'dog'?" in caught.value.remedy
    assert review_attributes(file, ["cat", "owl"]).missing == ("owl",)
    assert review_attributes(file, ["cat", "owl"]).unused == ("dog",)


def test_an_attribute_that_two_classes_share_is_found_whatever_its_article(tmp_path: Path) -> None:
    file = load_attributes(written(tmp_path / "a.toml"))
    assert review_attributes(file, file.class_names).shared == (("soft fur", ("cat", "dog")),)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"soft fur"]', '"A soft fur", "soft  Fur"]', "class 'cat' has the attribute 'soft  Fur' twice"),
        ('name = "dog"', 'name = "CAT"', "class 'CAT' is listed twice"),
        ('["whiskers", "soft fur"]', "[]", r"\[0\].attributes"),
        ('"whiskers"', '"{whiskers}"', "holds braces"),
        ('"whiskers"', '"   "', "is empty"),
        ('"whiskers"', f'"{"very " * MAX_WORDS}long"', f"more than {MAX_WORDS} words"),
        ("date = 2025-03-01", 'date = "last spring"', "date"),
        ('licence = "CC0-1.0"', "", "missing key .*licence"),
        ('licence = "CC0-1.0"', 'license = "CC0-1.0"', "unknown key .*license"),
        ("attributes/v1", "attributes/v9", "format"),
        ("[[classes]]", "[[classes]", "not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_where_to_read_the_schema(old: str, new: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.toml", GOOD.replace(old, new, 1))
    with pytest.raises(UserError, match=message) as caught:
        load_attributes(path)
    assert str(path) in caught.value.what
    if "TOML" not in message:
        assert GUIDE in caught.value.remedy


def test_a_missing_file_and_an_unknown_name_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        attributes_from(str(tmp_path / "a.toml"))
    with pytest.raises(UserError, match="no attribute file 'pasc'") as caught:
        attributes_from("pasc")
    assert "did you mean pacs?" in caught.value.remedy


@pytest.mark.parametrize("name", packaged_names())
def test_the_packages_own_files_say_six_to_ten_different_things_of_every_class(name: str) -> None:
    file = packaged_attributes(name)
    assert all(6 <= len(item.attributes) <= 10 for item in file.classes)
    assert review_attributes(file, file.class_names).shared == ()
    assert file.licence == "Apache-2.0"
    source = (ROOT / "fedmvp" / "data" / "attributes" / f"{name}.toml").read_text(encoding="utf-8")
    assert as_toml(file) == source


@pytest.mark.parametrize("name", packaged_names())
def test_no_attribute_of_the_package_is_longer_than_a_text_tower_reads(name: str) -> None:
    for backbone in (*EMBEDDED_NAMES, "ViT-B-16"):
        count, room = token_counter(backbone)
        for item in packaged_attributes(name).classes:
            for attribute in item.attributes:
                assert count(f"a photo of a {item.name}, which has {attribute}") <= room


def test_a_tower_that_reads_less_would_be_noticed() -> None:
    count, room = token_counter("ViT-B-16")
    assert room == 75
    assert count("word " * 76) > room


def test_the_digits_file_begins_with_the_demos_attributes() -> None:
    demo = parse_policy((ROOT / "demo" / "policy.toml").read_bytes()).task.classes
    for own, item in zip(packaged_attributes("digits").classes, demo, strict=True):
        assert own.name == item.name
        assert own.attributes[: len(item.attributes)] == item.attributes


def test_a_file_serves_a_policy_as_it_is() -> None:
    file = packaged_attributes("pacs")
    assert isinstance(file, AttributeFile)
    assert file.for_classes(("person", "dog"))[0].attributes == file.classes[-1].attributes


def test_the_example_of_the_guide_is_a_file_that_is_read(tmp_path: Path) -> None:
    guide = (ROOT / GUIDE).read_text(encoding="utf-8")
    example = guide[guide.index("    format = ") : guide.index("The same keys as JSON")]
    file = load_attributes(written(tmp_path / "a.toml", example.replace("\n    ", "\n").strip()))
    assert file.class_names == ("effusion", "no effusion")
    assert f"most {MAX_WORDS} words" in guide
