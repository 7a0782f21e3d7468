"""The limits a site puts on itself, looked at before a round is trained.

The ledger's own limit is enforced by the ledger when it charges. Here the two others join it: the limit in client.toml,
which an operator may lower at any time, and the policy's limit on this study alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from fedmvp.study.config import ClientConfig
from fedmvp.study.policy import StudyPolicy
from privacy.accountant import name, spent
from privacy.chain import EntryKind
from privacy.errors import BudgetExceeded
from privacy.ledger import Ledger
from privacy.mechanism import Mechanism, Mode, PrivacyParameters
from privacy.spending import terms


def budget_check(
    config: ClientConfig, policy: StudyPolicy, ledger: Ledger, parameters: PrivacyParameters
) -> Callable[[], None]:
    """A function that raises BudgetExceeded when one more round would pass any of the limits.

    Args:
        config: holds the site's limit over all studies.
        policy: holds the limit of this study.
        ledger: knows what was spent.
        parameters: what a round costs.
    """

    def check() -> None:
        ledger.check_affordable(parameters)
        after = ledger.epsilon_after(parameters)
        if not after <= config.privacy.epsilon_max:
            raise BudgetExceeded(after, config.privacy.epsilon_max, ledger.terms_after(parameters))
        limit, run_id = policy.privacy.epsilon_max, policy.study.run_id
        in_study = epsilon_with(ledger, parameters, 1, run_id=run_id, limit=limit)
        if not in_study <= limit:
            accountant = accountant_with(ledger, parameters, 1, run_id=run_id, limit=limit)
            raise BudgetExceeded(in_study, limit, terms(ledger.delta, ledger.unit, accountant))

    return check


def epsilon_with(
    ledger: Ledger, parameters: PrivacyParameters, rounds: int, *, run_id: str | None, limit: float
) -> float:
    """Epsilon of what was charged and of further rounds, as the limit decides by it.

    Args:
        ledger: the records' ledger.
        parameters: what one further round costs.
        rounds: how many, 0 or more.
        run_id: only the charges of this run; None for all.
        limit: the budget in question, which fixes the order of the filter.
    """
    mechanisms = _mechanisms(ledger, parameters, rounds, run_id)
    return math.inf if mechanisms is None else spent(mechanisms, ledger.delta, limit)


def accountant_with(
    ledger: Ledger, parameters: PrivacyParameters, rounds: int, *, run_id: str | None, limit: float
) -> str:
    """Name of the accountant behind :func:`epsilon_with`, whose arguments these are; "none" where it is infinite."""
    mechanisms = _mechanisms(ledger, parameters, rounds, run_id)
    return "none" if mechanisms is None else name(mechanisms, ledger.delta, limit)


def _mechanisms(
    ledger: Ledger, parameters: PrivacyParameters, rounds: int, run_id: str | None
) -> list[Mechanism] | None:
    """What was charged, and what the further rounds cost; None as soon as one of them has no privacy."""
    charges = [
        entry
        for entry in ledger.entries()
        if entry.kind is EntryKind.CHARGE and (run_id is None or entry.run_id == run_id)
    ]
    if any(charge.is_unsafe for charge in charges) or (rounds and parameters.mode is Mode.UNSAFE_NO_DP):
        return None
    mechanisms = [charge.mechanism for charge in charges]
    if rounds:
        each = parameters.mechanism
        mechanisms.append(replace(each, steps=each.steps * rounds))
    return mechanisms


def charged_dimension(ledger: Ledger, run_id: str) -> int:
    """Length of the vectors a run was charged for; before its first round that of another run, or 1 if there is none.

    A guess for display and for a first look at the budget: what decides uses the length of the model itself.
    """
    charged = [entry for entry in ledger.entries() if entry.kind is EntryKind.CHARGE and "dimension" in entry.body]
    own = [entry for entry in charged if entry.run_id == run_id]
    return int((own or charged)[-1].body["dimension"]) if charged else 1
