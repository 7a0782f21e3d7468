"""From a name in the policy to a frozen backbone with weights.

Three sources: the embedded model, an open_clip tag (downloaded or already in its cache), a checkpoint file of the
site. The policy may pin the hash of the weights, so that every party is known to compute the same features.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedmvp.errors import UserError
from fedmvp.model.backbone import Backbone
from fedmvp.model.clip_library import open_clip
from fedmvp.model.compute import TowerOptions
from fedmvp.model.embedded import build_clip, embedded_weights, load_embedded
from fedmvp.model.supported import EMBEDDED_NAMES, require_supported

EMBEDDED_TAG = "embedded"


@dataclass(frozen=True)
class BackboneSpec:
    """Which backbone to load.

    Attributes:
        name: an embedded model such as `fedmvp-tiny`, or an open_clip architecture.
        pretrained: `embedded`, an open_clip tag, or empty where a checkpoint is given.
        sha256: expected state hash, 64 hex digits, or empty.
        checkpoint: a local file with weights; wins over a download, while the tag still decides activation and
            normalisation.
    """

    name: str
    pretrained: str = ""
    sha256: str = ""
    checkpoint: Path | None = None


def load_backbone(
    spec: BackboneSpec, *, device: torch.device | str = "cpu", options: TowerOptions | None = None
) -> Backbone:
    """Load a backbone with its weights, frozen, in evaluation mode.

    Args:
        spec: which.
        device: where the tower runs.
        options: how it runs.

    Raises:
        UserError: unknown or unsupported architecture, unknown tag, weights that cannot be fetched or read, weights of
            another architecture, or a state hash that is not the pinned one.
    """
    place = _Place(device, options)
    backbone = _embedded(spec, place) if spec.name in EMBEDDED_NAMES else _from_open_clip(spec, place)
    if spec.sha256 and spec.sha256 != backbone.state_hash():
        raise UserError(
            f"the weights of backbone '{spec.name}' have hash {backbone.state_hash()}, the policy pins {spec.sha256}",
            remedy="use the weights that the consortium agreed on ([model] backbone_sha256)",
        )
    return backbone


def random_backbone(
    model_config: dict[str, Any],
    *,
    seed: int,
    name: str = "random",
    device: torch.device | str = "cpu",
    options: TowerOptions | None = None,
) -> Backbone:
    """Build a backbone with random weights: for shape checks and tests, never for a study.

    Args:
        model_config: open_clip's model configuration.
        seed: seed of the weights; the caller's random state is left as it was.
        name: the name shown to people.
        device: where the tower runs.
        options: how it runs.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_clip(model_config)
    return _wrap(model, name=name, tag_config={}, model_config=model_config, place=_Place(device, options))


@dataclass(frozen=True)
class _Place:
    """Where and how the tower runs."""

    device: torch.device | str
    options: TowerOptions | None


def _embedded(spec: BackboneSpec, place: _Place) -> Backbone:
    if spec.pretrained not in {"", EMBEDDED_TAG}:
        raise UserError(
            f"backbone '{spec.name}' has no weights called '{spec.pretrained}'",
            remedy=f'set [model] pretrained = "{EMBEDDED_TAG}"',
        )
    model, model_config = load_embedded(spec.checkpoint or embedded_weights(spec.name))
    return _wrap(model, name=spec.name, tag_config=model_config, model_config=model_config, place=place)


def _from_open_clip(spec: BackboneSpec, place: _Place) -> Backbone:
    model_config = require_supported(spec.name)
    tag_config = _tag_config(spec)
    weights = spec.checkpoint or _fetch(spec, tag_config)
    model = build_clip(model_config, quick_gelu=bool(tag_config.get("quick_gelu", False)) or None)
    _read_weights(model, weights, spec.name)
    return _wrap(model, name=spec.name, tag_config=tag_config, model_config=model_config, place=place)


def _tag_config(spec: BackboneSpec) -> dict[str, Any]:
    """Return what open_clip knows of a tag: address, activation, normalisation."""
    if not spec.pretrained:
        if spec.checkpoint is None:
            raise UserError(
                f"backbone '{spec.name}' has no weights: neither a pretrained tag nor a checkpoint is given",
                remedy="set [model] pretrained in the policy, or [compute] checkpoint in this site's configuration",
            )
        return {}
    tag_config: dict[str, Any] = open_clip.get_pretrained_cfg(spec.name, spec.pretrained)
    if not tag_config:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(spec.name)) or "none"
        raise UserError(
            f"backbone '{spec.name}' has no pretrained tag '{spec.pretrained}'",
            remedy=f"choose one of its tags ({tags}), or give a local checkpoint",
        )
    return tag_config


def _fetch(spec: BackboneSpec, tag_config: dict[str, Any]) -> Path:
    try:
        return Path(open_clip.download_pretrained(tag_config))
    except Exception as failure:  # the hub client, urllib and the file system each have errors of their own
        raise UserError(
            f"weights '{spec.pretrained}' of backbone '{spec.name}' could not be downloaded ({type(failure).__name__})",
            remedy="allow the download once, or copy the file here and set [compute] checkpoint to its path",
        ) from failure


def _read_weights(model: nn.Module, weights: Path, name: str) -> None:
    if not weights.is_file():
        raise UserError(f"checkpoint {weights} does not exist", remedy="correct [compute] checkpoint")
    try:
        open_clip.load_checkpoint(model, str(weights))
    except (
        Exception
    ) as failure:  # a damaged file fails inside pickle, zip, safetensors or load_state_dict, each its way
        reason = (str(failure).splitlines() or [type(failure).__name__])[0][:160]
        raise UserError(
            f"{weights} does not hold the weights of '{name}': {reason}",
            remedy="give a checkpoint of the architecture named in the policy, as open_clip writes it",
        ) from failure


def _wrap(
    model: nn.Module, *, name: str, tag_config: dict[str, Any], model_config: dict[str, Any], place: _Place
) -> Backbone:
    tokenizer = open_clip.SimpleTokenizer(context_length=model_config["text_cfg"].get("context_length", 77))
    return Backbone(
        model,
        tokenizer,
        name=name,
        image_mean=tag_config.get("mean", open_clip.OPENAI_DATASET_MEAN),
        image_std=tag_config.get("std", open_clip.OPENAI_DATASET_STD),
        device=place.device,
        options=place.options,
    )
