"""The state table of the DICOM upper layer (PS3.8 Tables 9-6 to 9-10) as data; it performs nothing.

The machine knows no socket, no timer and no role. A step looks up `TABLE[state][event]` and gets an
`Action`: a tuple of effects, which are verbs, and the next state. `upper_layer.py` turns the verbs
into PDUs, events and flags. Two actions choose: AE-6 asks whether the request is acceptable, AR-8
asks who is the requestor. Each stands in the table as a pair of branches; one caller picks.

P-DATA never changes the state (DT-1, DT-2, AR-6, AR-7). So whoever moves P-DATA tests one bit of a
mask instead of the table; the masks are derived from the table below.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from typing import Final

__all__ = [
    "ABORT_MASK",
    "ACTIONS",
    "RECEIVE_P_DATA_MASK",
    "SEND_P_DATA_MASK",
    "TABLE",
    "Action",
    "Choice",
    "Effect",
    "State",
    "StateEvent",
]


class State(IntEnum):
    """Sta1 to Sta13 (PS3.8 Tables 9-1 to 9-5)."""

    IDLE = 1
    AWAITING_ASSOCIATE_RQ = 2
    AWAITING_LOCAL_ASSOCIATE_RESPONSE = 3
    AWAITING_TRANSPORT = 4
    AWAITING_ASSOCIATE_RESPONSE = 5
    DATA_TRANSFER = 6
    AWAITING_RELEASE_RP = 7
    AWAITING_LOCAL_RELEASE_RESPONSE = 8
    COLLISION_REQUESTOR = 9
    """Both sides asked for release; the requestor's user must respond first."""
    COLLISION_ACCEPTOR = 10
    """Both sides asked for release; the acceptor waits for the A-RELEASE-RP."""
    COLLISION_REQUESTOR_AWAITING_RP = 11
    COLLISION_ACCEPTOR_RESPONDING = 12
    """The acceptor got its A-RELEASE-RP; its user must respond."""
    AWAITING_CLOSE = 13


class StateEvent(IntEnum):
    """Evt1 to Evt19 in the order of PS3.8 Table 9-10."""

    REQUEST_ASSOCIATE = 1
    TRANSPORT_CONNECTED = 2
    RECV_A_ASSOCIATE_AC = 3
    RECV_A_ASSOCIATE_RJ = 4
    TRANSPORT_INDICATION = 5
    RECV_A_ASSOCIATE_RQ = 6
    RESPOND_ASSOCIATE_ACCEPT = 7
    RESPOND_ASSOCIATE_REJECT = 8
    REQUEST_P_DATA = 9
    RECV_P_DATA_TF = 10
    REQUEST_RELEASE = 11
    RECV_A_RELEASE_RQ = 12
    RECV_A_RELEASE_RP = 13
    RESPOND_RELEASE = 14
    REQUEST_ABORT = 15
    RECV_A_ABORT = 16
    TRANSPORT_CLOSED = 17
    ARTIM_EXPIRED = 18
    RECV_INVALID_PDU = 19


class Effect(Enum):
    """What an action asks for. INDICATE and CONFIRM speak to the user, SEND to the peer."""

    CONNECT_TRANSPORT = auto()
    CLOSE_TRANSPORT = auto()
    START_ARTIM = auto()
    """Starts the timer, or starts it again from zero where it runs (AA-1)."""
    STOP_ARTIM = auto()
    SEND_A_ASSOCIATE_RQ = auto()
    SEND_A_ASSOCIATE_AC = auto()
    SEND_A_ASSOCIATE_RJ = auto()
    SEND_P_DATA_TF = auto()
    SEND_A_RELEASE_RQ = auto()
    SEND_A_RELEASE_RP = auto()
    SEND_A_ABORT_USER = auto()
    """A-ABORT with source 0, the service-user; its reason is 0."""
    SEND_A_ABORT_PROVIDER = auto()
    """A-ABORT with source 2, the service-provider, and a reason (PS3.8 §9.3.8)."""
    INDICATE_ASSOCIATE = auto()
    CONFIRM_ASSOCIATE_ACCEPT = auto()
    CONFIRM_ASSOCIATE_REJECT = auto()
    INDICATE_P_DATA = auto()
    INDICATE_RELEASE = auto()
    INDICATE_RELEASE_COLLISION = auto()
    CONFIRM_RELEASE = auto()
    INDICATE_ABORT = auto()
    """A-ABORT or A-P-ABORT indication, as the source of the received PDU says (AA-3)."""
    INDICATE_A_P_ABORT = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """One branch of an action: its effects in order, then the next state."""

    name: str
    effects: tuple[Effect, ...]
    next_state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """AE-6 and AR-8: `yes` when the request is acceptable, or when we are the requestor."""

    name: str
    yes: Action
    no: Action


