"""The labelled crash points: where they stand, how they are armed, and that they kill."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dcmhaul import crash
from dcmhaul.cli import main
from dcmhaul.errors import ConfigurationError

SOURCES = Path(crash.__file__).parent
POINT = re.compile(r'^( *)crash\.passed\("([^"]+)"\)', re.MULTILINE)


def points() -> list[tuple[str, str]]:
    """(module, label) of every point."""
    return [
        (path.name, found[2])
        for path in sorted(SOURCES.rglob("*.py"))
        for found in POINT.finditer(path.read_text())
    ]


def test_every_label_has_its_point_and_every_point_its_label() -> None:
    assert {label for _, label in points()} == set(crash.LABELS)


def test_a_point_costs_one_branch() -> None:
    """Each stands in an `if crash.armed`, or in a function that is called from one."""
    for path in SOURCES.rglob("*.py"):
        text = path.read_text()
        guarded = re.findall(r"if crash\.armed[^\n]*:\n +(?:await )?(\w+)\(", text)
        functions = [name for name in guarded if name != "crash"]
        for found in POINT.finditer(text):
            before = text[: found.start()].rstrip().rpartition("\n")[2]
            inside = [
                name
                for name in functions
                if (start := text.find(f"def {name}(")) >= 0 and start < found.start()
            ]
            assert "if crash.armed" in before or inside, f"{path.name}: {found[2]}"


@pytest.mark.parametrize(
    "text", ["tmp.linkd:1", "tmp.linked", "tmp.linked:", "tmp.linked:0", "tmp.linked:x", ":1"]
)
def test_what_is_no_point_is_said_at_the_start(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigurationError, match="CRASH_AT"):
        crash.arm({"CRASH_AT": text})
    assert not crash.armed
    monkeypatch.setenv("CRASH_AT", text)
    assert main(["echo", "X@127.0.0.1:1"]) == 2
    assert "CRASH_AT" in capsys.readouterr().err


KILLED = """
from dcmhaul import crash
crash.arm({"CRASH_AT": "tmp.linked:3"})
for n in range(1, 5):
    crash.passed("tmp.written")
    print(n, flush=True)
    crash.passed("tmp.linked")
"""


def test_it_dies_at_the_nth_passage() -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.split() == ["1", "2", "3"]


@pytest.mark.parametrize(("text", "expected"), [("", False), ("rsp.received:2", True)])
def test_nothing_is_armed_without_the_variable(text: str, expected: bool) -> None:
    try:
        crash.arm({"CRASH_AT": text})
        assert crash.armed is expected
        crash.passed("rsp.received")  # the first passage, and no kill
    finally:
        crash.arm({})
