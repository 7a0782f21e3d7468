from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedmvp.data.dataset import image_folder
from fedmvp.data.dicom import is_dicom
from fedmvp.data.images import decode_image, load_images
from fedmvp.errors import UserError

RAMP = np.arange(64, dtype=np.uint16).reshape(8, 8) * 64  # 0 to 4032, twelve bits


def write(path: Path, values: np.ndarray[Any, Any] = RAMP, **elements: Any) -> Path:
    """A minimal DICOM file of a grey (or colour) image."""
    pydicom = pytest.importorskip("pydicom")
    uid = pytest.importorskip("pydicom.uid")
    header = pydicom.Dataset()
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID = "1.2.3"
    header.SOPClassUID = uid.SecondaryCaptureImageStorage
    header.Rows, header.Columns = values.shape[:2]
    header.SamplesPerPixel = 3 if values.ndim == 3 else 1
    header.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    if values.ndim == 3:
        header.PlanarConfiguration = 0
    header.BitsAllocated = values.dtype.itemsize * 8
    header.BitsStored = elements.pop("BitsStored", header.BitsAllocated)
    header.HighBit = header.BitsStored - 1
    header.PixelRepresentation = int(np.issubdtype(values.dtype, np.signedinteger))
    header.PixelData = values.tobytes()
    for name, value in elements.items():
        setattr(header, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)
    return path


def grey(path: Path) -> np.ndarray[Any, Any]:
    return decode_image(path, 8)[0].numpy()


def test_a_window_shows_what_lies_inside_it(tmp_path: Path) -> None:
    shown = grey(write(tmp_path / "a.dcm", WindowCenter=2000, WindowWidth=1001))
    outside_below, outside_above = RAMP <= 1499, RAMP > 2500
    assert (shown[outside_below] == 0).all()
    assert (shown[outside_above] == 255).all()
    expected = ((RAMP - 1999.5) / 1000 + 0.5) * 255
    inside = ~(outside_below | outside_above)
    assert np.abs(shown[inside] - expected[inside]).max() <= 0.5


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_every_window_function_agrees_with_the_librarys_own(function: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", BitsStored=12, WindowCenter=["1800", "7"], WindowWidth=["900", "1"])
    pydicom, pixels = pytest.importorskip("pydicom"), pytest.importorskip("pydicom.pixels")
    header = pydicom.dcmread(path)
    header.VOILUTFunction = function
    header.save_as(path)
    theirs = pixels.apply_windowing(RAMP, header) / 4095 * 255
    assert np.abs(grey(path) - theirs).max() <= 1


def test_slope_and_intercept_come_before_the_window(tmp_path: Path) -> None:
    scaled = {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 3000, "WindowWidth": 2001}
    plain = {"WindowCenter": 2000, "WindowWidth": 1001}
    difference = grey(write(tmp_path / "a.dcm", **scaled)).astype(int) - grey(write(tmp_path / "b.dcm", **plain))
    assert np.abs(difference).max() <= 1


def test_without_a_window_all_values_are_spread_and_padding_is_not_counted(tmp_path: Path) -> None:
    shown = grey(write(tmp_path / "a.dcm"))
    assert (shown.min(), shown.max()) == (0, 255)
    padded = RAMP.astype(np.int16)
    padded[0, 0] = -2000
    shown = grey(write(tmp_path / "b.dcm", padded, PixelPaddingValue=-2000))
    assert shown[0, 0] == 0
    assert shown[0, 1] == 0  # 64, the smallest value that counts
    constant = np.full((8, 8), 7, dtype=np.uint16)
    assert (grey(write(tmp_path / "c.dcm", constant)) == 0).all()


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    shown = grey(write(tmp_path / "a.dcm")).astype(int)
    inverted = grey(write(tmp_path / "b.dcm", PhotometricInterpretation="MONOCHROME1")).astype(int)
    assert np.abs(shown + inverted - 255).max() <= 1


def test_colour_images_keep_their_colours(tmp_path: Path) -> None:
    red = np.tile(np.array([200, 10, 20], dtype=np.uint8), (8, 8, 1))
    assert decode_image(write(tmp_path / "a.dcm", red), 8)[:, 0, 0].tolist() == [200, 10, 20]


def test_a_folder_may_mix_dicom_and_other_images(tmp_path: Path) -> None:
    write(tmp_path / "sick" / "a.dcm")
    write(tmp_path / "well" / "b.DCM")
    images, labels = load_images(image_folder(tmp_path, ("sick", "well")), 8)
    assert images.shape == (2, 3, 8, 8)
    assert labels.tolist() == [0, 1]


def test_a_file_without_a_suffix_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    assert is_dicom(write(tmp_path / "IM000001"))
    (tmp_path / "notes").write_text("no image")
    assert not is_dicom(tmp_path / "notes")
    assert not is_dicom(tmp_path / "missing")
    assert not is_dicom(tmp_path / "picture.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"NumberOfFrames": 2, "PixelData": RAMP.tobytes() * 2}, "has 2 frames"),
        ({"PixelData": RAMP.tobytes()[:50]}, "cannot be unpacked"),
        ({"Rows": 20_000, "Columns": 20_000}, "20000 x 20000 pixels"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_remedy(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.dcm", **change)
    with pytest.raises(UserError, match=message) as caught:
        decode_image(path, 8)
    assert str(path) in caught.value.what
    assert caught.value.remedy


def test_a_file_that_is_no_dicom_or_is_missing_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    (tmp_path / "a.dcm").write_text("no image")
    with pytest.raises(UserError, match=r"a\.dcm is not a DICOM file"):
        decode_image(tmp_path / "a.dcm", 8)
    with pytest.raises(UserError, match=r"b\.dcm does not exist"):
        decode_image(tmp_path / "b.dcm", 8)


def test_dicom_without_its_extra_is_one_message_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.dcm").touch()
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError, match="needs the package pydicom") as caught:
        decode_image(tmp_path / "a.dcm", 8)
    assert "fedmvp[dicom]" in caught.value.remedy
