"""What the rounds still to come would cost: epsilon by round, before anything is spent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from fedmvp.client.budget import accountant_with, charged_dimension, epsilon_with
from fedmvp.study.policy import StudyPolicy
from privacy.ledger import Ledger
from privacy.mechanism import ADD_OR_REMOVE_ONE
from privacy.spending import terms

ROWS_SHOWN = 8


@dataclass(frozen=True)
class BudgetLine:
    """Epsilon if the site is in every round up to ``round``.

    Args:
        round: the round.
        study: epsilon of this run alone.
        records: epsilon of the records over all runs.
    """

    round: int
    study: float
    records: float


@dataclass(frozen=True)
class BudgetPlan:
    """The cost of a study to one ledger.

    Args:
        lines: some rounds of the plan, ascending; the last planned one is among them.
        limit: the limit on the records' epsilon, of the ledger and of client.toml.
        study_limit: the policy's limit on the study's epsilon.
        delta: the delta of every epsilon here.
        unit: what one neighbour adds or removes.
        accountant: behind the records' epsilon once the plan is complete.
        study_accountant: behind the study's.
        planned_rounds: rounds of the policy.
        last_round: the last round already charged, 0 before the first.
        affordable_round: the last round within both limits.
    """

    lines: tuple[BudgetLine, ...]
    limit: float
    study_limit: float
    delta: float
    unit: str
    accountant: str
    study_accountant: str
    planned_rounds: int
    last_round: int
    affordable_round: int

    columns: ClassVar[tuple[str, ...]] = ("after round", "epsilon of this study", "epsilon of these records", "")

    @property
    def title(self) -> str:
        """The table's heading, which says what its epsilons mean."""
        return f"Epsilon {self.meaning}; limit {self.limit:g}"

    @property
    def meaning(self) -> str:
        """What every epsilon of the plan stands on."""
        study = "" if self.study_accountant == self.accountant else f", of this study by {self.study_accountant}"
        return f"{terms(self.delta, self.unit, self.accountant)}{study}"

    def rows(self) -> Iterator[tuple[object, ...]]:
        """The table's rows."""
        for line in self.lines:
            note = (
                "over budget"
                if line.round > self.affordable_round
                else "spent"
                if line.round == self.last_round
                else ""
            )
            yield line.round, line.study, line.records, note

    def as_json(self) -> dict[str, Any]:
        """The plan for programs."""
        return {
            "delta": self.delta,
            "unit": self.unit,
            "neighboring_relation": ADD_OR_REMOVE_ONE,
            "accountant": self.accountant,
            "study_accountant": self.study_accountant,
            "epsilon_max": self.limit,
            "study_epsilon_max": self.study_limit,
            "rounds_planned": self.planned_rounds,
            "rounds_affordable": self.affordable_round,
            "epsilon_by_round": [
                {"round": line.round, "study": line.study, "records": line.records} for line in self.lines
            ],
        }


def plan_budget(ledger: Ledger, policy: StudyPolicy, *, epsilon_max: float) -> BudgetPlan:
    """Work out epsilon by round for a site that takes part in every round from now on.

    Args:
        ledger: the records' ledger.
        policy: the study.
        epsilon_max: the limit that client.toml sets; the ledger's own holds beside it.

    Raises:
        privacy.errors.PrivacyRefused: the policy does not fit the ledger (another delta, or no privacy).
    """
    run_id, planned = policy.study.run_id, policy.study.rounds
    parameters = policy.privacy_parameters(charged_dimension(ledger, run_id))
    ledger.epsilon_after(parameters)
    limit = min(ledger.epsilon_max, epsilon_max)
    last = ledger.last_round(run_id)

    def line(number: int) -> BudgetLine:
        rounds = max(number - last, 0)
        return BudgetLine(
            number,
            study=epsilon_with(ledger, parameters, rounds, run_id=run_id, limit=policy.privacy.epsilon_max),
            records=epsilon_with(ledger, parameters, rounds, run_id=None, limit=ledger.epsilon_max),
        )

    def affordable(number: int) -> bool:
        costs = line(number)
        return costs.records <= limit and costs.study <= policy.privacy.epsilon_max

    end, to_come = _last_true(affordable, last, planned), max(planned - last, 0)
    numbers = sorted({number for number in spread(last, planned) if number >= max(last, 1)} | {end, planned} - {0})
    return BudgetPlan(
        lines=tuple(line(number) for number in numbers if number >= 1),
        limit=limit,
        study_limit=policy.privacy.epsilon_max,
        delta=ledger.delta,
        unit=ledger.unit,
        accountant=accountant_with(ledger, parameters, to_come, run_id=None, limit=ledger.epsilon_max),
        study_accountant=accountant_with(ledger, parameters, to_come, run_id=run_id, limit=policy.privacy.epsilon_max),
        planned_rounds=planned,
        last_round=last,
        affordable_round=end,
    )


def _last_true(holds: Any, low: int, high: int) -> int:
    """The largest number up to ``high`` for which a condition holds that fails for good; ``low`` if for none above."""
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


def spread(first: int, last: int) -> list[int]:
    """Some numbers from ``first`` to ``last``, about evenly spread."""
    span = max(last - first, 1)
    return [first + round(span * step / ROWS_SHOWN) for step in range(ROWS_SHOWN + 1)] + [first + 1]
