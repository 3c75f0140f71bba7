"""Sends that break off half way: what is still read, still sent, and told to whom."""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from dcmhaul.errors import (
    AssociationAborted,
    DcmhaulError,
    PeerTimeout,
    TransportError,
    UnreadableInstance,
)
from dcmhaul.net import FileRange, Timeouts, open_association
from dcmhaul.protocol.dimse import CEchoRsp, CStoreRq, CStoreRsp
from dcmhaul.services.storage import StorageScu
from tests.hostile import octets
from tests.net.test_association import CT, SYNTAX, request, serving, store_rq
from tests.net.test_cancellation import Memory
from tests.reference.codec import item

if TYPE_CHECKING:
    from pathlib import Path

    from dcmhaul.net import Association, DatasetSlices
    from dcmhaul.services.storage import StoreOutcome


def connect(port: int) -> socket.socket:
    """A peer that is no part of the event loop, associated."""
    sock = socket.socket()
    sock.connect(("127.0.0.1", port))
    sock.sendall(octets.associate_rq())
    return sock


def accept(sock: socket.socket) -> None:
    """Reads an A-ASSOCIATE-RQ and accepts its first context."""
    header = sock.recv(6, socket.MSG_WAITALL)
    sock.recv(int.from_bytes(header[2:], "big"), socket.MSG_WAITALL)
    context = item(0x21, bytes([1, 0, 0, 0]) + item(0x40, SYNTAX.encode()))
    fields = b"\0\1\0\0" + octets.title(b"THERE") + octets.title(b"HERE") + bytes(32)
    body = fields + octets.APPLICATION_CONTEXT + context + octets.user_information(length=0)
    sock.sendall(octets.pdu(2, body))


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


class Reused:
    """A file whose descriptor is another file's as soon as it is closed."""

    label = "reused"
    sop_class_uid = CT
    sop_instance_uid = "1.2.3"
    transfer_syntax_uid = SYNTAX

    def __init__(self, ours: Path, other: Path, length: int) -> None:
        self.length = length
        self._file = open(ours, "rb")  # noqa: SIM115  # as long as the test lasts
        self._other = open(other, "rb")  # noqa: SIM115
        self.dataset = FileRange(fd=self._file.fileno(), offset=0, length=length, owner=self._file)

    def close(self) -> None:
        os.dup2(self._other.fileno(), self._file.fileno())

    def release(self) -> None:
        self._file.close()
        self._other.close()


async def test_what_is_half_sent_at_a_time_out_is_completed_from_its_own_file(
    tmp_path: Path,
) -> None:
    """The A-ABORT follows the rest of the PDU; with bytes of another file that could be a whole object."""
    ours, other = tmp_path / "ours", tmp_path / "other"
    size = 50_000_000
    ours.write_bytes(b"\xaa" * size)
    other.write_bytes(b"\xbb" * size)
    instance = Reused(ours, other, size)
    outcomes: list[StoreOutcome] = []
    stream = bytearray()

    async def take() -> Reused | None:
        return None if outcomes else instance

    def close(outcome: StoreOutcome) -> None:
        outcomes.append(outcome)
        outcome.instance.close()

    with trio.fail_after(20), socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        async def send_and_close() -> None:
            with pytest.raises(PeerTimeout):
                async with open_association(
                    "127.0.0.1", port, request(), timeouts=Timeouts(progress=0.3)
                ) as association:
                    await StorageScu(association).run(take, close)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_and_close)
            sock, _ = await trio.to_thread.run_sync(listener.accept)
            with sock:
                accept(sock)
                while not outcomes:
                    await trio.sleep(0.01)
                while piece := await trio.to_thread.run_sync(sock.recv, 1 << 20):
                    stream += piece
    instance.release()
    assert stream.endswith(octets.abort(0, 0))
    assert b"\xbb" not in stream


@pytest.mark.parametrize("mode", ["ab", "rb"], ids=["unreadable", "shorter"])
@pytest.mark.parametrize(
    ("cold", "seen"),
    [(False, TransportError), (True, AssociationAborted)],
    ids=["within a PDU: closed", "between two: A-ABORT"],
)
async def test_a_file_that_cannot_be_read_is_the_instances_fault(
    tmp_path: Path, mode: str, cold: bool, seen: type[DcmhaulError]
) -> None:
    outcomes: list[StoreOutcome] = []
    ended: list[type[DcmhaulError]] = []

    async def handler(association: Association) -> None:
        try:
            assert await association.receive() is not None
            await association.read_dataset(None)
        except DcmhaulError as error:
            ended.append(type(error))
            raise

    (tmp_path / "file").write_bytes(bytes(50_000))
    with open(tmp_path / "file", mode) as file:
        instance = Memory(0, 100_000)
        instance.dataset = FileRange(
            fd=file.fileno(), offset=0, length=100_000, owner=None, cold=cold
        )

        async def take() -> Memory:
            return instance

        with trio.fail_after(20):
            async with serving(handler) as port:
                with pytest.raises(UnreadableInstance):
                    async with open_association("127.0.0.1", port, request()) as association:
                        await StorageScu(association).run(take, outcomes.append)
                while not ended:
                    await trio.sleep(0.01)
    assert [type(outcome.error) for outcome in outcomes] == [UnreadableInstance]
    assert ended == [seen]


async def test_a_response_that_breaks_off_leaves_its_instance_unknown() -> None:
    """It counts once it is whole."""
    outcomes: list[StoreOutcome] = []

    async def handler(association: Association) -> None:
        incoming = await association.receive()
        assert incoming is not None
        assert isinstance(incoming.message, CStoreRq)
        await association.read_dataset(None)
        response = CStoreRsp(
            message_id_being_responded_to=incoming.message.message_id, status=0, has_dataset=True
        )
        association.queue(1, response)
        await association.flush()
        await association.abort()

    async def take() -> Memory:
        return Memory(0, 10)

    with trio.fail_after(20):
        async with serving(handler) as port:
            with pytest.raises(AssociationAborted):
                async with open_association("127.0.0.1", port, request()) as association:
                    await StorageScu(association).run(take, outcomes.append)
    assert [(outcome.status, outcome.sent) for outcome in outcomes] == [(None, True)]


async def test_an_association_that_ends_before_a_streamed_message_got_its_turn() -> None:
    async def flush_slowly(
        association: Association, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with association._send_lock:
            task_status.started()
            with pytest.raises(TransportError):
                await association.receive()

    async def begin(association: Association) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(flush_slowly, association)
            with pytest.raises(TransportError, match="ended before a message could begin"):
                await association.open_dataset(1, store_rq(1))
        assert not association._send_lock.locked()

    with trio.fail_after(20), socket.create_server(("127.0.0.1", 0)) as listener:

        async def associate() -> None:
            port = listener.getsockname()[1]
            async with open_association("127.0.0.1", port, request()) as association:
                await begin(association)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(associate)
            sock, _ = await trio.to_thread.run_sync(listener.accept)
            with sock:
                accept(sock)
                await trio.sleep(0.1)
