"""The engine: what a step does to the parameters, and what it refuses."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privacy import BudgetExceeded, Ledger, LedgerError, Mode, NotDecomposable, PrivacyParameters, PrivacyRefused
from privacy.dpsgd import DpSgdEngine
from privacy.mechanism import PerformanceParameters
from privacy.noise import gaussian
from privacy.optimizer import Noise, NoisyOptimizer, Units
from privacy.per_sample import Batch, per_sample_pass
from tests.privacy.checks import check_gaussian
from tests.privacy.conftest import POLICY
from tests.privacy.modules import (
    WIDTH,
    OneInput,
    SilentEngine,
    Whole,
    cross_entropy,
    gradients_one_by_one,
    make_batch,
)

WIDE = 300


class Flat(nn.Module):
    """A long parameter vector; the gradient of a record is the record."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDE, WIDE, bias=False)
        nn.init.zeros_(self.layer.weight)


def inner_product(module: nn.Module, batch: Batch) -> Tensor:
    """Gradient of record x: x outer ones."""
    return module.layer(batch[0]).sum(dim=1)  # type: ignore[operator]


def trained(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad]).double().clone()


def one_step(engine: DpSgdEngine, module: nn.Module, data: Batch) -> Tensor:
    before = trained(module)
    engine.run(data, 1)
    return trained(module) - before


Build = Callable[[nn.Module], DpSgdEngine]


def check_mechanism(build: Build, params: PrivacyParameters) -> None:
    """Assert, with two neighbouring datasets, the sensitivity and the noise that the accountant assumes."""
    scale = params.max_grad_norm / params.expected_batch_size
    engine_module = Flat()
    engine = build(engine_module)
    empty = (torch.zeros(0, WIDE),)
    first = one_step(engine, engine_module, empty)
    second = one_step(engine, engine_module, empty)
    for noise in (first, second):
        check_gaussian(noise.numpy(), params.noise_multiplier * scale)
    check_gaussian((first - second).numpy(), params.noise_multiplier * scale * 2**0.5)  # independent across steps

    everyone = torch.randn(9, WIDE, generator=torch.Generator().manual_seed(5)) * 100
    updates = []
    for records in (everyone[:8], everyone):
        module = Flat()
        updates.append(one_step(build(module), module, (records,)))
    # Project on the direction of the added record: one number with noise of a known size, so 7 deviations is a bound.
    direction = everyone[8].double().repeat(WIDE)
    direction /= direction.norm()
    moved = float((updates[1] - updates[0]) @ direction)
    assert abs(moved) < scale * (1 + 7 * 2**0.5 * params.noise_multiplier), "one record moves the step by more than C/L"


@pytest.fixture
def sharp(params: PrivacyParameters) -> PrivacyParameters:
    """Every record in every step, many steps a round."""
    return replace(params, sample_rate=1.0, steps_per_round=4, noise_multiplier=20.0)


def test_the_engine_passes_the_check_of_its_mechanism(ledger: Ledger, sharp: PrivacyParameters) -> None:
    check_mechanism(lambda m: DpSgdEngine(m, inner_product, params=sharp, ledger=ledger, learning_rate=1.0), sharp)


class DrawnAhead(NoisyOptimizer):
    """As on a GPU: the noise is drawn while the gradients are computed."""

    def __init__(self, optimizer: torch.optim.Optimizer, params: PrivacyParameters, noise: Noise = gaussian) -> None:
        super().__init__(optimizer, params, noise)
        self._draws_ahead = True


def _engine_of(kind: type[NoisyOptimizer], params: PrivacyParameters, ledger: Ledger) -> Build:
    class Engine(DpSgdEngine):
        def _make_noisy(self, optimizer: torch.optim.Optimizer) -> NoisyOptimizer:
            return kind(optimizer, self._params)

    return lambda module: Engine(module, inner_product, params=params, ledger=ledger, learning_rate=1.0)


def test_an_engine_that_draws_its_noise_ahead_passes_the_check_of_its_mechanism(
    ledger: Ledger, sharp: PrivacyParameters
) -> None:
    check_mechanism(_engine_of(DrawnAhead, sharp, ledger), sharp)


