"""Book-keeping gives the clipped sum that Opacus' hooks and a loop over the records give, from one backward pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from privacy import NotDecomposable, book_keeping, optimizer, sample_gradients
from privacy.book_keeping import register_book_keeping, rule_of
from privacy.mechanism import PerformanceParameters
from privacy.optimizer import clipping_factors
from privacy.per_sample import (
    Batch,
    check_decomposable,
    check_structure,
    choose_engine,
    per_sample_pass,
    take_gradients,
    trainable_parameters,
)
from privacy.sample_gradients import Outer, SampleGradients, joint_norms
from tests.privacy.modules import MODULES, WIDTH, Holder, OneInput, cross_entropy, make_batch
from tests.privacy.stacks import SHAPES, Shape, Stack, distance, records_of
from tests.privacy.sums import BOUNDS, check_sums, clipped_sum, split, sum_by_loop


@settings(max_examples=50, deadline=None)
@given(shape=SHAPES, largest=st.integers(1, 7))
def test_book_keeping_hooks_and_a_loop_agree_for_any_shape_and_any_split(shape: Shape, largest: int) -> None:
    check_sums(Stack(shape), distance, records_of(shape), largest)


@settings(max_examples=25, deadline=None)
@given(shape=SHAPES)
def test_they_agree_to_many_digits_in_float64(shape: Shape) -> None:
    batch = tuple(tensor.double() for tensor in records_of(shape))
    check_sums(Stack(shape).double(), distance, batch, largest=3, tolerance=1e-6)


@pytest.mark.parametrize("kind", ["linear", "layer norm", "lora of layers", "one layer used twice"])
@pytest.mark.parametrize("size", [1, 5])
def test_they_agree_on_the_modules_of_the_other_tests(kind: str, size: int) -> None:
    torch.manual_seed(1)
    check_sums(MODULES[kind](), cross_entropy, make_batch(size))


def test_an_empty_pass_leaves_a_sum_of_zero() -> None:
    assert not clipped_sum(MODULES["linear"]().eval(), cross_entropy, [make_batch(0)], 1.0).any()


WAYS = {
    "by pairs of tokens": Shape(("linear",), (40,), (2,), 40, 5, seed=3),
    "by gradients that are kept": Shape((), (), (60,), 4, 5, seed=3),
    "by gradients that are not kept": Shape((), (), (60,), 4, 5, seed=3),
    "of one token": Shape((), (), (), 40, 5, seed=3),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_the_norms_is_taken_and_agrees(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for name in ("_norms_by_pairs", "_norms_of_rows", "_norms_by_rows", "_norms_of_pairs"):
        monkeypatch.setattr(sample_gradients, name, _noting(getattr(sample_gradients, name), name, taken))
    if way == "by gradients that are not kept":
        monkeypatch.setattr(sample_gradients, "KEPT_BYTES", 0)
    check_sums(Stack(WAYS[way]), distance, records_of(WAYS[way]))
    assert (
        taken[0]
        == dict(zip(WAYS, ("_norms_by_pairs", "_norms_of_rows", "_norms_by_rows", "_norms_of_pairs"), strict=True))[way]
    )


def _noting(function: Callable[..., Tensor], name: str, taken: list[str]) -> Callable[..., Tensor]:
    def noting(*arguments: Tensor) -> Tensor:
        taken.append(name)
        return function(*arguments)

    return noting


def test_small_chunks_and_float32_products_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device that is slow at float64, or with more records than are looked at in one go."""
    monkeypatch.setattr(sample_gradients, "CHUNK_BYTES", {"cpu": 1})
    monkeypatch.setattr(sample_gradients, "product_dtype", lambda _: torch.float32)
    for shape in WAYS.values():
        check_sums(Stack(shape), distance, records_of(shape))


class TiedWeights(nn.Module):
    """One matrix in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class ByKeyword(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(input=x)


class Caller(nn.Module):
    """Calls its layer with a keyword, and once more where no gradient is wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = self.layer(x).square().mean(dim=(1, 2), keepdim=True)
        return self.layer(input=x) * scale


class Convolution(nn.Module):
    """Of a kind that Opacus has a sampler for and book-keeping has no rule of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.mT).mT


class Checkpointed(nn.Module):
    """A trained layer whose activations are computed again on the way back."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(lambda y: torch.tanh(self.second(y)), self.first(x), use_reentrant=self.reentrant)


