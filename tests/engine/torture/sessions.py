"""Transfers between real processes that are killed, and what must hold after each kill.

A session is one transfer from its beginning to its end: a migration, a send, or a get. In it processes
are killed and started again until its kills are used up; then it runs to its end and everything is
compared. All chance comes from the campaign's seed.
"""

from __future__ import annotations

import json
import signal
import time
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from tests.engine.torture import evidence
from tests.engine.torture.campaign import ENDING, RANDOM, RARE, Campaign, Kill, Server
from tests.engine.torture.evidence import ArchiveEvidence, LedgerEvidence

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.engine.torture.forking import Child

__all__ = ["run_sessions"]

KILLS_A_SESSION = 7
FINAL_SECONDS = 60.0
PATIENCE_SECONDS = 30.0


class Session:
    """One transfer. `client` is the process that asks; `servers` are by the names of the victims."""

    servers: dict[str, Server]
    verb = ""

    def __init__(self, campaign: Campaign, folder: Path, kills: list[Kill]) -> None:
        folder.mkdir()
        self.campaign = campaign
        self.random = campaign.random
        self.folder = folder
        self.kills = deque(kills)
        self.retries: Counter[Kill] = Counter()
        self.client: Child | None = None
        self.complete = False

    # What a kind of session says of itself.

    def arguments(self) -> tuple[object, ...]:
        raise NotImplementedError

    def progress(self) -> int:
        """Something that counts up while bytes move."""
        raise NotImplementedError

    async def begin(self) -> None:
        """Anew: the transfer was complete, yet there are kills left."""
        raise NotImplementedError

    def check(self, victim: str) -> None:
        """Right after a kill of `victim`, before it is started again."""
        raise NotImplementedError

    async def finish(self) -> None:
        """After the last kill: to the end, and everything is compared."""
        raise NotImplementedError

    # The loop.

    async def run(self) -> None:
        await self.begin()
        while self.kills:
            kill = self.kills.popleft()
            if self.complete:
                await self.finish()
                await self.begin()
                self.complete = False
            await self._kill(kill)
        await self.finish()

    async def _kill(self, kill: Kill) -> None:
        crash_at = ""
        if kill.label != RANDOM:
            most = 1 if self.retries[kill] else 3 if kill.label in RARE else 12
            if kill.label in ENDING:
                most = 1
            crash_at = f"{kill.label}:{self.random.randint(1, most)}"
        server = self.servers.get(kill.victim)
        if server is not None and crash_at:
            await server.stop()
            if not await server.start(crash_at):
                self._killed(kill)  # as it started
                await server.start()
                return
        await self._ensure_servers()
        if self.client is None:
            armed = crash_at if server is None else ""
            self.client = await self.campaign.start(self.verb, *self.arguments(), crash_at=armed)
        victim = server.child if server is not None else self.client
        assert victim is not None
        await self._until(kill, victim)
        if victim.code == -signal.SIGKILL:
            self._killed(kill)
        else:
            self.campaign.tally.missed[kill.transfer, kill.victim, kill.label] += 1
            self.retries[kill] += 1
            assert self.retries[kill] < 5, f"{kill} is never reached"
            self.kills.append(kill)
        await self._ensure_servers()
        if self.random.random() < 0.6 or (self.kills and self.kills[0].victim not in self.servers):
            await self._client_ends()

    async def _ensure_servers(self) -> None:
        for server in self.servers.values():
            if not server.running:
                await server.start()

    async def _until(self, kill: Kill, victim: Child) -> None:
        """Returns when the victim is dead, or the client came to its end before that."""
        client = self.client
        assert client is not None
        by_hand = kill.label == RANDOM or kill.label in ENDING
        before = self.progress()
        wanted = before + (self.random.randint(0, 40) if by_hand else 0)
        delay = self.random.uniform(0, 0.02)
        with trio.fail_after(FINAL_SECONDS):
            while victim.code is None and client.code is None:
                if by_hand and (self.progress() > wanted or wanted == before):
                    # Anywhere, also in the start, where nothing moved yet.
                    await trio.sleep(delay if wanted > before else self.random.uniform(0, 0.4))
                    victim.signal(signal.SIGKILL if kill.label == RANDOM else signal.SIGTERM)
                    with trio.move_on_after(PATIENCE_SECONDS):
                        await victim.ended.wait()
                    break
                await trio.sleep(0.001)
        if client.code is not None:
            # The victim was not reached, or is the client.
            await self._client_ends()

    def _killed(self, kill: Kill) -> None:
        self.campaign.tally.kills[kill.transfer, kill.victim, kill.label] += 1
        self.check(kill.victim)

    async def _client_ends(self) -> int:
        client, self.client = self.client, None
        if client is None:
            return 0
        code = await client.wait()
        self.campaign.tally.codes[self.verb, code] += 1
        assert code in (0, 3, 5, 130, -signal.SIGKILL), (
            f"{self.verb} ended with {code}: {client.said}"
        )
        assert "Traceback" not in client.said, client.said
        self.complete = code == 0
        return code

    async def _last_runs(self) -> None:
        """The client to its end without a kill, and then once more; exit code 0 both times."""
        await self._ensure_servers()
        for server in self.servers.values():
            await server.stop()  # what it was armed with is not for these
            await server.start()
        await self._client_ends()
        for _ in range(2):
            self.client = await self.campaign.start(self.verb, *self.arguments(), "--json")
            client = self.client
            code = await self._client_ends()
            assert code == 0, f"{self.verb} ended with {code}: {client.said}"
            self.said_last(json.loads(client.answer.splitlines()[-1]))

    def said_last(self, summary: dict[str, object]) -> None:
        """The summary of an undisturbed run."""


