"""A step as the method's published release takes it, from the same module and batch: nothing frozen is kept.

Every step reads all attributes and sentences through the text tower, embeds the images and computes the frozen feature
of their mirrored view anew, then takes a plain step without privacy.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import in_turns, timed
from benchmarks.steps import LEARNING_RATE, WAYS, Step
from benchmarks.workload import Trained, Workload
from fedmvp.model.attributes import build_attribute_bank
from privacy.per_sample import Batch

OURS = "book-keeping with noise"


@contextlib.contextmanager
def release(trained: Trained, workload: Workload) -> Iterator[Step]:
    """Yield the step of the release."""
    model, backbone = trained.model, trained.model.backbone
    optimizer = torch.optim.SGD(trained.parameters, lr=LEARNING_RATE)
    kept = model.bank, model._attributes  # noqa: SLF001 - what the product computes once is set anew here

    def features() -> Batch:
        pixels = backbone.normalise(trained.images)
        with torch.no_grad(), backbone.frozen_compute():
            tokens: Tensor = backbone.embed(pixels).float()
        fresh = {"tokens": tokens, "zero_shot": backbone.encode_images(pixels.flip(-1))}
        return (*((trained.features | fresh)[name] for name in model.feature_names), trained.batch[-1])

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model.bank = build_attribute_bank(backbone, workload.task)
        model._attributes = model.bank.conditioning  # noqa: SLF001
        trained.losses(model, features()).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    try:
        yield step
    finally:
        model.bank, model._attributes = kept  # noqa: SLF001
        optimizer.zero_grad(set_to_none=True)


def release_row(workload: Workload, runs: int) -> dict[str, Any]:
    """Measure the release's step over ours, with clipping and noise."""
    trained = workload.build()
    sides = {"ours": lambda: WAYS[OURS](trained), "release": lambda: release(trained, workload)}
    times = in_turns(sides, runs, workload.device)

    def read_texts() -> None:
        build_attribute_bank(trained.model.backbone, workload.task)

    text_s, _ = timed(read_texts, workload.device)
    ratio = times["release"].over(times["ours"])
    return {
        "variant": str(workload.variant),
        "batch": workload.batch,
        "texts": 2 * workload.n_classes * workload.n_attributes,
        "ours_s": times["ours"].seconds,
        "release_s": times["release"].seconds,
        "release_text_s": text_s,
        **ratio,
        "half_the_texts_ratio": (times["release"].seconds - text_s / 2) / times["ours"].seconds,
    }
