"""Our archive, as it is started, asked by DCMTK, pynetdicom and Orthanc: every service, model and level."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pydicom
import pytest
from pynetdicom import AE, build_role, evt

from dcmhaul.cli import main
from tests.interop import levels, peers, stores
from tests.net.test_cli import process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.net.test_cli import Process

VERIFICATION = "1.2.840.10008.1.1"
WORKLIST_FIND = "1.2.840.10008.5.1.4.31"
SUCCESS, PENDING = 0x0000, 0xFF00


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> levels.Held:
    return levels.make(tmp_path_factory.mktemp("held"))


@pytest.fixture(scope="module")
def port() -> int:
    """Of the archive; its peers must know it before it runs."""
    return peers.free_port()


@pytest.fixture(scope="module")
def third(tmp_path_factory: pytest.TempPathFactory) -> Iterator[peers.Server]:
    """The AE that a C-MOVE names."""
    with peers.pynetdicom_scp(tmp_path_factory.mktemp("third"), aet="THIRD") as server:
        yield server


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[peers.Server]:
    with peers.orthanc(tmp_path_factory.mktemp("orthanc"), destinations={"ARCH": port}) as server:
        yield server


@pytest.fixture(scope="module")
def archive(
    tmp_path_factory: pytest.TempPathFactory,
    held: levels.Held,
    port: int,
    third: peers.Server,
    orthanc: peers.Server,
) -> Iterator[Process]:
    words = ("--dir", tmp_path_factory.mktemp("archive"), "--port", str(port), "--aet", "ARCH")
    destinations = ("--peer", third.address, "--peer", orthanc.address)
    with process(
        "archive", *words, *destinations, "--bind", "127.0.0.1", "--durable", "none"
    ) as running:
        assert main(["send", "-q", running.address, str(held.folder)]) == 0
        yield running
        assert running.process.poll() is None


def emptied(folder: Path | None) -> Path:
    assert folder is not None
    for path in folder.iterdir():
        path.unlink()
    return folder


# -- DCMTK ----------------------------------------------------------------------------------------


def dcmtk(archive: Process, tool: str, *arguments: str | Path) -> str:
    where = ("-v", "-aet", "DCMTK", "-aec", archive.title, "127.0.0.1", str(archive.port))
    return peers.run_tool(tool, *arguments, *where, nodelay=True, check=True).stdout


@pytest.mark.parametrize(("model", "level"), levels.ALL)
def test_findscu(
    archive: Process, held: levels.Held, model: str, level: str, tmp_path: Path
) -> None:
    asked = levels.typed(held.question(model, level))
    said = dcmtk(archive, "findscu", model, "-X", "-od", tmp_path, *asked)
    assert "Received Final Find Response (Success)" in said
    answers = [pydicom.dcmread(path) for path in tmp_path.iterdir()]
    key = levels.UNIQUE_KEYS[level]
    found = [(str(answer[key].value), str(answer.PatientName)) for answer in answers]
    assert sorted(found) == sorted(held.unique(model, level))
    assert {answer.QueryRetrieveLevel for answer in answers} == {level}


def test_findscu_of_the_worklist(archive: Process) -> None:
    said = dcmtk(archive, "findscu", "-W", "-k", "PatientName")
    assert "Find Response: 1" not in said
    assert "Received Final Find Response (Success)" in said


@pytest.mark.parametrize(("model", "level"), levels.ALL)
def test_getscu(
    archive: Process, held: levels.Held, model: str, level: str, tmp_path: Path
) -> None:
    asked = levels.typed(held.keys(model, level), level)
    said = dcmtk(archive, "getscu", model, "+B", "-od", tmp_path, *asked)
    assert stores.received(tmp_path) == held.below(level)
    assert f"Completed Suboperations : {len(held.below(level))}" in said


@pytest.mark.parametrize(("model", "level"), levels.ALL)
def test_movescu(
    archive: Process, held: levels.Held, third: peers.Server, model: str, level: str
) -> None:
    folder = emptied(third.folder)
    asked = levels.typed(held.keys(model, level), level)
    said = dcmtk(archive, "movescu", model, "-aem", third.aet, *asked)
    assert "Received Final Move Response (Success)" in said
    assert stores.received(folder) == held.below(level)


def test_termscu_is_refused_and_nothing_else_happens(archive: Process) -> None:
    where = ("-aec", archive.title, "127.0.0.1", str(archive.port))
    done = peers.run_tool("termscu", *where)
    assert done.returncode != 0
    assert "No Acceptable Presentation Contexts" in done.stdout
    assert "Received Echo Response (Success)" in dcmtk(archive, "echoscu")


# -- pynetdicom -----------------------------------------------------------------------------------


def ask(
    archive: Process, operation: str, class_uid: str, keys: dict[str, str], *destination: str
) -> tuple[list[tuple[Any, pydicom.Dataset | None]], dict[str, bytes]]:
    """`find`, `get` or `move`: the statuses with their datasets, and the datasets stored on the way."""
    kept: dict[str, bytes] = {}

    def keep(event: Any) -> int:
        kept[str(event.request.AffectedSOPInstanceUID)] = event.request.DataSet.getvalue()
        return SUCCESS

    ae = AE(ae_title="PYNET")
    ae.add_requested_context(class_uid)
    roles = []
    if operation == "get":
        ae.add_requested_context("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1")
        roles.append(build_role("1.2.840.10008.5.1.4.1.1.2", scp_role=True))
    association = ae.associate(
        "127.0.0.1",
        archive.port,
        ae_title=archive.title,
        ext_neg=roles,  # type: ignore[arg-type]  # of roles alone
        evt_handlers=[(evt.EVT_C_STORE, keep)],
    )
    assert association.is_established
    asked = pydicom.Dataset()
    for key, value in keys.items():
        setattr(asked, key, value)
    send = getattr(association, f"send_c_{operation}")
    answers = list(send(asked, *destination, query_model=class_uid))
    association.release()
    return answers, kept


def test_pynetdicom_echoes(archive: Process) -> None:
    ae = AE(ae_title="PYNET")
    ae.add_requested_context(VERIFICATION)
    association = ae.associate("127.0.0.1", archive.port, ae_title=archive.title)
    assert association.send_c_echo().Status == SUCCESS
    association.release()


@pytest.mark.parametrize(("model", "level"), levels.ALL)
def test_pynetdicom_finds(archive: Process, held: levels.Held, model: str, level: str) -> None:
    question = held.question(model, level)
    (*matches, final), _ = ask(archive, "find", levels.class_uid(model, "FIND"), question)
    assert final[0].Status == SUCCESS
    assert {status.Status for status, _ in matches} == {PENDING}
    key = levels.UNIQUE_KEYS[level]
    found = [(str(match[key].value), str(match.PatientName)) for _, match in matches if match]
    assert sorted(found) == sorted(held.unique(model, level))


def test_pynetdicom_finds_no_worklist(archive: Process) -> None:
    answers, _ = ask(archive, "find", WORKLIST_FIND, {"PatientName": ""})
    assert [(status.Status, match) for status, match in answers] == [(SUCCESS, None)]


@pytest.mark.parametrize(("model", "level"), levels.ALL)
def test_pynetdicom_gets(archive: Process, held: levels.Held, model: str, level: str) -> None:
    keys = {"QueryRetrieveLevel": level, **held.keys(model, level)}
    answers, kept = ask(archive, "get", levels.class_uid(model, "GET"), keys)
    below = held.below(level)
    final = answers[-1][0]
    assert (final.Status, final.NumberOfCompletedSuboperations) == (SUCCESS, len(below))
    assert {uid: stores.sha256(data) for uid, data in kept.items()} == {
        uid: digest for uid, (_, digest) in below.items()
    }


@pytest.mark.parametrize(("model", "level"), levels.ALL)
def test_pynetdicom_moves(
    archive: Process, held: levels.Held, third: peers.Server, model: str, level: str
) -> None:
    folder = emptied(third.folder)
    keys = {"QueryRetrieveLevel": level, **held.keys(model, level)}
    answers, _ = ask(archive, "move", levels.class_uid(model, "MOVE"), keys, third.aet)
    below = held.below(level)
    final = answers[-1][0]
    assert (final.Status, final.NumberOfCompletedSuboperations) == (SUCCESS, len(below))
    assert stores.received(folder) == below


# -- Orthanc --------------------------------------------------------------------------------------


@pytest.fixture
def rest(archive: Process, orthanc: peers.Server) -> Any:
    """Orthanc's interface while the archive runs; Orthanc is empty."""
    for one in peers.rest(orthanc, "/instances"):
        peers.rest(orthanc, f"/instances/{one}", method="DELETE")
    return partial(peers.rest, orthanc)


