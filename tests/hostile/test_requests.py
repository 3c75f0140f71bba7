"""Before an association stands: connections that say nothing, other protocols, broken requests."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from dcmhaul.net import AcceptorLimits, Timeouts, listener
from tests.hostile.harness import (
    Accepting,
    expect,
    expect_abort,
    expect_reject,
    expect_release,
)
from tests.hostile.octets import (
    APPLICATION_CONTEXT,
    CONTEXTS,
    CT,
    EXPLICIT,
    IMPLICIT,
    VERIFICATION,
    abort,
    associate_rq,
    big,
    context,
    counted,
    item,
    p_data,
    pdu,
    pdv,
    reject,
    release_rp,
    release_rq,
    user_information,
)

ARTIM = 30.0
ON_A_CLOCK = Timeouts(idle=None, artim=ARTIM)


async def test_row_1_a_peer_that_says_nothing(
    accepting: Accepting, autojump_clock: trio.abc.Clock
) -> None:
    async with accepting(timeouts=ON_A_CLOCK) as acceptor, acceptor.connect() as peer:
        started = trio.current_time()
        answer = await peer.read_to_end(float("inf"))
        assert trio.current_time() - started == pytest.approx(ARTIM, abs=1)
        await expect(acceptor, peer, answer=answer)


async def test_row_2_a_peer_that_dribbles(
    accepting: Accepting, autojump_clock: trio.abc.Clock
) -> None:
    async with accepting(timeouts=ON_A_CLOCK) as acceptor, acceptor.connect() as peer:
        started = trio.current_time()
        answer = b""

        async def dribble() -> None:
            for octet in associate_rq():
                await peer.send(bytes([octet]))
                await trio.sleep(4)  # not a divisor of ARTIM: no octet crosses the close

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dribble)
            answer = await peer.read_to_end(float("inf"))
            nursery.cancel_scope.cancel()
        assert trio.current_time() - started == pytest.approx(ARTIM, abs=1)
        await expect(acceptor, peer, answer=answer)


@pytest.mark.parametrize(
    "limits",
    [
        AcceptorLimits(associations=2, associations_per_host=100),
        AcceptorLimits(associations=100, associations_per_host=2),
    ],
    ids=["in total", "per address"],
)
async def test_row_3_idle_connections_take_no_slot(
    accepting: Accepting, autojump_clock: trio.abc.Clock, limits: AcceptorLimits
) -> None:
    """The healthy association has the first of two slots; who asks for one more is rejected."""
    async with accepting(limits=limits, timeouts=ON_A_CLOCK) as acceptor:
        async with AsyncExitStack() as stack:
            idle = [await stack.enter_async_context(acceptor.connect()) for _ in range(20)]
            second = await stack.enter_async_context(acceptor.connect())
            await second.associate()
            peer = await stack.enter_async_context(acceptor.connect())
            await peer.send(associate_rq())
            assert await peer.read_to_end() == reject(2, 3, 1)
            assert acceptor.observer.rejected == [(2, 3, 1)]
            for connection in idle:
                assert await connection.read_to_end(float("inf")) == b""
            await second.send(release_rq)
            assert await second.read_to_end() == release_rp
        async with acceptor.connect() as peer:
            await peer.associate()
            await peer.send(release_rq)
            await peer.read_to_end()
        await acceptor.assert_unharmed()


async def test_row_3_a_storm_of_idle_connections(
    accepting: Accepting, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest make room for the youngest, so who asks at once is always heard."""
    monkeypatch.setattr(listener, "REJECTABLE", 10)
    limits = AcceptorLimits(associations=20)
    async with accepting(limits=limits, timeouts=ON_A_CLOCK) as acceptor:
        async with AsyncExitStack() as stack:
            idle = [await stack.enter_async_context(acceptor.connect()) for _ in range(200)]
            peer = await stack.enter_async_context(acceptor.connect())
            await peer.associate()
            started = trio.current_time()
            waits = []
            for connection in idle:
                assert await connection.read_to_end(float("inf")) == b""
                waits.append(trio.current_time() - started)
            assert waits[150] < 1
            assert waits[-1] == pytest.approx(ARTIM, abs=1)
            await peer.send(release_rq)
            assert await peer.read_to_end() == release_rp
        await acceptor.assert_unharmed()


