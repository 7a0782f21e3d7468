"""What float16 in the feature cache, and a tower in bfloat16, do to logits and accuracy. No timing; two minutes.

    python -m benchmarks.rounding [--images 1000] [--steps 60] [--json]

The embedded backbone on the demo's digits, half of them to train the prompts on without privacy, half to test with. The
prompts are trained on exact features and on rounded ones from the same start, in the same batches. Beside both, the
same features from a tower in bfloat16, as a GPU computes them: its rounding is eight times coarser.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demo.digits import write_digits
from demo.modes import policy_text
from fedmvp.data.dataset import image_folder
from fedmvp.data.images import load_images
from fedmvp.model.compute import Precision, TowerOptions
from fedmvp.model.features import FrozenFeatures, extract_features
from fedmvp.model.from_policy import build_prompted_model
from fedmvp.model.frozen import ANCHOR, AnchorStage, SummaryStage
from fedmvp.model.prompted import PromptedModel
from fedmvp.study.policy import StudyPolicy, parse_policy

SHAPES = (("narrow", "last-block"), ("narrow", "input"), ("full", "last-block"))


def rounded(model: PromptedModel, exact: FrozenFeatures) -> FrozenFeatures:
    """The features as the cache keeps them, the anchor computed from the rounded ones."""
    summary = SummaryStage(model, "")
    rows = summary.layout.pack(exact.tensors)
    kept = summary.layout.unpack(torch.from_numpy(rows))
    if ANCHOR in model.feature_names:
        anchor = AnchorStage(model, summary)
        parts = [anchor.compute(part) for part in np.array_split(rows, max(1, len(rows) // 64))]
        kept |= anchor.layout.unpack(torch.from_numpy(np.concatenate(parts)))
    return FrozenFeatures(kept)


def train(model: PromptedModel, features: FrozenFeatures, labels: Tensor, steps: int) -> None:
    """Adam from the public start, without privacy, in the same batches every time."""
    model.load_state_dict(PromptedModel(model.backbone, model.bank, model.config).state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    draws = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(labels), (64,), generator=draws)
        part = {name: value[chosen] for name, value in features.tensors.items()}
        optimizer.zero_grad()
        model.loss_per_sample(model(part), part, labels[chosen]).mean().backward()
        optimizer.step()


@torch.no_grad()
def logits(model: PromptedModel, features: FrozenFeatures) -> Tensor:
    """Logits of all images."""
    return torch.cat([model.logits(model(part)) for part in features.parts(256)])


def compare(policy: StudyPolicy, images: Tensor, labels: Tensor, steps: int) -> dict[str, Any]:
    """Logits and accuracies of one shape of prompts."""
    model = build_prompted_model(policy)
    half = len(images) // 2
    exact = [extract_features(model, part) for part in (images[:half], images[half:])]
    kept = [rounded(model, part) for part in exact]
    lower = build_prompted_model(policy, options=TowerOptions(precision=Precision.BFLOAT16))
    coarse = extract_features(lower, images[half:])
    train(model, exact[0], labels[:half], steps)
    lower.load_state_dict(model.state_dict())
    before, after, tower = logits(model, exact[1]), logits(model, kept[1]), logits(lower, coarse)
    train(model, kept[0], labels[:half], steps)
    trained_on_rounded = logits(model, kept[1])

    def accuracy(values: Tensor) -> float:
        return float((values.argmax(dim=1) == labels[half:]).float().mean())

    return {
        "largest logit": float(before.abs().max()),
        "largest change, float16 cache": float((after - before).abs().max()),
        "largest change, bfloat16 tower": float((tower - before).abs().max()),
        "answers changed, float16 cache": int((after.argmax(dim=1) != before.argmax(dim=1)).sum()),
        "answers changed, bfloat16 tower": int((tower.argmax(dim=1) != before.argmax(dim=1)).sum()),
        "accuracy, exact": accuracy(before),
        "accuracy, float16 cache": accuracy(after),
        "accuracy, trained on float16 too": accuracy(trained_on_rounded),
    }


def main() -> None:
    """Print one table, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    policy = parse_policy(policy_text("record-local").encode())
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        digits = write_digits(Path(folder), 1)
        model = build_prompted_model(policy)
        images, labels = load_images(image_folder(digits.public, policy.task.class_names), model.backbone.image_size)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: arguments.images]
    for variant, injection in SHAPES:
        section = policy.model.model_copy(update={"variant": variant, "injection": injection})
        changed = policy.model_copy(update={"model": section})
        report[f"{variant}, {injection}"] = compare(changed, images[order], labels[order], arguments.steps)
    if arguments.json:
        print(json.dumps(report))
        return
    print(f"{'':36}" + "".join(f"{name:>22}" for name in report))
    for row in next(iter(report.values())):
        print(f"{row:36}" + "".join(f"{values[row]:22.4g}" for values in report.values()))


if __name__ == "__main__":
    main()
