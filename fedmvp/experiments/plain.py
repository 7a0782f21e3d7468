"""The same rounds with sums in the clear: for choosing settings on public images, where only the arithmetic counts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from fedmvp.client.update_source import UpdateSource
from fedmvp.experiments.federation import FederationOutcome, SourceOf, make_ledger
from fedmvp.server.evaluator import PublicModel
from fedmvp.study.policy import StudyPolicy
from fedmvp.training.aggregate import ServerState
from fedmvp.training.from_policy import server_optimizer_of
from fedmvp.training.local import LocalTrainer
from fedmvp.training.rounds import Site, run_rounds


def run_in_the_clear(
    folder: Path, policy: StudyPolicy, sources: Mapping[str, SourceOf], model: PublicModel
) -> FederationOutcome:
    """Carry out all rounds of a policy without protocol; arguments and result as of `run_federation`.

    Every site is charged as there. Nothing is sent, so no bytes are counted.
    """
    ledgers = {name: make_ledger(folder / f"{name}.sqlite", name, policy) for name in sources}
    trainers: dict[str, UpdateSource] = {name: build(ledgers[name]) for name, build in sources.items()}
    initial = model.initial_parameters()
    model.score(initial)

    def measured(_round: int, after: ServerState) -> None:
        model.score(after.parameters)

    state = run_rounds(
        [Site(cast(LocalTrainer, trainer), ledgers[name]) for name, trainer in trainers.items()],
        ServerState.initial(initial),
        rounds=policy.study.rounds,
        optimizer=server_optimizer_of(policy),
        privacy=policy.privacy_parameters(len(initial)),
        run_id=policy.study.run_id,
        secure_sum=policy.secure_sum(len(initial)) if policy.is_distributed else None,
        after_round=measured,
    )
    nothing = dict.fromkeys(sources, 0)
    epsilons = {name: ledger.spent().epsilon for name, ledger in ledgers.items()}
    for ledger in ledgers.values():
        ledger.close()
    return FederationOutcome(state.parameters, epsilons, nothing, nothing, policy.study.rounds, 0.0)
