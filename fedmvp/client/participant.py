"""One attempt at one round, from the announcement to the verified sum.

The order of effects is this module's whole point: everything that may refuse comes before the charge, the charge, which
is also the release mark, is on disk before the masked vector is handed out, and only then is it sent.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from fedmvp.client.connection import Exchanges, Publication
from fedmvp.client.errors import CoordinatorAwayError, RoundLostError
from fedmvp.client.invitation import Invitation
from fedmvp.client.past import Past
from fedmvp.client.update_source import UpdateSource
from fedmvp.errors import ExitCode, UserError
from fedmvp.rpc.errors import WireError
from fedmvp.rpc.vectors import model_hash
from fedmvp.study.credentials import SiteCredentials
from fedmvp.study.policy import StudyPolicy
from fedmvp.training.aggregate import ServerState, apply_sum
from fedmvp.training.from_policy import server_optimizer_of
from privacy.ledger import Ledger
from privacy.mechanism import PrivacyParameters
from privacy.token import ReleaseToken
from secure_agg import messages as sa
from secure_agg.client import ClientSession
from secure_agg.context import RoundContext, validate_context
from secure_agg.encoding import vector_digest
from secure_agg.errors import LocalProtocolError, RemoteProtocolError
from secure_agg.keys import SigningKey
from secure_agg.policy import SecureSumPolicy
from secure_agg.ring import encode_integers, encode_with_count
from secure_agg.roster import Roster
from secure_agg.transitions import ClientState, Step

log = structlog.get_logger("fedmvp.client")

INITIAL_TOLERANCE = 1e-5
"""Two linear-algebra libraries may differ in the last bits of the same public initial parameters."""

Report = Callable[..., None]
"""Called as report(event, **fields) as things happen; for the operator's display."""


class SessionFactory(Protocol):
    """Makes the secure sum's session; tests pass one that injects a fault."""

    def __call__(
        self,
        *,
        policy: SecureSumPolicy,
        roster: Roster,
        site_id: int,
        signing_key: SigningKey,
        context: RoundContext,
        ledger_head: bytes,
    ) -> ClientSession:
        """Return a session for this attempt."""


@dataclass(frozen=True, eq=False)
class Site:
    """What a site keeps between rounds.

    Args:
        credentials: keys and signed documents.
        ledger: the open ledger of its records.
        source: gives its updates.
        past: the rounds it finished.
        session_factory: makes sessions.
        report: hears what happens.
        check_budget: refuses a round that the site's own limits do not allow.
    """

    credentials: SiteCredentials
    ledger: Ledger
    source: UpdateSource
    past: Past
    session_factory: SessionFactory
    report: Report
    check_budget: Callable[[], None]

    @property
    def policy(self) -> StudyPolicy:
        """The signed study."""
        return self.credentials.study.policy

    @property
    def secure_sum(self) -> SecureSumPolicy:
        """The limits of the study's sums."""
        return self.policy.secure_sum(self.source.dimension)

    @property
    def privacy(self) -> PrivacyParameters:
        """What a round costs."""
        return self.policy.privacy_parameters(self.source.dimension)

    @property
    def site_id(self) -> int:
        """This site's number in the roster."""
        return self.credentials.entry.site_id


class LedgerReleases:
    """The privacy ledger as the secure sum's register of released rounds: to mark a round is to charge it.

    Args:
        ledger: the open ledger of the site's records.
        parameters: what a round costs.
        policy_hash: hash of the signed study, recorded beside the charge.
    """

    def __init__(self, ledger: Ledger, parameters: PrivacyParameters, policy_hash: bytes) -> None:
        self._ledger = ledger
        self._parameters = parameters
        self._policy_hash = policy_hash
        self._token: ReleaseToken | None = None

    def mark(self, run_id: str, round_number: int) -> None:
        """Charge a round and mark it as released, durably, in one entry.

        Raises:
            BudgetExceeded: nothing was charged.
            AlreadyReleased: the round was charged before.
            LedgerError: the ledger could not be written.
        """
        self._token = self._ledger.reserve(run_id, round_number, self._parameters, self._policy_hash)

    def consume(self) -> None:
        """Use up the permission to send, once; RuntimeError if nothing was charged."""
        if self._token is None:
            raise RuntimeError("a masked vector is out and nothing was charged for it")
        token, self._token = self._token, None
        token.consume()


