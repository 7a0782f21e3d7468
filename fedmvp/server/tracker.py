"""What the sites say they have spent, from their signed receipts; for display only.

No round is held back by this table: a budget enforced here would protect nobody from the coordinator.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable
from typing import Any

import structlog

from fedmvp.rpc.receipts import RECEIPT_TAG
from fedmvp.server.events import finite
from privacy.receipt import PrivacyReceipt
from secure_agg.keys import verify
from secure_agg.roster import Roster

log = structlog.get_logger("fedmvp.server")


class PrivacyTracker:
    """The last receipt of every site, and whether a site's ledger has ever gone back.

    A ledger only grows, so a later round means more steps. Fewer are shown, not refused: what a site may send is
    decided by the site.

    Args:
        roster: whose keys must have signed the receipts.
        run_id: the run; a receipt of another is refused.
        counted: site, round and steps of receipts that came before this server was started again, oldest first.
    """

    def __init__(self, roster: Roster, run_id: str, counted: Iterable[tuple[int, int, int]] = ()) -> None:
        self._roster = roster
        self._run_id = run_id
        self._latest: dict[int, tuple[PrivacyReceipt, bytes]] = {}
        self._furthest: dict[int, tuple[int, int]] = {}  # round and steps
        self._rolled_back: set[int] = set()
        for site, round_number, steps in counted:
            self._compare(site, round_number, steps)
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
        if self._compare(receipt.site_id, receipt.round, receipt.steps):
            log.warning(
                "a receipt counts no more steps than an earlier one: an older ledger was put back, or a new one made",
                site=self._roster.entry(receipt.site_id).name,
                round=receipt.round,
            )
        self._latest[receipt.site_id] = (receipt, signature)
        self._arrived.set()

    def _compare(self, site: int, round_number: int, steps: int) -> bool:
        """Whether a receipt counts less than an earlier one of its site."""
        last_round, last_steps = self._furthest.get(site, (0, 0))
        went_back = steps < last_steps or (steps == last_steps and round_number > last_round)
        if went_back:
            self._rolled_back.add(site)
        self._furthest[site] = (round_number, steps)
        return went_back

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
            "ledger_went_back": site in self._rolled_back,
            "signature": signature.hex(),
        }
