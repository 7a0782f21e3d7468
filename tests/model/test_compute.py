from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from torch import Tensor

from fedmvp.model import backbone as backbone_module
from fedmvp.model.backbone import Backbone
from fedmvp.model.compute import (
    BlockRunner,
    Precision,
    TowerOptions,
    autocast,
    compute_reproducibly,
    preferred_precision,
    scale_gradient,
)
from fedmvp.model.features import extract_features
from fedmvp.model.loading import random_backbone
from fedmvp.model.prompt_config import Injection, NeutralStart, Variant
from fedmvp.model.prompted import PromptedModel
from fedmvp.model.promptformer import pool_tokens
from tests.model.tiny import disturb, random_images, tiny_backbone, tiny_bank, tiny_config, tiny_model

CPU = torch.device("cpu")
IMAGES = random_images(6)
LABELS = torch.arange(6) % 3


def model_with(injection: Injection = Injection.INPUT, **options: Any) -> PromptedModel:
    """The tiny model with its prompts moved, on a tower with these options."""
    backbone = random_backbone(tiny_config(), seed=3, name="tiny", options=TowerOptions(**options))
    model = PromptedModel(backbone, tiny_bank(), tiny_model(Variant.NARROW, injection, NeutralStart.ANCHOR).config)
    disturb(model, scale=0.05)
    return model


def losses_and_gradient(model: PromptedModel) -> tuple[Tensor, Tensor]:
    features = extract_features(model, IMAGES).tensors
    losses = model.loss_per_sample(model(features), features, LABELS)
    gradients = torch.autograd.grad(losses.sum(), [value for value in model.parameters() if value.requires_grad])
    return losses.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def assert_close_to_plain(model: PromptedModel, injection: Injection, relative: float) -> None:
    losses, gradient = losses_and_gradient(model)
    expected, expected_gradient = losses_and_gradient(model_with(injection))
    torch.testing.assert_close(losses, expected, rtol=relative, atol=relative)
    assert float((gradient - expected_gradient).norm() / expected_gradient.norm()) <= 10 * relative


@pytest.mark.parametrize("injection", Injection)
@pytest.mark.parametrize(
    ("options", "relative"),
    [
        ({"precision": Precision.FLOAT32}, 1e-6),
        ({"activation_checkpointing": True}, 1e-6),
        ({"channels_last": True}, 1e-5),
        ({"precision": Precision.BFLOAT16}, 3e-2),
        ({"precision": Precision.FLOAT16}, 4e-3),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_losses_and_gradients_stay_within_the_rounding_of_the_option(
    injection: Injection, options: dict[str, Any], relative: float
) -> None:
    assert_close_to_plain(model_with(injection, **options), injection, relative)


@pytest.mark.parametrize("precision", [Precision.BFLOAT16, Precision.FLOAT16])
def test_a_lower_precision_is_really_used_and_its_rounding_seen(precision: Precision) -> None:
    plain, lower = losses_and_gradient(model_with())[0], losses_and_gradient(model_with(precision=precision))[0]
    assert (plain - lower).abs().max() > 1e-5


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("injection", Injection)
def test_what_is_trained_and_what_leaves_the_tower_are_float32(precision: Precision, injection: Injection) -> None:
    model = model_with(injection, precision=precision)
    features = extract_features(model, IMAGES).tensors
    assert {value.dtype for value in features.values()} == {torch.float32}
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert model(features).dtype == torch.float32
    _, gradient = losses_and_gradient(model)
    assert gradient.dtype == torch.float32
    assert gradient.isfinite().all()


def test_the_text_side_does_not_depend_on_the_towers_precision() -> None:
    sentences = ["a photo of a cat", "a photo of a tree, which has leaves"]
    lower = random_backbone(tiny_config(), seed=3, name="tiny", options=TowerOptions(precision=Precision.BFLOAT16))
    assert torch.equal(lower.encode_sentences(sentences), tiny_backbone().encode_sentences(sentences))


def test_options_do_not_change_the_hash_of_the_weights() -> None:
    options = TowerOptions(precision=Precision.FLOAT16, channels_last=True, compile=True)
    assert random_backbone(tiny_config(), seed=3, options=options).state_hash() == tiny_backbone().state_hash()


@pytest.mark.parametrize(
    ("device", "bfloat16", "expected"),
    [
        ("cuda", True, Precision.BFLOAT16),
        ("cuda", False, Precision.FLOAT16),
        ("mps", False, Precision.FLOAT16),
        ("cpu", False, Precision.FLOAT32),
    ],
)
def test_auto_takes_what_the_device_has_units_for(
    device: str, bfloat16: bool, expected: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: bfloat16)
    assert preferred_precision(torch.device(device)) is expected


def test_auto_on_the_cpu_is_float32_without_autocast() -> None:
    assert tiny_backbone().precision == "float32"
    assert isinstance(tiny_backbone().frozen_compute(), nullcontext)
    assert isinstance(autocast(CPU, Precision.FLOAT32), nullcontext)
    assert isinstance(autocast(CPU, Precision.BFLOAT16), torch.autocast)


def tower_that_overflows() -> torch.nn.Module:
    """Weights whose activations pass float16's largest number on the way and come back."""
    model = random_backbone(tiny_config(), seed=3).model
    block = model.visual.transformer.resblocks[0]  # type: ignore[union-attr,index]
    with torch.no_grad():
        block.mlp.c_fc.weight.mul_(3e5)  # type: ignore[union-attr]
        block.mlp.c_proj.weight.mul_(1e-5)  # type: ignore[union-attr]
    return model


def wrapped(model: torch.nn.Module, precision: Precision) -> Backbone:
    return Backbone(
        model,
        tiny_backbone()._tokenizer,
        name="tiny",
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.3, 0.3, 0.3),
        options=TowerOptions(precision=precision),
    )


def test_auto_takes_float16_only_for_a_tower_that_it_does_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbone_module, "preferred_precision", lambda _device: Precision.FLOAT16)
    assert wrapped(random_backbone(tiny_config(), seed=3).model, Precision.AUTO).precision == "float16"
    with capture_logs() as lines:
        assert wrapped(tower_that_overflows(), Precision.AUTO).precision == "float32"
    assert "float16 changes its features" in lines[0]["event"]


