"""The library as docs/library.md shows it: each example runs, and what else its names promise."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pydicom
import pydicom.data
import pytest
import trio
from pydicom import Dataset
from pydicom.uid import JPEG2000Lossless

import dcmhaul
from dcmhaul import uids
from dcmhaul.errors import (
    AssociationRejected,
    ConfigurationError,
    NoAcceptedContext,
    TransportError,
    UnreadableInstance,
)
from dcmhaul.objects.instances import StoreRefused, StoreReply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PAGE = Path(__file__).resolve().parents[2] / "docs" / "library.md"
EXAMPLES = dict(
    re.findall(r"^## (\w+)$.*?^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
)
IMAGES = [
    Path(pydicom.data.__file__).parent / "test_files" / name
    for name in ("CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "rtdose.dcm")
]


def images(folder: Path) -> Path:
    made = folder / "images"
    made.mkdir()
    for path in IMAGES:
        (made / path.name).write_bytes(path.read_bytes())
    return made


async def run_example(name: str, folder: Path, **peers: dcmhaul.Peer) -> str:
    """The example as a program of its own, with the addresses that serve here."""
    text = EXAMPLES[name]
    for title, peer in peers.items():
        text = re.sub(rf"{title}@127\.0\.0\.1:\d+", str(peer), text)
    run = partial(
        subprocess.run, [sys.executable, "-c", text], cwd=folder, capture_output=True, text=True
    )
    with trio.fail_after(60):
        done = await trio.to_thread.run_sync(run, abandon_on_cancel=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@asynccontextmanager
async def serving(folder: Path, *, filled: bool = True) -> AsyncIterator[dcmhaul.Peer]:
    """An archive of its own, with the images in it."""
    async with dcmhaul.open_archive(folder, ae_title="ARCHIVE") as archive:
        if filled:
            await archive.import_files(IMAGES)
        async with dcmhaul.serve(archive.services(), ae_title="ARCHIVE") as peer:
            yield peer


# -- the page


async def test_verification(tmp_path: Path) -> None:
    async with serving(tmp_path / "archive", filled=False) as peer:
        assert await run_example("Verification", tmp_path, ARCHIVE=peer) == "0x0000 Success\n"


async def test_storage_and_query(tmp_path: Path) -> None:
    images(tmp_path)
    async with serving(tmp_path / "archive", filled=False) as peer:
        sent = await run_example("Storage", tmp_path, ARCHIVE=peer)
        assert sent == f"{len(IMAGES)} instances are stored\n"
        found = (await run_example("Query", tmp_path, ARCHIVE=peer)).split()
    studies = {pydicom.dcmread(path).StudyInstanceUID for path in IMAGES}
    assert sorted(found) == sorted(studies)


async def test_retrieve(tmp_path: Path) -> None:
    async with serving(tmp_path / "archive") as peer:
        assert await run_example("Retrieve", tmp_path, ARCHIVE=peer) == "1 0x0000 Success\n"
    [fetched] = (tmp_path / "fetched").iterdir()
    assert fetched.read_bytes()[-32768:] == IMAGES[0].read_bytes()[-32768:]


async def test_normalized(tmp_path: Path) -> None:
    async with serving(tmp_path / "archive", filled=False) as peer:
        assert await run_example("Normalized", tmp_path, ARCHIVE=peer) == "IN PROGRESS\n"


async def test_commitment(tmp_path: Path) -> None:
    images(tmp_path)
    async with serving(tmp_path / "archive") as peer:
        assert await run_example("Commitment", tmp_path, ARCHIVE=peer) == "0x0000\n0x0112\n"


async def test_unified(tmp_path: Path) -> None:
    async with serving(tmp_path / "archive", filled=False) as peer:
        said = (await run_example("Unified", tmp_path, ARCHIVE=peer)).splitlines()
    assert said == [
        "0x0000 Success",
        "0x0000 Success",
        "0xB304 Warning: already in the requested state of CANCELED",
    ]


async def test_serving(tmp_path: Path) -> None:
    images(tmp_path)
    said = await run_example("Serving", tmp_path)
    assert said.startswith(f"{len(IMAGES)} instances are in MINE@127.0.0.1:")


async def test_migration(tmp_path: Path) -> None:
    async with (
        serving(tmp_path / "archive") as source,
        dcmhaul.open_archive(tmp_path / "other", ae_title="OTHER") as other,
        dcmhaul.serve(other.services(), ae_title="OTHER") as destination,
    ):
        said = await run_example("Migration", tmp_path, ARCHIVE=source, OTHER=destination)
        assert said == "0\n"
        assert other.statistics().holds.instances == len(IMAGES)


def test_every_example_has_its_test() -> None:
    tested = {name for name in globals() if name.startswith("test_")}
    assert EXAMPLES
    for name in EXAMPLES:
        assert any(name.lower() in test for test in tested), name


# -- the names


def test_every_name_is_offered_by_the_package_and_no_other() -> None:
    from dcmhaul import library

    assert {*dcmhaul.__all__} == {*library.__all__, "__version__"}
    for name in library.__all__:
        assert getattr(dcmhaul, name) is getattr(library, name)
    with pytest.raises(AttributeError, match="no attribute 'sned'"):
        dcmhaul.sned  # noqa: B018


def test_the_package_alone_imports_no_trio() -> None:
    program = "import dcmhaul, sys; print('trio' in sys.modules, dcmhaul.__version__ != '')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False True\n"


# -- associations


async def test_what_is_proposed_and_received_is_negotiated(tmp_path: Path) -> None:
    ct = "1.2.840.10008.5.1.4.1.1.2"
    model = dcmhaul.QueryModel.PATIENT_ROOT
    async with serving(tmp_path / "archive") as peer:
        async with dcmhaul.open_association(
            peer,
            [model.get_uid, uids.VERIFICATION],
            receive=[(ct, JPEG2000Lossless)],
            window=4,
            pdu_length_max=32768,
        ) as association:
            agreement = association.agreement
            assert agreement.window_invoked == 4
            found = {
                (context.abstract_syntax, context.transfer_syntax)
                for context in agreement.accepted.values()
            }
            assert found == {
                (model.get_uid, uids.EXPLICIT_VR_LITTLE_ENDIAN),
                (uids.VERIFICATION, uids.IMPLICIT_VR_LITTLE_ENDIAN),
                (ct, JPEG2000Lossless),
            }
            assert await dcmhaul.echo(association) == 0


async def test_a_called_title_that_is_not_served_is_rejected(tmp_path: Path) -> None:
    async with serving(tmp_path / "archive", filled=False) as peer:
        with pytest.raises(AssociationRejected):
            async with dcmhaul.open_association(f"WRONG@{peer.address}"):
                pass


@pytest.mark.parametrize("text", ["", "A@", "TITLE@127.0.0.1", "TITLE@127.0.0.1:99999"])
async def test_what_is_no_peer_is_said(text: str) -> None:
    with pytest.raises(ConfigurationError):
        async with dcmhaul.open_association(text):
            pass


async def test_a_service_of_ones_own() -> None:
    """What `find`'s block leaves early is cancelled, and the association goes on."""
    asked: list[tuple[dcmhaul.QueryModel, str, str]] = []

    def answer(model: dcmhaul.QueryModel, identifier: Dataset, calling: str) -> Iterator[Dataset]:
        asked.append((model, identifier.PatientName, calling))
        for number in range(5):
            match = Dataset()
            match.PatientName = f"DOE^{number}"
            yield match

    model = dcmhaul.QueryModel.WORKLIST
    query = Dataset()
    query.PatientName = "DOE*"
    found = []
    services = [dcmhaul.FindScp(answer, models=[model])]
    async with (
        dcmhaul.serve(services) as peer,
        dcmhaul.open_association(peer, [model.find_uid], calling_ae_title="ME") as association,
    ):
        async with dcmhaul.find(association, model, query) as responses:
            async for response in responses:
                found.append(response.dataset().PatientName)
                break
        async with dcmhaul.find(association, model, query) as responses:
            statuses = [response.status async for response in responses]
    assert found == ["DOE^0"]
    assert statuses == [0xFF00] * 5 + [0]
    assert asked == [(model, "DOE*", "ME")] * 2


