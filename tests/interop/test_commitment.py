"""`commit` and the archive's Storage Commitment: with each other, pynetdicom and Orthanc, both ways."""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom
import pydicom.data
import pytest
from pydicom import Dataset
from pynetdicom import AE, build_role, evt

from dcmhaul import uids
from dcmhaul.cli import main
from dcmhaul.services.commitment import INSTANCE_UID
from tests.interop import peers
from tests.net.test_cli import process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.net.test_cli import Process

COMMITMENT = uids.STORAGE_COMMITMENT_PUSH
NAMES = ("CT_small.dcm", "MR_small.dcm")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(Path(pydicom.data.__file__).parent / "test_files" / name, folder)
    return folder


@pytest.fixture
def port() -> int:
    """Where the archive finds us."""
    return peers.free_port()


@pytest.fixture
def archive(tmp_path: Path, images: Path, port: int) -> Iterator[Process]:
    words = ("--dir", tmp_path / "archive", "--port", "0", "--aet", "ARCH", "--bind", "127.0.0.1")
    with process("archive", *words, "--peer", f"OURS@127.0.0.1:{port}") as running:
        assert main(["send", "-q", running.address, str(images)]) == 0
        yield running


def commit(
    capsys: pytest.CaptureFixture[str], *words: str | Path
) -> tuple[int, dict[str, Any], str]:
    """Exit code, summary, stderr."""
    capsys.readouterr()
    code = main(["commit", *map(str, words), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]), err


def counted(summary: dict[str, Any]) -> tuple[int, int, int]:
    return summary["committed"], summary["failed"], summary["unanswered"]


# -- the archive and the verb


