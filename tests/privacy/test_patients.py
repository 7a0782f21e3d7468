"""Where a patient is the unit, a patient is drawn, averaged, clipped and charged for as a whole."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from enum import StrEnum
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privacy import Ledger, Mode, PrivacyParameters, PrivacyRefused, dpsgd
from privacy.dpsgd import DpSgdEngine
from privacy.mechanism import NoiseShares, PerformanceParameters, PerSampleEngine
from privacy.noise import gaussian
from privacy.optimizer import NoisyOptimizer, Units
from privacy.per_sample import Batch
from privacy.records import TensorRecords
from privacy.sampling import PoissonSampler
from privacy.unit_batches import UnitBatches
from tests.privacy.checks import check_inclusions
from tests.privacy.conftest import PARAMS
from tests.privacy.modules import MODULES, SilentEngine, Whole, cross_entropy, gradients_one_by_one, make_batch

PATIENTS = [7, 7, -2, 7, 30, -2, 7, 7, 30, 1, 7, 7]
"""Of seven, two, two and one image, in no order."""

EVERYONE = replace(PARAMS, unit="patient", sample_rate=1.0, steps_per_round=4, noise_multiplier=20.0)
SHARED = replace(
    EVERYONE,
    mode=Mode.RECORD_DISTRIBUTED,
    steps_per_round=1,
    noise_shares=NoiseShares(dimension=sum(p.numel() for p in Whole().parameters() if p.requires_grad), shares=2,
                             grid=2.0**20, clamp=2**40),
)  # fmt: skip


@pytest.fixture
def of_patients(tmp_path: Path) -> Iterator[Ledger]:
    path = tmp_path / "patients.db"
    with Ledger.create(path, dataset_id="ward-7", delta=1e-5, epsilon_max=8.0, unit="patient") as opened:
        yield opened


def _module(kind: str = "everything") -> nn.Module:
    torch.manual_seed(3)
    return MODULES[kind]().eval()


def trained(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad]).double().clone()


def sum_by_loop(module: nn.Module, batch: Batch, patients: Sequence[int], bound: float) -> Tensor:
    """Clip the mean gradient of each patient's images and add them up, one image and one patient after the other."""
    each = gradients_one_by_one(module, cross_entropy, batch).double()
    total = torch.zeros(each.shape[1], dtype=torch.float64)
    for patient in set(patients):
        mean = torch.stack([each[i] for i, owner in enumerate(patients) if owner == patient]).mean(dim=0)
        total += mean * min(1.0, bound / float(mean.norm()))
    return total


Build = Callable[[nn.Module, PrivacyParameters, Ledger, PerformanceParameters], DpSgdEngine]


def _silent(module: nn.Module, params: PrivacyParameters, ledger: Ledger, speed: PerformanceParameters) -> DpSgdEngine:
    return SilentEngine(module, cross_entropy, params=params, ledger=ledger, learning_rate=1.0, performance=speed)


ENGINES = {"everything": "hooks", "layers that keep books": "book-keeping"}
"""Modules, and which way leads to their per-sample gradients."""


def check_step(build: Build, ledger: Ledger, largest: int, bound: float, kind: str) -> None:
    """Assert that a step is the sum of the patients' clipped means over the public denominator."""
    params, module, batch = replace(EVERYONE, max_grad_norm=bound), _module(kind), make_batch(len(PATIENTS))
    expected = -sum_by_loop(module, batch, PATIENTS, bound) / params.expected_batch_size
    before = trained(module)
    engine = build(module, params, ledger, PerformanceParameters(largest))
    assert engine._per_sample_engine == ENGINES[kind]
    engine.run(batch, 1, patients=PATIENTS)
    difference = (trained(module) - before - expected).norm()
    assert difference <= 1e-4 * expected.norm(), "a step is not the sum of the patients' clipped means"


@pytest.mark.parametrize("bound", [0.1, 0.5, 100.0])
@pytest.mark.parametrize("largest", [1, 2, 3, 5, 7, 8, 256])
@pytest.mark.parametrize("kind", ENGINES)
def test_a_step_is_the_sum_of_clipped_means_however_few_images_fit_in_memory(
    of_patients: Ledger, kind: str, largest: int, bound: float
) -> None:
    """Seven images of one patient are more than most of these sizes hold."""
    check_step(_silent, of_patients, largest, bound, kind)


class EachImageClipped(NoisyOptimizer):
    def accumulate(self, batch_size: int, units: Units | None = None) -> None:
        super().accumulate(batch_size)


