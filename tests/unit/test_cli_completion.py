"""Levels and retrieve identifiers for what users type, by the table."""

from __future__ import annotations

import pytest

from dcmhaul.cli.completion import (
    UNIQUE_KEYS,
    add_level,
    default_level,
    level_of,
    needs_query,
    question,
    retrieve_identifiers,
    warnings,
)
from dcmhaul.cli.keys import QUERY_RETRIEVE_LEVEL, Identifier, build_identifier

PATIENT_ID, STUDY_UID, SERIES_UID, INSTANCE_UID = UNIQUE_KEYS.values()


@pytest.mark.parametrize(
    ("model", "keys", "level"),
    [
        ("patient", ["PatientName=X"], "PATIENT"),
        ("psonly", ["PatientName=X"], "PATIENT"),
        ("study", ["PatientName=X"], "STUDY"),
        ("study", ["PatientID=1"], "STUDY"),
        ("patient", ["PatientID=1"], "PATIENT"),
        ("patient", ["StudyInstanceUID=1.2"], "STUDY"),
        ("study", ["StudyInstanceUID=1.2", "SeriesInstanceUID=1.3"], "SERIES"),
        ("study", ["SOPInstanceUID=1.4"], "IMAGE"),
        ("study", ["StudyInstanceUID=1.2", "SeriesInstanceUID"], "STUDY"),
        ("psonly", ["SOPInstanceUID=1.4"], "PATIENT"),
    ],
)
def test_the_level_that_was_not_typed(model: str, keys: list[str], level: str) -> None:
    typed = build_identifier(keys)
    assert default_level(model, typed) == level
    completed = add_level(model, typed)
    assert level_of(completed) == level
    assert QUERY_RETRIEVE_LEVEL not in typed.elements


def test_a_level_that_was_typed_stays() -> None:
    typed = build_identifier(["0008,0052=patient", "StudyInstanceUID=1.2"])
    assert add_level("study", typed) is typed
    assert level_of(typed) == "PATIENT"


def test_the_worklist_has_no_level() -> None:
    typed = build_identifier(["PatientName=X"])
    assert add_level("worklist", typed) is typed


@pytest.mark.parametrize(
    ("model", "keys", "asks"),
    [
        ("patient", ["PatientID=1"], False),
        ("patient", ["PatientName=X"], True),
        ("patient", ["PatientID=1", "PatientName"], True),
        ("patient", ["PatientID=1*"], True),
        ("patient", ["PatientID=1\\2"], True),
        ("patient", ["StudyInstanceUID=1.2"], True),
        ("patient", ["PatientID=1", "StudyInstanceUID=1.2"], False),
        ("patient", ["PatientID=1", "StudyInstanceUID=1.2\\1.3"], False),
        ("study", ["StudyInstanceUID=1.2"], False),
        ("study", ["StudyInstanceUID=1.2", "SpecificCharacterSet=ISO_IR 100"], False),
        ("study", ["PatientID=1", "StudyInstanceUID=1.2"], True),
        ("study", ["PatientName=X"], True),
        ("study", ["SeriesInstanceUID=1.3"], True),
        ("study", ["StudyInstanceUID=1.2\\1.3", "SeriesInstanceUID=1.4"], True),
        ("study", ["StudyInstanceUID=1.2", "SeriesInstanceUID=1.3"], False),
        ("study", ["0008,0052=IMAGE", "StudyInstanceUID=1.2", "SeriesInstanceUID=1.3"], True),
        ("study", ["0008,0052=PATIENT", "PatientID=1"], False),
        ("study", ["0008,0052=NONSENSE", "PatientName=X"], False),
        ("psonly", ["PatientID=1"], False),
    ],
)
def test_when_a_retrieve_asks_first(model: str, keys: list[str], asks: bool) -> None:
    assert needs_query(model, add_level(model, build_identifier(keys))) is asks


def test_the_question_holds_the_unique_keys_down_to_the_level() -> None:
    typed = add_level("patient", build_identifier(["PatientName=X", "SeriesInstanceUID=1.3"]))
    asked = question("patient", typed)
    assert set(asked.elements) == {
        0x00100010,
        QUERY_RETRIEVE_LEVEL,
        PATIENT_ID,
        STUDY_UID,
        SERIES_UID,
    }
    assert asked.text(SERIES_UID) == "1.3"
    assert STUDY_UID not in typed.elements


def texts(identifiers: list[Identifier]) -> list[dict[int, str]]:
    return [
        {tag: element.text for tag, element in identifier.elements.items()}
        for identifier in identifiers
    ]


def test_studies_share_an_identifier_as_a_list_of_uids() -> None:
    matches = [{STUDY_UID: f"1.{n}", PATIENT_ID: "ignored"} for n in (1, 2, 2, 3)]
    assert texts(retrieve_identifiers("study", "STUDY", matches, uids_max=2)) == [
        {QUERY_RETRIEVE_LEVEL: "STUDY", STUDY_UID: "1.1\\1.2"},
        {QUERY_RETRIEVE_LEVEL: "STUDY", STUDY_UID: "1.3"},
    ]


def test_series_are_grouped_by_their_study() -> None:
    matches = [
        {PATIENT_ID: "1", STUDY_UID: "1.1", SERIES_UID: "2.1"},
        {PATIENT_ID: "1", STUDY_UID: "1.2", SERIES_UID: "2.2"},
        {PATIENT_ID: "1", STUDY_UID: "1.1", SERIES_UID: "2.3"},
        {PATIENT_ID: "1", STUDY_UID: "1.1"},
    ]
    assert texts(retrieve_identifiers("patient", "SERIES", matches)) == [
        {
            QUERY_RETRIEVE_LEVEL: "SERIES",
            PATIENT_ID: "1",
            STUDY_UID: "1.1",
            SERIES_UID: "2.1\\2.3",
        },
        {QUERY_RETRIEVE_LEVEL: "SERIES", PATIENT_ID: "1", STUDY_UID: "1.2", SERIES_UID: "2.2"},
    ]


def test_patients_are_retrieved_one_by_one() -> None:
    matches = [{PATIENT_ID: "1"}, {PATIENT_ID: "2"}, {PATIENT_ID: ""}]
    assert [
        found[PATIENT_ID] for found in texts(retrieve_identifiers("patient", "PATIENT", matches))
    ] == [
        "1",
        "2",
    ]


@pytest.mark.parametrize(
    ("model", "keys", "count"),
    [
        ("study", ["StudyInstanceUID=1.2"], 0),
        ("study", ["0008,0052=SERIES"], 1),
        ("study", ["0008,0052=IMAGE"], 2),
        ("study", ["0008,0052=SERIES", "StudyInstanceUID=1.2"], 0),
        ("study", ["0008,0052=PATIENT"], 1),
        ("worklist", ["PatientName"], 0),
        ("worklist", ["0008,0052=STUDY"], 1),
    ],
)
def test_what_looks_wrong_is_a_warning(model: str, keys: list[str], count: int) -> None:
    assert len(warnings(model, add_level(model, build_identifier(keys)))) == count
