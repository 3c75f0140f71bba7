"""Starts the peers that interop tests and benches talk to: DCMTK, Orthanc, pynetdicom.

Each server is a context manager that yields a `Server` once it listens on a free loopback port,
keeps what it printed, and kills its whole process group at the end. Nothing is written outside the
folder that the caller names. A missing tool skips the test with the reason; with REQUIRE_PEERS=1 it
fails it. It uses no trio, so benches can use it too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = "127.0.0.1"
START_SECONDS = 30.0
STOP_SECONDS = 5.0
TOOL_SECONDS = 120.0
PDU_LENGTH_MAX = 131072

# Where distributions put what is not always on a user's PATH.
EXTRA_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/usr/local/bin")
PACKAGES = {
    "Orthanc": "orthanc",
    "iperf3": "iperf3",
    "openssl": "openssl",
    "pynetdicom": "pynetdicom (pip)",
}


class PeerFailed(RuntimeError):
    """A peer ended, or did not listen in time; the text holds what it printed."""


def find(name: str) -> str | None:
    """The path of a tool, or None; `pynetdicom` is looked for in this interpreter."""
    if name == "pynetdicom":
        return sys.executable if importlib.util.find_spec("pynetdicom") else None
    # An activated environment puts pynetdicom's own storescu, findscu and so on before DCMTK's.
    scripts = Path(sys.executable).parent
    folders = [
        f for f in os.environ.get("PATH", os.defpath).split(os.pathsep) if Path(f) != scripts
    ]
    return shutil.which(name, path=os.pathsep.join([*folders, *EXTRA_FOLDERS]))


def require(name: str) -> str:
    """The path of a tool; where it is missing the running test is skipped, or fails as asked."""
    found = find(name)
    if found is None:
        import pytest

        text = f"{name} is not installed: install {PACKAGES.get(name, 'dcmtk')}"
        if os.environ.get("REQUIRE_PEERS") == "1":
            pytest.fail(f"REQUIRE_PEERS=1, but {text}")
        pytest.skip(text)
    return found


def free_port() -> int:
    """A port of the loopback that nobody listens on; the next bind of it succeeds as a rule."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def environment(*, nodelay: bool = False, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a peer: ours, with TCP_NODELAY (DCMTK reads it) only where asked for."""
    values = {k: v for k, v in os.environ.items() if k not in ("TCP_NODELAY", "LD_PRELOAD")}
    values["LC_ALL"] = "C.UTF-8"
    if nodelay:
        values["TCP_NODELAY"] = "1"
    values.update(extra or {})
    return values


@dataclass(slots=True, kw_only=True)
class Server:
    """A running server process. `address` is what dcmhaul takes as a peer."""

    name: str
    aet: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    folder: Path | None = None
    http_port: int | None = None
    host: str = field(default=LOOPBACK)

    @property
    def address(self) -> str:
        return f"{self.aet}@{self.host}:{self.port}"

    def output(self) -> str:
        """All that the server has printed so far."""
        return self.log.read_text(errors="replace")

    def alive(self) -> bool:
        return self.process.poll() is None


