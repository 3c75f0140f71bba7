"""The DICOM upper layer without I/O (PS3.8 §9): PDUs and primitives in, PDUs and events out.

It knows no reader, no socket, no clock and no log. The caller sends what `take_output` returns,
turns `artim_running` into a deadline, and closes the transport when `close_transport` says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

from dcmhaul.errors import LocalProtocolError, RemoteProtocolError
from dcmhaul.protocol.events import (
    Aborted,
    AssociationAccepted,
    AssociationRejectedEvent,
    AssociationRequested,
    PDataReceived,
    ProviderAborted,
    ReleaseCollision,
    ReleaseConfirmed,
    ReleaseRequested,
    Role,
    TransportClosed,
)
from dcmhaul.protocol.states import (
    ABORT_MASK,
    RECEIVE_P_DATA_MASK,
    SEND_P_DATA_MASK,
    TABLE,
    Choice,
    Effect,
    State,
    StateEvent,
)
from dcmhaul.wire.pdu import (
    FIXED_PDU_LENGTH,
    AAbort,
    AAssociateAc,
    AAssociateRj,
    AAssociateRq,
    AbortReason,
    AbortSource,
    AReleaseRp,
    AReleaseRq,
    PDataTf,
    PduType,
    decode_pdu,
)

if TYPE_CHECKING:
    from typing import NoReturn, TypeAlias

    from dcmhaul.protocol.events import Event

    # The PDUs whose content goes out or in; release PDUs have none.
    _Content: TypeAlias = AAssociateRq | AAssociateAc | AAssociateRj | PDataTf | AAbort

__all__ = ["UpperLayer"]

# The variable field of these is four octets, always (PS3.8 §9.3.4, §9.3.6 to §9.3.8).
_FIXED_LENGTH_TYPES: Final = frozenset(
    {PduType.A_ASSOCIATE_RJ, PduType.A_RELEASE_RQ, PduType.A_RELEASE_RP, PduType.A_ABORT}
)

# RJ 1/2/2: permanent, by the provider (ACSE), protocol-version-not-supported (PS3.8 §9.3.4).
_VERSION_NOT_SUPPORTED: Final = AAssociateRj(result=1, source=2, reason=2)
_PROTOCOL_VERSION_1: Final = 0x0001

# What stands for an A-ABORT that cannot be read: by the provider, reason not specified.
_UNREADABLE_ABORT: Final = AAbort(source=AbortSource.PROVIDER, reason=AbortReason.NOT_SPECIFIED)

_EVENT_OF_PDU: Final[dict[int, StateEvent]] = {
    PduType.A_ASSOCIATE_RQ: StateEvent.RECV_A_ASSOCIATE_RQ,
    PduType.A_ASSOCIATE_AC: StateEvent.RECV_A_ASSOCIATE_AC,
    PduType.A_ASSOCIATE_RJ: StateEvent.RECV_A_ASSOCIATE_RJ,
    PduType.P_DATA_TF: StateEvent.RECV_P_DATA_TF,
    PduType.A_RELEASE_RQ: StateEvent.RECV_A_RELEASE_RQ,
    PduType.A_RELEASE_RP: StateEvent.RECV_A_RELEASE_RP,
    PduType.A_ABORT: StateEvent.RECV_A_ABORT,
}

# The effects that hand the content of a PDU to the user. No other PDU is decoded: one that is out
# of place is answered for being out of place, whatever it holds.
_CONTENT_EFFECTS: Final = frozenset(
    {
        Effect.INDICATE_ASSOCIATE,
        Effect.CONFIRM_ASSOCIATE_ACCEPT,
        Effect.CONFIRM_ASSOCIATE_REJECT,
        Effect.INDICATE_P_DATA,
        Effect.INDICATE_ABORT,
    }
)


_SENDS_GIVEN: Final = frozenset(
    {Effect.SEND_A_ASSOCIATE_RQ, Effect.SEND_A_ASSOCIATE_AC, Effect.SEND_A_ASSOCIATE_RJ}
)


class UpperLayer:
    """One association's end. Invariant: the state moves in the call; the caller owns all I/O.

    A blank cell of the table raises LocalProtocolError: only a bug on our side reaches it.
    """

    __slots__ = (
        "_output",
        "artim_running",
        "artim_starts",
        "close_transport",
        "poisoned",
        "role",
        "state",
    )

    def __init__(self, role: Role) -> None:
        self.role: Final = role
        self.state = State.IDLE
        self.artim_running = False
        self.artim_starts = 0
        """Counts starts, so that a caller sees that a running timer was started again."""
        self.close_transport = False
        self.poisoned: BaseException | None = None
        """What broke a send, or None."""
        self._output: list[bytes] = []

    @property
    def p_data_receivable(self) -> bool:
        """A P-DATA-TF is legal now (DT-2, AR-6)."""
        return bool(RECEIVE_P_DATA_MASK >> self.state & 1)

    @property
    def p_data_sendable(self) -> bool:
        """A P-DATA request is legal now (DT-1, AR-7)."""
        return self.poisoned is None and bool(SEND_P_DATA_MASK >> self.state & 1)

    @property
    def abortable(self) -> bool:
        """`abort` is legal now (Evt15 has a cell)."""
        return bool(ABORT_MASK >> self.state & 1)

    def take_output(self) -> list[bytes]:
        """The PDUs that must be sent, in order; the list is the caller's and is empty next time."""
        output, self._output = self._output, []
        return output

    # -- local primitives

    def connect(self) -> None:
        """Evt1: the requestor opens its transport connection."""
        self._require(Role.REQUESTOR, "connect")
        self._local(StateEvent.REQUEST_ASSOCIATE)

    def transport_connected(self, rq: AAssociateRq) -> None:
        """Evt2: the transport is open; the output is `rq`."""
        self._local(StateEvent.TRANSPORT_CONNECTED, rq)

    def transport_accepted(self) -> None:
        """Evt5: the acceptor has a new transport connection; ARTIM starts."""
        self._require(Role.ACCEPTOR, "transport_accepted")
        self._local(StateEvent.TRANSPORT_INDICATION)

    def accept(self, ac: AAssociateAc) -> None:
        """Evt7."""
        self._local(StateEvent.RESPOND_ASSOCIATE_ACCEPT, ac)

    def reject(self, rj: AAssociateRj) -> None:
        """Evt8."""
        self._local(StateEvent.RESPOND_ASSOCIATE_REJECT, rj)

    def check_p_data(self) -> None:
        """Evt9: raises LocalProtocolError unless P-DATA may be sent now. The state stays."""
        if not self.p_data_sendable:
            self._refuse(StateEvent.REQUEST_P_DATA)

    def request_release(self) -> None:
        """Evt11."""
        self._local(StateEvent.REQUEST_RELEASE)

    def respond_release(self) -> None:
        """Evt14."""
        self._local(StateEvent.RESPOND_RELEASE)

    def abort(self) -> None:
        """Evt15: A-ABORT by the service-user. Legal after `poison`; see `abortable`.

        After `poison` the last PDU may be half out. Then the A-ABORT of the output reaches the peer
        only if the caller knows that the broken send stopped at the border of a PDU.
        """
        self._step(StateEvent.REQUEST_ABORT)

    def transport_closed(self) -> Event | None:
        """Evt17: the peer closed, or the connection was lost. None where no user waits for it."""
        return self._step(StateEvent.TRANSPORT_CLOSED)

    def artim_expired(self) -> None:
        """Evt18."""
        self._step(StateEvent.ARTIM_EXPIRED)

    def poison(self, cause: BaseException) -> None:
        """A send broke off: of the local primitives only `abort`, and the end, are legal now.

        What the peer sends is still taken, for its A-ABORT may explain the broken send.
        """
        if self.poisoned is None:
            self.poisoned = cause

    # -- what the peer sent

    def received_pdu(self, pdu_type: int, body: bytes) -> Event | None:
        """One whole PDU: its type and its variable field. Returns what the user must hear, if any.

        Content that cannot be decoded, and an unknown type, become Evt19. A malformed A-ABORT is an
        A-ABORT all the same: answering it with another helps nobody.
        """
        event = _EVENT_OF_PDU.get(pdu_type)
        if event is None:
            return self._step(StateEvent.RECV_INVALID_PDU, reason=AbortReason.UNRECOGNIZED_PDU)
        if pdu_type in _FIXED_LENGTH_TYPES and len(body) != FIXED_PDU_LENGTH:
            if event is StateEvent.RECV_A_ABORT:
                return self._step(event, _UNREADABLE_ABORT)
            return self._step(
                StateEvent.RECV_INVALID_PDU, reason=AbortReason.INVALID_PDU_PARAMETER_VALUE
            )
        if not self._wants_content(event):
            return self._step(event, reason=AbortReason.UNEXPECTED_PDU)
        try:
            pdu = cast("_Content", decode_pdu(pdu_type, body))
        except RemoteProtocolError as exc:
            return self.received_fault(exc)
        return self._step(event, pdu)

    def received_fault(self, error: RemoteProtocolError) -> Event | None:
        """A fault that was found in what the peer sent, by the frame reader or by a decoder.

        Source 2 (a broken PDU) is Evt19 with the error's reason. Source 0 (P-DATA that breaks
        PS3.7) is the user's abort where P-DATA is legal, else P-DATA out of place.
        """
        if error.source == AbortSource.PROVIDER:
            return self._step(StateEvent.RECV_INVALID_PDU, reason=error.reason)
        if self.p_data_receivable:
            return self._step(StateEvent.REQUEST_ABORT)
        return self._step(StateEvent.RECV_P_DATA_TF, reason=AbortReason.UNEXPECTED_PDU)

    # -- the machine

    def _require(self, role: Role, primitive: str) -> None:
        if self.role is not role:
            raise LocalProtocolError(
                f"{primitive} is for the {role.value}, not the {self.role.value}"
            )

    def _refuse(self, event: StateEvent) -> NoReturn:
        poisoned = " after a broken send" if self.poisoned is not None else ""
        raise LocalProtocolError(
            f"Evt{event.value} {event.name} is not allowed in"
            f" Sta{self.state.value} {self.state.name}{poisoned} (PS3.8 Table 9-10)"
        )

    def _wants_content(self, event: StateEvent) -> bool:
        cell = TABLE[self.state][event]
        if cell is None:
            return False
        effects = cell.yes.effects if isinstance(cell, Choice) else cell.effects
        return not _CONTENT_EFFECTS.isdisjoint(effects)

    def _local(self, event: StateEvent, pdu: _Content | None = None) -> None:
        if self.poisoned is not None:
            self._refuse(event)
        self._step(event, pdu)

    def _step(
        self, event: StateEvent, pdu: _Content | None = None, reason: int = 0
    ) -> Event | None:
        """Looks the cell up, moves the state, performs the effects. `reason` is for an A-ABORT."""
        cell = TABLE[self.state][event]
        if cell is None:
            self._refuse(event)
        if isinstance(cell, Choice):
            if self._decide(pdu):
                cell = cell.yes
            else:
                cell = cell.no
                pdu = _VERSION_NOT_SUPPORTED  # AE-6; AR-8 uses no PDU
        self.state = cell.next_state
        indication: Event | None = None
        for effect in cell.effects:
            made = self._perform(effect, event, pdu, reason)
            if made is not None:
                indication = made
        return indication

    def _decide(self, pdu: _Content | None) -> bool:
        """AE-6: acceptable to the provider? (The user judges later.) AR-8: the requestor?"""
        if isinstance(pdu, AAssociateRq):
            return bool(pdu.protocol_version & _PROTOCOL_VERSION_1)
        return self.role is Role.REQUESTOR

    def _perform(
        self, effect: Effect, event: StateEvent, pdu: _Content | None, reason: int
    ) -> Event | None:
        match effect:
            case Effect.START_ARTIM:
                self.artim_running = True
                self.artim_starts += 1
            case Effect.STOP_ARTIM:
                self.artim_running = False
            case Effect.CLOSE_TRANSPORT:
                self.close_transport = True
            case Effect.SEND_A_RELEASE_RQ:
                self._output.append(AReleaseRq().encode())
            case Effect.SEND_A_RELEASE_RP:
                self._output.append(AReleaseRp().encode())
            case Effect.SEND_A_ABORT_USER:
                self._output.append(AAbort(source=AbortSource.USER, reason=0).encode())
            case Effect.SEND_A_ABORT_PROVIDER:
                self._output.append(AAbort(source=AbortSource.PROVIDER, reason=reason).encode())
            case Effect.INDICATE_RELEASE:
                return ReleaseRequested()
            case Effect.INDICATE_RELEASE_COLLISION:
                return ReleaseCollision()
            case Effect.CONFIRM_RELEASE:
                return ReleaseConfirmed()
            case Effect.INDICATE_A_P_ABORT:
                if event is StateEvent.TRANSPORT_CLOSED:
                    return TransportClosed()
                return ProviderAborted(source=AbortSource.PROVIDER, reason=reason, local=True)
            case _ if pdu is not None and effect in _SENDS_GIVEN:
                self._output.append(pdu.encode())
            case _ if pdu is not None:
                return _indication(pdu)
        return None  # CONNECT_TRANSPORT: the caller of `connect` does it


def _indication(pdu: _Content) -> Event:
    if isinstance(pdu, AAssociateRq):
        return AssociationRequested(rq=pdu)
    if isinstance(pdu, AAssociateAc):
        return AssociationAccepted(ac=pdu)
    if isinstance(pdu, AAssociateRj):
        return AssociationRejectedEvent(rj=pdu)
    if isinstance(pdu, PDataTf):
        return PDataReceived(p_data=pdu)
    if pdu.source == AbortSource.USER:
        return Aborted(source=pdu.source, reason=pdu.reason)
    return ProviderAborted(source=pdu.source, reason=pdu.reason, local=False)
