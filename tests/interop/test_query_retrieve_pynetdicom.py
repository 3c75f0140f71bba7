"""C-FIND and C-GET with pynetdicom as the other end, in both roles; its blocking side runs in threads."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom
import pydicom.data
import pytest
import trio
from pydicom.dataset import Dataset
from pynetdicom import AE, build_context, build_role, evt

from dcmhaul import uids
from dcmhaul.net import Association, open_association, serve_associations
from dcmhaul.objects.part10 import FileInstance, open_instance
from dcmhaul.protocol.negotiation import AssociationRequest
from dcmhaul.services.identifiers import encode_identifier
from dcmhaul.services.provider import acceptor_policy, serve_services
from dcmhaul.services.query import FindScp, QueryModel, QueryRefused, find
from dcmhaul.services.retrieve import GetScp, get, storage_roles
from dcmhaul.services.storage import StorageScp
from dcmhaul.wire.items import PresentationContextRq
from tests.interop import peers
from tests.interop.peers import require

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from dcmhaul.net import DatasetSlices
    from dcmhaul.objects.instances import IncomingInstance

HOST = "127.0.0.1"
TEST_FILES = Path(pydicom.data.__file__).parent / "test_files"
FILES = [TEST_FILES / name for name in ("CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm")]


@pytest.fixture(autouse=True)
def _peer() -> None:
    require("pynetdicom")


def headers() -> list[Dataset]:
    return [pydicom.dcmread(path, stop_before_pixels=True) for path in FILES]


def wanted(syntax: str, **values: Any) -> bytes:
    dataset = Dataset()
    dataset.QueryRetrieveLevel = "STUDY"
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return encode_identifier(dataset, syntax)


def dataset_bytes(path: Path) -> bytes:
    instance = open_instance(path)
    try:
        offset = path.stat().st_size - instance.length
        return path.read_bytes()[offset:]
    finally:
        instance.close()


# -- pynetdicom is the SCP


@contextmanager
def pynetdicom_scp(find_handler: Any, get_handler: Any) -> Iterator[int]:
    ae = AE(ae_title="PYNET")
    for uid in (uids.STUDY_ROOT_FIND, uids.STUDY_ROOT_GET):
        ae.add_supported_context(uid)
    for header in headers():
        ae.add_supported_context(
            header.SOPClassUID, header.file_meta.TransferSyntaxUID, scu_role=True, scp_role=True
        )
    handlers = (evt.EVT_C_FIND, find_handler), (evt.EVT_C_GET, get_handler)
    with peers.pynetdicom_serving(ae, *handlers) as address:
        yield int(address.rpartition(":")[2])


def our_request() -> AssociationRequest:
    pairs = [
        (uids.STUDY_ROOT_FIND, uids.EXPLICIT_VR_LITTLE_ENDIAN),
        (uids.STUDY_ROOT_GET, uids.IMPLICIT_VR_LITTLE_ENDIAN),
        *dict.fromkeys((str(h.SOPClassUID), str(h.file_meta.TransferSyntaxUID)) for h in headers()),
    ]
    return AssociationRequest(
        called_ae_title="PYNET",
        calling_ae_title="DCMHAUL",
        contexts=tuple(
            PresentationContextRq(
                context_id=2 * n + 1, abstract_syntax=uid, transfer_syntaxes=(syntax,)
            )
            for n, (uid, syntax) in enumerate(pairs)
        ),
        roles=storage_roles(uid for uid, _ in pairs[2:]),
    )


def answer_find(event: Any) -> Iterator[tuple[int, Dataset | None]]:
    for header in headers():
        answer = Dataset()
        answer.QueryRetrieveLevel = event.identifier.QueryRetrieveLevel
        answer.StudyInstanceUID = header.StudyInstanceUID
        yield 0xFF00, answer


def answer_find_for_ever(event: Any) -> Iterator[tuple[int, Dataset | None]]:
    while not event.is_cancelled:
        yield next(answer_find(event))
    yield 0xFE00, None


# pydicom cannot read encapsulated pixels under `python -bb`; our own side passes them through.
READABLE = FILES[:2]


def answer_get(_event: Any) -> Iterator[Any]:
    yield len(READABLE)
    for path in READABLE:
        yield 0xFF00, pydicom.dcmread(path)


class Kept:
    def __init__(self) -> None:
        self.instances: dict[str, tuple[str, bytes]] = {}

    def __call__(self, incoming: IncomingInstance) -> Any:
        return _KeptSink(self, incoming)


class _KeptSink:
    def __init__(self, owner: Kept, incoming: IncomingInstance) -> None:
        self._owner = owner
        self._incoming = incoming
        self._parts: list[bytes] = []

    async def write(self, data: DatasetSlices) -> None:
        self._parts.append(data.copy_data())

    async def commit(self) -> Any:
        from dcmhaul.objects.instances import StoreReply

        uid = self._incoming.sop_instance_uid
        syntax = self._incoming.transfer_syntax_uid
        self._owner.instances[uid] = syntax, b"".join(self._parts)
        return StoreReply(status=0x0000)

    def discard(self) -> None:
        pass


async def test_our_find_scu() -> None:
    identifier = partial(wanted, StudyInstanceUID="", PatientName="")
    with pynetdicom_scp(answer_find, answer_get) as port, trio.fail_after(30):
        async with (
            open_association(HOST, port, our_request()) as association,
            find(association, QueryModel.STUDY_ROOT, identifier) as responses,
        ):
            *matches, final = [response async for response in responses]
    assert final.status == 0x0000
    assert [m.dataset().StudyInstanceUID for m in matches] == [
        header.StudyInstanceUID for header in headers()
    ]


async def test_our_find_scu_cancels() -> None:
    identifier = partial(wanted, StudyInstanceUID="")
    with pynetdicom_scp(answer_find_for_ever, answer_get) as port, trio.fail_after(30):
        async with (
            open_association(HOST, port, our_request()) as association,
            find(association, QueryModel.STUDY_ROOT, identifier, cancel_after=3) as responses,
        ):
            *matches, final = [response async for response in responses]
    assert final.status == 0xFE00
    assert len(matches) >= 3


async def test_our_get_scu() -> None:
    kept = Kept()
    pending: list[Any] = []
    with pynetdicom_scp(answer_find, answer_get) as port, trio.fail_after(30):
        async with open_association(HOST, port, our_request()) as association:
            result = await get(
                association,
                QueryModel.STUDY_ROOT,
                partial(wanted, StudyInstanceUID=""),
                StorageScp(kept).handle,
                on_pending=pending.append,
            )
    assert (result.status, result.completed, result.failed) == (0x0000, len(READABLE), 0)
    assert len(pending) == len(READABLE)
    for path, header in zip(READABLE, headers(), strict=False):
        syntax, data = kept.instances[header.SOPInstanceUID]
        assert syntax == header.file_meta.TransferSyntaxUID
        # pynetdicom writes the dataset anew; the elements are what must be the same
        kind = pydicom.uid.UID(syntax)
        again = pydicom.filereader.read_dataset(
            BytesIO(data), kind.is_implicit_VR, kind.is_little_endian
        )
        ours = pydicom.dcmread(path)
        assert again.PixelData == ours.PixelData
        assert again.SOPInstanceUID == ours.SOPInstanceUID


# -- pynetdicom is the SCU


@asynccontextmanager
async def our_scp(*services: Any) -> AsyncIterator[int]:
    async def handler(association: Association) -> None:
        await serve_services(association, services)

    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[list[tuple[str, int]]]) -> None:
            policy = acceptor_policy(services, ae_title=None)
            await serve_associations(handler, policy, host=HOST, port=0, task_status=task_status)

        ((_, port),) = await nursery.start(serve)
        yield port
        nursery.cancel_scope.cancel()


async def in_thread(act: Callable[[], Any]) -> Any:
    with trio.fail_after(60):
        return await trio.to_thread.run_sync(act)


def associate(port: int, *, roles: bool = True, handlers: Any = ()) -> Any:
    ae = AE(ae_title="PYNET")
    contexts = [build_context(uids.STUDY_ROOT_FIND), build_context(uids.STUDY_ROOT_GET)]
    negotiation = []
    for header in headers():
        contexts.append(build_context(header.SOPClassUID, header.file_meta.TransferSyntaxUID))
        if roles:
            negotiation.append(build_role(header.SOPClassUID, scp_role=True))
    association = ae.associate(
        HOST,
        port,
        contexts=contexts,
        ext_neg=list({item.sop_class_uid: item for item in negotiation}.values()),
        evt_handlers=list(handlers),
    )
    assert association.is_established
    return association


def identifier(**values: Any) -> Dataset:
    dataset = Dataset()
    dataset.QueryRetrieveLevel = "STUDY"
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def all_studies(_model: QueryModel, asked: Dataset, calling: str) -> Iterator[Dataset]:
    if calling != "PYNET" or "StudyInstanceUID" not in asked:
        raise QueryRefused(0xA900, "no StudyInstanceUID among the keys")
    for header in headers():
        yield identifier(StudyInstanceUID=header.StudyInstanceUID)


class OnDisk:
    """A StoredInstance; `part10` opens it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        header = pydicom.dcmread(path, stop_before_pixels=True)
        self.sop_class_uid = str(header.SOPClassUID)
        self.sop_instance_uid = str(header.SOPInstanceUID)
        self.transfer_syntax_uid = str(header.file_meta.TransferSyntaxUID)

    def open(self) -> FileInstance:
        return open_instance(self._path)


