"""Hierarchical queries over the index: levels, keys, counts, character sets, syntaxes."""

from __future__ import annotations

import functools
import hashlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from dcmhaul import uids
from dcmhaul.archive.identifier import InvalidIdentifier
from dcmhaul.archive.index import Added, Addition, Index, Object, Place, Totals, totals
from dcmhaul.archive.query import FindQuery, Root, SelectQuery
from dcmhaul.archive.store import Intake
from dcmhaul.archive.tables import KIND, METADATA, SCHEMA_VERSION
from dcmhaul.database import Database, open_database
from dcmhaul.services.extended import BASELINE, FindOptions
from tests.archive.made import CT, assign, decode, encode, instance

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence
    from pathlib import Path

    from sqlalchemy.engine import Connection

MR = "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT = uids.EXPLICIT_VR_LITTLE_ENDIAN


class Held:
    """An index with objects in it, and what is asked of it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.index = Index(database)
        self._count = 0

    async def add(self, *datasets: Dataset, syntax: str = EXPLICIT) -> list[Added]:
        return [(await self.add_one(dataset, syntax)).added for dataset in datasets]

    async def add_one(self, dataset: Dataset, syntax: str = EXPLICIT) -> Addition:
        data = encode(dataset, syntax)
        intake = Intake(syntax)
        intake.feed(data)
        digest, description = intake.finish()
        assert digest == hashlib.sha256(data).digest()
        self._count += 1
        obj = Object(
            description=description,
            sop_class_uid=str(dataset.SOPClassUID),
            sop_instance_uid=str(dataset.SOPInstanceUID),
            transfer_syntax_uid=syntax,
            place=Place(0, f"{self._count}.dcm"),
            dataset_offset=300,
            length=len(data),
            sha256=digest,
            received=0,
            source_ae_title="",
        )
        return await self.database.submit(lambda c: self.index.add(c, obj))

    async def find(
        self,
        level: str | None = None,
        root: Root = Root.STUDY,
        syntax: str = EXPLICIT,
        options: FindOptions = BASELINE,
        **keys: Any,
    ) -> list[Dataset]:
        answers = await self.raw(query(level, **keys), root, syntax, options)
        return [decode(answer, syntax) for answer in answers]

    async def raw(
        self,
        identifier: Dataset,
        root: Root = Root.STUDY,
        syntax: str = EXPLICIT,
        options: FindOptions = BASELINE,
    ) -> list[bytes]:
        asked = FindQuery(
            encode(identifier, syntax),
            root,
            transfer_syntax_uid=syntax,
            ae_title="HELD",
            options=options,
        )
        pks = await self.database.read(asked.pks)
        found = []
        for i in range(0, len(pks), 3):
            part = pks[i : i + 3]
            found.extend(await self.database.read(functools.partial(page, asked, part)))
        return found

    async def select(self, root: Root = Root.STUDY, **keys: object) -> list[str]:
        level = keys.pop("level", None)
        data = encode(query(level if level is None else str(level), **keys))
        asked = SelectQuery(data, root, transfer_syntax_uid=EXPLICIT)
        return [s.sop_instance_uid for s in await self.database.read(asked.run)]


def page(asked: FindQuery, pks: Sequence[int], connection: Connection) -> list[bytes]:
    return asked.page(connection, pks)


def query(level: str | None = None, **keys: object) -> Dataset:
    identifier = Dataset()
    if level is not None:
        identifier.QueryRetrieveLevel = level
    assign(identifier, **keys)
    return identifier


@asynccontextmanager
async def held(folder: Path, *datasets: Dataset) -> AsyncIterator[Held]:
    async with open_database(
        f"sqlite:///{folder}/i.db", METADATA, SCHEMA_VERSION, kind=KIND, synchronous=False
    ) as database:
        archive = Held(database)
        await archive.add(*datasets)
        yield archive


def values(found: Iterable[Dataset], keyword: str) -> list[str]:
    return [str(getattr(dataset, keyword)) for dataset in found]


def studies() -> list[Dataset]:
    """Three studies of two patients: 2 series (CT with 2 images, MR with 1), 1 series, 1 series."""
    return [
        instance(1, 1, 1, PatientID="A", PatientName="Doe^Jane", StudyDescription="Head"),
        instance(1, 1, 2, PatientID="A", PatientName="Doe^Jane", StudyDescription="Head"),
        instance(1, 2, 1, PatientID="A", PatientName="Doe^Jane", Modality="MR", SOPClassUID=MR),
        instance(2, 1, 1, PatientID="A", PatientName="Doe^Jane M", StudyDate="20230101"),
        instance(3, 1, 1, PatientID="B", PatientName="Roe^Rick", AccessionNumber="X1"),
    ]


async def test_every_level_under_both_roots(tmp_path: Path) -> None:
    async with held(tmp_path, *studies()) as archive:
        found = await archive.find("PATIENT", Root.PATIENT, PatientID="", PatientName="")
        assert values(found, "PatientID") == ["A", "B"]
        found = await archive.find("STUDY", StudyInstanceUID="")
        assert values(found, "StudyInstanceUID") == ["1.2.3.1", "1.2.3.2", "1.2.3.3"]
        found = await archive.find("STUDY", Root.PATIENT, PatientID="A", StudyInstanceUID="")
        assert values(found, "StudyInstanceUID") == ["1.2.3.1", "1.2.3.2"]
        assert values(found, "PatientID") == ["A", "A"]
        found = await archive.find("SERIES", StudyInstanceUID="1.2.3.1", SeriesInstanceUID="")
        assert values(found, "SeriesInstanceUID") == ["1.2.3.1.1", "1.2.3.1.2"]
        found = await archive.find(
            "IMAGE",
            StudyInstanceUID="1.2.3.1",
            SeriesInstanceUID="1.2.3.1.1",
            SOPInstanceUID="",
            SOPClassUID="",
            Rows=None,
            AvailableTransferSyntaxUID="",
        )
        assert values(found, "SOPInstanceUID") == ["1.2.3.1.1.1", "1.2.3.1.1.2"]
        assert found[0].SOPClassUID == CT
        assert found[0].Rows == 4
        assert found[0].AvailableTransferSyntaxUID == EXPLICIT
        assert found[0].QueryRetrieveLevel == "IMAGE"
        assert found[0].StudyInstanceUID == "1.2.3.1"


async def test_what_a_response_holds(tmp_path: Path) -> None:
    async with held(tmp_path, *studies()) as archive:
        found = await archive.find(
            "STUDY",
            StudyInstanceUID="1.2.3.1",
            StudyDescription="",
            PatientName="",
            InstanceAvailability="",
            # Below the level, not in the index, a sequence: they come back empty.
            SeriesDescription="x",
            RequestingPhysician="x",
            RequestAttributesSequence=[],
        )
        (answer,) = found
        assert answer.StudyDescription == "Head"
        assert answer.PatientName == "Doe^Jane"
        assert answer.RetrieveAETitle == "HELD"
        assert answer.InstanceAvailability == "ONLINE"
        assert answer.SeriesDescription == ""
        assert answer.RequestingPhysician == ""
        assert answer.RequestAttributesSequence == []
        assert "SpecificCharacterSet" not in answer
        assert [e.tag for e in answer] == sorted(e.tag for e in answer)


@pytest.mark.parametrize(
    "syntax",
    [uids.IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT, uids.EXPLICIT_VR_BIG_ENDIAN],
)
async def test_every_syntax_gives_the_same_answer(tmp_path: Path, syntax: str) -> None:
    async with held(tmp_path) as archive:
        await archive.add(*studies(), syntax=syntax)
        (answer,) = await archive.find(
            "IMAGE",
            syntax=syntax,
            SOPInstanceUID="1.2.3.1.1.2",
            Rows=4,
            Columns=None,
            PatientName="doe*",
            InstanceNumber="2",
            NumberOfFrames="",
        )
        assert answer.Rows == 4
        assert answer.Columns == 2
        assert answer.InstanceNumber == 2
        assert answer.PatientName == "Doe^Jane"
        assert answer.NumberOfFrames is None
        assert answer.SeriesInstanceUID == "1.2.3.1.1"


async def test_counts(tmp_path: Path) -> None:
    async with held(tmp_path, *studies()) as archive:
        study, *_ = await archive.find(
            "STUDY",
            StudyInstanceUID="1.2.3.1",
            NumberOfPatientRelatedStudies=None,
            NumberOfStudyRelatedSeries=None,
            NumberOfStudyRelatedInstances=None,
            ModalitiesInStudy="",
            SOPClassesInStudy="",
        )
        assert study.NumberOfPatientRelatedStudies == 2
        assert study.NumberOfStudyRelatedSeries == 2
        assert study.NumberOfStudyRelatedInstances == 3
        assert list(study.ModalitiesInStudy) == ["CT", "MR"]
        assert list(study.SOPClassesInStudy) == [CT, MR]
        patients = await archive.find(
            "PATIENT",
            Root.PATIENT,
            NumberOfPatientRelatedStudies=None,
            NumberOfPatientRelatedSeries=None,
            NumberOfPatientRelatedInstances=None,
        )
        assert values(patients, "NumberOfPatientRelatedStudies") == ["2", "1"]
        assert values(patients, "NumberOfPatientRelatedSeries") == ["3", "1"]
        assert values(patients, "NumberOfPatientRelatedInstances") == ["4", "1"]
        series = await archive.find(
            "SERIES", StudyInstanceUID="1.2.3.1", NumberOfSeriesRelatedInstances=None
        )
        assert values(series, "NumberOfSeriesRelatedInstances") == ["2", "1"]


KEYS: list[tuple[dict[str, object], list[str]]] = [
    ({"PatientName": "doe*"}, ["1", "2"]),
    ({"PatientName": "DOE^JANE"}, ["1"]),
    ({"PatientName": "*r?ck"}, ["3"]),
    ({"PatientName": "*"}, ["1", "2", "3"]),
    ({"PatientID": "A"}, ["1", "2"]),
    ({"PatientID": "a"}, []),
    ({"PatientID": "?"}, ["1", "2", "3"]),
    ({"StudyDate": "20240102"}, ["1", "3"]),
    ({"StudyDate": "-20231231"}, ["2"]),
    ({"StudyDate": "20230101-20240101"}, ["2"]),
    ({"StudyTime": "1030"}, ["1", "2", "3"]),
    ({"StudyTime": "1031-"}, []),
    ({"AccessionNumber": "X1"}, ["3"]),
    ({"AccessionNumber": "X*"}, ["3"]),
    ({"StudyInstanceUID": ["1.2.3.1", "1.2.3.3", "9"]}, ["1", "3"]),
    ({"ModalitiesInStudy": "MR"}, ["1"]),
    ({"ModalitiesInStudy": ["MR", "CR"]}, ["1"]),
    ({"ModalitiesInStudy": "C?"}, ["1", "2", "3"]),
    ({"SOPClassesInStudy": MR}, ["1"]),
    ({"StudyDescription": "He_d"}, []),
    ({"StudyDescription": "%"}, []),
    ({"StudyDescription": "*ea*"}, ["1"]),
    ({"StudyDescription": "'; DROP TABLE study; --"}, []),
    ({"PatientID": "A", "StudyDate": "2024*"}, ["1"]),
    # Keys below the level narrow nothing.
    ({"Modality": "MR"}, ["1", "2", "3"]),
    ({"NumberOfStudyRelatedInstances": "17"}, ["1", "2", "3"]),
]


@pytest.mark.parametrize(("keys", "expected"), KEYS, ids=lambda v: str(v)[:40])
async def test_keys(tmp_path: Path, keys: dict[str, Any], expected: list[str]) -> None:
    async with held(tmp_path, *studies()) as archive:
        found = await archive.find("STUDY", **keys)
        assert [uid.rpartition(".")[2] for uid in values(found, "StudyInstanceUID")] == expected


@pytest.mark.parametrize(
    ("root", "keys", "level"),
    [
        (Root.STUDY, {"PatientName": "Doe*"}, "STUDY"),
        (Root.PATIENT, {"PatientName": "Doe*"}, "PATIENT"),
        (Root.PATIENT, {"PatientID": "A"}, "PATIENT"),
        (Root.STUDY, {"PatientID": "A"}, "STUDY"),
        (Root.PATIENT, {"StudyInstanceUID": "1.2.3.1"}, "STUDY"),
        (Root.STUDY, {"SeriesInstanceUID": "1.2.3.1.1"}, "SERIES"),
        (Root.STUDY, {"SOPInstanceUID": "1.2.3.1.1.1", "StudyInstanceUID": ""}, "IMAGE"),
    ],
)
async def test_a_missing_level_is_completed(
    tmp_path: Path, root: Root, keys: dict[str, Any], level: str
) -> None:
    async with held(tmp_path, *studies()) as archive:
        found = await archive.find(None, root, **keys)
        assert found
        assert set(values(found, "QueryRetrieveLevel")) == {level}


async def test_unique_keys_above_the_level_may_be_missing(tmp_path: Path) -> None:
    async with held(tmp_path, *studies()) as archive:
        found = await archive.find("IMAGE", PatientName="Roe*")
        assert values(found, "SOPInstanceUID") == ["1.2.3.3.1.1"]
        found = await archive.find("SERIES", Modality="MR")
        assert values(found, "StudyInstanceUID") == ["1.2.3.1"]


@pytest.mark.parametrize(
    ("identifier", "offending"),
    [
        (query("IMAGE"), 0x0020000D),
        (query("IMAGE", StudyInstanceUID="1.2.3.1"), 0x0020000E),
        (query(PatientName="Doe*"), 0x00080052),
        (query("SERIES", StudyInstanceUID="*"), 0x0020000D),
        (query("PATIENT", PatientID="ID1"), 0x00080052),
    ],
)
async def test_strict_refuses_them(identifier: Dataset, offending: int) -> None:
    with pytest.raises(InvalidIdentifier) as refused:
        FindQuery(
            encode(identifier), Root.STUDY, transfer_syntax_uid=EXPLICIT, ae_title="", strict=True
        )
    assert refused.value.offending == (offending,)


@pytest.mark.parametrize(
    ("root", "data"),
    [
        (Root.PATIENT_STUDY_ONLY, encode(query("SERIES"))),
        (Root.STUDY, encode(query("NONSENSE"))),
        (Root.STUDY, encode(query("STUDY", StudyDate="-"))),
        (Root.STUDY, encode(query("STUDY", PatientName="*?" * 500_000))[:-3]),
        (Root.STUDY, b"\x08\x00\x52\x00CS\xff\xff"),
        (Root.STUDY, b"\x10\x00\x10\x00SQ\0\0\xff\xff\xff\xff" + b"\xfe\xff\xdd\xe0\0\0\0\0"),
        (Root.STUDY, b"not a dataset"),
    ],
)
def test_identifiers_that_cannot_be_answered(root: Root, data: bytes) -> None:
    with pytest.raises(InvalidIdentifier):
        FindQuery(data, root, transfer_syntax_uid=EXPLICIT, ae_title="")


async def test_long_uid_lists(tmp_path: Path) -> None:
    async with held(tmp_path, *studies()) as archive:
        # Two long lists at once: one drives the statements, the other is compared row by row.
        wanted = [f"1.2.3.{n}" for n in range(2, 40_000)]
        series = [f"1.2.3.{n}.1" for n in range(1, 3_000)]
        data = encode(query("SERIES"), uids.IMPLICIT_VR_LITTLE_ENDIAN)
        for tag, values_ in ((b"\x20\0\x0d\0", wanted), (b"\x20\0\x0e\0", series)):
            value = "\\".join(values_).encode()
            value += b"\0" * (len(value) % 2)
            data += tag + len(value).to_bytes(4, "little") + value
        syntax = uids.IMPLICIT_VR_LITTLE_ENDIAN
        asked = FindQuery(data, Root.STUDY, transfer_syntax_uid=syntax, ae_title="")
        pks = await archive.database.read(asked.pks)
        found = await archive.database.read(lambda c: asked.page(c, pks))
        answers = [decode(answer, syntax) for answer in found]
        assert values(answers, "SeriesInstanceUID") == ["1.2.3.2.1", "1.2.3.3.1"]


async def test_character_sets_are_carried(tmp_path: Path) -> None:
    async with held(
        tmp_path,
        instance(1, SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jürgen"),
        instance(2, SpecificCharacterSet="ISO_IR 192", PatientName="山田^太郎"),
        instance(
            3,
            SpecificCharacterSet=["", "ISO 2022 IR 87"],
            PatientName="Yamada^Tarou=山田^太郎",
        ),
        instance(4, SpecificCharacterSet="ISO_IR 100", PatientName="Plain"),
    ) as archive:
        found = await archive.find("STUDY", PatientName="")
        assert values(found, "PatientName") == [
            "Müller^Jürgen",
            "山田^太郎",
            "Yamada^Tarou=山田^太郎",
            "Plain",
        ]
        sets = [d.get("SpecificCharacterSet") for d in found]
        assert sets == ["ISO_IR 100", "ISO_IR 192", "ISO_IR 192", None]
        found = await archive.find(
            "STUDY", SpecificCharacterSet="ISO_IR 192", PatientName="müller*"
        )
        assert values(found, "PatientName") == ["Müller^Jürgen"]
        found = await archive.find("STUDY", SpecificCharacterSet="ISO_IR 192", PatientName="Plain")
        assert found[0].SpecificCharacterSet == "ISO_IR 100"
        found = await archive.find("STUDY", SpecificCharacterSet="ISO_IR 192", PatientName="山田*")
        assert values(found, "StudyInstanceUID") == ["1.2.3.2", "1.2.3.3"]


async def test_a_study_keeps_its_own_spelling_of_the_patient(tmp_path: Path) -> None:
    async with held(
        tmp_path,
        instance(1, PatientID="A", PatientName="Doe^Jane"),
        instance(2, PatientID="A", PatientName="DOE^J"),
    ) as archive:
        assert values(await archive.find("STUDY", PatientName=""), "PatientName") == [
            "Doe^Jane",
            "DOE^J",
        ]
        patients = await archive.find("PATIENT", Root.PATIENT, PatientName="")
        assert values(patients, "PatientName") == ["Doe^Jane"]


async def test_patients_without_an_id_are_told_apart_by_name(tmp_path: Path) -> None:
    async with held(
        tmp_path,
        instance(1, PatientID="", PatientName="Doe^Jane"),
        instance(2, PatientID=None, PatientName="Roe^Rick"),
    ) as archive:
        patients = await archive.find("PATIENT", Root.PATIENT, PatientName="")
        assert values(patients, "PatientName") == ["Doe^Jane", "Roe^Rick"]


async def test_what_the_first_object_lacks_the_next_one_gives(tmp_path: Path) -> None:
    async with held(
        tmp_path,
        instance(1, 1, 1, PatientID="A", PatientName=""),
        instance(1, 1, 2, PatientID="A", PatientName="Doe", StudyDescription="Head"),
        instance(1, 1, 3, PatientID="A", PatientName="Other", StudyDescription="Other"),
    ) as archive:
        (study,) = await archive.find("STUDY", PatientName="DOE", StudyDescription="")
        assert study.StudyDescription == "Head"
        archive.index = Index(archive.database)  # nothing remembered: the rows are read
        await archive.add(instance(1, 1, 4, PatientID="A", StudyID="S", PatientName="X"))
        (study,) = await archive.find("STUDY", PatientName="", StudyID="")
        assert (study.PatientName, study.StudyID) == ("Doe", "S")


async def test_adding(tmp_path: Path) -> None:
    async with held(tmp_path) as archive:
        one = instance(1, 1, 1)
        other = instance(1, 1, 1, PatientName="Another")
        assert await archive.add(one, one, other, other, one) == [
            Added.STORED,
            Added.SAME,
            Added.CONFLICT,
            Added.CONFLICT_KNOWN,
            Added.SAME,
        ]
        again = await archive.add(one, syntax=uids.IMPLICIT_VR_LITTLE_ENDIAN)
        assert again == [Added.CONFLICT]
        gained = (await archive.add_one(instance(1, 1, 2))).gained
        assert (gained.studies, gained.series, gained.instances) == (0, 0, 1)
        assert await archive.database.read(totals) == Totals(
            patients=1,
            studies=1,
            series=1,
            instances=2,
            bytes=len(encode(one)) + len(encode(instance(1, 1, 2))),
            conflicts=2,
        )


async def test_an_undone_transaction_is_forgotten(tmp_path: Path) -> None:
    async with held(tmp_path) as archive:
        data = encode(instance(1))
        intake = Intake(EXPLICIT)
        intake.feed(data)
        digest, description = intake.finish()

        def broken(connection: object) -> None:
            obj = Object(
                description=description,
                sop_class_uid=CT,
                sop_instance_uid="1",
                transfer_syntax_uid=EXPLICIT,
                place=Place(0, "x"),
                dataset_offset=0,
                length=1,
                sha256=digest,
                received=0,
                source_ae_title="",
            )
            archive.index.add(connection, obj)  # type: ignore[arg-type]
            raise OSError("after the rows were made")

        with pytest.raises(OSError, match="after the rows"):
            await archive.database.submit(broken)
        # The patient, study and series that it had made are gone, and are made again.
        assert await archive.add(instance(1)) == [Added.STORED]
        assert (await archive.database.read(totals)).series == 1
        assert len(await archive.find("SERIES")) == 1


async def test_one_series_uid_in_two_studies(tmp_path: Path) -> None:
    async with held(
        tmp_path,
        instance(1, 1, 1, SeriesInstanceUID="1.5"),
        instance(2, 1, 1, SeriesInstanceUID="1.5"),
    ) as archive:
        found = await archive.find("SERIES", SeriesInstanceUID="1.5")
        assert values(found, "StudyInstanceUID") == ["1.2.3.1", "1.2.3.2"]
        assert await archive.select(StudyInstanceUID="1.2.3.1", SeriesInstanceUID="1.5") == [
            "1.2.3.1.1.1"
        ]


async def test_selecting_for_retrieve(tmp_path: Path) -> None:
    async with held(tmp_path, *studies()) as archive:
        one = ["1.2.3.1.1.1", "1.2.3.1.1.2", "1.2.3.1.2.1"]
        assert await archive.select(level="STUDY", StudyInstanceUID="1.2.3.1") == one
        assert await archive.select(level="STUDY", StudyInstanceUID=["1.2.3.1", "1.2.3.3"]) == [
            *one,
            "1.2.3.3.1.1",
        ]
        # With the unique key the others are words.
        assert await archive.select(StudyInstanceUID="1.2.3.1", PatientName="Nobody") == one
        assert await archive.select(Root.PATIENT, level="PATIENT", PatientID="A") == [
            *one,
            "1.2.3.2.1.1",
        ]
        # Without it every key narrows.
        assert await archive.select(PatientName="doe^jane") == one
        assert await archive.select(level="STUDY", PatientName="doe*", StudyDate="2023*") == [
            "1.2.3.2.1.1"
        ]
        assert await archive.select(level="STUDY", ModalitiesInStudy="MR") == one
        assert await archive.select(level="IMAGE", SOPInstanceUID="1.2.3.3.1.1") == ["1.2.3.3.1.1"]
        assert await archive.select(StudyInstanceUID="9.9") == []


@pytest.mark.parametrize("keys", [{}, {"PatientName": "*"}, {"StudyInstanceUID": ""}])
async def test_everything_is_not_given_out(keys: dict[str, str]) -> None:
    with pytest.raises(InvalidIdentifier, match="no key has a value"):
        SelectQuery(encode(query("STUDY", **keys)), Root.STUDY, transfer_syntax_uid=EXPLICIT)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "A", "AB", "a", "A%", "A_", "*"]),
            st.sampled_from(["", "20240101", "20240102", "20231231", "garbage"]),
            st.sampled_from(["", "Doe", "DOE^J", "doe^j^^", "Dö^É"]),
        ),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(["", "*", "A", "A*", "?", "A%", "A_", "*B"]),
    st.sampled_from(["", "20240101", "20240101-", "-20240101", "20231231-20240101"]),
    st.sampled_from(["", "doe", "DOE*", "d?e^j", "dö*", "*É"]),
)
def test_sql_and_memory_agree(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str, str]],
    accession: str,
    date: str,
    name: str,
) -> None:
    import trio

    from dcmhaul.archive.matching import is_universal, make_matcher

    def expected(row: tuple[str, str, str]) -> bool:
        keys = (("SH", accession), ("DA", date), ("PN", name))
        return all(
            is_universal(key) or (bool(value) and make_matcher(vr, key).matches(value))
            for value, (vr, key) in zip(row, keys, strict=True)
        )

    async def run() -> None:
        datasets = [
            instance(
                n,
                SpecificCharacterSet="ISO_IR 192",
                AccessionNumber=row[0],
                StudyDate=row[1],
                PatientName=row[2],
            )
            for n, row in enumerate(rows)
        ]
        async with held(tmp_path_factory.mktemp("index"), *datasets) as archive:
            found = await archive.find(
                "STUDY",
                SpecificCharacterSet="ISO_IR 192",
                AccessionNumber=accession,
                StudyDate=date,
                PatientName=name,
            )
            assert values(found, "StudyInstanceUID") == [
                f"1.2.3.{n}" for n, row in enumerate(rows) if expected(row)
            ]

    trio.run(run)
