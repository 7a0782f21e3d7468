"""A private training step beside a plain one and other ways to clip, through the encoder and on cached features.

    python -m benchmarks.training [--parts encoder,cached,release,accelerator] [--runs 5] [--json]

Every side has the same module with random weights, the same batch and the same optimizer's step, and the sides run in
turns. Ratios are of neighbouring runs: their median, and the smallest and largest. Parts:

encoder      prompts enter the tower: ViT-B-32, batch 16, with the peak of memory of each side in a process of its own;
cached       prompts enter the last block, the rest was computed once: batch 64, a small module and the full one;
release      the step of the method's release, which encodes texts and images anew, over ours;
accelerator  ViT-B-16 at batch 256 on a GPU in bfloat16: left out where there is none.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.accelerator import MATRIX_SIDE, accelerator_row
from benchmarks.measuring import in_turns, peak_bytes
from benchmarks.release import release_row
from benchmarks.steps import WAYS
from benchmarks.tables import show
from benchmarks.workload import Workload
from fedmvp.model.prompt_config import Injection, Variant

PARTS = ("encoder", "cached", "release", "accelerator")
SMALL_PARAMETERS = 500_000  # a module up to here must keep its ratio with the noise
CPU_DEVICE, GPU_DEVICE = "cpu", "cuda:0"


@dataclass(frozen=True)
class Settings:
    """What one run of the benchmark measures."""

    parts: tuple[str, ...]
    ways: tuple[str, ...]
    runs: int
    release_runs: int
    threads: int
    architecture: str
    encoder_variants: tuple[Variant, ...]
    cached_variants: tuple[Variant, ...]
    encoder_batch: int
    cached_batch: int
    n_classes: int
    n_attributes: int
    accelerator: str | None
    accelerator_architecture: str
    accelerator_batch: int
    matrix_side: int
    memory: bool

    def described(self) -> dict[str, Any]:
        """The settings and versions for the output."""
        return {
            "runs": self.runs,
            "release_runs": self.release_runs,
            "threads": self.threads,
            "architecture": self.architecture,
            "classes": self.n_classes,
            "attributes": self.n_attributes,
            "torch": version("torch"),
            "opacus": version("opacus"),
            "python": platform.python_version(),
        }

    def workload(self, variant: Variant, injection: Injection, batch: int) -> Workload:
        """One of the workloads on the processor."""
        return Workload(
            self.architecture, variant, injection, batch, n_classes=self.n_classes, n_attributes=self.n_attributes
        )


def say(text: str) -> None:
    """Tell the person who waits."""
    print(text, file=sys.stderr, flush=True)


def device_name(device: str | None) -> str:
    """What everything ran on, in words."""
    if device is not None and device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def compared_rows(workload: Workload, settings: Settings, *, memory: bool) -> list[dict[str, Any]]:
    """Measure every way to take a step of one workload."""
    trained = workload.build()
    where = f"{workload.injection}, {workload.variant}, batch {workload.batch}"
    say(f"{where}: {', '.join(settings.ways)}")
    times = in_turns({name: partial(WAYS[name], trained) for name in settings.ways}, settings.runs, workload.device)
    dimension = trained.dimension
    del trained  # its memory is wanted below
    peaks: dict[str, int | None] = dict.fromkeys(settings.ways)
    if memory:
        say(f"{where}: peaks of memory")
        peaks = {name: peak_bytes(workload, name, settings.threads) for name in settings.ways}
    return [
        {
            "variant": str(workload.variant),
            "parameters": dimension,
            "batch": workload.batch,
            "way": name,
            "step_s": times[name].seconds,
            **times[name].over(times["plain"]),
            "peak_megabytes": None if peak is None else peak / 1e6,
            "memory_ratio": None if peak is None else peak / peaks["plain"],  # type: ignore[operator]
        }
        for name, peak in peaks.items()
    ]


def run(settings: Settings) -> dict[str, Any]:
    """Measure the parts; what was not measured is null."""
    output: dict[str, Any] = dict.fromkeys(PARTS)
    parts = settings.parts
    if "encoder" in parts:
        output["encoder"] = [
            row
            for variant in settings.encoder_variants
            for row in compared_rows(
                settings.workload(variant, Injection.INPUT, settings.encoder_batch), settings, memory=settings.memory
            )
        ]
    if "cached" in parts:
        output["cached"] = [
            row
            for variant in settings.cached_variants
            for row in compared_rows(
                settings.workload(variant, Injection.LAST_BLOCK, settings.cached_batch), settings, memory=False
            )
        ]
    if "release" in parts:
        say("the release's step")
        workload = settings.workload(settings.encoder_variants[0], Injection.INPUT, settings.encoder_batch)
        output["release"] = [release_row(replace(workload, reads_text=True), settings.release_runs)]
    if "accelerator" in parts and settings.accelerator is not None:
        say(f"accelerator {settings.accelerator}")
        workload = Workload(
            settings.accelerator_architecture,
            Variant.NARROW,
            Injection.INPUT,
            settings.accelerator_batch,
            n_classes=settings.n_classes,
            n_attributes=settings.n_attributes,
            device=settings.accelerator,
        )
        output["accelerator"] = [
            accelerator_row(replace(workload, variant=variant), settings.runs, settings.matrix_side)
            for variant in settings.cached_variants
        ]
    return summary(output, settings) | {"settings": settings.described()} | output


def summary(output: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """The figures that aims are stated for; the worst where several rows could be meant.

    The encoder's are with noise; the cached one is with noise at half a million parameters or fewer, and without above.
    """
    noisy = "book-keeping with noise"
    encoder = [row for row in output["encoder"] or [] if row["way"] == noisy]
    cached = [
        row
        for row in output["cached"] or []
        if row["way"] == (noisy if row["parameters"] <= SMALL_PARAMETERS else "book-keeping")
    ]
    peaks = [row["memory_ratio"] for row in encoder if row["memory_ratio"] is not None]
    on_gpu = output["accelerator"]
    return {
        "device": device_name(None),
        "accelerator_device": device_name(settings.accelerator) if on_gpu else None,
        "encoder_dp_over_plain": max((row["ratio"] for row in encoder), default=None),
        "cached_dp_over_plain": max((row["ratio"] for row in cached), default=None),
        "encoder_memory_ratio": max(peaks, default=None),
        "release_over_ours": output["release"][0]["ratio"] if output["release"] else None,
        "accelerator_dp_over_plain": max((row["dp_noise_over_plain"]["ratio"] for row in on_gpu), default=None)
        if on_gpu
        else None,
    }


COMPARED = [
    ("module", "variant", "s"),
    ("parameters", "parameters", ",d"),
    ("batch", "batch", "d"),
    ("way", "way", "s"),
    ("step s", "step_s", ".4f"),
    ("over plain", "ratio", ".3f"),
    ("from", "ratio_from", ".3f"),
    ("to", "ratio_to", ".3f"),
    ("of processor time", "processor_ratio", ".3f"),
]
COLUMNS: dict[str, list[tuple[str, str, str]]] = {
    "encoder": [*COMPARED, ("peak MB", "peak_megabytes", ".0f"), ("over plain", "memory_ratio", ".3f")],
    "cached": COMPARED,
    "release": [
        ("module", "variant", "s"),
        ("batch", "batch", "d"),
        ("texts", "texts", "d"),
        ("ours s", "ours_s", ".3f"),
        ("release s", "release_s", ".3f"),
        ("of it texts s", "release_text_s", ".3f"),
        ("over ours", "ratio", ".2f"),
        ("with half the texts", "half_the_texts_ratio", ".2f"),
    ],
    "accelerator": [
        ("tower", "architecture", "s"),
        ("module", "variant", "s"),
        ("batch", "batch", "d"),
        ("plain s", "plain_s", ".4f"),
        ("private s", "dp_s", ".4f"),
        ("with noise s", "dp_noise_s", ".4f"),
        ("over plain", "ratio", ".3f"),
        ("images a second", "images_per_s", ".0f"),
        ("TFLOP/s of a product", "matrix_tflops", ".1f"),
        ("share of the bound", "share_of_bound", ".3f"),
    ],
    "profile": [("operation", "operation", "s"), ("ms", "ms", ".2f"), ("share", "share", ".3f")],
}
TITLES = {
    "encoder": "Through the encoder",
    "cached": "On cached features",
    "release": "The release's step, plain, over ours with clipping and noise",
    "accelerator": "On the accelerator",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""

    def several(allowed: tuple[str, ...]) -> Any:
        def read(text: str) -> tuple[str, ...]:
            chosen = tuple(text.split(","))
            if unknown := set(chosen) - set(allowed):
                raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(allowed)}")
            return chosen

        return read

    variants = several(tuple(map(str, Variant)))
    gpu = GPU_DEVICE if torch.cuda.is_available() else None
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--parts", type=several(PARTS), default=PARTS, help=f"default {','.join(PARTS)}")
    made.add_argument(
        "--ways", type=several(tuple(WAYS)), default=tuple(WAYS), help="ways to take a step; plain is one"
    )
    made.add_argument("--runs", type=int, default=5, help="runs of each side; the median is shown")
    made.add_argument("--release-runs", type=int, default=2, help="runs of the release's step, which takes long")
    made.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch; default all cores")
    made.add_argument("--architecture", default="ViT-B-32", help="tower of the parts on the processor")
    made.add_argument("--encoder-variants", type=variants, default=("full",))
    made.add_argument("--cached-variants", type=variants, default=("narrow", "full"))
    made.add_argument("--encoder-batch", type=int, default=16)
    made.add_argument("--cached-batch", type=int, default=64)
    made.add_argument("--classes", type=int, default=20)
    made.add_argument("--attributes", type=int, default=10)
    made.add_argument("--accelerator", default=gpu, help=f"device of the last part; here {gpu}")
    made.add_argument("--accelerator-architecture", default="ViT-B-16")
    made.add_argument("--accelerator-batch", type=int, default=256)
    made.add_argument("--matrix-side", type=int, default=MATRIX_SIDE, help="of the product whose rate is the bound's")
    made.add_argument("--without-memory", action="store_true", help="leave the peaks of memory out")
    made.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return made


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    settings = Settings(
        parts=options.parts,
        ways=("plain", *(way for way in options.ways if way != "plain")),
        runs=options.runs,
        release_runs=options.release_runs,
        threads=options.threads,
        architecture=options.architecture,
        encoder_variants=tuple(map(Variant, options.encoder_variants)),
        cached_variants=tuple(map(Variant, options.cached_variants)),
        encoder_batch=options.encoder_batch,
        cached_batch=options.cached_batch,
        n_classes=options.classes,
        n_attributes=options.attributes,
        accelerator=options.accelerator or None,
        accelerator_architecture=options.accelerator_architecture,
        accelerator_batch=options.accelerator_batch,
        matrix_side=options.matrix_side,
        memory=not options.without_memory,
    )
    output = run(settings)
    if options.json:
        print(json.dumps(output))
        return
    described = {"device": output["device"], **output["settings"]}
    print(", ".join(f"{name} {value}" for name, value in described.items()))
    for name in (name for name in TITLES if output[name] is not None):
        print("\n" + show(TITLES[name], [flat(row) for row in output[name]], COLUMNS[name]))
        for row in output[name]:
            if "profile" in row:
                print("\n" + show(f"One step of the {row['variant']} module", row["profile"], COLUMNS["profile"]))
    if output["accelerator"] is None and "accelerator" in settings.parts:
        print("\nNo GPU here: nothing is measured or claimed for one.")


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the numbers that a table wants by themselves."""
    ratios = row.get("dp_noise_over_plain", row)
    if "ratio_spread" not in ratios:
        return row
    return row | {
        "ratio": ratios["ratio"],
        "ratio_from": ratios["ratio_spread"][0],
        "ratio_to": ratios["ratio_spread"][1],
    }


if __name__ == "__main__":
    main()
