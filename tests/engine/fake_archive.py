"""An archive in memory that misbehaves on demand: the source and the destination of engine tests."""

from __future__ import annotations

import hashlib
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio
from pydicom import Dataset

from dcmhaul import uids
from dcmhaul.config import Peer
from dcmhaul.errors import RemoteProtocolError
from dcmhaul.net import Timeouts, serve_associations
from dcmhaul.objects.instances import IncomingInstance, StoreReply
from dcmhaul.services.identifiers import (
    QUERY_SYNTAXES,
    QueryRefused,
    decode_identifier,
    encode_identifier,
)
from dcmhaul.services.provider import acceptor_policy, serve_services
from dcmhaul.services.query import FindScp, QueryModel
from dcmhaul.services.retrieve import GetScp
from dcmhaul.services.storage import StorageScp
from dcmhaul.services.verification import VerificationScp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from dcmhaul.net import Association, DatasetSlices
    from dcmhaul.services.provider import Service

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT = uids.EXPLICIT_VR_LITTLE_ENDIAN
IMPLICIT = uids.IMPLICIT_VR_LITTLE_ENDIAN
JPEG2000 = "1.2.840.10008.1.2.4.90"


@dataclass(frozen=True, kw_only=True)
class FakeInstance:
    """One stored instance; also what the retrieve service sends."""

    study: str
    series: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    dataset: bytes
    date: str = "20200101"
    modality: str = "CT"
    label: str = "fake"

    @property
    def length(self) -> int:
        return len(self.dataset)

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.dataset).digest()

    def open(self) -> FakeInstance:
        return self

    def close(self) -> None:
        pass


def make_instance(
    number: int,
    *,
    study: str = "1.2.3.1",
    series: str | None = None,
    sop_class: str = CT,
    syntax: str = EXPLICIT,
    size: int = 1000,
    date: str = "20200101",
) -> FakeInstance:
    """An instance with `size` bytes of pixel-like ballast, the same for the same arguments."""
    dataset = Dataset()
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = f"{study}.9.{number}"
    dataset.StudyInstanceUID = study
    dataset.SeriesInstanceUID = series or f"{study}.1"
    dataset.StudyDate = date
    dataset.Modality = "CT"
    dataset.add_new(0x00091001, "OB", bytes([number % 251]) * size)
    encoded = encode_identifier(dataset, syntax if syntax in (EXPLICIT, IMPLICIT) else EXPLICIT)
    return FakeInstance(
        study=study,
        series=str(dataset.SeriesInstanceUID),
        sop_instance_uid=str(dataset.SOPInstanceUID),
        sop_class_uid=sop_class,
        transfer_syntax_uid=syntax,
        dataset=encoded,
        date=date,
    )


@dataclass(kw_only=True)
class Faults:
    """What goes wrong. Each callable gets the running number of its kind, from 1.

    store: status for an instance, None to keep it. store_abort: abort instead of answering. store_cut:
    close the connection after so many bytes of that instance. get_abort: abort before the n-th
    sub-operation. withhold: instances that a C-GET leaves out. rewrite: what is kept instead of what came.
    strict: C-FIND wants every higher key.
    """

    store: Callable[[IncomingInstance, int], int | None] = lambda _instance, _n: None
    store_abort: Callable[[int], bool] = lambda _n: False
    store_seconds: float = 0.0
    store_cut: dict[int, int] = field(default_factory=dict)
    get_abort: Callable[[int], bool] = lambda _n: False
    withhold: frozenset[str] = frozenset()
    strict: bool = False
    no_find: bool = False
    no_get: bool = False
    rewrite: Callable[[FakeInstance], FakeInstance] = lambda instance: instance
    find_status: int | None = None
    study_twice: bool = False
    hidden: set[str] = field(default_factory=set)
    """Instances that are stored, acknowledged, and not found afterwards."""
    classes: tuple[str, ...] | None = None
    syntaxes: tuple[str, ...] = ()
    announce_syntax: bool = True
    announce_class: Callable[[str], str | None] = lambda uid: uid
    any_class: bool = False
    """Private SOP classes are taken too."""
    associations_max: int | None = None