def test_orthanc_echoes(rest: Any) -> None:
    assert rest("/modalities/arch/echo", {}) == {}


def test_orthanc_stores(archive: Process, rest: Any, tmp_path: Path) -> None:
    made = levels.make(tmp_path / "made")
    first = made.instances[0]
    dataset = pydicom.dcmread(first.path)
    dataset.PatientID = "ORTHANC-1"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "2.25.1", "2.25.2"
    dataset.SOPInstanceUID = pydicom.uid.UID("2.25.3")
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.save_as(first.path)
    with open(first.path, "rb") as file:
        created = rest("/instances", file.read())
    stored = rest("/modalities/arch/store", {"Resources": [created["ID"]]})
    assert (stored["InstancesCount"], stored["FailedInstancesCount"]) == (1, 0)
    words = ("-k", "PatientID=ORTHANC-1", "-od", str(tmp_path / "got"))
    assert main(["get", "-q", archive.address, "-P", *words]) == 0
    assert pydicom.dcmread(tmp_path / "got" / "2.25.3.dcm") == dataset


@pytest.mark.parametrize("level", levels.UNIQUE_KEYS)
def test_orthanc_finds_and_moves(
    archive: Process, rest: Any, held: levels.Held, tmp_path: Path, level: str
) -> None:
    """It asks for patients by the Patient Root, and has them moved by the Study Root."""
    name = {"IMAGE": "Instance"}.get(level, level.capitalize())
    keys = held.keys("-P", level)
    query = rest("/modalities/arch/query", {"Level": name, "Query": {**keys, "PatientName": ""}})
    (answer,) = rest(f"/queries/{query['ID']}/answers?expand&simplify")
    assert answer.items() >= keys.items()
    rest(f"/queries/{query['ID']}/retrieve", {"TargetAet": "ORTHANC", "Synchronous": True})
    for one in rest("/instances"):
        (tmp_path / one).write_bytes(rest(f"/instances/{one}/file", raw=True))
    assert stores.received(tmp_path) == held.below(level)
