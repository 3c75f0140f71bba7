"""Where we are the SCU: responses that lie, come too soon, or never come, to `send`, `find` and `get`."""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from dcmhaul import uids
from dcmhaul.cli import main
from dcmhaul.engine.pool import AssociationPool, PoolPolicy
from dcmhaul.engine.retry import is_stored
from dcmhaul.errors import (
    AssociationAborted,
    ConnectionDropped,
    PeerTimeout,
    RemoteProtocolError,
)
from dcmhaul.net import Timeouts, open_association
from dcmhaul.objects.paths import Durability
from dcmhaul.objects.sinks import FolderSinks
from dcmhaul.objects.synth import write_studies
from dcmhaul.protocol.negotiation import AssociationRequest
from dcmhaul.services.query import QueryModel, find
from dcmhaul.services.retrieve import get, storage_roles
from dcmhaul.services.storage import StorageScp, StorageScu, StoreOutcome
from dcmhaul.wire.items import PresentationContextRq
from tests.hostile.octets import (
    CT,
    EXPLICIT,
    IMPLICIT,
    abort,
    command_pdu,
    data_pdu,
    echo_rq,
    store_rq,
)
from tests.hostile.scripted_scp import ScriptedScp, response, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dcmhaul.net import Association

PATIENCE_SECONDS = 20.0
STORE, FIND, GET, VERIFY = 1, 3, 5, 7
CONTEXTS = (
    (STORE, CT, EXPLICIT),
    (FIND, uids.STUDY_ROOT_FIND, IMPLICIT),
    (GET, uids.STUDY_ROOT_GET, IMPLICIT),
    (VERIFY, uids.VERIFICATION, IMPLICIT),
)


def request(window: int = 1, *, storing: bool = False) -> AssociationRequest:
    return AssociationRequest(
        called_ae_title="PEER",
        calling_ae_title="OURS",
        contexts=tuple(
            PresentationContextRq(
                context_id=number, abstract_syntax=uid, transfer_syntaxes=(syntax,)
            )
            for number, uid, syntax in CONTEXTS
        ),
        window=window,
        roles=storage_roles([CT]) if storing else (),
    )


class Memory:
    label = "memory"
    sop_class_uid = CT
    transfer_syntax_uid = EXPLICIT

    def __init__(self, number: int, size: int = 10) -> None:
        self.sop_instance_uid = f"1.2.3.{number}"
        self.dataset = bytes(size)
        self.length = size

    def close(self) -> None:
        pass


async def send(
    scp: ScriptedScp,
    count: int,
    outcomes: list[StoreOutcome],
    *,
    window: int = 1,
    size: int = 10,
    timeouts: Timeouts | None = None,
) -> None:
    instances = iter([Memory(number, size) for number in range(count)])

    async def take() -> Memory | None:
        return next(instances, None)

    with trio.fail_after(PATIENCE_SECONDS):
        async with open_association(
            "127.0.0.1", scp.port, request(window), timeouts=timeouts
        ) as association:
            await StorageScu(association).run(take, outcomes.append)


async def query(association: Association) -> list[int]:
    async with find(association, QueryModel.STUDY_ROOT, b"") as responses:
        return [response.status async for response in responses]


async def ended(scp: ScriptedScp) -> tuple[int, ...]:
    with trio.fail_after(PATIENCE_SECONDS):
        while not scp.ends:
            await trio.sleep(0.005)
    [end] = scp.ends
    return end


ABORTED = (7, 0, 0)
RELEASED = (5,)


# -- row 64: a peer that drops the connection at the window item


async def test_row_64_the_window_is_left_out_for_a_peer_that_cannot_bear_it() -> None:
    async with running(ScriptedScp(drops_windows=True)) as scp:
        pool = AssociationPool("127.0.0.1", scp.port, policy=PoolPolicy(size=2))
        with trio.fail_after(PATIENCE_SECONDS):
            for _ in range(2):
                async with pool.association(request(window=8)) as association:
                    assert association.agreement.window_invoked == 1
        # The second association knows it from the first; the peer has failed at nothing.
        assert [asked["async_window"] is None for asked in scp.requests] == [False, True, True]
        assert pool.health.failures == 0
        assert pool.window_dropped