def check_drawn_once(kind: type[DrawnAhead], params: PrivacyParameters) -> None:
    """Assert that each step has a draw of its own, made beside it, of the deviation that holds when it is added."""
    module, drawn = Flat(), []

    def noise(size: int, deviation: float) -> np.ndarray:
        drawn.append((threading.current_thread() is threading.main_thread(), deviation))
        return np.full(size, float(len(drawn)))

    optimizer = kind(torch.optim.SGD(module.parameters(), lr=1.0), params, noise)

    def added(parts: int, factor: float = 1.0) -> int:
        """Which draw the step after so many parts of a batch adds."""
        optimizer.zero_grad(set_to_none=True)
        with per_sample_pass(module, "book-keeping") as run:
            for _ in range(parts):
                run(inner_product, (torch.zeros(2, WIDE),))
                optimizer.accumulate(2)
        before = trained(module)
        optimizer.max_grad_norm *= factor
        optimizer.step()
        return round(float((before - trained(module)).mean() * params.expected_batch_size))

    deviation = params.noise_multiplier * params.max_grad_norm
    assert [added(1), added(3), added(0)] == [1, 2, 3], "a draw was used twice"
    assert added(1, factor=2.0) == 5, "noise of a former deviation was added"
    assert drawn == [(False, deviation)] * 2 + [(True, deviation), (False, deviation), (True, 2 * deviation)]


def test_noise_drawn_ahead_is_drawn_once_a_step_beside_it_and_never_used_twice(params: PrivacyParameters) -> None:
    check_drawn_once(DrawnAhead, params)


class AheadForEver(DrawnAhead):
    """Keeps what was drawn ahead."""

    def add_noise(self) -> None:
        kept = self._ahead
        super().add_noise()
        self._ahead = kept


def test_control_noise_drawn_ahead_once_for_ever_fails_the_same_check(params: PrivacyParameters) -> None:
    with pytest.raises(AssertionError, match="used twice"):
        check_drawn_once(AheadForEver, params)


def test_a_step_whose_noise_failed_is_not_taken(params: PrivacyParameters) -> None:
    module = Flat()

    def broken(size: int, deviation: float) -> np.ndarray:
        raise RuntimeError("no randomness")

    optimizer = DrawnAhead(torch.optim.SGD(module.parameters(), lr=1.0), params, broken)
    with per_sample_pass(module, "book-keeping") as run:
        run(inner_product, (torch.ones(2, WIDE),))
        optimizer.accumulate(2)
    with pytest.raises(RuntimeError, match="no randomness"):
        optimizer.step()
    assert not trained(module).any()


class NoClip(NoisyOptimizer):
    def accumulate(self, batch_size: int, units: Units | None = None) -> None:
        self.max_grad_norm, bound = 1e12, self.max_grad_norm
        super().accumulate(batch_size, units)
        self.max_grad_norm = bound


class NoNoise(NoisyOptimizer):
    def add_noise(self) -> None:
        self.noise_multiplier = 0.0
        super().add_noise()


class NoiseDividedTwice(NoisyOptimizer):
    def add_noise(self) -> None:
        self.noise_multiplier, former = self.noise_multiplier / self.expected_batch_size, self.noise_multiplier
        super().add_noise()
        self.noise_multiplier = former


class NoiseWithoutClipNorm(NoisyOptimizer):
    def add_noise(self) -> None:
        self.noise_multiplier, former = self.noise_multiplier / self.max_grad_norm, self.noise_multiplier
        super().add_noise()
        self.noise_multiplier = former


class NoNoiseOnAnEmptyBatch(NoisyOptimizer):
    def add_noise(self) -> None:
        if self.params[0].summed_grad is not None:
            super().add_noise()
        else:
            self.params[0].summed_grad = torch.zeros(self.params[0].shape, dtype=torch.float64)


_FROZEN_DRAW = gaussian(WIDE * WIDE, 1.0)


class SameNoiseEveryStep(NoisyOptimizer):
    def __init__(self, optimizer: torch.optim.Optimizer, params: PrivacyParameters) -> None:
        super().__init__(optimizer, params, lambda size, deviation: _FROZEN_DRAW[:size] * deviation)


