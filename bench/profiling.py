"""Where the time of one association goes: system calls, sampled stacks, Python functions, as texts.

`dcmhaul send` to `dcmhaul receive --discard` on this machine's loopback; each end is looked at in runs of
its own, so that no tool slows the other. From every figure that of a run of one object is taken off, which
is the start-up; what is left is divided by the objects.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pstats
import re
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if not __package__:  # started by its path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.interop import peers

from bench import congestion, contenders, machine, process, sets, tables
from bench.contenders import Wire
from bench.loopback import say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

HERE = Path(__file__).resolve().parent
COUNTS = {"large": 8, "ct": 3000, "small": 15000}
QUICK_COUNT = 8
ROUNDS, QUICK_ROUNDS = 3, 1
ENDS = ("send", "receive")
TOOLS = {"strace": "strace", "perf": "linux-perf"}  # what Debian calls the package

STACKS_SHOWN = 45
CALLED_SHOWN = 12
FUNCTIONS_SHOWN = 40
SAMPLES_A_SECOND = 1499
STACK_BYTES = 16384  # the send keeps half of that in one frame
KERNEL_FRAMES, NATIVE_FRAMES = 5, 3
"""Of a stack's frames in the kernel, and in C below Python, the outermost; what lies deeper is theirs."""

# How one Python function calls another says nothing: these are one frame, `python`.
_INTERPRETER: Final = re.compile(
    r"_?PyEval_\w+|_?PyObject_(Fast|Make|Vector)?[Cc]all\w*|_?PyObject_MakeTpCall|_?PyVectorcall\w*|"
    r"object_vacall|_PyFunction\w+|(method|cfunction)_(vector)?call\w*|vectorcall_\w+|PyGen_am_send|"
    r"gen_send\w*|gen_iternext|context_run|slot_tp_\w+|type_call|builtin_(exec|next)|partial_\w+"
)
_WRAPPER: Final = re.compile(
    r"__libc_\w+|__GI_\w+|entry_SYSCALL_64\w*|do_syscall_64|x64_sys_call|__(clo|rea|writ)\w+"
)
# Start-up and end, which differ from run to run by more than can be taken off stack by stack.
_CUT: Final = re.compile(r"PyImport_ImportModuleLevelObject|Py_(Initialize|Finalize)\w+|_dl_\w+")
_FRAME: Final = re.compile(r"\s+[0-9a-f]+ (.*) \(([^()]*)\)$")
_CYTHON: Final = re.compile(r"__pyx_(?:pw|pf|f|fuse_\w+?)_(.*)")
_NOT_KERNEL: Final = ("[vdso]", "[unknown]", "[heap]", "[stack]", "[anon]")
_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")

Stack = tuple[str, ...]
PYTHON = "python"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is sent, how, and where the tools may write."""

    data: sets.DataSet
    window: int
    wire: Wire
    scratch: Path
    rounds: int
    associations: int = 1
    disk: Path | None = None
    """Where an archive keeps the objects; without it the receiver drops them."""

    @property
    def objects(self) -> int:
        """Those that figures are divided by: the run of one object is taken off."""
        return len(self.data.files) - 1

    @property
    def one(self) -> Path:
        return self.data.part(1)


class Cost(NamedTuple):
    """Of the sender's process from start to end, and processor time of both."""

    wall: float
    send: float
    receive: float


def transfer(
    load: Load, folder: Path, *, end: str = "", command: Sequence[str] | None = None
) -> Cost:
    """Sends the folder once. command: what stands for `dcmhaul` at one end."""
    commands = {name: process.dcmhaul() for name in ENDS}
    if command is not None:
        commands[end] = list(command)
    # Compiled modules are kept, so that one start costs what the next one does.
    extra = {"PYTHONPYCACHEPREFIX": str(load.scratch / "compiled"), "PYTHONDONTWRITEBYTECODE": ""}
    port = peers.free_port()
    pdu = ["-pdu", str(contenders.PDU), *load.wire.own_options()]
    serving = [*commands["receive"], "receive", str(port), "-aet", contenders.AET, "--discard"]
    if load.disk is not None:
        # None is removed before the end, as in `ingest.py`.
        kept = tempfile.mkdtemp(dir=load.disk)
        serving = [*commands["receive"], "archive", "--dir", kept, "--port", str(port)]
        serving += ["--aet", contenders.AET]
    serving += ["--bind", peers.LOOPBACK, *pdu]
    with peers.serve("dcmhaul", serving, aet=contenders.AET, port=port, env=extra) as server:
        sending = [*commands["send"], "send", server.address, str(folder), *pdu]
        sending += ["--window", str(load.window), "--json"]
        sending += ["--associations", str(load.associations)]
        before = process.cpu_seconds(server.process.pid)
        cost = process.run(sending, env=peers.environment(extra=extra))
        busy = process.cpu_seconds(server.process.pid) - before
    summary = json.loads(cost.output.strip().splitlines()[-1])
    if summary["failed"] or summary["instances"] != sum(1 for _ in folder.iterdir()):
        raise process.BenchFailed(f"not everything arrived: {summary}")
    return Cost(cost.seconds, cost.cpu_seconds, busy)