async def test_row_64_no_window_for_a_peer_that_breaks_under_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def answer(_number: int, command: dict[str, Any]) -> bytes:
        granted = scp.requests[-1]["async_window"] is not None
        return abort(0, 0) if granted else response(command)

    async with running(ScriptedScp(answer, window=8)) as scp:
        pool = AssociationPool("127.0.0.1", scp.port, policy=PoolPolicy(size=1, delay_seconds=0))
        stored: list[StoreOutcome] = []
        with trio.fail_after(PATIENCE_SECONDS):
            for broken in (True, True, False):
                instances = iter([Memory(number) for number in range(3)])

                async def take(left: Iterator[Memory] = instances) -> Memory | None:
                    return next(left, None)

                with pytest.raises(AssociationAborted) if broken else nullcontext():
                    async with pool.association(request(window=8)) as association:
                        pool.worked()
                        await StorageScu(association).run(take, stored.append)
        assert [asked["async_window"] is None for asked in scp.requests] == [False, False, True]
        assert [outcome.status for outcome in stored] == [None] * 6 + [0] * 3
        assert pool.window_dropped
        [line] = caplog.messages
        assert "one at a time" in line


async def test_row_64_a_peer_that_drops_every_request_is_asked_twice_and_no_more() -> None:
    count = 0

    async def drop(stream: trio.SocketStream) -> None:
        nonlocal count
        count += 1
        await stream.receive_some()
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, drop, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        pool = AssociationPool("127.0.0.1", port, policy=PoolPolicy(size=2))
        with pytest.raises(ConnectionDropped):
            async with pool.association(request(window=8)):
                pytest.fail("associated")
        assert (count, pool.health.failures, pool.window_dropped) == (2, 1, False)
        nursery.cancel_scope.cancel()


# -- row 65: responses to nothing, twice, of another kind, too soon


@pytest.mark.parametrize(
    "changes",
    [
        {"MessageIDBeingRespondedTo": 999},
        {"CommandField": 0x8030},
        {"CommandField": 0x8020},
        {"CommandField": 0x8010},
    ],
    ids=["unknown message", "C-ECHO-RSP", "C-FIND-RSP", "C-GET-RSP"],
)
async def test_row_65_a_response_to_nothing_of_ours(changes: dict[str, int]) -> None:
    outcomes: list[StoreOutcome] = []
    scp = ScriptedScp(lambda n, rq: response(rq, **(changes if n == 2 else {})))
    async with running(scp):
        with pytest.raises(RemoteProtocolError):
            await send(scp, 4, outcomes)
        assert await ended(scp) == ABORTED
    # The first was answered, the second is unknown, the others were never tried.
    assert [(o.status, o.sent) for o in outcomes] == [(0, True), (None, True)]


async def test_row_65_a_response_that_comes_twice() -> None:
    outcomes: list[StoreOutcome] = []
    scp = ScriptedScp(lambda n, rq: response(rq) * (2 if n == 1 else 0), window=4)
    async with running(scp):
        with pytest.raises(RemoteProtocolError):
            await send(scp, 3, outcomes, window=4)
        assert await ended(scp) == ABORTED
    assert [(o.status, o.sent) for o in outcomes] == [(0, True), (None, True), (None, True)]


async def test_row_65_a_response_before_its_dataset_has_ended() -> None:
    outcomes: list[StoreOutcome] = []
    scp = ScriptedScp(early=lambda _n, rq: response(rq, Status=0xA700))
    size = 20_000_000
    async with running(scp):
        await send(scp, 2, outcomes, size=size)
        assert await ended(scp) == RELEASED
    assert [len(dataset) for dataset in scp.datasets] == [size, size]
    assert [outcome.status for outcome in outcomes] == [0xA700, 0xA700]


async def test_row_65_a_request_of_the_scp_gets_0211() -> None:
    outcomes: list[StoreOutcome] = []

    def answer(_n: int, command: dict[str, Any]) -> bytes:
        if command["CommandField"] != 0x0001:
            return b""
        stray = command_pdu(VERIFY, echo_rq(7))
        return stray + response(command)

    scp = ScriptedScp(answer)
    async with running(scp):
        await send(scp, 2, outcomes)
        assert await ended(scp) == RELEASED
    assert [outcome.status for outcome in outcomes] == [0, 0]
    refused = [c for c in scp.commands if c["CommandField"] == 0x8030]
    assert [c["Status"] for c in refused] == [0x0211, 0x0211]


