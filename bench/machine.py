"""What a result was measured on: without it a figure says nothing."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from tests.interop import peers

from bench.congestion import kernel_default

VERSION_OPTIONS = {"storescu": "--version", "iperf3": "--version"}


def _cpu() -> str:
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def _tool(name: str) -> str:
    path = peers.find(name)
    if path is None:
        return "not installed"
    done = subprocess.run(
        [path, VERSION_OPTIONS[name]], capture_output=True, text=True, check=False
    )
    lines = (done.stdout + done.stderr).splitlines()
    found = re.search(r"\bv?(\d+\.\d+(?:\.\d+)?)", lines[0]) if lines else None
    return found[1] if found else "unknown"


def describe(congestion: str | None) -> dict[str, str]:
    """Machine, kernel, versions and the congestion control in force, as texts for JSON and table."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": f"{_cpu()}, {os.cpu_count()} logical",
        "memory": f"{memory / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "congestion": congestion or f"{kernel_default()} (the kernel's default)",
        "python": f"{platform.python_version()} ({sys.implementation.name})",
        "dcmhaul": metadata.version("dcmhaul"),
        "dcmtk": _tool("storescu"),
        "pynetdicom": metadata.version("pynetdicom")
        if peers.find("pynetdicom")
        else "not installed",
        "iperf3": _tool("iperf3"),
    }


def filesystem(path: Path) -> str:
    """The type of the filesystem that holds the path, by the longest mount point above it."""
    found = ("", "unknown")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split(" ")
        if path.resolve().is_relative_to(point):
            found = max(found, (point, kind), key=lambda mount: len(mount[0]))
    return found[1]
