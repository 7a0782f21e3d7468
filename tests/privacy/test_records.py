"""Records from a source: the engine does with them what it does with tensors, and sees rows alone."""

import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from privacy import Ledger, Mode, PrivacyParameters
from privacy import dpsgd as dpsgd_module
from privacy.dpsgd import DpSgdEngine
from privacy.mechanism import PerformanceParameters, Unit
from privacy.per_sample import PROBED_RECORDS, Batch
from privacy.records import LookAhead, Records, TensorRecords, as_records, invent_records, take_checked
from privacy.sampling import PoissonSampler
from tests.privacy.conftest import PARAMS
from tests.privacy.modules import SilentEngine, Whole, cross_entropy, make_batch

CPU = torch.device("cpu")
COUNT = 30


class Source(Records):
    """Hands out rows of tensors that the engine never holds, and remembers what it was asked."""

    def __init__(self, data: Batch) -> None:
        self.data = data
        self.asked: list[list[int]] = []
        self.threads: set[str] = set()

    def __len__(self) -> int:
        return len(self.data[0])

    @property
    def layout(self) -> list[tuple[tuple[int, ...], torch.dtype]]:
        return [(tuple(tensor.shape[1:]), tensor.dtype) for tensor in self.data]

    def take(self, positions: np.ndarray, device: torch.device) -> Batch:
        self.asked.append(positions.tolist())
        self.threads.add(threading.current_thread().name)
        return tuple(tensor[torch.from_numpy(positions)].to(device) for tensor in self.data)


class AtHand(Source):
    """The same without fetching ahead."""

    def at_hand(self, device: torch.device) -> bool:
        return True


def draws(seed: int) -> type[PoissonSampler]:
    """A sampler whose batches are the same in every run; tests alone have such a thing."""

    class Repeatable(PoissonSampler):
        def __init__(self, n_records: int, sample_rate: float) -> None:
            super().__init__(n_records, sample_rate, np.random.default_rng(seed).bytes)

    return Repeatable


def trained_on(
    data: object, params: PrivacyParameters, ledger: Ledger, largest: int, patients: list[int] | None = None
) -> Tensor:
    torch.manual_seed(3)
    module = Whole()
    engine = SilentEngine(
        module,
        cross_entropy,
        params=params,
        ledger=ledger,
        learning_rate=1.0,
        performance=PerformanceParameters(max_physical_batch=largest),
    )
    engine.run(data, 4, patients=patients)  # type: ignore[arg-type]
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


@pytest.mark.parametrize("source", [Source, AtHand])
@pytest.mark.parametrize("largest", [4, 256])
def test_training_on_a_source_is_training_on_its_tensors(
    source: type[Source], largest: int, ledger: Ledger, unsafe_ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dpsgd_module, "PoissonSampler", draws(5))
    data = make_batch(COUNT)
    for mode, book in ((Mode.RECORD_LOCAL, ledger), (Mode.UNSAFE_NO_DP, unsafe_ledger)):
        params = replace(PARAMS, mode=mode, sample_rate=0.4)
        assert torch.equal(trained_on(source(data), params, book, largest), trained_on(data, params, book, largest))


