"""The small CLIPs that ship with the package: how their files are written and read.

`NAME.json` is open_clip's model configuration (plus the normalisation of images and the data seen);
`NAME.safetensors` is the state of open_clip's CLIP in float16. CLIP's vocabulary has 49,408 rows and the sentences of a
small model use a part of them, so the token embedding is stored as the rows that were trained and their ids; every
other row is zero.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedmvp.errors import UserError
from fedmvp.model.clip_library import open_clip

_FOLDER = Path(__file__).parent / "embedded"
EMBEDDED_WEIGHTS = _FOLDER / "fedmvp-tiny.safetensors"

_EMBEDDING = "token_embedding.weight"
_ROWS = "token_embedding.rows"
_IDS = "token_embedding.ids"
_BUILD_KEYS = frozenset({"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale"})


def embedded_weights(name: str) -> Path:
    """The weights file of an embedded model, by its name in the policy."""
    return _FOLDER / f"{name}.safetensors"


def embedded_data(name: str) -> tuple[str, ...]:
    """The data sets that an embedded model's weights, teachers or settings have seen, in lower case.

    A study of one of them says nothing about the method: its rows take another model.

    Raises:
        UserError: the model's configuration does not exist, is not JSON, or lists no data.
    """
    path = embedded_weights(name).with_suffix(".json")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))["data"]
        if not isinstance(data, list) or not data:
            raise ValueError("data is not a list of names")
    except (OSError, ValueError, KeyError) as failure:
        raise UserError(
            f"the embedded model's file {path} does not say what data the model has seen",
            remedy="install fedmvp again; its package data is incomplete",
        ) from failure
    return tuple(str(entry) for entry in data)


def build_clip(model_config: dict[str, Any], *, quick_gelu: bool | None = None) -> nn.Module:
    """Build an open_clip CLIP with random weights.

    Args:
        model_config: `embed_dim`, `vision_cfg`, `text_cfg`, and optionally `quick_gelu`; other keys are not for the
            builder.
        quick_gelu: overrides the configuration's activation where it is not None.
    """
    arguments = {key: value for key, value in model_config.items() if key in _BUILD_KEYS}
    if quick_gelu is not None:
        arguments["quick_gelu"] = quick_gelu
    model_class = open_clip.CustomTextCLIP if model_config.get("custom_text") else open_clip.CLIP
    model: nn.Module = model_class(**arguments)
    return model


def save_embedded(clip_model: nn.Module, cfg: dict[str, Any], path: Path, used_ids: Iterable[int]) -> None:
    """Write a CLIP as an embedded model: `path` (.safetensors) and the configuration beside it (.json).

    Args:
        clip_model: the trained open_clip CLIP.
        cfg: its model configuration; `mean` and `std` (three numbers each) travel with it if given.
        path: the safetensors file; its suffix is replaced by .json for the configuration.
        used_ids: token ids whose rows are kept, start and end of text included; every other row is read back as zero.

    Raises:
        ValueError: an id outside the vocabulary, or no id at all.
    """
    state = {name: value.detach().cpu() for name, value in clip_model.state_dict().items()}
    embedding = state.pop(_EMBEDDING)
    ids = torch.tensor(sorted(set(used_ids)), dtype=torch.int64)
    if ids.numel() == 0 or int(ids[0]) < 0 or int(ids[-1]) >= embedding.shape[0]:
        raise ValueError(f"token ids must be in [0, {embedding.shape[0]}) and not empty")
    tensors = {name: value.to(torch.float16).contiguous() for name, value in state.items()}
    tensors[_ROWS] = embedding[ids].to(torch.float16).contiguous()
    tensors[_IDS] = ids.to(torch.int32)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(path))
    path.with_suffix(".json").write_text(json.dumps(cfg, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_embedded(path: Path = EMBEDDED_WEIGHTS) -> tuple[nn.Module, dict[str, Any]]:
    """Read an embedded model.

    Returns:
        The CLIP in float32 with every unused token row zero, and its model configuration.

    Raises:
        UserError: a file is missing or does not fit the other.
    """
    remedy = "install fedmvp again; its package data is incomplete"
    config_path = path.with_suffix(".json")
    for file in (config_path, path):
        if not file.is_file():
            raise UserError(f"the embedded model's file {file} does not exist", remedy=remedy)
    try:
        cfg: dict[str, Any] = json.loads(config_path.read_text(encoding="utf-8"))
        model = build_clip(cfg)
        model.load_state_dict(_expand_embedding(load_file(str(path)), int(model.vocab_size)))  # type: ignore[arg-type]
    except (ValueError, KeyError, RuntimeError, TypeError, SafetensorError) as failure:
        reason = str(failure).splitlines()[0][:160]
        raise UserError(f"the embedded model {path} cannot be read: {reason}", remedy=remedy) from failure
    return model, cfg


def _expand_embedding(tensors: dict[str, Tensor], vocabulary: int) -> dict[str, Tensor]:
    rows = tensors.pop(_ROWS).float()
    ids = tensors.pop(_IDS).long()
    state = {name: value.float() for name, value in tensors.items()}
    state[_EMBEDDING] = torch.zeros(vocabulary, rows.shape[1]).index_copy_(0, ids, rows)
    return state
