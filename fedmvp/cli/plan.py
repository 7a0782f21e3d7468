"""Epsilon by round as the policy alone decides it: what the consortium approves before anything is signed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmvp.cli.budget import spread
from fedmvp.cli.presentation import print_json, print_table, table_of
from fedmvp.cli.program import say, stderr, stdout
from fedmvp.errors import UserError
from fedmvp.study.calibration import calibrate
from fedmvp.study.policy import StudyPolicy, parse_policy
from privacy import accountant
from privacy.spending import terms
from secure_agg.errors import PolicyError

COLUMNS = ("after round", "epsilon of a site", "")


@dataclass(frozen=True)
class StudyPlan:
    """What a study costs a site that is in every round, whatever its records spent before.

    Args:
        lines: (round, epsilon), ascending; the first and the last round are among them.
        policy: the study.
        accountant: name and version of the accountant.
    """

    lines: tuple[tuple[int, float], ...]
    policy: StudyPolicy
    accountant: str

    @property
    def title(self) -> str:
        """The table's heading, which says what its epsilons mean."""
        section = self.policy.privacy
        return (
            f"Epsilon {terms(section.delta, section.unit, self.accountant)}; mode {section.mode}; "
            f"limit {section.epsilon_max:g}"
        )

    def rows(self) -> list[tuple[object, ...]]:
        """The table's rows."""
        limit = self.policy.privacy.epsilon_max
        return [(number, value, "over epsilon_max" if value > limit else "") for number, value in self.lines]

    def as_json(self) -> dict[str, Any]:
        """The plan for programs."""
        section = self.policy.privacy
        return {
            "run_id": self.policy.study.run_id,
            "mode": section.mode,
            "unit": section.unit,
            "neighboring_relation": section.neighboring_relation,
            "delta": section.delta,
            "noise_multiplier": section.noise_multiplier,
            "epsilon_max": section.epsilon_max,
            "accountant": self.accountant,
            "rounds_planned": self.policy.study.rounds,
            "epsilon_by_round": [{"round": number, "epsilon": value} for number, value in self.lines],
        }


def plan_study(policy: StudyPolicy) -> StudyPlan:
    """Work out epsilon by round of a policy, signed or not."""
    rounds, delta = policy.study.rounds, policy.privacy.delta
    numbers = sorted({number for number in spread(0, rounds) if number >= 1} | {rounds})
    if policy.privacy.mode == "UNSAFE-no-dp":
        return StudyPlan(tuple((number, math.inf) for number in numbers), policy, policy.accountant)
    mechanism = policy.privacy_parameters(dimension=1).mechanism  # the dimension moves no digit of epsilon
    lines = tuple((number, accountant.composition([mechanism] * number, delta)) for number in numbers)
    return StudyPlan(lines, policy, policy.accountant)


def show_plan(policy: StudyPolicy) -> None:
    """Show epsilon by round to the person who is about to sign, on stderr, and warn of what they may not want."""
    plan = plan_study(policy)
    console = stderr()
    say(plan.title)
    console.print(table_of(COLUMNS, plan.rows()))
    over = next((number for number, value in plan.lines if value > policy.privacy.epsilon_max), None)
    if policy.privacy.mode == "UNSAFE-no-dp":
        say("warning: UNSAFE-no-dp: no differential privacy; public data only")
    elif over is not None:
        say(f"warning: sites will stop before round {over}: epsilon_max is {policy.privacy.epsilon_max:g}")


def print_plan(policy: StudyPolicy, style: str) -> None:
    """Print epsilon by round."""
    plan = plan_study(policy)
    if style == "json":
        print_json(plan.as_json())
        return
    print_table(plan.title, COLUMNS, plan.rows())


def print_calibration(policy: StudyPolicy, target_epsilon: float, style: str) -> None:
    """Print the smallest noise multiplier with which all rounds of a policy cost a site at most the target.

    Raises:
        UserError: the policy has no noise, the target is out of reach, or the ring has no room for the noise.
    """
    multiplier = calibrate(policy, target_epsilon)
    plan, section = plan_study(_with_noise(policy, multiplier)), policy.privacy
    reached = plan.lines[-1][1]
    if style == "json":
        meaning = {name: plan.as_json()[name] for name in ("delta", "unit", "neighboring_relation", "accountant")}
        print_json({"noise_multiplier": multiplier, "target_epsilon": target_epsilon, "epsilon": reached, **meaning})
        return
    stdout().print(f"{multiplier:g}")
    say(
        f"epsilon {reached:.4g} after {policy.study.rounds} rounds, "
        f"{terms(section.delta, section.unit, plan.accountant)}; write it as [privacy] noise_multiplier"
    )
    if section.epsilon_max < reached:
        say(f"warning: [privacy] epsilon_max is {section.epsilon_max:g}: sites will stop before the last round")


def read_policy(path: Path) -> StudyPolicy:
    """A policy from a file, signed or not."""
    from fedmvp.study.documents import read_document  # noqa: PLC0415

    return parse_policy(read_document(path, what="policy", remedy="name a policy.toml"), source=str(path))


def _with_noise(policy: StudyPolicy, multiplier: float) -> StudyPolicy:
    section = policy.privacy.model_copy(update={"noise_multiplier": multiplier})
    changed = policy.model_copy(update={"privacy": section})
    try:
        changed.privacy_parameters(dimension=1)
    except (PolicyError, ValueError) as error:
        raise UserError(
            f"a noise multiplier of {multiplier:g} does not fit the policy: {error.args[0]}",
            remedy="set [aggregation] ring_bits = 64, or a smaller value_range",
        ) from None
    return changed
