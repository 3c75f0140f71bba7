"""What the ledger costs the data plane: one association with and without it, paced and at full speed.

A process sends small objects from memory to `receive --discard`. Without a ledger outcomes are counted
alone; with it each instance gets its two writes, as in a migration: its inventory row with its study,
and its final state with a digest. Rounds of all four alternate. Paced, objects are offered at 10 000 a
second; what is lost is what the ledger keeps the association from sending in time.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import trio

from bench import congestion, contenders, machine, process, tables
from bench.contenders import DCMHAUL, Wire
from dcmhaul import uids
from dcmhaul.engine.planning import ExpectedInstance
from dcmhaul.migrate.ledger import Ledger, open_ledger
from dcmhaul.migrate.plan import JobIdentity
from dcmhaul.migrate.tables import InstanceResult, InstanceState, StudyListing, StudyState
from dcmhaul.net import open_association
from dcmhaul.net.types import SocketOptions
from dcmhaul.protocol.negotiation import AssociationRequest, plan_contexts
from dcmhaul.services.storage import StorageScu, StoreOutcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.interop import peers

HERE = Path(__file__).resolve().parent
MR = "1.2.840.10008.5.1.4.1.1.4"
SERIES = "1.2.826.0.1.3680043.10.1.2"
OBJECT_BYTES = 9 * 1024
STUDY_INSTANCES = 100
WINDOW = 16
ROUNDS, QUICK_ROUNDS = 7, 1
INSTANCES, QUICK_INSTANCES = 40_000, 2_000
GOAL_PERCENT = 10
GOAL_RATE = 10_000
PACE_SECONDS = 0.002
PREPARERS = 2
"""As in a migration."""
DIGEST: Final = hashlib.sha256(b"\0" * OBJECT_BYTES).digest()
"""A relay digests on its way with and without a ledger, so that is no part of its cost."""


@dataclass(frozen=True, slots=True)
class MemoryInstance:
    """An instance that is sent from memory."""

    sop_instance_uid: str
    study_id: int
    dataset: bytes
    sop_class_uid: str = MR
    transfer_syntax_uid: str = uids.EXPLICIT_VR_LITTLE_ENDIAN
    label: str = "memory"

    @property
    def length(self) -> int:
        return len(self.dataset)

    def close(self) -> None:
        """Nothing is open."""


class Plain:
    """The data plane alone."""

    def __init__(self, count: int, rate: float | None) -> None:
        self._left = count
        self._rate = rate
        self._taken = 0
        self._started = 0.0
        self._dataset = bytes(OBJECT_BYTES)
        self.acknowledged = 0

    async def pace(self) -> None:
        """Waits while more was taken than the rate allows."""
        self._started = self._started or time.perf_counter()
        self._taken += 1
        if self._rate is not None:
            due = self._started + self._taken / self._rate
            if due - time.perf_counter() > PACE_SECONDS:
                await trio.sleep(PACE_SECONDS)

    async def take(self) -> MemoryInstance | None:
        if not self._left:
            return None
        self._left -= 1
        await self.pace()
        return MemoryInstance(f"1.2.826.0.1.3680043.10.1.3.{self._left}", 0, self._dataset)

    def report(self, outcome: StoreOutcome) -> None:
        assert outcome.status == 0, outcome
        self.acknowledged += 1


class Recorded(Plain):
    """The same with a ledger: studies are prepared ahead, and closed when they are through."""

    def __init__(
        self, count: int, rate: float | None, ledger: Ledger, run_id: int, prefix: str
    ) -> None:
        super().__init__(count, rate)
        self._ledger = ledger
        self._run_id = run_id
        self._prefix = prefix
        self._studies = count // STUDY_INSTANCES
        self._send, self._receive = trio.open_memory_channel[list[MemoryInstance]](8)
        self._ready: list[MemoryInstance] = []
        self._open: dict[int, int] = {}
        self._nursery: trio.Nursery | None = None

    async def prepare(self, nursery: trio.Nursery) -> None:
        """Inventory rows, and the study RUNNING, before its first instance leaves."""
        self._nursery = nursery
        study_uids = [f"{self._prefix}.{number}" for number in range(self._studies)]
        await self._ledger.add_studies(
            self._run_id, [StudyListing(study_instance_uid=uid) for uid in study_uids]
        )
        ids = iter((await self._ledger.study_ids(self._run_id, study_uids)).items())
        async with self._send, trio.open_nursery() as preparers:
            for _ in range(PREPARERS):
                preparers.start_soon(self._prepare, ids)

    async def _prepare(self, ids: Iterator[tuple[str, int]]) -> None:
        for uid, study_id in ids:
            instances = [f"{uid}.{number}" for number in range(STUDY_INSTANCES)]
            await self._ledger.add_instances(
                study_id,
                [
                    ExpectedInstance(
                        sop_instance_uid=instance, sop_class_uid=MR, series_instance_uid=SERIES
                    )
                    for instance in instances
                ],
                running=False,
            )
            await self._ledger.begin_study(study_id)
            await self._send.send(
                [MemoryInstance(instance, study_id, self._dataset) for instance in instances]
            )

    async def take(self) -> MemoryInstance | None:
        if not self._ready:
            await self._ledger.room()
            try:
                self._ready = await self._receive.receive()
            except trio.EndOfChannel:
                return None
            self._open[self._ready[0].study_id] = STUDY_INSTANCES
        await self.pace()
        return self._ready.pop()

    def report(self, outcome: StoreOutcome) -> None:
        super().report(outcome)
        instance = outcome.instance
        assert isinstance(instance, MemoryInstance)
        self._ledger.record(
            InstanceResult(
                study_id=instance.study_id,
                sop_instance_uid=instance.sop_instance_uid,
                state=InstanceState.ACKED,
                transfer_syntax_uid=instance.transfer_syntax_uid,
                length=OBJECT_BYTES,
                sha256=DIGEST,
                status=0,
            )
        )
        self._open[instance.study_id] -= 1
        if not self._open[instance.study_id]:
            del self._open[instance.study_id]
            assert self._nursery is not None
            self._nursery.start_soon(self._ledger.close_study, instance.study_id, StudyState.DONE)


@dataclass(slots=True)
class Series:
    """Rounds of one case. rates: instances a second; cpu: microseconds of this process an instance."""

    title: str
    rate: float | None
    ledger: bool
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


async def send(server: peers.Server, options: SocketOptions, load: Plain) -> tuple[float, float]:
    """Instances a second until the last answer and, with a ledger, the last commit; CPU an instance."""
    request = AssociationRequest(
        called_ae_title=server.aet,
        calling_ae_title="BENCH",
        contexts=plan_contexts([(MR, uids.EXPLICIT_VR_LITTLE_ENDIAN)])[0],
        window=WINDOW,
    )
    async with open_association(server.host, server.port, request, options=options) as association:
        scu = StorageScu(association, window=WINDOW)
        started, worked = time.perf_counter(), time.process_time()
        async with trio.open_nursery() as nursery:
            if isinstance(load, Recorded):
                nursery.start_soon(load.prepare, nursery)
            await scu.run(load.take, load.report)
        seconds, cpu = time.perf_counter() - started, time.process_time() - worked
    return load.acknowledged / seconds, 1e6 * cpu / load.acknowledged


async def measure(
    server: peers.Server, options: SocketOptions, folder: str, rounds: int, count: int
) -> list[Series]:
    """A round of each case in turn."""
    cases = [
        Series("offered 10 000/s, without a ledger", GOAL_RATE, False),
        Series("offered 10 000/s, two writes an instance", GOAL_RATE, True),
        Series("full speed, without a ledger", None, False),
        Series("full speed, two writes an instance", None, True),
    ]
    await send(server, options, Plain(count // 10, None))
    async with open_ledger(f"sqlite:///{folder}/ledger.db") as ledger:
        identity = JobIdentity(source="a", destination="b", filter_json="{}")
        run = await ledger.open_run("bench", identity, {})
        for number in range(rounds):
            for place, case in enumerate(cases):
                load = Plain(count, case.rate)
                if case.ledger:
                    prefix = f"1.2.826.0.1.3680043.10.1.4.{number}.{place}"
                    load = Recorded(count, case.rate, ledger, run.id, prefix)
                rate, cpu = await send(server, options, load)
                case.rates.append(rate)
                case.cpu.append(cpu)
        await ledger.flush()
        totals = await ledger.totals(run.id)
    expected = rounds * count * sum(case.ledger for case in cases)
    if (totals.acked, totals.pending) != (expected, 0):
        raise process.BenchFailed(f"the ledger holds {totals.acked} of {expected} instances")
    return cases


def report(cases: Sequence[Series]) -> str:
    rows = [
        [
            case.title,
            tables.short(tables.median(case.rates)),
            tables.spread(case.rates),
            tables.short(tables.median(case.cpu)),
        ]
        for case in cases
    ]
    header = ["one association, window 16", "instances/s", "lowest-highest", "CPU µs an instance"]
    paced, full = (
        100 * (1 - tables.median(after.rates) / tables.median(before.rates))
        for before, after in (cases[:2], cases[2:])
    )
    return (
        f"{tables.markdown(header, rows)}\n\n"
        f"Lost at {GOAL_RATE:,} instances/s: {paced:.1f} %; asked for: less than {GOAL_PERCENT} %; "
        f"met: {'yes' if paced < GOAL_PERCENT else 'no'}. At full speed the ledger's thread competes "
        f"with sender and receiver for the processor: {full:.1f} %."
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="for a moment; nothing is written")
    parser.add_argument("--congestion", default="cubic", help="or kernel, for its default")
    parser.add_argument("--folder", help="where the ledger lies [default: the temporary folder]")
    parser.add_argument(
        "--output", type=Path, default=HERE, help="folder for README.md and results/"
    )
    asked = parser.parse_args(argv)
    process.end_on_sigterm()
    control = asked.congestion if congestion.usable(asked.congestion) else None
    rounds = QUICK_ROUNDS if asked.quick else ROUNDS
    count = QUICK_INSTANCES if asked.quick else INSTANCES
    options = SocketOptions(congestion=control)
    with (
        tempfile.TemporaryDirectory(prefix="dcmhaul-bench-", dir=asked.folder) as folder,
        contenders.receiver(DCMHAUL, Wire(congestion=control, preload={})) as server,
    ):
        cases = trio.run(measure, server, options, folder, rounds, count)
    described = machine.describe(control)
    about = "; ".join(f"{key}: {value}" for key, value in described.items())
    text = (
        f"{about}.\n\n{rounds} rounds of {count} objects of 9 KiB each; SQLite with full sync on disk, "
        f"beside the sender and the receiver.\n\n{report(cases)}"
    )
    print(text)
    if not asked.quick:
        tables.replace_marked(asked.output / "README.md", "ledger", text)
        result = {"machine": described, "cases": [asdict(case) for case in cases]}
        tables.write_json(asked.output / "results" / "ledger.json", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
