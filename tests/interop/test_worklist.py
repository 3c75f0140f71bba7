"""The modality worklist: our SCU with DCMTK's wlmscpfs, Orthanc's worklist plugin and our archive, which
serves the files of wlmscpfs as they lie there and is asked by findscu, too."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom import AE, evt

from dcmhaul.cli import main
from dcmhaul.uids import MODALITY_WORKLIST_FIND
from tests.interop import peers
from tests.net.test_cli import process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any, TypeAlias

    from tests.net.test_cli import Process

    Addressed: TypeAlias = peers.Server | Process

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


@pytest.fixture(scope="module")
def archive(wlmscpfs: peers.Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """Our archive with the very files of wlmscpfs."""
    assert wlmscpfs.folder is not None
    words = ("--dir", tmp_path_factory.mktemp("archive"), "--port", "0", "--aet", "RIS")
    options = ("--worklist", wlmscpfs.folder.parent, "--bind", "127.0.0.1", "--durable", "none")
    with process("archive", *words, *options, "-v") as running:
        yield running
        assert running.process.poll() is None


@pytest.fixture(params=["wlmscpfs", "orthanc_worklists", "archive"])
def worklist(request: pytest.FixtureRequest) -> Addressed:
    server: Addressed = request.getfixturevalue(request.param)
    return server


def test_echo(worklist: Addressed) -> None:
    assert main(["echo", "-q", worklist.address]) == 0


STEP = "ScheduledProcedureStepSequence[0]"
CT_IN_JANUARY = (
    *("-k", "PatientName", "-k", f"{STEP}.Modality=CT"),
    *("-k", f"{STEP}.ScheduledProcedureStepStartDate=20260101-20260131"),
    *("-k", "(0032,1064)[0].0008,0100"),
)


def find(
    capsys: pytest.CaptureFixture[str], server: Addressed, *arguments: str | Path
) -> tuple[int, list[str], str]:
    """Code, sorted lines of stdout, stderr."""
    capsys.readouterr()
    code = main(["find", server.address, "-W", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, sorted(out.splitlines()), err


def test_keys_in_items_and_a_range_of_dates(
    worklist: Addressed, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines, err = find(capsys, worklist, *CT_IN_JANUARY)
    assert (code, err) == (0, "")
    assert lines == [
        "HEAD^EXP1\tCT\t20260105\tC1",
        "HEAD^EXP2\tCT\t20260120\tC2",
        f"PatientName\t{STEP}.Modality\t{STEP}.ScheduledProcedureStepStartDate\t"
        "RequestedProcedureCodeSequence[0].CodeValue",
    ]


def test_dicom_json(worklist: Addressed, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = find(capsys, worklist, *CT_IN_JANUARY, "--json")
    first, second, summary = map(json.loads, lines)
    assert (code, summary["type"], summary["matches"]) == (0, "summary", 2)
    for match, (name, date) in ((first, ("1", "20260105")), (second, ("2", "20260120"))):
        assert match["00100010"]["Value"] == [{"Alphabetic": f"HEAD^EXP{name}"}]
        [step] = match["00400100"]["Value"]
        assert (step["00080060"]["Value"], step["00400002"]["Value"]) == (["CT"], [date])
        assert match["00321064"]["Value"] == [{"00080100": {"vr": "SH", "Value": [f"C{name}"]}}]


def test_a_table_on_a_terminal(
    worklist: Addressed, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dcmhaul.cli.output.Answer.is_terminal", True)
    code, lines, _ = find(capsys, worklist, "-k", "PatientName=M*", "-k", f"{STEP}.Modality")
    assert code == 0
    assert any(re.fullmatch(r"MÜLLER\^JÖRG +. MR *", line) for line in lines), lines


def test_a_dump_asks_the_same(
    worklist: Addressed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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


def test_nothing_matches(worklist: Addressed, capsys: pytest.CaptureFixture[str]) -> None:
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


# -- the same files, two servers --------------------------------------------------------------------

# Keys that wlmscpfs matches; ours matches others, too, names in any case, and wild cards in Patient ID.
QUERIES = {
    "everything": ("-k", "PatientName", "-k", f"{STEP}.Modality"),
    "a name": ("-k", "PatientName=HEAD^EXP2"),
    "a wild card": ("-k", "PatientName=HEAD*", "-k", "PatientID"),
    "one character": ("-k", "PatientName=?EAD*", "-k", "PatientID"),
    "a modality": ("-k", f"{STEP}.Modality=MR", "-k", "AccessionNumber"),
    "a station": ("-k", f"{STEP}.ScheduledStationAETitle=CT01", "-k", "PatientID"),
    "a day": ("-k", f"{STEP}.ScheduledProcedureStepStartDate=20260105", "-k", "PatientID"),
    "from a day": ("-k", f"{STEP}.ScheduledProcedureStepStartDate=20260106-", "-k", "PatientID"),
    "to a day": ("-k", f"{STEP}.ScheduledProcedureStepStartDate=-20260120", "-k", "PatientID"),
    "days": ("-k", f"{STEP}.ScheduledProcedureStepStartDate=20260106-20260228", "-k", "PatientID"),
    "times": ("-k", f"{STEP}.ScheduledProcedureStepStartTime=0700-0900", "-k", "PatientID"),
    "no such time": ("-k", f"{STEP}.ScheduledProcedureStepStartTime=0900-1000", "-k", "PatientID"),
    "both ranges": (
        *("-k", f"{STEP}.ScheduledProcedureStepStartDate=20260104-20260120", "-k", "PatientID"),
        *("-k", f"{STEP}.ScheduledProcedureStepStartTime=2000-0700"),
    ),
    "two keys": (
        *("-k", f"{STEP}.Modality=CT", "-k", f"{STEP}.ScheduledStationAETitle=CT02"),
        *("-k", "RequestedProcedureID"),
    ),
    "two keys that no step meets": (
        *("-k", f"{STEP}.Modality=MR", "-k", f"{STEP}.ScheduledStationAETitle=CT02"),
        *("-k", "RequestedProcedureID"),
    ),
    "returned alone": (
        *(
            "-k",
            "StudyInstanceUID",
            "-k",
            "RequestedProcedureDescription",
            "-k",
            "PatientBirthDate",
        ),
        *(
            "-k",
            f"{STEP}.ScheduledProcedureStepID",
            "-k",
            f"{STEP}.ScheduledPerformingPhysicianName",
        ),
        *("-k", "(0032,1064)[0].0008,0102", "-k", "(0032,1064)[0].0008,0104"),
    ),
    "a patient": ("-k", "PatientID=P4", "-k", "PatientName", "-k", "PatientSex"),
}


@pytest.mark.parametrize("query", QUERIES)
def test_the_matches_of_wlmscpfs(
    query: str, wlmscpfs: peers.Server, archive: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = find(capsys, wlmscpfs, *QUERIES[query])
    assert find(capsys, archive, *QUERIES[query]) == expected
    assert expected[0] in (0, 4)


@pytest.mark.parametrize("syntax", ["-xe", "-xb", "-xi"])
@pytest.mark.parametrize("query", QUERIES)
def test_findscu_is_told_the_same(
    query: str, syntax: str, wlmscpfs: peers.Server, archive: Process, tmp_path: Path
) -> None:
    told = []
    for server in (wlmscpfs, archive):
        folder = tmp_path / str(server.port)
        folder.mkdir()
        where = ("-aec", "RIS", "127.0.0.1", str(server.port))
        keys = [re.sub(r"^\(0032,1064\)", "0032,1064", word) for word in QUERIES[query]]
        peers.run_tool("findscu", "-W", syntax, *keys, "-X", "-od", folder, *where, check=True)
        found = [dcmread(path, force=True) for path in sorted(folder.glob("*.dcm"))]
        texts = [one.to_json_dict() | {"00080005": ""} for one in found]
        told.append(sorted(json.dumps(one, sort_keys=True) for one in texts))
    assert told[0] == told[1]


def test_findscu_cancels(archive: Process) -> None:
    where = ("-aec", "RIS", "127.0.0.1", str(archive.port))
    done = peers.run_tool("findscu", "-v", "-W", "--cancel", "1", "-k", "PatientName", *where)
    assert done.returncode == 0
    assert re.search(r"Received Final Find Response \((Cancel|Success)", done.stdout)


def test_a_new_file_is_there_for_both(
    wlmscpfs: peers.Server, archive: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wlmscpfs.folder is not None
    old = wlmscpfs.folder / "item1.wl"
    new = wlmscpfs.folder / "new.wl"
    made = dcmread(old)
    made.PatientID = "P9"
    made.save_as(new)
    (wlmscpfs.folder / "broken.wl").write_bytes(old.read_bytes()[:-7])
    try:
        for server in (wlmscpfs, archive):
            code, lines, _ = find(capsys, server, "-k", "PatientID=P9")
            assert (code, lines) == (0, ["P9", "PatientID"])
    finally:
        new.unlink()
        (wlmscpfs.folder / "broken.wl").unlink()


# -- pynetdicom ---------------------------------------------------------------------------------


def asked() -> Dataset:
    step = Dataset()
    step.Modality = "CT"
    step.ScheduledProcedureStepStartDate = "20260101-20260131"
    keys = Dataset()
    keys.PatientName = ""
    keys.ScheduledProcedureStepSequence = Sequence([step])
    return keys


def test_pynetdicom_asks_the_archive(archive: Process) -> None:
    ae = AE("MODALITY")
    ae.add_requested_context(MODALITY_WORKLIST_FIND)
    association = ae.associate(peers.LOOPBACK, archive.port, ae_title="RIS")
    assert association.is_established
    answers = list(association.send_c_find(asked(), MODALITY_WORKLIST_FIND))
    association.release()
    assert [status.Status for status, _ in answers] == [0xFF00, 0xFF00, 0]
    found = [identifier for _, identifier in answers if identifier is not None]
    assert sorted(str(one.PatientName) for one in found) == ["HEAD^EXP1", "HEAD^EXP2"]
    dates = {one.ScheduledProcedureStepSequence[0].ScheduledProcedureStepStartDate for one in found}
    assert dates == {"20260105", "20260120"}


def test_asking_pynetdicom(capsys: pytest.CaptureFixture[str], wlmscpfs: peers.Server) -> None:
    assert wlmscpfs.folder is not None
    items = [dcmread(path) for path in sorted(wlmscpfs.folder.glob("item*.wl"))]
    got: list[Dataset] = []

    def find_items(event: Any) -> Iterator[tuple[int, Dataset | None]]:
        got.append(event.identifier)
        wanted = event.identifier.ScheduledProcedureStepSequence[0].Modality
        for one in items:
            if one.ScheduledProcedureStepSequence[0].Modality == wanted:
                yield 0xFF00, Dataset(one)

    ae = AE("RIS")
    ae.add_supported_context(MODALITY_WORKLIST_FIND)
    with peers.pynetdicom_serving(ae, (evt.EVT_C_FIND, find_items)) as address:
        keys = ("-k", "PatientName", "-k", f"{STEP}.Modality=CT")
        assert main(["find", address, "-W", *keys, "-q"]) == 0
    assert "QueryRetrieveLevel" not in got[0]
    names = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == ["HEAD^EXP1", "HEAD^EXP2", "FOOT^LEFT"]
