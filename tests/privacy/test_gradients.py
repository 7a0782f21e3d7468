"""Four ways to the gradient of each record agree for any shape, and for every loss that the product can be told."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule
from torch import Tensor, nn
from torch.nn import functional as F

from fedmvp.model.features import extract_features
from fedmvp.model.prompted import PromptedModel
from privacy import NotDecomposable
from privacy.mechanism import Unit
from privacy.optimizer import NoisyOptimizer
from privacy.per_sample import (
    Batch,
    LossPerSample,
    backward,
    check_decomposable,
    choose_engine,
    per_sample_hooks,
    per_sample_pass,
    take_grad_sample,
    take_gradients,
)
from tests.model.tiny import CHOICES, disturb, random_images, tiny_model
from tests.privacy.conftest import PARAMS
from tests.privacy.modules import MODULES, Whole, cross_entropy, gradients_one_by_one, make_batch
from tests.privacy.sums import clip_each

EachGradient = Callable[[nn.Module, Batch], Tensor]
"""Maps a module and B records to their gradients (B, d)."""


def _rows(parameters: Sequence[nn.Parameter], size: int) -> Tensor:
    return torch.cat([take_grad_sample(p, size).reshape(size, p.numel()) for p in parameters], dim=1)


def by_our_hooks(module: nn.Module, batch: Batch) -> Tensor:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with per_sample_hooks(module):
        backward(module, cross_entropy, batch)
        return _rows(trained, len(batch[0]))


def by_books(module: nn.Module, batch: Batch) -> Tensor:
    """Weighted sums in which one weight is one; by hooks where a layer keeps no books."""
    trained, size = [parameter for parameter in module.parameters() if parameter.requires_grad], len(batch[0])
    with per_sample_pass(module, choose_engine(module, "book-keeping")) as run:
        run(cross_entropy, batch)
        gradients = [take_gradients(parameter, size) for parameter in trained]
    rows = [torch.cat([g.weighted_sum(weights).flatten() for g in gradients]).float() for weights in torch.eye(size)]
    return torch.stack(rows) if rows else torch.zeros(0, sum(parameter.numel() for parameter in trained))


def by_opacus(module: nn.Module, batch: Batch) -> Tensor:
    """Opacus used as its own manual says, with nothing of ours."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    hooked = GradSampleModule(module.train(), loss_reduction="sum")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
            F.cross_entropy(hooked(batch[0], batch[1]), batch[2], reduction="sum").backward()
        return _rows(trained, len(batch[0]))
    finally:
        hooked.to_standard_module()


def in_parts(of: EachGradient, largest: int) -> EachGradient:
    def divided(module: nn.Module, batch: Batch) -> Tensor:
        pieces = zip(*(torch.split(tensor, largest) for tensor in batch), strict=True)
        return torch.cat([of(module, piece) for piece in pieces])

    return divided


def check_each_gradient(of: EachGradient, kind: str, size: int, seed: int) -> None:
    torch.manual_seed(seed)
    module = MODULES[kind]().eval()
    expected = gradients_one_by_one(module, cross_entropy, make_batch(size, seed))
    found = of(module, make_batch(size, seed))
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5), "a record got another gradient than it has alone"


_SHAPES = {"kind": st.sampled_from(sorted(MODULES)), "size": st.integers(0, 9), "seed": st.integers(0, 10**6)}


@settings(max_examples=50, deadline=None)
@given(largest=st.integers(1, 9), **_SHAPES)
def test_our_two_paths_opacus_and_a_loop_agree_for_any_shape(kind: str, size: int, seed: int, largest: int) -> None:
    check_each_gradient(by_our_hooks, kind, size, seed)
    check_each_gradient(in_parts(by_our_hooks, largest), kind, size, seed)
    check_each_gradient(by_books, kind, size, seed)
    check_each_gradient(in_parts(by_books, largest), kind, size, seed)
    if size and kind != "everything":  # Opacus alone takes neither an empty batch nor a frozen batch norm
        check_each_gradient(by_opacus, kind, size, seed)


@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("kind", sorted(MODULES))
def test_they_agree_on_empty_and_on_single_batches(kind: str, size: int) -> None:
    check_each_gradient(by_our_hooks, kind, size, seed=4)
    check_each_gradient(by_books, kind, size, seed=4)


def _shared_out(module: nn.Module, batch: Batch) -> Tensor:
    """The gradient of the batch, given to every record in equal parts: the right sum, and no bound on anybody."""
    return by_our_hooks(module, batch).mean(dim=0).expand(len(batch[0]), -1)


def _scaled_by_batch(module: nn.Module, batch: Batch) -> Tensor:
    """What a loss averaged over the batch leaves."""
    return by_our_hooks(module, batch) / len(batch[0])


