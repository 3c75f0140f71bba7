"""dcmqrscp, Orthanc and pynetdicom asked by our verbs: find, get and move in every model, at every level."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pydicom
import pytest

from dcmhaul.cli import main
from tests.interop import levels, peers, stores

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OURS = "OURS"
SERVERS = {
    "dcmqrscp": lambda folder, to: peers.dcmqrscp(folder, destinations=to, nodelay=True),
    "orthanc": lambda folder, to: peers.orthanc(folder, destinations=to),
    "pynetdicom": lambda folder, to: peers.pynetdicom_scp(folder, destinations=to),
}


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> levels.Held:
    return levels.make(tmp_path_factory.mktemp("held"))


@pytest.fixture(scope="module")
def port() -> int:
    """Where `move` receives; the peers must know it before they run."""
    return peers.free_port()


@pytest.fixture(scope="module", params=SERVERS)
def server(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    held: levels.Held,
    port: int,
) -> Iterator[peers.Server]:
    with SERVERS[request.param](tmp_path_factory.mktemp("server"), {OURS: port}) as running:
        assert main(["send", "-q", running.address, str(held.folder)]) == 0
        yield running


def run(
    capsys: pytest.CaptureFixture[str], server: peers.Server, verb: str, *words: str | Path | int
) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, stdout's records, stderr."""
    capsys.readouterr()
    code = main([verb, server.address, "-aet", OURS, "--json", *map(str, words)])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def lacks(server: peers.Server, model: str, code: int, err: str) -> bool:
    """Orthanc does not have Patient/Study Only; that is one line, and exit code 3."""
    if (server.name, model) != ("Orthanc", "-O"):
        return False
    assert (code, sum(line.startswith("dcmhaul") for line in err.splitlines())) == (3, 1), err
    return True


def test_echo(server: peers.Server, capsys: pytest.CaptureFixture[str]) -> None:
    code, (answer, summary), _ = run(capsys, server, "echo")
    assert (code, answer["status"], summary["type"]) == (0, "0000", "summary")


@pytest.mark.parametrize(("model", "level"), levels.ALL)
def test_find(
    server: peers.Server,
    held: levels.Held,
    model: str,
    level: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = levels.typed(held.question(model, level))
    code, records, err = run(capsys, server, "find", model, *asked)
    if lacks(server, model, code, err):
        return
    *matches, summary = records
    assert (code, err, summary["matches"]) == (0, "", len(matches))
    answers = [pydicom.Dataset.from_json(match) for match in matches]
    key = levels.UNIQUE_KEYS[level]
    found = [(str(answer[key].value), str(answer.PatientName)) for answer in answers]
    assert sorted(found) == sorted(held.unique(model, level))


def same(folder: Path, held: levels.Held, level: str) -> bool:
    """Bytes or, where the peer encoded them anew, elements."""
    below = held.below(level)
    if stores.received(folder) == below:
        return True
    paths = {one.sop_instance_uid: one.path for one in held.instances}
    came = {path.name.removesuffix(".dcm"): path for path in folder.iterdir()}
    return came.keys() == below.keys() and all(
        stores.same_values(paths[uid], came[uid]) for uid in came
    )


@pytest.mark.parametrize(("model", "level"), levels.ALL)
def test_get(
    server: peers.Server,
    held: levels.Held,
    model: str,
    level: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = levels.typed(held.keys(model, level), level)
    code, records, err = run(capsys, server, "get", model, *asked, "-od", tmp_path)
    if lacks(server, model, code, err):
        return
    counted = records[-1]["instances"], records[-1]["failed"]
    assert (code, counted) == (0, (len(held.below(level)), 0)), err
    assert same(tmp_path, held, level)


@pytest.mark.parametrize(("model", "level"), levels.ALL)
def test_move(
    server: peers.Server,
    held: levels.Held,
    port: int,
    model: str,
    level: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = levels.typed(held.keys(model, level), level)
    where = ("+P", port, "--bind", peers.LOOPBACK, "-od", tmp_path)
    code, records, err = run(capsys, server, "move", model, *asked, *where)
    if lacks(server, model, code, err):
        return
    counted = records[-1]["instances"], records[-1]["failed"]
    assert (code, counted) == (0, (len(held.below(level)), 0)), err
    assert same(tmp_path, held, level)


@pytest.mark.parametrize("key", ["ModalitiesInStudy", "Modality"])
def test_a_modality_above_the_series(
    server: peers.Server,
    held: levels.Held,
    key: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """dcmqrscp does not look at it there, and its answers are not believed."""
    code, _, err = run(capsys, server, "get", "-S", "-k", f"{key}=MR", "-od", tmp_path / "no")
    assert (code, list((tmp_path / "no").iterdir())) == (4, []), err
    code, records, err = run(capsys, server, "get", "-S", "-k", f"{key}=CT", "-od", tmp_path / "in")
    assert "warning" not in err
    if (server.name, key) in {("Orthanc", "Modality"), ("pynetdicom", "ModalitiesInStudy")}:
        assert code == 4  # these find nothing by it
        return
    assert (code, records[-1]["instances"]) == (0, len(held.instances)), err


@pytest.mark.parametrize("verb", ["get", "move"])
@pytest.mark.parametrize(("model", "level"), [("-S", "SERIES"), ("-S", "IMAGE"), ("-P", "STUDY")])
def test_a_patients_name_above_the_level(
    server: peers.Server,
    held: levels.Held,
    port: int,
    verb: str,
    model: str,
    level: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """dcmqrscp does not look at it there; what comes is that patient's all the same."""
    asked = levels.typed({"PatientName": str(held.headers[0].PatientName)}, level)
    where = ("+P", port, "--bind", peers.LOOPBACK) if verb == "move" else ()
    code, records, err = run(capsys, server, verb, model, *asked, *where, "-od", tmp_path)
    counted = records[-1]["instances"], records[-1]["failed"]
    assert (code, counted) == (0, (len(held.below("PATIENT")), 0)), err
    assert same(tmp_path, held, "PATIENT")
    assert ("asked level by level" in err) == (server.name == "dcmqrscp"), err
