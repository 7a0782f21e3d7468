"""From image files to one uint8 tensor at the backbone's size: decoded in threads, resized and cropped as for CLIP."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BufferedReader
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fedmvp.data.dataset import ImageDataset
from fedmvp.data.dicom import is_dicom, read_dicom
from fedmvp.errors import UserError

MAX_IMAGE_PIXELS = 64_000_000
"""Larger files are refused before they are decoded: a small file can unfold to gigabytes."""

PREPROCESSING = f"Pillow {PIL.__version__}: shorter side bicubic, centre crop, RGB on white, DICOM windowed"
"""Names what `decode_image` does, for caches; to be changed with it."""

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


def file_digest(path: Path) -> bytes:
    """Return the SHA-256 of an image file.

    Raises:
        UserError: the file is missing or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as failure:
        raise _unusable(path, failure) from failure


def decode_image(path: Path, image_size: int, *, digest: bytes | None = None) -> Tensor:
    """Return one image as uint8 (3, image_size, image_size).

    The shorter side is resized (bicubic) and the centre cropped; orientation tags are applied; grey and palette images
    become RGB and transparent parts white. DICOM files need the extra `dicom` and are windowed as they ask.

    Args:
        path: the file.
        image_size: side of the result, pixels.
        digest: what `file_digest` said of it earlier; None takes it as it is.

    Raises:
        UserError: the file is missing, is not an image, is cut short, is too large, or was changed.
    """
    try:
        with path.open("rb") as file:
            if digest is not None:
                _require_unchanged(file, path, digest)
            picture = _read(file, path)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as failure:
        raise _unusable(path, failure) from failure
    fitted = ImageOps.fit(picture, (image_size, image_size), method=Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(fitted).copy()).permute(2, 0, 1)


def decode_images(paths: Sequence[Path], image_size: int) -> Tensor:
    """Return a few images as uint8 (n, 3, image_size, image_size); errors as in `decode_image`."""
    return torch.stack([decode_image(path, image_size) for path in paths])


def _read(file: BufferedReader, path: Path) -> Image.Image:
    if is_dicom(path):
        return read_dicom(path, max_pixels=MAX_IMAGE_PIXELS)
    with Image.open(file) as opened:
        if opened.width * opened.height > MAX_IMAGE_PIXELS:
            raise UserError(
                f"image {path} has {opened.width} x {opened.height} pixels, more than {MAX_IMAGE_PIXELS}",
                remedy="scale it down, or remove it",
            )
        return _to_rgb(ImageOps.exif_transpose(opened))


def _require_unchanged(file: BufferedReader, path: Path, digest: bytes) -> None:
    """Refuse another image under the name of one whose features are known."""
    if hashlib.file_digest(file, "sha256").digest() != digest:
        raise UserError(f"image {path} was changed while this run was using it", remedy="start the command again")
    file.seek(0)


def _unusable(path: Path, failure: Exception) -> UserError:
    if isinstance(failure, FileNotFoundError):
        return UserError(f"image {path} does not exist", remedy="restore it, or remove it from the data set")
    return UserError(
        f"image {path} cannot be decoded ({type(failure).__name__})", remedy="replace the file, or remove it"
    )


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