def both_runs(
    load: Load, end: str, name: str, command: Callable[[Path], Sequence[str]]
) -> tuple[Path, Path]:
    """What the tool wrote of a run of all objects, and of a run of one."""
    outputs = load.scratch / f"{name}-all", load.scratch / f"{name}-one"
    for output, folder in zip(outputs, (load.data.folder, load.one), strict=True):
        output.unlink(missing_ok=True)
        transfer(load, folder, end=end, command=command(output))
    return outputs


def without_tools(load: Load) -> Cost:
    """Microseconds an object while nobody looks; medians of the rounds."""
    costs = []
    for _ in range(load.rounds):
        one, many = transfer(load, load.one), transfer(load, load.data.folder)
        costs.append([most - least for most, least in zip(many, one, strict=True)])
    medians = (tables.median(values) for values in zip(*costs, strict=True))
    return Cost(*(max(1e6 * seconds / load.objects, 1e-3) for seconds in medians))


# -- system calls


def traced(output: Path) -> dict[str, tuple[int, int]]:
    """Calls and errors by name, from the table of `strace -c`."""
    found = {}
    for line in output.read_text().splitlines():
        fields = line.split()
        if len(fields) in (5, 6) and fields[3].isdigit() and fields[-1] != "total":
            found[fields[-1]] = int(fields[3]), int(fields[4]) if len(fields) == 6 else 0
    return found


def system_calls(load: Load, end: str) -> str:
    outputs = both_runs(
        load,
        end,
        "strace",
        lambda output: ["strace", "-c", "-f", "-o", str(output), *process.dcmhaul()],
    )
    many, one = map(traced, outputs)
    rows = []
    for name, counts in many.items():
        calls, errors = (
            max(0, most - least) / load.objects
            for most, least in zip(counts, one.get(name, (0, 0)), strict=True)
        )
        rows.append((calls, errors, name))
    lines = [
        f"{calls:10.4f} {errors:10.4f}  {name}"
        for calls, errors, name in sorted(rows)[::-1]
        if calls
    ]
    whole = f"{sum(row[0] for row in rows):10.4f} {sum(row[1] for row in rows):10.4f}  all"
    return "\n".join([f"{'calls':>10} {'failed':>10}", whole, *lines])


# -- sampled stacks


def readable(name: str) -> str:
    """Cython's `__pyx_pw_7dcmhaul_3net_7_sockio_1run_plan` as `_sockio.run_plan`."""
    found = _CYTHON.fullmatch(name)
    if found is None:
        return name
    rest, parts = found[1], []
    while part := re.match(r"(\d+)", rest):
        begin, end = part.end(), part.end() + int(part[1])
        if rest[end : end + 1] != "_":
            break
        parts.append(rest[begin:end])
        rest = rest[end + 1 :]
    return ".".join([*parts[2:], rest.lstrip("0123456789")])


def folded(frames: Sequence[tuple[str, str]]) -> Stack:
    """The frames of one sample, innermost first, as a stack of flame graphs."""
    stack = ["thread" if any(name == "start_thread" for name, _ in frames) else "main"]
    native: list[str] = []
    kernel: list[str] = []
    for name, origin in reversed(frames):
        if _WRAPPER.fullmatch(name):
            continue
        if origin.startswith("[") and origin not in _NOT_KERNEL:
            kernel.append(name.removeprefix("__x64_").lstrip("_"))
        elif _INTERPRETER.fullmatch(name):
            # What leads to the interpreter is the same for all.
            stack += [*([] if len(stack) == 1 else native), PYTHON]
            native = []
        else:
            native.append(readable(name))
            if _CUT.fullmatch(name):
                break
    stack += native[:NATIVE_FRAMES]
    stack += [f"{name}_[k]" for name, _ in itertools.groupby(kernel)][:KERNEL_FRAMES]
    return tuple(name for name, _ in itertools.groupby(stack))


