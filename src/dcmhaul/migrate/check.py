"""The UID sets of two ends compared, study by study. It moves nothing and keeps no ledger."""

from __future__ import annotations

import tempfile
from collections import Counter
from contextlib import AsyncExitStack, aclosing, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol

import trio
from pydicom import Dataset

from dcmhaul import uids
from dcmhaul.config import ANY_SCP, Peer
from dcmhaul.engine.pool import (
    ASSOCIATION_ERRORS,
    AssociationPool,
    PoolExhausted,
    PoolPolicy,
    SharedAssociations,
)
from dcmhaul.engine.scheduler import flat_nursery
from dcmhaul.errors import ConfigurationError
from dcmhaul.migrate.inventory import (
    FolderFinding,
    FolderInventory,
    InstanceQuery,
    QueryFailed,
    find_studies,
)
from dcmhaul.migrate.plan import check_filter, text_path
from dcmhaul.migrate.readback import (
    CannotBeRead,
    FolderReader,
    MoveReads,
    PeerReader,
    Reader,
    Reading,
    compare_readings,
    name_differences,
)
from dcmhaul.migrate.spool import SpooledStudy, StudySpool
from dcmhaul.migrate.tables import CheckResult, Exclusion
from dcmhaul.net import secured
from dcmhaul.net.types import NullObserver, SocketOptions, Timeouts
from dcmhaul.protocol.negotiation import AssociationRequest
from dcmhaul.services.identifiers import QUERY_SYNTAXES
from dcmhaul.wire.items import PresentationContextRq

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from dcmhaul.engine.destination import ReceiveOptions
    from dcmhaul.engine.planning import ExpectedInstance
    from dcmhaul.migrate.plan import Endpoint
    from dcmhaul.migrate.tables import StudyListing
    from dcmhaul.net import Association
    from dcmhaul.net.types import Observer

__all__ = ["CheckLevel", "CheckLine", "CheckOptions", "CheckSummary", "Symbol", "check"]

CheckLevel = Literal["STUDY", "SERIES", "IMAGE"]
Symbol = Literal["=", "-", "+", "*", "!"]

WORKERS: Final = 4
"""Studies that are compared at once, and associations to each peer for their questions."""
READERS: Final = 2
PAGE: Final = 200
NAMED_MAX: Final = 500
"""Instances that are read once more to name the elements that differ."""
FAILURES_MAX: Final = 5
ENDS: Final = ("SRC", "DST")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOptions:
    """One comparison. filter: keys of the STUDY level. digest: at IMAGE level, contents too. receive: as
    MigrateOptions has it.
    """

    source: Endpoint
    destination: Endpoint
    filter: Dataset = field(default_factory=Dataset)
    level: CheckLevel = "IMAGE"
    digest: bool = False
    calling_ae_title: str = "DCMHAUL"
    pdu_length_max: int = 131072
    window: int = 8
    timeouts: Timeouts = field(default_factory=Timeouts)
    socket_options: SocketOptions = field(default_factory=SocketOptions)
    receive: ReceiveOptions | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckLine:
    """One object. uid: of the level; of the study where that could not be compared (`!`), and the path
    where a file could not be read. note: why, or in what they differ.
    """

    symbol: Symbol
    uid: str
    study_instance_uid: str = ""
    note: str = ""


@dataclass(slots=True, kw_only=True)
class CheckSummary:
    """How many objects there were of each kind, and over how many studies."""

    studies: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def exit_code(self) -> int:
        """5 with any error, 11 with any difference, else 0."""
        if self.counts["!"]:
            return 5
        return 11 if self.counts["-"] or self.counts["+"] or self.counts["*"] else 0


