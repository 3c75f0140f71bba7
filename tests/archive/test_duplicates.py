"""One SOP Instance UID, several objects: what each policy keeps, answers, gives out and tells."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio

from dcmhaul import uids
from dcmhaul.archive import Archive, Duplicates
from dcmhaul.archive.store import Store
from dcmhaul.errors import UnreadableInstance
from dcmhaul.net import FileRange
from dcmhaul.services.identifiers import EncodedIdentifier
from dcmhaul.services.query import QueryModel
from dcmhaul.wire.part10 import encode_file_meta
from tests.archive.made import CT, encode, instance
from tests.archive.test_archive import contents, files, find, opened, store
from tests.archive.test_query import query

if TYPE_CHECKING:
    from pathlib import Path

    from dcmhaul.archive import Totals

EXPLICIT = uids.EXPLICIT_VR_LITTLE_ENDIAN
UID = "1.2.3.1.1.1"

FIRST = instance()
SECOND = instance(PatientName="Another^One", PatientComments="x" * 100)


async def given_out(archive: Archive, **keys: object) -> list[bytes]:
    """The datasets that a retrieve gives out, in its order."""
    data = encode(query("STUDY", **(keys or {"StudyInstanceUID": "1.2.3.1"})))
    identifier = EncodedIdentifier(data=data, transfer_syntax=EXPLICIT)
    found = []
    for stored in await archive.select(QueryModel.STUDY_ROOT, identifier, "TESTER"):
        instance = stored.open()
        assert isinstance(instance.dataset, memoryview)
        found.append(bytes(instance.dataset))
        instance.close()
    return found


@pytest.mark.parametrize("policy", list(Duplicates))
async def test_the_same_bytes_are_not_written_again(tmp_path: Path, policy: Duplicates) -> None:
    told: list[str] = []
    async with opened(tmp_path, duplicates=policy, report=told.append) as archive:
        assert (await store(archive, FIRST)).status == 0
        (path,) = files(tmp_path / "archive")
        before = path.stat()
        assert (await store(archive, FIRST)).status == 0
        assert files(tmp_path / "archive") == [path]
        assert path.stat() == before
        assert archive.statistics().duplicates == 1
    assert told == []


@pytest.mark.parametrize(
    ("policy", "status", "given", "kept"),
    [
        (Duplicates.KEEP_FIRST, 0xC001, [FIRST], 2),
        (Duplicates.KEEP_BOTH, 0, [FIRST, SECOND], 2),
        (Duplicates.REPLACE, 0, [SECOND], 1),
    ],
)
async def test_other_bytes(
    tmp_path: Path, policy: Duplicates, status: int, given: list[Any], kept: int
) -> None:
    told: list[str] = []
    expected = [encode(dataset) for dataset in given]
    async with opened(tmp_path, duplicates=policy, report=told.append) as archive:
        await store(archive, FIRST)
        for _ in range(2):
            reply = await store(archive, SECOND)
            assert reply.status == status
            assert bool(reply.error_comment) == bool(status)
        assert await given_out(archive) == expected
        # The unique key of the IMAGE level names one instance.
        assert len(await find(archive, "IMAGE", SOPInstanceUID=UID)) == 1
        assert len(files(tmp_path / "archive")) == kept
        came = archive.statistics()
        replaces = policy is Duplicates.REPLACE
        assert (came.stored, came.replaced) == (1, int(replaces))
        assert came.conflicts == (0 if replaces else 2)
        counted = {labels: n for family in archive.families() for labels, n in family.samples}
        assert counted["replaced",] == came.replaced
        assert counted["conflicts",] == came.conflicts
        holds = came.holds
    assert len(told) == (1 if replaces else 2)
    for line in told:
        assert "TESTER" in line
        assert not any(secret in line for secret in ("Another", "Doe", "ID1", UID))
    async with opened(tmp_path, duplicates=policy) as archive:
        assert archive.recovery.lines() == []
        assert await given_out(archive) == expected
        assert archive.statistics().holds == holds


async def test_a_third_object_and_the_first_again(tmp_path: Path) -> None:
    third = instance(PatientComments="third")
    async with opened(tmp_path, duplicates=Duplicates.KEEP_BOTH) as archive:
        for dataset in (FIRST, SECOND, third, SECOND, FIRST):
            assert (await store(archive, dataset)).status == 0
        given = [encode(dataset) for dataset in (FIRST, SECOND, third)]
        assert await given_out(archive) == given
        # Whoever has set objects aside gives them out under the other policy.
    async with opened(tmp_path) as archive:
        assert await given_out(archive) == given[:1]
    # What is aside comes forward when it replaces, and is not aside any more.
    async with opened(tmp_path, duplicates=Duplicates.REPLACE) as archive:
        assert (await store(archive, SECOND)).status == 0
        assert await given_out(archive) == given[1:2]
        assert archive.statistics().holds.conflicts == 1
    assert len(files(tmp_path / "archive")) == 2
    async with opened(tmp_path, duplicates=Duplicates.KEEP_BOTH) as archive:
        assert archive.recovery.lines() == []
        assert await given_out(archive) == [given[1], given[2]]


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_replacement_says_anew_where_it_belongs(tmp_path: Path, restarted: bool) -> None:
    """Patient, study and series follow the latest object, and go with their last instance."""

    def count(totals: Totals) -> tuple[int, ...]:
        return totals.patients, totals.studies, totals.series, totals.instances

    async with opened(tmp_path, duplicates=Duplicates.REPLACE) as archive:
        await store(archive, instance(1, 1, 1, StudyDescription="Head", Modality="CT"))
        await store(archive, instance(1, 1, 2, StudyDescription="Head"))
        assert count(archive.statistics().holds) == (1, 1, 1, 2)
        await store(archive, instance(1, 1, 1, PatientName="Right", StudyDescription="Foot"))
        (study,) = await find(archive, "STUDY", PatientName="", StudyDescription="")
        assert (study.PatientName, study.StudyDescription) == ("Right", "Foot")
        assert count(archive.statistics().holds) == (1, 1, 1, 2)
        # To another patient's study: its own goes when the second one has gone there, too.
        for number in (1, 2):
            moved = instance(2, 1, number, SOPInstanceUID=f"1.2.3.1.1.{number}")
            assert (await store(archive, moved)).status == 0
            assert count(archive.statistics().holds) == (
                (2, 2, 2, 2) if number == 1 else (1, 1, 1, 2)
            )
        (study,) = await find(archive, "STUDY", PatientID="", StudyInstanceUID="")
        assert (study.PatientID, study.StudyInstanceUID) == ("ID2", "1.2.3.2")
        if not restarted:
            # Rows that were removed are not remembered either.
            assert (await store(archive, instance(1, 1, 3))).status == 0
            assert count(archive.statistics().holds) == (2, 2, 2, 3)
        holds = archive.statistics().holds
    async with opened(tmp_path, duplicates=Duplicates.REPLACE) as archive:
        assert archive.statistics().holds == holds
        assert archive.recovery.lines() == []
    assert len(files(tmp_path / "archive")) == holds.instances


def row_of(folder: Path, uid: str = UID) -> str:
    """The file that the index, as it is on the disk, names for an instance."""
    connection = sqlite3.connect(folder / "index.db")
    try:
        query = "SELECT name FROM instance WHERE sop_instance_uid = ?"
        ((name,),) = connection.execute(query, (uid,)).fetchall()
    finally:
        connection.close()
    return str(name)


async def test_nothing_is_deleted_before_its_replacement_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []
    real = Store.remove

    def remove(self: Store, place: Any) -> None:
        named = row_of(tmp_path / "archive")
        assert named != place.name
        [new] = [path for path in files(tmp_path / "archive") if path.name == named]
        assert new.read_bytes().endswith(encode(SECOND))
        removed.append(place.name)
        real(self, place)

    async with opened(tmp_path, duplicates=Duplicates.REPLACE) as archive:
        await store(archive, FIRST)
        (first,) = files(tmp_path / "archive")
        monkeypatch.setattr(Store, "remove", remove)
        assert (await store(archive, SECOND)).status == 0
    assert removed == [first.name]


async def test_what_is_replaced_after_it_was_selected_is_given_out_as_it_is_now(
    tmp_path: Path,
) -> None:
    """A C-GET, or a C-MOVE that waits, does not fail for it; a file that is gone for no reason fails."""
    third = instance(PatientComments="third")
    identifier = EncodedIdentifier(
        data=encode(query("STUDY", StudyInstanceUID="1.2.3.1")), transfer_syntax=EXPLICIT
    )
    async with opened(tmp_path, duplicates=Duplicates.REPLACE) as archive:
        await store(archive, FIRST)
        (selected,) = await archive.select(QueryModel.STUDY_ROOT, identifier, "TESTER")
        for dataset in (SECOND, third):
            assert (await store(archive, dataset)).status == 0
        given = selected.open()
        assert not isinstance(given.dataset, FileRange)
        assert bytes(given.dataset) == encode(third)
        given.close()
        (path,) = files(tmp_path / "archive")
        path.unlink()
        with pytest.raises(UnreadableInstance):
            selected.open()


async def test_a_replaced_file_that_stayed_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill between the COMMIT and the removal; also where the disk refuses the removal."""

    def refuse(_store: Store, _place: Any) -> None:
        raise OSError(30, os.strerror(30))

    async with opened(tmp_path, duplicates=Duplicates.REPLACE) as archive:
        await store(archive, FIRST)
        with monkeypatch.context() as patch:
            patch.setattr(Store, "remove", refuse)
            assert (await store(archive, SECOND)).status == 0
    assert len(files(tmp_path / "archive")) == 2
    async with opened(tmp_path, duplicates=Duplicates.REPLACE) as archive:
        assert archive.recovery.duplicates == 1
        assert await given_out(archive) == [encode(SECOND)]
    assert len(files(tmp_path / "archive")) == 1


