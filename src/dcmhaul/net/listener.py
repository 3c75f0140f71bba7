"""Accepts associations: one task each, bounded in number, none able to disturb another."""

from __future__ import annotations

import errno
import logging
import socket
from collections import Counter
from typing import TYPE_CHECKING, Final

import trio

from dcmhaul.errors import (
    AssociationAborted,
    ConfigurationError,
    RemoteProtocolError,
    TlsError,
    TransportError,
)
from dcmhaul.net.association import Association
from dcmhaul.net.tls import HANDSHAKE_RECORD
from dcmhaul.net.tls import transport as transport_over
from dcmhaul.net.transport import Transport, configure_socket
from dcmhaul.net.types import AcceptorLimits, NullObserver, Observer, SocketOptions, Timeouts
from dcmhaul.protocol.events import AssociationRequested, Role
from dcmhaul.protocol.negotiation import AcceptorPolicy, is_caller, negotiate
from dcmhaul.protocol.upper_layer import UpperLayer
from dcmhaul.wire._fragments import SendQueue
from dcmhaul.wire._frames import NEED_DATA, PduReader
from dcmhaul.wire.pdu import PDU_HEADER_SIZE, AAbort, AAssociateRj, AAssociateRq, PduType

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterable

__all__ = ["serve_associations"]

_log = logging.getLogger(__name__)

BACKLOG: Final = 1024
# Connections beside the associations: those that have not asked yet, and those that were refused.
REJECTABLE: Final = 64
# RJ 2/3/1: transient, by the provider (presentation), temporary congestion (PS3.8 §9.3.4).
CONGESTION: Final = AAssociateRj(result=2, source=3, reason=1)
# How long to wait where the process has no descriptor left for another connection.
DESCRIPTOR_WAIT_SECONDS: Final = 0.1


