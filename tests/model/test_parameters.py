from __future__ import annotations

import numpy as np
import pytest

from fedmvp.model.parameters import dimension, get_vector, set_vector, split_vector, trained_parameters
from fedmvp.model.prompt_config import NeutralStart, Variant
from tests.model.tiny import tiny_model


@pytest.mark.parametrize("variant", Variant)
def test_a_vector_written_is_the_vector_read(variant: Variant) -> None:
    model = tiny_model(variant, start=NeutralStart.MIX)
    vector = np.random.default_rng(0).normal(size=dimension(model)).astype(np.float32)
    set_vector(model, vector)
    assert np.array_equal(get_vector(model), vector)
    assert get_vector(model).dtype == np.float32


def test_parts_carry_the_names_and_shapes_of_the_trained_parameters() -> None:
    model = tiny_model(Variant.LORA)
    parts = split_vector(model, get_vector(model))
    assert list(parts) == [name for name, _ in trained_parameters(model)]
    assert all(parts[name].shape == tuple(value.shape) for name, value in trained_parameters(model))
    assert not any("frozen" in name for name in parts)


def test_a_vector_of_the_wrong_length_is_refused_and_nothing_is_written() -> None:
    model = tiny_model()
    before = get_vector(model)
    with pytest.raises(ValueError, match="trains"):
        set_vector(model, np.zeros(dimension(model) + 1, dtype=np.float32))
    assert np.array_equal(get_vector(model), before)


def test_a_vector_that_is_not_finite_is_refused_and_nothing_is_written() -> None:
    model = tiny_model()
    before = get_vector(model)
    with pytest.raises(ValueError, match="not finite"):
        set_vector(model, np.full(dimension(model), np.nan, dtype=np.float32))
    assert np.array_equal(get_vector(model), before)
