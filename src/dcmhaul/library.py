"""What the verbs do, as a library for trio; `dcmhaul` itself offers these names.

Migrations are in `dcmhaul.migrate`.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from dcmhaul import uids
from dcmhaul.archive import Archive, open_archive
from dcmhaul.config import ANY_SCP, DEFAULT_AE_TITLE, Configuration, Peer, TlsSettings, parse_peer
from dcmhaul.engine.pool import AssociationPool, PoolPolicy
from dcmhaul.engine.scheduler import flat_nursery
from dcmhaul.engine.sender import FileSender, Reencoding, scan_files
from dcmhaul.errors import AssociationAborted, DcmhaulError, UnreadableInstance
from dcmhaul.net import (
    AcceptorLimits,
    Association,
    SocketOptions,
    Timeouts,
    secured,
    serve_associations,
)
from dcmhaul.net import open_association as open_negotiated
from dcmhaul.net.credentials import server_context
from dcmhaul.objects.sinks import FolderSinks
from dcmhaul.objects.sources import FailedEntry, SkippedEntry
from dcmhaul.protocol.negotiation import AssociationRequest
from dcmhaul.protocol.statuses import describe
from dcmhaul.services.commitment import Commitments, request_commitment
from dcmhaul.services.move import move
from dcmhaul.services.normalized import (
    NormalizedAnswer,
    NormalizedRefused,
    NormalizedRequest,
    NormalizedResponse,
    NormalizedScp,
    SopClass,
    n_action,
    n_create,
    n_delete,
    n_event_report,
    n_get,
    n_set,
)
from dcmhaul.services.provider import Service, acceptor_policy, serve_services, serve_until
from dcmhaul.services.query import FindResponse, FindScp, QueryModel, find
from dcmhaul.services.retrieve import GetScp, RetrieveResponse, get, storage_roles
from dcmhaul.services.storage import StorageScp, StoreOutcome
from dcmhaul.services.verification import VerificationScp, echo
from dcmhaul.wire.items import PresentationContextRq

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from dcmhaul.net import Observer
    from dcmhaul.services.commitment import Reference

__all__ = [
    "Archive",
    "Association",
    "DcmhaulError",
    "FailedEntry",
    "FindResponse",
    "FindScp",
    "FolderSinks",
    "GetScp",
    "NormalizedAnswer",
    "NormalizedRefused",
    "NormalizedRequest",
    "NormalizedResponse",
    "NormalizedScp",
    "Peer",
    "QueryModel",
    "RetrieveResponse",
    "Service",
    "SkippedEntry",
    "SopClass",
    "StorageScp",
    "StoreOutcome",
    "Timeouts",
    "TlsSettings",
    "VerificationScp",
    "commit",
    "describe",
    "echo",
    "find",
    "get",
    "move",
    "n_action",
    "n_create",
    "n_delete",
    "n_event_report",
    "n_get",
    "n_set",
    "open_archive",
    "open_association",
    "send",
    "serve",
]

_SYNTAXES: Final = (uids.EXPLICIT_VR_LITTLE_ENDIAN, uids.IMPLICIT_VR_LITTLE_ENDIAN)


def _peer(peer: Peer | str) -> Peer:
    return peer if isinstance(peer, Peer) else parse_peer(peer, Configuration())


def _class(proposal: str | tuple[str, str]) -> str:
    return proposal if isinstance(proposal, str) else proposal[0]


def _contexts(
    proposals: Iterable[str | tuple[str, str]],
) -> tuple[PresentationContextRq, ...]:
    return tuple(
        PresentationContextRq(
            context_id=2 * number + 1,
            abstract_syntax=_class(proposal),
            transfer_syntaxes=_SYNTAXES if isinstance(proposal, str) else (proposal[1],),
        )
        for number, proposal in enumerate(dict.fromkeys(proposals))
    )


@asynccontextmanager
async def open_association(
    peer: Peer | str,
    propose: Iterable[str | tuple[str, str]] = (uids.VERIFICATION,),
    *,
    receive: Iterable[str | tuple[str, str]] = (),
    calling_ae_title: str = DEFAULT_AE_TITLE,
    window: int = 1,
    timeouts: Timeouts | None = None,
    tls: TlsSettings | None = None,
    observer: Observer | None = None,
    **request: Any,
) -> AsyncIterator[Association]:
    """An association with `peer` (`AET@HOST:PORT`); left cleanly it is released, else aborted.

    propose: SOP Class UIDs, in Explicit and Implicit VR Little Endian; a pair of SOP Class and Transfer
    Syntax UID is a context of its own. receive: the same, of what is to be stored here by `get`: we are
    the SCP of these (PS3.7 §D.3.3.4). At most 128 of both. window: operations outstanding at once.
    tls: certificates and keys; None takes those of the peer, if it has any. request: other fields of
    AssociationRequest, such as `pdu_length_max` or `user_identity`.
    What the peer took is in `association.agreement`. Raises ConfigurationError where the peer is none,
    PeerTimeout, TransportError, AssociationRejected, AssociationAborted.
    """
    whom = _peer(peer)
    received = list(receive)
    asked = AssociationRequest(
        called_ae_title=whom.ae_title or ANY_SCP,
        calling_ae_title=calling_ae_title,
        contexts=_contexts((*propose, *received)),
        roles=storage_roles(_class(proposal) for proposal in received),
        window=window,
        **request,
    )
    async with open_negotiated(
        whom.host,
        whom.port,
        asked,
        timeouts=timeouts,
        options=secured(SocketOptions(), tls or whom.tls),
        observer=observer,
    ) as association:
        yield association


@asynccontextmanager
async def serve(
    services: Sequence[Service],
    *,
    ae_title: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    limits: AcceptorLimits | None = None,
    timeouts: Timeouts | None = None,
    tls: TlsSettings | None = None,
    observer: Observer | None = None,
    **policy: Any,
) -> AsyncIterator[Peer]:
    """Serves associations while the block runs, then aborts those that are open; gives our own address.

    services: the SCPs, such as `VerificationScp()` or all of `archive.services()`. ae_title: the called
    title that is answered; None answers any. port: 0 takes a free one. policy: other fields of
    AcceptorPolicy, such as `allowed_callers`. ConfigurationError where the address cannot be had.
    """
    offered = list(services)
    options = SocketOptions(tls=None if tls is None else server_context(tls))
    async with flat_nursery() as nursery:
        addresses = await nursery.start(
            partial(
                serve_associations,
                lambda association: serve_services(association, offered),
                acceptor_policy(offered, ae_title=ae_title, **policy),
                host=host,
                port=port,
                limits=limits,
                timeouts=timeouts,
                options=options,
                observer=observer,
            )
        )
        yield Peer(host=addresses[0][0], port=addresses[0][1], ae_title=ae_title)
        nursery.cancel_scope.cancel()


async def send(
    peer: Peer | str,
    paths: Iterable[str | os.PathLike[str]],
    *,
    associations: int = 1,
    window: int = 1,
    reencode: bool = False,
    calling_ae_title: str = DEFAULT_AE_TITLE,
    timeouts: Timeouts | None = None,
    tls: TlsSettings | None = None,
    observer: Observer | None = None,
    report: Callable[[StoreOutcome | SkippedEntry | FailedEntry], None] | None = None,
) -> int:
    """C-STORE of files and of folders with their subfolders; returns how many instances were stored.

    Contexts are planned from the files; what does not fit into one association goes in another.
    reencode: what the peer takes in another uncompressed transfer syntax alone is sent in that one;
    `StoreOutcome.instance` then tells the new one.
    report: hears once of each instance, of each file that is not DICOM, and of each that is broken.
    Without it the first failure is raised when all the others were tried: UnreadableInstance for a
    broken file, else DcmhaulError. Raises what `open_association` raises where the peer was given up.
    """
    whom = _peer(peer)
    stored = 0
    failures: list[DcmhaulError] = []

    def tell(told: StoreOutcome | SkippedEntry | FailedEntry) -> None:
        nonlocal stored
        if isinstance(told, StoreOutcome):
            stored += told.stored
        if report is not None:
            report(told)
        elif (failure := _failure(told)) is not None:
            failures.append(failure)
            del failures[1:]

    reencoding = Reencoding(lambda _instance, _target: None) if reencode else None
    plan = await scan_files(paths, recursive=True, report=tell)
    for group in plan.groups(reencoding=reencoding):
        pool = AssociationPool(
            whom.host,
            whom.port,
            policy=PoolPolicy(size=associations),
            timeouts=timeouts,
            options=secured(SocketOptions(), tls or whom.tls),
            observer=observer,
        )
        sender = FileSender(
            pool, window=window, report=tell, report_entry=tell, reencoding=reencoding
        )
        request = AssociationRequest(
            called_ae_title=whom.ae_title or ANY_SCP,
            calling_ae_title=calling_ae_title,
            contexts=group.contexts,
            window=window,
        )
        await sender.send(group, request)
        if sender.error is not None:
            raise sender.error
    if failures:
        raise failures[0]
    return stored


def _failure(told: StoreOutcome | SkippedEntry | FailedEntry) -> DcmhaulError | None:
    """The error that a report stands for, if it is one."""
    if isinstance(told, FailedEntry):
        return UnreadableInstance(f"{told.path}: {told.error}")
    if not isinstance(told, StoreOutcome) or told.stored:
        return None
    if told.error is not None or told.status is None:
        return told.error
    return DcmhaulError(f"{told.instance.label}: the peer answered {describe(told.status)}")


async def commit(
    association: Association, references: Iterable[Reference], *, seconds: float = 300.0
) -> dict[str, int | None]:
    """Storage Commitment (PS3.4 Annex J) of instances, by SOP Class and SOP Instance UID.

    The association proposes STORAGE_COMMITMENT_PUSH, and the result is waited for on it, for so many
    seconds. By SOP Instance UID: 0 is committed, else the Failure Reason, None where nothing was said.
    DcmhaulError where the request is refused; raises what `n_action` raises.
    """
    commitments = Commitments()
    services = [NormalizedScp([commitments.sop_class])]
    transaction = commitments.begin(list(references))
    response = await request_commitment(association, transaction, services)
    if response.status:
        raise DcmhaulError(f"the peer answered {describe(response.status, 'N-ACTION')}")
    # Where the peer ends the association it has no result for us on it.
    with trio.move_on_after(seconds), suppress(AssociationAborted):
        await serve_until(association, services, transaction.done)
    return {uid: transaction.outcomes.get(uid) for _, uid in transaction.references}
