"""FedMVP with a linear probe trained beside its prompts."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fedmvp.errors import UserError
from fedmvp.experiments.options import method_with_options
from fedmvp.experiments.study import MethodEntry
from fedmvp.methods.classes import ClassSet
from fedmvp.methods.features import read_images
from fedmvp.methods.fedmvp import FedMvp
from fedmvp.methods.task_residual import TaskResidual
from fedmvp.model.parameters import dimension
from fedmvp.model.probe import LinearProbe
from fedmvp.model.task import Task, TaskClass
from tests.methods.toys import CLASSES, SMALL, TOWER
from tests.model.tiny import random_images

DOG = TaskClass("dog", ("a wet nose",))
MIXED = ClassSet(Task((CLASSES.task.classes[1], DOG)))
PIXELS = random_images(3)


def test_the_probes_logits_are_added_for_trained_classes_alone() -> None:
    alone = FedMvp(SMALL).build(TOWER, MIXED, trained=CLASSES)
    both = FedMvp(replace(SMALL, probe_gain=3.0)).build(TOWER, MIXED, trained=CLASSES)
    (layer,) = [part for part in both.modules() if isinstance(part, nn.Linear) and part.out_features == len(CLASSES)]
    with torch.no_grad():
        layer.weight.normal_(generator=torch.Generator().manual_seed(0))
    features = read_images(both, PIXELS).tensors
    probe = LinearProbe(TOWER.backbone.joint_width, len(CLASSES), centre=TOWER.centre(), bias=False)
    probe.layer.load_state_dict(layer.state_dict())
    with torch.no_grad():
        added = both(features) - alone(features)
        torch.testing.assert_close(added[:, 0], 3 * probe(features["zero_shot"])[:, 1], atol=1e-4, rtol=1e-4)
    assert added[:, 0].abs().min() > 0
    assert not added[:, 1].any()


def test_without_prompts_it_is_the_task_residual() -> None:
    alone = TaskResidual(3.0).build(TOWER, MIXED, trained=CLASSES)
    both = FedMvp(replace(SMALL, probe_gain=3.0)).build(TOWER, MIXED, trained=CLASSES)
    (rows,) = alone.parameters()
    with torch.no_grad():
        rows.normal_(generator=torch.Generator().manual_seed(0))
        next(p for p in both.parameters() if p.shape == rows.shape).copy_(rows)
        torch.testing.assert_close(
            alone(read_images(alone, PIXELS).tensors), both(read_images(both, PIXELS).tensors), atol=1e-4, rtol=1e-4
        )


def test_without_a_gain_there_is_nothing_to_train_but_prompts() -> None:
    sizes = [dimension(FedMvp(replace(SMALL, probe_gain=gain)).build(TOWER, CLASSES)) for gain in (0.0, 1.0)]
    assert sizes[1] - sizes[0] == TOWER.backbone.joint_width * len(CLASSES)


@pytest.mark.parametrize("gain", [-1.0, float("nan"), float("inf")])
def test_a_gain_that_is_none_is_refused(gain: float) -> None:
    for method in (FedMvp(replace(SMALL, probe_gain=gain)), TaskResidual(gain)):
        with pytest.raises(UserError, match="probe_gain"):
            method.build(TOWER, CLASSES)


def test_a_study_chooses_the_gain_beside_the_sizes() -> None:
    entry = MethodEntry(name="mine", method="fedmvp-narrow", options={"probe_gain": 2.0, "n_prompts": 4})
    method = method_with_options(entry, {"bottleneck_width": 8})
    assert isinstance(method, FedMvp)
    assert (method.config.probe_gain, method.config.n_prompts, method.config.bottleneck_width) == (2.0, 4, 8)
    with pytest.raises(UserError, match="no option 'gain'") as raised:
        method_with_options(entry.model_copy(update={"options": {"gain": 2.0}}))
    assert "probe_gain" in str(raised.value.remedy)
