"""Standard output: tables, tab-separated lines, NDJSON and summaries; progress on stderr."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from dcmhaul.cli.console import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import TextIO

    from dcmhaul.cli.console import Console
    from dcmhaul.cli.session import Session

__all__ = [
    "Answer",
    "Progress",
    "Rows",
    "StdoutFailed",
    "TransferCount",
    "format_bytes",
    "format_seconds",
    "process_seconds",
    "show_progress",
]

PROGRESS_HERTZ = 4
PROGRESS_LINE_SECONDS = 30

_imported_at = time.monotonic()


def process_seconds() -> float:
    """Seconds since this process started; since the import of this module where unknown."""
    try:
        with open("/proc/self/stat", "rb") as stat:
            # The second field, the command in brackets, may hold anything; starttime is the 22nd.
            started = int(stat.read().rpartition(b")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - started, 0.0)
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic() - _imported_at


def format_bytes(count: float) -> str:
    """`512 B`, `1.5 KiB`, `2.0 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def format_seconds(seconds: float) -> str:
    """`0.52 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class StdoutFailed(OSError):
    """Stdout takes no more, for another reason than that its reader has gone."""


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StdoutFailed(error.errno, error.strerror) from error


class Answer:
    """What stdout carries: text lines, or under `--json` one object a line."""

    def __init__(self, *, json_lines: bool = False, stream: TextIO | None = None) -> None:
        self.json_lines = json_lines
        self._stream = stream

    @property
    def stream(self) -> TextIO:
        return self._stream or sys.stdout

    @property
    def is_terminal(self) -> bool:
        return self.stream.isatty()

    def line(self, text: str) -> None:
        """A line of text; nothing under `--json`."""
        if not self.json_lines:
            with _writing():
                print(text, file=self.stream, flush=True)

    def record(self, value: Mapping[str, Any]) -> None:
        """One JSON object in one line of UTF-8; nothing without `--json`."""
        if self.json_lines:
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
            stream = self.stream
            buffer = getattr(stream, "buffer", None)
            # UTF-8 whatever the locale; lone surrogates come from file names that are not UTF-8.
            encoded = text.encode("utf-8", "backslashreplace") + b"\n"
            with _writing():
                if buffer is None:
                    stream.write(encoded.decode("utf-8"))
                else:
                    stream.flush()
                    buffer.write(encoded)
                stream.flush()


class Rows:
    """Find's matches: a table on a terminal, else a header and one tab-separated line a match."""

    def __init__(self, answer: Answer, columns: Sequence[str]) -> None:
        self._answer = answer
        self._columns = list(columns)
        self._rows: list[list[str]] = []
        self._collects = answer.is_terminal and not answer.json_lines
        if not self._collects:
            answer.line("\t".join(self._columns))

    def add(self, cells: Sequence[str]) -> None:
        """One match. Control characters, tabs too, are written as escapes: a line is a match."""
        safe = [printable(cell) for cell in cells]
        if self._collects:
            self._rows.append(safe)
        else:
            self._answer.line("\t".join(safe))

    def finish(self) -> None:
        """Draws the table, whose widths are known only now."""
        if not self._collects or not self._rows:
            return
        from rich.console import Console as RichConsole
        from rich.table import Table
        from rich.text import Text

        table = Table(show_edge=False, pad_edge=False)
        for column in self._columns:
            # A long UID goes on in the next line: half of one is of no use.
            table.add_column(column, overflow="fold")
        for row in self._rows:
            # Text, not str: a value with brackets is no markup.
            table.add_row(*(Text(cell) for cell in row))
        RichConsole(file=self._answer.stream, highlight=False).print(table)


