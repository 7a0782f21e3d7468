"""The gradient that each sample is given is the one it has alone, for every method and every objective."""

from __future__ import annotations

import pytest
import torch
from opacus import GradSampleModule
from torch import Tensor, nn

import fedmvp.methods.per_sample_text
from fedmvp.methods.features import read_images
from fedmvp.methods.method import MethodModel
from fedmvp.methods.objective import Objective
from fedmvp.model.learned_tokens import LearnedTokens
from fedmvp.model.prompted_text import PromptedText
from fedmvp.training.methods import method_loss
from privacy.errors import NotDecomposable
from privacy.per_sample import Batch, backward, check_decomposable, check_structure, per_sample_hooks, take_grad_sample
from tests.methods.toys import OBJECTIVES, TRAINED, build, labels_for
from tests.model.tiny import disturb, random_images
from tests.privacy.modules import gradients_one_by_one

COUNT = 5


def moved(name: str, objective: Objective) -> tuple[MethodModel, Batch]:
    """A method away from its start, and a batch."""
    model = build(name)
    features = read_images(model, random_images(COUNT))
    disturb(model)
    return model, (*features.ordered(model.feature_names), labels_for(objective, COUNT))


def by_hooks(model: nn.Module, objective: Objective, batch: Batch) -> Tensor:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with per_sample_hooks(model):
        backward(model, method_loss(objective), batch)
        return torch.cat([take_grad_sample(parameter, len(batch[0])).flatten(1) for parameter in trained], dim=1)


def check_each_sample(model: MethodModel, objective: Objective, batch: Batch) -> None:
    expected = gradients_one_by_one(model, method_loss(objective), batch)
    found = by_hooks(model, objective, batch)
    assert expected.norm(dim=1).min() > 0, "a sample without gradient proves nothing"
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max(), "a sample got another gradient"


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", TRAINED)
def test_every_samples_gradient_equals_the_one_it_has_alone(name: str, objective: str) -> None:
    model, batch = moved(name, OBJECTIVES[objective])
    check_structure(model)
    check_each_sample(model, OBJECTIVES[objective], batch)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", TRAINED)
def test_the_engine_accepts_every_method_at_its_start(name: str, objective: str) -> None:
    model = build(name)
    labels = labels_for(OBJECTIVES[objective], COUNT)
    batch = (*read_images(model, random_images(COUNT)).ordered(model.feature_names), labels)
    check_decomposable(model, method_loss(OBJECTIVES[objective]), batch)


@pytest.mark.parametrize("name", ["promptfl", "promptfl before attributes", "fedtpg"])
def test_a_batch_larger_than_the_joint_width_is_told_apart_by_one_jacobian(name: str) -> None:
    objective = OBJECTIVES["single"]
    model = build(name)
    features = read_images(model, random_images(30))  # the joint width is 24
    disturb(model)
    batch = (*features.ordered(model.feature_names), labels_for(objective, 30))
    check_each_sample(model, objective, batch)
    assert model._text._kept is not None
    part = tuple(tensor[:COUNT] for tensor in batch)
    check_each_sample(model, objective, part)  # from the Jacobian that was kept
    disturb(model, seed=6)
    check_each_sample(model, objective, part)  # which holds for other words no longer


@pytest.mark.parametrize("name", ["promptfl", "fedtpg"])
def test_control_a_shared_gradient_that_is_not_pulled_back_by_sample_is_found_out(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = OBJECTIVES["single"]
    model, batch = moved(name, objective)
    check_decomposable(model, method_loss(objective), batch)

    def together(text: PromptedText, words: Tensor, *, by_sample: bool) -> Tensor:
        return text.features(words[:1]).expand(len(words), -1, -1)

    monkeypatch.setattr(PromptedText, "features_for_each", together)
    with pytest.raises(AssertionError, match="another gradient"):
        check_each_sample(model, objective, batch)
    with pytest.raises(NotDecomposable):
        check_decomposable(model, method_loss(objective), batch)


@pytest.mark.parametrize("name", ["promptfl", "fedtpg"])
def test_without_hooks_the_sum_of_the_gradients_costs_one_backward_pass_and_is_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = OBJECTIVES["single"]
    model, batch = moved(name, objective)
    wanted = by_hooks(model, objective, batch).sum(dim=0)

    def forbidden(*_: object) -> Tensor:
        raise AssertionError("a gradient by sample was asked for")

    monkeypatch.setattr(PromptedText, "pull_back", forbidden)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    losses = method_loss(objective)(model, batch)
    found = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(losses.sum(), trained)])
    torch.testing.assert_close(found, wanted, atol=1e-4 * float(wanted.abs().max()), rtol=1e-3)
    with pytest.raises(AssertionError, match="was asked for"):
        by_hooks(model, objective, batch)


def test_words_that_differ_by_sample_are_found_out() -> None:
    """The class features are computed of the first sample's words: a context made from images must not pass."""
    objective = OBJECTIVES["single"]
    model, batch = moved("fedtpg", objective)
    original = fedmvp.methods.per_sample_text.text_logits
    projection = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))

    class Conditioned(type(model)):  # type: ignore[misc]
        def forward(self, features: dict[str, Tensor]) -> Tensor:
            feature = features["zero_shot"]
            words = self._text.moved_words(self.output(self.queries(feature)) + (feature @ projection)[:, None])
            return original(self._text, words, feature, trained=self.output, scale=10.0)

    model.__class__ = Conditioned
    with pytest.raises(NotDecomposable):
        check_decomposable(model, method_loss(objective), batch)


@pytest.mark.parametrize("size", [0, 1, 4])
def test_learned_tokens_give_each_sample_its_own_gradient(size: int) -> None:
    draws = torch.Generator().manual_seed(1)
    layer = LearnedTokens(torch.randn(3, 6, generator=draws))
    batch = (torch.randn(size, 6, generator=draws),)

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        return (torch.tanh(module(batch[0])) * batch[0][:, None]).square().sum(dim=(1, 2))

    with per_sample_hooks(layer):
        backward(layer, loss, batch)
        found = take_grad_sample(layer.tokens, size).flatten(1)
    torch.testing.assert_close(found, gradients_one_by_one(layer, loss, batch))


def test_control_a_sampler_that_shares_the_gradient_out_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = (torch.randn(4, 6),)

    def loss(module: nn.Module, batch: Batch) -> Tensor:
        return (module(batch[0])[:, 0] * batch[0]).sum(dim=1)

    def shared_out(layer: LearnedTokens, _: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
        return {layer.tokens: backprops.mean(dim=0).expand_as(backprops)}

    layer = LearnedTokens(torch.randn(1, 6))
    check_decomposable(layer, loss, batch)
    monkeypatch.setitem(GradSampleModule.GRAD_SAMPLERS, LearnedTokens, shared_out)
    with pytest.raises(NotDecomposable):
        check_decomposable(layer, loss, batch)
