"""The archive's worklist: what matches, what is given out, and files that come, change, break and go."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Any

import pytest
import trio
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dcmhaul import uids
from dcmhaul.archive import Worklist, worklist
from dcmhaul.archive.identifier import InvalidIdentifier
from dcmhaul.archive.items import InvalidItem, WorklistQuery, parse_item
from dcmhaul.cli import main
from dcmhaul.errors import ConfigurationError
from dcmhaul.services.identifiers import EncodedIdentifier, QueryRefused
from dcmhaul.services.query import QueryModel, find
from tests.archive.made import assign, decode, encode
from tests.archive.serving import AE_TITLE, serving
from tests.datasets import DEFLATED, element, header, part10

if TYPE_CHECKING:
    from pathlib import Path

EXPLICIT = uids.EXPLICIT_VR_LITTLE_ENDIAN
IMPLICIT = uids.IMPLICIT_VR_LITTLE_ENDIAN
BIG = uids.EXPLICIT_VR_BIG_ENDIAN
SYNTAXES = (EXPLICIT, IMPLICIT, BIG)


def dataset(**values: Any) -> Dataset:
    made = Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def step(**values: Any) -> Dataset:
    """A scheduled procedure step."""
    return dataset(
        **{
            "Modality": "CT",
            "ScheduledStationAETitle": "CT01",
            "ScheduledProcedureStepStartDate": "20260105",
            "ScheduledProcedureStepStartTime": "0800",
            **values,
        }
    )


def item(*steps: Dataset, **values: Any) -> Dataset:
    """A worklist item of these steps, or of one."""
    return dataset(
        **{
            "SpecificCharacterSet": "ISO_IR 100",
            "AccessionNumber": "A1",
            "PatientName": "Doe^John",
            "PatientID": "P1",
            "StudyInstanceUID": "1.2.3",
            "ScheduledProcedureStepSequence": Sequence(steps or [step()]),
            "RequestedProcedureID": "R1",
            **values,
        }
    )


def write(path: Path, made: Dataset, syntax: str = EXPLICIT) -> Path:
    path.write_bytes(part10(encode(made, syntax), syntax))
    return path


def asked(query: Dataset, *items: Dataset, syntax: str = EXPLICIT) -> list[Dataset]:
    """The responses, when these items are all there are."""
    trees = [parse_item(encode(one), EXPLICIT, length_max=1 << 20) for one in items]
    found = WorklistQuery(encode(query, syntax), syntax, length_max=1 << 20).responses(trees)
    return [decode(one, syntax) for one in found]


def in_step(**values: Any) -> Dataset:
    return dataset(ScheduledProcedureStepSequence=Sequence([dataset(**values)]))


# -- matching ---------------------------------------------------------------------------------------

MATCHES = {
    "nothing asked": (dataset(PatientName=""), True),
    "asterisks alone": (dataset(PatientName="*"), True),
    "a single value": (dataset(PatientID="P1"), True),
    "another value": (dataset(PatientID="P2"), False),
    "a wild card": (dataset(PatientID="?1"), True),
    "a name in any case": (dataset(PatientName="DOE^J*"), True),
    "what the item has not": (dataset(PatientBirthDate="19700101"), False),
    "what the item has not, asked for": (dataset(PatientBirthDate=""), True),
    "a level": (dataset(QueryRetrieveLevel="STUDY"), True),
    "a list of UIDs": (dataset(StudyInstanceUID=["1.2.9", "1.2.3"]), True),
    "in the step": (in_step(Modality="CT"), True),
    "another modality": (in_step(Modality="MR"), False),
    "a range of dates": (in_step(ScheduledProcedureStepStartDate="20260101-20260131"), True),
    "an open range": (in_step(ScheduledProcedureStepStartDate="20260106-"), False),
    "a range of times": (in_step(ScheduledProcedureStepStartTime="0700-0900"), True),
    # PS3.4 Table K.6-1: from moment to moment, so 0800 of the 5th is before 2000 of the 4th is not.
    "both ranges": (
        in_step(
            ScheduledProcedureStepStartDate="20260104-20260106",
            ScheduledProcedureStepStartTime="2000-0700",
        ),
        True,
    ),
    "both ranges, too late": (
        in_step(
            ScheduledProcedureStepStartDate="20260105-20260106",
            ScheduledProcedureStepStartTime="0900-0700",
        ),
        False,
    ),
    "two keys of one step": (in_step(Modality="CT", ScheduledStationAETitle="CT01"), True),
    "no item in the sequence": (dataset(ScheduledProcedureStepSequence=Sequence()), True),
    "an empty item": (dataset(ScheduledProcedureStepSequence=Sequence([Dataset()])), True),
    "a sequence that it has not": (
        dataset(RequestedProcedureCodeSequence=Sequence([dataset(CodeValue="X")])),
        False,
    ),
    "that sequence, asked for": (
        dataset(RequestedProcedureCodeSequence=Sequence([dataset(CodeValue="")])),
        True,
    ),
}


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("case", MATCHES)
def test_matching(case: str, syntax: str) -> None:
    query, matches = MATCHES[case]
    assert len(asked(query, item(), syntax=syntax)) == matches


def test_two_keys_hold_for_one_step_together() -> None:
    """PS3.4 §C.2.2.2.6: one item of the sequence has to meet all of them."""
    two = item(step(), step(Modality="MR", ScheduledStationAETitle="MR01"))
    assert asked(in_step(Modality="MR", ScheduledStationAETitle="MR01"), two)
    assert not asked(in_step(Modality="MR", ScheduledStationAETitle="CT01"), two)


def test_numbers_are_matched_by_value() -> None:
    pregnant = item(PregnancyStatus=4)
    assert asked(dataset(PregnancyStatus=4), pregnant)
    assert not asked(dataset(PregnancyStatus=1), pregnant)
    [found] = asked(dataset(PregnancyStatus=4), pregnant, syntax=BIG)
    assert found.PregnancyStatus == 4


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_what_was_asked_for_comes_back_and_nothing_else(syntax: str) -> None:
    query = in_step(Modality="CT", ScheduledProcedureStepID="")
    query.PatientName = query.PatientBirthDate = ""
    query.ReferencedStudySequence = Sequence()
    [found] = asked(
        query,
        item(ReferencedStudySequence=[dataset(ReferencedSOPInstanceUID="1.2")]),
        syntax=syntax,
    )
    assert found.SpecificCharacterSet == "ISO_IR 100"
    assert (found.PatientName, found.PatientBirthDate) == ("Doe^John", "")
    assert "PatientID" not in found
    [one] = found.ScheduledProcedureStepSequence
    assert [e.keyword for e in one] == ["Modality", "ScheduledProcedureStepID"]
    assert one.Modality == "CT"
    # A sequence that is asked for without an item comes whole.
    assert found.ReferencedStudySequence[0].ReferencedSOPInstanceUID == "1.2"


def test_character_sets_of_both_sides() -> None:
    """Latin 1 in the item, UTF-8 in the key; what comes back is as it is in the item."""
    query = dataset(SpecificCharacterSet="ISO_IR 192", PatientName="MÜLLER*")
    [found] = asked(query, item(PatientName="Müller^Jörg"), item(PatientName="Muller"))
    assert (found.SpecificCharacterSet, found.PatientName) == ("ISO_IR 100", "Müller^Jörg")
    japanese = item(
        SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou=山田^太郎"
    )
    query = dataset(SpecificCharacterSet="ISO_IR 192", PatientName="*山田*")
    [found] = asked(query, japanese)
    assert found.PatientName.ideographic == "山田^太郎"


def test_what_is_no_key_is_refused() -> None:
    query = dataset(ScheduledProcedureStepSequence=Sequence([Dataset()]))
    assign(query.ScheduledProcedureStepSequence[0], ScheduledProcedureStepStartDate="2026")
    with pytest.raises(InvalidIdentifier, match=r"\(0040,0002\): neither a date"):
        asked(query, item())
    with pytest.raises(InvalidIdentifier, match="the identifier is broken"):
        WorklistQuery(b"nonsense", EXPLICIT, length_max=100)


def test_items_have_bounds() -> None:
    many = b"".join(element(0x00080050, "SH", b"") for _ in range(10_001))
    for data, text in (
        (many, "more than 10000 elements"),
        (element(0x00080050, "SH", b"A" * 2000) * 600, "more than 1048576 bytes"),
        (header(0x00080050, "SH", 4) + b"12", "the dataset ends within"),
    ):
        with pytest.raises(InvalidItem, match=text):
            parse_item(data, EXPLICIT, length_max=1 << 20)


# -- files ------------------------------------------------------------------------------------------


async def ids(served: Worklist, called: str = "RIS", **keys: Any) -> list[str]:
    """The patients of the answer to a query."""
    query = dataset(PatientID="", **keys)
    identifier = EncodedIdentifier(
        data=encode(query), transfer_syntax=EXPLICIT, called_ae_title=called
    )
    return [
        str(decode(match).PatientID)
        async for match in served.find(QueryModel.WORKLIST, identifier, "X")
    ]


async def test_files_come_change_break_and_go(tmp_path: Path) -> None:
    said: list[str] = []
    served = Worklist(tmp_path, report=said.append)
    assert await ids(served) == []
    first = write(tmp_path / "1.wl", item(PatientID="P1"))
    write(tmp_path / "2.wl", item(PatientID="P2"), IMPLICIT)
    write(tmp_path / "3.WL", item(PatientID="P3"), BIG)
    write(tmp_path / "other.dcm", item(PatientID="P4"))
    (tmp_path / "broken.wl").write_bytes(first.read_bytes()[:-3])
    (tmp_path / "no.wl").write_text("what is this")
    (tmp_path / "folder.wl").mkdir()
    os.mkfifo(tmp_path / "fifo.wl")
    (tmp_path / "gone.wl").symlink_to(tmp_path / "nowhere")
    assert await ids(served) == ["P1", "P2", "P3"]
    assert [line.split(": ")[0].rpartition("/")[2] for line in said] == [
        "broken.wl",
        "fifo.wl",
        "folder.wl",
        "no.wl",
    ]
    assert not any("P1" in line or "Doe" in line for line in said)
    said.clear()
    write(tmp_path / "1.wl", item(PatientID="P10"))
    write(tmp_path / "broken.wl", item(PatientID="P5"))
    (tmp_path / "2.wl").unlink()
    assert await ids(served) == ["P10", "P3", "P5"]
    assert said == []
    (tmp_path / "broken.wl").write_bytes(b"broken again, otherwise")
    assert await ids(served) == ["P10", "P3"]
    assert len(said) == 1


async def test_a_file_is_read_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    real = worklist._read

    def counted(path: str, status: os.stat_result) -> Any:
        read.append(path)
        return real(path, status)

    monkeypatch.setattr(worklist, "_read", counted)
    for number in range(300):
        write(tmp_path / f"{number:03}.wl", item(PatientID=f"P{number:03}"))
    served = Worklist(tmp_path)
    everyone = [f"P{number:03}" for number in range(300)]
    assert await ids(served) == everyone
    assert len(read) == 300
    assert await ids(served) == everyone
    assert len(read) == 300
    write(tmp_path / "007.wl", item(PatientID="P999"))
    assert sorted(await ids(served)) == sorted({*everyone, "P999"} - {"P007"})
    assert len(read) == 301


async def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond is read for each query, and found all the same."""
    for number in range(20):
        write(tmp_path / f"{number:02}.wl", item(PatientID=f"P{number:02}"))
    monkeypatch.setattr(worklist, "HELD_MAX", 5 * (tmp_path / "00.wl").stat().st_size)
    served = Worklist(tmp_path)
    for _ in range(2):
        assert await ids(served) == [f"P{number:02}" for number in range(20)]
    assert served._held == worklist.HELD_MAX
    said: list[str] = []
    monkeypatch.setattr(worklist, "FILES_MAX", 3)
    assert await ids(Worklist(tmp_path, report=said.append)) == ["P00", "P01", "P02"]
    assert said == [f"worklist {tmp_path}: more than 3 files"]


