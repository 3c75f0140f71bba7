"""The archive over the network, both ends ours."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import trio

from dcmhaul import uids
from dcmhaul.archive import open_archive
from dcmhaul.objects.part10 import open_instance
from dcmhaul.services.extended import FindOptions
from dcmhaul.services.query import QueryModel, find
from dcmhaul.services.retrieve import get
from dcmhaul.services.storage import StorageScp
from dcmhaul.services.verification import echo
from tests.archive.made import CT, decode, encode, instance, real_files
from tests.archive.serving import Served, send, serving
from tests.archive.test_archive import contents
from tests.archive.test_query import query, values

if TYPE_CHECKING:
    from pathlib import Path

    from dcmhaul.objects.instances import SinkFactory

EXPLICIT = uids.EXPLICIT_VR_LITTLE_ENDIAN
IMPLICIT = uids.IMPLICIT_VR_LITTLE_ENDIAN
STUDY = QueryModel.STUDY_ROOT


def write_studies(folder: Path, studies: int, instances: int) -> list[Path]:
    """Small files, outside any archive."""
    folder.mkdir()
    paths = []
    for study in range(1, studies + 1):
        for number in range(1, instances + 1):
            path = folder / f"{study}-{number}"
            path.write_bytes(bytes(128) + b"DICM" + meta(study, number))
            paths.append(path)
    return paths


def meta(study: int, number: int) -> bytes:
    from dcmhaul.wire.part10 import encode_file_meta

    dataset = instance(study, 1, number)
    head = encode_file_meta(CT, dataset.SOPInstanceUID, EXPLICIT)
    return head[132:] + encode(dataset)


async def fetch(
    served: Served,
    sinks: SinkFactory,
    pairs: list[tuple[str, str]],
    *,
    model: QueryModel = STUDY,
    level: str = "STUDY",
    extended: bytes = b"",
    **keys: object,
) -> tuple[int, int | None, int | None]:
    """C-GET into sinks: the final status, completed, failed."""
    classes = [uid for uid, _ in pairs]
    async with served.associate(
        [(model.get_uid, EXPLICIT), *pairs],
        get_classes=classes,
        extended={model.get_uid: extended} if extended else None,
    ) as association:
        response = await get(
            association, model, encode(query(level, **keys)), StorageScp(sinks).handle
        )
    return response.status, response.completed, response.failed


async def test_echo(tmp_path: Path) -> None:
    async with (
        serving(tmp_path / "a") as served,
        served.associate([(uids.VERIFICATION, IMPLICIT)]) as association,
    ):
        assert await echo(association) == 0


@pytest.mark.parametrize("window", [1, 16])
async def test_the_real_files_travel_from_archive_to_archive(tmp_path: Path, window: int) -> None:
    paths = real_files()
    async with serving(tmp_path / "a") as served, open_archive(tmp_path / "b") as other:
        outcomes = await send(served, paths, window=window)
        assert [o.status for o in outcomes] == [0] * len(paths)
        studies, status = await served.find("STUDY", StudyInstanceUID="", SOPClassesInStudy="")
        assert status == 0
        expected: dict[str, tuple[str, bytes]] = {}
        for study in studies:
            uid = study.StudyInstanceUID
            held = await contents(served.archive, StudyInstanceUID=uid)
            expected |= held
            images, _ = await served.find(
                "IMAGE",
                StudyInstanceUID=uid,
                SOPInstanceUID="",
                SOPClassUID="",
                AvailableTransferSyntaxUID="",
            )
            assert {i.SOPInstanceUID for i in images} == set(held)
            pairs = [(i.SOPClassUID, i.AvailableTransferSyntaxUID) for i in images]
            fetched = await fetch(served, other.sink, pairs, StudyInstanceUID=uid)
            assert fetched == (0, len(held), 0)
        assert len(expected) == len(paths)
        found = await contents(other, StudyInstanceUID=[s.StudyInstanceUID for s in studies])
        assert found == expected
    by_uid = {}
    for path in paths:
        source = open_instance(path)
        dataset = source.dataset
        by_uid[source.sop_instance_uid] = (
            bytes(dataset)
            if isinstance(dataset, memoryview)
            else os.pread(dataset.fd, dataset.length, dataset.offset)
        )
        source.close()
    assert {uid: data for uid, (_, data) in found.items()} == by_uid


async def test_several_associations_at_once(tmp_path: Path) -> None:
    paths = write_studies(tmp_path / "files", studies=8, instances=12)
    async with serving(tmp_path / "a") as served:
        statuses: list[int | None] = []

        async def one(part: list[Path]) -> None:
            statuses.extend(o.status for o in await send(served, part, window=8))

        async with trio.open_nursery() as nursery:
            for n in range(4):
                nursery.start_soon(one, paths[n::4])
        assert statuses == [0] * 96
        holds = served.archive.statistics().holds
        assert (holds.patients, holds.studies, holds.instances) == (8, 8, 96)


async def test_duplicates_and_conflicts_are_answered(tmp_path: Path) -> None:
    (path,) = write_studies(tmp_path / "files", studies=1, instances=1)
    other = tmp_path / "other"
    other.write_bytes(path.read_bytes()[:-2] + b"zz")
    async with serving(tmp_path / "a") as served:
        outcomes = await send(served, [path, path, other])
        assert [o.status for o in outcomes] == [0, 0, 0xC001]
        assert "kept aside" in outcomes[2].error_comment
        assert outcomes[2].offending == (0x00080018,)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, uids.EXPLICIT_VR_BIG_ENDIAN])
@pytest.mark.parametrize("model", [QueryModel.PATIENT_ROOT, QueryModel.STUDY_ROOT])
async def test_find_in_every_syntax_and_model(
    tmp_path: Path, syntax: str, model: QueryModel
) -> None:
    paths = write_studies(tmp_path / "files", studies=40, instances=1)
    async with serving(tmp_path / "a") as served:
        await send(served, paths)
        found, status = await served.find(
            "STUDY", model=model, syntax=syntax, PatientName="doe^john1*", StudyInstanceUID=""
        )
        assert status == 0
        assert sorted(values(found, "PatientName")) == sorted(
            f"Doe^John{n}" for n in (1, *range(10, 20))
        )
        found, status = await served.find("STUDY", model=model, syntax=syntax, PatientName="X")
        assert (found, status) == ([], 0)


async def test_a_long_answer_begins_before_it_ends(tmp_path: Path) -> None:
    paths = write_studies(tmp_path / "files", studies=300, instances=1)
    async with serving(tmp_path / "a") as served:
        await send(served, paths, window=16)
        pages = []
        begun = trio.Event()
        read = served.archive._database.read

        async def counted(function: object) -> object:
            pages.append(1)
            if len(pages) == 3:
                await begun.wait()
            return await read(function)  # type: ignore[arg-type]

        served.archive._database.read = counted  # type: ignore[method-assign, assignment]
        async with (
            served.associate([(STUDY.find_uid, EXPLICIT)]) as association,
            find(association, STUDY, encode(query("STUDY", StudyInstanceUID=""))) as responses,
        ):
            first = await anext(responses)
            assert decode(first.identifier or b"").StudyInstanceUID.startswith("1.2.3.")
            begun.set()
            rest = [r async for r in responses]
        assert len(rest) == 300
        assert len(pages) == 4  # the keys, then 16, 256 and 28 rows


async def test_a_limit_on_matches_is_told(tmp_path: Path) -> None:
    paths = write_studies(tmp_path / "files", studies=5, instances=1)
    async with serving(tmp_path / "a", matches_max=3) as served:
        await send(served, paths)
        found, status = await served.find("STUDY", StudyInstanceUID="")
        assert (len(found), status) == (3, 0xA700)


async def test_refusals_on_the_wire(tmp_path: Path) -> None:
    async with serving(tmp_path / "a") as served, open_archive(tmp_path / "b") as other:
        assert await served.find("NOWHERE") == ([], 0xA900)
        assert await served.find("SERIES", model=QueryModel.PATIENT_STUDY_ONLY) == ([], 0xA900)
        assert await served.find("STUDY", StudyDate="-") == ([], 0xC000)
        assert (await fetch(served, other.sink, [(CT, EXPLICIT)], PatientName="*"))[0] == 0xC000
        assert (await served.find("STUDY", StudyInstanceUID=""))[1] == 0


@pytest.mark.parametrize(
    ("model", "find_levels"),
    [
        (QueryModel.PATIENT_ROOT, ("PATIENT", "STUDY", "SERIES", "IMAGE")),
        # Of patients, too, unless it is strict: so Orthanc has them moved.
        (QueryModel.STUDY_ROOT, ("PATIENT", "STUDY", "SERIES", "IMAGE")),
        (QueryModel.PATIENT_STUDY_ONLY, ("PATIENT", "STUDY")),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
async def test_every_model_is_found_in_and_given_out(
    tmp_path: Path, model: QueryModel, find_levels: tuple[str, ...]
) -> None:
    unique = {
        "PATIENT": {"PatientID": "ID1"},
        "STUDY": {"StudyInstanceUID": "1.2.3.1"},
        "SERIES": {"SeriesInstanceUID": "1.2.3.1.1"},
        "IMAGE": {"SOPInstanceUID": "1.2.3.1.1.1"},
    }
    async with serving(tmp_path / "a") as served, open_archive(tmp_path / "b") as other:
        await send(served, write_studies(tmp_path / "files", studies=2, instances=2))
        keys: dict[str, Any] = {}
        for level, key in unique.items():
            keys |= key
            if level not in find_levels:
                assert await served.find(level, model=model, **keys) == ([], 0xA900)
                continue
            (match,), status = await served.find(level, model=model, InstanceNumber="", **keys)
            assert status == 0
            # A key below the level comes back, and is empty.
            assert bool(match.InstanceNumber) is (level == "IMAGE")
            expected = 1 if level == "IMAGE" else 2
            fetched = await fetch(
                served, other.sink, [(CT, EXPLICIT)], model=model, level=level, **keys
            )
            assert fetched == (0, expected, 0)


async def test_a_worklist_without_items(tmp_path: Path) -> None:
    async with serving(tmp_path / "a") as served:
        worklist = QueryModel.WORKLIST
        step = [query(Modality="CT", ScheduledProcedureStepStartDate="20240101")]
        assert await served.find(
            None, model=worklist, PatientName="*", ScheduledProcedureStepSequence=step
        ) == ([], 0)
        assert await served.find("STUDY", model=worklist) == ([], 0)
        async with (
            served.associate([(worklist.find_uid, EXPLICIT)]) as association,
            find(association, worklist, b"nonsense") as responses,
        ):
            assert [r.status async for r in responses] == [0xC000]


async def test_extended_negotiation_is_answered_and_kept_to(tmp_path: Path) -> None:
    everything = {STUDY.find_uid: b"\1\1\1\1\1\1\1", STUDY.get_uid: b"\1\1", CT: b"\2\0\3"}
    contexts = [(uid, EXPLICIT) for uid in everything]
    async with serving(tmp_path / "a", strict=True) as served:
        await send(served, write_studies(tmp_path / "files", studies=2, instances=1))
        async with served.associate(contexts, extended=everything) as association:
            assert association.agreement.extended == {
                STUDY.find_uid: b"\1\1\1\1",
                STUDY.get_uid: b"\1\0",
            }
        async with served.associate(contexts) as association:
            assert association.agreement.extended == {}
        relational = FindOptions(relational=True)
        assert await served.find("PATIENT", PatientID="ID1") == ([], 0xA900)
        assert await served.find("IMAGE", SOPInstanceUID="1.2.3.2.1.1") == ([], 0xA900)
        (match,), status = await served.find(
            "IMAGE", options=relational, SOPInstanceUID="1.2.3.2.1.1"
        )
        assert (match.SOPInstanceUID, status) == ("1.2.3.2.1.1", 0)
        (match,), _ = await served.find(
            "STUDY", options=FindOptions(fuzzy=True), PatientName="dow", StudyInstanceUID="1.2.3.2"
        )
        assert match.PatientName == "Doe^John2"


async def test_relational_retrieval_is_agreed(tmp_path: Path) -> None:
    async with serving(tmp_path / "a", strict=True) as served, open_archive(tmp_path / "b") as b:
        await send(served, write_studies(tmp_path / "files", studies=2, instances=1))
        wanted: dict[str, Any] = {"level": "IMAGE", "SOPInstanceUID": "1.2.3.2.1.1"}
        pairs = [(CT, EXPLICIT)]
        assert await fetch(served, b.sink, pairs, **wanted) == (0xA900, None, None)
        assert await fetch(served, b.sink, pairs, extended=b"\1", **wanted) == (0, 1, 0)


async def test_a_file_that_is_gone_fails_alone(tmp_path: Path) -> None:
    paths = write_studies(tmp_path / "files", studies=1, instances=3)
    async with serving(tmp_path / "a") as served, open_archive(tmp_path / "b") as other:
        await send(served, paths)
        next((tmp_path / "a" / "objects" / "000000").iterdir()).unlink()
        fetched = await fetch(served, other.sink, [(CT, EXPLICIT)], StudyInstanceUID="1.2.3.1")
        assert fetched == (0xB000, 2, 1)


async def test_any_class_where_the_policy_says_so(tmp_path: Path) -> None:
    dataset = instance(SOPClassUID="1.3.6.1.4.1.9.9.9")
    from dcmhaul.wire.part10 import encode_file_meta

    path = tmp_path / "private"
    head = encode_file_meta("1.3.6.1.4.1.9.9.9", dataset.SOPInstanceUID, EXPLICIT)
    path.write_bytes(head + encode(dataset))
    async with serving(tmp_path / "a", policy={"accept_any_storage": True}) as served:
        assert [o.status for o in await send(served, [path])] == [0]
        (image,), _ = await served.find("IMAGE", SOPClassUID="1.3.6.1.4.1.9.9.9")
        assert image.SOPInstanceUID == "1.2.3.1.1.1"
