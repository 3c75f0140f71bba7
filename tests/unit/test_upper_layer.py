"""The upper layer without I/O: each event in each state, two machines at once, and faults."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dcmhaul.errors import LocalProtocolError, RemoteProtocolError
from dcmhaul.protocol import events
from dcmhaul.protocol.events import Role
from dcmhaul.protocol.states import State, StateEvent
from dcmhaul.protocol.upper_layer import UpperLayer
from dcmhaul.wire.items import PresentationContextAc, PresentationContextRq, UserInformation
from dcmhaul.wire.pdu import (
    AAbort,
    AAssociateAc,
    AAssociateRj,
    AAssociateRq,
    AReleaseRp,
    AReleaseRq,
    PDataTf,
    PduType,
    Pdv,
)

if TYPE_CHECKING:
    from collections.abc import Callable

RQ = AAssociateRq(
    called_ae_title="CALLED",
    calling_ae_title="CALLING",
    presentation_contexts=(
        PresentationContextRq(
            context_id=1,
            abstract_syntax="1.2.840.10008.1.1",
            transfer_syntaxes=("1.2.840.10008.1.2",),
        ),
    ),
    user_information=UserInformation(
        max_length_received=16384, implementation_class_uid="1.2.3", implementation_version_name="V"
    ),
)
AC = AAssociateAc(
    called_ae_title="CALLED",
    calling_ae_title="CALLING",
    presentation_contexts=(
        PresentationContextAc(context_id=1, result=0, transfer_syntax="1.2.840.10008.1.2"),
    ),
    user_information=UserInformation(
        max_length_received=16384, implementation_class_uid="1.2.3", implementation_version_name="V"
    ),
)
RJ = AAssociateRj(result=1, source=1, reason=7)
P_DATA = PDataTf(pdvs=(Pdv(context_id=1, is_command=True, is_last=True, fragment=b"\x00" * 12),))
RELEASE_RQ = bytes.fromhex("0500 00000004 00000000")
RELEASE_RP = bytes.fromhex("0600 00000004 00000000")
ABORT_USER = bytes.fromhex("0700 00000004 00000000")


def abort_provider(reason: int) -> bytes:
    return bytes.fromhex("0700 00000004 0000 02") + bytes([reason])


def body(pdu: bytes) -> bytes:
    return pdu[6:]


def acceptor_in_2() -> UpperLayer:
    layer = UpperLayer(Role.ACCEPTOR)
    layer.transport_accepted()
    return layer


def acceptor_in_3() -> UpperLayer:
    layer = acceptor_in_2()
    layer.received_pdu(PduType.A_ASSOCIATE_RQ, body(RQ.encode()))
    return layer


def requestor_in_4() -> UpperLayer:
    layer = UpperLayer(Role.REQUESTOR)
    layer.connect()
    return layer


def requestor_in_5() -> UpperLayer:
    layer = requestor_in_4()
    layer.transport_connected(RQ)
    return layer


def acceptor_in_6() -> UpperLayer:
    layer = acceptor_in_3()
    layer.accept(AC)
    return layer


def requestor_in_6() -> UpperLayer:
    layer = requestor_in_5()
    layer.received_pdu(PduType.A_ASSOCIATE_AC, body(AC.encode()))
    return layer


def released(layer: UpperLayer) -> UpperLayer:
    layer.request_release()
    return layer


def collided(layer: UpperLayer) -> UpperLayer:
    layer.request_release()
    layer.received_pdu(PduType.A_RELEASE_RQ, body(RELEASE_RQ))
    return layer


def in_8() -> UpperLayer:
    layer = acceptor_in_6()
    layer.received_pdu(PduType.A_RELEASE_RQ, body(RELEASE_RQ))
    return layer


def in_11() -> UpperLayer:
    layer = collided(requestor_in_6())
    layer.respond_release()
    return layer


def in_12() -> UpperLayer:
    layer = collided(acceptor_in_6())
    layer.received_pdu(PduType.A_RELEASE_RP, body(RELEASE_RP))
    return layer


def in_13() -> UpperLayer:
    layer = acceptor_in_6()
    layer.abort()
    return layer


WAYS: dict[State, list[Callable[[], UpperLayer]]] = {
    State.IDLE: [lambda: UpperLayer(Role.REQUESTOR), lambda: UpperLayer(Role.ACCEPTOR)],
    State.AWAITING_ASSOCIATE_RQ: [acceptor_in_2],
    State.AWAITING_LOCAL_ASSOCIATE_RESPONSE: [acceptor_in_3],
    State.AWAITING_TRANSPORT: [requestor_in_4],
    State.AWAITING_ASSOCIATE_RESPONSE: [requestor_in_5],
    State.DATA_TRANSFER: [requestor_in_6, acceptor_in_6],
    State.AWAITING_RELEASE_RP: [
        lambda: released(requestor_in_6()),
        lambda: released(acceptor_in_6()),
    ],
    State.AWAITING_LOCAL_RELEASE_RESPONSE: [in_8],
    State.COLLISION_REQUESTOR: [lambda: collided(requestor_in_6())],
    State.COLLISION_ACCEPTOR: [lambda: collided(acceptor_in_6())],
    State.COLLISION_REQUESTOR_AWAITING_RP: [in_11],
    State.COLLISION_ACCEPTOR_RESPONDING: [in_12],
    State.AWAITING_CLOSE: [in_13],
}

# What each event is, seen from outside.
DRIVE: dict[StateEvent, Callable[[UpperLayer], events.Event | None]] = {
    StateEvent.REQUEST_ASSOCIATE: lambda u: u.connect(),
    StateEvent.TRANSPORT_CONNECTED: lambda u: u.transport_connected(RQ),
    StateEvent.RECV_A_ASSOCIATE_AC: lambda u: u.received_pdu(2, body(AC.encode())),
    StateEvent.RECV_A_ASSOCIATE_RJ: lambda u: u.received_pdu(3, body(RJ.encode())),
    StateEvent.TRANSPORT_INDICATION: lambda u: u.transport_accepted(),
    StateEvent.RECV_A_ASSOCIATE_RQ: lambda u: u.received_pdu(1, body(RQ.encode())),
    StateEvent.RESPOND_ASSOCIATE_ACCEPT: lambda u: u.accept(AC),
    StateEvent.RESPOND_ASSOCIATE_REJECT: lambda u: u.reject(RJ),
    StateEvent.REQUEST_P_DATA: lambda u: u.check_p_data(),
    StateEvent.RECV_P_DATA_TF: lambda u: u.received_pdu(4, body(P_DATA.encode())),
    StateEvent.REQUEST_RELEASE: lambda u: u.request_release(),
    StateEvent.RECV_A_RELEASE_RQ: lambda u: u.received_pdu(5, body(RELEASE_RQ)),
    StateEvent.RECV_A_RELEASE_RP: lambda u: u.received_pdu(6, body(RELEASE_RP)),
    StateEvent.RESPOND_RELEASE: lambda u: u.respond_release(),
    StateEvent.REQUEST_ABORT: lambda u: u.abort(),
    StateEvent.RECV_A_ABORT: lambda u: u.received_pdu(7, body(ABORT_USER)),
    StateEvent.TRANSPORT_CLOSED: lambda u: u.transport_closed(),
    StateEvent.ARTIM_EXPIRED: lambda u: u.artim_expired(),
    StateEvent.RECV_INVALID_PDU: lambda u: u.received_pdu(0x53, b"SH banner"),
}

# For each action: bytes, event, ARTIM afterwards (None: as before), close, next state.
# "reason" stands for what the test fills in: 1 for an unknown PDU, 2 for one out of place.
Outcome = tuple[list[bytes], "events.Event | None", "bool | None", bool, int]


def local_abort(reason: int) -> events.ProviderAborted:
    return events.ProviderAborted(source=2, reason=reason, local=True)


def outcome(action: str, role: Role, event: StateEvent) -> Outcome:
    reason = 1 if event is StateEvent.RECV_INVALID_PDU else 2
    table: dict[str, Outcome] = {
        "AE-1": ([], None, None, False, 4),
        "AE-2": ([RQ.encode()], None, None, False, 5),
        "AE-3": ([], events.AssociationAccepted(ac=AC), None, False, 6),
        "AE-4": ([], events.AssociationRejectedEvent(rj=RJ), None, True, 1),
        "AE-5": ([], None, True, False, 2),
        "AE-6": ([], events.AssociationRequested(rq=RQ), False, False, 3),
        "AE-7": ([AC.encode()], None, None, False, 6),
        "AE-8": ([RJ.encode()], None, True, False, 13),
        "DT-1": ([], None, None, False, 6),
        "DT-2": ([], events.PDataReceived(p_data=P_DATA), None, False, 6),
        "AR-1": ([RELEASE_RQ], None, None, False, 7),
        "AR-2": ([], events.ReleaseRequested(), None, False, 8),
        "AR-3": ([], events.ReleaseConfirmed(), None, True, 1),
        "AR-4": ([RELEASE_RP], None, True, False, 13),
        "AR-5": ([], None, False, False, 1),
        "AR-6": ([], events.PDataReceived(p_data=P_DATA), None, False, 7),
        "AR-7": ([], None, None, False, 8),
        "AR-8": ([], events.ReleaseCollision(), None, False, 9 if role is Role.REQUESTOR else 10),
        "AR-9": ([RELEASE_RP], None, None, False, 11),
        "AR-10": ([], events.ReleaseConfirmed(), None, False, 12),
        "AA-1": ([ABORT_USER], None, True, False, 13),
        "AA-2": ([], None, False, True, 1),
        "AA-3": ([], events.Aborted(source=0, reason=0), None, True, 1),
        "AA-4": ([], events.TransportClosed(), None, False, 1),
        "AA-5": ([], None, False, False, 1),
        "AA-6": ([], None, None, False, 13),
        "AA-7": ([abort_provider(reason)], None, None, False, 13),
        "AA-8": ([abort_provider(reason)], local_abort(reason), True, False, 13),
    }
    return table[action]


def transcription() -> dict[tuple[int, int], str]:
    with (Path(__file__).parent / "table_9_10.csv").open(newline="") as file:
        return {
            (state, event): row[f"Sta{state}"]
            for event, row in enumerate(csv.DictReader(file), start=1)
            for state in range(1, 14)
        }


CELLS = transcription()


@pytest.mark.parametrize("event", StateEvent, ids=lambda event: f"Evt{event.value}")
@pytest.mark.parametrize("state", State, ids=lambda state: f"Sta{state.value}")
def test_each_event_in_each_state(state: State, event: StateEvent) -> None:
    for way in WAYS[state]:
        layer = way()
        assert layer.state is state
        layer.take_output()
        was_running = layer.artim_running
        action = CELLS[state, event]
        needs_requestor = action == "AE-1" and layer.role is Role.ACCEPTOR
        needs_acceptor = action == "AE-5" and layer.role is Role.REQUESTOR
        if not action or needs_requestor or needs_acceptor:
            with pytest.raises(LocalProtocolError):
                DRIVE[event](layer)
            assert (layer.state, layer.take_output()) == (state, [])
            continue
        output, indication, artim, close, next_state = outcome(action, layer.role, event)
        assert DRIVE[event](layer) == indication
        assert layer.take_output() == output
        assert layer.artim_running is (was_running if artim is None else artim)
        assert layer.close_transport is close
        assert layer.state == next_state


@pytest.mark.parametrize("state", State)
def test_p_data_flags_follow_the_table(state: State) -> None:
    for way in WAYS[state]:
        layer = way()
        assert layer.p_data_receivable is (CELLS[state, 10] in {"DT-2", "AR-6"})
        assert layer.p_data_sendable is (CELLS[state, 9] in {"DT-1", "AR-7"})
        assert layer.abortable is (CELLS[state, 15] != "")


def test_a_blank_cell_names_event_and_state() -> None:
    with pytest.raises(LocalProtocolError, match=r"Evt11 REQUEST_RELEASE .* Sta2 AWAITING_ASSOC"):
        acceptor_in_2().request_release()


# -- AE-6b, aborts, contents that cannot be decoded


def test_protocol_version_bit_clear_is_rejected() -> None:
    rq = AAssociateRq(
        called_ae_title="A",
        calling_ae_title="B",
        presentation_contexts=RQ.presentation_contexts,
        user_information=RQ.user_information,
        protocol_version=0xFFFE,
    )
    layer = acceptor_in_2()
    starts = layer.artim_starts
    assert layer.received_pdu(1, body(rq.encode())) is None
    assert layer.take_output() == [bytes.fromhex("0300 00000004 00 01 02 02")]
    assert layer.state is State.AWAITING_CLOSE
    assert layer.artim_running
    assert layer.artim_starts == starts + 1


def test_other_version_bits_are_not_tested() -> None:
    rq = bytearray(RQ.encode())
    rq[6:8] = b"\xff\xff"
    assert isinstance(acceptor_in_2().received_pdu(1, body(bytes(rq))), events.AssociationRequested)


@pytest.mark.parametrize("source", [1, 2, 77])
def test_an_abort_that_is_not_the_users_is_the_providers(source: int) -> None:
    layer = requestor_in_6()
    event = layer.received_pdu(7, bytes([0, 0, source, 5]))
    assert event == events.ProviderAborted(source=source, reason=5, local=False)


def test_a_malformed_abort_is_still_an_abort() -> None:
    layer = requestor_in_6()
    event = layer.received_pdu(7, b"\x00" * 5)
    assert event == events.ProviderAborted(source=2, reason=0, local=False)
    assert layer.close_transport


@pytest.mark.parametrize("pdu_type", [3, 5, 6])
@pytest.mark.parametrize("length", [0, 3, 5])
def test_fixed_length_pdus_of_another_length(pdu_type: int, length: int) -> None:
    layer = acceptor_in_6()
    layer.take_output()
    assert layer.received_pdu(pdu_type, bytes(length)) == local_abort(6)
    assert layer.take_output() == [abort_provider(6)]


def test_an_ac_that_cannot_be_decoded() -> None:
    layer = requestor_in_5()
    layer.take_output()
    assert layer.received_pdu(2, b"\x00\x01") == local_abort(6)
    assert layer.take_output() == [abort_provider(6)]
    assert layer.state is State.AWAITING_CLOSE


def test_an_rq_that_cannot_be_decoded_is_the_users_abort() -> None:
    layer = acceptor_in_2()
    assert layer.received_pdu(1, b"\x00\x01") is None
    assert layer.take_output() == [ABORT_USER]


def test_a_pdu_out_of_place_is_not_decoded() -> None:
    layer = acceptor_in_6()
    layer.take_output()
    assert layer.received_pdu(2, bytes(4)) == local_abort(2)


@pytest.mark.parametrize(
    ("way", "source", "reason", "output", "event"),
    [
        (acceptor_in_6, 2, 5, [abort_provider(5)], local_abort(5)),
        (acceptor_in_6, 0, 0, [ABORT_USER], None),
        (lambda: released(requestor_in_6()), 0, 0, [ABORT_USER], None),
        (in_8, 0, 0, [abort_provider(2)], local_abort(2)),
        (acceptor_in_2, 2, 1, [ABORT_USER], None),
        (acceptor_in_2, 0, 0, [ABORT_USER], None),
        (in_13, 2, 6, [abort_provider(6)], None),
        (in_13, 0, 0, [], None),
    ],
)
def test_faults_of_the_frame_reader(
    way: Callable[[], UpperLayer],
    source: int,
    reason: int,
    output: list[bytes],
    event: events.Event | None,
) -> None:
    layer = way()
    layer.take_output()
    fault = RemoteProtocolError("expected one thing, got another", source=source, reason=reason)
    assert layer.received_fault(fault) == event
    assert layer.take_output() == output
    assert layer.state is State.AWAITING_CLOSE


def test_artim_restarts_are_seen() -> None:
    layer = acceptor_in_2()
    assert (layer.artim_running, layer.artim_starts) == (True, 1)
    layer.received_pdu(0xFF, b"")
    assert (layer.artim_running, layer.artim_starts) == (True, 2)


def test_take_output_hands_the_list_over() -> None:
    layer = requestor_in_5()
    first = layer.take_output()
    assert first == [RQ.encode()]
    assert layer.take_output() == []
    assert first == [RQ.encode()]


# -- poison


def test_after_poison_only_abort_and_the_end() -> None:
    layer = requestor_in_6()
    layer.take_output()
    cause = BrokenPipeError("gone")
    layer.poison(cause)
    layer.poison(ValueError("a later one does not replace it"))
    assert layer.poisoned is cause
    assert not layer.p_data_sendable
    for primitive in (layer.check_p_data, layer.request_release, layer.respond_release):
        with pytest.raises(LocalProtocolError, match="after a broken send"):
            primitive()
    assert layer.state is State.DATA_TRANSFER
    layer.abort()
    assert layer.take_output() == [ABORT_USER]
    layer.artim_expired()
    assert layer.close_transport


def test_after_poison_the_peers_abort_is_still_heard() -> None:
    layer = requestor_in_6()
    layer.poison(BrokenPipeError("gone"))
    event = layer.received_pdu(7, body(abort_provider(6)))
    assert event == events.ProviderAborted(source=2, reason=6, local=False)


def test_after_poison_the_transport_may_close() -> None:
    layer = requestor_in_6()
    layer.poison(BrokenPipeError("gone"))
    assert layer.transport_closed() == events.TransportClosed()


# -- two machines


def deliver(sender: UpperLayer, receiver: UpperLayer) -> list[events.Event | None]:
    return [receiver.received_pdu(pdu[0], pdu[6:]) for pdu in sender.take_output()]


def associated() -> tuple[UpperLayer, UpperLayer]:
    requestor, acceptor = requestor_in_5(), acceptor_in_2()
    assert deliver(requestor, acceptor) == [events.AssociationRequested(rq=RQ)]
    acceptor.accept(AC)
    assert deliver(acceptor, requestor) == [events.AssociationAccepted(ac=AC)]
    return requestor, acceptor


def test_two_machines_associate_and_release() -> None:
    requestor, acceptor = associated()
    requestor.request_release()
    assert deliver(requestor, acceptor) == [events.ReleaseRequested()]
    acceptor.check_p_data()
    acceptor.respond_release()
    assert deliver(acceptor, requestor) == [events.ReleaseConfirmed()]
    assert requestor.close_transport
    assert acceptor.transport_closed() is None
    assert (requestor.state, acceptor.state) == (State.IDLE, State.IDLE)
    assert not acceptor.artim_running


def test_two_machines_reject() -> None:
    requestor, acceptor = requestor_in_5(), acceptor_in_2()
    deliver(requestor, acceptor)
    acceptor.reject(RJ)
    assert deliver(acceptor, requestor) == [events.AssociationRejectedEvent(rj=RJ)]
    assert requestor.close_transport
    assert acceptor.artim_running


def test_two_machines_collide_on_release() -> None:
    requestor, acceptor = associated()
    requestor.request_release()
    acceptor.request_release()
    to_acceptor, to_requestor = requestor.take_output(), acceptor.take_output()
    assert acceptor.received_pdu(5, to_acceptor[0][6:]) == events.ReleaseCollision()
    assert requestor.received_pdu(5, to_requestor[0][6:]) == events.ReleaseCollision()
    with pytest.raises(LocalProtocolError):
        acceptor.respond_release()  # the requestor answers first
    requestor.respond_release()
    assert deliver(requestor, acceptor) == [events.ReleaseConfirmed()]
    assert not acceptor.close_transport
    acceptor.respond_release()
    assert deliver(acceptor, requestor) == [events.ReleaseConfirmed()]
    assert requestor.close_transport
    assert acceptor.transport_closed() is None


class TwoPeers(RuleBasedStateMachine):
    """Two users who only do what their machine allows never make either machine abort the other."""

    @initialize()
    def associate(self) -> None:
        self.layers = associated()
        self.wires: tuple[list[bytes], list[bytes]] = ([], [])
        self.by_user = False
        self.heard: list[events.Event] = []

    def collect(self, side: int) -> None:
        self.wires[1 - side].extend(self.layers[side].take_output())

    @rule(side=st.integers(0, 1))
    def request_release(self, side: int) -> None:
        if self.layers[side].state is State.DATA_TRANSFER:
            self.layers[side].request_release()
            self.collect(side)

    @rule(side=st.integers(0, 1))
    def respond(self, side: int) -> None:
        if CELLS[self.layers[side].state, StateEvent.RESPOND_RELEASE]:
            self.layers[side].respond_release()
            self.collect(side)

    @rule(side=st.integers(0, 1))
    def p_data(self, side: int) -> None:
        if self.layers[side].p_data_sendable:
            self.layers[side].check_p_data()
            self.wires[1 - side].append(P_DATA.encode())

    @precondition(lambda self: not self.by_user)
    @rule(side=st.integers(0, 1), really=st.integers(0, 9))
    def abort(self, side: int, really: int) -> None:
        if really == 0 and self.layers[side].abortable:
            self.layers[side].abort()
            self.by_user = True
            self.collect(side)

    @rule(side=st.integers(0, 1))
    def deliver(self, side: int) -> None:
        layer, wire = self.layers[side], self.wires[side]
        if wire and layer.state is not State.IDLE:
            pdu = wire.pop(0)
            event = layer.received_pdu(pdu[0], pdu[6:])
            if event is not None:
                self.heard.append(event)
            self.collect(side)

    @rule(side=st.integers(0, 1))
    def close(self, side: int) -> None:
        layer, other = self.layers[side], self.layers[1 - side]
        if other.close_transport and not self.wires[side] and layer.state is not State.IDLE:
            layer.transport_closed()

    @invariant()
    def no_provider_abort(self) -> None:
        for event in getattr(self, "heard", []):
            assert not isinstance(event, events.ProviderAborted)
            assert self.by_user or not isinstance(event, events.Aborted)


TestTwoPeers = TwoPeers.TestCase


def test_release_pdus_have_no_content() -> None:
    assert AReleaseRq().encode() == RELEASE_RQ
    assert AReleaseRp().encode() == RELEASE_RP
    assert AAbort(source=0, reason=0).encode() == ABORT_USER
