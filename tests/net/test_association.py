"""Associations over real sockets on 127.0.0.1: messages, back-pressure, deadlines, and every way to end."""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from dcmhaul import uids
from dcmhaul.errors import (
    AssociationAborted,
    AssociationRejected,
    ConfigurationError,
    LocalProtocolError,
    PeerTimeout,
    RemoteProtocolError,
    TransportError,
)
from dcmhaul.net import (
    AcceptorLimits,
    Association,
    FileRange,
    SocketOptions,
    Timeouts,
    open_association,
    serve_associations,
)
from dcmhaul.protocol.dimse import CEchoRq, CEchoRsp, CStoreRq, CStoreRsp
from dcmhaul.protocol.negotiation import AcceptorPolicy, AssociationRequest, SupportedContext
from dcmhaul.wire.items import PresentationContextRq

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from dcmhaul.net import DatasetSlices

CT = "1.2.840.10008.5.1.4.1.1.2"
SYNTAX = uids.EXPLICIT_VR_LITTLE_ENDIAN
Handler = "Callable[[Association], Awaitable[None]]"


def policy(**fields: object) -> AcceptorPolicy:
    context = SupportedContext(transfer_syntaxes=())
    supported = {CT: context, uids.VERIFICATION: context}
    return AcceptorPolicy(**{"ae_title": None, "supported": supported} | fields)  # type: ignore[arg-type]


def request(**fields: object) -> AssociationRequest:
    contexts = (
        PresentationContextRq(context_id=1, abstract_syntax=CT, transfer_syntaxes=(SYNTAX,)),
        PresentationContextRq(
            context_id=3, abstract_syntax=uids.VERIFICATION, transfer_syntaxes=(SYNTAX,)
        ),
    )
    base = {"called_ae_title": "THERE", "calling_ae_title": "HERE", "contexts": contexts}
    return AssociationRequest(**base | fields)  # type: ignore[arg-type]


def store_rq(message_id: int, instance: str = "1.2.3") -> CStoreRq:
    return CStoreRq(
        message_id=message_id, affected_sop_class_uid=CT, affected_sop_instance_uid=instance
    )


def store_rsp(message_id: int) -> CStoreRsp:
    return CStoreRsp(
        message_id_being_responded_to=message_id,
        status=0,
        affected_sop_class_uid=CT,
        affected_sop_instance_uid="1.2.3",
    )


def raise_it(_peer: str, error: Exception) -> None:
    """A handler's failed assertion fails the test."""
    raise error


@asynccontextmanager
async def serving(
    handler: Callable[[Association], Awaitable[None]],
    accept: AcceptorPolicy | None = None,
    **options: object,
) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[list[tuple[str, int]]]) -> None:
            await serve_associations(
                handler,
                accept or policy(),
                host="127.0.0.1",
                task_status=task_status,
                on_error=raise_it,
                **options,  # type: ignore[arg-type]
            )

        ((_, port),) = await nursery.start(serve)
        yield port
        nursery.cancel_scope.cancel()


class Digest:
    def __init__(self) -> None:
        self.sha = hashlib.sha256()

    async def write(self, data: DatasetSlices) -> None:
        data.update(self.sha.update)


async def answer_stores(association: Association) -> None:
    while (incoming := await association.receive()) is not None:
        assert isinstance(incoming.message, CStoreRq)
        await association.read_dataset(Digest())
        association.queue(1, store_rsp(incoming.message.message_id))