async def all_instances(_model: QueryModel, _asked: Dataset, _calling: str) -> list[OnDisk]:
    return [OnDisk(path) for path in FILES]


async def test_our_find_scp() -> None:
    def ask(port: int) -> tuple[list[int], list[str], int]:
        association = associate(port)
        model = uids.STUDY_ROOT_FIND
        answers = list(association.send_c_find(identifier(StudyInstanceUID=""), model))
        refused = [s.Status for s, _ in association.send_c_find(identifier(PatientID=""), model)]
        association.release()
        found = [str(d.StudyInstanceUID) for _, d in answers if d is not None]
        return [status.Status for status, _ in answers], found, refused[0]

    async with our_scp(FindScp(all_studies)) as port:
        statuses, found, refused = await in_thread(partial(ask, port))
    assert statuses == [0xFF00] * len(FILES) + [0x0000]
    assert found == [header.StudyInstanceUID for header in headers()]
    assert refused == 0xA900


async def test_our_find_scp_heeds_a_cancel() -> None:
    async def answer(_model: QueryModel, _asked: Dataset, _calling: str) -> AsyncIterator[Dataset]:
        while True:
            yield identifier(StudyInstanceUID="1.2", PatientName="x" * 60)
            await trio.sleep(0.001)

    def ask(port: int) -> int:
        association = associate(port)
        model = uids.STUDY_ROOT_FIND
        last = 0
        for n, (status, _) in enumerate(
            association.send_c_find(identifier(StudyInstanceUID=""), model, msg_id=7)
        ):
            last = status.Status
            if n == 5:
                association.send_c_cancel(7, query_model=model)
        association.release()
        return last

    async with our_scp(FindScp(answer)) as port:
        assert await in_thread(partial(ask, port)) == 0xFE00


