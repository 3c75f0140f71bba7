"""Unified Procedure Steps (PS3.4 Annex CC): their actions and events, and the SCU.

Whatever the class of the context, the messages name the Push class (PS3.4 §CC.3.1); a C-FIND alone names
that of its context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dcmhaul import uids
from dcmhaul.services.normalized import SopClass, n_action

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from dcmhaul.net import Association
    from dcmhaul.services.normalized import NormalizedResponse, Operation

__all__ = [
    "ASSIGNED",
    "CANCELED",
    "CANCEL_REQUESTED",
    "CHANGE_STATE",
    "COMPLETED",
    "EVENTS",
    "FINAL",
    "IN_PROGRESS",
    "PROGRESS_REPORT",
    "REQUEST_CANCEL",
    "SCHEDULED",
    "STATE_REPORT",
    "STATUS_CHANGE",
    "SUBSCRIBE",
    "SUSPEND",
    "UNSUBSCRIBE",
    "change_state",
    "event_class",
    "request_cancel",
    "subscribe",
    "suspend",
    "unsubscribe",
]

SCHEDULED: Final = "SCHEDULED"
IN_PROGRESS: Final = "IN PROGRESS"
COMPLETED: Final = "COMPLETED"
CANCELED: Final = "CANCELED"
"""Values of Procedure Step State (0074,1000)."""
FINAL: Final = (COMPLETED, CANCELED)

CHANGE_STATE: Final = 1
REQUEST_CANCEL: Final = 2
SUBSCRIBE: Final = 3
UNSUBSCRIBE: Final = 4
SUSPEND: Final = 5
"""Action Type IDs (PS3.4 Tables CC.2.1-1, CC.2.2-1, CC.2.3-1)."""

STATE_REPORT: Final = 1
CANCEL_REQUESTED: Final = 2
PROGRESS_REPORT: Final = 3
STATUS_CHANGE: Final = 4
ASSIGNED: Final = 5
"""Event Type IDs (PS3.4 Table CC.2.4-1)."""

EVENTS: Final = {
    STATE_REPORT: "state report",
    CANCEL_REQUESTED: "cancel requested",
    PROGRESS_REPORT: "progress report",
    STATUS_CHANGE: "SCP status change",
    ASSIGNED: "assigned",
}


def event_class(report: Operation) -> SopClass:
    """For a NormalizedScp that gets events: `report` is called for each N-EVENT-REPORT (PS3.4 §CC.2.4)."""
    return SopClass(
        uid=uids.UNIFIED_STEP_PUSH,
        operations={"N-EVENT-REPORT": report},
        contexts=(uids.UNIFIED_STEP_EVENT,),
        from_scp=True,
    )


async def change_state(
    association: Association,
    sop_instance_uid: str,
    state: str,
    transaction_uid: str,
    *,
    context: str = uids.UNIFIED_STEP_PULL,
) -> NormalizedResponse:
    """Claims a step, or ends it (PS3.4 §CC.2.1). transaction_uid: whoever claims chooses it, and it is the
    key to the step from then on. Raises what `n_action` raises; so do all of these."""
    from pydicom.dataset import Dataset

    information = Dataset()
    information.TransactionUID = transaction_uid
    information.ProcedureStepState = state
    return await n_action(
        association,
        uids.UNIFIED_STEP_PUSH,
        sop_instance_uid,
        CHANGE_STATE,
        information,
        context=context,
    )


async def request_cancel(
    association: Association,
    sop_instance_uid: str,
    information: Dataset | None = None,
    *,
    context: str = uids.UNIFIED_STEP_PUSH,
) -> NormalizedResponse:
    """Asks for the end of a step that another performs (PS3.4 §CC.2.2)."""
    return await n_action(
        association,
        uids.UNIFIED_STEP_PUSH,
        sop_instance_uid,
        REQUEST_CANCEL,
        information,
        context=context,
    )


async def _subscription(
    association: Association,
    action: int,
    sop_instance_uid: str,
    receiving_ae_title: str,
    deletion_lock: bool | None = None,
) -> NormalizedResponse:
    from pydicom.dataset import Dataset

    information = Dataset()
    information.ReceivingAE = receiving_ae_title
    if deletion_lock is not None:
        information.DeletionLock = "TRUE" if deletion_lock else "FALSE"
    return await n_action(
        association,
        uids.UNIFIED_STEP_PUSH,
        sop_instance_uid,
        action,
        information,
        context=uids.UNIFIED_STEP_WATCH,
    )


async def subscribe(
    association: Association,
    receiving_ae_title: str,
    sop_instance_uid: str = uids.UNIFIED_STEP_SUBSCRIPTION,
    *,
    deletion_lock: bool = False,
) -> NormalizedResponse:
    """Has the events of one step, or of all, sent to an AE (PS3.4 §CC.2.3).

    deletion_lock: steps that ended stay until the AE has unsubscribed from them.
    """
    return await _subscription(
        association, SUBSCRIBE, sop_instance_uid, receiving_ae_title, deletion_lock
    )


async def unsubscribe(
    association: Association,
    receiving_ae_title: str,
    sop_instance_uid: str = uids.UNIFIED_STEP_SUBSCRIPTION,
) -> NormalizedResponse:
    """Ends the subscription to a step, or every one of the AE."""
    return await _subscription(association, UNSUBSCRIBE, sop_instance_uid, receiving_ae_title)


async def suspend(association: Association, receiving_ae_title: str) -> NormalizedResponse:
    """Ends the subscription to steps that are still to come."""
    return await _subscription(
        association, SUSPEND, uids.UNIFIED_STEP_SUBSCRIPTION, receiving_ae_title
    )
