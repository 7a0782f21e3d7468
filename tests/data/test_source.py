from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fedmvp.data import source as source_module
from fedmvp.data.dataset import ImageDataset
from fedmvp.data.source import BATCHES_AHEAD, MOST_THREADS, ImageFiles, PixelTensor, decoding_threads
from fedmvp.errors import UserError

COUNT = 24


@pytest.fixture
def dataset(tmp_path: Path) -> ImageDataset:
    """Images of one grey each, their number."""
    paths = []
    for number in range(COUNT):
        paths.append(tmp_path / f"{number:02d}.png")
        Image.fromarray(np.full((9, 9, 3), number, dtype=np.uint8)).save(paths[-1])
    return ImageDataset(tuple(paths), (0,) * COUNT, ("a",), tmp_path)


def numbers(batches: Iterator[Tensor]) -> list[list[int]]:
    return [images[:, 0, 0, 0].tolist() for images in batches]


@pytest.mark.parametrize("workers", [1, 4])
def test_images_come_in_the_order_asked_for_whichever_is_decoded_first(
    workers: int, dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = source_module.decode_image

    def slow_at_first(path: Path, size: int, **options: Any) -> Tensor:
        time.sleep(0.02 if int(path.stem) % 5 == 0 else 0.0)
        return decode(path, size, **options)

    monkeypatch.setattr(source_module, "decode_image", slow_at_first)
    wanted = [[5, 1], [0], [], [23, 22, 21], *([i] for i in range(10)), [5, 5]]
    source = ImageFiles(dataset, 9, workers=workers)
    assert numbers(source.stream(wanted)) == wanted
    assert numbers(PixelTensor(torch.cat(list(source.stream([range(COUNT)])))).stream(wanted)) == wanted


def test_decoding_runs_ahead_by_a_few_batches_and_no_further(
    dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = source_module.decode_image
    decoded: list[int] = []
    ahead = threading.Event()

    def counted(path: Path, size: int, **options: Any) -> Tensor:
        decoded.append(int(path.stem))
        if len(decoded) == 2 * (1 + BATCHES_AHEAD):
            ahead.set()
        return decode(path, size, **options)

    monkeypatch.setattr(source_module, "decode_image", counted)
    asked: list[int] = []

    def wanted() -> Iterator[list[int]]:
        for start in range(0, COUNT, 2):
            asked.append(start)
            yield [start, start + 1]

    stream = ImageFiles(dataset, 9, workers=2).stream(wanted())
    next(stream)
    assert ahead.wait(timeout=60)  # while the first batch is still being worked on
    assert len(asked) == 1 + BATCHES_AHEAD
    assert len(decoded) == 2 * (1 + BATCHES_AHEAD)
    stream.close()  # type: ignore[attr-defined]
    assert len(asked) == 1 + BATCHES_AHEAD


def test_a_caller_that_stops_leaves_nothing_to_decode(dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = source_module.decode_image
    hold = threading.Event()
    decoded: list[int] = []

    def held(path: Path, size: int, **options: Any) -> Tensor:
        if int(path.stem) >= 2:
            hold.wait(timeout=60)
        decoded.append(int(path.stem))
        return decode(path, size, **options)

    monkeypatch.setattr(source_module, "decode_image", held)
    source = ImageFiles(dataset, 9, workers=1)
    stream = source.stream([[0, 1], [2, 3], [4, 5]])
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    hold.set()
    assert numbers(source.stream([[1]])) == [[1]]
    assert set(decoded) <= {0, 1, 2}  # the one that was being decoded, and none that waited


def test_a_file_that_cannot_be_decoded_is_named_when_its_batch_comes(dataset: ImageDataset) -> None:
    dataset.paths[7].write_text("no image")
    source = ImageFiles(dataset, 9)
    stream = source.stream([[0, 1], [6, 7], [8]])
    next(stream)
    with pytest.raises(UserError, match=r"07\.png cannot be decoded"):
        next(stream)


def test_a_file_that_is_gone_before_the_start_is_named(dataset: ImageDataset) -> None:
    dataset.paths[3].unlink()
    with pytest.raises(UserError, match=r"03\.png does not exist"):
        ImageFiles(dataset, 9)


def test_digests_tell_files_apart_by_any_byte_and_are_reported_on(dataset: ImageDataset) -> None:
    calls: list[tuple[int, int]] = []
    before = ImageFiles(dataset, 9, progress=lambda done, total: calls.append((done, total))).digests()
    assert calls == [(i + 1, COUNT) for i in range(COUNT)]
    assert len(set(before)) == COUNT
    with dataset.paths[2].open("ab") as file:
        file.write(b"x")
    after = ImageFiles(dataset, 9).digests()
    assert [i for i in range(COUNT) if before[i] != after[i]] == [2]


def test_digests_of_pixels_see_one_bit_and_the_shape() -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    changed = images.clone()
    changed[1, 2, 3, 3] ^= 1
    first, second = PixelTensor(images).digests(), PixelTensor(changed).digests()
    assert first[0] == first[1] == second[0] != second[1]
    wide = PixelTensor(images.reshape(2, 3, 2, 8))
    assert wide.preprocessing != PixelTensor(images).preprocessing  # part of what a cached row depends on


def test_the_size_is_part_of_what_is_said_of_the_preprocessing(dataset: ImageDataset) -> None:
    small, large = ImageFiles(dataset, 9), ImageFiles(dataset, 10)
    assert small.preprocessing != large.preprocessing
    for word in ("Pillow", "bicubic", "centre crop"):
        assert word in small.preprocessing
    assert "png" not in repr(small)
    assert len(small) == COUNT


def test_for_a_gpu_images_are_put_where_it_can_fetch_them(
    dataset: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: list[bool] = []
    empty = torch.empty

    def noted(*shape: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        pinned.append(pin_memory)
        return empty(*shape, **options)

    monkeypatch.setattr(source_module.torch, "empty", noted)
    source = ImageFiles(dataset, 9)
    next(source.stream([[0]], pinned=True))
    next(source.stream([[0]]))
    assert pinned == [True, False]


def test_the_number_of_threads_is_the_one_wanted_or_follows_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decoding_threads(5) == 5
    monkeypatch.setattr(source_module.os, "cpu_count", lambda: 3)
    assert decoding_threads(0) == 3
    monkeypatch.setattr(source_module.os, "cpu_count", lambda: 256)
    assert decoding_threads(0) == MOST_THREADS
