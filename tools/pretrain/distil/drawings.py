"""Gather drawings with names: icon sets from npm, clip art in the public domain from Debian.

    python -m tools.pretrain.distil.drawings --icons ARCHIVE... --clip-art FOLDER --out CORPUS

Writes ``drawings.pt`` (``pixels (n, 4, 64, 64)`` uint8 with transparency last, names, kinds) and the hash of every
source to ``drawings.json``. A drawing is kept only under a licence that is neither share-alike nor copyleft.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tools.pretrain.collect import NAMESPACES, SKIN_TONE, sha256
from tools.pretrain.distil.words import known_words

DRAWING_PIXELS = 64
# What one-coloured sets draw besides things: arrows, letters, brands, states of a user interface.
INTERFACE = re.compile(
    r"\b(arrows?|alpha|align|border|brand|chevron|caret|circle|code|database|file|filter|format|folder|input|layout|"
    r"letter|link|list|math|menu|number|numeric|off|outline|plus|minus|relation|server|set|share|sort|square|text|"
    r"user|view|vector|wifi|window|zoom|signal|table|grid|column|row|transfer|gesture|script|badge|message|mail|"
    r"calendar|cloud upload|cloud download|check|x|a|b|c|size|keyboard|logo|symbol|sign|flag|clock|o)\b"
)
FLAGS = re.compile(r"^(flag|regional|keycap|input|.*oclock|.*thirty|.*button|.*arrow|squared|circled|negative)\b")
ALLOWED_LICENCES = frozenset({"MIT", "Apache-2.0", "ISC", "CC-BY-4.0", "CC-BY-3.0", "CC0-1.0"})
CLIP_ART_FOLDERS = (
    "animals",
    "buildings",
    "containers",
    "education",
    "electronics",
    "food",
    "office",
    "people",
    "plants",
    "recreation",
    "science",
    "tools",
    "transportation",
    "unsorted",
)
STYLE_WORDS = {"outline", "filled", "fill", "variant", "alt", "bold", "duotone", "line", "01", "02", "03"}


@dataclass
class Drawings:
    """Rendered drawings so far: RGBA pixels, a name and a kind ("colour", "line" or "clip art") each."""

    pixels: list[np.ndarray] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def add(self, svg: str, name: str, kind: str) -> bool:
        """Render and keep one drawing; False where it cannot be drawn or shows nothing."""
        pixels = render(svg)
        if pixels is None or (pixels[3] > 40).mean() < 0.02:
            return False
        self.pixels.append(pixels)
        self.names.append(name)
        self.kinds.append(kind)
        return True


def render(svg: str) -> np.ndarray | None:
    """Draw an SVG into ``(4, 64, 64)``, centred, its longer side filling the square; None if it is not drawable."""
    import resvg_py  # noqa: PLC0415 (of the pretrain extra)

    try:
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=DRAWING_PIXELS))
        picture = Image.open(io.BytesIO(png)).convert("RGBA")
    except (ValueError, OSError, RuntimeError):
        return None
    box = picture.getchannel("A").getbbox()
    if box is None:
        return None
    picture = picture.crop(box)
    picture.thumbnail((DRAWING_PIXELS, DRAWING_PIXELS), Image.Resampling.BICUBIC)
    page = Image.new("RGBA", (DRAWING_PIXELS, DRAWING_PIXELS))
    page.paste(picture, ((DRAWING_PIXELS - picture.width) // 2, (DRAWING_PIXELS - picture.height) // 2))
    return np.asarray(page).transpose(2, 0, 1).copy()


def add_icon_set(drawings: Drawings, archive: Path, words: frozenset[str]) -> dict[str, object]:
    """Draw one npm archive of icons; returns its record: hash, licence, author, number of drawings."""
    with tarfile.open(archive) as tar:
        icons, info = (json.load(tar.extractfile(f"package/{part}.json")) for part in ("icons", "info"))  # type: ignore[arg-type]
    licence = info["license"].get("spdx", "")
    if licence not in ALLOWED_LICENCES:
        raise SystemExit(f"{archive}: licence {licence!r} is not one of {sorted(ALLOWED_LICENCES)}")
    colourful = bool(info.get("palette"))
    width, height = icons.get("width", 16), icons.get("height", 16)
    count, seen = 0, set()
    for key, icon in icons["icons"].items():
        name = icon_name(key, words, colourful=colourful)
        if name is None or (not colourful and name in seen):
            continue
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {icon.get('width', width)} {icon.get('height', height)}"
        svg = f'<svg {NAMESPACES} viewBox="{box}">{icon["body"].replace("currentColor", "#000")}</svg>'
        if drawings.add(svg, name, "colour" if colourful else "line"):
            seen.add(name)
            count += 1
    return {"sha256": sha256(archive), "licence": licence, "author": info["author"]["name"], "drawings": count}


def icon_name(key: str, words: frozenset[str], *, colourful: bool) -> str | None:
    """The words of an icon's key, or None for skin tones, flags and, in one-coloured sets, what is not a thing."""
    if SKIN_TONE.search(key) or re.search(r"-(tone[1-5]|dark|light|medium)$", key):
        return None
    name = key.replace("-", " ")
    if colourful:
        return None if FLAGS.match(name) else name
    pieces = [piece for piece in name.split() if piece not in STYLE_WORDS]
    if not pieces or INTERFACE.search(" ".join(pieces)) or not (pieces[0] in words and pieces[-1] in words):
        return None
    return " ".join(pieces)


def add_clip_art(drawings: Drawings, folder: Path, words: frozenset[str]) -> int:
    """Draw the clip art of Debian's ``openclipart-svg``; returns how many drawings were kept."""
    count = 0
    for part in CLIP_ART_FOLDERS:
        for path in sorted((folder / part).rglob("*.svg")):
            stem = re.sub(r"[^a-z]+", " ", path.stem.lower()).split()
            parent = path.parent.name.rstrip("s").replace("_", " ")
            pieces = [piece for piece in stem if piece in words and len(piece) > 2]
            name = " ".join(pieces[:3]) if pieces else parent
            if name != "unsorted":
                count += drawings.add(path.read_text(encoding="utf-8", errors="replace"), name, "clip art")
    return count


def main() -> None:
    """Write drawings.pt and drawings.json."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--icons", type=Path, nargs="+", required=True, help="npm archives of Iconify icon sets")
    parser.add_argument("--clip-art", type=Path, required=True, help="folder of Debian's openclipart-svg")
    parser.add_argument("--clip-art-package", type=Path, required=True, help="its .deb, for the record")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    words, drawings, record = known_words(), Drawings(), {}
    for archive in arguments.icons:
        record[archive.name] = add_icon_set(drawings, archive, words)
        print(archive.name, record[archive.name], flush=True)
    count = add_clip_art(drawings, arguments.clip_art, words)
    record[arguments.clip_art_package.name] = {
        "sha256": sha256(arguments.clip_art_package),
        "licence": "public domain",
        "author": "Open Clip Art Library",
        "drawings": count,
    }
    print("clip art", count, flush=True)
    torch.save(
        {"pixels": torch.from_numpy(np.stack(drawings.pixels)), "names": drawings.names, "kinds": drawings.kinds},
        arguments.out / "drawings.pt",
    )
    (arguments.out / "drawings.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
