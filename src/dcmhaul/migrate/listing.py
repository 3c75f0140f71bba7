"""The inventory of studies, written into the ledger as it comes."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import trio

from dcmhaul.migrate.inventory import (
    FolderFinding,
    FolderInventory,
    duplicate_exclusion,
    find_studies,
)
from dcmhaul.migrate.tables import Exclusion, StudyListing

if TYPE_CHECKING:
    from pathlib import Path

    from pydicom import Dataset

    from dcmhaul.engine.scheduler import StopRequest
    from dcmhaul.migrate.ledger import Ledger
    from dcmhaul.migrate.tracker import Tracker
    from dcmhaul.net import Association

__all__ = ["list_folder", "list_peer"]

LISTING_PAGE: Final = 500


async def list_peer(
    association: Association,
    keys: Dataset,
    ledger: Ledger,
    run_id: int,
    tracker: Tracker,
    stop: StopRequest,
) -> None:
    """The studies that a peer lists by C-FIND. Done again after a loss, it adds what is new."""
    page: list[StudyListing] = []

    async def write() -> None:
        await ledger.add_studies(run_id, page)
        tracker.listed(len(page))
        page.clear()

    async with aclosing(find_studies(association, keys)) as studies:
        async for study in studies:
            page.append(study)
            if len(page) >= LISTING_PAGE:
                await write()
            if stop.requested:
                break
    await write()


async def list_folder(
    folder: Path, keys: Dataset, ledger: Ledger, run_id: int, tracker: Tracker
) -> None:
    """The studies and instances of a folder, and the files that are none."""
    inventory = FolderInventory(folder, keys)
    await ledger.forget_exclusions(run_id)
    modalities: dict[int, set[str]] = {}
    async with aclosing(inventory.batches()) as batches:
        async for batch in batches:
            exclusions = [entry for entry in batch if isinstance(entry, Exclusion)]
            by_study: dict[str, list[FolderFinding]] = {}
            for entry in batch:
                if isinstance(entry, FolderFinding):
                    by_study.setdefault(entry.study_instance_uid, []).append(entry)
            listings = [
                StudyListing(study_instance_uid=uid, date=found[0].date, modality=found[0].modality)
                for uid, found in by_study.items()
            ]
            await ledger.add_studies(run_id, listings)
            ids = await ledger.study_ids(run_id, list(by_study))
            for uid, found in by_study.items():
                modalities.setdefault(ids[uid], set()).update(f.modality for f in found)
                exclusions += await _add(folder, ledger, ids[uid], found)
            await ledger.add_exclusions(run_id, exclusions)
            for exclusion in exclusions:
                if exclusion.kind == "skipped":  # the others stand in the summary
                    tracker.notice(f"skipped: {exclusion.locator}: {exclusion.reason}")
            tracker.listed(len(by_study))
    unwanted = [
        study_id
        for study_id, found_modalities in modalities.items()
        if not inventory.wants_modalities("\\".join(sorted(found_modalities)))
    ]
    for start in range(0, len(unwanted), LISTING_PAGE):
        await ledger.exclude_studies(
            unwanted[start : start + LISTING_PAGE], "ModalitiesInStudy does not match"
        )


async def _add(
    folder: Path, ledger: Ledger, study_id: int, found: list[FolderFinding]
) -> list[Exclusion]:
    """Adds instances; of two files under one UID the first counts, the other is returned."""
    again = await ledger.add_instances(
        study_id, [finding.instance for finding in found], running=False
    )
    exclusions = []
    for instance in again:
        first = await ledger.locator(study_id, instance.sop_instance_uid)
        exclusions.append(
            await trio.to_thread.run_sync(duplicate_exclusion, folder, first, instance.locator)
        )
    return exclusions