# -- send


async def test_every_instance_and_every_other_file_is_reported_once(tmp_path: Path) -> None:
    folder = images(tmp_path)
    (folder / "notes.txt").write_text("no DICOM")
    (folder / "cut.dcm").write_bytes(IMAGES[0].read_bytes()[:20_000])
    told: list[dcmhaul.StoreOutcome | dcmhaul.SkippedEntry | dcmhaul.FailedEntry] = []
    async with serving(tmp_path / "archive", filled=False) as peer:
        assert await dcmhaul.send(peer, [folder], associations=2, report=told.append) == len(IMAGES)
    kinds = sorted(type(entry).__name__ for entry in told)
    assert kinds == ["FailedEntry", "SkippedEntry", *["StoreOutcome"] * len(IMAGES)]


async def test_without_a_report_the_failure_is_raised_when_the_rest_is_sent(tmp_path: Path) -> None:
    folder = images(tmp_path)
    (folder / "CT_small.dcm").write_bytes(IMAGES[0].read_bytes()[:20_000])
    sinks = dcmhaul.FolderSinks(folder.parent)
    with sinks:
        async with dcmhaul.serve([dcmhaul.StorageScp(sinks)]) as peer:
            with pytest.raises(UnreadableInstance, match=r"CT_small\.dcm"):
                await dcmhaul.send(peer, [folder])
    assert sinks.stored == len(IMAGES) - 1


