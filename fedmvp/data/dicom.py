"""DICOM images as a radiologist's screen would show them: rescaled, windowed, black where the file says black.

pydicom comes with the extra `dicom`. Nothing of a file's header is kept or printed but what its pixels need.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedmvp.data.dataset import DICOM_SUFFIXES
from fedmvp.errors import UserError
from fedmvp.extras import optional_module

_PREAMBLE_BYTES = 128
_MAGIC = b"DICM"


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its suffix or, where it has none (as archives write them), by its first bytes."""
    if path.suffix:
        return path.suffix.lower() in DICOM_SUFFIXES
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(_PREAMBLE_BYTES + len(_MAGIC))[_PREAMBLE_BYTES:] == _MAGIC


def read_dicom(path: Path, *, max_pixels: int) -> Image.Image:
    """Return the image of a DICOM file in RGB.

    Grey values pass through the rescale slope and intercept, then through the file's first window (linear, linear
    exact or sigmoid); without a window all values are spread over the range. MONOCHROME1 is inverted.

    Args:
        path: the file.
        max_pixels: larger images are refused before they are unpacked.

    Raises:
        UserError: pydicom is missing, or the file is no DICOM image, is too large, has several frames, or is
            compressed in a way that this machine cannot unpack.
    """
    pydicom = optional_module("pydicom", extra="dicom", purpose=f"DICOM image {path}")
    pixels = optional_module("pydicom.pixels", extra="dicom", purpose=f"DICOM image {path}")
    try:
        header = pydicom.dcmread(path)
    except FileNotFoundError:
        raise
    except Exception as failure:
        raise _unusable(path, f"is not a DICOM file ({type(failure).__name__})") from failure
    _require_one_frame(header, path, max_pixels)
    try:
        values = np.asarray(pixels.pixel_array(header))
        if values.ndim == 3:
            return Image.fromarray(_eight_bits(values, header)).convert("RGB")
        shown = _windowed(np.asarray(pixels.apply_modality_lut(values, header), dtype=np.float64), values, header)
    except Exception as failure:
        raise _unusable(path, f"cannot be unpacked ({type(failure).__name__})") from failure
    if header.get("PhotometricInterpretation", "") == "MONOCHROME1":
        shown = 1.0 - shown
    return Image.fromarray((shown * 255.0).round().astype(np.uint8)).convert("RGB")


def _require_one_frame(header: Any, path: Path, max_pixels: int) -> None:
    if "PixelData" not in header or "Rows" not in header or "Columns" not in header:
        raise _unusable(path, "holds no image")
    rows, columns, frames = int(header.Rows), int(header.Columns), int(header.get("NumberOfFrames", 1) or 1)
    if rows * columns > max_pixels:
        raise UserError(
            f"image {path} has {columns} x {rows} pixels, more than {max_pixels}",
            remedy="scale it down, or remove it",
        )
    if frames > 1:
        raise UserError(
            f"DICOM image {path} has {frames} frames; an image here is one frame",
            remedy="export the frames to use as files of their own, of the same patient",
        )


def _windowed(
    values: NDArray[np.float64], stored: NDArray[np.generic], header: Any
) -> NDArray[np.float64]:  # (rows, columns), 0 to 1
    """Grey values as brightness; DICOM PS3.3, C.11.2.1."""
    center, width = _first(header.get("WindowCenter")), _first(header.get("WindowWidth"))
    function = str(header.get("VOILUTFunction", "") or "LINEAR").upper()
    if center is None or width is None or width <= 0:
        return _spread(values, stored, header)
    if function == "SIGMOID":
        return np.asarray(1.0 / (1.0 + np.exp(-4.0 * (values - center) / width)))
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0.0, 1.0)
    if width <= 1:
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0)


def _spread(values: NDArray[np.float64], stored: NDArray[np.generic], header: Any) -> NDArray[np.float64]:
    """All values over the range from black to white; pixels that only pad the frame do not count."""
    padding = header.get("PixelPaddingValue")
    counted = values if padding is None else values[stored != int(padding)]
    if counted.size == 0 or not math.isfinite(low := float(counted.min())) or (high := float(counted.max())) <= low:
        return np.zeros_like(values)
    return np.clip((values - low) / (high - low), 0.0, 1.0)


def _eight_bits(values: NDArray[np.generic], header: Any) -> NDArray[np.uint8]:
    """Colour samples, 8 bits each; (rows, columns, 3)."""
    shift = max(0, int(header.get("BitsStored", 8)) - 8)
    return np.right_shift(values.astype(np.uint16), shift).astype(np.uint8)


def _first(value: Any) -> float | None:
    """A header's number, or the first of several."""
    if value is None or value == "":
        return None
    return float(value if isinstance(value, int | float | str) or not hasattr(value, "__getitem__") else value[0])


def _unusable(path: Path, why: str) -> UserError:
    return UserError(
        f"DICOM image {path} {why}",
        remedy="export it as an uncompressed DICOM or as a 16-bit PNG, or remove it from the data set",
    )
