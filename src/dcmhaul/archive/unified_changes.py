"""What becomes of unified procedure steps in the archive's database: their rows, states and events.

Everything here runs on the thread of a connection (PS3.4 Tables CC.1.1-2, CC.2.5-3).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from dcmhaul import uids
from dcmhaul.archive import subscriptions
from dcmhaul.archive.items import WorklistQuery, parse_item
from dcmhaul.archive.subscriptions import GLOBAL, SUBSCRIPTION, Event
from dcmhaul.archive.tables import KEPT, primary_key
from dcmhaul.protocol import statuses
from dcmhaul.services.identifiers import (
    decode_identifier,
    encode_identifier,
)
from dcmhaul.services.normalized import (
    STEP_LENGTH_MAX,
    NormalizedRefused,
    check_present,
)
from dcmhaul.services.unified import (
    ASSIGNED,
    CANCEL_REQUESTED,
    CANCELED,
    COMPLETED,
    FINAL,
    IN_PROGRESS,
    PROGRESS_REPORT,
    SCHEDULED,
    STATE_REPORT,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydicom.dataset import Dataset
    from sqlalchemy.engine import Connection

    from dcmhaul.services.normalized import NormalizedRequest

__all__ = [
    "Act",
    "Action",
    "NOT_SCHEDULED",
    "RECEIVER_UNKNOWN",
    "RECEIVING_AE",
    "REQUIRED",
    "STATE",
    "TRANSACTION_UID",
    "Told",
    "WORKLIST_LABEL",
    "change_state",
    "find_page",
    "find_step",
    "given",
    "insert",
    "nothing",
    "read_step",
    "receiver_of",
    "request_cancel",
    "state_reports",
    "subscribe",
    "suspend",
    "text_of",
    "unsubscribe",
    "update",
]

# Statuses of PS3.4 §CC.2 and their comments.
MAY_NOT_BE_UPDATED: Final = (0xC300, "the step may no longer be updated")
WRONG_TRANSACTION: Final = (0xC301, "the correct Transaction UID was not provided")
ALREADY_IN_PROGRESS: Final = (0xC302, "the step is already IN PROGRESS")
SCHEDULED_BY_CREATION: Final = (0xC303, "only N-CREATE makes a step SCHEDULED")
NOT_FINISHED: Final = 0xC304
NO_SUCH_STEP: Final = (0xC307, "no such unified procedure step")
RECEIVER_UNKNOWN: Final = (0xC308, "the Receiving AE is no node that is known here")
NOT_SCHEDULED: Final = (0xC309, "a new step is SCHEDULED")
NOT_IN_PROGRESS: Final = (0xC310, "the step is not IN PROGRESS")
ALREADY_COMPLETED: Final = (0xC311, "the step is COMPLETED")
PERFORMER_UNREACHABLE: Final = (0xC312, "nobody has subscribed to the step")
CANCELED_ALREADY: Final = 0xB304
COMPLETED_ALREADY: Final = 0xB306

TRANSACTION_UID: Final = 0x00081195
RECEIVING_AE: Final = 0x00741234
_DELETION_LOCK: Final = 0x00741230
WORKLIST_LABEL: Final = 0x00741202
STATE: Final = 0x00741000
_PROGRESS: Final = 0x00741002
_READINESS: Final = 0x00404041
_STATIONS: Final = 0x00404025
_PERFORMERS: Final = 0x00404034
_PERFORMED: Final = 0x00741216
# Type 1 at N-CREATE (PS3.4 Table CC.2.5-3).
REQUIRED: Final = (
    0x00741200,  # Scheduled Procedure Step Priority
    0x00741204,  # Procedure Step Label
    0x00404005,  # Scheduled Procedure Step Start DateTime
    _READINESS,
)
# What each performed procedure of a completed step has (the same table, final state P).
_REQUIRED_AT_END: Final = (
    0x00404019,  # Performed Workitem Code Sequence
    0x00404050,  # Performed Procedure Step Start DateTime
    0x00404051,  # Performed Procedure Step End DateTime
)
# What a cancellation says of itself, in a request and in the events (PS3.4 Tables CC.2.2-1, CC.2.4-1).
_CANCELLATION: Final = (0x0074100E, 0x00741238)
_CONTACT: Final = (0x0074100A, 0x0074100C)

KEPT_SECONDS: Final = 30 * 24 * 3600
"""A step that ended, and on which no deletion lock is, stays for so long."""
_ELEMENTS_MAX: Final = 500_000
_PAGE: Final = 128

_STEP: Final = sa.Table(
    "unified_step",
    KEPT,
    primary_key(),
    sa.Column("sop_instance_uid", sa.Text, nullable=False, unique=True),
    sa.Column("state", sa.Text, nullable=False, index=True),
    # The key to a step in progress, which is told to nobody (PS3.4 §CC.2.7.3).
    sa.Column("transaction_uid", sa.Text, nullable=False),
    # In Explicit VR Little Endian.
    sa.Column("attributes", sa.LargeBinary, nullable=False),
    sa.Column("changed", sa.BigInteger, nullable=False),
)

Told = tuple[list[str], list[Event]]
"""Who is to hear of what."""


class Act:
    """What an action is asked of, and with what."""

    def __init__(self, request: NormalizedRequest, information: Dataset, receiver: str) -> None:
        self.uid = request.sop_instance_uid
        self.calling_ae_title = request.calling_ae_title
        self.information = information
        self.receiver = receiver

    @property
    def locks(self) -> bool:
        """Deletion Lock; NormalizedRefused where it is none."""
        lock = text_of(self.information, _DELETION_LOCK).upper() or "FALSE"
        if lock not in ("TRUE", "FALSE"):
            raise NormalizedRefused(
                statuses.INVALID_ARGUMENT_VALUE,
                "Deletion Lock is TRUE or FALSE",
                attributes=(_DELETION_LOCK,),
            )
        return lock == "TRUE"


Action = Callable[[Act, "Connection"], tuple[int, list[Told]]]


def nothing() -> Dataset:
    from pydicom.dataset import Dataset

    return Dataset()


def given(request: NormalizedRequest) -> Dataset:
    if request.dataset is None:
        raise NormalizedRefused(statuses.MISSING_ATTRIBUTE, "no attributes", attributes=(STATE,))
    return request.dataset


def text_of(attributes: Dataset, tag: int) -> str:
    return str(attributes[tag].value or "").strip() if tag in attributes else ""


def receiver_of(information: Dataset | None) -> str:
    receiver = "" if information is None else text_of(information, RECEIVING_AE)
    if not receiver:
        raise NormalizedRefused(
            statuses.MISSING_ATTRIBUTE, "no Receiving AE", attributes=(RECEIVING_AE,)
        )
    return receiver


def _now() -> str:
    return time.strftime("%Y%m%d%H%M%S")


# -- rows ---------------------------------------------------------------------------------------


def _encode(attributes: Dataset) -> bytes:
    try:
        data = encode_identifier(attributes, uids.EXPLICIT_VR_LITTLE_ENDIAN)
    except ValueError as exc:
        raise NormalizedRefused(statuses.INVALID_ATTRIBUTE_VALUE, str(exc)[:64]) from exc
    if len(data) > STEP_LENGTH_MAX:
        raise NormalizedRefused(
            statuses.RESOURCE_LIMITATION, f"the step has over {STEP_LENGTH_MAX} bytes"
        )
    return data


def _decode(data: bytes) -> Dataset:
    return decode_identifier(data, uids.EXPLICIT_VR_LITTLE_ENDIAN, elements_max=_ELEMENTS_MAX)


def find_step(uid: str, connection: Connection) -> sa.Row[Any]:
    found = connection.execute(sa.select(_STEP).where(_STEP.c.sop_instance_uid == uid)).first()
    if found is None:
        raise NormalizedRefused(*NO_SUCH_STEP)
    return found


def read_step(uid: str, connection: Connection) -> Dataset:
    return _decode(find_step(uid, connection).attributes)


def _values(attributes: Dataset) -> dict[str, object]:
    attributes.ScheduledProcedureStepModificationDateTime = _now()
    return {
        "state": text_of(attributes, STATE),
        "attributes": _encode(attributes),
        "changed": int(time.time()),
    }


def _write(connection: Connection, uid: str, attributes: Dataset, **more: object) -> None:
    values = _values(attributes) | more
    connection.execute(_STEP.update().where(_STEP.c.sop_instance_uid == uid).values(**values))


def find_page(
    query: WorklistQuery, state: str | None, last: int, connection: Connection
) -> tuple[int, list[bytes]]:
    """The matches among the next steps, and where to go on; 0 at the end."""
    statement = sa.select(_STEP.c.pk, _STEP.c.attributes).where(_STEP.c.pk > last)
    if state is not None:
        statement = statement.where(_STEP.c.state == state)
    rows = connection.execute(statement.order_by(_STEP.c.pk).limit(_PAGE)).all()
    syntax = uids.EXPLICIT_VR_LITTLE_ENDIAN
    items = [
        parse_item(row.attributes, syntax, length_max=len(row.attributes) * 4 + 64) for row in rows
    ]
    return rows[-1].pk if len(rows) == _PAGE else 0, query.responses(items)


def _prune(connection: Connection) -> None:
    """Forgets steps that ended long ago, where nobody has locked them."""
    locked = sa.select(SUBSCRIPTION.c.sop_instance_uid).where(SUBSCRIPTION.c.locked)
    old = (
        sa.select(_STEP.c.sop_instance_uid)
        .where(_STEP.c.state.in_(FINAL) & (_STEP.c.changed < int(time.time()) - KEPT_SECONDS))
        .where(_STEP.c.sop_instance_uid.not_in(locked))
    )
    gone = list(connection.scalars(old.limit(_PAGE)))
    if gone:
        connection.execute(SUBSCRIPTION.delete().where(SUBSCRIPTION.c.sop_instance_uid.in_(gone)))
        connection.execute(_STEP.delete().where(_STEP.c.sop_instance_uid.in_(gone)))


# -- changes, on the writer thread --------------------------------------------------------------


def insert(uid: str, attributes: Dataset, connection: Connection) -> tuple[int, list[Told]]:
    known = sa.select(_STEP.c.pk).where(_STEP.c.sop_instance_uid == uid)
    if connection.execute(known).first() is not None:
        raise NormalizedRefused(statuses.DUPLICATE_SOP_INSTANCE, "this step is known already")
    _prune(connection)
    row = {"sop_instance_uid": uid, "transaction_uid": "", **_values(attributes)}
    connection.execute(_STEP.insert(), row)
    events = [_state_report(uid, attributes)]
    if any(tag in attributes and attributes[tag].value for tag in (_STATIONS, _PERFORMERS)):
        events.append(_assigned(uid, attributes))
    return 0, [(subscriptions.add_step(connection, uid), events)]


def update(
    uid: str, transaction: str, changes: Dataset, connection: Connection
) -> tuple[int, list[Told]]:
    row = find_step(uid, connection)
    if row.state in FINAL:
        raise NormalizedRefused(*MAY_NOT_BE_UPDATED)
    if row.state == SCHEDULED and transaction:
        raise NormalizedRefused(*NOT_IN_PROGRESS)
    if transaction != row.transaction_uid:
        raise NormalizedRefused(*WRONG_TRANSACTION)
    attributes = _decode(row.attributes)
    events = _merge(uid, attributes, changes)
    _write(connection, uid, attributes)
    return 0, [(subscriptions.subscribers(connection, uid), events)]


def _merge(uid: str, attributes: Dataset, changes: Dataset) -> list[Event]:
    """Takes the changes over; the events that they are worth."""
    mixed = "SpecificCharacterSet" in changes and (
        attributes.get("SpecificCharacterSet") != changes.SpecificCharacterSet
    )
    attributes.decode()
    changes.decode()
    before = {tag: attributes.get(tag) for tag in (_PROGRESS, _READINESS, _STATIONS, _PERFORMERS)}
    attributes.update(changes)
    if mixed:
        attributes.SpecificCharacterSet = "ISO_IR 192"
    changed = {tag for tag, value in before.items() if attributes.get(tag) != value}
    events = []
    if _READINESS in changed:
        events.append(_state_report(uid, attributes))
    if _PROGRESS in changed:
        events.append(_event(uid, PROGRESS_REPORT, attributes, (_PROGRESS,)))
    if changed & {_STATIONS, _PERFORMERS}:
        events.append(_assigned(uid, attributes))
    return events


def change_state(act: Act, connection: Connection) -> tuple[int, list[Told]]:
    """PS3.4 Table CC.1.1-2."""
    row = find_step(act.uid, connection)
    check_present(act.information, (STATE,))
    wanted = text_of(act.information, STATE)
    transaction = text_of(act.information, TRANSACTION_UID)
    if wanted not in (SCHEDULED, IN_PROGRESS, *FINAL):
        raise NormalizedRefused(
            statuses.INVALID_ARGUMENT_VALUE, "no state of a step", attributes=(STATE,)
        )
    if wanted == SCHEDULED:
        raise NormalizedRefused(*SCHEDULED_BY_CREATION)
    claims = wanted == IN_PROGRESS and row.state == SCHEDULED
    right = uids.is_valid_uid(transaction) and (claims or transaction == row.transaction_uid)
    if row.state == SCHEDULED and wanted != IN_PROGRESS and uids.is_valid_uid(transaction):
        raise NormalizedRefused(*NOT_IN_PROGRESS)
    if not right:
        # Whoever comes too late for a step learns that it is taken, not that a key is wrong.
        late = wanted == IN_PROGRESS and row.state == IN_PROGRESS and transaction
        raise NormalizedRefused(*(ALREADY_IN_PROGRESS if late else WRONG_TRANSACTION))
    if row.state == wanted:
        if wanted == IN_PROGRESS:
            raise NormalizedRefused(*ALREADY_IN_PROGRESS)
        return (COMPLETED_ALREADY if wanted == COMPLETED else CANCELED_ALREADY), []
    if row.state in FINAL:
        raise NormalizedRefused(*MAY_NOT_BE_UPDATED)
    attributes = _decode(row.attributes)
    if wanted == COMPLETED:
        _check_finished(attributes)
    return 0, [_enter(connection, act.uid, attributes, wanted, transaction)]


def _check_finished(attributes: Dataset) -> None:
    performed = attributes.get("UnifiedProcedureStepPerformedProcedureSequence")
    try:
        check_present(attributes, (_PERFORMED,))
        for item in performed or ():
            check_present(item, _REQUIRED_AT_END)
    except NormalizedRefused as missing:
        raise NormalizedRefused(
            NOT_FINISHED,
            "what was performed is not complete",
            attributes=missing.answer.attributes,
        ) from None


def _enter(
    connection: Connection, uid: str, attributes: Dataset, state: str, transaction: str
) -> Told:
    """Brings a step to a state."""
    attributes.ProcedureStepState = state
    if state == CANCELED:
        progress = _progress(attributes)
        if not progress.get("ProcedureStepCancellationDateTime"):
            progress.ProcedureStepCancellationDateTime = _now()
    _write(connection, uid, attributes, transaction_uid=transaction)
    return subscriptions.subscribers(connection, uid), [_state_report(uid, attributes)]


def _progress(attributes: Dataset) -> Dataset:
    """The one item of Procedure Step Progress Information Sequence, made where it is missing."""
    sequence = attributes.get("ProcedureStepProgressInformationSequence")
    if not sequence:
        attributes.ProcedureStepProgressInformationSequence = [nothing()]
        sequence = attributes.ProcedureStepProgressInformationSequence
    item: Dataset = sequence[0]
    return item


def request_cancel(act: Act, connection: Connection) -> tuple[int, list[Told]]:
    """PS3.4 §CC.2.2.3: what nobody has begun ends here; else its performer is asked."""
    row = find_step(act.uid, connection)
    if row.state == CANCELED:
        return CANCELED_ALREADY, []
    if row.state == COMPLETED:
        raise NormalizedRefused(*ALREADY_COMPLETED)
    if row.state == IN_PROGRESS:
        titles = subscriptions.subscribers(connection, act.uid)
        if not titles:
            raise NormalizedRefused(*PERFORMER_UNREACHABLE)
        event = _event(act.uid, CANCEL_REQUESTED, act.information, (*_CANCELLATION, *_CONTACT))
        event.information.RequestingAE = act.calling_ae_title
        return 0, [(titles, [event])]
    attributes = _decode(row.attributes)
    progress = _progress(attributes)
    for tag in _CANCELLATION:
        if tag in act.information:
            progress[tag] = act.information[tag]
    transaction = uids.new_uid()
    return 0, [
        _enter(connection, act.uid, attributes, state, transaction)
        for state in (IN_PROGRESS, CANCELED)
    ]


def subscribe(act: Act, connection: Connection) -> tuple[int, list[Told]]:
    if act.uid != GLOBAL:
        find_step(act.uid, connection)
    subscriptions.subscribe(
        connection, act.receiver, act.uid, sa.select(_STEP.c.sop_instance_uid), locked=act.locks
    )
    return 0, []


def state_reports(uid: str, last: int, connection: Connection) -> tuple[int, list[Event]]:
    """The states of the next steps, or of one, and where to go on; 0 at the end."""
    statement = sa.select(_STEP).where(_STEP.c.pk > last)
    if uid != GLOBAL:
        statement = statement.where(_STEP.c.sop_instance_uid == uid)
    rows = connection.execute(statement.order_by(_STEP.c.pk).limit(_PAGE)).all()
    events = [_state_report(row.sop_instance_uid, _decode(row.attributes)) for row in rows]
    return rows[-1].pk if len(rows) == _PAGE else 0, events


def unsubscribe(act: Act, connection: Connection) -> tuple[int, list[Told]]:
    if act.uid != GLOBAL:
        find_step(act.uid, connection)
    subscriptions.unsubscribe(connection, act.receiver, act.uid)
    return 0, []


def suspend(act: Act, connection: Connection) -> tuple[int, list[Told]]:
    if act.uid != GLOBAL:
        raise NormalizedRefused(0xC314, "only the subscription to all is suspended")
    subscriptions.suspend(connection, act.receiver)
    return 0, []


# -- events -------------------------------------------------------------------------------------


def _event(uid: str, type_id: int, source: Dataset, tags: Iterable[int]) -> Event:
    information = nothing()
    for tag in tags:
        if tag in source:
            information[tag] = deepcopy(source[tag])  # the step goes on to change
    if "SpecificCharacterSet" in source:
        information.SpecificCharacterSet = source.SpecificCharacterSet
    return Event(sop_instance_uid=uid, type_id=type_id, information=information)


def _state_report(uid: str, attributes: Dataset) -> Event:
    event = _event(uid, STATE_REPORT, attributes, (STATE, _READINESS))
    if text_of(attributes, STATE) == CANCELED:
        progress = _progress(attributes)
        for tag in _CANCELLATION:
            if tag in progress:
                event.information[tag] = progress[tag]
    return event


def _assigned(uid: str, attributes: Dataset) -> Event:
    """UPS Assigned: its human performers are those of the first item (PS3.4 Table CC.2.4-1)."""
    event = _event(uid, ASSIGNED, attributes, (_STATIONS,))
    performers = attributes.get("ScheduledHumanPerformersSequence") or ()
    for performer in performers:
        for tag in (0x00404009, 0x00404036):
            if tag in performer:
                event.information[tag] = performer[tag]
        break
    return event
