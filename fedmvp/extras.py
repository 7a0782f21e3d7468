"""Packages that only some people need: imported where they are used, missed with one message that names the extra."""

from __future__ import annotations

import importlib
from typing import Any

from fedmvp.errors import UserError


def optional_module(name: str, *, extra: str, purpose: str) -> Any:
    """Import a package of an optional extra.

    Args:
        name: the module.
        extra: the extra of this project that installs it.
        purpose: what needs it, the start of the message ("DICOM image scan.dcm").

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"{purpose} needs the package {name.partition('.')[0]}, which is not installed",
            remedy=f'pip install "fedmvp[{extra}]"',
        ) from None
