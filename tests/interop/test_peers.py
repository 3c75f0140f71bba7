"""The peers themselves: each starts, answers its own kind, and leaves nothing behind."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pydicom.data
import pytest

from tests.interop import peers

CT = Path(pydicom.data.__file__).parent / "test_files" / "CT_small.dcm"


def test_storescp_stores_what_storescu_sends(storescp: peers.Server) -> None:
    peers.run_tool(
        "storescu", "-aec", storescp.aet, storescp.host, storescp.port, CT, nodelay=True, check=True
    )
    assert storescp.folder is not None
    stored = [pydicom.dcmread(path) for path in storescp.folder.iterdir()]
    assert [dataset.PatientID for dataset in stored] == [pydicom.dcmread(CT).PatientID]


def test_dcmqrscp_answers_find(dcmqrscp: peers.Server) -> None:
    where = ("-aec", dcmqrscp.aet, dcmqrscp.host, dcmqrscp.port)
    peers.run_tool("storescu", *where, CT, nodelay=True, check=True)
    done = peers.run_tool(
        "findscu", "-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "PatientID", *where, check=True
    )
    assert "1CT1" in done.stdout


def test_orthanc_holds_what_storescu_sends(orthanc: peers.Server) -> None:
    peers.run_tool(
        "storescu", "-aec", orthanc.aet, orthanc.host, orthanc.port, CT, nodelay=True, check=True
    )
    with urllib.request.urlopen(f"http://127.0.0.1:{orthanc.http_port}/instances") as answer:
        assert len(json.load(answer)) == 1


def test_pynetdicom_both_ends(pynetdicom_scp: peers.Server) -> None:
    done = peers.pynetdicom_send(pynetdicom_scp, CT)
    assert done.returncode == 0, done.stdout + pynetdicom_scp.output()
    assert pynetdicom_scp.folder is not None
    assert [path.suffix for path in pynetdicom_scp.folder.iterdir()] == [".dcm"]
    found = peers.run_tool(
        "findscu",
        *("-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "PatientID=1CT1", "-k", "StudyInstanceUID"),
        *("-aec", pynetdicom_scp.aet, pynetdicom_scp.host, pynetdicom_scp.port),
        check=True,
    )
    assert str(pydicom.dcmread(CT).StudyInstanceUID) in found.stdout


def test_pynetdicom_serves_get(pynetdicom_scp: peers.Server, tmp_path: Path) -> None:
    peers.pynetdicom_send(pynetdicom_scp, CT)
    peers.run_tool(
        "getscu",
        *("-S", "-k", "QueryRetrieveLevel=STUDY"),
        *("-k", f"StudyInstanceUID={pydicom.dcmread(CT).StudyInstanceUID}", "-od", tmp_path),
        *("-aec", pynetdicom_scp.aet, pynetdicom_scp.host, pynetdicom_scp.port),
        check=True,
    )
    assert sum(path.is_file() for path in tmp_path.iterdir()) == 1


def test_a_server_is_gone_afterwards() -> None:
    with peers.storescp() as server:
        assert peers.listening(server.port)
        assert server.alive()
    assert not server.alive()
    assert not peers.listening(server.port)


def test_a_server_that_ends_at_once_says_why() -> None:
    with (
        pytest.raises(peers.PeerFailed, match="ended with"),
        peers.storescp(extra=["--no-such-option"]),
    ):
        pytest.fail("storescp took an option that does not exist")


def test_a_missing_tool_skips_or_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUIRE_PEERS", "0")
    with pytest.raises(pytest.skip.Exception, match="no-such-tool is not installed"):
        peers.require("no-such-tool")
    monkeypatch.setenv("REQUIRE_PEERS", "1")
    with pytest.raises(pytest.fail.Exception, match="no-such-tool is not installed"):
        peers.require("no-such-tool")