async def test_our_get_scp() -> None:
    received: dict[str, bytes] = {}

    def keep(event: Any) -> int:
        received[str(event.request.AffectedSOPInstanceUID)] = event.request.DataSet.getvalue()
        return 0x0000

    def ask(port: int) -> Any:
        association = associate(port, handlers=[(evt.EVT_C_STORE, keep)])
        answers = list(association.send_c_get(identifier(StudyInstanceUID=""), uids.STUDY_ROOT_GET))
        association.release()
        return answers[-1][0]

    async with our_scp(GetScp(all_instances)) as port:
        final = await in_thread(partial(ask, port))
    assert final.Status == 0x0000
    assert final.NumberOfCompletedSuboperations == len(FILES)
    expected = {
        str(header.SOPInstanceUID): dataset_bytes(path)
        for path, header in zip(FILES, headers(), strict=True)
    }
    assert received == expected  # byte for byte


async def test_our_get_scp_heeds_a_cancel() -> None:
    received: list[str] = []

    def keep(event: Any) -> int:
        received.append(str(event.request.AffectedSOPInstanceUID))
        if len(received) == 1:
            event.assoc.send_c_cancel(7, query_model=uids.STUDY_ROOT_GET)
        return 0x0000

    async def many(_model: QueryModel, _asked: Dataset, _calling: str) -> list[OnDisk]:
        return [OnDisk(FILES[0])] * 100

    def ask(port: int) -> Any:
        association = associate(port, handlers=[(evt.EVT_C_STORE, keep)])
        wanted = identifier(StudyInstanceUID="")
        answers = list(association.send_c_get(wanted, uids.STUDY_ROOT_GET, msg_id=7))
        association.release()
        return answers[-1][0]

    async with our_scp(GetScp(many)) as port:
        final = await in_thread(partial(ask, port))
    assert final.Status == 0xFE00
    assert final.NumberOfCompletedSuboperations == len(received) < 100
    assert final.NumberOfRemainingSuboperations == 100 - len(received)


async def test_our_get_scp_without_the_role() -> None:
    def ask(port: int) -> Any:
        association = associate(port, roles=False)
        answers = list(association.send_c_get(identifier(StudyInstanceUID=""), uids.STUDY_ROOT_GET))
        association.release()
        return answers[-1]

    async with our_scp(GetScp(all_instances)) as port:
        status, failed = await in_thread(partial(ask, port))
    assert status.Status == 0xA702
    assert status.NumberOfFailedSuboperations == len(FILES)
    assert list(failed.FailedSOPInstanceUIDList) == [str(h.SOPInstanceUID) for h in headers()]
