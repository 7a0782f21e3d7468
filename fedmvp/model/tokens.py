"""How long sentences are for a backbone's text tower, without loading its weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from fedmvp.model.clip_library import open_clip
from fedmvp.model.embedded import embedded_weights
from fedmvp.model.supported import EMBEDDED_NAMES, require_supported

_START_AND_END = 2


def token_counter(backbone: str) -> tuple[Callable[[str], int], int]:
    """Return a function that counts the tokens of a sentence, and how many the text tower reads.

    Args:
        backbone: an embedded model's name, or an open_clip architecture.

    Raises:
        UserError: an architecture that fedmvp cannot use.
    """
    config: dict[str, Any]
    if backbone in EMBEDDED_NAMES:
        config = json.loads(embedded_weights(backbone).with_suffix(".json").read_text(encoding="utf-8"))
    else:
        config = require_supported(backbone)
    length = int(config["text_cfg"].get("context_length", 77))
    tokenizer = open_clip.SimpleTokenizer(context_length=length)
    return (lambda sentence: len(tokenizer.encode(sentence))), length - _START_AND_END
