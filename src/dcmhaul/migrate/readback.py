"""Instances read back from a peer or a folder, and whether they say what was moved. It stores nothing."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio
from pydicom.datadict import keyword_for_tag

from dcmhaul import uids
from dcmhaul.engine.arrivals import SETTLE_SECONDS, Arrivals
from dcmhaul.engine.destination import MoveDestination
from dcmhaul.engine.planning import context_passes, plan_requests, retrieve_identifier
from dcmhaul.engine.pool import ASSOCIATION_ERRORS, PoolExhausted
from dcmhaul.engine.relay import FolderDestination, RelayOutcome
from dcmhaul.engine.retriever import Retriever
from dcmhaul.errors import InstanceError, NoAcceptedContext
from dcmhaul.migrate.inventory import dataset_pieces, digest_instance
from dcmhaul.migrate.tables import CheckResult
from dcmhaul.migrate.transfer import get_request, move_request
from dcmhaul.objects.canonical import COERCIBLE, DatasetDigest, ElementDigests
from dcmhaul.objects.instances import StoreReply
from dcmhaul.objects.part10 import open_instance
from dcmhaul.protocol.statuses import MOVE_DESTINATION_UNKNOWN, describe
from dcmhaul.services.identifiers import encode_identifier
from dcmhaul.services.move import OWN_SCP_SECONDS, move
from dcmhaul.services.query import QueryModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping

    from dcmhaul.engine.destination import ReceiveOptions
    from dcmhaul.engine.planning import ExpectedInstance, GetRequest
    from dcmhaul.engine.pool import AssociationPool
    from dcmhaul.migrate.plan import RequestOptions
    from dcmhaul.net import Association
    from dcmhaul.net.types import DatasetSlices, Observer
    from dcmhaul.objects.canonical import ContentDigest
    from dcmhaul.objects.instances import IncomingInstance, StorageSink
    from dcmhaul.services.retrieve import RetrieveResponse

__all__ = [
    "CannotBeRead",
    "FolderReader",
    "MoveReads",
    "PeerReader",
    "Reader",
    "Reading",
    "compare_readings",
    "name_differences",
]

ATTEMPTS: Final = 3
NAMED_TAGS_MAX: Final = 20
_UNCOMPRESSED: Final = (uids.EXPLICIT_VR_LITTLE_ENDIAN, uids.IMPLICIT_VR_LITTLE_ENDIAN)


class CannotBeRead(Exception):
    """The peer gives nothing back: it has no C-GET and sends nothing to us by C-MOVE, or cannot be reached
    any more.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What is known of one dataset. sha256: of its bytes; content: None where it was not digested or is
    no dataset that can be walked. elements: digests by tag, where they were asked for.
    """

    transfer_syntax_uid: str
    length: int = 0
    sha256: bytes | None = None
    content: ContentDigest | None = None
    elements: dict[int, bytes] | None = None


class Reader(Protocol):
    """Gives back what an end of a migration holds."""

    async def read(
        self,
        study_uid: str,
        study: Mapping[str, ExpectedInstance],
        wanted: Collection[str],
        *,
        elements: bool = False,
    ) -> dict[str, Reading]:
        """By SOP Instance UID; what could not be had is not among them.

        study: every instance of the study, so that whole series can be asked for. CannotBeRead where
        nothing will ever come.
        """


# -- comparing ------------------------------------------------------------------------------------------


def compare_readings(source: Reading, destination: Reading) -> tuple[CheckResult, str]:
    """What came of it, and a phrase where that is DIFFERS."""
    same_syntax = source.transfer_syntax_uid == destination.transfer_syntax_uid
    if same_syntax and source.sha256 is not None and source.sha256 == destination.sha256:
        return CheckResult.SAME_BYTES, ""
    if source.content is None or destination.content is None:
        end = "source" if source.content is None else "destination"
        return CheckResult.DIFFERS, f"the bytes differ, and what the {end} holds cannot be compared"
    if source.content.content != destination.content.content:
        text = "" if same_syntax else f"{_syntaxes(source, destination)}: "
        return CheckResult.DIFFERS, f"{text}the content differs"
    if source.content.coercible != destination.content.coercible:
        return CheckResult.COERCED, ""
    return CheckResult.SAME_CONTENT, ""


def _syntaxes(source: Reading, destination: Reading) -> str:
    names = [
        uids.name(reading.transfer_syntax_uid) or reading.transfer_syntax_uid or "unknown syntax"
        for reading in (source, destination)
    ]
    return f"{names[0]} became {names[1]}"


def _differing_elements(source: Reading, destination: Reading) -> str:
    """The tags in which two datasets differ, without values; "" where that is not known."""
    if source.elements is None or destination.elements is None:
        return ""
    one, other = source.elements, destination.elements
    tags = sorted(tag for tag in one.keys() | other.keys() if one.get(tag) != other.get(tag))
    names = [
        f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {COERCIBLE.get(tag) or keyword_for_tag(tag)}".rstrip()
        for tag in tags[:NAMED_TAGS_MAX]
    ]
    if len(tags) > NAMED_TAGS_MAX:
        names.append(f"{len(tags) - NAMED_TAGS_MAX} more")
    return ", ".join(names)


async def name_differences(
    source: Reader,
    destination: Reader,
    study_uid: str,
    study: tuple[Mapping[str, ExpectedInstance], Mapping[str, ExpectedInstance]],
    wanted: Collection[str],
) -> dict[str, str]:
    """Reads both ends once more: by UID the tags that differ, as far as that can be known.

    study: as the source and as the destination list it.
    """
    if not wanted:
        return {}
    try:
        ours = await source.read(study_uid, study[0], wanted, elements=True)
        theirs = await destination.read(study_uid, study[1], wanted, elements=True)
    except CannotBeRead:
        return {}
    return {
        uid: _differing_elements(ours[uid], theirs[uid])
        for uid in wanted
        if uid in ours and uid in theirs
    }


# -- from a peer ----------------------------------------------------------------------------------------


class PeerReader:
    """Reads by C-GET, or by C-MOVE to us; the datasets are digested as they come and dropped.

    moves: our SCP, None where there is none. It is used for what a C-GET did not bring, and alone once a
    peer has shown that its C-GET brings nothing.
    """

    def __init__(
        self,
        pool: AssociationPool,
        title: str,
        options: RequestOptions,
        moves: MoveReads | None = None,
    ) -> None:
        self._pool = pool
        self._title = title
        self._options = options
        self._moves = moves
        self._has_get = True
        self._has_moved = False

    async def read(
        self,
        study_uid: str,
        study: Mapping[str, ExpectedInstance],
        wanted: Collection[str],
        *,
        elements: bool = False,
    ) -> dict[str, Reading]:
        got = _Got(elements=elements)
        if self._has_get:
            try:
                await self._read_by_get(study_uid, study, wanted, got)
            except CannotBeRead:
                if self._moves is None:
                    raise
                self._has_get = False
        if self._moves is not None and got.lacks(wanted):
            by_get = len(got.readings)
            try:
                await self._read_by_move(self._moves, study_uid, study, wanted, got)
            except CannotBeRead:
                if not self._has_get:
                    raise
            if not by_get and got.readings:
                self._has_get = False  # in name only
        return got.readings

    async def _read_by_get(
        self,
        study_uid: str,
        study: Mapping[str, ExpectedInstance],
        wanted: Collection[str],
        got: _Got,
    ) -> None:
        # What an archive re-encodes it gives back in a syntax that nobody announced: proposed last,
        # since the common syntaxes of many classes need several associations.
        for doubted in (False, True):
            for attempt in range(1, ATTEMPTS + 1):
                missing = got.lacks(wanted)
                if not missing or not self._has_get:
                    return
                try:
                    for pairs in _passes(study, missing, doubted=doubted):
                        await self._get(study_uid, study, missing, pairs, got)
                    break
                except PoolExhausted as error:
                    raise CannotBeRead(str(error)) from error
                except NoAcceptedContext as error:
                    if not got.reached and doubted:
                        self._no_get(str(error))
                    break
                except ASSOCIATION_ERRORS as error:
                    # Orthanc aborts at each C-GET that it does not allow: the other way is tried at once,
                    # for the pool counts such losses, and gives the peer up.
                    if attempt == ATTEMPTS or self._moves is not None:
                        raise CannotBeRead(str(error)) from error

    def _no_get(self, text: str) -> None:
        if self._moves is None:
            raise CannotBeRead(f"{text}; give +P PORT, and it is asked to send here by C-MOVE")
        self._has_get = False

    async def _get(
        self,
        study_uid: str,
        study: Mapping[str, ExpectedInstance],
        missing: Collection[str],
        pairs: tuple[tuple[str, str], ...],
        got: _Got,
    ) -> None:
        classes = {sop_class for sop_class, _ in pairs}
        asked = [
            uid
            for uid in missing
            if study[uid].sop_class_uid in classes or not study[uid].sop_class_uid
        ]
        async with self._pool.association(
            get_request(self._title, self._options, pairs)
        ) as association:
            if not self._has_get:
                return  # another study has found out meanwhile
            if association.agreement.context_for(uids.STUDY_ROOT_GET) is None:
                self._no_get(f"{association.peer} accepted no context for C-GET (Study Root)")
                return
            got.reached = True
            into = FolderDestination(got.sink, got.report, content=True)
            retriever = Retriever(association, into)
            for request in plan_requests(study_uid, study.values(), asked):
                await retriever.retrieve(
                    partial(encode_identifier, retrieve_identifier(request)), held=got.readings
                )
                self._pool.worked()

    async def _read_by_move(
        self,
        moves: MoveReads,
        study_uid: str,
        study: Mapping[str, ExpectedInstance],
        wanted: Collection[str],
        got: _Got,
    ) -> None:
        """Asks again for what did not come, as long as each time something does."""
        error: Exception | None = None
        for _ in range(ATTEMPTS):
            missing = got.lacks(wanted)
            if not missing:
                return
            error = None
            try:
                await self._move(moves, study_uid, study, missing, got)
            except (PoolExhausted, NoAcceptedContext) as final:
                raise CannotBeRead(str(final)) from final
            except ASSOCIATION_ERRORS as lost:
                error = lost
                continue
            if got.lacks(wanted) == missing:
                return
        if error is not None:
            raise CannotBeRead(str(error)) from error

    async def _move(
        self,
        moves: MoveReads,
        study_uid: str,
        study: Mapping[str, ExpectedInstance],
        missing: Collection[str],
        got: _Got,
    ) -> None:
        async with self._pool.association(move_request(self._title, self._options)) as association:
            if association.agreement.context_for(uids.STUDY_ROOT_MOVE) is None:
                raise CannotBeRead(
                    f"{association.peer} accepted no context for C-GET nor for C-MOVE (Study Root)"
                )
            for request in plan_requests(study_uid, study.values(), missing):
                before = len(got.readings)
                response = await moves.read(association, request, missing, got)
                self._has_moved = self._has_moved or len(got.readings) > before
                self._pool.worked()
                if response.status == MOVE_DESTINATION_UNKNOWN or not self._has_moved:
                    said = describe(response.status, "C-MOVE")
                    if response.error_comment:
                        said += f": {response.error_comment}"
                    raise CannotBeRead(
                        f"{association.peer} answered a C-MOVE with {said}, and sent nothing: it must "
                        f"know {moves.ae_title} with this host and port {moves.port}"
                    )


def _passes(
    study: Mapping[str, ExpectedInstance], missing: Collection[str], *, doubted: bool
) -> list[tuple[tuple[str, str], ...]]:
    """The contexts, an association an item: the known syntaxes and the uncompressed, or all common ones."""
    classes: Counter[str] = Counter()
    announced: dict[str, list[str]] = {}
    for uid in missing:
        instance = study[uid]
        classes[instance.sop_class_uid] += 1
        if instance.transfer_syntax_uid:
            announced.setdefault(instance.sop_class_uid, []).append(instance.transfer_syntax_uid)
    for syntaxes in announced.values():
        syntaxes += _UNCOMPRESSED
    return context_passes(classes, announced, classes if doubted else ())


class _Got:
    """What has come so far. Of several objects under one UID the first counts, as everywhere."""

    def __init__(self, *, elements: bool) -> None:
        self.readings: dict[str, Reading] = {}
        self.reached = False
        self._elements = elements
        self._taken: dict[str, ElementDigests] = {}

    def lacks(self, wanted: Collection[str]) -> list[str]:
        """Those that have not come."""
        return [uid for uid in wanted if uid not in self.readings]

    def sink(self, incoming: IncomingInstance) -> _ElementSink | None:
        if not self._elements:
            return None
        digests = ElementDigests(incoming.transfer_syntax_uid)
        self._taken[incoming.sop_instance_uid] = digests
        return _ElementSink(digests)

    def report(self, outcome: RelayOutcome) -> None:
        digests = self._taken.pop(outcome.sop_instance_uid, None)
        if outcome.status == 0 and outcome.sop_instance_uid not in self.readings:
            self.readings[outcome.sop_instance_uid] = Reading(
                transfer_syntax_uid=outcome.transfer_syntax_uid,
                length=outcome.length,
                sha256=outcome.sha256,
                content=outcome.content,
                elements=digests.digests() if digests is not None else None,
            )

    def moved(self, incoming: IncomingInstance) -> _ReadingSink:
        """Takes one that comes by C-MOVE."""
        return _ReadingSink(self, incoming, self.sink(incoming))


class _ElementSink:
    """A sink that keeps the digests of elements only."""

    def __init__(self, digests: ElementDigests) -> None:
        self._digests = digests

    async def write(self, data: DatasetSlices) -> None:
        data.update(self._digests.update)

    async def commit(self) -> StoreReply:
        return StoreReply(status=0)

    def discard(self) -> None:
        """Nothing was kept."""


class _ReadingSink:
    """A sink that makes a reading of a dataset, once it is whole."""

    def __init__(
        self, got: _Got, incoming: IncomingInstance, elements: _ElementSink | None
    ) -> None:
        self._got = got
        self._incoming = incoming
        self._elements = elements
        self._digest = DatasetDigest(incoming.transfer_syntax_uid, content=True)

    async def write(self, data: DatasetSlices) -> None:
        data.update(self._digest.update)
        if self._elements is not None:
            await self._elements.write(data)

    async def commit(self) -> StoreReply:
        incoming, digest = self._incoming, self._digest
        self._got.report(
            RelayOutcome(
                sop_class_uid=incoming.sop_class_uid,
                sop_instance_uid=incoming.sop_instance_uid,
                transfer_syntax_uid=incoming.transfer_syntax_uid,
                status=0,
                length=digest.length,
                sha256=digest.digest(),
                content=digest.content(),
            )
        )
        return StoreReply(status=0)

    def discard(self) -> None:
        """Nothing was kept."""


class MoveReads:
    """Our SCP, to which peers send by C-MOVE what is to be read.

    One C-MOVE runs at a time: what arrives then belongs to it, whatever its sender says of itself, and
    many archives perform no two to one title.
    """

    def __init__(
        self,
        calling_ae_title: str,
        options: ReceiveOptions,
        *,
        settle_seconds: float | None = None,
    ) -> None:
        """calling_ae_title: ours, and the Move Destination. settle_seconds: how long what a response
        promised may be quiet, at most and by default SETTLE_SECONDS.
        """
        self.ae_title = calling_ae_title
        self._destination = MoveDestination(Arrivals(self._sink, calling_ae_title), options)
        self._settle_seconds = min(settle_seconds or SETTLE_SECONDS, SETTLE_SECONDS)
        self._turn = trio.Lock()
        self._got: _Got | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._destination.port

    @asynccontextmanager
    async def serving(self, observer: Observer) -> AsyncIterator[None]:
        """Listens during the block; ConfigurationError where the port cannot be had."""
        async with self._destination.serving(observer):
            yield
            await self._destination.close()

    async def read(
        self, association: Association, request: GetRequest, wanted: Collection[str], got: _Got
    ) -> RetrieveResponse:
        """One C-MOVE, until what it was to bring of `wanted` is here or is waited for no more."""
        asked = request.sop_instance_uids or wanted
        arrivals = self._destination.arrivals
        async with self._turn:
            self._got = got
            try:
                with arrivals.delivery(
                    association, frozenset(asked), (request.study_instance_uid,)
                ) as delivery:
                    response = await move(
                        association,
                        QueryModel.STUDY_ROOT,
                        partial(encode_identifier, retrieve_identifier(request)),
                        self.ae_title,
                        seconds=OWN_SCP_SECONDS,
                        signs=delivery.signs,
                    )
                    await delivery.settled(response, self._settle_seconds)
            finally:
                self._got = None
        return response

    def _sink(self, incoming: IncomingInstance) -> StorageSink | None:
        return None if self._got is None else self._got.moved(incoming)


# -- from a folder --------------------------------------------------------------------------------------


class FolderReader:
    """Reads files; `path` says where an instance lies."""

    def __init__(self, path: Callable[[ExpectedInstance], str]) -> None:
        self._path = path

    async def read(
        self,
        study_uid: str,
        study: Mapping[str, ExpectedInstance],
        wanted: Collection[str],
        *,
        elements: bool = False,
    ) -> dict[str, Reading]:
        found = {}
        for uid in wanted:
            reading = await trio.to_thread.run_sync(self._read, study[uid], elements)
            if reading is not None:
                found[uid] = reading
        return found

    def _read(self, expected: ExpectedInstance, elements: bool) -> Reading | None:
        try:
            instance = open_instance(self._path(expected))
        except (InstanceError, ValueError):
            return None
        try:
            if instance.sop_instance_uid != expected.sop_instance_uid:
                return None
            digest = digest_instance(instance, content=True)
            by_tag: Any = None
            if elements:
                tags = ElementDigests(instance.transfer_syntax_uid)
                for piece in dataset_pieces(instance):
                    tags.update(piece)
                by_tag = tags.digests()
        except InstanceError:
            return None
        finally:
            instance.close()
        return Reading(
            transfer_syntax_uid=instance.transfer_syntax_uid,
            length=digest.length,
            sha256=digest.digest(),
            content=digest.content(),
            elements=by_tag,
        )
