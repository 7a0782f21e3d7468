"""The estimate of memory: exact where tensors are counted, conservative where a process is measured."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmvp.errors import ExitCode, UserError
from fedmvp.model.attributes import AttributeBank
from fedmvp.model.backbone import Backbone
from fedmvp.model.clip_library import open_clip
from fedmvp.model.embedded import build_clip
from fedmvp.model.features import FrozenFeatures, extract_features
from fedmvp.model.parameters import get_vector
from fedmvp.model.prompt_config import Injection, NeutralStart, PromptConfig, Variant
from fedmvp.model.prompted import PromptedModel
from fedmvp.model.supported import require_supported
from fedmvp.training.free_memory import GIB
from fedmvp.training.live_bytes import counted
from fedmvp.training.local import prompt_records
from fedmvp.training.memory import (
    Allocator,
    MemoryRequest,
    Rehearsal,
    StepMemory,
    fit_physical_batch,
    measure_step,
    plan_memory,
)
from privacy import Mode, PrivacyParameters
from privacy.gradient_sums import GradientSums
from privacy.records import as_records, invent_records
from tests.model.tiny import CHOICES, random_images, tiny_model
from tests.training.memory_case import Case, Measured, measure

MEASURED = [
    Case(Variant.NARROW, Injection.INPUT, 24),
    Case(Variant.FULL, Injection.LAST_BLOCK, 48),
    Case(Variant.NARROW, Injection.INPUT, 96),
]
MOST = 3.0
"""An estimate further above what was measured would refuse pieces that fit."""

KINDS = [(mode, unit) for mode in (Mode.RECORD_LOCAL, Mode.UNSAFE_NO_DP) for unit in ("record", "patient")]


def check_conservative(estimate: int, measured: Measured) -> None:
    """Assert that an estimate is enough, and not far too much."""
    assert estimate >= measured.grown, "the estimate is too small"
    assert estimate <= MOST * measured.grown + measured.memory.allocator.reserve, "the estimate is uselessly large"


@pytest.mark.parametrize("case", MEASURED, ids=str)
def test_the_estimate_is_above_what_a_process_grows_by_and_not_far_above(case: Case) -> None:
    measured = measure(case)
    check_conservative(measured.memory.peak(case.records), measured)
    if case is MEASURED[-1]:  # control: what the forward pass keeps is what makes the estimate enough
        margin, kept = measured.memory.allocator.margin, measured.memory.activations(case.records)
        with pytest.raises(AssertionError, match="too small"):
            check_conservative(measured.memory.peak(case.records) - math.ceil(margin * kept), measured)


def sums_of(model: PromptedModel, params: PrivacyParameters) -> tuple[GradientSums, tuple[Tensor, ...]]:
    data, loss = prompt_records(model, features_of(model), torch.zeros(2, dtype=torch.int64))
    return GradientSums(model, loss, params), data


def features_of(model: PromptedModel) -> FrozenFeatures:
    return extract_features(model, random_images(2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("choice", CHOICES)
def test_small_rehearsals_tell_the_tensors_of_a_larger_piece(
    choice: tuple[Variant, Injection, NeutralStart], kind: tuple[Mode, str], params: PrivacyParameters
) -> None:
    sums, data = sums_of(tiny_model(*choice), replace(params, mode=kind[0], unit=kind[1]))
    memory = measure_step(sums, data, most=4)
    assert [rehearsal.records for rehearsal in memory.rehearsals] == [2, 4]
    with counted(sums.device) as live:
        sums.rehearse(invent_records(as_records(data), sums.device, 19))
    same = len(live.trace) == len(memory.rehearsals[0].trace) == len(memory.rehearsals[1].trace)
    assert max(live.trace) <= memory.tensors(19) <= max(live.trace) * (1 if same else 2)
    assert memory.activations(19) == live.kept
    assert 0 < memory.activations(19) < memory.tensors(19)


def test_what_was_rehearsed_is_not_extrapolated(params: PrivacyParameters) -> None:
    sums, data = sums_of(tiny_model(), params)
    memory = measure_step(sums, data, most=19)
    assert [rehearsal.records for rehearsal in memory.rehearsals] == [2, 4, 8, 16, 19]
    assert [memory.tensors(records) for records in (4, 19)] == [memory.rehearsals[place].peak for place in (1, 4)]
    assert memory.rehearsals[0].peak == memory.tensors(1) <= memory.tensors(3) <= memory.tensors(4)


def test_rehearsals_end_where_they_become_large(params: PrivacyParameters, monkeypatch: pytest.MonkeyPatch) -> None:
    sums, data = sums_of(tiny_model(), params)
    monkeypatch.setattr("fedmvp.training.memory.REHEARSED_BYTES", 1)
    assert [rehearsal.records for rehearsal in measure_step(sums, data, most=100).rehearsals] == [2, 4]


def test_a_rehearsal_leaves_parameters_modes_and_gradients_as_they_were(params: PrivacyParameters) -> None:
    for mode in (Mode.RECORD_LOCAL, Mode.UNSAFE_NO_DP):
        model = tiny_model()
        sums, data = sums_of(model, replace(params, mode=mode))
        before, training = get_vector(model), [part.training for part in model.modules()]
        sums.rehearse(invent_records(as_records(data), sums.device, 3))
        assert np.array_equal(get_vector(model), before)
        assert [part.training for part in model.modules()] == training
        for parameter in sums.trained:
            left = (getattr(parameter, name, None) for name in ("grad", "grad_sample", "summed_grad"))
            assert all(value is None for value in left)


def test_only_what_operations_make_is_counted_and_only_while_it_lives() -> None:
    there = torch.ones(1000)
    with counted(torch.device("cpu")) as live:
        doubled = there * 2  # 4,000 bytes
        view = doubled[:10]
        del doubled
        other = view + 1  # 40
        del view
        elsewhere = torch.empty(1000, device="meta") * 2
        there.add_(1)
    assert live.trace == [4000, 4000, 4040, 40, 40, 40]
    assert (len(other), len(elsewhere), live.kept) == (10, 1000, 0)


def rehearsals(*traces: list[int]) -> tuple[Rehearsal, ...]:
    """Of two and four records."""
    return tuple(Rehearsal(2 * place, np.array(trace), 0) for place, trace in enumerate(traces, start=1))


def test_pieces_that_run_other_operations_are_extrapolated_in_proportion() -> None:
    memory = StepMemory(rehearsals([10, 20], [10, 30, 20]), 0, Allocator(1.0, 0))
    assert [memory.tensors(records) for records in (1, 3, 4, 8)] == [20, 25, 30, 60]


def test_pieces_that_run_the_same_operations_peak_where_the_steepest_of_them_leads() -> None:
    memory = StepMemory(rehearsals([10, 2, 1], [10, 6, 1]), 0, Allocator(1.0, 0))
    assert [memory.tensors(records) for records in (4, 6, 8)] == [10, 10, 14]


@lru_cache(maxsize=1)
def vit_b_16() -> Backbone:
    """The shapes of ViT-B/16, without weights."""
    with torch.device("meta"):
        model = build_clip(require_supported("ViT-B-16"))
    mean = (0.5, 0.5, 0.5)
    return Backbone(model, open_clip.SimpleTokenizer(), name="ViT-B-16", image_mean=mean, image_std=mean, device="meta")


@pytest.mark.parametrize("injection", Injection)
@pytest.mark.parametrize("variant", Variant)
def test_a_gpu_of_eight_gigabytes_trains_vit_b_16_at_a_batch_of_256_in_pieces(
    variant: Variant, injection: Injection, params: PrivacyParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backbone, "logit_scale", 100.0)
    monkeypatch.setattr(AttributeBank, "conditioning", property(lambda bank: bank.attributes.flatten(0, 1)))
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: tensor)  # nothing can leave a device that has no memory
    monkeypatch.setattr(Tensor, "__bool__", lambda _tensor: True)  # of what an engine asks: whether all is finite
    backbone = vit_b_16()
    with torch.device("meta"):
        bank = AttributeBank(torch.ones(20, 10, 512), torch.ones(20, 10).bool(), torch.ones(20, 512), ("a",) * 20)
        model = PromptedModel(backbone, bank, PromptConfig(variant, injection, bottleneck_width=8))
        data = records_of(model)

    def loss(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        features = dict(zip(model.feature_names, batch, strict=False))
        return model.loss_per_sample(module(features), features, batch[-1])

    memory = measure_step(GradientSums(model, loss, params), data, most=4)
    weights = sum(value.nbytes for value in backbone.model.state_dict().values())
    room = 8 * GIB - weights - GIB // 2  # half a gigabyte of context
    physical = memory.largest(room, 256)
    assert physical >= 8
    if injection is Injection.INPUT:
        assert physical < 256  # so pieces are needed, and the estimate says so
        assert memory.peak(256) > 8 * GIB
    assert memory.peak(physical) <= room


def records_of(model: PromptedModel) -> tuple[Tensor, ...]:
    """Two records of the model's features, without values."""
    width, joint, heads = model.backbone.vision_width, model.backbone.joint_width, 12
    n_prepared = 16 if model.config.variant is Variant.NARROW else model.backbone.n_patches
    shapes = {
        "zero_shot": (joint,),
        "anchor": (joint,),
        "tokens": (1 + model.backbone.n_patches, width),
        "prepared": (n_prepared, width),
        "class_token": (width,),
        "folded_query": (heads, width),
        "query_bias": (heads,),
        "attended": (heads, width // heads),
        "log_mass": (heads,),
    }
    return (*(torch.empty(2, *shapes[name]) for name in model.feature_names), torch.zeros(2, dtype=torch.int64))


LINEAR = StepMemory(rehearsals([2 * GIB], [4 * GIB]), 0, Allocator(1.0, GIB))
"""One gigabyte, and one more a record."""


@pytest.mark.parametrize(
    ("wanted", "room", "expected"),
    [("auto", 100 * GIB, 20), ("auto", 7 * GIB, 6), ("auto", None, 20), (6, 7 * GIB, 6), (50, None, 50)],
)
def test_as_many_records_as_fit_go_through_at_once(wanted: int | str, room: int | None, expected: int) -> None:
    assert fit_physical_batch(LINEAR, wanted, most=20, room=room, where="cuda:0") == expected


def test_a_size_that_does_not_fit_is_refused_with_the_one_that_does_and_the_key() -> None:
    with pytest.raises(UserError) as refused:
        fit_physical_batch(LINEAR, 7, most=20, room=7 * GIB, where="cuda:0")
    assert refused.value.what == "7 images at a time need 8.00 GB on cuda:0, and 7.00 GB may be used"
    assert "[compute] max_physical_batch = 6" in refused.value.remedy
    assert refused.value.exit_code is ExitCode.COMPUTE


@pytest.mark.parametrize("wanted", ["auto", 1, 64])
def test_a_device_without_room_for_one_record_is_refused(wanted: int | str) -> None:
    with pytest.raises(UserError, match=r"needs 3\.00 GB on cuda:0 even with one image at a time, and 1\.50 GB"):
        fit_physical_batch(LINEAR, wanted, most=20, room=3 * GIB // 2, where="cuda:0")


def test_a_plan_sets_the_size_of_a_piece_and_names_the_peak(params: PrivacyParameters) -> None:
    sums, data = sums_of(tiny_model(), params)
    plan = plan_memory(sums, data, MemoryRequest(), logical=100.0)
    assert plan.physical_batch == sums.performance.max_physical_batch == 140
    assert plan.usable is None or plan.peak <= plan.usable
    assert plan_memory(sums, data, MemoryRequest(7), logical=100.0).physical_batch == 7
    assert sums.performance.max_physical_batch == 7
    with pytest.raises(UserError, match="one image at a time"):
        plan_memory(sums, data, MemoryRequest(limit_gb=0.001), logical=100.0)
