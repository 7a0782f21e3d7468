"""``fedmvp-client claim``: the claim card of this site's records under the installed study."""

from __future__ import annotations

from fedmvp.cli.ledger import open_own_ledger
from fedmvp.cli.presentation import print_json, print_pairs
from fedmvp.client.budget import charged_dimension
from fedmvp.study.config import ClientConfig
from fedmvp.study.credentials import load_study
from privacy.claim import make_claim


def print_claim(config: ClientConfig, style: str) -> None:
    """Print the claim; the ledger is only read.

    Raises:
        UserError: no study is installed, or the ledger is of other records, another unit or another delta.
        privacy.errors.LedgerError: the ledger is missing, damaged or rolled back.
    """
    policy = load_study(config.study).policy
    run_id = policy.study.run_id
    with open_own_ledger(config, policy) as ledger:
        parameters = policy.privacy_parameters(charged_dimension(ledger, run_id))
        claim = make_claim(ledger, parameters, run_id=run_id, rounds=policy.study.rounds)
        dataset = ledger.dataset_id
    if style == "json":
        print_json({"dataset_id": dataset, "run_id": run_id, **claim.as_json()})
        return
    print_pairs([("records", dataset), ("study", run_id), *claim.rows()])
