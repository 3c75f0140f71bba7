"""C-MOVE (PS3.4 §C.4.2): the peer sends to a third AE, or to an SCP of ours; we hear how far it is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from dcmhaul.protocol.dimse import CMoveRq, CMoveRsp, Priority
from dcmhaul.services.provider import refuse_stray
from dcmhaul.services.query import QueryModel, context_for_model
from dcmhaul.services.retrieve import CANCEL_SECONDS, RetrieveScu

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from dcmhaul.net import Association
    from dcmhaul.services.identifiers import EncodeIdentifier
    from dcmhaul.services.retrieve import RetrieveResponse, SignsOfLife

__all__ = ["OWN_SCP_SECONDS", "THIRD_PARTY_SECONDS", "move"]

OWN_SCP_SECONDS: Final = 600.0
"""How long a C-MOVE to an SCP of ours may go without a response, and without anything that arrives."""
THIRD_PARTY_SECONDS: Final = 3600.0
"""The same where only responses are seen: pending ones are optional (PS3.4 §C.4.2.2.1)."""


async def move(
    association: Association,
    model: QueryModel,
    identifier: bytes | EncodeIdentifier,
    destination_ae_title: str,
    *,
    priority: int = Priority.MEDIUM,
    on_pending: Callable[[RetrieveResponse], None] | None = None,
    cancel: trio.Event | None = None,
    cancel_seconds: float | None = CANCEL_SECONDS,
    seconds: float | None = THIRD_PARTY_SECONDS,
    signs: SignsOfLife | None = None,
) -> RetrieveResponse:
    """One C-MOVE to the AE that the peer knows by that title; returns the final response.

    identifier: bytes in the context's transfer syntax, or what encodes it. on_pending hears of each
    pending response, and may set `cancel`: once set, a C-CANCEL goes out. A peer that has not ended
    after `cancel_seconds` ignores it: PeerTimeout, and leaving the association then aborts it.
    seconds: without a response, and without a sign of life in `signs`, which whoever sees the
    sub-operations arrive touches; then PeerTimeout. What the final response says is a hint: some
    peers send it before their sub-operations, or count none of them.
    Raises NoAcceptedContext, PeerTimeout, AssociationAborted, RemoteProtocolError, TransportError.
    """
    context = context_for_model(association, model.move_uid)
    if callable(identifier):
        identifier = identifier(context.transfer_syntax)
    started = time.perf_counter()
    scu = RetrieveScu(association, context, "C-MOVE", seconds=seconds, signs=signs)
    request = CMoveRq(
        message_id=scu.message_id,
        affected_sop_class_uid=model.move_uid,
        move_destination=destination_ae_title,
        priority=priority,
    )
    await association.send(context.context_id, request, identifier)
    async with scu.cancelled_by(cancel, cancel_seconds):
        response = await _final_response(scu, on_pending)
    scu.ended(response, started)
    return response


async def _final_response(
    scu: RetrieveScu, on_pending: Callable[[RetrieveResponse], None] | None
) -> RetrieveResponse:
    while True:
        incoming = await scu.receive()
        if not isinstance(incoming.message, CMoveRsp):
            await refuse_stray(scu.association, incoming)
            continue
        response = await scu.response(incoming)
        if not response.pending:
            return response
        if on_pending is not None:
            on_pending(response)
