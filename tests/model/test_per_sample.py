from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from fedmvp.model.features import extract_features
from fedmvp.model.parameters import trained_parameters
from fedmvp.model.prompt_config import Injection, NeutralStart, Variant
from fedmvp.model.prompted import PromptedModel
from privacy.errors import NotDecomposable
from privacy.mechanism import PerSampleEngine
from privacy.per_sample import backward, check_decomposable, check_structure, choose_engine, per_sample_hooks
from tests.model.tiny import CHOICES, disturb, random_images, tiny_model
from tests.privacy.sums import check_sums

COUNT = 5
LABELS = torch.tensor([0, 1, 2, 1, 0])


def data_of(model: PromptedModel) -> tuple[Tensor, ...]:
    return (*extract_features(model, random_images(COUNT)).ordered(model.feature_names), LABELS)


def loss_of(module: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    assert isinstance(module, PromptedModel)
    *tensors, labels = batch
    part = dict(zip(module.feature_names, tensors, strict=True))
    return module.loss_per_sample(module(part), part, labels)


@pytest.mark.parametrize(("variant", "injection", "start"), CHOICES)
def test_every_samples_gradient_equals_the_one_it_has_alone(
    variant: Variant, injection: Injection, start: NeutralStart
) -> None:
    model = tiny_model(variant, injection, start, consistency_weight=2.0, flip=True)
    disturb(model)
    data = data_of(model)
    check_structure(model)
    parameters = dict(trained_parameters(model))
    with per_sample_hooks(model):
        backward(model, loss_of, data)
        together = {name: value.grad_sample.clone() for name, value in parameters.items()}
    for sample in range(COUNT):
        loss = loss_of(model, tuple(tensor[sample : sample + 1] for tensor in data)).sum()
        alone = torch.autograd.grad(loss, list(parameters.values()))
        scale = max(float(value.abs().max()) for value in alone)
        for name, value in zip(parameters, alone, strict=True):
            assert (together[name][sample] - value).abs().max() < 1e-4 * scale, name
    assert all(value.abs().max() > 0 for value in together.values()), "a parameter without gradient proves nothing"


@pytest.mark.parametrize(("variant", "injection", "start"), CHOICES)
def test_the_clipped_sum_by_book_keeping_is_that_of_hooks_and_of_a_loop(
    variant: Variant, injection: Injection, start: NeutralStart
) -> None:
    model = tiny_model(variant, injection, start, consistency_weight=2.0, flip=True)
    disturb(model)
    check_sums(model, loss_of, data_of(model))
    check_sums(model, loss_of, data_of(model), largest=2)


@pytest.mark.parametrize(("variant", "injection", "start"), CHOICES)
def test_the_engine_accepts_every_choice_at_its_start(
    variant: Variant, injection: Injection, start: NeutralStart
) -> None:
    model = tiny_model(variant, injection, start)
    for engine in get_args(PerSampleEngine):
        assert choose_engine(model, engine) == engine
        check_decomposable(model, loss_of, data_of(model), engine=engine)


class LateBroadcast(nn.Module):
    """The tempting way to share attributes: project them once and broadcast what comes out."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = nn.Linear(layer.in_features, layer.out_features, bias=False)
        self.layer.weight.data.copy_(layer.weight)

    def forward(self, shared: Tensor, samples: Tensor) -> Tensor:
        return self.layer(shared[None]).expand(len(samples), -1, -1)


def test_attributes_broadcast_after_a_plain_layer_would_be_found_out() -> None:
    model = tiny_model()
    disturb(model)
    data = data_of(model)
    check_decomposable(model, loss_of, data)
    model.promptformer.attribute_projection = LateBroadcast(model.promptformer.attribute_projection)
    with pytest.raises(NotDecomposable):
        check_decomposable(model, loss_of, data)
