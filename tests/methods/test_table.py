from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fedmvp.errors import UserError
from fedmvp.methods.classes import ClassSet, Wording
from fedmvp.methods.features import read_images
from fedmvp.methods.fedtpg import FedTpg
from fedmvp.methods.method import Reads
from fedmvp.methods.table import METHODS, method_of
from fedmvp.methods.tower import FrozenTower
from fedmvp.model.clip_library import open_clip
from fedmvp.model.loading import random_backbone
from fedmvp.model.parameters import dimension
from fedmvp.model.task import Task, TaskClass
from tests.methods.toys import CLASSES, TOWER
from tests.model.tiny import random_images

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `([a-z-]+)` \|[^|]*\|([^|]*)\|", PAGE, re.MULTILINE))


def test_the_page_lists_the_methods_of_the_table_in_their_order() -> None:
    assert list(ROWS) == list(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_table_builds_and_answers(name: str) -> None:
    model = method_of(name).build(TOWER, CLASSES)
    logits = model(read_images(model, random_images(2)).tensors)
    assert logits.shape == (2, len(CLASSES))
    assert torch.isfinite(logits).all()


def test_an_unknown_method_is_told_which_there_are() -> None:
    with pytest.raises(UserError, match="no method 'fedprompt'") as raised:
        method_of("fedprompt")
    assert "fedvpt" in str(raised.value.remedy)


def test_only_those_that_say_so_train_through_the_towers() -> None:
    through_text = {name for name, method in METHODS.items() if Reads.TEXT in method.reads}
    assert through_text == {"promptfl", "fedtpg"}
    assert not any(Reads.TOKENS in method.reads for method in METHODS.values())  # a choice of a study, not a default
    assert {name for name, method in METHODS.items() if not method.names_classes} == {"linear-probe"}


@pytest.mark.long
def test_the_page_counts_the_parameters_at_vit_b_16() -> None:
    tower = FrozenTower(random_backbone(open_clip.get_model_config("ViT-B-16"), seed=0))
    tower.centre = lambda: torch.zeros(512)  # type: ignore[method-assign]
    seven = ClassSet(Task(tuple(TaskClass(f"class {i}", ("a part",)) for i in range(7))))
    found = {name: dimension(method.build(tower, seven)) for name, method in METHODS.items()}
    stated = {name: int(re.sub(r"\D.*", "", cell.strip().replace(",", ""))) for name, cell in ROWS.items()}
    assert found == stated


def test_a_heads_number_that_does_not_divide_the_width_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of n_heads"):
        FedTpg(width=10, n_heads=4)


def test_a_class_set_says_its_classes_in_both_wordings() -> None:
    classes = ClassSet(CLASSES.task, "a drawing of a {name}, a thing")
    assert classes.sentences(Wording.TEMPLATE)[1] == ("a drawing of a car, a thing",)
    assert classes.sentences(Wording.ATTRIBUTES)[1] == CLASSES.sentences(Wording.ATTRIBUTES)[1]
    assert classes.first_words(Wording.TEMPLATE) == "a drawing of a"
    assert classes.first_words(Wording.ATTRIBUTES) == "a photo of a"
    assert classes.subset(("tree", "cat")).names == ("tree", "cat")
    assert len(classes.subset(("tree",))) == 1


def test_a_class_that_is_not_there_and_a_template_without_a_name_are_refused() -> None:
    with pytest.raises(UserError, match="'dog' is not among the classes cat, car, tree"):
        CLASSES.subset(("dog",))
    with pytest.raises(UserError, match=r"must hold \{name\} once"):
        ClassSet(CLASSES.task, "a photo")


def test_a_tower_encodes_a_class_set_once() -> None:
    first = TOWER.classifier(CLASSES, Wording.TEMPLATE)
    assert TOWER.classifier(ClassSet(CLASSES.task), Wording.TEMPLATE) is first
    assert TOWER.bank(ClassSet(CLASSES.task)) is TOWER.bank(CLASSES)
    assert TOWER.classifier(CLASSES, Wording.ATTRIBUTES) is TOWER.bank(CLASSES).classifier
    assert not torch.equal(first, TOWER.bank(CLASSES).classifier)
