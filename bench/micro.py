"""How many instructions the hot paths of the wire take: framing, parsing, command sets, element headers.

Each workload runs N and 2N times in processes of its own under callgrind; an operation costs the difference
over N, so start-up is in no figure. What the kernel does is not counted; what Python does to call the
extension is, and the extension alone stands beside it. Counts repeat to a part in a thousand on one machine,
so each has a bound; another Python, compiler or C library has other counts. The nanoseconds are measured
without valgrind.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import struct
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcmhaul.protocol.dimse import CStoreRq, CStoreRsp, decode_message
from dcmhaul.wire import _commands
from dcmhaul.wire._elements import ElementWalker, probe
from dcmhaul.wire._fragments import SendQueue
from dcmhaul.wire._frames import COMMAND, PduReader
from dcmhaul.wire.part10 import encode_file_meta

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dcmhaul.protocol.dimse import DimseMessage

HERE = Path(__file__).resolve().parent
MISSING = "valgrind is not installed: install it (Debian: apt-get install valgrind)"
ROUNDS, QUICK_ROUNDS = 7, 1
TIMES = 10  # runs of a timed round over those of a counted one
QUICK_COUNT = 20
QUICK_COUNTED = "C-STORE-RQ, made and encoded"

CONTEXT = 1
SMALL, LARGE = 9 * 1024, 512 * 1024
BATCH = 16  # objects that leave together at window 16
RECORDED = {SMALL: 64, LARGE: 4}
PIECE = 192 * 1024  # what is sent before each receive: less than a socket holds
TAKEN = 1 << 20

CT = "1.2.840.10008.5.1.4.1.1.2"
INSTANCE = "1.2.826.0.1.3680043.10.1.20260101.120000.123456.7.89"
EXPLICIT = "1.2.840.10008.1.2.1"
REQUEST = CStoreRq(message_id=7, affected_sop_class_uid=CT, affected_sop_instance_uid=INSTANCE)
RESPONSE = CStoreRsp(
    message_id_being_responded_to=7,
    status=0,
    affected_sop_class_uid=CT,
    affected_sop_instance_uid=INSTANCE,
)
# Element numbers and their values, as dimse hands them to the extension.
REQUEST_ELEMENTS: Final = (0x0002, 0x0100, 0x0110, 0x0700, 0x0800, 0x1000, 0x1030, 0x1031)
REQUEST_VALUES: Final = (CT, 0x0001, 7, 0, 0x0001, INSTANCE, None, None)
RESPONSE_ELEMENTS: Final = (0x0002, 0x0100, 0x0120, 0x0800, 0x0900, 0x0901, 0x0902, 0x1000)
RESPONSE_VALUES: Final = (CT, 0x8001, 7, 0x0101, 0, None, None, INSTANCE)

UIDS = (0x00080016, 0x00080018, 0x0020000D, 0x0020000E)
# Elements of each group beside the UIDs: what CT scanners write, a private group among them.
GROUPS = {0x0008: 24, 0x0009: 8, 0x0010: 10, 0x0018: 32, 0x0020: 14, 0x0028: 16, 0x0040: 6}
SEQUENCES = (0x00081140, 0x00082112, 0x00400275)

# Lines of callgrind's output; names are given once and then meant by their numbers.
_OBJECT: Final = re.compile(r"ob=\((\d+)\)(?: (.*))?$")
_CALLED_OBJECT: Final = re.compile(r"cob=\((\d+)\) (.*)$")
_COST: Final = re.compile(r"[+*-]?\d* (\d+)$")
_TOTAL: Final = re.compile(r"totals: (\d+)$")
_EXTENSION: Final = re.compile(r"/dcmhaul/.*\.so$")


class Count(NamedTuple):
    """Instructions: all of them, and those of the extension's own code."""

    all: int
    extension: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """make: prepares it and returns what is run. count: N. per: operations a run.

    at_most: instructions an operation that are asked for; a quarter above what they were.
    """

    title: str
    make: Callable[[], Callable[[], object]]
    count: int
    at_most: Count
    per: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """totals: of N and of 2N runs, start-up included; empty where nothing was counted."""

    workload: Workload
    count: int
    totals: tuple[Count, ...]
    wall_ns: list[float]

    @property
    def instructions(self) -> Count | None:
        """Of one operation."""
        if not self.totals:
            return None
        operations = self.count * self.workload.per
        once, twice = self.totals
        return Count(
            round((twice.all - once.all) / operations),
            round((twice.extension - once.extension) / operations),
        )

    @property
    def exceeded(self) -> list[str]:
        """A line for each bound that does not hold."""
        found, at_most = self.instructions, self.workload.at_most
        if found is None:
            return []
        where = ("in all", "in the extension")
        return [
            f"{self.workload.title}: {count:,} instructions {place}, asked for at most {most:,}"
            for count, most, place in zip(found, at_most, where, strict=True)
            if count > most
        ]

    def as_json(self) -> dict[str, Any]:
        counted = {} if self.instructions is None else self.instructions._asdict()
        return {
            "runs": self.count,
            "operations_a_run": self.workload.per,
            "totals": [count._asdict() for count in self.totals],
            "instructions": counted,
            "at_most": self.workload.at_most._asdict(),
            "wall_ns": self.wall_ns,
        }


