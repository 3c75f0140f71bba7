"""pynetdicom as a process of its own: `scp` serves a folder, `send` stores files. No dcmhaul."""

from __future__ import annotations

import argparse
import signal
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import AllTransferSyntaxes
from pynetdicom import (
    AE,
    AllStoragePresentationContexts,
    QueryRetrievePresentationContexts,
    VerificationPresentationContexts,
    evt,
)
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Checkpoint(threading.Event):
    """Where an association's reactor pauses while another thread sends and waits for the answer.

    pynetdicom 3.0.4 asks whether the reactor has paused, and may be told of the pause before: under load
    the reactor then takes the answer, drops it, and the sender waits for nothing. Here `clear` returns when
    the reactor has come to rest after it; where it does not for a second, things are as they were.
    """

    def __init__(self, association: Association) -> None:
        super().__init__()
        self._association = association
        self._rests = False
        super().set()

    def set(self) -> None:
        self._rests = False
        super().set()

    def clear(self) -> None:
        super().clear()
        deadline = time.monotonic() + 1
        others = threading.current_thread() is not self._association
        while others and not self._rests and self._association.is_alive():
            if time.monotonic() > deadline:
                return
            time.sleep(0.0001)

    def wait(self, timeout: float | None = None) -> bool:
        if not self.is_set():
            self._rests = True
        return super().wait(timeout)


def mend_race() -> None:
    """Gives each association that is made from now on such a checkpoint."""
    made = Association.__init__
    if made.__name__ == "mended":
        return

    def mended(self: Association, *given: Any, **named: Any) -> None:
        made(self, *given, **named)
        self._reactor_checkpoint = _Checkpoint(self)

    Association.__init__ = mended  # type: ignore[method-assign]


# The unique key of each level, from the top: PS3.4 §C.6.1.1 and §C.6.2.1.
LEVELS = {
    "PATIENT": "PatientID",
    "STUDY": "StudyInstanceUID",
    "SERIES": "SeriesInstanceUID",
    "IMAGE": "SOPInstanceUID",
}


def matches(wanted: Dataset, held: Dataset) -> bool:
    """Single values, UID lists and trailing-star wild cards; more is not needed of a test peer."""
    for element in wanted:
        if element.keyword in ("QueryRetrieveLevel", "SpecificCharacterSet") or element.VR == "SQ":
            continue
        if element.is_empty:
            continue
        values = element.value if element.VM > 1 else [element.value]
        have = str(held.get(element.keyword, ""))
        if not any(
            have == str(v) or (str(v).endswith("*") and have.startswith(str(v)[:-1]))
            for v in values
        ):
            return False
    return True


