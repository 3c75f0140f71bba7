"""DIMSE-N (PS3.7 §10.1), whatever the SOP class: the six operations as an SCU, and an SCP for any class."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from dcmhaul import uids
from dcmhaul.errors import AssociationAborted, NoAcceptedContext, RemoteProtocolError
from dcmhaul.protocol import statuses
from dcmhaul.protocol.dimse import (
    DimseMessage,
    NActionRq,
    NCreateRq,
    NDeleteRq,
    NEventReportRq,
    NGetRq,
    NormalizedRsp,
    NSetRq,
    Request,
    response_to,
)
from dcmhaul.protocol.negotiation import SupportedContext
from dcmhaul.services.identifiers import (
    QUERY_SYNTAXES,
    decode_identifier,
    encode_identifier,
    encoded,
)
from dcmhaul.services.provider import answer

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from dcmhaul.net import Association, Incoming
    from dcmhaul.services.identifiers import GivenIdentifier
    from dcmhaul.services.provider import Service

__all__ = [
    "DATASET_LENGTH_MAX",
    "STEP_LENGTH_MAX",
    "NormalizedAnswer",
    "NormalizedRefused",
    "NormalizedRequest",
    "NormalizedResponse",
    "NormalizedScp",
    "SopClass",
    "check_present",
    "give_attributes",
    "n_action",
    "n_create",
    "n_delete",
    "n_event_report",
    "n_get",
    "n_set",
]

_LOG: Final = logging.getLogger(__name__)

DATASET_LENGTH_MAX: Final = 16 * 1024 * 1024
"""Octets of a dataset that are taken, in either role: a commitment names a hundred thousand instances."""
STEP_LENGTH_MAX: Final = 4 * 1024 * 1024
"""The same for what is kept in a database, and changed on its one writer thread."""
_ELEMENTS_MAX: Final = 500_000
# pydicom works for milliseconds on a dataset of this size; a thread then keeps others going.
_THREAD_LENGTH: Final = 64 * 1024

_OPERATIONS: Final[dict[type[DimseMessage], str]] = {
    NCreateRq: "N-CREATE",
    NSetRq: "N-SET",
    NGetRq: "N-GET",
    NActionRq: "N-ACTION",
    NDeleteRq: "N-DELETE",
    NEventReportRq: "N-EVENT-REPORT",
}


async def _decoded(data: bytes, transfer_syntax: str) -> Dataset:
    """ValueError, which quotes no value, where it is none."""
    decode = partial(decode_identifier, data, transfer_syntax, elements_max=_ELEMENTS_MAX)
    return await trio.to_thread.run_sync(decode) if len(data) > _THREAD_LENGTH else decode()


# -- the SCU ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalizedResponse:
    """The response to one request. data: its dataset, encoded in `transfer_syntax`, None without one.

    attributes: the tags of Attribute Identifier List (0000,1005), offending: of (0000,0901), that
    the peer objects to. UIDs are "" where the peer left them out.
    """

    status: int
    sop_class_uid: str
    sop_instance_uid: str
    data: bytes | None
    transfer_syntax: str
    error_comment: str = ""
    error_id: int | None = None
    offending: tuple[int, ...] = ()
    attributes: tuple[int, ...] = ()

    def dataset(self) -> Dataset | None:
        """The dataset, by pydicom. ValueError where it cannot be decoded."""
        if self.data is None:
            return None
        return decode_identifier(self.data, self.transfer_syntax, elements_max=_ELEMENTS_MAX)


async def n_create(
    association: Association,
    sop_class_uid: str,
    sop_instance_uid: str | None = None,
    attributes: GivenIdentifier | None = None,
    *,
    context: str | None = None,
    services: Iterable[Service] = (),
) -> NormalizedResponse:
    """N-CREATE (PS3.7 §10.1.5). Without an instance UID the peer chooses one, and the response tells it.

    This holds for all six: datasets are pydicom's, bytes in the context's transfer syntax, or what
    encodes them; context: the negotiated abstract syntax, where that is not the SOP class (PS3.4 §H.4,
    §CC.3.1). services: they answer what the peer asks meanwhile; without them that is answered 0211.
    Raises NoAcceptedContext, PeerTimeout, AssociationAborted, RemoteProtocolError, TransportError.
    """
    request = NCreateRq(
        message_id=association.next_message_id(),
        affected_sop_class_uid=sop_class_uid,
        affected_sop_instance_uid=sop_instance_uid,
        has_dataset=attributes is not None,
    )
    return await _invoke(association, request, context or sop_class_uid, attributes, services)


async def n_set(
    association: Association,
    sop_class_uid: str,
    sop_instance_uid: str,
    modifications: GivenIdentifier,
    *,
    context: str | None = None,
    services: Iterable[Service] = (),
) -> NormalizedResponse:
    """N-SET (PS3.7 §10.1.3); the rest as `n_create` has it."""
    request = NSetRq(
        message_id=association.next_message_id(),
        requested_sop_class_uid=sop_class_uid,
        requested_sop_instance_uid=sop_instance_uid,
    )
    return await _invoke(association, request, context or sop_class_uid, modifications, services)


async def n_get(
    association: Association,
    sop_class_uid: str,
    sop_instance_uid: str,
    attributes: Iterable[int] = (),
    *,
    context: str | None = None,
    services: Iterable[Service] = (),
) -> NormalizedResponse:
    """N-GET (PS3.7 §10.1.2). attributes: the tags that are wanted, () is all; the rest as `n_create`."""
    request = NGetRq(
        message_id=association.next_message_id(),
        requested_sop_class_uid=sop_class_uid,
        requested_sop_instance_uid=sop_instance_uid,
        attribute_identifier_list=tuple(attributes) or None,
    )
    return await _invoke(association, request, context or sop_class_uid, None, services)


async def n_action(
    association: Association,
    sop_class_uid: str,
    sop_instance_uid: str,
    action_type_id: int,
    information: GivenIdentifier | None = None,
    *,
    context: str | None = None,
    services: Iterable[Service] = (),
) -> NormalizedResponse:
    """N-ACTION (PS3.7 §10.1.4); the rest as `n_create` has it."""
    request = NActionRq(
        message_id=association.next_message_id(),
        requested_sop_class_uid=sop_class_uid,
        requested_sop_instance_uid=sop_instance_uid,
        action_type_id=action_type_id,
        has_dataset=information is not None,
    )
    return await _invoke(association, request, context or sop_class_uid, information, services)


async def n_delete(
    association: Association,
    sop_class_uid: str,
    sop_instance_uid: str,
    *,
    context: str | None = None,
    services: Iterable[Service] = (),
) -> NormalizedResponse:
    """N-DELETE (PS3.7 §10.1.6); the rest as `n_create` has it."""
    request = NDeleteRq(
        message_id=association.next_message_id(),
        requested_sop_class_uid=sop_class_uid,
        requested_sop_instance_uid=sop_instance_uid,
    )
    return await _invoke(association, request, context or sop_class_uid, None, services)


async def n_event_report(
    association: Association,
    sop_class_uid: str,
    sop_instance_uid: str,
    event_type_id: int,
    information: GivenIdentifier | None = None,
    *,
    context: str | None = None,
    services: Iterable[Service] = (),
) -> NormalizedResponse:
    """N-EVENT-REPORT (PS3.7 §10.1.1), which the SCP of a class sends; the rest as `n_create` has it."""
    request = NEventReportRq(
        message_id=association.next_message_id(),
        affected_sop_class_uid=sop_class_uid,
        affected_sop_instance_uid=sop_instance_uid,
        event_type_id=event_type_id,
        has_dataset=information is not None,
    )
    return await _invoke(association, request, context or sop_class_uid, information, services)


async def _invoke(
    association: Association,
    request: Request,
    abstract_syntax: str,
    dataset: GivenIdentifier | None,
    services: Iterable[Service],
) -> NormalizedResponse:
    operation = _OPERATIONS[type(request)]
    context = association.agreement.context_for(abstract_syntax)
    if context is None:
        raise NoAcceptedContext(
            f"{association.peer} accepted no context for {uids.name(abstract_syntax)}"
        )
    data = None if dataset is None else encoded(dataset, context.transfer_syntax)
    started = time.perf_counter()
    await association.send(context.context_id, request, data)
    response, syntax = await _response(association, request, operation, services)
    answered: bytes | None = None
    if response.has_dataset:
        answered = await association.read_dataset_bytes(DATASET_LENGTH_MAX)
        if answered is None:
            raise RemoteProtocolError(
                f"{association.peer} sent a dataset above {DATASET_LENGTH_MAX} bytes to {operation}",
                source=0,
                reason=0,
            )
    association.message_ids.give_back(request.message_id)
    seconds = time.perf_counter() - started
    association.observer.operation(operation, "out", response.status, seconds, len(data or b""))
    return NormalizedResponse(
        status=response.status,
        sop_class_uid=response.affected_sop_class_uid or "",
        sop_instance_uid=response.affected_sop_instance_uid or "",
        data=answered,
        transfer_syntax=syntax,
        error_comment=response.error_comment or "",
        error_id=response.error_id,
        offending=response.offending_element or (),
        attributes=response.attribute_identifier_list or (),
    )


async def _response(
    association: Association, request: Request, operation: str, services: Iterable[Service]
) -> tuple[NormalizedRsp, str]:
    """What answers the request, and the transfer syntax of its context."""
    offered = list(services)
    while True:
        incoming = await association.receive(
            seconds=association.timeouts.dimse, phase=f"{operation} response"
        )
        if incoming is None:
            raise AssociationAborted(
                0,
                0,
                f"{association.peer} released the association instead of answering {operation}",
            )
        message = incoming.message
        if isinstance(message, Request):
            await answer(association, incoming, offered)
            await association.flush()
            continue
        if (
            not isinstance(message, NormalizedRsp)
            or message.command_field != request.command_field | 0x8000
            or message.message_id_being_responded_to != request.message_id
        ):
            raise RemoteProtocolError(
                f"{association.peer} answered {operation} with a {type(message).__name__}",
                source=0,
                reason=0,
            )
        return message, incoming.context.transfer_syntax


# -- the SCP ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalizedRequest:
    """One request as an operation of a SOP class gets it.

    context: its abstract syntax. sop_instance_uid: "" where an N-CREATE leaves the choice to the SCP.
    type_id: of the event or the action. attributes: the tags that an N-GET asks for, () for all.
    dataset: None without one.
    """

    operation: str
    context: str
    sop_class_uid: str
    sop_instance_uid: str
    type_id: int | None
    attributes: tuple[int, ...]
    dataset: Dataset | None
    association: Association

    @property
    def calling_ae_title(self) -> str:
        """Whoever asks, as it calls itself."""
        return self.association.agreement.calling_ae_title


@dataclass(frozen=True, slots=True, kw_only=True)
class NormalizedAnswer:
    """What is responded. sop_instance_uid: "" repeats that of the request. The comment goes to the peer,
    so it holds no patient data. attributes: tags for Attribute Identifier List (0000,1005).
    afterwards: runs when the response has left.
    """

    status: int = statuses.SUCCESS
    sop_instance_uid: str = ""
    dataset: Dataset | None = None
    comment: str = ""
    error_id: int | None = None
    offending: tuple[int, ...] = ()
    attributes: tuple[int, ...] = ()
    afterwards: Callable[[], Awaitable[None]] | None = None


class NormalizedRefused(Exception):
    """Raised by an operation that cannot be performed: `answer` is the response, as it will be."""

    def __init__(
        self,
        status: int,
        comment: str,
        *,
        attributes: tuple[int, ...] = (),
        offending: tuple[int, ...] = (),
        error_id: int | None = None,
    ) -> None:
        super().__init__(f"status 0x{status:04X}: {comment}")
        self.answer = NormalizedAnswer(
            status=status,
            comment=comment,
            attributes=attributes,
            offending=offending,
            error_id=error_id,
        )


def check_present(attributes: Dataset, tags: Iterable[int]) -> None:
    """NormalizedRefused where an attribute is missing or empty; all of them are named."""
    wanted = tuple(tags)
    if missing := tuple(tag for tag in wanted if tag not in attributes):
        raise NormalizedRefused(
            statuses.MISSING_ATTRIBUTE, "required attributes are missing", attributes=missing
        )
    if empty := tuple(tag for tag in wanted if _is_empty(attributes[tag].value)):
        raise NormalizedRefused(
            statuses.MISSING_ATTRIBUTE_VALUE, "required attributes are empty", attributes=empty
        )


def _is_empty(value: object) -> bool:
    return not value and value != 0


def give_attributes(held: Dataset, tags: Iterable[int]) -> NormalizedAnswer:
    """What answers an N-GET: those attributes, () for all, and 0001 where some are not held."""
    from pydicom.dataset import Dataset

    wanted = Dataset()
    asked = tuple(tags)
    for tag in asked or held.keys():
        if tag in held:
            wanted[tag] = held[tag]
    if "SpecificCharacterSet" in held:
        wanted.SpecificCharacterSet = held.SpecificCharacterSet
    unknown = tuple(tag for tag in asked if tag not in held)
    return NormalizedAnswer(
        status=statuses.OPTIONAL_ATTRIBUTES_NOT_SUPPORTED if unknown else statuses.SUCCESS,
        dataset=wanted,
        attributes=unknown,
    )


Operation = Callable[[NormalizedRequest], Awaitable[NormalizedAnswer]]
"""Performs one operation. NormalizedRefused where it cannot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SopClass:
    """A SOP class in the SCP's role, or in the SCU's for the N-EVENT-REPORTs that it gets.

    operations: by name, such as "N-ACTION"; any other is answered 0211. contexts: the abstract syntaxes
    under which it comes, () for its own alone. well_known: the one instance UID that there is.
    from_scp: an association requestor may be the SCP (PS3.7 §D.3.3.4), who reports events to us.
    dataset_length_max: octets of a request's dataset; what is longer is answered 0213.
    """

    uid: str
    operations: Mapping[str, Operation] = field(default_factory=dict)
    contexts: tuple[str, ...] = ()
    well_known: str = ""
    from_scp: bool = False
    dataset_length_max: int = DATASET_LENGTH_MAX

    @property
    def abstract_syntaxes(self) -> tuple[str, ...]:
        return self.contexts or (self.uid,)