def send_small() -> Callable[[], object]:
    """Objects from memory, each a command and a dataset PDU, into one system call."""
    # Here and not above, as in the others: trio takes longer to start than most workloads to run.
    from dcmhaul.net._sockio import DONE, run_plan

    queue = SendQueue()
    command, dataset = REQUEST.encode(), bytes(SMALL)
    near, far = socket.socketpair()
    near.setblocking(False)
    taken = bytearray(TAKEN)

    def run() -> None:
        for _ in range(BATCH):
            queue.add_command(CONTEXT, command)
            queue.add_data(CONTEXT, dataset, True)
        status = -1
        while status != DONE:
            status, done, _calls = run_plan(near.fileno(), queue)
            while done:
                done -= far.recv_into(taken)

    return run


def frame_file() -> Callable[[], object]:
    """An object from a file, whose bytes the kernel alone copies."""
    from dcmhaul.net._sockio import take_plan

    queue = SendQueue(16384)
    command = REQUEST.encode()
    file = tempfile.TemporaryFile()  # noqa: SIM115
    file.truncate(LARGE)

    def run() -> None:
        queue.add_command(CONTEXT, command)
        queue.add_file(CONTEXT, file.fileno(), 0, LARGE, True, file)
        while take_plan(queue, TAKEN):
            pass

    return run


def parse(length: int, pdu: int) -> Callable[[], object]:
    """A recorded stream of C-STORE-RQs, received and walked as an association does."""
    from dcmhaul.net._sockio import receive, take_plan

    queue = SendQueue(pdu)
    for _ in range(RECORDED[length]):
        queue.add_command(CONTEXT, REQUEST.encode())
        queue.add_data(CONTEXT, bytes(length), True)
    recorded = bytearray()
    while taken := take_plan(queue, TAKEN):
        recorded += taken
    stream = memoryview(recorded)
    reader = PduReader(pdu)
    reader.accept_p_data(True)
    reader.set_contexts([CONTEXT])
    near, far = socket.socketpair()
    near.setblocking(False)
    descriptor, following = far.detach(), reader.next

    def run() -> int:
        at = finished = 0
        while at < len(stream):
            sent = near.send(stream[at : at + PIECE])
            at += sent
            while sent:
                sent -= receive(descriptor, reader)
                while code := following():
                    if code == COMMAND:
                        _ = reader.context_id, reader.command
                        reader.expect_dataset(True)
                    elif reader.data_length and reader.data_last:
                        finished += 1
        return finished

    if run() != RECORDED[length]:
        raise ValueError("the reader did not find what was recorded")

    return run


def make_request() -> bytes:
    return CStoreRq(
        message_id=7, affected_sop_class_uid=CT, affected_sop_instance_uid=INSTANCE
    ).encode()


def make_response() -> bytes:
    return CStoreRsp(
        message_id_being_responded_to=7,
        status=0,
        affected_sop_class_uid=CT,
        affected_sop_instance_uid=INSTANCE,
    ).encode()


def decoding(
    decode: Callable[[bytes], object], message: DimseMessage
) -> Callable[[], Callable[[], object]]:
    return lambda: partial(decode, message.encode())


def encode_alone(
    message: DimseMessage, elements: tuple[int, ...], values: tuple[str | int | None, ...]
) -> Callable[[], object]:
    """The extension with what dimse would give it."""
    encode = partial(_commands.encode, elements, values)
    if encode() != message.encode():
        raise ValueError(f"{type(message).__name__} is not encoded from these values any more")
    return encode


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def sequence(tag: int, *items: bytes) -> bytes:
    """Sequence and items of undefined length, as most writers have them."""
    undefined = 0xFFFFFFFF
    begin, end = struct.pack("<HHI", 0xFFFE, 0xE000, undefined), b"\xfe\xff\x0d\xe0\0\0\0\0"
    parts = [struct.pack("<HH2sHI", tag >> 16, tag & 0xFFFF, b"SQ", 0, undefined)]
    parts += [begin + item + end for item in items]
    return b"".join(parts) + b"\xfe\xff\xdd\xe0\0\0\0\0"


