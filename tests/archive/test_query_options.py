"""What a query does beyond the baseline: relational, combined ranges, fuzzy names, time zones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dcmhaul import uids
from dcmhaul.archive.identifier import InvalidIdentifier, MismatchedIdentifier
from dcmhaul.archive.query import FindQuery, Root, SelectQuery
from dcmhaul.services.extended import FindOptions
from tests.archive.made import encode, instance
from tests.archive.test_query import MR, held, query, studies, values

if TYPE_CHECKING:
    from pathlib import Path

    from pydicom.dataset import Dataset

EXPLICIT = uids.EXPLICIT_VR_LITTLE_ENDIAN
RELATIONAL = FindOptions(relational=True)
COMBINED = FindOptions(date_time=True)
FUZZY = FindOptions(fuzzy=True)
ZONED = FindOptions(timezone=True)


@pytest.mark.parametrize(
    ("options", "information"),
    [
        (FindOptions(), b""),
        (RELATIONAL, b"\1"),
        (FindOptions(fuzzy=True), b"\0\0\1"),
        (FindOptions(relational=True, timezone=True), b"\1\0\0\1"),
    ],
)
def test_options_are_bytes(options: FindOptions, information: bytes) -> None:
    assert options.encode() == information
    assert FindOptions.decode(information) == options
    assert FindOptions.decode(information.ljust(7, b"\0")[:4] + b"\1\1\1") == options


def test_a_byte_of_another_value_agrees_to_nothing() -> None:
    assert FindOptions.decode(b"\2\xff") == FindOptions()
    assert FindOptions(relational=True, fuzzy=True).missing(RELATIONAL) == [
        "fuzzy matching of person names"
    ]


@pytest.mark.parametrize(
    ("level", "keys", "expected"),
    [
        ("STUDY", {"Modality": "MR"}, ["1.2.3.1"]),
        ("STUDY", {"SOPInstanceUID": "1.2.3.3.1.1"}, ["1.2.3.3"]),
        ("STUDY", {"PatientID": "A", "InstanceNumber": "1"}, ["1.2.3.1", "1.2.3.2"]),
        ("STUDY", {"Modality": "MR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, []),
        ("STUDY", {"Modality": "CT", "PatientName": "doe*"}, ["1.2.3.1", "1.2.3.2"]),
        ("SERIES", {"SOPInstanceUID": "1.2.3.1.2.1"}, ["1.2.3.1"]),
        ("STUDY", {"NumberOfStudyRelatedInstances": "17"}, ["1.2.3.1", "1.2.3.2", "1.2.3.3"]),
    ],
)
async def test_relational_queries_match_keys_below_the_level(
    tmp_path: Path, level: str, keys: dict[str, Any], expected: list[str]
) -> None:
    async with held(tmp_path, *studies()) as archive:
        found = await archive.find(level, options=RELATIONAL, **keys)
        assert values(found, "StudyInstanceUID") == expected


async def test_relational_queries_of_patients(tmp_path: Path) -> None:
    async with held(tmp_path, *studies()) as archive:

        async def patients(root: Root, **keys: Any) -> list[str]:
            found = await archive.find("PATIENT", root, options=RELATIONAL, **keys)
            return values(found, "PatientID")

        assert await patients(Root.PATIENT, StudyDate="2023*") == ["A"]
        assert await patients(Root.PATIENT, Modality="CT", PatientID="B") == ["B"]
        assert await patients(Root.PATIENT, ModalitiesInStudy="MR") == ["A"]
        # Series are no level of this model.
        assert await patients(Root.PATIENT_STUDY_ONLY, Modality="MR") == ["A", "B"]


def test_relational_queries_need_no_keys_above_the_level() -> None:
    def ask(identifier: Dataset, options: FindOptions) -> None:
        data = encode(identifier)
        FindQuery(
            data,
            Root.STUDY,
            transfer_syntax_uid=EXPLICIT,
            ae_title="",
            strict=True,
            options=options,
        )

    ask(query("IMAGE", PatientName="Roe*"), RELATIONAL)
    with pytest.raises(MismatchedIdentifier, match="unique key above"):
        ask(query("IMAGE", PatientName="Roe*"), FindOptions(fuzzy=True))
    with pytest.raises(MismatchedIdentifier, match="Level is missing"):
        ask(query(PatientName="Roe*"), RELATIONAL)


def test_relational_retrievals_need_no_keys_above_the_level() -> None:
    def ask(relational: bool, **keys: str) -> None:
        data = encode(query("IMAGE", **keys))
        SelectQuery(
            data, Root.STUDY, transfer_syntax_uid=EXPLICIT, strict=True, relational=relational
        )

    ask(True, SOPInstanceUID="1.2.3.1.1.1")
    with pytest.raises(MismatchedIdentifier, match="unique key above"):
        ask(False, SOPInstanceUID="1.2.3.1.1.1")
    with pytest.raises(MismatchedIdentifier, match="unique key of the level"):
        ask(True, StudyInstanceUID="1.2.3.1")


def dated(n: int, date: str, time: str | None, **more: Any) -> Dataset:
    return instance(n, StudyDate=date, StudyTime=time, **more)


async def test_ranges_of_dates_and_times_are_combined(tmp_path: Path) -> None:
    async with held(
        tmp_path,
        dated(1, "20060705", "0900"),
        dated(2, "20060705", "1100"),
        dated(3, "20060706", "0300"),
        dated(4, "20060707", "1700"),
        dated(5, "20060707", "1900"),
        dated(6, "20060706", None),
    ) as archive:

        async def found(options: FindOptions, **keys: Any) -> list[str]:
            answer = await archive.find("STUDY", options=options, **keys)
            return [uid.rpartition(".")[2] for uid in values(answer, "StudyInstanceUID")]

        days, hours = "20060705-20060707", "1000-1800"
        assert await found(COMBINED, StudyDate=days, StudyTime=hours) == ["2", "3", "4", "6"]
        assert await found(FindOptions(), StudyDate=days, StudyTime=hours) == ["2", "4"]
        assert await found(COMBINED, StudyDate="20060707-", StudyTime="1800-") == ["5"]
        # Of different forms, so each by itself.
        assert await found(COMBINED, StudyDate=days, StudyTime="-1000") == ["1", "3"]


async def test_names_are_matched_by_their_sound(tmp_path: Path) -> None:
    async with held(
        tmp_path,
        instance(1, SpecificCharacterSet="ISO_IR 192", PatientName="Müller^Hans"),
        instance(2, PatientName="Miller^Hans", ReferringPhysicianName="Swayne"),
        instance(3, PatientName="Smith^Mary"),
    ) as archive:

        async def found(options: FindOptions, **keys: Any) -> list[str]:
            answer = await archive.find("STUDY", options=options, **keys)
            return [uid.rpartition(".")[2] for uid in values(answer, "StudyInstanceUID")]

        assert await found(FUZZY, PatientName="Mueller") == ["1", "2"]
        assert await found(FindOptions(), PatientName="Mueller") == []
        assert await found(FUZZY, PatientName="mary smyth") == ["3"]
        assert await found(FUZZY, ReferringPhysicianName="Swain") == ["2"]
        # Only names are fuzzy.
        assert await found(FUZZY, PatientID="ID01") == []


async def test_dates_and_times_of_a_zone(tmp_path: Path) -> None:
    async with held(
        tmp_path,
        dated(1, "20240101", "1800", TimezoneOffsetFromUTC="+0100", SeriesDate="20240101"),
        dated(2, "20240102", "0100", TimezoneOffsetFromUTC="+0900"),
        dated(3, "20240101", "1200", TimezoneOffsetFromUTC="-0500", SOPClassUID=MR),
    ) as archive:

        async def found(
            options: FindOptions = ZONED, zone: str = "+0900", **keys: Any
        ) -> list[Dataset]:
            return await archive.find("STUDY", options=options, TimezoneOffsetFromUTC=zone, **keys)

        answer = await found(StudyDate="20240102", StudyTime="")
        assert values(answer, "StudyInstanceUID") == ["1.2.3.1", "1.2.3.2", "1.2.3.3"]
        assert values(answer, "StudyDate") == ["20240102"] * 3
        assert values(answer, "StudyTime") == ["0200", "0100", "0200"]
        assert values(answer, "TimezoneOffsetFromUTC") == ["+0900"] * 3
        answer = await found(StudyDate="", StudyTime="0130-0230")
        assert values(answer, "StudyInstanceUID") == ["1.2.3.1", "1.2.3.3"]
        # The time is not asked for, and yet the date depends on it.
        answer = await found(zone="-0500", StudyDate="20240101-20240101")
        assert len(answer) == 3
        assert "StudyTime" not in answer[0]
        # Both ranges are one, in the zone.
        both = FindOptions(timezone=True, date_time=True)
        answer = await found(both, StudyDate="20240101-20240102", StudyTime="2300-0130")
        assert values(answer, "StudyInstanceUID") == ["1.2.3.2"]
        # Not negotiated, it is a key like others, and values are as they are.
        answer = await found(FindOptions(), StudyDate="")
        assert values(answer, "StudyInstanceUID") == ["1.2.3.2"]
        # Without a value nothing is adjusted.
        answer = await found(zone="", StudyDate="20240101")
        assert values(answer, "StudyInstanceUID") == ["1.2.3.1", "1.2.3.3"]
        assert values(answer, "TimezoneOffsetFromUTC") == ["+0100", "-0500"]


async def test_a_zone_changes_nothing_of_a_patient(tmp_path: Path) -> None:
    async with held(tmp_path, instance(1, PatientBirthDate="19700101")) as archive:
        (patient,) = await archive.find(
            "PATIENT",
            Root.PATIENT,
            options=ZONED,
            PatientBirthDate="19700101",
            TimezoneOffsetFromUTC="+0900",
        )
        assert patient.PatientBirthDate == "19700101"
        assert patient.TimezoneOffsetFromUTC == "+0900"


async def test_a_date_time_of_a_zone(tmp_path: Path) -> None:
    async with held(
        tmp_path,
        instance(1, AcquisitionDateTime="20240101180000", TimezoneOffsetFromUTC="+0100"),
        instance(2, AcquisitionDateTime="20240105020000"),
    ) as archive:
        (image,) = await archive.find(
            "IMAGE",
            options=ZONED,
            AcquisitionDateTime="20240102020000",
            TimezoneOffsetFromUTC="+0900",
        )
        assert image.AcquisitionDateTime == "20240101180000+0100"


def test_a_zone_that_is_none() -> None:
    data = encode(query("STUDY", TimezoneOffsetFromUTC="CET"))
    with pytest.raises(InvalidIdentifier, match="no offset"):
        FindQuery(data, Root.STUDY, transfer_syntax_uid=EXPLICIT, ae_title="", options=ZONED)