@pytest.mark.parametrize("policy", list(Duplicates))
async def test_what_was_never_acknowledged_replaces_nothing(
    tmp_path: Path, policy: Duplicates
) -> None:
    """As after a kill between the folder's sync and the COMMIT of the second object."""
    folder = tmp_path / "archive"
    async with opened(tmp_path / "other") as archive:
        await store(archive, SECOND)
    (other,) = files(tmp_path / "other" / "archive")
    async with opened(tmp_path) as archive:
        await store(archive, FIRST)
    (first,) = files(folder)
    (first.parent / other.name).write_bytes(other.read_bytes())
    async with opened(tmp_path, duplicates=policy) as archive:
        kept = policy is not Duplicates.REPLACE
        assert (archive.recovery.adopted, archive.recovery.duplicates) == (kept, not kept)
        expected = [FIRST, SECOND] if policy is Duplicates.KEEP_BOTH else [FIRST]
        assert await given_out(archive) == [encode(dataset) for dataset in expected]
    assert len(files(folder)) == 1 + kept


@pytest.mark.parametrize("policy", list(Duplicates))
async def test_a_storm_under_one_uid(tmp_path: Path, policy: Duplicates) -> None:
    datasets = [instance(PatientComments=f"{n % 4}") for n in range(20)]
    replies: list[int] = []

    async def send(archive: Archive, n: int) -> None:
        replies.extend([(await store(archive, datasets[n])).status for _ in range(5)])

    async with opened(tmp_path, duplicates=policy) as archive:
        async with trio.open_nursery() as nursery:
            for n in range(20):
                nursery.start_soon(send, archive, n)
        given = await given_out(archive)
        held = await contents(archive)
        holds = archive.statistics().holds
    assert len(replies) == 100
    if policy is Duplicates.KEEP_FIRST:
        assert replies.count(0) == 25
        assert set(replies) == {0, 0xC001}
    else:
        assert set(replies) == {0}
    assert len(given) == (4 if policy is Duplicates.KEEP_BOTH else 1)
    assert len(held) == holds.instances == 1
    assert len(files(tmp_path / "archive")) == (1 if policy is Duplicates.REPLACE else 4)
    async with opened(tmp_path, duplicates=policy) as archive:
        assert archive.recovery.lines() == []
        assert await given_out(archive) == given
        assert archive.statistics().holds == holds


