"""Operations cancelled at their Nth step: nothing leaks, no peer hangs, nothing is claimed that is not so."""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager, closing
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from dcmhaul.archive import open_archive
from dcmhaul.engine.planning import GetRequest, retrieve_identifier
from dcmhaul.engine.pool import AssociationPool, PoolPolicy
from dcmhaul.engine.relay import FolderDestination, PeerDestination, RelayOutcome
from dcmhaul.engine.retriever import Retriever
from dcmhaul.engine.sender import FileSender, scan_files
from dcmhaul.errors import DcmhaulError
from dcmhaul.migrate import MigrateOptions, migrate
from dcmhaul.migrate.tables import InstanceState
from dcmhaul.migrate.transfer import get_request, store_request
from dcmhaul.net import Timeouts, open_association, serve_associations
from dcmhaul.objects.instances import BytesInMemory, IncomingInstance
from dcmhaul.objects.paths import Durability
from dcmhaul.objects.sinks import FolderSinks
from dcmhaul.protocol.negotiation import AssociationRequest, plan_contexts
from dcmhaul.services.identifiers import encode_identifier
from dcmhaul.services.provider import acceptor_policy, serve_services
from dcmhaul.services.query import QueryModel
from dcmhaul.services.retrieve import get
from dcmhaul.services.storage import StorageScp, StorageScu, StoreOutcome
from tests.cancelling import CancelAt, cancelled_at, descriptors, steps
from tests.engine.fake_archive import CT, EXPLICIT, FakeArchive, FakeInstance, make_instance

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from dcmhaul.net import Association
    from dcmhaul.services.provider import Service

STUDY = "1.2.3.1"
PAIRS = ((CT, EXPLICIT),)
# The third one fills the buffers of a connection, so that it can be cut while it is on its way.
SIZES = (100, 3000, 5_000_000, 70_000, 100)
QUICK = Timeouts(release=2.0)


def instances(study: str = STUDY, sizes: tuple[int, ...] = SIZES) -> list[FakeInstance]:
    return [make_instance(n, study=study, size=size) for n, size in enumerate(sizes)]


async def gone(*archives: FakeArchive) -> None:
    """Every association of these has ended: by release, by A-ABORT, or by a lost connection."""
    with trio.fail_after(10):
        while any(archive.open for archive in archives):
            await trio.sleep(0.001)


def whole_files(folder: Path, expected: dict[str, bytes]) -> set[str]:
    """The UIDs of the files in a folder, each of which is whole; there is no other file."""
    found = set()
    for path in folder.iterdir():
        uid = path.name.removesuffix(".dcm")
        assert path.read_bytes().endswith(expected[uid])
        found.add(uid)
    return found


async def every_step(
    run: Callable[[int], Awaitable[bool]], *, dense: int = 120, stride: int = 7
) -> None:
    """Runs it at each step, until it completes; descriptors are as before after each."""
    await run(1 << 30)  # whatever is opened once is open now
    before = descriptors()
    for step in steps(dense, stride):
        completed = await run(step)
        with trio.fail_after(10):
            while descriptors() > before:
                await trio.sleep(0.001)
        if completed:
            assert step > 10  # it was cancelled at several places before it got through
            return
    pytest.fail("it never completed")


# -- sending


async def test_send(tmp_path: Path) -> None:
    """Files of every size, over two associations; none stays open, and no association is left behind."""
    folder = tmp_path / "out"
    with FolderSinks(folder, durable=Durability.NONE) as sinks:
        for instance in instances():
            await file_away(sinks, instance)
    new = FakeArchive()
    async with new.running("NEW") as destination:

        async def run(step: int) -> bool:
            outcomes: list[StoreOutcome] = []
            entries: list[Any] = []
            new.stored.clear()

            async def operation() -> None:
                pool = AssociationPool(
                    destination.host, destination.port, policy=PoolPolicy(size=2), timeouts=QUICK
                )
                plan = await scan_files([folder], recursive=False, report=entries.append)
                [group] = plan.groups()
                sender = FileSender(
                    pool,
                    window=2,
                    report=outcomes.append,
                    report_entry=entries.append,
                    opened=lambda _association: None,
                )
                request = AssociationRequest(
                    called_ae_title="NEW",
                    calling_ae_title="HERE",
                    contexts=group.contexts,
                    window=2,
                )
                await sender.send(group, request)

            with trio.fail_after(20):
                completed = await cancelled_at(step, operation)
            await gone(new)
            # What was not acknowledged may have arrived; what was acknowledged has.
            assert {o.instance.sop_instance_uid for o in outcomes if o.status == 0} <= {*new.stored}
            assert entries == []
            assert not completed or len(outcomes) == len(SIZES)
            return completed

        await every_step(run)


