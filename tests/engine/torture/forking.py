"""Starts commands of the real CLI by fork, from a process that has imported it already.

Five hundred interpreters that each import everything would cost ten times what they are killed for. A
child runs `dcmhaul.cli.main(arguments)` and nothing else; it is a process of its own in every respect
that kill -9 knows. Run as a module it is the server: JSON lines in, JSON lines out.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import select
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

import dcmhaul

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

__all__ = ["Child", "Forker"]

START_SECONDS = 60.0
END_SECONDS = 60.0


class Child:
    """One command that runs, or ran. `code` is None until it ended; minus the signal's number if killed."""

    def __init__(self, name: str, stdout: Path, stderr: Path) -> None:
        self.name = name
        self.pid = 0
        self.code: int | None = None
        self.ended = trio.Event()
        self._stdout = stdout
        self._stderr = stderr

    @property
    def said(self) -> str:
        """Its stderr so far."""
        return self._stderr.read_text(errors="replace")

    @property
    def answer(self) -> str:
        """Its stdout so far."""
        return self._stdout.read_text(errors="replace")

    def signal(self, number: int) -> None:
        if self.code is None:
            os.kill(self.pid, number)

    async def wait(self) -> int:
        with trio.fail_after(END_SECONDS):
            await self.ended.wait()
        assert self.code is not None
        return self.code

    async def until_said(self, text: str) -> None:
        """Returns when its stderr holds `text`, or when it ended."""
        with trio.fail_after(START_SECONDS):
            while text not in self.said and self.code is None:
                await trio.sleep(0.002)


class Forker:
    """The client's side; `opened` makes it."""

    def __init__(self, process: trio.Process, folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._children: dict[int, Child] = {}
        self._started: dict[int, Child] = {}
        self._count = 0

    @classmethod
    @asynccontextmanager
    async def opened(cls, folder: Path) -> AsyncIterator[Forker]:
        """Children that are left at the end are killed."""
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", __spec__.name if __spec__ else __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "OPENBLAS_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(sys.path),
            },
        )
        forker = cls(process, folder)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forker._read)
            try:
                yield forker
            finally:
                for child in forker._children.values():
                    if child.code is None:
                        os.kill(child.pid, signal.SIGKILL)
                process.kill()
                nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await process.wait()

    async def start(self, name: str, *arguments: object, **environment: str) -> Child:
        """Starts `dcmhaul name arguments`; returns when it has a PID."""
        self._count += 1
        stem = self._folder / f"{self._count:04}-{name}"
        child = Child(name, stem.with_suffix(".out"), stem.with_suffix(".err"))
        for path in (child._stdout, child._stderr):
            path.touch()
        self._started[self._count] = child
        request = {
            "key": self._count,
            "arguments": [name, *map(str, arguments)],
            "environment": environment,
            "stdout": str(child._stdout),
            "stderr": str(child._stderr),
        }
        assert self._process.stdin is not None
        await self._process.stdin.send_all(json.dumps(request).encode() + b"\n")
        with trio.fail_after(START_SECONDS):
            while not child.pid:
                await trio.sleep(0.001)
        return child

    async def _read(self) -> None:
        assert self._process.stdout is not None
        rest = b""
        async for data in self._process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._heard(json.loads(line))

    def _heard(self, message: Mapping[str, int]) -> None:
        if "key" in message:
            child = self._started.pop(message["key"])
            child.pid = message["pid"]
            self._children[child.pid] = child
        else:
            child = self._children.pop(message["ended"])
            child.code = message["code"]
            child.ended.set()


# -- the server ---------------------------------------------------------------------------------


def _serve() -> None:
    for module in pkgutil.walk_packages(dcmhaul.__path__, "dcmhaul."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    importlib.import_module("sqlalchemy.dialects.sqlite.pysqlite")
    _be_impatient()
    reading, waking = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waking)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    buffered = b""
    while True:
        ready, _, _ = select.select([0, reading], [], [])
        if reading in ready:
            os.read(reading, 4096)
            _reap()
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                return
            *lines, buffered = (buffered + data).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    _child(request)
                _say({"key": request["key"], "pid": pid})


def _be_impatient() -> None:
    """Peers are started again at once here: what waits longer for them only makes the campaign long."""
    from dcmhaul.migrate import run

    run.PoolPolicy = partial(run.PoolPolicy, delay_max_seconds=0.25)  # type: ignore[attr-defined, assignment]
    run.RetryPolicy = partial(run.RetryPolicy, delay_max_seconds=0.1)  # type: ignore[attr-defined, assignment]


def _reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _say({"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def _say(message: Mapping[str, int]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def _child(request: dict[str, Any]) -> None:
    code = 70
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.environ.update(request["environment"])
        from dcmhaul.cli import main

        code = main(request["arguments"])
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve()
