"""One migration from its options to its summary: inventory, transfer and verification, side by side.

Studies pass three stages, each with a bounded queue: prepared (listed, the destination asked, the study
row made RUNNING), transferred, verified. A study that is not done goes back to the first.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from dcmhaul import uids
from dcmhaul.config import ANY_SCP, Peer
from dcmhaul.engine.pool import (
    ASSOCIATION_ERRORS,
    AssociationPool,
    PoolPolicy,
    SharedAssociations,
)
from dcmhaul.engine.retry import RetryPolicy
from dcmhaul.engine.scheduler import StopRequest, WorkQueue, flat_nursery, run_stage
from dcmhaul.errors import ConfigurationError
from dcmhaul.migrate.inventory import InstanceQuery, QueryFailed
from dcmhaul.migrate.ledger import Ledger, open_ledger
from dcmhaul.migrate.listing import list_folder, list_peer
from dcmhaul.migrate.plan import (
    MigrateOptions,
    check_filter,
    identity,
    is_within,
    job_name,
    satisfies,
    text_path,
)
from dcmhaul.migrate.readback import FolderReader, MoveReads, PeerReader, Reader
from dcmhaul.migrate.report import MigrationSummary, Progress, summarise
from dcmhaul.migrate.study import Next, StudyWork, make_work
from dcmhaul.migrate.tables import (
    Exclusion,
    InstanceResult,
    InstanceState,
    RunRow,
    RunState,
    StudyRow,
    StudyState,
)
from dcmhaul.migrate.tracker import Tracker
from dcmhaul.migrate.transfer import CopyWorker, FileItem, RelayWorker, SendWorker
from dcmhaul.migrate.verification import Verifier
from dcmhaul.migrate.verify import FolderHoldings, Holdings, PeerHoldings, compare
from dcmhaul.net import secured
from dcmhaul.net.types import NullObserver, Observer
from dcmhaul.objects.sinks import FolderSinks
from dcmhaul.protocol.negotiation import AssociationRequest
from dcmhaul.services.identifiers import QUERY_SYNTAXES
from dcmhaul.wire.items import PresentationContextRq

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dcmhaul.engine.relay import RelayOutcome

__all__ = ["migrate"]

PREPARERS: Final = 2
VERIFIERS: Final = 2
FAILURES_MAX: Final = 8
"""Consecutive failures of a peer after which the run ends: with the delays about half a minute."""
VISITS_MAX: Final = 20
VERIFY_DELAYS: Final = (0.5, 2.0, 5.0)
"""A destination may index what it has acknowledged a little later: it is asked again after these."""

_WORKED_ON: Final = (StudyState.SEEN, StudyState.RUNNING, StudyState.PARTIAL, StudyState.DIFFERS)


async def migrate(
    options: MigrateOptions,
    *,
    progress: Callable[[Progress], None] | None = None,
    observer: Observer | None = None,
    stop: StopRequest | None = None,
) -> MigrationSummary:
    """Runs, or resumes, the job that `options` describe; returns what came of it.

    progress: called from the event loop, at most ten times a second and for each notice; it must not
    block. observer: hears of every association (metrics). stop: `request()` finishes what is in flight and
    returns a summary with `interrupted`; a second one stops at once, and nothing is lost either way.

    Failures of single instances are in the summary, whose `exit_code` is the process's. Raises
    ConfigurationError (a folder that does not exist, a changed job, a ledger that cannot be used) and, where
    nothing was moved, the error of the peer that could not be reached.
    """
    check_filter(options.filter)
    if isinstance(options.source, Path) and not options.source.is_dir():
        what = "is no folder" if options.source.exists() else "does not exist"
        raise ConfigurationError(f"the source {str(options.source)!r} {what}")
    if options.source == options.destination:
        raise ConfigurationError("source and destination are the same")
    if is_within(options.destination, options.source):
        # What is written would be found as the source's own by the next run.
        raise ConfigurationError("the destination lies within the source: name a folder beside it")
    started = time.monotonic()
    with ExitStack() as stack:
        url = options.ledger_url
        if options.dry_run:
            # A plan leaves no trace: neither in the ledger nor on either side.
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dcmhaul-plan-"))
            url = f"sqlite:///{folder}/ledger.db"
        sinks = None
        if isinstance(options.destination, Path) and not options.dry_run:
            sinks = stack.enter_context(_folder_sinks(options.destination))
        async with open_ledger(url) as ledger:
            migration = _Migration(
                options,
                ledger=ledger,
                sinks=sinks,
                progress=progress or (lambda _progress: None),
                observer=observer or NullObserver(),
                stop=stop or StopRequest(),
            )
            summary = await migration.run()
    return replace(summary, wall_seconds=time.monotonic() - started)


def _folder_sinks(folder: Path) -> FolderSinks:
    try:
        return FolderSinks(folder)
    except OSError as error:
        raise ConfigurationError(f"cannot write to {folder}: {error.strerror}") from error


@dataclass(slots=True, kw_only=True)
class _Check:
    """A study whose turn it is to be verified."""

    work: StudyWork
    tries: int = 0


class _Migration:
    """One run. Invariant: a study that left the first queue is settled there exactly once."""

    def __init__(
        self,
        options: MigrateOptions,
        *,
        ledger: Ledger,
        sinks: FolderSinks | None,
        progress: Callable[[Progress], None],
        observer: Observer,
        stop: StopRequest,
    ) -> None:
        self.options = options
        self.stop = stop
        self._ledger = ledger
        self._sinks = sinks
        self._observer = observer
        self._job = job_name(options)
        self._policy = RetryPolicy()
        self._tracker = Tracker(self._job, progress)
        self._run = RunRow(id=0, job=self._job, state=RunState.LISTING, resumed=False)
        self._pairs: Counter[tuple[str, str]] = Counter()
        self._said: set[tuple[str, str]] = set()
        self._levels: list[str] | None = None
        """The verified levels that are enough; None where nothing is verified."""
        self._source_query = InstanceQuery()
        size = options.associations
        self._studies: WorkQueue[StudyRow | StudyWork] = WorkQueue(2 * size)
        self._relays: WorkQueue[StudyWork] = WorkQueue(2 * size)
        self._files: WorkQueue[FileItem] = WorkQueue(64 * size)
        self._checks: WorkQueue[_Check] = WorkQueue(4 * size)
        self._prepared = trio.Event()
        self._transferred = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._source_pool = self._pool(options.source, size)
        self._destination_pool = self._pool(options.destination, size)
        self._source_queries = self._queries(options.source)
        self._destination_queries = self._queries(options.destination)
        self._tracker.pools = [p for p in (self._source_pool, self._destination_pool) if p]
        self._moves: MoveReads | None = None
        if options.receive is not None and options.verify == "digest" and not options.dry_run:
            self._moves = MoveReads(
                options.calling_ae_title,
                options.receive,
                settle_seconds=options.timeouts.dimse,
            )
        self._verifier = self._make_verifier()

    def _make_verifier(self) -> Verifier:
        options = self.options
        holdings: Holdings
        if self._destination_queries is not None:
            holdings = PeerHoldings(self._destination_queries)
            destination = self._reader(options.destination)
        else:
            assert isinstance(options.destination, Path)
            holdings = FolderHoldings(options.destination)
            destination = FolderReader(holdings.path)
        return Verifier(
            options,
            ledger=self._ledger,
            tracker=self._tracker,
            holdings=holdings,
            source=self._reader(options.source),
            destination=destination,
        )

    def _reader(self, endpoint: Peer | Path) -> Reader:
        """Reads have associations of their own: a transfer may wait for a verification, never the reverse."""
        if isinstance(endpoint, Path):
            return FolderReader(lambda instance: str(endpoint / text_path(instance.locator)))
        pool = self._pool(endpoint, VERIFIERS)
        assert pool is not None
        # Something was moved or asked before: a refusal now is no reason to give up at once.
        pool.health = replace(pool.health, reached=True)
        return PeerReader(pool, _title(endpoint), self.options, self._moves)

    def _pool(self, endpoint: Peer | Path, size: int) -> AssociationPool | None:
        if isinstance(endpoint, Path):
            return None
        return AssociationPool(
            endpoint.host,
            endpoint.port,
            policy=PoolPolicy(size=size, failures_max=FAILURES_MAX),
            timeouts=self.options.timeouts,
            options=secured(self.options.socket_options, endpoint.tls),
            observer=self._observer,
        )

    def _queries(self, endpoint: Peer | Path) -> SharedAssociations | None:
        """Questions have associations of their own: they do not wait behind transfers."""
        pool = self._pool(endpoint, PREPARERS)
        if pool is None:
            return None
        request = AssociationRequest(
            called_ae_title=_title(endpoint),
            calling_ae_title=self.options.calling_ae_title,
            contexts=(
                PresentationContextRq(
                    context_id=1,
                    abstract_syntax=uids.STUDY_ROOT_FIND,
                    transfer_syntaxes=QUERY_SYNTAXES[:2],
                ),
            ),
            pdu_length_max=self.options.pdu_length_max,
        )
        return SharedAssociations(pool, request)

    # -- the run ------------------------------------------------------------------------------------

    async def run(self) -> MigrationSummary:
        asked = identity(self.options)
        self._run = await self._ledger.open_run(self._job, asked, self._recorded_options())
        self._verifier.run_id = self._run.id
        if self._run.resumed:
            self._tracker.notice(f"job {self._job} is in the ledger: it goes on where it was")
        elif self.options.job is None:
            self._tracker.notice(f"job {self._job}")
        if self.options.verify != "none":
            level = self.options.verify_level
            recorded = await self._ledger.verified_levels(self._run.id)
            self._levels = [level, *(other for other in recorded if satisfies(other, level))]
        if self._run.state is RunState.DONE and not await self._unfinished():
            if (await self._ledger.totals(self._run.id)).studies:
                return await self._close("")
            # Nothing was found then; there may be something now.
            await self._ledger.set_run_state(self._run.id, RunState.LISTING, {})
            self._run = replace(self._run, state=RunState.LISTING)
        error = ""
        with self.stop.cancel_scope:
            try:
                await self._stages()
            except ASSOCIATION_ERRORS as failure:
                if not self._tracker.instances:
                    with trio.CancelScope(shield=True):
                        await self._record_end(failure.exit_code, str(failure))
                    raise
                error = str(failure)
                await self._ledger.event(self._run.id, "run.broken", error=error)
        return await self._close(error)

    async def _close(self, error: str) -> MigrationSummary:
        """What is recorded of the end of this run, also after it was stopped at once."""
        with trio.CancelScope(shield=True):
            await self._ledger.flush()
            ended = not (self.options.dry_run or self.stop.requested or error)
            if ended and self._run.state is not RunState.DONE and not await self._unfinished():
                await self._ledger.set_run_state(self._run.id, RunState.DONE, {})
            summary = await self._summary(error)
            await self._record_end(summary.exit_code, error)
        self._tracker.finish(summary)
        return summary

    async def _record_end(self, exit_code: int, error: str) -> None:
        """What this start moved, for the report's times and rates."""
        tracker = self._tracker
        await self._ledger.event(
            self._run.id,
            "run.ended",
            instances=tracker.instances,
            bytes=tracker.bytes,
            seconds=round(tracker.seconds, 6),
            exit_code=exit_code,
            error=error,
        )

    def _recorded_options(self) -> dict[str, object]:
        options = self.options
        return {
            "associations": options.associations,
            "window": options.window,
            "verify": options.verify_level,
            "calling_ae_title": options.calling_ae_title,
        }

    async def _unfinished(self) -> bool:
        return bool(
            await self._ledger.studies(self._run.id, _WORKED_ON, limit=1, verified=self._levels)
        )

    async def _summary(self, error: str) -> MigrationSummary:
        asked = identity(self.options)
        tracker = self._tracker
        base = MigrationSummary(
            job=self._job,
            source=asked.source,
            destination=asked.destination,
            verify=self.options.verify_level,
            instances=tracker.instances,
            bytes=tracker.bytes,
            seconds=tracker.seconds,
            unverified=self._verifier.unverified,
            interrupted=self.stop.requested,
            dry_run=self.options.dry_run,
            error=error,
        )
        return summarise(
            base,
            await self._ledger.totals(self._run.id),
            await self._ledger.failures(self._run.id),
            await self._ledger.differences(self._run.id),
        )

    async def _stages(self) -> None:
        own = nullcontext() if self._moves is None else self._moves.serving(self._observer)
        async with own, flat_nursery() as services:
            for queries in (self._source_queries, self._destination_queries):
                if queries is not None:
                    services.start_soon(queries.serve)
            if self._run.state is RunState.LISTING:
                await self._list()
            totals = await self._ledger.totals(self._run.id)
            self._tracker.start(totals)
            for sop_class, syntax, count in await self._ledger.class_counts(self._run.id):
                if syntax:
                    self._pairs[sop_class, syntax] += count
            async with flat_nursery() as self._nursery:
                self._nursery.start_soon(self._prepare_all)
                self._nursery.start_soon(self._transfer_all)
                self._nursery.start_soon(self._verify_all)
            for queries in (self._source_queries, self._destination_queries):
                if queries is not None:
                    queries.finish()

    # -- inventory ----------------------------------------------------------------------------------

    async def _list(self) -> None:
        """The studies of the job into the ledger; the state says whether it came to its end."""
        options = self.options
        if isinstance(options.source, Path):
            await list_folder(
                options.source, options.filter, self._ledger, self._run.id, self._tracker
            )
        else:
            assert self._source_queries is not None
            await self._source_queries.call(
                lambda association: list_peer(
                    association,
                    options.filter,
                    self._ledger,
                    self._run.id,
                    self._tracker,
                    self.stop,
                )
            )
        if not self.stop.requested:
            await self._ledger.set_run_state(self._run.id, RunState.WORKING, {})

    # -- first stage: prepare -----------------------------------------------------------------------

    async def _prepare_all(self) -> None:
        await run_stage(self._studies, self._feed, self._prepare, workers=PREPARERS, stop=self.stop)
        self._prepared.set()

    async def _feed(self, queue: WorkQueue[StudyRow | StudyWork]) -> None:
        after = 0
        while page := await self._ledger.studies(
            self._run.id, _WORKED_ON, after=after, verified=self._levels
        ):
            for row in page:
                if not await queue.put(row):
                    return
            after = page[-1].id

    async def _prepare(self, queue: WorkQueue[StudyRow | StudyWork]) -> None:
        while (item := await queue.take()) is not None:
            if isinstance(item, StudyWork):
                await self._ask_and_dispatch(item, fresh=False)
                continue
            work = await self._load(item)
            if work is None:
                self._tracker.study_done()
                queue.settle()
            elif item.state is StudyState.DONE:
                await self._checks.put(_Check(work=work))
                queue.settle()
            else:
                await self._ask_and_dispatch(work, fresh=True)

    async def _load(self, row: StudyRow) -> StudyWork | None:
        """The study's work, listed at the source where that was not done; None where there is none."""
        if not row.listed and self._source_queries is not None:
            uid, hint = row.study_instance_uid, row.n_expected
            try:
                instances = await self._source_queries.call(
                    lambda association: self._source_query.instances(association, uid, hint)
                )
            except QueryFailed as error:
                await self._study_failed(row, str(error), error.status)
                return None
            if not instances and hint:
                text = f"the source counts {hint} instances and lists none"
                await self._study_failed(row, text, None)
                return None
            if not instances:
                await self._ledger.close_study(row.id, StudyState.DONE, comment="no instances")
                if self._levels is not None:
                    await self._ledger.verified(row.id, self.options.verify_level)
                return None
            await self._ledger.add_instances(row.id, instances, running=False)
            self._tracker.expected(len(instances))
        rows = await self._ledger.instances(row.id)
        return make_work(row.id, row.study_instance_uid, rows, self._policy)

    async def _study_failed(self, row: StudyRow, text: str, status: int | None) -> None:
        await self._ledger.close_study(row.id, StudyState.PARTIAL, comment=text, last_status=status)
        self._tracker.failed += 1
        self._tracker.notice(f"failed: study {row.study_instance_uid}: {text}")

    async def _ask_and_dispatch(self, work: StudyWork, *, fresh: bool) -> None:
        if fresh or work.next is Next.ASK:
            found = await self._verifier.held(work)
            results = work.present(found or ())
            for result in results:
                if result.state is InstanceState.IDENTICAL_PRESENT:
                    self._tracker.present()
            await self.record(work, results)
            level = self.options.verify
            complete = not work.open and not work.failed and found is not None
            # Contents are compared in the last stage.
            if complete and level != "digest" and compare(level, work.held, found or ()) is None:
                await self._finish_study(work, verified=True)
                return
        if not work.open:
            await self._finish_study(work)
            return
        if self.options.dry_run:
            self._studies.settle()
            return
        await self._ledger.begin_study(work.id)
        await self._dispatch(work)

    async def _dispatch(self, work: StudyWork) -> None:
        for pairs in work.contexts():
            for pair in pairs:
                self._pairs[pair] += 1
        if self._source_pool is not None:
            await self._relays.put(work)
            return
        items = [FileItem(work=work, sop_instance_uid=uid) for uid in sorted(work.open)]
        work.in_flight = len(items)
        for item in items:
            if not await self._files.put(item):
                return

    # -- second stage: transfer ---------------------------------------------------------------------

    async def _transfer_all(self) -> None:
        async def until_prepared(_queue: object) -> None:
            await self._prepared.wait()

        size = self.options.associations
        if self._source_pool is not None:
            await run_stage(self._relays, until_prepared, self._relay, workers=size, stop=self.stop)
        else:
            await run_stage(self._files, until_prepared, self._send, workers=size, stop=self.stop)
        self._transferred.set()

    async def _relay(self, queue: WorkQueue[StudyWork]) -> None:
        assert self._source_pool is not None
        worker = RelayWorker(
            self,
            self._source_pool,
            _title(self.options.source),
            self._destination_pool,
            _title(self.options.destination),
            self._sinks,
        )
        await worker.run(queue)

    async def _send(self, queue: WorkQueue[FileItem]) -> None:
        folder = self.options.source
        assert isinstance(folder, Path)
        assert self._nursery is not None
        if self._destination_pool is not None:
            title = _title(self.options.destination)
            await SendWorker(self, folder, self._nursery, self._destination_pool, title).run(queue)
        elif self._sinks is not None:
            await CopyWorker(self, folder, self._nursery, self._sinks).run(queue)

    def popular_pairs(self) -> Iterable[tuple[str, str]]:
        return [pair for pair, _ in self._pairs.most_common(256)]

    async def room(self) -> None:
        await self._ledger.room()

    def reencoded(self, source: str, target: str) -> None:
        if (source, target) not in self._said:
            self._said.add((source, target))
            self._tracker.notice(f"re-encoding from {uids.name(source)} to {uids.name(target)}")

    def outcome(self, work: StudyWork, outcome: RelayOutcome) -> None:
        known = outcome.sop_instance_uid in work.expected
        result = work.fold(outcome)
        if result is None:
            return
        if result.state is InstanceState.ACKED:
            self._tracker.acknowledged(outcome.length, outcome.seconds)
        if known:
            self._recorded(work, result)
        else:
            work.extra_results.append(result)

    def conflict(self, exclusion: Exclusion) -> None:
        self._tracker.failed += 1
        self._ledger.record_exclusion(self._run.id, exclusion)

    async def record(self, work: StudyWork, results: Iterable[InstanceResult]) -> None:
        if work.extra:
            extra, work.extra = work.extra, []
            await self._ledger.add_instances(work.id, extra, running=True)
            self._tracker.expected(len(extra))
        late, work.extra_results = work.extra_results, []
        for result in (*late, *results):
            self._recorded(work, result)

    def _recorded(self, work: StudyWork, result: InstanceResult) -> None:
        if result.state is InstanceState.FAILED:
            self._tracker.failed += 1
        self._ledger.record(result)

    async def finish_visit(self, work: StudyWork) -> None:
        await self.record(work, ())
        work.visits += 1
        if work.open and work.visits >= VISITS_MAX and not work.unknown:
            await self.record(work, work.give_up("given up after too many attempts"))
        if not work.open:
            await self._finish_study(work)
        elif self.stop.requested:
            self._studies.settle()  # it stays RUNNING: the next run asks and goes on
        else:
            delay, work.delay_seconds = work.delay_seconds, 0.0
            self._studies.put_back(work, delay)

    async def _finish_study(self, work: StudyWork, *, verified: bool = False) -> None:
        failed = f"{len(work.failed)} instances failed" if work.failed else None
        await self._ledger.close_study(
            work.id, work.closing_state, comment=failed, last_status=work.last_status
        )
        if verified and self._levels is not None:
            await self._ledger.verified(work.id, self.options.verify_level)
        if not verified and self._levels is not None and work.held:
            await self._checks.put(_Check(work=work))
        else:
            self._tracker.study_done()
        self._studies.settle()

    # -- third stage: verify ------------------------------------------------------------------------

    async def _verify_all(self) -> None:
        async def until_transferred(_queue: object) -> None:
            await self._transferred.wait()

        await run_stage(
            self._checks, until_transferred, self._verify, workers=VERIFIERS, stop=self.stop
        )

    async def _verify(self, queue: WorkQueue[_Check]) -> None:
        while (check := await queue.take()) is not None:
            if await self._verifier.verify(check.work, last=check.tries >= len(VERIFY_DELAYS)):
                self._tracker.study_done()
                queue.settle()
            else:
                check.tries += 1
                queue.put_back(check, VERIFY_DELAYS[check.tries - 1])


def _title(endpoint: Peer | Path) -> str:
    return (endpoint.ae_title or ANY_SCP) if isinstance(endpoint, Peer) else ""