class EachPartClipped(NoisyOptimizer):
    def accumulate(self, batch_size: int, units: Units | None = None) -> None:
        assert units is not None
        super().accumulate(batch_size, replace(units, complete=True))


class RestForgotten(NoisyOptimizer):
    def accumulate(self, batch_size: int, units: Units | None = None) -> None:
        assert units is not None
        self._unfinished = None
        super().accumulate(batch_size, units)


class SumInsteadOfMean(NoisyOptimizer):
    def accumulate(self, batch_size: int, units: Units | None = None) -> None:
        assert units is not None
        super().accumulate(batch_size, replace(units, weights=torch.ones_like(units.weights)))


@pytest.mark.parametrize(
    ("broken", "bound"),
    [(EachImageClipped, 0.1), (EachPartClipped, 0.1), (RestForgotten, 0.1), (SumInsteadOfMean, 100.0)],
)
@pytest.mark.parametrize("kind", ENGINES)
def test_control_an_engine_that_treats_a_patient_in_pieces_fails_the_same_check(
    of_patients: Ledger, broken: type[NoisyOptimizer], bound: float, kind: str
) -> None:
    class Broken(DpSgdEngine):
        def _make_noisy(self, optimizer: torch.optim.Optimizer) -> NoisyOptimizer:
            return broken(optimizer, self._params, lambda size, deviation: np.zeros(size))

    def build(module: nn.Module, params: PrivacyParameters, ledger: Ledger, speed: PerformanceParameters) -> Broken:
        return Broken(module, cross_entropy, params=params, ledger=ledger, learning_rate=1.0, performance=speed)

    with pytest.raises(AssertionError, match="clipped means"):
        check_step(build, of_patients, 3, bound, kind)


def _batches_of(patients: list[int], rate: float, steps: int, largest: int) -> list[np.ndarray]:
    """Which records each of many batches holds, through the engine's own drawing."""
    records = TensorRecords((torch.arange(len(patients)),))
    batches = UnitBatches(records, patients, torch.device("cpu"), largest)
    drawn = (batches.pieces(PoissonSampler(batches.n_units, rate).sample()) for _ in range(steps))
    return [np.array([int(i) for part, _ in pieces for i in part[0]], dtype=np.int64) for pieces in drawn]


def check_patients(batches: list[np.ndarray], patients: list[int], rate: float) -> None:
    """Assert that patients, with all their records or none, are Poisson sampled."""
    owners, counts = (
        np.unique(patients, return_inverse=True)[1],
        np.bincount(np.unique(patients, return_inverse=True)[1]),
    )
    drawn = []
    for batch in batches:
        seen = np.bincount(owners[batch], minlength=len(counts))
        assert ((seen == 0) | (seen == counts)).all(), "a patient was taken in part"
        drawn.append(np.flatnonzero(seen))
    check_inclusions(drawn, len(counts), rate)


CROWD = [int(i) for i in np.random.default_rng(8).integers(0, 60, 200)] + list(range(60))


@pytest.mark.parametrize("largest", [2, 256])
def test_patients_enter_a_batch_whole_and_independently_at_the_declared_rate(largest: int) -> None:
    check_patients(_batches_of(CROWD, 0.07, 2000, largest), CROWD, 0.07)


def test_control_records_drawn_by_themselves_fail_the_same_check() -> None:
    sampler = PoissonSampler(len(CROWD), 0.07)
    with pytest.raises(AssertionError, match="in part"):
        check_patients([sampler.sample() for _ in range(2000)], CROWD, 0.07)


def test_control_a_patient_who_comes_when_any_of_the_records_is_drawn_fails_the_same_check() -> None:
    sampler, owners = PoissonSampler(len(CROWD), 0.07), np.array(CROWD)
    batches = [np.flatnonzero(np.isin(owners, owners[sampler.sample()])) for _ in range(2000)]
    with pytest.raises(AssertionError, match="inclusion rate"):
        check_patients(batches, CROWD, 0.07)


def _repeatable(seed: int) -> tuple[Callable[[int, float], np.ndarray], Callable[..., PoissonSampler]]:
    """Noise and sampling that are the same in every run; tests alone have such a thing."""
    draws = np.random.default_rng(seed)
    return (
        lambda size, deviation: gaussian(size, deviation, draws.bytes),
        lambda count, rate: PoissonSampler(count, rate, draws.bytes),
    )


