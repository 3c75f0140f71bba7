"""A session that users know by heart, typed at every archive: echo, queries, a get, a store, moves.

The command lines are those of a page about testing a Conquest server with DCMTK, letter by letter but for
`dcmhaul` before them, no `.exe` behind the tool, and hosts, ports and titles. By hand:

    python -m tests.interop.seed_session [SERVER...]

It starts each server, types each line in a folder of its own, and prints what was expected and what came.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pydicom

from dcmhaul.cli import main
from dcmhaul.objects.synth import write_studies
from tests.interop import peers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

__all__ = ["EXPECTED", "LINES", "SERVERS", "Outcome", "Session", "open_session"]

LINES = {
    "echo": "echoscu.exe -v -aet DebugTest -aec MGIUSDICOM 192.168.28.128 5678",
    "worklist": 'findscu.exe -v -aet DebugTest -aec MGIUSDICOM -k 0x0010,0x0010="HEAD EXP2" '
    "192.168.28.128 5678",
    "find, 0x tags": "findscu.exe -v -S -aet DebugTest -aec MGIUSDICOM localhost 5678 "
    '-k 0x0010,0x0010="HEAD EXP2" -k 0x0008,0x0052="STUDY"',
    "find, attributes": "findscu.exe -d -S -aet DebugTest -aec MGIUSDICOM localhost 5678 "
    '-k 0010,0010="HEAD EXP2" -k 0008,0052="STUDY" -k 0008,0020="" -k 0020,000d="" '
    '-k 0020,0010="" -k 0020,000e=""',
    "find, keywords": "findscu.exe -d -S -aet DebugTest -aec MGIUSDICOM localhost 5678 "
    '-k PatientName -k 0008,0052="STUDY" -k PatientID -k StudyInstanceUID -k SeriesInstanceUID '
    "-k SeriesNumber -k NumberOfStudyRelatedInstances",
    "find, quotes": "findscu.exe -d -S -aet DebugTest -aec MGIUSDICOM localhost 5678 "
    '-k PatientName="HEAD EXP2" -k "QueryRetrieveLevel=STUDY" -k PatientID -k StudyInstanceUID '
    "-k NumberOfStudyRelatedInstances",
    "get": "getscu.exe -v -aet DebugTest -aec MGIUSDICOM -pdu 32768 "
    '-k 0x0010,0x0010="HEAD EXP2" 192.168.28.128 5678',
    "store": "storescu.exe -v -aet DebugTest -aec MGIUSDICOM 192.168.28.128 5678 "
    "./dicom_package.dcm",
    "receive": "storescp.exe -v -pdu 32768 5680",
    "move": "movescu.exe -v -aet DebugTest -aec MGIUSDICOM -aem DebugTest "
    '-k 0x0010,0x0010="HEAD EXP2" 192.168.28.128 5678',
    "move here": "movescu.exe -v +P 5680 -aet DebugTest -aec MGIUSDICOM -aem DebugTest "
    '-k 0x0010,0x0010="HEAD EXP2" 192.168.28.128 5678',
}

# The instances that carry the name that is asked for, and how many studies there are with the others.
NAMED = 4
STUDIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a line ended with. files: the names of what is in its folder then."""

    code: int
    out: str
    err: str
    files: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a line should end with: stdout as a pattern, and one line of stderr.

    arrives: its folder then holds the instances of the name, and no other file.
    """

    code: int = 0
    out: str = ""
    err: str = ""
    arrives: bool = False

    def differences(self, outcome: Outcome, named: frozenset[str]) -> list[str]:
        """What is otherwise; nothing where all is well. named: the files of those instances."""
        found = []
        if outcome.code != self.code:
            found.append(f"exit code {outcome.code}, not {self.code}")
        if not re.fullmatch(self.out, outcome.out):
            found.append(f"stdout is not {self.out!r}")
        if not re.search(rf"(?m)^{self.err}$", outcome.err):
            found.append(f"no line of stderr is {self.err!r}")
        errors = [line for line in outcome.err.splitlines() if line.startswith("dcmhaul ")]
        if len(errors) != (outcome.code not in (0, 4)):
            found.append(f"{len(errors)} lines of errors")
        if outcome.files != (named if self.arrives else frozenset()):
            found.append(f"other files arrived: {sorted(outcome.files)}")
        return found


_FOUND = Expected(
    out=r"PatientName[^\n]*\nHEAD EXP2(\t[^\n]*)?\n", err="final response: 0x0000 Success"
)
_EVERYWHERE = {
    "echo": Expected(
        out=r".*: 0x0000 Success, [0-9.]+ ms\n", err="association accepted: 1 context.*"
    ),
    "worklist": Expected(code=3, err="dcmhaul findscu: .*: abstract syntax not supported"),
    "find, 0x tags": _FOUND,
    "find, attributes": replace(
        _FOUND,
        out=r"PatientName\tStudyDate\tStudyInstanceUID\tStudyID\tSeriesInstanceUID\n"
        r"HEAD EXP2\t20240102\t2\.25\.[0-9]+\t1\t[0-9.]*\n",
    ),
    "find, keywords": Expected(
        out=r"PatientName\tPatientID\tStudyInstanceUID\tSeriesInstanceUID\tSeriesNumber\t"
        rf"NumberOfStudyRelatedInstances\n(?:[^\n]+\n){{{STUDIES}}}",
        err=r"\(0010,0020\) LO \[EXP2\] +# PatientID",
    ),
    "find, quotes": _FOUND,
    "get": Expected(
        out=f"{NAMED} instances retrieved, .*\n",
        err="final C-GET-RSP: 0x0000 Success: 4 done.*",
        arrives=True,
    ),
    "store": Expected(out=r"1 instance sent, .*\n", err=r"\./dicom_package\.dcm: 0x0000 Success"),
    "receive": Expected(
        out=f"{NAMED} instances received, .*\n", err=r"listening on .*", arrives=True
    ),
    "move": Expected(
        out=f"{NAMED} instances moved in .*\n", err="final C-MOVE-RSP: 0x0000 Success: 4 done.*"
    ),
    "move here": Expected(
        out=f"{NAMED} instances received, .*\n",
        err="final C-MOVE-RSP: 0x0000 Success: 4 done.*",
        arrives=True,
    ),
}
# dcmqrscp and pynetdicom's application count no instances of a study.
_COUNTED = replace(_FOUND, out=rf"PatientName[^\n]*\nHEAD EXP2\tEXP2\t2\.25\.[0-9]+\t{NAMED}\n")

# Server -> line -> outcome. What a server does not have is one line and exit code 3.
EXPECTED: dict[str, dict[str, Expected]] = {
    "dcmqrscp": _EVERYWHERE,
    "orthanc": {**_EVERYWHERE, "find, quotes": _COUNTED},
    "pynetdicom": _EVERYWHERE,
    "archive": {
        **_EVERYWHERE,
        "find, quotes": _COUNTED,
        # It takes the context, and has no entries.
        "worklist": Expected(code=4, out="PatientName\n", err="final response: 0x0000 Success"),
    },
}


def make_data(folder: Path) -> None:
    """Three studies, one of them of the patient whom the lines name; and the package apart."""
    write_studies(folder / "others", 2, 1, 2, "CT", "session", rows=32, columns=32)
    write_studies(folder / "named", 1, 2, NAMED // 2, "CT", "named", rows=32, columns=32)
    write_studies(folder / "package", 1, 1, 1, "MR", "package", rows=32, columns=32)
    for path in (folder / "named").rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.PatientName, dataset.PatientID = "HEAD EXP2", "EXP2"
        dataset.save_as(path)


class Session:
    """A server that holds the data, and a keyboard. Invariant: nothing listens on `port` between lines."""

    def __init__(self, server: peers.Server, folder: Path, port: int) -> None:
        self._server = server
        self._folder = folder
        self._port = port
        self.named = frozenset(
            f"{pydicom.dcmread(path).SOPInstanceUID}.dcm"
            for path in (folder / "data" / "named").rglob("*.dcm")
        )

    def words(self, name: str) -> list[str]:
        """The arguments of dcmhaul for a line."""
        line = LINES[name].replace(".exe", "").replace("MGIUSDICOM", self._server.aet)
        line = line.replace("192.168.28.128", self._server.host)
        line = line.replace("5678", str(self._server.port)).replace("5680", str(self._port))
        return shlex.split(line)

    def type(self, name: str) -> Outcome:
        """Runs a line to its end, in a folder of its own."""
        folder = self._folder / name
        folder.mkdir()
        before = set()
        if name == "store":
            [package] = (self._folder / "data" / "package").rglob("*.dcm")
            (folder / "dicom_package.dcm").write_bytes(package.read_bytes())
            before = {"dicom_package.dcm"}
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.chdir(folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = main(self.words(name))
        files = frozenset(os.listdir(folder)) - before
        return Outcome(code=code, out=out.getvalue(), err=err.getvalue(), files=files)

    def type_move(self) -> dict[str, Outcome]:
        """The line that receives, and the move to it; both end."""
        folder = self._folder / "receive"
        folder.mkdir()
        with (folder.parent / "receive.err").open("w+") as err:
            receiver = subprocess.Popen(
                [sys.executable, "-m", "dcmhaul", *self.words("receive")],
                cwd=folder,
                env=peers.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
            )
            try:
                deadline = time.monotonic() + peers.START_SECONDS
                while not peers.listening(self._port) and receiver.poll() is None:
                    assert time.monotonic() < deadline, "storescp does not listen"
                    time.sleep(0.01)
                moved = self.type("move")
            finally:
                receiver.terminate()
                out, _ = receiver.communicate(timeout=peers.STOP_SECONDS)
            err.seek(0)
            files = frozenset(os.listdir(folder))
            received = Outcome(code=receiver.returncode, out=out, err=err.read(), files=files)
        return {"receive": received, "move": moved}

    def type_all(self) -> dict[str, Outcome]:
        """Every line in the order of the page."""
        outcomes: dict[str, Outcome] = {}
        for name in LINES:
            if name == "move":
                outcomes |= self.type_move()
            elif name != "receive":
                outcomes[name] = self.type(name)
        return outcomes


@contextlib.contextmanager
def _archive(folder: Path, *, destinations: Mapping[str, int]) -> Iterator[peers.Server]:
    port = peers.free_port()
    argv = [sys.executable, "-m", "dcmhaul", "archive", "--dir", str(folder), "--port", str(port)]
    argv += ["--aet", "ARCHIVE", "--bind", peers.LOOPBACK]
    for title, target in destinations.items():
        argv += ["--peer", f"{title}@{peers.LOOPBACK}:{target}"]
    with peers.serve("archive", argv, aet="ARCHIVE", port=port, cwd=peers.ROOT) as server:
        yield server


SERVERS: dict[str, Callable[..., AbstractContextManager[peers.Server]]] = {
    "dcmqrscp": peers.dcmqrscp,
    "orthanc": peers.orthanc,
    "pynetdicom": peers.pynetdicom_scp,
    "archive": _archive,
}


@contextlib.contextmanager
def open_session(name: str, folder: Path) -> Iterator[Session]:
    """Starts the server of that name in `folder`, with the data in it."""
    port = peers.free_port()
    make_data(folder / "data")
    with SERVERS[name](folder / "server", destinations={"DebugTest": port}) as server:
        sent = main(
            ["send", "-q", "-aet", "DebugTest", server.address]
            + [str(folder / "data" / part) for part in ("others", "named")]
        )
        assert sent == 0, server.output()
        yield Session(server, folder, port)


def replay(names: list[str]) -> int:
    """Types everything at the servers of these names, prints the table; 1 where something differs."""
    wrong = 0
    for name in names:
        with tempfile.TemporaryDirectory() as folder, open_session(name, Path(folder)) as session:
            for line, outcome in session.type_all().items():
                differs = EXPECTED[name][line].differences(outcome, session.named)
                wrong += bool(differs)
                verdict = "; ".join(differs) or "as expected"
                print(f"{name:<11} {line:<17} exit {outcome.code}  {verdict}")
                if differs:
                    print(f"--- stdout\n{outcome.out}--- stderr\n{outcome.err}---")
    return min(wrong, 1)


if __name__ == "__main__":
    for variable in ("DCMHAUL_CONFIG", "DCMHAUL_LEDGER"):
        os.environ.pop(variable, None)
    sys.exit(replay(sys.argv[1:] or list(SERVERS)))
