"""Maximum lengths at every edge, both roles and both directions, and memory that does not follow them."""

from __future__ import annotations

import hashlib
import os
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from dcmhaul.cli import main
from dcmhaul.errors import RemoteProtocolError
from dcmhaul.net import FileRange, open_association, serve_associations
from dcmhaul.net.association import READ_AHEAD_BYTES
from dcmhaul.protocol.dimse import CStoreRq
from dcmhaul.protocol.negotiation import AcceptorPolicy, AssociationRequest, SupportedContext
from dcmhaul.wire._frames import BUILD
from dcmhaul.wire.items import PresentationContextRq
from tests.hostile.harness import Peer, Resources
from tests.hostile.octets import (
    CT,
    EXPLICIT,
    associate_rq,
    big,
    command_pdu,
    release_rp,
    release_rq,
    store_rq,
    user_information,
)
from tests.hostile.scripted_scp import ScriptedScp, response, running
from tests.net.test_cli import process
from tests.reference import codec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from dcmhaul.net import Association
    from dcmhaul.net.types import DatasetSlices

MIB = 1 << 20
UNLIMITED = 0
LONGEST = 2**32 - 1
EDGES = (8, 9, 4084, 4096, 16378, 16382, 16384, 131072, MIB, 2**31 - 1, 2**31, LONGEST, UNLIMITED)
ANNOUNCED = (4096, 16382, 131072, MIB, 2**31 - 1, 2**31, LONGEST, UNLIMITED)
# One P-DATA-TF of this many bytes must leave no more than RSS_MARGIN of itself in memory.
HUGE = 300 * MIB
# AddressSanitizer keeps up to 256 MiB of what was freed.
RSS_MARGIN = (16 + 256 * BUILD["sanitize"]) * MIB


def request(**fields: Any) -> AssociationRequest:
    return AssociationRequest(
        called_ae_title="PEER",
        calling_ae_title="OURS",
        contexts=(
            PresentationContextRq(context_id=1, abstract_syntax=CT, transfer_syntaxes=(EXPLICIT,)),
        ),
        **fields,
    )


STORE = CStoreRq(
    message_id=1,
    affected_sop_class_uid=CT,
    affected_sop_instance_uid="1.2.3",
    priority=0,
    has_dataset=True,
)


class Counted:
    """A sink that keeps a digest, the number of bytes, and how far the memory grew meanwhile."""

    def __init__(self) -> None:
        self.digest = hashlib.blake2b()
        self.length = 0
        self.growth = 0
        self._before = Resources.now().rss

    async def write(self, data: DatasetSlices) -> None:
        if self.length % (8 * MIB) + data.data_length >= 8 * MIB:
            self.growth = max(self.growth, Resources.now().rss - self._before)
        data.update(self.digest.update)
        self.length += data.data_length


