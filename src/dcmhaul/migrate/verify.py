"""What the destination holds, asked for study by study, and whether that is what was moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import trio

from dcmhaul.errors import InstanceError, NoAcceptedContext
from dcmhaul.migrate.inventory import InstanceQuery, QueryFailed
from dcmhaul.objects.part10 import FileInstance, open_instance
from dcmhaul.objects.paths import instance_path
from dcmhaul.objects.sources import open_entries

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from dcmhaul.engine.planning import ExpectedInstance
    from dcmhaul.engine.pool import SharedAssociations
    from dcmhaul.migrate.plan import Verification

__all__ = ["CannotBeAsked", "Difference", "FolderHoldings", "Holdings", "PeerHoldings", "compare"]


class CannotBeAsked(Exception):
    """The destination has no C-FIND, or refuses this one: what it holds is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What a verification found. missing: UIDs that should be there; () at level `count`."""

    missing: tuple[str, ...]
    text: str


def compare(
    level: Verification, expected: Collection[str], found: Collection[str]
) -> Difference | None:
    """None where `found` (SOP Instance UIDs at the destination) satisfies the level.

    What the destination holds beside the expected instances is its own affair: it may have had a part
    of the study from elsewhere.
    """
    if level == "none":
        return None
    if level == "count":
        if len(found) >= len(expected):
            return None
        return Difference(
            missing=(), text=f"{len(expected)} instances expected, {len(found)} at the destination"
        )
    missing = tuple(sorted(set(expected).difference(found)))
    if not missing:
        return None
    return Difference(
        missing=missing,
        text=f"{len(missing)} of {len(set(expected))} instances are not at the destination",
    )


class Holdings(Protocol):
    """Answers what the destination holds of a study."""

    async def held(self, study_uid: str, wanted: Collection[str]) -> set[str]:
        """SOP Instance UIDs that are there; a folder looks for `wanted` only.

        CannotBeAsked where there is no answer to be had; errors of the association otherwise.
        """


class PeerHoldings:
    """A peer, asked by C-FIND at IMAGE level."""

    def __init__(self, queries: SharedAssociations) -> None:
        self._queries = queries
        self._query = InstanceQuery()

    async def held(self, study_uid: str, wanted: Collection[str]) -> set[str]:
        try:
            instances = await self._queries.call(
                lambda association: self._query.instances(association, study_uid)
            )
        except NoAcceptedContext as error:
            raise CannotBeAsked(str(error)) from error
        except QueryFailed as error:
            raise CannotBeAsked(str(error)) from error
        return {instance.sop_instance_uid for instance in instances}


class FolderHoldings:
    """A folder: what lies there under any name is found once, what is added by its name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths: dict[str, str] | None = None

    async def held(self, study_uid: str, wanted: Collection[str]) -> set[str]:
        return await trio.to_thread.run_sync(self._held, frozenset(wanted))

    def path(self, instance: ExpectedInstance) -> str:
        """Where it lies, or would."""
        uid = instance.sop_instance_uid
        return (self._paths or {}).get(uid) or str(instance_path(self._folder, uid))

    def _held(self, wanted: frozenset[str]) -> set[str]:
        if self._paths is None:
            self._paths = self._walk()
        return {uid for uid in wanted if self._has(uid, self._paths.get(uid))}

    def _walk(self) -> dict[str, str]:
        paths: dict[str, str] = {}
        if self._folder.is_dir():
            for entry in open_entries([self._folder]):
                if isinstance(entry, FileInstance):
                    entry.close()
                    paths[entry.sop_instance_uid] = entry.path
        return paths

    def _has(self, uid: str, path: str | None) -> bool:
        try:
            instance = open_instance(path or instance_path(self._folder, uid))
        except (InstanceError, ValueError):
            return False
        instance.close()
        return instance.sop_instance_uid == uid