async def serve_associations(
    handler: Callable[[Association], Awaitable[None]],
    policy: AcceptorPolicy,
    *,
    host: str = "0.0.0.0",
    port: int = 0,
    limits: AcceptorLimits | None = None,
    timeouts: Timeouts | None = None,
    options: SocketOptions | None = None,
    observer: Observer | None = None,
    on_error: Callable[[str, Exception], None] | None = None,
    task_status: trio.TaskStatus[list[tuple[str, int]]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listens for ever; each association runs `handler` in a task of its own. With TLS its handshake comes
    first, within the ARTIM time-out; a peer that fails it, or offers TLS where there is none, is one
    line of the log.

    `task_status` is started with the addresses that are listened on. ConfigurationError where an
    address cannot be had. `on_error` hears of what a handler should never raise, with the peer: the
    association is aborted, the others go on. Without it the log has one line, its traceback at debug.
    """
    options = options or SocketOptions()
    server = _Server(
        handler,
        policy,
        limits or AcceptorLimits(),
        timeouts or Timeouts(),
        observer or NullObserver(),
        on_error or _log_error,
        options.tls,
    )
    sockets = await _listen(host, port, options)
    try:
        async with trio.open_nursery() as nursery:
            for sock in sockets:
                nursery.start_soon(server.accept_loop, sock, nursery)
            task_status.started([sock.getsockname()[:2] for sock in sockets])
    finally:
        for sock in sockets:
            sock.close()


async def _listen(host: str, port: int, options: SocketOptions) -> list[trio.socket.SocketType]:
    sockets: list[trio.socket.SocketType] = []
    try:
        addresses = await trio.socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, address in addresses:
            sock = trio.socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            configure_socket(sock, options)
            await sock.bind(address)
            sock.listen(BACKLOG)
    except OSError as exc:
        for sock in sockets:
            sock.close()
        reason = exc.strerror or str(exc)
        raise ConfigurationError(f"cannot listen on {host}:{port}: {reason}") from exc
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


class _Connection:
    """One connection from accept to close. `scope` holds it until it is an association."""

    __slots__ = ("host", "peer", "scope", "sock", "transport", "upper")

    def __init__(
        self,
        sock: trio.socket.SocketType,
        address: tuple[str, int],
        policy: AcceptorPolicy,
        tls: ssl.SSLContext | None,
    ) -> None:
        self.sock = sock
        self.host = address[0]
        self.peer = f"{address[0]}:{address[1]}"
        self.scope = trio.CancelScope()
        self.upper = UpperLayer(Role.ACCEPTOR)
        reader = PduReader(policy.pdu_length_max, strict=policy.strict)
        self.transport = transport_over(sock, reader, SendQueue(0), tls)


class _Server:
    """Invariant: at most `associations` of the connections are associations, and at most REJECTABLE more
    are connections that are none yet, or were refused and may still read why.
    """

    def __init__(
        self,
        handler: Callable[[Association], Awaitable[None]],
        policy: AcceptorPolicy,
        limits: AcceptorLimits,
        timeouts: Timeouts,
        observer: Observer,
        on_error: Callable[[str, Exception], None],
        tls: ssl.SSLContext | None,
    ) -> None:
        self.on_error = on_error
        self.tls = tls
        self.handler = handler
        self.policy = policy
        self.limits = limits
        self.timeouts = timeouts
        self.observer = observer
        self.associations = 0
        self.by_host: Counter[str] = Counter()
        self.others: dict[_Connection, None] = {}
        """Connections that are no associations, the oldest first."""

    async def accept_loop(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        while True:
            try:
                sock, address = await listener.accept()
            except OSError as exc:
                if exc.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    await trio.sleep(DESCRIPTOR_WAIT_SECONDS)
                    continue
                if exc.errno in (errno.EBADF, errno.EINVAL, errno.ENOTSOCK):
                    raise
                continue  # the connection was gone before it was accepted
            if len(self.others) >= REJECTABLE:
                self._make_room()
            connection = _Connection(sock, address, self.policy, self.tls)
            self.others[connection] = None
            nursery.start_soon(self._serve, connection)

    def _make_room(self) -> None:
        """Closes the oldest connection of the address that has the most: who means it asks at once."""
        [(crowded, _)] = Counter(other.host for other in self.others).most_common(1)
        oldest = next(other for other in self.others if other.host == crowded)
        del self.others[oldest]
        oldest.scope.cancel()

    def _is_full(self, rq: AAssociateRq, host: str) -> bool:
        limits = self.limits
        room = limits.associations
        if limits.reserved and not is_caller(rq.calling_ae_title, host, limits.known_callers):
            room -= limits.reserved
        if limits.congested is not None and limits.congested(rq):
            return True
        return self.associations >= room or self.by_host[host] >= limits.associations_per_host

    async def _serve(self, connection: _Connection) -> None:
        try:
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection.scope:
                await self._converse(connection)
        except OSError:
            pass  # gone before the first byte
        finally:
            connection.transport.close()
            self.others.pop(connection, None)

    async def _converse(self, connection: _Connection) -> None:
        upper = connection.upper
        upper.transport_accepted()
        association: Association | None = None
        try:
            with trio.move_on_after(self.timeouts.artim) as artim:
                association = await self._establish(connection)
            if artim.cancelled_caught:
                upper.artim_expired()
                return
        except RemoteProtocolError as exc:
            if connection.transport.reader.pdu_type == HANDSHAKE_RECORD:
                _log.warning(
                    "%s: the peer begins with TLS, which this port does not take", connection.peer
                )
            upper.received_fault(exc)
        except TlsError as exc:
            _log.warning("%s: %s", connection.peer, exc)
            await self._hang_up(connection.transport)
            return
        except TransportError:
            return
        except Exception as exc:
            self.on_error(connection.peer, exc)
            return
        if association is None:
            await self._leave(connection.transport, upper)
            return
        self.others.pop(connection, None)
        self.associations += 1
        self.by_host[connection.host] += 1
        try:
            await self._associated(connection, association)
        finally:
            self.associations -= 1
            self.by_host[connection.host] -= 1
            if not self.by_host[connection.host]:
                del self.by_host[connection.host]

    async def _associated(self, connection: _Connection, association: Association) -> None:
        try:
            await association.flush()  # the A-ASSOCIATE-AC; ARTIM has stopped
        except (TransportError, AssociationAborted, RemoteProtocolError):
            return
        self.observer.association_opened(Role.ACCEPTOR, connection.peer, association.stats)
        try:
            await self.handler(association)
        except RemoteProtocolError:
            pass  # the abort below says it to the peer, and counts it
        except (TransportError, AssociationAborted):
            pass  # counted where it was met; nobody is left to tell
        except Exception as exc:
            self.on_error(connection.peer, exc)
        finally:
            if not association.ended:
                await association.abort()
            else:
                with trio.CancelScope(shield=True):
                    await association.close(min(2.0, self.timeouts.artim))
            self.observer.association_closed(Role.ACCEPTOR, association.stats(), association.stats)

    async def _establish(self, connection: _Connection) -> Association | None:
        """The association, its A-ASSOCIATE-AC queued; None where another answer is in the output."""
        transport, upper = connection.transport, connection.upper
        await transport.handshake()
        while transport.reader.next() == NEED_DATA:
            if not await transport.receive(None, "artim", in_message=False):
                upper.transport_closed()
                return None
        event = upper.received_pdu(transport.reader.pdu_type, transport.reader.pdu_body)
        if not isinstance(event, AssociationRequested):
            return None
        full = self._is_full(event.rq, connection.host)
        answer = CONGESTION if full else negotiate(event.rq, self.policy, connection.host)
        if isinstance(answer, AAssociateRj):
            upper.reject(answer)
            return None
        ac, agreement = answer
        agreement = agreement.sending_at_most(0)
        transport.queue.limit(agreement.pdu_length_send_max)
        upper.accept(ac)
        for pdu in upper.take_output():
            transport.queue.add_bytes(pdu)
        return Association(
            transport, upper, agreement, connection.peer, self.timeouts, self.observer
        )

    async def _leave(self, transport: Transport, upper: UpperLayer) -> None:
        """Sends what the table asked for (A-ABORT, A-ASSOCIATE-RJ), lets the peer read it, closes."""
        with trio.move_on_after(self.timeouts.artim):
            output = upper.take_output()
            self._count(output)
            try:
                _queue_all(transport, output)
                await transport.flush(self.timeouts.artim)
            except TransportError:
                return
            if not upper.close_transport:
                transport.shutdown_send()
                await transport.drain(self.timeouts.artim)

    async def _hang_up(self, transport: Transport) -> None:
        """Closes so that the peer can read the alert that says why."""
        transport.shutdown_send()
        await transport.drain(self.timeouts.artim)

    def _count(self, output: Iterable[bytes]) -> None:
        """Tells the observer of a refusal, whoever decided it: the table, the policy or a decoder."""
        for pdu in output:
            body = pdu[PDU_HEADER_SIZE:]
            if pdu[0] == PduType.A_ASSOCIATE_RJ:
                rj = AAssociateRj.decode(body)
                self.observer.association_rejected(Role.ACCEPTOR, rj.result, rj.source, rj.reason)
            elif pdu[0] == PduType.A_ABORT:
                abort = AAbort.decode(body)
                self.observer.association_aborted(
                    Role.ACCEPTOR, "local", abort.source, abort.reason
                )


def _log_error(peer: str, error: Exception) -> None:
    # The text of an error may quote what a peer sent, so only its kind is said unasked.
    _log.error("%s: internal error (%s), association aborted", peer, type(error).__name__)
    _log.debug("%s", peer, exc_info=error)


def _queue_all(transport: Transport, pdus: Iterable[bytes]) -> None:
    transport.queue.cut()
    for pdu in pdus:
        transport.queue.add_bytes(pdu)
