"""`move` as users type it, against the C-MOVE of DCMTK, Orthanc and pynetdicom."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pydicom
import pytest

from dcmhaul.cli import main
from dcmhaul.objects.synth import write_studies
from tests.interop import peers

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Iterator
    from pathlib import Path

NAME = "Synthetic^Patient 000002"

# pydicom gives struct both str and bytes layouts, which -bb complains of when their hashes meet.
pytestmark = pytest.mark.filterwarnings("ignore::BytesWarning")


class Site:
    """An archive that knows OURS, THIRD (a storescp that runs) and DEAD, and holds 12 instances."""

    def __init__(
        self, server: peers.Server, own_port: int, third: peers.Server, sent: dict[str, Any]
    ) -> None:
        self.server = server
        self.own_port = own_port
        self.third = third
        self.sent = sent


@pytest.fixture(scope="module", params=["dcmqrscp", "orthanc", "pynetdicom_scp"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp(request.param)
    studies, third_folder = folder / "studies", folder / "third"
    write_studies(studies, 2, 2, 3, rows=16, columns=16)
    third_folder.mkdir()
    sent = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, studies.rglob("*.dcm"))}
    serve: Callable[..., contextlib.AbstractContextManager[peers.Server]]
    serve = getattr(peers, request.param)
    port = peers.free_port()
    # One association at a time is all that a plain storescp serves.
    with peers.storescp(third_folder, aet="THIRD", fork=True) as third:
        destinations = {"OURS": port, "THIRD": third.port, "DEAD": peers.free_port()}
        with serve(folder / "server", aet="MGIUSDICOM", destinations=destinations) as server:
            assert main(["send", server.address, str(studies), "-q"]) == 0
            yield Site(server, port, third, sent)


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DCMHAUL_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def summary(out: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(out.splitlines()[-1])
    return record


def same(folder: Path, sent: dict[str, Any]) -> int:
    """How many files there are, each with the pixels that were sent."""
    files = [pydicom.dcmread(path) for path in folder.iterdir()]
    for dataset in files:
        assert dataset.PixelData == sent[dataset.SOPInstanceUID].PixelData
    return len(files)


def test_into_an_scp_of_its_own(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line that users know by heart."""
    words = ("-v", "+P", site.own_port, "-aet", "OURS", "-aec", "MGIUSDICOM", "-aem", "OURS")
    key = ("-k", f"0x0010,0x0010={NAME}", "-od", tmp_path / "in")
    code, out, err = run(capsys, "movescu", *words, *key, site.server.host, site.server.port)
    assert code == 0, err
    assert out.startswith("6 instances received")
    assert same(tmp_path / "in", site.sent) == 6
    assert f"listening on 0.0.0.0:{site.own_port} as OURS" in err
    assert err.count("C-STORE in: 0x0000 Success") == 6
    assert "final C-MOVE-RSP: 0x0000 Success: 6 done" in err


def test_over_associations(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    studies = {str(dataset.StudyInstanceUID) for dataset in site.sent.values()}
    words = ("+P", site.own_port, "-aet", "OURS", "--associations", "4", "-od", tmp_path / "in")
    key = ("-S", "-k", "StudyInstanceUID=" + "\\".join(studies))
    code, out, err = run(capsys, "move", site.server.address, *words, *key, "--json")
    assert (code, summary(out)["instances"], summary(out)["failed"]) == (0, 12, 0), err
    assert same(tmp_path / "in", site.sent) == 12
    assert "no request" not in err


def test_to_a_third_party(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("-aet", "OURS", "-aec", "MGIUSDICOM", "-aem", "THIRD", "-k", f"0010,0010={NAME}")
    code, out, err = run(capsys, "movescu", *words, site.server.host, site.server.port, "--json")
    assert (code, summary(out)["instances"], summary(out)["bytes"]) == (0, 6, None), err
    assert site.third.folder is not None
    assert same(site.third.folder, site.sent) == 6


def test_cancel(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether the peer honours it or not, what came is kept, and it is no failure."""
    words = ("+P", site.own_port, "-aet", "OURS", "--cancel", "1", "-od", tmp_path / "in")
    key = ("-S", "-k", "PatientName=Synthetic*")
    code, out, err = run(capsys, "move", site.server.address, *words, *key, "--json")
    assert code == 0, err
    assert same(tmp_path / "in", site.sent) == summary(out)["instances"] <= 12


@pytest.mark.parametrize("title", ["NOBODY", "DEAD"])
def test_a_destination_that_cannot_be_reached(
    site: Site, title: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line of status and one of advice; not every peer says the same of the same."""
    key = ("-P", "-k", "PatientID=SYNTH-000001")
    code, out, err = run(capsys, "move", site.server.address, "-aem", title, *key, "--json")
    status = {"dcmqrscp": {"NOBODY": 0xA801, "DEAD": 0xA702}, "pynetdicom": {}, "Orthanc": {}}
    default = 0xC000 if site.server.name == "Orthanc" else 0xA801
    expected = status[site.server.name].get(title, default)
    assert f"0x{expected:04X} " in err
    assert code == summary(out)["exit_code"] == (5 if expected == 0xA702 else 6)
    assert title in err.splitlines()[-1]


def test_nothing_matches(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    key = ("-S", "-k", "PatientName=NOBODY^AT ALL")
    code, _, err = run(capsys, "move", site.server.address, "+P", site.own_port, *key)
    assert code == 4
    assert err.endswith("dcmhaul move: nothing matched, nothing came\n")
