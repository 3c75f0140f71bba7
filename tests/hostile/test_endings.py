"""Rows 49 to 52 and their kin: peers that end, stall or vanish at the worst moment."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.hostile import octets
from tests.hostile.harness import target

if TYPE_CHECKING:
    from pathlib import Path


def reset(sock: socket.socket) -> None:
    """Closes with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize(
    "tail",
    [octets.abort(0, 0), octets.abort(2, 1), octets.release_rq, octets.associate_rq(), b"\x08\0"],
    ids=["abort", "provider abort", "release", "second request", "half a header"],
)
async def test_a_peer_that_is_gone_before_it_is_accepted(tmp_path: Path, tail: bytes) -> None:
    """The answer cannot be sent, and what follows the request says why: one connection's affair."""
    async with target(tmp_path) as acceptor:
        sock = socket.socket()
        sock.connect(("127.0.0.1", acceptor.port))
        sock.sendall(octets.associate_rq() + tail)
        reset(sock)  # all of that before the acceptor has run at all
        await trio.testing.wait_all_tasks_blocked()
        await acceptor.assert_unharmed()
