"""How long one connection waits without sleep, and what it learns from that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from dcmhaul.errors import PeerTimeout
from dcmhaul.net import transport as module
from dcmhaul.net.transport import Transport
from dcmhaul.wire._fragments import SendQueue
from dcmhaul.wire._frames import PduReader

if TYPE_CHECKING:
    from collections.abc import Iterator

ECHO = bytes.fromhex("050000000004") + bytes(4)


@pytest.fixture
def ends() -> Iterator[tuple[Transport, trio.socket.SocketType]]:
    near, far = trio.socket.socketpair()
    with near, far:
        yield Transport(near, PduReader(0), SendQueue(0)), far


async def waits(transport: Transport) -> int:
    """Receives that a wait for a message took which did not come."""
    before = transport.stats.receive_calls
    with pytest.raises(PeerTimeout):
        await transport.receive(0.001, "idle", in_message=False)
    return transport.stats.receive_calls - before


async def test_a_wait_tries_for_a_moment_and_less_often_where_that_is_vain(
    ends: tuple[Transport, trio.socket.SocketType], monkeypatch: pytest.MonkeyPatch
) -> None:
    transport, far = ends
    monkeypatch.setattr(module, "LINGER_SECONDS", 0.02)
    tried = [await waits(transport) > 1 for _ in range(12)]
    assert tried == [True, False, True, *[False] * 3, True, *[False] * 5]
    # What comes within the moment makes the next wait try again, and costs no sleep.
    transport._sleeps_due = 0
    woken = transport.stats.wakeups
    async with trio.open_nursery() as nursery:
        nursery.start_soon(far.send, ECHO)
        assert await transport.receive(1, "idle", in_message=False)
    assert transport.stats.wakeups == woken
    transport.reader.next()
    assert await waits(transport) > 1


async def test_within_a_message_bytes_are_waited_for_asleep(
    ends: tuple[Transport, trio.socket.SocketType], monkeypatch: pytest.MonkeyPatch
) -> None:
    transport, _ = ends
    monkeypatch.setattr(module, "LINGER_SECONDS", 1.0)
    with pytest.raises(PeerTimeout):
        await transport.receive(0.001, "progress", in_message=True)
    assert transport.stats.receive_calls == 1
