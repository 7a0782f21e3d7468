"""From image files to one uint8 tensor at the backbone's size: decoded in threads, resized and cropped as for CLIP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fedmvp.data.dataset import ImageDataset
from fedmvp.data.dicom import is_dicom, read_dicom
from fedmvp.errors import UserError

MAX_IMAGE_PIXELS = 64_000_000
"""Larger files are refused before they are decoded: a small file can unfold to gigabytes."""

_REPORT_EVERY_IMAGES = 64


def load_images(
    dataset: ImageDataset,
    image_size: int,
    *,
    threads: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Decode a dataset.

    Args:
        dataset: checked paths and labels.
        image_size: side of the square result, pixels.
        threads: decoding threads, at least 1.
        progress: called with (images done, images in all), and once at the end.

    Returns:
        Images, uint8 (n, 3, image_size, image_size), and labels, int64 (n,). Normalisation is the backbone's.

    Raises:
        UserError: a file that is missing or not an image, with its path.
    """
    images = torch.empty((len(dataset), 3, image_size, image_size), dtype=torch.uint8)
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        for done, image in enumerate(pool.map(lambda path: decode_image(path, image_size), dataset.paths)):
            images[done] = image
            if progress is not None and done % _REPORT_EVERY_IMAGES == 0:
                progress(done, len(dataset))
    if progress is not None:
        progress(len(dataset), len(dataset))
    return images, torch.tensor(dataset.labels, dtype=torch.int64)


def decode_image(path: Path, image_size: int) -> Tensor:
    """Return one image as uint8 (3, image_size, image_size).

    The shorter side is resized (bicubic) and the centre cropped; orientation tags are applied; grey and palette images
    become RGB and transparent parts white. DICOM files need the extra `dicom` and are windowed as they ask.

    Raises:
        UserError: the file is missing, is not an image, is cut short or is too large.
    """
    try:
        if is_dicom(path):
            return _fit(read_dicom(path, max_pixels=MAX_IMAGE_PIXELS), image_size)
        with Image.open(path) as opened:
            if opened.width * opened.height > MAX_IMAGE_PIXELS:
                raise UserError(
                    f"image {path} has {opened.width} x {opened.height} pixels, more than {MAX_IMAGE_PIXELS}",
                    remedy="scale it down, or remove it",
                )
            picture = _to_rgb(ImageOps.exif_transpose(opened))
    except FileNotFoundError as failure:
        raise UserError(
            f"image {path} does not exist", remedy="restore it, or remove it from the data set"
        ) from failure
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as failure:
        raise UserError(
            f"image {path} cannot be decoded ({type(failure).__name__})", remedy="replace the file, or remove it"
        ) from failure
    return _fit(picture, image_size)


def _fit(picture: Image.Image, image_size: int) -> Tensor:
    """Resize the shorter side and crop the centre; (3, image_size, image_size)."""
    fitted = ImageOps.fit(picture, (image_size, image_size), method=Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(fitted).copy()).permute(2, 0, 1)


def decode_images(paths: Sequence[Path], image_size: int) -> Tensor:
    """Return a few images as uint8 (n, 3, image_size, image_size); errors as in `decode_image`."""
    return torch.stack([decode_image(path, image_size) for path in paths])


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in {"RGBA", "LA", "PA"} or "transparency" in picture.info:
        layers = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    if picture.mode in {"I", "I;16", "I;16B", "F"}:
        return _stretch(picture)
    return picture.convert("RGB")


def _stretch(picture: Image.Image) -> Image.Image:
    """Scale deep grey values (16-bit radiographs) to all of eight bits; a plain conversion would clip them."""
    values = np.asarray(picture, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) * 255.0 if high > low else np.zeros_like(values)
    return Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")