@pytest.mark.parametrize(
    "body", [TiedWeights, Caller, Convolution, lambda: Checkpointed(reentrant=False), lambda: nn.LayerNorm((4, WIDTH))]
)
def test_they_agree_on_unusual_uses_of_a_layer(body: Callable[[], nn.Module]) -> None:
    torch.manual_seed(4)
    module, batch = OneInput(body()).eval(), make_batch(5)
    for bound in BOUNDS:
        expected = sum_by_loop(module, cross_entropy, batch, bound)
        found = clipped_sum(module, cross_entropy, split(batch, 2), bound)
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    check_decomposable(module, cross_entropy, batch)


def test_a_layer_of_an_unknown_kind_is_trained_by_hooks() -> None:
    for unknown in (Holder(), ByKeyword(WIDTH, WIDTH)):
        assert rule_of(unknown) is None
        assert choose_engine(OneInput(unknown), "book-keeping") == "hooks"
        assert choose_engine(OneInput(unknown.requires_grad_(False)), "book-keeping") == "book-keeping"
    assert choose_engine(OneInput(nn.Linear(WIDTH, WIDTH)), "hooks") == "hooks"


def test_a_rule_of_ones_own_makes_a_layer_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_keeping, "_RULES", dict(book_keeping._RULES))

    @register_book_keeping(Holder)
    def _(layer: Holder, _activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
        return {layer.tokens: backprops}

    torch.manual_seed(5)
    check_sums(OneInput(Holder()), cross_entropy, make_batch(4))


def test_an_engine_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="per_sample_engine is one of"):
        PerformanceParameters(per_sample_engine="ghost")  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e36])
@pytest.mark.parametrize("way", WAYS)
def test_a_record_that_is_not_finite_counts_as_zero_and_harms_no_other(way: str, bad: float) -> None:
    module, batch = Stack(WAYS[way]).eval(), records_of(WAYS[way])
    for bound in BOUNDS:
        others = clipped_sum(module, distance, [tuple(tensor[1:] for tensor in batch)], bound)
        spoilt = batch[0].clone()
        spoilt[0] = bad
        assert torch.allclose(clipped_sum(module, distance, [(spoilt, batch[1])], bound), others, rtol=1e-5, atol=1e-6)
        assert not clipped_sum(module, distance, [(spoilt[:1], batch[1][:1])], bound).any()


# Controls: what a mistaken engine would do, and the same checks that find it


def _without_pairs(activations: Tensor, gradients: Tensor) -> Tensor:
    """The squares of the tokens alone."""
    return (activations.norm(dim=2) * gradients.norm(dim=2)).norm(dim=1).double()


def _of_the_next_record(gradients: Sequence[SampleGradients]) -> Tensor:
    return joint_norms(gradients).roll(1)


