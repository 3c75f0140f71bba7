"""The last stage of a migration: the destination is asked, and read back, study by study.

What it finds goes into the ledger. It moves nothing and retries nothing but the question.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from dcmhaul.migrate.plan import is_sampled
from dcmhaul.migrate.readback import CannotBeRead, Reading, compare_readings, name_differences
from dcmhaul.migrate.tables import CHECKED_SAME, CheckResult, CheckRow
from dcmhaul.migrate.verify import CannotBeAsked, compare

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dcmhaul.engine.planning import ExpectedInstance
    from dcmhaul.migrate.ledger import Ledger
    from dcmhaul.migrate.plan import MigrateOptions
    from dcmhaul.migrate.readback import Reader
    from dcmhaul.migrate.study import StudyWork
    from dcmhaul.migrate.tables import DigestRow
    from dcmhaul.migrate.tracker import Tracker
    from dcmhaul.migrate.verify import Holdings

__all__ = ["Verifier"]

NAMED_MAX: Final = 500
"""Instances of a run that are read once more from both ends to name the elements that differ."""


class Verifier:
    """Verifies the studies of one run. `unverified` counts those where that was not possible."""

    def __init__(
        self,
        options: MigrateOptions,
        *,
        ledger: Ledger,
        tracker: Tracker,
        holdings: Holdings,
        source: Reader,
        destination: Reader,
    ) -> None:
        self.run_id = 0
        """Of the ledger; set once the run is open."""
        self.unverified = 0
        self._options = options
        self._ledger = ledger
        self._tracker = tracker
        self._holdings = holdings
        self._source = source
        self._destination = destination
        self._can_ask = True
        self._can_read = True
        self._to_name = NAMED_MAX

    async def held(self, work: StudyWork) -> set[str] | None:
        """What the destination holds of a study; None where it cannot be asked."""
        if not self._can_ask:
            return None
        try:
            return await self._holdings.held(work.study_instance_uid, work.expected.keys())
        except CannotBeAsked as error:
            if self._can_ask:  # several studies may have asked at the same time
                self._can_ask = False
                self._tracker.notice(f"the destination cannot be asked what it holds: {error}")
                await self._ledger.event(self.run_id, "destination.mute", reason=str(error))
            return None

    async def verify(self, work: StudyWork, *, last: bool) -> bool:
        """True where the study is dealt with; False where the destination should be asked again later."""
        level = self._options.verify
        found = await self.held(work)
        if found is None:
            self.unverified += 1
            return True
        difference = compare(level, work.held, found)
        if difference is not None:
            if not last:
                return False
            self._tracker.notice(f"study {work.study_instance_uid}: {difference.text}")
            await self._ledger.differs(work.id, difference.missing, difference.text)
            return True
        if level == "digest" and not await self._contents_agree(work):
            return True
        await self._ledger.verified(work.id, self._options.verify_level)
        return True

    # -- contents -----------------------------------------------------------------------------------

    async def _contents_agree(self, work: StudyWork) -> bool:
        """Reads back what is sampled; False where the ledger was told why the level does not hold."""
        percent = self._options.verify_percent
        rows = {
            row.sop_instance_uid: row
            for row in await self._ledger.digests(work.id)
            if is_sampled(row.sop_instance_uid, percent) and row.checked not in CHECKED_SAME
        }
        if not rows:
            return True
        study = _as_recorded(work, rows)
        try:
            if not self._can_read:
                raise CannotBeRead
            read = await self._destination.read(work.study_instance_uid, study, rows)
        except CannotBeRead as error:
            await self._not_readable(work, error)
            return False
        sources = await self._sources(work, study, rows, read)
        checks = [_check(uid, sources.get(uid), read.get(uid)) for uid in rows]
        checks = await self._named(work, study, checks)
        await self._ledger.record_checks(work.id, checks)
        found = Counter(check.result for check in checks)
        phrases = [
            f"{found[result]} of {len(checks)} instances {text}"
            for result, text in (
                (CheckResult.DIFFERS, "say something else at the destination"),
                (CheckResult.NOT_READ, "could not be read back"),
            )
            if found[result]
        ]
        if not phrases:
            return True
        text = ", ".join(phrases)
        self._tracker.notice(f"study {work.study_instance_uid}: {text}")
        await self._ledger.differs(work.id, (), text)
        return False

    async def _not_readable(self, work: StudyWork, error: CannotBeRead) -> None:
        self.unverified += 1
        if self._can_read:
            self._can_read = False
            self._tracker.notice(f"the destination cannot be read back: {error}")
            await self._ledger.event(self.run_id, "destination.unreadable", reason=str(error))
        await self._ledger.verified(work.id, "uids")

    async def _sources(
        self,
        work: StudyWork,
        study: Mapping[str, ExpectedInstance],
        rows: Mapping[str, DigestRow],
        read: Mapping[str, Reading],
    ) -> dict[str, Reading]:
        """What the source said: as digested on the way; what was not, and has other bytes, is read."""
        sources = {}
        for uid, row in rows.items():
            if row.sha256 is not None:
                sources[uid] = Reading(
                    transfer_syntax_uid=row.transfer_syntax_uid,
                    sha256=row.sha256,
                    content=row.content,
                )
        unknown = [
            uid
            for uid, reading in read.items()
            if uid in rows
            and rows[uid].content is None
            and (uid not in sources or sources[uid].sha256 != reading.sha256)
        ]
        if unknown:
            try:
                sources |= await self._source.read(work.study_instance_uid, study, unknown)
            except CannotBeRead as error:
                self._tracker.notice(f"the source cannot be read once more: {error}")
        return sources

    async def _named(
        self, work: StudyWork, study: Mapping[str, ExpectedInstance], checks: list[CheckRow]
    ) -> list[CheckRow]:
        """The checks, with the tags that differ: of as many as a run may read once more."""
        wanted = [
            check.sop_instance_uid
            for check in checks
            if check.result in (CheckResult.DIFFERS, CheckResult.COERCED) and check.content
        ][: self._to_name]
        self._to_name -= len(wanted)
        names = await name_differences(
            self._source, self._destination, work.study_instance_uid, (study, study), wanted
        )
        return [_with_tags(check, names.get(check.sop_instance_uid)) for check in checks]


def _as_recorded(work: StudyWork, rows: Mapping[str, DigestRow]) -> dict[str, ExpectedInstance]:
    """The study, with the syntaxes in which the instances travelled."""
    study = dict(work.expected)
    for uid, row in rows.items():
        if row.transfer_syntax_uid and uid in study:
            study[uid] = replace(study[uid], transfer_syntax_uid=row.transfer_syntax_uid)
    return study


def _check(uid: str, source: Reading | None, destination: Reading | None) -> CheckRow:
    if destination is None or source is None:
        end = "destination" if destination is None else "source"
        return CheckRow(
            sop_instance_uid=uid,
            result=CheckResult.NOT_READ,
            differences=f"the {end} did not give it back",
        )
    result, text = compare_readings(source, destination)
    return CheckRow(
        sop_instance_uid=uid,
        result=result,
        transfer_syntax_uid=destination.transfer_syntax_uid,
        length=destination.length,
        sha256=destination.sha256,
        content=destination.content.content if destination.content else None,
        differences=text,
    )


def _with_tags(check: CheckRow, tags: str | None) -> CheckRow:
    if not tags:
        return check
    text = f"{check.differences}: {tags}" if check.differences else tags
    return replace(check, differences=text)
