"""A TCP relay between two processes that notes which instances were sent, and which answered, by whom.

It decodes with the tests' own codec and knows nothing of dcmhaul. What it has read from a process was
given to the kernel by it, so an answer counts here even where the process died before the peer read it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from tests.reference import codec

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

__all__ = ["Passage", "Tap"]

C_STORE_RQ, C_STORE_RSP = 0x0001, 0x8001


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A C-STORE-RQ (status None) or C-STORE-RSP that passed; by_server: who said it."""

    number: int
    connection: int
    by_server: bool
    uid: str
    status: int | None


class _Commands:
    """Finds the C-STORE commands in one direction of one connection."""

    def __init__(self, heard: Callable[[str, int | None], None]) -> None:
        self._heard = heard
        self._stream = bytearray()
        self._command = b""

    def feed(self, data: bytes) -> None:
        stream = self._stream
        stream += data
        while len(stream) >= 6:
            end = 6 + int.from_bytes(stream[2:6], "big")
            if len(stream) < end:
                return
            if stream[0] == 4:
                self._p_data(bytes(stream[6:end]))
            del stream[:end]

    def _p_data(self, body: bytes) -> None:
        while body:
            length = int.from_bytes(body[:4], "big")
            header, fragment = body[5], body[6 : 4 + length]
            body = body[4 + length :]
            if not header & 1:
                continue
            self._command += fragment
            if header & 2:
                fields, self._command = codec.decode_command(self._command), b""
                if fields["CommandField"] == C_STORE_RQ:
                    self._heard(fields["AffectedSOPInstanceUID"], None)
                elif fields["CommandField"] == C_STORE_RSP:
                    self._heard(fields["AffectedSOPInstanceUID"], fields["Status"])


class Tap:
    """Listens on `port` and relays to `target`; `passages` is what it saw, in order.

    pause: each piece waits a random time up to this many seconds, so that a kill finds the peers in
    every phase.
    """

    def __init__(self, randomness: random.Random, pause: float = 0.0) -> None:
        self.passages: list[Passage] = []
        self.port = 0
        self.target = 0
        self.pause = pause
        self.open = 0
        self._random = randomness
        self._numbers = itertools.count()
        self._connections = itertools.count()

    def requests(self, start: int = 0) -> list[str]:
        """UIDs of the C-STORE-RQs from the given place on."""
        return [p.uid for p in self.passages[start:] if p.status is None]

    def acknowledged(self, start: int = 0) -> set[str]:
        """UIDs that were answered 0000."""
        return {p.uid for p in self.passages[start:] if p.status == 0}

    def refused(self, start: int = 0) -> list[Passage]:
        return [p for p in self.passages[start:] if p.status not in (None, 0)]

    def sent_after_acknowledged(self) -> set[str]:
        """UIDs of requests that came after a 0000 for the same instance."""
        known: set[str] = set()
        again: set[str] = set()
        for passage in self.passages:
            if passage.status is None and passage.uid in known:
                again.add(passage.uid)
            elif passage.status == 0:
                known.add(passage.uid)
        return again

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        [listener] = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            task_status.started()
            await trio.serve_listeners(self._relay, [listener], handler_nursery=nursery)

    async def _relay(self, client: trio.SocketStream) -> None:
        connection = next(self._connections)
        self.open += 1
        try:
            server = await trio.open_tcp_stream("127.0.0.1", self.target)
        except OSError:
            self.open -= 1
            await client.aclose()
            return
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, client, server, connection, False, nursery)
                nursery.start_soon(self._pump, server, client, connection, True, nursery)
        finally:
            self.open -= 1
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await client.aclose()
                await server.aclose()

    async def _pump(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        connection: int,
        by_server: bool,
        nursery: trio.Nursery,
    ) -> None:
        commands = _Commands(
            lambda uid, status: self.passages.append(
                Passage(
                    number=next(self._numbers),
                    connection=connection,
                    by_server=by_server,
                    uid=uid,
                    status=status,
                )
            )
        )
        lost = False
        while True:
            try:
                data = await source.receive_some(65536)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                break
            commands.feed(data)
            if self.pause and not lost:
                await trio.sleep(self._random.uniform(0, self.pause))
            try:
                if not lost:
                    await sink.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                lost = True  # what the other end still said is noted all the same
        try:
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            nursery.cancel_scope.cancel()
