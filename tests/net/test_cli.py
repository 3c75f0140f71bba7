"""The verbs against servers of our own: processes for the servers, this process for the clients."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom
import pydicom.data
import pytest

from dcmhaul.cli import main
from dcmhaul.objects.synth import write_studies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FILES = Path(pydicom.data.__file__).parent / "test_files"
CT = FILES / "CT_small.dcm"

# pydicom gives struct both str and bytes layouts, which -bb complains of when their hashes meet.
pytestmark = pytest.mark.filterwarnings("ignore::BytesWarning")
# What no transfer needs and takes long to import.
HEAVY = {"pydicom", "numpy", "sqlalchemy", "pydantic", "plotly", "rich"}


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DCMHAUL_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("DCMHAUL_LEDGER", f"sqlite:///{tmp_path / 'ledger.db'}")
    monkeypatch.chdir(tmp_path)


class Process:
    """A server of ours; `said` gathers its stderr until it ends."""

    def __init__(self, *arguments: str | Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-X", "importtime", "-m", "dcmhaul", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        self.port = 0
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip())
            if found := re.match(r"listening on 127\.0\.0\.1:(\d+) as (\S+)$", line):
                self.port, self.title = int(found[1]), found[2]
                break
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.said += [line.rstrip() for line in self.process.stderr]

    @property
    def address(self) -> str:
        return f"{self.title}@127.0.0.1:{self.port}"

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """The exit code and stdout."""
        assert self.process.stdout is not None
        self.process.send_signal(number)
        # Not communicate(), which would take lines of stderr away from the reader.
        out = self.process.stdout.read()
        code = self.process.wait(timeout=30)
        self.close()
        return code, out

    def close(self) -> None:
        """Ends it, whatever it does; what it said is then all there."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(timeout=30)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()

    def modules(self) -> set[str]:
        """What it imported, by the last part of the line that -X importtime prints."""
        return {line.rpartition("|")[2].strip() for line in self.said if line.startswith("import ")}


@contextlib.contextmanager
def process(*arguments: str | Path) -> Iterator[Process]:
    running = Process(*arguments)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Process]:
    with process("receive", "0", "--bind", "127.0.0.1", "-od", tmp_path / "in") as running:
        yield running


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """An archive with two synthetic studies and one real instance; the tests only read."""
    folder = tmp_path_factory.mktemp("archive")
    write_studies(folder / "filling", 2, 2, 3, "mix", rows=8, columns=8)
    arguments = ("--dir", folder / "store", "--port", "0", "--aet", "ARCH")
    with process("archive", *arguments, "--bind", "127.0.0.1", "--durable", "none") as running:
        with contextlib.redirect_stdout(io.StringIO()):
            assert main(["send", running.address, str(folder / "filling"), str(CT)]) == 0
        yield running


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_echo_and_send_and_receive(
    receiver: Process, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "echo", receiver.address, "--repeat", "2")
    assert (code, out.count("0x0000 Success")) == (0, 2)
    where = ("-aec", "WHATEVER", "127.0.0.1", str(receiver.port))
    code, out, err = run(capsys, "send", *where, CT, FILES / "README.txt", "--json")
    assert code == 0
    skipped, summary = records(out)
    assert (skipped["type"], skipped["path"]) == ("skipped", str(FILES / "README.txt"))
    assert "skipped: " in err
    assert (summary["instances"], summary["failed"], summary["skipped"]) == (1, 0, 1)
    sent = pydicom.dcmread(CT)
    [stored] = (tmp_path / "in").iterdir()
    assert stored.name == f"{sent.SOPInstanceUID}.dcm"
    assert pydicom.dcmread(stored) == sent
    # The dataset travels as it is: the same bytes behind both headers.
    assert stored.read_bytes().endswith(CT.read_bytes()[-summary["bytes"] :])
    code, out = receiver.stop(signal.SIGINT)
    assert code == 0
    assert out.startswith("1 instance received, ")


def test_a_server_sums_up_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("receive", "0", "--bind", "127.0.0.1", "--discard", "--json")
    with process(*arguments) as receiver:
        assert run(capsys, "send", receiver.address, CT)[0] == 0
        code, out = receiver.stop()
    assert code == 0
    [summary] = records(out)
    assert (summary["type"], summary["verb"]) == ("summary", "receive")
    assert (summary["instances"], summary["exit_code"]) == (1, 0)
    assert list(tmp_path.iterdir()) == []


