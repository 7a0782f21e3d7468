"""Which open_clip towers can take prompts, and why the others cannot.

A prompted tower needs a sequence of tokens that starts with a class token, whose output is the image feature. Residual
networks have no tokens; SigLIP and CoCa pool by attention; timm towers hide their blocks behind other names.
"""

from __future__ import annotations

from typing import Any

from fedmvp.errors import UserError
from fedmvp.model.clip_library import open_clip

EMBEDDED_NAME = "fedmvp-tiny"
# Another tower whose two files lie in fedmvp/model/embedded is made known by its name here.
EMBEDDED_NAMES = (EMBEDDED_NAME, "fedmvp-small", "fedmvp-unseen")


def refusal(model_config: dict[str, Any]) -> str | None:
    """Say why a tower cannot be used.

    Args:
        model_config: open_clip's model configuration (`embed_dim`, `vision_cfg`, `text_cfg`).

    Returns:
        The reason in a few words, or None where the tower works.
    """
    vision = model_config["vision_cfg"]
    text = model_config["text_cfg"]
    reasons = {
        "its vision tower comes from timm": bool(vision.get("timm_model_name")),
        "its vision tower is a residual network without tokens": isinstance(vision.get("layers"), list | tuple),
        "it pools by attention instead of a class token": bool(vision.get("attentional_pool")),
        f"it pools by '{vision.get('pool_type')}' instead of a class token": vision.get("pool_type", "tok") != "tok",
        "it is a captioning model": "multimodal_cfg" in model_config,
        "its text tower needs the transformers package": bool(text.get("hf_model_name")),
        "its tokenizer needs the transformers package": bool(text.get("hf_tokenizer_name")),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def supported_names() -> tuple[str, ...]:
    """Return the names that a policy may give as backbone: the embedded ones, then open_clip's in its order."""
    names = (name for name in open_clip.list_models() if refusal(open_clip.get_model_config(name)) is None)
    return (*EMBEDDED_NAMES, *names)


def require_supported(name: str) -> dict[str, Any]:
    """Return open_clip's configuration of a supported architecture.

    Raises:
        UserError: unknown name, or a tower without a class token; lists what works.
    """
    model_config: dict[str, Any] | None = open_clip.get_model_config(name)
    reason = "open_clip does not know it" if model_config is None else refusal(model_config)
    if model_config is None or reason is not None:
        raise UserError(
            f"backbone '{name}' cannot be used: {reason}",
            remedy="set [model] backbone to a vision transformer with a class token: " + ", ".join(supported_names()),
        )
    return model_config
