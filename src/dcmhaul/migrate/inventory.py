"""What the source holds: by C-FIND from a peer, by walking from a folder. It moves nothing."""

from __future__ import annotations

import os
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import trio
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError

from dcmhaul import uids
from dcmhaul.archive.matching import InvalidKey, Matcher, is_universal, make_matcher
from dcmhaul.engine.planning import ExpectedInstance, storage_class
from dcmhaul.errors import ConfigurationError, DcmhaulError, InstanceError, NotDicom
from dcmhaul.migrate.plan import path_text, text_path
from dcmhaul.migrate.tables import Exclusion, StudyListing
from dcmhaul.net.types import FileRange
from dcmhaul.objects.canonical import DatasetDigest
from dcmhaul.objects.part10 import open_instance
from dcmhaul.objects.sources import FailedEntry, SkippedEntry, candidates
from dcmhaul.services.identifiers import encode_identifier
from dcmhaul.services.query import QueryModel, find
from dcmhaul.wire._elements import ElementFault, ElementWalker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator
    from pathlib import Path

    from dcmhaul.net import Association
    from dcmhaul.objects.part10 import FileInstance
    from dcmhaul.services.query import FindResponse

__all__ = [
    "FolderFinding",
    "FolderInventory",
    "InstanceQuery",
    "QueryFailed",
    "dataset_digest",
    "dataset_pieces",
    "digest_instance",
    "duplicate_exclusion",
    "find_studies",
]

SUCCESS = 0x0000
MATCH_VALUE_MAX = 65536
WALK_FILES = 200
DIGEST_READ = 1 << 20


class QueryFailed(DcmhaulError):
    """The peer answered a C-FIND with a failure; `status` is its own."""

    exit_code = 5

    def __init__(self, peer: str, level: str, status: int, comment: str) -> None:
        text = f"{peer} answered a C-FIND at {level} level with 0x{status:04X}"
        super().__init__(f"{text}: {comment}" if comment else text)
        self.status = status


# What is read of a match (PS3.6); UIDs, codes, dates and numbers, all of the default repertoire.
_STUDY_DATE = 0x00080020
_SOP_CLASS = 0x00080016
_SOP_INSTANCE = 0x00080018
_MODALITY = 0x00080060
_MODALITIES = 0x00080061
_STUDY_INSTANCE = 0x0020000D
_SERIES_INSTANCE = 0x0020000E
_STUDY_INSTANCES = 0x00201208
_AVAILABLE_SYNTAX = 0x00083002
_MATCH_TAGS = (
    _SOP_CLASS,
    _SOP_INSTANCE,
    _STUDY_DATE,
    _MODALITY,
    _MODALITIES,
    _AVAILABLE_SYNTAX,
    _STUDY_INSTANCE,
    _SERIES_INSTANCE,
    _STUDY_INSTANCES,
)


def _decode(response: FindResponse) -> dict[int, str]:
    """The values of a match by tag, "" for what it lacks. By header walk: millions may come."""
    walker = ElementWalker(
        response.transfer_syntax != uids.IMPLICIT_VR_LITTLE_ENDIAN,
        big_endian=response.transfer_syntax == uids.EXPLICIT_VR_BIG_ENDIAN,
        capture=_MATCH_TAGS,
        capture_limit=MATCH_VALUE_MAX,
    )
    walker.feed(response.identifier or b"")
    walker.finish()
    values = dict.fromkeys(_MATCH_TAGS, "")
    for tag, value in walker.captured.items():
        values[tag] = value.decode("latin-1").strip("\0 ")
    return values


async def _find(
    association: Association, identifier: Dataset
) -> AsyncGenerator[dict[int, str], None]:
    """The matches of one C-FIND; QueryFailed where it did not end in success. To be closed."""
    level = str(identifier.QueryRetrieveLevel)
    encode = partial(encode_identifier, identifier)
    async with find(association, QueryModel.STUDY_ROOT, encode) as responses:
        async for response in responses:
            if response.pending:
                try:
                    match = _decode(response)
                except ElementFault as error:
                    raise QueryFailed(
                        association.peer, level, response.status, f"broken match: {error}"
                    ) from error
                yield match
            elif response.status != SUCCESS:
                raise QueryFailed(association.peer, level, response.status, response.error_comment)