async def check(
    options: CheckOptions,
    say: Callable[[CheckLine], None],
    *,
    observer: Observer | None = None,
) -> CheckSummary:
    """Compares both ends; `say` gets every object, also those that are the same.

    Raises ConfigurationError (a folder that does not exist, a key below STUDY level), QueryFailed where
    an end does not list its studies, and the error of a peer that cannot be reached.
    """
    check_filter(options.filter)
    if options.digest and options.level != "IMAGE":
        raise ConfigurationError(f"contents are compared at level IMAGE, not {options.level}")
    for endpoint in (options.source, options.destination):
        if isinstance(endpoint, Path) and not endpoint.is_dir():
            raise ConfigurationError(f"there is no folder {str(endpoint)!r}")
    summary = CheckSummary()

    def count(line: CheckLine) -> None:
        summary.counts[line.symbol] += 1
        say(line)

    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dcmhaul-check-"))
        spool = stack.enter_context(closing(StudySpool(Path(folder))))
        services = await stack.enter_async_context(flat_nursery())
        moves: MoveReads | None = None
        if options.receive is not None and options.digest:
            title, seconds = options.calling_ae_title, options.timeouts.dimse
            moves = MoveReads(title, options.receive, settle_seconds=seconds)
            await stack.enter_async_context(moves.serving(observer or NullObserver()))
        ends: list[_End] = []
        for number, endpoint in enumerate((options.source, options.destination)):
            if isinstance(endpoint, Path):
                ends.append(_FolderEnd(number, endpoint, options, spool, count))
            else:
                peer = _PeerEnd(number, endpoint, options, spool, observer or NullObserver(), moves)
                services.start_soon(peer.queries.serve)
                ends.append(peer)
        async with flat_nursery() as nursery:
            for end in ends:
                nursery.start_soon(end.list_studies)
        await _Comparison(options, ends, count, summary).run(spool)
        for end in ends:
            if isinstance(end, _PeerEnd):
                end.queries.finish()
    return summary


class _End(Protocol):
    """One side."""

    reader: Reader

    async def list_studies(self) -> None:
        """Into the spool."""

    async def instances(self, study_uid: str, hint: int | None) -> dict[str, ExpectedInstance]:
        """What it holds of a study, whether the filter selects it or not."""

    def finish(self) -> None:
        """Nothing more is asked."""


class _PeerEnd:
    """A peer, asked by C-FIND, read by C-GET or by C-MOVE to us."""

    def __init__(
        self,
        number: int,
        peer: Peer,
        options: CheckOptions,
        spool: StudySpool,
        observer: Observer,
        moves: MoveReads | None,
    ) -> None:
        self._number = number
        self._options = options
        self._spool = spool
        self._query = InstanceQuery()
        title = peer.ae_title or ANY_SCP

        def pool(size: int) -> AssociationPool:
            return AssociationPool(
                peer.host,
                peer.port,
                policy=PoolPolicy(size=size, failures_max=FAILURES_MAX),
                timeouts=options.timeouts,
                options=secured(options.socket_options, peer.tls),
                observer=observer,
            )

        request = AssociationRequest(
            called_ae_title=title,
            calling_ae_title=options.calling_ae_title,
            contexts=(
                PresentationContextRq(
                    context_id=1,
                    abstract_syntax=uids.STUDY_ROOT_FIND,
                    transfer_syntaxes=QUERY_SYNTAXES[:2],
                ),
            ),
            pdu_length_max=options.pdu_length_max,
        )
        self.queries = SharedAssociations(pool(WORKERS), request)
        reading = pool(READERS)
        reading.health = replace(reading.health, reached=True)  # by questions, before
        self.reader: Reader = PeerReader(reading, title, options, moves)

    async def list_studies(self) -> None:
        async def ask(association: Association) -> None:
            page: list[StudyListing] = []
            async with aclosing(find_studies(association, self._options.filter)) as studies:
                async for study in studies:
                    page.append(study)
                    if len(page) >= PAGE:
                        await self._spool.add_studies(self._number, page)
                        page.clear()
            await self._spool.add_studies(self._number, page)

        await self.queries.call(ask)

    async def instances(self, study_uid: str, hint: int | None) -> dict[str, ExpectedInstance]:
        found = await self._ask(study_uid, hint)
        if self._options.level == "SERIES" and any(not i.series_instance_uid for i in found):
            self._query.hierarchical = True
            found = await self._ask(study_uid, hint)
        return {instance.sop_instance_uid: instance for instance in found}

    def finish(self) -> None:
        self.queries.finish()

    async def _ask(self, study_uid: str, hint: int | None) -> list[ExpectedInstance]:
        return await self.queries.call(
            lambda association: self._query.instances(association, study_uid, hint)
        )


