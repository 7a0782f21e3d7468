from __future__ import annotations

import json
import operator
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

from fedmvp.errors import UserError
from fedmvp.model import export
from fedmvp.model.attributes import build_attribute_bank
from fedmvp.model.export import TOLERANCE, ExportedModel, export_model, run_program
from fedmvp.model.inference import Predictor
from fedmvp.model.loading import random_backbone
from fedmvp.model.prompt_config import Injection, NeutralStart, PromptConfig, Variant
from fedmvp.model.prompted import PromptedModel
from fedmvp.model.supported import require_supported
from tests.model.tiny import CHOICES, TASK, disturb, random_images, tiny_model

QUICK = {
    (Variant.FULL, Injection.LAST_BLOCK, NeutralStart.ANCHOR),
    (Variant.NARROW, Injection.LAST_BLOCK, NeutralStart.MIX),
    (Variant.LORA, Injection.INPUT, NeutralStart.ANCHOR),
}
SAMPLED = [choice if choice in QUICK else pytest.param(*choice, marks=pytest.mark.long) for choice in CHOICES]


@lru_cache(maxsize=len(CHOICES))
def exported_choice(variant: Variant, injection: Injection, start: NeutralStart) -> tuple[PromptedModel, ExportedModel]:
    """A disturbed model and its export; neither is changed by a test."""
    model = tiny_model(variant, injection, start)
    disturb(model)
    return model, export_model(model)


def assert_same_logits(model: PromptedModel, exported: ExportedModel, counts: tuple[int, ...], size: int = 16) -> None:
    predictor = Predictor(model)
    program = json.loads(json.dumps(exported.program))
    for count in counts:
        images = random_images(count, seed=count, size=size)
        expected = predictor.logits(predictor.feature(predictor.read(images)))
        assert expected.std() > 100 * TOLERANCE
        for answer in (exported.archive.module()(images), run_program(program, exported.tensors, images)):
            torch.testing.assert_close(answer, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("variant", "injection", "start"), SAMPLED)
def test_both_forms_give_the_models_logits_for_any_number_of_images(
    variant: Variant, injection: Injection, start: NeutralStart
) -> None:
    assert_same_logits(*exported_choice(variant, injection, start), (1, 2, 7))


def test_attributes_that_are_attended_to_in_parts_are_exported_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(Variant.FULL)
    disturb(model)
    monkeypatch.setattr(export, "keys_that_fit", lambda _rows: 3)  # of eight
    exported = export_model(model)
    assert sum(row[1] == "exp.default" for row in exported.program) > 4
    assert_same_logits(model, exported, (1, 5))


@pytest.mark.parametrize(
    ("name", "quick_gelu"),
    [
        pytest.param("ViT-B-32", True, marks=pytest.mark.long),
        pytest.param("ViT-S-32-alt", None, marks=pytest.mark.long),
    ],
)
def test_backbones_of_open_clip_can_be_exported(name: str, quick_gelu: bool | None) -> None:
    config = {**require_supported(name)} | ({} if quick_gelu is None else {"quick_gelu": quick_gelu})
    backbone = random_backbone(config, seed=0)
    model = PromptedModel(backbone, build_attribute_bank(backbone, TASK), PromptConfig(bottleneck_width=8))
    disturb(model)
    assert_same_logits(model, export_model(model), (1, 3), size=backbone.image_size)


def test_the_program_reads_every_tensor_it_is_given_and_none_of_the_text_tower() -> None:
    model, exported = exported_choice(Variant.NARROW, Injection.LAST_BLOCK, NeutralStart.MIX)
    read = {leaf for row in exported.program for leaf in json.dumps(row[2]).split('"')}
    assert set(exported.tensors) <= read
    assert not [name for name in exported.tensors if "text" in name or "token_embedding" in name]
    tower = sum(value.numel() for value in model.backbone.vision_tower.parameters())
    assert tower <= sum(value.numel() for value in exported.tensors.values()) < 1.2 * tower


def test_an_exported_model_asks_for_no_gradients_and_leaves_the_model_trainable() -> None:
    model, exported = exported_choice(Variant.NARROW, Injection.LAST_BLOCK, NeutralStart.MIX)
    assert not exported.archive.module()(random_images(2)).requires_grad
    assert not any(value.requires_grad for value in exported.tensors.values())
    assert all(value.requires_grad for value in model.parameters())


def test_memory_is_used_again_along_the_program() -> None:
    _, exported = exported_choice(Variant.LORA, Injection.INPUT, NeutralStart.ANCHOR)
    assert len({row[0] for row in exported.program}) < len(exported.program) / 10


@pytest.mark.parametrize("form", ["archive", "program"])
def test_a_form_that_computes_other_logits_is_refused(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    if form == "program":
        listed = export._listed

        def damaged(archive: object) -> object:
            program, tensors = listed(archive)  # type: ignore[arg-type]
            return program, tensors | {"classifier": tensors["classifier"] + 0.01}

        monkeypatch.setattr(export, "_listed", damaged)
    else:
        traced = torch.export.export

        def other(whole: nn.Module, *arguments: object, **options: object) -> object:
            archive = traced(whole, *arguments, **options)  # type: ignore[arg-type]
            archive.state_dict["classifier"] = archive.state_dict["classifier"] + 0.01
            return archive

        monkeypatch.setattr(torch.export, "export", other)
    with pytest.raises(UserError, match="the traced program computes other logits"):
        export_model(model)


def test_a_tower_that_cannot_be_traced_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    enter = model.backbone.enter

    def by_content(tokens: Tensor) -> Tensor:
        return enter(tokens) if tokens.sum() > 0 else tokens

    monkeypatch.setattr(model.backbone, "enter", by_content)
    with pytest.raises(UserError, match="backbone 'tiny' cannot be exported"):
        export_model(model)


class Sorted(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().sort(dim=0).values


class Typed(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.to(torch.float64)


@pytest.mark.parametrize(("module", "reason"), [(Sorted(), "several results"), (Typed(), "dtype")])
def test_what_a_list_of_operations_cannot_say_is_refused(module: nn.Module, reason: str) -> None:
    archive = torch.export.export(module, (random_images(2),), strict=False)
    with pytest.raises(ValueError, match=reason):
        export._listed(archive)


@pytest.mark.parametrize("operation", ["__class__.__base__.__subclasses__", "linear.__call__.__func__"])
def test_a_program_reaches_nothing_but_operations_of_pytorch(operation: str) -> None:
    operator.attrgetter("__class__")(torch.ops.aten)  # what the check below stands in the way of
    with pytest.raises(ValueError, match="is not an operation"):
        run_program([("logits", operation, [], {})], {}, random_images(1))
