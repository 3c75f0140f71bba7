"""Standard error in levels, and text from peers made safe to print."""

from __future__ import annotations

import sys
import traceback
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Console", "Level", "printable"]


class Level(IntEnum):
    """DCMTK's log levels; WARN is the default, `-q` FATAL, `-v` INFO, `-d` DEBUG."""

    FATAL = 0
    ERROR = 1
    WARN = 2
    INFO = 3
    DEBUG = 4
    TRACE = 5


def printable(text: str) -> str:
    """The text in one line without control characters: a peer's bytes must not steer a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Console:
    """Writes lines to stderr; nobody else does, except a progress display on its own line."""

    def __init__(self, level: Level = Level.WARN) -> None:
        self.level = level
        self.warned: set[str] = set()
        # A progress bar puts itself here, so that lines go above it.
        self.above: Callable[[str], None] | None = None

    def _write(self, text: str) -> None:
        try:
            if self.above is not None:
                self.above(printable(text))
            else:
                print(printable(text), file=sys.stderr, flush=True)
        except OSError:
            # A closed stderr must not stop a transfer.
            pass

    def always(self, text: str) -> None:
        """What a script may wait for, such as `listening on`."""
        self._write(text)

    def error(self, text: str) -> None:
        if self.level >= Level.ERROR:
            self._write(text)

    def warn(self, text: str) -> None:
        if self.level >= Level.WARN:
            self._write(text)

    def warn_once(self, text: str) -> None:
        if text not in self.warned:
            self.warned.add(text)
            self.warn(text)

    def info(self, text: str) -> None:
        if self.level >= Level.INFO:
            self._write(text)

    def debug(self, text: str) -> None:
        if self.level >= Level.DEBUG:
            self._write(text)

    def debug_lines(self, lines: Iterable[str]) -> None:
        """The lines where `-d` shows them; they are not made otherwise."""
        if self.level >= Level.DEBUG:
            for line in lines:
                self._write(line)

    def trace_back(self, error: BaseException) -> None:
        """The traceback of an error, under `-d` alone."""
        if self.level >= Level.DEBUG:
            traceback.print_exception(error, file=sys.stderr)
