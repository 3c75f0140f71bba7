"""What a migration says of itself: progress while it runs, a summary at its end, a report to keep."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dcmhaul.migrate.tables import CheckRow, FailureRow, Totals

__all__ = [
    "DifferenceFound",
    "Failure",
    "MigrationSummary",
    "Phase",
    "Progress",
    "exit_code",
    "summarise",
]

Phase = Literal["inventory", "transfer", "done"]

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a migration is. It is handed out at most ten times a second, and for each `notice`.

    studies, instances_expected: as far as the inventory has come (0 = not known yet). instances, bytes:
    acknowledged in this run. already: at the destination before. notice: one line for the user, or "".
    """

    job: str
    phase: Phase = "inventory"
    studies: int = 0
    studies_done: int = 0
    instances_expected: int = 0
    instances: int = 0
    already: int = 0
    failed: int = 0
    skipped: int = 0
    bytes: int = 0
    seconds: float = 0.0
    associations: int = 0
    notice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One thing that did not arrive. locator: of a folder source, the path below it. status: DIMSE."""

    study_instance_uid: str
    sop_instance_uid: str
    locator: str
    status: int | None
    retryable: bool
    reason: str

    def __str__(self) -> str:
        what = self.locator or self.sop_instance_uid or f"study {self.study_instance_uid}"
        return f"{what}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceFound:
    """An instance that was read back. result: `coerced`, `differs` or `not read`."""

    study_instance_uid: str
    sop_instance_uid: str
    result: str
    differences: str

    def __str__(self) -> str:
        return f"{self.sop_instance_uid}: {self.differences or self.result}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationSummary:
    """The end of a migration.

    instances, bytes, seconds: what was acknowledged (0000 or B0xx) in this run, from the first byte of
    the first C-STORE-RQ to the last response. already: what the destination had, or an earlier run moved.
    failed, failed_retryable: over the whole job. pending: not dealt with, because the run was stopped or
    dry. studies, studies_done: of the job. differing: studies that verification found different;
    unverified: studies whose verification was not possible. same_bytes to not_read: instances of the job
    that were read back. failures, differences: at most 1000 of each; the numbers count all.
    """

    job: str
    source: str
    destination: str
    verify: str
    studies: int = 0
    studies_done: int = 0
    instances: int = 0
    already: int = 0
    failed: int = 0
    failed_retryable: int = 0
    skipped: int = 0
    pending: int = 0
    bytes: int = 0
    seconds: float = 0.0
    wall_seconds: float = 0.0
    differing: int = 0
    unverified: int = 0
    same_bytes: int = 0
    same_content: int = 0
    coerced: int = 0
    altered: int = 0
    not_read: int = 0
    interrupted: bool = False
    dry_run: bool = False
    error: str = ""
    """Why the run ended early, in one line; "" where it came to its end."""
    failures: tuple[Failure, ...] = ()
    differences: tuple[DifferenceFound, ...] = ()

    @property
    def mib_per_s(self) -> float:
        return self.bytes / MIB / self.seconds if self.seconds > 0 else 0.0

    @property
    def instances_per_s(self) -> float:
        return self.instances / self.seconds if self.seconds > 0 else 0.0

    @property
    def exit_code(self) -> int:
        return exit_code(self)

    def as_dict(self) -> dict[str, Any]:
        """The fields and the two rates, ready for JSON."""
        return {
            **asdict(self),
            "mib_per_s": round(self.mib_per_s, 3),
            "instances_per_s": round(self.instances_per_s, 3),
            "exit_code": self.exit_code,
        }

    def as_json(self) -> str:
        return json.dumps(self.as_dict(), indent=2) + "\n"


def exit_code(summary: MigrationSummary) -> int:
    """The process's exit code; of several causes the gravest, in the command line's order."""
    if summary.interrupted:
        return 130
    if summary.differing or summary.unverified:
        return 11
    if summary.failed > summary.failed_retryable:
        return 6
    if summary.failed or summary.error or (summary.pending and not summary.dry_run):
        return 5
    return 0 if summary.studies else 4


def summarise(
    base: MigrationSummary,
    totals: Totals,
    failures: Iterable[FailureRow],
    differences: Iterable[CheckRow] = (),
) -> MigrationSummary:
    """`base`, which knows this run, with what the ledger knows of the whole job."""
    return replace(
        base,
        studies=totals.studies,
        studies_done=totals.studies_done,
        already=max(0, totals.acked + totals.present - base.instances),
        failed=totals.failed + totals.studies_failed,
        failed_retryable=totals.failed_retryable + totals.studies_failed,
        skipped=totals.skipped,
        pending=totals.pending,
        differing=totals.differing,
        same_bytes=totals.same_bytes,
        same_content=totals.same_content,
        coerced=totals.coerced,
        altered=totals.altered,
        not_read=totals.not_read,
        differences=tuple(
            DifferenceFound(
                study_instance_uid=row.study_instance_uid,
                sop_instance_uid=row.sop_instance_uid,
                result=row.result.text,
                differences=row.differences,
            )
            for row in differences
        ),
        failures=tuple(
            Failure(
                study_instance_uid=row.study_instance_uid,
                sop_instance_uid=row.sop_instance_uid,
                locator=row.locator,
                status=row.status,
                retryable=row.retryable,
                reason=row.reason,
            )
            for row in failures
        ),
    )