async def test_a_store_with_a_digest() -> None:
    seen: list[str] = []

    async def handler(association: Association) -> None:
        while (incoming := await association.receive()) is not None:
            digest = Digest()
            assert isinstance(incoming.message, CStoreRq)
            await association.read_dataset(digest)
            seen.append(digest.sha.hexdigest())
            association.queue(1, store_rsp(incoming.message.message_id))

    data = os.urandom(3_000_001 * 2)
    with trio.fail_after(20):
        async with serving(handler) as port, open_association("127.0.0.1", port, request()) as a:
            a.queue(1, store_rq(1), data)
            answer = await a.receive()
            assert answer is not None
            assert isinstance(answer.message, CStoreRsp)
            assert a.stats().bytes_out == len(data)
    assert seen == [hashlib.sha256(data).hexdigest()]


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("maximum", [4096, 131072])
async def test_a_file_range(tmp_path: object, cold: bool, maximum: int) -> None:
    seen: list[str] = []

    async def handler(association: Association) -> None:
        while (incoming := await association.receive()) is not None:
            digest = Digest()
            await association.read_dataset(digest)
            seen.append(digest.sha.hexdigest())
            association.queue(1, store_rsp(incoming.message.message_id))  # type: ignore[attr-defined]

    path = f"{tmp_path}/data"
    content = os.urandom(9_000_000)
    Path(path).write_bytes(content)
    with trio.fail_after(30), open(path, "rb") as file:
        part = FileRange(fd=file.fileno(), offset=100, length=8_999_000, owner=file, cold=cold)
        async with (
            serving(handler, policy(pdu_length_max=maximum)) as port,
            open_association("127.0.0.1", port, request()) as a,
        ):
            await a.send(1, store_rq(1), part)
            assert await a.receive() is not None
    assert seen == [hashlib.sha256(content[100:8_999_100]).hexdigest()]


async def test_a_streamed_dataset_with_odd_pieces_and_a_message_queued_meanwhile() -> None:
    got: list[bytes | None] = []

    async def handler(association: Association) -> None:
        while (incoming := await association.receive()) is not None:
            if incoming.message.has_dataset:
                got.append(await association.read_dataset_bytes(1000))
            else:
                got.append(b"echo")

    with trio.fail_after(20):
        async with serving(handler) as port, open_association("127.0.0.1", port, request()) as a:
            writer = await a.open_dataset(1, store_rq(1))
            await writer.write(b"abc")
            a.queue(3, CEchoRq(message_id=2, affected_sop_class_uid=uids.VERIFICATION))
            await a.flush()
            await writer.write(b"defg")
            await writer.write(b"")
            await writer.write(b"h")
            await writer.finish()
            await writer.aclose()
    assert got == [b"abcdefgh", b"echo"]


async def test_a_stream_that_is_not_finished_aborts() -> None:
    ended: list[BaseException] = []

    async def handler(association: Association) -> None:
        await association.receive()
        try:
            await association.read_dataset(None)
        except AssociationAborted as exc:
            ended.append(exc)
            raise

    with trio.fail_after(20):
        async with serving(handler) as port:
            async with open_association("127.0.0.1", port, request()) as a:
                writer = await a.open_dataset(1, store_rq(1))
                await writer.write(bytes(100))
                await writer.aclose()
                assert a.ended
            while not ended:
                await trio.sleep(0.01)
    assert isinstance(ended[0], AssociationAborted)
    assert ended[0].source == 0


async def test_cancelling_a_large_send_aborts_at_a_pdu_border() -> None:
    """The receiver sees whole PDUs and then an A-ABORT, never a torn one."""
    ended: list[BaseException] = []

    async def handler(association: Association) -> None:
        await association.receive()
        await trio.sleep(0.3)  # let the sender run into full buffers
        try:
            await association.read_dataset(None)
        except (AssociationAborted, RemoteProtocolError, TransportError) as exc:
            ended.append(exc)
            raise

    with trio.fail_after(20):
        async with serving(handler) as port:
            with trio.move_on_after(0.1) as scope:
                async with open_association("127.0.0.1", port, request()) as a:
                    await a.send(1, store_rq(1), bytes(200_000_000))
            assert scope.cancelled_caught
            while not ended:
                await trio.sleep(0.01)
    assert isinstance(ended[0], AssociationAborted)


async def test_a_file_that_shrinks_while_it_is_sent(tmp_path: object) -> None:
    async def handler(association: Association) -> None:
        await association.receive()
        await association.read_dataset(None)

    path = f"{tmp_path}/data"
    Path(path).write_bytes(bytes(1000))
    with trio.fail_after(20), open(path, "rb") as file:
        part = FileRange(fd=file.fileno(), offset=0, length=5_000, owner=file)
        async with serving(handler) as port:
            with pytest.raises(EOFError):
                async with open_association("127.0.0.1", port, request()) as a:
                    await a.send(1, store_rq(1), part)


