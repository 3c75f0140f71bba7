"""`get` plans its contexts from what the peer lists, asks again in others, and passes nothing over."""

from __future__ import annotations

import json
import signal
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from dcmhaul.cli import main
from dcmhaul.cli.retrieval import COMMON_CLASSES
from dcmhaul.services.retrieve import GetScp
from dcmhaul.uids import STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES
from tests.archive.made import instance
from tests.archive.serving import AE_TITLE, serving
from tests.archive.test_archive import store
from tests.engine.fake_archive import (
    CT,
    EXPLICIT,
    IMPLICIT,
    JPEG2000,
    MR,
    FakeArchive,
    FakeInstance,
    Faults,
    make_instance,
)
from tests.net.test_interrupts import interrupted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dcmhaul.services.provider import Service

STUDY = "1.2.3.1"
PRIVATE = "1.3.6.1.4.1.9.9.9"


class Got:
    """What one command line said, and what is in its folder."""

    def __init__(self, code: int, out: str, err: str, folder: Path) -> None:
        self.code = code
        self.err = err
        self.records = [json.loads(line) for line in out.splitlines()]
        self.files = {path.stem for path in folder.iterdir()} if folder.exists() else set()

    @property
    def counts(self) -> tuple[int, int, int]:
        summary = self.records[-1]
        return self.code, summary["instances"], summary["failed"]

    def named(self, what: str) -> list[str]:
        return [r["sop_instance_uid"] for r in self.records if r["type"] == what]


