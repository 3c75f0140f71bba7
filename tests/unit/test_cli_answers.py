"""What a match says of the keys that were typed, by the table."""

from __future__ import annotations

import pytest
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset

from dcmhaul.cli.answers import TypedKeys, level_of_key
from dcmhaul.cli.completion import UNIQUE_KEYS
from dcmhaul.cli.keys import build_identifier


def keys(level: str, *typed: str, model: str = "study") -> TypedKeys:
    return TypedKeys(model, build_identifier([f"QueryRetrieveLevel={level}", *typed]))


def match(**values: object) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def named(tags: object) -> set[str]:
    return {keyword_for_tag(tag) for tag in tags}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("model", "keyword", "level"),
    [
        ("patient", 0x00100010, "PATIENT"),
        ("study", 0x00100010, "STUDY"),
        ("psonly", 0x00100020, "PATIENT"),
        ("psonly", 0x00080060, "SERIES"),
        ("study", 0x00080061, "STUDY"),
        ("study", 0x00091001, None),
    ],
)
def test_the_level_of_a_key(model: str, keyword: int, level: str | None) -> None:
    assert level_of_key(model, keyword) == level


@pytest.mark.parametrize(
    ("level", "typed", "model", "above"),
    [
        (
            "SERIES",
            ["PatientName=A*", "StudyInstanceUID=1.2", "Modality=CT"],
            "study",
            "PatientName",
        ),
        ("SERIES", ["StudyInstanceUID=1.2\\1.3"], "study", "StudyInstanceUID"),
        ("SERIES", ["StudyInstanceUID=1.2.*"], "study", "StudyInstanceUID"),
        ("SERIES", ["StudyInstanceUID=1.2", "SeriesInstanceUID=1.3\\1.4"], "study", ""),
        ("SERIES", ["PatientName", "StudyDate=", "PatientID=*"], "study", ""),
        ("STUDY", ["PatientName=A*"], "study", ""),
        ("STUDY", ["PatientName=A*"], "patient", "PatientName"),
        ("PATIENT", ["StudyDate=20240101"], "patient", ""),
        ("SERIES", ["0009,1001=private"], "study", ""),
    ],
)
def test_the_keys_above(level: str, typed: list[str], model: str, above: str) -> None:
    found = keys(level, *typed, model=model)
    assert ",".join(named(found.above)) == above
    assert found.lists_above == bool(named(UNIQUE_KEYS.values()) & named(found.above))


@pytest.mark.parametrize(
    ("typed", "answered", "proved"),
    [
        ("PatientName=HEAD*", {"PatientName": "Head^One"}, True),
        ("PatientName=HEAD*", {"PatientName": "FOOT^ONE"}, False),
        ("PatientName=HEAD*", {"PatientName": ""}, False),
        ("PatientName=HEAD*", {}, False),
        ("PatientName=HEAD*", {"PatientName": "HEAD*"}, False),  # its own question back
        ("PatientName=Smith", {"PatientName": "Smyth"}, False),
        ("PatientName=Müller", {"PatientName": "MULLER"}, True),
        ("StudyDate=20240101-20240131", {"StudyDate": "20240115"}, True),
        ("StudyDate=20240101-20240131", {"StudyDate": "20240215"}, False),
        ("StudyDate=January", {"StudyDate": "20240115"}, False),
        ("StudyTime=0900-1000", {"StudyTime": "0930"}, False),  # not for us to say
        ("ModalitiesInStudy=CT", {"ModalitiesInStudy": ["PR", "CT"]}, True),
        ("StudyInstanceUID=1.2\\1.3", {"StudyInstanceUID": "1.3"}, True),
        ("StudyInstanceUID=1.2\\1.3", {"StudyInstanceUID": "1.4"}, False),
        ("StudyInstanceUID=1.2.*", {"StudyInstanceUID": "1.2.5"}, True),
        ("PatientSize=1.80", {"PatientSize": "1.8"}, True),
    ],
)
def test_what_proves_a_key_above(typed: str, answered: dict[str, object], proved: bool) -> None:
    assert bool(keys("SERIES", typed).unproved(match(**answered))) is not proved


@pytest.mark.parametrize(
    ("typed", "answered", "contradicted"),
    [
        ("StudyDescription=Head*", {"StudyDescription": "Foot"}, True),
        ("StudyDescription=Head*", {"StudyDescription": "HEAD"}, False),
        ("StudyDescription=Head*", {}, False),
        ("PatientName=Smith", {"PatientName": "Smyth^John"}, False),
        ("PatientName=Smith", {"PatientName": "Jones^John"}, True),
        ("PatientName=Yamada", {"PatientName": "山田"}, False),
        ("StudyInstanceUID=1.2", {"StudyInstanceUID": "1.3"}, True),
        ("StudyTime=0900-1000", {"StudyTime": "1100"}, False),
        ("Modality=MR", {"Modality": "CT"}, False),  # of whichever series the peer looked at
        ("0009,1001=A", {}, False),
    ],
)
def test_what_contradicts_a_key(
    typed: str, answered: dict[str, object], contradicted: bool
) -> None:
    assert bool(keys("STUDY", typed).contradicted(match(**answered))) is contradicted


def test_another_study_contradicts_its_unique_key() -> None:
    found = keys("SERIES", "StudyInstanceUID=1.2")
    assert named(found.contradicted(match(StudyInstanceUID="1.9"))) == {"StudyInstanceUID"}
    assert not found.contradicted(match(SeriesInstanceUID="1.2.1"))


def test_what_no_match_says_anything_of() -> None:
    found = keys(
        "STUDY", "ModalitiesInStudy=CT", "PatientName=A*", "Modality=CT", "StudyDate=20240101"
    )
    answers = [match(PatientName="A", Modality="CT"), match(PatientName="", StudyDate="20240101")]
    assert named(found.unsaid(answers)) == {"ModalitiesInStudy", "Modality"}
