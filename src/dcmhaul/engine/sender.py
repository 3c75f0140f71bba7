"""Files and folders to one peer: a look at each file plans the contexts, then associations share them.

It decides nothing about exit codes and prints nothing; what happens to each file is reported.
"""

from __future__ import annotations

import contextlib
from array import array
from dataclasses import dataclass
from functools import partial
from itertools import chain, compress, islice, repeat
from typing import TYPE_CHECKING, Final

import trio

from dcmhaul import uids
from dcmhaul.engine.pool import ASSOCIATION_ERRORS, AssociationPool, PoolExhausted
from dcmhaul.engine.scheduler import StopRequest, flat_nursery
from dcmhaul.errors import DcmhaulError, NoAcceptedContext, UnreadableInstance
from dcmhaul.objects.part10 import FileInstance, glance_at
from dcmhaul.objects.reencode import UNCOMPRESSED
from dcmhaul.objects.reencoded import reencode_instance
from dcmhaul.objects.sources import (
    FailedEntry,
    FileSource,
    SkippedEntry,
    candidates,
    open_entry,
)
from dcmhaul.objects.transcode import decompress
from dcmhaul.protocol.negotiation import plan_contexts
from dcmhaul.services.storage import StorageScu, StoreOutcome
from dcmhaul.wire.items import PresentationContextRq

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from dcmhaul.net import Association
    from dcmhaul.objects.instances import OutgoingInstance
    from dcmhaul.protocol.negotiation import AssociationRequest

__all__ = ["FileSender", "Reencoding", "SendGroup", "SendPlan", "other_contexts", "scan_files"]

# Files that a thread looks at before the task that waits for it may be cancelled.
_SCAN_BATCH: Final = 256
_CONTEXT_ID_MAX: Final = 255  # PS3.8 §9.3.2.2: odd, of one octet


@dataclass(frozen=True, slots=True, kw_only=True)
class SendGroup:
    """Files whose contexts fit into one association."""

    contexts: tuple[PresentationContextRq, ...]
    paths: Sequence[str]


