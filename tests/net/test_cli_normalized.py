"""The verbs of DIMSE-N: what they send, what they print, and their exit codes."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from pydicom import Dataset

import dcmhaul
from dcmhaul.cli import main
from dcmhaul.services.normalized import NormalizedScp
from tests.net.test_normalized import (
    COMMITMENT,
    COMMITMENT_INSTANCE,
    META,
    SESSION,
    Events,
    Sessions,
    copies,
)

if TYPE_CHECKING:
    from pathlib import Path


async def ran(
    capsys: pytest.CaptureFixture[str], *offered: Any, words: list[str | Path]
) -> tuple[int, list[str], str]:
    """Exit code, lines of stdout, stderr; PEER stands for the address."""
    async with dcmhaul.serve([NormalizedScp(offered)], ae_title="SCP") as peer:
        argv = [str(peer) if word == "PEER" else str(word) for word in words]
        capsys.readouterr()
        code = await trio.to_thread.run_sync(partial(main, argv))
    out, err = capsys.readouterr()
    return code, [re.sub(r"127\.0\.0\.1:\d+", "HOST", line) for line in out.splitlines()], err


SAID = ["--class", SESSION, "--instance", "1.2.3"]


async def test_all_but_events(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sessions = Sessions()
    run = partial(ran, capsys, sessions.offered())
    path = tmp_path / "session.json"
    path.write_text(json.dumps(copies().to_json_dict()))

    code, out, err = await run(words=["n-create", "PEER", *SAID, "--dataset", path])
    assert (code, err) == (0, "")
    assert out[0] == "SCP@HOST: 0x0000 Success"
    assert "(2000,0010) IS [2]" in "\n".join(out)
    assert sessions.held["1.2.3"] == copies()

    code, out, _ = await run(words=["n-set", "PEER", *SAID, "-k", "NumberOfCopies=5", "--json"])
    assert code == 0
    response, summary = map(json.loads, out)
    assert (response["status"], response["operation"]) == ("0116", "N-SET")
    assert response["dataset"]["20000010"]["Value"] == [5]
    assert summary["exit_code"] == 0
    assert sessions.held["1.2.3"].NumberOfCopies == 5

    code, out, _ = await run(words=["n-get", "PEER", *SAID, "-k", "NumberOfCopies"])
    assert (code, out[1:]) == (0, [line for line in out if "(2000,0010)" in line])
    assert sessions.asked[-1].attributes == (0x20000010,)
    code, _, _ = await run(words=["n-action", "PEER", *SAID, "--type", "1"])
    assert (code, sessions.asked[-1].dataset) == (0, None)
    code, _, _ = await run(words=["n-delete", "PEER", "--class", "BasicFilmSession", *SAID[2:]])
    assert (code, sessions.held) == (0, {})


async def test_the_peer_chooses_the_instance(capsys: pytest.CaptureFixture[str]) -> None:
    words: list[str | Path] = ["n-create", "PEER", "--class", SESSION, "-k", "NumberOfCopies=1"]
    code, out, _ = await ran(capsys, Sessions().offered(), words=words)
    assert code == 0
    assert out[1] == "instance 1.2.3.4"


async def test_another_context(capsys: pytest.CaptureFixture[str]) -> None:
    offered = Sessions({"1.2.3": copies()}).offered(META)
    code, _, err = await ran(capsys, offered, words=["n-get", "PEER", *SAID, "--context", META])
    assert (code, err) == (0, "")
    code, _, err = await ran(capsys, offered, words=["n-get", "PEER", *SAID])
    assert code == 3
    assert "abstract syntax not supported" in err


async def test_a_failure_is_told_with_what_is_to_blame(capsys: pytest.CaptureFixture[str]) -> None:
    run = partial(ran, capsys, Sessions({"1.2.3": copies()}).offered())
    code, out, err = await run(words=["n-set", "PEER", *SAID, "-k", "PatientID=SECRET"])
    assert code == 6
    assert out == ["SCP@HOST: 0x0105 No such attribute; offending: (0010,0020) PatientID (no)"]
    assert "0x0105" in err
    assert "SECRET" not in err
    code, out, _ = await run(words=["n-create", "PEER", "--class", SESSION, "-k", "PatientID"])
    assert code == 6
    assert "0x0120 Missing attribute; offending: (2000,0010) NumberOfCopies" in out[0]


async def test_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    events = Events()
    said = ["--class", COMMITMENT, "--instance", COMMITMENT_INSTANCE, "--type", "1"]
    words: list[str | Path] = ["n-event-report", "PEER", *said, "-k", "TransactionUID=1.2.9"]
    code, _, err = await ran(capsys, events.offered(), words=words)
    assert (code, err) == (0, "")
    [event] = events.got
    sent = Dataset()
    sent.TransactionUID = "1.2.9"
    assert (event.type_id, event.dataset) == (1, sent)


async def test_an_event_where_nobody_grants_the_role(capsys: pytest.CaptureFixture[str]) -> None:
    said = ["--class", SESSION, "--instance", "1.2.3", "--type", "1"]
    code, _, err = await ran(capsys, Sessions().offered(), words=["n-event-report", "PEER", *said])
    assert code == 6
    assert "did not say that we may be the SCP" in err
    assert "0x0211" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["n-set", "PEER", *SAID], "n-set needs what is to be set"),
        (["n-get", "PEER", "--instance", "1.2"], "--class"),
        (["n-get", "PEER", "--class", "NoSuchClass", "--instance", "1.2"], "expected a UID"),
        (["n-action", "PEER", *SAID], "--type"),
        (["n-delete", "PEER", *SAID, "-k", "PatientID"], "-k"),
        (["n-create", "PEER", *SAID, "--dataset", "nowhere.json"], "nowhere.json"),
        (["n-create", "PEER", "x", *SAID], "x"),
    ],
)
async def test_what_cannot_be_asked(
    words: list[str | Path], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = await ran(capsys, words=words)
    assert (code, out) == (2, [])
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"00100010": 1}', '[{"00100020":{"vr":"LO","Value":["A"]}},{}]']
)
async def test_what_is_no_dicom_json(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    code, _, err = await ran(capsys, words=["n-create", "PEER", *SAID, "--dataset", path])
    assert code == 2
    assert "no DICOM JSON object" in err


async def test_names_beyond_ascii_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sessions = Sessions()
    path = tmp_path / "x.json"
    made = {
        "20000010": {"vr": "IS", "Value": [1]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Müller"}]},
        "20000500": {"vr": "SQ", "Value": [{"00081150": {"vr": "UI", "Value": [SESSION]}}]},
    }
    path.write_text(json.dumps([made], ensure_ascii=False), encoding="utf-8")
    words: list[str | Path] = ["n-create", "PEER", *SAID, "--dataset", path, "-k", "PatientID=7"]
    code, _, _ = await ran(capsys, sessions.offered(), words=words)
    assert code == 0
    held = sessions.held["1.2.3"]
    assert (held.PatientName, held.PatientID) == ("Müller", "7")
    assert held[0x20000500].value[0].ReferencedSOPClassUID == SESSION
