"""Threads: every item in exactly one slice, as many threads as the work deserves, and an error is not lost."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_agg import parallel
from secure_agg.parallel import MIN_BYTES_PER_THREAD, over_slices, threads_for, usable_cores


def slices_of(count, threads):
    made, lock = [], threading.Lock()

    def work(start, stop):
        with lock:
            made.append((start, stop))

    over_slices(work, count, threads)
    return sorted(made)


@given(st.integers(0, 40), st.integers(-1, 12))
def test_every_item_is_in_exactly_one_slice(count, threads):
    made = slices_of(count, threads)
    assert [item for start, stop in made for item in range(start, stop)] == list(range(count))
    assert 1 <= len(made) <= max(threads, 1)


def test_one_slice_is_worked_on_in_the_thread_that_asks():
    seen = []
    over_slices(lambda *_: seen.append(threading.get_ident()), 5, 1)
    over_slices(lambda *_: seen.append(threading.get_ident()), 1, 5)
    assert seen == [threading.get_ident()] * 2


def test_several_slices_are_worked_on_at_the_same_time():
    everybody_here = threading.Barrier(3, timeout=60)
    over_slices(lambda *_: everybody_here.wait(), 3, 3)


@pytest.mark.parametrize("failing", [0, 2, 4])
def test_an_error_in_a_slice_is_raised_when_all_others_have_ended(failing):
    one_has_failed, ended = threading.Event(), []

    def work(start, _stop):
        if start == failing:
            one_has_failed.set()
            raise ZeroDivisionError
        one_has_failed.wait(60)
        ended.append(start)

    with pytest.raises(ZeroDivisionError):
        over_slices(work, 6, 3)
    assert sorted([*ended, failing]) == [0, 2, 4]


def test_an_error_in_the_only_slice_is_raised():
    with pytest.raises(ZeroDivisionError):
        over_slices(lambda *_: 1 / 0, 6, 1)


@pytest.mark.parametrize(
    ("work_bytes", "limit", "threads"),
    [
        (0, None, 1),
        (MIN_BYTES_PER_THREAD - 1, None, 1),
        (2 * MIN_BYTES_PER_THREAD - 1, 8, 1),
        (2 * MIN_BYTES_PER_THREAD, 8, 2),
        (100 * MIN_BYTES_PER_THREAD, 8, 8),
        (100 * MIN_BYTES_PER_THREAD, None, 5),
        (100 * MIN_BYTES_PER_THREAD, 1, 1),
        (100 * MIN_BYTES_PER_THREAD, 0, 1),
    ],
)
def test_work_gets_a_thread_for_every_so_many_bytes_up_to_the_limit(monkeypatch, work_bytes, limit, threads):
    monkeypatch.setattr(parallel, "usable_cores", lambda: 5)
    assert threads_for(work_bytes, limit) == threads


def test_the_cores_counted_are_those_this_process_may_use(monkeypatch):
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda _pid: {0, 3, 5}, raising=False)
    assert usable_cores() == 3


@pytest.mark.parametrize(("counted", "cores"), [(6, 6), (None, 1)])
def test_where_that_is_not_known_it_is_the_cores_of_the_machine(monkeypatch, counted, cores):
    monkeypatch.delattr(parallel.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: counted)
    assert usable_cores() == cores


def test_once_the_interpreter_takes_no_more_work_it_is_done_in_the_thread_that_asks(monkeypatch):
    class Ending:
        def submit(self, *_):
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    monkeypatch.setattr(parallel, "_pool", lambda _process: Ending())
    assert slices_of(7, 3) == [(0, 3), (3, 6), (6, 7)]
