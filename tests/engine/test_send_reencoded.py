"""Files that leave in another syntax than their own: contexts, streams, and what breaks within one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

import dcmhaul
from dcmhaul.engine.sender import Reencoding, SendPlan
from dcmhaul.errors import CannotReencode, NoAcceptedContext, UnreadableInstance
from dcmhaul.objects import reencoded
from dcmhaul.objects.synth import write_studies
from dcmhaul.services.storage import StorageScp, StoreOutcome
from dcmhaul.uids import DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN
from tests.datasets import element, part10, plain_dataset
from tests.engine.test_sender import EXPLICIT, IMPLICIT, Peer, Run, serving

if TYPE_CHECKING:
    from pathlib import Path

    from dcmhaul.net import FileRange
    from dcmhaul.objects.instances import OutgoingInstance

RLE = "1.2.840.10008.1.2.5"


def unreported(_instance: OutgoingInstance, _target: str) -> None: ...


def test_a_class_has_one_context_more_for_what_its_files_are_not() -> None:
    plan = SendPlan()
    for path, sop_class, syntax in (
        ("a", "1.2.3", EXPLICIT),
        ("b", "1.2.3", IMPLICIT),
        ("c", "1.2.4", RLE),
        ("d", "1.2.5", EXPLICIT_VR_BIG_ENDIAN),
    ):
        plan.add(path, sop_class, syntax)
    [group] = plan.groups([], Reencoding(unreported))
    proposed = [(c.context_id, c.abstract_syntax, c.transfer_syntaxes) for c in group.contexts]
    others = (DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)
    assert proposed[4:] == [
        (9, "1.2.3", others),
        (11, "1.2.5", (EXPLICIT, IMPLICIT, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)),
    ]
    [group] = plan.groups([IMPLICIT], Reencoding(unreported, transcode=True))
    assert [c.abstract_syntax for c in group.contexts[4:]] == ["1.2.3", "1.2.4", "1.2.5"]
    assert group.contexts[5].transfer_syntaxes == (IMPLICIT, EXPLICIT, *others)


def test_own_syntaxes_come_first_where_contexts_are_many() -> None:
    plan = SendPlan()
    for number in range(150):
        plan.add(f"{number}", f"1.2.{number}", EXPLICIT)
    first, second = plan.groups([], Reencoding(unreported))
    assert len(first.contexts) == 128
    assert {c.transfer_syntaxes for c in first.contexts} == {(EXPLICIT,)}
    assert len(second.contexts) == 44


class Sending(Run):
    """A sender that re-encodes, for a peer that takes one syntax."""

    def __init__(self, peer: Peer) -> None:
        super().__init__(peer)
        self.said: list[str] = []
        self.reencoding = Reencoding(lambda _instance, target: self.said.append(target))
        self.sender._reencoding = self.reencoding

    async def send_all(self, folder: Path) -> int:
        plan = SendPlan()
        for path in sorted(folder.rglob("*.dcm")):
            plan.add(str(path), "1.2.840.10008.5.1.4.1.1.2", EXPLICIT)
        [group] = plan.groups([], self.reencoding)
        return await self.sender.send(group, self.request(group))


def narrow(syntax: str) -> Peer:
    peer = Peer()
    peer.services = [StorageScp(None, transfer_syntaxes=(syntax,))]
    return peer


@pytest.mark.parametrize(
    "syntax", [IMPLICIT, EXPLICIT_VR_BIG_ENDIAN, DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN]
)
async def test_large_and_small_files(tmp_path: Path, syntax: str) -> None:
    write_studies(tmp_path / "small", 1, 1, 3, rows=8, columns=8)
    write_studies(tmp_path / "large", 1, 1, 3, rows=512, columns=512)
    peer = narrow(syntax)
    async with serving(peer):
        run = Sending(peer)
        assert await run.send_all(tmp_path) == 0
    assert (run.stored, peer.associations) == (6, 1)
    assert run.said == [syntax] * 6
    assert all(outcome.length for outcome in run.outcomes)


async def test_what_cannot_be_said_fails_and_the_others_go_on(tmp_path: Path) -> None:
    write_studies(tmp_path, 1, 1, 2, rows=8, columns=8)
    odd = plain_dataset(extra=element(0x00280010, "US", b"123"))
    (tmp_path / "0.dcm").write_bytes(part10(odd))
    peer = narrow(EXPLICIT_VR_BIG_ENDIAN)
    async with serving(peer):
        run = Sending(peer)
        assert await run.send_all(tmp_path) == 0
    assert (run.stored, peer.associations) == (2, 1)
    [error] = [outcome.error for outcome in run.outcomes if outcome.error is not None]
    assert isinstance(error, CannotReencode)


async def test_a_file_that_shrinks_within_its_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is aborted, that file has failed by name, and the others go on."""
    write_studies(tmp_path, 1, 1, 3, rows=1024, columns=1024)
    victim = sorted(tmp_path.rglob("*.dcm"))[1]
    real = reencoded._read

    def read(dataset: memoryview | bytes | FileRange, at: int, length: int) -> bytes | memoryview:
        if at == 2 * reencoded._PIECE_SIZE and length == reencoded._PIECE_SIZE:
            # So far into its dataset the first one is whole, the second is not.
            shrunk.append(at)
            if len(shrunk) == 2:
                os.truncate(victim, 300_000)
        return real(dataset, at, length)

    shrunk: list[int] = []
    monkeypatch.setattr(reencoded, "_read", read)
    peer = narrow(IMPLICIT)
    async with serving(peer):
        run = Sending(peer)
        assert await run.send_all(tmp_path) == 0
    assert (run.stored, peer.associations) == (2, 2)
    [failed] = [outcome for outcome in run.outcomes if not outcome.stored]
    assert isinstance(failed.error, UnreadableInstance)
    assert str(victim) in str(failed.error)


async def test_without_a_context_in_any_of_the_four_it_fails(tmp_path: Path) -> None:
    write_studies(tmp_path, 1, 1, 2, rows=8, columns=8)
    peer = narrow(RLE)
    async with serving(peer):
        run = Sending(peer)
        await run.send_all(tmp_path)
    assert isinstance(run.sender.error, NoAcceptedContext)
    assert (run.stored, run.said) == (0, [])


async def test_the_library_re_encodes_where_it_is_asked_to(tmp_path: Path) -> None:
    write_studies(tmp_path, 1, 1, 2, rows=8, columns=8)
    peer = narrow(IMPLICIT)
    async with serving(peer):
        where = f"ANY@{peer.host}:{peer.port}"
        with pytest.raises(NoAcceptedContext):
            await dcmhaul.send(where, [tmp_path])
        told: list[str] = []

        def report(one: object) -> None:
            assert isinstance(one, StoreOutcome)
            told.append(one.instance.transfer_syntax_uid)

        assert await dcmhaul.send(where, [tmp_path], reencode=True, report=report) == 2
    assert told == [IMPLICIT] * 2
