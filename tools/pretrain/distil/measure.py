"""Zero-shot accuracies of an embedded tower: test parts of CIFAR-10 and Fashion-MNIST, and a folder of domains.

    python -m tools.pretrain.distil.measure --checkpoint fedmvp-small.safetensors --corpus CORPUS [--domains FOLDER]

``FOLDER`` is ``<domain>/<class>/*.jpg``, such as PACS, with attributes in ``pacs.toml``. Look at it once, at the
end, and choose nothing by it.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fedmvp.errors import UserError
from fedmvp.model.attributes import build_attribute_bank
from fedmvp.model.backbone import Backbone
from fedmvp.model.loading import BackboneSpec, load_backbone
from fedmvp.model.supported import EMBEDDED_NAME
from fedmvp.model.task import Task, TaskClass
from tools.pretrain.collect import read_idx
from tools.pretrain.corpus import ATTRIBUTE_TEMPLATE, CIFAR10_CLASSES, FASHION_CLASSES, read_cifar10
from tools.pretrain.export import described_task, to_backbone_size

DOMAIN_ATTRIBUTES = Path(__file__).with_name("pacs.toml")
NAME_TEMPLATE = "a photo of a {name}"


def domain_task(file: Path = DOMAIN_ATTRIBUTES) -> Task:
    """The task of a folder of domains, classes in the order of the file."""
    words = tomllib.loads(file.read_text(encoding="utf-8"))
    return Task(
        classes=tuple(TaskClass(name, tuple(attributes)) for name, attributes in words.items()),
        template=ATTRIBUTE_TEMPLATE,
    )


def read_domain(folder: Path, classes: tuple[str, ...], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Images ``(n, 3, side, side)`` and labels of one domain; a class without a folder is an error."""
    pixels, labels = [], []
    for number, name in enumerate(classes):
        if not (folder / name).is_dir():
            raise UserError(f"{folder} has no folder '{name}'", remedy="give a folder of <domain>/<class>/<image>")
        files = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
        for path in files:
            picture = Image.open(path).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
            pixels.append(np.asarray(picture).transpose(2, 0, 1))
            labels.append(number)
    return np.stack(pixels), np.asarray(labels)


@torch.no_grad()
def accuracies(backbone: Backbone, task: Task, pixels: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy on uint8 images ``(n, 1 or 3, h, w)`` of the attribute classifier and of NAME_TEMPLATE alone."""
    classifiers = {
        "attributes": build_attribute_bank(backbone, task).classifier,
        "names": backbone.encode_sentences([NAME_TEMPLATE.format(name=item.name) for item in task.classes]),
    }
    right = dict.fromkeys(classifiers, 0)
    for start in range(0, len(pixels), 500):
        images = to_backbone_size(torch.tensor(pixels[start : start + 500]), backbone.image_size)
        features = backbone.encode_images(backbone.normalise(images))
        for kind, classifier in classifiers.items():
            found = (features @ classifier.T).argmax(1).numpy()
            right[kind] += int((found == labels[start : start + 500]).sum())
    return {kind: round(count / len(pixels), 4) for kind, count in right.items()}


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, help="an embedded model's weights; fedmvp-tiny's if none is given")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=0, help="measure only so many test images")
    parser.add_argument("--domains", type=Path)
    arguments = parser.parse_args()
    backbone = load_backbone(BackboneSpec(EMBEDDED_NAME, "embedded", checkpoint=arguments.checkpoint))
    photos, photo_labels = read_cifar10(arguments.corpus / "cifar10.tar.gz", "test")
    clothes, kinds = (read_idx(arguments.corpus / f"t10k-{part}-ubyte.gz") for part in ("images-idx3", "labels-idx1"))
    found: dict[str, object] = {"state_hash": backbone.state_hash()}
    tests = (
        ("cifar10", CIFAR10_CLASSES, photos, photo_labels),
        ("fashion-mnist", FASHION_CLASSES, clothes[:, None], kinds),
    )
    for group, names, pixels, labels in tests:
        chosen = np.random.default_rng(0).permutation(len(pixels))[: arguments.limit or None]
        found[group] = accuracies(backbone, described_task(group, names), pixels[chosen], labels[chosen])
    if arguments.domains:
        task = domain_task()
        results = {}
        for folder in sorted(p for p in arguments.domains.iterdir() if p.is_dir()):
            pixels, labels = read_domain(folder, tuple(item.name for item in task.classes), backbone.image_size)
            results[folder.name] = accuracies(backbone, task, pixels, labels)
        found["domains"] = results
        found["domains_mean"] = {
            key: round(float(np.mean([r[key] for r in results.values()])), 4) for key in ("attributes", "names")
        }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