@asynccontextmanager
async def accepting(
    handler: Callable[[Association], Awaitable[None]], announced: int = 16384
) -> AsyncIterator[int]:
    policy = AcceptorPolicy(
        ae_title=None, supported={CT: SupportedContext()}, pdu_length_max=announced
    )
    async with trio.open_nursery() as nursery:
        serve = partial(serve_associations, handler, policy, host="127.0.0.1")
        [(_, port)] = await nursery.start(serve)
        yield port
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def raw_requestor(port: int, announced: int) -> AsyncIterator[tuple[Peer, int]]:
    """A peer that has announced this length, and what was announced to it."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        peer = Peer(stream)
        ac = await peer.associate(associate_rq(user=user_information(length=announced)))
        yield peer, ac["user_information"]["max_length_received"]


def longest(announced: int) -> int:
    """The variable field of a full P-DATA-TF: even, and 1 MiB where the peer takes more."""
    return min(announced or MIB, MIB) & ~1


def content(announced: int) -> bytes:
    """More than two full fragments."""
    return os.urandom(min(2 * longest(announced) + 1234, 2048 if 0 < announced < 16 else 3 * MIB))


# -- what we send


@pytest.mark.parametrize("announced", EDGES)
async def test_a_requestor_sends_no_more_than_the_acceptor_takes(announced: int) -> None:
    dataset = content(announced)
    async with running(ScriptedScp(length=announced)) as scp:
        async with open_association("127.0.0.1", scp.port, request()) as association:
            assert association.agreement.pdu_length_send_max == min(announced or MIB, MIB)
            await association.send(1, STORE, dataset)
        assert (bytes(scp.datasets[0]), scp.longest_pdu) == (dataset, longest(announced))


@pytest.mark.parametrize("announced", EDGES)
async def test_an_acceptor_sends_no_more_than_the_requestor_takes(announced: int) -> None:
    dataset = content(announced)

    async def handler(association: Association) -> None:
        await association.send(1, STORE, dataset)
        assert await association.receive() is None

    received, lengths = bytearray(), []
    async with accepting(handler) as port, raw_requestor(port, announced) as (peer, _):
        while len(received) < len(dataset):
            pdu_type, body = await peer.read_pdu()
            lengths.append(len(body))
            for value in codec.decode_pdu(pdu_type, body)["pdvs"]:
                received += b"" if value["is_command"] else value["fragment"]
        await peer.send(release_rq)
        assert await peer.read_to_end() == release_rp
    assert (bytes(received), max(lengths)) == (dataset, longest(announced))


@pytest.mark.parametrize(
    ("peer", "cap", "agreed"),
    [
        (65536, 16384, 16384),
        (16384, 65536, 16384),
        (16382, 0, 16382),
        (UNLIMITED, 4096, 4096),
        (UNLIMITED, 4 * MIB, 4 * MIB),
        (LONGEST, LONGEST, LONGEST),
    ],
)
async def test_the_smaller_length_holds(peer: int, cap: int, agreed: int) -> None:
    async with (
        running(ScriptedScp(length=peer)) as scp,
        open_association("127.0.0.1", scp.port, request(pdu_length_send_max=cap)) as association,
    ):
        assert association.agreement.pdu_length_send_max == agreed


@pytest.mark.parametrize("announced", range(1, 8))
async def test_a_length_that_carries_nothing_is_one_line_and_an_abort(
    announced: int, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(ScriptedScp(length=announced)) as scp:
        arguments = ["echo", f"PEER@127.0.0.1:{scp.port}"]
        assert await trio.to_thread.run_sync(main, arguments) == 3
        with trio.fail_after(10):
            while not scp.ends:
                await trio.sleep(0.001)
    assert scp.ends == [(7, 0, 0)]
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"takes P-DATA of {announced} octets at most" in err


@pytest.mark.parametrize("typed", ["0", "4096", "4294967295"])
async def test_what_is_typed_is_announced(typed: str) -> None:
    async with running(ScriptedScp(lambda _number, rq: response(rq))) as scp:
        arguments = ["find", f"PEER@127.0.0.1:{scp.port}", "-S", "-k", "PatientID", "-pdu", typed]
        assert await trio.to_thread.run_sync(main, arguments) == 4
    assert scp.requests[0]["max_length_received"] == int(typed)


@pytest.mark.parametrize("typed", ["0", "4294967295"])
async def test_what_is_typed_is_announced_by_a_server(typed: str) -> None:
    with process("receive", "0", "--bind", "127.0.0.1", "--discard", "-pdu", typed) as receiver:
        async with raw_requestor(receiver.port, 0) as (peer, said):
            assert said == int(typed)
            await peer.send(release_rq)
            await peer.read_to_end()


@pytest.mark.parametrize(("announced", "warned"), [(8, True), (1023, True), (1024, False)])
async def test_a_length_that_is_slow_is_told_and_kept(
    announced: int, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(ScriptedScp(lambda _n, rq: response(rq), length=announced)) as scp:
        arguments = ["echo", f"PEER@127.0.0.1:{scp.port}", "--repeat", "2"]
        assert await trio.to_thread.run_sync(main, arguments) == 0
    assert scp.longest_pdu <= announced
    warning = (
        f"warning: 127.0.0.1:{scp.port} takes PDUs of {announced} bytes at most, which is slow\n"
    )
    assert capsys.readouterr().err == (warning if warned else "")


# -- what is sent to us


def p_data_header(length: int, *, control: int) -> bytes:
    """PDU and PDV header of a P-DATA-TF of this length, on context 1."""
    return b"\4\0" + big(length, 4) + big(length - 4, 4) + bytes([1, control])


def full_pdus(announced: int) -> tuple[list[bytes], bytes]:
    """P-DATA-TFs of just this length, 3 MiB where none can be sent whole; and the dataset in them."""
    length = announced if 0 < announced <= MIB else 3 * MIB
    fragments = [os.urandom(length - 6) for _ in range(2)]
    pdus = [
        p_data_header(length, control=2 * last) + fragment
        for last, fragment in enumerate(fragments)
    ]
    return pdus, b"".join(fragments)


@pytest.mark.parametrize("announced", ANNOUNCED)
async def test_an_acceptor_takes_what_it_announced(announced: int) -> None:
    pdus, dataset = full_pdus(announced)
    taken = Counted()

    async def handler(association: Association) -> None:
        assert await association.receive() is not None
        await association.read_dataset(taken)
        assert await association.receive() is None

    async with (
        accepting(handler, announced) as port,
        raw_requestor(port, 16384) as (peer, said),
    ):
        assert said == announced
        await peer.send(command_pdu(1, store_rq()) + b"".join(pdus) + release_rq)
        assert await peer.read_to_end() == release_rp
    assert taken.digest.digest() == hashlib.blake2b(dataset).digest()


@pytest.mark.parametrize("announced", ANNOUNCED)
async def test_a_requestor_takes_what_it_announced(announced: int) -> None:
    pdus, dataset = full_pdus(announced)
    taken = Counted()

    def answer(_number: int, _command: dict[str, Any]) -> bytes:
        return command_pdu(1, store_rq()) + b"".join(pdus)

    async with running(ScriptedScp(answer)) as scp:
        limited = request(pdu_length_max=announced)
        async with open_association("127.0.0.1", scp.port, limited) as association:
            await association.send(1, STORE, b"")
            assert await association.receive() is not None
            await association.read_dataset(taken)
        assert scp.requests[0]["max_length_received"] == announced
    assert taken.digest.digest() == hashlib.blake2b(dataset).digest()


@pytest.mark.parametrize("announced", [4096, MIB, 2**31 - 1, 2**31, LONGEST - 13])
@pytest.mark.parametrize("over", [12, 13])
async def test_more_than_was_announced(announced: int, over: int) -> None:
    """The header alone decides, before a byte of the fragment has come."""
    failed: list[RemoteProtocolError] = []
    taken = Counted()

    async def handler(association: Association) -> None:
        try:
            assert await association.receive() is not None
            await association.read_dataset(taken)
        except RemoteProtocolError as error:
            failed.append(error)
            raise

    async with accepting(handler, announced) as port, raw_requestor(port, 0) as (peer, _):
        header = p_data_header(announced + over, control=2)
        await peer.send(command_pdu(1, store_rq()) + header + b"some")
        if over == 13:
            assert await peer.read_to_end() == b"\7\0" + big(4, 4) + bytes([0, 0, 2, 6])
            assert f"P-DATA-TF length {announced + over}" in str(failed[0])
            return
        with trio.fail_after(10):
            while taken.length < 4:
                await trio.sleep(0.001)


# -- memory


async def send_huge(send: Callable[[bytes], Awaitable[None]]) -> None:
    await send(p_data_header(HUGE + 6, control=2))
    chunk = bytes(MIB)
    for _ in range(HUGE // MIB):
        await send(chunk)


@pytest.mark.parametrize("announced", [LONGEST, UNLIMITED])
async def test_an_acceptor_streams_one_huge_pdu(announced: int) -> None:
    taken = Counted()

    async def handler(association: Association) -> None:
        assert await association.receive() is not None
        await association.read_dataset(taken)

    async with accepting(handler, announced) as port, raw_requestor(port, 0) as (peer, _):
        await peer.send(command_pdu(1, store_rq()))
        await send_huge(peer.send)
        await peer.send(release_rq)
        await peer.read_to_end()
    assert taken.length == HUGE
    assert taken.growth < RSS_MARGIN


@asynccontextmanager
async def raw_acceptor(
    converse: Callable[[Peer], Awaitable[None]], **fields: Any
) -> AsyncIterator[Association]:
    """Our association with a peer that takes PDUs of any length, then does what `converse` says."""

    async def serve(stream: trio.SocketStream) -> None:
        peer = Peer(stream)
        rq = codec.decode_pdu(*await peer.read_pdu())
        await peer.send(ScriptedScp(length=LONGEST).accept(rq))
        await converse(peer)
        await peer.send(release_rp)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        async with open_association("127.0.0.1", port, request(**fields)) as association:
            yield association
        nursery.cancel_scope.cancel()


async def test_a_requestor_streams_one_huge_pdu() -> None:
    taken = Counted()

    async def converse(peer: Peer) -> None:
        await peer.send(command_pdu(1, store_rq()))
        await send_huge(peer.send)
        await peer.read_pdu()  # A-RELEASE-RQ

    async with raw_acceptor(converse, pdu_length_max=UNLIMITED) as association:
        assert await association.receive() is not None
        await association.read_dataset(taken)
    assert taken.length == HUGE
    assert taken.growth < RSS_MARGIN


@pytest.mark.parametrize("cold", [False, True])
async def test_a_huge_pdu_leaves_as_it_lies_in_its_file(cold: bool, tmp_path: Path) -> None:
    """Warm it is one P-DATA-TF; one that a thread reads ahead is cut to what is read at a time."""
    path = tmp_path / "huge"
    path.touch()
    os.truncate(path, HUGE)
    lengths: list[int] = []
    before = Resources.now().rss
    growth = 0

    async def converse(peer: Peer) -> None:
        nonlocal growth
        await peer.read_pdu()  # the command
        while sum(lengths) - 6 * len(lengths) < HUGE:
            header = await peer.exactly(12)
            lengths.append(int.from_bytes(header[2:6], "big"))
            left = lengths[-1] - 6
            while left:
                left -= len(await peer.stream.receive_some(min(left, MIB)))
            growth = max(growth, Resources.now().rss - before)
        await peer.read_pdu()  # A-RELEASE-RQ

    async with raw_acceptor(converse, pdu_length_send_max=LONGEST) as association:
        with path.open("rb") as file:
            part = FileRange(fd=file.fileno(), offset=0, length=HUGE, owner=file, cold=cold)
            await association.send(1, STORE, part)
    assert max(lengths) == (READ_AHEAD_BYTES if cold else HUGE) + 6
    assert growth < RSS_MARGIN