def _other_speeds() -> list[PerformanceParameters]:
    """Parameters of performance that differ from the default in one field, for every field that there is."""
    speeds = []
    for field in fields(PerformanceParameters):
        usual = getattr(PerformanceParameters(), field.name)
        if isinstance(usual, bool):
            values: list[object] = [not usual]
        elif isinstance(usual, int):
            values = [1, 2, 5, 9]
        elif field.name == "per_sample_engine":
            values = [value for value in get_args(PerSampleEngine) if value != usual]
        elif isinstance(usual, StrEnum):
            values = [value for value in type(usual) if value is not usual]
        else:
            raise AssertionError(f"say here which values of {field.name} are to be compared with {usual!r}")
        speeds += [replace(PerformanceParameters(), **{field.name: value}) for value in values]  # type: ignore[arg-type]
    return speeds


def check_speed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, unit: str, kind: str, other: PerformanceParameters
) -> None:
    """Assert that with the same randomness an engine of another speed learns the same and is charged the same."""
    params = replace(PARAMS, unit=unit, sample_rate=0.6, steps_per_round=4)
    patients = PATIENTS if unit == "patient" else None
    ends, charged = [], []
    for number, speed in enumerate((other, PerformanceParameters())):
        noise, sampler = _repeatable(11)
        monkeypatch.setattr(dpsgd, "PoissonSampler", sampler)

        class Repeatable(DpSgdEngine):
            def _make_noisy(self, optimizer: torch.optim.Optimizer, noise: Callable = noise) -> NoisyOptimizer:  # type: ignore[type-arg]
                return NoisyOptimizer(optimizer, self._params, noise)

        path = folder / str(number)
        with Ledger.create(path, dataset_id="d", delta=1e-5, epsilon_max=8.0, unit=unit) as ledger:
            module = _module(kind)
            trainer = Repeatable(
                module, cross_entropy, params=params, ledger=ledger, learning_rate=0.1, performance=speed
            )
            trainer.run(make_batch(len(PATIENTS)), 4, patients=patients)
            ends.append(trained(module))
            token = ledger.reserve("run", 1, params, bytes(32))
            charged.append((ledger.entries()[-1].mechanism, token.epsilon_after))
    assert torch.allclose(*ends, rtol=1e-4, atol=1e-6), "a parameter of performance changes what is learned"
    assert charged[0] == charged[1]


@pytest.mark.parametrize("unit", ["record", "patient"])
@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("other", _other_speeds(), ids=str)
def test_no_parameter_of_performance_changes_what_is_drawn_learned_or_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str, kind: str, other: PerformanceParameters
) -> None:
    check_speed(tmp_path, monkeypatch, unit, kind, other)
    assert not {field.name for field in fields(PerformanceParameters)} & {field.name for field in fields(PARAMS)}


def test_control_a_batch_that_is_cut_to_what_fits_in_memory_fails_the_same_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = UnitBatches.pieces
    monkeypatch.setattr(UnitBatches, "pieces", lambda self, chosen: islice(whole(self, chosen), 1))
    with pytest.raises(AssertionError, match="changes what is learned"):
        check_speed(tmp_path, monkeypatch, "record", "everything", PerformanceParameters(2))


def test_control_other_randomness_ends_elsewhere(of_patients: Ledger) -> None:
    ends = []
    for _ in range(2):
        module = _module()
        engine = DpSgdEngine(module, cross_entropy, params=replace(EVERYONE), ledger=of_patients, learning_rate=0.1)
        engine.run(make_batch(len(PATIENTS)), 4, patients=PATIENTS)
        ends.append(trained(module))
    assert not torch.allclose(*ends, rtol=1e-2, atol=1e-3)


def test_no_physical_batch_is_empty() -> None:
    with pytest.raises(ValueError, match="max_physical_batch"):
        PerformanceParameters(0)


