"""Every record's gradient is its own, and what would make it somebody else's is refused."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privacy import NotDecomposable
from privacy.per_sample import Batch, backward, check_decomposable, check_structure, per_sample_hooks
from tests.privacy.modules import (
    MODULES,
    WIDTH,
    Holder,
    OneInput,
    Whole,
    cross_entropy,
    gradients_one_by_one,
    make_batch,
)


def _by_hooks(module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    with per_sample_hooks(module):
        backward(module, cross_entropy, batch)
        each = torch.cat([p.grad_sample.flatten(1) for p in trained], dim=1)  # type: ignore[attr-defined]
        summed = torch.cat([p.grad.flatten() for p in trained])  # type: ignore[union-attr]
    return each, summed


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("kind", MODULES)
def test_the_hooks_give_each_record_the_gradient_it_has_alone(kind: str, size: int) -> None:
    torch.manual_seed(1)
    module, batch = MODULES[kind]().eval(), make_batch(size)
    check_structure(module)
    each, summed = _by_hooks(module, batch)
    expected = gradients_one_by_one(module, cross_entropy, batch)
    assert torch.allclose(each, expected, rtol=1e-4, atol=1e-6)
    assert torch.allclose(each.sum(dim=0), summed, rtol=1e-4, atol=1e-5)
    check_decomposable(module, cross_entropy, batch)


def test_hooks_leave_no_trace_on_the_module() -> None:
    module = Whole()
    before = {name: part.training for name, part in module.named_modules()}
    statistics = module.statistics.running_mean.clone()  # type: ignore[union-attr]
    _by_hooks(module, make_batch(4))
    assert {name: part.training for name, part in module.named_modules()} == before
    assert torch.equal(module.statistics.running_mean, statistics)  # type: ignore[arg-type]
    assert not any(hasattr(parameter, "grad_sample") for parameter in module.parameters())
    assert not any(part._forward_hooks or part._backward_hooks for part in module.modules())


def test_a_failure_in_the_middle_of_a_pass_does_not_spoil_the_next_one() -> None:
    module, batch = Whole(), make_batch(3)

    def failing(module: nn.Module, batch: Batch) -> Tensor:
        cross_entropy(module, batch)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"), per_sample_hooks(module):
        backward(module, failing, batch)
    each, _ = _by_hooks(module, batch)
    assert torch.allclose(each, gradients_one_by_one(module.eval(), cross_entropy, batch), rtol=1e-4, atol=1e-6)


def _contrastive(module: nn.Module, batch: Batch) -> Tensor:
    image, text = module.body(batch[0]).mean(dim=1), batch[1].mean(dim=1)  # type: ignore[operator]
    return F.cross_entropy(image @ text.T, torch.arange(len(image)), reduction="none")


def _centred(module: nn.Module, batch: Batch) -> Tensor:
    logits = module(batch[0], batch[1])
    return F.cross_entropy(logits - logits.mean(dim=0), batch[2], reduction="none")


def _random(module: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(F.dropout(module(batch[0], batch[1]), 0.5), batch[2], reduction="none")


@pytest.mark.parametrize("loss", [_contrastive, _centred, _random])
def test_a_loss_that_mixes_records_or_draws_randomness_is_refused(loss: object) -> None:
    torch.manual_seed(2)
    module = OneInput(nn.Linear(WIDTH, WIDTH))
    if loss is _contrastive:
        module.head.requires_grad_(False)
    with pytest.raises(NotDecomposable, match="mixes records"):
        check_decomposable(module, loss, make_batch(3))  # type: ignore[arg-type]


class _LateBroadcast(nn.Module):
    """The trained layer sees a leading dimension of 1 and its output is broadcast afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, 3)
        self.shared = torch.randn(1, WIDTH)

    def forward(self, image: Tensor, attributes: Tensor) -> Tensor:
        return self.layer(self.shared) + image.mean(dim=1)[:, :3] + attributes.mean(dim=1)[:, :3]


def test_a_layer_that_is_broadcast_over_the_batch_is_refused() -> None:
    with pytest.raises(NotDecomposable, match="no per-sample gradient"):
        check_decomposable(_LateBroadcast(), cross_entropy, make_batch(3))


def test_a_trained_parameter_that_is_never_used_is_refused() -> None:
    module = OneInput(nn.Linear(WIDTH, WIDTH))
    module.spare = nn.Linear(2, 2)
    with pytest.raises(NotDecomposable, match="must be used"):
        check_decomposable(module, cross_entropy, make_batch(3))


def test_a_mean_over_the_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="one loss per record"):
        check_decomposable(Whole(), lambda m, b: cross_entropy(m, b).mean(), make_batch(3))


class _OwnAndChildren(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))
        self.layer = nn.Linear(WIDTH, 3)


class _WithBuffer(Holder):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (lambda: nn.MultiheadAttention(WIDTH, 2), "nn.Linear"),
        (lambda: nn.BatchNorm1d(WIDTH), "freeze it"),
        (lambda: nn.LSTM(WIDTH, WIDTH), "freeze it"),
        (_OwnAndChildren, "beside trained children"),
        (_WithBuffer, "buffers"),
    ],
)
def test_a_part_without_correct_per_sample_gradients_is_refused_by_name(part: object, message: str) -> None:
    module = nn.Sequential(nn.Linear(WIDTH, WIDTH), part())  # type: ignore[operator]
    with pytest.raises(ValueError, match=message) as refusal:
        check_structure(module)
    assert str(refusal.value).startswith("1 (")
    check_structure(module.requires_grad_(False))
