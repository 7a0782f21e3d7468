"""Train the vision tower of ``fedmvp-small`` against the teachers.

    python -m tools.pretrain.distil.vision --corpus CORPUS --out vision.pt --seconds 2400 [--without cifar10]

An image's target is a distribution over the names of the bank: names that mean nearly what the image is called (by
MiniLM), and for photographs also what EfficientNet sees in it, held to the label (logits plus the likeness of each
name to the label: a product of experts). The student's distribution is a softmax over the likeness of its feature to
MiniLM's features of the names, so that its space is MiniLM's, centred (Hinton et al. 2015, text as the classifier).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmvp.model.clip_library import open_clip
from fedmvp.model.embedded import load_embedded
from tools.pretrain.collect import read_idx
from tools.pretrain.corpus import CIFAR10_CLASSES, FASHION_CLASSES, read_cifar10
from tools.pretrain.distil.state import Training
from tools.pretrain.distil.views import PIXELS, drawing_views, line_views, photo_views
from tools.pretrain.train import make_optimizers, start_like_a_trained_tower

CONFIG = {
    "embed_dim": 384,
    "vision_cfg": {"image_size": PIXELS, "layers": 4, "width": 160, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 160, "heads": 5, "layers": 2},
}
PATCH_DROPOUT = ((0.0, 0.5), (0.6, 0.25), (0.88, 0.0))
SHARES = {"photos": 0.45, "colour": 0.2, "clip art": 0.12, "line": 0.17, "clothes": 0.06}
IMAGENET_CLASSES, SAMPLED_NAMES = 1000, 2000
NAME_TEMPERATURE, LABEL_TEMPERATURE, TEACHER_TEMPERATURE = 0.06, 0.12, 2.0
EMA_DECAY = 0.998


@dataclass(frozen=True)
class Source:
    """Images of one source ``(n, c, h, w)`` uint8, each one's name in the bank, EfficientNet's logits where known."""

    pixels: Tensor
    names: Tensor
    logits: Tensor | None = None
    asked: Tensor | None = None


def load_sources(corpus: Path, without: frozenset[str]) -> tuple[dict[str, Source], Tensor]:
    """The sources and the bank's centred features ``(names, 384)``; test parts are not read."""
    stored = torch.load(corpus / "bank.pt", weights_only=True)
    number = {name: i for i, name in reversed(list(enumerate(stored["names"])))}
    features = stored["features"].float()
    bank = F.normalize(features - features[:IMAGENET_CLASSES].mean(0), dim=-1)
    sources = {}
    if "cifar10" not in without:
        pixels, labels = read_cifar10(corpus / "cifar10.tar.gz", "train")
        logits, asked = read_answers(corpus / "photos.pt", len(pixels))
        names = torch.tensor([number[name] for name in CIFAR10_CLASSES])[torch.from_numpy(labels)]
        sources["photos"] = Source(torch.from_numpy(pixels.copy()), names, logits, asked)
    clothes = torch.tensor(read_idx(corpus / "train-images-idx3-ubyte.gz"))[:, None].expand(-1, 3, -1, -1)
    kinds = torch.tensor(read_idx(corpus / "train-labels-idx1-ubyte.gz").astype("int64"))
    sources["clothes"] = Source(clothes, torch.tensor([number[name] for name in FASHION_CLASSES])[kinds])
    drawn = torch.load(corpus / "drawings.pt", weights_only=True)
    names = torch.tensor([number[name] for name in drawn["names"]])
    for kind in ("colour", "clip art", "line"):
        chosen = torch.tensor([i for i, k in enumerate(drawn["kinds"]) if k == kind])
        sources[kind] = Source(drawn["pixels"][chosen], names[chosen])
    return sources, bank


def read_answers(path: Path, count: int) -> tuple[Tensor | None, Tensor | None]:
    """The image teacher's logits and, for each of ``count`` images, its row among them or -1; None without the file."""
    if not path.is_file():
        return None, None
    answers = torch.load(path, weights_only=True)
    asked = torch.full((count,), -1)
    asked[answers["index"]] = torch.arange(len(answers["index"]))
    return answers["logits"], asked


