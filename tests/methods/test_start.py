"""Before training, a method is zero-shot CLIP where it says so."""

from __future__ import annotations

import pytest
import torch

from fedmvp.methods.classes import ClassSet
from fedmvp.methods.features import read_images
from fedmvp.methods.method import MethodModel
from fedmvp.methods.zero_shot import ZeroShot
from fedmvp.model.parameters import dimension
from tests.methods.toys import CLASSES, EVERY, TOWER, TRAINED, UNSEEN, build
from tests.model.tiny import disturb, random_images

IMAGES = random_images(6)
NEUTRAL = [name for name, method in EVERY.items() if method.neutral_start]


def check_neutral(name: str, model: MethodModel, classes: ClassSet) -> None:
    """Assert that the logits are zero-shot CLIP's, to the rounding of a feature of norm one."""
    wording = EVERY[name].neutral_start
    assert wording
    floor = ZeroShot(wording).build(TOWER, classes)
    with torch.no_grad():
        found, wanted = model(read_images(model, IMAGES).tensors), floor(read_images(floor, IMAGES).tensors)
    assert (found - wanted).abs().max() < 1e-5 * TOWER.backbone.logit_scale, "it does not start at zero-shot"


@pytest.mark.parametrize("classes", [CLASSES, UNSEEN], ids=["seen", "unseen"])
@pytest.mark.parametrize("name", NEUTRAL)
def test_before_training_it_is_zero_shot_clip_for_any_class_set(name: str, classes: ClassSet) -> None:
    check_neutral(name, build(name, classes), classes)


@pytest.mark.parametrize("name", [name for name in NEUTRAL if name in TRAINED])
def test_control_parameters_that_are_not_the_start_are_told_from_it(name: str) -> None:
    model = build(name)
    disturb(model)
    with pytest.raises(AssertionError, match="does not start"):
        check_neutral(name, model, CLASSES)


def test_the_probe_starts_without_an_opinion_and_keeps_none_of_unseen_classes() -> None:
    model = build("linear-probe")
    assert not model(read_images(model, IMAGES).tensors).any()
    mixed = ClassSet(type(CLASSES.task)((*UNSEEN.task.classes, CLASSES.task.classes[1])))
    other = build("linear-probe", mixed)
    disturb(other)
    logits = other(read_images(other, IMAGES).tensors)
    assert not logits[:, :2].any()
    assert logits[:, 2].all()
    assert EVERY["linear-probe"].neutral_start is None


def test_only_zero_shot_trains_nothing() -> None:
    assert [name for name in EVERY if not dimension(build(name))] == ["zero-shot-template", "zero-shot-attributes"]
