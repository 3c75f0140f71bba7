"""Synthetic studies: the same bytes for the same seed, and objects that other tools accept."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Self

import pydicom
import pytest

from dcmhaul.errors import ConfigurationError
from dcmhaul.objects.part10 import open_instance
from dcmhaul.objects.sources import candidates
from dcmhaul.objects.synth import MODALITIES, SynthPlan, synthesize, write_studies
from dcmhaul.uids import is_valid_uid

if TYPE_CHECKING:
    from pathlib import Path

SMALL: dict[str, Any] = {"rows": 16, "columns": 20}


def plan(**fields: Any) -> SynthPlan:
    defaults: dict[str, Any] = {"studies": 2, "series": 2, "instances": 2, "modality": "mix"}
    return SynthPlan(**(defaults | {"seed": 1} | fields))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*.dcm")}


def test_the_same_seed_gives_the_same_bytes_for_ever() -> None:
    """The digest is fixed: another machine, or a later version, must make the same objects."""
    digest = hashlib.sha256()
    for instance in synthesize(plan(**SMALL)):
        digest.update(instance.name.encode())
        digest.update(instance.encode()[instance.dataset_offset :])
    assert digest.hexdigest() == "22e7b3737920ad1236802b6a8e640272f182adab235e6e266d61ff9fe1324190"


def test_another_seed_gives_other_objects() -> None:
    seeds = [{one.sop_instance_uid for one in synthesize(plan(seed=s, **SMALL))} for s in (1, 2)]
    assert not seeds[0] & seeds[1]


def test_every_object_is_another_and_belongs_to_its_study() -> None:
    made = list(synthesize(plan(studies=3, series=2, instances=4, **SMALL)))
    assert len(made) == 24
    assert len({one.sop_instance_uid for one in made}) == 24
    assert len({one.series_instance_uid for one in made}) == 6
    assert len({one.study_instance_uid for one in made}) == 3
    assert len({one.name for one in made}) == 24
    assert len({one.encode()[len(one.header) :] for one in made}) == 24
    for one in made:
        assert is_valid_uid(one.sop_instance_uid)
        assert one.sop_instance_uid.startswith("2.25.")


@pytest.mark.parametrize("frames", [None, 3])
@pytest.mark.parametrize("modality", MODALITIES)
def test_pydicom_reads_them(modality: str, frames: int | None, tmp_path: Path) -> None:
    files, total = write_studies(tmp_path, 1, 1, 2, modality, 7, frames=frames, **SMALL)
    paths = [path for path in candidates([tmp_path]) if isinstance(path, str)]
    assert files == len(paths) == 2
    assert total == sum(os.path.getsize(path) for path in paths)
    for number, path in enumerate(paths, 1):
        dataset = pydicom.dcmread(path)
        instance = open_instance(path)
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert dataset.file_meta.MediaStorageSOPClassUID == dataset.SOPClassUID
        assert instance.sop_instance_uid == dataset.SOPInstanceUID
        assert instance.study_instance_uid == dataset.StudyInstanceUID
        assert dataset.Modality == modality
        assert dataset.PatientID == "SYNTH-000001"
        assert dataset.InstanceNumber == number
        assert dataset.get("NumberOfFrames", 1) == (frames or 1)
        shape = ((frames,) if frames else ()) + (16, 20) + ((3,) if modality == "US" else ())
        pixels = dataset.pixel_array
        assert pixels.shape == shape
        assert pixels.max() < 1 << dataset.BitsStored
        assert pixels.std() > 0
        # Every value obeys its VR: pydicom writes it again without a complaint.
        for element in dataset:
            assert element.value is not None


@pytest.mark.parametrize(
    ("modality", "frames", "name"),
    [
        ("CT", None, "CT Image Storage"),
        ("MR", 1, "MR Image Storage"),
        ("CR", None, "Computed Radiography Image Storage"),
        ("US", None, "Ultrasound Image Storage"),
        ("US", 2, "Ultrasound Multi-frame Image Storage"),
        ("CT", 2, "Multi-frame Grayscale Word Secondary Capture Image Storage"),
    ],
)
def test_sop_classes(modality: str, frames: int | None, name: str) -> None:
    (one,) = synthesize(
        plan(studies=1, series=1, instances=1, modality=modality, frames=frames, **SMALL)
    )
    assert pydicom.uid.UID(one.sop_class_uid).name == name


def test_sizes_that_benches_use() -> None:
    def first(**fields: Any) -> int:
        return next(iter(synthesize(plan(**fields)))).length

    assert 512 * 1024 < first(modality="CT") < 514 * 1024
    assert 9000 < first(modality="CT", rows=64, columns=64) < 9500
    large = first(modality="CT", frames=512)
    assert 1 << 28 < large < (1 << 28) + 2048
    assert first(modality="US", rows=512, columns=512, frames=342) > 1 << 28


def test_odd_pixel_data_is_padded(tmp_path: Path) -> None:
    write_studies(tmp_path, 1, 1, 1, "US", 0, rows=3, columns=3)
    (path,) = candidates([tmp_path])
    assert isinstance(path, str)
    dataset = pydicom.dcmread(path)
    assert len(dataset.PixelData) == 28
    assert dataset.pixel_array.shape == (3, 3, 3)


def test_large_objects_are_written_frame_by_frame(tmp_path: Path) -> None:
    """The frames of an object are never in memory together."""
    alive = most = 0

    class Frame(bytes):
        def __new__(cls, *arguments: Any) -> Self:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return super().__new__(cls, *arguments)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    from dcmhaul.objects import synth

    real = synth._Pixels.frame
    synth._Pixels.frame = lambda self, number: Frame(real(self, number))  # type: ignore[method-assign]
    try:
        _files, total = write_studies(tmp_path, 1, 1, 1, "CT", 0, rows=64, columns=64, frames=100)
    finally:
        synth._Pixels.frame = real  # type: ignore[method-assign]
    assert total > 64 * 64 * 2 * 100
    assert most <= 2


@pytest.mark.parametrize(
    "fields",
    [
        {"modality": "XX"},
        {"studies": 0},
        {"instances": -1},
        {"rows": 0},
        {"columns": 65536},
        {"frames": 0},
        {"modality": "CT", "frames": 8192},
    ],
)
def test_what_cannot_be_made_is_said(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        plan(**fields)


def test_writing_again_gives_the_same_files(tmp_path: Path) -> None:
    seen: list[str] = []
    one = write_studies(
        tmp_path, 1, 2, 2, "mix", "s", **SMALL, written=lambda made: seen.append(made.name)
    )
    before = contents(tmp_path)
    assert write_studies(tmp_path, 1, 2, 2, "mix", "s", **SMALL) == one
    after = contents(tmp_path)
    assert before == after
    assert [str(tmp_path / name) for name in seen] == sorted(before)


def test_importing_it_imports_no_numpy() -> None:
    code = "import sys, dcmhaul.objects.synth; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
