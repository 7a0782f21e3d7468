"""The step on an accelerator: beside the plain one, the bound of the tower's arithmetic, and where the rest goes."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.measuring import in_turns, timed
from benchmarks.steps import WAYS
from benchmarks.workload import Trained, Workload
from fedmvp.model.backbone import Backbone

SIDES = ("plain", "book-keeping", "book-keeping with noise")
MATRIX_SIDE = 8192
PROFILED = 12


def accelerator_row(workload: Workload, runs: int, matrix_side: int) -> dict[str, Any]:
    """Measure one workload on its device.

    Returns:
        Times and ratios; images a second of the private step with noise, and their share of what the device would reach
        if it did the tower's products alone, at the rate of a large product measured in the same run.
    """
    trained, device = workload.build(), workload.device
    times = in_turns({name: partial(WAYS[name], trained) for name in SIDES}, runs, device)
    rate = matrix_rate(device, matrix_side)
    per_image = tower_flops(trained.model.backbone, 1 + trained.model.backbone.n_patches + workload.n_prompts)
    private = times["book-keeping with noise"]
    images_per_s = workload.batch / private.seconds
    return {
        "architecture": workload.architecture,
        "variant": str(workload.variant),
        "parameters": trained.dimension,
        "batch": workload.batch,
        "plain_s": times["plain"].seconds,
        "dp_s": times["book-keeping"].seconds,
        "dp_noise_s": private.seconds,
        "dp_over_plain": times["book-keeping"].over(times["plain"]),
        "dp_noise_over_plain": private.over(times["plain"]),
        "images_per_s": images_per_s,
        "matrix_tflops": rate / 1e12,
        "share_of_bound": images_per_s * per_image / rate,
        "profile": profile_rows(trained, device),
    }


def tower_flops(backbone: Backbone, tokens: int) -> float:
    """Operations of one forward and one activation-only backward pass of the blocks over an image, products alone.

    A block has 12 width² weights, used once forwards and once backwards for each token; attention is two products of
    tokens² × width forwards and four backwards.
    """
    width, layers = backbone.vision_width, backbone.n_layers
    linear = 2 * 12 * width**2 * tokens
    attention = 2 * tokens**2 * width
    return layers * (2.0 * linear + (2 + 4) * attention)


def matrix_rate(device: str, side: int) -> float:
    """Operations a second of a product of square matrices, in bfloat16 on CUDA and in float32 elsewhere."""
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def multiply() -> None:
        torch.mm(left, right)

    seconds = [timed(multiply, device)[0] for _ in range(6)]
    return 2 * side**3 / min(seconds)


def profile_rows(trained: Trained, device: str) -> list[dict[str, Any]]:
    """The operations that one private step spends most of its time in."""
    on_cuda = device.startswith("cuda")
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_cuda
    with WAYS["book-keeping with noise"](trained) as step, profile(activities=activities) as seen:
        step()
        if on_cuda:
            torch.cuda.synchronize(device)
    spent = {
        event.key: (event.self_device_time_total if on_cuda else event.self_cpu_time_total) / 1e3
        for event in seen.key_averages()
    }
    total = sum(spent.values())
    longest = sorted(spent.items(), key=lambda item: -item[1])[:PROFILED]
    return [{"operation": name[:70], "ms": ms, "share": ms / total} for name, ms in longest]