async def test_over_the_limit_the_rest_is_dropped() -> None:
    lengths: list[int] = []

    async def handler(association: Association) -> None:
        association.dataset_length_max = 100_000
        while await association.receive() is not None:
            lengths.append(await association.read_dataset(Digest()))

    with trio.fail_after(20):
        async with serving(handler) as port, open_association("127.0.0.1", port, request()) as a:
            await a.send(1, store_rq(1), bytes(300_000))
            await a.send(1, store_rq(2), bytes(10))
    assert lengths == [300_000, 10]


async def test_a_dataset_that_never_ends() -> None:
    async def handler(association: Association) -> None:
        association.dataset_length_max = 100_000
        await association.receive()
        await association.read_dataset(None)

    with trio.fail_after(30):
        async with serving(handler) as port:
            with pytest.raises((AssociationAborted, TransportError)) as caught:
                async with open_association("127.0.0.1", port, request()) as a:
                    writer = await a.open_dataset(1, store_rq(1))
                    while True:
                        await writer.write(bytes(1_000_000))
            if isinstance(caught.value, AssociationAborted):
                assert caught.value.source == 0


async def test_an_error_in_one_handler_ends_one_association(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def handler(association: Association) -> None:
        incoming = await association.receive()
        if incoming is not None and incoming.message.has_dataset:
            raise RuntimeError("PatientName^in^a^text")
        association.queue(3, CEchoRsp(message_id_being_responded_to=1, status=0))
        await association.receive()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            ((_, port),) = await nursery.start(
                partial(serve_associations, handler, policy(), host="127.0.0.1")
            )
            async with open_association("127.0.0.1", port, request()) as other:
                with pytest.raises(AssociationAborted):
                    async with open_association("127.0.0.1", port, request()) as a:
                        await a.send(1, store_rq(1), bytes(10))
                        await a.receive()
                other.queue(3, CEchoRq(message_id=1, affected_sop_class_uid=uids.VERIFICATION))
                assert await other.receive() is not None
            nursery.cancel_scope.cancel()
    shown = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(shown) == 1
    assert "RuntimeError" in shown[0].getMessage()
    assert "PatientName" not in shown[0].getMessage()


async def test_rejection_names_its_reason() -> None:
    async with serving(answer_stores, policy(ae_title="ELSE")) as port:
        with pytest.raises(AssociationRejected, match="called AE title") as caught:
            async with open_association("127.0.0.1", port, request()):
                pass
    assert (caught.value.result, caught.value.source, caught.value.reason) == (1, 1, 7)
    assert not caught.value.transient


async def test_above_the_limit_a_transient_rejection() -> None:
    limits = AcceptorLimits(associations=2, associations_per_host=2)
    with trio.fail_after(20):
        async with (
            serving(answer_stores, limits=limits) as port,
            open_association("127.0.0.1", port, request()),
            open_association("127.0.0.1", port, request()),
        ):
            with pytest.raises(AssociationRejected) as caught:
                async with open_association("127.0.0.1", port, request()):
                    pass
            assert (caught.value.result, caught.value.source, caught.value.reason) == (2, 3, 1)


async def test_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(TransportError, match="no connection"):
        async with open_association("127.0.0.1", port, request()):
            pass


async def test_a_port_that_speaks_http() -> None:
    async def http(stream: trio.SocketStream) -> None:
        await stream.receive_some(10)
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, http, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        with pytest.raises(TransportError, match="does not speak DICOM"):
            async with open_association("127.0.0.1", port, request()):
                pass
        nursery.cancel_scope.cancel()


async def test_a_port_that_closes_at_once() -> None:
    async def close(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, close, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        with pytest.raises(TransportError, match="closed the connection"):
            async with open_association("127.0.0.1", port, request()):
                pass
        nursery.cancel_scope.cancel()


async def test_a_port_that_says_nothing() -> None:
    async def silent(_: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, silent, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        with pytest.raises(PeerTimeout) as caught:
            async with open_association(
                "127.0.0.1", port, request(), timeouts=Timeouts(association=0.1)
            ):
                pass
        assert caught.value.phase == "association"
        nursery.cancel_scope.cancel()


async def test_an_idle_response_has_a_deadline_that_is_named() -> None:
    async def silent(association: Association) -> None:
        await trio.sleep_forever()

    with trio.fail_after(20):
        async with serving(silent) as port:
            with pytest.raises(PeerTimeout) as caught:
                async with open_association(
                    "127.0.0.1", port, request(), timeouts=Timeouts(release=0.1)
                ) as a:
                    await a.receive(seconds=0.1, phase="C-STORE response")
            assert caught.value.phase == "C-STORE response"


async def test_a_peer_that_reads_nothing_has_a_deadline() -> None:
    async def silent(association: Association) -> None:
        await trio.sleep_forever()

    with trio.fail_after(20):
        async with serving(silent) as port:
            with pytest.raises(PeerTimeout) as caught:
                async with open_association(
                    "127.0.0.1", port, request(), timeouts=Timeouts(progress=0.3)
                ) as a:
                    await a.send(1, store_rq(1), bytes(300_000_000))
            assert caught.value.phase == "progress"


async def test_artim_closes_silently() -> None:
    with trio.fail_after(20):
        async with serving(answer_stores, timeouts=Timeouts(artim=0.2)) as port:
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                assert await stream.receive_some() == b""


async def test_artim_is_not_extended_by_bytes() -> None:
    with trio.fail_after(20):
        async with serving(answer_stores, timeouts=Timeouts(artim=0.5)) as port:
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                started = trio.current_time()
                with trio.move_on_after(5):
                    try:
                        for byte in b"\1\0\0\0\1\0" + bytes(200):
                            await stream.send_all(bytes([byte]))
                            await trio.sleep(0.05)
                    except trio.BrokenResourceError:
                        pass
                assert trio.current_time() - started < 4


async def test_both_sides_with_full_buffers_make_progress() -> None:
    """A peer that answers each message with a large one while it is still being written to."""
    size = 6_000_000

    async def chatty(association: Association) -> None:
        while (incoming := await association.receive()) is not None:
            await association.read_dataset(None)
            for i in range(4):
                await association.send(1, store_rq(i + 1), bytes(size))
            assert incoming.message.has_dataset

    with trio.fail_after(60):
        async with serving(chatty) as port, open_association("127.0.0.1", port, request()) as a:
            received = 0

            async def read() -> None:
                nonlocal received
                for _ in range(8):
                    assert await a.receive() is not None
                    received += await a.read_dataset(None)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                for i in range(2):
                    await a.send(1, store_rq(i + 1), bytes(size))
    assert received == 8 * size


async def test_reading_out_of_order_is_our_own_bug() -> None:
    async with serving(answer_stores) as port, open_association("127.0.0.1", port, request()) as a:
        with pytest.raises(LocalProtocolError):
            await a.read_dataset(None)


async def test_an_unknown_congestion_control_is_a_configuration_error() -> None:
    options = SocketOptions(congestion="no-such")
    with pytest.raises(ConfigurationError, match="no-such"):
        async with open_association("127.0.0.1", 1, request(), options=options):
            pass


async def test_a_port_in_use_is_a_configuration_error() -> None:
    async with serving(answer_stores) as port:
        with pytest.raises(ConfigurationError, match="cannot listen"):
            await serve_associations(answer_stores, policy(), host="127.0.0.1", port=port)


async def test_nagle_is_off_and_the_congestion_control_is_ours() -> None:
    options = SocketOptions(congestion="reno")
    async with serving(answer_stores, options=options) as port:
        async with open_association("127.0.0.1", port, request(), options=options) as a:
            sock = a._transport._sock
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            name = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
            assert name.rstrip(b"\0") == b"reno"


async def test_every_descriptor_is_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with serving(answer_stores) as port:
        for _ in range(5):
            async with open_association("127.0.0.1", port, request()) as a:
                await a.send(1, store_rq(1), bytes(1000))
                await a.receive()
    assert len(os.listdir("/proc/self/fd")) <= before + 3  # trio's own
