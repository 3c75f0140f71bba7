"""The modality worklist as SCU: DCMTK's wlmscpfs and Orthanc's worklist plugin."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian

from dcmhaul.cli import main
from tests.interop import peers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::BytesWarning")

# Patient's name, ID, modality, start date of the step, station.
ITEMS = (
    ("HEAD^EXP1", "P1", "CT", "20260105", "CT01"),
    ("HEAD^EXP2", "P2", "CT", "20260120", "CT02"),
    ("MÜLLER^JÖRG", "P3", "MR", "20260105", "MR01"),
    ("FOOT^LEFT", "P4", "CT", "20260301", "CT01"),
)


def make_items(folder: Path) -> None:
    """The items as files that both servers read."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, patient, modality, date, station) in enumerate(ITEMS, 1):
        step = Dataset()
        step.Modality = modality
        step.ScheduledStationAETitle = station
        step.ScheduledProcedureStepStartDate = date
        step.ScheduledProcedureStepStartTime = "0800"
        step.ScheduledPerformingPhysicianName = "READER"
        step.ScheduledProcedureStepDescription = f"step {number}"
        step.ScheduledProcedureStepID = f"S{number}"
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = f"C{number}", "99X", "head"
        item = Dataset()
        item.SpecificCharacterSet = "ISO_IR 100"
        item.AccessionNumber = f"A{number}"
        item.PatientName, item.PatientID = name, patient
        item.PatientBirthDate, item.PatientSex = "19700101", "O"
        item.StudyInstanceUID = f"1.2.3.{number}"
        item.RequestedProcedureDescription = "procedure"
        item.RequestedProcedureCodeSequence = Sequence([code])
        item.ScheduledProcedureStepSequence = Sequence([step])
        item.RequestedProcedureID = f"R{number}"
        item.RequestedProcedurePriority = "LOW"
        item.file_meta = FileMetaDataset()
        item.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        item.file_meta.MediaStorageSOPClassUID = UID("1.2.276.0.7230010.3.1.0.1")
        item.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.4.{number}")
        item.save_as(folder / f"item{number}.wl", enforce_file_format=True)


@pytest.fixture(scope="module")
def wlmscpfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[peers.Server]:
    folder = tmp_path_factory.mktemp("wlmscpfs")
    make_items(folder / "RIS")
    with peers.wlmscpfs(folder) as server:
        yield server


@pytest.fixture(scope="module")
def orthanc_worklists(tmp_path_factory: pytest.TempPathFactory) -> Iterator[peers.Server]:
    folder = tmp_path_factory.mktemp("orthanc")
    make_items(folder / "items")
    with peers.orthanc_worklists(folder / "orthanc", folder / "items") as server:
        yield server


@pytest.fixture(params=["wlmscpfs", "orthanc_worklists"])
def worklist(request: pytest.FixtureRequest) -> peers.Server:
    server: peers.Server = request.getfixturevalue(request.param)
    return server


def test_echo(worklist: peers.Server) -> None:
    assert main(["echo", "-q", worklist.address]) == 0


STEP = "ScheduledProcedureStepSequence[0]"
CT_IN_JANUARY = (
    *("-k", "PatientName", "-k", f"{STEP}.Modality=CT"),
    *("-k", f"{STEP}.ScheduledProcedureStepStartDate=20260101-20260131"),
    *("-k", "(0032,1064)[0].0008,0100"),
)