async def file_away(sinks: FolderSinks, instance: FakeInstance) -> None:
    sink = sinks(
        IncomingInstance(
            sop_class_uid=instance.sop_class_uid,
            sop_instance_uid=instance.sop_instance_uid,
            transfer_syntax_uid=instance.transfer_syntax_uid,
            calling_ae_title="",
            called_ae_title="",
            peer="",
        )
    )
    await sink.write(BytesInMemory(instance.dataset))
    assert (await sink.commit()).status == 0


# -- receiving


@asynccontextmanager
async def storing(kind: str, folder: Path) -> AsyncIterator[list[Service]]:
    if kind == "folder":
        with FolderSinks(folder, durable=Durability.BATCH) as sinks:
            yield [StorageScp(sinks)]
    else:
        async with open_archive(folder, durability=Durability.BATCH) as archive:
            yield archive.services()


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("kind", ["folder", "archive"])
async def test_receive(tmp_path: Path, kind: str, window: int) -> None:
    """What was acknowledged before is there, whole; nothing else is, but what was about to be."""
    objects = instances()
    datasets = {i.sop_instance_uid: i.dataset for i in objects}
    number = 0

    async def run(step: int) -> bool:
        nonlocal number
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        cancel = CancelAt(step)
        ended = trio.Event()
        outcomes: list[StoreOutcome] = []

        async def handler(association: Association) -> None:
            cancel.arm()
            try:
                with cancel.scope:
                    await serve_services(association, services)
            finally:
                cancel.disarm()
                ended.set()

        trio.lowlevel.add_instrument(cancel)
        try:
            async with storing(kind, folder) as services, trio.open_nursery() as nursery:
                [(host, port)] = await nursery.start(
                    partial(
                        serve_associations,
                        handler,
                        acceptor_policy(services, ae_title=None),
                        host="127.0.0.1",
                    )
                )
                await send(host, port, objects, outcomes, window)
                with trio.fail_after(10):
                    await ended.wait()
                nursery.cancel_scope.cancel()
        finally:
            trio.lowlevel.remove_instrument(cancel)
        acknowledged = {o.instance.sop_instance_uid for o in outcomes if o.status == 0}
        if kind == "folder":
            assert acknowledged <= whole_files(folder, datasets)
        else:
            assert list((folder / "tmp").iterdir()) == []
            async with open_archive(folder) as again:
                assert again.recovery.lines() == []
                holds = again.statistics().holds
                found = [path.read_bytes() for path in (folder / "objects").rglob("*.dcm")]
                assert holds.instances == len(found)
                for uid in acknowledged:
                    assert any(data.endswith(datasets[uid]) for data in found)
        if not cancel.cancelled:
            assert len(acknowledged) == len(objects)
        return not cancel.cancelled

    await every_step(run, dense=60, stride=3)


async def send(
    host: str, port: int, objects: list[FakeInstance], outcomes: list[StoreOutcome], window: int
) -> None:
    waiting = iter(objects)

    async def take() -> Any:
        return next(waiting, None)

    request = AssociationRequest(
        called_ae_title="THERE",
        calling_ae_title="HERE",
        contexts=plan_contexts(PAIRS)[0],
        window=window,
    )
    with trio.fail_after(20):
        try:
            async with open_association(host, port, request, timeouts=QUICK) as association:
                await StorageScu(association).run(take, outcomes.append)
        except DcmhaulError:
            pass  # the receiver was cancelled


# -- retrieving


IDENTIFIER = partial(encode_identifier, retrieve_identifier(GetRequest(study_instance_uid=STUDY)))


def options(**fields: Any) -> MigrateOptions:
    base: dict[str, Any] = {"ledger_url": "", "source": None, "destination": None, "window": 4}
    return MigrateOptions(**base | fields)


async def test_get(tmp_path: Path) -> None:
    old = FakeArchive(instances())
    datasets = {uid: i.dataset for uid, i in old.instances.items()}
    number = 0
    async with old.running("OLD") as source:

        async def run(step: int) -> bool:
            nonlocal number
            number += 1
            folder = tmp_path / str(number)

            async def operation() -> None:
                async with open_association(
                    source.host, source.port, get_request("OLD", options(), PAIRS), timeouts=QUICK
                ) as association:
                    handle = StorageScp(sinks).handle
                    response = await get(association, QueryModel.STUDY_ROOT, IDENTIFIER, handle)
                    assert response.status == 0

            with trio.fail_after(20), FolderSinks(folder, durable=Durability.BATCH) as sinks:
                completed = await cancelled_at(step, operation)
            await gone(old)
            found = whole_files(folder, datasets)
            assert len(found) == sinks.stored
            assert not completed or len(found) == len(SIZES)
            return completed

        await every_step(run)


