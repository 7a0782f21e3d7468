"""Between protobuf messages and the frozen values of secure_agg.

`*_to_wire` builds a protobuf message; `*_from_wire` returns the value. The values check their own lengths and counts
as they are made and raise RemoteProtocolError; what only the wire has (an unknown kind of share) raises WireError.
Whether a message is true (signatures, cohort, order) is for the sessions of secure_agg.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedmvp.rpc.errors import WireError
from fedmvp.rpc.v1 import secure_sum_pb2 as pb
from secure_agg import messages as sa

_KIND_TO_WIRE = {
    sa.ShareKind.SELF_MASK: pb.SHARE_KIND_SELF_MASK,
    sa.ShareKind.MASK_KEY: pb.SHARE_KIND_MASK_KEY,
}
_KIND_FROM_WIRE = {wire: kind for kind, wire in _KIND_TO_WIRE.items()}


def round_id_to_wire(round_number: int, attempt: int) -> pb.RoundId:
    """(round, attempt) as every request carries it."""
    return pb.RoundId(round=round_number, attempt=attempt)


def advertise_keys_to_wire(message: sa.AdvertiseKeys, round_id: pb.RoundId) -> pb.AdvertiseKeysRequest:
    """Phase 1, up."""
    return pb.AdvertiseKeysRequest(
        id=round_id,
        sender=message.sender,
        encryption_key=message.encryption_key,
        mask_key=message.mask_key,
        ledger_head=message.ledger_head,
        nonce_commitment=message.nonce_commitment,
        signature=message.signature,
    )


def advertise_keys_from_wire(wire: pb.AdvertiseKeysRequest | pb.KeyAdvert) -> sa.AdvertiseKeys:
    """Phase 1, up, and one entry of phase 1, down."""
    return sa.AdvertiseKeys(
        sender=wire.sender,
        encryption_key=wire.encryption_key,
        mask_key=wire.mask_key,
        ledger_head=wire.ledger_head,
        nonce_commitment=wire.nonce_commitment,
        signature=wire.signature,
    )


def peer_keys_to_wire(message: sa.PeerKeys) -> pb.AdvertiseKeysReply:
    """Phase 1, down."""
    return pb.AdvertiseKeysReply(
        adverts=[
            pb.KeyAdvert(
                sender=advert.sender,
                encryption_key=advert.encryption_key,
                mask_key=advert.mask_key,
                ledger_head=advert.ledger_head,
                nonce_commitment=advert.nonce_commitment,
                signature=advert.signature,
            )
            for advert in message.adverts
        ]
    )


def peer_keys_from_wire(wire: pb.AdvertiseKeysReply) -> sa.PeerKeys:
    """Phase 1, down."""
    return sa.PeerKeys(adverts=tuple(advertise_keys_from_wire(advert) for advert in wire.adverts))


def nonce_to_wire(message: sa.GraphNonce, round_id: pb.RoundId) -> pb.RevealNonceRequest:
    """Phase 1b, up."""
    return pb.RevealNonceRequest(id=round_id, sender=message.sender, nonce=message.nonce)


def nonce_from_wire(wire: pb.RevealNonceRequest | pb.GraphNonce) -> sa.GraphNonce:
    """Phase 1b, up, and one entry of phase 1b, down."""
    return sa.GraphNonce(sender=wire.sender, nonce=wire.nonce)


def peer_nonces_to_wire(message: sa.PeerNonces) -> pb.RevealNonceReply:
    """Phase 1b, down."""
    return pb.RevealNonceReply(nonces=[pb.GraphNonce(sender=item.sender, nonce=item.nonce) for item in message.nonces])


def peer_nonces_from_wire(wire: pb.RevealNonceReply) -> sa.PeerNonces:
    """Phase 1b, down."""
    return sa.PeerNonces(nonces=tuple(nonce_from_wire(entry) for entry in wire.nonces))


def share_keys_to_wire(message: sa.ShareKeys, round_id: pb.RoundId) -> pb.ShareKeysRequest:
    """Phase 2, up."""
    return pb.ShareKeysRequest(
        id=round_id,
        sender=message.sender,
        commitment=message.commitment,
        shares=[
            pb.SealedShare(recipient=share.recipient, ciphertext=share.ciphertext, signature=share.signature)
            for share in message.shares
        ],
    )


def share_keys_from_wire(wire: pb.ShareKeysRequest) -> sa.ShareKeys:
    """Phase 2, up."""
    return sa.ShareKeys(
        sender=wire.sender,
        commitment=wire.commitment,
        shares=tuple(
            sa.EncryptedShare(
                recipient=share.recipient,
                ciphertext=share.ciphertext,
                signature=share.signature,
            )
            for share in wire.shares
        ),
    )


def peer_shares_to_wire(message: sa.PeerShares) -> pb.ShareKeysReply:
    """Phase 2, down."""
    return pb.ShareKeysReply(
        shares=[
            pb.DeliveredShare(
                sender=share.sender,
                commitment=share.commitment,
                ciphertext=share.ciphertext,
                signature=share.signature,
            )
            for share in message.shares
        ],
        commitments=[pb.Commitment(site=site, commitment=value) for site, value in message.commitments],
    )


def peer_shares_from_wire(wire: pb.ShareKeysReply) -> sa.PeerShares:
    """Phase 2, down."""
    return sa.PeerShares(
        shares=tuple(
            sa.PeerShare(
                sender=share.sender,
                commitment=share.commitment,
                ciphertext=share.ciphertext,
                signature=share.signature,
            )
            for share in wire.shares
        ),
        commitments=tuple((entry.site, entry.commitment) for entry in wire.commitments),
    )


def survivors_to_wire(message: sa.Survivors) -> pb.SurvivorsReply:
    """Phase 3, down."""
    return pb.SurvivorsReply(
        inputs=[
            pb.InputDigest(sender=entry.sender, digest=entry.digest, signature=entry.signature)
            for entry in message.inputs
        ]
    )


def survivors_from_wire(wire: pb.SurvivorsReply) -> sa.Survivors:
    """Phase 3, down."""
    return sa.Survivors(
        inputs=tuple(
            sa.InputDigest(
                sender=entry.sender,
                digest=entry.digest,
                signature=entry.signature,
            )
            for entry in wire.inputs
        )
    )


def confirmation_to_wire(message: sa.SurvivorConfirmation, round_id: pb.RoundId) -> pb.ConfirmSurvivorsRequest:
    """Phase 4, up."""
    return pb.ConfirmSurvivorsRequest(id=round_id, sender=message.sender, signature=message.signature)


def confirmation_from_wire(wire: pb.ConfirmSurvivorsRequest | pb.Confirmation) -> sa.SurvivorConfirmation:
    """Phase 4, up, and one entry of phase 4, down."""
    return sa.SurvivorConfirmation(
        sender=wire.sender,
        signature=wire.signature,
    )


def confirmations_to_wire(message: sa.Confirmations) -> pb.ConfirmSurvivorsReply:
    """Phase 4, down."""
    return pb.ConfirmSurvivorsReply(
        confirmations=[
            pb.Confirmation(sender=entry.sender, signature=entry.signature) for entry in message.confirmations
        ]
    )


def confirmations_from_wire(wire: pb.ConfirmSurvivorsReply) -> sa.Confirmations:
    """Phase 4, down."""
    return sa.Confirmations(confirmations=tuple(confirmation_from_wire(entry) for entry in wire.confirmations))


def unmask_to_wire(message: sa.UnmaskShares, round_id: pb.RoundId) -> pb.UnmaskRequest:
    """Phase 5, up."""
    return pb.UnmaskRequest(id=round_id, sender=message.sender, shares=_unmask_shares(message.shares))


def _unmask_shares(shares: Iterable[sa.UnmaskShare]) -> list[pb.UnmaskShare]:
    return [pb.UnmaskShare(owner=share.owner, kind=_KIND_TO_WIRE[share.kind], share=share.share) for share in shares]


def unmask_from_wire(wire: pb.UnmaskRequest) -> sa.UnmaskShares:
    """Phase 5, up."""
    if any(share.kind not in _KIND_FROM_WIRE for share in wire.shares):
        message = "a share is of no known kind"
        raise WireError(message)
    return sa.UnmaskShares(
        sender=wire.sender,
        shares=tuple(
            sa.UnmaskShare(owner=share.owner, kind=_KIND_FROM_WIRE[share.kind], share=share.share)
            for share in wire.shares
        ),
    )


def abort_to_wire(message: sa.Abort, round_id: pb.RoundId) -> pb.AbortRequest:
    """A signed refusal, up."""
    return pb.AbortRequest(
        id=round_id,
        sender=message.sender,
        step=message.step,
        code=message.code,
        accused=message.accused,
        signature=message.signature,
    )


def abort_from_wire(wire: pb.AbortRequest) -> sa.Abort:
    """A signed refusal, up."""
    return sa.Abort(sender=wire.sender, step=wire.step, code=wire.code, accused=wire.accused, signature=wire.signature)
