"""The limits a site puts on itself, looked at before a round is trained.

The ledger's own limit is enforced by the ledger when it charges. Here the two others join it: the limit in client.toml,
which an operator may lower at any time, and the policy's limit on this study alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from fedmvp.study.config import ClientConfig
from fedmvp.study.policy import StudyPolicy
from privacy.accountant import spent
from privacy.chain import EntryKind
from privacy.errors import BudgetExceeded
from privacy.ledger import Ledger
from privacy.mechanism import Mode, PrivacyParameters


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
            raise BudgetExceeded(after, config.privacy.epsilon_max)
        in_study = _epsilon_of_study(ledger, policy, parameters)
        if not in_study <= policy.privacy.epsilon_max:
            raise BudgetExceeded(in_study, policy.privacy.epsilon_max)

    return check


def _epsilon_of_study(ledger: Ledger, policy: StudyPolicy, parameters: PrivacyParameters) -> float:
    """Epsilon of this run alone after one more round."""
    charges = [
        entry for entry in ledger.entries() if entry.kind is EntryKind.CHARGE and entry.run_id == policy.study.run_id
    ]
    if parameters.mode is Mode.UNSAFE_NO_DP or any(charge.is_unsafe for charge in charges):
        return math.inf
    mechanisms = [*(charge.mechanism for charge in charges), parameters.mechanism]
    return spent(mechanisms, ledger.delta, policy.privacy.epsilon_max)


def charged_dimension(ledger: Ledger, run_id: str) -> int:
    """Length of the vectors a run was charged for; before its first round that of another run, or 1 if there is none.

    A guess for display and for a first look at the budget: what decides uses the length of the model itself.
    """
    charged = [entry for entry in ledger.entries() if entry.kind is EntryKind.CHARGE and "dimension" in entry.body]
    own = [entry for entry in charged if entry.run_id == run_id]
    return int((own or charged)[-1].body["dimension"]) if charged else 1