def test_images_that_overflow_in_float16_are_computed_again_in_float32() -> None:
    model = tower_that_overflows()
    lower, plain = wrapped(model, Precision.FLOAT16), wrapped(model, Precision.FLOAT32)
    pixels = plain.normalise(IMAGES)
    assert not lower._tokens_of(pixels, None, Precision.FLOAT16)[1].isfinite().all()
    assert torch.equal(lower.encode_images(pixels), plain.encode_images(pixels))


def test_small_gradients_survive_a_float16_tower() -> None:
    values = torch.tensor([2.0], requires_grad=True)
    inside = scale_gradient(values, 1 / 1024)
    seen: list[Tensor] = []
    inside.register_hook(seen.append)
    (scale_gradient(inside, 1024.0) * 1e-8).sum().backward()
    assert seen[0].item() == pytest.approx(1024e-8)
    assert seen[0].half().item() != 0
    assert torch.tensor(1e-8).half().item() == 0  # what would have become of it
    assert values.grad.item() == pytest.approx(1e-8)


def test_checkpointing_runs_blocks_again_on_the_way_back_and_keeps_less() -> None:
    counts = {}
    for checkpointing in (False, True):
        model = model_with(activation_checkpointing=checkpointing)
        features = extract_features(model, IMAGES).tensors
        block = model.backbone.model.visual.transformer.resblocks[1]
        kept = ran = 0

        def count(*_: object) -> None:
            nonlocal ran
            ran += 1

        def keep(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        handle = block.mlp.register_forward_pre_hook(count)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model.loss_per_sample(model(features), features, LABELS).sum()
        loss.backward()
        handle.remove()
        counts[checkpointing] = (ran, kept)
    assert (counts[False][0], counts[True][0]) == (1, 2)
    assert counts[True][1] < 0.7 * counts[False][1]


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(injection: Injection, backend: str) -> PromptedModel:
    model = model_with(injection, compile=True)
    model.backbone._run_block = BlockRunner(TowerOptions(compile=True), backend=backend)
    return model


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("injection", Injection)
def test_a_compiled_tower_gives_what_the_plain_one_gives(injection: Injection) -> None:
    model = compiled(injection, "aot_eager")
    assert_close_to_plain(model, injection, 1e-5)
    assert model.backbone._run_block.is_compiling
    for count in (1, 3, 5):  # Poisson batches are of every size
        part = random_images(count, seed=count)
        torch.testing.assert_close(
            extract_features(model, part).tensors["zero_shot"],
            extract_features(model_with(injection), part).tensors["zero_shot"],
            atol=1e-5,
            rtol=1e-4,
        )
    assert model.backbone._run_block.is_compiling


@pytest.mark.long
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_a_tower_compiled_to_machine_code_gives_what_the_plain_one_gives() -> None:
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        pytest.skip("torch.compile needs a C++ compiler on the CPU, and there is none")
    model = compiled(Injection.INPUT, "inductor")
    assert_close_to_plain(model, Injection.INPUT, 1e-4)
    assert model.backbone._run_block.is_compiling


def fails_forward(_graph: Any, _inputs: Any) -> Callable[..., Any]:
    raise RuntimeError("no such machine")


def fails_backward(_graph: Any, _inputs: Any) -> Callable[..., Any]:
    def run(*_inputs: Any) -> Any:
        raise RuntimeError("the code that was made does not run")

    return run


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", [fails_forward, fails_backward, "no such backend"])
def test_where_compilation_fails_the_tower_runs_uncompiled_and_says_so_once(backend: Any) -> None:
    model = compiled(Injection.INPUT, backend)
    with capture_logs() as lines:
        assert_close_to_plain(model, Injection.INPUT, 1e-6)
    assert [line["event"] for line in lines] == ["the tower cannot be compiled here and runs uncompiled"]
    assert not model.backbone._run_block.is_compiling


def test_memory_that_runs_out_while_compiling_is_not_taken_for_a_failed_compiler() -> None:
    class Block(torch.nn.Module):
        def forward(self, states: Tensor) -> Tensor:
            raise torch.OutOfMemoryError

    runner = BlockRunner(TowerOptions(compile=True), backend="eager")
    runner._compile = lambda block: block  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError):
        runner(Block(), torch.zeros(1))
    assert runner.is_compiling


@pytest.fixture
def reproducible(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    compute_reproducibly()
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


@pytest.mark.usefixtures("reproducible")
def test_reproducible_computing_gives_the_same_bits_twice() -> None:
    assert torch.are_deterministic_algorithms_enabled()
    for variant in Variant:
        found = []
        for _ in range(2):
            model = tiny_model(variant, Injection.INPUT)
            disturb(model)
            found.append(losses_and_gradient(model)[1])
        assert torch.equal(found[0], found[1])


def test_pooling_is_the_same_with_an_algorithm_that_can_be_reproduced(reproducible: None) -> None:
    tokens = torch.randn(2, 13, 8)
    found = pool_tokens(tokens, 5)
    torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(found, pool_tokens(tokens, 5))
