"""Who sends to whom: every pair of the loopback benchmark, as server context and sender command."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.interop import peers

from bench import process

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

PDU = peers.PDU_LENGTH_MAX
AET = "BENCH"

DCMHAUL = "dcmhaul"
DCMTK_NODELAY = "DCMTK, TCP_NODELAY=1"
DCMTK = "DCMTK as installed"
PYNETDICOM = "pynetdicom"

TOOLS = {
    DCMHAUL: (),
    DCMTK_NODELAY: ("storescu", "storescp"),
    DCMTK: ("storescu", "storescp"),
    PYNETDICOM: ("pynetdicom",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One sender and one receiver. counts: how many objects of each set a round sends.

    associations: at once; a tool without an option for it is started so often, each with its share.
    """

    key: str
    sender: str
    receiver: str
    window: int = 1
    associations: int = 1
    pdu: int = PDU
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def title(self) -> str:
        window = f" (window {self.window})" if self.sender == DCMHAUL else ""
        many = f", {self.associations} associations" if self.associations > 1 else ""
        pdu = f", PDU {self.pdu}" if self.pdu != PDU else ""
        return f"{self.sender}{window} → {self.receiver}{many}{pdu}"

    def missing(self) -> list[str]:
        """Tools that are not installed."""
        needed = {*TOOLS[self.sender], *TOOLS[self.receiver]}
        return sorted(tool for tool in needed if peers.find(tool) is None)


