"""The ledger: what was asked for, what is known of each instance, and what became of it, durably.

Two writes an instance: its inventory row and its final state. The fact that is durable before a
transfer is the study row RUNNING; so after a crash every instance of such a study that has no
final state is UNKNOWN until the destination was asked. It knows no network.
"""

from __future__ import annotations

import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
import trio
from sqlalchemy.dialects import postgresql, sqlite

from dcmhaul import crash
from dcmhaul.database import DatabaseError, SchemaMismatch, open_database
from dcmhaul.engine.planning import ExpectedInstance
from dcmhaul.engine.scheduler import flat_nursery
from dcmhaul.errors import ConfigurationError, DcmhaulError
from dcmhaul.migrate.bulk import (
    BEGIN_STUDY,
    CLOSE_STUDY,
    COUNT_STUDY,
    insert_instances,
    update_instances,
)
from dcmhaul.migrate.queries import (
    open_run,
    read_differences,
    read_digests,
    read_failures,
    read_studies,
    read_totals,
    read_verified_levels,
    write_checks,
    write_event,
)
from dcmhaul.migrate.tables import (
    EXCLUSION,
    INSTANCE,
    METADATA,
    NO_UID,
    RUN,
    SCHEMA_VERSION,
    STUDY,
    UID,
    VERIFICATION,
    CheckRow,
    DigestRow,
    Exclusion,
    FailureRow,
    InstanceResult,
    InstanceRow,
    InstanceState,
    RunRow,
    RunState,
    StudyListing,
    StudyRow,
    StudyState,
    Totals,
)
from dcmhaul.migrate.upgrades import with_hint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

    from sqlalchemy.engine import Connection

    from dcmhaul.database import Database
    from dcmhaul.migrate.plan import JobIdentity

__all__ = ["Ledger", "LedgerFailed", "open_ledger"]

FLUSH_SECONDS = 0.2
FLUSH_ROWS = 500
PENDING_ROWS_MAX = 5000
STUDY_PAGE = 200


def _now() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


class LedgerFailed(DcmhaulError):
    """The ledger's database refused, on a full disk above all: what it does not hold is asked for again."""


