"""`move` against peers of ours that answer early, late, wrongly, or not at all."""

from __future__ import annotations

import json
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from dcmhaul.cli import main
from tests.engine.fake_archive import FakeArchive, make_instance
from tests.interop.peers import free_port
from tests.net.moving_archive import Lies, MovingArchive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.engine.fake_archive import FakeInstance

STUDY = "1.2.3.1"
KEY = ("-S", "-k", f"StudyInstanceUID={STUDY}")
QUIET = ("-td", "0.3")
"""How long a peer that has answered may be quiet."""

# pydicom gives struct both str and bytes layouts, which -bb complains of when their hashes meet.
pytestmark = pytest.mark.filterwarnings("ignore::BytesWarning")


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DCMHAUL_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)


class Ended:
    """How a command line ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.err = err
        self.records: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines()]

    @property
    def summary(self) -> dict[str, Any]:
        return self.records[-1]

    @property
    def numbers(self) -> tuple[int, int, int]:
        """The exit code, instances, failed."""
        return self.code, self.summary["instances"], self.summary["failed"]


class Bench:
    """An archive, and a folder into which `move +P` receives."""

    def __init__(self, archive: MovingArchive, address: str, folder: Path, capsys: Any) -> None:
        self.archive = archive
        self.address = address
        self.folder = folder
        self._capsys = capsys

    async def run(self, *arguments: str | int) -> Ended:
        """One `move` in a thread of its own, where it has an event loop of its own."""
        self._capsys.readouterr()
        words = ["move", self.address, "--json", *map(str, arguments)]
        with trio.fail_after(30):
            code = await trio.to_thread.run_sync(main, words)
        captured = self._capsys.readouterr()
        assert "Traceback" not in captured.err
        return Ended(code, captured.out, captured.err)

    async def receive(self, *arguments: str | int) -> Ended:
        """The same with an SCP of its own under the title OURS."""
        port = free_port()
        self.archive.destinations["OURS"] = port
        options = ("-aet", "OURS", "+P", port, "--bind", "127.0.0.1", "-od", str(self.folder))
        return await self.run(*options, *(arguments or KEY))

    def files(self) -> set[str]:
        if not self.folder.exists():
            return set()
        return {path.name.removesuffix(".dcm") for path in self.folder.iterdir()}


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    @asynccontextmanager
    async def running(
        lies: Lies | None = None, instances: list[FakeInstance] | None = None
    ) -> AsyncIterator[Bench]:
        archive = MovingArchive(
            [make_instance(n) for n in range(6)] if instances is None else instances, lies
        )
        async with archive.running("FAKE") as peer:
            yield Bench(archive, str(peer), tmp_path / "in", capsys)

    return running


def uid(number: int, study: str = STUDY) -> str:
    return f"{study}.9.{number}"


# -- into our own SCP ---------------------------------------------------------------------------


async def test_everything_comes_and_is_kept(bench: Any) -> None:
    async with bench() as at:
        ended = await at.receive(*KEY, "-v")
        assert ended.numbers == (0, 6, 0)
        assert at.files() == set(at.archive.instances)
        for path in at.folder.iterdir():
            kept = at.archive.instances[path.name.removesuffix(".dcm")]
            assert path.read_bytes().endswith(kept.dataset)
        size = sum(instance.length for instance in at.archive.instances.values())
    assert ended.summary["bytes"] == size
    assert ended.err.count("C-STORE in: 0x0000 Success") == 6
    for line in (
        "C-MOVE-RQ to OURS, level STUDY",
        "C-MOVE-RSP: 0xFF00 Pending: sub-operations are continuing: 5 done, 1 to come, 0 failed",
        "final C-MOVE-RSP: 0x0000 Success: 6 done, 0 failed, 0 with warnings",
        "association from FAKE at 127.0.0.1:",
    ):
        assert line in ended.err


async def test_a_name_is_asked_for_first(bench: Any) -> None:
    """As users type it: the matches are asked for, and the SCP is open before the request."""
    async with bench() as at:
        ended = await at.receive("-S", "-k", "PatientName=HEAD EXP2")
    assert ended.numbers == (0, 6, 0)
    assert "asked by C-FIND first: 1 matches at STUDY level, 1 C-MOVE requests" in ended.err


async def test_discarded_as_fast_as_kept(bench: Any) -> None:
    async with bench() as at:
        port = free_port()
        at.archive.destinations["OURS"] = port
        ended = await at.run("-aem", "OURS", "+P", port, "--ignore", *KEY, "--repeat", 2, "--abort")
        assert ended.numbers == (0, 12, 0)
        assert [title for title, _ in at.archive.orders] == ["OURS", "OURS"]
        assert not at.files()


async def test_an_early_success_is_waited_for(bench: Any) -> None:
    """The final response says nothing: what arrives afterwards is counted, and the SCP stays."""
    async with bench(Lies(early=True)) as at:
        ended = await at.receive()
        assert ended.numbers == (0, 6, 0)
        assert len(at.files()) == 6


@pytest.mark.parametrize("as_typed", [(), ("--as-typed",)])
async def test_what_does_not_come_is_missing(bench: Any, as_typed: tuple[str, ...]) -> None:
    """By name where C-FIND told what to expect, else by the number that the peer claims."""
    lies = Lies(
        early=True,
        withheld=frozenset({uid(2), uid(4)}),
        counts={"completed": 6, "failed": 0, "warning": 0},
    )
    async with bench(lies) as at:
        ended = await at.receive(*KEY, *QUIET, *as_typed)
    assert ended.numbers == (5, 4, 2)
    said = "2 instances did not arrive, 4 did, though the peer answered 0x0000 Success, 6 done"
    assert said in ended.err
    missing = [r["sop_instance_uid"] for r in ended.records if r["type"] == "missing"]
    assert missing == ([] if as_typed else [uid(2), uid(4)])


@pytest.mark.parametrize(
    "counts", [{}, {"completed": 0, "failed": 0}, {"completed": 99, "failed": 0}]
)
async def test_wrong_counts_change_nothing_where_all_is_here(
    bench: Any, counts: dict[str, int]
) -> None:
    async with bench(Lies(counts=counts)) as at:
        assert (await at.receive()).numbers == (0, 6, 0)


async def test_a_success_that_moves_nothing_is_an_outcome_of_its_own(bench: Any) -> None:
    everything = frozenset(uid(n) for n in range(6))
    async with bench(Lies(withheld=everything)) as at:
        ended = await at.receive(*KEY, *QUIET)
        assert ended.numbers == (4, 0, 0)
        assert "0x0000 Success and moved nothing, though it has 6 instances" in ended.err
        # Where nobody told what to expect there is nothing to wait for either.
        ended = await at.receive(*KEY, "--as-typed")
        assert ended.numbers == (4, 0, 0)


async def test_a_peer_that_sent_it_elsewhere(bench: Any) -> None:
    everything = frozenset(uid(n) for n in range(6))
    counts = {"completed": 6, "failed": 0, "warning": 0}
    async with bench(Lies(withheld=everything, counts=counts)) as at:
        ended = await at.receive(*KEY, *QUIET)
    assert ended.numbers == (5, 0, 6)
    assert "6 done: does it know OURS under another host or port?" in ended.err


async def test_failed_sub_operations_are_listed_and_not_waited_for(bench: Any) -> None:
    async with bench(Lies(failing=(uid(1), uid(3)))) as at:
        ended = await at.receive()
    assert ended.numbers == (5, 4, 2)
    failed = [r["sop_instance_uid"] for r in ended.records if r["type"] == "failed"]
    assert failed == [uid(1), uid(3)]
    assert "2 sub-operations failed: 0xB000 Warning" in ended.err


@pytest.mark.parametrize(
    ("refusal", "code", "hint"),
    [
        ((0xA801, "who is that"), 6, "the peer does not know the title OURS: it must be given"),
        ((0xA702, ""), 5, "does anything listen where the peer finds OURS"),
        ((0xC000, ""), 6, "some peers answer so where they do not know OURS"),
        ((0xA900, "no such level"), 6, "0xA900 Error: identifier does not match SOP class"),
        ((0xA701, ""), 5, "unable to calculate number of matches"),
    ],
)
async def test_refusals_are_named(
    bench: Any, refusal: tuple[int, str], code: int, hint: str
) -> None:
    async with bench(Lies(refusal=refusal)) as at:
        ended = await at.receive()
    assert ended.numbers == (code, 0, 0)
    assert hint in ended.err
    assert refusal[1] in ended.err


async def test_a_peer_that_never_answers_ends_at_the_deadline(bench: Any) -> None:
    async with bench(Lies(never=True)) as at:
        ended = await at.receive(*KEY, "-td", "0.2")
    assert ended.numbers == (5, 0, 6)
    assert "no progress for 0.2 s (C-MOVE time-out)" in ended.err


@pytest.mark.parametrize("early", [False, True])
async def test_a_sender_that_does_not_end_its_association_is_released(
    bench: Any, early: bool
) -> None:
    async with bench(Lies(lingers=True, early=early)) as at:
        ended = await at.receive(*KEY, "-v")
        with trio.fail_after(10):
            while not at.archive.lingering:
                await trio.sleep(0.01)
        assert at.archive.lingering == ["released"]
    assert ended.numbers == (0, 6, 0)
    assert "1 associations were left open by their senders" in ended.err


# -- whose is it? -------------------------------------------------------------------------------


def studies(count: int = 3, each: int = 4) -> list[FakeInstance]:
    return [make_instance(n, study=f"1.2.3.{s}") for s in range(1, count + 1) for n in range(each)]


@pytest.mark.parametrize("originator", [True, False])
async def test_parallel_moves_are_told_apart(bench: Any, originator: bool) -> None:
    """By the Move Originator, or without one, and from another title, by the expected UIDs."""
    lies = Lies(
        early=True,
        rendezvous=3,
        originator=originator,
        title="ELSEWHERE",
        withheld=frozenset({uid(0, "1.2.3.2")}),
        counts={"completed": 4, "failed": 0, "warning": 0},
    )
    async with bench(lies, studies()) as at:
        ended = await at.receive("-S", "-k", "StudyDate=20200101", "--associations", "3", *QUIET)
        assert len({message_id for _, message_id in at.archive.orders}) == 3
        assert len(at.files()) == 11
    assert ended.numbers == (5, 11, 1)
    missing = [r["sop_instance_uid"] for r in ended.records if r["type"] == "missing"]
    assert missing == [uid(0, "1.2.3.2")]
    assert "1 instances did not arrive, 3 did" in ended.err


async def test_what_nobody_asked_for_is_kept_and_said(bench: Any) -> None:
    stranger = make_instance(7, study="1.2.77")
    async with bench(Lies(more=[stranger])) as at:
        ended = await at.receive()
        assert at.files() == {*at.archive.instances, stranger.sop_instance_uid}
    assert ended.numbers == (0, 7, 0)
    assert "1 instances arrived that no request of this run was for: they are kept too" in ended.err


# -- to a third party ---------------------------------------------------------------------------


async def test_a_third_party_receives(bench: Any) -> None:
    """The peer's counts are all that is known: of bytes nothing is."""
    third = FakeArchive()
    async with bench() as at, third.running("THIRD") as destination:
        at.archive.destinations["THIRD"] = destination.port
        ended = await at.run("-aem", "THIRD", *KEY)
    assert ended.numbers == (0, 6, 0)
    assert len(third.stored) == 6
    assert (ended.summary["bytes"], ended.summary["mib_per_s"]) == (None, None)


