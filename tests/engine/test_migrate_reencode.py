"""`migrate --reencode`: a destination of one uncompressed syntax, from a peer and from a folder."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from dcmhaul.migrate import MigrateOptions, Progress
from dcmhaul.objects.reencode import Reencoder
from dcmhaul.services.query import FindScp
from dcmhaul.services.retrieve import GetScp
from dcmhaul.services.storage import StorageScp
from dcmhaul.services.verification import VerificationScp
from dcmhaul.uids import EXPLICIT_VR_BIG_ENDIAN
from tests.datasets import element, header
from tests.engine.fake_archive import (
    IMPLICIT,
    JPEG2000,
    FakeArchive,
    FakeInstance,
    Faults,
    make_instance,
)
from tests.engine.test_migrate_folders import write
from tests.engine.test_verification import run

if TYPE_CHECKING:
    from pathlib import Path

    from dcmhaul.services.provider import Service


def instances() -> list[FakeInstance]:
    """Two that are to be re-encoded, one as it is, one that is compressed."""
    return [
        make_instance(1),
        make_instance(2, size=300_000),
        make_instance(3, syntax=IMPLICIT),
        make_instance(4, syntax=JPEG2000),
    ]


def options(tmp_path: Path, **fields: object) -> MigrateOptions:
    return MigrateOptions(
        ledger_url=f"sqlite:///{tmp_path}/ledger.db",
        job="job",
        associations=1,
        **fields,  # type: ignore[arg-type]
    )


class ImplicitAlone(FakeArchive):
    """Takes and gives out nothing but implicit VR."""

    def services(self) -> list[Service]:
        storage, get = StorageScp(self._sink), GetScp(self._select)
        for one in (storage, get):
            one._contexts = {
                uid: replace(context, transfer_syntaxes=(IMPLICIT,))
                for uid, context in one.contexts().items()
            }
        return [VerificationScp(), storage, get, FindScp(self._find)]


def reencoded(instance: FakeInstance, target: str) -> bytes:
    reencoder = Reencoder(instance.transfer_syntax_uid, target)
    return b"".join([*reencoder.feed(instance.dataset), *reencoder.finish()])


@pytest.mark.parametrize("folder", [False, True])
async def test_what_a_destination_does_not_take_as_it_is(tmp_path: Path, folder: bool) -> None:
    given = instances()
    old = FakeArchive(given)
    new = FakeArchive(faults=Faults(syntaxes=(IMPLICIT,)))
    write(tmp_path / "old", given)
    said: list[str] = []

    def progress(now: Progress) -> None:
        if now.notice.startswith("re-encoding"):
            said.append(now.notice)

    async with old.running("OLD") as source, new.running("NEW") as destination:
        chosen = options(
            tmp_path,
            source=tmp_path / "old" if folder else source,
            destination=destination,
        )
        # Without the option it fails, and nothing is changed.
        summary = await run(chosen, progress=progress)
        assert (summary.instances, summary.failed, summary.exit_code) == (1, 3, 6)
        assert said == []
        summary = await run(replace(chosen, reencode=True), progress=progress)
        assert (summary.instances, summary.failed, summary.exit_code) == (2, 1, 6)
    assert said == [
        "re-encoding from Explicit VR Little Endian to Implicit VR Little Endian",
    ]
    [failure] = summary.failures
    assert failure.sop_instance_uid == given[3].sop_instance_uid
    assert {uid: one.dataset for uid, one in new.instances.items()} == {
        one.sop_instance_uid: reencoded(one, IMPLICIT) for one in given[:3]
    }


async def test_what_was_re_encoded_says_the_same_when_it_is_read_back(tmp_path: Path) -> None:
    given = instances()[:3]
    old = FakeArchive(given)
    new = ImplicitAlone()
    new_and_old = new.running("NEW"), old.running("OLD")
    async with new_and_old[0] as destination, new_and_old[1] as source:
        summary = await run(
            options(
                tmp_path, source=source, destination=destination, reencode=True, verify="digest"
            )
        )
    assert (summary.instances, summary.exit_code) == (3, 0)
    assert (summary.same_bytes, summary.same_content, summary.altered) == (1, 2, 0)


async def test_what_cannot_be_said_fails_alone(tmp_path: Path) -> None:
    """A value in the middle of an object, found when its message has begun: the others go on."""
    plain = make_instance(1)
    long = element(0x00280010, "UN", b"") + header(0x00400000 + 0x9094, "US", 3) + b"123"
    odd = replace(
        make_instance(2), dataset=make_instance(2).dataset + long + element(0x7FE00010, "OW", b"12")
    )
    given = [plain, odd, make_instance(3), make_instance(4)]
    old = FakeArchive(given)
    new = FakeArchive(faults=Faults(syntaxes=(EXPLICIT_VR_BIG_ENDIAN,)))
    async with old.running("OLD") as source, new.running("NEW") as destination:
        summary = await run(
            options(tmp_path, source=source, destination=destination, reencode=True, verify="none")
        )
    # One whose answer was outstanding is found at the destination, and not sent again.
    assert (summary.instances + summary.already, summary.failed) == (3, 1)
    assert (len(new.received), summary.exit_code) == (3, 6)
    [failure] = summary.failures
    assert failure.sop_instance_uid == odd.sop_instance_uid
    assert "no multiple of 2 octets" in failure.reason
    assert not failure.retryable
    for one in (given[0], given[2], given[3]):
        kept = new.instances[one.sop_instance_uid]
        assert kept.dataset == reencoded(one, EXPLICIT_VR_BIG_ENDIAN)
        assert kept.transfer_syntax_uid == EXPLICIT_VR_BIG_ENDIAN