def _text(dataset: Dataset, keyword: str) -> str:
    """One value as text, several joined as they were; "" where there is none or it is unreadable."""
    try:
        value = dataset.get(keyword)
    except (ValueError, NotImplementedError):
        return ""
    if value is None:
        return ""
    if isinstance(value, (list, tuple)) or hasattr(value, "extend"):
        return "\\".join(str(part) for part in value)
    return str(value).strip("\0 ")


async def find_studies(
    association: Association, keys: Dataset
) -> AsyncGenerator[StudyListing, None]:
    """Every study that the filter selects; a source may repeat one. To be closed.

    Many peers pass over ModalitiesInStudy (dcmqrscp does), and then every study is a match: one whose
    modalities the answer does not say is asked for its series.
    """
    wanted = _modality_matcher(keys)
    doubtful: list[StudyListing] = []
    identifier = Dataset()
    for keyword in ("StudyDate", "ModalitiesInStudy", "NumberOfStudyRelatedInstances"):
        setattr(identifier, keyword, None)
    identifier.StudyInstanceUID = ""
    for element in keys:
        identifier[element.tag] = element
    identifier.QueryRetrieveLevel = "STUDY"
    async with aclosing(_find(association, identifier)) as matches:
        async for match in matches:
            uid = match[_STUDY_INSTANCE]
            if not uid:
                continue
            count = match[_STUDY_INSTANCES]
            listing = StudyListing(
                study_instance_uid=uid,
                date=match[_STUDY_DATE],
                modality=match[_MODALITIES],
                n_expected=int(count) if count.isascii() and count.isdigit() else None,
            )
            if wanted is None or _any_matches(wanted, listing.modality):
                yield listing
            elif not listing.modality:
                doubtful.append(listing)
    for listing in doubtful:
        modalities = await _modalities(association, listing.study_instance_uid)
        if wanted is not None and _any_matches(wanted, modalities):
            yield replace(listing, modality=modalities)


def _modality_matcher(keys: Dataset) -> Matcher | None:
    """What ModalitiesInStudy is to hold; None where anything will do."""
    value = _text(keys, "ModalitiesInStudy")
    if is_universal(value):
        return None
    try:
        return make_matcher("CS", value)
    except InvalidKey as error:
        raise ConfigurationError(f"ModalitiesInStudy: {error}") from error


def _any_matches(matcher: Matcher, values: str) -> bool:
    return any(matcher.matches(value.strip()) for value in values.split("\\") if value.strip())


async def _modalities(association: Association, study_uid: str) -> str:
    """The modalities of the series that a peer lists for a study, with backslashes between."""
    identifier = Dataset()
    identifier.QueryRetrieveLevel = "SERIES"
    identifier.StudyInstanceUID = study_uid
    identifier.SeriesInstanceUID = ""
    identifier.Modality = ""
    async with aclosing(_find(association, identifier)) as matches:
        found = [match[_MODALITY] async for match in matches]
    return "\\".join(dict.fromkeys(filter(None, found)))


