"""The archive as SCP of print management (PS3.4 Annex H), without a printer: its instances, and no film.

What a print SCU makes lives as long as its association; pixels are looked at and dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from dcmhaul import uids
from dcmhaul.protocol import statuses
from dcmhaul.services.normalized import (
    NormalizedAnswer,
    NormalizedRefused,
    SopClass,
    check_present,
    give_attributes,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from dcmhaul.net import Association
    from dcmhaul.services.normalized import NormalizedRequest

__all__ = ["PrintScp"]

PRINTER_INSTANCE: Final = "1.2.840.10008.5.1.1.17"
PRINT: Final = 1
"""Action Type ID (PS3.4 §H.4.1.2.4, §H.4.2.2.4)."""
SESSION_WITHOUT_FILM: Final = 0xC600
SESSION_QUEUE_FULL: Final = 0xC601
FILM_QUEUE_FULL: Final = 0xC602
INSTANCES_MAX: Final = 1000
"""Instances of one association."""
IMAGES_MAX: Final = 100
"""Image boxes of one film box."""

_DISPLAY_FORMAT: Final = 0x20100010
_SESSIONS: Final = 0x20100500
_POSITION: Final = 0x20200010
_GRAYSCALE_IMAGES: Final = 0x20200110
_COLOR_IMAGES: Final = 0x20200111
_LUT_SEQUENCE: Final = 0x20500010
_LUT_SHAPE: Final = 0x20500020
_LAYOUT: Final = re.compile(r"(STANDARD|ROW|COL)\\(\d{1,3}(?:,\d{1,3})*)", re.ASCII)


@dataclass(slots=True)
class _Film:
    """A film box: its attributes, and the UIDs of its image boxes."""

    attributes: Dataset
    images: list[str]


@dataclass(slots=True)
class _Job:
    """The instances of one association."""

    session: tuple[str, Dataset] | None = None
    films: dict[str, _Film] = field(default_factory=dict)
    luts: set[str] = field(default_factory=set)

    def check_room(self, uid: str) -> None:
        """NormalizedRefused where that UID is in use, or there are too many."""
        used = {*self.films, *self.luts, *(self.session or ())[:1]}
        if uid in used:
            raise NormalizedRefused(statuses.DUPLICATE_SOP_INSTANCE, "this instance is known")
        if len(used) >= INSTANCES_MAX:
            raise NormalizedRefused(statuses.RESOURCE_LIMITATION, "too many print instances")


class PrintScp:
    """Basic Film Session, Film Box, Image Boxes, Presentation LUT and Printer."""

    def __init__(self, ae_title: str) -> None:
        self._ae_title = ae_title
        self._jobs: WeakKeyDictionary[Association, _Job] = WeakKeyDictionary()
        gray, color = uids.GRAYSCALE_PRINT_META, uids.COLOR_PRINT_META
        both = (gray, color)
        self.sop_classes = (
            SopClass(
                uid=uids.BASIC_FILM_SESSION,
                contexts=(uids.BASIC_FILM_SESSION, *both),
                operations={
                    "N-CREATE": self._create_session,
                    "N-SET": self._set_session,
                    "N-DELETE": self._delete_session,
                    "N-ACTION": self._print_session,
                },
            ),
            SopClass(
                uid=uids.BASIC_FILM_BOX,
                contexts=(uids.BASIC_FILM_BOX, *both),
                operations={
                    "N-CREATE": self._create_film,
                    "N-SET": self._set_film,
                    "N-DELETE": self._delete_film,
                    "N-ACTION": self._print_film,
                },
            ),
            SopClass(
                uid=uids.GRAYSCALE_IMAGE_BOX,
                contexts=(uids.GRAYSCALE_IMAGE_BOX, gray),
                operations={"N-SET": self._set_image},
            ),
            SopClass(
                uid=uids.COLOR_IMAGE_BOX,
                contexts=(uids.COLOR_IMAGE_BOX, color),
                operations={"N-SET": self._set_image},
            ),
            SopClass(
                uid=uids.PRESENTATION_LUT,
                operations={"N-CREATE": self._create_lut, "N-DELETE": self._delete_lut},
            ),
            SopClass(
                uid=uids.PRINTER,
                contexts=(uids.PRINTER, *both),
                operations={"N-GET": self._get_printer},
                well_known=PRINTER_INSTANCE,
            ),
        )

    def _job(self, request: NormalizedRequest) -> _Job:
        return self._jobs.setdefault(request.association, _Job())

    # -- film session ---------------------------------------------------------------------------

    async def _create_session(self, request: NormalizedRequest) -> NormalizedAnswer:
        job = self._job(request)
        uid = request.sop_instance_uid or uids.new_uid()
        job.check_room(uid)
        if job.session is not None:
            raise NormalizedRefused(
                statuses.RESOURCE_LIMITATION, "this association has a film session"
            )
        job.session = uid, _given(request)
        return NormalizedAnswer(sop_instance_uid=uid)

    def _session(self, request: NormalizedRequest) -> Dataset:
        session = self._job(request).session
        if session is None or session[0] != request.sop_instance_uid:
            raise NormalizedRefused(statuses.NO_SUCH_SOP_INSTANCE, "no such film session")
        return session[1]

    async def _set_session(self, request: NormalizedRequest) -> NormalizedAnswer:
        self._session(request).update(_given(request))
        return NormalizedAnswer()

    async def _delete_session(self, request: NormalizedRequest) -> NormalizedAnswer:
        """With it all that hangs from it (PS3.4 §H.4.1.2.3)."""
        self._session(request)
        job = self._job(request)
        job.session = None
        job.films.clear()
        return NormalizedAnswer()

    async def _print_session(self, request: NormalizedRequest) -> NormalizedAnswer:
        self._session(request)
        _check_print(request)
        if not self._job(request).films:
            raise NormalizedRefused(SESSION_WITHOUT_FILM, "the film session has no film box")
        raise NormalizedRefused(SESSION_QUEUE_FULL, "nothing is printed here")

    # -- film box -------------------------------------------------------------------------------

    async def _create_film(self, request: NormalizedRequest) -> NormalizedAnswer:
        job = self._job(request)
        attributes = _given(request)
        check_present(attributes, (_DISPLAY_FORMAT, _SESSIONS))
        uid = request.sop_instance_uid or uids.new_uid()
        job.check_room(uid)
        of = [str(item.get("ReferencedSOPInstanceUID", "")) for item in attributes[_SESSIONS].value]
        if job.session is None or of != [job.session[0]]:
            raise NormalizedRefused(
                statuses.INVALID_ATTRIBUTE_VALUE,
                "not the film session of this association",
                attributes=(_SESSIONS,),
            )
        count = _images(attributes)
        color = request.context == uids.COLOR_PRINT_META
        images = [uids.new_uid() for _ in range(count)]
        attributes.ReferencedImageBoxSequence = [
            _reference(uids.COLOR_IMAGE_BOX if color else uids.GRAYSCALE_IMAGE_BOX, image)
            for image in images
        ]
        job.films[uid] = _Film(attributes, images)
        return NormalizedAnswer(sop_instance_uid=uid, dataset=attributes)

    def _film(self, request: NormalizedRequest) -> _Film:
        film = self._job(request).films.get(request.sop_instance_uid)
        if film is None:
            raise NormalizedRefused(statuses.NO_SUCH_SOP_INSTANCE, "no such film box")
        return film

    async def _set_film(self, request: NormalizedRequest) -> NormalizedAnswer:
        film = self._film(request)
        changes = _given(request)
        if fixed := tuple(tag for tag in (_DISPLAY_FORMAT, _SESSIONS) if tag in changes):
            raise NormalizedRefused(
                statuses.NO_SUCH_ATTRIBUTE, "only N-CREATE sets these", attributes=fixed
            )
        film.attributes.update(changes)
        return NormalizedAnswer()

    async def _delete_film(self, request: NormalizedRequest) -> NormalizedAnswer:
        self._film(request)
        del self._job(request).films[request.sop_instance_uid]
        return NormalizedAnswer()

    async def _print_film(self, request: NormalizedRequest) -> NormalizedAnswer:
        self._film(request)
        _check_print(request)
        raise NormalizedRefused(FILM_QUEUE_FULL, "nothing is printed here")

    async def _set_image(self, request: NormalizedRequest) -> NormalizedAnswer:
        films = self._job(request).films.values()
        if not any(request.sop_instance_uid in film.images for film in films):
            raise NormalizedRefused(statuses.NO_SUCH_SOP_INSTANCE, "no such image box")
        attributes = _given(request)
        color = request.sop_class_uid == uids.COLOR_IMAGE_BOX
        images = _COLOR_IMAGES if color else _GRAYSCALE_IMAGES
        wanted = [_POSITION]
        if images not in attributes or attributes[images].value:
            wanted.append(images)  # without items it takes the image away
        check_present(attributes, wanted)
        return NormalizedAnswer()

    # -- presentation LUT and printer -----------------------------------------------------------

    async def _create_lut(self, request: NormalizedRequest) -> NormalizedAnswer:
        job = self._job(request)
        attributes = _given(request)
        if _LUT_SEQUENCE not in attributes:
            check_present(attributes, (_LUT_SHAPE,))
        uid = request.sop_instance_uid or uids.new_uid()
        job.check_room(uid)
        job.luts.add(uid)
        return NormalizedAnswer(sop_instance_uid=uid)

    async def _delete_lut(self, request: NormalizedRequest) -> NormalizedAnswer:
        luts = self._job(request).luts
        if request.sop_instance_uid not in luts:
            raise NormalizedRefused(statuses.NO_SUCH_SOP_INSTANCE, "no such presentation LUT")
        luts.remove(request.sop_instance_uid)
        return NormalizedAnswer()

    async def _get_printer(self, request: NormalizedRequest) -> NormalizedAnswer:
        """A printer that needs somebody to look after it (PS3.3 §C.13.9.1): there is none."""
        from pydicom.dataset import Dataset

        printer = Dataset()
        printer.PrinterStatus = "WARNING"
        printer.PrinterStatusInfo = "CHECK PRINTER"
        printer.PrinterName = self._ae_title
        printer.Manufacturer = "dcmhaul"
        return give_attributes(printer, request.attributes)


def _given(request: NormalizedRequest) -> Dataset:
    from pydicom.dataset import Dataset

    return Dataset() if request.dataset is None else request.dataset


def _check_print(request: NormalizedRequest) -> None:
    if request.type_id != PRINT:
        raise NormalizedRefused(statuses.NO_SUCH_ACTION_TYPE, "the action type is 1")


def _images(attributes: Dataset) -> int:
    """How many image boxes a display format has (PS3.3 §C.13.3)."""
    value = attributes[_DISPLAY_FORMAT].value
    text = value if isinstance(value, str) else "\\".join(map(str, value))
    layout = _LAYOUT.fullmatch(text.strip())
    count = 1
    if layout is not None:
        numbers = [int(number) for number in layout[2].split(",")]
        if layout[1] == "STANDARD":
            for number in numbers[:2]:
                count *= number
        else:
            count = sum(numbers)
    if layout is None and not text.startswith(("SLIDE", "SUPERSLIDE", "CUSTOM\\")):
        count = 0
    if not 0 < count <= IMAGES_MAX:
        raise NormalizedRefused(
            statuses.INVALID_ATTRIBUTE_VALUE,
            f"no display format of 1 to {IMAGES_MAX} images",
            attributes=(_DISPLAY_FORMAT,),
        )
    return count


def _reference(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID = sop_class_uid
    item.ReferencedSOPInstanceUID = sop_instance_uid
    return item
