"""Commands whose disk refuses: what they say, how they end, and that a second try mends it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from dcmhaul.objects.synth import write_studies
from tests.archive.test_faults import faulty
from tests.net.test_cli import _elsewhere, process, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.net.test_cli import Process

__all__ = ["_elsewhere"]

FAULTS = [
    ("fdatasync", errno.EIO),
    ("fdatasync", errno.EDQUOT),
    ("link", errno.ENOSPC),
    ("link", errno.EROFS),
    ("fsync", errno.EIO),
]
INSTANCES = 6


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("source")
    write_studies(folder / "files", 1, 2, 3, "CT", seed=1, rows=64, columns=64)
    with process("archive", "--dir", folder / "held", "--port", "0", "--bind", "127.0.0.1") as held:
        from dcmhaul.cli import main

        assert main(["send", held.address, str(folder / "files")]) == 0
        yield held


def command(verb: str, source: Process, target: Path, ledger: Path) -> list[str]:
    if verb == "get":
        return ["get", source.address, "-S", "-k", "PatientID=SYNTH*", "-od", str(target)]
    jobs = ["--ledger", f"sqlite:///{ledger}", "--job", "faults"]
    return ["migrate", source.address, f"{target}/", *jobs]


@pytest.mark.parametrize("verb", ["get", "migrate"])
@pytest.mark.parametrize(("call", "code"), FAULTS)
def test_a_disk_that_refuses(
    source: Process,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    call: str,
    code: int,
) -> None:
    target = tmp_path / "got"
    target.mkdir()
    line = command(verb, source, target, tmp_path / "ledger.db")
    if verb == "migrate":
        # Not what it waits for between its tries.
        monkeypatch.setattr("dcmhaul.engine.retry.RetryPolicy.delay", lambda *_: 0.01)
    # The folder itself is there before the disk breaks.
    monkeypatch.setattr("dcmhaul.objects.paths.make_folder", lambda *_, **__: None)
    with faulty(monkeypatch, call, code):
        ended, _, err = run(capsys, *line)
    assert ended == 5
    assert err.count(os.strerror(code)) >= 1
    assert "Traceback" not in err
    assert list(target.iterdir()) == []
    assert run(capsys, *line)[0] == 0
    assert len(list(target.iterdir())) == INSTANCES