class FakeArchive:
    """Instances by UID, and what was asked of it."""

    def __init__(
        self, instances: Sequence[FakeInstance] = (), faults: Faults | None = None
    ) -> None:
        self.instances = {i.sop_instance_uid: i for i in instances}
        self.faults = faults or Faults()
        self.received: list[str] = []
        """SOP Instance UIDs of C-STORE-RQs, as they came."""
        self.stored: list[str] = []
        """Of those, the ones that were kept."""
        self.sent: list[str] = []
        self.requests: list[str] = []
        """Levels of the C-GETs."""
        self.finds: Counter[str] = Counter()
        self.associations = 0
        self.open = 0
        self.open_max = 0
        self.endings: list[str] = []
        """How each association ended: "released", or the name of the error."""
        self.agreed: list[list[tuple[str, str]]] = []
        """Class and syntax of the contexts of each association, as they were accepted."""
        self._got = 0

    @property
    def digests(self) -> dict[str, bytes]:
        return {uid: instance.sha256 for uid, instance in self.instances.items()}

    # -- services -----------------------------------------------------------------------------------

    def _find(self, _model: QueryModel, identifier: Dataset, _calling: str) -> Iterator[Dataset]:
        level = str(identifier.QueryRetrieveLevel)
        self.finds[level] += 1
        faults = self.faults
        if faults.find_status is not None:
            raise QueryRefused(faults.find_status, "as ordered")
        if faults.strict and level == "IMAGE" and not identifier.get("SeriesInstanceUID"):
            raise QueryRefused(0xA900, "no unique key above IMAGE")
        seen: set[str] = set()
        for instance in list(self.instances.values()):
            if instance.sop_instance_uid in faults.hidden or not _selected(identifier, instance):
                continue
            key = {
                "STUDY": instance.study,
                "SERIES": instance.series,
                "IMAGE": instance.sop_instance_uid,
            }[level]
            if key in seen:
                continue
            seen.add(key)
            match = Dataset()
            match.QueryRetrieveLevel = level
            match.StudyInstanceUID = instance.study
            if level == "STUDY":
                match.StudyDate = instance.date
                match.ModalitiesInStudy = instance.modality
                match.NumberOfStudyRelatedInstances = sum(
                    other.study == instance.study for other in self.instances.values()
                )
                if faults.study_twice:
                    yield match
            if level != "STUDY":
                match.SeriesInstanceUID = instance.series
            if level == "IMAGE":
                match.SOPInstanceUID = instance.sop_instance_uid
                if (announced := faults.announce_class(instance.sop_class_uid)) is not None:
                    match.SOPClassUID = announced
                if faults.announce_syntax:
                    match.AvailableTransferSyntaxUID = instance.transfer_syntax_uid
            yield match

    async def _select(
        self, _model: QueryModel, identifier: Dataset, _calling: str
    ) -> list[FakeInstance]:
        self.requests.append(str(identifier.QueryRetrieveLevel))
        chosen = [
            instance
            for instance in self.instances.values()
            if _selected(identifier, instance)
            and instance.sop_instance_uid not in self.faults.withhold
        ]
        return [_Sending(self, instance) for instance in chosen]  # type: ignore[misc]

    def _sink(self, incoming: IncomingInstance) -> _MemorySink:
        self.received.append(incoming.sop_instance_uid)
        return _MemorySink(self, incoming, len(self.received))

    async def _serve(self, association: Association) -> None:
        self.associations += 1
        accepted = association.agreement.accepted.values()
        self.agreed.append([(c.abstract_syntax, c.transfer_syntax) for c in accepted])
        self.open += 1
        self.open_max = max(self.open_max, self.open)
        try:
            await serve_services(association, self.services())
            self.endings.append("released")
        except Exception as error:
            self.endings.append(type(error).__name__)
            raise
        finally:
            self.open -= 1

    def services(self) -> list[Service]:
        storage = StorageScp(self._sink, transfer_syntaxes=self.faults.syntaxes)
        if self.faults.classes is not None:
            storage._contexts = {c: storage._contexts[c] for c in self.faults.classes}
        services: list[Service] = [VerificationScp(), storage]
        get = GetScp(self._select)
        if self.faults.syntaxes or self.faults.classes is not None:
            # What it takes for storage is then said by the storage service alone.
            get._contexts = {
                c: s for c, s in get._contexts.items() if c not in uids.STORAGE_SOP_CLASSES
            }
        if not self.faults.no_get:
            services.append(get)
        if not self.faults.no_find:
            services.append(FindScp(self._find))
        return services

    @asynccontextmanager
    async def running(self, title: str, timeouts: Timeouts | None = None) -> AsyncIterator[Peer]:
        """Serves during the block."""
        async with trio.open_nursery() as nursery:
            policy = acceptor_policy(
                self.services(), ae_title=title, accept_any_storage=self.faults.any_class
            )
            addresses = await nursery.start(
                lambda task_status: serve_associations(
                    self._serve,
                    policy,
                    host="127.0.0.1",
                    port=0,
                    timeouts=timeouts or Timeouts(),
                    task_status=task_status,
                )
            )
            host, port = addresses[0]
            yield Peer(host=host, port=port, ae_title=title)
            nursery.cancel_scope.cancel()