@contextmanager
def _broken(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(book_keeping, "_RULES", dict(book_keeping._RULES))
    whole = book_keeping._RULES[nn.Linear]

    def rule(layer: nn.Linear, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, SampleGradients | Tensor]:
        found = dict(whole(layer, activations, backprops))
        if name == "a bias forgotten":
            found[layer.bias] = torch.zeros_like(found[layer.bias])  # type: ignore[arg-type]
        if name == "a record's gradient at another":
            outer = found[layer.weight]
            assert isinstance(outer, Outer)
            found[layer.weight] = Outer(outer.activations, outer.gradients.roll(1, dims=0))
        return found

    with monkeypatch.context() as patched:
        patched.setitem(book_keeping._RULES, nn.Linear, rule)
        if name == "pairs of tokens forgotten":
            patched.setattr(sample_gradients, "_norms_by_pairs", _without_pairs)
        if name == "norms of another record":
            patched.setattr(optimizer, "joint_norms", _of_the_next_record)
            patched.setattr("privacy.per_sample.joint_norms", _of_the_next_record)
        yield


MISTAKES = (
    "a bias forgotten",
    "a record's gradient at another",
    "pairs of tokens forgotten",
    "norms of another record",
)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_control_a_mistake_in_the_books_fails_the_same_check_and_is_refused_before_training(
    mistake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = WAYS["by pairs of tokens"]
    batch = tuple(tensor + 1 for tensor in records_of(shape))  # tokens that resemble each other
    check_sums(Stack(shape), distance, batch)
    check_decomposable(Stack(shape), distance, batch)
    with _broken(mistake, monkeypatch):
        with pytest.raises(AssertionError, match="another clipped sum"):
            check_sums(Stack(shape), distance, batch)
        with pytest.raises(NotDecomposable, match="mixes records"):
            check_decomposable(Stack(shape), distance, batch)
        if mistake != "norms of another record":  # which is in what both engines share
            check_decomposable(Stack(shape), distance, batch, engine="hooks")


def test_a_weight_used_beside_its_layer_is_refused() -> None:
    module = OneInput(nn.Linear(WIDTH, WIDTH))

    def with_decay(module: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(module, batch) + 100 * module.body.weight.square().sum()  # type: ignore[operator, union-attr]

    for engine in ("book-keeping", "hooks"):
        with pytest.raises(NotDecomposable):
            check_decomposable(module, with_decay, make_batch(3), engine=engine)  # type: ignore[arg-type]


def test_a_loss_without_any_trained_layer_is_refused() -> None:
    with pytest.raises(NotDecomposable, match="no trained parameter"):
        check_decomposable(OneInput(nn.Linear(WIDTH, WIDTH)), lambda _, batch: batch[0].sum(dim=(1, 2)), make_batch(3))


def test_an_input_changed_in_place_after_its_use_is_refused() -> None:
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            bent = torch.tanh(x)
            out = self.layer(bent)
            bent.mul_(2.0)
            return out

    module = OneInput(Overwriting()).eval()
    with pytest.raises(NotDecomposable, match="changed in place"):
        clipped_sum(module, cross_entropy, [make_batch(3)], 1.0)
    check_structure(module)


# One traversal


class BehindATower(nn.Module):
    """A trained layer before three frozen blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt = nn.Linear(WIDTH, WIDTH)
        self.tower = nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(3)))
        self.tower.requires_grad_(False)

    def forward(self, image: Tensor, attributes: Tensor) -> Tensor:
        return self.tower(self.prompt(image)).mean(dim=1)[:, :3] + attributes.mean(dim=1)[:, :3]


def check_one_traversal(run: Callable[[nn.Module, Batch], object]) -> None:
    """Assert that each frozen block is passed once forwards and once backwards."""
    module, forwards, backwards = BehindATower().eval(), [0] * 3, [0] * 3

    def count(counts: list[int], number: int) -> Callable[..., None]:
        def counting(*_: object) -> None:
            counts[number] += 1

        return counting

    for number, block in enumerate(module.tower):
        block.register_forward_hook(count(forwards, number))
        block.register_full_backward_hook(count(backwards, number))
    run(module, make_batch(4))
    assert forwards == backwards == [1] * 3, "a frozen block was not passed exactly once"


def test_the_frozen_tower_is_passed_once_forwards_and_once_backwards() -> None:
    check_one_traversal(lambda module, batch: clipped_sum(module, cross_entropy, [batch], 0.1))


def test_control_ghost_clipping_with_its_second_backward_pass_fails_the_same_check() -> None:
    def ghost(module: nn.Module, batch: Batch) -> None:
        losses = cross_entropy(module, batch)
        losses.sum().backward(retain_graph=True)
        (losses * 0.5).sum().backward()

    with pytest.raises(AssertionError, match="exactly once"):
        check_one_traversal(ghost)


def test_autograd_computes_no_gradient_of_a_trained_weight_and_nothing_is_left_behind() -> None:
    module = BehindATower().eval()
    trained = trainable_parameters(module)
    with per_sample_pass(module, "book-keeping") as run:
        run(cross_entropy, make_batch(4))
        assert all(parameter.grad is None for parameter in module.parameters())
        assert joint_norms([take_gradients(parameter, 4) for parameter in trained]).shape == (4,)
    assert trainable_parameters(module) == trained
    assert all(parameter.sample_gradients is None for parameter in trained)
    assert not any(part._forward_hooks or part._backward_hooks for part in module.modules())


def test_a_failure_in_the_middle_of_a_pass_leaves_the_parameters_trainable() -> None:
    module, batch = BehindATower().eval(), make_batch(3)

    def failing(module: nn.Module, batch: Batch) -> Tensor:
        cross_entropy(module, batch)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        clipped_sum(module, failing, [batch], 1.0)
    assert len(trainable_parameters(module)) == 2
    check_sums(module, cross_entropy, batch)


# The bound


def check_bound(outer: Outer, bound: float, tolerance: float = 1e-6) -> None:
    """Assert that a clipped gradient is no longer than the bound, and that its sum as computed is not either."""
    factors, finite = clipping_factors(joint_norms([outer]), bound)
    kept = outer._rows is not None  # then what was measured is what is added up, rounded as it is
    measured = outer._rows if kept else (outer.gradients.double().mT @ outer.activations.double()).flatten(1)
    lengths = factors * measured.double().norm(dim=1)  # type: ignore[union-attr]
    assert bool((lengths[finite] <= bound * (1 + tolerance)).all()), "a clipped gradient is longer than the bound"
    for record in finite.nonzero().flatten():
        computed = outer.take(record[None]).weighted_sum(factors[record][None]).double().norm()
        assert float(computed) <= bound * (1 + (tolerance if kept else 1e-4)), (
            "the sum of one record is longer than the bound"
        )


_SIZES = st.sampled_from([(1, 9, 9), (3, 40, 40), (16, 8, 60), (60, 5, 4), (40, 90, 30)])


@settings(max_examples=100, deadline=None)
@given(
    size=_SIZES,
    shared=st.booleans(),
    cancel=st.sampled_from([0.0, 1e-1, 1e-3, 1e-5, 1e-7]),
    scales=st.tuples(st.integers(-25, 25), st.integers(-25, 25)),
    bound=st.sampled_from([1e-4, 1.0, 1e3]),
    seed=st.integers(0, 10**6),
    device=st.sampled_from(["any", "slow at float64", "without float64"]),
)
def test_no_clipped_gradient_is_longer_than_the_bound_at_any_scale_and_with_any_cancellation(
    size: tuple[int, int, int],
    *,
    shared: bool,
    cancel: float,
    scales: tuple[int, int],
    bound: float,
    seed: int,
    device: str,
) -> None:
    tokens, outputs, inputs = size
    generator = torch.Generator().manual_seed(seed)
    activations = torch.randn(tokens, inputs, generator=generator)
    gradients = torch.randn(3, tokens, outputs, generator=generator)
    if cancel:  # equal activations, and output gradients that add up to almost nothing
        activations = activations[:1] + cancel * activations
        gradients = gradients - gradients.mean(dim=1, keepdim=True)
    activations, gradients = activations * 10.0 ** scales[0], gradients * 10.0 ** scales[1]
    outer = Outer(activations if shared else activations.repeat(3, 1, 1), gradients)
    float64, float32 = (lambda _: torch.float64), (lambda _: torch.float32)
    with (
        patch.object(sample_gradients, "product_dtype", float64 if device == "any" else float32),
        patch.object(sample_gradients, "exact_dtype", float32 if device == "without float64" else float64),
    ):
        check_bound(outer, bound, 1e-5 if device == "without float64" else 1e-6)


def test_control_norms_by_float32_products_alone_fail_the_same_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(activations: Tensor, gradients: Tensor) -> Tensor:
        left, right = activations.float(), gradients.float()
        return ((left @ left.mT) * (right @ right.mT)).sum(dim=(1, 2)).clamp(min=0).sqrt().double()

    generator = torch.Generator().manual_seed(1)
    activations = torch.randn(3, 40, generator=generator) + 1000 * torch.randn(1, 40, generator=generator)
    gradients = torch.randn(30, 3, 40, generator=generator)
    gradients -= gradients.mean(dim=1, keepdim=True)
    outer = (activations.repeat(30, 1, 1), 1e3 * gradients)
    check_bound(Outer(*outer), 1.0)
    monkeypatch.setattr(sample_gradients, "_norms_by_pairs", hasty)
    with pytest.raises(AssertionError, match="longer than the bound"):
        check_bound(Outer(*outer), 1.0)


def test_activations_that_were_expanded_are_one_copy() -> None:
    shared, gradients = torch.randn(30, 5), torch.randn(4, 30, 6)
    views = Outer(shared.expand(4, -1, -1), gradients)
    copies = Outer(shared.repeat(4, 1, 1), gradients)
    assert views.is_shared
    assert not copies.is_shared
    weights = torch.rand(4)
    assert torch.allclose(views.norms(), copies.norms())
    assert torch.allclose(views.weighted_sum(weights), copies.weighted_sum(weights), rtol=1e-4, atol=1e-5)
    assert np.isclose(float(views.take(torch.tensor([2])).norms()), float(views.norms()[2]))
