"""A long line on one machine: a TCP relay that hands every byte on half a round trip after it came.

Bandwidth is without limit. What is under way waits in memory, so TCP itself sees no distance on either
side of the relay: what is measured through it is how a protocol copes with waiting for answers.
"""

from __future__ import annotations

import argparse
import select
import socket
import sys
import time
from collections import deque

from bench import process

LOOPBACK = "127.0.0.1"
# Under way in one direction of one connection, at most: 10 Gbit/s for 50 ms.
LINE_BYTES = 64 * 1024 * 1024
READ_BYTES = 256 * 1024
BLOCK_BYTES = 1024 * 1024


class Line:
    """One direction of one connection: its bytes in blocks, and when each part of them is due.

    spare: blocks that nobody uses; the last one is taken first, for the cache may still have it.
    """

    def __init__(
        self, source: socket.socket, target: socket.socket, seconds: float, spare: list[memoryview]
    ) -> None:
        self.source = source
        self.target = target
        self.blocked = False  # the target takes no more for now
        self.ended = False  # the source has closed
        self.closed = False  # and the target was told
        self._seconds = seconds
        self._spare = spare
        self._blocks: deque[memoryview] = deque()
        self._begin = 0  # of the first block; this and what follows count all bytes that came
        self._taken = 0
        self._held = 0
        self._due: deque[tuple[float, int]] = deque()

    @property
    def has_room(self) -> bool:
        return not self.ended and self._held - self._taken < LINE_BYTES

    def next_due(self) -> float | None:
        """None: nothing is under way, or the target takes no more."""
        return self._due[0][0] if self._due and not self.blocked else None

    def read(self) -> None:
        """Takes what the source has; OSError where it is lost."""
        number, at = divmod(self._held - self._begin, BLOCK_BYTES)
        if number == len(self._blocks):
            spare = self._spare
            self._blocks.append(spare.pop() if spare else memoryview(bytearray(BLOCK_BYTES)))
        got = self.source.recv_into(self._blocks[number][at : at + READ_BYTES])
        self._held += got
        self.ended = got == 0
        self._due.append((time.monotonic() + self._seconds, self._held))

    def write(self, now: float) -> None:
        """Hands on what is due; OSError where the target is lost."""
        due = self._due
        upto = self._taken
        while due and due[0][0] <= now:
            upto = due.popleft()[1]
        while self._taken < upto:
            part = self._blocks[0][self._taken - self._begin : upto - self._begin]
            try:
                self._taken += self.target.send(part)
            except BlockingIOError:
                self.blocked = True
                due.appendleft((now, upto))
                return
            if self._taken - self._begin == BLOCK_BYTES:
                self._spare.append(self._blocks.popleft())
                self._begin = self._taken
        if self._taken == self._held:
            self._begin = self._taken
        if self.ended and not due:
            self.target.shutdown(socket.SHUT_WR)
            self.closed = True

    def close(self) -> None:
        self.source.close()
        self._spare += self._blocks
        self._blocks.clear()


class Relay:
    """Serves one port until the process ends; every connection gets one of its own to the target."""

    def __init__(self, port: int, target_port: int, seconds: float, congestion: str | None) -> None:
        self._target_port = target_port
        self._seconds = seconds
        self._congestion = congestion
        self._listener = self._socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((LOOPBACK, port))
        self._listener.listen(128)
        self._connections: list[tuple[Line, Line]] = []
        self._spare: list[memoryview] = []

    def _socket(self) -> socket.socket:
        """What a listener has, those have that it accepts."""
        sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._congestion is not None:
            name = self._congestion.encode()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name)
        return sock

    def serve(self) -> None:
        """Waits by select, whose time-out knows microseconds; there are few sockets."""
        while True:
            lines = [line for pair in self._connections for line in pair]
            readers = [self._listener, *(line.source for line in lines if line.has_room)]
            writers = [line.target for line in lines if line.blocked]
            moments = [due for line in lines if (due := line.next_due()) is not None]
            wait = max(0.0, min(moments) - time.monotonic()) if moments else None
            readable, writable, _ = select.select(readers, writers, (), wait)
            for pair in self._connections[:]:
                try:
                    for line in pair:
                        self._move(line, readable, writable)
                    over = pair[0].closed and pair[1].closed
                except OSError:
                    over = True
                if over:
                    self._connections.remove(pair)
                    for line in pair:
                        line.close()
            if self._listener in readable:
                self._accept()

    @staticmethod
    def _move(line: Line, readable: list[socket.socket], writable: list[socket.socket]) -> None:
        """OSError where one side of it is lost."""
        if line.target in writable:
            line.blocked = False
        if line.source in readable:
            line.read()
        due = line.next_due()
        if due is not None and due <= (now := time.monotonic()):
            line.write(now)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        far = self._socket()
        try:
            far.connect((LOOPBACK, self._target_port))
        except OSError:
            near.close()
            far.close()
            return
        near.setblocking(False)
        far.setblocking(False)
        there = Line(near, far, self._seconds, self._spare)
        self._connections.append((there, Line(far, near, self._seconds, self._spare)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("target_port", type=int)
    parser.add_argument("delay_ms", type=float, help="there and back")
    parser.add_argument("--congestion", help="of every socket (default: the kernel's)")
    asked = parser.parse_args()
    process.end_on_sigterm()
    Relay(asked.port, asked.target_port, asked.delay_ms / 2000, asked.congestion).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