class _Sending:
    """An instance about to be sent, unless the archive is to die now."""

    def __init__(self, archive: FakeArchive, instance: FakeInstance) -> None:
        self._archive = archive
        self._instance = instance
        self.sop_class_uid = instance.sop_class_uid
        self.sop_instance_uid = instance.sop_instance_uid

    def open(self) -> FakeInstance:
        self._archive._got += 1
        if self._archive.faults.get_abort(self._archive._got):
            raise RemoteProtocolError("the fake archive dies", source=0, reason=0)
        self._archive.sent.append(self._instance.sop_instance_uid)
        return self._instance


class _MemorySink:
    def __init__(self, archive: FakeArchive, incoming: IncomingInstance, number: int) -> None:
        self._archive = archive
        self._incoming = incoming
        self._number = number
        self._parts: list[bytes] = []
        self._length = 0

    async def write(self, data: DatasetSlices) -> None:
        await trio.lowlevel.checkpoint()
        self._parts.append(data.copy_data())
        self._length += data.data_length
        cut = self._archive.faults.store_cut.get(self._number)
        if cut is not None and self._length >= cut:
            raise RemoteProtocolError("the fake archive dies", source=0, reason=0)

    async def commit(self) -> StoreReply:
        faults = self._archive.faults
        await trio.sleep(faults.store_seconds)
        status = faults.store(self._incoming, self._number)
        if status is None or status == 0 or status >> 12 == 0xB:
            self._keep()
        if faults.store_abort(self._number):
            raise RemoteProtocolError("the fake archive dies", source=0, reason=0)
        return StoreReply(status=status or 0)

    def _keep(self) -> None:
        incoming = self._incoming
        data = b"".join(self._parts)
        syntax = incoming.transfer_syntax_uid
        dataset = decode_identifier(data, syntax if syntax in QUERY_SYNTAXES else EXPLICIT)
        self._archive.stored.append(incoming.sop_instance_uid)
        self._archive.instances[incoming.sop_instance_uid] = self._archive.faults.rewrite(
            FakeInstance(
                study=str(dataset.StudyInstanceUID),
                series=str(dataset.SeriesInstanceUID),
                sop_instance_uid=incoming.sop_instance_uid,
                sop_class_uid=incoming.sop_class_uid,
                transfer_syntax_uid=syntax,
                dataset=data,
            )
        )

    def discard(self) -> None:
        self._parts.clear()


def _selected(identifier: Dataset, instance: FakeInstance) -> bool:
    for keyword, value in (
        ("StudyInstanceUID", instance.study),
        ("SeriesInstanceUID", instance.series),
        ("SOPInstanceUID", instance.sop_instance_uid),
        ("StudyDate", instance.date),
    ):
        wanted = identifier.get(keyword)
        if not wanted:
            continue
        values = [str(wanted)] if isinstance(wanted, str) else [str(part) for part in wanted]
        if value not in values:
            return False
    return True