async def test_a_called_title_has_its_own_folder_or_the_common_one(tmp_path: Path) -> None:
    (tmp_path / "RIS").mkdir()
    write(tmp_path / "RIS" / "1.wl", item(PatientID="RIS"))
    write(tmp_path / "1.wl", item(PatientID="COMMON"))
    write(tmp_path.parent / "secret.wl", item(PatientID="SECRET"))
    served = Worklist(tmp_path)
    for called in ("OTHER", "..", ".", "RIS/.", "", "ris", "1.wl"):
        assert await ids(served, called) == ["COMMON"]
    assert await ids(served, "RIS") == ["RIS"]


async def test_a_writer_holds_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As DCMTK's tools and wlmscpfs do: the last whole list is served meanwhile."""
    monkeypatch.setattr(worklist, "_LOCK_WAIT", 0.0)
    write(tmp_path / "1.wl", item(PatientID="P1"))
    lock = tmp_path / "lockfile"
    lock.touch()
    served = Worklist(tmp_path)
    assert await ids(served) == ["P1"]
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        write(tmp_path / "2.wl", item(PatientID="P2"))
        assert await ids(served) == ["P1"]
        # One that has no list yet takes what there is.
        assert await ids(Worklist(tmp_path)) == ["P1", "P2"]
    assert await ids(served) == ["P1", "P2"]


