"""Sends that break off half way: what is still read, still sent, and told to whom."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

import trio
import trio.testing

from dcmhaul.errors import TransportError
from dcmhaul.protocol.dimse import CEchoRsp
from tests.hostile import octets
from tests.net.test_association import serving

if TYPE_CHECKING:
    from dcmhaul.net import Association, DatasetSlices


def connect(port: int) -> socket.socket:
    """A peer that is no part of the event loop, associated."""
    sock = socket.socket()
    sock.connect(("127.0.0.1", port))
    sock.sendall(octets.associate_rq())
    return sock


def reset(sock: socket.socket) -> None:
    """Closes with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def test_a_broken_send_leaves_the_slices_that_another_task_looks_at() -> None:
    seen: list[bytes] = []
    looking = trio.Event()
    failed = trio.Event()
    dataset = bytes(range(250))

    class Sink:
        async def write(self, data: DatasetSlices) -> None:
            looking.set()
            await failed.wait()
            seen.append(data.copy_data())

    async def send(association: Association) -> None:
        await looking.wait()
        reset(sock)
        association.queue(3, CEchoRsp(message_id_being_responded_to=1, status=0))
        try:
            await association.flush()
        except TransportError:
            failed.set()

    async def handler(association: Association) -> None:
        assert await association.receive() is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, association)
            await association.read_dataset(Sink())

    with trio.fail_after(20):
        async with serving(handler) as port:
            sock = connect(port)
            sock.sendall(
                octets.command_pdu(1, octets.store_rq())
                + octets.data_pdu(1, dataset)
                + octets.abort(0, 0)
            )
            while not seen:
                await trio.sleep(0.01)
    assert seen == [dataset]
