"""Privacy parameters refuse what is not implemented or makes no sense."""

from dataclasses import FrozenInstanceError, replace

import pytest

from privacy import Mode, PrivacyParameters, SubsampledGaussian
from privacy.mechanism import DistributedGaussian, NoiseShares, Rounding, Unit, rounded_square_bound


def test_one_round_is_one_mechanism(params: PrivacyParameters) -> None:
    assert params.mechanism == SubsampledGaussian(0.1, 1.5, 5)


def test_the_mode_may_be_given_by_its_name(params: PrivacyParameters) -> None:
    assert replace(params, mode="UNSAFE-no-dp").mode is Mode.UNSAFE_NO_DP


def test_parameters_cannot_be_changed(params: PrivacyParameters) -> None:
    with pytest.raises(FrozenInstanceError):
        params.noise_multiplier = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mode", "off", "off"),
        ("unit", "site", "does not go with mode record-local"),
        ("unit", "silo", "unknown"),
        ("neighboring_relation", "replace-one", "replace-one"),
        ("sample_rate", 0.0, "sample_rate"),
        ("sample_rate", 1.01, "sample_rate"),
        ("sample_rate", float("nan"), "sample_rate"),
        ("noise_multiplier", 0.0, "noise_multiplier"),
        ("noise_multiplier", float("inf"), "noise_multiplier"),
        ("max_grad_norm", 0.0, "max_grad_norm"),
        ("max_grad_norm", float("inf"), "max_grad_norm"),
        ("expected_batch_size", 0, "expected_batch_size"),
        ("steps_per_round", 0, "steps_per_round"),
        ("steps_per_round", 2.5, "steps_per_round"),
        ("delta", 0.0, "delta"),
        ("delta", 0.5, "delta"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(
    params: PrivacyParameters, field: str, value: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(params, **{field: value})  # type: ignore[arg-type]


def test_the_unsafe_mode_needs_no_noise_but_has_no_mechanism(params: PrivacyParameters) -> None:
    unsafe = replace(params, mode=Mode.UNSAFE_NO_DP, noise_multiplier=0.0)
    with pytest.raises(ValueError, match="infinite"):
        _ = unsafe.mechanism


SHARES = NoiseShares(dimension=1000, shares=4, grid=2.0**20, clamp=2**40)


def shared(params: PrivacyParameters, **changes: object) -> PrivacyParameters:
    values = {"mode": Mode.RECORD_DISTRIBUTED, "steps_per_round": 1, "noise_shares": SHARES} | changes
    return replace(params, **values)  # type: ignore[arg-type]


def test_one_round_of_each_distributed_mode_is_one_mechanism(params: PrivacyParameters) -> None:
    whole = DistributedGaussian(0.1, 1.5, 1, 1000, 4, 2.0**20, Rounding.DITHERED)
    assert shared(params).mechanism == shared(params, unit="patient").mechanism == whole
    of_site = shared(params, mode=Mode.SILO_DISTRIBUTED, unit="site", steps_per_round=30)
    assert of_site.mechanism == replace(whole, sample_rate=1.0, rounding=Rounding.CONDITIONAL)
    assert [mode for mode in Mode if mode.is_distributed] == [Mode.RECORD_DISTRIBUTED, Mode.SILO_DISTRIBUTED]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dimension", 0, "dimension and shares"),
        ("shares", 0, "dimension and shares"),
        ("grid", 0.0, "grid must be positive"),
        ("grid", -1.0, "grid must be positive"),
        ("grid", float("nan"), "grid must be positive"),
        ("grid", float("inf"), "grid must be positive"),
        ("grid", 1.0, "steps of the grid where 4 are needed: choose a ring with more bits"),
        ("shares", 10**12, "steps of the grid where 4 are needed: choose a ring with more bits"),
        ("grid", 30_000.0, "too coarse for 1000 coordinates: choose a ring with more bits"),
        ("dimension", 2 * 2**20, "too coarse for 2097152 coordinates"),
        ("clamp", 0, "clamp must be at least 1"),
    ],
)
def test_shares_of_noise_that_would_prove_nothing_are_refused(
    params: PrivacyParameters, field: str, value: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        shared(params, noise_shares=replace(SHARES, **{field: value}))  # type: ignore[arg-type]


def test_the_coarsest_grid_and_the_least_noise_that_are_allowed_are_allowed(params: PrivacyParameters) -> None:
    grid = 1000**0.5 * 2**10 * (1 + 1e-12)
    assert shared(params, noise_shares=replace(SHARES, grid=grid)).mechanism
    with pytest.raises(ValueError, match="too coarse"):
        shared(params, noise_shares=replace(SHARES, grid=grid * (1 - 1e-9)))
    exact = DistributedGaussian(1.0, 0.5, 1, 10_000, 64, 64.0, Rounding.CONDITIONAL)  # of conditional rounding: any
    assert exact.local_deviation == 4.0
    with pytest.raises(ValueError, match="where 4 are needed"):
        replace(exact, grid=63.999)


def test_conditional_rounding_is_charged_for_the_smaller_of_its_two_bounds() -> None:
    for grid, dimension in ((1.0, 10_000), (100.0, 50), (1e6, 1)):
        bound = rounded_square_bound(grid, dimension)
        always = (grid + dimension**0.5) ** 2
        usually = grid**2 + dimension / 4 + grid + dimension**0.5 / 2
        assert bound == pytest.approx(min(always, usually), rel=1e-12)
        assert bound > grid**2


@pytest.mark.parametrize("mode", [Mode.RECORD_LOCAL, Mode.UNSAFE_NO_DP])
def test_shares_of_noise_belong_to_the_distributed_modes_alone(params: PrivacyParameters, mode: Mode) -> None:
    with pytest.raises(ValueError, match="belong to the distributed modes"):
        replace(params, mode=mode, noise_shares=SHARES)
    with pytest.raises(ValueError, match="belong to the distributed modes"):
        shared(params, noise_shares=None)


@pytest.mark.parametrize(
    ("mode", "unit"),
    [("record-local", "site"), ("record-distributed", "site"), ("silo-distributed", "record"),
     ("silo-distributed", "patient")],
)  # fmt: skip
def test_a_site_is_the_unit_of_one_mode_and_of_it_alone(params: PrivacyParameters, mode: str, unit: str) -> None:
    with pytest.raises(ValueError, match=f"'{unit}' does not go with mode {mode}"):
        replace(params, mode=mode, unit=unit)


def test_the_unsafe_mode_takes_any_unit(params: PrivacyParameters) -> None:
    for unit in Unit:
        assert replace(params, mode=Mode.UNSAFE_NO_DP, unit=unit).unit == unit
