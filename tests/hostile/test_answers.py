"""Where we are the requestor: what answers an A-ASSOCIATE-RQ of ours, and the A-ABORT that it gets."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from dcmhaul.errors import (
    AssociationAborted,
    AssociationRejected,
    DcmhaulError,
    RemoteProtocolError,
    TransportError,
)
from dcmhaul.net import Timeouts, open_association
from dcmhaul.protocol.negotiation import AssociationRequest
from dcmhaul.wire.items import PresentationContextRq
from tests.hostile.harness import PATIENCE_SECONDS
from tests.hostile.octets import (
    APPLICATION_CONTEXT,
    IMPLICIT,
    VERIFICATION,
    abort,
    big,
    counted,
    item,
    p_data,
    pdu,
    pdv,
    reject,
    release_rp,
    release_rq,
    title,
    user_information,
)
from tests.reference import codec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REQUEST = AssociationRequest(
    called_ae_title="PEER",
    calling_ae_title="OURS",
    contexts=(
        PresentationContextRq(
            context_id=1, abstract_syntax=VERIFICATION, transfer_syntaxes=(IMPLICIT,)
        ),
        PresentationContextRq(context_id=3, abstract_syntax="1.2.3", transfer_syntaxes=(IMPLICIT,)),
    ),
)
FIELDS = big(1, 2) + bytes(2) + title(b"PEER") + title(b"OURS") + bytes(32)


def answered(context_id: int, result: int, *sub_items: bytes) -> bytes:
    return item(0x21, bytes([context_id, 0, result, 0]) + b"".join(sub_items))


SYNTAX = item(0x40, IMPLICIT.encode())
CONTEXT = answered(1, 0, SYNTAX)


def ac(contexts: bytes = CONTEXT, user: bytes | None = None, more: bytes = b"") -> bytes:
    user = user_information() if user is None else user
    return pdu(2, FIELDS + APPLICATION_CONTEXT + contexts + user + more)


class Scripted:
    """A peer that reads the request, sends `answer`, and keeps what comes after."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.received = b""
        self.ended = trio.Event()

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            data = b""
            while len(data) < 6 or len(data) < 6 + int.from_bytes(data[2:6], "big"):
                data += await stream.receive_some()
            await stream.send_all(self.answer)
            async for part in stream:
                self.received += part
                if self.received.endswith(release_rq):
                    await stream.send_all(release_rp)
        self.ended.set()


@asynccontextmanager
async def scripted(answer: bytes) -> AsyncIterator[tuple[Scripted, int]]:
    peer = Scripted(answer)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, peer.serve, 0, host="127.0.0.1"))
        yield peer, listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


REFUSED: dict[str, tuple[bytes, type[DcmhaulError], bytes]] = {
    "row 4 HTTP": (b"HTTP/1.1 400 Bad Request\r\n\r\n", TransportError, abort(2, 1)),
    "row 5 AC of 4 GiB": (bytes.fromhex("0200ffffffff"), TransportError, abort(2, 6)),
    "row 6 AC without its fields": (pdu(2, FIELDS[:-1]), DcmhaulError, abort(2, 6)),
    "row 11 item overruns": (ac(more=b"\x99\0\0\5"), DcmhaulError, abort(2, 6)),
    "row 11 sub-item overruns": (
        ac(answered(1, 0, b"\x40\0\0\x20" + IMPLICIT.encode())),
        DcmhaulError,
        abort(2, 6),
    ),
    "row 12 maximum length of 3": (
        ac(user=item(0x50, item(0x51, bytes(3)))),
        DcmhaulError,
        abort(2, 6),
    ),
    "row 13 role UID beyond its item": (
        ac(user=user_information(bytes.fromhex("54000004ffff0101"))),
        DcmhaulError,
        abort(2, 6),
    ),
    "row 15 two user informations": (ac(more=user_information()), DcmhaulError, abort(2, 6)),
    "row 16 response overruns": (
        ac(user=user_information(item(0x59, b"\0\5me"))),
        DcmhaulError,
        abort(2, 6),
    ),
    "row 18 RQ": (pdu(1, FIELDS), DcmhaulError, abort(2, 2)),
    "row 18 P-DATA": (p_data(pdv(1, 3, bytes(12))), DcmhaulError, abort(2, 2)),
    "row 18 RELEASE-RP": (release_rp, DcmhaulError, abort(2, 2)),
    "row 22 RJ of 5": (pdu(3, bytes(5)), DcmhaulError, abort(2, 6)),
    "row 62 maximum length of 1": (
        ac(user=user_information(length=1)),
        RemoteProtocolError,
        abort(0, 0),
    ),
    "row 62 maximum length of 7": (
        ac(user=user_information(length=7)),
        RemoteProtocolError,
        abort(0, 0),
    ),
    "A-ABORT": (abort(2, 0), AssociationAborted, b""),
    "A-ABORT of 5": (pdu(7, bytes(5)), AssociationAborted, b""),
    "RJ": (reject(2, 3, 2), AssociationRejected, b""),
}