@dataclass(slots=True)
class InstanceQuery:
    """Asks one peer for the instances of a study, and remembers how it wants to be asked.

    One question for the whole study is tried first; it leaves the series open, which a strictly
    hierarchical SCP refuses (PS3.4 §C.4.1.2.2.1). Then each series is asked for.
    """

    hierarchical: bool = field(default=False, init=False)

    async def instances(
        self, association: Association, study_uid: str, hint: int | None = None
    ) -> list[ExpectedInstance]:
        """The instances that the peer lists. hint: its own count of them, if it gave one."""
        found: dict[str, ExpectedInstance] = {}
        if not self.hierarchical:
            refused = False
            try:
                await self._ask(association, study_uid, "", found)
            except QueryFailed:
                refused = True
            if found and len(found) >= (hint or 0):
                return list(found.values())
            if not found and not refused and not hint:
                return []
            before = len(found)
            await self._by_series(association, study_uid, found)
            if len(found) > before:
                self.hierarchical = True
            return list(found.values())
        await self._by_series(association, study_uid, found)
        return list(found.values())

    async def _by_series(
        self, association: Association, study_uid: str, found: dict[str, ExpectedInstance]
    ) -> None:
        identifier = Dataset()
        identifier.QueryRetrieveLevel = "SERIES"
        identifier.StudyInstanceUID = study_uid
        identifier.SeriesInstanceUID = ""
        async with aclosing(_find(association, identifier)) as matches:
            series = [match[_SERIES_INSTANCE] async for match in matches]
        for series_uid in dict.fromkeys(series):
            if series_uid:
                await self._ask(association, study_uid, series_uid, found)

    async def _ask(
        self,
        association: Association,
        study_uid: str,
        series_uid: str,
        found: dict[str, ExpectedInstance],
    ) -> None:
        identifier = Dataset()
        identifier.QueryRetrieveLevel = "IMAGE"
        identifier.StudyInstanceUID = study_uid
        identifier.SeriesInstanceUID = series_uid
        identifier.SOPInstanceUID = ""
        identifier.SOPClassUID = ""
        identifier.AvailableTransferSyntaxUID = ""
        async with aclosing(_find(association, identifier)) as matches:
            async for match in matches:
                uid = match[_SOP_INSTANCE]
                # A peer that ignores the key must not make us count another study's instances.
                if not uid or match[_STUDY_INSTANCE] not in ("", study_uid):
                    continue
                syntaxes = match[_AVAILABLE_SYNTAX].split("\\")
                found[uid] = ExpectedInstance(
                    sop_instance_uid=uid,
                    sop_class_uid=storage_class(match[_SOP_CLASS]),
                    series_instance_uid=match[_SERIES_INSTANCE] or series_uid,
                    transfer_syntax_uid=syntaxes[0] if len(syntaxes) == 1 else "",
                )


# -- folders --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFinding:
    """One instance of a folder."""

    study_instance_uid: str
    modality: str
    date: str
    instance: ExpectedInstance


