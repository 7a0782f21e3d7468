"""Write a public stand-in for a data set of domains: one set of photographs in four styles.

    python -m tools.studies.styled_domains --images cifar10/test --out styled --per-class 150

Settings for a study of domains are chosen on it, so that no image of the study's own data is looked at. The styles are
those of the towers' pre-training: photographs as they are, painted (smooth, few colours), cartoons (flat, outlined) and
sketches (dark edges on white). No photograph is in two styles.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fedmvp.data.dataset import images_in
from tools.pretrain.distil.views import cartoon, jitter, sketch

STYLES = ("photo", "painting", "cartoon", "sketch")
PIXELS = 64


def restyle(style: str, images: Tensor) -> Tensor:
    """Return images (n, 3, s, s) in [0, 1] in a style."""
    if style == "painting":
        smooth = F.avg_pool2d(images, 5, 1, 2, count_include_pad=False)
        return (jitter(smooth, 0.3) * 6).round() / 6
    if style == "cartoon":
        return cartoon(images).clamp(0, 1)
    if style == "sketch":
        return sketch(images).clamp(0, 1)
    return images


def main() -> None:
    """Write <out>/<style>/<class>/<number>.png."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--images", type=Path, required=True, help="a folder of class folders")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-class", type=int, default=150, help="images of each class in each style")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    chosen = np.random.default_rng(0)
    for folder in sorted(path for path in arguments.images.iterdir() if path.is_dir()):
        paths = sorted(images_in(folder))
        order = chosen.permutation(len(paths))[: arguments.per_class * len(STYLES)]
        for style, part in zip(STYLES, np.array_split(order, len(STYLES)), strict=True):
            target = arguments.out / style / folder.name
            target.mkdir(parents=True, exist_ok=True)
            with_size = [Image.open(paths[at]).convert("RGB").resize((PIXELS, PIXELS)) for at in part]
            pixels = torch.stack([torch.from_numpy(np.asarray(image).copy()) for image in with_size])
            styled = restyle(style, pixels.permute(0, 3, 1, 2).float() / 255)
            for number, image in zip(part, styled, strict=True):
                content = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
                Image.fromarray(content).save(target / f"{number:05d}.png")


if __name__ == "__main__":
    main()
