"""`--verify digest` against archives of others: what they re-encode says the same, and nothing is missed."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import trio

from dcmhaul.config import Peer
from dcmhaul.engine.destination import ReceiveOptions
from dcmhaul.migrate import MigrateOptions, MigrationSummary, migrate
from dcmhaul.migrate.check import CheckOptions, check
from tests.archive.made import real_files
from tests.archive.serving import AE_TITLE, serving
from tests.interop import peers

if TYPE_CHECKING:
    from collections import Counter
    from pathlib import Path

# Of pydicom's files: uncompressed, so that every archive takes them; one is implicit.
NAMES = (
    *("CT_small.dcm", "MR_small.dcm", "MR_small_implicit.dcm", "rtplan.dcm", "rtdose.dcm"),
    *("waveform_ecg.dcm", "test-SR.dcm", "SC_rgb.dcm", "nested_priv_SQ.dcm", "liver_1frame.dcm"),
)


def folder(tmp_path: Path) -> tuple[Path, int]:
    source = tmp_path / "source"
    source.mkdir()
    for path in real_files():
        if path.name in NAMES:
            shutil.copy(path, source)
    return source, len(list(source.iterdir()))


async def run(
    tmp_path: Path, source: Path, destination: Peer, job: str = "one", **options: Any
) -> MigrationSummary:
    # One association: dcmqrscp's processes overwrite each other's files when several store at once.
    settings = MigrateOptions(
        source=source,
        destination=destination,
        ledger_url=f"sqlite:///{tmp_path}/ledger.db",
        job=job,
        verify="digest",
        associations=1,
        **options,
    )
    with trio.fail_after(120):
        return await migrate(settings)


def there(port: int, title: str) -> Peer:
    return Peer(host="127.0.0.1", port=port, ae_title=title)


async def compared(source: Path, destination: Peer, **others: Any) -> tuple[Counter[str], int]:
    """`check --digest` of both ends: symbols, exit code."""
    options = CheckOptions(source=source, destination=destination, digest=True, **others)
    with trio.fail_after(60):
        summary = await check(options, lambda _line: None)
    return summary.counts, summary.exit_code


def change_patient(path: Path) -> None:
    argv = [peers.require("dcmodify"), "-nb", "-m", "PatientID=CHANGED", str(path)]
    subprocess.run(argv, check=True, capture_output=True)


async def test_our_archive_gives_back_the_same_bytes(tmp_path: Path) -> None:
    source, count = folder(tmp_path)
    async with serving(tmp_path / "archive") as served:
        summary = await run(tmp_path, source, there(served.port, AE_TITLE))
        assert await compared(source, there(served.port, AE_TITLE)) == ({"=": count}, 0)
    assert count > 5
    assert (summary.same_bytes, summary.instances, summary.exit_code) == (count, count, 0)


async def test_orthanc(tmp_path: Path, orthanc: peers.Server) -> None:
    source, count = folder(tmp_path)
    summary = await run(tmp_path, source, there(orthanc.port, orthanc.aet))
    assert (summary.instances, summary.exit_code) == (count, 0), summary.failures
    assert summary.same_bytes + summary.same_content == count
    assert summary.same_bytes > 0
    assert await compared(source, there(orthanc.port, orthanc.aet)) == ({"=": count}, 0)


async def test_dcmqrscp(tmp_path: Path, dcmqrscp: peers.Server) -> None:
    source, count = folder(tmp_path)
    summary = await run(tmp_path, source, there(dcmqrscp.port, dcmqrscp.aet))
    assert (summary.instances, summary.exit_code) == (count, 0), summary.failures
    assert summary.same_bytes + summary.same_content == count
    assert summary.same_content > 0  # lengths that DCMTK writes in its own way
    assert await compared(source, there(dcmqrscp.port, dcmqrscp.aet)) == ({"=": count}, 0)


async def read_by_move(tmp_path: Path, port: int, server: peers.Server) -> None:
    """A migration into an archive that gives nothing back by C-GET, and knows DCMHAUL at this port."""
    source, count = folder(tmp_path)
    receive = ReceiveOptions(host="127.0.0.1", port=port)
    new = there(server.port, server.aet)
    summary = await run(tmp_path, source, new, receive=receive)
    assert (summary.instances, summary.exit_code) == (count, 0), summary.failures
    assert summary.same_bytes + summary.same_content + summary.coerced == count
    assert await compared(source, new, receive=receive) == ({"=": count}, 0)


async def test_dcmqrscp_without_c_get(tmp_path: Path) -> None:
    port = peers.free_port()
    with peers.dcmqrscp(
        tmp_path / "dcmqrscp", destinations={"DCMHAUL": port}, extra=["--disable-get"]
    ) as server:
        await read_by_move(tmp_path, port, server)


async def test_orthanc_that_allows_no_c_get(tmp_path: Path) -> None:
    """It accepts the context, and refuses each C-GET."""
    port = peers.free_port()
    us = {"AET": "DCMHAUL", "Host": "127.0.0.1", "Port": port, "AllowGet": False}
    options = {"DicomAlwaysAllowGet": False, "DicomModalities": {"dcmhaul": us}}
    with peers.orthanc(tmp_path / "orthanc", options=options) as server:
        await read_by_move(tmp_path, port, server)


async def test_what_changed_in_dcmqrscp_is_found(tmp_path: Path, dcmqrscp: peers.Server) -> None:
    source, count = folder(tmp_path)
    await run(tmp_path, source, there(dcmqrscp.port, dcmqrscp.aet))
    assert dcmqrscp.folder is not None
    kept = max(dcmqrscp.folder.glob("*.dcm"), key=lambda path: path.stat().st_size)
    change_patient(kept)
    summary = await run(tmp_path, source, there(dcmqrscp.port, dcmqrscp.aet), job="two")
    assert (summary.instances, summary.already, summary.altered) == (0, count, 1)
    assert "(0010,0020) PatientID" in summary.differences[0].differences
    assert summary.exit_code == 11
    found = await compared(source, there(dcmqrscp.port, dcmqrscp.aet))
    assert found == ({"=": count - 1, "*": 1}, 11)