@pytest.mark.parametrize("largest", [2, 256])
def test_a_gradient_for_the_ring_is_that_sum_on_the_grid_and_leaves_the_parameters_alone(
    of_patients: Ledger, monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    module, batch = _module(), make_batch(len(PATIENTS))
    assert SHARED.noise_shares is not None
    before, scale = trained(module), SHARED.noise_shares.grid / SHARED.max_grad_norm
    expected = sum_by_loop(module, batch, PATIENTS, SHARED.max_grad_norm) * scale
    noises: list[tuple[int, Fraction]] = []

    def noise_of_one(clipped: np.ndarray, params: PrivacyParameters, survivors: int) -> np.ndarray:
        return noisy_sum(clipped, params, survivors, noise=lambda size, sigma, _: _record(noises, size, sigma))

    noisy_sum = dpsgd.noisy_sum
    monkeypatch.setattr(dpsgd, "noisy_sum", noise_of_one)
    engine = _silent(module, SHARED, of_patients, PerformanceParameters(largest))
    gradient = engine.noisy_gradient(batch, 2, patients=PATIENTS)
    assert float((torch.from_numpy(gradient) - expected).abs().max()) < 1 + 1e-5 * float(expected.abs().max())
    assert torch.equal(trained(module), before)
    assert [size for size, _ in noises] == [len(gradient)]
    assert noises[0][1] ** 2 * 2 >= Fraction(SHARED.noise_multiplier * SHARED.noise_shares.grid) ** 2


def _record(noises: list[tuple[int, Fraction]], size: int, sigma: Fraction) -> np.ndarray:
    noises.append((size, sigma))
    return np.zeros(size, dtype=np.int64)


def test_a_second_gradient_of_one_round_is_refused_until_the_round_is_charged(of_patients: Ledger) -> None:
    engine, batch = _silent(_module(), SHARED, of_patients, PerformanceParameters()), make_batch(len(PATIENTS))
    engine.noisy_gradient(batch, 2, patients=PATIENTS)
    with pytest.raises(PrivacyRefused, match="2 steps would be released for a charge of 1"):
        engine.noisy_gradient(batch, 2, patients=PATIENTS)
    of_patients.reserve("run", 1, SHARED, bytes(32))
    engine.noisy_gradient(batch, 2, patients=PATIENTS)


def test_a_step_in_the_wrong_mode_is_refused(of_patients: Ledger) -> None:
    batch = make_batch(len(PATIENTS))
    with pytest.raises(PrivacyRefused, match="call noisy_gradient"):
        _silent(_module(), SHARED, of_patients, PerformanceParameters()).run(batch, 1, patients=PATIENTS)
    with pytest.raises(PrivacyRefused, match="call run"):
        _silent(_module(), EVERYONE, of_patients, PerformanceParameters()).noisy_gradient(batch, 2, patients=PATIENTS)


def test_patients_are_needed_where_they_are_the_unit_and_refused_elsewhere(
    of_patients: Ledger, ledger: Ledger, params: PrivacyParameters
) -> None:
    batch = make_batch(len(PATIENTS))
    with pytest.raises(ValueError, match="where the unit is a patient, and only there"):
        _silent(_module(), EVERYONE, of_patients, PerformanceParameters()).run(batch, 1)
    with pytest.raises(ValueError, match="where the unit is a patient, and only there"):
        _silent(_module(), params, ledger, PerformanceParameters()).run(batch, 1, patients=PATIENTS)
    with pytest.raises(ValueError, match="11 patients for 12 records"):
        _silent(_module(), EVERYONE, of_patients, PerformanceParameters()).run(batch, 1, patients=PATIENTS[1:])


def test_a_ledger_of_another_unit_is_refused(of_patients: Ledger, ledger: Ledger, params: PrivacyParameters) -> None:
    for unfit, book in ((params, of_patients), (EVERYONE, ledger)):
        with pytest.raises(PrivacyRefused, match=r"per (record|patient), the ledger"):
            _silent(_module(), unfit, book, PerformanceParameters())


def test_no_patient_at_all_still_gets_noise(of_patients: Ledger) -> None:
    module = _module()
    before = trained(module)
    engine = DpSgdEngine(module, cross_entropy, params=EVERYONE, ledger=of_patients, learning_rate=0.1)
    engine.run(make_batch(0), 1, patients=[])
    assert (trained(module) != before).all()


def test_the_unsafe_mode_averages_by_patient_too(tmp_path: Path) -> None:
    module, batch = _module(), make_batch(len(PATIENTS))
    unsafe = replace(EVERYONE, mode=Mode.UNSAFE_NO_DP)
    expected = -sum_by_loop(module, batch, PATIENTS, 1e9) / unsafe.expected_batch_size
    before = trained(module)
    with Ledger.create(
        tmp_path / "unsafe.db", dataset_id="d", delta=1e-5, epsilon_max=float("inf"), unit="patient", unsafe=True
    ) as ledger:
        _silent(module, unsafe, ledger, PerformanceParameters(4)).run(batch, 1, patients=PATIENTS)
    assert torch.allclose(trained(module) - before, expected, rtol=1e-4, atol=1e-6)