async def test_row_3_rejected_connections_that_stay_open(
    accepting: Accepting, autojump_clock: trio.abc.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was answered and is not closed by the peer makes room, too."""
    monkeypatch.setattr(listener, "REJECTABLE", 5)
    async with accepting(timeouts=ON_A_CLOCK) as acceptor:
        async with AsyncExitStack() as stack:
            for _ in range(20):
                peer = await stack.enter_async_context(acceptor.connect())
                await peer.send(associate_rq(called=b"OTHER"))
                assert (await peer.read_pdu())[0] == 3
            peer = await stack.enter_async_context(acceptor.connect())
            await peer.associate()
        await acceptor.assert_unharmed()


@pytest.mark.parametrize(
    ("known", "accepted"),
    [("MODALITY", True), ("MODALITY@127.0.0.1", True), ("MODALITY@10.0.0.1", False), ("X", False)],
)
async def test_row_3_known_callers_have_slots_of_their_own(
    accepting: Accepting, known: str, accepted: bool
) -> None:
    """Of three slots one is reserved, and the healthy association has one: one is left for anybody."""
    limits = AcceptorLimits(associations=3, reserved=1, known_callers=("OTHER", known))
    async with accepting(limits=limits, allowed_callers=()) as acceptor, AsyncExitStack() as stack:
        anybody, nobody, knower = [
            await stack.enter_async_context(acceptor.connect()) for _ in range(3)
        ]
        await anybody.associate()
        await nobody.send(associate_rq())
        assert await nobody.read_to_end() == reject(2, 3, 1)
        await knower.send(associate_rq(calling=b"MODALITY"))
        assert (await knower.read_pdu())[0] == (2 if accepted else 3)


FIELDS = big(1, 2) + bytes(2) + b"OURS".ljust(16) + b"PEER".ljust(16) + bytes(32)
CLIENT_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(200)


def identity(kind: int = 2, primary: bytes = b"user", secondary: bytes = b"hunter2") -> bytes:
    return item(0x58, bytes([kind, 1]) + counted(primary) + counted(secondary))


def with_items(*sub_items: bytes) -> bytes:
    return associate_rq(user=user_information(*sub_items))


EXTENDED = item(0x56, counted(CT.encode()) + b"\1")
ROLE = item(0x54, counted(CT.encode()) + b"\1\0")

ABORTED: dict[str, bytes] = {
    "row 4 HTTP": b"GET / HTTP/1.1\r\nHost: archive\r\n\r\n",
    "row 4 TLS": CLIENT_HELLO,
    "row 4 SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "row 5 RQ of 4 GiB": bytes.fromhex("0100ffffffff"),
    "row 5 RQ just above 1 MiB": b"\1\0" + big(1024 * 1024 + 1, 4),
    "row 6 RQ without its fields": pdu(1, FIELDS[:-1]),
    "row 6 RQ of nothing": pdu(1, b""),
    "row 10 16000 items of 65535": pdu(
        1, FIELDS + APPLICATION_CONTEXT + item(0x20, b"\1\0\0\0" + b"\x40\0\xff\xff" * 16000)
    ),
    "row 11 sub-item overruns its item": associate_rq(
        contexts=item(0x20, b"\1\0\0\0" + b"\x30\0\0\x20" + CT.encode())
    ),
    "row 11 item overruns the PDU": pdu(1, FIELDS + b"\x10\0\0\x16" + b"1.2.840.10008.3.1.1.1"),
    "row 11 item header cut": associate_rq(more=b"\x99\0\0"),
    "row 11 context of three octets": associate_rq(contexts=item(0x20, b"\1\0\0")),
    "row 12 maximum length of 0": associate_rq(user=item(0x50, bytes.fromhex("51000000"))),
    "row 12 maximum length of 3": associate_rq(user=item(0x50, item(0x51, bytes(3)))),
    "row 12 maximum length of 65535": associate_rq(user=item(0x50, bytes.fromhex("5100ffff"))),
    "row 13 role UID beyond its item": with_items(bytes.fromhex("54000004ffff0101")),
    "row 13 role UID takes the roles": with_items(item(0x54, b"\0\5" + b"1.2" + b"\1\1")),
    "row 15 two application contexts": associate_rq(more=APPLICATION_CONTEXT),
    "row 15 two user informations": associate_rq(more=user_information()),
    "row 15 two maximum lengths": with_items(item(0x51, bytes(4))),
    "row 15 two windows": with_items(item(0x53, b"\0\1\0\1") * 2),
    "row 15 two identities": with_items(identity(), identity()),
    "row 16 identity overruns": with_items(item(0x58, b"\2\1" + b"\xff\xff" + b"hunter2")),
    "row 16 passcode overruns": with_items(
        item(0x58, b"\2\1" + counted(b"user") + b"\0\x08hunter2")
    ),
    "row 16 octets behind the passcode": with_items(
        item(0x58, b"\2\1" + counted(b"user") + counted(b"hunter2") + b"\0")
    ),
    "row 17 extended UID overruns": with_items(item(0x56, b"\0\xff" + CT.encode())),
    "row 17 common UID overruns": with_items(item(0x57, b"\xff\xff")),
    "row 17 related classes overrun": with_items(
        item(0x57, counted(b"1") + counted(b"2") + counted(b"\0\x093"))
    ),
    "row 17 10000 unknown sub-items": with_items(item(0x99, b"") * 10000),
    "row 17 5000 role selections": with_items(item(0x54, counted(b"1") + b"\1\1") * 5000),
    "row 17 5000 extended negotiations": with_items(item(0x56, counted(b"1")) * 5000),
    "row 17 200000 unknown items": associate_rq(more=item(0x99, b"") * 200_000),
    "row 18 P-DATA": p_data(pdv(1, 3, bytes(12))),
    "row 18 P-DATA of 4 GiB": bytes.fromhex("0400ffffffff"),
    "row 18 RELEASE-RQ": release_rq,
    "row 18 RELEASE-RP": pdu(6, bytes(4)),
    "row 18 AC": pdu(2, FIELDS + APPLICATION_CONTEXT + user_information()),
    "row 18 AC of nothing": pdu(2, b""),
    "row 18 RJ": reject(1, 1, 1),
    "row 22 RELEASE-RQ of 5": pdu(5, bytes(5)),
    "row 22 RJ of 4 GiB": bytes.fromhex("0300ffffffff"),
}


@pytest.mark.parametrize("sent", ABORTED.values(), ids=ABORTED.keys())
async def test_aborted(accepting: Accepting, sent: bytes) -> None:
    async with accepting() as acceptor, acceptor.connect() as peer:
        await peer.send(sent)
        await expect_abort(acceptor, peer, 0, 0)


CLOSED: dict[str, bytes] = {
    "row 6 nothing": b"",
    "row 6 header cut": associate_rq()[:5],
    "row 6 RQ cut": associate_rq()[:100],
    "row 19 A-ABORT by the user": abort(0, 0),
    "row 19 A-ABORT by the provider": abort(2, 6),
    "row 19 A-ABORT of a reserved source": abort(1, 99),
}


@pytest.mark.parametrize("sent", CLOSED.values(), ids=CLOSED.keys())
async def test_closed_without_a_word(accepting: Accepting, sent: bytes) -> None:
    async with accepting() as acceptor, acceptor.connect() as peer:
        await peer.send(sent)
        if not sent.startswith(abort(0, 0)[:1]):
            await peer.stream.send_eof()
        await expect(acceptor, peer)


REJECTED: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "row 7 version bit 0 clear": (associate_rq(version=0xFFFE), (1, 2, 2)),
    "row 7 no version": (associate_rq(version=0), (1, 2, 2)),
    "row 8 application context": (
        associate_rq(application_context=item(0x10, b"1.2.840.10008.3.1.1.2")),
        (1, 1, 2),
    ),
    "row 8 no application context": (associate_rq(application_context=b""), (1, 1, 2)),
    **{
        f"row 9 called {title!r}": (associate_rq(called=title), (1, 1, 7))
        for title in (b"OTHER", b"", b"\0" * 16, b"OURS\0", b"\x80\xff", b"\\..%", b"../x")
    },
    **{
        f"row 9 calling {title!r}": (associate_rq(calling=title), (1, 1, 3))
        for title in (b"OTHER", b"", b"\0" * 16, b"PEER\0", b"\x80\xff", b"\\..%", b"../x")
    },
    "row 14 context ID twice": (
        associate_rq(contexts=context(1, [CT], [IMPLICIT]) * 2),
        (1, 2, 1),
    ),
    "row 14 context ID even": (associate_rq(contexts=context(2, [CT], [IMPLICIT])), (1, 2, 1)),
    "row 14 129 contexts": (
        associate_rq(
            contexts=b"".join(context(i * 2 + 1 & 0xFF, [CT], [IMPLICIT]) for i in range(129))
        ),
        (1, 2, 1),
    ),
    "row 14 no context": (associate_rq(contexts=b""), (1, 2, 1)),
    "row 14 no abstract syntax": (associate_rq(contexts=context(1, [], [IMPLICIT])), (1, 2, 1)),
    "row 14 two abstract syntaxes": (
        associate_rq(contexts=context(1, [CT, VERIFICATION], [IMPLICIT])),
        (1, 2, 1),
    ),
    "row 16 password of 60000": (with_items(identity(secondary=b"x" * 60000)), (1, 2, 1)),
    "row 16 ticket of 60000": (with_items(identity(3, b"x" * 60000, b"")), (1, 2, 1)),
    "row 16 identity of type 9": (with_items(identity(9)), (1, 2, 1)),
    "row 62 maximum length of 7": (associate_rq(user=user_information(length=7)), (1, 2, 1)),
}


@pytest.mark.parametrize(("sent", "expected"), REJECTED.values(), ids=REJECTED.keys())
async def test_rejected(
    accepting: Accepting,
    sent: bytes,
    expected: tuple[int, int, int],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with caplog.at_level("DEBUG"):
        async with accepting() as acceptor, acceptor.connect() as peer:
            await peer.send(sent)
            await expect_reject(acceptor, peer, *expected)
    assert "hunter2" not in caplog.text
    assert "hunter2" not in "".join(capfd.readouterr())


ACCEPTED: dict[str, tuple[bytes, dict[int, int]]] = {
    "row 14 nothing acceptable": (
        associate_rq(
            contexts=context(1, ["1.2.3"], [IMPLICIT]) + context(3, [VERIFICATION], ["1.2.3"])
        ),
        {1: 3, 3: 4},
    ),
    "row 14 a context without a transfer syntax": (
        associate_rq(contexts=context(1, [CT], [])),
        {1: 4},
    ),
    "row 14 128 contexts": (
        associate_rq(contexts=b"".join(context(2 * i + 1, [CT], [EXPLICIT]) for i in range(128))),
        {2 * i + 1: 0 for i in range(128)},
    ),
    "row 15 items out of order": (
        pdu(1, FIELDS + user_information() + CONTEXTS + APPLICATION_CONTEXT),
        {1: 0, 3: 0, 5: 3, 7: 0},
    ),
    "row 15 unknown item": (
        associate_rq(more=item(0x99, b"?" * 100)),
        {1: 0, 3: 0, 5: 3, 7: 0},
    ),
    "row 13 role for an unproposed class": (
        with_items(item(0x54, counted(b"1.2.3") + b"\1\1"), ROLE),
        {1: 0, 3: 0, 5: 3, 7: 0},
    ),
    "row 16 an identity that nobody asked for": (
        with_items(identity()),
        {1: 0, 3: 0, 5: 3, 7: 0},
    ),
    "row 17 1900 extended negotiations": (
        with_items(EXTENDED * 1900),
        {1: 0, 3: 0, 5: 3, 7: 0},
    ),
}


@pytest.mark.parametrize(("sent", "results"), ACCEPTED.values(), ids=ACCEPTED.keys())
async def test_accepted(accepting: Accepting, sent: bytes, results: dict[int, int]) -> None:
    async with accepting() as acceptor, acceptor.connect() as peer:
        fields: dict[str, Any] = await peer.associate(sent)
        contexts = fields["presentation_contexts"]
        assert {c["context_id"]: c["result"] for c in contexts} == results
        roles = fields["user_information"]["roles"]
        assert {role["sop_class_uid"] for role in roles} <= {CT}
        assert fields["user_information"]["user_identity_response"] is None
        await expect_release(acceptor, peer)
