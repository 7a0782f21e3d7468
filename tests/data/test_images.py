from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedmvp.data import images as images_module
from fedmvp.data.dataset import ImageDataset
from fedmvp.data.images import decode_image, load_images
from fedmvp.errors import UserError


def save(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path)
    return path


def test_images_come_in_the_order_of_the_data_set_whatever_the_threads(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{n}.png", np.full((8, 8, 3), n, dtype=np.uint8)) for n in range(40)]
    dataset = ImageDataset(tuple(paths), tuple(n % 2 for n in range(40)), ("a", "b"), tmp_path)
    calls: list[tuple[int, int]] = []
    images, labels = load_images(dataset, 8, threads=4, progress=lambda done, total: calls.append((done, total)))
    assert images.shape == (40, 3, 8, 8)
    assert images.dtype == torch.uint8
    assert images[:, 0, 0, 0].tolist() == list(range(40))
    assert labels.tolist() == list(dataset.labels)
    assert calls[-1] == (40, 40)


def test_the_shorter_side_is_fitted_and_the_centre_kept(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = 255
    assert decode_image(save(tmp_path / "wide.png", wide), 8).float().mean() > 250


def test_grey_palette_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    grey = np.full((4, 4), 100, dtype=np.uint8)
    assert decode_image(save(tmp_path / "grey.png", grey), 4).unique().tolist() == [100]
    colour = np.tile(np.array([255, 0, 0], dtype=np.uint8), (4, 4, 1))
    assert decode_image(save(tmp_path / "palette.gif", colour, "P"), 4)[:, 0, 0].tolist() == [255, 0, 0]
    clear = np.zeros((4, 4, 4), dtype=np.uint8)
    assert decode_image(save(tmp_path / "clear.png", clear), 4).unique().tolist() == [255]


def test_a_sixteen_bit_image_keeps_its_contrast(tmp_path: Path) -> None:
    ramp = np.linspace(1000, 3000, 64).reshape(8, 8).astype(np.uint16)
    decoded = decode_image(save(tmp_path / "deep.png", ramp), 8)
    assert int(decoded.min()) == 0
    assert int(decoded.max()) == 255
    assert decoded[0].flatten().diff().min() >= 0


def test_the_orientation_tag_of_a_camera_is_applied(tmp_path: Path) -> None:
    top_white = np.zeros((8, 8, 3), dtype=np.uint8)
    top_white[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    Image.fromarray(top_white).save(tmp_path / "turned.png", exif=exif)
    decoded = decode_image(tmp_path / "turned.png", 8).float()
    assert decoded[:, 4:].mean() > 250
    assert decoded[:, :4].mean() < 5


@pytest.mark.parametrize("kind", ["missing", "text", "cut", "empty"])
def test_a_file_that_is_no_image_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    if kind == "text":
        path.write_text("these are words")
    elif kind == "empty":
        path.touch()
    elif kind == "cut":
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        save(path, noise)
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=str(path)) as caught:
        load_images(ImageDataset((path,), (0,), ("a",), tmp_path), 8)
    assert "remove it" in caught.value.remedy


def test_an_image_that_would_unfold_to_too_many_pixels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "large.png", np.zeros((20, 20, 3), dtype=np.uint8))
    monkeypatch.setattr(images_module, "MAX_IMAGE_PIXELS", 399)
    with pytest.raises(UserError, match="20 x 20 pixels"):
        decode_image(path, 8)
