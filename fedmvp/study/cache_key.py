"""The key a site's cached features are sealed with: 32 random bytes beside its other keys, never sent.

A lost key costs computing time and nothing else; destroying it makes every cached feature unreadable at once.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from fedmvp.errors import ExitCode, UserError
from fedmvp.study.storage import read_private, write_private

KEY_BYTES = 32
CACHE_KEY_FILE = "cache.key"


@dataclass(frozen=True)
class CacheKey:
    """The secret that every sealed file's own key is derived from.

    Args:
        secret: 32 bytes; never shown.
    """

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise ValueError(f"a cache key has {KEY_BYTES} bytes, not {len(self.secret)}")


def load_cache_key(path: Path) -> CacheKey | None:
    """Read the key file, or make it where there is none.

    Args:
        path: the file, of mode 0600.

    Returns:
        The key; None where there is none and the folder refuses a new file, so that nothing can be cached.

    Raises:
        UserError: others could have read the file, or it holds no key.
    """
    if not path.exists():
        try:
            write_private(path, secrets.token_bytes(KEY_BYTES))
        except UserError:
            if not path.exists():  # otherwise another process was first, and its key is the one
                return None
    held = read_private(path, what="cache key")
    if len(held) != KEY_BYTES:
        raise UserError(
            f"{path} is not a cache key",
            remedy="remove it: a new one is made, and features are computed again",
            exit_code=ExitCode.IDENTITY,
        )
    return CacheKey(held)
