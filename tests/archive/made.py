"""Objects for the archive's tests: made-up datasets, and pydicom's real files."""

from __future__ import annotations

import functools
import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import pydicom.data
from pydicom.charset import convert_encodings
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from dcmhaul import uids

if TYPE_CHECKING:
    from collections.abc import Iterator

CT = "1.2.840.10008.5.1.4.1.1.2"
FOLDER = Path(pydicom.data.__file__).parent / "test_files"


def encode(dataset: Dataset, transfer_syntax_uid: str = uids.EXPLICIT_VR_LITTLE_ENDIAN) -> bytes:
    """The bytes of a dataset, by pydicom."""
    buffer = DicomBytesIO()
    buffer.is_implicit_VR = transfer_syntax_uid == uids.IMPLICIT_VR_LITTLE_ENDIAN
    buffer.is_little_endian = transfer_syntax_uid != uids.EXPLICIT_VR_BIG_ENDIAN
    character_set = dataset.get("SpecificCharacterSet", "ISO_IR 6") or "ISO_IR 6"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_dataset(buffer, dataset, convert_encodings(character_set))
    return bytes(buffer.getvalue())


def decode(data: bytes, transfer_syntax_uid: str = uids.EXPLICIT_VR_LITTLE_ENDIAN) -> Dataset:
    """A dataset from its bytes, by pydicom, every element read."""
    dataset = read_dataset(
        BytesIO(data),
        is_implicit_VR=transfer_syntax_uid == uids.IMPLICIT_VR_LITTLE_ENDIAN,
        is_little_endian=transfer_syntax_uid != uids.EXPLICIT_VR_BIG_ENDIAN,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.decode()
    return dataset


def assign(dataset: Dataset, **values: object) -> None:
    """Sets values by keyword, also those that pydicom has its doubts about; None takes one away."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword, value in values.items():
            if value is None and keyword in dataset:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)


def instance(study: int = 1, series: int = 1, number: int = 1, **values: object) -> Dataset:
    """A small CT image; `values` by keyword replace its own."""
    dataset = Dataset()
    dataset.SOPClassUID = CT
    dataset.SOPInstanceUID = f"1.2.3.{study}.{series}.{number}"
    dataset.StudyInstanceUID = f"1.2.3.{study}"
    dataset.SeriesInstanceUID = f"1.2.3.{study}.{series}"
    dataset.PatientID = f"ID{study}"
    dataset.PatientName = f"Doe^John{study}"
    dataset.StudyDate = "20240102"
    dataset.StudyTime = "103000"
    dataset.Modality = "CT"
    dataset.SeriesNumber = str(series)
    dataset.InstanceNumber = str(number)
    dataset.Rows = 4
    dataset.Columns = 2
    dataset.BitsAllocated = 8
    dataset.add_new(0x7FE00010, "OB", bytes([study % 256, series % 256, number % 256, 0]) * 2)
    assign(dataset, **values)
    return dataset


@functools.cache
def real_files() -> tuple[Path, ...]:
    """pydicom's files that an archive can hold, the first of each SOP Instance UID."""
    from dcmhaul.errors import DcmhaulError
    from dcmhaul.objects.part10 import open_instance

    found: dict[str, Path] = {}
    for path in sorted(p for p in FOLDER.rglob("*") if p.is_file()):
        try:
            opened = open_instance(path)
        except DcmhaulError:
            continue
        opened.close()
        if opened.study_instance_uid and opened.series_instance_uid:
            found.setdefault(opened.sop_instance_uid, path)
    return tuple(found.values())


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    for i in range(0, len(data), size):
        yield data[i : i + size]
