"""What the ledger says of jobs, for the list of jobs and for reports; it opens no ledger and asks no peer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from dcmhaul.errors import ConfigurationError
from dcmhaul.migrate.plan import filter_text, satisfies
from dcmhaul.migrate.queries import read_totals
from dcmhaul.migrate.tables import (
    EVENT,
    EXCLUSION,
    HELD_STATES,
    INSTANCE,
    RUN,
    STUDY,
    VERIFICATION,
    CheckResult,
    InstanceState,
    RunState,
    StudyState,
    Totals,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection, Row

__all__ = [
    "Invocation",
    "Item",
    "JobAccount",
    "JobRow",
    "ModalityCount",
    "Reason",
    "list_jobs",
    "moment",
    "read_account",
    "read_items",
]

ROWS_AT_ONCE = 500
_QUIET_EVENTS = ("run.started", "run.ended", "run.working", "run.done")


def moment(microseconds: int | None) -> str:
    """Microseconds since the epoch as ISO 8601 in UTC, to the second; "" for None."""
    if microseconds is None:
        return ""
    return f"{datetime.fromtimestamp(microseconds / 1e6, UTC):%Y-%m-%dT%H:%M:%SZ}"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """One job. started, ended: microseconds since the epoch. bytes: datasets that the job moved.

    filter: without values that may tell of a patient. state: `inventory`, `working` or `done`.
    """

    id: int
    name: str
    source: str
    destination: str
    filter: str
    verify: str
    options: dict[str, Any]
    state: str
    tool_version: str
    started: int
    ended: int | None
    totals: Totals
    bytes: int

    @property
    def held(self) -> int:
        """Instances that the destination has acknowledged or had before."""
        return self.totals.acked + self.totals.present


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """One start of the job. ended: None where the process was killed, or is running now.

    instances, bytes, seconds: what it moved, as a migration's summary counts it.
    """

    started: int
    ended: int | None = None
    version: str = ""
    verify: str = ""
    instances: int = 0
    bytes: int = 0
    seconds: float = 0.0
    exit_code: int | None = None
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why instances did not arrive. status: of the C-STORE-RSP; None where there was none."""

    status: int | None
    retryable: bool
    reason: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModalityCount:
    """What was moved of one combination of modalities, as the source names it."""

    modality: str
    studies: int
    instances: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """An event of the run that a reader should know, such as a destination that cannot be asked."""

    moment: int
    kind: str
    details: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One thing that needs attention. what: `pending`, `failed`, `conflict`, `coerced`, `differs`,
    `not read`, or `study` for one of which nothing could be listed.
    """

    what: str
    study_instance_uid: str = ""
    sop_instance_uid: str = ""
    path: str = ""
    status: int | None = None
    retryable: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobAccount:
    """All that a report says, but for the single items, of which there may be millions."""

    job: JobRow
    studies_excluded: int
    studies_pending: int
    invocations: tuple[Invocation, ...]
    reasons: tuple[Reason, ...]
    exclusions: tuple[tuple[str, str, int], ...]
    """Files: kind, reason, how many."""
    verified_levels: tuple[tuple[str, int], ...]
    """Level, studies for which it holds."""
    modalities: tuple[ModalityCount, ...]
    decisions: tuple[Decision, ...]

    @property
    def studies_unverified(self) -> int:
        """Studies that are done and of which the level that was asked for last does not hold."""
        asked = self.job.verify or "none"
        if asked == "none":
            return 0
        enough = sum(n for level, n in self.verified_levels if satisfies(level, asked))
        return max(0, self.job.totals.studies_done - enough)

    @property
    def seconds(self) -> float:
        """Time in which instances were moved, over all invocations that came to their end."""
        return sum(run.seconds for run in self.invocations)

    @property
    def mib_per_s(self) -> float:
        seconds = self.seconds
        return sum(run.bytes for run in self.invocations) / 2**20 / seconds if seconds else 0.0

    @property
    def instances_per_s(self) -> float:
        seconds = self.seconds
        return sum(run.instances for run in self.invocations) / seconds if seconds else 0.0


# -- reading --------------------------------------------------------------------------------------------


def list_jobs(connection: Connection) -> list[JobRow]:
    """Every job of the ledger, in the order in which they were first started."""
    rows = connection.execute(sa.select(RUN).order_by(RUN.c.id)).all()
    return [_job(connection, row) for row in rows]


def _job(connection: Connection, row: Row[Any]) -> JobRow:
    states = {RunState.LISTING: "inventory", RunState.WORKING: "working", RunState.DONE: "done"}
    options = json.loads(row.options_json)
    moved = connection.execute(
        sa.select(sa.func.sum(INSTANCE.c.len))
        .join(STUDY, STUDY.c.id == INSTANCE.c.study_id)
        .where(STUDY.c.run_id == row.id, INSTANCE.c.state == InstanceState.ACKED)
    ).scalar_one()
    return JobRow(
        id=row.id,
        name=row.job,
        source=row.src,
        destination=row.dst,
        filter=filter_text(row.filter_json),
        verify=str(options.get("verify", "")),
        options=options,
        state=states[RunState(row.state)],
        tool_version=row.tool_version,
        started=row.started,
        ended=row.ended,
        totals=read_totals(connection, row.id),
        bytes=int(moved or 0),
    )


def read_account(connection: Connection, name: str) -> JobAccount:
    """The account of one job; ConfigurationError where there is none of that name."""
    row = connection.execute(sa.select(RUN).where(RUN.c.job == name)).one_or_none()
    if row is None:
        raise ConfigurationError(
            f"there is no job {name!r} in the ledger; `dcmhaul jobs` lists them"
        )
    states = {
        state: int(count)
        for state, count in connection.execute(
            sa.select(STUDY.c.state, sa.func.count())
            .where(STUDY.c.run_id == row.id)
            .group_by(STUDY.c.state)
        )
    }
    invocations, decisions = _events(connection, row.id)
    return JobAccount(
        job=_job(connection, row),
        studies_excluded=states.get(StudyState.EXCLUDED, 0),
        studies_pending=states.get(StudyState.SEEN, 0) + states.get(StudyState.RUNNING, 0),
        invocations=tuple(invocations),
        reasons=tuple(_reasons(connection, row.id)),
        exclusions=tuple(
            (kind, reason, int(count))
            for kind, reason, count in connection.execute(
                sa.select(EXCLUSION.c.kind, EXCLUSION.c.reason, sa.func.count().label("n"))
                .where(EXCLUSION.c.run_id == row.id)
                .group_by(EXCLUSION.c.kind, EXCLUSION.c.reason)
                .order_by(sa.desc("n"), EXCLUSION.c.kind, EXCLUSION.c.reason)
                .limit(ROWS_AT_ONCE)
            )
        ),
        verified_levels=tuple(
            (str(level), int(count))
            for level, count in connection.execute(
                sa.select(STUDY.c.verified_level, sa.func.count())
                .where(STUDY.c.run_id == row.id, STUDY.c.verified_level.is_not(None))
                .group_by(STUDY.c.verified_level)
                .order_by(STUDY.c.verified_level)
            )
        ),
        modalities=tuple(_modalities(connection, row.id)),
        decisions=tuple(decisions),
    )


def _reasons(connection: Connection, run_id: int) -> Iterator[Reason]:
    statement = (
        sa.select(
            INSTANCE.c.dst_status,
            INSTANCE.c.retryable,
            INSTANCE.c.comment,
            sa.func.count().label("n"),
        )
        .join(STUDY, STUDY.c.id == INSTANCE.c.study_id)
        .where(STUDY.c.run_id == run_id, INSTANCE.c.state == InstanceState.FAILED)
        .group_by(INSTANCE.c.dst_status, INSTANCE.c.retryable, INSTANCE.c.comment)
        .order_by(sa.desc("n"), INSTANCE.c.comment)
        .limit(ROWS_AT_ONCE)
    )
    for status, retryable, comment, count in connection.execute(statement):
        yield Reason(
            status=status, retryable=bool(retryable), reason=comment or "", count=int(count)
        )


def _modalities(connection: Connection, run_id: int) -> Iterator[ModalityCount]:
    statement = (
        sa.select(
            STUDY.c.modality,
            sa.func.count().label("n"),
            sa.func.sum(STUDY.c.n_dst),
            sa.func.sum(STUDY.c.bytes),
        )
        .where(STUDY.c.run_id == run_id, STUDY.c.state != StudyState.EXCLUDED)
        .group_by(STUDY.c.modality)
        .order_by(sa.desc("n"), STUDY.c.modality)
        .limit(ROWS_AT_ONCE)
    )
    for modality, studies, instances, size in connection.execute(statement):
        yield ModalityCount(
            modality=modality,
            studies=int(studies),
            instances=int(instances or 0),
            bytes=int(size or 0),
        )


def _events(connection: Connection, run_id: int) -> tuple[list[Invocation], list[Decision]]:
    invocations: list[Invocation] = []
    decisions: list[Decision] = []
    for row in connection.execute(
        sa.select(EVENT).where(EVENT.c.run_id == run_id).order_by(EVENT.c.id)
    ):
        details = json.loads(row.json)
        if row.kind == "run.started":
            invocations.append(
                Invocation(
                    started=row.ts,
                    version=str(details.get("version", "")),
                    verify=str(details.get("verify", "")),
                )
            )
        elif row.kind == "run.ended" and invocations:
            began = invocations[-1]
            invocations[-1] = Invocation(
                started=began.started,
                ended=row.ts,
                version=began.version,
                verify=began.verify,
                instances=int(details["instances"]),
                bytes=int(details["bytes"]),
                seconds=float(details["seconds"]),
                exit_code=int(details["exit_code"]),
                error=str(details["error"]),
            )
        elif row.kind not in _QUIET_EVENTS:
            decisions.append(Decision(moment=row.ts, kind=row.kind, details=details))
    return invocations, decisions


# -- single items ---------------------------------------------------------------------------------------


def read_items(connection: Connection, run_id: int) -> Iterator[Item]:
    """What needs attention, one by one, as it is read: instances that did not arrive first."""
    yield from _instances(connection, run_id)
    for row in _stream(
        connection,
        sa.select(STUDY.c.study_uid, STUDY.c.last_status, STUDY.c.comment)
        .where(
            STUDY.c.run_id == run_id,
            STUDY.c.state == StudyState.PARTIAL,
            ~sa.exists().where(INSTANCE.c.study_id == STUDY.c.id),
        )
        .order_by(STUDY.c.id),
    ):
        yield Item(
            what="study",
            study_instance_uid=row.study_uid,
            status=row.last_status,
            retryable=True,
            reason=row.comment or "",
        )
    for row in _stream(
        connection,
        sa.select(EXCLUSION)
        .where(EXCLUSION.c.run_id == run_id, EXCLUSION.c.kind != "skipped")
        .order_by(EXCLUSION.c.locator),
    ):
        yield Item(what=row.kind, path=row.locator, reason=row.reason)
    for row in _stream(
        connection,
        sa.select(VERIFICATION, STUDY.c.study_uid)
        .join(STUDY, STUDY.c.id == VERIFICATION.c.study_id)
        .where(STUDY.c.run_id == run_id, VERIFICATION.c.result >= CheckResult.COERCED)
        .order_by(VERIFICATION.c.study_id, VERIFICATION.c.sop_uid),
    ):
        result = CheckResult(row.result)
        yield Item(
            what=result.text,
            study_instance_uid=row.study_uid,
            sop_instance_uid=row.sop_uid,
            retryable=result is CheckResult.NOT_READ,
            reason=row.differences or "",
        )


def _instances(connection: Connection, run_id: int) -> Iterator[Item]:
    words = {
        InstanceState.SEEN: "pending",
        InstanceState.FAILED: "failed",
        InstanceState.CONFLICT: "conflict",
        InstanceState.EXCLUDED: "excluded",
    }
    settled = [int(state) for state in HELD_STATES]
    for row in _stream(
        connection,
        sa.select(INSTANCE, STUDY.c.study_uid)
        .join(STUDY, STUDY.c.id == INSTANCE.c.study_id)
        .where(
            STUDY.c.run_id == run_id,
            STUDY.c.state != StudyState.EXCLUDED,
            INSTANCE.c.state.not_in(settled),
        )
        .order_by(INSTANCE.c.study_id, INSTANCE.c.sop_uid),
    ):
        pending = row.state == InstanceState.SEEN
        yield Item(
            what=words[InstanceState(row.state)],
            study_instance_uid=row.study_uid,
            sop_instance_uid=row.sop_uid,
            path=row.locator or "",
            status=row.dst_status,
            retryable=pending or bool(row.retryable),
            reason=row.comment or ("not moved yet" if pending else ""),
        )


def _stream(connection: Connection, statement: sa.Select[Any]) -> Iterator[Row[Any]]:
    """The rows as they come, whatever their number."""
    result = connection.execute(statement, execution_options={"yield_per": ROWS_AT_ONCE})
    yield from result
