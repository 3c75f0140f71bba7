"""Opens associations: connects, proposes, and hands out what the peer accepted."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from dcmhaul.errors import (
    AssociationAborted,
    AssociationRejected,
    ConnectionDropped,
    PeerTimeout,
    RemoteProtocolError,
    TlsError,
    TransportError,
)
from dcmhaul.net.association import ABORT_SECONDS, Association
from dcmhaul.net.tls import ALERT_RECORD
from dcmhaul.net.tls import transport as transport_over
from dcmhaul.net.transport import Transport, connect, host_port
from dcmhaul.net.types import NullObserver, Observer, SocketOptions, Timeouts
from dcmhaul.protocol.events import (
    Aborted,
    AssociationAccepted,
    AssociationRejectedEvent,
    Event,
    ProviderAborted,
    Role,
)
from dcmhaul.protocol.negotiation import AssociationRequest, requestor_agreement
from dcmhaul.protocol.upper_layer import UpperLayer
from dcmhaul.wire._fragments import SendQueue
from dcmhaul.wire._frames import NEED_DATA, PduReader
from dcmhaul.wire.pdu import describe_abort, describe_rejection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dcmhaul.wire.pdu import AAssociateAc

__all__ = ["open_association"]


@asynccontextmanager
async def open_association(
    host: str,
    port: int,
    request: AssociationRequest,
    *,
    timeouts: Timeouts | None = None,
    options: SocketOptions | None = None,
    observer: Observer | None = None,
) -> AsyncIterator[Association]:
    """An association with the peer at `host`:`port`; left cleanly it is released, else aborted.

    Raises PeerTimeout, TransportError, AssociationRejected or AssociationAborted while it is opened.
    That no context was accepted is left to the caller to judge (PS3.8 §7.1.1).
    """
    timeouts = timeouts or Timeouts()
    observer = observer or NullObserver()
    options = options or SocketOptions()
    sock = await connect(host, port, timeouts.connect, options)
    peer = host_port(host, port)
    upper = UpperLayer(Role.REQUESTOR)
    reader = PduReader(request.pdu_length_max)
    transport = transport_over(sock, reader, SendQueue(0), options.tls, host)
    association: Association | None = None
    try:
        rq = request.to_pdu()
        await _secure(transport, peer, timeouts.connect)
        upper.connect()
        upper.transport_connected(rq)
        ac = await _negotiate(transport, upper, peer, timeouts, observer)
        agreement = requestor_agreement(rq, ac).sending_at_most(request.pdu_length_send_max)
        transport.queue.limit(agreement.pdu_length_send_max)
        association = Association(transport, upper, agreement, peer, timeouts, observer)
        observer.association_opened(Role.REQUESTOR, peer, association.stats)
        try:
            yield association
        except BaseException:
            await association.abort()
            raise
        finally:
            await association.release()
            observer.association_closed(Role.REQUESTOR, association.stats(), association.stats)
    except BaseException as exc:
        if association is None:
            await _break_off(transport, upper, exc)
        raise
    finally:
        transport.close()


async def _secure(transport: Transport, peer: str, seconds: float | None) -> None:
    """The TLS handshake, where there is one."""
    try:
        with trio.fail_after(seconds if seconds is not None else float("inf")):
            await transport.handshake()
    except trio.TooSlowError as exc:
        raise PeerTimeout(
            "TLS handshake",
            seconds or 0.0,
            f"{peer} took the connection but not the TLS handshake; does it speak TLS on this port?",
        ) from exc
    except TlsError as exc:
        raise TlsError(f"{peer}: {exc}") from exc


async def _negotiate(
    transport: Transport, upper: UpperLayer, peer: str, timeouts: Timeouts, observer: Observer
) -> AAssociateAc:
    for pdu in upper.take_output():
        transport.queue.add_bytes(pdu)
    event: Event | None = None
    try:
        with trio.fail_after(timeouts.association or float("inf")):
            await transport.flush(None)
            while transport.reader.next() == NEED_DATA:
                if not await transport.receive(None, "association", in_message=False):
                    upper.transport_closed()
                    raise _dropped(peer, transport)
    except trio.TooSlowError as exc:
        raise PeerTimeout(
            "association",
            timeouts.association or 0.0,
            f"{peer} took the connection but did not answer the association request; is it a DICOM port?",
        ) from exc
    except RemoteProtocolError as exc:
        upper.received_fault(exc)
        if transport.tls is None and transport.reader.pdu_type == ALERT_RECORD:
            raise TlsError(f"{peer} answers with a TLS alert: it takes TLS alone") from exc
        raise TransportError(f"{peer} does not speak DICOM: {exc}") from exc
    except ConnectionDropped:
        raise
    except TlsError as exc:
        raise TlsError(f"{peer}: {exc}") from exc
    except TransportError as exc:
        raise _dropped(peer, transport) from exc
    event = upper.received_pdu(transport.reader.pdu_type, transport.reader.pdu_body)
    if isinstance(event, AssociationAccepted):
        return event.ac
    if isinstance(event, AssociationRejectedEvent):
        rj = event.rj
        observer.association_rejected(Role.REQUESTOR, rj.result, rj.source, rj.reason)
        text = describe_rejection(rj.result, rj.source, rj.reason)
        raise AssociationRejected(
            rj.result, rj.source, rj.reason, f"{peer}: the association was {text}"
        )
    if isinstance(event, Aborted) or (isinstance(event, ProviderAborted) and not event.local):
        source, reason = event.source, event.reason
        observer.association_aborted(Role.REQUESTOR, "peer", source, reason)
        raise AssociationAborted(
            source, reason, f"{peer}: the association was {describe_abort(source, reason)}"
        )
    raise TransportError(
        f"{peer} answered the association request with PDU type "
        f"0x{transport.reader.pdu_type:02X}, broken or out of place"
    )


def _dropped(peer: str, transport: Transport) -> ConnectionDropped:
    kind = "a DICOM port without TLS" if transport.tls is None else "a DICOM port"
    return ConnectionDropped(
        f"{peer}: the peer closed the connection instead of answering the association request; is it "
        f"{kind}, and does it know us?"
    )


async def _break_off(transport: Transport, upper: UpperLayer, cause: BaseException) -> None:
    """Says A-ABORT where the state asks for it, before the socket closes."""
    with trio.CancelScope(shield=True):
        output = upper.take_output()
        if not output and upper.abortable and not isinstance(cause, TransportError):
            upper.abort()
            output = upper.take_output()
        if output:
            transport.queue.cut()
            for pdu in output:
                transport.queue.add_bytes(pdu)
            with trio.move_on_after(ABORT_SECONDS):
                try:
                    await transport.flush(ABORT_SECONDS)
                except TransportError:
                    return
                transport.shutdown_send()
                await transport.drain(ABORT_SECONDS)
