"""Associations over TLS on 127.0.0.1: what holds over TCP holds here, and each refusal is one line."""

from __future__ import annotations

import inspect
import logging
import ssl
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from dcmhaul.errors import PeerTimeout, TlsError, TransportError
from dcmhaul.net import SocketOptions, Timeouts, open_association, secured, serve_associations
from dcmhaul.net.credentials import client_context, server_context
from dcmhaul.net.tls import TlsTransport
from dcmhaul.net.transport import Transport
from dcmhaul.protocol.dimse import CStoreRsp
from dcmhaul.services.verification import VerificationScp, echo
from dcmhaul.wire._fragments import SendQueue
from dcmhaul.wire._frames import PduReader
from tests.certificates import Papers, make_papers
from tests.net import test_association as over_tcp
from tests.net import test_cancellation
from tests.net.test_association import answer_stores, request, serving, store_rq

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dcmhaul.net import Association

VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return make_papers(tmp_path_factory.mktemp("papers"))


def options(make: Callable[[Any], ssl.SSLContext], settings: Any, **fields: Any) -> SocketOptions:
    """With a context of its own, whose fields are set."""
    context = make.__wrapped__(settings)  # type: ignore[attr-defined]  # beside the cache
    for name, value in fields.items():
        setattr(context, name, value)
    return SocketOptions(tls=context)


to_server = partial(options, client_context)
of_server = partial(options, server_context)


async def answer_echoes(association: Association) -> None:
    scp = VerificationScp()
    while (incoming := await association.receive()) is not None:
        await scp.handle(association, incoming)


async def echo_once(port: int, client: SocketOptions, **fields: Any) -> int:
    async with open_association("127.0.0.1", port, request(), options=client, **fields) as opened:
        return await echo(opened)


# -- what holds over TCP --------------------------------------------------------------------------


OLDER, NEWER = VERSIONS
FILE = over_tcp.test_a_file_range
CANCEL = test_cancellation.test_cancel_at_every_step


