"""`dcmhaul get`: C-GET into a folder."""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import click

from dcmhaul.cli.dcmtk import preferred_syntaxes
from dcmhaul.cli.exits import Exit, for_status
from dcmhaul.cli.options import (
    chosen_durability,
    durable_option,
    key_options,
    metrics_option,
    model_options,
    network_options,
    prefer_option,
    propose_option,
    verb,
)
from dcmhaul.cli.output import Progress, TransferCount, show_progress
from dcmhaul.errors import ConfigurationError, DcmhaulError, NoAcceptedContext

if TYPE_CHECKING:
    from dcmhaul.cli.keys import Identifier
    from dcmhaul.cli.network import CountingObserver
    from dcmhaul.cli.retrieval import Questioner
    from dcmhaul.cli.session import NetworkOptions, Session
    from dcmhaul.config import Peer
    from dcmhaul.net import Association
    from dcmhaul.objects.instances import SinkFactory
    from dcmhaul.services.retrieve import GetResponse
    from dcmhaul.services.storage import StorageScp
    from dcmhaul.wire.items import PresentationContextRq

__all__ = ["command"]

_EPILOG = """\b
Keys are typed as for find. Without a level (0008,0052) the lowest whose unique
key has a value is taken. Where a key is not a unique key, or a unique key above
the level is missing, the matches are asked for by C-FIND first and retrieved by
their UIDs; --as-typed sends the identifier untouched. +x= +xe +xs +xv ... say
which transfer syntax is wanted first, +xi takes implicit VR alone; -x= -xe -xb
-xi choose the syntax of the request.
Ctrl-C once cancels by C-CANCEL and keeps what still comes, twice stops at once;
the exit code is 130.

\b
Examples:
  dcmhaul get PACS@10.1.2.3:104 -S -k StudyInstanceUID=1.2.3 -od ./study
  dcmhaul get PACS@10.1.2.3:104 -S -k PatientName=DOE* -od . --associations 4
"""


@verb("get", tool="getscu", epilog=_EPILOG)
@key_options
@model_options(worklist=False)
@click.option(
    "-od", "--output-directory", "folder", default=".", metavar="DIR", help="Where [default: .]."
)
@click.option("--ignore", "--discard", "discard", is_flag=True, help="Receive, keep nothing.")
@durable_option
@click.option(
    "--associations", type=click.IntRange(1, 128), help="Associations at once [default: 1]."
)
@click.option("--as-typed", is_flag=True, help="Ask nothing first, add nothing but a level.")
@click.option("--relational", is_flag=True, help="Propose relational retrieval.")
@click.option("-B", "--normal", is_flag=True, expose_value=False, help="The same as +B.")
@click.option(
    "+B", "--bit-preserving", is_flag=True, expose_value=False, help="As received; always so."
)
@network_options(awaited="Wait for any sign of progress [default: 600")
@metrics_option
@propose_option
@prefer_option
@click.option("--repeat", type=click.IntRange(1), default=1, metavar="N", help="Retrieve N times.")
@click.option("--abort", is_flag=True, help="End with A-ABORT instead of A-RELEASE.")
@click.argument("words", nargs=-1, metavar="PEER [QUERYFILE...]")
def command(
    session: Session,
    network: NetworkOptions,
    words: tuple[str, ...],
    keys: tuple[str, ...],
    model: str | None,
    folder: str,
    discard: bool,
    durable: str | None,
    associations: int | None,
    as_typed: bool,
    relational: bool,
    metrics: str | None,
    propose: tuple[str, ...],
    prefer: tuple[str, ...],
    repeat: int,
    abort: bool,
) -> None:
    """C-GET from PEER into a folder, one Part-10 file an instance, named by its SOP Instance UID.

    PEER is AET@HOST:PORT, HOST PORT (with -aec), or a node of dcmhaul.toml.
    """
    import trio

    from dcmhaul.cli.completion import add_level
    from dcmhaul.cli.models import identifiers_of, quiet_pydicom

    mode = chosen_durability(durable, discard=discard)
    count = TransferCount()
    session.summary_fields = count.fields
    session.summary_text = partial(count.text, "retrieved")
    peer, files = session.split_peer(words, network)
    chosen = model or "patient"
    quiet_pydicom()
    typed = [add_level(chosen, query) for query in identifiers_of(keys, files)]
    if not any(query.elements.keys() - {0x00080052} for query in typed):
        raise ConfigurationError("a retrieve without a key would ask for everything: give -k")
    node = session.configuration.nodes.get(peer.name or "")
    associations = associations or 1
    if node is not None and node.associations_max is not None:
        associations = min(associations, node.associations_max)
    settings = _Settings(
        network=session.network(network, peer),
        peer=peer,
        model=chosen,
        associations=associations,
        as_typed=as_typed,
        relational=relational,
        propose=propose,
        preferred=preferred_syntaxes(prefer),
        repeat=repeat,
        abort=abort,
        metrics=metrics,
        durability=mode,
    )
    with ExitStack() as stack:
        sinks = None if discard else _sinks(session, folder, mode, stack)
        trio.run(_Get(session, settings, count, sinks).run, typed)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    network: NetworkOptions
    peer: Peer
    model: str
    associations: int
    as_typed: bool
    relational: bool
    propose: tuple[str, ...]
    preferred: tuple[str, ...]
    repeat: int
    abort: bool
    metrics: str | None
    durability: str