def _action(name: str, next_state: int, *effects: Effect) -> Action:
    return Action(name=name, effects=effects, next_state=State(next_state))


def _choice(name: str, yes: Action, no: Action) -> Choice:
    return Choice(name=name, yes=yes, no=no)


_ALL: Final[tuple[Action | Choice, ...]] = (
    # PS3.8 Table 9-6, association establishment
    _action("AE-1", 4, Effect.CONNECT_TRANSPORT),
    _action("AE-2", 5, Effect.SEND_A_ASSOCIATE_RQ),
    _action("AE-3", 6, Effect.CONFIRM_ASSOCIATE_ACCEPT),
    _action("AE-4", 1, Effect.CONFIRM_ASSOCIATE_REJECT, Effect.CLOSE_TRANSPORT),
    _action("AE-5", 2, Effect.START_ARTIM),
    _choice(
        "AE-6",
        _action("AE-6", 3, Effect.STOP_ARTIM, Effect.INDICATE_ASSOCIATE),
        _action("AE-6", 13, Effect.STOP_ARTIM, Effect.SEND_A_ASSOCIATE_RJ, Effect.START_ARTIM),
    ),
    _action("AE-7", 6, Effect.SEND_A_ASSOCIATE_AC),
    _action("AE-8", 13, Effect.SEND_A_ASSOCIATE_RJ, Effect.START_ARTIM),
    # PS3.8 Table 9-7, data transfer
    _action("DT-1", 6, Effect.SEND_P_DATA_TF),
    _action("DT-2", 6, Effect.INDICATE_P_DATA),
    # PS3.8 Table 9-8, association release
    _action("AR-1", 7, Effect.SEND_A_RELEASE_RQ),
    _action("AR-2", 8, Effect.INDICATE_RELEASE),
    _action("AR-3", 1, Effect.CONFIRM_RELEASE, Effect.CLOSE_TRANSPORT),
    _action("AR-4", 13, Effect.SEND_A_RELEASE_RP, Effect.START_ARTIM),
    _action("AR-5", 1, Effect.STOP_ARTIM),
    _action("AR-6", 7, Effect.INDICATE_P_DATA),
    _action("AR-7", 8, Effect.SEND_P_DATA_TF),
    _choice(
        "AR-8",
        _action("AR-8", 9, Effect.INDICATE_RELEASE_COLLISION),
        _action("AR-8", 10, Effect.INDICATE_RELEASE_COLLISION),
    ),
    _action("AR-9", 11, Effect.SEND_A_RELEASE_RP),
    _action("AR-10", 12, Effect.CONFIRM_RELEASE),
    # PS3.8 Table 9-9, association abort
    _action("AA-1", 13, Effect.SEND_A_ABORT_USER, Effect.START_ARTIM),
    _action("AA-2", 1, Effect.STOP_ARTIM, Effect.CLOSE_TRANSPORT),
    _action("AA-3", 1, Effect.INDICATE_ABORT, Effect.CLOSE_TRANSPORT),
    _action("AA-4", 1, Effect.INDICATE_A_P_ABORT),
    _action("AA-5", 1, Effect.STOP_ARTIM),
    _action("AA-6", 13),
    # AA-7 does not name a source; what provokes it is a broken or misplaced PDU: the provider.
    _action("AA-7", 13, Effect.SEND_A_ABORT_PROVIDER),
    _action(
        "AA-8",
        13,
        Effect.SEND_A_ABORT_PROVIDER,
        Effect.INDICATE_A_P_ABORT,
        Effect.START_ARTIM,
    ),
)

