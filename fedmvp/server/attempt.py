"""One attempt at one round, as the calls of the sites and the coordinator's loop meet in it.

A site's call hands in a message and is held until the coordinator closes the step and releases its replies. The order
of messages and everything cryptographic is secure_agg's; this module knows who is still there and how long to wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fedmvp.server.errors import AttemptOverError
from secure_agg.context import RoundContext
from secure_agg.policy import SecureSumPolicy
from secure_agg.server import ServerSession
from secure_agg.transitions import Step

EXCHANGES = (
    Step.ADVERTISE_KEYS,
    Step.REVEAL_NONCES,
    Step.SHARE_KEYS,
    Step.MASKED_INPUT,
    Step.CONFIRM_SURVIVORS,
    Step.UNMASK,
)
"""The exchanges in their order; that of the nonces is for a sparse graph only."""


class Attempt:
    """A server session together with the calls that wait on it.

    Args:
        context: what was announced.
        policy: for the number of sites a step cannot do without.
        session: the state machine that receives the messages.
        on_first_keys: called when the first site has finished its training.
    """

    def __init__(
        self,
        context: RoundContext,
        policy: SecureSumPolicy,
        session: ServerSession,
        *,
        on_first_keys: Callable[[], None] = lambda: None,
    ) -> None:
        self.context = context
        self.bytes_up = dict.fromkeys(context.cohort, 0)
        self._session = session
        self._graph = policy.graph(len(context.cohort))
        self._floor = policy.survivor_floor(len(context.cohort))
        self._exchanges = [step for step in EXCHANGES if self._graph.sparse or step is not Step.REVEAL_NONCES]
        self._open: Step | None = Step.ADVERTISE_KEYS
        self._missing = set(session.expected)  # sites whose message of the open step may still come
        self._answered = 0  # messages of the open step that are in
        self._answered_before = 0  # how many that were in the step before
        self._gone: set[int] = set()
        self._progress = asyncio.Event()
        self._over = asyncio.Event()
        self.may_have_released = False
        self._replies: dict[Step, asyncio.Future[Any]] = {
            step: asyncio.get_running_loop().create_future() for step in self._exchanges
        }
        self._on_first_keys = on_first_keys

    @property
    def session(self) -> ServerSession:
        """The state machine; the coordinator closes its steps."""
        return self._session

    @property
    def gone(self) -> frozenset[int]:
        """Sites that have left or were dropped."""
        return frozenset(self._gone)

    @property
    def is_over(self) -> bool:
        """Whether the attempt has ended, in whatever way."""
        return self._over.is_set()

    async def wait_until_over(self) -> None:
        """Return when the attempt has ended."""
        await self._over.wait()

    def require_open(self, step: Step, site: int) -> None:
        """Refuse a message that comes too late, too early, or from a site that has been given up.

        Raises:
            AttemptOverError: the message cannot be taken any more.
        """
        if self._open is not step or site in self._gone or site not in self.bytes_up:
            state = "over" if self.is_over else f"at {self._open}" if self._open else "between two steps"
            name = f"round {self.context.round} attempt {self.context.attempt}"
            raise AttemptOverError(f"{name} is {state} and takes no {step} from this site")

    async def exchange(self, step: Step, site: int, deliver: Callable[[ServerSession], None]) -> Any:
        """Hand in one site's message and wait for the reply.

        Args:
            step: which exchange the message belongs to.
            site: its sender, as the connection says.
            deliver: passes the message to the session; may raise RemoteProtocolError.

        Returns:
            What :meth:`release` was given for this step; for a dictionary, this site's entry.

        Raises:
            AttemptOverError: too late, or the attempt was aborted while the call was held.
        """
        self.require_open(step, site)
        deliver(self._session)
        self._missing.discard(site)
        self._answered += 1
        if step is Step.ADVERTISE_KEYS and self._answered == 1:
            self._on_first_keys()
        self._progress.set()
        try:
            reply = await asyncio.shield(self._replies[step])
        except asyncio.CancelledError:
            self.drop(site)
            raise
        if isinstance(reply, dict):
            if site not in reply:
                raise AttemptOverError(f"round {self.context.round} went on without this site")
            return reply[site]
        return reply

    def drop(self, site: int) -> None:
        """Stop waiting for a site. What it has handed in already still counts."""
        if site in self.bytes_up and not self.is_over:
            self._gone.add(site)
            self._missing.discard(site)
            self._progress.set()

    async def collect(self, step: Step, timeout_seconds: float) -> None:
        """Wait for the answers of a step, then shut it.

        That is at once when every site that can still answer has, or when too few are left; else at the deadline.
        """
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        while self._missing and self._answered + len(self._missing) >= self._floor_of(step):
            self._progress.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._progress.wait()
            except TimeoutError:
                break
        self._open = None
        self._gone.update(self._missing)  # whoever did not answer is out of this attempt

    def _floor_of(self, step: Step) -> int:
        """The fewest answers with which the session goes on from a step."""
        if step is Step.ADVERTISE_KEYS:
            return self._graph.key_floor
        if step is Step.REVEAL_NONCES:
            return max(self._graph.key_floor, self._answered_before - self._graph.max_withheld)
        if step in {Step.CONFIRM_SURVIVORS, Step.UNMASK}:
            return self.context.threshold
        return self._floor

    def release(self, step: Step, reply: Any) -> None:
        """Open the next step and send the replies of this one."""
        if step is Step.SHARE_KEYS:
            self.may_have_released = True
        following = self._exchanges.index(step) + 1
        self._open = self._exchanges[following] if following < len(self._exchanges) else None
        self._answered_before, self._answered = self._answered, 0
        self._missing = set(self._session.expected) - self._gone
        if self._open is None:
            self._over.set()
        self._replies[step].set_result(reply)

    def abort(self, reason: str) -> None:
        """End the attempt: every held call fails with `reason`."""
        self._open = None
        self._over.set()
        for future in self._replies.values():
            if not future.done():
                future.set_exception(AttemptOverError(reason))
                future.exception()  # marked as seen: often nobody is waiting on it
