"""The images that the vision tower is taught by, with what is known of each: a name, what the image teacher said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.pretrain.collect import read_idx
from tools.pretrain.corpus import CIFAR10_CLASSES, FASHION_CLASSES, read_cifar10
from tools.pretrain.distil.scenes import HELD_OUT, bank_numbers, load_coloured

IMAGENET_CLASSES = 1000
LEAST_LIKENESS = 0.45  # of a drawing's name to one of ImageNet's: others are signs and symbols more than things


@dataclass(frozen=True)
class Source:
    """Images of one source ``(n, c, h, w)`` uint8, each name in the bank or -1, the teacher's logits where known."""

    pixels: Tensor
    names: Tensor
    logits: Tensor | None = None
    asked: Tensor | None = None
    guides: dict[str, Tensor] | None = None  # of the first so many images


def load_sources(corpus: Path, without: frozenset[str]) -> tuple[dict[str, Source], Tensor]:
    """The sources and the bank's centred features ``(names, 384)``; test parts are not read."""
    bank = load_bank(corpus)
    number = bank_numbers(corpus)
    sources = {}
    if "cifar10" not in without:
        pixels, labels = read_cifar10(corpus / "cifar10.tar.gz", "train")
        logits, asked = read_answers(corpus / "photos.pt", len(pixels))
        names = torch.tensor([number[name] for name in CIFAR10_CLASSES])[torch.from_numpy(labels)]
        guides = read_guides(corpus / "photo_guides.pt")
        sources["photos"] = Source(torch.from_numpy(pixels.copy()), names, logits, asked, guides)
    views = torch.load(corpus / "views.pt", weights_only=True)
    asked, guides = torch.arange(len(views["names"])), read_guides(corpus / "guides.pt")
    sources["scenes"] = Source(views["pixels"], views["names"], views["logits"], asked, guides)
    clothes = torch.tensor(read_idx(corpus / "train-images-idx3-ubyte.gz"))[:, None].expand(-1, 3, -1, -1)
    kinds = torch.tensor(read_idx(corpus / "train-labels-idx1-ubyte.gz").astype("int64"))
    sources["clothes"] = Source(clothes, torch.tensor([number[name] for name in FASHION_CLASSES])[kinds])
    things = find_things(bank)
    for kind, (pixels, names) in {"coloured": load_coloured(corpus), "line": load_lines(corpus)}.items():
        kept = torch.tensor([i for i in range(len(names)) if i % HELD_OUT and things[names[i]]])
        sources[kind] = Source(pixels[kept], names[kept])
    return sources, bank


def load_bank(corpus: Path) -> Tensor:
    """MiniLM's features of the names ``(names, 384)``, centred on ImageNet's, which come first."""
    features = torch.load(corpus / "bank.pt", weights_only=True)["features"].float()
    return F.normalize(features - features[:IMAGENET_CLASSES].mean(0), dim=-1)


def find_things(bank: Tensor) -> Tensor:
    """Whether each name is near enough to one of ImageNet's ``(names,)``."""
    return (bank @ bank[:IMAGENET_CLASSES].T).amax(1) > LEAST_LIKENESS


def load_lines(corpus: Path) -> tuple[Tensor, Tensor]:
    """Drawings of one colour, and the place of each one's name in the bank."""
    drawn = torch.load(corpus / "drawings.pt", weights_only=True)
    number = bank_numbers(corpus)
    chosen = [i for i, kind in enumerate(drawn["kinds"]) if kind == "line"]
    return drawn["pixels"][torch.tensor(chosen)], torch.tensor([number[drawn["names"][i]] for i in chosen])


def read_guides(path: Path) -> dict[str, Tensor] | None:
    """What ``guides`` wrote, if it did."""
    return torch.load(path, weights_only=True) if path.is_file() else None


def read_answers(path: Path, count: int) -> tuple[Tensor | None, Tensor | None]:
    """The image teacher's logits and, for each of ``count`` images, its row among them or -1; None without the file."""
    if not path.is_file():
        return None, None
    answers = torch.load(path, weights_only=True)
    asked = torch.full((count,), -1)
    asked[answers["index"]] = torch.arange(len(answers["index"]))
    return answers["logits"], asked
