"""Running peers as fixtures; a test that needs other options calls tests.interop.peers itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.interop import peers, pynetdicom_peer

if TYPE_CHECKING:
    from collections.abc import Iterator


pynetdicom_peer.mend_race()


@pytest.fixture
def storescp(tmp_path: Path) -> Iterator[peers.Server]:
    """DCMTK's storescp, as installed (Nagle on), which writes what it receives into `.folder`."""
    folder = tmp_path / "storescp"
    folder.mkdir()
    with peers.storescp(folder) as server:
        yield server


@pytest.fixture
def dcmqrscp(tmp_path: Path) -> Iterator[peers.Server]:
    """DCMTK's archive, empty."""
    with peers.dcmqrscp(tmp_path / "dcmqrscp") as server:
        yield server


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[peers.Server]:
    """Orthanc, empty, with its REST interface on `.http_port`."""
    with peers.orthanc(tmp_path / "orthanc") as server:
        yield server


@pytest.fixture
def pynetdicom_scp(tmp_path: Path) -> Iterator[peers.Server]:
    """A pynetdicom SCP that keeps its files in `.folder` and answers queries from them."""
    with peers.pynetdicom_scp(tmp_path / "pynetdicom") as server:
        yield server


def _tool(name: str) -> str:
    """PostgreSQL's own: distributions keep the server's tools off the PATH, one folder a version."""
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (folder / name).exists():
            return str(folder / name)
    found = shutil.which(name)
    if found is None:
        if os.environ.get("REQUIRE_PEERS") == "1":
            pytest.fail("REQUIRE_PEERS=1, but PostgreSQL is not installed")
        pytest.skip("PostgreSQL is not installed: install postgresql")
    return found


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """PostgreSQL, a server of our own in a temporary folder: its URL without a database name.

    It refuses to run as root, so it is nobody's then.
    """
    pytest.importorskip(
        "psycopg", reason="psycopg is not installed: pip install 'dcmhaul[postgres]'"
    )
    initdb, pg_ctl = _tool("initdb"), _tool("pg_ctl")
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
def postgresql_url(postgresql: str, request: pytest.FixtureRequest) -> str:
    """A fresh database of it."""
    name = request.node.name.lower()[:60]
    host, _, port = postgresql.rpartition("@")[2].partition(":")
    argv = [_tool("createdb"), "-h", host, "-p", port, "-U", "dcmhaul", name]
    subprocess.run(argv, check=True, capture_output=True)
    return f"{postgresql}/{name}"
