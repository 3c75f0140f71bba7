"""Synthetic studies: valid CT, MR, CR and US objects, the same bytes for the same seed on any machine.

Must not contain anything of a real patient, and must not hold more than one frame in memory.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import struct
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from dcmhaul.errors import ConfigurationError
from dcmhaul.uids import EXPLICIT_VR_LITTLE_ENDIAN
from dcmhaul.wire.part10 import encode_file_meta

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    import numpy.typing as npt

__all__ = ["MODALITIES", "SynthPlan", "SyntheticInstance", "synthesize", "write_studies"]

MODALITIES: Final = ("CT", "MR", "CR", "US")

_CLASSES: Final = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "US": "1.2.840.10008.5.1.4.1.1.6.1",
}
_US_MULTI_FRAME: Final = "1.2.840.10008.5.1.4.1.1.3.1"
_SC_MULTI_FRAME_WORD: Final = "1.2.840.10008.5.1.4.1.1.7.3"
_SIZES: Final = {"CT": (512, 512), "MR": (256, 256), "CR": (1024, 1024), "US": (480, 640)}
_FIRST_DAY: Final = datetime.date(2024, 1, 1)
_BODY_PARTS: Final = {"CT": "CHEST", "MR": "HEAD", "CR": "CHEST", "US": "ABDOMEN"}
_PIXEL_LENGTH_MAX: Final = 0xFFFFFFFE

# VR of every attribute written here (PS3.6); the tables below then need to give values only.
_VRS: Final = {
    0x00080005: "CS", 0x00080008: "CS", 0x00080016: "UI", 0x00080018: "UI", 0x00080020: "DA",
    0x00080021: "DA", 0x00080023: "DA", 0x00080030: "TM", 0x00080031: "TM", 0x00080033: "TM",
    0x00080050: "SH", 0x00080060: "CS", 0x00080064: "CS", 0x00080070: "LO", 0x00080090: "PN",
    0x00081030: "LO", 0x0008103E: "LO", 0x00081090: "LO", 0x00100010: "PN", 0x00100020: "LO",
    0x00100030: "DA", 0x00100040: "CS", 0x00180015: "CS", 0x00180020: "CS", 0x00180021: "CS",
    0x00180022: "CS", 0x00180023: "CS", 0x00180050: "DS", 0x00180060: "DS", 0x00180080: "DS",
    0x00180081: "DS", 0x00180087: "DS", 0x00180091: "IS", 0x00181020: "LO", 0x00181063: "DS",
    0x00181164: "DS", 0x00185100: "CS", 0x00185101: "CS", 0x0020000D: "UI", 0x0020000E: "UI",
    0x00200010: "SH", 0x00200011: "IS", 0x00200012: "IS", 0x00200013: "IS", 0x00200020: "CS",
    0x00200032: "DS", 0x00200037: "DS", 0x00200052: "UI", 0x00200060: "CS", 0x00201040: "LO",
    0x00201041: "DS", 0x00280002: "US", 0x00280004: "CS", 0x00280006: "US", 0x00280008: "IS",
    0x00280009: "AT", 0x00280010: "US", 0x00280011: "US", 0x00280030: "DS", 0x00280100: "US",
    0x00280101: "US", 0x00280102: "US", 0x00280103: "US", 0x00280301: "CS", 0x00281050: "DS",
    0x00281051: "DS", 0x00281052: "DS", 0x00281053: "DS", 0x00281054: "LO", 0x00282110: "CS",
    0x20500020: "CS",
}  # fmt: skip

Elements = dict[int, str | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthPlan:
    """What to make. instances: objects a series; series: a study.

    modality: one of MODALITIES, or "mix", which takes them in turn. rows, columns: None for what is
    usual for the modality. frames: above 1 makes multi-frame objects: Ultrasound Multi-frame for US,
    Multi-frame Grayscale Word Secondary Capture for the others (`frames` * rows * columns * 2 bytes).
    Raises ConfigurationError for what cannot be made.
    """

    studies: int
    series: int
    instances: int
    modality: str
    seed: int | str
    rows: int | None = None
    columns: int | None = None
    frames: int | None = None

    def __post_init__(self) -> None:
        if self.modality not in (*MODALITIES, "mix"):
            raise ConfigurationError(
                f"modality {self.modality!r} is none of {', '.join(MODALITIES)}, mix"
            )
        for name in ("studies", "series", "instances", "rows", "columns", "frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} must be at least 1, not {value}")
        for name in ("rows", "columns"):
            if (getattr(self, name) or 0) > 0xFFFF:
                raise ConfigurationError(f"{name} must be at most 65535 (PS3.3 §C.7.6.3)")
        for modality in MODALITIES if self.modality == "mix" else (self.modality,):
            length = self.frame_length(modality) * (self.frames or 1)
            if length > _PIXEL_LENGTH_MAX:
                raise ConfigurationError(
                    f"pixel data of {length} bytes is above the 4 GiB that PS3.5 §7.1 allows"
                )

    def size(self, modality: str) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = _SIZES[modality]
        return self.rows or rows, self.columns or columns

    def frame_length(self, modality: str) -> int:
        """Bytes of one frame."""
        rows, columns = self.size(modality)
        return rows * columns * (3 if modality == "US" else 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticInstance:
    """One object. name: its path below the folder. header: all bytes of the file before the pixels.

    length: bytes of the whole file. `frames()` makes the pixels anew at each call.
    """

    name: str
    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    dataset_offset: int
    length: int
    header: bytes
    frames: Callable[[], Iterator[bytes]]

    def encode(self) -> bytes:
        """The whole file."""
        return b"".join((self.header, *self.frames()))


def _uid(*key: object) -> str:
    """A UID under 2.25 that follows from the key alone."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}"


