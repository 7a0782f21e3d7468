"""Gather the public sources into one corpus folder, with the hash of every source file.

Responsible for reading the original files; knows nothing of training. No MNIST image, and no image derived
from MNIST, is read here: the demo's digits stay unseen.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import re
import shutil
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits

NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
EMOJI_PIXELS = 40
GLYPH_PIXELS = 48
# Colour variations of one drawing would outweigh all other concepts.
SKIN_TONE = re.compile(r"(skin-tone|-(light|medium|dark|medium-light|medium-dark)(-|$))")
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Fonts whose characters are pictures or are unreadable as digits.
PICTURE_FONTS = re.compile(
    r"(symbol|dingbat|emoji|wingding|icons|barcode|braille|music|cypher|encrypt|bats)", re.IGNORECASE
)


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def render_emoji(archive: Path) -> tuple[list[bytes], list[str]]:
    """PNG bytes (40 px, RGBA) and names of every drawing of one icon set, skin-tone variants left out."""
    import resvg_py  # noqa: PLC0415 (of the pretrain extra; everything else here serves without it)

    with tarfile.open(archive) as tar:
        member = tar.extractfile("package/icons.json")
        if member is None:
            raise SystemExit(f"{archive}: package/icons.json is missing")
        icons = json.load(member)
    width, height = icons.get("width", 16), icons.get("height", 16)
    pictures, names = [], []
    for name, icon in icons["icons"].items():
        if SKIN_TONE.search(name):
            continue
        box = f"0 0 {icon.get('width', width)} {icon.get('height', height)}"
        svg = f'<svg {NAMESPACES} viewBox="{box}">{icon["body"]}</svg>'
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=EMOJI_PIXELS, height=EMOJI_PIXELS))
        pictures.append(png)
        names.append(name.replace("-", " "))
    return pictures, names


def render_glyphs(fonts: list[Path]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Digits drawn in every readable font: images ``(n, 48, 48)`` white on black, labels ``(n,)``, fonts used."""
    images, labels, used = [], [], []
    for font_path in fonts:
        if PICTURE_FONTS.search(font_path.name):
            continue
        try:
            font = ImageFont.truetype(str(font_path), 40)
            drawn = [draw_digit(font, str(digit)) for digit in range(10)]
        except OSError:
            continue
        if any(image is None for image in drawn) or len({image.tobytes() for image in drawn if image is not None}) < 10:
            continue  # the font lacks some digits
        images.extend(drawn)
        labels.extend(range(10))
        used.append(font_path.name)
    return np.stack(images), np.asarray(labels, dtype=np.uint8), used


def draw_digit(font: ImageFont.FreeTypeFont, text: str) -> np.ndarray | None:
    """One digit scaled to fill 36 of 48 pixels, centred; None when the font draws nothing."""
    left, top, right, bottom = font.getbbox(text)
    if right - left < 2 or bottom - top < 4:
        return None
    canvas = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
    ImageDraw.Draw(canvas).text((2 - left, 2 - top), text, fill=255, font=font)
    scale = 36 / max(canvas.size)
    resized = canvas.resize(
        (max(1, round(canvas.width * scale)), max(1, round(canvas.height * scale))), Image.Resampling.BICUBIC
    )
    page = Image.new("L", (GLYPH_PIXELS, GLYPH_PIXELS))
    page.paste(resized, ((GLYPH_PIXELS - resized.width) // 2, (GLYPH_PIXELS - resized.height) // 2))
    pixels = np.asarray(page)
    return pixels if pixels.max() > 100 and 0.03 < (pixels > 100).mean() < 0.6 else None


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes (the layout of Fashion-MNIST)."""
    raw = gzip.decompress(path.read_bytes())
    n_dimensions = raw[3]
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(n_dimensions))
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * n_dimensions).reshape(shape)


def main() -> None:
    """Write corpus/cifar10.tar.gz, drawings.npz and sources.json."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--cifar10", type=Path, required=True, help="archive of CIFAR-10 as train/<class>/*, test/<class>/*"
    )
    parser.add_argument("--fashion-mnist", type=Path, required=True, help="folder of Debian's dataset-fashion-mnist")
    parser.add_argument(
        "--emoji",
        type=Path,
        nargs="+",
        required=True,
        help="npm archives of icon sets (noto, twemoji, fluent-emoji-flat)",
    )
    parser.add_argument("--fonts", type=Path, required=True, help="folder of open fonts")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)

    shutil.copyfile(arguments.cifar10, out / "cifar10.tar.gz")
    sources = {"cifar10.tar.gz": {"sha256": sha256(arguments.cifar10), "licence": "research use (Krizhevsky 2009)"}}
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        original = arguments.fashion_mnist / f"{part}-ubyte.gz"
        shutil.copyfile(original, out / original.name)
        sources[f"fashion-mnist/{original.name}"] = {"sha256": sha256(original), "licence": "MIT"}

    pictures, names = [], []
    for archive in arguments.emoji:
        more, more_names = render_emoji(archive)
        pictures += more
        names += more_names
        sources[archive.name] = {"sha256": sha256(archive), "drawings": len(more)}
    fonts = sorted(p for p in arguments.fonts.rglob("*") if p.suffix.lower() in {".ttf", ".otf"})
    glyphs, glyph_labels, used = render_glyphs(fonts)
    for path in fonts:
        if path.name in used:
            sources[f"fonts/{path.name}"] = {"sha256": sha256(path)}
    scanned = load_digits()
    scans = (scanned.images * (255 / 16)).astype(np.uint8)
    sources["scikit-learn digits (UCI optdigits, test part)"] = {
        "sha256": hashlib.sha256(scans.tobytes()).hexdigest(),
        "licence": "CC BY 4.0",
    }

    offsets = np.cumsum([0] + [len(p) for p in pictures])
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        emoji_png=np.frombuffer(b"".join(pictures), dtype=np.uint8),
        emoji_offsets=offsets,
        emoji_names=np.asarray(names),
        glyphs=glyphs,
        glyph_labels=glyph_labels,
        scans=scans,
        scan_labels=scanned.target.astype(np.uint8),
    )
    (out / "drawings.npz").write_bytes(buffer.getvalue())
    (out / "sources.json").write_text(json.dumps(sources, indent=1, sort_keys=True) + "\n")
    print(f"emoji {len(names)}, names {len(set(names))}, fonts {len(used)}, glyphs {len(glyphs)}, scans {len(scans)}")


if __name__ == "__main__":
    main()