class _FolderEnd:
    """A folder: walked once, and with a filter once more to see what that selects."""

    def __init__(
        self,
        number: int,
        folder: Path,
        options: CheckOptions,
        spool: StudySpool,
        say: Callable[[CheckLine], None],
    ) -> None:
        self._number = number
        self._folder = folder
        self._filter = options.filter
        self._spool = spool
        self._say = say
        self.reader: Reader = FolderReader(
            lambda instance: str(folder / text_path(instance.locator))
        )

    async def list_studies(self) -> None:
        async with aclosing(FolderInventory(self._folder, Dataset()).batches()) as batches:
            async for batch in batches:
                for entry in batch:
                    if isinstance(entry, Exclusion) and entry.kind == "failed":
                        note = f"{ENDS[self._number]}: {entry.reason}"
                        self._say(CheckLine(symbol="!", uid=entry.locator, note=note))
                found = [entry for entry in batch if isinstance(entry, FolderFinding)]
                await self._spool.add_instances(self._number, found)
        if not self._filter:
            await self._spool.list_folder(self._number, None)
            return
        selected = FolderInventory(self._folder, self._filter)
        async with aclosing(selected.batches()) as batches:
            async for batch in batches:
                found = [entry for entry in batch if isinstance(entry, FolderFinding)]
                await self._spool.add_modalities(self._number, found)
        await self._spool.list_folder(self._number, selected.wants_modalities)

    async def instances(self, study_uid: str, hint: int | None) -> dict[str, ExpectedInstance]:
        return await self._spool.instances(self._number, study_uid)

    def finish(self) -> None:
        """It holds nothing open."""


Found = tuple["dict[str, ExpectedInstance]", "dict[str, ExpectedInstance]"]


class _Comparison:
    """Takes studies from the spool and says what became of each."""

    def __init__(
        self,
        options: CheckOptions,
        ends: list[_End],
        say: Callable[[CheckLine], None],
        summary: CheckSummary,
    ) -> None:
        self._options = options
        self._ends = ends
        self._say = say
        self._summary = summary
        self._to_name = NAMED_MAX

    async def run(self, spool: StudySpool) -> None:
        send, receive = trio.open_memory_channel[SpooledStudy](0)
        async with flat_nursery() as nursery, send:
            for _ in range(WORKERS):
                nursery.start_soon(self._work, receive)
            after = ""
            while page := await spool.studies(after, PAGE):
                for study in page:
                    await send.send(study)
                after = page[-1].uid

    async def _work(self, studies: trio.MemoryReceiveChannel[SpooledStudy]) -> None:
        async for study in studies:
            self._summary.studies += 1
            try:
                lines = await self._compare(study)
            except PoolExhausted:
                raise
            except (QueryFailed, *ASSOCIATION_ERRORS) as error:
                lines = [CheckLine(symbol="!", uid=study.uid, note=str(error))]
            for line in lines:
                self._say(replace(line, study_instance_uid=study.uid))

    async def _compare(self, study: SpooledStudy) -> list[CheckLine]:
        source, destination = study.counts
        if self._options.level == "STUDY" and source is not None and source == destination:
            return [CheckLine(symbol="=", uid=study.uid)]
        found = await self._instances(study)
        if self._options.level == "STUDY":
            # A study without instances is one all the same, where it was listed.
            present = [
                listed or bool(held) for listed, held in zip(study.listed, found, strict=True)
            ]
            return [_compare_counts(study.uid, present, [len(held) for held in found])]
        if self._options.level == "SERIES":
            return _compare_series(found)
        if self._options.digest:
            return await self._compare_contents(study.uid, found)
        return [_line(uid, uid in found[0], uid in found[1]) for uid in _union(*found)]

    async def _instances(self, study: SpooledStudy) -> Found:
        """Of both ends at once; an end that did not list the study may hold it under other values."""
        found: list[dict[str, ExpectedInstance]] = [{}, {}]

        async def ask(number: int) -> None:
            found[number] = await self._ends[number].instances(study.uid, study.counts[number])

        async with flat_nursery() as nursery:
            nursery.start_soon(ask, 0)
            nursery.start_soon(ask, 1)
        return found[0], found[1]

    async def _compare_contents(self, study_uid: str, found: Found) -> list[CheckLine]:
        lines = [
            _line(uid, uid in found[0], uid in found[1])
            for uid in _union(*found)
            if uid not in found[0] or uid not in found[1]
        ]
        both = sorted(found[0].keys() & found[1].keys())
        if not both:
            return lines
        source, destination = _filled(*found), _filled(found[1], found[0])
        try:
            ours = await self._ends[0].reader.read(study_uid, source, both)
            destination = _filled(destination, _as_read(source, ours))
            theirs = await self._ends[1].reader.read(study_uid, destination, both)
        except CannotBeRead as error:
            return [*lines, CheckLine(symbol="!", uid=study_uid, note=f"cannot be read: {error}")]
        differing: dict[str, str] = {}
        for uid in both:
            if uid not in ours or uid not in theirs:
                end = ENDS[uid in ours]
                lines.append(
                    CheckLine(symbol="!", uid=uid, note=f"{end} lists it and does not give it")
                )
                continue
            result, text = compare_readings(ours[uid], theirs[uid])
            if result is CheckResult.DIFFERS:
                differing[uid] = text
            else:
                lines.append(CheckLine(symbol="=", uid=uid))
        names = await self._named(study_uid, (source, destination), list(differing))
        lines += [
            CheckLine(symbol="*", uid=uid, note=": ".join(filter(None, (text, names.get(uid)))))
            for uid, text in differing.items()
        ]
        return lines

    async def _named(self, study_uid: str, found: Found, differing: list[str]) -> dict[str, str]:
        wanted = differing[: self._to_name]
        self._to_name -= len(wanted)
        source, destination = (end.reader for end in self._ends)
        return await name_differences(source, destination, study_uid, found, wanted)


