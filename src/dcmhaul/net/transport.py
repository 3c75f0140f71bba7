"""One TCP connection: owns the descriptor, gives every wait a deadline, closes so that the peer hears us.

trio only tells when a call would no longer block; the calls themselves are in `_sockio`. The stream of
trio is not used: its 64 KiB reads and 16 KiB of unsent data cost twenty times the wake-ups.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import TYPE_CHECKING, Final

import trio

from dcmhaul import crash
from dcmhaul.errors import ConfigurationError, PeerTimeout, TransportError
from dcmhaul.net._sockio import BUDGET_SPENT, DONE, receive, run_plan
from dcmhaul.net.types import AssociationStats, SocketOptions

if TYPE_CHECKING:
    from dcmhaul.net.types import TlsSession
    from dcmhaul.wire._fragments import SendQueue
    from dcmhaul.wire._frames import PduReader

__all__ = ["Transport", "configure_socket", "connect", "host_port"]

# Between two looks at the other direction while the peer does not take our bytes: a peer with two full
# buffers, or one that has sent an A-ABORT, is noticed after this many seconds.
BLOCKED_LOOK_SECONDS: Final = 0.05
# A task that never has to wait still lets others run after this many bytes.
CHECKPOINT_BYTES: Final = 4 * 1024 * 1024
# Nor so long, where work between two receives takes the time that the peer needs for its bytes.
CHECKPOINT_SECONDS: Final = 0.01
# For how long a message is waited for without sleep.
LINGER_SECONDS: Final = 0.00006
# Waits in a row that sleep at once after others were vain, at most.
VAIN_MAX: Final = 255
# Inside a message a peer must keep up this rate over the progress time-out.
PROGRESS_BYTES_PER_SECOND: Final = 1024
# What is read and thrown away at a close, so that the kernel sends no RST that eats our last PDU.
DRAIN_BYTES: Final = 1024 * 1024
USER_TIMEOUT_MS: Final = 60_000


def configure_socket(sock: trio.socket.SocketType, options: SocketOptions) -> None:
    """Sets what every socket of ours has; the buffer sizes stay the kernel's, which tunes them.

    ConfigurationError where the congestion control is unknown to the kernel.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    if options.congestion is not None:
        if not hasattr(socket, "TCP_CONGESTION"):
            raise ConfigurationError("--congestion: this system cannot choose a congestion control")
        try:
            sock.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_CONGESTION, options.congestion.encode("ascii")
            )
        except (OSError, UnicodeEncodeError) as exc:
            raise ConfigurationError(
                f"--congestion {options.congestion}: this kernel does not offer it "
                "(see /proc/sys/net/ipv4/tcp_available_congestion_control)"
            ) from exc


