from __future__ import annotations

import numpy as np
import pytest

from fedmvp.training.aggregate import OptimizerKind, ServerOptimizer, ServerState, apply_sum

SGD = ServerOptimizer(OptimizerKind.SGD, learning_rate=1.0)
ADAM = ServerOptimizer(OptimizerKind.ADAM, learning_rate=0.01)
DRAWS = np.random.default_rng(0)
START = ServerState.initial(DRAWS.normal(size=50).astype(np.float32))


def run(optimizer: ServerOptimizer, rounds: int = 5) -> ServerState:
    state, draws = START, np.random.default_rng(1)
    for _ in range(rounds):
        state = apply_sum(state, draws.normal(size=50), 4, optimizer)
    return state


def test_sgd_of_rate_one_adds_the_mean_of_the_survivors() -> None:
    total = DRAWS.normal(size=50)
    state = apply_sum(START, total, 4, SGD)
    np.testing.assert_allclose(state.parameters, START.parameters + total / 4, rtol=1e-6)
    assert state.step == 1


def test_adam_agrees_with_its_definition_in_double_precision() -> None:
    parameters, draws = START.parameters.astype(np.float64), np.random.default_rng(1)
    m = v = np.zeros(50)
    for step in range(1, 6):
        mean = draws.normal(size=50) / 4
        m, v = 0.9 * m + 0.1 * mean, 0.99 * v + 0.01 * mean**2
        parameters = parameters + 0.01 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.99**step)) + 1e-8)
    np.testing.assert_allclose(run(ADAM).parameters, parameters, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", [SGD, ADAM])
def test_a_site_that_recomputes_the_step_gets_the_same_bits(optimizer: ServerOptimizer) -> None:
    assert run(optimizer).hash == run(optimizer).hash
    assert all(array.dtype == np.float32 for _, array in run(optimizer).tensors)


def test_the_step_leaves_the_former_state_untouched() -> None:
    before = START.hash
    run(ADAM)
    assert START.hash == before


@pytest.mark.parametrize("part", ["parameters", "adam_m", "adam_v", "step"])
def test_the_hash_sees_every_part_of_the_state(part: str) -> None:
    tensors = {name: array.copy() for name, array in run(ADAM).tensors}
    tensors[part][0] += 1
    assert ServerState.from_tensors(tensors).hash != run(ADAM).hash


def test_a_state_survives_the_wire() -> None:
    state = run(ADAM)
    assert ServerState.from_tensors(dict(state.tensors)).hash == state.hash


@pytest.mark.parametrize(
    "change",
    [
        {"parameters": np.zeros(49, dtype=np.float32)},
        {"adam_m": np.zeros(50)},
        {"adam_v": np.full(50, np.inf, dtype=np.float32)},
        {"step": np.array([0.5], dtype=np.float32)},
        {"step": np.array([-1.0], dtype=np.float32)},
        {"step": np.zeros(2, dtype=np.float32)},
        {"more": np.zeros(50, dtype=np.float32)},
    ],
)
def test_a_state_that_does_not_fit_is_refused(change: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="state"):
        ServerState.from_tensors({**dict(START.tensors), **change})


@pytest.mark.parametrize(
    ("total", "survivors"), [(np.zeros(49), 3), (np.zeros(50), 0), (np.full(50, np.nan), 3), (np.full(50, np.inf), 3)]
)
def test_a_sum_that_does_not_fit_is_refused(total: np.ndarray, survivors: int) -> None:
    with pytest.raises(ValueError, match="sum must be"):
        apply_sum(START, total, survivors, SGD)
