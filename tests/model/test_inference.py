from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedmvp.model import attention, prompted
from fedmvp.model.attention import KeysAndValues, attend, attend_to_shared, keys_that_fit
from fedmvp.model.attributes import AttributeBank
from fedmvp.model.features import extract_features
from fedmvp.model.inference import Predictor
from fedmvp.model.parameters import get_vector, set_vector
from fedmvp.model.prompt_config import Injection, NeutralStart, PromptConfig, Variant
from fedmvp.model.prompted import PromptedModel
from tests.model.tiny import CHOICES, disturb, random_images, tiny_backbone, tiny_model

IMAGES = random_images(6)


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("variant", "injection", "start"), CHOICES)
def test_keys_and_values_made_once_give_what_the_training_forward_gives(
    variant: Variant, injection: Injection, start: NeutralStart
) -> None:
    model = tiny_model(variant, injection, start)
    features = extract_features(model, IMAGES).tensors
    disturb(model)
    predictor = Predictor(model)
    with torch.no_grad():
        expected = model(features)
        torch.testing.assert_close(predictor.feature(features), expected, atol=2e-6, rtol=0)
        torch.testing.assert_close(predictor.logits(expected), model.logits(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(predictor.feature(predictor.read(IMAGES)), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("start", NeutralStart)
def test_before_training_a_predictor_sees_what_zero_shot_clip_sees(start: NeutralStart) -> None:
    predictor = Predictor(tiny_model(start=start))
    features = predictor.read(IMAGES)
    assert torch.equal(predictor.feature(features), F.normalize(features["zero_shot"], dim=-1))


@pytest.mark.parametrize("keys_at_once", [1, 3, 7, 16, 17, 100])
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_attention_in_parts_is_attention_over_all_keys(keys_at_once: int, scale: float) -> None:
    query, key, value = drawn(3, 5, 8, scale=scale), drawn(17, 8, seed=1, scale=scale), drawn(17, 8, seed=2)
    whole = attend(query, key.expand(3, -1, -1), value.expand(3, -1, -1), 2)
    parts = attend_to_shared(query, KeysAndValues(key, value), 2, keys_at_once=keys_at_once)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)


def test_parts_that_were_averaged_without_their_masses_would_be_seen() -> None:
    query, key, value = drawn(3, 5, 8), drawn(16, 8, seed=1), drawn(16, 8, seed=2)
    whole = attend(query, key.expand(3, -1, -1), value.expand(3, -1, -1), 2)
    halves = [attend_to_shared(query, KeysAndValues(key[part], value[part]), 2) for part in (slice(8), slice(8, 16))]
    assert (sum(halves) / 2 - whole).abs().max() > 0.05


def test_a_part_holds_as_many_keys_as_the_working_memory_and_never_none() -> None:
    assert keys_that_fit(1000, working_bytes=12 * 1000 * 500) == 500
    assert keys_that_fit(10**9, working_bytes=1) == keys_that_fit(10**12, working_bytes=1) > 0


def counted(model: PromptedModel, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    calls: list[None] = []
    made = model.promptformer.keys_and_values
    monkeypatch.setattr(model.promptformer, "keys_and_values", lambda rows: [calls.append(None), made(rows)][1])
    return calls


def test_keys_and_values_are_made_once_for_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    calls = counted(model, monkeypatch)
    predictor = Predictor(model)
    for part in extract_features(model, IMAGES).parts(2):
        predictor.feature(part)
    assert len(calls) == 1


def write_quietly(model: PromptedModel, vector: object) -> None:
    """Change one number where torch's own count of changes does not see it."""
    model.promptformer.key.weight.data[0, 0] += 1e-3


@pytest.mark.parametrize("write", [set_vector, write_quietly])
def test_parameters_that_change_in_any_way_make_new_keys_and_values(
    write: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    features = extract_features(model, IMAGES).tensors
    calls = counted(model, monkeypatch)
    predictor = Predictor(model)
    predictor.feature(features)
    stale = predictor._shared
    write(model, get_vector(model) + 0.2)  # type: ignore[operator]
    after = predictor.feature(features)
    assert len(calls) == 2
    torch.testing.assert_close(after, Predictor(model).feature(features), atol=0, rtol=0)
    monkeypatch.setattr(predictor, "_fresh", lambda: stale)  # what would come of keys and values kept too long
    assert not torch.equal(predictor.feature(features), after)


@pytest.mark.parametrize("most", [1, 3, 1000, 5000])
def test_the_likeliest_classes_in_parts_are_those_of_the_whole_softmax(most: int) -> None:
    model = wide_model(classes=1000, attributes=1)
    feature = F.normalize(drawn(4, 24), dim=-1)
    probabilities = model.logits(feature).softmax(dim=-1)
    expected = probabilities.topk(min(most, 1000), dim=-1)
    ranking = Predictor(model, working_bytes=1).rank(feature, most)  # parts of 256 classes
    torch.testing.assert_close(ranking.probabilities, expected.values, atol=1e-6, rtol=1e-4)
    taken = probabilities.gather(-1, ranking.classes)
    torch.testing.assert_close(taken, expected.values, atol=1e-6, rtol=1e-4)
    assert torch.equal(ranking.classes[:, 0], expected.indices[:, 0])
    torch.testing.assert_close(Predictor(model, working_bytes=1).logits(feature), model.logits(feature))


def test_a_large_set_of_attributes_has_the_same_anchors(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(Variant.FULL)
    features = extract_features(model, IMAGES).tensors
    monkeypatch.setattr(prompted, "WORKING_BYTES", 1)
    torch.testing.assert_close(model.anchor(features), features["anchor"], atol=2e-6, rtol=0)


def wide_model(classes: int, attributes: int, variant: Variant = Variant.FULL) -> PromptedModel:
    """A model for many classes whose text features are drawn."""
    bank = AttributeBank(
        F.normalize(drawn(classes, attributes, 24), dim=-1),
        torch.ones(classes, attributes, dtype=torch.bool),
        F.normalize(drawn(classes, 24, seed=1), dim=-1),
        tuple(f"class {number}" for number in range(classes)),
    )
    return PromptedModel(tiny_backbone(), bank, PromptConfig(variant, n_prompts=4, n_heads=2, bottleneck_width=8))


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest tensor that an operation made; views and expanded tensors count by their memory."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: object, types: object, args: object = (), kwargs: object = None) -> object:
        result = func(*args, **(kwargs or {}))  # type: ignore[operator,misc]
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("count", [16, pytest.param(64, marks=pytest.mark.long)])
def test_five_thousand_classes_of_ten_attributes_are_seen_in_bounded_memory(count: int) -> None:
    model = wide_model(classes=5000, attributes=10)
    disturb(model)
    predictor = Predictor(model)
    features = predictor.read(random_images(count))
    bound = attention.WORKING_BYTES // 3
    with LargestTensor() as seen:
        ranking = predictor.rank(predictor.feature(features), 5)
    assert ranking.classes.shape == (count, 5)
    assert bound // 2 < seen.bytes <= bound  # whatever the batch: parts that fill the room there is
    with LargestTensor() as once, torch.no_grad():
        model(features)
    assert once.bytes > 2 * bound  # what the training's own forward takes, which grows with the batch


@pytest.mark.parametrize("variant", Variant)
def test_thousands_of_attributes_in_parts_give_the_training_forwards_feature(variant: Variant) -> None:
    model = wide_model(classes=500, attributes=10, variant=variant)
    disturb(model)
    predictor = Predictor(model)
    features = predictor.read(IMAGES)
    with torch.no_grad():
        shared = model.keys_and_values()
        parts = model.answered(features, model.promptformer, shared, keys_at_once=700)
        features["anchor"] = torch.zeros_like(features["zero_shot"])
        features["zero_shot"] = torch.zeros_like(features["zero_shot"])
        torch.testing.assert_close(parts, model(features), atol=3e-6, rtol=0)