def pairs(full: Mapping[str, int]) -> tuple[Pair, ...]:
    """All pairs; `full` is the size of each set. Slow ones send fewer: their rate is the same."""
    few = {"ct": 60, "small": 60}
    fewer = {"large": 2, "ct": 300, "small": 80}
    helped = {"large": 2, "ct": 300, "small": 800}
    both = {name: full[name] for name in ("ct", "small") if name in full}
    large = {name: full[name] for name in ("large",) if name in full}
    small = {name: full[name] for name in ("small",) if name in full}

    def least(counts: Mapping[str, int]) -> dict[str, int]:
        return {name: min(count, full[name]) for name, count in counts.items() if name in full}

    return (
        Pair(key="ours-1", sender=DCMHAUL, receiver=DCMHAUL, counts=full),
        Pair(key="ours-16", sender=DCMHAUL, receiver=DCMHAUL, window=16, counts=full),
        Pair(key="dcmtk-nodelay", sender=DCMTK_NODELAY, receiver=DCMTK_NODELAY, counts=full),
        Pair(
            key="dcmtk",
            sender=DCMTK,
            receiver=DCMTK,
            counts=least({"large": full.get("large", 0), **few}),
        ),
        Pair(key="to-dcmtk", sender=DCMHAUL, receiver=DCMTK, counts=both),
        Pair(key="from-dcmtk", sender=DCMTK, receiver=DCMHAUL, counts=both),
        Pair(key="pynetdicom", sender=PYNETDICOM, receiver=PYNETDICOM, counts=least(fewer)),
        Pair(key="to-pynetdicom", sender=DCMHAUL, receiver=PYNETDICOM, counts=least(helped)),
        Pair(key="from-pynetdicom", sender=PYNETDICOM, receiver=DCMHAUL, counts=least(helped)),
        Pair(key="ours-8", sender=DCMHAUL, receiver=DCMHAUL, associations=8, counts=small),
        Pair(
            key="dcmtk-nodelay-8",
            sender=DCMTK_NODELAY,
            receiver=DCMTK_NODELAY,
            associations=8,
            counts=small,
        ),
        Pair(key="ours-16384", sender=DCMHAUL, receiver=DCMHAUL, pdu=16384, counts=large),
        Pair(
            key="dcmtk-nodelay-16384",
            sender=DCMTK_NODELAY,
            receiver=DCMTK_NODELAY,
            pdu=16384,
            counts=large,
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """How every process of a run treats its sockets.

    congestion: None leaves the kernel's default. preload: environment for those without an option.
    sender_tls, receiver_tls: the TLS flags, which are DCMTK's for all; () is plain TCP.
    """

    congestion: str | None
    preload: Mapping[str, str]
    sender_tls: tuple[str, ...] = ()
    receiver_tls: tuple[str, ...] = ()

    def own_options(self) -> list[str]:
        return ["--congestion", self.congestion] if self.congestion else []


@contextmanager
def receiver(
    kind: str, wire: Wire, folder: Path | None = None, *, associations: int = 1, pdu: int = PDU
) -> Iterator[peers.Server]:
    """A listening Storage SCP of that kind; drops what it gets unless there is a folder."""
    if kind == DCMHAUL:
        port = peers.free_port()
        argv = [*process.dcmhaul(), "receive", str(port), "-aet", AET, "--bind", peers.LOOPBACK]
        argv += ["-pdu", str(pdu), *wire.own_options(), *wire.receiver_tls]
        argv += ["--discard"] if folder is None else ["-od", str(folder)]
        with peers.serve("dcmhaul receive", argv, aet=AET, port=port, folder=folder) as server:
            yield server
    elif kind == PYNETDICOM:
        with peers.pynetdicom_scp(folder, aet=AET, pdu=pdu, env=wire.preload) as server:
            yield server
    else:
        with peers.storescp(
            folder,
            aet=AET,
            nodelay=kind == DCMTK_NODELAY,
            fork=associations > 1,
            pdu=pdu,
            env=wire.preload,
            extra=wire.receiver_tls,
        ) as server:
            yield server


def send(
    kind: str,
    wire: Wire,
    server: peers.Server,
    *folders: Path,
    window: int = 1,
    pdu: int = PDU,
    halt: bool = True,
) -> process.Cost:
    """Sends every file of the folders, on as many associations, and returns what that cost.

    halt: BenchFailed where one was not taken; without it DCMTK's storescu goes on.
    """
    if kind == DCMHAUL:
        argv = [*process.dcmhaul(), "send", server.address, *map(str, folders), "-pdu", str(pdu)]
        argv += ["--associations", str(len(folders)), "--window", str(window), "--json"]
        argv += [*wire.own_options(), *wire.sender_tls]
        cost = process.run(argv, env=peers.environment())
        _check_summary(cost.output, sum(1 for folder in folders for _ in folder.iterdir()))
        return cost
    if kind == PYNETDICOM:
        argv = [peers.require("pynetdicom"), "-m", "tests.interop.pynetdicom_peer", "send"]
        argv += [server.host, str(server.port), "--called", server.aet, "--pdu", str(pdu)]
        env = peers.environment(extra=wire.preload)
    else:
        argv = [peers.require("storescu"), *wire.sender_tls, "-aec", server.aet, "-pdu", str(pdu)]
        argv += ["--max-send-pdu", str(pdu), "+sd", "+r", *([] if halt else ["--no-halt"])]
        argv += [server.host, str(server.port)]
        env = peers.environment(nodelay=kind == DCMTK_NODELAY, extra=wire.preload)
    return process.run_all([[*argv, str(folder)] for folder in folders], env=env, check=halt)


def _check_summary(output: str, count: int) -> None:
    """A sender that lost something was not fast."""
    summary = json.loads(output.strip().splitlines()[-1])
    if summary["type"] != "summary" or summary["instances"] != count or summary["failed"]:
        raise process.BenchFailed(f"expected {count} instances, got {summary}")


def iperf3(wire: Wire, seconds: int, *, sendfile: bool) -> float:
    """Bytes a second of one plain TCP stream on this loopback: the ceiling of the path."""
    port = peers.free_port()
    argv = [peers.require("iperf3"), "-c", peers.LOOPBACK, "-p", str(port), "-J"]
    argv += ["-t", str(seconds), *(["-C", wire.congestion] if wire.congestion else [])]
    argv += ["-Z"] if sendfile else []
    serving = [peers.require("iperf3"), "-s", "-p", str(port), "-B", peers.LOOPBACK]
    with peers.serve("iperf3", serving, aet="", port=port):
        cost = process.run(argv, env=peers.environment())
    received = json.loads(cost.output)["end"]["sum_received"]
    return float(received["bits_per_second"]) / 8
