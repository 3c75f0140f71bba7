"""pynetdicom as an SCP that answers oddly: what find, get and move say of it, and their exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom
import pydicom.data
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, build_context, evt
from pynetdicom.dimse_primitives import C_FIND, C_GET, C_MOVE
from pynetdicom.dsutils import encode

from dcmhaul.cli import main
from tests.interop import levels, peers

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = Path(pydicom.data.__file__).parent / "test_files"
PATHS = [FILES / "CT_small.dcm", FILES / "MR_small.dcm"]
WORKLIST_FIND = "1.2.840.10008.5.1.4.31"


def _pairs() -> list[tuple[str, str]]:
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in PATHS]
    return [(str(h.SOPClassUID), str(h.file_meta.TransferSyntaxUID)) for h in headers]


def match(number: int = 1) -> Dataset:
    answer = Dataset()
    answer.QueryRetrieveLevel = "STUDY"
    answer.StudyInstanceUID = f"1.2.{number}"
    return answer


def encoded(dataset: Dataset) -> bytes:
    data = encode(dataset, is_implicit_vr=True, is_little_endian=True)
    assert data is not None
    return data


def matches(_event: Any) -> Iterator[Any]:
    yield 0xFF00, match()


def both(_event: Any) -> Iterator[Any]:
    yield len(PATHS)
    for path in PATHS:
        yield 0xFF00, pydicom.dcmread(path)


@dataclass(kw_only=True)
class Odd:
    """What the SCP yields to a C-FIND, C-GET or C-MOVE, and what becomes of it on its way out.

    bend: gets the association and the message, and may change it; False: it does not leave.
    agrees: what it answers to an extended negotiation item.
    """

    find: Callable[[Any], Iterator[Any]] = matches
    retrieve: Callable[[Any], Iterator[Any]] = both
    bend: Callable[[Any, Any], bool] = lambda _association, _message: True
    agrees: Callable[[bytes], bytes] = lambda asked: asked
    destination: int = 0

    def move(self, event: Any) -> Iterator[Any]:
        contexts = [build_context(*pair) for pair in _pairs()]
        yield peers.LOOPBACK, self.destination, {"contexts": contexts}
        yield from self.retrieve(event)


@dataclass(kw_only=True)
class Served:
    """The SCP: its address, how it is odd at present, and the extended negotiation that it was asked for."""

    address: str = ""
    odd: Odd = field(default_factory=Odd)
    asked: dict[str, bytes] = field(default_factory=dict)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """One for all tests: a pynetdicom server takes half a second to end."""
    scp = Served()
    ae = AE(ae_title="ODD")
    for operation in ("FIND", "GET", "MOVE"):
        ae.add_supported_context(levels.class_uid("-S", operation))
    ae.add_supported_context(WORKLIST_FIND)
    for sop_class, syntax in _pairs():
        ae.add_supported_context(sop_class, syntax, scu_role=True, scp_role=True)

    def bend(event: Any) -> None:
        association, odd = event.assoc, scp.odd
        send = association.dimse.send_msg

        def bent(message: Any, context_id: int) -> None:
            if odd.bend(association, message):
                send(message, context_id)

        association.dimse.send_msg = bent

    def agree(event: Any) -> dict[str, bytes]:
        scp.asked = event.app_info
        return {uid: scp.odd.agrees(asked) for uid, asked in scp.asked.items()}

    with peers.pynetdicom_serving(
        ae,
        (evt.EVT_ACCEPTED, bend),
        (evt.EVT_SOP_EXTENDED, agree),
        (evt.EVT_C_FIND, lambda event: scp.odd.find(event)),
        (evt.EVT_C_GET, lambda event: scp.odd.retrieve(event)),
        (evt.EVT_C_MOVE, lambda event: scp.odd.move(event)),
    ) as scp.address:
        yield scp


RESPONSES = (C_FIND, C_GET, C_MOVE)
PENDING = (0xFF00, 0xFF01)


def changed(*, final: bool, **values: Any) -> Callable[[Any, Any], bool]:
    """Bends the final or the pending responses; a callable is called anew for each."""

    def bend(_association: Any, message: Any) -> bool:
        if isinstance(message, RESPONSES) and (message.Status not in PENDING) is final:
            for name, value in values.items():
                setattr(message, name, value() if callable(value) else value)
        return True

    return bend


def counts(
    completed: int | None, failed: int | None, remaining: int | None = None
) -> dict[str, Any]:
    return {
        "NumberOfCompletedSuboperations": completed,
        "NumberOfFailedSuboperations": failed,
        "NumberOfWarningSuboperations": None if completed is None else 0,
        "NumberOfRemainingSuboperations": remaining,
    }


# Would write a line of its own, and colours, on a terminal.
RUDE = "no\r\n\x1b[31mdcmhaul: done"


def ending(how: str, *, final: bool) -> Callable[[Any, Any], bool]:
    """An abort or a release instead of the final response, or of the first one."""

    def bend(association: Any, message: Any) -> bool:
        if isinstance(message, RESPONSES) and (not final or message.Status not in PENDING):
            if how == "abort":
                association.abort()
            else:
                # Its own thread, which this is, would wait for itself in release().
                association.acse.send_release()
            return False
        return True

    return bend


def yielding(*items: Any) -> Callable[[Any], Iterator[Any]]:
    return lambda _event: iter(items)


def one_failed(_event: Any) -> Iterator[Any]:
    yield 2
    yield 0xFF00, pydicom.dcmread(PATHS[0])
    listed = Dataset()
    listed.FailedSOPInstanceUIDList = ["1.2.3.4"]
    yield 0xB000, listed


KEYS = ("-S", "-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID=1.2.1")


Ask = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def ask(served: Served, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Runs a verb; returns its exit code, stdout, and what stderr says beside where move listens."""

    def run(odd: Odd, verb: str, *words: str | Path) -> tuple[int, str, list[str]]:
        capsys.readouterr()
        served.odd = odd
        code = main([verb, served.address, *map(str, words)])
        out, err = capsys.readouterr()
        lines = [line for line in err.split("\n") if line and not line.startswith("listening on ")]
        return code, out, lines

    return run


