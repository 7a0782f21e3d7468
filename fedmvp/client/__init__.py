"""A site's side of a run: ask for rounds, check what is told, train, charge the ledger, and only then release."""
