"""Verification (PS3.4 Annex A): C-ECHO in both roles."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dcmhaul import uids
from dcmhaul.errors import AssociationAborted, NoAcceptedContext, RemoteProtocolError
from dcmhaul.protocol.dimse import CEchoRq, CEchoRsp, DimseMessage, response_to
from dcmhaul.protocol.negotiation import SupportedContext
from dcmhaul.protocol.statuses import UNRECOGNIZED_OPERATION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dcmhaul.net import Association, Incoming

__all__ = ["VerificationScp", "echo", "request_echo"]

_SYNTAXES = (
    uids.IMPLICIT_VR_LITTLE_ENDIAN,
    uids.EXPLICIT_VR_LITTLE_ENDIAN,
    uids.EXPLICIT_VR_BIG_ENDIAN,
)


class VerificationScp:
    """Answers every C-ECHO with 0000."""

    def contexts(self) -> Mapping[str, SupportedContext]:
        return {uids.VERIFICATION: SupportedContext(transfer_syntaxes=_SYNTAXES)}

    def handles(self) -> tuple[type[DimseMessage], ...]:
        return (CEchoRq,)

    async def handle(self, association: Association, incoming: Incoming) -> None:
        request = incoming.message
        assert isinstance(request, CEchoRq)  # the provider dispatches by type
        if request.has_dataset:
            await association.read_dataset(None)
        context = incoming.context
        status = UNRECOGNIZED_OPERATION
        if context.abstract_syntax == uids.VERIFICATION:
            status = 0x0000
        association.queue(context.context_id, response_to(request, status))
        association.observer.operation("C-ECHO", "in", status, 0.0, 0)


async def echo(association: Association) -> int:
    """One C-ECHO; returns the status of its response."""
    return (await request_echo(association)).status


async def request_echo(association: Association) -> CEchoRsp:
    """One C-ECHO; returns its response (PS3.7 §9.1.5)."""
    context = association.agreement.context_for(uids.VERIFICATION)
    if context is None:
        raise NoAcceptedContext(
            f"{association.peer} did not accept a context for Verification: it answers no C-ECHO"
        )
    message_id = association.next_message_id()
    started = time.perf_counter()
    association.queue(
        context.context_id,
        CEchoRq(message_id=message_id, affected_sop_class_uid=uids.VERIFICATION),
    )
    await association.flush()
    incoming = await association.receive(
        seconds=association.timeouts.dimse, phase="C-ECHO response"
    )
    if incoming is None:
        raise AssociationAborted(0, 0, f"{association.peer} released instead of answering C-ECHO")
    response = incoming.message
    if (
        not isinstance(response, CEchoRsp)
        or response.message_id_being_responded_to != message_id
        or response.has_dataset
    ):
        raise RemoteProtocolError(
            f"{type(response).__name__} where the response to our C-ECHO was due",
            source=0,
            reason=0,
        )
    association.message_ids.give_back(message_id)
    seconds = time.perf_counter() - started
    association.observer.operation("C-ECHO", "out", response.status, seconds, 0)
    return response
