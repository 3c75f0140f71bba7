"""How long a process holds its connections: a preloaded library notes when it connects and when it closes.

Start-up differs between tools by more than what is to be measured, and so it is left out for everybody alike.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from bench.process import BenchFailed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

VARIABLE = "BENCH_STOPWATCH"

PRELOAD = f"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
static int connected = -1;
static double first, last;
static double now(void) {{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}}
int connect(int fd, const struct sockaddr *address, socklen_t length) {{
    int (*next)(int, const struct sockaddr *, socklen_t) =
        (int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "connect");
    if (address->sa_family == AF_INET) {{
        connected = fd;
        last = now();
        if (first == 0)
            first = last;
    }}
    return next(fd, address, length);
}}
int close(int fd) {{
    int (*next)(int) = (int (*)(int))dlsym(RTLD_NEXT, "close");
    const char *path = getenv("{VARIABLE}");
    if (fd >= 0 && fd == connected && path) {{
        double ended = now();
        FILE *file = fopen(path, "w");
        connected = -1;
        if (file) {{
            fprintf(file, "%.6f %.6f\\n", ended - last, ended - first);
            fclose(file);
        }}
    }}
    return next(fd);
}}
"""


class Stopwatch:
    """Times one process after another; each is started with `environment`."""

    def __init__(self, folder: Path) -> None:
        self._result = folder / "stopwatch.txt"
        self._library = folder / "stopwatch.so"
        source = folder / "stopwatch.c"
        source.write_text(PRELOAD)
        compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-O1", "-o", str(self._library), str(source), "-ldl"],
            check=True,
        )

    def environment(self, other: Mapping[str, str]) -> dict[str, str]:
        """`other` with the library, beside one that it preloads already."""
        libraries = " ".join(filter(None, (other.get("LD_PRELOAD"), str(self._library))))
        return {**other, "LD_PRELOAD": libraries, VARIABLE: str(self._result)}

    def seconds(self) -> tuple[float, float]:
        """Of the process that ended last: its last connection, from connect to close, and from its first
        connect to that close. BenchFailed where it had none.
        """
        try:
            text = self._result.read_text()
        except FileNotFoundError as exc:
            raise BenchFailed("a process made no connection") from exc
        self._result.unlink()
        last, whole = map(float, text.split())
        return last, whole