def run_tool(
    name: str,
    *arguments: str | Path | int,
    nodelay: bool = False,
    env: Mapping[str, str] | None = None,
    timeout: float = TOOL_SECONDS,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Runs a client tool to its end; stdout and stderr are in one string, `stdout`.

    check: PeerFailed with that output where the exit code is not 0.
    """
    argv = [require(name), *(str(argument) for argument in arguments)]
    done = subprocess.run(
        argv,
        env=environment(nodelay=nodelay, extra=env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
        check=False,
        text=True,
        errors="replace",
    )
    if check and done.returncode != 0:
        raise PeerFailed(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stdout}")
    return done


@contextlib.contextmanager
def serve(
    name: str,
    argv: Sequence[str],
    *,
    aet: str,
    port: int,
    env: Mapping[str, str] | None = None,
    nodelay: bool = False,
    folder: Path | None = None,
    cwd: Path | None = None,
    http_port: int | None = None,
) -> Iterator[Server]:
    """Starts any server, waits until it listens on `port`, yields it, ends it and its children."""
    with tempfile.TemporaryDirectory(prefix="dcmhaul-peer-") as scratch:
        log = Path(scratch) / "output.txt"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                list(argv),
                env=environment(nodelay=nodelay, extra=env),
                cwd=cwd or scratch,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # dcmqrscp forks: the group is what must end
            )
        server = Server(
            name=name,
            aet=aet,
            port=port,
            process=process,
            log=log,
            folder=folder,
            http_port=http_port,
        )
        try:
            _wait_until_listening(server)
            yield server
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass  # the whole group has ended
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        if number == signal.SIGTERM:
            continue  # its children may live on
        return


def _wait_until_listening(server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not listening(server.port):
        code = server.process.poll()
        if code is not None:
            raise PeerFailed(
                f"{server.name} ended with {code} before it listened:\n{server.output()}"
            )
        if time.monotonic() > deadline:
            raise PeerFailed(
                f"{server.name} did not listen on {server.port} within {START_SECONDS:g} s:\n"
                f"{server.output()}"
            )
        time.sleep(0.02)


def listening(port: int) -> bool:
    """Whether somebody listens on the TCP port of this machine.

    The kernel's table is read where there is one: a connect would be an association attempt that a
    single-process storescp has to serve and would log as an error.
    """
    tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
    if not tables[0].exists():
        with socket.socket() as probe:
            probe.settimeout(1.0)
            return probe.connect_ex((LOOPBACK, port)) == 0
    wanted = f":{port:04X}"
    for table in tables:
        if not table.exists():
            continue
        for line in table.read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(wanted) and fields[3] == "0A":
                return True
    return False


# DCMTK


@contextlib.contextmanager
def storescp(
    folder: Path | None = None,
    *,
    aet: str = "STORESCP",
    nodelay: bool = False,
    fork: bool = False,
    pdu: int = PDU_LENGTH_MAX,
    env: Mapping[str, str] | None = None,
    extra: Sequence[str] = (),
) -> Iterator[Server]:
    """DCMTK's storescp: files as received into `folder`, or `--ignore` without one."""
    port = free_port()
    argv = [require("storescp"), "-aet", aet, "-pdu", str(pdu), "-pm", "+xa"]
    argv += ["--fork"] if fork else []
    argv += ["--ignore"] if folder is None else ["+B", "-od", str(folder)]
    with serve(
        "storescp",
        [*argv, *extra, str(port)],
        aet=aet,
        port=port,
        nodelay=nodelay,
        env=env,
        folder=folder,
    ) as server:
        yield server


@contextlib.contextmanager
def dcmqrscp(
    folder: Path,
    *,
    aet: str = "DCMQRSCP",
    nodelay: bool = False,
    destinations: Mapping[str, int] | None = None,
    pdu: int = PDU_LENGTH_MAX,
    env: Mapping[str, str] | None = None,
    extra: Sequence[str] = (),
) -> Iterator[Server]:
    """DCMTK's archive in `folder`. destinations: AE title -> loopback port, for C-MOVE."""
    port = free_port()
    store = folder / "store"
    store.mkdir(parents=True, exist_ok=True)
    hosts = "\n".join(
        f"host{number} = ({title}, {LOOPBACK}, {target})"
        for number, (title, target) in enumerate((destinations or {}).items())
    )
    config = folder / "dcmqrscp.cfg"
    config.write_text(
        f"NetworkTCPPort = {port}\n"
        f"MaxPDUSize = {pdu}\n"
        "MaxAssociations = 64\n"
        f"HostTable BEGIN\n{hosts}\nHostTable END\n"
        "VendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\n{aet} {store} RW (10000, 64gb) ANY\nAETable END\n"
    )
    argv = [require("dcmqrscp"), "-c", str(config), "+B", *extra, str(port)]
    with serve(
        "dcmqrscp", argv, aet=aet, port=port, nodelay=nodelay, env=env, folder=store
    ) as server:
        yield server


@contextlib.contextmanager
def wlmscpfs(folder: Path, *, aet: str = "RIS", extra: Sequence[str] = ()) -> Iterator[Server]:
    """DCMTK's worklist server: the items of a called title are the `*.wl` in its folder in `folder`."""
    port = free_port()
    (folder / aet).mkdir(parents=True, exist_ok=True)
    (folder / aet / "lockfile").touch()
    argv = [require("wlmscpfs"), "-v", "-dfp", str(folder), *extra, str(port)]
    with serve("wlmscpfs", argv, aet=aet, port=port, folder=folder / aet) as server:
        yield server


# Orthanc

ORTHANC_WORKLISTS = Path("/usr/share/orthanc/plugins/libModalityWorklists.so")


@contextlib.contextmanager
def orthanc_worklists(folder: Path, database: Path, *, aet: str = "RIS") -> Iterator[Server]:
    """Orthanc with its worklist plugin: the items are the `*.wl` in `database`, whoever is called."""
    require("Orthanc")
    if not ORTHANC_WORKLISTS.exists():
        require(str(ORTHANC_WORKLISTS))
    options = {
        "Plugins": [str(ORTHANC_WORKLISTS)],
        "Worklists": {"Enable": True, "Database": str(database)},
        "DicomAlwaysAllowFindWorklist": True,
    }
    with orthanc(folder, aet=aet, options=options) as server:
        yield server


@contextlib.contextmanager
def orthanc(
    folder: Path,
    *,
    aet: str = "ORTHANC",
    destinations: Mapping[str, int] | None = None,
    options: Mapping[str, object] | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Orthanc with its files and index in `folder`, no plugins; REST on `http_port`."""
    port, http_port = free_port(), free_port()
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, object] = {
        "Name": "dcmhaul interop",
        "StorageDirectory": str(folder / "store"),
        "IndexDirectory": str(folder / "store"),
        "Plugins": [],
        "HttpServerEnabled": True,
        "HttpPort": http_port,
        "HttpBindAddresses": [LOOPBACK],
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": True,
        "DicomAet": aet,
        "DicomPort": port,
        "DicomCheckCalledAet": False,
        "DicomAlwaysAllowEcho": True,
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True,
        "UnknownSopClassAccepted": True,
        "MaximumPduLength": PDU_LENGTH_MAX,
        "StableAge": 1,
        "DicomModalities": {
            title.lower(): [title, LOOPBACK, target]
            for title, target in (destinations or {}).items()
        },
    }
    settings.update(options or {})
    config = folder / "orthanc.json"
    config.write_text(json.dumps(settings, indent=1))
    with serve(
        "Orthanc",
        [require("Orthanc"), str(config)],
        aet=aet,
        port=port,
        env=env,
        folder=folder,
        http_port=http_port,
    ) as server:
        yield server


def rest(
    server: Server,
    path: str,
    body: object = None,
    *,
    method: str | None = None,
    raw: bool = False,
) -> Any:
    """Asks Orthanc: a GET, or a POST where there is a body: bytes as they are, other things as JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://{server.host}:{server.http_port}{path}", data=data, method=method
    )
    with urllib.request.urlopen(request, timeout=TOOL_SECONDS) as answer:
        content = answer.read()
    return content if raw else json.loads(content)


# pynetdicom


@contextlib.contextmanager
def pynetdicom_scp(
    folder: Path | None = None,
    *,
    aet: str = "PYNETDICOM",
    pdu: int = PDU_LENGTH_MAX,
    env: Mapping[str, str] | None = None,
    destinations: Mapping[str, int] | None = None,
    extra: Sequence[str] = (),
) -> Iterator[Server]:
    """A pynetdicom SCP in a process of its own: verification, storage, C-FIND, C-GET and C-MOVE.

    Files go to `folder` as `<SOP Instance UID>.dcm`, and queries are answered from there. Without a
    folder datasets are dropped. extra: `--tls KEY CERT CA`.
    """
    port = free_port()
    argv = [require("pynetdicom"), "-m", "tests.interop.pynetdicom_peer", "scp"]
    argv += ["--port", str(port), "--aet", aet, "--pdu", str(pdu)]
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        argv += ["--folder", str(folder)]
    for title, target in (destinations or {}).items():
        argv += ["--destination", f"{title}:{target}"]
    argv += extra
    with serve("pynetdicom", argv, aet=aet, port=port, env=env, folder=folder, cwd=ROOT) as server:
        yield server


@contextlib.contextmanager
def pynetdicom_serving(
    ae: Any, *handlers: tuple[Any, Callable[..., Any]], port: int = 0
) -> Iterator[str]:
    """Serves a pynetdicom application entity in threads of this process; its address, by its title."""
    server = ae.start_server((LOOPBACK, port), block=False, evt_handlers=list(handlers))
    try:
        yield f"{ae.ae_title}@{LOOPBACK}:{server.socket.getsockname()[1]}"
    finally:
        server.shutdown()


def pynetdicom_send(
    address: Server | tuple[str, int],
    *paths: Path,
    aet: str = "PYNETDICOM",
    called: str = "ANY-SCP",
    pdu: int = PDU_LENGTH_MAX,
    env: Mapping[str, str] | None = None,
    timeout: float = TOOL_SECONDS,
    extra: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """C-STOREs files and folders with pynetdicom in a process of its own; extra: as its SCP's."""
    if isinstance(address, Server):
        called, host, port = address.aet, address.host, address.port
    else:
        host, port = address
    argv = [require("pynetdicom"), "-m", "tests.interop.pynetdicom_peer", "send"]
    argv += [host, str(port), "--aet", aet, "--called", called, "--pdu", str(pdu)]
    return subprocess.run(
        [*argv, *(str(path) for path in paths), *extra],
        cwd=ROOT,
        env=environment(extra=env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
        check=False,
        text=True,
        errors="replace",
    )