class FolderInventory:
    """Walks a folder and keeps what the filter wants. Values come from the files themselves.

    ModalitiesInStudy is known when every file was seen; until then `wants_modalities` is left open.
    """

    def __init__(self, folder: Path, keys: Dataset) -> None:
        self._folder = folder
        self._matchers: dict[int, Matcher] = {}
        self._modalities = _modality_matcher(keys)
        for element in keys:
            value = _text(keys, element.keyword) if element.keyword else str(element.value or "")
            if is_universal(value) or element.keyword == "ModalitiesInStudy":
                continue
            try:
                self._matchers[int(element.tag)] = make_matcher(str(element.VR), value)
            except InvalidKey as error:
                raise ConfigurationError(f"{element.keyword or element.tag}: {error}") from error

    def wants_modalities(self, modalities: str) -> bool:
        """Whether a study with these modalities (separated by backslashes) is selected."""
        return self._modalities is None or _any_matches(self._modalities, modalities)

    @property
    def selects_by_modality(self) -> bool:
        return self._modalities is not None

    async def batches(self) -> AsyncGenerator[list[FolderFinding | Exclusion], None]:
        """What the files are, some hundred at a time; the disk is read in a thread. To be closed."""
        paths = candidates([self._folder])
        while True:
            batch = await trio.to_thread.run_sync(self._next, paths)
            if batch is None:
                return
            yield batch

    def _next(
        self, paths: Iterator[str | SkippedEntry | FailedEntry]
    ) -> list[FolderFinding | Exclusion] | None:
        found: list[FolderFinding | Exclusion] = []
        for seen, candidate in enumerate(paths, 1):
            if isinstance(candidate, FailedEntry):
                finding: FolderFinding | Exclusion | None = self._excluded(
                    candidate.path, "failed", candidate.error
                )
            elif isinstance(candidate, SkippedEntry):
                finding = self._excluded(candidate.path, "skipped", candidate.reason)
            else:
                finding = self._examine(candidate)
            if finding is not None:
                found.append(finding)
            if seen >= WALK_FILES:
                return found
        return found or None

    def _excluded(self, path: str, kind: str, reason: object) -> Exclusion:
        return Exclusion(locator=self._locator(path), kind=kind, reason=str(reason))

    def _locator(self, path: str) -> str:
        return path_text(os.path.relpath(path, self._folder))

    def _examine(self, path: str) -> FolderFinding | Exclusion | None:
        try:
            instance = open_instance(path)
        except NotDicom as error:
            return self._excluded(path, "skipped", error)
        except InstanceError as error:
            return self._excluded(path, "failed", error)
        instance.close()
        if not instance.study_instance_uid:
            return self._excluded(path, "failed", "no Study Instance UID in the dataset")
        modality = date = ""
        if self._matchers or self._modalities:
            values = self._values(path)
            if isinstance(values, Exclusion):
                return values
            if not self._matches(values):
                return None
            modality, date = _text(values, "Modality"), _text(values, "StudyDate")
        return FolderFinding(
            study_instance_uid=instance.study_instance_uid,
            modality=modality,
            date=date,
            instance=ExpectedInstance(
                sop_instance_uid=instance.sop_instance_uid,
                sop_class_uid=instance.sop_class_uid,
                series_instance_uid=instance.series_instance_uid,
                transfer_syntax_uid=instance.transfer_syntax_uid,
                locator=self._locator(path),
            ),
        )

    def _values(self, path: str) -> Dataset | Exclusion:
        wanted = [*self._matchers, 0x00080005, 0x00080020, 0x00080060]
        try:
            return dcmread(path, force=True, stop_before_pixels=True, specific_tags=list(wanted))
        except (InvalidDicomError, OSError, ValueError, AttributeError, EOFError) as error:
            # The text of pydicom may quote a value.
            return self._excluded(path, "failed", f"cannot be read ({type(error).__name__})")

    def _matches(self, values: Dataset) -> bool:
        for tag, matcher in self._matchers.items():
            element = values.get(tag)
            text = _text(values, element.keyword) if element is not None else ""
            if not any(matcher.matches(value) for value in text.split("\\") if value):
                return False
        return True


def dataset_pieces(instance: FileInstance) -> Iterator[bytes | memoryview]:
    """The encoded dataset from the file, group 0002 excluded. Reads: for a thread."""
    dataset = instance.dataset
    if not isinstance(dataset, FileRange):
        yield dataset
        return
    done = 0
    while done < dataset.length:
        piece = os.pread(dataset.fd, min(DIGEST_READ, dataset.length - done), dataset.offset + done)
        if not piece:
            raise InstanceError(f"{instance.label}: the file became shorter while it was read")
        yield piece
        done += len(piece)


def digest_instance(instance: FileInstance, *, content: bool) -> DatasetDigest:
    """The digests of the encoded dataset. Reads the file: for a thread."""
    digest = DatasetDigest(instance.transfer_syntax_uid, content=content)
    for piece in dataset_pieces(instance):
        digest.update(piece)
    return digest


def dataset_digest(instance: FileInstance) -> bytes:
    """SHA-256 of the encoded dataset, group 0002 excluded. Reads the file: for a thread."""
    return digest_instance(instance, content=False).digest()


def duplicate_exclusion(folder: Path, first: str, second: str) -> Exclusion:
    """A second file of one SOP Instance UID: skipped where it holds the same bytes, else a conflict.

    Reads both: for a thread.
    """
    try:
        digests = []
        for locator in (first, second):
            instance = open_instance(os.path.join(folder, text_path(locator)))
            try:
                digests.append((instance.transfer_syntax_uid, dataset_digest(instance)))
            finally:
                instance.close()
    except InstanceError as error:
        return Exclusion(locator=second, kind="failed", reason=str(error))
    if digests[0] == digests[1]:
        return Exclusion(locator=second, kind="skipped", reason=f"the same instance as {first}")
    return Exclusion(
        locator=second,
        kind="conflict",
        reason=f"another object under the SOP Instance UID of {first}",
    )
