"""What the SCPs of C-GET and C-MOVE share: what is to be sent, and the counts and responses of the sending."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from dcmhaul.errors import DcmhaulError, RemoteProtocolError
from dcmhaul.protocol import statuses
from dcmhaul.protocol.dimse import (
    CCancelRq,
    CEchoRq,
    CFindRq,
    CGetRq,
    CGetRsp,
    CMoveRq,
    CMoveRsp,
    Request,
    response_to,
)
from dcmhaul.services.identifiers import (
    IDENTIFIER_LENGTH_MAX,
    EncodedIdentifier,
    QueryRefused,
    encode_uid_list,
)
from dcmhaul.services.provider import HeldRequest
from dcmhaul.services.query import (
    CancelWatch,
    QueryModel,
    read_encoded_identifier,
    read_identifier,
    unable_to_process,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydicom.dataset import Dataset

    from dcmhaul.net import Association, Incoming
    from dcmhaul.objects.instances import OutgoingInstance
    from dcmhaul.protocol.negotiation import AcceptedContext
    from dcmhaul.services.storage import StoreOutcome

__all__ = [
    "PENDING_SECONDS",
    "EncodedSelection",
    "Selection",
    "Selector",
    "StoredInstance",
    "SubOperations",
    "answer_beside",
]

PENDING_SECONDS: Final = 1.0
"""The SCP says how far it is no more often than this."""
COUNT_MAX: Final = 0xFFFF  # the numbers of sub-operations are US (PS3.7 Table E.1-1)


class StoredInstance(Protocol):
    """An instance that the SCP holds, before it is opened."""

    @property
    def sop_class_uid(self) -> str: ...
    @property
    def sop_instance_uid(self) -> str: ...
    @property
    def transfer_syntax_uid(self) -> str: ...
    def open(self) -> OutgoingInstance:
        """The instance with its dataset; closed when it was sent. InstanceError where it cannot be."""


Selection = Callable[["QueryModel", "Dataset", str], "Awaitable[Sequence[StoredInstance]]"]
"""Model, identifier, calling AE title -> what is to be sent. May raise QueryRefused."""

EncodedSelection = Callable[
    ["QueryModel", EncodedIdentifier, str], "Awaitable[Sequence[StoredInstance]]"
]
"""The same for those who read the identifier without pydicom."""


class Selector:
    """Reads the identifier of a retrieve, and asks `select` for what it stands for.

    encoded: `select` is an EncodedSelection, not a Selection. models: by their SOP class.
    """

    def __init__(
        self,
        select: Selection | EncodedSelection,
        models: Mapping[str, QueryModel],
        *,
        encoded: bool,
    ) -> None:
        self._select: Callable[..., Awaitable[Sequence[StoredInstance]]] = select
        self._read = read_encoded_identifier if encoded else read_identifier
        self._models = models

    async def read(
        self, association: Association, incoming: Incoming
    ) -> tuple[QueryModel, Dataset | EncodedIdentifier]:
        """What was asked, the dataset read; QueryRefused where it cannot be answered."""
        model = self._models.get(incoming.context.abstract_syntax)
        identifier = await self._read(association, incoming)
        if model is None:
            raise QueryRefused(statuses.SOP_CLASS_NOT_SUPPORTED, "no such model here")
        return model, identifier

    async def select(
        self,
        association: Association,
        model: QueryModel,
        identifier: Dataset | EncodedIdentifier,
    ) -> Sequence[StoredInstance]:
        """The instances; QueryRefused, with the final status, where that fails."""
        try:
            return await self._select(model, identifier, association.agreement.calling_ae_title)
        except (QueryRefused, DcmhaulError):
            raise
        except Exception as exc:
            raise unable_to_process(exc) from exc


class SubOperations:
    """The counts of one retrieve. Each instance ends in exactly one of the four; they tell the responses."""

    def __init__(
        self,
        association: Association,
        context: AcceptedContext,
        request: CGetRq | CMoveRq,
        count: int,
    ) -> None:
        self.length = 0
        """Bytes of the datasets that were answered."""
        self.remaining = count
        self.completed = 0
        self.warning = 0
        self.failed: list[str] = []
        self._association = association
        self._context = context
        self._request = request
        self._response = CGetRsp if isinstance(request, CGetRq) else CMoveRsp

    def ended(self, outcome: StoreOutcome) -> None:
        """One that was begun has ended, well or not."""
        if outcome.status == statuses.SUCCESS:
            self.completed += 1
            self.remaining -= 1
        elif outcome.stored:
            self.warning += 1
            self.remaining -= 1
        else:
            self.fail(outcome.instance.sop_instance_uid)
        if outcome.status is not None:
            self.length += outcome.length

    def fail(self, sop_instance_uid: str) -> None:
        self.failed.append(sop_instance_uid)
        self.remaining -= 1

    def final_status(self, *, cancelled: bool) -> int:
        """PS3.4 §C.4.2.1.5 and Table C.4-2; §C.4.3.1.4 and Table C.4-3."""
        if cancelled and self.remaining:
            return statuses.CANCEL
        if self.failed and not self.completed and not self.warning:
            return statuses.UNABLE_TO_PERFORM_SUBOPERATIONS
        return statuses.COERCION if self.failed or self.warning else statuses.SUCCESS

    def respond(self, status: int, error_comment: str = "") -> None:
        """Queues a response. A final one that fails something lists it, as far as the list can hold.

        Remaining ones are told while there are some to come, or that will not (PS3.7 §9.1.3.1).
        """
        dataset = None
        if status != statuses.PENDING and self.failed:
            dataset, listed = encode_uid_list(self.failed, self._context.transfer_syntax)
            if listed < len(self.failed):
                error_comment = f"the list holds {listed} of {len(self.failed)} failed instances"
        told = self.remaining if status in (statuses.PENDING, statuses.CANCEL) else None
        response = self._response(
            message_id_being_responded_to=self._request.message_id,
            status=status,
            affected_sop_class_uid=self._request.affected_sop_class_uid,
            error_comment=error_comment or None,
            number_of_remaining_suboperations=None if told is None else min(told, COUNT_MAX),
            number_of_completed_suboperations=min(self.completed, COUNT_MAX),
            number_of_failed_suboperations=min(len(self.failed), COUNT_MAX),
            number_of_warning_suboperations=min(self.warning, COUNT_MAX),
            has_dataset=dataset is not None,
        )
        self._association.queue(self._context.context_id, response, dataset)


async def answer_beside(
    association: Association, incoming: Incoming, watch: CancelWatch, service: str
) -> None:
    """What comes while a retrieve runs: a C-CANCEL, or a further request within the window.

    One retrieve at a time: its responses and those of another would wait for each other. So a query
    or retrieve within the window is read and held until then, as far as there is room.
    """
    context, message = incoming
    if isinstance(message, CCancelRq):
        await watch.note(incoming)
        return
    if isinstance(message, CFindRq | CGetRq | CMoveRq):
        await _hold(association, incoming, watch, service)
        return
    if message.has_dataset:
        await association.read_dataset(None)
    if not isinstance(message, Request):
        raise RemoteProtocolError(
            f"{association.peer} sent a {type(message).__name__} within a {service}",
            source=0,
            reason=0,
        )
    if isinstance(message, CEchoRq):
        association.queue(context.context_id, response_to(message, statuses.SUCCESS))
        return
    association.queue(
        context.context_id,
        response_to(message, statuses.OUT_OF_RESOURCES, f"a {service} runs on this association"),
    )


async def _hold(
    association: Association, incoming: Incoming, watch: CancelWatch, service: str
) -> None:
    """Keeps a request for later: 0210 where its message ID is in use, A700 where there is no room."""
    context, request = incoming
    assert isinstance(request, Request)
    held = HeldRequest(context, request)
    room = IDENTIFIER_LENGTH_MAX
    message_ids = {watch.message_id}
    for other in association.held:
        assert isinstance(other, HeldRequest)
        assert isinstance(other.message, Request)
        room -= len(other.identifier)
        message_ids.add(other.message.message_id)
    data = await association.read_dataset_bytes(room) if request.has_dataset else b""
    if request.message_id in message_ids:
        status, comment = statuses.DUPLICATE_INVOCATION, "the message ID is in use"
    elif data is None or len(message_ids) >= association.agreement.window_performed:
        status, comment = statuses.OUT_OF_RESOURCES, f"a {service} runs on this association"
    else:
        held.identifier = data
        association.held.append(held)
        return
    association.queue(context.context_id, response_to(request, status, comment))
