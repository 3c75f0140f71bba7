"""C-STORE with pynetdicom each way: what arrives is, byte for byte, what was sent."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

from tests.interop import peers, stores

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::BytesWarning"),
]


async def test_pynetdicom_receives_real_files_as_they_are(pynetdicom_scp: peers.Server) -> None:
    instances = stores.real_set()
    outcomes = await stores.send(instances, pynetdicom_scp.host, pynetdicom_scp.port)
    assert len(outcomes) == len(instances)
    assert pynetdicom_scp.folder is not None
    stored = [outcome.instance for outcome in outcomes if outcome.stored]
    refused = [outcome.error for outcome in outcomes if not outcome.stored]
    assert all(type(error).__name__ == "NoAcceptedContext" for error in refused)
    assert len(stored) > 0.9 * len(instances)
    whole = stores.expected(instances)
    assert stores.received(pynetdicom_scp.folder) == {
        one.sop_instance_uid: whole[one.sop_instance_uid] for one in stored
    }


async def test_pynetdicom_receives_synthetic_studies(
    pynetdicom_scp: peers.Server, tmp_path: Path
) -> None:
    instances = stores.synthetic_set(tmp_path / "made")
    outcomes = await stores.send(instances, pynetdicom_scp.host, pynetdicom_scp.port)
    assert [outcome.status for outcome in outcomes] == [0] * len(instances)
    assert pynetdicom_scp.folder is not None
    assert stores.received(pynetdicom_scp.folder) == stores.expected(instances)


async def test_pynetdicom_sends_synthetic_studies(tmp_path: Path) -> None:
    peers.require("pynetdicom")
    made = tmp_path / "made"
    instances = stores.synthetic_set(made)
    async with stores.receiver(tmp_path / "received") as (port, sinks):
        done = await trio.to_thread.run_sync(
            partial(peers.pynetdicom_send, ("127.0.0.1", port), made)
        )
        assert done.returncode == 0, done.stdout
        assert sinks.stored == len(instances)
    assert stores.received(tmp_path / "received") == stores.expected(instances)


async def test_pynetdicom_sends_real_files(tmp_path: Path) -> None:
    """pynetdicom encodes what pydicom decoded, so values are compared, not bytes."""
    peers.require("pynetdicom")
    instances = {
        one.sop_instance_uid: one
        for one in stores.real_set()
        if stores.sendable_by_pydicom(one.path)
    }
    assert len(instances) > 50
    async with stores.receiver(tmp_path / "received") as (port, sinks):
        done = await trio.to_thread.run_sync(
            partial(
                peers.pynetdicom_send,
                ("127.0.0.1", port),
                *(Path(one.path) for one in instances.values()),
            )
        )
        assert done.returncode == 0, done.stdout
        assert sinks.stored == len(instances)
    for path in (tmp_path / "received").iterdir():
        one = instances[path.name.removesuffix(".dcm")]
        assert stores.same_values(one.path, path), one.path