async def test_items_by_call(tmp_path: Path) -> None:
    write(tmp_path / "1.wl", item(PatientID="P1"))
    served = Worklist(tmp_path)
    served.put("a", item(PatientID="P2"))
    served.put("b", encode(item(PatientID="P3")), ae_title="RIS")
    assert await ids(served) == ["P2", "P3", "P1"]
    assert await ids(served, "OTHER") == ["P2", "P1"]
    served.put("a", item(PatientID="P4"))
    served.remove("b")
    assert await ids(served) == ["P4", "P1"]
    with pytest.raises(KeyError):
        served.remove("b")
    with pytest.raises(ValueError, match="the dataset ends within"):
        served.put("c", b"\x10\0\x10\0PN\x04\0ab")


async def test_a_folder_that_goes_is_told_to_both_sides(tmp_path: Path) -> None:
    said: list[str] = []
    folder = tmp_path / "list"
    folder.mkdir()
    served = Worklist(folder, report=said.append)
    folder.rmdir()
    with pytest.raises(QueryRefused, match="the worklist cannot be read"):
        await ids(served)
    assert said == [f"worklist {folder}: No such file or directory"]
    with pytest.raises(ConfigurationError, match="no such folder"):
        Worklist(folder)


async def test_a_deflated_item_is_bounded(tmp_path: Path) -> None:
    import zlib

    deflater = zlib.compressobj(wbits=-15)
    bomb = encode(item()) + header(0x7FE00010, "OB", 8 << 20) + bytes(8 << 20)
    bomb = deflater.compress(bomb) + deflater.flush()
    (tmp_path / "bomb.wl").write_bytes(part10(bomb, DEFLATED))
    said: list[str] = []
    assert await ids(Worklist(tmp_path, report=said.append)) == []
    assert len(said) == 1
    assert "more than 1048576 bytes" in said[0]