def _filled(
    one: Mapping[str, ExpectedInstance], other: Mapping[str, ExpectedInstance]
) -> dict[str, ExpectedInstance]:
    """What an end lists; of what it does not say of an instance, the other end's word is the best guess."""
    return {
        uid: replace(
            instance,
            sop_class_uid=instance.sop_class_uid or other[uid].sop_class_uid,
            transfer_syntax_uid=instance.transfer_syntax_uid or other[uid].transfer_syntax_uid,
        )
        if uid in other
        else instance
        for uid, instance in one.items()
    }


def _as_read(
    found: Mapping[str, ExpectedInstance], read: Mapping[str, Reading]
) -> dict[str, ExpectedInstance]:
    """The same with the syntaxes in which the instances came."""
    return {
        uid: replace(instance, transfer_syntax_uid=read[uid].transfer_syntax_uid)
        if uid in read
        else instance
        for uid, instance in found.items()
    }


def _union(source: Mapping[str, object], destination: Mapping[str, object]) -> list[str]:
    return sorted(source.keys() | destination.keys())


def _line(uid: str, at_source: bool, at_destination: bool) -> CheckLine:
    if at_source and at_destination:
        return CheckLine(symbol="=", uid=uid)
    return CheckLine(symbol="+" if at_source else "-", uid=uid)


def _compare_counts(uid: str, present: list[bool], counts: list[int]) -> CheckLine:
    if not all(present) or counts[0] == counts[1]:
        return _line(uid, *present)
    note = f"{counts[0]} instances at {ENDS[0]}, {counts[1]} at {ENDS[1]}"
    return CheckLine(symbol="*", uid=uid, note=note)


def _compare_series(found: Found) -> list[CheckLine]:
    counts = [Counter(i.series_instance_uid for i in held.values()) for held in found]
    return [
        _compare_counts(uid, [uid in counts[0], uid in counts[1]], [counts[0][uid], counts[1][uid]])
        for uid in _union(*counts)
    ]