async def test_an_answer_that_is_a_failure_is_raised(tmp_path: Path) -> None:
    def refuse(_incoming: object) -> NoReturn:
        raise StoreRefused(StoreReply(status=0xA700, error_comment="full"))

    async with dcmhaul.serve([dcmhaul.StorageScp(refuse)]) as peer:
        with pytest.raises(dcmhaul.DcmhaulError, match=r"CT_small\.dcm: .* 0xA700"):
            await dcmhaul.send(peer, [IMAGES[0]])


COMMITMENT = uids.STORAGE_COMMITMENT_PUSH


@pytest.mark.parametrize("ends", [True, False])
async def test_a_commitment_without_a_result(ends: bool) -> None:
    """The peer ends the association, or says nothing for as long as is waited."""

    async def act(request: dcmhaul.NormalizedRequest) -> dcmhaul.NormalizedAnswer:
        after = request.association.release if ends else trio.lowlevel.checkpoint
        return dcmhaul.NormalizedAnswer(afterwards=after)

    scp = dcmhaul.NormalizedScp([dcmhaul.SopClass(uid=COMMITMENT, operations={"N-ACTION": act})])
    async with (
        dcmhaul.serve([scp]) as peer,
        dcmhaul.open_association(peer, [COMMITMENT]) as association,
    ):
        seconds = 30 if ends else 0.1
        with trio.fail_after(10):
            outcomes = await dcmhaul.commit(
                association, [(uids.VERIFICATION, "1.2.3")], seconds=seconds
            )
        assert outcomes == {"1.2.3": None}


async def test_a_commitment_that_is_refused(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, filled=False) as peer,
        dcmhaul.open_association(peer, [COMMITMENT]) as association,
    ):
        with pytest.raises(dcmhaul.DcmhaulError, match="0x0106"):
            await dcmhaul.commit(association, [("", "")])


async def test_a_class_that_is_not_accepted_is_raised() -> None:
    async with dcmhaul.serve([dcmhaul.VerificationScp()]) as peer:
        with pytest.raises(NoAcceptedContext):
            await dcmhaul.send(peer, [IMAGES[0]])


async def test_a_peer_that_is_not_there_is_raised() -> None:
    async with dcmhaul.serve([dcmhaul.VerificationScp()]) as gone:
        pass
    with pytest.raises(TransportError):
        await dcmhaul.send(gone, [IMAGES[0]])
