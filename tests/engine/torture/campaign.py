"""What is killed, where, and how often: a campaign of one seed, its servers and its tally."""

from __future__ import annotations

import random
import signal
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from dcmhaul.objects.synth import write_studies
from tests.engine.torture.evidence import digest_of
from tests.engine.torture.forking import Child, Forker
from tests.engine.torture.tap import Tap

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

__all__ = ["ENDING", "POINTS", "RANDOM", "RARE", "Campaign", "Kill", "Server", "Tally", "deck"]

RECEIVING = ("recv.first_pdv", "recv.mid", "recv.last_pdv")
FILING = ("tmp.written", "tmp.fdatasync", "tmp.linked", "dir.fsynced")
COMMITTING = ("db.before_commit", "db.after_commit")
ANSWERING = ("rsp.before_send", "rsp.after_send")
SENDING = ("send.before_cmd", "send.mid_dataset", "send.all_sent", "rsp.received")
LEDGER = ("ledger.before_ack", "ledger.after_ack")
ENDING = ("shutdown.draining",)

# Who can be killed in which transfer, and at which points.
POINTS = {
    ("migrate", "migrate"): (*RECEIVING, *SENDING, *ANSWERING, *COMMITTING, *LEDGER, *ENDING),
    ("migrate", "destination"): (*RECEIVING, *FILING, *COMMITTING, *ANSWERING, *ENDING),
    ("migrate", "source"): (*SENDING, *ENDING),
    ("migrate-to-folder", "migrate"): (*FILING, *LEDGER),
    ("send-to-archive", "send"): SENDING,
    ("send-to-archive", "destination"): (*FILING, *COMMITTING, *ANSWERING),
    ("send-to-receive", "destination"): (*RECEIVING, *FILING, *ANSWERING, *ENDING),
    ("get", "get"): (*RECEIVING, *FILING, *ANSWERING),
}
# Of these a run passes few.
RARE = frozenset((*COMMITTING, *LEDGER, *ENDING, "dir.fsynced"))
RANDOM = "random"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """Whom, in which transfer, and at which labelled point, or at a random moment."""

    transfer: str
    victim: str
    label: str


def deck(randomness: random.Random, kills: int) -> list[Kill]:
    """`kills` of them, half at labelled points; whatever the number, each label comes before any twice."""
    places = [(*who, label) for who, labels in POINTS.items() for label in labels]
    chosen: list[Kill] = []
    while len(chosen) < kills:
        randomness.shuffle(places)
        labels: set[str] = set()
        first: list[Kill] = []
        later: list[Kill] = []
        for transfer, victim, label in places:
            kill = Kill(transfer=transfer, victim=victim, label=label)
            (later if label in labels else first).append(kill)
            labels.add(label)
            later.append(Kill(transfer=transfer, victim=victim, label=RANDOM))
        randomness.shuffle(later)
        chosen += first + later
    return chosen[:kills]


@dataclass(slots=True)
class Tally:
    """What happened. missed: an armed process got through without passing its point so often."""

    kills: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    missed: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    sessions: Counter[str] = field(default_factory=Counter)
    codes: Counter[tuple[str, int]] = field(default_factory=Counter)
    acknowledged: int = 0
    settled: int = 0
    """Instances that the ledger settled by asking the destination."""
    recovered: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        kills = Counter[tuple[str, str]]()
        for (transfer, victim, _), count in self.kills.items():
            kills[transfer, victim] += count
        return [
            f"{self.kills.total()} kills in {self.sessions.total()} sessions "
            f"({dict(self.sessions)}), {self.missed.total()} missed",
            *(f"  {transfer}: {victim} {count}" for (transfer, victim), count in kills.items()),
            f"  {self.acknowledged} instances acknowledged, {self.settled} settled by asking",
            f"  exit codes {dict(self.codes)}",
            *(f"  recovery: {what}: {count}" for what, count in self.recovered.items()),
        ]


