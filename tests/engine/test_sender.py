"""Files over associations: the plan, and what is left when an association breaks."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import trio

from dcmhaul.engine.pool import AssociationPool, PoolPolicy
from dcmhaul.engine.sender import FileSender, SendPlan, scan_files
from dcmhaul.errors import AssociationAborted, NoAcceptedContext, TransportError
from dcmhaul.net import serve_associations
from dcmhaul.objects.synth import write_studies
from dcmhaul.protocol.negotiation import AcceptorPolicy, AssociationRequest
from dcmhaul.services.provider import acceptor_policy, serve_services
from dcmhaul.services.storage import StorageScp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from dcmhaul.engine.sender import SendGroup
    from dcmhaul.net import Association
    from dcmhaul.objects.sources import FailedEntry, SkippedEntry
    from dcmhaul.services.storage import StoreOutcome

EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"


def test_a_plan_keeps_the_order_of_the_files() -> None:
    plan = SendPlan()
    for path, syntax in (("a", EXPLICIT), ("b", IMPLICIT), ("c", EXPLICIT)):
        plan.add(path, "1.2.3", syntax)
    [group] = plan.groups()
    assert group.paths == ["a", "b", "c"]
    assert [c.transfer_syntaxes for c in group.contexts] == [(EXPLICIT,), (IMPLICIT,)]
    [group] = plan.groups([IMPLICIT])
    assert [c.transfer_syntaxes for c in group.contexts] == [(IMPLICIT,), (EXPLICIT,)]
    assert group.paths == ["a", "b", "c"]


def test_more_contexts_than_one_association_holds() -> None:
    plan = SendPlan()
    for number in range(300):
        plan.add(f"{number}", f"1.2.{number % 150}", EXPLICIT)
    groups = plan.groups()
    assert [len(group.contexts) for group in groups] == [128, 22]
    assert sorted(int(path) for group in groups for path in group.paths) == list(range(300))
    for group in groups:
        classes = {context.abstract_syntax for context in group.contexts}
        assert {f"1.2.{int(path) % 150}" for path in group.paths} == classes


def test_nothing_is_no_group() -> None:
    assert SendPlan().groups() == []


async def test_a_scan_tells_the_files_apart(tmp_path: Path) -> None:
    write_studies(tmp_path / "good", 1, 1, 3, rows=8, columns=8)
    good = sorted((tmp_path / "good").rglob("*.dcm"))
    (tmp_path / "text.txt").write_text("no DICOM")
    (tmp_path / "short.dcm").write_bytes(good[0].read_bytes()[:-50])
    (tmp_path / "bare.dcm").write_bytes(_dataset(good[0]))
    said: list[SkippedEntry | FailedEntry] = []
    plan = await scan_files([tmp_path], recursive=True, report=said.append)
    short, bare = tmp_path / "short.dcm", tmp_path / "bare.dcm"
    assert sorted(plan.paths) == sorted(map(str, [*good, short, bare]))  # only glanced at
    assert [entry.path for entry in said] == [str(tmp_path / "text.txt")]
    said.clear()
    plan = await scan_files([tmp_path], recursive=True, report=said.append, files_only=True)
    assert sorted(plan.paths) == sorted(map(str, [*good, short]))
    assert str(tmp_path / "bare.dcm") in {entry.path for entry in said}
    plan = await scan_files([tmp_path], recursive=False, report=said.append)
    assert sorted(plan.paths) == sorted(map(str, [short, bare]))


def _dataset(path: Path) -> bytes:
    from dcmhaul.objects.part10 import open_instance

    instance = open_instance(path)
    assert isinstance(instance.dataset, memoryview)
    return bytes(instance.dataset)


class Peer:
    """A storage SCP whose handler a test may break; counts what it took."""

    def __init__(self) -> None:
        self.taken = 0
        self.associations = 0
        self.host = ""
        self.port = 0
        self.services = [StorageScp(None)]

    async def take(self, association: Association) -> None:
        self.associations += 1
        await serve_services(association, self.services)


@asynccontextmanager
async def serving(
    peer: Peer,
    handler: Callable[[Association], Awaitable[None]] | None = None,
    policy: AcceptorPolicy | None = None,
) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        [(peer.host, peer.port)] = await nursery.start(
            partial(
                serve_associations,
                handler or peer.take,
                policy or acceptor_policy(peer.services, ae_title=None),
                host="127.0.0.1",
                port=0,
            )
        )
        yield
        nursery.cancel_scope.cancel()


class Run:
    """One sender, and what it reported."""

    def __init__(self, peer: Peer, *, size: int = 1, failures_max: int = 3) -> None:
        self.outcomes: list[StoreOutcome] = []
        self.entries: list[SkippedEntry | FailedEntry] = []
        self.opened = 0
        policy = PoolPolicy(size=size, failures_max=failures_max, delay_seconds=0.0)
        self.sender = FileSender(
            AssociationPool(peer.host, peer.port, policy=policy),
            window=1,
            report=self.outcomes.append,
            report_entry=self.entries.append,
            opened=self._opened,
        )

    def _opened(self, association: Association) -> None:
        self.opened += 1
        if not association.agreement.accepted:
            raise NoAcceptedContext("none")

    async def send(self, folder: Path, *, times: int = 1) -> int:
        plan = await scan_files([folder], recursive=True, report=self.entries.append)
        [group] = plan.groups()
        return await self.sender.send(group, self.request(group), times=times)

    @staticmethod
    def request(group: SendGroup) -> AssociationRequest:
        return AssociationRequest(
            called_ae_title="A", calling_ae_title="B", contexts=group.contexts
        )

    @property
    def stored(self) -> int:
        return sum(outcome.stored for outcome in self.outcomes)


async def test_files_are_shared_by_the_associations(tmp_path: Path) -> None:
    write_studies(tmp_path, 1, 1, 10, rows=8, columns=8)
    peer = Peer()
    async with serving(peer):
        run = Run(peer, size=3)
        assert await run.send(tmp_path, times=2) == 0
    assert run.stored == 20
    assert run.sender.error is None
    assert 1 <= run.opened <= 3


async def test_a_broken_association_is_replaced(tmp_path: Path) -> None:
    write_studies(tmp_path, 1, 1, 10, rows=8, columns=8)
    peer = Peer()

    async def abort_after_three(association: Association) -> None:
        storage = StorageScp(None)
        for _ in range(3):
            incoming = await association.receive(seconds=5)
            if incoming is None:
                return
            await storage.handle(association, incoming)
            await association.flush()
        await association.receive(seconds=5)
        await association.abort()

    async with serving(peer, abort_after_three):
        run = Run(peer)
        assert await run.send(tmp_path) == 0
    # The one outstanding at each abort is reported, not repeated: nobody knows whether it arrived.
    unknown = [outcome for outcome in run.outcomes if outcome.status is None]
    assert run.stored + len(unknown) == 10
    assert len(unknown) == 2
    assert all(isinstance(outcome.error, AssociationAborted) for outcome in unknown)
    assert all(outcome.sent for outcome in unknown)
    assert run.sender.error is None


async def test_a_peer_that_never_answers_is_given_up(tmp_path: Path) -> None:
    write_studies(tmp_path, 1, 1, 10, rows=8, columns=8)
    peer = Peer()

    async def abort_at_once(association: Association) -> None:
        await association.receive(seconds=5)
        await association.abort()

    async with serving(peer, abort_at_once):
        run = Run(peer)
        left = await run.send(tmp_path)
    assert isinstance(run.sender.error, AssociationAborted)
    assert left + len(run.outcomes) == 10
    assert run.stored == 0


async def test_an_association_that_broke_under_the_last_file_is_not_replaced(
    tmp_path: Path,
) -> None:
    write_studies(tmp_path, 1, 1, 1, rows=8, columns=8)
    peer = Peer()

    async def abort_at_once(association: Association) -> None:
        peer.associations += 1
        await association.receive(seconds=5)
        await association.abort()

    async with serving(peer, abort_at_once):
        run = Run(peer)
        assert await run.send(tmp_path) == 0
    assert [outcome.sent for outcome in run.outcomes] == [True]
    assert peer.associations == 1
    assert run.sender.error is None


async def test_nobody_listens(tmp_path: Path) -> None:
    write_studies(tmp_path, 1, 1, 2, rows=8, columns=8)
    peer = Peer()
    async with serving(peer):
        pass
    run = Run(peer, size=2)
    assert await run.send(tmp_path) == 2
    assert isinstance(run.sender.error, TransportError)
    assert run.outcomes == []


async def test_no_context_at_all(tmp_path: Path) -> None:
    write_studies(tmp_path, 1, 1, 2, rows=8, columns=8)
    peer = Peer()
    async with serving(peer, policy=AcceptorPolicy(ae_title=None, supported={})):
        run = Run(peer)
        assert await run.send(tmp_path) == 2
    assert isinstance(run.sender.error, NoAcceptedContext)
    assert run.opened == 1


async def test_a_file_that_is_gone_by_then(tmp_path: Path) -> None:
    write_studies(tmp_path, 1, 1, 3, rows=8, columns=8)
    peer = Peer()
    plan = await scan_files([tmp_path], recursive=True, report=lambda _: None)
    [group] = plan.groups()
    next(tmp_path.rglob("*.dcm")).unlink()
    async with serving(peer):
        run = Run(peer)
        assert await run.sender.send(group, run.request(group)) == 0
    assert (run.stored, len(run.entries)) == (2, 1)