def ct_header() -> bytes:
    """The elements before the pixels, in the number and the nesting that CT scanners write."""
    uid = INSTANCE.encode()
    found = {tag: element(tag, b"UI", uid) for tag in UIDS}
    for group, count in GROUPS.items():
        for number in range(count):
            tag = group << 16 | 0x0020 + number
            found[tag] = element(tag, b"LO", b"0123456789")
    for tag in SEQUENCES:
        item = element(0x00081150, b"UI", uid) + element(0x00081155, b"UI", uid)
        found[tag] = sequence(tag, item, item)
    return b"".join(found[tag] for tag in sorted(found))


def walk_header() -> Callable[[], object]:
    """As an object that is received, or a file too large for one look."""
    header = ct_header() + struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, LARGE)

    def run() -> int:
        walker = ElementWalker(capture=UIDS)
        walker.feed(header)
        return len(walker.captured) + walker.skip

    return run


def probe_file() -> Callable[[], object]:
    """As a file that is opened to be sent, small enough for one look."""
    dataset = ct_header()
    pixels = SMALL - len(dataset)
    dataset += struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, pixels) + bytes(pixels)
    file = encode_file_meta(CT, INSTANCE, EXPLICIT) + dataset
    if probe(file) is None:
        raise ValueError("the file is not regular: probe() leaves it to the walker")
    return partial(probe, file)


WORKLOADS = (
    Workload(
        title="9 KiB from memory, framed and sent",
        make=send_small,
        count=250,
        per=BATCH,
        at_most=Count(2800, 1050),
    ),
    Workload(
        title="512 KiB from a file, framed, PDU 16384",
        make=frame_file,
        count=500,
        at_most=Count(15_100, 9500),
    ),
    Workload(
        title="9 KiB, received and parsed, PDU 16384",
        make=partial(parse, SMALL, 16384),
        count=50,
        per=RECORDED[SMALL],
        at_most=Count(4600, 800),
    ),
    Workload(
        title="512 KiB, received and parsed, PDU 16384",
        make=partial(parse, LARGE, 16384),
        count=100,
        per=RECORDED[LARGE],
        at_most=Count(32_500, 10_000),
    ),
    Workload(
        title="512 KiB, received and parsed, PDU 131072",
        make=partial(parse, LARGE, 131072),
        count=100,
        per=RECORDED[LARGE],
        at_most=Count(25_500, 3050),
    ),
    Workload(
        title="C-STORE-RQ, made and encoded",
        make=lambda: make_request,
        count=2000,
        at_most=Count(11_800, 700),
    ),
    Workload(
        title="C-STORE-RQ, encoded by the extension",
        make=partial(encode_alone, REQUEST, REQUEST_ELEMENTS, REQUEST_VALUES),
        count=2000,
        at_most=Count(1550, 700),
    ),
    Workload(
        title="C-STORE-RSP, decoded",
        make=decoding(decode_message, RESPONSE),
        count=2000,
        at_most=Count(30_500, 750),
    ),
    Workload(
        title="C-STORE-RSP, decoded by the extension",
        make=decoding(_commands.decode, RESPONSE),
        count=2000,
        at_most=Count(5200, 750),
    ),
    Workload(
        title="C-STORE-RSP, made and encoded",
        make=lambda: make_response,
        count=2000,
        at_most=Count(12_800, 700),
    ),
    Workload(
        title="C-STORE-RSP, encoded by the extension",
        make=partial(encode_alone, RESPONSE, RESPONSE_ELEMENTS, RESPONSE_VALUES),
        count=2000,
        at_most=Count(1550, 700),
    ),
    Workload(
        title="C-STORE-RQ, decoded",
        make=decoding(decode_message, REQUEST),
        count=2000,
        at_most=Count(30_200, 750),
    ),
    Workload(
        title="C-STORE-RQ, decoded by the extension",
        make=decoding(_commands.decode, REQUEST),
        count=2000,
        at_most=Count(5100, 750),
    ),
    Workload(
        title="a CT header walked",
        make=walk_header,
        count=1000,
        at_most=Count(49_500, 35_500),
    ),
    Workload(
        title="a file of 9 KiB probed",
        make=probe_file,
        count=1000,
        at_most=Count(43_600, 40_100),
    ),
)


def run_here(title: str, count: int, rounds: int) -> list[float]:
    """Nanoseconds an operation, a round of `count` runs."""
    workload = next(known for known in WORKLOADS if known.title == title)
    operation = workload.make()
    found = []
    for _ in range(rounds):
        began = time.perf_counter_ns()
        for _ in range(count):
            operation()
        found.append((time.perf_counter_ns() - began) / (count * workload.per))
    return found


