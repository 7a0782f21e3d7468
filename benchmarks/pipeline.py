"""From image files to a training batch: decoding, the tower, the sealed cache. Images a second, in turns.

    python -m benchmarks.pipeline [--images 256] [--repeats 5] [--injection input] [--device cuda] [--compile] [--json]

The tower has the shape of ViT-B/32 with random weights (`--tiny`: one of width 32, to see that it runs). Every figure
is the fastest of the repeats, which take turns, so that ratios survive a busy machine better than absolute numbers do.

- decoding: JPEG files of 1024 x 768 pixels down to the tower's size, in threads and in processes;
- tower: frozen features of decoded images, as it is, with the channels last, and with --compile compiled;
- batch: 64 images for a training step from memory, from the sealed cache, and from the image files.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fedmvp.client.trainer import choose_device
from fedmvp.data.dataset import ImageDataset
from fedmvp.data.images import decode_image
from fedmvp.data.source import ImageFiles
from fedmvp.model.attributes import build_attribute_bank
from fedmvp.model.compute import TowerOptions
from fedmvp.model.feature_cache import open_feature_cache
from fedmvp.model.feature_records import FeatureLimits, gather_features
from fedmvp.model.frozen import summarise_images
from fedmvp.model.loading import random_backbone
from fedmvp.model.prompt_config import Injection, PromptConfig, Variant
from fedmvp.model.prompted import PromptedModel
from fedmvp.model.task import Task, TaskClass

VIT_B_32 = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 16, "layers": 3, "width": 32, "head_width": 16, "patch_size": 4},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
BATCH = 64


def write_photographs(folder: Path, count: int) -> ImageDataset:
    """Smooth random pictures, which compress about as photographs do."""
    draws = np.random.default_rng(0)
    paths = []
    for number in range(count):
        coarse = Image.fromarray(draws.integers(0, 255, (96, 128, 3), dtype=np.uint8))
        paths.append(folder / f"{number}.jpg")
        coarse.resize((1024, 768), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return ImageDataset(tuple(paths), (0,) * count, ("a",), folder)


def in_turns(works: dict[str, Callable[[], object]], images: int, repeats: int) -> dict[str, float]:
    """Images a second of each piece of work, the fastest of the repeats."""
    fastest = dict.fromkeys(works, float("inf"))
    for work in works.values():
        work()  # pools, kernels, compilation
    for _ in range(repeats):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            fastest[name] = min(fastest[name], time.perf_counter() - start)
    return {name: images / seconds for name, seconds in fastest.items()}


def decoded(task: tuple[Path, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Decode in a process of its own and send the pixels back, as a loader has to."""
    return decode_image(*task).numpy()


def measure_decoding(dataset: ImageDataset, size: int, repeats: int) -> dict[str, float]:
    """Threads and processes, as many as there are cores."""
    cores = os.cpu_count() or 1
    batches = [range(start, min(start + BATCH, len(dataset))) for start in range(0, len(dataset), BATCH)]
    works: dict[str, Callable[[], object]] = {}
    for threads in sorted({1, cores}):
        source = ImageFiles(dataset, size, workers=threads)
        works[f"{threads} threads"] = lambda source=source: sum(len(part) for part in source.stream(batches))
    tasks = [(path, size) for path in dataset.paths]
    with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as pool:
        works[f"{cores} processes"] = lambda: sum(map(len, pool.map(decoded, tasks, chunksize=8)))
        return in_turns(works, len(dataset), repeats)


def build(shape: dict[str, Any], injection: str, device: str, options: TowerOptions | None = None) -> PromptedModel:
    """A narrow module before a tower with random weights."""
    backbone = random_backbone(shape, seed=0, device=device, options=options)
    bank = build_attribute_bank(backbone, Task((TaskClass("a", ("round", "red")), TaskClass("b", ("flat", "blue")))))
    return PromptedModel(backbone, bank, PromptConfig(Variant.NARROW, Injection(injection), n_prompts=4, n_heads=4))


def measure_tower(shape: dict[str, Any], arguments: argparse.Namespace) -> dict[str, float]:
    """Frozen features of images that are decoded already."""
    options = {"plain": TowerOptions(), "channels last": TowerOptions(channels_last=True)}
    if arguments.compile:
        options["compiled"] = TowerOptions(compile=True)
    size = shape["vision_cfg"]["image_size"]
    images = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8)
    works: dict[str, Callable[[], object]] = {}
    for name, option in options.items():
        model = build(shape, arguments.injection, arguments.device, option)
        works[name] = lambda model=model: summarise_images(model, images)["zero_shot"].cpu()
    return in_turns(works, BATCH, arguments.repeats)


def measure_batches(
    shape: dict[str, Any], dataset: ImageDataset, folder: Path, arguments: argparse.Namespace
) -> dict[str, float]:
    """A training batch from each place that features can be in."""
    model = build(shape, arguments.injection, arguments.device)
    source = ImageFiles(dataset, model.backbone.image_size)
    cache = open_feature_cache(folder / "cache", folder / "cache.key", max_gb=100.0, dataset="benchmark")
    nothing = FeatureLimits(memory_bytes=0)
    places = {
        "from memory": gather_features(model, source),
        "from the cache": gather_features(model, source, cache=cache, limits=nothing),
        "from files": gather_features(model, source, limits=nothing),
    }
    chosen = np.random.default_rng(0).choice(len(dataset), min(BATCH, len(dataset)), replace=False)
    device = torch.device(arguments.device)
    works = {
        name: lambda records=records: float(records.take(chosen, device)[0].sum()) for name, records in places.items()
    }
    return in_turns(works, len(chosen), arguments.repeats) | {"bytes a row": places["from memory"].row_bytes}


def main() -> None:
    """Print one table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--injection", choices=[str(item) for item in Injection], default="last-block")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.device = choose_device(arguments.device)
    shape = TINY if arguments.tiny else VIT_B_32
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = write_photographs(folder, arguments.images)
        report: dict[str, Any] = {
            "device": arguments.device,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "decoding": measure_decoding(dataset, shape["vision_cfg"]["image_size"], arguments.repeats),
            "tower": measure_tower(shape, arguments),
            "batch": measure_batches(shape, dataset, folder, arguments),
        }
    if arguments.json:
        print(json.dumps(report))
        return
    print(f"device {report['device']}, {report['machine']}; images a second")
    for part in ("decoding", "tower", "batch"):
        for name, value in report[part].items():
            print(f"{part:10} {name:16} {value:12.1f}")


if __name__ == "__main__":
    main()
