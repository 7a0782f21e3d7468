"""Privacy parameters refuse what is not implemented or makes no sense."""

from dataclasses import FrozenInstanceError, replace

import pytest

from privacy import Mode, PrivacyParameters, SubsampledGaussian


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
