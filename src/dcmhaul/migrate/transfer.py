"""The workers that move instances: relayed from a peer, sent from a folder, copied between folders.

A worker takes work from a queue, moves what it can, folds what came of it into the study, and hands the
study back. What that means for the job is decided in `study` and `run`.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import trio

from dcmhaul import uids
from dcmhaul.engine.planning import (
    STORAGE_CONTEXTS_MAX,
    GetRequest,
    choose_contexts,
    pair_contexts,
    plan_requests,
    retrieve_identifier,
)
from dcmhaul.engine.pool import ASSOCIATION_ERRORS, PoolExhausted
from dcmhaul.engine.relay import FolderDestination, PeerDestination, RelayOutcome
from dcmhaul.engine.retriever import Retriever
from dcmhaul.engine.sender import Reencoding, other_contexts
from dcmhaul.errors import DcmhaulError, InstanceError, NoAcceptedContext, UnreadableInstance
from dcmhaul.migrate.inventory import digest_instance
from dcmhaul.migrate.plan import text_path
from dcmhaul.migrate.study import another_object, unsent_object
from dcmhaul.net.types import FileRange
from dcmhaul.objects.instances import BytesInMemory, IncomingInstance, StoreRefused
from dcmhaul.objects.part10 import FileInstance, open_instance
from dcmhaul.objects.reencode import UNCOMPRESSED
from dcmhaul.objects.reencoded import ReencodedInstance
from dcmhaul.protocol.negotiation import AssociationRequest, plan_contexts
from dcmhaul.services.identifiers import encode_identifier
from dcmhaul.services.retrieve import storage_roles
from dcmhaul.services.storage import StorageScu, StoreOutcome
from dcmhaul.wire.items import PresentationContextRq

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from pathlib import Path

    from dcmhaul.engine.pool import AssociationPool
    from dcmhaul.engine.scheduler import StopRequest, WorkQueue
    from dcmhaul.migrate.plan import MigrateOptions, RequestOptions
    from dcmhaul.migrate.study import StudyWork
    from dcmhaul.migrate.tables import Exclusion, InstanceResult
    from dcmhaul.objects.canonical import DatasetDigest
    from dcmhaul.objects.instances import OutgoingInstance, SinkFactory

__all__ = [
    "CopyWorker",
    "FileItem",
    "Job",
    "RelayWorker",
    "SendWorker",
    "get_request",
    "move_request",
    "store_request",
]

Pairs = tuple[tuple[str, str], ...]

IDLE_SECONDS: Final = 5.0
"""How long associations are kept open for the next study; others may be waiting for their slots."""
COPY_READ: Final = 1 << 20

_QUERY_SYNTAXES: Final = (uids.EXPLICIT_VR_LITTLE_ENDIAN, uids.IMPLICIT_VR_LITTLE_ENDIAN)


class Job(Protocol):
    """What the workers need of the run that they belong to."""

    options: MigrateOptions
    stop: StopRequest

    def popular_pairs(self) -> Iterable[tuple[str, str]]:
        """(class, syntax) pairs of the whole job, commonest first, as far as they are known."""

    def outcome(self, work: StudyWork, outcome: RelayOutcome) -> None:
        """Folds an outcome into its study, counts it and records it."""

    def conflict(self, exclusion: Exclusion) -> None:
        """Counts and records an object that came under the UID of another."""

    async def record(self, work: StudyWork, results: Iterable[InstanceResult]) -> None: ...
    async def finish_visit(self, work: StudyWork) -> None:
        """The study goes on: to its next visit, or to its end."""

    async def room(self) -> None:
        """Waits while the ledger is behind."""

    def reencoded(self, source: str, target: str) -> None:
        """An instance leaves in another transfer syntax: one line for the user for each pair."""


def _contexts_limit(options: MigrateOptions) -> int:
    """Contexts of an association for syntaxes as they are; a quarter is kept for re-encoding."""
    return 96 if options.reencode else STORAGE_CONTEXTS_MAX


def store_request(title: str, options: MigrateOptions, pairs: Pairs) -> AssociationRequest:
    """The proposal to the destination: one context for each pair, and those in which it may be re-encoded."""
    contexts = plan_contexts(pairs)[0]
    if options.reencode:
        contexts += other_contexts(pairs, UNCOMPRESSED.__contains__)
    return AssociationRequest(
        called_ae_title=title,
        calling_ae_title=options.calling_ae_title,
        contexts=contexts,
        pdu_length_max=options.pdu_length_max,
        pdu_length_send_max=options.pdu_length_send_max,
        window=options.window,
    )


def get_request(title: str, options: RequestOptions, pairs: Pairs) -> AssociationRequest:
    """The proposal to the source: C-GET, and each pair with the SCP role for us (PS3.7 §D.3.3.4)."""
    get = PresentationContextRq(
        context_id=1, abstract_syntax=uids.STUDY_ROOT_GET, transfer_syntaxes=_QUERY_SYNTAXES
    )
    return AssociationRequest(
        called_ae_title=title,
        calling_ae_title=options.calling_ae_title,
        contexts=(get, *pair_contexts(pairs)),
        pdu_length_max=options.pdu_length_max,
        window=options.window,
        roles=storage_roles(sop_class for sop_class, _ in pairs),
    )


def move_request(title: str, options: RequestOptions) -> AssociationRequest:
    """The proposal to a peer that is to send elsewhere: C-MOVE alone."""
    move = PresentationContextRq(
        context_id=1, abstract_syntax=uids.STUDY_ROOT_MOVE, transfer_syntaxes=_QUERY_SYNTAXES
    )
    return AssociationRequest(
        called_ae_title=title,
        calling_ae_title=options.calling_ae_title,
        contexts=(move,),
        pdu_length_max=options.pdu_length_max,
    )


# -- from a peer ----------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class _Link:
    """An open destination. proposed: what was asked of it; accepted: what it takes of that.

    usable: what the source agreed to as well, once it was asked.
    """

    destination: PeerDestination | FolderDestination
    proposed: Pairs
    accepted: Pairs
    usable: frozenset[tuple[str, str]] = frozenset()

    def failure(self) -> DcmhaulError | None:
        """Why the destination takes nothing more; it may change at any await."""
        return self.destination.failure

    def fits(self, work: StudyWork) -> bool:
        return set(work.contexts()[0]) <= set(self.proposed)


class RelayWorker:
    """Retrieves study by study from the source, and forwards what comes.

    Invariant: `_work` is the study that outcomes belong to; it is handed back exactly once, after the
    destination has no answer outstanding for it.
    """

    def __init__(
        self,
        job: Job,
        source: AssociationPool,
        source_title: str,
        destination: AssociationPool | None,
        destination_title: str,
        sinks: SinkFactory | None,
    ) -> None:
        self._job = job
        self._source = source
        self._source_title = source_title
        self._destination = destination
        self._destination_title = destination_title
        self._sinks = sinks
        self._work: StudyWork | None = None
        self._visiting = False
        self._error: DcmhaulError | None = None
        self._came: dict[str, bytes | None] = {}
        """Within this C-GET: SHA-256 of what came first under a UID, as far as it is known."""

    async def run(self, queue: WorkQueue[StudyWork]) -> None:
        """Until the queue is exhausted. PoolExhausted: one of the peers was given up."""
        while True:
            if self._work is None:
                self._work = await queue.take()
            if self._work is None:
                return
            self._visiting = False
            self._error = None
            try:
                await self._associations(queue)
            except PoolExhausted:
                raise
            except ASSOCIATION_ERRORS as error:
                self._error = error
            if self._work is not None and self._error is not None:
                await self._after_loss(queue)

    async def _after_loss(self, queue: WorkQueue[StudyWork]) -> None:
        work, self._work = self._work, None
        assert work is not None
        assert self._error is not None
        if not self._visiting:
            # Nothing was tried with it: the pool counts the failure, the study does not.
            queue.put_back(work)
            return
        await self._job.record(work, work.lost(self._error))
        await self._hand_back(work, queue)

    async def _hand_back(self, work: StudyWork, queue: WorkQueue[StudyWork]) -> None:
        await self._job.finish_visit(work)
        queue.settle()

    def _report(self, outcome: RelayOutcome) -> None:
        if outcome.status is not None:
            self._source.worked()
            if self._destination is not None:
                self._destination.worked()
        if self._work is None:
            return
        if self._is_another(outcome, self._work):
            self._job.conflict(another_object(outcome))
        else:
            self._job.outcome(self._work, outcome)

    def _is_another(self, outcome: RelayOutcome, work: StudyWork) -> bool:
        """Whether something else came under this UID before, or may have: it was held, and not read."""
        uid = outcome.sop_instance_uid
        if uid in self._came:
            return self._came[uid] != outcome.sha256
        self._came[uid] = outcome.sha256
        return uid in work.held

    @asynccontextmanager
    async def _link(self, proposed: Pairs) -> AsyncIterator[_Link]:
        """The destination, opened first; its failure is raised at the end, after all was reported."""
        if self._destination is None:
            assert self._sinks is not None
            folder = FolderDestination(
                self._sinks, self._report, content=self._job.options.compares_content
            )
            yield _Link(destination=folder, proposed=proposed, accepted=proposed)
            return
        job = self._job
        request = store_request(self._destination_title, job.options, proposed)
        async with self._destination.association(request) as association:
            async with PeerDestination.started(
                association,
                self._report,
                window=job.options.window,
                content=job.options.compares_content,
                reencoded=job.reencoded if job.options.reencode else None,
            ) as destination:
                accepted = tuple(pair for pair in proposed if destination.accepts(*pair))
                yield _Link(destination=destination, proposed=proposed, accepted=accepted)
            if destination.failure is not None and not destination.blameless:
                raise destination.failure

    async def _associations(self, queue: WorkQueue[StudyWork]) -> None:
        work = self._work
        assert work is not None
        limit = _contexts_limit(self._job.options)
        proposed = choose_contexts(work.contexts()[0], self._job.popular_pairs(), limit)
        async with self._link(proposed) as link:
            if not link.accepted:
                self._work = None
                results = work.no_context(work.covered(proposed), "the destination")
                await self._job.record(work, results)
                await self._hand_back(work, queue)
                return
            try:
                await self._retrieve(link, queue)
            except PoolExhausted:
                raise
            except ASSOCIATION_ERRORS as error:
                # The source's. The destination's answers are still awaited on the way out.
                self._error = error

    async def _retrieve(self, link: _Link, queue: WorkQueue[StudyWork]) -> None:
        request = get_request(self._source_title, self._job.options, link.accepted)
        async with self._source.association(request) as association:
            agreement = association.agreement
            if agreement.context_for(uids.STUDY_ROOT_GET) is None:
                raise NoAcceptedContext(
                    f"{association.peer} accepted no context for C-GET (Study Root)"
                )
            link.usable = frozenset(
                pair
                for pair in link.accepted
                if agreement.context_for(pair[0], (pair[1],)) is not None
            )
            retriever = Retriever(association, link.destination)
            while self._work is not None:
                self._visiting = True
                work = self._work
                await self._visit(work, retriever, link)
                if link.failure() is not None:
                    self._error = link.failure()
                    return
                self._visiting = False
                self._work = None
                await self._hand_back(work, queue)
                self._work = await self._next(queue)
                if self._work is None or not link.fits(self._work):
                    return
                if link.failure() is not None:
                    return  # it went away while there was nothing to do

    async def _next(self, queue: WorkQueue[StudyWork]) -> StudyWork | None:
        """The next study, if it comes soon enough to keep the associations for it."""
        if (work := queue.take_nowait()) is not None:
            return work
        contended = self._source.contended or (
            self._destination is not None and self._destination.contended
        )
        with trio.move_on_after(0 if contended else IDLE_SECONDS):
            return await queue.take()
        return None

    async def _visit(self, work: StudyWork, retriever: Retriever, link: _Link) -> None:
        """Asks for what is open and fits these associations. Raises what ends the source's."""
        job = self._job
        covered = work.covered(link.proposed)
        for where, pairs in (("the destination", link.accepted), ("the source", link.usable)):
            carried = work.carried(covered, pairs)
            await job.record(work, work.no_context(covered - carried, where))
            covered = carried
        for request in plan_requests(work.study_instance_uid, work.expected.values(), covered):
            await job.room()
            if job.stop.requested or link.failure() is not None:
                return
            asked = set(_asked(request, work, covered))
            self._came.clear()
            result = await retriever.retrieve(
                partial(encode_identifier, retrieve_identifier(request)),
                held=work.held,
                stop=job.stop.event,
            )
            await link.destination.settled()
            for uid in sorted(result.unsent):
                self._job.conflict(unsent_object(uid))
            if result.cut_short or link.failure() is not None or job.stop.requested:
                return  # nothing follows from what did not come
            await job.record(work, work.not_delivered(asked, result))