@pytest.mark.parametrize(
    ("odd", "code", "found", "said"),
    [
        (Odd(find=yielding((0xFF01, match()))), 0, 1, ""),
        (
            Odd(find=yielding((0xFF00, match()), (0xB000, None))),
            6,
            1,
            "0xB000 a status that C-FIND does not define",
        ),
        (
            Odd(find=yielding((0xFF00, match()), (0xFE00, None))),
            5,
            1,
            "0xFE00 Cancel: matching ended after a cancel request",
        ),
        (
            Odd(
                find=yielding((0xFF00, match()), (0x0000, None)),
                bend=changed(final=True, Status=0x1234),
            ),
            6,
            1,
            "0x1234 a status that C-FIND does not define",
        ),
        (
            Odd(find=yielding((0xC123, None)), bend=changed(final=True, ErrorComment=RUDE)),
            6,
            0,
            "0xC123 Failed: unable to process",
        ),
        (Odd(find=yielding((0x0000, None))), 4, 0, ""),
        (
            Odd(bend=changed(final=False, Identifier=None)),
            6,
            0,
            "match 1 cannot be read: a response without an identifier",
        ),
        (
            Odd(bend=changed(final=False, Identifier=lambda: BytesIO(b"\x08\0\x52\0odd"))),
            6,
            0,
            "match 1 cannot be read: ",
        ),
        (Odd(bend=changed(final=True, Identifier=lambda: BytesIO(encoded(match(2))))), 0, 1, ""),
        (Odd(bend=ending("abort", final=True)), 5, 1, "was aborted by the application"),
        (
            Odd(bend=ending("release", final=True)),
            5,
            1,
            "released the association instead of answering C-FIND",
        ),
        (Odd(bend=ending("abort", final=False)), 3, 0, "was aborted by the application"),
    ],
    ids=[
        *("FF01", "B000", "FE00", "1234", "C123", "at once", "no identifier", "no dataset"),
        *("final identifier", "abort half way", "release half way", "abort at once"),
    ],
)
def test_find(odd: Odd, code: int, found: int, said: str, ask: Ask) -> None:
    got, out, lines = ask(odd, "find", *KEYS)
    assert (got, out) == (code, "StudyInstanceUID\n" + "1.2.1\n" * found), lines
    assert len(lines) == (1 if said else 0)
    assert said in "".join(lines)
    assert "".join(lines).isprintable()


@pytest.mark.parametrize(
    ("granted", "told"),
    [(b"\1", "date-time matching, fuzzy matching of person names"), (b"\1\1\1\0", ""), (b"", "")],
    ids=["one byte", "all", "nothing"],
)
def test_extended_negotiation(granted: bytes, told: str, served: Served, ask: Ask) -> None:
    odd = Odd(agrees=lambda _asked: granted)
    options = ("--relational", "--date-time", "--fuzzy")
    code, out, lines = ask(odd, "find", *KEYS, *options)
    assert (code, out) == (0, "StudyInstanceUID\n1.2.1\n")
    assert served.asked == {levels.class_uid("-S", "FIND"): b"\1\1\1"}
    assert ("did not agree" in "".join(lines)) == (granted[:3] != b"\1\1\1"), lines
    assert told in "".join(lines)


@pytest.mark.parametrize("verb", ["get", "move"])
def test_relational_retrieval(verb: str, tmp_path: Path, served: Served, ask: Ask) -> None:
    odd = Odd()
    words = [*KEYS, "--as-typed", "--relational", "-od", str(tmp_path)]
    if verb == "move":
        odd.destination = peers.free_port()
        words += ["+P", str(odd.destination), "--bind", peers.LOOPBACK]
    code, _, lines = ask(odd, verb, *words)
    assert (code, lines, len(list(tmp_path.iterdir()))) == (0, [], 2)
    assert served.asked == {levels.class_uid("-S", verb.upper()): b"\1"}


