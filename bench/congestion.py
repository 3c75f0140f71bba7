"""One congestion control for every process of a benchmark, also for those that have no option for it.

The kernel's default differs between machines, and BBR paces even the loopback. Whoever cannot be told
gets a preloaded `socket()` that sets the socket option.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path

VARIABLE = "BENCH_CONGESTION"

PRELOAD = f"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
int socket(int domain, int type, int protocol) {{
    int (*next)(int, int, int) = (int (*)(int, int, int))dlsym(RTLD_NEXT, "socket");
    int fd = next(domain, type, protocol);
    const char *name = getenv("{VARIABLE}");
    if (fd >= 0 && name && domain != AF_UNIX && (type & 0xf) == SOCK_STREAM)
        setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, (socklen_t)strlen(name));
    return fd;
}}
"""


def kernel_default() -> str:
    """The congestion control that a socket gets by itself."""
    return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()


def usable(name: str) -> bool:
    """Whether this user may set it on a socket of this kernel."""
    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        except OSError:
            return False
    return True


def preload(folder: Path, name: str | None) -> dict[str, str]:
    """The environment that puts `name` on every TCP socket of a process; empty for None.

    The library is built in `folder` with cc.
    """
    if name is None:
        return {}
    compiler = os.environ.get("CC") or shutil.which("cc") or "gcc"
    source, library = folder / "congestion.c", folder / "congestion.so"
    source.write_text(PRELOAD)
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True
    )
    return {"LD_PRELOAD": str(library), VARIABLE: name}