def _sinks(session: Session, folder: str, durability: str, stack: ExitStack) -> SinkFactory:
    from dcmhaul.objects.paths import Durability
    from dcmhaul.objects.sinks import FolderSinks

    try:
        return stack.enter_context(
            FolderSinks(folder, durable=Durability(durability), report=session.console.warn)
        )
    except OSError as error:
        raise ConfigurationError(f"-od {folder}: {error.strerror}") from error


class _Get:
    """One run: asks, plans the contexts, retrieves the units over associations."""

    def __init__(
        self, session: Session, settings: _Settings, count: TransferCount, sinks: SinkFactory | None
    ) -> None:
        from dcmhaul.engine.scheduler import StopRequest

        self.session = session
        self.settings = settings
        self.count = count
        self.sinks = sinks
        self.stop = StopRequest()

    async def run(self, typed: list[Identifier]) -> None:
        """Retrieves what the identifiers stand for."""
        import trio

        from dcmhaul.cli.stopping import stopping

        async with stopping(self.session, self.stop):
            asking = trio.CancelScope()
            self.stop.on_request(asking.cancel)
            units: list[Identifier] = []
            with asking:
                units, classes = await self._plan(typed)
            if units:
                with self.stop.cancel_scope:
                    await self._retrieve_all(units, classes)
            came = self.count.instances or any(self.session.codes)
            if not self.stop.requested and not (units and came):
                self._nothing()

    async def _retrieve_all(self, units: list[Identifier], classes: list[str]) -> None:
        import trio

        from dcmhaul.cli.network import CountingObserver, counting
        from dcmhaul.cli.retrieval import storage_contexts
        from dcmhaul.net import NullObserver

        settings = self.settings
        contexts = storage_contexts(classes, settings.preferred)
        pending = deque(units * settings.repeat)
        with counting(
            self.session, settings.metrics, settings.peer, settings.durability
        ) as observer:
            watching = CountingObserver(self.session, self.count, observer or NullObserver())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(show_progress, self.session, self._look)
                async with trio.open_nursery() as workers:
                    for _ in range(min(settings.associations, len(pending))):
                        workers.start_soon(self._work, pending, contexts, watching)
                nursery.cancel_scope.cancel()
        if pending:
            self.session.console.error(f"{len(pending)} requests were not made")

    def _nothing(self) -> None:
        self.session.code(Exit.NOTHING_MATCHED)
        self.session.console.error(f"dcmhaul {self.session.name}: nothing matched, nothing came")

    async def _plan(self, typed: list[Identifier]) -> tuple[list[Identifier], list[str]]:
        """The retrieve identifiers, and the SOP classes to expect."""
        from dcmhaul.cli import models
        from dcmhaul.cli.completion import warnings
        from dcmhaul.cli.network import open_peer
        from dcmhaul.cli.retrieval import COMMON_CLASSES, Questioner

        settings = self.settings
        console = self.session.console
        if settings.as_typed:
            for text in dict.fromkeys(
                t for query in typed for t in warnings(settings.model, query)
            ):
                console.warn(f"warning: {text}")
            return typed, list(COMMON_CLASSES)
        find_uid = models.MODELS[settings.model].find_uid
        try:
            async with open_peer(
                self.session,
                settings.network,
                settings.peer,
                (models.query_context(1, find_uid, settings.propose),),
                extended=(models.relational(find_uid),) if settings.relational else (),
            ) as association:
                questioner = Questioner(association, settings.model, console)
                return await self._ask(questioner, typed)
        except NoAcceptedContext:
            console.warn("the peer has no C-FIND in this model: the request goes out as typed")
            return typed, list(COMMON_CLASSES)

    async def _ask(
        self, questioner: Questioner, typed: list[Identifier]
    ) -> tuple[list[Identifier], list[str]]:
        from dcmhaul.cli.completion import (
            UNIQUE_KEYS,
            level_of,
            levels_of,
            needs_query,
            retrieve_identifiers,
        )
        from dcmhaul.cli.retrieval import COMMON_CLASSES, FindFailed

        model = self.settings.model
        console = self.session.console
        units: list[Identifier] = []
        for query in typed:
            level = level_of(query)
            if level not in levels_of(model):
                console.warn(f"warning: level {level or 'empty'} is none of this model's")
                units.append(query)
            elif needs_query(model, query):
                matches = await questioner.matches(query)
                found = retrieve_identifiers(model, level, matches)
                nameless = sum(not match.get(UNIQUE_KEYS[level]) for match in matches)
                if nameless:
                    console.warn(f"warning: {nameless} matches have no unique key at {level} level")
                console.warn(
                    f"asked by C-FIND first: {len(matches)} matches at {level} level, "
                    f"{len(found)} C-GET requests"
                )
                units += found
            else:
                units.append(query)
        known = [unit for unit in units if level_of(unit) in levels_of(model)]
        if len(known) < len(units) or not units:
            return units, list(COMMON_CLASSES)
        try:
            classes = await questioner.sop_classes(units)
            if self.settings.associations > 1:
                units = await questioner.split(units, self.settings.associations)
        except FindFailed as error:
            console.warn(f"warning: {error}; the commonest storage classes are proposed")
            return units, list(COMMON_CLASSES)
        return units, classes

    async def _work(
        self,
        pending: deque[Identifier],
        contexts: tuple[PresentationContextRq, ...],
        observer: CountingObserver,
    ) -> None:
        from dcmhaul.cli import models
        from dcmhaul.cli.network import open_peer
        from dcmhaul.services.retrieve import storage_roles
        from dcmhaul.services.storage import StorageScp

        settings = self.settings
        get_uid = models.MODELS[settings.model].get_uid
        storage = StorageScp(
            self.sinks, extra_classes=[context.abstract_syntax for context in contexts]
        )
        try:
            async with open_peer(
                self.session,
                settings.network,
                settings.peer,
                (models.query_context(1, get_uid, settings.propose), *contexts),
                roles=storage_roles(context.abstract_syntax for context in contexts),
                extended=(models.relational(get_uid),) if settings.relational else (),
                observer=observer,
            ) as association:
                while pending and not self.stop.requested:
                    await self._retrieve(association, storage, pending.popleft())
                if settings.abort:
                    await association.abort()
        except DcmhaulError as error:
            # The other associations go on with what is left.
            self.session.begun = self.session.begun or self.count.instances > 0
            self.session.fail(error)

    async def _retrieve(
        self, association: Association, storage: StorageScp, unit: Identifier
    ) -> None:
        from dcmhaul.cli.keys import dump_lines, encode_identifier
        from dcmhaul.cli.models import MODELS
        from dcmhaul.services.retrieve import GET_SECONDS, get

        settings = self.settings
        self.session.console.debug_lines(dump_lines(unit))
        before = self.count.failed
        response = await get(
            association,
            MODELS[settings.model],
            partial(encode_identifier, unit),
            storage.handle,
            on_pending=self._pending,
            cancel=self.stop.event,
            seconds=settings.network.timeouts.get("dimse", GET_SECONDS),
        )
        self.session.begun = True
        self._final(response, self.count.failed - before)

    def _pending(self, response: GetResponse) -> None:
        self.session.console.info(
            f"C-GET: {response.completed} done, {response.remaining} to come, "
            f"{response.failed} failed"
        )

    def _final(self, response: GetResponse, refused_here: int) -> None:
        """Judges one C-GET. What the peer counts as failed holds what we refused ourselves."""
        from dcmhaul.protocol.statuses import CANCEL, COERCION, SUCCESS, describe

        console = self.session.console
        failed = max(response.failed or 0, len(response.failed_sop_instance_uids), refused_here)
        self.count.failed += failed - refused_here
        for uid in response.failed_sop_instance_uids:
            console.error(f"failed: {uid}")
            self.session.answer.record({"type": "failed", "sop_instance_uid": uid})
        text = describe(response.status, "C-GET")
        if response.error_comment:
            text += f" ({response.error_comment})"
        if response.status == SUCCESS and not failed:
            console.info(text)
        elif response.status in (SUCCESS, COERCION):
            if failed:
                self.session.code(Exit.RETRYABLE)
                console.error(f"{failed} sub-operations failed: {text}")
            else:
                console.info(text)
        elif response.status == CANCEL and self.stop.requested:
            console.info(text)
        else:
            self.session.code(for_status(response.status) or Exit.PERMANENT)
            console.error(f"dcmhaul {self.session.name}: {text}")
            self.session.errors.append(text)

    def _look(self) -> Progress:
        count = self.count
        return Progress(
            done=count.instances,
            total=None,
            byte_count=count.byte_count,
            failed=count.failed,
        )
