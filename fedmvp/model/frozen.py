"""What is frozen for each image: what the tower says of it, and the prompted feature at the public start.

Each stage says how its rows are laid out, what they depend on, and how they are computed. Where rows are kept is not
known here.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from fedmvp import __version__
from fedmvp.model.cache import cache_key
from fedmvp.model.prompted import PromptedModel, summary_identity
from fedmvp.model.rows import ByteRows, RowLayout

MIRRORED = "mirrored"
"""The zero-shot feature of the mirrored image; becomes part of `target`."""

ANCHOR = "anchor"

_CONTENT = "rows/v1"
"""To be changed with the code that computes rows: a cache must not mix what old and new code say."""


def summarise_images(model: PromptedModel, images: Tensor) -> dict[str, Tensor]:
    """Run the tower over uint8 images (b, 3, s, s) and return what is frozen of them, without the anchor, float32."""
    backbone = model.backbone
    pixels = backbone.normalise(images)
    part = model.summarise(pixels)
    if model.needs_mirrored_view:
        part[MIRRORED] = backbone.encode_images(pixels.flip(-1))
    return part


def with_target(part: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the mean of both views in place of the mirrored one, where there is one."""
    if MIRRORED not in part:
        return part
    rest = {name: value for name, value in part.items() if name != MIRRORED}
    return {**rest, "target": (part["zero_shot"] + part[MIRRORED]) / 2}


class SummaryStage:
    """What the tower says of an image.

    Args:
        model: the prompted model.
        preprocessing: what makes an image file the tower's input, as its source says.
    """

    def __init__(self, model: PromptedModel, preprocessing: str) -> None:
        self._model = model
        shapes = dict(model.summary_shapes)
        if model.needs_mirrored_view:
            shapes[MIRRORED] = shapes["zero_shot"]
        self.layout = RowLayout(tuple(shapes.items()))
        backbone = model.backbone
        key = cache_key(
            "summary",
            _CONTENT,
            __version__,
            backbone.name,
            backbone.state_hash(),
            backbone.precision,
            preprocessing,
            f"size {backbone.image_size}, mean {backbone.image_mean}, deviation {backbone.image_std}",
            summary_identity(model.config),
            self.layout.identity,
        )
        self.identity = bytes.fromhex(key)

    def compute(self, images: Tensor) -> ByteRows:
        """Return the rows of uint8 images (b, 3, s, s)."""
        return self.layout.pack(summarise_images(self._model, images))


class AnchorStage:
    """The prompted feature of an image at the public initial parameters, which the exact start is measured from.

    Args:
        model: the prompted model.
        summary: the stage it is computed from.
    """

    def __init__(self, model: PromptedModel, summary: SummaryStage) -> None:
        self._model = model
        self._summary = summary.layout
        self.layout = RowLayout(((ANCHOR, (model.backbone.joint_width,)),))
        conditioning = model.bank.conditioning.detach().cpu().contiguous().numpy()
        key = cache_key(
            "anchor",
            _CONTENT,
            summary.identity.hex(),
            repr(model.config),
            f"{conditioning.shape} {hashlib.sha256(conditioning.data).hexdigest()}",
            self.layout.identity,
        )
        self.identity = bytes.fromhex(key)

    def compute(self, summaries: ByteRows) -> ByteRows:
        """Return the rows of images whose summaries are given."""
        part = self._summary.unpack(torch.from_numpy(summaries).to(self._model.backbone.device))
        return self.layout.pack({ANCHOR: self._model.anchor(part)})