def test_find_of_the_worklist(ask: Ask) -> None:
    item, step = Dataset(), Dataset()
    step.Modality = "CT"
    item.PatientName, item.ScheduledProcedureStepSequence = "HEAD^EXP1", [step]
    odd = Odd(find=yielding((0xFF00, item)))
    keys = ("-k", "PatientName", "-k", "ScheduledProcedureStepSequence[0].Modality=CT")
    code, out, lines = ask(odd, "find", "-W", *keys)
    assert (code, out.splitlines()[1:], lines) == (0, ["HEAD^EXP1\tCT"], [])


def test_a_find_whose_cancel_is_ignored_ends(monkeypatch: pytest.MonkeyPatch, ask: Ask) -> None:
    def for_ever(event: Any) -> Iterator[Any]:
        while event.assoc.is_established:
            yield 0xFF00, match()

    monkeypatch.setattr("dcmhaul.services.query.CANCEL_SECONDS", 0.1)
    code, out, (line,) = ask(Odd(find=for_ever), "find", *KEYS, "--cancel", "2")
    assert (code, out.count("1.2.1\n") >= 2) == (5, True)
    assert "(C-CANCEL time-out)" in line
    assert "goes on with the C-FIND all the same" in line


# What both verbs make of it: bent how, exit code, files, failed, a part of stderr.
RETRIEVES = {
    "listed as failed": (
        # pynetdicom counts what failed by C-MOVE among the remaining ones too.
        Odd(
            retrieve=one_failed,
            bend=changed(final=True, NumberOfRemainingSuboperations=None),
        ),
        5,
        1,
        1,
        "failed: 1.2.3.4",
    ),
    "FE00": (
        Odd(bend=changed(final=True, Status=0xFE00)),
        5,
        2,
        0,
        "0xFE00 Cancel: sub-operations ended after a cancel request",
    ),
    "B007": (Odd(bend=changed(final=True, Status=0xB007)), 0, 2, 0, "warning: 0xB007"),
    "FF01": (Odd(bend=changed(final=False, Status=0xFF01)), 0, 2, 0, ""),
    "pending without counts": (Odd(bend=changed(final=False, **counts(None, None))), 0, 2, 0, ""),
    "too many counted": (
        Odd(bend=changed(final=True, **counts(7, 0))),
        5,
        2,
        5,
        "though the peer answered 0x0000 Success",
    ),
    "some remain": (
        Odd(bend=changed(final=True, **counts(2, 0, 3))),
        5,
        2,
        3,
        "though the peer answered 0x0000 Success",
    ),
    "final identifier": (
        Odd(bend=changed(final=True, Identifier=lambda: BytesIO(encoded(match())))),
        0,
        2,
        0,
        "",
    ),
    "nothing": (Odd(retrieve=yielding(0)), 4, 0, 0, "nothing"),
    "abort half way": (Odd(bend=ending("abort", final=True)), 5, 2, 0, "was aborted by the"),
    "abort before": (Odd(bend=ending("abort", final=False)), 5, 1, 0, "was aborted by the"),
    "release half way": (
        Odd(bend=ending("release", final=True)),
        5,
        2,
        0,
        "released the association within a C-",
    ),
    "1234": (Odd(bend=changed(final=True, Status=0x1234)), 6, 2, 0, "0x1234 a status that C-"),
    "C123": (
        Odd(bend=changed(final=True, Status=0xC123, ErrorComment=RUDE)),
        6,
        2,
        0,
        "0xC123 Failed: unable to process",
    ),
    "a list that is none": (
        Odd(
            retrieve=one_failed,
            bend=changed(
                final=True,
                NumberOfRemainingSuboperations=None,
                Identifier=lambda: BytesIO(b"\x08\0\x58\0odd"),
            ),
        ),
        5,
        1,
        1,
        "0xB000",
    ),
}


@pytest.mark.parametrize("verb", ["get", "move"])
@pytest.mark.parametrize("name", RETRIEVES)
def test_get_and_move(
    name: str,
    verb: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ask: Ask,
) -> None:
    monkeypatch.setattr("dcmhaul.cli.ownscp.SETTLE_SECONDS", 0.1)
    odd, code, files, failed, said = RETRIEVES[name]
    words = [*KEYS, "--as-typed", "--json", "-od", str(tmp_path)]
    if verb == "move":
        odd.destination = peers.free_port()
        words += ["+P", str(odd.destination), "--bind", peers.LOOPBACK]
    got, out, lines = ask(odd, verb, *words)
    summary = json.loads(out.splitlines()[-1])
    assert (got, len(list(tmp_path.iterdir()))) == (code, files), lines
    assert (summary["instances"], summary["failed"]) == (files, failed)
    assert said in "\n".join(lines)
    assert bool(lines) is bool(said)
    assert all(line.isprintable() for line in lines)