# -- relaying


async def relayed(
    source: Any, destination: Any, new: FakeArchive, outcomes: list[RelayOutcome]
) -> None:
    settings = options(source=source, destination=destination)
    async with open_association(
        destination.host,
        destination.port,
        store_request("NEW", settings, PAIRS),
        timeouts=QUICK,
    ) as outgoing:
        async with (
            PeerDestination.started(outgoing, outcomes.append, window=4) as forwarding,
            open_association(
                source.host, source.port, get_request("OLD", settings, PAIRS), timeouts=QUICK
            ) as incoming,
        ):
            result = await Retriever(incoming, forwarding).retrieve(IDENTIFIER)
            assert result.status == 0


async def test_relay() -> None:
    old, new = FakeArchive(instances()), FakeArchive()
    async with old.running("OLD") as source, new.running("NEW") as destination:

        async def run(step: int) -> bool:
            new.stored.clear()
            new.instances.clear()
            new.received.clear()
            outcomes: list[RelayOutcome] = []
            with trio.fail_after(20):
                completed = await cancelled_at(
                    step, partial(relayed, source, destination, new, outcomes)
                )
            await gone(old, new)
            reported = [outcome.sop_instance_uid for outcome in outcomes]
            assert len(set(reported)) == len(reported)
            # What the destination took is what was reported as stored, or else as unknown.
            acknowledged = {o.sop_instance_uid for o in outcomes if o.status == 0}
            unknown = {o.sop_instance_uid for o in outcomes if o.unknown}
            assert acknowledged <= set(new.stored) <= acknowledged | unknown
            assert all(new.digests[uid] == old.digests[uid] for uid in new.stored)
            assert not completed or len(acknowledged) == len(SIZES)
            return completed

        await every_step(run)


async def test_relay_into_a_folder(tmp_path: Path) -> None:
    old = FakeArchive(instances())
    datasets = {uid: i.dataset for uid, i in old.instances.items()}
    number = 0
    async with old.running("OLD") as source:

        async def run(step: int) -> bool:
            nonlocal number
            number += 1
            folder = tmp_path / str(number)
            outcomes: list[RelayOutcome] = []

            async def operation() -> None:
                async with open_association(
                    source.host, source.port, get_request("OLD", options(), PAIRS), timeouts=QUICK
                ) as association:
                    filing = FolderDestination(sinks, outcomes.append)
                    await Retriever(association, filing).retrieve(IDENTIFIER)

            with trio.fail_after(20), FolderSinks(folder, durable=Durability.BATCH) as sinks:
                completed = await cancelled_at(step, operation)
            await gone(old)
            found = whole_files(folder, datasets)
            assert {o.sop_instance_uid for o in outcomes if o.status == 0} <= found
            return completed

        await every_step(run)


# -- migrating


def in_ledger(path: Path, state: InstanceState) -> set[str]:
    if not path.exists():
        return set()
    with closing(sqlite3.connect(path)) as plain:
        try:
            rows = plain.execute("SELECT sop_uid FROM instance WHERE state = ?", (state,))
            return {row[0] for row in rows}
        except sqlite3.OperationalError:  # cancelled before the tables were made
            return set()


async def test_migrate(tmp_path: Path) -> None:
    """The ledger claims nothing that the destination does not hold, and the next run completes it."""
    sizes = (100, 200_000, 3000)
    objects = [i for study in ("1.2.3.1", "1.2.3.2") for i in instances(study, sizes)]
    number = 0

    async def run(step: int) -> bool:
        nonlocal number
        number += 1
        ledger = tmp_path / f"{number}.db"
        old, new = FakeArchive(objects), FakeArchive()
        async with old.running("OLD") as source, new.running("NEW") as destination:
            settings = options(
                source=source,
                destination=destination,
                ledger_url=f"sqlite:///{ledger}",
                job="job",
                associations=2,
                timeouts=QUICK,
            )
            with trio.fail_after(30):
                completed = await cancelled_at(step, partial(migrate, settings))
            await gone(old, new)
            known = in_ledger(ledger, InstanceState.ACKED)
            kept = set(new.stored)
            assert known <= kept
            sent_before = len(new.received)
            with trio.fail_after(30):
                summary = await migrate(settings)
            assert (summary.exit_code, summary.failed, summary.pending) == (0, 0, 0)
            assert new.digests == old.digests
            assert not kept.intersection(new.received[sent_before:])
            await gone(old, new)
        return completed

    await every_step(run, dense=50, stride=23)