class Ledger:
    """An open ledger. One task group owns it; its methods are called from trio tasks.

    Results gather for 200 ms or 500 rows and leave in one transaction; `close_study` returns when
    everything that was recorded before it is durable.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pending: list[InstanceResult] = []
        self._closed: list[dict[str, Any]] = []
        self._excluded: list[dict[str, Any]] = []
        self._flushing = trio.StrictFIFOLock()
        self._asked = 0
        self._written = 0
        self._full = trio.Event()
        self._drained = trio.Event()
        self._uids: dict[str, int] = {"": NO_UID}
        self._uid_texts: dict[int, str] = {NO_UID: ""}
        on_sqlite = database.url.get_backend_name() == "sqlite"
        self._insert = sqlite.insert if on_sqlite else postgresql.insert

    # -- runs --------------------------------------------------------------------------------------

    async def open_run(self, job: str, asked: JobIdentity, options: Mapping[str, object]) -> RunRow:
        """The run of that name, made where it is new; ConfigurationError where it is another job."""

        run = await self._database.submit(
            lambda connection: open_run(connection, job, asked, options, _now())
        )
        await self._load_uids()
        return run

    async def set_run_state(
        self, run_id: int, state: RunState, event: Mapping[str, object]
    ) -> None:
        """Records how far the run is; DONE also records the end."""

        def set_state(connection: Connection) -> None:
            ended = _now() if state is RunState.DONE else None
            connection.execute(
                RUN.update().where(RUN.c.id == run_id).values(state=state, ended=ended)
            )
            write_event(connection, run_id, f"run.{state.name.lower()}", event, _now())

        await self._database.submit(set_state)

    async def event(self, run_id: int, kind: str, **details: object) -> None:
        """A decision or a failure that the report must be able to name; no patient data in it."""
        await self._database.submit(
            lambda connection: write_event(connection, run_id, kind, details, _now())
        )

    # -- inventory ---------------------------------------------------------------------------------

    async def add_studies(self, run_id: int, studies: Iterable[StudyListing]) -> None:
        """Adds what is new; a study that is known stays as it is."""
        rows = [
            {
                "run_id": run_id,
                "study_uid": study.study_instance_uid,
                "date": study.date,
                "modality": study.modality,
                "n_expected": study.n_expected,
                "state": StudyState.SEEN,
                "attempts": 0,
            }
            for study in studies
        ]
        if not rows:
            return
        statement = self._insert(STUDY).on_conflict_do_nothing()
        await self._database.submit(
            lambda connection: _discard(connection.execute(statement, rows))
        )

    async def study_ids(self, run_id: int, study_uids: Sequence[str]) -> dict[str, int]:
        """The rows of these studies."""
        statement = sa.select(STUDY.c.study_uid, STUDY.c.id).where(
            STUDY.c.run_id == run_id, STUDY.c.study_uid.in_(list(study_uids))
        )
        return await self._database.read(
            lambda connection: {row.study_uid: row.id for row in connection.execute(statement)}
        )

    async def add_instances(
        self, study_id: int, instances: Sequence[ExpectedInstance], *, running: bool
    ) -> list[ExpectedInstance]:
        """Writes inventory rows, and with `running` the fact that a transfer of the study begins.

        Returns those whose UID the study has already under another locator (two files, one UID).
        """
        await self._learn_uids(
            {i.sop_class_uid for i in instances}
            | {i.series_instance_uid for i in instances}
            | {i.transfer_syntax_uid for i in instances}
        )
        now = _now()
        uids, seen = self._uids, int(InstanceState.SEEN)
        rows = [  # bulk.INVENTORY
            (
                study_id,
                instance.sop_instance_uid,
                uids[instance.sop_class_uid],
                uids[instance.transfer_syntax_uid],
                uids[instance.series_instance_uid],
                seen,
                instance.locator or None,
                now,
            )
            for instance in instances
        ]

        def add(connection: Connection) -> list[ExpectedInstance]:
            again: list[ExpectedInstance] = []
            insert_instances(connection, rows)
            located = [instance for instance in instances if instance.locator]
            if located:
                found = {
                    row.sop_uid: row.locator
                    for row in connection.execute(
                        sa.select(INSTANCE.c.sop_uid, INSTANCE.c.locator).where(
                            INSTANCE.c.study_id == study_id,
                            INSTANCE.c.sop_uid.in_([i.sop_instance_uid for i in located]),
                        )
                    )
                }
                again = [i for i in located if found[i.sop_instance_uid] != i.locator]
            connection.execute(COUNT_STUDY, {"b_study": study_id})
            if running:
                connection.execute(BEGIN_STUDY, {"b_study": study_id, "b_attempts": 0})
            return again

        return await self._database.submit(add)

    async def begin_study(self, study_id: int) -> None:
        """The durable fact before a transfer; its attempts are counted."""
        parameters = {"b_study": study_id, "b_attempts": 1}
        await self._database.submit(
            lambda connection: _discard(connection.execute(BEGIN_STUDY, parameters))
        )

    async def exclude_studies(self, study_ids: Sequence[int], reason: str) -> None:
        """Leaves studies out that the filter does not want."""
        await self._database.submit(
            lambda connection: _discard(
                connection.execute(
                    STUDY.update()
                    .where(STUDY.c.id.in_(list(study_ids)))
                    .values(state=StudyState.EXCLUDED, comment=reason)
                )
            )
        )

    async def add_exclusions(self, run_id: int, exclusions: Sequence[Exclusion]) -> None:
        """Files that are not DICOM, cannot be read, or hold another object under a known UID."""
        if not exclusions:
            return
        rows = [_exclusion_row(run_id, exclusion) for exclusion in exclusions]
        statement = self._insert(EXCLUSION).on_conflict_do_nothing()
        await self._database.submit(
            lambda connection: _discard(connection.execute(statement, rows))
        )

    async def forget_exclusions(self, run_id: int) -> None:
        """Before a folder is walked again."""
        await self._database.submit(
            lambda connection: _discard(
                connection.execute(EXCLUSION.delete().where(EXCLUSION.c.run_id == run_id))
            )
        )

    # -- work --------------------------------------------------------------------------------------

    async def studies(
        self,
        run_id: int,
        states: Iterable[StudyState],
        after: int = 0,
        limit: int = STUDY_PAGE,
        verified: Sequence[str] | None = None,
    ) -> list[StudyRow]:
        """The next page of studies in these states, by id.

        verified: also those that are DONE and verified at none of these levels.
        """
        return await self._database.read(
            lambda connection: read_studies(connection, run_id, states, after, limit, verified)
        )

    async def instances(self, study_id: int) -> list[InstanceRow]:
        """Every instance of a study. What was recorded and is not yet flushed is not seen."""
        statement = sa.select(INSTANCE).where(INSTANCE.c.study_id == study_id)
        rows = await self._database.read(lambda connection: connection.execute(statement).all())
        return [
            InstanceRow(
                expected=ExpectedInstance(
                    sop_instance_uid=row.sop_uid,
                    sop_class_uid=self._uid_texts[row.class_id],
                    series_instance_uid=self._uid_texts[row.series_id],
                    transfer_syntax_uid=self._uid_texts[row.ts_id],
                    locator=row.locator or "",
                ),
                state=InstanceState(row.state),
            )
            for row in rows
        ]

    async def locator(self, study_id: int, sop_instance_uid: str) -> str:
        """Where the instance lies in the source folder."""
        statement = sa.select(INSTANCE.c.locator).where(
            INSTANCE.c.study_id == study_id, INSTANCE.c.sop_uid == sop_instance_uid
        )
        return await self._database.read(
            lambda connection: connection.execute(statement).scalar_one() or ""
        )

    async def class_counts(self, run_id: int) -> list[tuple[str, str, int]]:
        """(class, syntax, instances) of what the run has listed so far, commonest first."""
        statement = (
            sa.select(INSTANCE.c.class_id, INSTANCE.c.ts_id, sa.func.count().label("n"))
            .join(STUDY, STUDY.c.id == INSTANCE.c.study_id)
            .where(STUDY.c.run_id == run_id)
            .group_by(INSTANCE.c.class_id, INSTANCE.c.ts_id)
            .order_by(sa.desc("n"), INSTANCE.c.class_id, INSTANCE.c.ts_id)
        )
        rows = await self._database.read(lambda connection: connection.execute(statement).all())
        return [(self._uid_texts[row.class_id], self._uid_texts[row.ts_id], row.n) for row in rows]

    def record(self, result: InstanceResult) -> None:
        """The final state of an instance; durable within 200 ms or at the next `close_study`."""
        self._pending.append(result)
        if len(self._pending) >= FLUSH_ROWS:
            self._full.set()

    def record_exclusion(self, run_id: int, exclusion: Exclusion) -> None:
        """As `record`, of what has no row among the instances."""
        self._excluded.append(_exclusion_row(run_id, exclusion))

    async def room(self) -> None:
        """Waits while the writer is behind: called before more work is taken on."""
        while len(self._pending) >= PENDING_ROWS_MAX:
            self._full.set()
            await self._drained.wait()

    async def flush(self) -> None:
        """Returns when everything recorded so far is durable."""
        await self._flush()

    async def close_study(
        self,
        study_id: int,
        state: StudyState,
        *,
        comment: str | None = None,
        last_status: int | None = None,
    ) -> None:
        """Everything recorded so far and the state of the study, in one commit."""
        await self._flush(
            {
                "b_study": study_id,
                "b_state": int(state),
                "b_comment": comment,
                "b_status": last_status,
            }
        )

    async def verified(self, study_id: int, level: str) -> None:
        """The level holds for the study."""
        await self._database.submit(
            lambda connection: _discard(
                connection.execute(
                    STUDY.update()
                    .where(STUDY.c.id == study_id)
                    .values(verified_level=level, verified_at=_now())
                )
            )
        )

    async def differs(self, study_id: int, missing: Sequence[str], comment: str) -> None:
        """The destination lacks `missing` after all: a later run moves them again."""

        def write(connection: Connection) -> None:
            connection.execute(
                STUDY.update()
                .where(STUDY.c.id == study_id)
                .values(state=StudyState.DIFFERS, comment=comment, verified_level=None)
            )
            for start in range(0, len(missing), 500):
                page = list(missing[start : start + 500])
                connection.execute(
                    INSTANCE.update()
                    .where(INSTANCE.c.study_id == study_id, INSTANCE.c.sop_uid.in_(page))
                    .values(state=InstanceState.SEEN, comment=comment, updated=_now())
                )
                connection.execute(
                    VERIFICATION.delete().where(
                        VERIFICATION.c.study_id == study_id, VERIFICATION.c.sop_uid.in_(page)
                    )
                )

        await self._database.submit(write)

    async def record_checks(self, study_id: int, rows: Sequence[CheckRow]) -> None:
        """What came of reading instances back, durably."""
        await self._learn_uids({row.transfer_syntax_uid for row in rows})
        await self._database.submit(
            lambda connection: write_checks(connection, study_id, rows, self._uids, _now())
        )

    # -- reading -----------------------------------------------------------------------------------

    async def digests(self, study_id: int) -> list[DigestRow]:
        """What is to be compared of a study, with what is known of it. Flush before."""
        return await self._database.read(lambda connection: read_digests(connection, study_id))

    async def differences(self, run_id: int, limit: int = 1000) -> list[CheckRow]:
        """What a comparison found, at most `limit` rows."""
        return await self._database.read(
            lambda connection: read_differences(connection, run_id, limit)
        )

    async def verified_levels(self, run_id: int) -> list[str]:
        """The levels that hold for studies of the run."""
        return await self._database.read(
            lambda connection: read_verified_levels(connection, run_id)
        )

    async def totals(self, run_id: int) -> Totals:
        """Counts over the whole run."""
        return await self._database.read(lambda connection: read_totals(connection, run_id))

    async def failures(self, run_id: int, limit: int = 1000) -> list[FailureRow]:
        """What did not arrive, at most `limit` rows."""
        return await self._database.read(
            lambda connection: read_failures(connection, run_id, limit)
        )

    # -- writing -----------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            with trio.move_on_after(FLUSH_SECONDS):
                await self._full.wait()
            await self._flush()

    async def _flush(self, *closed: dict[str, Any]) -> None:
        """Everything recorded so far and studies that are closed (parameters of CLOSE_STUDY), in one
        transaction; who waits meanwhile shares the next.

        One transaction at a time: a study must not be closed before the results of its instances.
        """
        self._closed.extend(closed)
        self._asked += 1
        asked = self._asked
        async with self._flushing:
            if self._written < asked:
                self._written = await self._write()

    async def _write(self) -> int:
        """Returns which of the calls of `_flush` are served by it."""
        while unknown := {r.transfer_syntax_uid for r in self._pending} - self._uids.keys():
            await self._learn_uids(unknown)
        asked = self._asked
        pending, self._pending = self._pending, []
        closed, self._closed = self._closed, []
        excluded, self._excluded = self._excluded, []
        self._full = trio.Event()
        if pending or closed or excluded:
            now = _now()
            rows = [self._row(result, now) for result in pending]
            if crash.armed and rows:
                crash.passed("ledger.before_ack")
            exclude = self._insert(EXCLUSION).on_conflict_do_nothing()

            def write(connection: Connection) -> None:
                update_instances(connection, rows)
                if excluded:
                    connection.execute(exclude, excluded)
                for parameters in closed:
                    connection.execute(CLOSE_STUDY, parameters)

            try:
                await self._database.submit(write)
            except BaseException:
                # Cancelled, it may have been written or not; written again it says the same.
                self._pending[:0] = pending
                self._closed[:0] = closed
                self._excluded[:0] = excluded
                raise
            if crash.armed and rows:
                crash.passed("ledger.after_ack")
        self._drained.set()
        self._drained = trio.Event()
        return asked

    def _row(self, result: InstanceResult, now: int) -> tuple[Any, ...]:
        """As bulk.RESULT."""
        content, retryable = result.content, result.retryable
        return (
            int(result.state),
            self._uids[result.transfer_syntax_uid] or None,
            result.length,
            result.sha256,
            content.content if content is not None else None,
            content.coercible if content is not None else None,
            result.status,
            None if retryable is None else bool(retryable),
            result.comment,
            now,
            result.study_id,
            result.sop_instance_uid,
        )

    async def _load_uids(self) -> None:
        rows = await self._database.read(
            lambda connection: connection.execute(sa.select(UID)).all()
        )
        for row in rows:
            self._uids[row.uid] = row.id
            self._uid_texts[row.id] = row.uid

    async def _learn_uids(self, wanted: set[str]) -> None:
        new = sorted(wanted - self._uids.keys())
        if not new:
            return
        statement = self._insert(UID).on_conflict_do_nothing()
        await self._database.submit(
            lambda connection: _discard(connection.execute(statement, [{"uid": u} for u in new]))
        )
        await self._load_uids()


@asynccontextmanager
async def open_ledger(url: str) -> AsyncIterator[Ledger]:
    """Opens (or makes) the ledger; on leaving, what was recorded is flushed.

    ConfigurationError: not a ledger, another version, or another process writes it. LedgerFailed: its
    database refused within the block, which was cancelled.
    """
    _make_folder(url)
    try:
        async with _opened(url) as ledger:
            yield ledger
    except DatabaseError as error:
        shown = sa.make_url(url).render_as_string(hide_password=True)
        raise LedgerFailed(
            f"the ledger {shown} cannot be written: {error}; nothing that arrived is lost: "
            "mend that and run the job again"
        ) from error


@asynccontextmanager
async def _opened(url: str) -> AsyncIterator[Ledger]:
    async with AsyncExitStack() as stack:
        try:
            database = await stack.enter_async_context(
                open_database(url, METADATA, SCHEMA_VERSION, kind="ledger")
            )
        except SchemaMismatch as error:
            raise ConfigurationError(with_hint(error)) from error
        nursery = await stack.enter_async_context(flat_nursery())
        ledger = Ledger(database)
        nursery.start_soon(ledger._run)
        try:
            yield ledger
        finally:
            nursery.cancel_scope.cancel()
            # What the destination has acknowledged is worth a moment even when the run was
            # cancelled; without it the next run would only have to ask.
            with trio.CancelScope(shield=True), trio.move_on_after(10):
                await ledger._flush()


def _make_folder(url: str) -> None:
    """The folder of an SQLite ledger: on first use the user's data folder may not exist."""
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() == "sqlite" and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    except sa.exc.ArgumentError:
        return  # opening it says what is wrong
    except OSError as error:
        raise ConfigurationError(f"cannot make the ledger's folder: {error}") from error


def _exclusion_row(run_id: int, exclusion: Exclusion) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "locator": exclusion.locator,
        "kind": exclusion.kind,
        "reason": exclusion.reason,
    }


def _discard(_result: object) -> None:
    """A cursor must not leave the writer's thread."""