@pytest.mark.parametrize("broken", [_shared_out, _scaled_by_batch])
def test_control_gradients_shared_out_or_averaged_fail_the_same_check(broken: EachGradient) -> None:
    with pytest.raises(AssertionError, match="another gradient"):
        check_each_gradient(broken, "linear", 5, seed=4)


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 9), kind=_SHAPES["kind"], seed=_SHAPES["seed"], scale=st.sampled_from([1e-3, 1.0, 1e4]))
def test_no_clipped_gradient_of_a_real_pass_is_longer_than_the_bound(
    size: int, kind: str, seed: int, scale: float
) -> None:
    torch.manual_seed(seed)
    module, bound = MODULES[kind]().eval(), PARAMS.max_grad_norm
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with per_sample_hooks(module):
        backward(module, lambda m, b: scale * cross_entropy(m, b), make_batch(size, seed))
        gradients = [take_grad_sample(parameter, size) for parameter in trained]
    assert float(clip_each(gradients, bound).norm(dim=1).max()) <= bound * (1 + 1e-6)
    by_layer = torch.cat([clip_each([gradient], bound) for gradient in gradients], dim=1)  # the control
    assert scale < 1e4 or len(gradients) < 2 or float(by_layer.norm(dim=1).max()) > bound * (1 + 1e-6)


def test_the_sum_of_an_empty_batch_is_zero_and_is_taken_once() -> None:
    module = Whole().eval()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = NoisyOptimizer(torch.optim.SGD(trained, lr=1.0), PARAMS)
    size = sum(parameter.numel() for parameter in trained)
    assert np.array_equal(optimizer.take_sum(), np.zeros(size))
    with per_sample_hooks(module):
        backward(module, cross_entropy, make_batch(3))
        optimizer.accumulate(3)
    assert optimizer.take_sum().any()
    assert np.array_equal(optimizer.take_sum(), np.zeros(size))
    assert {str(unit) for unit in Unit} == {"record", "patient", "site"}


# The losses of the product

COUNT = 4
LABELS = torch.tensor([0, 1, 2, 1])


def loss_of_product(module: nn.Module, batch: Batch) -> Tensor:
    assert isinstance(module, PromptedModel)
    *tensors, labels = batch
    part = dict(zip(module.feature_names, tensors, strict=True))
    return module.loss_per_sample(module(part), part, labels)


def _coupled(module: nn.Module, batch: Batch) -> Tensor:
    """The usual contrastive loss of image-text models: every other record is a negative example."""
    assert isinstance(module, PromptedModel)
    feature = module(dict(zip(module.feature_names, batch[:-1], strict=True)))
    texts = module.bank.classifier[batch[-1]]
    logits: Tensor = module.logit_scale * feature @ texts.T
    return F.cross_entropy(logits, torch.arange(len(feature)), reduction="none")


def _with_batch_statistics(module: nn.Module, batch: Batch) -> Tensor:
    losses = loss_of_product(module, batch)
    return losses * (losses / losses.mean())


def check_sum(model: PromptedModel, loss: LossPerSample, batch: Batch) -> None:
    """Assert that the gradient of the batch is the sum of the gradients that its records have alone."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    together = torch.cat([g.flatten() for g in torch.autograd.grad(loss(model, batch).sum(), trained)])
    alone = gradients_one_by_one(model, loss, batch).sum(dim=0)
    assert (together - alone).norm() <= 1e-4 * alone.norm(), "the loss does not split by record"


def _configured(choice: tuple[object, ...], weight: float, *, flip: bool) -> tuple[PromptedModel, Batch]:
    model = tiny_model(*choice, consistency_weight=weight, flip=flip)  # type: ignore[arg-type]
    disturb(model)
    features = extract_features(model, random_images(COUNT)).ordered(model.feature_names)
    return model, (*features, LABELS)


@pytest.mark.parametrize(("weight", "flip"), [(0.0, False), (2.0, False), (2.0, True)])
@pytest.mark.parametrize("choice", CHOICES)
def test_every_loss_that_can_be_configured_splits_by_record(
    choice: tuple[object, ...], weight: float, flip: bool
) -> None:
    check_sum(*_three(choice, weight, loss_of_product, flip=flip))


@pytest.mark.parametrize("loss", [_coupled, _with_batch_statistics])
def test_control_a_loss_that_couples_records_fails_the_same_check_and_is_refused(loss: LossPerSample) -> None:
    with pytest.raises(AssertionError, match="does not split"):
        check_sum(*_three(CHOICES[0], 2.0, loss, flip=False))
    model, batch = _configured(CHOICES[0], 2.0, flip=False)
    check_decomposable(model, loss_of_product, batch)
    with pytest.raises(NotDecomposable, match="mixes records"):
        check_decomposable(model, loss, batch)


def _three(
    choice: tuple[object, ...], weight: float, loss: LossPerSample, *, flip: bool
) -> tuple[PromptedModel, LossPerSample, Batch]:
    model, batch = _configured(choice, weight, flip=flip)
    return model, loss, batch
