"""What a site remembers of the rounds it finished, in a hash-chained file beside its ledger.

From it the site knows which model must come next, whether a peer's ledger has gone back in time, and where its own
ledger stood.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmvp.client.connection import Publication
from fedmvp.journal import Journal
from secure_agg.context import RoundContext
from secure_agg.errors import RemoteProtocolError
from secure_agg.transitions import Step

FILE_NAME = "rounds.jsonl"


@dataclass(frozen=True)
class _LastRound:
    run_id: str
    round: int
    next_model_hash: bytes


class Past:
    """The finished rounds of a site.

    Args:
        state_dir: the site's state folder.

    Raises:
        UserError: the file was changed.
    """

    def __init__(self, state_dir: Path) -> None:
        self._last: _LastRound | None = None
        self._heads: dict[int, set[str]] = {}
        self.own_ledger_head: bytes | None = None
        self._journal = Journal(state_dir / FILE_NAME, on_record=self._follow)

    def check_model(self, context: RoundContext, model_round: int) -> None:
        """Compare an announced model with the one that the last finished round led to.

        Raises:
            RemoteProtocolError: the coordinator says that no sum came in between, and yet the model is another.
        """
        last = self._last
        if last is None or last.run_id != context.run_id:
            return
        if model_round < last.round:
            raise RemoteProtocolError(None, Step.ANNOUNCE, f"the model went back before round {last.round}")
        if model_round == last.round and context.model_hash != last.next_model_hash:
            raise RemoteProtocolError(None, Step.ANNOUNCE, "the model is not the one that the last sum led to")

    def rolled_back(self, heads: Mapping[int, bytes]) -> tuple[int, ...]:
        """Sites whose ledger shows a head that it had in an earlier round: an older copy of it was put back."""
        return tuple(site for site, head in sorted(heads.items()) if head.hex() in self._heads.get(site, ()))

    def finished(
        self, context: RoundContext, published: Publication, heads: Mapping[int, bytes], own_ledger_head: bytes
    ) -> None:
        """Remember a published and verified round. Losing the last one to a power cut weakens a check and no more."""
        record = {
            "run_id": context.run_id,
            "round": context.round,
            "attempt": context.attempt,
            "context_hash": context.hash.hex(),
            "survivors": list(published.message.survivors),
            "sum_hash": published.sum_hash.hex(),
            "next_model_hash": published.next_model_hash.hex(),
            "transcript_hash": published.message.transcript_hash.hex(),
            "ledger_heads": {str(site): head.hex() for site, head in heads.items()},
            "own_ledger_head": own_ledger_head.hex(),
        }
        self._journal.append(record, durable=False)
        self._follow(record)

    def close(self) -> None:
        """Close the file."""
        self._journal.close()

    def _follow(self, record: dict[str, Any]) -> None:
        self._last = _LastRound(record["run_id"], record["round"], bytes.fromhex(record["next_model_hash"]))
        for site, head in record["ledger_heads"].items():
            self._heads.setdefault(int(site), set()).add(head)
        self.own_ledger_head = bytes.fromhex(record["own_ledger_head"])
