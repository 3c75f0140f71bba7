"""Contents read back from peers without C-GET: by C-MOVE to an SCP of ours, and what peers make of that."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from dcmhaul.engine.destination import ReceiveOptions
from dcmhaul.errors import ConfigurationError, RemoteProtocolError
from dcmhaul.migrate.check import CheckOptions
from dcmhaul.net import Timeouts
from tests.engine import test_check
from tests.engine.fake_archive import FakeArchive, Faults
from tests.engine.test_verification import (
    changed,
    job,
    nothing,
    other_patient,
    results,
    run,
    some,
)
from tests.net.moving_archive import Lies, MovingArchive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from dcmhaul.migrate import MigrateOptions, Progress
    from tests.engine.fake_archive import FakeInstance

OURS = "OURS"
QUIET = Timeouts(dimse=0.3)
"""How long a peer that has answered may be quiet."""


def mover(**lies: Any) -> MovingArchive:
    """A destination that has no C-GET."""
    archive = MovingArchive([], Lies(**lies))
    archive.faults.no_get = True
    return archive


def receiving(*archives: MovingArchive) -> ReceiveOptions:
    """Our SCP, which these archives know by its title."""

    def listening(_host: str, port: int) -> None:
        for archive in archives:
            archive.destinations[OURS] = port

    return ReceiveOptions(host="127.0.0.1", port=0, listening=listening)


@asynccontextmanager
async def reading(
    tmp_path: Path, old: FakeArchive, new: MovingArchive, **options: Any
) -> AsyncIterator[MigrateOptions]:
    async with job(
        tmp_path,
        old,
        new,
        **{"calling_ae_title": OURS, "receive": receiving(new), "timeouts": QUIET} | options,
    ) as settings:
        yield settings


@pytest.mark.parametrize(
    "lies",
    [{}, {"early": True}, {"originator": False}, {"lingers": True, "title": "OTHER"}],
    ids=["honest", "answers before it sends", "names no originator", "keeps the association"],
)
async def test_a_destination_without_c_get(tmp_path: Path, lies: dict[str, Any]) -> None:
    old, new = FakeArchive(some()), mover(**lies)
    async with reading(tmp_path, old, new) as options:
        summary = await run(options)
        assert (summary.instances, summary.unverified, summary.exit_code) == (8, 0, 0)
        assert results(summary) == (8, 0, 0, 0, 0)
        assert [title for title, _ in new.orders] == [OURS] * 2
        # It is known by then what it has: no C-GET is asked for in vain.
        gets = sum(not any(pair[0].endswith(".2.2.3") for pair in a) for a in new.agreed)
        assert gets == len(new.agreed)
        assert (await run(options)).exit_code == 0
        assert len(new.orders) == 2


@pytest.mark.parametrize(
    ("rewrite", "expected"),
    [(nothing, (4, 0, 0, 0, 0)), (other_patient, (0, 0, 0, 4, 0))],
    ids=["as it was", "altered"],
)
async def test_what_came_is_compared(
    tmp_path: Path, rewrite: Callable[[Any], None], expected: tuple[int, ...]
) -> None:
    old, new = FakeArchive(some(1)), mover()
    new.faults.rewrite = changed(rewrite)
    async with reading(tmp_path, old, new) as options:
        summary = await run(options)
    assert results(summary) == expected
    assert summary.exit_code == (11 if expected[3] else 0)
    told = {found.differences for found in summary.differences}
    assert told == ({"the content differs: (0010,0020) PatientID"} if expected[3] else set())


async def test_a_sample_is_asked_for_by_its_uids(tmp_path: Path) -> None:
    old, new = FakeArchive(some(1, 20)), mover()
    async with reading(tmp_path, old, new, verify_percent=30.0) as options:
        summary = await run(options)
    assert 0 < summary.same_bytes < 15
    assert (len(new.sent), summary.exit_code) == (summary.same_bytes, 0)


@pytest.mark.parametrize(
    "refused", [True, False], ids=["counted as failed", "kept back in silence"]
)
async def test_what_a_destination_does_not_send(tmp_path: Path, refused: bool) -> None:
    instances = some(1)
    kept = instances[1].sop_instance_uid
    new = mover(**({"failing": (kept,)} if refused else {"withheld": frozenset({kept})}))
    async with reading(tmp_path, FakeArchive(instances), new) as options:
        summary = await run(options)
    assert results(summary) == (3, 0, 0, 0, 1)
    assert (summary.differing, summary.exit_code) == (1, 11)
    # It was asked for once more, alone.
    assert len(new.orders) == 2


@pytest.mark.parametrize(
    ("lies", "said"),
    [
        ({"refusal": (0xA801, "")}, "A801"),
        ({"refusal": (0xA702, "no route")}, "no route"),
        ({"refusal": (0x0000, "")}, "0000"),
    ],
    ids=["it does not know us", "it cannot reach us", "a success without anything"],
)
async def test_a_destination_that_sends_nothing(
    tmp_path: Path, lies: dict[str, Any], said: str
) -> None:
    told: list[Progress] = []
    new = mover(**lies)
    async with reading(tmp_path, FakeArchive(some()), new) as options:
        summary = await run(options, progress=told.append)
    assert (summary.instances, summary.unverified, summary.exit_code) == (8, 2, 11)
    (notice,) = [p.notice for p in told if "cannot be read back" in p.notice]
    assert said in notice
    assert f"it must know {OURS} with this host and port {new.destinations[OURS]}" in notice


async def test_a_destination_with_neither(tmp_path: Path) -> None:
    told: list[Progress] = []
    old, new = FakeArchive(some(1)), FakeArchive(faults=Faults(no_get=True))
    for receive in (None, receiving()):
        async with job(tmp_path, old, new, receive=receive) as options:
            summary = await run(replace(options, job=f"job{len(told)}"), progress=told.append)
        assert (summary.unverified, summary.exit_code) == (1, 11)
    notices = [p.notice for p in told if "cannot be read back" in p.notice]
    assert "give +P PORT" in notices[0]
    assert "no context for C-GET nor for C-MOVE" in notices[1]


async def test_a_c_get_that_never_works_is_given_up(tmp_path: Path) -> None:
    new = mover()
    new.faults.no_get = False
    new.faults.get_abort = lambda _number: True
    async with reading(tmp_path, FakeArchive(some()), new) as options:
        summary = await run(options)
    assert results(summary) == (8, 0, 0, 0, 0)
    # Both studies may have been begun by C-GET; none is afterwards.
    assert len(new.orders) == 2
    assert summary.exit_code == 0


async def test_what_a_c_get_does_not_bring_is_asked_for_by_c_move(tmp_path: Path) -> None:
    instances = some(1)
    kept = instances[1].sop_instance_uid
    new = mover()
    new.faults.no_get = False
    new.faults.withhold = frozenset({kept})
    async with reading(tmp_path, FakeArchive(instances), new) as options:
        summary = await run(options)
    assert results(summary) == (4, 0, 0, 0, 0)
    assert (len(new.orders), new.sent[-1], summary.exit_code) == (1, kept, 0)


async def test_an_association_that_is_lost_meanwhile(tmp_path: Path) -> None:
    lost: list[int] = []

    def once(number: int) -> None:
        if number == 3 and not lost:
            lost.append(number)
            raise RemoteProtocolError("the fake archive dies", source=0, reason=0)

    new = mover(sub_operation=once)
    async with reading(tmp_path, FakeArchive(some(1)), new) as options:
        summary = await run(options)
    assert lost
    assert results(summary) == (4, 0, 0, 0, 0)


async def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        receive = ReceiveOptions(host="127.0.0.1", port=port)
        new = mover()
        async with reading(tmp_path, FakeArchive(some(1)), new, receive=receive) as options:
            with pytest.raises(ConfigurationError, match=str(port)):
                await run(options)
    assert new.received == []


# -- check ----------------------------------------------------------------------------------------------


async def test_check_reads_both_ends_by_c_move() -> None:
    instances: list[FakeInstance] = some()
    other = changed(other_patient)(instances[2])
    old, new = MovingArchive(instances), MovingArchive([*instances[:2], other, *instances[3:]])
    for archive in (old, new):
        archive.faults.no_get = True
    async with old.running("OLD") as source, new.running("NEW") as destination:
        options = CheckOptions(
            source=source,
            destination=destination,
            digest=True,
            calling_ae_title=OURS,
            timeouts=QUIET,
            receive=receiving(old, new),
        )
        lines, found, summary = await test_check.run(options)
    assert test_check.differing(lines) == [f"* {other.sop_instance_uid}"]
    (note,) = [line.note for line in found if line.note]
    assert note == "the content differs: (0010,0020) PatientID"
    assert (summary.counts["="], summary.exit_code) == (7, 11)
    assert len(old.orders) == len(new.orders) == 3  # one a study, one to name what differs
