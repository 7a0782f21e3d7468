"""Public tensors that are expensive to compute and never change, kept in the clear in a folder.

A cached file is named by the hash of everything it depends on and is written beside its place and renamed, so a reader
finds all of it or nothing. What is computed from images is personal and has no place here: see `feature_cache.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_FORMAT = "fedmvp/cache/v2"
_CHECK = "sha256"


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
    found = _load(path) if path.is_file() else None
    if found is not None:
        return found
    tensors = compute()
    with contextlib.suppress(OSError, SafetensorError):  # a full disk costs time only
        _save(folder, path, tensors)
    return tensors


def _load(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a file, or None where they are not those that were written."""
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            sound = (file.metadata() or {}).get(_CHECK) == _checksum(tensors)
    except (SafetensorError, OSError):
        return None
    return tensors if sound else None


def _checksum(tensors: dict[str, Tensor]) -> str:
    state = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        array = value.numpy()
        state.update(f"{name} {array.shape} {array.dtype} ".encode())
        state.update(array.tobytes())
    return state.hexdigest()


def _save(folder: Path, path: Path, tensors: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, partial = tempfile.mkstemp(dir=folder, suffix=".partial")  # created readable by its owner alone
    os.close(descriptor)
    try:
        public = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        save_file(public, partial, metadata={_CHECK: _checksum(public)})
        Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)