def test_patients_of_a_source_are_treated_as_those_of_tensors(
    params: PrivacyParameters, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dpsgd_module, "PoissonSampler", draws(6))
    params = replace(params, unit="patient", sample_rate=0.5)
    data, patients = make_batch(COUNT), [i // 7 for i in range(COUNT)]
    with Ledger.create(tmp_path / "p.db", dataset_id="p", delta=1e-5, epsilon_max=50.0, unit=Unit.PATIENT) as ledger:
        found = [trained_on(each, params, ledger, 5, patients) for each in (Source(data), data)]
    assert torch.equal(found[0], found[1])


def test_a_source_is_asked_for_the_records_drawn_and_for_nothing_more(
    params: PrivacyParameters, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[int]] = []

    class Watched(draws(7)):  # type: ignore[misc]
        def sample(self) -> np.ndarray:
            drawn.append(super().sample().tolist())
            return np.array(drawn[-1], dtype=np.int64)

    monkeypatch.setattr(dpsgd_module, "PoissonSampler", Watched)
    source = Source(make_batch(COUNT))
    trained_on(source, replace(params, sample_rate=0.3), ledger, 4)
    assert len(drawn) == 4  # as many batches as steps: none is drawn for nothing
    assert [i for piece in source.asked for i in piece] == [i for batch in drawn for i in batch]
    assert max(map(len, source.asked)) <= 4
    assert all("MainThread" not in name for name in source.threads)
    assert not any(thread.name.startswith("records") for thread in threading.enumerate())


def test_the_engine_probes_with_invented_records_and_none_of_the_sources(
    params: PrivacyParameters, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(make_batch(COUNT))
    invented = invent_records(source, CPU)
    assert [tuple(tensor.shape) for tensor in invented] == [(PROBED_RECORDS, *shape) for shape, _ in source.layout]
    assert [tensor.dtype for tensor in invented] == [dtype for _, dtype in source.layout]
    assert source.asked == []
    other = Source(tuple(tensor * 0 for tensor in make_batch(COUNT)))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(invented, invent_records(other, CPU), strict=True))
    engine = DpSgdEngine(Whole(), cross_entropy, params=params, ledger=ledger, learning_rate=0.1)
    engine._probe(source)
    assert source.asked == []


class OneRowLess(Source):
    def take(self, positions: np.ndarray, device: torch.device) -> Batch:
        return super().take(positions[:-1], device)


class OneTensorLess(Source):
    def take(self, positions: np.ndarray, device: torch.device) -> Batch:
        return super().take(positions, device)[:-1]


class OtherShape(Source):
    def take(self, positions: np.ndarray, device: torch.device) -> Batch:
        return tuple(tensor[..., None] for tensor in super().take(positions, device))


@pytest.mark.parametrize("broken", [OneRowLess, OneTensorLess, OtherShape])
def test_a_source_that_returns_anything_but_the_rows_asked_for_stops_the_training(
    broken: type[Source], params: PrivacyParameters, ledger: Ledger
) -> None:
    data = make_batch(COUNT)
    take_checked(Source(data), np.array([2, 1]), CPU)
    with pytest.raises(ValueError, match="what it promised"):
        trained_on(broken(data), replace(params, sample_rate=1.0), ledger, 256)


class Failing(Source):
    def take(self, positions: np.ndarray, device: torch.device) -> Batch:
        if len(self.asked) == 2:
            raise OSError("the disk is gone")
        return super().take(positions, device)


def test_a_source_that_fails_in_the_background_fails_the_step(params: PrivacyParameters, ledger: Ledger) -> None:
    with pytest.raises(OSError, match="the disk is gone"):
        trained_on(Failing(make_batch(COUNT)), replace(params, sample_rate=1.0), ledger, 8)


def test_tensors_are_records_and_records_stay_as_they_are() -> None:
    data = make_batch(4)
    records = as_records(data)
    assert as_records(records) is records
    assert isinstance(records, TensorRecords)
    assert records.at_hand(CPU)
    assert not records.at_hand(torch.device("meta"))
    assert not Source(data).at_hand(CPU)
    for row, whole in zip(records.take(np.array([3, 0, 3]), CPU), data, strict=True):
        assert torch.equal(row, whole[torch.tensor([3, 0, 3])])
    for wrong in ((), (torch.tensor(1.0),), (torch.zeros(2), torch.zeros(3)), ([1, 2],)):
        with pytest.raises(ValueError, match="tensors"):
            as_records(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("in_background", [False, True])
def test_batches_come_in_order_with_empty_ones_among_them_and_no_more_than_wanted(in_background: bool) -> None:
    contents = [["a", "b"], [], ["c"], [], ["never"]]
    begun = 0

    def pieces() -> Iterator[str]:
        nonlocal begun
        begun += 1
        yield from contents[begun - 1]

    ahead = LookAhead(pieces, 4, in_background=in_background)
    assert [list(ahead.draw()) for _ in range(4)] == contents[:4]
    assert begun == 4
    assert list(ahead.draw()) == []


def test_the_next_piece_is_fetched_while_the_last_one_is_worked_on() -> None:
    fetched = [threading.Event() for _ in range(3)]

    def pieces() -> Iterator[int]:
        for number, event in enumerate(fetched):
            event.set()
            yield number

    drawn = LookAhead(pieces, 1, in_background=True).draw()
    for number in range(2):
        assert next(drawn) == number
        assert fetched[number + 1].wait(timeout=60)  # before it is asked for
    assert list(drawn) == [2]
