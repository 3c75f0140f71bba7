"""What users type, name and point at by mistake: one line that says so, the exit code, nothing lost."""

from __future__ import annotations

import io
import os
import shutil
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from dcmhaul.objects.synth import write_studies
from tests.net.test_cli import CT, _elsewhere, process, records, run
from tests.net.test_cli import receiver as receiver

if TYPE_CHECKING:
    from pathlib import Path

    from tests.net.test_cli import Process

__all__ = ["_elsewhere"]


@pytest.mark.parametrize(
    "words",
    [
        ("echo", ""),
        ("find", "", "-S"),
        ("send", "A@127.0.0.1:1", ""),
        ("migrate", "", "./x"),
        ("migrate", "./x", ""),
        ("receive", ""),
        ("archive", "--dir", "", "--port", "0"),
        ("synth", ""),
    ],
)
def test_an_empty_word_is_a_mistake_of_usage(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, *words)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"dcmhaul {words[0]}: ")


@pytest.mark.parametrize(
    ("source", "reason", "text"),
    [
        (0, 0, "aborted by the application (0/0)"),
        (2, 1, "aborted by the provider: unrecognized PDU (2/1)"),
        (2, 6, "aborted by the provider: invalid PDU parameter value (2/6)"),
        (2, 9, "aborted by the provider: unknown reason (2/9)"),
        (7, 7, "aborted by an unknown source (7/7)"),
    ],
)
def test_an_abort_instead_of_an_answer_names_its_own_reason(
    source: int, reason: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(bytes((7, 0, 0, 0, 0, 4, 0, 0, source, reason)))
                connection.recv(1)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        code, _, err = run(capsys, "echo", f"A@127.0.0.1:{port}")
        thread.join(timeout=10)
    assert (code, err.count("\n")) == (3, 1)
    assert text in err


def test_standard_input_is_called_by_what_was_typed(
    receiver: Process, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = CT.read_bytes()
    for data, words in (
        (whole[:3000], "failed: -: truncated"),
        (b"text", "skipped: -: not a DICOM"),
    ):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        _, _, err = run(capsys, "send", receiver.address, "-")
        assert err.startswith(words)


def test_names_that_are_not_utf_8_migrate_as_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_studies(tmp_path / "made", 1, 1, 3, "CT", rows=8, columns=8)
    made = sorted((tmp_path / "made").rglob("*.dcm"))
    folder = os.fsencode(tmp_path) + b"/old\xe4"
    os.mkdir(folder)
    for path, name in zip(made, (b"a\xe4.dcm", b"b\\xe4.dcm", b"c\nd.dcm"), strict=True):
        shutil.copyfile(path, folder + b"/" + name)
    with open(folder + b"/no\xff.txt", "wb") as notes:
        notes.write(b"no DICOM")
    words = ("migrate", os.fsdecode(folder), "./new", "--verify", "digest", "--json")
    code, out, err = run(capsys, *words)
    summary = records(out)[-1]
    assert (code, summary["instances"], summary["same_bytes"]) == (0, 3, 3)
    assert "skipped: no\\xff.txt: " in err
    code, out, _ = run(capsys, *words)
    assert (code, records(out)[-1]["already"]) == (0, 3)


def test_the_source_is_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "migrate", CT, "./new")
    assert (code, err.count("\n")) == (2, 1)
    assert "is no folder" in err
    code, _, err = run(capsys, "migrate", "./gone", "./new")
    assert (code, err) == (2, "dcmhaul migrate: the source 'gone' does not exist\n")


def test_a_destination_within_its_source_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "link").symlink_to("old")
    for destination in ("./old/new", "./link/new", "./old/../old"):
        code, _, err = run(capsys, "migrate", "./old", destination)
        assert (code, err.count("\n")) == (2, 1)
        assert "within the source" in err or "are the same" in err
    assert not (tmp_path / "old" / "new").exists()


@pytest.mark.parametrize("verb", ["get", "receive", "migrate"])
def test_a_folder_that_takes_nothing_is_told_at_once(
    verb: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # To root every folder is writable, so the question itself is answered here.
    monkeypatch.setattr("os.access", lambda path, mode: False)
    words = {
        "get": ("A@127.0.0.1:1", "-S", "-k", "StudyInstanceUID=1.2", "-od", "out"),
        "receive": ("0", "-od", "out"),
        "migrate": ("A@127.0.0.1:1", "./out"),
    }
    code, _, err = run(capsys, verb, *words[verb])
    assert (code, err.count("\n")) == (2, 1)
    assert "nothing can be written there" in err


def test_a_status_of_the_destination_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_studies(tmp_path / "old", 1, 1, 1, "CT", rows=8, columns=8)
    blocked = tmp_path / "blocked"
    with process("receive", "0", "--bind", "127.0.0.1", "-od", blocked) as running:
        blocked.rmdir()
        code, _, err = run(capsys, "migrate", "./old", running.address, "--verify", "none")
    assert code == 5
    (line,) = (line for line in err.splitlines() if line.startswith("failed: "))
    assert line.count("0xA700") == 1


@pytest.mark.parametrize("verb", ["receive", "archive"])
def test_a_port_that_is_taken_is_one_line(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        where = (port, "--discard") if verb == "receive" else ("--dir", tmp_path, "--port", port)
        code, out, err = run(capsys, verb, *map(str, where), "--bind", "127.0.0.1")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in err


def test_an_ipv6_peer_is_named_as_it_is_typed(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "echo", "A@[::1]:1")
    assert (code, err.count("\n")) == (3, 1)
    assert err.startswith("dcmhaul echo: [::1]:1: no connection")


def test_a_port_that_never_answers(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code, _, err = run(capsys, "echo", f"A@127.0.0.1:{port}", "-ta", "0.2")
    assert (code, err.count("\n")) == (3, 1)
    assert "no progress for 0.2 s (association time-out)" in err
    assert err.endswith("is it a DICOM port?\n")