def test_on_the_association_of_the_request(
    archive: Process, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, summary, err = commit(capsys, archive.address, images)
    assert (code, counted(summary), err) == (0, (2, 0, 0), "2 instances committed\n")
    (images / "notes.txt").write_text("no DICOM")
    shutil.copy(Path(pydicom.data.__file__).parent / "test_files" / "rtplan.dcm", images)
    code, summary, err = commit(capsys, archive.address, images)
    assert (code, counted(summary), summary["skipped"]) == (6, (2, 1, 0), 1)
    assert main(["commit", archive.address, str(images)]) == 6
    assert "0x0112 No such object instance" in capsys.readouterr().out


def test_on_a_port_of_ours(
    archive: Process, images: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("-aet", "OURS", "+P", str(port), "--bind", "127.0.0.1", "-v")
    code, summary, err = commit(capsys, archive.address, images, *words)
    assert (code, counted(summary)) == (0, (2, 0, 0))
    assert f"listening on 127.0.0.1:{port} as OURS" in err


def test_a_peer_that_does_not_know_the_port(
    archive: Process, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("-aet", "OURS", "-td", "1")
    code, summary, err = commit(capsys, archive.address, images, *words)
    assert (code, counted(summary)) == (5, (0, 0, 2))
    assert "+P PORT" in err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "needs a PATH"),
        (("--bind", "127.0.0.1", "x"), 2, "give +P PORT too"),
        (("nowhere",), 2, "nowhere"),
        (("empty",), 4, "no DICOM instance"),
    ],
)
def test_what_cannot_be_asked(
    words: tuple[str, ...],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    found, _, err = commit(capsys, "A@127.0.0.1:1", *words)
    assert found == code
    assert said in err


def test_a_peer_without_commitment(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with process("receive", "0", "-od", tmp_path / "in", "--bind", "127.0.0.1") as running:
        code, summary, err = commit(capsys, running.address, images)
    assert (code, counted(summary)) == (5, (0, 0, 2)) or code == 3
    assert "abstract syntax not supported" in err


# -- pynetdicom


def test_pynetdicom_commits(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It reports on the association of the request, as soon as that was answered."""
    ae = AE(ae_title="PYNETDICOM")
    ae.add_supported_context(COMMITMENT)

    def act(event: Any) -> tuple[int, Dataset | None]:
        event.assoc.dcmhaul_asked = event.action_information
        return 0x0000, None

    def sent(event: Any) -> None:
        if type(event.message).__name__ != "N_ACTION_RSP":
            return
        asked = event.assoc.dcmhaul_asked
        told = Dataset()
        told.TransactionUID = asked.TransactionUID
        told.ReferencedSOPSequence = asked.ReferencedSOPSequence[:1]
        told.FailedSOPSequence = asked.ReferencedSOPSequence[1:]
        for item in told.FailedSOPSequence:
            item.FailureReason = 0x0213
        threading.Thread(
            target=event.assoc.send_n_event_report, args=(told, 2, COMMITMENT, INSTANCE_UID)
        ).start()

    handlers = (evt.EVT_N_ACTION, act), (evt.EVT_DIMSE_SENT, sent)
    with peers.pynetdicom_serving(ae, *handlers) as address:
        code, summary, err = commit(capsys, address, images, "-td", "10")
    assert (code, counted(summary)) == (6, (1, 1, 0)), err


def test_pynetdicom_asks_the_archive(archive: Process, images: Path, port: int) -> None:
    told: list[Dataset] = []

    def report(event: Any) -> tuple[int, Dataset | None]:
        told.append(event.event_information)
        return 0x0000, None

    listener = AE(ae_title="OURS")
    listener.add_supported_context(COMMITMENT, scu_role=False, scp_role=True)
    asked = Dataset()
    asked.TransactionUID = "1.2.3.4"
    asked.ReferencedSOPSequence = []
    for path in images.iterdir():
        item = Dataset()
        found = pydicom.dcmread(path)
        item.ReferencedSOPClassUID = found.SOPClassUID
        item.ReferencedSOPInstanceUID = found.SOPInstanceUID
        asked.ReferencedSOPSequence.append(item)
    with peers.pynetdicom_serving(listener, (evt.EVT_N_EVENT_REPORT, report), port=port):
        for title in ("OURS", "STRANGER"):
            ae = AE(ae_title=title)
            ae.add_requested_context(COMMITMENT)
            association = ae.associate(
                peers.LOOPBACK,
                archive.port,
                ae_title="ARCH",
                evt_handlers=[(evt.EVT_N_EVENT_REPORT, report)],
                ext_neg=[build_role(COMMITMENT, scu_role=True, scp_role=False)],
            )
            assert association.is_established
            asked.TransactionUID += ".1"
            status, _ = association.send_n_action(asked, 1, COMMITMENT, INSTANCE_UID)
            assert status.Status == 0x0000
            deadline = time.monotonic() + 10
            while not told and time.monotonic() < deadline:
                time.sleep(0.01)
            association.release()
            [event] = told
            assert event.TransactionUID == asked.TransactionUID
            assert len(event.ReferencedSOPSequence) == len(NAMES)
            assert event.RetrieveAETitle == "ARCH"
            told.clear()


# -- Orthanc


def test_orthanc_commits(
    images: Path, tmp_path: Path, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """It reports on an association of its own."""
    with peers.orthanc(tmp_path / "orthanc", destinations={"OURS": port}) as server:
        assert main(["send", "-q", server.address, str(images)]) == 0
        shutil.copy(Path(pydicom.data.__file__).parent / "test_files" / "rtplan.dcm", images)
        words = ("-aet", "OURS", "+P", str(port), "--bind", "127.0.0.1", "-td", "30")
        code, summary, err = commit(capsys, server.address, images, *words)
    assert (code, counted(summary)) == (6, (2, 1, 0)), err


def test_orthanc_asks_the_archive(images: Path, tmp_path: Path) -> None:
    own = peers.free_port()
    with peers.orthanc(tmp_path / "orthanc", destinations={"ARCH": own}) as server:
        words = ("--dir", tmp_path / "a", "--port", str(own), "--aet", "ARCH")
        node = ("--peer", server.address, "--bind", "127.0.0.1")
        with process("archive", *words, *node) as running:
            for target in (running.address, server.address):
                assert main(["send", "-q", target, str(images)]) == 0
            wanted = [
                {"SOPClassUID": str(found.SOPClassUID), "SOPInstanceUID": str(found.SOPInstanceUID)}
                for found in map(pydicom.dcmread, images.iterdir())
            ]
            body = {"DicomInstances": [*wanted, wanted[0] | {"SOPInstanceUID": "1.2.3"}]}
            asked = peers.rest(server, "/modalities/arch/storage-commitment", body)
            deadline = time.monotonic() + 20
            report: Any = {}
            while report.get("Status") != "Failure" and time.monotonic() < deadline:
                report = peers.rest(server, asked["Path"])
                time.sleep(0.05)
    assert report["Status"] == "Failure"
    assert len(report["Success"]) == len(NAMES)
    assert [entry["SOPInstanceUID"] for entry in report["Failures"]] == ["1.2.3"]
