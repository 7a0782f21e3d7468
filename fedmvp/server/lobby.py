"""Which sites are here and waiting for a round.

A site is here while its AwaitRound call is open. A second call of the same site replaces the first: a process that was
restarted is back before the old connection is known to be dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from fedmvp.rpc.v1 import aggregation_pb2 as pb
from fedmvp.server.attempt import Attempt


@dataclass(frozen=True, eq=False)
class Invitation:
    """An attempt and what its members are sent about it.

    Args:
        attempt: where their messages go.
        announcement: the context and the layout of the state.
        model: the state's bytes in chunks.
    """

    attempt: Attempt
    announcement: pb.Announcement
    model: tuple[bytes, ...]


@dataclass(frozen=True)
class RunOver:
    """How a run of the coordinator ended.

    Args:
        rounds_completed: sums published since the study began.
        reason: why no further round comes.
        finished: whether the study is done; otherwise the coordinator was stopped and the sites wait for it.
    """

    rounds_completed: int
    reason: str
    finished: bool = True


@dataclass(eq=False)
class Presence:
    """One open AwaitRound call."""

    site: int
    invitation: asyncio.Future[Invitation | RunOver] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )

    @property
    def attempt(self) -> Attempt | None:
        """The attempt the site was invited to, if any."""
        if not self.invitation.done() or self.invitation.cancelled():
            return None
        invitation = self.invitation.result()
        return invitation.attempt if isinstance(invitation, Invitation) else None


class Lobby:
    """The waiting sites, and whom it is worth to wait for.

    Args:
        sites: every active site of the roster; at first all of them are worth a short wait.
    """

    def __init__(self, sites: Collection[int]) -> None:
        self._here: dict[int, Presence] = {}
        self._hoped_for = set(sites)
        self._broken: set[int] = set()
        self._told: set[int] = set()
        self._changed = asyncio.Event()
        self._over: RunOver | None = None

    @property
    def waiting(self) -> tuple[int, ...]:
        """Sites that wait for an invitation, ascending."""
        return tuple(sorted(site for site, presence in self._here.items() if not presence.invitation.done()))

    @property
    def connected(self) -> frozenset[int]:
        """Sites that are here, or were until their round ended and are not known to have gone since."""
        return frozenset(self._hoped_for - self._broken)

    @property
    def present(self) -> frozenset[int]:
        """Sites with an open call, waiting or in a round."""
        return frozenset(self._here)

    def enter(self, site: int) -> Presence:
        """A site asks for the next round."""
        earlier = self._here.get(site)
        if earlier is not None:
            self.leave(earlier)
        presence = Presence(site)
        if self._over is not None:
            presence.invitation.set_result(self._over)
        self._here[site] = presence
        self._hoped_for.add(site)
        self._broken.discard(site)
        self._changed.set()
        return presence

    def leave(self, presence: Presence) -> None:
        """A site's call has ended, by its own will or because the connection broke."""
        if self._here.get(presence.site) is presence:
            del self._here[presence.site]
        attempt = presence.attempt
        if attempt is not None and not attempt.is_over:
            attempt.drop(presence.site)
            self._broken.add(presence.site)
        elif attempt is None and presence.invitation.done():
            self._told.add(presence.site)
        elif attempt is None:
            presence.invitation.cancel()
            self._broken.add(presence.site)
        self._changed.set()

    def give_up(self, site: int) -> None:
        """A site said that it will not come back by itself."""
        self._hoped_for.discard(site)
        self._changed.set()

    async def gather(self, at_least: int, *, timeout_seconds: float, grace_seconds: float) -> tuple[int, ...]:
        """Wait for a cohort.

        Once `at_least` sites wait, those that were here before, or never yet, get `grace_seconds` to come (back); a
        site that lets this pass is not waited for again until it has come by itself.

        Args:
            at_least: sites without which there is no round.
            timeout_seconds: how long to wait for these.
            grace_seconds: how long to wait for the rest.

        Returns:
            The waiting sites, ascending; fewer than `at_least` when the time is up.
        """
        if await self._until(lambda: len(self.waiting) >= at_least, timeout_seconds):
            await self._until(lambda: self._hoped_for <= set(self.waiting), grace_seconds)
            self._hoped_for &= set(self._here)
        return self.waiting

    async def _until(self, condition: Callable[[], bool], timeout_seconds: float) -> bool:
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        while not condition():
            self._changed.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._changed.wait()
            except TimeoutError:
                return False
        return True

    def invite(self, invitation: Invitation) -> None:
        """Tell the members of a cohort about their attempt; whoever has left meanwhile is dropped from it."""
        attempt = invitation.attempt
        for site in attempt.context.cohort:
            presence = self._here.get(site)
            if presence is None or presence.invitation.done():
                attempt.drop(site)
            else:
                presence.invitation.set_result(invitation)

    def close(self, over: RunOver) -> None:
        """Tell everybody, now and later, that the run is over."""
        self._over = over
        for presence in self._here.values():
            if not presence.invitation.done():
                presence.invitation.set_result(over)

    async def wait_until_told(self, timeout_seconds: float) -> None:
        """Return when every connected site has been told that the run is over, or the time is up."""
        await self._until(lambda: not self._here and self.connected <= self._told, timeout_seconds)