def find(
    capsys: pytest.CaptureFixture[str], server: peers.Server, *arguments: str | Path
) -> tuple[int, list[str], str]:
    """Code, sorted lines of stdout, stderr."""
    capsys.readouterr()
    code = main(["find", server.address, "-W", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, sorted(out.splitlines()), err


def test_keys_in_items_and_a_range_of_dates(
    worklist: peers.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines, err = find(capsys, worklist, *CT_IN_JANUARY)
    assert (code, err) == (0, "")
    assert lines == [
        "HEAD^EXP1\tCT\t20260105\tC1",
        "HEAD^EXP2\tCT\t20260120\tC2",
        f"PatientName\t{STEP}.Modality\t{STEP}.ScheduledProcedureStepStartDate\t"
        "RequestedProcedureCodeSequence[0].CodeValue",
    ]


def test_dicom_json(worklist: peers.Server, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = find(capsys, worklist, *CT_IN_JANUARY, "--json")
    first, second, summary = map(json.loads, lines)
    assert (code, summary["type"], summary["matches"]) == (0, "summary", 2)
    for match, (name, date) in ((first, ("1", "20260105")), (second, ("2", "20260120"))):
        assert match["00100010"]["Value"] == [{"Alphabetic": f"HEAD^EXP{name}"}]
        [step] = match["00400100"]["Value"]
        assert (step["00080060"]["Value"], step["00400002"]["Value"]) == (["CT"], [date])
        assert match["00321064"]["Value"] == [{"00080100": {"vr": "SH", "Value": [f"C{name}"]}}]


def test_a_table_on_a_terminal(
    worklist: peers.Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcmhaul.cli.output.Answer.is_terminal", True)
    code, lines, _ = find(capsys, worklist, "-k", "PatientName=M*", "-k", f"{STEP}.Modality")
    assert code == 0
    assert any(re.fullmatch(r"MÜLLER\^JÖRG +. MR *", line) for line in lines), lines


def test_a_dump_asks_the_same(
    worklist: peers.Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As DCMTK's own example queries are written, and as dcmdump prints them from a file."""
    path = tmp_path / "query.dump"
    path.write_text(
        "# Worklist query\n"
        "(0010,0010) PN []                                       # PatientName\n"
        "(0040,0100) SQ                                          # ScheduledProcedureStepSequence\n"
        "  (fffe,e000) na                                          # Item\n"
        "    (0008,0060) CS [MR]                                     # Modality\n"
        "  (fffe,e00d) na (ItemDelimitationItem for re-encoding)   # ItemDelimitationItem\n"
        "(fffe,e0dd) na (SequenceDelimitationItem for re-encod.) # SequenceDelimitationItem\n"
        "(0040,1001) SH []                                       # RequestedProcedureID\n"
    )
    expected = [
        "MÜLLER^JÖRG\tMR\tR3",
        f"PatientName\t{STEP}.Modality\tRequestedProcedureID",
    ]
    assert find(capsys, worklist, path) == (0, expected, "")
    peers.run_tool("dump2dcm", path, tmp_path / "query.dcm", check=True)
    assert find(capsys, worklist, tmp_path / "query.dcm") == (0, expected, "")
    dumped = peers.run_tool("dcmdump", "+L", tmp_path / "query.dcm", check=True).stdout
    path.write_text(dumped)
    assert find(capsys, worklist, path) == (0, expected, "")


def test_nothing_matches(worklist: peers.Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert find(capsys, worklist, "-k", "PatientName=NOBODY") == (4, ["PatientName"], "")


def test_a_title_without_a_worklist(
    wlmscpfs: peers.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["find", f"NOBODY@{wlmscpfs.host}:{wlmscpfs.port}", "-W", "-k", "PatientName"])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert "called AE title not recognized (1/1/7)" in err


def test_a_study_query_of_a_worklist_server(
    wlmscpfs: peers.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["find", wlmscpfs.address, "-S", "-k", "PatientName"])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert "rejected permanently" in err


def test_a_key_that_the_server_refuses(
    wlmscpfs: peers.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = find(capsys, wlmscpfs, "-k", f"{STEP}.ScheduledProcedureStepStartDate=2026XX")
    assert (code, err.count("\n")) == (6, 1)
    assert "0xA900" in err
    assert "offending: (0040,0002) ScheduledProcedureStepStartDate (" in err


def test_no_key_at_all(wlmscpfs: peers.Server, capsys: pytest.CaptureFixture[str]) -> None:
    """wlmscpfs aborts at an identifier without elements; what was wrong stands before."""
    code, _, err = find(capsys, wlmscpfs)
    assert code == 3
    assert err.splitlines()[0] == "warning: no key is asked for; -k PatientName is one"
    assert "aborted" in err.splitlines()[1]
