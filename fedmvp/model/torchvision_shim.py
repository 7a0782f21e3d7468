"""Makes `import torchvision` work beside a torch it was not compiled for.

open_clip imports torchvision for its transforms alone. Where torchvision's compiled operators cannot be loaded (a CPU
wheel of torch beside a CUDA wheel of torchvision, or the reverse), its Python part still insists that two operators
are declared. This module declares them there, and only there; they have no kernel, and nothing of fedmvp calls them.
It knows no CLIP.
"""

from __future__ import annotations

import importlib
import sys

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[torch.library.Library] = []  # a Library that is collected takes its operators with it


def import_torchvision() -> None:
    """Import torchvision, declaring its missing operators first where their absence is what stops the import.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: torchvision fails for another reason than a missing operator.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as failure:
        if "operator torchvision::" not in str(failure):
            raise
        _forget_partial_import()
        _declare_missing()
        importlib.import_module("torchvision")


def _declare_missing() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)  # type: ignore[no-untyped-call]
    _declared.append(library)


def _forget_partial_import() -> None:
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
