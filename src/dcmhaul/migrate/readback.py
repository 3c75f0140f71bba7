"""Instances read back from a peer or a folder, and whether they say what was moved. It stores nothing."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio
from pydicom.datadict import keyword_for_tag

from dcmhaul import uids
from dcmhaul.engine.planning import context_passes, plan_requests, retrieve_identifier
from dcmhaul.engine.pool import ASSOCIATION_ERRORS, PoolExhausted
from dcmhaul.engine.relay import FolderDestination
from dcmhaul.engine.retriever import Retriever
from dcmhaul.errors import InstanceError, NoAcceptedContext
from dcmhaul.migrate.inventory import dataset_pieces, digest_instance
from dcmhaul.migrate.tables import CheckResult
from dcmhaul.migrate.transfer import get_request
from dcmhaul.objects.canonical import COERCIBLE, ElementDigests
from dcmhaul.objects.instances import StoreReply
from dcmhaul.objects.part10 import open_instance
from dcmhaul.services.identifiers import encode_identifier

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from dcmhaul.engine.planning import ExpectedInstance
    from dcmhaul.engine.pool import AssociationPool
    from dcmhaul.engine.relay import RelayOutcome
    from dcmhaul.migrate.plan import RequestOptions
    from dcmhaul.net.types import DatasetSlices
    from dcmhaul.objects.canonical import ContentDigest
    from dcmhaul.objects.instances import IncomingInstance

__all__ = [
    "CannotBeRead",
    "FolderReader",
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
    """The peer gives nothing back: it has no C-GET, or cannot be reached any more."""


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
    """Reads by C-GET; the datasets are digested as they come and dropped."""

    def __init__(self, pool: AssociationPool, title: str, options: RequestOptions) -> None:
        self._pool = pool
        self._title = title
        self._options = options

    async def read(
        self,
        study_uid: str,
        study: Mapping[str, ExpectedInstance],
        wanted: Collection[str],
        *,
        elements: bool = False,
    ) -> dict[str, Reading]:
        got = _Got(elements=elements)
        # What an archive re-encodes it gives back in a syntax that nobody announced: proposed last,
        # since the common syntaxes of many classes need several associations.
        for doubted in (False, True):
            for attempt in range(1, ATTEMPTS + 1):
                missing = [uid for uid in wanted if uid not in got.readings]
                if not missing:
                    return got.readings
                try:
                    for pairs in _passes(study, missing, doubted=doubted):
                        await self._get(study_uid, study, missing, pairs, got)
                    break
                except PoolExhausted as error:
                    raise CannotBeRead(str(error)) from error
                except NoAcceptedContext as error:
                    if not got.reached and doubted:
                        raise CannotBeRead(str(error)) from error
                    break
                except ASSOCIATION_ERRORS as error:
                    if attempt == ATTEMPTS:
                        raise CannotBeRead(str(error)) from error
        return got.readings

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
            if association.agreement.context_for(uids.STUDY_ROOT_GET) is None:
                raise CannotBeRead(f"{association.peer} accepted no context for C-GET (Study Root)")
            got.reached = True
            into = FolderDestination(got.sink, got.report, content=True)
            retriever = Retriever(association, into)
            for request in plan_requests(study_uid, study.values(), asked):
                await retriever.retrieve(
                    partial(encode_identifier, retrieve_identifier(request)), held=got.readings
                )
                self._pool.worked()


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