@pytest.mark.parametrize(
    ("counts", "code", "said"),
    [
        ({}, 0, "the peer did not say how many instances it sent"),
        ({"completed": 0, "failed": 0, "warning": 0}, 4, "0x0000 Success and moved nothing"),
        ({"completed": 4, "failed": 2, "warning": 0}, 5, "2 sub-operations failed: 0x0000 Success"),
    ],
)
async def test_a_third_partys_numbers_are_the_peers(
    bench: Any, counts: dict[str, int], code: int, said: str
) -> None:
    third = FakeArchive()
    async with (
        bench(Lies(counts=counts, pending=False)) as at,
        third.running("THIRD") as destination,
    ):
        at.archive.destinations["THIRD"] = destination.port
        ended = await at.run("-aem", "THIRD", *KEY)
    assert ended.numbers == (code, counts.get("completed", 0), counts.get("failed", 0))
    assert said in ended.err


async def test_the_destination_is_our_own_title_where_none_is_typed(bench: Any) -> None:
    async with bench() as at:
        ended = await at.run("-aet", "DebugTest", *KEY)
        assert [title for title, _ in at.archive.orders] == ["DebugTest"]
    assert ended.code == 6
    assert (
        "the peer does not know the title DebugTest: it must be given that AE's host" in ended.err
    )


