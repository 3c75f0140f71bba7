"""What the ledger answers: totals and failures, read in one short transaction each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from dcmhaul.migrate.tables import (
    EXCLUSION,
    INSTANCE,
    STUDY,
    FailureRow,
    InstanceState,
    StudyState,
    Totals,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

__all__ = ["read_failures", "read_totals"]


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
    )


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