async def test_row_65_a_c_store_within_a_send_gets_0211() -> None:
    outcomes: list[StoreOutcome] = []

    def answer(_n: int, command: dict[str, Any]) -> bytes:
        if command["CommandField"] != 0x0001:
            return b""
        return command_pdu(STORE, store_rq(7)) + data_pdu(STORE, bytes(1000)) + response(command)

    scp = ScriptedScp(answer)
    async with running(scp):
        await send(scp, 1, outcomes)
        assert await ended(scp) == RELEASED
    [refused] = [c for c in scp.commands if c["CommandField"] == 0x8001]
    assert refused["Status"] == 0x0211


@pytest.mark.parametrize(
    "changes", [{"MessageIDBeingRespondedTo": 999}, {"CommandField": 0x8001}], ids=str
)
@pytest.mark.parametrize("verb", ["find", "get"])
async def test_row_65_a_query_that_is_answered_with_something_else(
    verb: str, changes: dict[str, int]
) -> None:
    scp = ScriptedScp(lambda _n, rq: response(rq, **changes))
    async with running(scp):
        with trio.fail_after(PATIENCE_SECONDS), pytest.raises(RemoteProtocolError):
            async with open_association(
                "127.0.0.1", scp.port, request(storing=True)
            ) as association:
                if verb == "find":
                    await query(association)
                else:
                    await get(association, QueryModel.STUDY_ROOT, b"", StorageScp(None).handle)
        assert await ended(scp) == ABORTED


# -- row 66: statuses that no service defines


ODD_STATUSES = {
    "missing": (None, 0xFFFF),
    "FFFF": (0xFFFF, 0xFFFF),
    "pending": (0xFF00, 0xFF00),
    "unlisted warning": (0xB123, 0xB123),
    "cancel": (0xFE00, 0xFE00),
    "general warning": (0x0107, 0x0107),
}


@pytest.mark.parametrize(("sent", "kept"), ODD_STATUSES.values(), ids=ODD_STATUSES.keys())
async def test_row_66_an_odd_status_of_a_store_is_a_failure(sent: int | None, kept: int) -> None:
    outcomes: list[StoreOutcome] = []
    scp = ScriptedScp(lambda n, rq: response(rq, Status=sent if n == 1 else 0))
    async with running(scp):
        await send(scp, 2, outcomes)
        assert await ended(scp) == RELEASED
    assert [outcome.status for outcome in outcomes] == [kept, 0]
    assert [outcome.stored for outcome in outcomes] == [False, True]
    assert not is_stored(kept)


async def test_row_66_the_code_is_kept_for_the_user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_studies(tmp_path / "out", 1, 1, 1, rows=8, columns=8)
    scp = ScriptedScp(lambda _n, rq: response(rq, Status=0xB123))
    async with running(scp):
        arguments = ["send", f"PEER@127.0.0.1:{scp.port}", str(tmp_path / "out"), "--json"]
        code = await trio.to_thread.run_sync(main, arguments)
    out = capsys.readouterr().out
    assert code == 6
    assert '"status":"B123"' in out


@pytest.mark.parametrize(("status", "final"), [(None, 0xFFFF), (0xFFFF, 0xFFFF), (0xB000, 0xB000)])
@pytest.mark.parametrize("verb", ["find", "get"])
async def test_row_66_an_odd_status_ends_a_query(verb: str, status: int | None, final: int) -> None:
    scp = ScriptedScp(lambda _n, rq: response(rq, Status=status))
    async with running(scp):
        with trio.fail_after(PATIENCE_SECONDS):
            async with open_association(
                "127.0.0.1", scp.port, request(storing=True)
            ) as association:
                if verb == "find":
                    assert await query(association) == [final]
                else:
                    handle = StorageScp(None).handle
                    found = await get(association, QueryModel.STUDY_ROOT, b"", handle)
                    assert found.status == final


# -- row 67: an SCP that stalls


SHORT = Timeouts(dimse=0.2, progress=0.3, release=0.2)


@pytest.mark.parametrize("window", [1, 3])
async def test_row_67_an_scp_that_never_answers(window: int) -> None:
    outcomes: list[StoreOutcome] = []
    scp = ScriptedScp(lambda _n, _rq: b"", window=3)
    async with running(scp):
        with pytest.raises(PeerTimeout, match="C-STORE response"):
            await send(scp, 5, outcomes, window=window, timeouts=SHORT)
        assert await ended(scp) == ABORTED
    assert [(o.status, o.sent) for o in outcomes] == [(None, True)] * window