def _asked(request: GetRequest, work: StudyWork, covered: set[str]) -> Iterator[str]:
    """The open instances that a request is to bring."""
    if request.sop_instance_uids:
        yield from request.sop_instance_uids
        return
    for uid in covered:
        series = work.expected[uid].series_instance_uid
        if not request.series_instance_uid or series == request.series_instance_uid:
            yield uid


# -- from a folder --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FileItem:
    """One instance of a folder that is to be moved."""

    work: StudyWork
    sop_instance_uid: str

    @property
    def pair(self) -> tuple[str, str]:
        instance = self.work.expected[self.sop_instance_uid]
        return instance.sop_class_uid, instance.transfer_syntax_uid


@dataclass(slots=True, kw_only=True, eq=False)
class _Opened:
    item: FileItem
    instance: FileInstance
    digest: DatasetDigest


class _FolderWorker:
    """What both kinds of workers on a folder share: opening, reporting, handing back."""

    def __init__(self, job: Job, folder: Path, nursery: trio.Nursery) -> None:
        self._job = job
        self._folder = folder
        self._nursery = nursery
        self._queue: WorkQueue[FileItem] | None = None

    async def _open(self, item: FileItem) -> _Opened | None:
        """The file, checked and digested; None where it cannot travel, which is then reported."""
        locator = item.work.expected[item.sop_instance_uid].locator
        path = os.path.join(self._folder, text_path(locator))
        try:
            instance, digest = await trio.to_thread.run_sync(
                _open_and_digest, path, self._job.options.compares_content
            )
        except InstanceError as error:
            self._failed(item, UnreadableInstance(str(error)))
            return None
        if instance.sop_instance_uid != item.sop_instance_uid:
            instance.close()
            self._failed(item, UnreadableInstance("the file holds another instance than before"))
            return None
        return _Opened(item=item, instance=instance, digest=digest)

    def _failed(self, item: FileItem, error: InstanceError) -> None:
        expected = item.work.expected[item.sop_instance_uid]
        self._done(
            item,
            RelayOutcome(
                sop_class_uid=expected.sop_class_uid,
                sop_instance_uid=item.sop_instance_uid,
                transfer_syntax_uid=expected.transfer_syntax_uid,
                status=None,
                error=error,
            ),
        )

    def _done(self, item: FileItem, outcome: RelayOutcome) -> None:
        self._job.outcome(item.work, outcome)
        item.work.in_flight -= 1
        if item.work.in_flight == 0:
            self._nursery.start_soon(self._job.finish_visit, item.work)
        assert self._queue is not None
        self._queue.settle()