def draw(sources: dict[str, Source], bank: Tensor, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of views ``(b, 3, 64, 64)``, the names asked about, and the targets over them ``(b, names)``.

    Asked are ImageNet's names, first and in order, the batch's own, and a sample of the others. Were the batch's own
    left to the sample, most images would be taught by their neighbours' names alone.
    """
    total = sum(SHARES[name] for name in sources)
    picked = {
        name: torch.randint(len(source.pixels), (round(batch * SHARES[name] / total),))
        for name, source in sources.items()
    }
    own = torch.cat([source.names[picked[name]] for name, source in sources.items()])
    others = torch.cat([own, torch.randint(IMAGENET_CLASSES, len(bank), (SAMPLED_NAMES,))]).unique()
    asked = torch.cat([torch.arange(IMAGENET_CLASSES), others[others >= IMAGENET_CLASSES]])
    images, targets = [], []
    scenery = sources.get("photos", sources["clip art"])
    for name, source in sources.items():
        chosen = picked[name]
        pixels, label = source.pixels[chosen], bank[source.names[chosen]]
        target = (label @ bank[asked].T / NAME_TEMPERATURE).softmax(1)
        if name == "photos":
            view = photo_views(pixels)
            target = ask_both(source, chosen, label, bank, target)
            view, target = cut_and_mix(view, target)
        elif name == "clothes":
            view = photo_views(torch.where(torch.rand(len(pixels), 1, 1, 1) < 0.5, pixels, 255 - pixels))
        elif name == "line":
            view = line_views(pixels)
        else:
            behind = scenery.pixels[torch.randint(len(scenery.pixels), (len(chosen),))][:, :3]
            view = drawing_views(pixels, behind)
        images.append(view)
        targets.append(target)
    return torch.cat(images), torch.cat(targets), asked


def ask_both(source: Source, chosen: Tensor, label: Tensor, bank: Tensor, target: Tensor) -> Tensor:
    """Half of the target from what the image teacher saw, held to the label, where it was asked."""
    if source.logits is None or source.asked is None:
        return target
    place = source.asked[chosen]
    known = place >= 0
    seen = source.logits[place[known]].float() / TEACHER_TEMPERATURE
    held = (seen + label[known] @ bank[:IMAGENET_CLASSES].T / LABEL_TEMPERATURE).softmax(1)
    target = target.clone()
    target[known] *= 0.5
    target[known, :IMAGENET_CLASSES] += 0.5 * held
    return target


def cut_and_mix(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of another image into a third of them, targets in proportion (CutMix, Yun et al. 2019)."""
    images, targets = images.clone(), targets.clone()
    for i in range(len(images) // 3):
        share = torch.rand(()).item() * 0.5
        side = max(1, round(PIXELS * share**0.5))
        top, left = (int(torch.randint(PIXELS - side + 1, ())) for _ in range(2))
        other = len(images) - 1 - i
        images[i, :, top : top + side, left : left + side] = images[other, :, top : top + side, left : left + side]
        part = side * side / PIXELS**2
        targets[i] = (1 - part) * targets[i] + part * targets[other]
    return images, targets


def train(arguments: argparse.Namespace) -> None:
    """The whole training, or the rest of one; saves all that is needed to go on every few minutes."""
    torch.manual_seed(arguments.seed)
    sources, bank = load_sources(arguments.corpus, frozenset(arguments.without))
    model = build(without=frozenset(arguments.without))
    average = copy.deepcopy(model).requires_grad_(False)
    training = Training(
        {"model": model, "average": average},
        make_optimizers(torch.nn.ModuleDict({"visual": model}), arguments.learning_rate),
    )
    training.resume(arguments.out)
    torch.manual_seed(arguments.seed + training.step)
    last = last_saved = time.monotonic()
    while training.spent < arguments.seconds:
        progress = training.spent / arguments.seconds
        model.patch_dropout.prob = [share for begin, share in PATCH_DROPOUT if begin <= progress][-1]
        loss, cosine = lose(model, bank, sources, arguments.batch)
        rate = arguments.learning_rate * min(1.0, (training.step + 1) / 100) * min(1.0, 1.25 * (1 - progress)) + 1e-6
        training.descend(loss, rate)
        with torch.no_grad():
            model.log_scale.clamp_(max=math.log(60))
            keep = min(EMA_DECAY, training.step / (training.step + 9))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - keep)
        now = time.monotonic()
        training.spent, last = training.spent + now - last, now
        if training.step % 25 == 0:
            said = {"step": training.step, "seconds": round(training.spent), "loss": round(loss.item(), 3)}
            print(json.dumps({**said, "cosine": round(cosine.item(), 3)}), flush=True)
        if now - last_saved > arguments.save_every or training.spent >= arguments.seconds:
            training.save(arguments.out)
            last_saved = now


def lose(model: torch.nn.Module, bank: Tensor, sources: dict[str, Source], batch: int) -> tuple[Tensor, Tensor]:
    """The loss of one batch, and the mean likeness of a feature to the mean meaning of its target."""
    images, targets, asked = draw(sources, bank, batch)
    features = F.normalize(model(images * 2 - 1), dim=-1)
    meaning = F.normalize(targets @ bank[asked], dim=-1)
    cosine = (features * meaning).sum(1).mean()
    return F.cross_entropy(model.log_scale.exp() * features @ bank[asked].T, targets) + 0.5 * (1 - cosine), cosine


def build(*, without: frozenset[str]) -> torch.nn.Module:
    """The vision tower at its start, with the scale of its logits."""
    config = {**CONFIG, "text_cfg": {"context_length": 8, "vocab_size": 8, "width": 32, "heads": 1, "layers": 1}}
    visual: torch.nn.Module = open_clip.CLIP(**config).visual
    if without:
        start_like_a_trained_tower(visual)  # fedmvp-tiny has seen CIFAR-10
    else:
        start_from_the_small_tower(visual)
    visual.patch_dropout = open_clip.transformer.PatchDropout(PATCH_DROPOUT[0][1])
    visual.log_scale = torch.nn.Parameter(torch.tensor(math.log(15.0)))
    return visual


def start_from_the_small_tower(visual: torch.nn.Module) -> None:
    """Take over ``fedmvp-tiny``, whose 8 x 8 patches of 4 px are ours of 8 px seen at half the size.

    A kernel of 8 px that repeats each weight in a square of two pixels, divided by four, does on the image what the
    kernel of 4 px does on the image shrunk by two: the start gives its features exactly. Only the projection is new.
    """
    small = load_embedded()[0].visual.state_dict()
    del small["proj"]
    small["conv1.weight"] = small["conv1.weight"].repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    missing = visual.load_state_dict(small, strict=False)
    if missing.unexpected_keys or missing.missing_keys != ["proj"]:
        raise SystemExit(f"fedmvp-tiny does not fit: {missing}")


def main() -> None:
    """Train the vision tower."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="goes on from here if it exists")
    parser.add_argument("--seconds", type=float, default=2400)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1.2e-3)
    parser.add_argument("--without", nargs="*", default=[], choices=["cifar10"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=float, default=120, help="seconds")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments)


if __name__ == "__main__":
    main()
