"""Random views of a source's images, whole batches at a time on the device.

Every view is 32 px, three channels, values 0 to 1. Each source has its own ranges: photographs are cropped and
mirrored, written signs are slanted, thickened and bent but never mirrored.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

IMAGE_PIXELS = 32


def uniform(shape: tuple[int, ...], low: float, high: float, device: torch.device) -> torch.Tensor:
    """Numbers drawn evenly between two bounds."""
    return torch.rand(shape, device=device) * (high - low) + low


def warp(
    images: torch.Tensor,
    *,
    rotation: float,
    shear: float,
    scale: tuple[float, float],
    stretch: float,
    shift: float,
    elastic: float = 0.0,
    mirror: bool = False,
) -> torch.Tensor:
    """Sample ``(b, c, h, w)`` at 32 px through a random affine map and an optional smooth displacement."""
    n, device = len(images), images.device
    angle = uniform((n,), -rotation, rotation, device) * math.pi / 180
    slant = uniform((n,), -shear, shear, device)
    size = uniform((n,), *scale, device)
    wide = torch.exp(uniform((n,), -stretch, stretch, device))
    flip = torch.where(torch.rand(n, device=device) < 0.5, -1.0, 1.0) if mirror else torch.ones(n, device=device)
    cos, sin = torch.cos(angle), torch.sin(angle)
    row_x = torch.stack(
        [flip * cos * size * wide, (slant * cos - sin) * size, uniform((n,), -shift, shift, device)], -1
    )
    row_y = torch.stack(
        [flip * sin * size * wide, (slant * sin + cos) * size, uniform((n,), -shift, shift, device)], -1
    )
    grid = F.affine_grid(torch.stack([row_x, row_y], 1), [n, 1, IMAGE_PIXELS, IMAGE_PIXELS], align_corners=False)
    if elastic:
        coarse = torch.randn(n, 2, 5, 5, device=device) * uniform((n, 1, 1, 1), 0.0, elastic, device)
        bend = F.interpolate(coarse, size=(IMAGE_PIXELS, IMAGE_PIXELS), mode="bicubic", align_corners=True)
        grid = grid + bend.permute(0, 2, 3, 1)
    return F.grid_sample(
        images, grid, mode="bilinear", padding_mode="border" if mirror else "zeros", align_corners=False
    )


def vary_strokes(images: torch.Tensor) -> torch.Tensor:
    """Make strokes thicker, thinner or softer at random, on white-on-black ``(b, 1, h, w)``."""
    choice = torch.rand(len(images), 1, 1, 1, device=images.device)
    thick = F.max_pool2d(images, 3, 1, 1)
    thicker = F.max_pool2d(images, 5, 1, 2)
    thin = -F.max_pool2d(-images, 3, 1, 1)
    soft = F.avg_pool2d(images, 3, 1, 1)
    varied = torch.where(choice < 0.2, thick, images)
    varied = torch.where((choice >= 0.2) & (choice < 0.3), thicker, varied)
    varied = torch.where((choice >= 0.3) & (choice < 0.45), thin, varied)
    return torch.where((choice >= 0.45) & (choice < 0.6), soft, varied)


def colour_signs(images: torch.Tensor) -> torch.Tensor:
    """White on black for most, black on white and random colours for the rest: ``(b, 1, h, w)`` to three channels."""
    n, device = len(images), images.device
    ink, paper = torch.rand(n, 3, 1, 1, device=device), torch.rand(n, 3, 1, 1, device=device)
    kind = torch.rand(n, 1, 1, 1, device=device)
    coloured = paper + images * (ink - paper)
    grey = images.expand(-1, 3, -1, -1)
    return torch.where(kind < 0.65, grey, torch.where(kind < 0.85, 1 - grey, coloured))


def jitter(images: torch.Tensor, strength: float) -> torch.Tensor:
    """Random brightness, contrast, saturation and, for one in ten, grey."""
    n, device = len(images), images.device
    factor = lambda: uniform((n, 1, 1, 1), 1 - strength, 1 + strength, device)  # noqa: E731
    images = images * factor()
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * factor() + mean
    grey = images.mean(1, keepdim=True)
    saturation = torch.where(torch.rand(n, 1, 1, 1, device=device) < 0.1, torch.zeros((), device=device), factor())
    return ((images - grey) * saturation + grey).clamp(0, 1)


def erase(images: torch.Tensor, probability: float) -> torch.Tensor:
    """Grey out one random square of up to half the side."""
    n, device = len(images), images.device
    side = uniform((n, 1, 1), 0.1, 0.5, device) * (torch.rand(n, 1, 1, device=device) < probability)
    centre = torch.rand(n, 2, 1, 1, device=device)
    axis = torch.linspace(0, 1, IMAGE_PIXELS, device=device)
    inside = ((axis[None, None, :] - centre[:, 0]).abs() < side / 2) & (
        (axis[None, :, None] - centre[:, 1]).abs() < side / 2
    )
    return torch.where(inside[:, None], torch.full((), 0.45, device=device), images)


def view(name: str, pixels: torch.Tensor) -> torch.Tensor:
    """A random view ``(b, 3, 32, 32)`` of uint8 images of one named source."""
    images = pixels.float() / 255
    if name == "photos":
        warped = warp(images, rotation=6, shear=0.05, scale=(0.8, 1.05), stretch=0.1, shift=0.15, mirror=True)
        return jitter(warped, 0.2)
    if name == "clothes":
        warped = warp(images, rotation=8, shear=0.1, scale=(0.85, 1.1), stretch=0.1, shift=0.1, mirror=True)
        return erase(jitter(colour_signs(warped), 0.2), 0.25)
    if name == "emoji":
        colour, alpha = images[:, :3], images[:, 3:]
        flat = torch.rand(len(images), 3, 1, 1, device=images.device).round(decimals=1)
        flat = torch.where(torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5, torch.ones_like(flat), flat)
        drawn = colour * alpha + flat * (1 - alpha)
        warped = warp(drawn - flat, rotation=12, shear=0.1, scale=(0.8, 1.2), stretch=0.1, shift=0.15) + flat
        return jitter(warped, 0.2)
    if name == "glyphs":
        warped = warp(
            vary_strokes(images), rotation=15, shear=0.35, scale=(0.85, 1.35), stretch=0.25, shift=0.15, elastic=0.09
        )
        return colour_signs(warped)
    if name == "scans":
        large = F.interpolate(images, size=(24, 24), mode="bicubic", align_corners=False)
        large = torch.sigmoid(
            (F.pad(large, (4, 4, 4, 4)) - 0.45) * uniform((len(images), 1, 1, 1), 5, 14, images.device)
        )
        warped = warp(large, rotation=12, shear=0.25, scale=(0.85, 1.2), stretch=0.2, shift=0.12, elastic=0.07)
        return colour_signs(warped)
    raise ValueError(f"no augmentation is defined for the source {name!r}")
