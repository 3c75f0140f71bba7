"""A migration relayed between real peers, and to real peers that refuse, stall or abort."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from pydicom import Dataset
from pynetdicom import AE, AllStoragePresentationContexts, evt

from dcmhaul.config import Configuration, Peer, parse_peer
from dcmhaul.engine.relay import PeerDestination
from dcmhaul.engine.retry import RetryPolicy
from dcmhaul.errors import AssociationRejected
from dcmhaul.migrate import MigrateOptions, MigrationSummary, migrate
from dcmhaul.net import Timeouts
from dcmhaul.objects.synth import write_studies
from dcmhaul.uids import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_LITTLE_ENDIAN
from tests.engine.fake_archive import FakeArchive, make_instance
from tests.interop import peers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STUDIES, INSTANCES = 2, 4
TOTAL = STUDIES * INSTANCES


@pytest.fixture(autouse=True)
def _ready(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Retries follow at once: how long they wait is tested elsewhere."""
    (tmp_path / "in").mkdir()
    monkeypatch.setattr("dcmhaul.migrate.run.RetryPolicy", lambda: RetryPolicy(delay_seconds=0.01))


def source(size: int = 300_000) -> FakeArchive:
    return FakeArchive(
        [
            make_instance(n, study=f"1.2.3.{study}", size=size)
            for study in range(1, STUDIES + 1)
            for n in range(INSTANCES)
        ]
    )


def there(server: peers.Server) -> Peer:
    return Peer(host=server.host, port=server.port, ae_title=server.aet)


async def moved(
    tmp_path: Path, old: FakeArchive, server: peers.Server | Peer, **options: Any
) -> MigrationSummary:
    async with old.running("OLD") as peer:
        fields: dict[str, Any] = {"verify": "none", "associations": 1, "window": 4, **options}
        settings = MigrateOptions(
            source=peer,
            destination=server if isinstance(server, Peer) else there(server),
            ledger_url=f"sqlite:///{tmp_path}/ledger.db",
            job="job",
            **fields,
        )
        with trio.fail_after(120):
            return await migrate(settings)


# -- DCMTK


@pytest.mark.parametrize("size", [1, 16_001, 300_000])
@pytest.mark.parametrize("pdu", [4096, 131072])
async def test_to_storescp(tmp_path: Path, pdu: int, size: int) -> None:
    old = source(size)
    with peers.storescp(tmp_path / "in", pdu=pdu, fork=True) as server:
        summary = await moved(tmp_path, old, server, associations=2, pdu_length_max=7777)
    assert (summary.instances, summary.failed) == (TOTAL, 0)
    stored = [path.read_bytes() for path in (tmp_path / "in").iterdir()]
    assert len(stored) == TOTAL
    for instance in old.instances.values():
        assert any(data.endswith(instance.dataset) for data in stored)


async def test_to_a_storescp_that_aborts_within_every_object(tmp_path: Path) -> None:
    """Nothing is stored, each instance is named with its reason, and it ends."""
    old = source()
    with peers.storescp(tmp_path / "in", fork=True, extra=["--abort-during"]) as server:
        summary = await moved(tmp_path, old, server)
    assert (summary.instances, summary.failed, summary.exit_code) == (0, TOTAL, 5)
    assert len(summary.failures) == TOTAL
    assert all("abort" in failure.reason for failure in summary.failures)


async def test_to_a_storescp_that_refuses_the_association(tmp_path: Path) -> None:
    old = source()
    with peers.storescp(tmp_path / "in", fork=True, extra=["--refuse"]) as server:
        with pytest.raises(ExceptionGroup) as caught:
            await moved(tmp_path, old, server)
    assert caught.group_contains(AssociationRejected)
    assert old.sent == []


async def test_to_a_storescp_that_answers_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source hears A700 after a moment; the destination's answer counts, and nothing goes twice."""
    hasty = partial(PeerDestination.started, answer_seconds=0.2)
    monkeypatch.setattr(PeerDestination, "started", hasty)
    old = source(1000)
    with peers.storescp(tmp_path / "in", fork=True, extra=["--sleep-after", "1"]) as server:
        summary = await moved(tmp_path, old, server)
    assert (summary.instances, summary.failed) == (TOTAL, 0)
    assert len(list((tmp_path / "in").iterdir())) == TOTAL
    assert sorted(old.sent) == sorted(old.instances)


async def test_to_a_storescp_that_takes_too_long(tmp_path: Path) -> None:
    """It sleeps after each object, longer than we wait for the next answer: aborted, and tried again."""
    old = source(1000)
    with peers.storescp(tmp_path / "in", fork=True, extra=["--sleep-after", "1"]) as server:
        summary = await moved(tmp_path, old, server, timeouts=Timeouts(dimse=0.3, release=0.3))
    assert (summary.instances, summary.failed) == (TOTAL, 0)
    assert len(list((tmp_path / "in").iterdir())) == TOTAL


