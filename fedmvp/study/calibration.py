"""The noise that a study needs for a target epsilon."""

from __future__ import annotations

from decimal import ROUND_CEILING, Context, Decimal

from fedmvp.errors import ExitCode, UserError
from fedmvp.study.policy import StudyPolicy

# ruff: noqa: PLC0415 - the accountants take seconds to import

DIGITS = 4
"""Significant digits of a calibrated noise multiplier; rounded up."""


def calibrate(policy: StudyPolicy, target_epsilon: float) -> float:
    """Return the noise multiplier with which all rounds of a policy cost a site at most the target.

    Args:
        policy: its noise multiplier is left out of account.
        target_epsilon: > 0.

    Returns:
        The smallest one, rounded up to four digits.

    Raises:
        UserError: the policy has no noise, or the target is out of reach.
    """
    if policy.privacy.mode == "UNSAFE-no-dp":
        raise UserError(
            "mode UNSAFE-no-dp has no noise to calibrate", remedy="choose another [privacy] mode in policy.toml"
        )
    from privacy import accountant
    from privacy.mechanism import DistributedGaussian

    delta, rounds = policy.privacy.delta, policy.study.rounds
    mechanism = policy.privacy_parameters(dimension=1).mechanism
    try:
        if isinstance(mechanism, DistributedGaussian):
            from privacy.renyi import calibrate_distributed

            exact = calibrate_distributed(
                target_epsilon,
                delta,
                sample_rate=mechanism.sample_rate,
                steps=rounds,
                dimension=mechanism.dimension,
                shares=mechanism.shares,
                grid=mechanism.grid,
                rounding=mechanism.rounding,
            )
        else:
            exact = accountant.calibrate_noise_multiplier(
                target_epsilon, delta, mechanism.sample_rate, rounds * mechanism.steps
            )
    except ValueError as error:
        raise UserError(
            f"target epsilon {target_epsilon:g}: {error}",
            remedy="give a larger target, fewer rounds or a smaller sample_rate",
            exit_code=ExitCode.USAGE,
        ) from None
    return float(Context(prec=DIGITS, rounding=ROUND_CEILING).create_decimal(Decimal(exact)))
