"""Random views of photographs and drawings, whole batches at a time, 64 px.

Photographs are few and small, so views go far: crops, colours, edges as in a pencil sketch, flat colours as in a
cartoon; drawings are put before photographs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

PIXELS = 64


def uniform(n: int, low: float, high: float) -> Tensor:
    """``(n, 1, 1, 1)`` numbers drawn evenly between two bounds."""
    return torch.rand(n, 1, 1, 1) * (high - low) + low


def warp(images: Tensor, *, scale: tuple[float, float], turn: float, bend: float = 0.0, padding: str) -> Tensor:
    """A random crop or shrinking, turn, mirroring and smooth bending of ``(n, c, h, w)`` to 64 px."""
    n = len(images)
    size = torch.exp(uniform(n, math.log(scale[0]), math.log(scale[1])).flatten())
    angle = (torch.rand(n) * 2 - 1) * turn * math.pi / 180
    wide = torch.exp((torch.rand(n) * 2 - 1) * 0.2)
    flip = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    room = (1 - size).abs()
    shift = (torch.rand(2, n) * 2 - 1) * room
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = [
        torch.stack([flip * cos * size * wide, -sin * size, shift[0]], -1),
        torch.stack([flip * sin * size * wide, cos * size, shift[1]], -1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), [n, 1, PIXELS, PIXELS], align_corners=False)
    if bend:
        waves = torch.randn(n, 2, 5, 5) * uniform(n, 0, bend)
        grid = grid + F.interpolate(waves, size=(PIXELS, PIXELS), mode="bilinear").permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def jitter(images: Tensor, strength: float) -> Tensor:
    """Random brightness, contrast and saturation; one in eight loses its colour."""
    n = len(images)
    images = images * uniform(n, 1 - strength, 1 + strength)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = (images - mean) * uniform(n, 1 - strength, 1 + strength) + mean
    grey = images.mean(1, keepdim=True)
    saturation = torch.where(torch.rand(n, 1, 1, 1) < 1 / 8, torch.zeros(()), uniform(n, 0.3, 1.6))
    tint = 1 + 0.15 * torch.randn(n, 3, 1, 1) * (saturation > 0)
    return (((images - grey) * saturation + grey) * tint).clamp(0, 1)


def sketch(images: Tensor) -> Tensor:
    """Dark edges on white, like a pencil drawing (Sobel's gradient of the brightness)."""
    grey = F.avg_pool2d(images.mean(1, keepdim=True), 3, 1, 1, count_include_pad=False)
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    steps = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), torch.stack([kernel, kernel.T])[:, None])
    edges = steps.square().sum(1, keepdim=True).sqrt()
    edges = edges / edges.amax((2, 3), keepdim=True).clamp(min=0.3)
    lines = ((edges - 0.12) * uniform(len(images), 1.5, 4)).clamp(0, 1)
    return (1 - lines * uniform(len(images), 0.5, 1)).expand(-1, 3, -1, -1)


def cartoon(images: Tensor) -> Tensor:
    """Few flat colours and dark outlines."""
    levels = uniform(len(images), 3, 6)
    flat = (F.avg_pool2d(images, 3, 1, 1, count_include_pad=False) * levels).round() / levels
    return flat * (sketch(images) * 0.6 + 0.4)


def restyle(images: Tensor, *, sketched: float, cartooned: float) -> Tensor:
    """A sketch or a cartoon of some images, noise on a few."""
    choice = torch.rand(len(images))
    images = images.clone()
    lined, flat = choice < sketched, (choice >= sketched) & (choice < sketched + cartooned)
    if lined.any():
        images[lined] = sketch(images[lined])
    if flat.any():
        images[flat] = cartoon(images[flat])
    noisy = torch.rand(len(images), 1, 1, 1) < 0.1
    return (images + noisy * 0.06 * torch.randn_like(images)).clamp(0, 1)


def photo_views(pixels: Tensor) -> Tensor:
    """Views of uint8 photographs ``(n, 3, h, w)``."""
    images = warp(pixels.float() / 255, scale=(0.5, 1.1), turn=10, padding="reflection")
    return restyle(jitter(images, 0.35), sketched=0.12, cartooned=0.1)


def scene_views(pixels: Tensor) -> Tensor:
    """Views of uint8 views of scenes, changed so little that what was said of them still holds; some as a drawing."""
    images = warp(pixels.float() / 255, scale=(0.85, 1.0), turn=5, padding="reflection")
    return restyle(jitter(images, 0.15), sketched=0.12, cartooned=0.1)


def drawing_views(pixels: Tensor, behind: Tensor) -> Tensor:
    """Views of uint8 drawings ``(n, 4, 64, 64)`` before white, a colour, or a photograph of ``behind``."""
    n = len(pixels)
    drawn = pixels.float() / 255
    drawn = warp(
        torch.cat([drawn[:, :3] * drawn[:, 3:], drawn[:, 3:]], 1),
        scale=(0.75, 1.7),
        turn=15,
        bend=0.06,
        padding="zeros",
    )
    kind = torch.rand(n, 1, 1, 1)
    page = torch.where(kind < 0.45, torch.ones(()), torch.rand(n, 3, 1, 1)).expand(-1, -1, PIXELS, PIXELS)
    scene = warp(behind.float() / 255, scale=(0.3, 1.0), turn=20, padding="reflection")
    page = torch.where(kind > 0.65, scene, page)
    return restyle(jitter(drawn[:, :3] + page * (1 - drawn[:, 3:]), 0.3), sketched=0.22, cartooned=0.05)


def line_views(pixels: Tensor) -> Tensor:
    """Views of one-coloured drawings by their transparency: strokes thicker or thinner, bent, in any ink."""
    n = len(pixels)
    ink = pixels[:, 3:].float() / 255
    width = torch.rand(n, 1, 1, 1)
    thick, thin = F.max_pool2d(ink, 3, 1, 1), F.avg_pool2d(-F.max_pool2d(-ink, 3, 1, 1) + ink, 3, 1, 1) / 2
    ink = torch.where(width < 0.2, thick, torch.where(width > 0.8, thin, ink))
    ink = warp(ink, scale=(0.75, 1.6), turn=15, bend=0.1, padding="zeros")
    kind = torch.rand(n, 1, 1, 1)
    dark = torch.rand(n, 1, 1, 1) * 0.4
    plain = 1 - ink * (1 - dark)
    coloured = torch.rand(n, 3, 1, 1) * (1 - ink) + torch.rand(n, 3, 1, 1) * ink
    return torch.where(kind < 0.7, plain, torch.where(kind < 0.8, 1 - plain, coloured)).clamp(0, 1)