# -- stopping -----------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [True, False])
async def test_cancel_after_so_many_responses(bench: Any, own: bool) -> None:
    third = FakeArchive()
    async with (
        bench(instances=[make_instance(n) for n in range(200)]) as at,
        third.running("THIRD") as destination,
    ):
        at.archive.destinations["THIRD"] = destination.port
        if own:
            ended = await at.receive(*KEY, "--cancel", 2, "-v")
        else:
            ended = await at.run("-aem", "THIRD", *KEY, "--cancel", 2, "-v")
        sent = len(at.archive.sent)
        assert at.archive.cancelled == 1
    assert 1 <= sent < 200
    assert ended.numbers == (0, sent, 0)
    assert "final C-MOVE-RSP: 0xFE00 Cancel: sub-operations ended after a cancel" in ended.err


async def test_cancel_after_each_number_of_responses(bench: Any) -> None:
    """One beyond the last is none; each time what is counted is what is there."""
    async with bench() as at:
        for number in range(1, 9):
            for path in at.folder.glob("*"):
                path.unlink()
            at.archive.sent.clear()
            ended = await at.receive(*KEY, "--cancel", number)
            assert ended.numbers == (0, len(at.archive.sent), 0), ended.err
            assert at.files() == set(at.archive.sent)
            assert min(number - 1, 6) <= len(at.archive.sent) <= 6