def host_port(host: str, port: int) -> str:
    """`host:port` as a peer is typed: IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def connect(
    host: str, port: int, seconds: float | None, options: SocketOptions
) -> trio.socket.SocketType:
    """A connected socket to the first address of `host` that answers.

    PeerTimeout("connect"), or TransportError that names what went wrong.
    """
    try:
        with trio.fail_after(seconds if seconds is not None else float("inf")):
            try:
                addresses = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except OSError as exc:
                raise TransportError(f"{host}: the name cannot be resolved ({exc})") from exc
            failure: OSError | None = None
            for family, kind, protocol, _, address in addresses:
                sock = trio.socket.socket(family, kind, protocol)
                try:
                    configure_socket(sock, options)
                    await sock.connect(address)
                except OSError as exc:
                    sock.close()
                    failure = exc
                except BaseException:
                    sock.close()
                    raise
                else:
                    return sock
            # trio repeats the address in its text; the number says what the kernel said.
            reason = os.strerror(failure.errno) if failure and failure.errno else failure
            raise TransportError(
                f"{host_port(host, port)}: no connection ({reason}); is the peer running there?"
            ) from failure
    except trio.TooSlowError as exc:
        text = f"{host_port(host, port)} did not answer"
        raise PeerTimeout("connect", seconds or 0.0, text) from exc


class Transport:
    """Moves bytes between one socket, a PduReader and a SendQueue. One task receives, one sends.

    `TlsTransport` puts another `_fill` and `_pump` between the socket and the two.
    """

    __slots__ = (
        "_closed",
        "_parked_bytes",
        "_parked_seconds",
        "_receiving",
        "_since_checkpoint",
        "_sleeps_due",
        "_sock",
        "_turn_began",
        "_vain",
        "fd",
        "queue",
        "reader",
        "stats",
    )

    def __init__(self, sock: trio.socket.SocketType, reader: PduReader, queue: SendQueue) -> None:
        self._sock = sock
        self.fd = sock.fileno()
        self.reader = reader
        self.queue = queue
        self.stats = AssociationStats()
        self._receiving = False
        self._since_checkpoint = 0
        self._turn_began = 0.0
        self._parked_seconds = 0.0
        self._parked_bytes = 0
        self._sleeps_due = 0
        self._vain = 0
        self._closed = False

    @property
    def receiving(self) -> bool:
        """True while a task waits for bytes."""
        return self._receiving

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def tls(self) -> TlsSession | None:
        """What TLS agreed on; None without TLS."""
        return None

    async def handshake(self) -> None:
        """Before the first PDU; without TLS there is nothing to agree on."""

    # -- receiving ----------------------------------------------------------------------------

    def receive_nowait(self) -> int:
        """What one receive gave: bytes, 0 at the end of the stream, below 0 for nothing yet.

        TransportError where the connection is lost.
        """
        self.stats.receive_calls += 1
        got = self._fill()
        if got > 0:
            self._parked_bytes += got
            self._since_checkpoint += got
        return got

    def _fill(self) -> int:
        """The receive itself, as `receive_nowait` has it."""
        try:
            return receive(self.fd, self.reader)
        except OSError as exc:
            raise self._lost(exc) from exc

    async def receive(self, seconds: float | None, phase: str, *, in_message: bool) -> bool:
        """Waits until bytes arrive; False at the end of the stream.

        PeerTimeout(phase) after `seconds` without one, or, in a message, where the peer keeps
        sending but so slowly that it would hold the association for ever.
        """
        if self._receiving:
            raise RuntimeError("two tasks receive on one association")
        self._receiving = True
        waited = 0.0
        try:
            while True:
                got = self.receive_nowait()
                if got < 0 and not in_message and not waited:
                    got = await self._linger()
                if got >= 0:
                    if self._since_checkpoint > CHECKPOINT_BYTES or self._turn_is_over():
                        await trio.lowlevel.checkpoint()
                        self._begin_turn()
                    return got > 0
                waited = await self._park(waited, seconds, phase, in_message=in_message)
                self._begin_turn()
        finally:
            self._receiving = False

    async def _linger(self) -> int:
        """Tries again for a moment, while other tasks run; what the last try gave, as `receive_nowait`.

        To sleep and be woken takes longer than a near peer takes for a small message, on a machine with
        virtual processors many times. Where it proved vain it is left out for a while, and longer each time:
        the peer is far, or we have the processor that it waits for.
        """
        if self._sleeps_due > 0:
            self._sleeps_due -= 1
            return -1
        until = time.perf_counter() + LINGER_SECONDS
        while time.perf_counter() < until:
            await trio.lowlevel.cancel_shielded_checkpoint()
            got = self.receive_nowait()
            if got >= 0:
                self._vain = 0
                return got
        self._vain = min(2 * self._vain + 1, VAIN_MAX)
        self._sleeps_due = self._vain
        return -1

    def _turn_is_over(self) -> bool:
        return time.perf_counter() - self._turn_began > CHECKPOINT_SECONDS

    def _begin_turn(self) -> None:
        self._since_checkpoint = 0
        self._turn_began = time.perf_counter()

    async def _park(
        self, waited: float, seconds: float | None, phase: str, *, in_message: bool
    ) -> float:
        """Waits until there is something to read; returns for how long, `waited` included."""
        self.reader.park()
        self.stats.wakeups += 1
        if seconds is None:
            await self._wait_readable()
            return 0.0
        started = trio.current_time()
        with trio.move_on_after(max(0.0, seconds - waited)) as scope:
            await self._wait_readable()
        if scope.cancelled_caught:
            raise PeerTimeout(phase, seconds)
        parked = trio.current_time() - started
        if not in_message:
            self._parked_seconds = 0.0
            self._parked_bytes = 0
            return waited + parked
        self._parked_seconds += parked
        if self._parked_seconds >= seconds:
            if self._parked_bytes < PROGRESS_BYTES_PER_SECOND * seconds:
                raise PeerTimeout(phase, seconds, f"only {self._parked_bytes} bytes came")
            self._parked_seconds = 0.0
            self._parked_bytes = 0
        return waited + parked

    async def _wait_readable(self) -> None:
        try:
            await trio.lowlevel.wait_readable(self._sock)
        except trio.ClosedResourceError as exc:
            raise TransportError("the association was closed on our side") from exc

    # -- sending --------------------------------------------------------------------------------

    async def flush(self, seconds: float | None) -> None:
        """Sends all that is queued. PeerTimeout("progress") where the peer takes nothing for `seconds`.

        EOFError where a file became shorter, or cannot be read. A flush that raised may have sent a part
        of a PDU.
        """
        stats = self.stats
        stalled = 0.0
        while True:
            status, done, calls = self._pump()
            stats.send_calls += calls
            if status == DONE:
                return
            if done:
                stalled = 0.0
                if crash.armed:
                    crash.passed("send.mid_dataset")
            if status == BUDGET_SPENT:
                await trio.lowlevel.checkpoint()
                continue
            stats.wakeups += 1
            stalled = await self._wait_writable(stalled, seconds)

    def _pump(self) -> tuple[int, int, int]:
        """Sends what the kernel takes: DONE, WOULD_BLOCK or BUDGET_SPENT, bytes, system calls."""
        try:
            return run_plan(self.fd, self.queue)
        except OSError as exc:
            raise self._lost(exc) from exc

    async def _wait_writable(self, stalled: float, seconds: float | None) -> float:
        """Waits a moment for room; returns for how long there has been none."""
        wait = BLOCKED_LOOK_SECONDS
        if seconds is not None:
            if stalled >= seconds:
                raise PeerTimeout("progress", seconds, "the peer takes no more bytes")
            wait = min(wait, seconds - stalled)
        elif self._receiving:
            wait = float("inf")
        with trio.move_on_after(wait) as scope:
            await self._wait_room()
        if not scope.cancelled_caught:
            return stalled
        if not self._receiving:
            # Nobody reads, and the peer may wait for just that: make room for what it has to say.
            self.receive_nowait()
        return stalled + wait

    async def _wait_room(self) -> None:
        try:
            await trio.lowlevel.wait_writable(self._sock)
        except trio.ClosedResourceError as exc:
            raise TransportError("the association was closed on our side") from exc

    # -- the end ----------------------------------------------------------------------------------

    def shutdown_send(self) -> None:
        """Tells the peer that nothing follows; it still may."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the connection is gone already, which is what we came for

    async def drain(self, seconds: float) -> None:
        """Reads and drops what still comes, until the peer closes, or a bound of bytes or time."""
        drained = 0
        with trio.move_on_after(seconds):
            while drained < DRAIN_BYTES:
                try:
                    data = await self._sock.recv(65536)
                except (OSError, trio.ClosedResourceError):
                    return
                if not data:
                    return
                drained += len(data)

    def close(self) -> None:
        """Closes the descriptor; a task that waits on it gets a TransportError."""
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
            self.queue.clear()

    def _lost(self, exc: OSError) -> TransportError:
        if exc.errno == errno.EBADF and self._closed:
            return TransportError("the association was closed on our side")
        return TransportError(f"the connection was lost ({exc.strerror or exc})")