def check_source(campaign: Campaign) -> None:
    """It only reads: nothing of it may have changed."""
    source = ArchiveEvidence.of(campaign.source.folder)
    assert source.rows == campaign.digests
    assert source.problems() == []


class Migration(Session):
    """Source archive -> destination archive by `dcmhaul migrate`."""

    verb = "migrate"

    def __init__(self, campaign: Campaign, folder: Path, kills: list[Kill]) -> None:
        super().__init__(campaign, folder, kills)
        self.number = 0
        self.destination: Server | None = None
        self.known: list[tuple[set[str], int, int]] = []

    @property
    def ledger(self) -> Path:
        return self.folder / f"ledger-{self.number}.db"

    def target(self) -> str:
        assert self.destination is not None
        return self.destination.peer

    def arguments(self) -> tuple[object, ...]:
        return (
            *(self.campaign.source.peer, self.target(), "--job", "torture"),
            *("--ledger", f"sqlite:///{self.ledger}", "--associations", "2", "--window", "4"),
        )

    def progress(self) -> int:
        assert self.destination is not None
        return len(self.destination.tap.passages)

    async def begin(self) -> None:
        self.number += 1
        self.known = []
        self.campaign.source.tap.passages.clear()
        self.destination = Server(self.campaign, "archive", self.folder / f"new-{self.number}")
        self.servers = {"source": self.campaign.source, "destination": self.destination}
        await self.campaign.serve(self.destination)

    def check(self, victim: str) -> None:
        assert self.destination is not None
        if victim == "source":
            check_source(self.campaign)
        elif victim == "destination":
            self.check_destination()
        else:
            self.check_ledger()

    def check_destination(self) -> None:
        assert self.destination is not None
        new = ArchiveEvidence.of(self.destination.folder)
        acknowledged = self.destination.tap.acknowledged()
        assert new.problems() == []
        lost = {uid for uid in acknowledged if new.rows.get(uid) != self.campaign.digests[uid]}
        assert not lost, f"acknowledged, and not there after the kill: {lost}"
        evidence.whole_files(self.destination.folder / "objects", self.campaign.uid_of)

    def check_ledger(self) -> None:
        assert self.destination is not None
        taps = self.destination.tap, self.campaign.source.tap
        ledger = LedgerEvidence.of(self.ledger)
        claimed = ledger.acknowledged() - taps[0].acknowledged()
        assert not claimed, f"the ledger claims what was never acknowledged: {claimed}"
        self.known.append((ledger.held(), len(taps[0].passages), len(taps[1].passages)))

    def check_never_again(self) -> None:
        assert self.destination is not None
        new, old = self.destination.tap, self.campaign.source.tap
        assert new.sent_after_acknowledged() == set()
        for held, at_new, at_old in self.known:
            assert held.isdisjoint(new.requests(at_new)), "sent again, in spite of the ledger"
            assert held.isdisjoint(old.requests(at_old)), "retrieved again, in spite of the ledger"

    def said_last(self, summary: dict[str, object]) -> None:
        counts = [summary[name] for name in ("instances", "already", "failed", "pending")]
        assert isinstance(counts[0], int)
        assert isinstance(counts[1], int)
        assert counts[0] + counts[1] == len(self.campaign.digests), summary
        assert counts[2:] == [0, 0], summary

    async def finish(self) -> None:
        assert self.destination is not None
        await self._last_runs()
        requests = len(self.destination.tap.requests())
        await self._last_runs()
        assert len(self.destination.tap.requests()) == requests, "a finished job moved something"
        self.check_never_again()
        await self.destination.stop()
        ledger = LedgerEvidence.of(self.ledger)
        self.check_end(ledger)
        self.campaign.tally.acknowledged += len(ledger.acknowledged())
        self.campaign.tally.settled += len(ledger.held()) - len(ledger.acknowledged())

    def check_end(self, ledger: LedgerEvidence) -> None:
        assert self.destination is not None
        folder = self.destination.folder
        new = ArchiveEvidence.of(folder)
        assert evidence.compare(ledger, ArchiveEvidence.of(self.campaign.source.folder), new) == []
        assert new.rows == self.campaign.digests
        files = evidence.whole_files(folder / "objects", self.campaign.uid_of)
        assert set(files) == set(new.files.values()), "files that no row speaks of"
        assert list((folder / "tmp").iterdir()) == []
        assert list((folder / "quarantine").iterdir()) == []


