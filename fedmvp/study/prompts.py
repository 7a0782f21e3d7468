"""The prompts file: what a run leaves behind, complete with the policy it was trained under.

A safetensors file holding the trained parameters, and in its metadata the exact policy text, the last round, the
privacy mode as a stamp, so that nobody mistakes prompts trained without privacy for others, and the claim card.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors.numpy import save

from fedmvp.errors import UserError
from fedmvp.study.policy import StudyPolicy, parse_policy
from fedmvp.study.storage import write_atomic

if TYPE_CHECKING:
    from privacy.claim import Claim

PARAMETERS = "parameters"
CLAIM = "privacy_claim"
"""The metadata key of the claim card, as JSON."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """The content of a prompts file.

    Args:
        parameters: the trained parameters, float32 (dimension,).
        policy: the policy they were trained under.
        round: the last round in them; 0 for the initial ones.
        stamp: the privacy mode.
        claim: what is promised, as the writer stated it.
    """

    parameters: NDArray[np.float32]
    policy: StudyPolicy
    round: int
    stamp: str
    claim: Claim


def write_prompts(
    path: Path,
    parameters: NDArray[np.float32],
    policy: StudyPolicy,
    *,
    round_number: int,
    claim: Claim | None = None,
) -> None:
    """Write a prompts file.

    Args:
        path: usually ``prompts.safetensors``.
        parameters: float32 (dimension,), in the model's own order.
        policy: the policy they were trained under.
        round_number: the last round in them.
        claim: the claim card of a site's records; None states what the run alone costs a site.
    """
    stated = claim or run_claim(policy, round_number=round_number, dimension=len(parameters))
    metadata = {
        "policy": policy.document.decode(),
        "round": str(round_number),
        "stamp": policy.privacy.mode,
        CLAIM: stated.to_text(),
    }
    write_atomic(path, save({PARAMETERS: np.ascontiguousarray(parameters, dtype=np.float32)}, metadata))


def run_claim(policy: StudyPolicy, *, round_number: int, dimension: int) -> Claim:
    """What a policy promises the records of a site that was in every round so far.

    Args:
        policy: the study.
        round_number: the last round released.
        dimension: coordinates of an update.
    """
    from privacy.claim import make_run_claim  # noqa: PLC0415 - loads the accounting

    return make_run_claim(
        policy.privacy_parameters(dimension),
        released=round_number,
        rounds=policy.study.rounds,
        epsilon_max=policy.privacy.epsilon_max,
    )


def read_prompts(path: Path) -> Prompts:
    """Read a prompts file; tensors beside the parameters (an optimizer's state) are left unread.

    Raises:
        UserError: missing, damaged, without its metadata, or stamped or claimed otherwise than its policy says.
    """
    from privacy.claim import parse_claim  # noqa: PLC0415 - loads the accounting

    if not path.is_file():
        raise UserError(f"prompts file {path} does not exist", remedy="name the prompts.safetensors that a run wrote")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            parameters = file.get_tensor(PARAMETERS)
        text, round_number, stamp = metadata["policy"], int(metadata["round"]), metadata["stamp"]
        claimed = metadata[CLAIM]
    except (safetensors.SafetensorError, OSError, KeyError, ValueError):
        raise UserError(
            f"{path} is not a prompts file: it lacks the parameters, or the metadata policy, round, stamp and {CLAIM}",
            remedy="name the prompts.safetensors that a run wrote, not a backbone or a snapshot",
        ) from None
    policy = parse_policy(text.encode(), source=f"{path}: policy")
    if stamp != policy.privacy.mode:
        raise UserError(
            f"{path} is stamped {stamp!r}, but its policy says {policy.privacy.mode!r}",
            remedy="the file was changed; get it again from the run",
        )
    try:
        claim = parse_claim(claimed)
    except ValueError as error:
        raise UserError(
            f"{path}: its {CLAIM} cannot be read: {error}", remedy="the file was changed; get it again from the run"
        ) from None
    section = policy.privacy
    stated = (claim.mode, claim.unit, claim.delta, claim.sample_rate, claim.max_grad_norm, claim.rounds_planned)
    signed = (
        section.mode, section.unit, section.delta, section.sample_rate, section.max_grad_norm, policy.study.rounds
    )  # fmt: skip
    noise = 0.0 if section.mode == "UNSAFE-no-dp" else section.noise_multiplier
    if stated != signed or claim.noise_multiplier != noise:
        raise UserError(
            f"{path}: its {CLAIM} speaks of another mechanism than its policy",
            remedy="the file was changed; get it again from the run",
        )
    return Prompts(np.asarray(parameters, dtype=np.float32), policy, round_number, stamp, claim)
