"""C-STORE with DCMTK each way: what arrives is, byte for byte, what was sent."""

from __future__ import annotations

import shutil
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.interop import peers, stores

if TYPE_CHECKING:
    from dcmhaul.objects.part10 import FileInstance

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::BytesWarning"),
]

# The storescu option that proposes a transfer syntax.
PROPOSALS = {
    "1.2.840.10008.1.2": "-xi",
    "1.2.840.10008.1.2.1": "-xe",
    "1.2.840.10008.1.2.2": "-xb",
    "1.2.840.10008.1.2.1.99": "-xd",
    "1.2.840.10008.1.2.4.50": "-xy",
    "1.2.840.10008.1.2.4.51": "-xx",
    "1.2.840.10008.1.2.4.70": "-xs",
    "1.2.840.10008.1.2.4.80": "-xt",
    "1.2.840.10008.1.2.4.81": "-xu",
    "1.2.840.10008.1.2.4.90": "-xv",
    "1.2.840.10008.1.2.4.91": "-xw",
    "1.2.840.10008.1.2.5": "-xr",
}


def test_real_and_synthetic_sets_are_large_enough(tmp_path: Path) -> None:
    assert len(stores.real_set()) > 60
    assert len({one.transfer_syntax_uid for one in stores.real_set()}) > 8
    assert len(stores.synthetic_set(tmp_path)) == 24


async def test_storescp_receives_real_files_as_they_are(storescp: peers.Server) -> None:
    instances = stores.real_set()
    outcomes = await stores.send(instances, storescp.host, storescp.port)
    assert len(outcomes) == len(instances)
    assert storescp.folder is not None
    stored = [outcome.instance for outcome in outcomes if outcome.stored]
    refused = [outcome.error for outcome in outcomes if not outcome.stored]
    # What DCMTK does not know as a syntax or class it refuses by context, and nothing else.
    assert all(type(error).__name__ == "NoAcceptedContext" for error in refused)
    assert len(stored) > 0.8 * len(instances)
    whole = stores.expected(instances)
    assert stores.received(storescp.folder) == {
        one.sop_instance_uid: whole[one.sop_instance_uid] for one in stored
    }


async def test_storescp_receives_synthetic_studies(storescp: peers.Server, tmp_path: Path) -> None:
    instances = stores.synthetic_set(tmp_path / "made")
    outcomes = await stores.send(instances, storescp.host, storescp.port)
    assert [outcome.status for outcome in outcomes] == [0] * len(instances)
    assert storescp.folder is not None
    assert stores.received(storescp.folder) == stores.expected(instances)


async def test_storescu_sends_synthetic_studies(tmp_path: Path) -> None:
    peers.require("storescu")
    made = tmp_path / "made"
    instances = stores.synthetic_set(made)
    async with stores.receiver(tmp_path / "received") as (port, sinks):
        await trio.to_thread.run_sync(
            partial(
                peers.run_tool,
                "storescu",
                *("-R", "+sd", "+r", "-pdu", 131072, "127.0.0.1", port, made),
                check=True,
            )
        )
        assert sinks.stored == len(instances)
    assert stores.received(tmp_path / "received") == stores.expected(instances)


async def test_storescu_sends_real_files_in_their_own_syntax(tmp_path: Path) -> None:
    """storescu decodes and encodes again, so values are compared, not bytes."""
    peers.require("storescu")
    by_syntax: dict[str, list[FileInstance]] = defaultdict(list)
    for one in stores.real_set():
        if one.transfer_syntax_uid in PROPOSALS:
            by_syntax[one.transfer_syntax_uid].append(one)
    assert len(by_syntax) > 8
    sent: dict[str, FileInstance] = {}
    async with stores.receiver(tmp_path / "received") as (port, _sinks):
        for syntax, instances in by_syntax.items():
            done = await trio.to_thread.run_sync(
                partial(
                    peers.run_tool,
                    "storescu",
                    *("-v", "-nh", "-R", PROPOSALS[syntax], "127.0.0.1", port),
                    *(one.path for one in instances),
                )
            )
            assert "Received Store Response (Success)" in done.stdout, done.stdout
            sent |= {one.sop_instance_uid: one for one in instances}
    arrived = {path.name.removesuffix(".dcm"): path for path in (tmp_path / "received").iterdir()}
    # A few of these files are too odd for storescu itself to send.
    assert len(arrived) > 0.8 * len(sent)
    for uid, path in arrived.items():
        assert stores.same_values(sent[uid].path, path), sent[uid].path


async def test_storescu_sends_the_same_twice_and_other_bytes_once_more(tmp_path: Path) -> None:
    peers.require("storescu")
    made, again = tmp_path / "made", tmp_path / "again"
    instances = stores.synthetic_set(made)[:3]
    again.mkdir()
    for number, one in enumerate(instances):
        changed = Path(one.path).read_bytes().replace(b"SYNTH-", b"OTHER-")
        (again / f"{number}.dcm").write_bytes(changed)
    paths = [one.path for one in instances]
    async with stores.receiver(tmp_path / "received") as (port, sinks):
        for files in (paths, paths, sorted(again.iterdir())):
            await trio.to_thread.run_sync(
                partial(peers.run_tool, "storescu", "-R", "127.0.0.1", port, *files, check=True)
            )
        assert (sinks.stored, sinks.duplicates, sinks.other_bytes) == (6, 3, 3)
    names = {path.name for path in (tmp_path / "received").iterdir()}
    uids = [one.sop_instance_uid for one in instances]
    assert names == {f"{uid}.dcm" for uid in uids} | {f"{uid}.1.dcm" for uid in uids}


async def test_storescu_that_aborts_in_the_middle_leaves_no_file(tmp_path: Path) -> None:
    """Killed while it sends: what was acknowledged is whole, what was not is nowhere."""
    peers.require("storescu")
    made = tmp_path / "made"
    instances = stores.synthetic_set(made)
    async with stores.receiver(tmp_path / "received") as (port, sinks):
        await trio.to_thread.run_sync(
            partial(
                peers.run_tool,
                "storescu",
                *("-R", "--abort", "127.0.0.1", port, instances[0].path),
            )
        )
        with trio.fail_after(10):
            while sinks.stored < 1:
                await trio.sleep(0.01)
    shutil.rmtree(made)
    assert [path.name for path in (tmp_path / "received").iterdir()] == [
        f"{instances[0].sop_instance_uid}.dcm"
    ]