class Folder:
    """Part-10 files in one folder, read anew for each question."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def store(self, event: Any) -> int:
        data = event.encoded_dataset()
        if self._path is not None:
            name = f"{event.request.AffectedSOPInstanceUID}.dcm"
            (self._path / name).write_bytes(data)
        return 0x0000

    def held(self, wanted: Dataset) -> Iterator[Dataset]:
        for path in sorted(self._path.glob("*.dcm")) if self._path is not None else ():
            dataset = pydicom.dcmread(path)
            if matches(wanted, dataset):
                yield dataset

    def find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        identifier = event.identifier
        level = str(identifier.get("QueryRetrieveLevel", "STUDY")).strip()
        seen: set[str] = set()
        for dataset in self.held(identifier):
            unique = str(dataset.get(LEVELS[level], ""))
            if unique in seen:
                continue
            seen.add(unique)
            answer = Dataset()
            for element in identifier:
                setattr(answer, element.keyword, dataset.get(element.keyword, None))
            answer.QueryRetrieveLevel = level
            yield 0xFF00, answer

    def get(self, event: Any) -> Iterator[Any]:
        found = list(self.held(event.identifier))
        yield len(found)
        for dataset in found:
            yield 0xFF00, dataset

    def move(self, event: Any, ports: dict[str, int]) -> Iterator[Any]:
        title = str(event.move_destination).strip()
        if title not in ports:
            yield None, None
            return
        found = list(self.held(event.identifier))
        contexts = {(d.SOPClassUID, d.file_meta.TransferSyntaxUID) for d in found}
        yield (
            "127.0.0.1",
            ports[title],
            {"contexts": [build_context(*pair) for pair in sorted(contexts)]},
        )
        yield len(found)
        for dataset in found:
            yield 0xFF00, dataset


def tls_context(protocol: int, papers: list[str] | None) -> ssl.SSLContext | None:
    """Mutual TLS of a key, a certificate and an authority; None without them."""
    if papers is None:
        return None
    key, certificate, authority = papers
    context = ssl.SSLContext(protocol)
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authority)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def serve(arguments: argparse.Namespace) -> int:
    ports = {t: int(p) for t, p in (d.split(":") for d in arguments.destination)}
    ae = AE(ae_title=arguments.aet)
    ae.maximum_pdu_size = arguments.pdu
    ae.maximum_associations = 64
    for context in AllStoragePresentationContexts:
        ae.add_supported_context(
            str(context.abstract_syntax), AllTransferSyntaxes, scu_role=True, scp_role=True
        )
    for context in VerificationPresentationContexts + QueryRetrievePresentationContexts:
        ae.add_supported_context(str(context.abstract_syntax))
    folder = Folder(arguments.folder)
    handlers: list[Any] = [
        (evt.EVT_C_ECHO, lambda _event: 0x0000, []),
        (evt.EVT_C_STORE, folder.store, []),
        (evt.EVT_C_FIND, folder.find, []),
        (evt.EVT_C_GET, folder.get, []),
        (evt.EVT_C_MOVE, folder.move, [ports]),
    ]
    ae.start_server(
        ("127.0.0.1", arguments.port),
        block=False,
        evt_handlers=handlers,
        ssl_context=tls_context(ssl.PROTOCOL_TLS_SERVER, arguments.tls),
    )
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    ae.shutdown()
    return 0


def send(arguments: argparse.Namespace) -> int:
    files = [
        found
        for path in arguments.paths
        for found in (
            sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        )
    ]
    contexts: dict[tuple[str, str], None] = {}
    for path in files:
        meta = pydicom.filereader.read_file_meta_info(path)
        contexts[meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID] = None
    ae = AE(ae_title=arguments.aet)
    ae.maximum_pdu_size = arguments.pdu
    # A disk that other tests sync may take longer than the 30 s that it waits otherwise.
    ae.dimse_timeout = 120
    ae.requested_contexts = [build_context(*pair) for pair in contexts]
    context = tls_context(ssl.PROTOCOL_TLS_CLIENT, arguments.tls)
    association = ae.associate(
        arguments.host,
        arguments.port,
        ae_title=arguments.called,
        max_pdu=arguments.pdu,
        tls_args=None if context is None else (context, arguments.host),
    )
    if not association.is_established:
        print("no association")
        return 1
    good = 0
    for path in files:
        status = association.send_c_store(path)
        good += status.get("Status") == 0x0000
    association.release()
    print(f"{good} of {len(files)} stored")
    return 0 if good == len(files) else 1


def main() -> int:
    mend_race()
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    scp = verbs.add_parser("scp")
    scp.add_argument("--port", type=int, required=True)
    scp.add_argument("--folder", type=Path)
    scp.add_argument("--destination", action="append", default=[])
    scu = verbs.add_parser("send")
    scu.add_argument("host")
    scu.add_argument("port", type=int)
    scu.add_argument("--called", default="ANY-SCP")
    for verb in (scp, scu):
        verb.add_argument("--aet", default="PYNETDICOM")
        verb.add_argument("--pdu", type=int, default=131072)
        verb.add_argument("--tls", nargs=3, metavar=("KEY", "CERT", "CA"))
    scu.add_argument("paths", nargs="+", type=Path)
    arguments = parser.parse_args()
    return serve(arguments) if arguments.verb == "scp" else send(arguments)


if __name__ == "__main__":
    sys.exit(main())