@pytest.fixture
def got(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    async def run(peer: object, *more: str, keys: str = f"StudyInstanceUID={STUDY}") -> Got:
        folder = tmp_path / "got"
        arguments = ["get", str(peer), "-S", "-k", keys, "-od", str(folder), "--json", *more]
        with trio.fail_after(60):
            code = await trio.to_thread.run_sync(main, arguments)
        return Got(code, *capsys.readouterr(), folder)

    return run


def kinds(count: int, **arguments: Any) -> list[FakeInstance]:
    return [make_instance(n, study=STUDY, **arguments) for n in range(count)]


async def test_more_than_128_pairs_take_several_associations(
    tmp_path: Path, got: Callable[..., Any]
) -> None:
    """Every one of 150 comes as it is, private classes too."""
    encapsulated = [uid for uid in TRANSFER_SYNTAXES if uid.startswith("1.2.840.10008.1.2.4.")]
    classes = [*list(STORAGE_SOP_CLASSES)[:14], PRIVATE]
    pairs = [(c, s) for c in classes for s in [EXPLICIT, *encapsulated[:9]]]
    async with serving(tmp_path / "archive", policy={"accept_any_storage": True}) as served:
        for n, (sop_class, syntax) in enumerate(pairs, 1):
            dataset = instance(1, n % 3, n, SOPClassUID=sop_class, StudyInstanceUID=STUDY)
            dataset.SOPInstanceUID = f"1.2.3.4.{n}"
            reply = await store(served.archive, dataset, transfer_syntax_uid=syntax)
            assert reply.status == 0, reply
        result = await got(f"{AE_TITLE}@127.0.0.1:{served.port}")
    assert result.counts == (0, len(pairs), 0), result.err
    assert len(result.files) == len(pairs) == 150


async def test_syntaxes_that_nobody_announces(got: Callable[..., Any]) -> None:
    instances = [
        *kinds(2),
        make_instance(7, study=STUDY, sop_class=MR, syntax=JPEG2000),
        make_instance(8, study=STUDY, sop_class=MR, syntax=IMPLICIT, series="1.2.3.1.9"),
    ]
    old = FakeArchive(instances, Faults(announce_syntax=False))
    async with old.running("OLD") as peer:
        result = await got(peer, "--associations", "2")
    assert result.counts == (0, 4, 0), result.err
    assert result.files == set(old.instances)


@pytest.mark.parametrize(
    ("announced", "real"), [("syntax", JPEG2000), ("class", MR)], ids=["syntax", "class"]
)
async def test_what_was_announced_wrongly_is_asked_for_again(
    got: Callable[..., Any], announced: str, real: str
) -> None:
    """And only that, in other contexts, in the end in those of every class."""
    if announced == "syntax":
        wrong = make_instance(5, study=STUDY, syntax=real)
    else:
        wrong = make_instance(5, study=STUDY, sop_class=real)
    old = FakeArchive([*kinds(3), wrong])
    if announced == "class":
        old.faults.announce_class = lambda _uid: CT
    else:
        # What it lists is one thing, what it sends another.
        find = old._find

        def lying(*arguments: Any) -> Any:
            for match in find(*arguments):
                if "AvailableTransferSyntaxUID" in match:
                    match.AvailableTransferSyntaxUID = EXPLICIT
                yield match

        old._find = lying  # type: ignore[method-assign, assignment]
    async with old.running("OLD") as peer:
        result = await got(peer)
    assert result.counts == (0, 4, 0), result.err
    assert result.files == set(old.instances)
    assert old.requests[0] == "STUDY"
    assert set(old.requests[1:]) == {"IMAGE"}


class Narrow(FakeArchive):
    """Gives out CT alone, though it holds more."""

    def services(self) -> list[Service]:
        found: list[Service] = []
        for service in super().services():
            if isinstance(service, GetScp):
                service._contexts = {
                    uid: c
                    for uid, c in service._contexts.items()
                    if uid == CT or ".5.1.4.1.2." in uid
                }
                found.append(service)
            elif "Storage" not in type(service).__name__:
                found.append(service)
        return found


async def test_what_no_context_fits_is_a_failure_with_its_class(got: Callable[..., Any]) -> None:
    old = Narrow([*kinds(2), make_instance(9, study=STUDY, sop_class=MR)])
    async with old.running("OLD") as peer:
        result = await got(peer)
    assert result.counts == (6, 2, 1), result.err
    assert result.named("failed") == [f"{STUDY}.9.9"]
    assert "accepted no presentation context for MR Image Storage in Explicit VR" in result.err


async def test_a_success_that_brought_less_than_is_listed(got: Callable[..., Any]) -> None:
    lost = f"{STUDY}.9.1"
    old = FakeArchive(kinds(3), Faults(withhold=frozenset({lost})))
    async with old.running("OLD") as peer:
        result = await got(peer)
    assert result.counts == (5, 2, 1), result.err
    assert result.named("missing") == [lost]
    assert "1 instances did not come, 2 did, though the peer answered 0x0000" in result.err


async def test_a_peer_that_lists_nothing_is_asked_in_the_commonest_classes(
    got: Callable[..., Any],
) -> None:
    """What it counts as failed comes in the classes that are left; the rest is not stored twice."""
    rare = next(uid for uid in STORAGE_SOP_CLASSES if uid not in COMMON_CLASSES)
    old = FakeArchive(
        [*kinds(2), make_instance(9, study=STUDY, sop_class=rare)], Faults(no_find=True)
    )
    async with old.running("OLD") as peer:
        result = await got(peer)
    assert result.counts == (0, 3, 0), result.err
    assert result.files == set(old.instances)
    assert old.requests == ["STUDY", "STUDY"]


async def test_verbose_tells_what_getscu_tells(got: Callable[..., Any]) -> None:
    """And the questions beforehand."""
    async with FakeArchive(kinds(2)).running("OLD") as peer:
        result = await got(peer, "-v")
    told = [line for line in result.err.splitlines() if "C-" in line or "association w" in line]
    assert [line for line in told if "Pending" not in line] == [
        "C-FIND at SERIES level: 1 matches",
        "C-FIND at IMAGE level: 2 matches",
        f"association with {peer} released",
        "C-GET-RQ, level STUDY",
        "C-STORE in: 0x0000 Success",
        "C-STORE in: 0x0000 Success",
        "C-GET out: 0x0000 Success",
        "final C-GET-RSP: 0x0000 Success: 2 done, 0 failed, 0 with warnings",
        f"association with {peer} released",
    ]


async def test_repeat_and_implicit_alone(got: Callable[..., Any]) -> None:
    old = FakeArchive(kinds(3, syntax=IMPLICIT))
    async with old.running("OLD") as peer:
        assert (await got(peer, "--repeat", "2")).counts == (0, 6, 0)
        assert (await got(peer, "+xi")).counts == (0, 3, 0)
        agreed = {syntax for sop_class, syntax in old.agreed[-1] if sop_class == CT}
    assert agreed == {IMPLICIT}


async def test_a_stop_does_not_wait_for_an_association(tmp_path: Path) -> None:
    """Nothing is in flight, so one signal is enough."""
    connected = trio.Event()

    async def silent(stream: trio.SocketStream) -> None:
        connected.set()
        async for _ in stream:
            pass

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, silent, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        arguments: list[str | Path] = ["get", f"X@127.0.0.1:{port}", "-S", "-k"]
        arguments += [f"StudyInstanceUID={STUDY}", "--as-typed", "-od", tmp_path / "got"]
        running = await interrupted(tmp_path, arguments, connected.is_set, signal.SIGINT, 1)
        nursery.cancel_scope.cancel()
    assert running.process.returncode == 130
