"""TLS between the socket and the two planes: records in and out, the handshake, what an alert means.

OpenSSL works on memory here, and the system calls stay ours: a read takes many records at once, and
nothing waits inside OpenSSL. It runs on no more than one step of plaintext at a time.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import TYPE_CHECKING, Final, cast

from dcmhaul.errors import TlsError, TransportError
from dcmhaul.net._sockio import BUDGET_SPENT, DONE, WOULD_BLOCK, take_plan
from dcmhaul.net.transport import Transport
from dcmhaul.net.types import TlsSession

if TYPE_CHECKING:
    import trio

    from dcmhaul.wire._fragments import SendQueue
    from dcmhaul.wire._frames import PduReader

__all__ = ["ALERT_RECORD", "HANDSHAKE_RECORD", "TlsTransport", "transport"]

ALERT_RECORD: Final = 0x15
HANDSHAKE_RECORD: Final = 0x16
"""First bytes of TLS records (RFC 8446 §5.1); PDU types end at 07H (PS3.8 §9.3.1)."""
STEP_BYTES: Final = 64 * 1024
"""Of the stream that are encrypted, or read, at a time."""
RECORD_BYTES: Final = 16 * 1024
BUDGET_BYTES: Final = 1024 * 1024
"""After which other tasks have their turn."""
UNSAID_BYTES_MAX: Final = 64 * 1024
"""Of TLS's own answers that wait for a peer which does not read."""
# Fatal, protocol_version (RFC 8446 §6): OpenSSL says nothing to who begins without TLS.
NO_TLS_ALERT: Final = bytes((ALERT_RECORD, 3, 3, 0, 2, 2, 70))

_QUICKACK: Final = getattr(socket, "TCP_QUICKACK", None)

# By OpenSSL's name. What the peer says by an alert, and what this side finds.
_REASONS: Final = {
    "TLSV1_ALERT_UNKNOWN_CA": "the peer does not trust the authority of our certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the peer says that our certificate has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "the peer says that our certificate is revoked",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the peer refuses our certificate",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the peer refuses our certificate",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "the peer refuses our kind of certificate",
    "TLSV1_ALERT_ACCESS_DENIED": "the peer refuses us",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer requires a certificate of ours: +tls KEY CERT",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "the peer refuses the handshake: it may require a certificate of "
    "ours (+tls KEY CERT), or know none of our ciphers",
    "TLSV1_ALERT_INSUFFICIENT_SECURITY": "our ciphers are too weak for the peer",
    "TLSV1_ALERT_PROTOCOL_VERSION": "no TLS version in common; ours are 1.2 and 1.3",
    "UNSUPPORTED_PROTOCOL": "no TLS version in common; ours are 1.2 and 1.3",
    "WRONG_SSL_VERSION": "no TLS version in common; ours are 1.2 and 1.3",
    "NO_SHARED_CIPHER": "no cipher in common",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the peer shows no certificate, and one is required",
    "NO_SUITABLE_SIGNATURE_ALGORITHM": "no signature algorithm in common",
}
# By X509_V_ERR_ number (openssl-verify(1)).
_UNTRUSTED: Final = frozenset({2, 18, 19, 20, 21, 27})
_VERIFICATION: Final = {
    9: "the peer's certificate is not valid yet",
    10: "the peer's certificate has expired",
    23: "the peer's certificate is revoked",
    26: "the peer's certificate is not made for this use",
    62: "the peer's certificate is for another host",
    64: "the peer's certificate is for another host",
}
_SHORT_NAMES: Final = {
    "commonName": "CN",
    "organizationalUnitName": "OU",
    "organizationName": "O",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "countryName": "C",
}


def transport(
    sock: trio.socket.SocketType,
    reader: PduReader,
    queue: SendQueue,
    context: ssl.SSLContext | None,
    server: str | None = None,
) -> Transport:
    """The transport of a connected socket. server: the host that was connected to; None: we accepted."""
    if context is None:
        return Transport(sock, reader, queue)
    return TlsTransport(sock, reader, queue, context, server)


