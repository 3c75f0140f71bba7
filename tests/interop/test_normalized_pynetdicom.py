"""DIMSE-N with pynetdicom: all six operations, we as SCU and as SCP, with real SOP classes."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from pydicom import Dataset
from pydicom.tag import Tag
from pynetdicom import AE, build_role, evt

import dcmhaul
from dcmhaul.cli import main
from dcmhaul.services.normalized import NormalizedScp
from tests.interop import peers
from tests.net.test_normalized import (
    COMMITMENT,
    COMMITMENT_INSTANCE,
    SESSION,
    Events,
    Sessions,
    copies,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest


# -- pynetdicom is the SCP


class Peer:
    """Film sessions and commitment events, in pynetdicom's terms."""

    def __init__(self) -> None:
        self.held: dict[str, Dataset] = {}
        self.got: list[str] = []

    def create(self, event: Any) -> tuple[int, Dataset | None]:
        uid = event.request.AffectedSOPInstanceUID or "1.2.3.9"
        if uid in self.held:
            return 0x0111, None
        self.held[uid] = event.attribute_list
        made = Dataset()
        made.update(self.held[uid])
        made.AffectedSOPInstanceUID = uid
        return 0x0000, made

    def set(self, event: Any) -> tuple[int, Dataset | None]:
        held = self.held.get(event.request.RequestedSOPInstanceUID)
        if held is None:
            return 0x0112, None
        held.update(event.modification_list)
        return 0x0000, held

    def get(self, event: Any) -> tuple[int, Dataset | None]:
        held = self.held.get(event.request.RequestedSOPInstanceUID)
        if held is None:
            return 0x0112, None
        wanted = Dataset()
        for tag in event.attribute_identifiers or held.keys():
            wanted[tag] = held[tag]
        return 0x0000, wanted

    def act(self, event: Any) -> tuple[int, Dataset | None]:
        self.got.append(f"action {event.action_type}")
        return 0x0000, None

    def delete(self, event: Any) -> int:
        return 0x0000 if self.held.pop(event.request.RequestedSOPInstanceUID, None) else 0x0112

    def report(self, event: Any) -> tuple[int, Dataset | None]:
        self.got.append(f"event {event.event_type} {event.event_information.TransactionUID}")
        return 0x0000, None


@contextlib.contextmanager
def running(peer: Peer) -> Iterator[str]:
    ae = AE(ae_title="PYNETDICOM")
    ae.add_supported_context(SESSION)
    ae.add_supported_context(COMMITMENT, scu_role=True, scp_role=True)
    with peers.pynetdicom_serving(
        ae,
        (evt.EVT_N_CREATE, peer.create),
        (evt.EVT_N_SET, peer.set),
        (evt.EVT_N_GET, peer.get),
        (evt.EVT_N_ACTION, peer.act),
        (evt.EVT_N_DELETE, peer.delete),
        (evt.EVT_N_EVENT_REPORT, peer.report),
    ) as address:
        yield address


def test_the_verbs_at_pynetdicom(capsys: pytest.CaptureFixture[str]) -> None:
    peer = Peer()
    one = ("--class", SESSION, "--instance", "1.2.3")
    with running(peer) as address:

        def run(name: str, *words: str) -> tuple[int, str]:
            code = main([name, address, *words])
            return code, capsys.readouterr().out

        assert run("n-create", *one, "-k", "NumberOfCopies=2")[0] == 0
        assert run("n-create", *one, "-k", "NumberOfCopies=2")[0] == 6
        code, out = run("n-create", "--class", SESSION, "-k", "NumberOfCopies=1")
        assert (code, "instance 1.2.3.9" in out) == (0, True)
        assert run("n-set", *one, "-k", "NumberOfCopies=7", "-k", "FilmSessionLabel=A")[0] == 0
        code, out = run("n-get", *one, "-k", "NumberOfCopies")
        assert (code, "[7]" in out, "2000,0050" in out) == (0, True, False)
        assert run("n-action", *one, "--type", "1")[0] == 0
        assert run("n-delete", *one)[0] == 0
        code, out = run("n-delete", *one)
        assert (code, "0x0112" in out) == (6, True)
        event = ("--class", COMMITMENT, "--instance", COMMITMENT_INSTANCE, "--type", "2")
        assert run("n-event-report", *event, "-k", "TransactionUID=1.2.7")[0] == 0
    assert peer.got == ["action 1", "event 2 1.2.7"]


# -- pynetdicom is the SCU


async def test_pynetdicom_at_ours() -> None:
    sessions, events = Sessions(), Events()
    services = [NormalizedScp([sessions.offered(), events.offered()])]
    async with dcmhaul.serve(services) as peer:
        await trio.to_thread.run_sync(partial(ask, peer.port))
    assert sessions.held == {}
    assert [event.type_id for event in events.got] == [1]


def ask(port: int) -> None:
    ae = AE(ae_title="PYNETDICOM")
    ae.add_requested_context(SESSION)
    ae.add_requested_context(COMMITMENT)
    association = ae.associate(
        peers.LOOPBACK, port, ext_neg=[build_role(COMMITMENT, scu_role=False, scp_role=True)]
    )
    assert association.is_established

    def status(call: Callable[..., Any], *words: Any) -> int:
        answered = call(*words)
        found = answered[0] if isinstance(answered, tuple) else answered
        return int(found.Status)

    one = (SESSION, "1.2.3")
    assert status(association.send_n_create, copies(), *one) == 0x0000
    assert status(association.send_n_create, copies(), *one) == 0x0111
    assert status(association.send_n_set, copies(5), *one) == 0x0116
    answered, got = association.send_n_get([Tag(0x20000010)], *one)
    assert (answered.Status, got is not None and got.NumberOfCopies) == (0x0000, 5)
    assert status(association.send_n_action, copies(), 1, *one) == 0x0000
    assert status(association.send_n_action, copies(), 3, *one) == 0x0123
    assert status(association.send_n_delete, *one) == 0x0000
    assert status(association.send_n_delete, *one) == 0x0112
    information = Dataset()
    information.TransactionUID = "1.2.8"
    report = association.send_n_event_report
    assert status(report, information, 1, COMMITMENT, COMMITMENT_INSTANCE) == 0x0000
    association.release()
