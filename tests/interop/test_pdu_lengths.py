"""PDU lengths with DCMTK and pynetdicom each way: below, at and above what the other end has."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from dcmhaul.cli import main
from dcmhaul.objects.part10 import FileInstance
from dcmhaul.objects.sources import open_entries
from dcmhaul.objects.synth import write_studies
from tests.interop import peers, stores
from tests.net.test_cli import process

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore::BytesWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two instances of 288 KiB: a few PDUs even at the largest lengths."""
    folder = tmp_path_factory.mktemp("made")
    write_studies(folder, 1, 1, 2, "CT", "lengths", rows=384, columns=384)
    return folder


def files(made: Path) -> list[FileInstance]:
    return [entry for entry in open_entries([made]) if isinstance(entry, FileInstance)]


@pytest.mark.parametrize("length", [4096, 16382, 65536, 131072])
async def test_storescp_takes_what_it_announced(length: int, made: Path, tmp_path: Path) -> None:
    with peers.storescp(tmp_path, pdu=length) as server:
        outcomes = await stores.send(files(made), server.host, server.port)
    assert [outcome.status for outcome in outcomes] == [0, 0]
    assert stores.received(tmp_path) == stores.expected(files(made))


@pytest.mark.parametrize("ours", [4096, 16382, 131072, 2**31, 2**32 - 1, 0])
@pytest.mark.parametrize("theirs", [4096, 131072])
async def test_storescu_sends_what_we_announced(
    theirs: int, ours: int, made: Path, tmp_path: Path
) -> None:
    peers.require("storescu")
    paths = [one.path for one in files(made)]
    run: Any = partial(peers.run_tool, "storescu", "-R", "-pdu", theirs, check=True)
    async with stores.receiver(tmp_path, ours) as (port, sinks):
        await trio.to_thread.run_sync(partial(run, "127.0.0.1", port, *paths))
        assert sinks.stored == 2
    assert stores.received(tmp_path) == stores.expected(files(made))


@pytest.mark.parametrize("length", [4096, 0])
async def test_pynetdicom_takes_what_it_announced(length: int, made: Path, tmp_path: Path) -> None:
    with peers.pynetdicom_scp(tmp_path, pdu=length) as server:
        outcomes = await stores.send(files(made), server.host, server.port)
    assert [outcome.status for outcome in outcomes] == [0, 0]
    assert stores.received(tmp_path) == stores.expected(files(made))


async def test_pynetdicom_sends_where_nothing_limits_it(made: Path, tmp_path: Path) -> None:
    peers.require("pynetdicom")
    async with stores.receiver(tmp_path, 0) as (port, sinks):
        done = await trio.to_thread.run_sync(
            partial(peers.pynetdicom_send, ("127.0.0.1", port), made)
        )
        assert done.returncode == 0, done.stdout
        assert sinks.stored == 2
    assert stores.received(tmp_path) == stores.expected(files(made))


@pytest.mark.parametrize("length", ["4096", "0"])
def test_get_announces_another_length_than_the_server(
    length: str, made: Path, tmp_path: Path
) -> None:
    with peers.dcmqrscp(tmp_path / "server") as server:
        assert main(["send", "-q", server.address, str(made)]) == 0
        options = [
            "-P",
            "-k",
            "PatientID=SYNTH-000001",
            "-pdu",
            length,
            "-od",
            str(tmp_path / "got"),
        ]
        assert main(["get", "-q", server.address, *options]) == 0
    assert stores.received(tmp_path / "got") == stores.expected(files(made))


@pytest.mark.parametrize("ours", ["4096", "0"])
def test_getscu_announces_less_than_the_archive(ours: str, made: Path, tmp_path: Path) -> None:
    arguments = ("archive", "--dir", tmp_path / "archive", "--port", "0", "--aet", "ARCH")
    with process(*arguments, "--bind", "127.0.0.1", "-pdu", ours) as archive:
        where = ("-aec", "ARCH", "127.0.0.1", archive.port)
        paths = [one.path for one in files(made)]
        peers.run_tool("storescu", *where, *paths, check=True)
        (tmp_path / "got").mkdir()
        keys = ("-k", "QueryRetrieveLevel=PATIENT", "-k", "PatientID=SYNTH-000001")
        options = ("-P", *keys, "-pdu", 4096, "+B", "-od", tmp_path / "got")
        peers.run_tool("getscu", *options, *where, check=True)
    assert stores.received(tmp_path / "got") == stores.expected(files(made))
