"""`dcmhaul send`: files and folders to a storage SCP."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import click

from dcmhaul import uids
from dcmhaul.cli.console import Level
from dcmhaul.cli.dcmtk import preferred_syntaxes
from dcmhaul.cli.exits import Exit, for_error, for_status
from dcmhaul.cli.options import metrics_option, network_options, propose_option, verb
from dcmhaul.cli.output import Progress, TransferCount, show_progress
from dcmhaul.errors import ConfigurationError, NoAcceptedContext

if TYPE_CHECKING:
    from dcmhaul.cli.session import NetworkOptions, Session
    from dcmhaul.config import Peer
    from dcmhaul.engine.scheduler import StopRequest
    from dcmhaul.engine.sender import Reencoding, SendGroup, SendPlan
    from dcmhaul.net import Association, Observer
    from dcmhaul.objects.instances import OutgoingInstance
    from dcmhaul.objects.sources import FailedEntry, SkippedEntry
    from dcmhaul.services.storage import StoreOutcome
    from dcmhaul.wire.items import UserIdentityRq

__all__ = ["check_paths", "command"]

# Associations in a row that end without an answer before the peer is given up.
FAILURES_MAX = 3

_EPILOG = """\b
Files that are not DICOM, and DICOMDIRs, are skipped; one failure does not stop
the rest. A file's own transfer syntax is always proposed; -x= -xe -xb -xi -xd
-xs -xy -xx -xv -xw -xt -xu -xr ... only say which contexts come first. Where the
peer does not take it, a file in one of the uncompressed syntaxes is sent in
another of them; a compressed one fails, unless --transcode decompresses it. Under
the name storescu a folder needs +sd, and its subfolders +r. Ctrl-C once
finishes what is in flight, twice stops at once; the exit code is 130.

\b
Examples:
  dcmhaul send PACS@10.1.2.3:104 ./studies --associations 4 --window 16
  dcmhaul send -aec PACS 10.1.2.3 104 image.dcm