def environment(scratch: Path) -> dict[str, str]:
    """What makes one run like the other: a fixed hash seed, no debug hooks, modules compiled before."""
    unwanted = ("PYTHONDEVMODE", "PYTHONMALLOC", "PYTHONDONTWRITEBYTECODE", "PYTHONASYNCIODEBUG")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return kept | {"PYTHONHASHSEED": "0", "PYTHONPYCACHEPREFIX": str(scratch / "compiled")}


def measure(
    workload: Workload, scratch: Path, *, count: int, rounds: int, valgrind: str | None
) -> Result:
    """Times it, which also compiles what it imports, then counts it."""
    from bench import process

    def command(times: int, rounds: int) -> list[str]:
        run = [sys.executable, "-m", "bench.micro", "--run", workload.title]
        return [*run, "--count", str(times), "--rounds", str(rounds)]

    env = environment(scratch)
    wall = json.loads(process.run(command(TIMES * count, rounds), env=env).output)
    totals: tuple[Count, ...] = ()
    if valgrind is not None:
        outputs = [scratch / f"callgrind.{times}" for times in (1, 2)]
        process.run_all(
            [
                [
                    valgrind,
                    "--tool=callgrind",
                    f"--callgrind-out-file={output}",
                    *command(times * count, 1),
                ]
                for times, output in enumerate(outputs, start=1)
            ],
            env=env,
        )
        totals = tuple(map(count_of, outputs))
    return Result(workload=workload, count=count, totals=totals, wall_ns=wall)


def count_of(output: Path) -> Count:
    """What callgrind counted, by its file format: costs stand below the object file that they belong to."""
    names: dict[str, str] = {}
    own = 0
    total: int | None = None
    within = called = False
    for line in output.read_text().splitlines():
        if found := _OBJECT.match(line):
            number, name = found.groups()
            within = _EXTENSION.search(names.setdefault(number, name or "")) is not None
        elif found := _CALLED_OBJECT.match(line):
            names.setdefault(*found.groups())
        elif line.startswith("calls="):
            called = True  # the cost in the next line is the callee's
        elif found := _COST.match(line):
            own += int(found[1]) if within and not called else 0
            called = False
        elif found := _TOTAL.match(line):
            total = int(found[1])
    if total is None:
        raise ValueError(f"callgrind wrote no total: {output.name}")
    return Count(total, own)


def report(results: Sequence[Result], described: Mapping[str, str]) -> str:
    from bench import tables

    rows = []
    for result in results:
        found, at_most = result.instructions, result.workload.at_most
        rows.append(
            [
                result.workload.title,
                tables.short(tables.median(result.wall_ns)),
                tables.spread(result.wall_ns),
                "not counted" if found is None else f"{found.all:,}",
                f"{at_most.all:,}",
                "" if found is None else f"{found.extension:,}",
                f"{at_most.extension:,}",
                "" if found is None else ("no" if result.exceeded else "yes"),
            ]
        )
    header = ["an operation", "ns", "lowest-highest", "instructions", "asked for at most"]
    header += ["in the extension", "asked for at most", "met"]
    about = "; ".join(f"{key}: {value}" for key, value in described.items())
    return f"{about}.\n\n{tables.markdown(header, rows)}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a moment's run; nothing is written")
    parser.add_argument(
        "--output", type=Path, default=HERE, help="folder for README.md and results/"
    )
    parser.add_argument("--run", metavar="WORKLOAD", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=1, help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.run:
        print(json.dumps(run_here(asked.run, asked.count, asked.rounds)))
        return 0
    # Here and not above: what runs under valgrind starts without them.
    from bench import machine, process, tables

    process.end_on_sigterm()
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        print(MISSING, file=sys.stderr)
        if not asked.quick:
            return 1
    results = []
    with tempfile.TemporaryDirectory(prefix="dcmhaul-bench-") as scratch:
        for workload in WORKLOADS:
            counted = not asked.quick or workload.title == QUICK_COUNTED
            results.append(
                measure(
                    workload,
                    Path(scratch),
                    count=QUICK_COUNT if asked.quick else workload.count,
                    rounds=QUICK_ROUNDS if asked.quick else ROUNDS,
                    valgrind=valgrind if counted else None,
                )
            )
    described = machine.describe(None)
    text = report(results, described)
    print("a moment's run: the figures mean nothing\n" * asked.quick + text)
    if asked.quick:
        return 0
    tables.replace_marked(asked.output / "README.md", "micro", text)
    found = {result.workload.title: result.as_json() for result in results}
    result = {"machine": described, "workloads": found}
    tables.write_json(asked.output / "results" / "micro.json", result)
    exceeded = [line for result in results for line in result.exceeded]
    for line in exceeded:
        print(line, file=sys.stderr)
    return 1 if exceeded else 0


if __name__ == "__main__":
    sys.exit(main())