def test_light_verbs_stay_light(tmp_path: Path) -> None:
    with process("receive", "0", "--bind", "127.0.0.1", "--discard") as receiver:
        for arguments in (["echo", receiver.address], ["send", receiver.address, str(CT)]):
            done = subprocess.run(
                [sys.executable, "-X", "importtime", "-m", "dcmhaul", *arguments],
                capture_output=True,
                text=True,
                timeout=60,
                check=True,
            )
            modules = set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE))
            assert "dcmhaul.net" in modules
            assert not modules & HEAVY, arguments
        receiver.stop()
        assert "dcmhaul.services.storage" in receiver.modules()
        assert not receiver.modules() & HEAVY


def test_what_fails_does_not_stop_the_rest(
    receiver: Process, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    write_studies(folder, 1, 1, 3, rows=8, columns=8)
    (folder / "bad.dcm").write_bytes(CT.read_bytes()[:2000])
    code, out, err = run(
        capsys, "send", receiver.address, folder, "--associations", "2", "--window", "4", "--json"
    )
    assert code == 6
    failed, summary = records(out)
    assert (failed["type"], failed["path"]) == ("failed", str(folder / "bad.dcm"))
    assert (summary["instances"], summary["failed"], summary["exit_code"]) == (3, 1, 6)
    assert err.count("\n") == 1
    assert len(list((tmp_path / "in").iterdir())) == 3


def test_a_syntax_that_is_refused_is_re_encoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line a pair of syntaxes; what is compressed fails unless it is to be decompressed."""
    rle = FILES / "MR_small_RLE.dcm"
    arguments = ("receive", "0", "--bind", "127.0.0.1", "-od", tmp_path, "+xi")
    with process(*arguments) as receiver:
        code, out, err = run(capsys, "send", receiver.address, CT, CT, rle, "--json")
        assert code == 6
        said, failed = err.splitlines()
        assert "re-encoding from Explicit VR Little Endian to Implicit VR Little Endian: " in said
        assert "accepted no context for MR Image Storage in RLE Lossless; --transcode" in failed
        assert records(out)[-1]["instances"] == 2
        code, out, err = run(capsys, "send", receiver.address, rle)
        assert code == 3
        assert "accepted no context for " in err
        code, out, err = run(capsys, "send", receiver.address, "--transcode", rle, "-v")
        assert code == 0
        assert re.search(r"context 3: MR Image Storage, Implicit VR Little Endian \(of .*\)", err)
        assert "context 1: MR Image Storage, RLE Lossless: transfer syntaxes not supported" in err
        assert "MR_small_RLE.dcm: re-encoded from RLE Lossless to Implicit VR Little Endian" in err
        jpeg = FILES / "JPEG2000.dcm"
        code, out, err = run(capsys, "send", receiver.address, "--transcode", jpeg)
        assert (code, err.count("\n")) == (6, 1)
        assert "pydicom has no decoder for JPEG 2000 Image Compression" in err
    found = [pydicom.dcmread(path) for path in tmp_path.glob("*.dcm")]
    assert {one.file_meta.TransferSyntaxUID for one in found} == {
        pydicom.uid.ImplicitVRLittleEndian
    }
    plain = {pydicom.dcmread(path).PixelData for path in (CT, FILES / "MR_small.dcm")}
    assert {one.PixelData for one in found} == plain


def test_folders_under_the_name_storescu(
    receiver: Process, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.dcm").write_bytes(CT.read_bytes())
    (folder / "sub" / "b.dcm").write_bytes((FILES / "MR_small.dcm").read_bytes())
    where = ("-aec", "X", "127.0.0.1", str(receiver.port))
    assert run(capsys, "storescu", *where, folder)[0] == 2
    assert "1 instance sent" in run(capsys, "storescu", "+sd", *where, folder)[1]
    assert "2 instances sent" in run(capsys, "storescu", *where, folder, "+sd", "+r")[1]
    assert "2 instances sent" in run(capsys, "send", *where, folder)[1]


def test_send_repeats(receiver: Process, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "send", receiver.address, CT, "--repeat", "5", "--window", "2")
    assert (code, out.split(" ")[0]) == (0, "5")


def test_files_without_meta(
    receiver: Process, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = FILES / "ExplVR_LitEndNoMeta.dcm"
    code, out, _ = run(capsys, "send", receiver.address, bare, "+fo", "--json")
    assert code == 4
    assert records(out)[0]["type"] == "skipped"
    assert run(capsys, "send", receiver.address, bare)[0] == 0


def test_nothing_to_send(
    receiver: Process, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    code, out, err = run(capsys, "send", receiver.address, tmp_path / "empty", "--json")
    assert (code, records(out)[-1]["exit_code"]) == (4, 4)
    assert err == "dcmhaul send: no DICOM file to send\n"


def test_a_peer_that_goes_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    write_studies(folder, 1, 1, 2, rows=8, columns=8)
    code, out, err = run(capsys, "send", "A@127.0.0.1:1", folder, "--json")
    assert code == 3
    summary = records(out)[-1]
    assert (summary["instances"], summary["failed"], summary["exit_code"]) == (0, 2, 3)
    assert err.splitlines()[-1] == "2 instances were not sent"


def test_a_port_that_speaks_something_else(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        code, out, err = run(capsys, "echo", f"A@127.0.0.1:{port}")
        thread.join(timeout=10)
    assert (code, out) == (3, "")
    assert err.count("\n") == 1
    assert "does not speak DICOM" in err


def test_who_may_call(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("receive", "0", "--bind", "127.0.0.1", "--discard", "--allow", "GOOD@localhost")
    with process(*arguments) as receiver:
        code, _, err = run(capsys, "echo", receiver.address)
        assert code == 3
        assert "calling AE title not recognized" in err
        assert run(capsys, "echo", receiver.address, "-aet", "GOOD")[0] == 0


def test_the_archive_answers_its_own_title_alone(
    archive: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "echo", f"OTHER@127.0.0.1:{archive.port}")
    assert code == 3
    assert "called AE title not recognized" in err
    assert run(capsys, "echo", archive.address)[0] == 0


def test_the_archive_answers_its_aliases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the same contents; what it answers is from its own title."""
    options = ("--dir", tmp_path / "a", "--port", "0", "--bind", "127.0.0.1", "--aet", "NEW")
    with process("archive", *options, "--alias", "OLD", "--alias", "OLDER") as archive:
        assert run(capsys, "send", f"OLD@127.0.0.1:{archive.port}", CT)[0] == 0
        for title in ("NEW", "OLDER"):
            peer = f"{title}@127.0.0.1:{archive.port}"
            found = run(capsys, "find", peer, "-S", "-k", "PatientName", "-k", "RetrieveAETitle")
            assert (found[0], "NEW" in found[1]) == (0, True)
        assert run(capsys, "echo", f"OTHER@127.0.0.1:{archive.port}")[0] == 3
    code, _, err = run(capsys, "archive", *options, "--alias", "no\\title")
    assert (code, len(err.splitlines())) == (2, 1)


def test_lengths_and_deadlines_are_those_typed(
    archive: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("-v", "-pdu", "16384", "--max-send-pdu", "8192", "-to", "5", "-ta", "5", "-td", "5")
    code, _, err = run(capsys, "send", archive.address, CT, *options)
    assert code == 0
    assert "PDU to send 8192" in err


def test_metrics_of_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("receive", "0", "--bind", "127.0.0.1", "--discard", "--metrics", "127.0.0.1:0")
    with process(*arguments) as receiver:
        assert run(capsys, "send", receiver.address, CT)[0] == 0
        [url] = [word for line in receiver.said for word in line.split() if "/metrics" in word]
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
    assert re.search(
        r'^dcmhaul_instances_total\{direction="in".*"success"\} 1\.0$', text, re.MULTILINE
    )


def test_other_bytes_under_a_known_uid_are_told_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    data = bytearray(Path(CT).read_bytes())
    data[-1] ^= 0xFF
    other.write_bytes(data)
    arguments = ("archive", "--dir", tmp_path / "store", "--port", "0", "--bind", "127.0.0.1")
    with process(*map(str, arguments), "--metrics", "127.0.0.1:0") as archive:
        assert run(capsys, "send", archive.address, CT)[0] == 0
        assert run(capsys, "send", archive.address, str(other))[0] == 6
        [url] = [word for line in archive.said for word in line.split() if "/metrics" in word]
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        archive.stop()
    told = re.findall(
        r'^dcmhaul_archive_objects_total\{outcome="(\w+)"\} (\S+)$', text, re.MULTILINE
    )
    assert dict(told) | {"stored": "1.0", "conflicts": "1.0"} == dict(told)
    [line] = [line for line in archive.said if "other bytes" in line]
    assert "kept aside as" in line
    assert str(tmp_path / "store") in line


def test_an_archive_indexes_files_where_they_lie(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tmp_path / "files"
    write_studies(files, 2, 1, 2, "CT", rows=8, columns=8)
    (files / "notes.txt").write_text("nothing to see")
    whole = next(files.rglob("*.dcm")).read_bytes()
    (files / "cut.dcm").write_bytes(whole[:-1])
    before = {path: path.read_bytes() for path in files.rglob("*.*")}
    arguments = ("archive", "--dir", "store", "--port", "0", "--import", "files")
    for line in (
        "import files: 4 indexed, 0 there already, 0 conflicts, 1 skipped, 1 failed",
        "import files: 0 indexed, 4 there already, 0 conflicts, 1 skipped, 1 failed",
    ):
        with process(*arguments, "--bind", "127.0.0.1") as archive:
            assert line in archive.said
            assert any(said.startswith(f"failed: {files / 'cut.dcm'}: ") for said in archive.said)
            found = ("find", archive.address, "-S", "-k", "StudyInstanceUID")
            assert run(capsys, *found)[1].count("\n") == 3
            assert archive.stop()[0] == 0
        assert "served 1 associations: C-FIND 1" in archive.said
    assert before == {path: path.read_bytes() for path in files.rglob("*.*")}
    assert not [path for path in Path("store/objects").rglob("*.dcm") if not path.is_symlink()]
    code, _, err = run(capsys, *arguments[:-1], "nowhere")
    assert code == 2
    assert "nowhere is no folder" in err


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        (("receive", "0", "-od", "in"), "batch"),
        (("receive", "0", "-od", "in", "--durable", "each"), "each"),
        (("receive", "0", "--discard"), "none"),
        (("archive", "--dir", "store", "--port", "0"), "batch"),
        (("archive", "--dir", "store", "--port", "0", "--durable", "none"), "none"),
    ],
)
def test_the_durability_in_force_is_told(options: tuple[str, ...], mode: str) -> None:
    bound = ("--bind", "127.0.0.1", "--metrics", "127.0.0.1:0", "-v")
    with process(*options, *bound) as server:
        [url] = [word for line in server.said for word in line.split() if "/metrics" in word]
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        server.stop()
    told = re.findall(r'^dcmhaul_durability_mode\{mode="(\w+)"\} (\S+)$', text, re.MULTILINE)
    assert dict(told) == {"each": "0.0", "batch": "0.0", "none": "0.0", mode: "1.0"}
    assert any(line.startswith(f"durability {mode}: ") for line in server.said)


@pytest.mark.parametrize(
    ("options", "syncs"), [((), 25), (("--durable", "each"), 25), (("--durable", "none"), 0)]
)
def test_get_syncs_what_it_files(
    archive: Process,
    tmp_path: Path,
    options: tuple[str, ...],
    syncs: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One of the folder's own name; then, one instance after the other, of its data and the folder."""
    calls: list[int] = []

    def noting(real: Callable[[int], None], fd: int) -> None:
        calls.append(fd)
        real(fd)

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, partial(noting, getattr(os, name)))
    arguments = ("-S", "-k", "PatientID=SYNTH*", "-od", str(tmp_path / "got"), *options)
    assert run(capsys, "get", archive.address, *arguments)[0] == 0
    assert len(calls) == syncs


def test_get_with_a_window(
    archive: Process, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ("-S", "-k", "PatientID=SYNTH*", "-od", tmp_path, "-v")
    code, _, err = run(capsys, "get", archive.address, *keys, "--window", "8")
    assert code == 0
    assert "window 8" in err
    assert len(list(tmp_path.glob("*.dcm"))) == 12


def test_nothing_kept_cannot_be_durable(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (("get", "X@127.0.0.1:1", "-S", "-k", "PatientID=1"), ("receive", "0")):
        code, _, err = run(capsys, *verb, "--discard", "--durable", "each")
        assert code == 2
        assert "has no meaning" in err


def test_find_prints_lines(archive: Process, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(
        capsys, "find", archive.address, "-S", "-k", "PatientID", "-k", "0008,0020=20040119"
    )
    assert (code, out, err) == (0, "PatientID\tStudyDate\n1CT1\t20040119\n", "")


def test_find_prints_dicom_json(archive: Process, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("find", archive.address, "-S", "-k", "PatientName=Comp*", "--json")
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    match, summary = records(out)
    assert match["00100010"]["Value"] == [{"Alphabetic": "CompressedSamples^CT1"}]
    assert "type" not in match
    assert (summary["type"], summary["matches"]) == ("summary", 1)


def test_find_without_a_match(archive: Process, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "find", archive.address, "-S", "-k", "PatientName=NOBODY")
    assert (code, out) == (4, "PatientName\n")


def test_find_in_the_default_model(archive: Process, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "find", archive.address, "-k", "PatientName")
    assert (code, out) == (4, "PatientName\n")
    assert err == "worklist model (default); use -S for studies\n"


def test_find_proposes_what_is_beyond_the_baseline(
    archive: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(*arguments: str) -> list[str]:
        code, out, err = run(capsys, "find", archive.address, "-S", *arguments)
        assert (code, err) == (0 if out.count("\n") > 1 else 4, "")
        return out.splitlines()[1:]

    name = ("-k", "PatientName=comprezed^ct1", "-k", "StudyDate")
    assert found(*name) == []
    assert found("--fuzzy", *name) == ["CompressedSamples^CT1\t20040119"]
    below = ("-k", "InstanceNumber=1", "-k", "PatientID=1CT1")
    assert len(found("--relational", *below)) == 1
    when = ("-k", "StudyDate=20040118-20040119", "-k", "StudyTime=2300-0800")
    assert found(*when) == []
    assert found("--date-time", *when) == ["20040119\t072730"]
    zone = ("-k", "TimezoneOffsetFromUTC=+0000")
    assert found(*zone) == []
    assert len(found("--timezone", *zone)) == 3


def test_find_says_what_the_peer_did_not_agree_to(
    archive: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(
        capsys, "find", archive.address, "-W", "--fuzzy", "--relational", "-k", "0010,0010"
    )
    assert code == 4
    assert err.startswith("warning: 127.0.0.1:")
    assert "did not agree to relational queries, fuzzy matching of person names" in err


def test_find_takes_a_level_of_its_own(
    archive: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = ("-k", "SeriesInstanceUID", "-k", "Modality")
    code, out, err = run(capsys, "find", archive.address, "-S", *keys, "-k", "0008,0052=SERIES")
    assert code == 0
    assert out.count("\n") == 6
    assert "warning: a query at SERIES level" in err


def test_find_cancels(archive: Process, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        capsys, "find", archive.address, "-S", "-k", "PatientID", "--cancel", "1", "--json"
    )
    assert code == 0
    assert records(out)[-1]["matches"] >= 1


def test_find_writes_its_matches(
    archive: Process, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "matches"
    arguments = ("find", archive.address, "-S", "-k", "PatientID", "-X", "-od", folder)
    assert run(capsys, *arguments)[0] == 0
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["rsp0001.dcm", "rsp0002.dcm", "rsp0003.dcm"]
    assert pydicom.dcmread(folder / "rsp0001.dcm").QueryRetrieveLevel.strip() == "STUDY"


def test_find_asks_every_query_file(
    archive: Process, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, patient in (("a.dcm", "1CT1"), ("b.dcm", "SYNTH-000001")):
        query = pydicom.Dataset()
        query.QueryRetrieveLevel = "STUDY"
        query.PatientID = patient
        query.file_meta = pydicom.dataset.FileMetaDataset()
        query.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        query.save_as(tmp_path / name, enforce_file_format=False)
    files = (tmp_path / "a.dcm", tmp_path / "b.dcm")
    code, out, _ = run(capsys, "find", archive.address, *files, "-S", "-k", "Modality")
    assert code == 0
    assert out == "PatientID\tModality\n1CT1\t\nSYNTH-000001\t\n"


def test_get_by_a_patients_name(
    archive: Process, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The seed's form: no model, no level, nothing but a name."""
    folder = tmp_path / "got"
    keys = ("-k", "0x0010,0x0010=CompressedSamples^CT1")
    where = ("-aet", "DebugTest", "-aec", "ARCH", "-pdu", "32768")
    code, out, err = run(
        capsys, "getscu", *where, *keys, "127.0.0.1", str(archive.port), "-od", folder
    )
    assert code == 0
    assert "asked by C-FIND first: 1 matches at PATIENT level" in err
    assert out.startswith("1 instance retrieved")
    [file] = folder.iterdir()
    assert pydicom.dcmread(file) == pydicom.dcmread(CT)


def test_get_by_a_dump_and_a_key_in_an_item(
    archive: Process, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys.dump").write_text(
        "(0008,0052) CS [STUDY]   # as dcmdump prints it\n(0010,0010) PN [CompressedSamples^CT1]\n"
    )
    options = ("-S", "-k", "RequestAttributesSequence[0].0040,1001", "-od", tmp_path / "got", "-d")
    code, out, err = run(capsys, "get", archive.address, tmp_path / "keys.dump", *options)
    assert (code, out.split(",")[0]) == (0, "1 instance retrieved")
    assert "  (fffe,e000) na (Item #=1)\n    (0040,1001) SH (no value available)" in err


@pytest.mark.parametrize("associations", ["1", "3", "20"])
def test_get_over_associations(
    archive: Process, tmp_path: Path, associations: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "got"
    options = ("-od", folder, "--associations", associations, "--json")
    code, out, _ = run(capsys, "get", archive.address, "-S", "-k", "PatientID=SYNTH*", *options)
    assert code == 0
    assert records(out)[-1]["instances"] == 12
    assert len(list(folder.iterdir())) == 12


def test_get_of_nothing(
    archive: Process, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for keys in (["PatientName=NOBODY"], ["StudyInstanceUID=1.2.3"]):
        code, out, err = run(capsys, "get", archive.address, "-S", "-k", *keys, "--json")
        assert (code, records(out)[-1]["exit_code"]) == (4, 4)
        assert "nothing matched" in err


def test_get_as_typed(archive: Process, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "got"
    options = ("--as-typed", "-od", folder)
    code, out, err = run(capsys, "get", archive.address, "-S", "-k", "PatientID=1CT1", *options)
    assert code == 0
    assert "asked by C-FIND" not in err
    assert out.startswith("1 instance retrieved")


def test_get_that_keeps_nothing(
    archive: Process, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(tmp_path.iterdir())
    options = ("--ignore", "--repeat", "2", "--json")
    code, out, _ = run(capsys, "get", archive.address, "-S", "-k", "PatientID=1CT1", *options)
    assert (code, records(out)[-1]["instances"]) == (0, 2)
    assert set(tmp_path.iterdir()) == before


def test_migrate_into_a_folder_twice(
    archive: Process, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    options = ("-k", "PatientID=SYNTH*", "--job", "one", "--json")
    code, out, _ = run(capsys, "migrate", archive.address, f"{target}/", *options)
    assert code == 0
    summary = records(out)[-1]
    assert (summary["instances"], summary["already"], summary["studies_done"]) == (12, 0, 2)
    assert len(list(target.rglob("*.dcm"))) == 12
    code, out, _ = run(capsys, "migrate", archive.address, f"{target}/", *options)
    assert (code, records(out)[-1]["instances"], records(out)[-1]["already"]) == (0, 0, 12)


def test_migrate_refuses_what_it_cannot_read(
    archive: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "migrate", archive.address, "nowhere")[0] == 2
    assert run(capsys, "migrate", archive.address, "./x", "-k", "NoSuchKeyword")[0] == 2
    code, out, _ = run(capsys, "migrate", "A@127.0.0.1:1", archive.address, "--json")
    assert (code, records(out)[-1]["exit_code"]) == (3, 3)


def test_a_reader_that_goes_away(archive: Process) -> None:
    arguments = ["find", archive.address, "-S", "-k", "PatientID"]
    done = subprocess.run(
        f"{sys.executable} -m dcmhaul {' '.join(arguments)} | true",
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