class Server:
    """An archive or a receiver behind a tap; keeps its folder over its restarts."""

    def __init__(self, campaign: Campaign, verb: str, folder: Path) -> None:
        self.tap = Tap(campaign.random, campaign.pause)
        self.folder = folder
        self._campaign = campaign
        self._verb = verb
        self.child: Child | None = None
        self._crash_at = ""

    @property
    def peer(self) -> str:
        return f"ARCH@127.0.0.1:{self.tap.port}"

    @property
    def running(self) -> bool:
        return self.child is not None and self.child.code is None

    async def start(self, crash_at: str = "") -> bool:
        """False where it was killed before it listened."""
        where = ("--dir", self.folder, "--port", "0") if self._verb == "archive" else ()
        what = () if where else ("0", "-od", self.folder)
        child = await self._campaign.start(
            self._verb, *what, *where, "--aet", "ARCH", "--bind", "127.0.0.1", crash_at=crash_at
        )
        await child.until_said("listening on ")
        self.child, self._crash_at = child, crash_at
        for line in child.said.splitlines():
            if line.startswith("recovery: "):
                self._campaign.tally.recovered[line.split(" ", 2)[2]] += 1
            assert "LOST" not in line, line
        if child.code is not None:
            assert crash_at, child.said
            assert child.code == -signal.SIGKILL, child.said
            return False
        self.tap.target = int(child.said.rpartition("listening on 127.0.0.1:")[2].split()[0])
        return True

    async def stop(self) -> None:
        """By SIGTERM, which is no failure, unless it is still to die of it."""
        child, self.child = self.child, None
        if child is None or child.code is not None:
            return
        child.signal(signal.SIGTERM)
        dies = self._crash_at.partition(":")[0] in ENDING
        assert await child.wait() == (-signal.SIGKILL if dies else 0), child.said


class Campaign:
    """All sessions of one seed."""

    def __init__(self, forker: Forker, folder: Path, seed: int, *, pause: float = 0.002) -> None:
        self.random = random.Random(seed)
        self.pause = pause
        self.tally = Tally()
        self.folder = folder
        self._forker = forker
        self._nursery: trio.Nursery | None = None
        self._files = folder / "files"
        write_studies(self._files / "small", 4, 2, 5, "CT", seed=1, rows=64, columns=64)
        write_studies(self._files / "large", 1, 1, 3, "CR", seed=2, rows=1200, columns=1200)
        self.uid_of: dict[str, str] = {}
        for path in self._files.rglob("*.dcm"):
            # The file's own name is not trusted either: its meta names the instance.
            meta = path.read_bytes()[144:400]
            place = meta.index(b"\2\0\3\0UI") + 6
            length = int.from_bytes(meta[place : place + 2], "little")
            uid = meta[place + 2 : place + 2 + length].rstrip(b"\0").decode("ascii")
            self.uid_of[digest_of(path)] = uid
        self.digests = {uid: digest for digest, uid in self.uid_of.items()}
        self.source = Server(self, "archive", folder / "source")

    @classmethod
    @asynccontextmanager
    async def opened(cls, folder: Path, seed: int) -> AsyncIterator[Campaign]:
        """With a source archive that holds everything."""
        (folder / "log").mkdir(parents=True)
        async with Forker.opened(folder / "log") as forker, trio.open_nursery() as nursery:
            campaign = cls(forker, folder, seed)
            campaign._nursery = nursery
            await campaign.serve(campaign.source)
            campaign.source.tap.pause = 0.0
            child = await campaign.start(
                "send", campaign.source.peer, campaign._files, "--window", "8"
            )
            assert await child.wait() == 0, child.said
            campaign.source.tap.pause = campaign.pause
            yield campaign
            await campaign.source.stop()
            nursery.cancel_scope.cancel()

    async def start(self, name: str, *arguments: object, crash_at: str = "") -> Child:
        return await self._forker.start(name, *arguments, CRASH_AT=crash_at)

    async def serve(self, server: Server) -> None:
        assert self._nursery is not None
        await self._nursery.start(server.tap.serve)
        await server.start()