def stacks(lines: Iterable[str]) -> Counter[Stack]:
    """What `perf script` prints: for each sample a line, its frames, an empty line."""
    found: Counter[Stack] = Counter()
    frames: list[tuple[str, str]] = []
    for line in (*lines, ""):
        if frame := _FRAME.match(line):
            name, origin = frame.groups()
            frames.append((name, origin.rpartition("/")[2] if "/" in origin else origin))
        elif not line.strip() and frames:
            found[folded(frames)] += 1
            frames = []
    return found


def sampled(output: Path) -> Counter[Stack]:
    script = ["perf", "script", "-i", str(output), "--no-inline", "-F", "comm,ip,sym,dso"]
    return stacks(process.run(script, env=peers.environment()).output.splitlines())


def flame(load: Load, end: str, cost: Cost) -> str:
    """Shares of the samples; times are these shares of what is spent while nobody looks."""
    record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(SAMPLES_A_SECOND)]
    record += ["--call-graph", f"dwarf,{STACK_BYTES}"]
    found: Counter[Stack] = Counter()
    for _ in range(load.rounds):
        many, one = map(
            sampled,
            both_runs(
                load,
                end,
                "perf",
                lambda output: [*record, "-o", str(output), "--", *process.dcmhaul()],
            ),
        )
        found.update(many)
        found.subtract(one)
    whole = max(1, found.total())
    found = +found
    busy = cost.send if end == "send" else cost.receive
    called: Counter[Stack] = Counter()
    for stack, count in found.items():
        called[stack[: stack.index(PYTHON) + 2 if PYTHON in stack else 2]] += count

    def table(shown: Iterable[tuple[Stack, int]]) -> str:
        return "\n".join(
            f"{count / whole:6.1%} {busy * count / whole:9.3f}  {';'.join(stack)} {count}"
            for stack, count in shown
        )

    return (
        f"{whole} samples of cpu-clock. Share, µs an object (that share of its processor time without tools), "
        "frames, samples.\nPython's calls of Python are one frame; what runs with interrupts off is counted "
        "where they come on again.\n\nWhat Python calls, with all below it:\n\n"
        f"{table(called.most_common(CALLED_SHOWN))}\n\n"
        "Stacks (`cut -c19-` leaves what flame graphs are drawn from):\n\n"
        f"{table(found.most_common(STACKS_SHOWN))}"
    )


# -- Python functions


def place(file: str, line: int, name: str) -> str:
    """Where a function is, without the folders of this machine."""
    if file == "~":
        return _ADDRESS.sub("", name)
    for folder in (
        "/site-packages/",
        "/src/",
        f"/python{sys.version_info[0]}.{sys.version_info[1]}/",
    ):
        file = file.rpartition(folder)[2]
    return f"{file.rpartition('.so')[0] or file}:{line}({name})"


def profiled(output: Path) -> dict[str, tuple[float, float, float]]:
    """Calls, own seconds, and seconds with callees by function."""
    statistics: Mapping[tuple[str, int, str], tuple[int, int, float, float, object]]
    statistics = pstats.Stats(str(output)).stats  # type: ignore[attr-defined]
    return {
        place(*function): (calls, own, whole)
        for function, (_, calls, own, whole, _) in statistics.items()
    }


def functions(load: Load, end: str) -> str:
    """Of the round that took least: its clock is the wall's."""
    module = [sys.executable, "-m", "cProfile", "-o"]
    rounds = []
    for _ in range(load.rounds):
        many, one = map(
            profiled,
            both_runs(
                load, end, "cprofile", lambda output: [*module, str(output), "-m", "dcmhaul"]
            ),
        )
        rows = []
        for name, costs in many.items():
            calls, own, whole = (
                (most - least) / load.objects
                for most, least in zip(costs, one.get(name, (0, 0, 0)), strict=True)
            )
            if calls > 0:  # else the difference is that of two starts
                rows.append((1e6 * own, 1e6 * whole, calls, name))
        rounds.append(rows)
    rows = min(rounds, key=lambda rows: sum(own for own, *_ in rows))
    rows.sort(reverse=True)
    lines = [
        f"{own:9.3f} {whole:9.3f} {calls:9.3f}  {name}"
        for own, whole, calls, name in rows[:FUNCTIONS_SHOWN]
    ]
    every = f"{sum(row[0] for row in rows):9.3f} {'':9} {sum(row[2] for row in rows):9.3f}  all"
    return "\n".join([f"{'own µs':>9} {'with all':>9} {'calls':>9}", every, *lines])