def _open_and_digest(path: str, content: bool) -> tuple[FileInstance, DatasetDigest]:
    instance = open_instance(path)
    try:
        return instance, digest_instance(instance, content=content)
    except BaseException:
        instance.close()
        raise


class SendWorker(_FolderWorker):
    """Sends instance by instance over one association at a time."""

    def __init__(
        self,
        job: Job,
        folder: Path,
        nursery: trio.Nursery,
        destination: AssociationPool,
        title: str,
    ) -> None:
        super().__init__(job, folder, nursery)
        self._destination = destination
        self._title = title
        self._next: FileItem | None = None
        self._opened: dict[int, _Opened] = {}
        self._proposed: frozenset[tuple[str, str]] = frozenset()

    async def run(self, queue: WorkQueue[FileItem]) -> None:
        """Until the queue is exhausted. PoolExhausted: the destination was given up."""
        self._queue = queue
        while True:
            if self._next is None:
                self._next = await queue.take()
            if self._next is None:
                return
            try:
                await self._association(queue)
            except PoolExhausted:
                raise
            except ASSOCIATION_ERRORS:
                continue  # each instance was reported, and the pool has counted it
            except InstanceError:
                continue  # a file that became shorter: reported too

    async def _association(self, queue: WorkQueue[FileItem]) -> None:
        assert self._next is not None
        limit = _contexts_limit(self._job.options)
        pairs = choose_contexts([self._next.pair], self._job.popular_pairs(), limit)
        self._proposed = frozenset(pairs)
        request = store_request(self._title, self._job.options, pairs)
        async with self._destination.association(request) as association:
            reencode = Reencoding(self._reencoded) if self._job.options.reencode else None
            scu = StorageScu(association, window=self._job.options.window, reencode=reencode)
            while self._fits(self._next):
                await scu.run(self._take, self._report)
                self._destination.worked()
                await self._await_next(queue)

    async def _await_next(self, queue: WorkQueue[FileItem]) -> None:
        """The next item, if it comes soon enough to keep the association for it."""
        if self._next is None:
            with trio.move_on_after(0 if self._destination.contended else IDLE_SECONDS):
                self._next = await queue.take()

    def _fits(self, item: FileItem | None) -> bool:
        return item is not None and item.pair in self._proposed

    async def _take(self) -> FileInstance | None:
        """What is ready now. It must not wait for more: answers are outstanding meanwhile."""
        await self._job.room()
        assert self._queue is not None
        while True:
            if self._next is None:
                self._next = self._queue.take_nowait()
            item = self._next
            if item is None or item.pair not in self._proposed:
                return None
            self._next = None
            opened = await self._open(item)
            if opened is not None:
                self._opened[id(opened.instance)] = opened
                return opened.instance

    def _reencoded(self, instance: OutgoingInstance, target: str) -> None:
        self._job.reencoded(instance.transfer_syntax_uid, target)

    def _report(self, outcome: StoreOutcome) -> None:
        sent = outcome.instance
        original = sent.original if isinstance(sent, ReencodedInstance) else sent
        opened = self._opened.pop(id(original))
        opened.instance.close()
        error = outcome.error
        self._done(
            opened.item,
            RelayOutcome(
                sop_class_uid=opened.instance.sop_class_uid,
                sop_instance_uid=opened.instance.sop_instance_uid,
                transfer_syntax_uid=opened.instance.transfer_syntax_uid,
                status=outcome.status,
                error_comment=outcome.error_comment,
                error=error,
                unknown=error is not None and outcome.sent,
                length=opened.instance.length,
                sha256=opened.digest.digest(),
                content=opened.digest.content(),
                seconds=outcome.seconds,
            ),
        )