async def test_a_cancel_before_anything_came_is_no_failure(bench: Any) -> None:
    async with bench() as at:
        ended = await at.receive(*KEY, "--cancel", 1)
    assert ended.numbers[0] == 0
    assert "nothing matched" not in ended.err


async def test_a_cancel_that_nobody_asked_for_is_no_success(bench: Any) -> None:
    async with bench(Lies(refusal=(0xFE00, ""))) as at:
        assert (await at.receive()).numbers == (5, 0, 0)


# -- what cannot be ------------------------------------------------------------------------------


async def test_a_port_in_use_is_one_line(bench: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with bench() as at:
            ended = await at.run("+P", port, "--bind", "127.0.0.1", *KEY)
            assert at.archive.associations == 0
    assert ended.code == 2
    text = f"dcmhaul move: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    assert ended.err == text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-od", "x"), "-od is about what arrives here: give +P PORT too"),
        (("--discard",), "--discard is about what arrives here"),
        (("--durable", "each"), "--durable is about what arrives here"),
        (("--bind", "127.0.0.1"), "--bind is about what arrives here"),
        (("+P", "0", "--no-port", "-od", "x"), "-od is about what arrives here"),
        (("+P", "99999"), "99999"),
        (("+P", "0", "--discard", "--durable", "each"), "--discard keeps nothing"),
        (("-aem", "A\\B"), "-aem"),
        (("-pr",), "-pr: an option of DCMTK's movescu that dcmhaul does not support"),
    ],
)
def test_contradictions_are_explained(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["movescu", "X@127.0.0.1:1", *KEY, *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1