# -- the texts


def section(title: str, tool: str, text: Callable[[], str]) -> str:
    """A part of the text; where its tool is missing, or not allowed, a line says so."""
    heading = f"== {title}"
    if tool in TOOLS and shutil.which(tool) is None:
        missing = f"{tool} is not installed: install it (Debian: apt-get install {TOOLS[tool]})"
        say(f"left out: {missing}")
        return f"{heading}\n\n{missing}"
    try:
        return f"{heading}\n\n{text()}"
    except (process.BenchFailed, peers.PeerFailed) as error:
        if tool not in TOOLS:
            raise
        say(f"left out: {tool} does not work here: {error}")
        return f"{heading}\n\n{tool} does not work here"


def profile(load: Load, end: str, cost: Cost, heading: str) -> str:
    say(f"{load.data.name}, window {load.window}: {end}")
    parts = [
        heading,
        section("System calls an object (strace -c -f)", "strace", lambda: system_calls(load, end)),
        section("Processor time (perf record)", "perf", lambda: flame(load, end, cost)),
        section(
            "Python's main thread, µs an object (cProfile, which makes calls look dear)",
            "cProfile",
            lambda: functions(load, end),
        ),
    ]
    return "\n\n".join(parts) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=tuple(COUNTS), default="small")
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="fraction of the objects that are sent"
    )
    parser.add_argument("--associations", type=int, default=1)
    parser.add_argument(
        "--archive",
        action="store_true",
        help="the receiver is an archive, which keeps everything where temporary files go",
    )
    parser.add_argument("--congestion", default="cubic", help="or kernel, for its default")
    parser.add_argument("--quick", action="store_true", help="a moment's run; nothing is written")
    parser.add_argument("--output", type=Path, default=HERE, help="folder for profiles/")
    asked = parser.parse_args(argv)
    process.end_on_sigterm()
    count = QUICK_COUNT if asked.quick else max(2, int(COUNTS[asked.shape] * asked.scale))
    with sets.workspace() as folder, tempfile.TemporaryDirectory(prefix="dcmhaul-bench-") as disk:
        data = sets.make(
            folder, asked.shape, count, sets.QUICK_SHAPES[asked.shape] if asked.quick else None
        )
        control = asked.congestion if congestion.usable(asked.congestion) else None
        load = Load(
            data=data,
            window=asked.window,
            wire=Wire(congestion=control, preload={}),
            scratch=folder,
            rounds=QUICK_ROUNDS if asked.quick else ROUNDS,
            associations=asked.associations,
            disk=Path(disk) if asked.archive else None,
        )
        cost = without_tools(load)
        speed = (
            f"Without tools: {tables.short(1e6 / cost.wall)} objects/s; µs an object: "
            f"{tables.short(cost.wall)} in all, {tables.short(cost.send)} of the sender's processor time, "
            f"{tables.short(cost.receive)} of the receiver's."
        )
        described = machine.describe(control)
        about = "; ".join(f"{key}: {value}" for key, value in described.items())
        fate = "dropped by the receiver"
        if asked.archive:
            fate = f"durable in an archive on {machine.filesystem(Path(disk))}"
        setting = f"window {load.window}, {load.associations} association(s), PDU {contenders.PDU}"
        suffix = f"-a{load.associations}" if load.associations > 1 else ""
        for end in ENDS[1:] if asked.archive else ENDS:  # who sends to an archive waits
            verb = "archive" if asked.archive and end == "receive" else end
            what = f"{count} of {data.shape.title}, {setting}, from tmpfs, {fate}"
            heading = f"dcmhaul {verb}: {what}\n{about}\n{speed}"
            text = profile(load, end, cost, heading)
            if asked.quick:
                print(f"a moment's run: the figures mean nothing\n{text}")
                continue
            name = f"{asked.shape}-w{asked.window}{suffix}-{verb}.txt"
            path = asked.output / "profiles" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"profiles/{path.name} is written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