@pytest.mark.slow
@pytest.mark.parametrize("label", ["tmp.linked", "db.before_commit", "db.after_commit"])
def test_killed_while_it_replaces(tmp_path: Path, label: str) -> None:
    """One of the two is there, whole; the second one is if it was acknowledged, which it never was."""
    for name, dataset in (("first", FIRST), ("second", SECOND)):
        (tmp_path / name).write_bytes(encode_file_meta(CT, UID, EXPLICIT) + encode(dataset))

    def archive(**environment: str) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "dcmhaul", "archive", "--port", "0", "--aet", "ARCH"]
        process = subprocess.Popen(
            [*command, "--dir", tmp_path / "archive", "--duplicates", "replace"],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("listening on "):
                return process, line.split()[2].rpartition(":")[2]
        raise AssertionError("it does not listen")

    def run(*arguments: object) -> int:
        command = [sys.executable, "-m", "dcmhaul", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode

    def end(process: subprocess.Popen[str], number: int) -> int:
        process.send_signal(number)
        with process:
            return process.wait(30)

    process, port = archive()
    assert run("send", f"ARCH@127.0.0.1:{port}", tmp_path / "first") == 0
    assert end(process, signal.SIGTERM) == 0
    process, port = archive(CRASH_AT=f"{label}:1")
    assert run("send", f"ARCH@127.0.0.1:{port}", tmp_path / "second") in (3, 5)
    assert end(process, 0) == -signal.SIGKILL
    process, port = archive()
    keys = ("-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2.3.1")
    assert run("get", f"ARCH@127.0.0.1:{port}", *keys, "-od", tmp_path / "out") == 0
    assert end(process, signal.SIGTERM) == 0
    (path,) = (tmp_path / "out").iterdir()
    survivor = SECOND if label == "db.after_commit" else FIRST
    assert path.read_bytes().endswith(encode(survivor))
    assert [p.name for p in files(tmp_path / "archive")] == [row_of(tmp_path / "archive")]