"""


@verb("send", tool="storescu", epilog=_EPILOG)
@click.option(
    "--associations",
    type=click.IntRange(1, 128),
    help="Associations at once [default: 1].",
)
@click.option(
    "--window",
    type=click.IntRange(1, 32),
    help="Unanswered C-STOREs on each, where the peer grants it [default: 1].",
)
@network_options(send=True)
@metrics_option
@propose_option
@click.option("+sd", "--scan-directories", "scan", is_flag=True, help="storescu: take folders.")
@click.option("+r", "--recurse", "recurse", is_flag=True, help="storescu: take their subfolders.")
@click.option("+fo", "--read-file-only", "files_only", is_flag=True, help="Only files with meta.")
@click.option(
    "-R",
    "--required",
    is_flag=True,
    expose_value=False,
    help="Only the contexts needed; always so.",
)
@click.option(
    "-nh", "--no-halt", is_flag=True, expose_value=False, help="Go on after a failure; always so."
)
@click.option(
    "--transcode",
    is_flag=True,
    help="Decompress what the peer takes in no compressed syntax, where pydicom has the decoder.",
)
@click.option(
    "--repeat", type=click.IntRange(1), default=1, help="Send everything N times.", metavar="N"
)
@click.option("--abort", is_flag=True, help="End with A-ABORT instead of A-RELEASE.")
@click.option("-usr", "--user", metavar="NAME", help="User identity: name.")
@click.option("-pwd", "--password", metavar="TEXT", help="User identity: passcode, with -usr.")
@click.argument("words", nargs=-1, metavar="PEER PATH...")
def command(
    session: Session,
    network: NetworkOptions,
    words: tuple[str, ...],
    associations: int | None,
    window: int | None,
    metrics: str | None,
    propose: tuple[str, ...],
    scan: bool,
    recurse: bool,
    files_only: bool,
    transcode: bool,
    repeat: int,
    abort: bool,
    user: str | None,
    password: str | None,
) -> None:
    """C-STORE of files and folders (with their subfolders) to PEER.

    PEER is AET@HOST:PORT, HOST PORT (with -aec), or a node of dcmhaul.toml. PATH - is stdin.
    """
    import trio

    count = TransferCount()
    session.summary_fields = count.fields
    session.summary_text = partial(count.text, "sent")
    peer, paths = session.split_peer(words, network)
    if session.name == "storescu" and recurse and not scan:
        raise ConfigurationError("+r goes with +sd: subfolders of the folders that +sd takes")
    node = session.configuration.nodes.get(peer.name or "")
    associations = associations or 1
    if node is not None and node.associations_max is not None:
        associations = min(associations, node.associations_max)
    settings = _Settings(
        network=session.network(network, peer),
        peer=peer,
        associations=associations,
        window=window or (node.window[0] if node is not None and node.window else 1),
        first=preferred_syntaxes(propose),
        recursive=session.name != "storescu" or recurse,
        files_only=files_only,
        transcode=transcode,
        repeat=repeat,
        abort=abort,
        identity=_identity(session, user, password, encrypted=peer.tls is not None),
        metrics=metrics,
    )
    with ExitStack() as stack:
        checked = [_spooled(stack) if path == "-" else path for path in paths]
        check_paths(session, checked, folders=session.name != "storescu" or scan)
        names = {found: path for found, path in zip(checked, paths, strict=True) if path == "-"}
        trio.run(_Send(session, settings, count, names).run, checked)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    network: NetworkOptions
    peer: Peer
    associations: int
    window: int
    first: tuple[str, ...]
    recursive: bool
    files_only: bool
    transcode: bool
    repeat: int
    abort: bool
    identity: UserIdentityRq | None
    metrics: str | None


def _spooled(stack: ExitStack) -> str:
    """Stdin as a file: an instance is sent by its length, which a pipe does not tell."""
    spool = stack.enter_context(tempfile.NamedTemporaryFile(prefix="dcmhaul-"))  # noqa: SIM115
    while piece := sys.stdin.buffer.read(1 << 20):
        spool.write(piece)
    spool.flush()
    return spool.name


def check_paths(session: Session, paths: list[str], *, folders: bool) -> None:
    """ConfigurationError where there is none, or one does not exist, or is a folder that is not taken."""
    if not paths:
        raise ConfigurationError(f"{session.name} needs a PATH: what is to be sent")
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        shown = ", ".join(path or "''" for path in missing)
        raise ConfigurationError(f"no such file or folder: {shown}")
    if not folders:
        found = [path for path in paths if os.path.isdir(path)]
        if found:
            raise ConfigurationError(f"{found[0]} is a folder; +sd takes folders, +r subfolders")


def _identity(
    session: Session, user: str | None, password: str | None, *, encrypted: bool
) -> UserIdentityRq | None:
    from dcmhaul.wire.items import UserIdentityRq

    if user is None:
        if password is not None:
            raise ConfigurationError("-pwd needs -usr")
        return None
    if not encrypted:
        session.console.warn("the user identity travels in clear text: this association has no TLS")
    return UserIdentityRq(
        # 1: user name; 2: user name and passcode (PS3.7 §D.3.3.7.1).
        identity_type=1 if password is None else 2,
        response_requested=False,
        primary=user.encode("utf-8"),
        secondary=(password or "").encode("utf-8"),
    )


class _Send:
    """One run: counts what is reported, and says what failed.

    names: what a file is called in messages, where that is not its path.
    """

    def __init__(
        self, session: Session, settings: _Settings, count: TransferCount, names: dict[str, str]
    ) -> None:
        self.names = names
        self.session = session
        self.settings = settings
        self.count = count
        self.planned: int | None = None
        self.settled = 0
        """Of the planned instances, those of which it is known how they ended."""

    async def run(self, paths: list[str]) -> None:
        """Looks at the files, then sends them."""
        import trio

        from dcmhaul.cli.network import counting
        from dcmhaul.cli.stopping import stopping
        from dcmhaul.engine.scheduler import StopRequest
        from dcmhaul.engine.sender import scan_files

        settings = self.settings
        stop = StopRequest()
        scanning = trio.CancelScope()
        stop.on_request(scanning.cancel)
        async with stopping(self.session, stop), trio.open_nursery() as nursery:
            nursery.start_soon(show_progress, self.session, self._look)
            plan = None
            with scanning:
                plan = await scan_files(
                    paths,
                    recursive=settings.recursive,
                    files_only=settings.files_only,
                    report=self._entry,
                )
            if plan is not None and plan.paths:
                self.planned = len(plan.paths) * settings.repeat
                with counting(self.session, settings.metrics, settings.peer) as observer:
                    await self._send(plan, observer, stop)
            elif plan is not None and not self.count.failed:
                self.session.console.error(f"dcmhaul {self.session.name}: no DICOM file to send")
                self.session.code(Exit.NOTHING_MATCHED)
            nursery.cancel_scope.cancel()

    async def _send(self, plan: SendPlan, observer: Observer | None, stop: StopRequest) -> None:
        from dcmhaul.engine.sender import Reencoding

        reencoding = Reencoding(self._reencoded, transcode=self.settings.transcode)
        with stop.cancel_scope:
            for group in plan.groups(self.settings.first, reencoding):
                if not stop.requested:
                    await self._send_group(group, reencoding, observer, stop)
        assert self.planned is not None
        unsent = self.planned - self.settled
        if unsent:
            self.count.failed += unsent
            answered = " or not answered" if stop.cancel_scope.cancelled_caught else ""
            self.session.console.error(f"{unsent} instances were not sent{answered}")

    async def _send_group(
        self,
        group: SendGroup,
        reencoding: Reencoding,
        observer: Observer | None,
        stop: StopRequest,
    ) -> None:
        from dcmhaul.cli.network import association_request, say_request, socket_options, timeouts
        from dcmhaul.engine.pool import AssociationPool, PoolPolicy
        from dcmhaul.engine.sender import FileSender

        settings = self.settings
        pool = AssociationPool(
            settings.peer.host,
            settings.peer.port,
            policy=PoolPolicy(
                size=settings.associations,
                # All of them may be lost at once to one hiccup of the peer.
                failures_max=settings.associations + FAILURES_MAX - 1,
            ),
            timeouts=timeouts(settings.network),
            options=socket_options(settings.network, settings.peer),
            observer=observer,
        )
        sender = FileSender(
            pool,
            window=settings.window,
            report=self._outcome,
            report_entry=self._entry,
            opened=partial(self._opened, group),
            closed=self._closed,
            abort=settings.abort,
            stop=stop,
            reencoding=reencoding,
        )
        request = association_request(
            settings.network,
            settings.peer,
            group.contexts,
            window=settings.window,
            user_identity=settings.identity,
        )
        say_request(self.session, settings.peer, request)
        await sender.send(group, request, times=settings.repeat)
        if sender.error is not None:
            self.session.fail(sender.error)

    def _opened(self, group: SendGroup, association: Association) -> None:
        from dcmhaul.cli.network import check_agreement

        check_agreement(self.session, self.settings.network, association, group.contexts)

    def _closed(self) -> None:
        from dcmhaul.cli.network import say_end

        say_end(self.session, self.settings.peer, aborted=self.settings.abort)

    def _look(self) -> Progress:
        count = self.count
        return Progress(
            done=count.instances + count.failed,
            total=self.planned,
            byte_count=count.byte_count,
            failed=count.failed,
            note="looking at files" if self.planned is None else "",
        )

    def _outcome(self, outcome: StoreOutcome) -> None:
        self.settled += 1
        count = self.count
        if outcome.status is not None:
            self.session.begun = True
            count.operation(time.perf_counter(), outcome.seconds)
            code: int = for_status(outcome.status)
            if code == Exit.OK:
                # Most come here, tens of thousands a second.
                count.instances += 1
                count.byte_count += outcome.length
                if outcome.status or self.session.console.level >= Level.INFO:
                    self._say(self._name(outcome.instance.label), outcome)
                return
            text = _text(outcome)
        else:
            code, text = self._unsent(outcome)
        count.failed += 1
        self._failed(self._name(outcome.instance.label), code, text, outcome.status)

    def _unsent(self, outcome: StoreOutcome) -> tuple[int, str]:
        """Why there is no status. No context for a class and syntax: the rest goes on, this never will."""
        from dcmhaul.objects.reencode import UNCOMPRESSED

        refused = isinstance(outcome.error, NoAcceptedContext)
        compressed = outcome.instance.transfer_syntax_uid not in UNCOMPRESSED
        error = outcome.error or NoAcceptedContext("not sent")
        code = Exit.PERMANENT if refused else for_error(error, begun=self.session.begun)
        text = str(error)
        if refused and not self.settings.transcode and compressed:
            text += "; --transcode sends it decompressed"
        return code, text

    def _reencoded(self, instance: OutgoingInstance, target: str) -> None:
        """Each instance under `-v`, each pair of syntaxes in one line always."""
        change = f"from {uids.name(instance.transfer_syntax_uid)} to {uids.name(target)}"
        self.session.console.warn_once(
            f"re-encoding {change}: {self.settings.peer} accepted no context for them as they are"
        )
        self.session.console.info(f"{self._name(instance.label)}: re-encoded {change}")

    def _say(self, label: str, outcome: StoreOutcome) -> None:
        """A stored instance: each under `-v`, one with a warning always."""
        text = f"{label}: {_text(outcome)}"
        if outcome.status:
            self.session.console.warn(text)
        else:
            self.session.console.info(text)

    def _entry(self, entry: SkippedEntry | FailedEntry) -> None:
        from dcmhaul.objects.sources import FailedEntry

        self.settled += self.planned is not None
        if isinstance(entry, FailedEntry):
            self.count.failed += 1
            self._failed(self._name(entry.path), Exit.PERMANENT, str(entry.error), None)
            return
        self.count.skipped += 1
        path = self._name(entry.path)
        self.session.console.warn(f"skipped: {path}: {entry.reason}")
        self.session.answer.record({"type": "skipped", "path": path, "reason": entry.reason})

    def _name(self, path: str) -> str:
        return self.names.get(path, path)

    def _failed(self, path: str, code: int, text: str, status: int | None) -> None:
        self.session.code(code)
        self.session.console.error(f"failed: {path}: {text}")
        record = {"type": "failed", "path": path, "error": text}
        if status is not None:
            record["status"] = f"{status:04X}"
        self.session.answer.record(record)


def _text(outcome: StoreOutcome) -> str:
    """What the peer answered."""
    from dcmhaul.cli.responses import response_text

    return response_text(outcome.status or 0, "C-STORE", outcome.offending, outcome.error_comment)
