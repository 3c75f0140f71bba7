"""C-FIND and C-GET with DCMTK's tools as the other end, in both roles."""

from __future__ import annotations

import hashlib
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom
import pydicom.data
import trio
from pydicom.dataset import Dataset

from dcmhaul import uids
from dcmhaul.net import Association, open_association, serve_associations
from dcmhaul.objects.part10 import FileInstance, open_instance
from dcmhaul.protocol.negotiation import AssociationRequest
from dcmhaul.services.identifiers import encode_identifier
from dcmhaul.services.provider import Service, acceptor_policy, serve_services
from dcmhaul.services.query import FindScp, QueryModel, find
from dcmhaul.services.retrieve import GetScp, get, storage_roles
from dcmhaul.services.storage import StorageScp
from dcmhaul.wire.items import PresentationContextRq
from tests.interop import peers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from dcmhaul.net import DatasetSlices
    from dcmhaul.objects.instances import IncomingInstance, StoreReply

HOST = "127.0.0.1"
TEST_FILES = Path(pydicom.data.__file__).parent / "test_files"
FILES = [TEST_FILES / name for name in ("CT_small.dcm", "MR_small.dcm")]


def study_keys(syntax: str, study: str) -> bytes:
    dataset = Dataset()
    dataset.QueryRetrieveLevel = "STUDY"
    dataset.StudyInstanceUID = study
    return encode_identifier(dataset, syntax)


def request(called: str) -> AssociationRequest:
    storage = dict.fromkeys(str(pydicom.dcmread(path).SOPClassUID) for path in FILES)
    pairs = [uids.STUDY_ROOT_FIND, uids.STUDY_ROOT_GET, *storage]
    return AssociationRequest(
        called_ae_title=called,
        calling_ae_title="DCMHAUL",
        contexts=tuple(
            PresentationContextRq(
                context_id=2 * n + 1,
                abstract_syntax=uid,
                transfer_syntaxes=(uids.EXPLICIT_VR_LITTLE_ENDIAN,),
            )
            for n, uid in enumerate(pairs)
        ),
        roles=storage_roles(storage),
    )


class DigestSinks:
    """A SinkFactory that keeps the SHA-256 of each dataset."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}

    def __call__(self, incoming: IncomingInstance) -> Any:
        return _Sink(self, incoming.sop_instance_uid)


class _Sink:
    def __init__(self, owner: DigestSinks, uid: str) -> None:
        self._owner = owner
        self._uid = uid
        self._sha = hashlib.sha256()

    async def write(self, data: DatasetSlices) -> None:
        data.update(self._sha.update)

    async def commit(self) -> StoreReply:
        from dcmhaul.objects.instances import StoreReply

        self._owner.digests[self._uid] = self._sha.hexdigest()
        return StoreReply(status=0x0000)

    def discard(self) -> None:
        pass


async def test_our_scu_with_dcmqrscp(dcmqrscp: peers.Server) -> None:
    study = str(pydicom.dcmread(FILES[0]).StudyInstanceUID)
    await tool("storescu", "-aec", dcmqrscp.aet, dcmqrscp.host, dcmqrscp.port, *FILES)
    sinks = DigestSinks()
    with trio.fail_after(60):
        async with open_association(
            dcmqrscp.host, int(dcmqrscp.port), request(dcmqrscp.aet)
        ) as association:
            async with find(
                association, QueryModel.STUDY_ROOT, partial(study_keys, study="")
            ) as responses:
                *matches, final = [response async for response in responses]
            result = await get(
                association,
                QueryModel.STUDY_ROOT,
                partial(study_keys, study=study),
                StorageScp(sinks).handle,
            )
    assert final.status == 0x0000
    found = {str(match.dataset().StudyInstanceUID) for match in matches}
    assert found == {str(pydicom.dcmread(path).StudyInstanceUID) for path in FILES}
    assert (result.status, result.completed, result.failed) == (0x0000, 1, 0)
    assert list(sinks.digests) == [str(pydicom.dcmread(FILES[0]).SOPInstanceUID)]


@asynccontextmanager
async def our_scp(*asked: Service) -> AsyncIterator[int]:
    services = asked or (FindScp(all_studies), GetScp(all_instances))

    async def handler(association: Association) -> None:
        await serve_services(association, services)

    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[list[tuple[str, int]]]) -> None:
            policy = acceptor_policy(services, ae_title=None)
            await serve_associations(handler, policy, host=HOST, port=0, task_status=task_status)

        ((_, port),) = await nursery.start(serve)
        yield port
        nursery.cancel_scope.cancel()


def all_studies(_model: QueryModel, _asked: Dataset, _calling: str) -> Iterator[Dataset]:
    for path in FILES:
        answer = Dataset()
        answer.QueryRetrieveLevel = "STUDY"
        answer.StudyInstanceUID = pydicom.dcmread(path).StudyInstanceUID
        yield answer


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


async def tool(name: str, *arguments: str | Path | int) -> Any:
    run = partial(peers.run_tool, name, *arguments, nodelay=True, check=True)
    with trio.fail_after(60):
        return await trio.to_thread.run_sync(run)


async def test_findscu_with_our_scp() -> None:
    async with our_scp() as port:
        query = ("-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID")
        done = await tool("findscu", *query, HOST, port)
    for path in FILES:
        assert str(pydicom.dcmread(path).StudyInstanceUID) in done.stdout


async def test_findscu_cancels() -> None:
    async def for_ever(
        _model: QueryModel, _asked: Dataset, _calling: str
    ) -> AsyncIterator[Dataset]:
        while True:
            (answer, *_) = all_studies(_model, _asked, _calling)
            yield answer
            await trio.sleep(0.001)

    async with our_scp(FindScp(for_ever)) as port:
        query = ("-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID")
        done = await tool("findscu", "-d", "-S", "--cancel", "3", *query, HOST, port)
    assert "0xfe00: Cancel" in done.stdout, done.stdout[-1000:]


async def test_getscu_with_our_scp(tmp_path: Path) -> None:
    async with our_scp() as port:
        query = ("-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2")
        await tool("getscu", "-d", *query, "-od", tmp_path, HOST, port)
    received = {str(pydicom.dcmread(path).SOPInstanceUID): path for path in tmp_path.iterdir()}
    assert set(received) == {str(pydicom.dcmread(path).SOPInstanceUID) for path in FILES}
    for path in FILES:
        ours = pydicom.dcmread(path)
        assert pydicom.dcmread(received[str(ours.SOPInstanceUID)]).PixelData == ours.PixelData
