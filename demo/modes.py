"""The demo's policy in each mode of privacy, and what each mode's epsilon stands on.

The policy on disk is that of ``record-local``. The others differ in a few lines, given here with how they were chosen.
"""

from __future__ import annotations

import os
from pathlib import Path

from fedmvp.errors import ExitCode, UserError

POLICY = Path(__file__).with_name("policy.toml")
DEFAULT_MODE = "record-local"

# The same epsilon, 7.86, as record-local. Chosen by the accountant alone, for the least noise beside its signal:
#   python -c "from privacy.renyi import calibrate_distributed as c; [print(q, c(7.86, 1e-5, sample_rate=q, steps=60,
#   dimension=4096, shares=4, grid=2.0**17, rounding='dithered') / q) for q in (0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 1.0)]"
# prints multiplier over rate: 9.98, 8.56, 8.24, 8.64, 10.1, 10.0 and 5.02. The bound on sampling that is proved for
# sums of discrete noise gives away a factor of three; with every record in every round nothing of it is needed.
CHANGES: dict[str, dict[str, str]] = {
    DEFAULT_MODE: {},
    "record-distributed": {
        'mode = "record-local"': 'mode = "record-distributed"',
        "sample_rate = 0.5": "sample_rate = 1.0",
        "noise_multiplier = 2.5": "noise_multiplier = 5.02",
        "expected_batch_size = 500.0": "expected_batch_size = 1000.0",
        "ring_bits = 32": "ring_bits = 64",
    },
    "silo-distributed": {
        'mode = "record-local"': 'mode = "silo-distributed"',
        'unit = "record"': 'unit = "site"',
        "noise_multiplier = 2.5": "noise_multiplier = 5.02",
        "max_grad_norm = 1.0": "max_grad_norm = 0.5",
        "ring_bits = 32": "ring_bits = 64",
    },
}

TRUST = {
    DEFAULT_MODE: (
        "Every site adds all of its noise itself: this epsilon holds against the server, the network and all other "
        "sites together, even if the secure sum fails."
    ),
    "record-distributed": (
        "The noise is complete in the sum alone: this epsilon holds while the secure sum does, and while no more sites "
        "than the policy's colluders join with the server."
    ),
    "silo-distributed": (
        "The noise is complete in the sum alone and hides a whole site: this epsilon holds while the secure sum does, "
        "and while no more sites than the policy's colluders join with the server. Among four sites such noise leaves "
        "little of the model: the mode is for many hundred."
    ),
}


def chosen_mode(option: str | None) -> str:
    """The mode asked for on the command line, in the environment variable MODE, or the default.

    Raises:
        UserError: there is no such mode in the demo.
    """
    mode = option or os.environ.get("MODE") or DEFAULT_MODE
    if mode not in CHANGES:
        raise UserError(
            f"MODE is {mode!r}, which the demo does not have",
            remedy=f"choose one of {', '.join(CHANGES)}",
            exit_code=ExitCode.USAGE,
        )
    return mode


def policy_text(mode: str) -> str:
    """The policy of the demo in a mode, as it is signed."""
    text = POLICY.read_text(encoding="utf-8")
    for old, new in CHANGES[mode].items():
        if text.count(old) != 1:
            raise ValueError(f"{POLICY.name} does not hold {old!r} once")
        text = text.replace(old, new)
    return text
