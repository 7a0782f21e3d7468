"""An announced round as this site received it: the context, and the model state it hashed itself."""

from __future__ import annotations

from dataclasses import dataclass

from fedmvp.client.connection import RoundCall
from fedmvp.rpc.fields import round_id, text
from fedmvp.rpc.v1 import aggregation_pb2 as pb
from fedmvp.rpc.vectors import StateLayout, model_hash
from fedmvp.training.aggregate import ServerState
from secure_agg.context import RoundContext
from secure_agg.errors import RemoteProtocolError
from secure_agg.transitions import Step


@dataclass(frozen=True, eq=False)
class Invitation:
    """What a site was told about an attempt.

    Args:
        context: as announced; not yet compared with anything of the site's own.
        state: the model state, from the bytes that came.
        state_hash: hash that the site computed over it (32 bytes).
        model_round: the last round whose sum is in the state, as announced; 0 before the first.
    """

    context: RoundContext
    state: ServerState
    state_hash: bytes
    model_round: int


def read_invitation(announcement: pb.Announcement, call: RoundCall, layout: StateLayout) -> Invitation:
    """Read the model that follows an announcement.

    Args:
        announcement: the announcement.
        call: where the model's bytes come from.
        layout: the state as this site's own model says; nothing else is read.

    Raises:
        RemoteProtocolError: another layout, or numbers that are not finite.
        WireError: fewer or more bytes.
    """
    if StateLayout.from_wire(announcement.tensors) != layout:
        raise _refusal("the announced state has other tensors than this site's model")
    round_number, attempt = round_id(announcement)
    context = RoundContext(
        run_id=text(announcement.run_id, "run_id"),
        round=round_number,
        attempt=attempt,
        policy_hash=announcement.policy_hash,
        roster_hash=announcement.roster_hash,
        model_hash=announcement.model_hash,
        cohort=tuple(announcement.cohort),
        threshold=announcement.threshold,
        colluders=announcement.colluders,
        ring_bits=announcement.ring_bits,
        length=announcement.length,
        graph=text(announcement.graph, "graph"),
        degree=announcement.degree,
        share_threshold=announcement.share_threshold,
    )
    tensors = layout.unpack(call.read_model(layout.n_bytes))
    try:
        state = ServerState.from_tensors(dict(tensors))
    except ValueError as error:
        raise _refusal(str(error)) from error
    return Invitation(context, state, model_hash(tensors), announcement.model_round)


def _refusal(reason: str) -> RemoteProtocolError:
    return RemoteProtocolError(None, Step.ANNOUNCE, reason)
