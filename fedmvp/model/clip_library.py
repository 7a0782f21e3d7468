"""open_clip, imported where torchvision is known to import: the one place from which fedmvp takes it."""

from __future__ import annotations

from fedmvp.model.torchvision_shim import import_torchvision

import_torchvision()

import open_clip  # noqa: E402
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer  # noqa: E402

__all__ = ["ResidualAttentionBlock", "VisionTransformer", "open_clip"]
