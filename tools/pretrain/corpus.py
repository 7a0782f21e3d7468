"""The pre-training corpus in memory: images by source on the device, captions by concept.

A concept is a thing with a name ("truck", "digit three", "red apple"); several sources may draw the same
concept, and an image is paired with any caption of its concept.
"""

from __future__ import annotations

import io
import itertools
import tarfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tools.pretrain.collect import DIGIT_NAMES, EMOJI_PIXELS, read_idx

CONCEPTS_FILE = Path(__file__).with_name("concepts.toml")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FASHION_CLASSES = (
    "t-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
ATTRIBUTE_TEMPLATE = "a photo of a {name}, which has {attribute}"
NAME_TEMPLATES = (
    "a photo of a {name}",
    "a picture of a {name}",
    "a small image of a {name}",
    "{name}",
    "a blurry photo of the {name}",
)
DRAWING_TEMPLATES = (
    "an emoji of a {name}",
    "a drawing of a {name}",
    "a photo of a {name}",
    "{name}",
    "an icon of {name}",
)


@dataclass
class Concepts:
    """Names of all concepts in order, and the captions of each."""

    names: list[str] = field(default_factory=list)
    captions: list[list[str]] = field(default_factory=list)

    def index(self, name: str) -> int:
        """The number of a concept, which is made with drawing captions when it is new."""
        if name not in self.names:
            self.names.append(name)
            self.captions.append([template.format(name=name) for template in DRAWING_TEMPLATES])
        return self.names.index(name)


@dataclass(frozen=True)
class Source:
    """Images of one source: ``pixels (n, channels, h, w)`` uint8 on the device, ``concepts (n,)``, share of a batch."""

    name: str
    pixels: torch.Tensor
    concepts: torch.Tensor
    share: float


def read_concepts() -> dict[str, Any]:
    """Synonyms and attribute sentences by group and class name."""
    return tomllib.loads(CONCEPTS_FILE.read_text(encoding="utf-8"))


def described_concepts() -> Concepts:
    """The thirty concepts that have attribute sentences, ten of each group in its source's label order."""
    groups = read_concepts()
    concepts = Concepts()
    for group, order in (("cifar10", CIFAR10_CLASSES), ("fashion-mnist", FASHION_CLASSES), ("digits", DIGIT_NAMES)):
        for name in order:
            words = groups[group][name]
            captions = [template.format(name=n) for n in [name, *words["synonyms"]] for template in NAME_TEMPLATES]
            for attribute in words["attributes"]:
                captions += [ATTRIBUTE_TEMPLATE.format(name=n, attribute=attribute) for n in [name, *words["synonyms"]]]
                captions.append(attribute)
            concepts.names.append(name)
            concepts.captions.append(captions)
    return concepts


def read_cifar10(archive: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images ``(n, 3, 32, 32)`` and labels of one part ("train" or "test") of the CIFAR-10 archive."""
    members = []
    with tarfile.open(archive) as tar:
        for member in tar:
            pieces = Path(member.name).parts
            if member.isfile() and part in pieces and member.name.endswith(".jpg"):
                members.append((tar.extractfile(member).read(), CIFAR10_CLASSES.index(pieces[-2])))  # type: ignore[union-attr]
    with ThreadPoolExecutor() as pool:
        images = list(pool.map(lambda m: np.asarray(Image.open(io.BytesIO(m[0])).convert("RGB")), members))
    return np.stack(images).transpose(0, 3, 1, 2), np.asarray([label for _, label in members])


def read_emoji(drawings: np.lib.npyio.NpzFile) -> np.ndarray:
    """Drawings as ``(n, 4, 40, 40)``, transparency last."""
    blob, offsets = drawings["emoji_png"].tobytes(), drawings["emoji_offsets"]
    pictures = [Image.open(io.BytesIO(blob[a:b])).convert("RGBA") for a, b in itertools.pairwise(offsets)]
    square = [p if p.size == (EMOJI_PIXELS, EMOJI_PIXELS) else p.resize((EMOJI_PIXELS, EMOJI_PIXELS)) for p in pictures]
    return np.stack([np.asarray(p) for p in square]).transpose(0, 3, 1, 2)


def load_corpus(folder: Path, device: torch.device) -> tuple[Concepts, list[Source]]:
    """All training images on the device; test parts of CIFAR-10 and Fashion-MNIST are not read here."""
    concepts = described_concepts()
    drawings = np.load(folder / "drawings.npz")
    photos, photo_labels = read_cifar10(folder / "cifar10.tar.gz", "train")
    clothes = read_idx(folder / "train-images-idx3-ubyte.gz")[:, None]
    clothes_labels = read_idx(folder / "train-labels-idx1-ubyte.gz").astype(np.int64) + 10
    emoji_labels = np.asarray([concepts.index(str(name)) for name in drawings["emoji_names"]])

    def source(name: str, pixels: np.ndarray, labels: np.ndarray, share: float) -> Source:
        return Source(
            name, torch.tensor(pixels, device=device), torch.tensor(labels.astype(np.int64), device=device), share
        )

    return concepts, [
        source("photos", photos, photo_labels, 0.52),
        source("clothes", clothes, clothes_labels, 0.1),
        source("emoji", read_emoji(drawings), emoji_labels, 0.08),
        source("glyphs", drawings["glyphs"][:, None], drawings["glyph_labels"] + 20, 0.22),
        source("scans", drawings["scans"][:, None], drawings["scan_labels"] + 20, 0.08),
    ]
