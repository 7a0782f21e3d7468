"""The benchmark of training runs on a tiny tower; nothing here looks at how long anything took."""

import json
import mmap
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from benchmarks import steps, training
from benchmarks.accelerator import SIDES, accelerator_row, tower_flops
from benchmarks.measuring import Times, in_turns, peak_of
from benchmarks.release import release, release_row
from benchmarks.steps import WAYS, clipped_step
from benchmarks.workload import SMALL, Workload
from fedmvp.model.prompt_config import Injection, Variant

CACHED = Workload(SMALL, Variant.NARROW, Injection.LAST_BLOCK, batch=3, n_classes=3, n_attributes=2)
THROUGH = Workload(SMALL, Variant.NARROW, Injection.INPUT, batch=2, n_classes=2, n_attributes=2)
TINY = [
    *("--architecture", SMALL, "--runs", "1", "--release-runs", "1", "--classes", "2", "--attributes", "2"),
    *("--encoder-batch", "2", "--cached-batch", "2", "--encoder-variants", "narrow", "--cached-variants", "narrow"),
    *("--threads", "1", "--accelerator", "cpu", "--accelerator-architecture", SMALL, "--accelerator-batch", "2"),
    *("--matrix-side", "64", "--without-memory", "--ways", "book-keeping,book-keeping with noise"),
    *("--parts", "encoder,cached,release,accelerator"),
]
NOISY = "book-keeping with noise"
PROMISED = ("device", "encoder_dp_over_plain", "cached_dp_over_plain", "encoder_memory_ratio", "release_over_ours")


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    former = torch.get_num_threads()
    yield
    torch.set_num_threads(former)


@pytest.mark.parametrize("workload", [CACHED, THROUGH])
def test_every_way_without_noise_takes_the_same_clipped_step(
    monkeypatch: pytest.MonkeyPatch, workload: Workload
) -> None:
    monkeypatch.setattr(steps, "LEARNING_RATE", 1e4)  # far above what the parameters lose in rounding
    trained = workload.build()
    quiet = [
        clipped_step(way, trained) for name, way in WAYS.items() if name not in {"plain", "book-keeping with noise"}
    ]
    assert len(quiet) == 4
    for one, other in pairwise(quiet):
        assert (one - other).norm() < 1e-4 * one.norm()
    for name in ("plain", NOISY):  # the controls: without clipping, with noise
        assert (clipped_step(WAYS[name], trained) - quiet[0]).norm() > 0.1 * quiet[0].norm()


def test_no_way_leaves_a_trace_on_the_module() -> None:
    trained = THROUGH.build()
    for way in WAYS.values():
        clipped_step(way, trained)
    with release(trained, THROUGH) as step:
        step()
    assert not any(part._forward_hooks or part._backward_hooks for part in trained.model.modules())
    assert all(parameter.grad is None for parameter in trained.parameters)
    assert all(parameter.requires_grad for parameter in trained.parameters)


def test_the_releases_step_computes_every_frozen_thing_again_and_ours_none(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = Workload(SMALL, Variant.NARROW, Injection.INPUT, batch=2, n_classes=2, n_attributes=2, reads_text=True)
    trained, seen = workload.build(), []
    backbone = trained.model.backbone
    for name in ("embed", "encode_images", "encode_sentences"):
        monkeypatch.setattr(backbone, name, partial(_noting, getattr(backbone, name), name, seen))
    with WAYS[NOISY](trained) as step:
        step()
    assert not seen
    with release(trained, workload) as step:
        step()
    assert sorted(seen) == ["embed", "embed", "encode_images", "encode_sentences", "encode_sentences"]


def _noting(function, name, seen, *arguments):  # type: ignore[no-untyped-def]
    seen.append(name)
    return function(*arguments)


def test_sides_run_in_turns_and_ratios_are_of_neighbours() -> None:
    order: list[str] = []
    sides = {name: partial(nullcontext, partial(order.append, name)) for name in "ab"}
    times = in_turns(sides, 2, "cpu")
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert len(times["a"].wall) == 2
    row = Times((2.0, 6.0, 9.0), (1.0, 1.0, 1.0)).over(Times((1.0, 2.0, 9.0), (2.0, 2.0, 2.0)))
    assert row == {"ratio": 2.0, "ratio_spread": [1.0, 3.0], "processor_ratio": 0.5}


def test_the_peak_of_memory_is_what_a_side_holds_above_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    held = 2**27
    monkeypatch.setitem(WAYS, "hungry", lambda _: nullcontext(partial(_hold, held)))
    assert 0.9 * held < peak_of(CACHED.build(), "hungry", "cpu") < 1.2 * held


def _hold(size: int) -> None:
    """Pages of the system itself: what an allocator keeps or hands back depends on what ran before it."""
    with mmap.mmap(-1, size) as pages:
        for start in range(0, size, mmap.PAGESIZE):  # written to: memory that is only asked for is not held
            pages[start] = 1


def test_the_bound_counts_the_products_of_the_blocks() -> None:
    trained = THROUGH.build()
    backbone, counted = trained.model.backbone, 0
    tokens = trained.features["tokens"].shape[1]
    for part in backbone.last_block.modules():
        if isinstance(part, nn.Linear):
            counted += part.weight.numel()
    counted += backbone.last_block.attn.in_proj_weight.numel()
    attention = 2 * tokens**2 * backbone.vision_width
    assert tower_flops(backbone, tokens) == backbone.n_layers * (4 * counted * tokens + 6 * attention)


def test_the_command_prints_one_object_with_what_it_promises(capsys: pytest.CaptureFixture[str]) -> None:
    training.main([*TINY, "--json"])
    output = json.loads(capsys.readouterr().out)
    assert set(PROMISED) <= set(output)
    assert all(output[name] for name in PROMISED if name != "encoder_memory_ratio")
    assert output["encoder_memory_ratio"] is None
    assert [row["way"] for row in output["encoder"]] == ["plain", "book-keeping", NOISY]
    assert output["encoder_dp_over_plain"] == output["encoder"][2]["ratio"]
    assert output["accelerator"][0]["share_of_bound"] > 0
    assert output["settings"]["runs"] == 1


def test_the_command_prints_tables_and_says_what_was_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    training.main([*TINY, "--parts", "cached,accelerator", "--accelerator", ""])
    printed = capsys.readouterr().out
    assert "On cached features" in printed
    assert "No GPU here" in printed
    training.main([*TINY, "--parts", "accelerator"])
    assert "One step of the narrow module" in capsys.readouterr().out


def test_a_part_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        training.main(["--parts", "encoder,moon"])
    assert "moon: choose from encoder" in capsys.readouterr().err


def test_the_rows_run() -> None:
    texts = Workload(SMALL, Variant.NARROW, Injection.INPUT, batch=2, n_classes=2, n_attributes=2, reads_text=True)
    assert release_row(texts, 1)["texts"] == 8
    assert len(SIDES) == 3
    assert accelerator_row(THROUGH, 1, 32)["profile"]


@pytest.mark.long
def test_memory_is_measured_in_processes_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [argument for argument in TINY if argument != "--without-memory"]
    training.main([*arguments, "--parts", "encoder", "--json"])
    output = json.loads(capsys.readouterr().out)
    assert output["encoder_memory_ratio"] > 0
