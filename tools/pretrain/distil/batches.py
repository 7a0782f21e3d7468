"""Batches of views of all sources, and what the tower is to say of each view.

An image's target is a distribution over the names of the bank: names that mean nearly what the image is called (by
MiniLM), what EfficientNet sees in a view of a scene, and for photographs and drawings in scenes both: what it sees,
held to the label (logits plus the likeness of each name to the label: a product of experts).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.pretrain.distil.guides import CHANNELS, MIDDLE_SIDE, STEPS_PER_DEVIATION
from tools.pretrain.distil.sources import IMAGENET_CLASSES, Source
from tools.pretrain.distil.views import PIXELS, drawing_views, jitter, line_views, photo_views, restyle, scene_views

SHARES = {"photos": 0.4, "scenes": 0.36, "coloured": 0.34, "line": 0.22, "clothes": 0.08}
SAMPLED_NAMES = 1000
NAME_TEMPERATURE, LABEL_TEMPERATURE, TEACHER_TEMPERATURE = 0.09, 0.12, 2.0
PATCHES = MIDDLE_SIDE**2


@dataclass(frozen=True)
class Batch:
    """Views ``(b, 3, 64, 64)``, the names asked about, the targets over them ``(b, names)``, and guides of some rows.

    Args:
        guided: the rows with guides.
        guides: what the image teacher sees at each patch of those ``(rows, 64, channels)``, in standard deviations.
    """

    images: Tensor
    targets: Tensor
    asked: Tensor
    guided: Tensor
    guides: Tensor


def draw(sources: dict[str, Source], bank: Tensor, batch: int) -> Batch:
    """A batch of views of all sources.

    Asked are ImageNet's names, first and in order, the batch's own, and a sample of the others. Were the batch's own
    left to the sample, most images would be taught by their neighbours' names alone.
    """
    total = sum(SHARES[name] for name in sources)
    picked = {
        name: torch.randint(len(source.pixels), (round(batch * SHARES[name] / total),))
        for name, source in sources.items()
    }
    own = torch.cat([source.names[picked[name]] for name, source in sources.items()])
    others = torch.cat([own[own >= 0], torch.randint(IMAGENET_CLASSES, len(bank), (SAMPLED_NAMES,))]).unique()
    asked = torch.cat([torch.arange(IMAGENET_CLASSES), others[others >= IMAGENET_CLASSES]])
    images: list[Tensor] = []
    targets: list[Tensor] = []
    guided, guides = [torch.empty(0, dtype=torch.long)], [torch.empty(0, PATCHES, sum(CHANNELS.values()))]
    scenery = sources["scenes"]
    for name, source in sources.items():
        chosen = picked[name]
        pixels, label = source.pixels[chosen], bank[source.names[chosen]]
        target = (label @ bank[asked].T / NAME_TEMPERATURE).softmax(1)
        if name == "scenes":
            view = scene_views(pixels)
            target = ask_both(source, chosen, label, bank, target)
        elif name == "photos":
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
        if source.guides is not None and (rows := guided_rows(source, chosen, name)).numel():
            view[rows], maps = guided_views(pixels[rows], source.guides, chosen[rows])
            guided.append(rows + sum(map(len, images)))
            guides.append(maps)
        images.append(view)
        targets.append(target)
    return Batch(torch.cat(images), torch.cat(targets), asked, torch.cat(guided), torch.cat(guides))


def guided_rows(source: Source, chosen: Tensor, name: str) -> Tensor:
    """The rows whose image has guides; of photographs not those into which another was pasted."""
    has = chosen < len(source.guides["deep"]) if source.guides else torch.zeros_like(chosen, dtype=torch.bool)
    has[: mixed_rows(len(chosen)) if name == "photos" else 0] = False
    return has.nonzero().flatten()


def guided_views(pixels: Tensor, guides: dict[str, Tensor], chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Views that keep every patch in its place but for mirroring, and the guides of each patch."""
    mirrored = torch.rand(len(pixels), 1, 1, 1) < 0.5
    images = F.interpolate(pixels.float() / 255, size=(PIXELS, PIXELS), mode="bilinear")
    maps = torch.cat(
        [guides["middle"][chosen], guides["deep"][chosen].repeat_interleave(2, 2).repeat_interleave(2, 3)], 1
    )
    images, maps = (torch.where(mirrored, x.flip(-1), x) for x in (images, maps))
    return restyle(jitter(images, 0.2), sketched=0.08, cartooned=0.08), maps.flatten(2).mT / STEPS_PER_DEVIATION


def mixed_rows(count: int) -> int:
    """How many images of a batch get a part of another."""
    return count // 3


def ask_both(source: Source, chosen: Tensor, label: Tensor, bank: Tensor, target: Tensor) -> Tensor:
    """Half of the target from what the image teacher saw, held to the label; all of it where there is none."""
    if source.logits is None or source.asked is None:
        return target
    place = source.asked[chosen]
    known = place >= 0
    named = (source.names[chosen[known]] >= 0)[:, None]
    seen = source.logits[place[known]].float() / TEACHER_TEMPERATURE
    held = (seen + named * (label[known] @ bank[:IMAGENET_CLASSES].T) / LABEL_TEMPERATURE).softmax(1)
    target = target.clone()
    target[known] *= 0.5 * named
    target[known, :IMAGENET_CLASSES] += torch.where(named, 0.5, 1.0) * held
    return target


def cut_and_mix(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of another image into a third of them, targets in proportion (CutMix, Yun et al. 2019)."""
    images, targets = images.clone(), targets.clone()
    for i in range(mixed_rows(len(images))):
        share = torch.rand(()).item() * 0.5
        side = max(1, round(PIXELS * share**0.5))
        top, left = (int(torch.randint(PIXELS - side + 1, ())) for _ in range(2))
        other = len(images) - 1 - i
        images[i, :, top : top + side, left : left + side] = images[other, :, top : top + side, left : left + side]
        part = side * side / PIXELS**2
        targets[i] = (1 - part) * targets[i] + part * targets[other]
    return images, targets
