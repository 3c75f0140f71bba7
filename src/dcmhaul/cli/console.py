"""Standard error in levels, and text from peers made safe to print."""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Console", "Level", "logged", "printable"]


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


class _Handler(logging.Handler):
    """Says what the layers below log, by the console's level."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        say = self._console.debug
        if record.levelno >= logging.ERROR:
            say = self._console.error
        elif record.levelno >= logging.WARNING:
            say = self._console.warn
        say(record.getMessage())
        if record.exc_info is not None and record.exc_info[1] is not None:
            self._console.trace_back(record.exc_info[1])


@contextmanager
def logged(console: Console) -> Iterator[None]:
    """During the block the log of dcmhaul goes to the console, and nowhere else on stderr."""
    logger = logging.getLogger("dcmhaul")
    handler, level = _Handler(console), logger.level
    logger.addHandler(handler)
    if console.level >= Level.DEBUG:
        logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