class CopyWorker(_FolderWorker):
    """Files instance by instance into another folder."""

    def __init__(self, job: Job, folder: Path, nursery: trio.Nursery, sinks: SinkFactory) -> None:
        super().__init__(job, folder, nursery)
        self._destination = FolderDestination(
            sinks, self._reported, content=job.options.compares_content
        )
        self._item: FileItem | None = None

    async def run(self, queue: WorkQueue[FileItem]) -> None:
        """Until the queue is exhausted."""
        self._queue = queue
        while (item := await queue.take()) is not None:
            await self._job.room()
            opened = await self._open(item)
            if opened is not None:
                self._item = item
                await self._copy(opened.instance)

    async def _copy(self, instance: FileInstance) -> None:
        try:
            receiver = self._destination.open(
                IncomingInstance(
                    sop_class_uid=instance.sop_class_uid,
                    sop_instance_uid=instance.sop_instance_uid,
                    transfer_syntax_uid=instance.transfer_syntax_uid,
                    calling_ae_title=self._job.options.calling_ae_title,
                    called_ae_title="",
                    peer="",
                )
            )
            dataset = instance.dataset
            if isinstance(dataset, FileRange):
                done = 0
                while done < dataset.length:
                    size = min(COPY_READ, dataset.length - done)
                    piece = await trio.to_thread.run_sync(
                        os.pread, dataset.fd, size, dataset.offset + done
                    )
                    if not piece:
                        await receiver.broken()  # the file became shorter; that is reported
                        return
                    await receiver.write(BytesInMemory(piece))
                    done += len(piece)
            else:
                await receiver.write(BytesInMemory(dataset))
            await receiver.end()
            await receiver.answer()
        except StoreRefused:
            return  # reported
        finally:
            instance.close()

    def _reported(self, outcome: RelayOutcome) -> None:
        assert self._item is not None
        self._done(self._item, outcome)