class FolderMigration(Migration):
    """The same into a folder: `migrate` itself files, and is the only one that is killed."""

    def target(self) -> str:
        return f"{self.folder}/new-{self.number}"

    def progress(self) -> int:
        return len(self.campaign.source.tap.passages)

    async def begin(self) -> None:
        self.number += 1
        self.known = []
        self.campaign.source.tap.passages.clear()
        self.servers = {"source": self.campaign.source}

    def check(self, victim: str) -> None:
        ledger = LedgerEvidence.of(self.ledger)
        files = self.files()
        assert ledger.acknowledged() <= files
        assert self.campaign.source.tap.acknowledged() <= files
        self.known.append((ledger.held(), 0, len(self.campaign.source.tap.passages)))

    def files(self) -> set[str]:
        """UIDs of what lies there, each whole and under its name."""
        return check_folder(self.campaign, Path(self.target()))

    async def finish(self) -> None:
        await self._last_runs()
        for held, _, at_old in self.known:
            assert held.isdisjoint(self.campaign.source.tap.requests(at_old)), "retrieved again"
        assert self.files() == set(self.campaign.digests)
        ledger = LedgerEvidence.of(self.ledger)
        assert ledger.held() == set(self.campaign.digests)
        self.campaign.tally.acknowledged += len(ledger.acknowledged())
        self.campaign.tally.settled += len(ledger.held()) - len(ledger.acknowledged())


def check_folder(campaign: Campaign, folder: Path) -> set[str]:
    """UIDs of the files in a folder of `-od`, which holds whole ones alone, under their names."""
    found = evidence.whole_files(folder, campaign.uid_of) if folder.exists() else {}
    for path, uid in found.items():
        assert path.name == f"{uid}.dcm", path
    return set(found.values())