def _encode(tag: int, value: str | int) -> bytes:
    vr = _VRS[tag]
    if isinstance(value, str):
        data = value.encode("ascii")
        if len(data) % 2:
            data += b"\0" if vr == "UI" else b" "
    elif vr == "AT":
        data = struct.pack("<HH", value >> 16, value & 0xFFFF)
    else:
        data = struct.pack("<H", value)
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), len(data)) + data


class _Template:
    """The encoded elements of a series; what differs between its instances is put in later."""

    def __init__(self, elements: Elements, slots: tuple[int, ...]) -> None:
        self._slots = dict.fromkeys(slots, 0)
        self._parts: list[bytes] = []
        run = b""
        for tag in sorted({*elements, *slots}):
            if tag in self._slots:
                self._parts += [run, b""]
                self._slots[tag] = len(self._parts) - 1
                run = b""
            else:
                run += _encode(tag, elements[tag])
        self._parts.append(run)

    def fill(self, values: Elements) -> bytes:
        parts = self._parts.copy()
        for tag, position in self._slots.items():
            parts[position] = _encode(tag, values[tag])
        return b"".join(parts)


class _Pixels:
    """Frames of one series: an ellipse with a disc that wanders through it, and noise.

    Whole numbers only, and noise from SHAKE-256, so that every machine makes the same bytes.
    """

    def __init__(self, modality: str, rows: int, columns: int, key: str) -> None:
        import numpy as np

        self._np = np
        self._color = modality == "US"
        self._rows, self._columns = rows, columns
        y = np.arange(rows, dtype=np.int64)[:, None] * 2 - rows
        x = np.arange(columns, dtype=np.int64)[None, :] * 2 - columns
        inside = (x * x * rows * rows + y * y * columns * columns) * 5 < (rows * columns) ** 2 * 4
        noise = np.frombuffer(hashlib.shake_256(key.encode()).digest(rows * columns), np.uint8)
        base = np.where(inside, 1000, 24).astype(np.uint16)
        self._base = base + (noise.reshape(rows, columns) & 31)
        radius = max(1, min(rows, columns) // 10)
        self._disc = (
            np.arange(-radius, radius + 1)[:, None] ** 2 + np.arange(-radius, radius + 1) ** 2
            <= radius * radius
        )

    def frame(self, number: int) -> bytes:
        """The encoded frame of that number, any number from 0."""
        image = self._np.roll(self._base, number * 7 % self._columns, axis=1)
        self._mark(image, number)
        if not self._color:
            return image.astype("<u2", copy=False).tobytes()
        gray = (image >> 3).astype(self._np.uint8)
        return self._np.repeat(gray[:, :, None], 3, axis=2).tobytes()

    def _mark(self, image: npt.NDArray[np.uint16], number: int) -> None:
        height, width = self._disc.shape
        top = number * 5 % max(1, self._rows - height + 1)
        left = number * 3 % max(1, self._columns - width + 1)
        target = image[top : top + height, left : left + width]
        target[self._disc[: target.shape[0], : target.shape[1]]] = 2000


def _common(plan: SynthPlan, study: int, series: int, modality: str) -> Elements:
    """Patient, General Study, General Series, General Equipment (PS3.3 §C.7.1 to §C.7.5)."""
    patient = f"SYNTH-{study:06d}"
    day = _FIRST_DAY + datetime.timedelta(days=study % 3650)
    date, time = day.strftime("%Y%m%d"), f"{8 + study % 10:02d}{study % 60:02d}00"
    return {
        0x00080005: "ISO_IR 100",
        0x00080020: date,
        0x00080021: date,
        0x00080023: date,
        0x00080030: time,
        0x00080031: time,
        0x00080033: time,
        0x00080050: f"A{study:07d}",
        0x00080060: modality,
        0x00080070: "dcmhaul",
        0x00080090: "",
        0x00081030: f"Synthetic study {study}",
        0x0008103E: f"Synthetic {modality} series {series}",
        0x00081090: "synth",
        0x00100010: f"Synthetic^Patient {study:06d}",
        0x00100020: patient,
        0x00100030: f"{1940 + study % 60}0101",
        0x00100040: "MFO"[study % 3],
        0x00180015: _BODY_PARTS[modality],
        0x00181020: "1.0",
        0x0020000D: _uid(plan.seed, "study", study),
        0x0020000E: _uid(plan.seed, "study", study, "series", series),
        0x00200010: f"{study}",
        0x00200011: f"{series}",
        0x00200020: "",
    }


def _image_pixel(plan: SynthPlan, modality: str) -> Elements:
    """Image Pixel (PS3.3 §C.7.6.3)."""
    rows, columns = plan.size(modality)
    elements: Elements = {0x00280010: rows, 0x00280011: columns, 0x00280103: 0}
    if modality == "US":
        return elements | {
            0x00280002: 3,
            0x00280004: "RGB",
            0x00280006: 0,
            0x00280100: 8,
            0x00280101: 8,
            0x00280102: 7,
        }
    return elements | {
        0x00280002: 1,
        0x00280004: "MONOCHROME2",
        0x00280100: 16,
        0x00280101: 12,
        0x00280102: 11,
    }


def _frame_of_reference(uid: str) -> Elements:
    """Frame of Reference and Image Plane, without the position (PS3.3 §C.7.4.1, §C.7.6.2)."""
    return {
        0x00180050: "5",
        0x00185100: "HFS",
        0x00200037: "1\\0\\0\\0\\1\\0",
        0x00200052: uid,
        0x00201040: "",
        0x00280030: "0.7\\0.7",
    }


def _multi_frame(frames: int) -> Elements:
    """Multi-frame and Cine, frames told apart by time (PS3.3 §C.7.6.6, §C.7.6.5)."""
    return {0x00181063: "40", 0x00280008: f"{frames}", 0x00280009: 0x00181063}


def _own(plan: SynthPlan, modality: str, reference_uid: str) -> Elements:
    """What the IOD of the modality adds (PS3.3 §A.2 to §A.8)."""
    frames = plan.frames or 1
    window: Elements = {0x00281050: "600", 0x00281051: "1600"}
    linear: Elements = {0x00281052: "0", 0x00281053: "1", 0x00281054: "US"}
    if modality == "US":
        lossless: Elements = {0x00080008: "ORIGINAL\\PRIMARY", 0x00282110: "00"}
        return lossless | (_multi_frame(frames) if frames > 1 else {})
    if frames > 1:
        secondary: Elements = {
            0x00080008: "DERIVED\\SECONDARY",
            0x00080064: "SYN",
            0x00280301: "NO",
            0x20500020: "IDENTITY",
        }
        return secondary | window | linear | _multi_frame(frames)
    if modality == "CR":
        return window | {
            0x00080008: "ORIGINAL\\PRIMARY",
            0x00180060: "80",
            0x00181164: "0.2\\0.2",
            0x00185101: "PA",
            0x00200060: "",
        }
    elements = window | _frame_of_reference(reference_uid) | {0x00200012: "1"}
    if modality == "CT":
        return elements | {
            0x00080008: "ORIGINAL\\PRIMARY\\AXIAL",
            0x00180060: "120",
            0x00281052: "-1024",
            0x00281053: "1",
            0x00281054: "HU",
        }
    return elements | {
        0x00080008: "ORIGINAL\\PRIMARY\\OTHER",
        0x00180020: "SE",
        0x00180021: "SK",
        0x00180022: "",
        0x00180023: "2D",
        0x00180080: "500",
        0x00180081: "15",
        0x00180087: "1.5",
        0x00180091: "1",
    }


def _sop_class(plan: SynthPlan, modality: str) -> str:
    if (plan.frames or 1) == 1:
        return _CLASSES[modality]
    return _US_MULTI_FRAME if modality == "US" else _SC_MULTI_FRAME_WORD


def _series_instances(plan: SynthPlan, study: int, series: int) -> Iterator[SyntheticInstance]:
    modality = plan.modality
    if modality == "mix":
        modality = MODALITIES[(study + series) % len(MODALITIES)]
    frames = plan.frames or 1
    elements = (
        _common(plan, study, series, modality)
        | _image_pixel(plan, modality)
        | _own(plan, modality, _uid(plan.seed, "study", study, "frame of reference"))
    )
    sop_class = _sop_class(plan, modality)
    elements[0x00080016] = sop_class
    positioned = 0x00200052 in elements
    slots = (0x00080018, 0x00200013) + ((0x00200032, 0x00201041) if positioned else ())
    template = _Template(elements, slots)
    pixels = _Pixels(modality, *plan.size(modality), f"{plan.seed}/{study}/{series}")
    pixel_length = plan.frame_length(modality) * frames
    padding = pixel_length % 2
    vr = b"OB" if modality == "US" else b"OW"
    pixel_header = struct.pack("<HH2sHI", 0x7FE0, 0x0010, vr, 0, pixel_length + padding)
    series_uid, study_uid = str(elements[0x0020000E]), str(elements[0x0020000D])
    for number in range(1, plan.instances + 1):
        uid = _uid(series_uid, number)
        location = f"{(number - 1) * 5}"
        values: Elements = {0x00080018: uid, 0x00200013: f"{number}"}
        if positioned:
            values |= {0x00200032: f"-180\\-180\\{location}", 0x00201041: location}
        meta = encode_file_meta(sop_class, uid, EXPLICIT_VR_LITTLE_ENDIAN)
        header = meta + template.fill(values) + pixel_header
        yield SyntheticInstance(
            name=f"SYNTH-{study:06d}/{series:03d}-{modality}/{number:06d}.dcm",
            sop_class_uid=sop_class,
            sop_instance_uid=uid,
            study_instance_uid=study_uid,
            series_instance_uid=series_uid,
            transfer_syntax_uid=EXPLICIT_VR_LITTLE_ENDIAN,
            dataset_offset=len(meta),
            length=len(header) + pixel_length + padding,
            header=header,
            frames=_frames(pixels, (number - 1) * frames, frames, padding),
        )


def _frames(pixels: _Pixels, first: int, count: int, padding: int) -> Callable[[], Iterator[bytes]]:
    def make() -> Iterator[bytes]:
        for number in range(first, first + count):
            yield pixels.frame(number)
        if padding:
            yield b"\0"

    return make


def synthesize(plan: SynthPlan) -> Iterator[SyntheticInstance]:
    """All objects of a plan, lazily: study by study, series by series."""
    for study in range(1, plan.studies + 1):
        for series in range(1, plan.series + 1):
            yield from _series_instances(plan, study, series)


def write_studies(
    folder: str | os.PathLike[str],
    studies: int = 1,
    series: int = 1,
    instances: int = 1,
    modality: str = "CT",
    seed: int | str = 0,
    *,
    rows: int | None = None,
    columns: int | None = None,
    frames: int | None = None,
    written: Callable[[SyntheticInstance], None] | None = None,
) -> tuple[int, int]:
    """Writes all objects of a SynthPlan below `folder`, frame by frame; returns files and bytes.

    Files of the same name are replaced. written: hears of each file. ConfigurationError as SynthPlan
    raises it, OSError as open and write do.
    """
    plan = SynthPlan(
        studies=studies,
        series=series,
        instances=instances,
        modality=modality,
        seed=seed,
        rows=rows,
        columns=columns,
        frames=frames,
    )
    files = total = 0
    made = ""
    for instance in synthesize(plan):
        path = os.path.join(folder, instance.name)
        parent = os.path.dirname(path)
        if parent != made:
            os.makedirs(parent, exist_ok=True)
            made = parent
        with open(path, "wb") as file:
            file.write(instance.header)
            file.writelines(instance.frames())
        files += 1
        total += instance.length
        if written is not None:
            written(instance)
    return files, total
