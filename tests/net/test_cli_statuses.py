"""What echo, find and send say of each status that an SCP can answer: name, meaning, and what it adds."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import trio

from dcmhaul.cli import main
from dcmhaul.objects.synth import write_studies
from dcmhaul.protocol.statuses import describe
from tests.hostile.octets import data_pdu, element
from tests.hostile.scripted_scp import ScriptedScp, response, running

if TYPE_CHECKING:
    from pathlib import Path

# Of each status what the line has to say, and by service where that differs.
GENERAL = {
    0x0105: "No such attribute",
    0x0110: "Processing failure",
    0x0112: "No such SOP instance",
    0x0122: "SOP class not supported",
    0x0124: "not authorized",
    0x0210: "Duplicate invocation",
    0x0211: "Unrecognized operation",
    0x0212: "Mistyped argument",
    0x7777: "does not define",
}
STORE = {
    **GENERAL,
    0xA700: "out of resources",
    0xA7FE: "out of resources",
    0xA900: "data set does not match SOP class",
    0xC000: "cannot understand",
    0xCFFF: "cannot understand",
    0xB123: "does not define",
    0xFF00: "Pending",
}
FIND = {
    **GENERAL,
    0xA700: "out of resources",
    0xA900: "identifier does not match SOP class",
    0xC001: "unable to process",
    0xB000: "does not define",
    0xFE00: "ended after a cancel request",
}
# Patient's name and level: tag and keyword are said. The comment holds what would steer a terminal.
OFFENDING = (0x00100010, 0x00080052, 0x00091001)
# One match, in explicit VR little endian.
MATCH = element(0x00100010, "PN", b"DOE^J ")
SAID = "; offending: (0010,0010) PatientName, (0008,0052) QueryRetrieveLevel, (0009,1001)"


async def ask(
    scp: ScriptedScp, capsys: pytest.CaptureFixture[str], verb: str, *arguments: str
) -> tuple[int, str, str]:
    async with running(scp):
        words = [verb, f"PEER@127.0.0.1:{scp.port}", *arguments]
        code = await trio.to_thread.run_sync(main, words)
    out, err = capsys.readouterr()
    return code, out, err


def answering(statuses: list[int], **more: Any) -> ScriptedScp:
    return ScriptedScp(lambda n, rq: response(rq, Status=statuses[n - 1], **more))


def check(lines: list[str], expected: dict[int, str], service: str) -> None:
    assert len(lines) == len(expected)
    for line, (status, meaning) in zip(lines, expected.items(), strict=True):
        assert f"{describe(status, service)}{SAID} (no \\x1b[31mway)" in line
        assert meaning in line


MORE = {"OffendingElement": OFFENDING, "ErrorComment": "no \x1b[31mway"}


async def test_echo(capsys: pytest.CaptureFixture[str]) -> None:
    scp = answering([*GENERAL, 0xB000], **MORE)
    code, out, err = await ask(scp, capsys, "echo", "--repeat", str(len(GENERAL) + 1))
    assert code == 6
    expected = {**GENERAL, 0xB000: "does not define"}
    check(out.splitlines(), expected, "C-ECHO")
    check(err.splitlines(), expected, "C-ECHO")


async def test_find(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "query.dump").write_text("(0010,0010) PN [DOE*]\n(0008,0052) CS [STUDY]\n")
    files = [str(tmp_path / "query.dump")] * len(FIND)
    code, out, err = await ask(answering([*FIND], **MORE), capsys, "find", "-S", *files)
    assert (code, out) == (6, "PatientName\n")
    check(err.splitlines(), FIND, "C-FIND")
    assert "DOE" not in err


async def test_send(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_studies(tmp_path, 1, 1, len(STORE), "CT", rows=8, columns=8)
    code, out, err = await ask(answering([*STORE], **MORE), capsys, "send", str(tmp_path), "--json")
    assert code == 6
    check([line for line in err.splitlines() if "failed: " in line], STORE, "C-STORE")
    *failed, summary = map(json.loads, out.splitlines())
    assert [int(record["status"], 16) for record in failed] == [*STORE]
    assert (summary["instances"], summary["failed"]) == (0, len(STORE))


async def test_a_warning_of_a_store_is_told_and_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_studies(tmp_path, 1, 1, 1, "CT", rows=8, columns=8)
    scp = answering([0xB007], OffendingElement=(0x00280010,))
    code, out, err = await ask(scp, capsys, "send", str(tmp_path))
    assert (code, out.partition(",")[0]) == (0, "1 instance sent")
    assert err.endswith("data set does not match SOP class; offending: (0028,0010) Rows\n")


async def test_a_long_comment_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    scp = answering([0x0110], ErrorComment="x" * 60000)
    code, _, err = await ask(scp, capsys, "echo")
    assert (code, len(err) < 400, err.count("\n")) == (6, True, 1)


@pytest.mark.parametrize("options", [(), ("--abort",)])
async def test_send_tells_what_storescu_tells(
    options: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_studies(tmp_path, 1, 1, 2, "CT", rows=8, columns=8)
    code, _, err = await ask(answering([0, 0]), capsys, "send", str(tmp_path), "-v", *options)
    assert code == 0
    check_lines(
        err,
        r"associating with PEER@127\.0\.0\.1:\d+ as DCMHAUL: 2 contexts, PDU 131072, window 1",
        r"association accepted: 2 contexts, PDU to send 16384, window 1, .*",
        r"  context 1: CT Image Storage, Explicit VR Little Endian",
        r"  context 3: CT Image Storage, Implicit VR Little Endian \(of Implicit .*, Deflated .*\)",
        r".*\.dcm: 0x0000 Success",
        r".*\.dcm: 0x0000 Success",
        rf"association with PEER@127\.0\.0\.1:\d+ {'aborted' if options else 'released'}",
    )


def check_lines(text: str, *expected: str) -> None:
    """Each line of the text fits its own pattern."""
    lines = text.splitlines()
    assert len(lines) == len(expected), text
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line


async def test_find_tells_what_findscu_tells(capsys: pytest.CaptureFixture[str]) -> None:
    pending = [0xFF00, 0xFF01]

    def answer(_n: int, request: dict[str, Any]) -> bytes:
        matches = [with_dataset(request, status, MATCH) for status in pending]
        return b"".join(matches) + response(request, Status=0)

    arguments = ("-S", "-v", "-k", "PatientName=DOE*")
    code, out, err = await ask(ScriptedScp(answer), capsys, "find", *arguments)
    assert (code, out) == (0, "PatientName\nDOE^J\nDOE^J\n")
    check_lines(
        err,
        r"associating with PEER@127\.0\.0\.1:\d+ as DCMHAUL: 1 context, PDU 131072, window 1",
        r"association accepted: 1 context, PDU to send 16384, window 1, .*",
        r"  context 1: Study Root .* FIND, Explicit VR Little Endian",
        r"C-FIND: study model, STUDY, 2 keys",
        r"response 1: 0xFF00 Pending",
        r"response 2: 0xFF01 Pending: one or more optional keys were not supported",
        r"final response: 0x0000 Success",
        r"association with PEER@127\.0\.0\.1:\d+ released",
    )
    code, _, err = await ask(ScriptedScp(answer), capsys, "find", *arguments, "-d")
    assert code == 0
    assert err.count("(0010,0010) PN [DOE^J]  ") == 2


# -- datasets where none belongs, and none where one is due


def with_dataset(request: dict[str, Any], status: int, dataset: bytes) -> bytes:
    return response(request, Status=status, CommandDataSetType=1) + data_pdu(
        request["context_id"], dataset
    )


async def test_an_echo_that_is_answered_with_a_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    scp = ScriptedScp(lambda _n, rq: with_dataset(rq, 0, b"some"))
    code, out, err = await ask(scp, capsys, "echo")
    assert (code, out) == (3, "")
    assert err == "dcmhaul echo: CEchoRsp where the response to our C-ECHO was due\n"
    assert scp.ends == [(7, 0, 0)]


async def test_a_final_response_with_a_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    """It says nothing that the standard knows, and does no harm."""
    scp = ScriptedScp(lambda _n, rq: with_dataset(rq, 0, MATCH))
    code, out, err = await ask(scp, capsys, "find", "-S", "-k", "PatientName")
    assert (code, out, err) == (4, "PatientName\n", "")


@pytest.mark.parametrize(
    ("match", "said"),
    [
        (None, "a response without an identifier"),
        (b"\x10\x00\x10\x00PN\xff\x7fDOE", ""),
        (b"\x10\x00", ""),
    ],
)
async def test_a_match_that_is_none(
    match: bytes | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The next one is printed all the same."""

    def answer(_n: int, request: dict[str, Any]) -> bytes:
        broken = response(request, Status=0xFF00)
        if match is not None:
            broken = with_dataset(request, 0xFF00, match)
        return broken + with_dataset(request, 0xFF00, MATCH) + response(request, Status=0)

    code, out, err = await ask(ScriptedScp(answer), capsys, "find", "-S", "-k", "PatientName")
    assert (code, out) == (6, "PatientName\nDOE^J\n")
    assert err.count("\n") == 1
    assert f"match 1 cannot be read: {said}" in err
    assert "DOE" not in err
