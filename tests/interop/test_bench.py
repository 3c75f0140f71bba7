"""Each benchmark runs for a moment: its peers start, what it sends arrives, its table has its rows."""

from __future__ import annotations

import math
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from bench import congestion, tables
from bench.micro import QUICK_COUNTED, WORKLOADS, count_of
from bench.profiling import stacks

from tests.interop import peers

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[2]


def bench(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{name}", "--quick", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def cells(text: str, first: str) -> Sequence[str]:
    """The cells of the table row that begins so."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_loopback_measures_every_pair() -> None:
    for tool in ("storescu", "storescp", "pynetdicom", "iperf3"):
        peers.require(tool)
    wanted = "cubic" if congestion.usable("cubic") else "kernel"
    text = bench("loopback", "--congestion", wanted)
    for title in (
        "dcmhaul (window 1) → dcmhaul",
        "dcmhaul (window 16) → dcmhaul",
        "DCMTK, TCP_NODELAY=1 → DCMTK, TCP_NODELAY=1",
        "DCMTK as installed → DCMTK as installed",
        "pynetdicom → pynetdicom",
        "dcmhaul (window 1) → DCMTK as installed",
        "DCMTK as installed → dcmhaul",
        "dcmhaul (window 1) → pynetdicom",
        "pynetdicom → dcmhaul",
        "dcmhaul (window 1) → dcmhaul, 8 associations",
        "DCMTK, TCP_NODELAY=1 → DCMTK, TCP_NODELAY=1, 8 associations",
        "dcmhaul (window 1) → dcmhaul, PDU 16384",
    ):
        assert float(cells(text, title)[1].replace(",", "")) > 0
    assert "not measured" not in text


def test_tls_measures_every_pair() -> None:
    for tool in ("storescu", "storescp"):
        peers.require(tool)
    wanted = "cubic" if congestion.usable("cubic") else "kernel"
    text = bench("tls", "--congestion", wanted)
    for title in (
        "dcmhaul (window 1) → dcmhaul",
        "dcmhaul (window 16) → dcmhaul",
        "DCMTK, TCP_NODELAY=1 → DCMTK, TCP_NODELAY=1",
        "dcmhaul (window 1) → DCMTK, TCP_NODELAY=1",
        "plain TLS",
    ):
        assert float(cells(text, title)[1].replace(",", "")) > 0
    assert "not measured" not in text


def test_distance_measures_every_setting() -> None:
    wanted = "cubic" if congestion.usable("cubic") else "kernel"
    text = bench("distance", "--congestion", wanted)
    for round_trip in ("0 ms", "20 ms", "80 ms"):
        for setting in ("1x1", "1x16", "4x16"):
            assert float(cells(text, f"{round_trip}, {setting}")[1].replace(",", "")) > 0


def test_the_relay_delays_every_byte_and_loses_none() -> None:
    sent = bytes(range(256)) * 20_000  # more than a read, a block and a socket's buffers hold
    port = peers.free_port()
    with socket.create_server((peers.LOOPBACK, 0)) as listener:
        argv = [sys.executable, "-m", "bench.relay_line", str(port), str(listener.getsockname()[1])]
        with (
            peers.serve("relay", [*argv, "40"], aet="", port=port, cwd=ROOT),
            socket.create_connection((peers.LOOPBACK, port)) as near,
            listener.accept()[0] as far,
            far.makefile("rb") as arriving,
        ):
            begun = time.monotonic()
            near.sendall(b"?")
            assert arriving.read(1) == b"?"
            assert time.monotonic() - begun >= 0.02
            far.sendall(b"!")
            assert near.recv(1) == b"!"
            assert time.monotonic() - begun >= 0.04
            near.sendall(sent)
            near.shutdown(socket.SHUT_WR)
            assert arriving.read() == sent


def test_query_measures_find_and_findscu() -> None:
    peers.require("findscu")
    wanted = "cubic" if congestion.usable("cubic") else "kernel"
    text = bench("query", "--congestion", wanted)
    for title in ("dcmhaul find", "findscu, TCP_NODELAY=1", "findscu as installed"):
        # Seconds without those of a query with one match: in a moment's run that may be none.
        assert math.isfinite(float(cells(text, title)[1].replace(",", "")))
    assert "not measured" not in text


def test_retrieve_measures_every_pair() -> None:
    for tool in ("getscu", "dcmqrscp"):
        peers.require(tool)
    wanted = "cubic" if congestion.usable("cubic") else "kernel"
    text = bench("retrieve", "--congestion", wanted)
    for title in (
        "dcmhaul get (window 16) ← dcmhaul archive",
        "getscu, TCP_NODELAY=1 ← dcmqrscp, TCP_NODELAY=1",
        "getscu, as installed ← dcmqrscp, as installed, into files",
    ):
        assert float(cells(text, title)[1].replace(",", "")) > 0
    assert "not measured" not in text


def test_ingest_measures_every_archive() -> None:
    for tool in ("storescu", "dcmqrscp"):
        peers.require(tool)
    wanted = "cubic" if congestion.usable("cubic") else "kernel"
    text = bench("ingest", "--congestion", wanted)
    for title in (
        "dcmhaul send → dcmhaul archive",
        "bare loop: write, fsync",
        "storescu → dcmqrscp, TCP_NODELAY=1",
        "storescu → dcmqrscp, as installed",
    ):
        assert float(cells(text, title)[1].replace(",", "")) > 0


def test_relay_measures_migrate_and_its_parts() -> None:
    wanted = "cubic" if congestion.usable("cubic") else "kernel"
    text = bench("relay", "--congestion", wanted)
    for title in ("archive → migrate → archive", "send → receive -od", "send → archive"):
        assert float(cells(text, title)[1].replace(",", "")) > 0


def test_ledger_measures_with_and_without() -> None:
    text = bench("ledger")
    for case in ("offered 10 000/s", "full speed"):
        for title in (f"{case}, without a ledger", f"{case}, two writes an instance"):
            assert float(cells(text, title)[1].replace(",", "")) > 0


def test_memory_measures_every_process() -> None:
    text = bench("memory")
    for process in ("send", "receive --discard", "archive, storing", "migrate (relay)"):
        assert float(cells(text, process)[1].replace(",", "")) > 0


def test_crowd_measures_memory_and_shares() -> None:
    wanted = "cubic" if congestion.usable("cubic") else "kernel"
    text = bench("crowd", "--congestion", wanted)
    for figure in ("MiB resident a busy association, at most", "CT: Jain's index"):
        assert float(cells(text, figure)[1].replace(",", "")) > 0


def test_startup_measures_every_command() -> None:
    text = bench("startup")
    for command in ("python -c pass", "dcmhaul --version", "dcmhaul echo"):
        assert float(cells(text, command)[1]) > 0


def test_micro_runs_every_workload() -> None:
    text = bench("micro")
    for workload in WORKLOADS:
        assert float(cells(text, workload.title)[1].replace(",", "")) > 0
    if shutil.which("valgrind"):
        assert cells(text, QUICK_COUNTED)[-1] in ("yes", "no")


def test_callgrind_counts_the_extension_apart(tmp_path: Path) -> None:
    output = tmp_path / "callgrind.1"
    output.write_text(
        "ob=(1) /usr/lib/libpython3.so\nfn=(1) eval\n0 100\n"
        "cob=(2) /here/dcmhaul/wire/_frames.so\ncfn=(2) next\ncalls=1 0\n0 57\n"
        "ob=(2)\nfn=(2)\n+3 50\ncob=(1)\ncfn=(1)\ncalls=1 0\n* 1000\n-2 7\ntotals: 157\n"
    )
    assert count_of(output) == (157, 57)


def test_profile_looks_at_both_ends() -> None:
    text = bench("profiling")
    for end in ("send", "receive"):
        assert f"dcmhaul {end}: " in text
    assert text.count("dcmhaul/services/storage.py") >= 2
    assert str(ROOT) not in text


def test_a_sample_becomes_a_stack_of_flame_graphs() -> None:
    lines = [
        "dcmhaul",
        "\tffffffff8101 tcp_sendmsg ([kernel.kallsyms])",
        "\tffffffff8102 ____sys_sendmsg ([kernel.kallsyms])",
        "\tffffffff8103 __x64_sys_sendmsg ([kernel.kallsyms])",
        "\tffffffff8104 do_syscall_64 ([kernel.kallsyms])",
        "\t7f01 __libc_sendmsg (/usr/lib/libc.so.6)",
        "\t7f02 __pyx_f_7dcmhaul_3net_7_sockio_send_memory (/here/_sockio.so)",
        "\t7f03 __pyx_pw_7dcmhaul_3net_7_sockio_1run_plan (/here/_sockio.so)",
        "\t7f04 _PyEval_EvalFrameDefault (/usr/lib/libpython3.so)",
        "\t7f05 _PyEval_Vector (/usr/lib/libpython3.so)",
        "\t7f06 main (/usr/bin/python3)",
        "",
    ]
    stack = "main;python;_sockio.run_plan;_sockio.send_memory;sys_sendmsg_[k];tcp_sendmsg_[k]"
    assert stacks(lines) == {tuple(stack.split(";")): 1}


def test_the_preload_sets_the_congestion_control(tmp_path: Path) -> None:
    other = "reno" if congestion.kernel_default() != "reno" else "cubic"
    if not congestion.usable(other):
        pytest.skip(f"this user may not set the congestion control {other}")
    code = (
        "import socket\n"
        "s = socket.socket()\n"
        "print(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b'\\0').decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=peers.environment(extra=congestion.preload(tmp_path, other)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == other
    assert congestion.preload(tmp_path, None) == {}


def test_an_accepted_socket_inherits_the_congestion_control() -> None:
    other = "reno" if congestion.kernel_default() != "reno" else "cubic"
    if not congestion.usable(other):
        pytest.skip(f"this user may not set the congestion control {other}")
    with socket.socket() as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, other.encode())
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            name = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    assert name.rstrip(b"\0").decode() == other


def test_a_marked_part_is_replaced_and_the_rest_kept(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("# Title\n\ntext\n")
    tables.replace_marked(tmp_path / "new" / "README.md", "a", "alone")
    assert "alone" in (tmp_path / "new" / "README.md").read_text()
    tables.replace_marked(page, "a", "first \\1")
    tables.replace_marked(page, "b", "other")
    tables.replace_marked(page, "a", "second")
    text = page.read_text()
    assert text.startswith("# Title\n\ntext\n")
    assert "first" not in text
    assert text.count("<!-- a -->") == text.count("<!-- /a -->") == 1
    assert text.index("second") < text.index("other")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.12345, "0.123"),
        (1.23456, "1.23"),
        (12.3456, "12.3"),
        (123.456, "123"),
        (12345.6, "12,346"),
    ],
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert tables.short(value) == text
