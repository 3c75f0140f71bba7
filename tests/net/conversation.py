"""Both ends of an association in one process, for the tests of queries and retrieves."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio
import trio.lowlevel
from pydicom.dataset import Dataset

from dcmhaul import uids
from dcmhaul.net import Association, Incoming, serve_associations
from dcmhaul.protocol.dimse import (
    CFindRsp,
)
from dcmhaul.protocol.negotiation import AssociationRequest
from dcmhaul.services.identifiers import (
    encode_identifier,
)
from dcmhaul.services.provider import acceptor_policy, serve_services
from dcmhaul.services.query import FindResponse, FindScp, QueryModel, find
from dcmhaul.services.retrieve import GetScp, storage_roles
from dcmhaul.services.verification import VerificationScp
from dcmhaul.wire.items import PresentationContextRq

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
IMPLICIT = uids.IMPLICIT_VR_LITTLE_ENDIAN
EXPLICIT = uids.EXPLICIT_VR_LITTLE_ENDIAN
BIG_ENDIAN = uids.EXPLICIT_VR_BIG_ENDIAN

STUDY_FIND = 1
STUDY_GET = 3
CT_STORE = 5
MR_STORE = 7
STUDY_MOVE = 13


def request(syntax: str = EXPLICIT, **fields: Any) -> AssociationRequest:
    proposed = (
        (STUDY_FIND, uids.STUDY_ROOT_FIND, syntax),
        (STUDY_GET, uids.STUDY_ROOT_GET, syntax),
        (CT_STORE, CT, EXPLICIT),
        (MR_STORE, MR, EXPLICIT),
        (9, uids.VERIFICATION, IMPLICIT),
        (11, uids.PATIENT_ROOT_FIND, syntax),
        (STUDY_MOVE, uids.STUDY_ROOT_MOVE, syntax),
    )
    base: dict[str, Any] = {
        "called_ae_title": "THERE",
        "calling_ae_title": "HERE",
        "contexts": tuple(
            PresentationContextRq(context_id=n, abstract_syntax=uid, transfer_syntaxes=(ts,))
            for n, uid, ts in proposed
        ),
        "roles": storage_roles([CT, MR, CT]),
    }
    return AssociationRequest(**(base | fields))


@asynccontextmanager
async def serving(*services: Any, **fields: Any) -> AsyncIterator[int]:
    """A listener with these services; a plain coroutine function serves associations itself."""
    policy = acceptor_policy(
        [
            FindScp(nothing, models=QueryModel),
            GetScp(no_selection),
            VerificationScp(),
            *(s for s in services if hasattr(s, "contexts")),
        ],
        ae_title=None,
        **fields,
    )

    async def handler(association: Association) -> None:
        if services and not hasattr(services[0], "contexts"):
            await services[0](association)
        else:
            await serve_services(association, [VerificationScp(), *services])

    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[list[tuple[str, int]]]) -> None:
            await serve_associations(
                handler, policy, host="127.0.0.1", port=0, task_status=task_status
            )

        ((_, port),) = await nursery.start(serve)
        yield port
        nursery.cancel_scope.cancel()


def nothing(_model: QueryModel, _identifier: Dataset, _calling: str) -> list[Dataset]:
    return []


async def no_selection(_model: QueryModel, _identifier: Dataset, _calling: str) -> list[Any]:
    return []


def keys(**values: Any) -> Dataset:
    dataset = Dataset()
    dataset.QueryRetrieveLevel = "STUDY"
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def encoder(dataset: Dataset) -> Callable[[str], bytes]:
    return lambda syntax: encode_identifier(dataset, syntax)


KEYS = encoder(keys(StudyInstanceUID=""))


async def all_responses(
    association: Association, identifier: Any = KEYS, **options: Any
) -> list[FindResponse]:
    async with find(association, QueryModel.STUDY_ROOT, identifier, **options) as responses:
        return [response async for response in responses]


def scripted(script: Callable[[Association, Incoming], Awaitable[None]]) -> Any:
    """An SCP that reads requests with their datasets, and does with each what `script` says."""

    async def serve(association: Association) -> None:
        while (incoming := await association.receive()) is not None:
            if incoming.message.has_dataset:
                await association.read_dataset(None)
            await script(association, incoming)
            await association.flush()

    return serve


def find_rsp(message_id: int, status: int, has_dataset: bool = False) -> CFindRsp:
    return CFindRsp(
        message_id_being_responded_to=message_id, status=status, has_dataset=has_dataset
    )