def take_part(site: Site, invitation: Invitation, exchanges: Exchanges) -> ServerState:
    """Carry one attempt through.

    Args:
        site: this site.
        invitation: the announcement and its model.
        exchanges: the calls of this attempt.

    Returns:
        The next state, recomputed from the published sum.

    Raises:
        RoundLostError: the attempt is over for this site; it asks for the next round.
        CoordinatorAwayError: the connection broke.
        UserError: the coordinator or the site's own data is not to be trusted with another round.
        BudgetExceeded: the site's budget does not allow the round.
        LedgerError: the ledger cannot be written.
    """
    _accept(site, invitation)
    context = invitation.context
    shown_head = site.ledger.head  # before the mark: a copy put back shows this head a second time, and peers notice
    try:
        site.check_budget()
        with ThreadPoolExecutor(max_workers=1) as beside:  # the disk is waited for while the site trains
            marked = beside.submit(site.ledger.mark_attempt, context.run_id, context.round, context.attempt)
            vector = _train(site, invitation)
            marked.result()
    except BaseException:
        _leave(_session(site, context, shown_head), exchanges, sa.AbortCode.REFUSED)
        raise
    session = _session(site, context, shown_head)
    try:
        published = _exchange(site, context, session, exchanges, vector)
        following = _verify_published(site, invitation, session, published)
    except (RemoteProtocolError, WireError) as error:
        log.warning("round refused", round=context.round, attempt=context.attempt, reason=str(error))
        _leave(session, exchanges, sa.AbortCode.CHECK_FAILED)
        raise RoundLostError(str(error)) from error
    except (RoundLostError, CoordinatorAwayError):
        _erase(session, sa.AbortCode.TIMED_OUT)
        raise
    except BaseException:
        _leave(session, exchanges, sa.AbortCode.LOCAL_FAILURE)
        raise
    site.past.finished(context, published, session.peer_ledger_heads, site.ledger.head)
    site.report("published", round=context.round, survivors=published.message.survivors)
    return following


def _accept(site: Site, invitation: Invitation) -> None:
    """Compare the announcement with everything this site holds itself; before any training."""
    context, study, ledger = invitation.context, site.credentials.study, site.ledger
    run_id = study.policy.study.run_id
    try:
        validate_context(
            context,
            study.policy.secure_sum(site.source.dimension),
            study.roster,
            site_id=site.site_id,
            run_id=run_id,
            policy_hash=study.policy.hash,
            model_hash=invitation.state_hash,
            last_round=study.policy.study.rounds,
            last_round_released=ledger.last_round(run_id),
            last_attempt_seen=ledger.last_attempt(run_id),
        )
        if invitation.model_round >= context.round:
            raise RemoteProtocolError(None, Step.ANNOUNCE, "the model is said to hold a sum that is still to come")
        site.past.check_model(context, invitation.model_round)
        if invitation.model_round == 0:
            _check_first_model(invitation.state, site.source.initial_parameters())
    except RemoteProtocolError as error:
        raise UserError(
            f"round {context.round} was refused: {error.reason}",
            remedy="nothing was sent or charged; ask the consortium why the coordinator announces this",
            exit_code=ExitCode.PROTOCOL,
        ) from error


def _check_first_model(state: ServerState, initial: NDArray[np.float32]) -> None:
    """Refuse a first model that is not the policy's own: nobody but the consortium chooses where training starts."""
    untouched = state.step == 0 and not state.adam_m.any() and not state.adam_v.any()
    if not untouched or not np.allclose(state.parameters, initial, rtol=0, atol=INITIAL_TOLERANCE):
        raise RemoteProtocolError(None, Step.ANNOUNCE, "the first model is not the one that the policy describes")


def _session(site: Site, context: RoundContext, shown_head: bytes) -> ClientSession:
    """A session of the secure sum for an accepted attempt."""
    return site.session_factory(
        policy=site.secure_sum,
        roster=site.credentials.study.roster,
        site_id=site.site_id,
        signing_key=site.credentials.signing_key,
        context=context,
        ledger_head=shown_head,
    )


