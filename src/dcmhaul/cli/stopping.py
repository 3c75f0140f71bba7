"""Ctrl-C and SIGTERM for the verbs that transfer: once finishes what is in flight, twice stops at once."""

from __future__ import annotations

import signal
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from dcmhaul.cli.exits import Exit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dcmhaul.cli.session import Session
    from dcmhaul.engine.scheduler import StopRequest

__all__ = ["stopping"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@asynccontextmanager
async def stopping(session: Session, stop: StopRequest) -> AsyncIterator[None]:
    """During the block signals go to `stop`; where one came the exit code is 130.

    After it, where one came, more of them are ignored: what is left is to say how far it got.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals do not come here: whoever started the thread has them
        return

    async def listen(signals: AsyncIterator[int]) -> None:
        async for _ in signals:
            if not stop.requested:
                session.code(Exit.INTERRUPTED)
                session.console.warn("stopping: what is in flight is finished (again: at once)")
            stop.request()

    # The receiver leaves behind what it found.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
    try:
        with trio.open_signal_receiver(*_SIGNALS) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen, signals)
                yield
                nursery.cancel_scope.cancel()
    finally:
        if not stop.requested:
            for number, handler in before.items():
                signal.signal(number, handler)
