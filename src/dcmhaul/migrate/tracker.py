"""Counts what a run does and hands out its progress; it decides nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from dcmhaul.migrate.report import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dcmhaul.engine.pool import AssociationPool
    from dcmhaul.migrate.report import MigrationSummary, Phase
    from dcmhaul.migrate.tables import Totals

__all__ = ["Tracker"]

INTERVAL_SECONDS = 0.1


class Tracker:
    """The counts of one run; its methods are called from the event loop."""

    def __init__(
        self,
        job: str,
        progress: Callable[[Progress], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.instances = 0
        self.bytes = 0
        self.already = 0
        self.failed = 0
        self.pools: Sequence[AssociationPool] = ()
        self._job = job
        self._progress = progress
        self._clock = clock
        self._phase: Phase = "inventory"
        self._studies = 0
        self._studies_done = 0
        self._expected = 0
        self._skipped = 0
        self._first: float | None = None
        self._last = 0.0
        self._told = float("-inf")

    @property
    def seconds(self) -> float:
        """From the first byte of the first C-STORE-RQ to the last answer."""
        return self._last - self._first if self._first is not None else 0.0

    def listed(self, studies: int) -> None:
        self._studies += studies
        self._tell()

    def start(self, totals: Totals) -> None:
        """The inventory of studies is complete: what the ledger knows is the basis."""
        self._phase = "transfer"
        self._studies = totals.studies
        self._studies_done = totals.studies_done
        self._expected = totals.instances
        self.already = totals.acked + totals.present
        self._skipped = totals.skipped
        self._tell(force=True)

    def expected(self, instances: int) -> None:
        self._expected += instances
        self._tell()

    def acknowledged(self, length: int, seconds: float) -> None:
        """One instance was answered 0000 or B0xx, `seconds` after its C-STORE-RQ began."""
        now = self._clock()
        if self._first is None or now - seconds < self._first:
            self._first = now - seconds
        self._last = now
        self.instances += 1
        self.bytes += length
        self._tell()

    def present(self) -> None:
        self.already += 1
        self._tell()

    def study_done(self) -> None:
        self._studies_done += 1
        self._tell()

    def notice(self, text: str) -> None:
        """One line for the user, at once."""
        self._tell(notice=text)

    def finish(self, summary: MigrationSummary) -> None:
        self._phase = "done"
        self._studies_done = summary.studies_done
        self.already = summary.already
        self.failed = summary.failed
        self._tell(force=True)

    def _tell(self, *, force: bool = False, notice: str = "") -> None:
        now = self._clock()
        if not force and not notice and now - self._told < INTERVAL_SECONDS:
            return
        self._told = now
        self._progress(
            Progress(
                job=self._job,
                phase=self._phase,
                studies=self._studies,
                studies_done=min(self._studies_done, self._studies),
                instances_expected=self._expected,
                instances=self.instances,
                already=self.already,
                failed=self.failed,
                skipped=self._skipped,
                bytes=self.bytes,
                seconds=self.seconds,
                associations=sum(pool.open for pool in self.pools),
                notice=notice,
            )
        )