def _train(site: Site, invitation: Invitation) -> NDArray[Any]:
    """The site's update as ring elements."""
    context = invitation.context
    site.report("training", round=context.round, attempt=context.attempt, cohort=context.cohort)
    parameters = invitation.state.parameters
    try:
        if site.policy.is_distributed:
            honest_survivors = context.threshold - context.colluders
            return encode_integers(site.secure_sum, site.source.train_on_grid(parameters, honest_survivors))
        vector, saturated = encode_with_count(site.secure_sum, site.source.train_round(parameters))
    except LocalProtocolError as error:
        raise UserError(
            f"the update of round {context.round} cannot be sent: {error.args[0]}",
            remedy="nothing was charged or sent; "
            + (
                "start this site again: noise beyond its room is drawn once in a million million vectors"
                if site.policy.is_distributed
                else "check the images and lower [training] learning_rate in the next study"
            ),
            exit_code=ExitCode.CONFIG,
        ) from error
    if saturated:
        log.warning("values beyond value_range were cut", round=context.round, count=saturated)
    return vector


def _exchange(
    site: Site, context: RoundContext, session: ClientSession, exchanges: Exchanges, vector: NDArray[Any]
) -> Publication:
    """The exchanges, with the charge where it belongs."""
    peer_keys = exchanges.advertise_keys(session.advertise_keys())
    if session.state is ClientState.KEYS_COMMITTED:  # a sparse graph
        shares = session.receive_peer_nonces(exchanges.reveal_nonce(session.reveal_nonce(peer_keys)))
    else:
        shares = session.receive_peer_keys(peer_keys)
    for peer in site.past.rolled_back(session.peer_ledger_heads):
        name = site.credentials.study.roster.entry(peer).name
        log.warning("a site shows an older ledger than before: a copy was put back", site=name, round=context.round)
        site.report("ledger-rolled-back", round=context.round, site=name)
    session.receive_peer_shares(exchanges.share_keys(shares))
    releases = LedgerReleases(site.ledger, site.privacy, site.policy.hash)
    masked = session.masked_input(vector, releases, overwrite=True)
    releases.consume()
    site.report("released", round=context.round)
    survivors = exchanges.submit_masked_input(masked)
    confirmations = exchanges.confirm_survivors(session.receive_survivors(survivors))
    unmask_shares = session.receive_confirmations(confirmations)
    return exchanges.unmask(unmask_shares, site.secure_sum)


def _verify_published(
    site: Site, invitation: Invitation, session: ClientSession, published: Publication
) -> ServerState:
    """Recompute the next state from the published sum and compare it with the one the coordinator names."""
    message = published.message
    decoded = session.receive_result(message)
    following = apply_sum(invitation.state, decoded.values, len(message.survivors), server_optimizer_of(site.policy))
    wrong_sum = vector_digest(message.total) != published.sum_hash
    if wrong_sum or model_hash(following.tensors) != published.next_model_hash:
        raise UserError(
            f"round {invitation.context.round}: the coordinator's "
            + ("sum is not the one it names" if wrong_sum else "next model does not follow from the sum it published"),
            remedy="this site has stopped; compare rounds.jsonl of the sites with the coordinator's audit.jsonl",
            exit_code=ExitCode.PROTOCOL,
        )
    return following


def _leave(session: ClientSession, exchanges: Exchanges, code: sa.AbortCode) -> None:
    """Erase the attempt's keys and tell the coordinator, if it can be told."""
    notice = _erase(session, code)
    if notice is None:
        return
    try:
        exchanges.abort(notice)
    except (CoordinatorAwayError, RoundLostError, UserError) as error:
        log.info("the coordinator did not hear that this site left", reason=str(error))


def _erase(session: ClientSession, code: sa.AbortCode) -> sa.Abort | None:
    """Erase the attempt's keys; the signed notice of it, or None when the attempt is finished and holds none."""
    return None if session.state is ClientState.DONE else session.abort(code)
