from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fedmvp.model.prompted_text
from fedmvp.errors import UserError
from fedmvp.model.backbone import Backbone
from fedmvp.model.loading import random_backbone
from fedmvp.model.prompted_text import PromptedText
from tests.model.tiny import TASK, tiny_backbone, tiny_bank, tiny_config

SENTENCES = [[TASK.template.format(name=c.name, attribute=a) for a in c.attributes] for c in TASK.classes]
WORDS = "a photo of a"


def words_of(text: PromptedText, seed: int = 0) -> Tensor:
    return text.moved_words(torch.randn(4, 16, generator=torch.Generator().manual_seed(seed)))


def test_with_its_own_words_it_is_the_attribute_classifier() -> None:
    text = PromptedText(tiny_backbone(), SENTENCES, WORDS)
    own = text.moved_words(torch.zeros(1, 4, 16))
    torch.testing.assert_close(text.features(own)[0], tiny_bank().classifier, atol=1e-6, rtol=0)
    assert (text.n_words, text.text_width, text.n_classes) == (4, 16, 3)


def test_a_tower_that_runs_in_a_lower_precision_is_met_at_the_start_and_differentiated_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = tiny_backbone()
    shift = torch.zeros(1, 4, 16)
    exact = PromptedText(backbone, SENTENCES, WORDS)
    original = Backbone.encode_sentences
    monkeypatch.setattr(Backbone, "encode_sentences", lambda self, part: original(self, part).bfloat16().float())
    lower = PromptedText(backbone, SENTENCES, WORDS)
    frozen = torch.stack([part.mean(dim=0) for part in map(backbone.encode_sentences, SENTENCES)])
    torch.testing.assert_close(lower.features(lower.moved_words(shift))[0], frozen, atol=1e-6, rtol=0)
    assert (exact.features(exact.moved_words(shift))[0] - frozen).abs().max() > 1e-4  # the gap that is closed
    words = words_of(exact)
    assert torch.equal(exact.jacobian(words), lower.jacobian(words))


@pytest.mark.parametrize("separate_text_tower", [False, True])
def test_words_of_other_sentences_give_the_features_of_those(separate_text_tower: bool) -> None:
    config = {**tiny_config(), "custom_text": separate_text_tower}
    backbone = random_backbone(config, seed=3)
    text = PromptedText(backbone, [["a photo of a cat"], ["a photo of a red car"]], WORDS)
    tower = backbone.model.text if separate_text_tower else backbone.model
    assert isinstance(tower.token_embedding, nn.Embedding)
    words = tower.token_embedding(backbone.tokenise(["my own four words"])[:, 1:5])
    wanted = backbone.encode_sentences(["my own four words cat", "my own four words red car"])
    torch.testing.assert_close(text.features(words)[0], wanted, atol=1e-6, rtol=0)


def test_pulling_back_is_a_backward_pass_for_each_sample_and_the_jacobian_agrees() -> None:
    text = PromptedText(tiny_backbone(), SENTENCES, WORDS)
    words = words_of(text)
    cotangents = torch.randn(5, 3, 24, generator=torch.Generator().manual_seed(1))
    found = text.pull_back(words, cotangents)
    assert text._kept is None  # fewer samples than the joint width: no Jacobian was worth it
    for sample in range(5):
        own = words.clone().requires_grad_()
        (alone,) = torch.autograd.grad((text.features(own[None])[0] * cotangents[sample]).sum(), own)
        torch.testing.assert_close(found[sample], alone, atol=1e-4, rtol=1e-4)
    by_jacobian = torch.einsum("bcd,cdnw->bnw", cotangents, text.jacobian(words))
    torch.testing.assert_close(found, by_jacobian, atol=1e-4, rtol=1e-4)


def test_samples_in_small_parts_and_a_jacobian_too_large_to_keep_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = PromptedText(tiny_backbone(), SENTENCES, WORDS)
    words = words_of(text)
    cotangents = torch.randn(30, 3, 24, generator=torch.Generator().manual_seed(1))
    wanted = text.pull_back(words, cotangents)
    assert text._kept is not None
    monkeypatch.setattr(fedmvp.model.prompted_text, "JACOBIAN_BYTES", 0)
    monkeypatch.setattr(fedmvp.model.prompted_text, "WORKING_BYTES", 1)
    small = PromptedText(tiny_backbone(), SENTENCES, WORDS)
    assert small._at_once == 1
    torch.testing.assert_close(small.pull_back(words, cotangents), wanted, atol=1e-4, rtol=1e-4)
    assert small._kept is None


def test_an_empty_batch_has_features_for_nobody() -> None:
    text = PromptedText(tiny_backbone(), SENTENCES, WORDS)
    assert text.features_for_each(torch.zeros(0, 4, 16), by_sample=True).shape == (0, 3, 24)


@pytest.mark.parametrize("words", ["a drawing of a", "", "a photo of a cat, which has a tail and more words than that"])
def test_sentences_that_do_not_start_with_the_words_are_refused(words: str) -> None:
    with pytest.raises(UserError, match="does not start with"):
        PromptedText(tiny_backbone(), SENTENCES, words)


def test_a_sentence_that_is_too_long_is_refused_and_never_cut() -> None:
    with pytest.raises(UserError, match="has 28 tokens"):
        PromptedText(tiny_backbone(), [["a photo of a " + "very " * 23 + "cat"]], WORDS)


@pytest.mark.parametrize("text", [{"no_causal_mask": True}, {"pool_type": "last"}])
def test_a_text_tower_that_reads_otherwise_is_refused(text: dict[str, object]) -> None:
    config = tiny_config()
    backbone: Backbone = random_backbone({**config, "text_cfg": {**config["text_cfg"], **text}}, seed=3)
    with pytest.raises(UserError, match="cannot be trained"):
        PromptedText(backbone, SENTENCES, WORDS)
