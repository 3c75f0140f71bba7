"""Labelled points at which a test lets the process die, as by kill -9: `CRASH_AT=name:n`.

A leaf. The command line arms it; a program that imports dcmhaul as a library is never killed by its
environment. Until it is armed a point costs one branch: `if crash.armed: crash.passed("tmp.linked")`.
"""

from __future__ import annotations

import itertools
import os
import signal
from typing import TYPE_CHECKING

from dcmhaul.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LABELS", "VARIABLE", "arm", "armed", "passed"]

VARIABLE = "CRASH_AT"

LABELS = (
    "recv.first_pdv",  # the first bytes of a dataset came, none were written
    "recv.mid",  # some of a dataset was handed on, more follows
    "recv.last_pdv",  # the last bytes came, and were not handed on yet
    "tmp.written",  # the temporary file is whole, nothing was synced
    "tmp.fdatasync",  # its data are on stable storage, it has no name
    "tmp.linked",  # it has its name, the folder was not synced
    "dir.fsynced",  # the folder was synced
    "db.before_commit",  # statements ran, the COMMIT did not
    "db.after_commit",  # the COMMIT returned, nobody was told
    "rsp.before_send",  # the instance is settled, its C-STORE-RSP not queued
    "rsp.after_send",  # the kernel has taken the C-STORE-RSP
    "send.before_cmd",  # an instance was taken, nothing of it was sent
    "send.mid_dataset",  # the kernel has taken a part of a dataset
    "send.all_sent",  # the kernel has taken the whole C-STORE-RQ
    "rsp.received",  # a C-STORE-RSP was read, nothing follows from it yet
    "ledger.before_ack",  # final states are about to be written to the ledger
    "ledger.after_ack",  # final states are durable in the ledger
    "shutdown.draining",  # the end was asked for, work is in flight
)

armed = False
_label = ""
_last = 0
_passages = itertools.count(1)


def arm(environment: Mapping[str, str] | None = None) -> None:
    """Reads `CRASH_AT`; ConfigurationError where it is not `name:n` with a label from LABELS."""
    global armed, _label, _last, _passages
    text = (os.environ if environment is None else environment).get(VARIABLE, "")
    armed = False
    if not text:
        return
    label, _, number = text.partition(":")
    if label not in LABELS:
        raise ConfigurationError(
            f"{VARIABLE}: {label!r} is no crash point (they are {', '.join(LABELS)})"
        )
    if not (number.isascii() and number.isdigit() and int(number) > 0):
        raise ConfigurationError(f"{VARIABLE}: expected NAME:N with N from 1, not {text!r}")
    _label, _last, _passages = label, int(number), itertools.count(1)
    armed = True


def passed(label: str) -> None:
    """Called at a point, from any thread; kills the process at the chosen passage of the chosen one."""
    if label == _label and next(_passages) == _last:
        # Not os._exit: a signal is what a real kill is, and runs nothing of ours, in no thread.
        os.kill(os.getpid(), signal.SIGKILL)
        signal.pause()  # the signal may reach another thread first
