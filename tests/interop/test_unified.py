"""Unified procedure steps: `ups` and the archive, with each other and with pynetdicom."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from pydicom.tag import Tag
from pynetdicom import AE, build_role, evt

from dcmhaul import uids
from dcmhaul.cli import main
from tests.archive.test_unified import finished, item, scheduled
from tests.interop import peers
from tests.net.test_cli import process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydicom import Dataset

    from tests.net.test_cli import Process

UID, KEY = "1.2.3", "2.25.1"
GLOBAL = uids.UNIFIED_STEP_SUBSCRIPTION
PUSH, PULL, WATCH = uids.UNIFIED_STEP_PUSH, uids.UNIFIED_STEP_PULL, uids.UNIFIED_STEP_WATCH
QUERY, EVENT = uids.UNIFIED_STEP_QUERY, uids.UNIFIED_STEP_EVENT
CLASSES = (PUSH, PULL, WATCH, QUERY)
PERFORMED = "UnifiedProcedureStepPerformedProcedureSequence[0]"
DONE = (
    f"{PERFORMED}.PerformedWorkitemCodeSequence[0].CodeValue=1",
    f"{PERFORMED}.PerformedProcedureStepStartDateTime=20261124080000",
    f"{PERFORMED}.PerformedProcedureStepEndDateTime=20261124081500",
)


@pytest.fixture
def watcher_port() -> int:
    return peers.free_port()


@pytest.fixture
def archive(tmp_path: Path, watcher_port: int) -> Iterator[Process]:
    words = ("--dir", tmp_path / "archive", "--port", "0", "--aet", "ARCH", "--bind", "127.0.0.1")
    with process("archive", *words, "--peer", f"WATCHER@127.0.0.1:{watcher_port}") as running:
        yield running


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str], str]:
    capsys.readouterr()
    code = main(["ups", *words])
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def keyed(keys: tuple[str, ...]) -> list[str]:
    return [word for key in keys for word in ("-k", key)]


@contextmanager
def watching(address: str, port: int, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`ups watch` in a process of its own, subscribed; its first line was read."""
    command = [sys.executable, "-m", "dcmhaul", "ups", address, "watch", "-aet", "WATCHER"]
    command += ["+P", str(port), "--bind", "127.0.0.1", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == f"{GLOBAL}\tsubscribed\n"
        try:
            yield running
        finally:
            running.kill()


def test_the_life_of_a_step(
    archive: Process, watcher_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = archive.address
    with watching(peer, watcher_port, "--count", "4", "--lock") as watch:
        words = ("-k", "ProcedureStepLabel=Segment", "--instance", UID)
        assert told(capsys, peer, "create", *words) == (0, [f"{UID}\tSCHEDULED"], "")
        code, out, _ = told(capsys, peer, "find", "-k", "ProcedureStepState=SCHEDULED")
        assert (code, out[0]) == (0, f"{UID}\tSCHEDULED")
        code, [line], _ = told(capsys, peer, "claim", "--instance", UID)
        key = line.split("\t")[2]
        assert (code, line) == (0, f"{UID}\tIN PROGRESS\t{key}")
        code, _, err = told(capsys, peer, "claim", "--instance", UID)
        assert code == 6
        assert "0xC302" in err
        mine = ("--instance", UID, "--transaction", key)
        code, _, err = told(capsys, peer, "complete", *mine)
        assert code == 6
        assert "0xC304" in err
        progress = "ProcedureStepProgressInformationSequence[0].ProcedureStepProgress=50"
        assert told(capsys, peer, "set", *mine, "-k", progress) == (0, [UID], "")
        code, out, _ = told(capsys, peer, "complete", *mine, *keyed(DONE))
        assert (code, out[-1]) == (0, f"{UID}\tCOMPLETED\t{key}")
        assert watch.wait(20) == 0
        assert watch.stdout is not None
        assert watch.stdout.read().splitlines() == [
            f"{UID}\tstate report\tSCHEDULED\tREADY",
            f"{UID}\tstate report\tIN PROGRESS\tREADY",
            f"{UID}\tprogress report",
            f"{UID}\tstate report\tCOMPLETED\tREADY",
        ]
    out = told(capsys, peer, "get", "--instance", UID, "--json")[1]
    record = json.loads(out[0])
    assert record["state"] == "COMPLETED"
    assert record["dataset"]["00741204"]["Value"] == ["Segment"]
    assert "00081195" not in record["dataset"]


def test_what_is_not_there_and_what_is_asked_to_end(
    archive: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = archive.address
    assert told(capsys, peer, "find", "-k", "PatientID=X")[0] == 4
    code, _, err = told(capsys, peer, "get", "--instance", "1.9")
    assert code == 6
    assert "0xC307" in err
    code, _, err = told(capsys, peer, "subscribe", "--receiver", "STRANGER")
    assert code == 6
    assert "0xC308" in err
    words = ("--receiver", "WATCHER")
    assert told(capsys, peer, "subscribe", *words)[1] == [f"{GLOBAL}\tsubscribed"]
    assert told(capsys, peer, "suspend", *words)[1] == [f"{GLOBAL}\tsuspended"]
    assert told(capsys, peer, "unsubscribe", *words)[1] == [f"{GLOBAL}\tunsubscribed"]
    assert told(capsys, peer, "create", "--instance", UID)[0] == 0
    reason = ("-k", "ReasonForCancellation=late")
    code, out, _ = told(capsys, peer, "request-cancel", "--instance", UID, *reason)
    assert (code, out) == (0, [f"{UID}\tcancel requested"])
    code, out, err = told(capsys, peer, "request-cancel", "--instance", UID)
    assert code == 0
    assert "warning: N-ACTION: 0xB304" in err
    assert told(capsys, peer, "create", "--instance", "1.2.4")[0] == 0
    [line] = told(capsys, peer, "claim", "--instance", "1.2.4")[1]
    mine = ("--instance", "1.2.4", "--transaction", line.split("\t")[2])
    assert told(capsys, peer, "cancel", *mine)[1] == [line.replace("IN PROGRESS", "CANCELED")]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "expected one ACTION of create, find"),
        (("fnd",), "got fnd"),
        (("get", "find"), "got get find"),
        (("get",), "get needs the step: --instance UID"),
        (("get", "--instance", "x"), "--instance x: expected a UID"),
        (("complete", "--instance", UID), "complete needs the key that claim gave out"),
        (("watch",), "watch needs a port"),
        (("claim", "--instance", UID, "-k", "PatientID=1"), "claim takes no -k"),
        (("find", "--count", "2"), "--count belongs to watch"),
        (("find", "+P", "2"), "+P belongs to watch"),
        (("set", "--instance", UID), "set needs what is to be set"),
    ],
)
def test_wrong_words(words: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = told(capsys, "ANY@127.0.0.1:9", *words)
    assert code == 2
    assert text in err


def test_an_event_type_that_is_none(
    archive: Process, watcher_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"WATCHER@127.0.0.1:{watcher_port}"
    words = [address, "--class", PUSH, "--context", EVENT, "--instance", UID, "--type", "9"]
    with watching(archive.address, watcher_port, "--count", "1"):
        assert main(["n-event-report", *words]) == 6
    assert "0x0113" in capsys.readouterr().err


# -- pynetdicom as SCU --------------------------------------------------------------------------


@contextmanager
def pynetdicom_watcher(port: int) -> Iterator[list[tuple[int, str]]]:
    """It hears of events at that port, under the title WATCHER."""
    heard: list[tuple[int, str]] = []

    def hear(event: Any) -> tuple[int, Dataset | None]:
        information = event.event_information
        heard.append((event.event_type, str(information.get("ProcedureStepState", ""))))
        return 0x0000, None

    ae = AE("WATCHER")
    ae.add_supported_context(EVENT, scu_role=True, scp_role=True)
    with peers.pynetdicom_serving(ae, (evt.EVT_N_EVENT_REPORT, hear), port=port):
        yield heard


def change(state: str, key: str = KEY) -> Dataset:
    return item(ProcedureStepState=state, TransactionUID=key)


def test_the_archive_for_pynetdicom(archive: Process, watcher_port: int) -> None:
    ae = AE("PERFORMER")
    ae.requested_contexts = []
    for uid in CLASSES:
        ae.add_requested_context(uid)
    with pynetdicom_watcher(watcher_port) as heard:
        association = ae.associate("127.0.0.1", archive.port, ae_title="ARCH")
        assert association.is_established

        def act(dataset: Dataset, action: int, uid: str, context: str) -> int:
            status, _ = association.send_n_action(dataset, action, PUSH, uid, meta_uid=context)
            return int(status.Status)

        receiver = item(ReceivingAE="WATCHER", DeletionLock="FALSE")
        assert act(receiver, 3, GLOBAL, WATCH) == 0
        status, _ = association.send_n_create(scheduled(), PUSH, UID)
        assert status.Status == 0
        keys = item(ProcedureStepState="SCHEDULED", SOPInstanceUID="")
        found = [
            identifier.SOPInstanceUID
            for status, identifier in association.send_c_find(keys, PULL)
            if status.Status == 0xFF00 and identifier is not None
        ]
        assert found == [UID]
        assert act(change("IN PROGRESS"), 1, UID, PULL) == 0
        assert act(change("COMPLETED", "2.25.9"), 1, UID, PULL) == 0xC301
        assert act(change("COMPLETED"), 1, UID, PULL) == 0xC304
        status, _ = association.send_n_set(finished(), PUSH, UID, meta_uid=PULL)
        assert status.Status == 0
        assert act(change("COMPLETED"), 1, UID, PULL) == 0
        assert act(item(ReasonForCancellation="late"), 2, UID, PUSH) == 0xC311
        tags = [Tag(0x00741000), Tag(0x00100020)]
        status, held = association.send_n_get(tags, PUSH, UID, meta_uid=QUERY)
        assert status.Status == 0
        assert held is not None
        assert (held.ProcedureStepState, held.PatientID) == ("COMPLETED", "P1")
        association.release()
        deadline = time.monotonic() + 10
        while len(heard) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert heard == [(1, "SCHEDULED"), (1, "IN PROGRESS"), (1, "COMPLETED")]


# -- pynetdicom as SCP --------------------------------------------------------------------------


class Worklist:
    """Steps that pynetdicom keeps, with as much of their rules as the verb can meet."""

    def __init__(self) -> None:
        self.steps: dict[str, Dataset] = {}
        self.subscribed: list[tuple[str, str]] = []

    def create(self, event: Any) -> tuple[int, Dataset | None]:
        uid = event.request.AffectedSOPInstanceUID
        self.steps[uid] = event.attribute_list
        return 0, event.attribute_list

    def set(self, event: Any) -> tuple[int, Dataset | None]:
        step = self.steps[event.request.RequestedSOPInstanceUID]
        changes = event.modification_list
        if changes.TransactionUID != step.TransactionUID:
            return 0xC301, None
        step.update(changes)
        return 0, None

    def get(self, event: Any) -> tuple[int, Dataset | None]:
        step = self.steps.get(event.request.RequestedSOPInstanceUID)
        return (0xC307, None) if step is None else (0, step)

    def act(self, event: Any) -> tuple[int, Dataset | None]:
        uid, information = event.request.RequestedSOPInstanceUID, event.action_information
        if event.action_type == 1:
            self.steps[uid].update(information)
        elif event.action_type == 3:
            self.subscribed.append((uid, information.ReceivingAE))
        return 0, None

    def find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        wanted = event.identifier.ProcedureStepState
        for uid, step in self.steps.items():
            if step.ProcedureStepState == wanted:
                yield 0xFF00, item(SOPInstanceUID=uid, ProcedureStepState=wanted)

    @contextmanager
    def served(self) -> Iterator[str]:
        ae = AE("WORK")
        for uid in CLASSES:
            ae.add_supported_context(uid)
        with peers.pynetdicom_serving(
            ae,
            (evt.EVT_N_CREATE, self.create),
            (evt.EVT_N_SET, self.set),
            (evt.EVT_N_GET, self.get),
            (evt.EVT_N_ACTION, self.act),
            (evt.EVT_C_FIND, self.find),
        ) as address:
            yield address


def test_at_pynetdicom(capsys: pytest.CaptureFixture[str]) -> None:
    worklist = Worklist()
    with worklist.served() as peer:
        code, out, _ = told(capsys, peer, "create", "--instance", UID, "-k", "PatientID=7")
        assert (code, out) == (0, [f"{UID}\tSCHEDULED"])
        assert worklist.steps[UID].PatientID == "7"
        code, out, _ = told(capsys, peer, "find", "-k", "ProcedureStepState=SCHEDULED")
        assert (code, out[0]) == (0, f"{UID}\tSCHEDULED")
        code, out, _ = told(capsys, peer, "claim", "--instance", UID, "--transaction", KEY)
        assert out == [f"{UID}\tIN PROGRESS\t{KEY}"]
        mine = ("--instance", UID, "--transaction", KEY)
        code, out, _ = told(capsys, peer, "complete", *mine, *keyed(DONE))
        assert (code, worklist.steps[UID].ProcedureStepState) == (0, "COMPLETED")
        assert PERFORMED[:-3] in worklist.steps[UID]
        code, out, _ = told(capsys, peer, "get", "--instance", UID)
        assert (code, out[0]) == (0, f"{UID}\tCOMPLETED")
        assert told(capsys, peer, "get", "--instance", "1.9")[0] == 6


def test_events_from_pynetdicom(watcher_port: int) -> None:
    worklist = Worklist()
    with worklist.served() as peer, watching(peer, watcher_port, "--count", "1") as watch:
        assert worklist.subscribed == [(GLOBAL, "WATCHER")]
        ae = AE("WORK")
        ae.add_requested_context(EVENT)
        association = ae.associate(
            "127.0.0.1",
            watcher_port,
            ae_title="WATCHER",
            ext_neg=[build_role(EVENT, scu_role=True, scp_role=True)],
        )
        assert association.is_established
        report = item(ProcedureStepState="CANCELED", InputReadinessState="READY")
        status, _ = association.send_n_event_report(report, 1, PUSH, UID, meta_uid=EVENT)
        assert status.Status == 0
        association.release()
        assert watch.wait(20) == 0
        assert watch.stdout is not None
        assert watch.stdout.read() == f"{UID}\tstate report\tCANCELED\tREADY\n"