class NormalizedScp:
    """Answers the DIMSE-N requests of SOP classes; what is wrong with any of them is answered here."""

    def __init__(self, classes: Iterable[SopClass]) -> None:
        self._classes = {
            (syntax, offered.uid): offered
            for offered in classes
            for syntax in offered.abstract_syntaxes
        }

    def contexts(self) -> Mapping[str, SupportedContext]:
        from_scp: dict[str, bool] = {}
        for (syntax, _), offered in self._classes.items():
            from_scp[syntax] = from_scp.get(syntax, False) or offered.from_scp
        return {
            syntax: SupportedContext(transfer_syntaxes=QUERY_SYNTAXES, accept_scp_role=reports)
            for syntax, reports in from_scp.items()
        }

    def handles(self) -> tuple[type[DimseMessage], ...]:
        return tuple(_OPERATIONS)

    async def handle(self, association: Association, incoming: Incoming) -> None:
        """Reads the dataset, performs the operation, queues the response."""
        started = time.perf_counter()
        context, request = incoming
        assert isinstance(request, Request)  # the provider dispatches by type
        operation = _OPERATIONS[type(request)]
        offered = self._classes.get((context.abstract_syntax, _sop_class(request)))
        limit = DATASET_LENGTH_MAX if offered is None else offered.dataset_length_max
        data = await association.read_dataset_bytes(limit) if request.has_dataset else b""
        try:
            perform, asked = await self._read(association, incoming, offered, operation, data)
            answered = await perform(asked)
        except NormalizedRefused as refused:
            answered = refused.answer
        except Exception as exc:  # of ours: the peer is told so, and the association goes on
            _LOG.exception("%s failed", operation, exc_info=None)
            _LOG.debug("%s failed", operation, exc_info=exc)
            answered = NormalizedAnswer(
                status=statuses.PROCESSING_FAILURE,
                comment=f"unable to process ({type(exc).__name__})",
            )
        body = None
        if answered.dataset is not None:
            body = encode_identifier(answered.dataset, context.transfer_syntax)
        association.queue(context.context_id, _message(request, answered, body is not None), body)
        seconds = time.perf_counter() - started
        observer = association.observer
        observer.operation(operation, "in", answered.status, seconds, len(data or b""))
        if answered.afterwards is not None:
            await association.flush()
            await answered.afterwards()

    async def _read(
        self,
        association: Association,
        incoming: Incoming,
        offered: SopClass | None,
        operation: str,
        data: bytes | None,
    ) -> tuple[Operation, NormalizedRequest]:
        """What is asked of whom. NormalizedRefused where that is nobody, or nothing."""
        context, request = incoming
        sop_class = _sop_class(request)
        instance = (
            getattr(request, "affected_sop_instance_uid", "")
            or getattr(request, "requested_sop_instance_uid", "")
            or ""
        )
        if offered is None:
            known = any(uid == sop_class for _, uid in self._classes)
            status = statuses.CLASS_INSTANCE_CONFLICT if known else statuses.NO_SUCH_SOP_CLASS
            raise NormalizedRefused(status, "the SOP Class does not belong to this context")
        perform = offered.operations.get(operation)
        if perform is None:
            raise NormalizedRefused(
                statuses.UNRECOGNIZED_OPERATION, f"no {operation} of this SOP Class here"
            )
        if instance or operation != "N-CREATE":
            if not uids.is_valid_uid(instance):
                raise NormalizedRefused(
                    statuses.INVALID_SOP_INSTANCE, "SOP Instance UID is not 1-64 of 0-9 and ."
                )
            if offered.well_known and instance != offered.well_known:
                raise NormalizedRefused(
                    statuses.NO_SUCH_SOP_INSTANCE, "not the well-known instance of this SOP Class"
                )
        if data is None:
            raise NormalizedRefused(
                statuses.RESOURCE_LIMITATION, f"dataset above {offered.dataset_length_max} bytes"
            )
        dataset = await _dataset(operation, request, data, context.transfer_syntax)
        return perform, NormalizedRequest(
            operation=operation,
            context=context.abstract_syntax,
            sop_class_uid=sop_class,
            sop_instance_uid=instance,
            type_id=getattr(request, "action_type_id", getattr(request, "event_type_id", None)),
            attributes=getattr(request, "attribute_identifier_list", None) or (),
            dataset=dataset,
            association=association,
        )


