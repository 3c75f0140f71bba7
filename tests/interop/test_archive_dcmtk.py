"""DCMTK's tools against the archive: echoscu, storescu, findscu, getscu."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from dcmhaul.objects.part10 import open_instance
from dcmhaul.wire.part10 import encode_file_meta
from tests.archive.made import CT, encode, instance, real_files
from tests.archive.serving import AE_TITLE, Served, send, serving
from tests.interop import peers

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

EXPLICIT = "1.2.840.10008.1.2.1"


async def tool(
    served: Served, name: str, *arguments: str | Path, after: tuple[Path, ...] = ()
) -> subprocess.CompletedProcess[str]:
    argv = ["-v", "-aet", "DCMTK", "-aec", AE_TITLE, *arguments, "127.0.0.1", served.port, *after]
    return await trio.to_thread.run_sync(
        partial(peers.run_tool, name, *argv, nodelay=True), abandon_on_cancel=True
    )


def dataset_of(path: Path) -> bytes:
    opened = open_instance(path)
    data = path.read_bytes()[-opened.length :]
    opened.close()
    return data


def made(folder: Path, studies: int = 2, instances: int = 3) -> list[Path]:
    folder.mkdir()
    paths = []
    for study in range(1, studies + 1):
        for number in range(1, instances + 1):
            dataset = instance(
                study, 1, number, SpecificCharacterSet="ISO_IR 100", PatientName="Müller^Jürgen"
            )
            path = folder / f"{study}-{number}.dcm"
            head = encode_file_meta(CT, str(dataset.SOPInstanceUID), EXPLICIT)
            path.write_bytes(head + encode(dataset))
            paths.append(path)
    return paths


async def test_echoscu(tmp_path: Path) -> None:
    async with serving(tmp_path / "a") as served:
        done = await tool(served, "echoscu")
        assert done.returncode == 0, done.stdout


async def test_storescu_and_getscu_bring_the_same_bytes_back(tmp_path: Path) -> None:
    paths = made(tmp_path / "files")
    out = tmp_path / "out"
    out.mkdir()
    async with serving(tmp_path / "a") as served:
        done = await tool(served, "storescu", after=tuple(paths))
        assert done.returncode == 0, done.stdout
        assert served.archive.statistics().stored == 6
        done = await tool(
            served,
            "getscu",
            *("-S", "+B", "-od", out),
            *("-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2.3.2"),
        )
        assert done.returncode == 0, done.stdout
    received = sorted(out.iterdir())
    assert len(received) == 3
    expected = {p.read_bytes()[-len(dataset_of(p)) :] for p in paths[3:]}
    assert {dataset_of(p) for p in received} == expected


async def test_storescu_sends_the_real_files(tmp_path: Path) -> None:
    """Those that storescu sends as they are: the archive holds what it sent."""
    paths = [
        path
        for path in real_files()
        # Its dataset has no VRs, whatever its meta says: DCMTK cannot read that.
        if path.stat().st_size < 1 << 20 and path.name != "SC_rgb_jpeg.dcm"
    ]
    async with serving(tmp_path / "a") as served:
        for path in paths[:25]:
            opened = open_instance(path)
            opened.close()
            option = {
                "1.2.840.10008.1.2.4.50": "-xy",
                "1.2.840.10008.1.2.4.51": "-xx",
                "1.2.840.10008.1.2.4.70": "-xs",
                "1.2.840.10008.1.2.4.90": "-xv",
                "1.2.840.10008.1.2.4.91": "-xw",
            }.get(opened.transfer_syntax_uid, "-x=")
            done = await tool(served, "storescu", "-R", option, after=(path,))
            assert "Received Store Response (Success)" in done.stdout, f"{path}:\n{done.stdout}"
        assert served.archive.statistics().refused == 0


@pytest.mark.parametrize("model", ["-S", "-P"])
async def test_findscu(tmp_path: Path, model: str) -> None:
    async with serving(tmp_path / "a") as served:
        await send(served, made(tmp_path / "files", studies=30, instances=1))
        done = await tool(
            served,
            "findscu",
            model,
            *("-k", "QueryRetrieveLevel=STUDY", "-k", "PatientID=ID1*", "-k", "PatientName"),
            *("-k", "StudyInstanceUID", "-k", "ModalitiesInStudy=CT"),
            *("-k", "StudyDate=20240101-", "-k", "NumberOfStudyRelatedInstances"),
        )
        assert done.returncode == 0, done.stdout
        found = re.findall(r"\(0020,000d\) UI \[([0-9.]+)", done.stdout)
        assert sorted(set(found)) == sorted(f"1.2.3.{n}" for n in (1, *range(10, 20)))
        assert done.stdout.count(f"AE [{AE_TITLE}") == 11
        assert done.stdout.count("(0020,1208) IS [1 ]") == 11


async def test_a_key_that_is_none_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path / "a") as served:
        done = await tool(
            served, "findscu", "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyDate=2024-"
        )
        assert "Failed: UnableToProcess" in done.stdout, done.stdout


async def test_findscu_without_a_level_and_with_a_wild_card(tmp_path: Path) -> None:
    async with serving(tmp_path / "a") as served:
        await send(served, made(tmp_path / "files"))
        done = await tool(served, "findscu", "-S", "-k", "PatientName=M*", "-k", "StudyInstanceUID")
        assert done.returncode == 0, done.stdout
        assert done.stdout.count("CS [STUDY ]") >= 2


async def test_getscu_by_a_patients_name_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    async with serving(tmp_path / "a") as served:
        await send(served, made(tmp_path / "files"))
        done = await tool(served, "getscu", "-P", "-od", out, "-k", "PatientName=M*")
        assert done.returncode == 0, done.stdout
    assert len(list(out.iterdir())) == 6


async def test_a_conflict_is_told_to_storescu(tmp_path: Path) -> None:
    (path,) = made(tmp_path / "files", studies=1, instances=1)
    other = tmp_path / "files" / "other.dcm"
    other.write_bytes(path.read_bytes()[:-2] + b"zz")
    async with serving(tmp_path / "a") as served:
        assert (await tool(served, "storescu", after=(path,))).returncode == 0
        done = await tool(served, "storescu", after=(other,))
        assert "0xc001" in done.stdout.lower() or "Cannot" in done.stdout, done.stdout
        assert served.archive.statistics().conflicts == 1


async def test_twelve_senders_and_each_object_once(tmp_path: Path) -> None:
    paths = made(tmp_path / "files", studies=3, instances=4)
    async with serving(tmp_path / "a") as served:

        async def one() -> None:
            done = await tool(served, "storescu", after=tuple(paths))
            assert done.returncode == 0, done.stdout

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(one)
        statistics = served.archive.statistics()
        assert (statistics.stored, statistics.duplicates) == (12, 36)
        assert statistics.holds.instances == 12
