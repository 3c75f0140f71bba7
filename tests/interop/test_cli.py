"""Command lines as users type them, against DCMTK, Orthanc and pynetdicom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom
import pydicom.data
import pytest

from dcmhaul.cli import main
from dcmhaul.objects.synth import write_studies
from tests.interop import peers
from tests.net.test_cli import process

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = Path(pydicom.data.__file__).parent / "test_files"
CT = FILES / "CT_small.dcm"
COMPRESSED = FILES / "JPEG2000.dcm"

# pydicom gives struct both str and bytes layouts, which -bb complains of when their hashes meet.
pytestmark = pytest.mark.filterwarnings("ignore::BytesWarning")


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DCMHAUL_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("DCMHAUL_LEDGER", f"sqlite:///{tmp_path / 'ledger.db'}")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    folder = tmp_path / "studies"
    write_studies(folder, 2, 2, 3, rows=16, columns=16)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str | int | Path) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def seed(server: peers.Server) -> tuple[str | int, ...]:
    """The options of the command lines that users know by heart."""
    return ("-v", "-aet", "DebugTest", "-aec", server.aet)


# -- our clients, their servers -----------------------------------------------------------------


def test_echo_and_send_as_dcmtk_spells_them(
    storescp: peers.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    where = (storescp.host, storescp.port)
    assert run(capsys, "echoscu", *seed(storescp), *where)[0] == 0
    code, out, _ = run(capsys, "storescu", *seed(storescp), *where, CT)
    assert (code, out.split(",")[0]) == (0, "1 instance sent")
    assert storescp.folder is not None
    [stored] = storescp.folder.iterdir()
    assert pydicom.dcmread(stored).PixelData == pydicom.dcmread(CT).PixelData


def test_a_compressed_file_goes_as_it_is(
    storescp: peers.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("-xs", "-xv", "-R", "-nh", "+fo", "-ll", "info")
    code, _, err = run(capsys, "send", storescp.address, CT, COMPRESSED, *options)
    assert code == 0
    assert "3 contexts" in err  # one of them to re-encode the file that is not compressed
    assert storescp.folder is not None
    syntaxes = {pydicom.dcmread(f).file_meta.TransferSyntaxUID for f in storescp.folder.iterdir()}
    assert syntaxes == {"1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.91"}


@pytest.mark.parametrize("name", ["dcmqrscp", "orthanc", "pynetdicom_scp"])
def test_send_find_get(
    name: str,
    request: pytest.FixtureRequest,
    studies: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server: peers.Server = request.getfixturevalue(name)
    sent = {
        dataset.SOPInstanceUID: dataset for dataset in map(pydicom.dcmread, studies.rglob("*.dcm"))
    }
    code, out, _ = run(capsys, "send", server.address, studies, "--window", "4", "--json")
    assert (code, records(out)[-1]["instances"]) == (0, 12)

    keys = ("-k", "PatientID=SYNTH-000001", "-k", "StudyInstanceUID", "-k", "PatientName")
    code, out, _ = run(capsys, "find", server.address, "-S", *keys)
    assert code == 0
    header, line = out.splitlines()
    assert header == "PatientID\tStudyInstanceUID\tPatientName"
    patient, study, _ = line.split("\t")
    assert patient == "SYNTH-000001"

    folder = tmp_path / "got"
    options = ("-od", folder, "--associations", "2", "--json")
    code, out, err = run(
        capsys, "get", server.address, "-S", "-k", f"StudyInstanceUID={study}", *options
    )
    assert (code, records(out)[-1]["instances"]) == (0, 6), err
    got = [pydicom.dcmread(path) for path in folder.iterdir()]
    assert len(got) == 6
    for dataset in got:
        assert dataset.PixelData == sent[dataset.SOPInstanceUID].PixelData


def test_get_by_a_name_alone(
    dcmqrscp: peers.Server, studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "send", dcmqrscp.address, studies)[0] == 0
    options = (
        "-pdu",
        "32768",
        "-k",
        "0x0010,0x0010=Synthetic^Patient 000002",
        "-od",
        tmp_path / "x",
    )
    code, out, err = run(capsys, "getscu", *seed(dcmqrscp), *options, dcmqrscp.host, dcmqrscp.port)
    assert code == 0, err
    assert out.startswith("6 instances retrieved")


def test_get_of_compressed_instances(
    orthanc: peers.Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "send", orthanc.address, COMPRESSED)[0] == 0
    patient = pydicom.dcmread(COMPRESSED).PatientID
    options = ("-k", f"PatientID={patient}", "-od", tmp_path / "x")
    assert run(capsys, "get", orthanc.address, "-P", *options)[0] == 0
    [file] = (tmp_path / "x").iterdir()
    assert pydicom.dcmread(file) == pydicom.dcmread(COMPRESSED)
    assert pydicom.dcmread(file).file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.91"


def test_migrate_from_theirs_to_theirs(
    dcmqrscp: peers.Server,
    orthanc: peers.Server,
    studies: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(capsys, "send", dcmqrscp.address, studies)[0] == 0
    code, out, err = run(capsys, "migrate", dcmqrscp.address, orthanc.address, "--json")
    assert (code, records(out)[-1]["instances"]) == (0, 12), err


def test_a_title_that_they_do_not_know(
    dcmqrscp: peers.Server, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(
        capsys, "find", "-S", "-aec", "NOBODY", dcmqrscp.host, dcmqrscp.port, "-k", "PatientID"
    )
    assert (code, out) == (3, "")
    assert err.count("\n") == 1
    assert "called AE title not recognized" in err


# -- their clients, our servers -----------------------------------------------------------------


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[peers.Server]:
    arguments = ("--dir", tmp_path / "archive", "--port", "0", "--aet", "ARCH")
    with process("archive", *arguments, "--bind", "127.0.0.1") as running:
        yield peers.Server(
            name="archive",
            aet="ARCH",
            port=running.port,
            process=running.process,  # type: ignore[arg-type]  # text mode; only its address counts
            log=tmp_path / "unused",
        )


def test_dcmtk_echoes_and_stores_into_receive(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    with process("storescp", "0", "-od", folder, "--bind", "127.0.0.1", "-aet", "ME") as running:
        where = ("127.0.0.1", running.port)
        peers.run_tool("echoscu", "-aec", "ANYTHING", *where, check=True)
        peers.run_tool("storescu", "-aec", "OTHER", *where, CT, check=True)
        code, out = running.stop()
    assert (code, out.split(",")[0]) == (0, "1 instance received")
    [stored] = folder.iterdir()
    assert stored.name == f"{pydicom.dcmread(CT).SOPInstanceUID}.dcm"
    assert pydicom.dcmread(stored).PixelData == pydicom.dcmread(CT).PixelData


def test_dcmtk_stores_queries_and_retrieves(
    archive: peers.Server, studies: Path, tmp_path: Path
) -> None:
    where = ("-aec", archive.aet, archive.host, archive.port)
    peers.run_tool("storescu", *where, "+sd", "+r", studies, nodelay=True, check=True)
    keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", "PatientID=SYNTH-000001")
    found = peers.run_tool("findscu", "-S", *keys, "-k", "StudyInstanceUID", *where, check=True)
    assert found.stdout.count("SYNTH-000001") >= 1
    folder = tmp_path / "got"
    folder.mkdir()
    study = pydicom.dcmread(next(studies.rglob("*.dcm"))).StudyInstanceUID
    keys = ("-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={study}")
    peers.run_tool("getscu", "-S", *keys, "-od", folder, *where, nodelay=True, check=True)
    assert len(list(folder.iterdir())) == 6
