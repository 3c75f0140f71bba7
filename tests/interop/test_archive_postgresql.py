"""The archive's index in PostgreSQL, a server of our own in a temporary folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dcmhaul import uids
from dcmhaul.archive import open_archive
from dcmhaul.errors import ConfigurationError
from tests.archive.made import instance, real_files
from tests.archive.serving import serving
from tests.archive.test_archive import contents, store
from tests.archive.test_query import values
from tests.interop import peers

if TYPE_CHECKING:
    from collections.abc import Iterator

EXPLICIT = uids.EXPLICIT_VR_LITTLE_ENDIAN


def tool(name: str) -> str:
    """Distributions keep the server's tools off the PATH, one folder a version."""
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / name).exists():
            return str(folder / name)
    found = shutil.which(name)
    if found is None:
        if os.environ.get("REQUIRE_PEERS") == "1":
            pytest.fail("REQUIRE_PEERS=1, but PostgreSQL is not installed")
        pytest.skip("PostgreSQL is not installed: install postgresql")
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server's URL without a database name; it refuses to run as root, so it is nobody's then."""
    pytest.importorskip(
        "psycopg", reason="psycopg is not installed: pip install 'dcmhaul[postgres]'"
    )
    initdb, pg_ctl = tool("initdb"), tool("pg_ctl")
    port = peers.free_port()
    user = "nobody" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="dcmhaul-postgresql-") as folder:
        if user is not None:
            shutil.chown(folder, user)

        def run(*argv: str) -> None:
            # The server inherits the output, so that must not be a pipe that would stay open.
            with open(f"{folder}.log", "ab") as log:
                subprocess.run(argv, user=user, cwd=folder, stdout=log, stderr=log, check=True)

        data = f"{folder}/data"
        run(initdb, "-D", data, "-U", "dcmhaul", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        run(pg_ctl, "-D", data, "-o", options, "-l", f"{folder}/log", "-w", "start")
        try:
            yield f"postgresql://dcmhaul@127.0.0.1:{port}"
        finally:
            run(pg_ctl, "-D", data, "-m", "immediate", "-w", "stop")
            Path(f"{folder}.log").unlink()


@pytest.fixture
def url(server: str, request: pytest.FixtureRequest) -> str:
    """A fresh database."""
    name = request.node.name.lower()[:60]
    host, _, port = server.rpartition("@")[2].partition(":")
    argv = [tool("createdb"), "-h", host, "-p", port, "-U", "dcmhaul", name]
    subprocess.run(argv, check=True, capture_output=True)
    return f"{server}/{name}"


async def test_stores_finds_and_gives_out(tmp_path: Path, url: str) -> None:
    paths = real_files()
    folder = tmp_path / "a"
    async with serving(folder, database_url=url) as served:
        archive = served.archive
        assert (await archive.import_files(paths)).stored == len(paths)
        name = "Müller^Jürgen"
        one = instance(SpecificCharacterSet="ISO_IR 100", PatientName=name)
        assert (await store(archive, one)).status == 0
        assert (await store(archive, one)).status == 0
        assert (await store(archive, instance(PatientName="Other"))).status == 0xC001
        found, status = await served.find(
            "STUDY",
            SpecificCharacterSet="ISO_IR 192",
            PatientName="MÜLLER*",
            StudyDate="20240101-20241231",
            ModalitiesInStudy="CT",
            NumberOfStudyRelatedInstances="",
        )
        assert status == 0
        assert values(found, "PatientName") == [name]
        assert values(found, "NumberOfStudyRelatedInstances") == ["1"]
        assert list(await contents(archive, StudyInstanceUID="1.2.3.1")) == ["1.2.3.1.1.1"]
        with pytest.raises(ConfigurationError, match="another process"):
            async with open_archive(tmp_path / "b", database_url=url):
                pass
    async with open_archive(folder, database_url=url) as archive:
        assert archive.recovery.lines() == []
        assert archive.statistics().holds.instances == len(paths) + 1


async def test_a_job_that_fails_is_undone_alone(tmp_path: Path, url: str) -> None:
    async with open_archive(tmp_path / "a", database_url=url) as archive:
        database = archive._database
        with pytest.raises(Exception, match="division by zero"):
            await database.submit(lambda c: c.exec_driver_sql("SELECT 1/0"))
        assert (await store(archive, instance())).status == 0
