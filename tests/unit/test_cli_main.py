"""The command line as a whole, without a network: help, refusals, laziness, one-line errors."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import pytest

import dcmhaul
from dcmhaul.cli import ALIASES, VERBS, _load, main
from dcmhaul.cli.arguments import normalise
from dcmhaul.cli.console import Console, Level
from dcmhaul.cli.dcmtk import TOOL_FLAGS
from dcmhaul.cli.session import NetworkOptions, Session
from dcmhaul.config import Peer
from dcmhaul.errors import ConfigurationError, TransportError

NAMES = [*VERBS, *ALIASES]


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DCMHAUL_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def imported(*arguments: str) -> set[str]:
    """The modules that a process of this command line imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "dcmhaul", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"dcmhaul {dcmhaul.__version__}\n"
    assert main(["echo", "--version"]) == 0


def test_version_imports_next_to_nothing() -> None:
    modules = imported("--version")
    assert "dcmhaul.cli" in modules
    assert not modules & {"trio", "click", "pydicom", "numpy", "sqlalchemy", "pydantic", "rich"}


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, text in VERBS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", out, re.MULTILINE)
    for alias in ALIASES:
        assert alias in out


@pytest.mark.parametrize("name", NAMES)
def test_help_of_a_verb(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: dcmhaul {name} ")
    assert main([name, "-h"]) == 0
    for parameter in _load(name).params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            assert parameter.help, parameter.name
            assert all(spelling in out for spelling in parameter.opts), parameter.opts


def test_without_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Usage:")


def test_an_unknown_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["termscu"]) == 2
    assert capsys.readouterr().err == "dcmhaul: no such verb: termscu (dcmhaul --help lists them)\n"


@pytest.mark.parametrize(("alias", "verb"), ALIASES.items())
def test_each_flag_of_dcmtk_is_taken_or_refused_by_name(alias: str, verb: str) -> None:
    command = _load(verb)
    assert command.tool == alias
    values = command.values()
    refused = set()
    said = set()
    for flag in TOOL_FLAGS[alias] - {"--version"}:
        try:
            found = normalise([flag, *["1"] * values.get(flag, 0)], values, tool=alias)
        except ConfigurationError as error:
            refused.add(flag)
            said.add(str(error).replace(flag, "FLAG", 1).partition(";")[0])
        else:
            assert found[0] == flag or found[0] in ("--propose", "--prefer")
    assert said == {f"FLAG: an option of DCMTK's {alias} that dcmhaul does not support"}
    assert {"+pw", "+cd", "-tls", "-lc"} <= refused
    assert not refused & {
        "-v",
        "-d",
        "-q",
        "-ll",
        "-aet",
        "-pdu",
        "-ta",
        "-td",
        "-ts",
        "-xe",
        "+xs",
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["echo"], "a peer is missing"),
        (["echo", "nowhere"], "'nowhere' is not AET@HOST:PORT"),
        (["echo", "A@b:1", "extra"], "one peer is enough"),
        (
            ["echo", "A@b:1", "-pdu", "100"],
            "a PDU length is 4096 to 4294967295 bytes, or 0 for no limit, not 100",
        ),
        (["echo", "A@b:1", "-aet", "SEVENTEENLETTERSX"], "an AE title has 1 to 16"),
        (["echo", "A@b:1", "-to", "soon"], "a duration is a number"),
        (["echo", "A@b:1", "--config", "absent.toml"], "there is no file 'absent.toml'"),
        (["echo", "-aet"], "requires an argument"),
        (["find", "A@b:1", "-S", "-k", "NoSuchKeyword=1"], "no attribute of the DICOM dictionary"),
        (["find", "A@b:1", "absent.dcm"], "absent.dcm: No such file"),
        (["get", "A@b:1", "-S"], "a retrieve without a key"),
        (["send", "A@b:1"], "needs a PATH"),
        (["send", "A@b:1", "absent.dcm", "gone"], "no such file or folder: absent.dcm, gone"),
        (["send", "A@b:1", ".", "-pwd", "x"], "-pwd needs -usr"),
        (["storescu", "A@b:1", "."], ". is a folder; +sd takes folders"),
        (["storescu", "A@b:1", "+r", "."], "+r goes with +sd"),
        (["receive"], "needs a PORT"),
        (["receive", "70000"], "a port is a number from 1 to 65535"),
        (["receive", "0", "--discard", "--durable", "each"], "--discard keeps nothing"),
        (["receive", "0", "--allow", "TITLEOFSEVENTEEN+"], "an AE title has"),
        (["receive", "0", "--metrics", "nonsense"], "--metrics: expected HOST:PORT"),
        (["synth", ".", "--studies", "0"], "--studies"),
        (["@absent"], "@absent: No such file"),
    ],
)
@pytest.mark.parametrize("with_json", [False, True])
def test_a_command_line_that_cannot_be_used(
    arguments: list[str], expected: str, with_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--json"] if with_json else arguments) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if not line.startswith("worklist model")]
    assert len(lines) == 1 or (arguments[-1] == "-aet" and not with_json) or "-pwd" in arguments
    if arguments == ["echo", "-aet"] and with_json:
        return  # --json became the title
    assert expected in captured.err
    if with_json:
        summary = json.loads(captured.out.splitlines()[-1])
        assert (summary["type"], summary["exit_code"]) == ("summary", 2)
        assert expected in summary["error"]


def test_defaults_come_from_the_file_of_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dcmhaul.toml").write_text("[nodes.x]\nport = 1\n")
    assert main(["echo", "x"]) == 2
    assert "nodes.x.host: Field required" in capsys.readouterr().err


def test_nobody_listens(capsys: pytest.CaptureFixture[str]) -> None:
    # Port 1 of the loopback: reserved, and no test machine serves it.
    assert main(["echo", "A@127.0.0.1:1", "--json"]) == 3
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    summary = json.loads(captured.out)
    assert summary == {
        "type": "summary",
        "verb": "echo",
        "echoes": 0,
        "failed": 0,
        "exit_code": 3,
        "error": summary["error"],
    }


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["echo", "A@127.0.0.1:1", "-q"]) == 3
    assert capsys.readouterr().err == ""


