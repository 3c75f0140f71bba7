"""What stdout carries, and the numbers of a summary."""

from __future__ import annotations

import io
import json
from typing import TextIO

import pytest

from dcmhaul.cli.output import (
    Answer,
    Progress,
    Rows,
    TransferCount,
    format_bytes,
    format_seconds,
    process_seconds,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def rows(stream: TextIO, *, json_lines: bool = False) -> None:
    table = Rows(Answer(stream=stream, json_lines=json_lines), ["PatientName", "Modality"])
    table.add(["A\tB\n[bold]C", "CT"])
    table.add(["x" * 300, ""])
    table.finish()


def test_elsewhere_a_match_is_a_line() -> None:
    stream = io.StringIO()
    rows(stream)
    lines = stream.getvalue().split("\n")
    assert lines == ["PatientName\tModality", "A\\tB\\n[bold]C\tCT", "x" * 300 + "\t", ""]


def test_a_terminal_gets_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    stream = Terminal()
    rows(stream)
    text = stream.getvalue()
    assert "[bold]C" in text
    assert "x" * 300 in text
    assert "\t" not in text


def test_a_narrow_terminal_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    rows(stream)
    assert stream.getvalue().count("x") == 300


def test_under_json_there_are_objects_alone() -> None:
    stream = io.StringIO()
    rows(stream, json_lines=True)
    answer = Answer(stream=stream, json_lines=True)
    answer.line("not shown")
    answer.record({"type": "x", "name": "Müller", "path": "\udcff"})
    assert stream.getvalue() == '{"type":"x","name":"Müller","path":"\\udcff"}\n'


def test_json_is_utf8_whatever_the_locale() -> None:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding="ascii")
    Answer(stream=stream, json_lines=True).record({"name": "Müller"})
    assert json.loads(buffer.getvalue().decode("utf-8")) == {"name": "Müller"}


def test_the_numbers_of_a_transfer() -> None:
    count = TransferCount()
    count.instances, count.byte_count, count.failed, count.skipped = 4, 4 << 20, 1, 2
    count.operation(11.0, 1.0)
    count.operation(10.5, 0.25)
    count.operation(12.0, 0.1)
    fields = count.fields()
    assert list(fields) == [
        "instances",
        "failed",
        "skipped",
        "bytes",
        "seconds",
        "wall_seconds",
        "mib_per_s",
        "instances_per_s",
    ]
    assert fields["seconds"] == 2.0
    assert fields["mib_per_s"] == 2.0
    assert fields["instances_per_s"] == 2.0
    assert fields["bytes"] == 4 << 20
    assert count.text("sent") == (
        "4 instances sent, 4.0 MiB in 2.00 s (2.0 MiB/s, 2.0 instances/s), 1 failed, 2 skipped"
    )


def test_the_numbers_of_nothing() -> None:
    fields = TransferCount().fields()
    assert (fields["seconds"], fields["mib_per_s"], fields["instances_per_s"]) == (0.0, 0.0, 0.0)
    json.dumps(fields, allow_nan=False)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB")]
)
def test_bytes_for_a_reader(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0.50 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_seconds_for_a_reader(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_progress_for_a_reader() -> None:
    look = Progress(done=3, total=10, byte_count=2048, failed=1)
    assert look.text(2.0) == "3/10 instances, 2.0 KiB, 1.0 KiB/s, 1 failed"
    assert Progress(done=0, total=None, byte_count=0, note="looking").text(0.0) == (
        "looking: 0 instances, 0 B, 0 B/s"
    )


def test_a_process_is_older_than_its_imports() -> None:
    first = process_seconds()
    assert 0 <= first <= process_seconds()