@pytest.mark.parametrize(
    ("case", "arguments", "version"),
    [
        (over_tcp.test_a_store_with_a_digest, {}, OLDER),
        (over_tcp.test_a_store_with_a_digest, {}, NEWER),
        (FILE, {"cold": False, "maximum": 0}, OLDER),
        (FILE, {"cold": False, "maximum": 16384}, NEWER),
        (FILE, {"cold": True, "maximum": 0}, NEWER),
        (
            over_tcp.test_a_streamed_dataset_with_odd_pieces_and_a_message_queued_meanwhile,
            {},
            NEWER,
        ),
        (over_tcp.test_a_stream_that_is_not_finished_aborts, {}, NEWER),
        (over_tcp.test_a_file_that_shrinks_while_it_is_sent, {}, NEWER),
        (over_tcp.test_over_the_limit_the_rest_is_dropped, {}, NEWER),
        (over_tcp.test_a_dataset_that_never_ends, {}, NEWER),
        (over_tcp.test_rejection_names_its_reason, {}, NEWER),
        (over_tcp.test_above_the_limit_a_transient_rejection, {}, NEWER),
        (over_tcp.test_both_sides_with_full_buffers_make_progress, {}, OLDER),
        (over_tcp.test_both_sides_with_full_buffers_make_progress, {}, NEWER),
        (over_tcp.test_every_descriptor_is_closed, {}, NEWER),
        (CANCEL, {"side": "sender"}, OLDER),
        (CANCEL, {"side": "sender"}, NEWER),
        (CANCEL, {"side": "receiver"}, NEWER),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_as_over_tcp(
    case: Any,
    arguments: dict[str, Any],
    version: str,
    papers: Papers,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The tests of plain associations, with both ends under TLS, each with a certificate."""
    client = to_server(papers.settings("client"), maximum_version=VERSIONS[version])
    server = of_server(papers.settings("server"))
    for module in (over_tcp, test_cancellation):
        monkeypatch.setattr(module, "open_association", partial(open_association, options=client))
    monkeypatch.setattr(over_tcp, "serve_associations", partial(serve_associations, options=server))
    if "tmp_path" in inspect.signature(case).parameters:
        arguments = arguments | {"tmp_path": tmp_path}
    agreed: list[TlsTransport] = []
    handshake = TlsTransport.handshake

    async def counted(transport: TlsTransport) -> None:
        agreed.append(transport)
        await handshake(transport)

    monkeypatch.setattr(TlsTransport, "handshake", counted)
    await case(**arguments)
    assert len(agreed) > 1


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("name", "subject", "needed"),
    [("client", "CN=client", "require"), (None, "", "verify"), ("client", "", "ignore")],
)
async def test_each_side_knows_whom_it_talks_to(
    version: str, name: str | None, subject: str, needed: str, papers: Papers
) -> None:
    seen: list[Any] = []

    async def handler(association: Association) -> None:
        seen.append(association.tls)
        await answer_echoes(association)

    client = to_server(papers.settings(name), maximum_version=VERSIONS[version])
    server = of_server(papers.settings("server", peer_certificate=needed))
    with trio.fail_after(20):
        async with serving(handler, options=server) as port:
            async with open_association("127.0.0.1", port, request(), options=client) as opened:
                assert await echo(opened) == 0
                ours = opened.tls
    assert ours is not None
    assert ours.version == seen[0].version == version
    assert ours.cipher == seen[0].cipher
    assert "CN=server" in ours.peer
    assert subject in seen[0].peer
    assert bool(subject) == bool(seen[0].peer)


async def test_many_small_messages(papers: Papers) -> None:
    count = 500
    client, server = (
        to_server(papers.settings("client")),
        of_server(papers.settings("server")),
    )
    with trio.fail_after(20):
        async with serving(answer_stores, options=server) as port:
            async with open_association("127.0.0.1", port, request(), options=client) as opened:
                for number in range(count):
                    opened.queue(1, store_rq(number + 1), bytes(number))
                await opened.flush()
                for number in range(count):
                    incoming = await opened.receive(seconds=5)
                    assert incoming is not None
                    assert isinstance(incoming.message, CStoreRsp)
                    assert incoming.message.message_id_being_responded_to == number + 1
                calls = opened.stats().send_calls
    assert calls < count / 5  # they share records and system calls


async def test_an_end_without_close_notify_is_no_error(
    papers: Papers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TlsTransport, "shutdown_send", Transport.shutdown_send)
    released: list[bool] = []

    async def handler(association: Association) -> None:
        await answer_echoes(association)
        released.append(association.ended)

    with trio.fail_after(20):
        async with serving(handler, options=of_server(papers.settings("server"))) as port:
            assert await echo_once(port, to_server(papers.settings("client"))) == 0
            while not released:
                await trio.sleep(0.001)
    assert released == [True]


# -- refusals -------------------------------------------------------------------------------------

UNTRUSTED = "of no authority that is trusted here"


@pytest.mark.parametrize(
    ("client", "server", "fields", "said", "logged"),
    [
        pytest.param(
            ("client", "other"),
            ("server", "ca"),
            {},
            UNTRUSTED,
            "does not trust the authority of our certificate",
            id="unknown authority",
        ),
        pytest.param(
            ("client", "ca"),
            ("expired", "ca"),
            {},
            "certificate has expired",
            "says that our certificate has expired",
            id="expired",
        ),
        pytest.param(
            ("client", "ca"),
            ("elsewhere", "ca"),
            {},
            "is for another host",
            "refuses our certificate",
            id="another host",
        ),
        pytest.param(
            ("stranger", "ca"),
            ("server", "ca"),
            {},
            "does not trust the authority of our certificate",
            UNTRUSTED,
            id="the client's authority",
        ),
        pytest.param(
            ("expired", "ca"),
            ("server", "ca"),
            {},
            "says that our certificate has expired",
            "certificate has expired",
            id="the client's has expired",
        ),
        pytest.param(
            (None, "ca"),
            ("server", "ca"),
            {},
            r"certificate of ours.*\+tls",
            "shows no certificate, and one is required",
            id="no certificate",
        ),
        pytest.param(
            (None, "ca"),
            ("server", "ca"),
            {"maximum_version": ssl.TLSVersion.TLSv1_2},
            r"certificate of ours.*\+tls",
            "shows no certificate, and one is required",
            id="no certificate in TLS 1.2",
        ),
        pytest.param(
            ("client", "ca"),
            ("server", "ca"),
            {"minimum_version": ssl.TLSVersion.TLSv1_3, "server": ssl.TLSVersion.TLSv1_2},
            "no TLS version in common",
            "no TLS version in common",
            id="versions",
        ),
    ],
)
async def test_a_refusal_is_one_line_at_both_ends(
    client: tuple[str | None, str],
    server: tuple[str, str],
    fields: dict[str, Any],
    said: str,
    logged: str,
    papers: Papers,
    caplog: pytest.LogCaptureFixture,
) -> None:
    maximum = fields.get("server")
    ours = to_server(papers.settings(*client), **{k: v for k, v in fields.items() if k != "server"})
    theirs = of_server(
        papers.settings(*server), **({} if maximum is None else {"maximum_version": maximum})
    )
    with trio.fail_after(20):
        async with serving(answer_echoes, options=theirs) as port:
            with pytest.raises(TlsError, match=rf"^127\.0\.0\.1:{port}: .*{said}") as caught:
                await echo_once(port, ours)
            while not caplog.records:
                await trio.sleep(0.001)
            # It goes on for those who come after.
            if maximum is None and server[0] == "server":
                assert await echo_once(port, to_server(papers.settings("client"))) == 0
    assert "\n" not in str(caught.value)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert logged in caplog.text


async def test_a_peer_without_tls_where_there_is_tls(
    papers: Papers, caplog: pytest.LogCaptureFixture
) -> None:
    with trio.fail_after(20):
        async with serving(answer_echoes, options=of_server(papers.settings("server"))) as port:
            with pytest.raises(TlsError, match="it takes TLS alone"):
                await echo_once(port, SocketOptions())
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
                assert (await stream.receive_some())[:1] == b"\x15"
                assert await stream.receive_some() == b""
            assert await echo_once(port, to_server(papers.settings("client"))) == 0
    first, second = (record.getMessage() for record in caplog.records)
    assert first.endswith("the peer begins in plain DICOM; this port takes TLS alone")
    assert second.endswith("the peer begins with what is no TLS; this port takes TLS alone")


async def test_tls_where_there_is_none(papers: Papers, caplog: pytest.LogCaptureFixture) -> None:
    with trio.fail_after(20):
        async with serving(answer_echoes) as port:
            with pytest.raises(
                TlsError, match="answers in plain DICOM; this port does not speak TLS"
            ):
                await echo_once(port, to_server(papers.settings("client")))
            assert await echo_once(port, SocketOptions()) == 0
    (record,) = caplog.records
    assert record.getMessage().endswith("the peer begins with TLS, which this port does not take")


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.0 400 Bad Request\r\n\r\n", None])
async def test_ports_that_speak_something_else(answer: bytes | None, papers: Papers) -> None:
    """They close, answer otherwise, or say nothing at all."""
    client = to_server(papers.settings("client"))

    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        if answer is None:
            await trio.sleep_forever()
        if answer:
            await stream.send_all(answer)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
            port = listeners[0].socket.getsockname()[1]
            with pytest.raises(
                TransportError, match=rf"127\.0\.0\.1:{port}\b.* speak TLS"
            ) as caught:
                await echo_once(port, client, timeouts=Timeouts(connect=0.2))
            nursery.cancel_scope.cancel()
    if answer is None:
        assert isinstance(caught.value, PeerTimeout)
        assert caught.value.phase == "TLS handshake"
    else:
        assert isinstance(caught.value, TlsError)


async def test_those_who_come_and_say_nothing_are_no_news_and_in_nobodys_way(
    papers: Papers, caplog: pytest.LogCaptureFixture
) -> None:
    server = of_server(papers.settings("server"))
    client = to_server(papers.settings("client"))
    with trio.fail_after(20):
        async with serving(answer_echoes, options=server, timeouts=Timeouts(artim=0.5)) as port:
            silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(80)]
            assert await echo_once(port, client) == 0
            for stream in silent[:5]:
                await stream.aclose()
            for stream in silent[5:]:
                assert await stream.receive_some() == b""
                await stream.aclose()
            hello = await trio.open_tcp_stream("127.0.0.1", port)
            await hello.send_all(b"\x16\x03\x01\x02\x00\x01")
            await hello.aclose()
            while not caplog.records:
                await trio.sleep(0.001)
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "the TLS handshake was broken off: the peer closed the connection"
    ]


async def test_a_host_that_cannot_be_a_name_in_tls(papers: Papers) -> None:
    near, far = trio.socket.socketpair()
    with near, far:
        context = client_context(papers.settings("client"))
        broken = TlsTransport(near, PduReader(0), SendQueue(0), context, ".dot")
        with pytest.raises(TlsError, match=r"'\.dot' cannot be a name in TLS"):
            await broken.handshake()


async def test_the_alert_of_an_end_is_told_once_the_records_before_it_are_read(
    papers: Papers,
) -> None:
    """Garbage within a stream ends it with a reason, not as if the peer had closed."""

    async def handler(association: Association) -> None:
        await association.receive()
        await association.read_dataset(None)
        transport = association._transport
        association.queue(1, store_rq(1), bytes(1000))
        await association.flush()
        transport._say_at_once(b"\x17\x03\x03\x00\x20" + bytes(32))  # type: ignore[attr-defined]
        await association.receive()

    with trio.fail_after(20):
        async with serving(handler, options=of_server(papers.settings("server"))) as port:
            client = secured(SocketOptions(), papers.settings("client"))
            with pytest.raises(TlsError, match="TLS failed"):
                async with open_association("127.0.0.1", port, request(), options=client) as opened:
                    await opened.send(1, store_rq(1), bytes(10))
                    assert await opened.receive() is not None
                    assert await opened.read_dataset(None) == 1000
                    await opened.receive()


async def test_what_tls_has_to_say_is_bounded(papers: Papers) -> None:
    """A peer that asks for new keys again and again, and reads none of the answers."""
    async with serving(answer_echoes, options=of_server(papers.settings("server"))) as port:
        client = secured(SocketOptions(), papers.settings("client"))
        async with open_association("127.0.0.1", port, request(), options=client) as opened:
            transport: Any = opened._transport
            transport._outgoing.write(bytes(1_000_000))
            with pytest.raises(TlsError, match="more of TLS than it reads"):
                transport._answer()
            transport._cipher = memoryview(b"")
            assert await echo(opened) == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("version", "ciphers", "alert", "logged"),
    [
        (ssl.TLSVersion.TLSv1, "ALL:@SECLEVEL=0", 70, "no TLS version in common"),
        (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0", 70, "no TLS version in common"),
        (ssl.TLSVersion.TLSv1_2, "kRSA", 40, "no cipher in common"),
        (ssl.TLSVersion.TLSv1_2, "ECDHE+SHA1", 40, "no cipher in common"),
    ],
)
async def test_what_is_too_weak_is_refused_with_an_alert(
    version: ssl.TLSVersion,
    ciphers: str,
    alert: int,
    logged: str,
    papers: Papers,
    caplog: pytest.LogCaptureFixture,
) -> None:
    weak = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    weak.check_hostname = False
    weak.verify_mode = ssl.CERT_NONE
    weak.minimum_version = weak.maximum_version = version
    weak.set_ciphers(ciphers)
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        weak.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    with trio.fail_after(20):
        async with serving(answer_echoes, options=of_server(papers.settings("server"))) as port:
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(outgoing.read())
                answer = await stream.receive_some()
                assert (answer[0], answer[-1]) == (0x15, alert)
                assert await stream.receive_some() == b""
    assert logged in caplog.text
