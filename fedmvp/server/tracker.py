"""What the sites say they have spent, from their signed receipts; for display only.

No round is held back by this table: a budget enforced here would protect nobody from the coordinator.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any

from fedmvp.rpc.receipts import RECEIPT_TAG
from fedmvp.server.events import finite
from privacy.receipt import PrivacyReceipt
from secure_agg.keys import verify
from secure_agg.roster import Roster


class PrivacyTracker:
    """The last receipt of every site.

    Args:
        roster: whose keys must have signed the receipts.
        run_id: the run; a receipt of another is refused.
    """

    def __init__(self, roster: Roster, run_id: str) -> None:
        self._roster = roster
        self._run_id = run_id
        self._latest: dict[int, tuple[PrivacyReceipt, bytes]] = {}
        self._arrived = asyncio.Event()

    def receive(self, receipt: PrivacyReceipt, signature: bytes) -> None:
        """Keep a receipt.

        Raises:
            SignatureError: not signed by the site it speaks of.
            ValueError: of another run, or older than the one at hand.
        """
        if receipt.run_id != self._run_id:
            raise ValueError("the receipt is of another run")
        latest = self.latest(receipt.site_id)
        if latest is not None and receipt.round < latest.round:
            raise ValueError("the receipt is older than the last one")
        verify(self._roster.entry(receipt.site_id).verify_key, signature, RECEIPT_TAG, *receipt.signed_fields())
        self._latest[receipt.site_id] = (receipt, signature)
        self._arrived.set()

    def latest(self, site: int) -> PrivacyReceipt | None:
        """The newest receipt of a site."""
        entry = self._latest.get(site)
        return entry[0] if entry else None

    async def wait_for(
        self, round_number: int, sites: Callable[[], Collection[int]], timeout_seconds: float
    ) -> dict[int, dict[str, Any]]:
        """Receipts of a round, as events carry them.

        Args:
            round_number: the round.
            sites: those still worth waiting for; asked again as receipts arrive.
            timeout_seconds: a site whose receipt has not come by then is left out.
        """
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        while any(site not in self._of_round(round_number) for site in sites()):
            self._arrived.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._arrived.wait()
            except TimeoutError:
                break
        return {site: self.display(site) for site in sorted(self._of_round(round_number))}

    def _of_round(self, round_number: int) -> set[int]:
        return {site for site, (receipt, _) in self._latest.items() if receipt.round >= round_number}

    def display(self, site: int) -> dict[str, Any]:
        """A site's receipt as JSON-ready fields, its signature included."""
        receipt, signature = self._latest[site]
        return {
            "round": receipt.round,
            "epsilon": finite(receipt.epsilon),
            "delta": receipt.delta,
            "mode": receipt.mode,
            "unit": receipt.unit,
            "neighboring_relation": receipt.neighboring_relation,
            "sample_rate": receipt.sample_rate,
            "noise_multiplier": receipt.noise_multiplier,
            "steps": receipt.steps,
            "accountant": receipt.accountant,
            "ledger_head": receipt.ledger_head.hex(),
            "signature": signature.hex(),
        }