class SendPlan:
    """What a scan found: each path with its class and syntax, and no more, for there may be millions."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self._pair_of = array("H")
        self._pairs: dict[tuple[str, str], int] = {}

    def add(self, path: str, sop_class_uid: str, transfer_syntax_uid: str) -> None:
        pair = (sop_class_uid, transfer_syntax_uid)
        self.paths.append(path)
        self._pair_of.append(self._pairs.setdefault(pair, len(self._pairs)))

    def groups(
        self, first: Sequence[str] = (), reencoding: Reencoding | None = None
    ) -> list[SendGroup]:
        """The files by association, in the order they were found.

        first: transfer syntaxes whose contexts are proposed before the others. reencoding: what files may
        be turned into; each of their classes then has one context more, where there is room for it.
        """
        rank = {uid: place for place, uid in enumerate(first)}
        ordered = sorted(self._pairs, key=lambda pair: rank.get(pair[1], len(rank)))
        groups = []
        planned = plan_contexts(ordered)
        for contexts in planned:
            pairs = [(c.abstract_syntax, c.transfer_syntaxes[0]) for c in contexts]
            paths = self.paths
            if len(planned) > 1:
                numbers = {self._pairs[pair] for pair in pairs}
                paths = list(compress(self.paths, (number in numbers for number in self._pair_of)))
            others: tuple[PresentationContextRq, ...] = ()
            if reencoding is not None:
                offered = sorted(UNCOMPRESSED, key=_ranked(rank))
                others = other_contexts(pairs, reencoding.can, self._pairs, offered)
            groups.append(SendGroup(contexts=contexts + others, paths=paths))
        return groups


def other_contexts(
    pairs: Sequence[tuple[str, str]],
    can: Callable[[str], bool],
    own: Collection[tuple[str, str]] = (),
    syntaxes: Sequence[str] = UNCOMPRESSED,
) -> tuple[PresentationContextRq, ...]:
    """Behind a context for each pair, one for each class that could leave in another syntax than its own.

    can: whether what is in a syntax can be re-encoded. own: further pairs, of other associations.
    The acceptor chooses among those of `syntaxes` that the class has not: the context of an own syntax
    stays apart, so that accepting this one cannot shut it out. What has no room for an ID is left out.
    """
    classes = dict.fromkeys(sop_class for sop_class, syntax in pairs if can(syntax))
    known = frozenset(pairs) | frozenset(own)
    found: list[PresentationContextRq] = []
    for sop_class in classes:
        offered = tuple(uid for uid in syntaxes if (sop_class, uid) not in known)
        context_id = 2 * (len(pairs) + len(found)) + 1
        if offered and context_id <= _CONTEXT_ID_MAX:
            found.append(
                PresentationContextRq(
                    context_id=context_id, abstract_syntax=sop_class, transfer_syntaxes=offered
                )
            )
    return tuple(found)


def _ranked(rank: Mapping[str, int]) -> Callable[[str], int]:
    return lambda uid: rank.get(uid, len(rank))


class Reencoding:
    """What becomes of an instance whose own transfer syntax the peer did not accept.

    report: hears, for each instance that leaves re-encoded, of the syntax that it has and the new one.
    transcode: compressed ones are decompressed, where pydicom can.
    """

    def __init__(
        self, report: Callable[[OutgoingInstance, str], None], *, transcode: bool = False
    ) -> None:
        self._report = report
        self._transcode = transcode

    def can(self, transfer_syntax_uid: str) -> bool:
        """Whether instances in this syntax can leave in another one."""
        return self._transcode or transfer_syntax_uid in UNCOMPRESSED

    async def __call__(self, instance: OutgoingInstance, target: str) -> OutgoingInstance:
        """A `Reencode`."""
        if not self.can(instance.transfer_syntax_uid):
            raise NoAcceptedContext(
                f"the peer accepted no context for {uids.name(instance.sop_class_uid)} in "
                f"{uids.name(instance.transfer_syntax_uid)}"
            )
        made = await trio.to_thread.run_sync(_reencoded, instance, target)
        self._report(instance, target)
        return made


def _reencoded(instance: OutgoingInstance, target: str) -> OutgoingInstance:
    """Blocks; CannotReencode where the target cannot have it."""
    if instance.transfer_syntax_uid not in UNCOMPRESSED:
        instance = decompress(instance)
        if instance.transfer_syntax_uid == target:
            return instance
    return reencode_instance(instance, target)


async def scan_files(
    paths: Iterable[str | os.PathLike[str]],
    *,
    recursive: bool,
    report: Callable[[SkippedEntry | FailedEntry], None],
    files_only: bool = False,
) -> SendPlan:
    """Looks at every file once, in a thread, and learns its class and syntax.

    A regular file is only glanced at: whether it is whole is seen when it is opened to be sent.

    files_only: a dataset without preamble and group 0002 is skipped.
    """
    plan = SendPlan()
    found = candidates(paths, recursive=recursive)

    def batch() -> tuple[int, list[SkippedEntry | FailedEntry]]:
        others: list[SkippedEntry | FailedEntry] = []
        seen = 0
        for candidate in islice(found, _SCAN_BATCH):
            seen += 1
            if isinstance(candidate, SkippedEntry | FailedEntry):
                others.append(candidate)
                continue
            known = glance_at(candidate)
            if known is not None:
                plan.add(candidate, *known)
                continue
            entry = open_entry(candidate)
            if not isinstance(entry, FileInstance):
                others.append(entry)
                continue
            entry.close()
            if files_only and not _has_preamble(entry.path):
                others.append(SkippedEntry(path=entry.path, reason="no file meta information"))
            else:
                plan.add(entry.path, entry.sop_class_uid, entry.transfer_syntax_uid)
        return seen, others

    while True:
        seen, others = await trio.to_thread.run_sync(batch)
        for entry in others:
            report(entry)
        if seen < _SCAN_BATCH:
            return plan


def _has_preamble(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


class FileSender:
    """Sends the files of one group over the associations of a pool, each file by one of them.

    report hears of every instance that was taken, `report_entry` of files that could not be opened
    any more; `opened` of each association, and may refuse it by raising; `closed` of each that ended
    in good order. An association that breaks is replaced as long as the pool allows; what was
    outstanding on it is reported, not repeated.
    abort: associations end by A-ABORT instead of A-RELEASE. stop: once requested nothing more is taken.
    reencoding: what becomes of files whose own syntax the peer did not accept; without it they fail.
    """

    def __init__(
        self,
        pool: AssociationPool,
        *,
        window: int,
        report: Callable[[StoreOutcome], None],
        report_entry: Callable[[SkippedEntry | FailedEntry], None],
        opened: Callable[[Association], None] | None = None,
        closed: Callable[[], None] | None = None,
        abort: bool = False,
        stop: StopRequest | None = None,
        reencoding: Reencoding | None = None,
    ) -> None:
        self._pool = pool
        self._reencoding = reencoding
        self._stop = stop if stop is not None else StopRequest()
        self._opening: set[trio.CancelScope] = set()
        self._stop.on_request(self._open_no_more)
        self._window = window
        self._report = report
        self._report_entry = report_entry
        self._opened = opened
        self._closed = closed
        self._abort = abort
        self._total = 0
        self._taken = 0
        self.error: DcmhaulError | None = None

    async def send(self, group: SendGroup, request: AssociationRequest, *, times: int = 1) -> int:
        """Sends the group; returns how many files were never taken.

        That is because the peer was given up, and `error` is what for, or because of a stop.
        """
        paths = chain.from_iterable(repeat(group.paths, times))
        source = FileSource(paths, report=self._missed)
        self._total = len(group.paths) * times
        with contextlib.closing(source):
            async with flat_nursery() as nursery:
                for _ in range(min(self._pool.policy.size, self._total)):
                    nursery.start_soon(self._work, source, request)
        return self._total - self._taken

    async def _work(self, source: FileSource, request: AssociationRequest) -> None:
        # Counted, not waited for: an association that broke under the last file needs no other.
        while self._taken < self._total and not self._stop.requested:
            opening = trio.CancelScope()
            self._opening.add(opening)
            try:
                with opening:
                    async with self._pool.association(request) as association:
                        self._opening.discard(opening)
                        if self._opened is not None:
                            self._opened(association)
                        scu = StorageScu(
                            association, window=self._window, reencode=self._reencoding
                        )
                        await scu.run(
                            partial(self._take, source), self._answered, source.look_ahead
                        )
                        if self._abort:
                            await association.abort()
                    if self._closed is not None:
                        self._closed()
            except PoolExhausted as exc:
                self.error = exc.cause
                return
            except ASSOCIATION_ERRORS:
                # The pool has counted it and says, at the next turn, whether to go on.
                continue
            except UnreadableInstance:
                # A file shrank under its message, which could only be aborted; it was reported.
                continue
            finally:
                self._opening.discard(opening)

    def _open_no_more(self) -> None:
        """Who waits for an association has nothing in flight."""
        for opening in self._opening:
            opening.cancel()

    async def _take(self, source: FileSource) -> FileInstance | None:
        if self._stop.requested:
            return None
        instance = await source.take()
        if instance is not None:
            self._taken += 1
        return instance

    def _missed(self, entry: SkippedEntry | FailedEntry) -> None:
        self._taken += 1
        self._report_entry(entry)

    def _answered(self, outcome: StoreOutcome) -> None:
        if outcome.status is not None:
            self._pool.worked()
        self._report(outcome)
        outcome.instance.close()
