"""The archive as SCP of print management and of instance availability notifications."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

import dcmhaul
from dcmhaul import uids
from dcmhaul.archive import printing
from tests.archive.test_unified import item

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from pydicom import Dataset

    from dcmhaul import Association, NormalizedResponse, Peer

GRAY, COLOR = uids.GRAYSCALE_PRINT_META, uids.COLOR_PRINT_META
SESSION, FILM = uids.BASIC_FILM_SESSION, uids.BASIC_FILM_BOX
GRAY_BOX, COLOR_BOX = uids.GRAYSCALE_IMAGE_BOX, uids.COLOR_IMAGE_BOX
LUT, PRINTER = uids.PRESENTATION_LUT, uids.PRINTER
NOTICE = uids.INSTANCE_AVAILABILITY_NOTIFICATION
CONTEXTS = (GRAY, COLOR, SESSION, FILM, LUT, NOTICE)
S, F = "1.2.1", "1.2.2"


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[tuple[dcmhaul.Archive, Peer, Association]]:
    """An archive, where it is served, and an association with it."""
    async with (
        dcmhaul.open_archive(folder, ae_title="ARCHIVE") as archive,
        dcmhaul.serve(archive.services(), ae_title="ARCHIVE") as peer,
        dcmhaul.open_association(peer, CONTEXTS, calling_ae_title="SCU") as scu,
    ):
        yield archive, peer, scu


def film(layout: str = "STANDARD\\2,3", session: str = S) -> Dataset:
    of = item(ReferencedSOPClassUID=SESSION, ReferencedSOPInstanceUID=session)
    return item(ImageDisplayFormat=layout, ReferencedFilmSessionSequence=[of])


async def make(
    scu: Association, sop_class: str, uid: str, attributes: Dataset | None, context: str = GRAY
) -> NormalizedResponse:
    return await dcmhaul.n_create(scu, sop_class, uid, attributes, context=context)


async def made_film(
    scu: Association, context: str = GRAY, layout: str = "STANDARD\\2,3"
) -> Dataset:
    assert (await make(scu, SESSION, S, item(NumberOfCopies=1), context)).status == 0
    response = await make(scu, FILM, F, film(layout), context)
    assert response.status == 0
    answered = response.dataset()
    assert answered is not None
    return answered


@pytest.mark.parametrize(
    ("context", "box", "images"),
    [
        (GRAY, GRAY_BOX, "BasicGrayscaleImageSequence"),
        (COLOR, COLOR_BOX, "BasicColorImageSequence"),
    ],
)
async def test_the_life_of_a_film(tmp_path: Path, context: str, box: str, images: str) -> None:
    async with opened(tmp_path) as (_archive, _peer, scu):
        boxes = (await made_film(scu, context)).ReferencedImageBoxSequence
        assert [held.ReferencedSOPClassUID for held in boxes] == [box] * 6
        uid = boxes[5].ReferencedSOPInstanceUID
        image = item(Rows=1, Columns=2, PixelData=b"\1\2")
        image["PixelData"].VR = "OB"
        pixels = item(ImageBoxPosition=6)
        setattr(pixels, images, [image])
        n_set, n_action = dcmhaul.n_set, dcmhaul.n_action
        assert (await n_set(scu, box, uid, pixels, context=context)).status == 0
        setattr(pixels, images, [])
        assert (await n_set(scu, box, uid, pixels, context=context)).status == 0
        response = await n_set(scu, box, uid, item(ImageBoxPosition=6), context=context)
        assert response.status == 0x0120
        assert (await n_set(scu, box, "1.9", pixels, context=context)).status == 0x0112
        changes = item(MagnificationType="NONE")
        assert (await n_set(scu, FILM, F, changes, context=context)).status == 0
        assert (await n_set(scu, FILM, F, film(), context=context)).status == 0x0105
        changes = item(NumberOfCopies=2)
        assert (await n_set(scu, SESSION, S, changes, context=context)).status == 0
        assert (await n_action(scu, FILM, F, 1, context=context)).status == 0xC602
        assert (await n_action(scu, FILM, F, 2, context=context)).status == 0x0123
        assert (await n_action(scu, SESSION, S, 1, context=context)).status == 0xC601
        assert (await dcmhaul.n_delete(scu, FILM, F, context=context)).status == 0
        assert (await dcmhaul.n_delete(scu, FILM, F, context=context)).status == 0x0112
        assert (await n_set(scu, box, uid, pixels, context=context)).status == 0x0112
        assert (await n_action(scu, SESSION, S, 1, context=context)).status == 0xC600


async def test_a_session_takes_its_films_with_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as (_archive, _peer, scu):
        await made_film(scu)
        assert (await make(scu, SESSION, S, None)).status == 0x0111
        assert (await make(scu, SESSION, "1.2.9", None)).status == 0x0213
        assert (await make(scu, FILM, F, film())).status == 0x0111
        assert (await dcmhaul.n_delete(scu, SESSION, S, context=GRAY)).status == 0
        assert (await dcmhaul.n_delete(scu, SESSION, S, context=GRAY)).status == 0x0112
        assert (await dcmhaul.n_delete(scu, FILM, F, context=GRAY)).status == 0x0112
        assert (await make(scu, SESSION, S, None, SESSION)).status == 0
        assert (await make(scu, FILM, F, film(), FILM)).status == 0


async def test_what_an_association_made_is_its_own(tmp_path: Path) -> None:
    async with opened(tmp_path) as (_archive, peer, scu):
        await made_film(scu)
        async with dcmhaul.open_association(peer, [GRAY]) as other:
            assert (await dcmhaul.n_delete(other, FILM, F, context=GRAY)).status == 0x0112
            assert (await make(other, FILM, F, film())).status == 0x0106


@pytest.mark.parametrize(
    ("layout", "count"),
    [("ROW\\2,3", 5), ("COL\\1,2,1", 4), ("SLIDE", 1), ("CUSTOM\\1", 1), ("STANDARD\\1,1", 1)],
)
async def test_display_formats(tmp_path: Path, layout: str, count: int) -> None:
    async with opened(tmp_path) as (_archive, _peer, scu):
        answered = await made_film(scu, layout=layout)
        assert len(answered.ReferencedImageBoxSequence) == count


@pytest.mark.parametrize(
    ("attributes", "status"),
    [
        (film("STANDARD\\0,1"), 0x0106),
        (film("STANDARD\\999,999"), 0x0106),
        (film("NONSENSE"), 0x0106),
        (film(session="1.9"), 0x0106),
        (item(ImageDisplayFormat="SLIDE"), 0x0120),
        (None, 0x0120),
    ],
)
async def test_films_that_cannot_be_made(
    tmp_path: Path, attributes: Dataset | None, status: int
) -> None:
    async with opened(tmp_path) as (_archive, _peer, scu):
        assert (await make(scu, SESSION, S, None)).status == 0
        assert (await make(scu, FILM, F, attributes)).status == status


async def test_presentation_luts_and_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as (_archive, _peer, scu):
        shape = item(PresentationLUTShape="IDENTITY")
        assert (await make(scu, LUT, "1.3", item(), LUT)).status == 0x0120
        assert (await make(scu, LUT, "1.3", shape, LUT)).status == 0
        assert (await make(scu, LUT, "1.3", shape, LUT)).status == 0x0111
        chosen = await dcmhaul.n_create(scu, LUT, None, item(PresentationLUTSequence=[shape]))
        assert chosen.status == 0
        monkeypatch.setattr(printing, "INSTANCES_MAX", 2)
        assert (await make(scu, LUT, "1.4", shape, LUT)).status == 0x0213
        assert (await dcmhaul.n_delete(scu, LUT, chosen.sop_instance_uid)).status == 0
        assert (await dcmhaul.n_delete(scu, LUT, "1.9")).status == 0x0112


async def test_the_printer_tells_that_there_is_none(tmp_path: Path) -> None:
    async with opened(tmp_path) as (_archive, _peer, scu):
        response = await dcmhaul.n_get(scu, PRINTER, printing.PRINTER_INSTANCE, context=GRAY)
        told = response.dataset()
        assert told is not None
        assert (response.status, told.PrinterStatus, told.PrinterName) == (0, "WARNING", "ARCHIVE")
        assert (await dcmhaul.n_get(scu, PRINTER, "1.9", context=GRAY)).status == 0x0112


# -- instance availability ----------------------------------------------------------------------


def notice(**of_instance: object) -> Dataset:
    instance = item(
        ReferencedSOPClassUID=uids.VERIFICATION,
        ReferencedSOPInstanceUID="1.2.3",
        InstanceAvailability="ONLINE",
        RetrieveAETitle="PACS",
    )
    instance.update(item(**of_instance))
    series = item(SeriesInstanceUID="1.2", ReferencedSOPSequence=[instance])
    return item(
        StudyInstanceUID="1.1",
        ReferencedPerformedProcedureStepSequence=[],
        ReferencedSeriesSequence=[series],
    )


async def test_notices_are_kept(tmp_path: Path) -> None:
    async with opened(tmp_path) as (archive, _peer, scu):
        assert (await make(scu, NOTICE, "1.5", notice(), NOTICE)).status == 0
        assert (await make(scu, NOTICE, "1.5", notice(), NOTICE)).status == 0x0111
        chosen = await dcmhaul.n_create(scu, NOTICE, None, notice(InstanceAvailability="OFFLINE"))
        assert chosen.status == 0
        [(first, kept), (_, other)] = await archive.notices.read()
        assert (kept.sop_instance_uid, kept.ae_title) == ("1.5", "SCU")
        assert other.sop_instance_uid == chosen.sop_instance_uid
        [series] = other.attributes.ReferencedSeriesSequence
        assert series.ReferencedSOPSequence[0].InstanceAvailability == "OFFLINE"
        assert len(await archive.notices.read(after=first)) == 1


@pytest.mark.parametrize(
    ("attributes", "status", "named"),
    [
        (None, 0x0120, 0x0020000D),
        (item(StudyInstanceUID="1.1"), 0x0120, 0x00081115),
        (notice(InstanceAvailability="SOMEWHERE"), 0x0106, 0x00080056),
        (notice(RetrieveAETitle=""), 0x0121, 0x00080054),
    ],
)
async def test_notices_that_are_not_taken(
    tmp_path: Path, attributes: Dataset, status: int, named: int
) -> None:
    async with opened(tmp_path) as (archive, _peer, scu):
        response = await make(scu, NOTICE, "1.5", attributes, NOTICE)
        assert (response.status, response.attributes) == (status, (named,))
        assert await archive.notices.read() == []