async def test_row_67_an_scp_that_reads_no_more() -> None:
    outcomes: list[StoreOutcome] = []
    async with running(ScriptedScp(lambda _n, _rq: None)) as scp:
        with pytest.raises(PeerTimeout):
            await send(scp, 2, outcomes, window=1, size=50_000_000, timeouts=SHORT)
    assert [(o.status, o.sent) for o in outcomes] == [(None, True)]


@pytest.mark.parametrize("verb", ["find", "get"])
async def test_row_67_a_query_that_is_never_answered(verb: str) -> None:
    async with running(ScriptedScp()) as scp:
        with trio.fail_after(PATIENCE_SECONDS), pytest.raises(PeerTimeout):
            async with open_association(
                "127.0.0.1", scp.port, request(storing=True), timeouts=SHORT
            ) as association:
                if verb == "find":
                    await query(association)
                else:
                    handle = StorageScp(None).handle
                    await get(association, QueryModel.STUDY_ROOT, b"", handle, seconds=0.2)
        assert await ended(scp) == ABORTED


# -- row 68: what a C-GET SCP calls the instances that it sends


@pytest.mark.parametrize("uid", ["../../x", "..", "/etc/cron.d/x", "", "1" * 65, "1.2\r\nX"])
async def test_row_68_a_traversing_uid_of_a_c_get_scp(tmp_path: Path, uid: str) -> None:
    statuses: list[int] = []

    def answer(_n: int, command: dict[str, Any]) -> bytes:
        if command["CommandField"] == 0x8001:
            statuses.append(command["Status"])
            return response({"CommandField": 0x10, "MessageID": 1, "context_id": GET})
        return command_pdu(STORE, store_rq(5, uid)) + data_pdu(STORE, bytes(100))

    store = tmp_path / "store"
    with FolderSinks(store, durable=Durability.NONE) as sinks:
        async with running(ScriptedScp(answer)) as scp:
            with trio.fail_after(PATIENCE_SECONDS):
                async with open_association(
                    "127.0.0.1", scp.port, request(storing=True)
                ) as association:
                    handle = StorageScp(sinks).handle
                    await get(association, QueryModel.STUDY_ROOT, b"", handle)
            assert await ended(scp) == RELEASED
    assert statuses == [0x0117]
    assert list(store.iterdir()) == []
    assert list(tmp_path.iterdir()) == [store]


# -- row 71: files of our own that change while they are sent


async def test_row_71_a_file_that_shrinks_while_it_is_sent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was begun cannot be taken back: the connection ends within a PDU, and the rest is sent anew."""
    folder = tmp_path / "out"
    write_studies(folder, 1, 1, 2, rows=4000, columns=4000)
    files = sorted(folder.rglob("*.dcm"))
    shrunk: list[Path] = []

    def early(_n: int, command: dict[str, Any]) -> bytes:
        uid = command["AffectedSOPInstanceUID"].encode()
        if not shrunk:
            [path] = [path for path in files if uid in path.read_bytes()[:2000]]
            shrunk.append(path)
            os.truncate(path, 3000)
        return b""

    scp = ScriptedScp(lambda _n, rq: response(rq), early=early)
    async with running(scp):
        arguments = ["send", f"PEER@127.0.0.1:{scp.port}", str(folder), "--json"]
        code = await trio.to_thread.run_sync(main, arguments)
        with trio.fail_after(PATIENCE_SECONDS):
            while len(scp.ends) < 2:
                await trio.sleep(0.01)
    out, err = capsys.readouterr()
    assert code == 6
    assert scp.ends == [(0,), RELEASED]
    assert f"{shrunk[0]}: the file became shorter, or unreadable, while it was sent" in err
    assert '"instances":1,"failed":1' in out


# -- row 72


async def test_row_72_command_and_dataset_have_pdus_of_their_own() -> None:
    outcomes: list[StoreOutcome] = []
    async with running(ScriptedScp(lambda _n, rq: response(rq), window=8)) as scp:
        await send(scp, 20, outcomes, window=8)
    assert len(scp.commands) == 20
    assert scp.mixed_pdus == 0
