"""What the ledger is asked and told in one short transaction each."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import sqlalchemy as sa

from dcmhaul._version import __version__
from dcmhaul.errors import ConfigurationError
from dcmhaul.migrate.plan import JobIdentity, changed
from dcmhaul.migrate.tables import (
    EVENT,
    EXCLUSION,
    HELD_STATES,
    INSTANCE,
    RUN,
    STUDY,
    UID,
    VERIFICATION,
    CheckResult,
    CheckRow,
    DigestRow,
    FailureRow,
    InstanceState,
    RunRow,
    RunState,
    StudyRow,
    StudyState,
    Totals,
)
from dcmhaul.objects.canonical import ContentDigest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy.engine import Connection

__all__ = [
    "open_run",
    "read_differences",
    "read_digests",
    "read_failures",
    "read_studies",
    "read_totals",
    "read_verified_levels",
    "write_checks",
    "write_event",
]


def read_totals(connection: Connection, run_id: int) -> Totals:
    studies: dict[int, int] = {
        row.state: row.n
        for row in connection.execute(
            sa.select(STUDY.c.state, sa.func.count().label("n"))
            .where(STUDY.c.run_id == run_id)
            .group_by(STUDY.c.state)
        )
    }
    unlisted = connection.execute(
        sa.select(sa.func.count()).where(
            STUDY.c.run_id == run_id,
            STUDY.c.state == StudyState.PARTIAL,
            ~sa.exists().where(INSTANCE.c.study_id == STUDY.c.id),
        )
    ).scalar_one()
    instances: dict[int, int] = {}
    retryable = 0
    for state, mendable, count in connection.execute(
        sa.select(INSTANCE.c.state, INSTANCE.c.retryable, sa.func.count())
        .join(STUDY, STUDY.c.id == INSTANCE.c.study_id)
        .where(STUDY.c.run_id == run_id, STUDY.c.state != StudyState.EXCLUDED)
        .group_by(INSTANCE.c.state, INSTANCE.c.retryable)
    ):
        instances[state] = instances.get(state, 0) + count
        if state == InstanceState.FAILED and mendable:
            retryable += count
    files = {
        row.kind: row.n
        for row in connection.execute(
            sa.select(EXCLUSION.c.kind, sa.func.count().label("n"))
            .where(EXCLUSION.c.run_id == run_id)
            .group_by(EXCLUSION.c.kind)
        )
    }
    checks: dict[int, int] = {
        row.result: row.n
        for row in connection.execute(
            sa.select(VERIFICATION.c.result, sa.func.count().label("n"))
            .join(STUDY, STUDY.c.id == VERIFICATION.c.study_id)
            .where(STUDY.c.run_id == run_id)
            .group_by(VERIFICATION.c.result)
        )
    }
    return Totals(
        studies=sum(n for state, n in studies.items() if state != StudyState.EXCLUDED),
        studies_done=studies.get(StudyState.DONE, 0),
        studies_failed=unlisted,
        instances=sum(instances.values()),
        acked=instances.get(InstanceState.ACKED, 0),
        present=instances.get(InstanceState.IDENTICAL_PRESENT, 0),
        failed=instances.get(InstanceState.FAILED, 0)
        + files.get("failed", 0)
        + files.get("conflict", 0),
        failed_retryable=retryable,
        pending=instances.get(InstanceState.SEEN, 0),
        skipped=files.get("skipped", 0),
        differing=studies.get(StudyState.DIFFERS, 0),
        same_bytes=checks.get(CheckResult.SAME_BYTES, 0),
        same_content=checks.get(CheckResult.SAME_CONTENT, 0),
        coerced=checks.get(CheckResult.COERCED, 0),
        altered=checks.get(CheckResult.DIFFERS, 0),
        not_read=checks.get(CheckResult.NOT_READ, 0),
    )


def read_studies(
    connection: Connection,
    run_id: int,
    states: Iterable[StudyState],
    after: int,
    limit: int,
    verified: Sequence[str] | None,
) -> list[StudyRow]:
    """The next page, by id; with `verified` also what is DONE and verified at none of these levels."""
    wanted: sa.ColumnElement[bool] = STUDY.c.state.in_(list(states))
    if verified is not None:
        wanted |= (STUDY.c.state == StudyState.DONE) & (
            STUDY.c.verified_level.is_(None) | STUDY.c.verified_level.not_in(list(verified))
        )
    listed = sa.exists().where(INSTANCE.c.study_id == STUDY.c.id)
    statement = (
        sa.select(STUDY, listed.label("listed"))
        .where(STUDY.c.run_id == run_id, STUDY.c.id > after, wanted)
        .order_by(STUDY.c.id)
        .limit(limit)
    )
    return [
        StudyRow(
            id=row.id,
            study_instance_uid=row.study_uid,
            state=StudyState(row.state),
            n_expected=row.n_expected,
            modality=row.modality,
            listed=bool(row.listed),
            verified_level=row.verified_level,
        )
        for row in connection.execute(statement)
    ]


def read_failures(connection: Connection, run_id: int, limit: int) -> list[FailureRow]:
    found = [
        FailureRow(
            study_instance_uid=row.study_uid,
            sop_instance_uid=row.sop_uid,
            locator=row.locator or "",
            status=row.dst_status,
            retryable=bool(row.retryable),
            reason=row.comment or "",
        )
        for row in connection.execute(
            sa.select(INSTANCE, STUDY.c.study_uid)
            .join(STUDY, STUDY.c.id == INSTANCE.c.study_id)
            .where(STUDY.c.run_id == run_id, INSTANCE.c.state == InstanceState.FAILED)
            .order_by(STUDY.c.id, INSTANCE.c.sop_uid)
            .limit(limit)
        )
    ]
    found += [
        FailureRow(
            study_instance_uid=row.study_uid,
            sop_instance_uid="",
            locator="",
            status=row.last_status,
            retryable=True,
            reason=row.comment or "",
        )
        for row in connection.execute(
            sa.select(STUDY)
            .where(
                STUDY.c.run_id == run_id,
                STUDY.c.state == StudyState.PARTIAL,
                ~sa.exists().where(INSTANCE.c.study_id == STUDY.c.id),
            )
            .limit(limit)
        )
    ]
    found += [
        FailureRow(
            study_instance_uid="",
            sop_instance_uid="",
            locator=row.locator,
            status=None,
            retryable=False,
            reason=row.reason,
        )
        for row in connection.execute(
            sa.select(EXCLUSION)
            .where(EXCLUSION.c.run_id == run_id, EXCLUSION.c.kind != "skipped")
            .order_by(EXCLUSION.c.locator)
            .limit(limit)
        )
    ]
    return found[:limit]


def read_differences(connection: Connection, run_id: int, limit: int) -> list[CheckRow]:
    """What was read back and is not the same, or could not be read; coerced ones too."""
    return [
        CheckRow(
            study_instance_uid=row.study_uid,
            sop_instance_uid=row.sop_uid,
            result=CheckResult(row.result),
            length=row.len,
            sha256=row.sha256,
            content=row.content,
            differences=row.differences or "",
        )
        for row in connection.execute(
            sa.select(VERIFICATION, STUDY.c.study_uid)
            .join(STUDY, STUDY.c.id == VERIFICATION.c.study_id)
            .where(STUDY.c.run_id == run_id, VERIFICATION.c.result >= CheckResult.COERCED)
            .order_by(VERIFICATION.c.study_id, VERIFICATION.c.sop_uid)
            .limit(limit)
        )
    ]


def read_verified_levels(connection: Connection, run_id: int) -> list[str]:
    """The levels at which studies of the run are verified."""
    statement = (
        sa.select(STUDY.c.verified_level)
        .distinct()
        .where(STUDY.c.run_id == run_id, STUDY.c.verified_level.is_not(None))
    )
    return [str(level) for level in connection.execute(statement).scalars()]


def read_digests(connection: Connection, study_id: int) -> list[DigestRow]:
    """The instances of a study that the destination holds, by UID."""
    sop_class, syntax = UID.alias("sop_class"), UID.alias("syntax")
    statement = (
        sa.select(
            INSTANCE.c.sop_uid,
            INSTANCE.c.sha256,
            INSTANCE.c.content,
            INSTANCE.c.coercible,
            sop_class.c.uid.label("class_uid"),
            syntax.c.uid.label("ts_uid"),
            VERIFICATION.c.result,
        )
        .outerjoin(sop_class, sop_class.c.id == INSTANCE.c.class_id)
        .outerjoin(syntax, syntax.c.id == INSTANCE.c.ts_id)
        .outerjoin(
            VERIFICATION,
            (VERIFICATION.c.study_id == INSTANCE.c.study_id)
            & (VERIFICATION.c.sop_uid == INSTANCE.c.sop_uid),
        )
        .where(INSTANCE.c.study_id == study_id, INSTANCE.c.state.in_(list(HELD_STATES)))
        .order_by(INSTANCE.c.sop_uid)
    )
    return [
        DigestRow(
            sop_instance_uid=row.sop_uid,
            sop_class_uid=row.class_uid or "",
            transfer_syntax_uid=row.ts_uid or "",
            sha256=row.sha256,
            content=None
            if row.content is None
            else ContentDigest(content=row.content, coercible=row.coercible or b""),
            checked=None if row.result is None else CheckResult(row.result),
        )
        for row in connection.execute(statement)
    ]


def write_checks(
    connection: Connection,
    study_id: int,
    rows: Iterable[CheckRow],
    uid_ids: dict[str, int],
    now: int,
) -> None:
    """Records comparisons; the last one of an instance counts."""
    rows = list(rows)
    for row in rows:
        connection.execute(
            VERIFICATION.delete().where(
                VERIFICATION.c.study_id == study_id,
                VERIFICATION.c.sop_uid == row.sop_instance_uid,
            )
        )
    if rows:
        connection.execute(
            VERIFICATION.insert(),
            [
                {
                    "study_id": study_id,
                    "sop_uid": row.sop_instance_uid,
                    "result": row.result,
                    "ts_id": uid_ids[row.transfer_syntax_uid],
                    "len": row.length,
                    "sha256": row.sha256,
                    "content": row.content,
                    "differences": row.differences or None,
                    "updated": now,
                }
                for row in rows
            ],
        )


def open_run(
    connection: Connection,
    job: str,
    asked: JobIdentity,
    options: Mapping[str, object],
    now: int,
) -> RunRow:
    """The run of that name, made where it is new; ConfigurationError where it is another job."""
    found = connection.execute(sa.select(RUN).where(RUN.c.job == job)).one_or_none()
    options_json = json.dumps(options, sort_keys=True)
    if found is None:
        connection.execute(
            RUN.insert().values(
                job=job,
                kind="migrate",
                fingerprint=asked.fingerprint,
                src=asked.source,
                dst=asked.destination,
                filter_json=asked.filter_json,
                options_json=options_json,
                tool_version=__version__,
                state=RunState.LISTING,
                started=now,
            )
        )
        run_id = connection.execute(sa.select(RUN.c.id).where(RUN.c.job == job)).scalar_one()
        state = RunState.LISTING
    else:
        recorded = JobIdentity(
            source=found.src, destination=found.dst, filter_json=found.filter_json
        )
        if differences := changed(recorded, asked):
            raise ConfigurationError(
                f"job {job} cannot be resumed: {'; '.join(differences)}; "
                "give another --job, or the recorded values"
            )
        run_id, state = found.id, RunState(found.state)
        connection.execute(RUN.update().where(RUN.c.id == run_id).values(options_json=options_json))
    write_event(connection, run_id, "run.started", {"version": __version__, **options}, now)
    return RunRow(id=run_id, job=job, state=state, resumed=found is not None)


def write_event(
    connection: Connection, run_id: int, kind: str, details: Mapping[str, object], now: int
) -> None:
    connection.execute(
        EVENT.insert().values(
            run_id=run_id, ts=now, kind=kind, json=json.dumps(dict(details), sort_keys=True)
        )
    )
