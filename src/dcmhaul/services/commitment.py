"""Storage Commitment Push (PS3.4 Annex J): its datasets, and the SCU with what it waits for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from dcmhaul import uids
from dcmhaul.protocol import statuses
from dcmhaul.services.normalized import (
    NormalizedAnswer,
    NormalizedRefused,
    SopClass,
    n_action,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydicom.dataset import Dataset

    from dcmhaul.net import Association
    from dcmhaul.services.normalized import NormalizedRequest, NormalizedResponse
    from dcmhaul.services.provider import Service

__all__ = [
    "ALL_COMMITTED",
    "INSTANCE_UID",
    "REQUEST",
    "SOME_FAILED",
    "Commitments",
    "Reference",
    "Transaction",
    "read_references",
    "request_commitment",
    "transaction_result",
    "transaction_uid",
]

INSTANCE_UID: Final = "1.2.840.10008.1.20.1.1"
"""The well-known SOP instance (PS3.4 §J.3.5)."""
REQUEST: Final = 1
"""Action Type ID of a request (PS3.4 Table J.3-1)."""
ALL_COMMITTED: Final = 1
SOME_FAILED: Final = 2
"""Event Type IDs (PS3.4 Table J.3-3, J.3-5)."""

_TRANSACTION_UID: Final = 0x00081195
_FAILED_SOP_SEQUENCE: Final = 0x00081198
_REFERENCED_SOP_SEQUENCE: Final = 0x00081199

Reference = tuple[str, str]
"""SOP Class UID and SOP Instance UID."""


def transaction_uid(dataset: Dataset | None) -> str:
    """The Transaction UID; NormalizedRefused where there is none."""
    found = "" if dataset is None else str(dataset.get("TransactionUID", ""))
    if not uids.is_valid_uid(found):
        status = statuses.INVALID_ATTRIBUTE_VALUE if found else statuses.MISSING_ATTRIBUTE
        raise NormalizedRefused(status, "no valid Transaction UID", attributes=(_TRANSACTION_UID,))
    return found


def read_references(dataset: Dataset | None) -> list[Reference]:
    """What a request refers to, each once; NormalizedRefused where that is nothing, or unreadable."""
    return list(dict.fromkeys(_references(dataset, _REFERENCED_SOP_SEQUENCE, required=True)))


def _references(dataset: Dataset | None, tag: int, *, required: bool) -> list[Reference]:
    element = dataset.get(tag) if dataset is not None else None
    if element is None or element.VR != "SQ" or not element.value:
        if not required:
            return []
        present = element is not None
        status = statuses.MISSING_ATTRIBUTE_VALUE if present else statuses.MISSING_ATTRIBUTE
        raise NormalizedRefused(status, "nothing is referenced", attributes=(tag,))
    found = []
    for item in element.value:
        reference = (
            str(item.get("ReferencedSOPClassUID", "")),
            str(item.get("ReferencedSOPInstanceUID", "")),
        )
        if not all(map(uids.is_valid_uid, reference)):
            raise NormalizedRefused(
                statuses.INVALID_ATTRIBUTE_VALUE,
                "a reference without its two UIDs",
                attributes=(tag,),
            )
        found.append(reference)
    return found


def _items(references: Iterable[tuple[Reference, int | None]]) -> list[Dataset]:
    from pydicom.dataset import Dataset

    items = []
    for (sop_class, instance), reason in references:
        item = Dataset()
        item.ReferencedSOPClassUID = sop_class
        item.ReferencedSOPInstanceUID = instance
        if reason is not None:
            item.FailureReason = reason
        items.append(item)
    return items


def _request(uid: str, references: Iterable[Reference]) -> Dataset:
    from pydicom.dataset import Dataset

    made = Dataset()
    made.TransactionUID = uid
    made.ReferencedSOPSequence = _items((reference, None) for reference in references)
    return made


def transaction_result(
    uid: str, outcomes: Iterable[tuple[Reference, int]], retrieve_ae_title: str
) -> tuple[int, Dataset]:
    """The event that tells the result: its type and its information (PS3.4 §J.3.3.1).

    outcomes: each reference with 0, or why it is not committed (PS3.3 §C.14.1.1).
    """
    from pydicom.dataset import Dataset

    told = list(outcomes)
    committed = [(reference, None) for reference, reason in told if not reason]
    failed = [(reference, reason) for reference, reason in told if reason]
    made = Dataset()
    made.TransactionUID = uid
    if committed:
        made.RetrieveAETitle = retrieve_ae_title
        made.ReferencedSOPSequence = _items(committed)
    if failed:
        made.FailedSOPSequence = _items(failed)
    return SOME_FAILED if failed else ALL_COMMITTED, made


# -- the SCU ------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True, eq=False)
class Transaction:
    """One request, and what its SCP has said of each instance.

    outcomes: by SOP Instance UID, 0 is committed, else the Failure Reason. The SCP may leave instances
    out, which are then not committed. done: set with the event.
    """

    uid: str
    references: Sequence[Reference]
    outcomes: dict[str, int] = field(default_factory=dict)
    done: trio.Event = field(default_factory=trio.Event)

    @property
    def open(self) -> list[str]:
        """SOP Instance UIDs of which nothing was said."""
        return [uid for _, uid in self.references if uid not in self.outcomes]


class Commitments:
    """The transactions of an SCU: on whichever association their events come, they are settled here.

    `sop_class` is for a NormalizedScp, on the association of the request or on one that the SCP opens.
    """

    def __init__(self) -> None:
        self._transactions: dict[str, Transaction] = {}
        self.sop_class = SopClass(
            uid=uids.STORAGE_COMMITMENT_PUSH,
            operations={"N-EVENT-REPORT": self._reported},
            well_known=INSTANCE_UID,
            from_scp=True,
        )

    def begin(self, references: Sequence[Reference]) -> Transaction:
        """A transaction with a UID of its own, to be requested."""
        transaction = Transaction(uid=uids.new_uid(), references=references)
        self._transactions[transaction.uid] = transaction
        return transaction

    async def _reported(self, request: NormalizedRequest) -> NormalizedAnswer:
        """Takes a result once; the same again is answered 0000 and changes nothing."""
        if request.type_id not in (ALL_COMMITTED, SOME_FAILED):
            raise NormalizedRefused(statuses.NO_SUCH_EVENT_TYPE, "event types are 1 and 2")
        uid = transaction_uid(request.dataset)
        transaction = self._transactions.get(uid)
        if transaction is None:
            raise NormalizedRefused(statuses.INVALID_ARGUMENT_VALUE, "not a transaction of ours")
        committed = _references(request.dataset, _REFERENCED_SOP_SEQUENCE, required=False)
        failed = _references(request.dataset, _FAILED_SOP_SEQUENCE, required=False)
        if not transaction.done.is_set():
            asked = {(sop_class, uid) for sop_class, uid in transaction.references}
            reasons = _reasons(request.dataset)
            for reference in failed:
                if reference in asked:
                    reason = reasons.get(reference[1], 0) or statuses.PROCESSING_FAILURE
                    transaction.outcomes[reference[1]] = reason
            for reference in committed:
                if reference in asked:
                    # Of two statements the worse one counts.
                    transaction.outcomes.setdefault(reference[1], 0)
            transaction.done.set()
        return NormalizedAnswer()


def _reasons(dataset: Dataset | None) -> dict[str, int]:
    items = [] if dataset is None else dataset.get("FailedSOPSequence") or []
    return {
        str(item.get("ReferencedSOPInstanceUID", "")): int(item.get("FailureReason") or 0)
        for item in items
    }


async def request_commitment(
    association: Association, transaction: Transaction, services: Iterable[Service] = ()
) -> NormalizedResponse:
    """The N-ACTION (PS3.4 §J.3.2); services: as `n_action` has them, for an event that comes before its
    response. Raises what `n_action` raises."""
    return await n_action(
        association,
        uids.STORAGE_COMMITMENT_PUSH,
        INSTANCE_UID,
        REQUEST,
        _request(transaction.uid, transaction.references),
        services=services,
    )