@pytest.mark.parametrize(
    "broken", [NoClip, NoNoise, NoiseDividedTwice, NoiseWithoutClipNorm, NoNoiseOnAnEmptyBatch, SameNoiseEveryStep]
)
def test_control_a_broken_mechanism_fails_the_same_check(
    ledger: Ledger, sharp: PrivacyParameters, broken: type[NoisyOptimizer]
) -> None:
    with pytest.raises(AssertionError):
        check_mechanism(_engine_of(broken, sharp, ledger), sharp)


def _expected_step(module: nn.Module, batch: Batch, params: PrivacyParameters) -> Tensor:
    each = gradients_one_by_one(module, cross_entropy, batch).double()
    factor = (params.max_grad_norm / each.norm(dim=1)).clamp(max=1)
    return -(each * factor[:, None]).sum(dim=0) / params.expected_batch_size


@pytest.mark.parametrize("physical", [3, 256])
def test_a_step_is_the_sum_of_clipped_gradients_over_the_public_denominator(
    ledger: Ledger, sharp: PrivacyParameters, physical: int
) -> None:
    module, batch = Whole().eval(), make_batch(10)
    expected = _expected_step(module, batch, sharp)
    engine = SilentEngine(
        module,
        cross_entropy,
        params=sharp,
        ledger=ledger,
        learning_rate=1.0,
        performance=PerformanceParameters(physical),
    )
    assert torch.allclose(one_step(engine, module, batch), expected, atol=1e-6)


def test_adding_a_record_adds_its_clipped_gradient_and_leaves_the_denominator(
    ledger: Ledger, sharp: PrivacyParameters
) -> None:
    torch.manual_seed(0)
    module, everyone = Whole().eval(), make_batch(11)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    updates = []
    for count in (10, 11):
        module.load_state_dict(start)
        engine = SilentEngine(module, cross_entropy, params=sharp, ledger=ledger, learning_rate=1.0)
        updates.append(one_step(engine, module, tuple(tensor[:count] for tensor in everyone)))
    module.load_state_dict(start)
    added = _expected_step(module, tuple(tensor[10:] for tensor in everyone), sharp)
    assert torch.allclose(updates[1] - updates[0], added, atol=1e-6)
    assert float(added.norm()) <= sharp.max_grad_norm / sharp.expected_batch_size * (1 + 1e-6)


def test_two_engines_from_one_start_end_apart(ledger: Ledger, params: PrivacyParameters) -> None:
    ends = []
    for _ in range(2):
        module = Flat()
        engine = DpSgdEngine(module, inner_product, params=params, ledger=ledger, learning_rate=1.0)
        engine.run((torch.ones(3, WIDE),), 1)
        ends.append(trained(module))
    assert float((ends[0] != ends[1]).double().mean()) > 0.99


def test_a_record_of_nans_neither_stops_the_run_nor_spoils_it(ledger: Ledger, sharp: PrivacyParameters) -> None:
    module, batch = Whole().eval(), make_batch(10)
    expected = _expected_step(module, tuple(tensor[1:] for tensor in batch), sharp)
    batch[0][0] = float("nan")
    engine = SilentEngine(module, cross_entropy, params=sharp, ledger=ledger, learning_rate=1.0)
    assert torch.allclose(one_step(engine, module, batch), expected, atol=1e-6)


def test_only_trained_parameters_change_and_nothing_is_left_on_them(ledger: Ledger, params: PrivacyParameters) -> None:
    module = Whole()
    frozen = {name: value.clone() for name, value in module.state_dict().items()}
    moving = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    modes = [part.training for part in module.modules()]
    DpSgdEngine(module, cross_entropy, params=params, ledger=ledger, learning_rate=0.1).run(make_batch(40), 3)
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, frozen[name])}
    assert changed == moving
    assert [part.training for part in module.modules()] == modes
    assert all(parameter.grad is None for parameter in module.parameters())


def test_noise_reaches_every_parameter_even_without_records(ledger: Ledger, params: PrivacyParameters) -> None:
    module = Whole()
    before = trained(module)
    DpSgdEngine(module, cross_entropy, params=params, ledger=ledger, learning_rate=0.1).run(make_batch(0), 1)
    assert (trained(module) != before).all()


