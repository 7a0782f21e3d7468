"""Tensors that are expensive to compute and never change, kept in a folder of the site.

A cached file is named by the hash of everything it depends on and is written beside its place and renamed, so a reader
finds all of it or nothing. Image features are personal data: the folder is the site's own and its files are readable
by it alone.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

_FORMAT = "fedmvp/cache/v1"


def cache_key(kind: str, *parts: str) -> str:
    """Return the name of a cached file from everything its content depends on, as hex digits."""
    state = hashlib.sha256()
    for part in (_FORMAT, kind, *parts):
        encoded = part.encode()
        state.update(len(encoded).to_bytes(8, "big") + encoded)
    return state.hexdigest()


def cached(
    folder: Path | None, key: str, compute: Callable[[], dict[str, Tensor]], *, prefix: str
) -> dict[str, Tensor]:
    """Return tensors from the folder, or compute them and leave them there.

    Args:
        folder: the site's cache folder, made if absent; None computes every time.
        key: from `cache_key`.
        compute: makes the tensors; called where no readable file exists.
        prefix: a word at the start of the file name, for people.
    """
    if folder is None:
        return compute()
    path = folder / f"{prefix}-{key[:40]}.safetensors"
    if path.is_file():
        try:
            return load_file(str(path))
        except (SafetensorError, OSError):
            path.unlink(missing_ok=True)  # cut short by a full disk: worth no more than computing again
    tensors = compute()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, partial = tempfile.mkstemp(dir=folder, suffix=".partial")  # created readable by its owner alone
    os.close(descriptor)
    try:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, partial)
        Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)
    return tensors
