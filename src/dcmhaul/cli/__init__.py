"""The command line: one module a verb, which parses, calls and prints.

Nothing but the names of the verbs is imported here: `dcmhaul --version` must answer at once, and
each verb pays for its own imports alone.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from dcmhaul import crash
from dcmhaul._version import __version__
from dcmhaul.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dcmhaul.cli.options import Verb

__all__ = ["ALIASES", "VERBS", "main"]

# Verb -> what it does; the verb's module has the same name, those of DIMSE-N share one.
VERBS = {
    "echo": "C-ECHO: is the peer there, and how fast does it answer",
    "find": "C-FIND: ask for patients, studies, series, instances or worklist items",
    "get": "C-GET: retrieve instances into a folder",
    "move": "C-MOVE: have the peer send to a third AE, or here",
    "send": "C-STORE: send files and folders",
    "receive": "Storage SCP: take instances into a folder, or discard them",
    "archive": "an embedded archive: stores, answers queries, sends back",
    "commit": "storage commitment: have a peer promise to keep instances",
    "mpps": "modality performed procedure step: tell of one, as a modality does",
    "ups": "unified procedure steps: make, find, claim, end and watch them",
    "n-create": "N-CREATE: make a SOP instance",
    "n-set": "N-SET: change a SOP instance",
    "n-get": "N-GET: ask for attributes of a SOP instance",
    "n-action": "N-ACTION: have something done with a SOP instance",
    "n-delete": "N-DELETE: delete a SOP instance",
    "n-event-report": "N-EVENT-REPORT: tell of an event",
    "migrate": "move studies from one archive or folder to another",
    "check": "compare what two archives or folders hold",
    "jobs": "what a ledger knows of migrations: what ran, how far each is",
    "report": "what a job moved, what failed and why, as html, json, csv or md",
    "synth": "write synthetic studies",
    "demo": "two archives, real files, and a migration between them",
}

# DCMTK's name -> verb.
ALIASES = {
    "echoscu": "echo",
    "findscu": "find",
    "getscu": "get",
    "movescu": "move",
    "storescu": "send",
    "storescp": "receive",
}


def _usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {text}" for name, text in VERBS.items())
    aliases = ", ".join(f"{alias} = {name}" for alias, name in ALIASES.items())
    return (
        "Usage: dcmhaul VERB [OPTIONS] [ARGUMENTS]\n\n"
        "Moves DICOM studies over the network, and proves that nothing was lost.\n\n"
        f"Verbs:\n{verbs}\n\n"
        f"DCMTK's names work too: {aliases}.\n"
        "A peer is AET@HOST:PORT, HOST PORT (with -aec TITLE), or a node of dcmhaul.toml.\n"
        "@FILE anywhere stands for the words of that file.\n\n"
        "dcmhaul VERB --help says more. dcmhaul --version prints the version.\n"
    )


def _load(name: str) -> Verb:
    if name.startswith("n-"):
        from dcmhaul.cli.normalized import commands

        return commands[name]
    module = import_module(f"dcmhaul.cli.{ALIASES.get(name, name)}")
    command: Verb = module.command
    return command


def _refuse(text: str, arguments: Sequence[str]) -> int:
    """A command line that cannot be used: one line, and under `--json` the summary all the same."""
    print(f"dcmhaul: {text}", file=sys.stderr)
    if "--json" in arguments:
        import json

        print(json.dumps({"type": "summary", "exit_code": 2, "error": text}), flush=True)
    return 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (without the program's name) and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    try:
        try:
            return _main(arguments)
        except ConfigurationError as error:
            return _refuse(str(error), arguments)
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        # A verb says its own errors; what arrives here is a stdout that takes no more. It is a
        # broken pipe where its reader has gone, as `head` does, and then there is nothing to say.
        if not isinstance(error, BrokenPipeError):
            print(f"dcmhaul: stdout cannot be written: {error.strerror}", file=sys.stderr)
        # What is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _open_streams() -> None:
    """The null device where the caller closed a standard stream: a socket must not get its number."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _main(arguments: list[str]) -> int:
    if arguments[:1] == ["--version"]:
        print(f"dcmhaul {__version__}", flush=True)
        return 0
    if not arguments:
        print(_usage(), file=sys.stderr, end="")
        return 2
    if arguments[0] in ("-h", "--help", "help"):
        print(_usage(), end="", flush=True)
        return 0
    from dcmhaul.cli.arguments import expand_files

    crash.arm()
    arguments[:] = expand_files(arguments)
    name = arguments[0] if arguments else ""
    if name not in VERBS and name not in ALIASES:
        raise ConfigurationError(f"no such verb: {name} (dcmhaul --help lists them)")
    if arguments[1:2] == ["--version"]:
        print(f"dcmhaul {__version__}", flush=True)
        return 0
    return _run(name, arguments[1:])


def _run(name: str, arguments: list[str]) -> int:
    import click

    try:
        return _load(name).run(name, arguments)
    except click.ClickException as error:
        return _refuse(f"{name}: {error.format_message()}", arguments)
