"""Runs one process and tells what it cost: wall time, CPU time, highest resident memory."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ROOT = Path(__file__).resolve().parents[1]


class BenchFailed(RuntimeError):
    """A process of the benchmark did not do its work; the text holds what it printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """seconds: wall clock of the whole process. cpu_seconds: user and system. peak_bytes: resident."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    output: str


def end_on_sigterm() -> None:
    """Lets SIGTERM unwind the program, so that no server and no folder is left behind."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def dcmhaul() -> list[str]:
    """The command of this interpreter's environment."""
    script = Path(sys.executable).with_name("dcmhaul")
    return [str(script)] if script.exists() else [sys.executable, "-m", "dcmhaul"]


def run(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path = ROOT) -> Cost:
    """Runs it to its end; BenchFailed unless it exits with 0."""
    return run_all([argv], env=env, cwd=cwd)


def run_all(
    argvs: Sequence[Sequence[str]],
    *,
    env: Mapping[str, str],
    cwd: Path = ROOT,
    check: bool = True,
) -> Cost:
    """Runs them side by side until the last has ended; `check`: BenchFailed unless all exit with 0.

    seconds: of all of them; cpu_seconds: their sum; peak_bytes: of the largest.
    """
    running: list[subprocess.Popen[bytes]] = []
    cpu_seconds = 0.0
    peak = 0
    with tempfile.TemporaryFile() as sink:
        begun = time.perf_counter()
        try:
            running.extend(
                subprocess.Popen(
                    list(argv),
                    env=dict(env),
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                )
                for argv in argvs
            )
            for process in running:
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
                cpu_seconds += usage.ru_utime + usage.ru_stime
                peak = max(peak, usage.ru_maxrss * 1024)
        except BaseException:
            for process in running:
                if process.returncode is None:
                    process.kill()
            raise
        seconds = time.perf_counter() - begun
        sink.seek(0)
        output = sink.read().decode(errors="replace")
    for argv, process in zip(argvs, running, strict=True):
        if check and process.returncode != 0:
            raise BenchFailed(
                f"{' '.join(argv)} ended with {process.returncode}:\n{output[-4000:]}"
            )
    return Cost(seconds=seconds, cpu_seconds=cpu_seconds, peak_bytes=peak, output=output)


def cpu_seconds(pid: int) -> float:
    """User and system time of a running process and its ended children; 0 without /proc."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return 0.0
    fields = stat.read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def peak_bytes(pid: int) -> int:
    """The highest resident size that a running process has had (VmHWM)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    if found is None:
        raise BenchFailed(f"the kernel does not tell VmHWM of process {pid}")
    return int(found[1]) * 1024