async def test_contexts_that_storescp_does_not_take(tmp_path: Path) -> None:
    """+xi takes implicit VR alone: what is in another syntax has failed, by name, and never left."""
    old = FakeArchive(
        [
            make_instance(0, syntax="1.2.840.10008.1.2"),
            make_instance(1, syntax=EXPLICIT_VR_LITTLE_ENDIAN),
            make_instance(2, syntax=DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN),
        ]
    )
    with peers.storescp(tmp_path / "in", fork=True, extra=["+xi"]) as server:
        summary = await moved(tmp_path, old, server)
    assert (summary.instances, summary.failed, summary.exit_code) == (1, 2, 6)
    assert all("no presentation context" in failure.reason for failure in summary.failures)
    assert old.sent == [f"1.2.3.1.9.{0}"]


# -- dcmqrscp


@pytest.mark.parametrize(("modality", "instances"), [("CT", 3), ("MR\\US", 2), ("XA", 0)])
async def test_a_modality_that_the_source_does_not_match(
    modality: str, instances: int, tmp_path: Path
) -> None:
    """dcmqrscp passes over ModalitiesInStudy: every study is a match."""
    write_studies(tmp_path / "out", 1, 1, 3, modality="CT", rows=64, columns=64, seed="ct")
    write_studies(tmp_path / "out", 1, 1, 2, modality="MR", rows=64, columns=64, seed="mr")
    keys = Dataset()
    keys.ModalitiesInStudy = modality
    with peers.dcmqrscp(tmp_path / "old") as server:
        # Associations at the same time mix up its index, and it gives back wrong objects.
        fields: dict[str, Any] = {
            "ledger_url": f"sqlite:///{tmp_path}/ledger.db",
            "associations": 1,
        }
        with trio.fail_after(60):
            for source, target, filtered in (
                (tmp_path / "out", there(server), Dataset()),
                (there(server), tmp_path / "new", keys),
            ):
                summary = await migrate(
                    MigrateOptions(source=source, destination=target, filter=filtered, **fields)
                )
    assert summary.instances == instances
    assert summary.exit_code == (0 if instances else 4)


# -- Orthanc


async def test_from_orthanc_to_orthanc(tmp_path: Path) -> None:
    write_studies(tmp_path / "out", STUDIES, 1, INSTANCES, rows=64, columns=64)
    with (
        peers.orthanc(tmp_path / "first", aet="FIRST") as first,
        peers.orthanc(tmp_path / "second", aet="SECOND") as second,
    ):
        sides = [there(first), there(second)]
        fields: dict[str, Any] = {"ledger_url": f"sqlite:///{tmp_path}/ledger.db"}
        with trio.fail_after(120):
            filled = await migrate(
                MigrateOptions(source=tmp_path / "out", destination=sides[0], job="fill", **fields)
            )
            summary = await migrate(
                MigrateOptions(source=sides[0], destination=sides[1], job="move", **fields)
            )
            again = await migrate(
                MigrateOptions(source=sides[0], destination=sides[1], job="move", **fields)
            )
    assert (filled.instances, filled.exit_code) == (TOTAL, 0)
    assert (summary.instances, summary.failed, summary.exit_code) == (TOTAL, 0, 0)
    assert (again.instances, again.already, again.exit_code) == (0, TOTAL, 0)


# -- pynetdicom


@contextmanager
def pynetdicom(store: Callable[[Any], int]) -> Iterator[Peer]:
    peers.require("pynetdicom")
    ae = AE(ae_title="PYNET")
    ae.supported_contexts = AllStoragePresentationContexts
    with peers.pynetdicom_serving(ae, (evt.EVT_C_STORE, store)) as address:
        yield parse_peer(address, Configuration())


@pytest.mark.parametrize(
    ("status", "exit_code", "times"),
    [(0xA700, 5, 3), (0xA900, 6, 2), (0xC001, 6, 2), (0x0122, 6, 1)],
)
async def test_to_a_pynetdicom_that_refuses_one(
    tmp_path: Path, status: int, exit_code: int, times: int
) -> None:
    seen: list[str] = []

    def store(event: Any) -> int:
        seen.append(str(event.request.AffectedSOPInstanceUID))
        return status if seen[-1].endswith("1.9.2") else 0x0000

    old = source(1000)
    with pynetdicom(store) as server:
        summary = await moved(tmp_path, old, server)
    assert (summary.instances, summary.failed, summary.exit_code) == (TOTAL - 1, 1, exit_code)
    assert [failure.status for failure in summary.failures] == [status]
    assert sorted(seen) == sorted([*old.instances, *["1.2.3.1.9.2"] * (times - 1)])


async def test_to_a_pynetdicom_that_warns(tmp_path: Path) -> None:
    old = source(1000)
    with pynetdicom(lambda _event: 0xB000) as server:
        summary = await moved(tmp_path, old, server)
    assert (summary.instances, summary.failed, summary.exit_code) == (TOTAL, 0, 0)


async def test_to_a_pynetdicom_that_aborts_now_and_then(tmp_path: Path) -> None:
    """It cannot be asked what it holds, so what was unanswered goes again."""
    seen: list[str] = []

    def store(event: Any) -> int:
        seen.append(str(event.request.AffectedSOPInstanceUID))
        if len(seen) in (2, 5):
            event.assoc.abort()
        return 0x0000

    old = source(100_000)
    with pynetdicom(store) as server:
        summary = await moved(tmp_path, old, server)
    assert (summary.instances, summary.failed, summary.exit_code) == (TOTAL, 0, 0)
    assert set(seen) == set(old.instances)
