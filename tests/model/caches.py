"""A site's sealed cache in a test's folder, and ways to break it."""

from __future__ import annotations

from pathlib import Path

from fedmvp.model.feature_cache import FeatureCache, open_feature_cache


def sealed(folder: Path, *, key: str = "cache.key", max_gb: float = 1.0, dataset: str = "ward") -> FeatureCache:
    """The cache in `folder / "cache"`, under the key file of this name beside it."""
    cache = open_feature_cache(folder / "cache", folder / key, max_gb=max_gb, dataset=dataset)
    assert cache is not None
    return cache


def sealed_files(folder: Path) -> list[Path]:
    """The finished files of that cache, oldest name first."""
    return sorted((folder / "cache").glob("*.sealed"))