class TlsTransport(Transport):
    """The same over TLS. A flush that breaks off leaves whole records; the next one goes on with them."""

    __slots__ = (
        "_arrived",
        "_cipher",
        "_context",
        "_failure",
        "_heard",
        "_incoming",
        "_outgoing",
        "_plain",
        "_server",
        "_ssl",
    )

    def __init__(
        self,
        sock: trio.socket.SocketType,
        reader: PduReader,
        queue: SendQueue,
        context: ssl.SSLContext,
        server: str | None,
    ) -> None:
        super().__init__(sock, reader, queue)
        self._context = context
        self._server = server
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl: ssl.SSLObject | None = None
        self._failure: TlsError | None = None
        self._heard = False
        self._arrived = False  # ciphertext that OpenSSL has not looked at yet
        self._plain = b""  # what the slab had no room for
        self._cipher = memoryview(b"")  # records on their way out

    @property
    def tls(self) -> TlsSession | None:
        """What the handshake agreed on; None before it."""
        if self._ssl is None or (cipher := self._ssl.cipher()) is None:
            return None
        certificate = self._ssl.getpeercert() or {}
        parts = cast("tuple[tuple[tuple[str, str], ...], ...]", certificate.get("subject", ()))
        subject = ", ".join(
            f"{_SHORT_NAMES.get(name, name)}={value}" for part in parts for name, value in part
        )
        return TlsSession(version=self._ssl.version() or "", cipher=cipher[0], peer=subject)

    # -- the handshake ----------------------------------------------------------------------------

    async def handshake(self) -> None:
        """TLS 1.2 or 1.3 with the peer; the caller sets the deadline.

        TlsError names what one side did not like; TransportError where a requestor left without a word.
        """
        try:
            self._ssl = self._context.wrap_bio(
                self._incoming,
                self._outgoing,
                server_side=self._server is None,
                server_hostname=self._server,
            )
        except ValueError as exc:
            raise TlsError(f"{self._server!r} cannot be a name in TLS ({exc})") from exc
        try:
            while not self._shake():
                await self._send_records()
                while (came := self._read_records()) < 0:
                    await self._wait_readable()
                if came == 0:
                    raise TransportError("the peer closed the connection")
            await self._send_records()
        except TlsError:
            raise
        except TransportError as exc:
            raise self._hung_up(exc) from exc

    def _shake(self) -> bool:
        """One step; True once both sides agree."""
        assert self._ssl is not None
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as exc:
            self._say_at_once(self._outgoing.read())
            raise TlsError(_explanation(exc)) from exc
        return True

    def _hung_up(self, exc: TransportError) -> TransportError:
        """What it means that the connection ended within the handshake."""
        if self._server is not None:
            return TlsError(
                "the peer closed the connection within the TLS handshake; does it speak TLS on this "
                "port, and does it trust us?"
            )
        return TlsError(f"the TLS handshake was broken off: {exc}") if self._heard else exc

    def _not_tls(self, first: int) -> TlsError:
        """The first byte of the peer is that of no TLS record."""
        said = "in plain DICOM" if 1 <= first <= 7 else "with what is no TLS"
        if self._server is not None:
            return TlsError(f"the peer answers {said}; this port does not speak TLS")
        self._say_at_once(NO_TLS_ALERT)
        return TlsError(f"the peer begins {said}; this port takes TLS alone")

    # -- receiving ----------------------------------------------------------------------------------

    def _fill(self) -> int:
        """What one read of the socket gave the reader; 0 at the end, with or without a close_notify."""
        assert self._ssl is not None
        if self._failure is not None:
            raise self._failure
        got = 0
        looked = False
        while got < STEP_BYTES:
            if self._plain:
                taken = self.reader.feed(self._plain)
                if taken == 0:
                    return got or -2
                got += taken
                self._plain = self._plain[taken:]
            elif self._arrived:
                try:
                    self._plain = self._ssl.read(RECORD_BYTES)
                except ssl.SSLWantReadError:
                    self._arrived = False
                    self._answer()
                except ssl.SSLZeroReturnError:
                    return got
                except ssl.SSLError as exc:
                    # Kept, for OpenSSL says it once: a fatal alert is then an end like any other.
                    self._failure = TlsError(_explanation(exc))
                    if got:
                        return got
                    raise self._failure from exc
                else:
                    if not self._plain:
                        return got  # a close_notify
            elif got or looked:
                break
            else:
                looked = True
                came = self._read_records()
                if came <= 0:
                    return came
        return got or -1

    def _read_records(self) -> int:
        """Ciphertext of one read: bytes, 0 at the end of the stream, -1 for nothing yet."""
        try:
            if _QUICKACK is not None:
                self._sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
            data = os.read(self.fd, STEP_BYTES)
        except BlockingIOError:
            return -1
        except OSError as exc:
            raise self._lost(exc) from exc
        if data:
            if not self._heard and data[0] not in (ALERT_RECORD, HANDSHAKE_RECORD):
                raise self._not_tls(data[0])
            self._heard = True
            self._incoming.write(data)
            self._arrived = True
        return len(data)

    def _answer(self) -> None:
        """Sends what TLS itself has to say (a KeyUpdate), as far as it goes; a flush sends the rest."""
        if self._outgoing.pending:
            self._cipher = memoryview(bytes(self._cipher) + self._outgoing.read())
            if len(self._cipher) > STEP_BYTES + UNSAID_BYTES_MAX:
                raise TlsError("the peer asks for more of TLS than it reads")
            try:
                self._cipher = self._cipher[os.write(self.fd, self._cipher) :]
            except OSError:
                pass  # no room, or lost: the next flush or receive sees to it

    # -- sending --------------------------------------------------------------------------------------

    def _pump(self) -> tuple[int, int, int]:
        assert self._ssl is not None
        done = calls = 0
        while True:
            while self._cipher:
                calls += 1
                sent = self._send_some()
                if sent < 0:
                    return WOULD_BLOCK, done, calls
                done += sent
            if done >= BUDGET_BYTES:
                return BUDGET_SPENT, done, calls
            data = take_plan(self.queue, STEP_BYTES)
            if not data:
                return DONE, done, calls
            try:
                self._ssl.write(data)
            except ssl.SSLError as exc:
                raise TlsError(_explanation(exc)) from exc
            self._cipher = memoryview(self._outgoing.read())

    def _send_some(self) -> int:
        """Hands records to the kernel: bytes, or -1 where it takes none."""
        try:
            sent = os.write(self.fd, self._cipher)
        except BlockingIOError:
            return -1
        except OSError as exc:
            raise self._broken(exc) from exc
        self._cipher = self._cipher[sent:]
        return sent

    async def _send_records(self) -> None:
        """All that OpenSSL wants to say."""
        self._cipher = memoryview(bytes(self._cipher) + self._outgoing.read())
        while self._cipher:
            if self._send_some() < 0:
                await self._wait_room()

    def _broken(self, exc: OSError) -> TransportError:
        """The alert that the peer sent before it closed, if it can still be read."""
        if not self._receiving and self._ssl is not None:
            try:
                while self._fill() > 0:
                    pass
            except TlsError as told:
                return told
            except TransportError:
                pass  # that it is lost is known
        return self._lost(exc)

    # -- the end ------------------------------------------------------------------------------------

    def shutdown_send(self) -> None:
        """A close_notify, unless a record is half out or the kernel is full; then as over TCP."""
        if self._ssl is not None and not self._cipher:
            try:
                self._ssl.unwrap()
            except ssl.SSLError:
                pass  # the peer's own has yet to come, or TLS is broken: what is to be said is below
            self._say_at_once(self._outgoing.read())
        super().shutdown_send()

    def _say_at_once(self, records: bytes) -> None:
        """A last word, which may get lost."""
        try:
            os.write(self.fd, records)
        except OSError:
            pass  # the peer is gone, or takes nothing: it will see the end of the stream


def _explanation(error: ssl.SSLError) -> str:
    """One line of what OpenSSL says."""
    if isinstance(error, ssl.SSLCertVerificationError):
        text = _VERIFICATION.get(error.verify_code)
        if error.verify_code in _UNTRUSTED:
            text = "the peer's certificate is of no authority that is trusted here (+cf FILE)"
        return f"{text} ({error.verify_message})" if text else error.verify_message
    reason = error.reason or ""
    return _REASONS.get(reason, f"TLS failed ({reason.replace('_', ' ').lower() or error})")
