"""The prompts file: what a run leaves behind, complete with the policy it was trained under.

A safetensors file holding the trained parameters, and in its metadata the exact policy text, the last round, and the
privacy mode as a stamp, so that nobody mistakes prompts trained without privacy for others.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save

from fedmvp.errors import UserError
from fedmvp.study.policy import StudyPolicy, parse_policy
from fedmvp.study.storage import write_atomic

PARAMETERS = "parameters"


@dataclass(frozen=True, eq=False)
class Prompts:
    """The content of a prompts file.

    Args:
        parameters: the trained parameters, float32 (dimension,).
        policy: the policy they were trained under.
        round: the last round in them; 0 for the initial ones.
        stamp: the privacy mode.
    """

    parameters: NDArray[np.float32]
    policy: StudyPolicy
    round: int
    stamp: str


def write_prompts(path: Path, parameters: NDArray[np.float32], policy: StudyPolicy, *, round_number: int) -> None:
    """Write a prompts file.

    Args:
        path: usually ``prompts.safetensors``.
        parameters: float32 (dimension,), in the model's own order.
        policy: the policy they were trained under.
        round_number: the last round in them.
    """
    metadata = {"policy": policy.document.decode(), "round": str(round_number), "stamp": policy.privacy.mode}
    write_atomic(path, save({PARAMETERS: np.ascontiguousarray(parameters, dtype=np.float32)}, metadata))


def read_prompts(path: Path) -> Prompts:
    """Read a prompts file; tensors beside the parameters (an optimizer's state) are left unread.

    Raises:
        UserError: missing, damaged, without its metadata, or stamped otherwise than its policy says.
    """
    if not path.is_file():
        raise UserError(f"prompts file {path} does not exist", remedy="name the prompts.safetensors that a run wrote")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            parameters = file.get_tensor(PARAMETERS)
        text, round_number, stamp = metadata["policy"], int(metadata["round"]), metadata["stamp"]
    except (safetensors.SafetensorError, OSError, KeyError, ValueError):
        raise UserError(
            f"{path} is not a prompts file: it lacks the parameters, or the metadata policy, round and stamp",
            remedy="name the prompts.safetensors that a run wrote, not a backbone or a snapshot",
        ) from None
    policy = parse_policy(text.encode(), source=f"{path}: policy")
    if stamp != policy.privacy.mode:
        raise UserError(
            f"{path} is stamped {stamp!r}, but its policy says {policy.privacy.mode!r}",
            remedy="the file was changed; get it again from the run",
        )
    return Prompts(np.asarray(parameters, dtype=np.float32), policy, round_number, stamp)
