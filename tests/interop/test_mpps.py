"""Modality performed procedure steps: `mpps` and the archive, with each other and with pynetdicom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom.data
import pytest
from pydicom import Dataset
from pydicom.tag import Tag
from pynetdicom import AE, evt

from dcmhaul import uids
from dcmhaul.cli import main
from tests.interop import peers
from tests.net.test_cli import process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.net.test_cli import Process

STEP = uids.MODALITY_PERFORMED_PROCEDURE_STEP
RETRIEVE = uids.MODALITY_PERFORMED_PROCEDURE_STEP_RETRIEVE
CT = Path(pydicom.data.__file__).parent / "test_files" / "CT_small.dcm"


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Process]:
    words = ("--dir", tmp_path / "archive", "--port", "0", "--aet", "ARCH", "--bind", "127.0.0.1")
    with process("archive", *words) as running:
        yield running


def told(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, list[str], str]:
    capsys.readouterr()
    code = main(["mpps", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def held(capsys: pytest.CaptureFixture[str], archive: Process, uid: str) -> dict[str, Any]:
    """The step as the archive gives it out, by keyword-less DICOM JSON."""
    capsys.readouterr()
    words = ["--class", RETRIEVE, "--instance", uid, "--json"]
    assert main(["n-get", archive.address, *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[0])["dataset"]
    return found


def test_a_step_from_its_start_to_its_end(
    archive: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = told(capsys, archive.address, CT, "-aet", "CT1", "-k", "PatientID=X7")
    assert (code, err) == (0, "")
    uid = out[0].split("\t")[0]
    assert out == [f"{uid}\tIN PROGRESS", f"{uid}\tCOMPLETED"]
    step = held(capsys, archive, uid)
    assert step["00400252"]["Value"] == ["COMPLETED"]
    assert step["00400241"]["Value"] == ["CT1"]
    assert step["00100020"]["Value"] == ["X7"]
    [series] = step["00400340"]["Value"]
    [image] = series["00081140"]["Value"]
    assert image["00081155"]["Value"] == [str(pydicom.dcmread(CT).SOPInstanceUID)]

    words = ("--instance", uid, "--status", "discontinued")
    code, out, err = told(capsys, archive.address, *words)
    assert (code, out) == (6, [])
    assert "0x0110 Processing failure: performed procedure step may no longer be updated" in err


def test_a_step_goes_on_later(archive: Process, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = told(capsys, archive.address, CT, "--status", "in-progress")
    assert code == 0
    uid = out[0].split("\t")[0]
    words = (
        "--instance",
        uid,
        "--status",
        "discontinued",
        "-k",
        "CommentsOnThePerformedProcedureStep=a",
    )
    assert told(capsys, archive.address, *words)[:2] == (0, [f"{uid}\tDISCONTINUED"])
    assert held(capsys, archive, uid)["00400280"]["Value"] == ["a"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "needs a PATH"),
        (("nowhere",), 2, "nowhere"),
        (("--instance", "x"), 2, "expected a UID"),
        (("empty",), 4, "no DICOM instance"),
        (("--status", "done"), 2, "--status"),
    ],
)
def test_what_cannot_be_told(
    words: tuple[str, ...],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    found, _, err = told(capsys, "A@127.0.0.1:1", *words)
    assert found == code
    assert said in err


def test_at_pynetdicom(capsys: pytest.CaptureFixture[str]) -> None:
    got: list[tuple[str, Dataset]] = []

    def create(event: Any) -> tuple[int, Dataset]:
        got.append((event.request.AffectedSOPInstanceUID, event.attribute_list))
        return 0x0000, event.attribute_list

    def change(event: Any) -> tuple[int, Dataset]:
        got.append((event.request.RequestedSOPInstanceUID, event.modification_list))
        return 0x0000, event.modification_list

    ae = AE(ae_title="RIS")
    ae.add_supported_context(STEP)
    handlers = (evt.EVT_N_CREATE, create), (evt.EVT_N_SET, change)
    with peers.pynetdicom_serving(ae, *handlers) as address:
        assert told(capsys, address, CT)[0] == 0
    (first, made), (second, ended) = got
    assert first == second
    assert made.PerformedProcedureStepStatus == "IN PROGRESS"
    scheduled = made.ScheduledStepAttributesSequence[0]
    assert scheduled.StudyInstanceUID == pydicom.dcmread(CT).StudyInstanceUID
    assert ended.PerformedProcedureStepStatus == "COMPLETED"
    assert len(ended.PerformedSeriesSequence) == 1


def step(**values: Any) -> Dataset:
    made = Dataset()
    scheduled = Dataset()
    scheduled.StudyInstanceUID = "1.2.3"
    made.ScheduledStepAttributesSequence = [scheduled]
    made.PatientName = "Müller"
    made.SpecificCharacterSet = "ISO_IR 100"
    made.PerformedProcedureStepID = "P1"
    made.PerformedStationAETitle = "CT1"
    made.PerformedProcedureStepStartDate = "20260101"
    made.PerformedProcedureStepStartTime = "1200"
    made.PerformedProcedureStepStatus = "IN PROGRESS"
    made.Modality = "CT"
    for name, value in values.items():
        if value is None:
            delattr(made, name)
        else:
            setattr(made, name, value)
    return made


def changes(**values: Any) -> Dataset:
    made = Dataset()
    for name, value in values.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("strict", [False, True])
def test_the_rules_of_the_archive_for_pynetdicom(strict: bool, tmp_path: Path) -> None:
    words = ("--dir", tmp_path / "a", "--port", "0", "--aet", "ARCH", "--bind", "127.0.0.1")
    with process("archive", *words, *(["--strict"] if strict else [])) as running:
        ae = AE()
        ae.add_requested_context(STEP)
        ae.add_requested_context(RETRIEVE)
        association = ae.associate(peers.LOOPBACK, running.port, ae_title="ARCH")
        assert association.is_established

        def create(dataset: Dataset, uid: str | None = "1.2.3.4") -> int:
            return int(association.send_n_create(dataset, STEP, uid)[0].Status)

        def change(uid: str = "1.2.3.4", **values: Any) -> int:
            return int(association.send_n_set(changes(**values), STEP, uid)[0].Status)

        assert create(step(Modality=None)) == 0x0120
        assert create(step(PerformedProcedureStepID="")) == 0x0121
        assert create(step(ScheduledStepAttributesSequence=[Dataset()])) == 0x0120
        assert create(step(PerformedProcedureStepStatus="COMPLETED")) == 0x0106
        assert create(step()) == 0x0000
        assert create(step()) == 0x0111
        assert create(step(), None) == 0x0000
        assert change("1.2.9", PerformedProcedureStepStatus="COMPLETED") == 0x0112
        assert change(PerformedProcedureStepStatus="DONE") == 0x0106
        assert change(Modality="MR") == 0x0105
        assert (
            change(PerformedProcedureStepDescription="Schädel", SpecificCharacterSet="ISO_IR 100")
            == 0
        )
        ended = change(PerformedProcedureStepStatus="COMPLETED")
        assert ended == (0x0120 if strict else 0x0000)
        if strict:
            assert (
                change(
                    PerformedProcedureStepStatus="COMPLETED",
                    PerformedProcedureStepEndDate="20260101",
                    PerformedProcedureStepEndTime="1300",
                    PerformedSeriesSequence=[changes(SeriesInstanceUID="1.2")],
                )
                == 0x0000
            )
        refused, _ = association.send_n_set(changes(PatientID="1"), STEP, "1.2.3.4")
        assert (refused.Status, refused.ErrorID) == (0x0110, 0xA710)
        status, found = association.send_n_get([], RETRIEVE, "1.2.3.4")
        assert (status.Status, found is not None and str(found.PatientName)) == (0x0000, "Müller")
        status, found = association.send_n_get(
            [Tag(0x00400252), Tag(0x00400281)], RETRIEVE, "1.2.3.4"
        )
        assert status.Status == 0x0001
        assert found is not None
        assert found.PerformedProcedureStepStatus == "COMPLETED"
        assert "PatientName" not in found
        assert association.send_n_get([], RETRIEVE, "1.2.9")[0].Status == 0x0112
        association.release()


def test_a_step_survives_a_restart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--dir", tmp_path / "a", "--port", "0", "--aet", "ARCH", "--bind", "127.0.0.1")
    with process("archive", *words) as running:
        _, out, _ = told(capsys, running.address, CT, "--status", "in-progress")
        running.process.kill()
        running.process.wait()
    uid = out[0].split("\t")[0]
    with process("archive", *words) as running:
        assert held(capsys, running, uid)["00400252"]["Value"] == ["IN PROGRESS"]