def test_momentum_is_that_of_plain_sgd_and_ends_with_its_trajectory(ledger: Ledger, sharp: PrivacyParameters) -> None:
    module = Flat()
    engine = SilentEngine(module, inner_product, params=sharp, ledger=ledger, learning_rate=1.0, momentum=0.5)
    data = (torch.ones(1, WIDE),)
    one = one_step(engine, module, data)
    assert torch.allclose(one_step(engine, module, data), 1.5 * one, rtol=1e-5)
    nn.init.zeros_(module.layer.weight)
    assert torch.allclose(one_step(engine, module, data), one, rtol=1e-5)


@pytest.mark.parametrize("nothing", [None, "ledger.db", object()])
def test_an_engine_cannot_be_built_without_a_ledger(params: PrivacyParameters, nothing: object) -> None:
    with pytest.raises(TypeError, match="Ledger"):
        DpSgdEngine(Flat(), inner_product, params=params, ledger=nothing, learning_rate=1.0)  # type: ignore[arg-type]


def test_an_engine_cannot_be_built_without_parameters(ledger: Ledger) -> None:
    with pytest.raises(TypeError, match="PrivacyParameters"):
        DpSgdEngine(Flat(), inner_product, params=None, ledger=ledger, learning_rate=1.0)  # type: ignore[arg-type]


def test_an_engine_refuses_a_ledger_that_could_not_charge(ledger: Ledger, params: PrivacyParameters) -> None:
    def build(params: PrivacyParameters, ledger: Ledger) -> None:
        DpSgdEngine(Flat(), inner_product, params=params, ledger=ledger, learning_rate=1.0)

    with pytest.raises(PrivacyRefused, match="delta"):
        build(replace(params, delta=1e-6), ledger)
    with pytest.raises(PrivacyRefused, match="UNSAFE"):
        build(replace(params, mode=Mode.UNSAFE_NO_DP), ledger)
    with Ledger.open(ledger.path, read_only=True) as display, pytest.raises(LedgerError, match="reading only"):
        build(params, display)
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        build(params, ledger)


def test_nothing_is_trained_when_the_round_could_not_be_released(tmp_path: Path, params: PrivacyParameters) -> None:
    module = Flat()
    with Ledger.create(tmp_path / "small.db", dataset_id="d", delta=1e-5, epsilon_max=0.2) as ledger:
        engine = DpSgdEngine(module, inner_product, params=params, ledger=ledger, learning_rate=1.0)
        with pytest.raises(BudgetExceeded):
            engine.run((torch.ones(4, WIDE),), 5)
    assert not trained(module).any()


def test_more_steps_than_a_release_is_charged_for_are_refused(ledger: Ledger, params: PrivacyParameters) -> None:
    module, data = Flat(), (torch.ones(4, WIDE),)
    engine = DpSgdEngine(module, inner_product, params=params, ledger=ledger, learning_rate=1.0)
    with pytest.raises(PrivacyRefused, match="6 steps"):
        engine.run(data, 6)
    engine.run(data, 3)
    engine.run(data, 2)
    end = trained(module)
    with pytest.raises(PrivacyRefused, match="6 steps"):
        engine.run(data, 1)
    assert torch.equal(trained(module), end)
    ledger.reserve("run", 1, params, POLICY)
    engine.run(data, 5)
    nn.init.zeros_(module.layer.weight)  # the next round starts from published parameters
    engine.run(data, 5)


def test_a_loss_that_mixes_records_is_refused_before_training(ledger: Ledger, params: PrivacyParameters) -> None:
    module = OneInput(nn.Linear(WIDTH, WIDTH))
    before = trained(module)

    def mixing(module: nn.Module, batch: Batch) -> Tensor:
        losses = cross_entropy(module, batch)
        return losses * losses.mean()

    engine = DpSgdEngine(module, mixing, params=params, ledger=ledger, learning_rate=1.0)
    with pytest.raises(NotDecomposable):
        engine.run(make_batch(30), 1)
    assert torch.equal(trained(module), before)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("size", [0, 2, 30])