def test_a_traceback_only_under_d(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["echo", "A@127.0.0.1:1"]) == 3
    assert "Traceback" not in capsys.readouterr().err
    assert main(["echo", "A@127.0.0.1:1", "-d"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_synthetic_studies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    arguments = ["synth", str(folder), "--instances", "2", "--rows", "8", "--columns", "8"]
    assert main([*arguments, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert (summary["instances"], len(files)) == (2, 2)
    first = [path.read_bytes() for path in files]
    assert main(arguments) == 0
    assert [path.read_bytes() for path in files] == first
    assert "2 instances written" in capsys.readouterr().out


def session(level: Level = Level.WARN, *, json_lines: bool = False) -> Session:
    return Session("send", level=level, json_lines=json_lines)


def test_a_fault_of_ours_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    run = session()
    run.fail_all(BaseExceptionGroup("x", [ExceptionGroup("y", [KeyError("z")])]))
    assert run.finish() == 1
    assert "dcmhaul send: KeyError: 'z' (a fault of dcmhaul; -d shows where)\n" in (
        capsys.readouterr().err
    )


def test_equal_errors_of_a_group_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    run = session(json_lines=True)
    run.fail_all(ExceptionGroup("x", [TransportError("gone"), TransportError("gone")]))
    run.fail(ConfigurationError("bad"))
    assert run.finish() == 2
    captured = capsys.readouterr()
    assert captured.err == "dcmhaul send: gone\ndcmhaul send: bad\n"
    assert json.loads(captured.out)["error"] == "gone"


def test_an_interruption_wins(capsys: pytest.CaptureFixture[str]) -> None:
    run = session()
    run.fail_all(BaseExceptionGroup("x", [KeyboardInterrupt(), TransportError("gone")]))
    assert run.finish() == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "level"),
    [
        ("", Level.WARN),
        ("-v", Level.INFO),
        ("-vd", Level.DEBUG),
        ("-v -q", Level.FATAL),
        ("-q -v", Level.INFO),
        ("-d -ll ERROR", Level.ERROR),
        ("-ll trace -v", Level.INFO),
    ],
)
def test_of_several_levels_the_last_holds(
    typed: str, level: Level, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = []

    class Noting(Session):
        def __init__(self, name: str, **fields: Any) -> None:
            levels.append(fields["level"])
            super().__init__(name, **fields)

    monkeypatch.setattr("dcmhaul.cli.options.Session", Noting)
    assert main(["echo", *typed.split()]) == 2
    assert levels == [level]


def test_what_the_configuration_says_where_nothing_was_typed(tmp_path: Path) -> None:
    (tmp_path / "dcmhaul.toml").write_text(
        '[defaults]\ncalling_ae = "ME"\ntimeout = {connect = "1s", dimse = "2s"}\n'
        '[nodes.old]\nhost = "h"\nport = 104\nae = "OLD"\nmax_pdu = "64k"\n'
    )
    run = session()
    typed = NetworkOptions(timeouts={"dimse": None})
    plain = run.network(typed, Peer(host="h", port=1))
    assert (plain.calling_ae_title, plain.timeouts) == ("ME", {"connect": 1.0, "dimse": None})
    assert plain.pdu_length_max is None
    node = run.network(typed, run.only_peer(["old"], typed))
    assert (node.pdu_length_max, node.pdu_length_send_max) == (65536, 65536)
    asked = NetworkOptions(timeouts={}, pdu_length_max=16384, called_ae_title="X")
    peer = run.only_peer(["old"], asked)
    assert peer.ae_title == "X"
    assert run.network(asked, peer).pdu_length_max == 16384
    unlimited = run.network(replace(asked, pdu_length_max=0, pdu_length_send_max=0), peer)
    assert (unlimited.pdu_length_announced, unlimited.pdu_length_send_max) == (0, 0)
    assert plain.pdu_length_announced == 131072


def test_control_characters_of_a_peer_reach_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Console().error("a\x1b[31mb\nc")
    assert capsys.readouterr().err == "a\\x1b[31mb\\nc\n"


def test_a_warning_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.warn_once("x")
    console.warn_once("x")
    assert capsys.readouterr().err == "x\n"


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """A command line of a shell, where `dcmhaul` is this interpreter's."""
    program = f"{shlex.quote(sys.executable)} -m dcmhaul"
    return subprocess.run(
        ["bash", "-c", command.replace("dcmhaul", program, 1)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("words", ["--help", "echo --help", "synth out", "nonsense --json"])
def test_a_reader_that_has_gone_is_nothing_to_talk_about(words: str) -> None:
    shell(f"dcmhaul {words} 2> said | true")
    said = Path("said").read_text()
    assert "Traceback" not in said
    assert "stdout" not in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    "words", ["--version", "--help", "echo --help", "synth out", "find --json", "nonsense --json"]
)
def test_a_full_stdout_is_one_line(words: str) -> None:
    done = shell(f"dcmhaul {words} > /dev/full")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("dcmhaul: stdout cannot be written: No space")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_are_no_fault(closed: str) -> None:
    done = shell(f"dcmhaul synth out {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(Path("out").rglob("*.dcm"))) == 1
    assert shell(f"dcmhaul echo A@127.0.0.1:1 {closed}").returncode == 3
    assert shell(f"dcmhaul send A@127.0.0.1:1 - {closed}").returncode == 4