ACTIONS: Final[dict[str, Action | Choice]] = {action.name: action for action in _ALL}

# PS3.8 Table 9-10, a line an event: `state:action`, `first-last:action`. A state that a line leaves
# out is a blank cell.
_ROWS: Final[dict[StateEvent, str]] = {
    StateEvent.REQUEST_ASSOCIATE: "1:AE-1",
    StateEvent.TRANSPORT_CONNECTED: "4:AE-2",
    StateEvent.RECV_A_ASSOCIATE_AC: "2:AA-1 3:AA-8 5:AE-3 6-12:AA-8 13:AA-6",
    StateEvent.RECV_A_ASSOCIATE_RJ: "2:AA-1 3:AA-8 5:AE-4 6-12:AA-8 13:AA-6",
    StateEvent.TRANSPORT_INDICATION: "1:AE-5",
    StateEvent.RECV_A_ASSOCIATE_RQ: "2:AE-6 3:AA-8 5-12:AA-8 13:AA-7",
    StateEvent.RESPOND_ASSOCIATE_ACCEPT: "3:AE-7",
    StateEvent.RESPOND_ASSOCIATE_REJECT: "3:AE-8",
    StateEvent.REQUEST_P_DATA: "6:DT-1 8:AR-7",
    StateEvent.RECV_P_DATA_TF: "2:AA-1 3:AA-8 5:AA-8 6:DT-2 7:AR-6 8-12:AA-8 13:AA-6",
    StateEvent.REQUEST_RELEASE: "6:AR-1",
    StateEvent.RECV_A_RELEASE_RQ: "2:AA-1 3:AA-8 5:AA-8 6:AR-2 7:AR-8 8-12:AA-8 13:AA-6",
    StateEvent.RECV_A_RELEASE_RP: (
        "2:AA-1 3:AA-8 5-6:AA-8 7:AR-3 8-9:AA-8 10:AR-10 11:AR-3 12:AA-8 13:AA-6"
    ),
    StateEvent.RESPOND_RELEASE: "8:AR-4 9:AR-9 12:AR-4",
    StateEvent.REQUEST_ABORT: "3:AA-1 4:AA-2 5-12:AA-1",
    StateEvent.RECV_A_ABORT: "2:AA-2 3:AA-3 5-12:AA-3 13:AA-2",
    StateEvent.TRANSPORT_CLOSED: "2:AA-5 3-12:AA-4 13:AR-5",
    StateEvent.ARTIM_EXPIRED: "2:AA-2 13:AA-2",
    StateEvent.RECV_INVALID_PDU: "2:AA-1 3:AA-8 5-12:AA-8 13:AA-7",
}


def _parse_row(row: str) -> dict[int, Action | Choice]:
    cells: dict[int, Action | Choice] = {}
    for cell in row.split():
        states, _, name = cell.partition(":")
        first, _, last = states.partition("-")
        for state in range(int(first), int(last or first) + 1):
            cells[state] = ACTIONS[name]
    return cells


def _dense() -> tuple[tuple[Action | Choice | None, ...], ...]:
    rows = {event: _parse_row(row) for event, row in _ROWS.items()}
    # Index 0 of both axes is empty, so that the standard's numbers are the indices.
    return (
        (None,) * (len(StateEvent) + 1),
        *((None, *(rows[event].get(state) for event in StateEvent)) for state in State),
    )


TABLE: Final = _dense()
"""`TABLE[state][event]`: the cell of PS3.8 Table 9-10, None where it is blank."""


def _mask(event: StateEvent, *effects: Effect) -> int:
    """Bits `1 << state` of the states where `event` has one of `effects` (any action if none)."""
    mask = 0
    for state in State:
        cell = TABLE[state][event]
        if isinstance(cell, Action) and (not effects or set(effects) & set(cell.effects)):
            mask |= 1 << state
    return mask


RECEIVE_P_DATA_MASK: Final = _mask(StateEvent.RECV_P_DATA_TF, Effect.INDICATE_P_DATA)
SEND_P_DATA_MASK: Final = _mask(StateEvent.REQUEST_P_DATA, Effect.SEND_P_DATA_TF)
ABORT_MASK: Final = _mask(StateEvent.REQUEST_ABORT)