def test_whether_a_loss_is_refused_depends_neither_on_the_records_nor_on_parameters_set_later(
    ledger: Ledger, params: PrivacyParameters, size: int, seed: int
) -> None:
    """A server could choose parameters at which rounding makes the check fail for some records and not for others."""
    honest, mixing = OneInput(nn.Linear(WIDTH, WIDTH)), OneInput(nn.Linear(WIDTH, WIDTH))
    batch = make_batch(size, seed)
    engines = [
        DpSgdEngine(module, loss, params=params, ledger=ledger, learning_rate=0.0)
        for module, loss in ((honest, rounding_mixes), (mixing, always_mixes))
    ]
    with torch.no_grad():
        for module in (honest, mixing):
            for parameter in module.parameters():
                parameter.fill_(1e20)
    sent = trained(honest)
    engines[0].run(batch, 1)
    assert torch.equal(trained(honest), sent)  # learning rate 0: the parameters were given back bit for bit
    with pytest.raises(NotDecomposable):
        engines[1].run(batch, 1)
    assert torch.equal(trained(mixing), sent)


def rounding_mixes(module: nn.Module, batch: Batch) -> Tensor:
    """Decomposes as long as the module's parameters are small, and mixes records once they are huge."""
    losses = cross_entropy(module, batch)
    huge = any(float(parameter.detach().abs().max()) > 1e6 for parameter in module.parameters())
    return losses * batch[0].mean() if huge else losses


def always_mixes(module: nn.Module, batch: Batch) -> Tensor:
    losses = cross_entropy(module, batch)
    return losses * losses.mean()


def test_the_check_of_a_loss_sees_no_real_record(ledger: Ledger, params: PrivacyParameters) -> None:
    image, attributes, labels = make_batch(30)
    marked = (image + 1000, attributes + 1000, labels.clamp(min=1))
    seen: list[Batch] = []

    def watched(module: nn.Module, batch: Batch) -> Tensor:
        seen.append(batch)
        return cross_entropy(module, batch)

    never = replace(params, sample_rate=1e-9)  # no step draws a record: all that is seen, the check saw
    module = OneInput(nn.Linear(WIDTH, WIDTH))
    DpSgdEngine(module, watched, params=never, ledger=ledger, learning_rate=0.1).run(marked, 1)
    assert seen
    assert all(float(part.abs().max()) < 100 for batch in seen for part in batch[:2])
    assert not any(batch[2].any() for batch in seen)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((), "one or more"),
        ((torch.ones(3), torch.ones(4)), "different numbers"),
        ((torch.tensor(1.0),), "first dimension"),
    ],
)
def test_data_that_do_not_fit_together_are_refused(
    ledger: Ledger, params: PrivacyParameters, data: Batch, message: str
) -> None:
    engine = DpSgdEngine(Flat(), inner_product, params=params, ledger=ledger, learning_rate=1.0)
    with pytest.raises(ValueError, match=message):
        engine.run(data, 1)


def test_parameters_that_are_not_finite_or_too_coarse_are_refused(ledger: Ledger, params: PrivacyParameters) -> None:
    module = Flat()
    engine = DpSgdEngine(module, inner_product, params=params, ledger=ledger, learning_rate=1.0)
    nn.init.constant_(module.layer.weight, float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        engine.run((torch.ones(3, WIDE),), 1)
    for unfit, message in ((Flat().half(), "float32"), (Flat().requires_grad_(False), "nothing to train")):
        with pytest.raises(ValueError, match=message):
            DpSgdEngine(unfit, inner_product, params=params, ledger=ledger, learning_rate=1.0)


def test_the_unsafe_mode_is_plain_sgd_with_the_same_denominator(
    unsafe_ledger: Ledger, sharp: PrivacyParameters
) -> None:
    module, batch = Whole().eval(), make_batch(10)
    expected = -gradients_one_by_one(module, cross_entropy, batch).double().sum(dim=0) / sharp.expected_batch_size
    unsafe = replace(sharp, mode=Mode.UNSAFE_NO_DP)
    engine = DpSgdEngine(
        module,
        cross_entropy,
        params=unsafe,
        ledger=unsafe_ledger,
        learning_rate=1.0,
        performance=PerformanceParameters(4),
    )
    assert torch.allclose(one_step(engine, module, batch), expected, atol=1e-6)
