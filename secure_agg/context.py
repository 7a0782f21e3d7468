"""The round context: everything that must be the same at every site of one attempt at one round.

Its hash goes into every signature, key and mask seed, so that a server which shows two sites two different worlds gets
signatures that the other does not accept, and masks that do not cancel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from secure_agg.encoding import DIGEST_BYTES, digest, u32, u32_list, u64
from secure_agg.errors import PolicyError, RemoteProtocolError, RosterError
from secure_agg.graph import MAX_ATTEMPTS
from secure_agg.policy import SecureSumPolicy
from secure_agg.roster import Roster
from secure_agg.transitions import Step

NAME = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class RoundContext:
    """What the server announces and every site then signs.

    Args:
        run_id: name of the run, from the signed study policy.
        round: number of the round, from 1.
        attempt: number of the attempt at this round, from 1.
        policy_hash: hash of the signed study policy (32 bytes).
        roster_hash: hash of the roster (32 bytes).
        model_hash: hash of the model state that the sites were sent (32 bytes).
        cohort: ids of the invited sites (U0), ascending.
        threshold: t, the number of answers that every phase needs.
        colluders: c, the number of colluding sites that t was computed for.
        ring_bits: 16, 32 or 64.
        length: elements of every masked vector.
        graph: which pairs of sites share a mask: "complete" or "harary".
        degree: neighbours of each site in the graph.
        share_threshold: shares that recover a secret.
    """

    run_id: str
    round: int
    attempt: int
    policy_hash: bytes
    roster_hash: bytes
    model_hash: bytes
    cohort: tuple[int, ...]
    threshold: int
    colluders: int
    ring_bits: int
    length: int
    graph: str
    degree: int
    share_threshold: int

    def __post_init__(self) -> None:
        if not (NAME.fullmatch(self.run_id) and NAME.fullmatch(self.graph)):
            raise _refusal("a name in the round context is not printable ASCII without spaces")
        numbers_fit = (
            1 <= self.round < 2**64
            and 1 <= self.attempt < 2**32
            and all(0 <= value < 2**32 for value in (*self.cohort, self.threshold, self.colluders, self.ring_bits))
            and all(0 <= value < 2**32 for value in (self.degree, self.share_threshold))
            and 0 <= self.length < 2**64
        )
        if not numbers_fit:
            raise _refusal("a number of the round context is out of its range")
        if any(len(value) != DIGEST_BYTES for value in (self.policy_hash, self.roster_hash, self.model_hash)):
            raise _refusal("a hash of the round context is not 32 bytes long")
        if list(self.cohort) != sorted(set(self.cohort)):
            raise _refusal("the cohort is not in ascending order without repeats")

    def __repr__(self) -> str:
        where = f"run_id={self.run_id!r}, round={self.round}, attempt={self.attempt}"
        return f"RoundContext({where}, cohort=<{len(self.cohort)} sites>, graph={self.graph!r})"

    @cached_property
    def hash(self) -> bytes:
        """SHA-256 of the canonical encoding (32 bytes)."""
        return digest(
            "fedmvp/context/v1",
            self.run_id.encode("utf-8"),
            u64(self.round),
            u32(self.attempt),
            self.policy_hash,
            self.roster_hash,
            self.model_hash,
            u32_list(self.cohort),
            u32(self.threshold),
            u32(self.colluders),
            u32(self.ring_bits),
            u64(self.length),
            self.graph.encode("utf-8"),
            u32(self.degree),
            u32(self.share_threshold),
        )

    @classmethod
    def under(
        cls,
        policy: SecureSumPolicy,
        roster: Roster,
        *,
        run_id: str,
        round: int,  # noqa: A002 - the field's name
        attempt: int,
        policy_hash: bytes,
        model_hash: bytes,
        cohort: tuple[int, ...],
    ) -> Self:
        """Return the one context that a policy and a roster allow for a cohort.

        Args:
            policy: decides threshold, graph, ring and length.
            roster: gives its hash.
            run_id: as in the class, like every argument after it.
            round: number of the round.
            attempt: number of the attempt.
            policy_hash: hash of the signed study policy.
            model_hash: hash of the model state.
            cohort: ids of the invited sites, ascending.

        Raises:
            PolicyError: if the policy does not serve a cohort of this size.
        """
        graph = policy.graph(len(cohort))
        return cls(
            run_id=run_id,
            round=round,
            attempt=attempt,
            policy_hash=policy_hash,
            roster_hash=roster.hash,
            model_hash=model_hash,
            cohort=cohort,
            threshold=policy.threshold(len(cohort)),
            colluders=policy.colluders,
            ring_bits=policy.ring_bits,
            length=policy.length,
            graph=graph.name,
            degree=graph.degree,
            share_threshold=graph.share_threshold,
        )


def check_agreement(context: RoundContext, policy: SecureSumPolicy, roster: Roster) -> None:
    """Check everything of a context that a policy and a roster decide without knowing the past.

    Args:
        context: what the server announced.
        policy: the site's own policy.
        roster: the site's own roster.

    Raises:
        RemoteProtocolError: naming the first thing that differs.
    """
    if context.roster_hash != roster.hash:
        raise _refusal("the roster is not the one this site holds")
    _check_cohort(context, roster)
    n = len(context.cohort)
    try:
        threshold, graph = policy.threshold(n), policy.graph(n)
    except PolicyError as refused:
        raise _refusal(refused.args[0]) from refused
    agreed = (
        ("threshold", context.threshold, threshold),
        ("number of colluders", context.colluders, policy.colluders),
        ("ring", context.ring_bits, policy.ring_bits),
        ("vector length", context.length, policy.length),
        ("graph", context.graph, graph.name),
        ("graph's degree", context.degree, graph.degree),
        ("share threshold", context.share_threshold, graph.share_threshold),
    )
    for what, announced, own in agreed:
        if announced != own:
            raise _refusal(f"the {what} is {announced} where this site's policy says {own}")
    if graph.sparse and context.attempt > MAX_ATTEMPTS:
        raise _refusal(f"on a sparse graph a site joins at most {MAX_ATTEMPTS} attempts at a round")


def _check_cohort(context: RoundContext, roster: Roster) -> None:
    """Check that every invited site is on the roster, active, and from an organisation of its own."""
    organisations: set[str] = set()
    for site_id in context.cohort:
        try:
            entry = roster.entry(site_id)
        except RosterError:
            raise _refusal(f"site {site_id} of the cohort is not on the roster") from None
        if entry.revoked:
            raise _refusal(f"site {site_id} of the cohort is revoked")
        if entry.organisation in organisations:
            raise _refusal(f"site {site_id} of the cohort belongs to an organisation that is in it already")
        organisations.add(entry.organisation)


def validate_context(
    context: RoundContext,
    policy: SecureSumPolicy,
    roster: Roster,
    *,
    site_id: int,
    run_id: str,
    policy_hash: bytes,
    model_hash: bytes,
    last_round: int,
    last_round_released: int,
    last_attempt_seen: tuple[int, int],
) -> None:
    """Decide whether this site takes part in an announced attempt.

    Args:
        context: what the server announced.
        policy: the site's own policy.
        roster: the site's own roster.
        site_id: this site.
        run_id: the run of the site's own signed policy; the counters below are those of this run.
        policy_hash: hash of the site's own signed policy.
        model_hash: hash of the model state this site actually received.
        last_round: the last round that the policy plans.
        last_round_released: highest round for which a masked vector may have left this site, 0 if none.
        last_attempt_seen: (round, attempt) of the newest attempt this site ever joined, (0, 0) if none.

    Raises:
        RemoteProtocolError: naming the first check that failed; the site must not answer the announcement.
    """
    if context.run_id != run_id:
        raise _refusal("the run is not the one of this site's policy")
    if context.policy_hash != policy_hash:
        raise _refusal("the policy is not the one this site holds")
    if context.model_hash != model_hash:
        raise _refusal("the announced model hash is not that of the model received")
    if context.round > last_round:
        raise _refusal(f"the policy ends with round {last_round}")
    if context.round <= last_round_released:
        raise _refusal(f"a vector for round {context.round} or a later one was already released")
    if (context.round, context.attempt) <= last_attempt_seen:
        raise _refusal("this attempt, or a newer one, was already joined")
    if site_id not in context.cohort:
        raise _refusal("this site is not in the cohort")
    check_agreement(context, policy, roster)


def _refusal(reason: str) -> RemoteProtocolError:
    """Blame the server, which is who announces contexts."""
    return RemoteProtocolError(None, Step.ANNOUNCE, reason)