@dataclass(slots=True)
class TransferCount:
    """The numbers of a transfer's summary; times are of `time.perf_counter`.

    byte_count: dataset bytes of `instances`, which are those answered 0000 or B0xx. bytes_known: false
    where others transfer, and nobody tells of bytes.
    """

    instances: int = 0
    failed: int = 0
    skipped: int = 0
    byte_count: int = 0
    bytes_known: bool = True
    first: float = math.inf
    last: float = -math.inf

    def operation(self, ended: float, seconds: float) -> None:
        """An operation that was answered at `ended` and had been asked `seconds` before."""
        if ended - seconds < self.first:
            self.first = ended - seconds
        if ended > self.last:
            self.last = ended

    @property
    def seconds(self) -> float:
        return max(self.last - self.first, 0.0) if self.last >= self.first else 0.0

    def fields(self) -> dict[str, Any]:
        """The summary's fields, by their contracted names."""
        seconds = self.seconds
        mib_per_s = round(self.byte_count / seconds / 2**20, 3) if seconds else 0.0
        return {
            "instances": self.instances,
            "failed": self.failed,
            "skipped": self.skipped,
            "bytes": self.byte_count if self.bytes_known else None,
            "seconds": round(seconds, 6),
            "wall_seconds": round(process_seconds(), 3),
            "mib_per_s": mib_per_s if self.bytes_known else None,
            "instances_per_s": round(self.instances / seconds, 3) if seconds else 0.0,
        }

    def text(self, participle: str) -> str:
        """The same for a reader, such as `12 instances sent, 6.0 MiB in 0.10 s, ...`."""
        fields = self.fields()
        noun = "instance" if self.instances == 1 else "instances"
        text = f"{self.instances} {noun} {participle}"
        rate = ""
        if self.bytes_known:
            text += f", {format_bytes(self.byte_count)}"
            rate = f"{fields['mib_per_s']:.1f} MiB/s, "
        if self.seconds:
            rate += f"{fields['instances_per_s']:.1f} instances/s"
            text += f" in {format_seconds(self.seconds)} ({rate})"
        for count, word in ((self.failed, "failed"), (self.skipped, "skipped")):
            if count:
                text += f", {count} {word}"
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One look at a running transfer; `total` and `byte_count` are None where they are not known."""

    done: int
    total: int | None
    byte_count: int | None
    failed: int = 0
    note: str = ""

    def text(self, seconds: float) -> str:
        of = f"/{self.total}" if self.total is not None else ""
        text = f"{self.done}{of} instances"
        if self.byte_count is not None:
            rate = self.byte_count / seconds if seconds > 0 else 0.0
            text += f", {format_bytes(self.byte_count)}, {format_bytes(rate)}/s"
        if self.failed:
            text += f", {self.failed} failed"
        return f"{self.note}: {text}" if self.note else text


async def show_progress(session: Session, look: Callable[[], Progress | None]) -> None:
    """Shows what `look` returns until cancelled: a bar on a terminal, else a line every 30 s.

    `look` returns None while there is nothing to show yet.
    """
    import trio

    from dcmhaul.cli.console import Level

    console = session.console
    if console.level < Level.WARN:
        return
    started = trio.current_time()
    if not sys.stderr.isatty() or console.level > Level.WARN:
        # Under -v lines scroll by; a bar between them would be torn.
        while True:
            await trio.sleep(PROGRESS_LINE_SECONDS)
            seen = look()
            if seen is not None:
                console.warn(f"{session.name}: {seen.text(trio.current_time() - started)}")
    await _draw(console, look, session.name, started)


async def _draw(
    console: Console, look: Callable[[], Progress | None], verb: str, started: float
) -> None:
    """The bar. Drawn by this task: rich's own refresh would be a thread beside the transfer."""
    import trio
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    screen = RichConsole(stderr=True, highlight=False)
    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        console=screen,
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with bar:
        console.above = partial(screen.print, markup=False, soft_wrap=True)
        try:
            task = bar.add_task(verb, total=None, text="")
            while True:
                seen = look()
                if seen is not None:
                    text = seen.text(trio.current_time() - started)
                    bar.update(task, completed=seen.done, total=seen.total, text=text)
                    bar.refresh()
                await trio.sleep(1 / PROGRESS_HERTZ)
        finally:
            console.above = None