class Sending(Session):
    """Files -> archive by `dcmhaul send`."""

    verb = "send"
    server_verb = "archive"

    def __init__(self, campaign: Campaign, folder: Path, kills: list[Kill]) -> None:
        super().__init__(campaign, folder, kills)
        self.number = 0

    @property
    def destination(self) -> Server:
        return self.servers["destination"]

    def arguments(self) -> tuple[object, ...]:
        files = self.campaign.folder / "files"
        return (self.destination.peer, files, "--associations", "2", "--window", "4")

    def progress(self) -> int:
        return len(self.destination.tap.passages)

    async def begin(self) -> None:
        self.number += 1
        folder = self.folder / f"new-{self.number}"
        self.servers = {"destination": Server(self.campaign, self.server_verb, folder)}
        await self.campaign.serve(self.destination)

    def check(self, victim: str) -> None:
        if victim != "destination":
            return
        new = ArchiveEvidence.of(self.destination.folder)
        assert new.problems() == []
        for uid in self.destination.tap.acknowledged():
            assert new.rows.get(uid) == self.campaign.digests[uid], f"{uid} was acknowledged"
        evidence.whole_files(self.destination.folder / "objects", self.campaign.uid_of)

    async def finish(self) -> None:
        await self._last_runs()
        await self.destination.stop()
        self.check("destination")
        new = ArchiveEvidence.of(self.destination.folder)
        assert new.rows == self.campaign.digests
        assert new.conflicts == 0
        files = evidence.whole_files(self.destination.folder / "objects", self.campaign.uid_of)
        assert set(files) == set(new.files.values())
        self.campaign.tally.acknowledged += len(self.destination.tap.acknowledged())


class Receiving(Sending):
    """Files -> `dcmhaul receive -od`."""

    server_verb = "receive"

    def check(self, victim: str) -> None:
        held = check_folder(self.campaign, self.destination.folder)
        lost = self.destination.tap.acknowledged() - held
        assert not lost, f"acknowledged, and not there: {lost}"

    async def finish(self) -> None:
        await self._last_runs()
        await self.destination.stop()
        self.check("destination")
        held = check_folder(self.campaign, self.destination.folder)
        assert held == set(self.campaign.digests)
        self.campaign.tally.acknowledged += len(held)


class Getting(Session):
    """Source archive -> folder by `dcmhaul get`."""

    verb = "get"

    def __init__(self, campaign: Campaign, folder: Path, kills: list[Kill]) -> None:
        super().__init__(campaign, folder, kills)
        self.number = 0

    def arguments(self) -> tuple[object, ...]:
        keys = ("-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID", "-k", "StudyDate")
        return (self.campaign.source.peer, *keys, "-od", self.target)

    @property
    def target(self) -> Path:
        return self.folder / f"new-{self.number}"

    def progress(self) -> int:
        return len(self.campaign.source.tap.passages)

    async def begin(self) -> None:
        self.number += 1
        self.campaign.source.tap.passages.clear()
        self.servers = {"source": self.campaign.source}

    def check(self, victim: str) -> None:
        held = check_folder(self.campaign, self.target)
        lost = self.campaign.source.tap.acknowledged() - held
        assert not lost, f"acknowledged, and not there: {lost}"

    async def finish(self) -> None:
        await self._last_runs()
        self.check("get")
        assert check_folder(self.campaign, self.target) == set(self.campaign.digests)
        self.campaign.tally.acknowledged += len(self.campaign.digests)


SESSIONS: dict[str, Callable[[Campaign, Path, list[Kill]], Session]] = {
    "migrate": Migration,
    "migrate-to-folder": FolderMigration,
    "send-to-archive": Sending,
    "send-to-receive": Receiving,
    "get": Getting,
}


async def run_sessions(
    campaign: Campaign, kills: list[Kill], told: Callable[[str], None] = lambda _: None
) -> None:
    """Sessions until every kill was made."""
    waiting: dict[str, deque[Kill]] = {}
    for kill in kills:
        waiting.setdefault(kill.transfer, deque()).append(kill)
    number = 0
    while waiting:
        transfer = campaign.random.choice(sorted(waiting))
        queue = waiting[transfer]
        taken = [queue.popleft() for _ in range(min(KILLS_A_SESSION, len(queue)))]
        if not queue:
            del waiting[transfer]
        number += 1
        started = time.monotonic()
        await SESSIONS[transfer](campaign, campaign.folder / f"{number:03}-{transfer}", taken).run()
        campaign.tally.sessions[transfer] += 1
        told(f"{number}: {transfer}, {len(taken)} kills, {time.monotonic() - started:.1f} s")