@pytest.mark.parametrize(("answer", "error", "expected"), REFUSED.values(), ids=REFUSED.keys())
async def test_refused(answer: bytes, error: type[DcmhaulError], expected: bytes) -> None:
    async with scripted(answer) as (peer, port):
        with pytest.raises(error) as caught:
            async with open_association("127.0.0.1", port, REQUEST, timeouts=Timeouts(artim=5)):
                pass
        assert "\n" not in str(caught.value)
        with trio.fail_after(PATIENCE_SECONDS):
            await peer.ended.wait()
        assert peer.received.hex(" ") == expected.hex(" ")


TOLERATED: dict[str, tuple[bytes, set[int]]] = {
    "row 61 contexts missing": (ac(), {1}),
    "row 61 a context that was not proposed": (ac(CONTEXT + answered(5, 0, SYNTAX)), {1}),
    "row 61 two transfer syntaxes": (ac(CONTEXT + answered(3, 0, SYNTAX, SYNTAX)), {1}),
    "row 61 result 7": (ac(CONTEXT + answered(3, 7, SYNTAX)), {1}),
    "row 61 a syntax that was not proposed": (
        ac(CONTEXT + answered(3, 0, item(0x40, b"1.2.840.10008.1.2.1"))),
        {1},
    ),
    "row 61 rejected, and a syntax that overruns": (
        ac(CONTEXT + answered(3, 3, b"\x40\0\xff\xff")),
        {1},
    ),
    "row 61 nothing accepted": (ac(answered(1, 3) + answered(3, 4)), set()),
    "row 62 maximum length of 8": (ac(user=user_information(length=8)), {1}),
    "row 63 a window that was not asked for": (
        ac(user=user_information(item(0x53, b"\0\0\0\0"))),
        {1},
    ),
    "row 13 a role that was not asked for": (
        ac(user=user_information(item(0x54, counted(VERIFICATION.encode()) + b"\0\1"))),
        {1},
    ),
    "row 15 unknown items": (ac(more=item(0x99, b"?")), {1}),
}


@pytest.mark.parametrize(("answer", "accepted"), TOLERATED.values(), ids=TOLERATED.keys())
async def test_tolerated(answer: bytes, accepted: set[int]) -> None:
    async with scripted(answer) as (peer, port):
        async with open_association("127.0.0.1", port, REQUEST) as association:
            agreement = association.agreement
            assert set(agreement.accepted) == accepted
            assert (agreement.window_invoked, agreement.window_performed) == (1, 1)
            assert agreement.roles_for(VERIFICATION) == (True, False)
        with trio.fail_after(PATIENCE_SECONDS):
            await peer.ended.wait()
        assert codec.split_pdus(peer.received) == codec.split_pdus(release_rq)