def _sop_class(request: DimseMessage) -> str:
    uid: str = getattr(request, "affected_sop_class_uid", "") or getattr(
        request, "requested_sop_class_uid", ""
    )
    return uid


async def _dataset(
    operation: str, request: DimseMessage, data: bytes, transfer_syntax: str
) -> Dataset | None:
    """What came with the request; dropped where none belongs."""
    if not request.has_dataset:
        if operation == "N-SET":
            raise NormalizedRefused(statuses.MISTYPED_ARGUMENT, "N-SET without a Modification List")
        return None
    if operation in ("N-GET", "N-DELETE"):
        return None
    try:
        return await _decoded(data, transfer_syntax)
    except ValueError as exc:
        raise NormalizedRefused(statuses.PROCESSING_FAILURE, str(exc)) from None


def _message(request: Request, answered: NormalizedAnswer, has_dataset: bool) -> NormalizedRsp:
    response = response_to(request, answered.status, answered.comment, answered.offending)
    assert isinstance(response, NormalizedRsp)  # the request is a DIMSE-N one
    return replace(
        response,
        has_dataset=has_dataset,
        affected_sop_instance_uid=answered.sop_instance_uid or response.affected_sop_instance_uid,
        error_id=answered.error_id,
        attribute_identifier_list=answered.attributes or None,
    )