# -- over the network -------------------------------------------------------------------------------


async def test_queries_over_the_network(tmp_path: Path) -> None:
    (tmp_path / "list" / AE_TITLE).mkdir(parents=True)
    for number in range(400):
        write(
            tmp_path / "list" / AE_TITLE / f"{number:03}.wl",
            item(step(Modality="MR" if number % 4 else "CT"), PatientID=f"P{number:03}"),
        )
    model = QueryModel.WORKLIST
    async with serving(tmp_path / "a", worklist=Worklist(tmp_path / "list")) as served:
        served.archive.worklist.put("called", item(PatientID="P999"))
        for syntax in SYNTAXES:
            wanted = Sequence([dataset(Modality="CT")])
            found, status = await served.find(
                None,
                model=model,
                syntax=syntax,
                PatientID="",
                ScheduledProcedureStepSequence=wanted,
            )
            expected = {f"P{number:03}" for number in range(0, 400, 4)} | {"P999"}
            assert (status, len(found)) == (0, 101)
            assert {str(one.PatientID) for one in found} == expected
        async with (
            served.associate([(model.find_uid, EXPLICIT)]) as association,
            find(association, model, encode(dataset(PatientID="")), cancel_after=1) as responses,
        ):
            statuses = [response.status async for response in responses]
        # The peer that cancels may have had all of them by then.
        assert statuses[-1] in (0xFE00, 0x0000)
        with trio.fail_after(10):
            assert (await served.find(None, model=model, PatientID="P001"))[1] == 0


def test_the_command_line_wants_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("archive", "--dir", str(tmp_path / "a"), "--port", "0", "--aet", "A")
    assert main([*where, "--worklist", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
