"""What `get` and `move` share: they ask first, go over associations, and judge what was answered.

What a C-GET or a C-MOVE needs of its own (contexts, roles, where instances arrive) is theirs.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dcmhaul.cli.console import Level
from dcmhaul.cli.exits import Exit
from dcmhaul.cli.options import (
    durable_option,
    key_options,
    metrics_option,
    model_options,
    network_options,
    prefer_option,
    propose_option,
)
from dcmhaul.cli.output import Progress, TransferCount, show_progress
from dcmhaul.errors import ConfigurationError, DcmhaulError, NoAcceptedContext

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager, ExitStack

    import trio

    from dcmhaul.cli.keys import Identifier
    from dcmhaul.cli.network import CountingObserver
    from dcmhaul.cli.retrieval import Questioner
    from dcmhaul.cli.session import NetworkOptions, Session
    from dcmhaul.config import Peer
    from dcmhaul.net import Association
    from dcmhaul.objects.instances import SinkFactory
    from dcmhaul.services.retrieve import RetrieveResponse

    Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

__all__ = ["Retrieval", "RetrieveSettings", "folder_sinks", "retrieve_options", "typed_identifiers"]

T = TypeVar("T")
U = TypeVar("U")


def retrieve_options(*, awaited: str) -> Decorator:
    """The options and the argument that get and move have in common. awaited: what `-td` limits."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed((*_OPTIONS, network_options(awaited=awaited), *_LAST_OPTIONS)):
            function = decorator(function)
        return function

    return decorate


_OPTIONS: tuple[Decorator, ...] = (
    key_options,
    model_options(worklist=False),
    click.option(
        "-od",
        "--output-directory",
        "folder",
        metavar="DIR",
        help="Where [default: .].",
    ),
    click.option("--ignore", "--discard", "discard", is_flag=True, help="Receive, keep nothing."),
    durable_option,
    click.option(
        "--associations", type=click.IntRange(1, 128), help="Associations at once [default: 1]."
    ),
    click.option("--as-typed", is_flag=True, help="Ask nothing first, add nothing but a level."),
    click.option("--relational", is_flag=True, help="Propose relational retrieval."),
    click.option("-B", "--normal", is_flag=True, expose_value=False, help="The same as +B."),
    click.option(
        "+B", "--bit-preserving", is_flag=True, expose_value=False, help="As received; always so."
    ),
)
_LAST_OPTIONS: tuple[Decorator, ...] = (
    metrics_option,
    propose_option,
    prefer_option,
    click.option(
        "--repeat", type=click.IntRange(1), default=1, metavar="N", help="Retrieve N times."
    ),
    click.option("--abort", is_flag=True, help="End with A-ABORT instead of A-RELEASE."),
    click.argument("words", nargs=-1, metavar="PEER [QUERYFILE...]"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieveSettings:
    """What was typed, for both verbs. model: `patient`, `study` or `psonly`.

    durability: the mode of what is stored here; None where nothing arrives here.
    """

    network: NetworkOptions
    peer: Peer
    model: str
    associations: int
    as_typed: bool
    relational: bool
    propose: tuple[str, ...]
    repeat: int
    abort: bool
    metrics: str | None
    durability: str | None

    @classmethod
    def of(
        cls,
        session: Session,
        network: NetworkOptions,
        peer: Peer,
        *,
        model: str | None,
        associations: int | None,
        **others: Any,
    ) -> RetrieveSettings:
        """The same with what the configuration and the defaults say where nothing was typed."""
        node = session.configuration.nodes.get(peer.name or "")
        associations = associations or 1
        if node is not None and node.associations_max is not None:
            associations = min(associations, node.associations_max)
        return cls(
            network=session.network(network, peer),
            peer=peer,
            model=model or "patient",
            associations=associations,
            **others,
        )


def typed_identifiers(model: str, keys: Sequence[str], files: Sequence[str]) -> list[Identifier]:
    """What was typed, each with a level; ConfigurationError where nothing restricts it."""
    from dcmhaul.cli.completion import add_level
    from dcmhaul.cli.models import identifiers_of, quiet_pydicom

    quiet_pydicom()
    typed = [add_level(model, query) for query in identifiers_of(keys, files)]
    if not any(query.elements.keys() - {0x00080052} for query in typed):
        raise ConfigurationError("a retrieve without a key would ask for everything: give -k")
    return typed


def folder_sinks(session: Session, folder: str, durability: str, stack: ExitStack) -> SinkFactory:
    """Sinks into `-od`, closed with the stack."""
    from dcmhaul.objects.paths import Durability
    from dcmhaul.objects.sinks import FolderSinks

    try:
        return stack.enter_context(
            FolderSinks(folder, durable=Durability(durability), report=session.console.warn)
        )
    except OSError as error:
        raise ConfigurationError(f"-od {folder}: {error.strerror}") from error


class Retrieval:
    """One run of get or move. operation: `C-GET` or `C-MOVE`, as it is said.

    The first signal sets `stop.event`, the second cancels `stop.cancel_scope`. total: the instances that
    are to come, None where that is not known. uncounted: retrieves that ended as they should,
    and nobody said with how many instances.
    """

    def __init__(
        self, session: Session, settings: RetrieveSettings, count: TransferCount, operation: str
    ) -> None:
        from dcmhaul.engine.scheduler import StopRequest

        self.session = session
        self.settings = settings
        self.count = count
        self.operation = operation
        self.stop = StopRequest()
        self._opening: set[trio.CancelScope] = set()
        self.stop.on_request(self._open_no_more)
        self.total: int | None = None
        self.uncounted = 0

    async def run(
        self,
        typed: list[Identifier],
        plan: Callable[[Questioner, list[Identifier]], Awaitable[tuple[list[Identifier], T]]],
        unplanned: T,
        retrieve: Callable[[list[Identifier], T], Awaitable[None]],
    ) -> None:
        """Completes what was typed by C-FIND, and hands the retrieve identifiers to `retrieve`.

        plan: looks closer at whole retrieve identifiers while there is C-FIND; may cut them smaller.
        unplanned: what stands for the plan where it cannot be made.
        """
        import trio

        from dcmhaul.cli.stopping import stopping

        async with stopping(self.session, self.stop):
            asking = trio.CancelScope()
            self.stop.on_request(asking.cancel)
            units: list[Identifier] = []
            planned = unplanned
            with asking:
                units, planned = await self._ask(typed, plan, unplanned)
            if units:
                with self.stop.cancel_scope:
                    await retrieve(units, planned)
            came = self.count.instances or self.uncounted or any(self.session.codes)
            if not self.stop.requested and not (units and came):
                self._nothing()

    def _nothing(self) -> None:
        self.session.code(Exit.NOTHING_MATCHED)
        self.session.console.error(f"dcmhaul {self.session.name}: nothing matched, nothing came")

    # -- asking first ---------------------------------------------------------------------------

    async def _ask(
        self,
        typed: list[Identifier],
        plan: Callable[[Questioner, list[Identifier]], Awaitable[tuple[list[Identifier], T]]],
        unplanned: T,
    ) -> tuple[list[Identifier], T]:
        from dcmhaul.cli import models
        from dcmhaul.cli.completion import level_of, levels_of, warnings
        from dcmhaul.cli.network import open_peer
        from dcmhaul.cli.retrieval import Questioner

        settings = self.settings
        console = self.session.console
        if settings.as_typed:
            for text in dict.fromkeys(
                t for query in typed for t in warnings(settings.model, query)
            ):
                console.warn(f"warning: {text}")
            return typed, unplanned
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
                units = await self._complete(questioner, typed)
                levels = levels_of(settings.model)
                if not units or any(level_of(unit) not in levels for unit in units):
                    return units, unplanned
                return await plan(questioner, units)
        except NoAcceptedContext:
            console.warn("the peer has no C-FIND in this model: the request goes out as typed")
            return typed, unplanned

    async def _complete(self, questioner: Questioner, typed: list[Identifier]) -> list[Identifier]:
        """The retrieve identifiers of what was typed; what is none of the model's goes as typed."""
        from dcmhaul.cli.completion import (
            UNIQUE_KEYS,
            level_of,
            levels_of,
            needs_query,
            retrieve_identifiers,
        )

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
                    f"{len(found)} {self.operation} requests"
                )
                units += found
            else:
                units.append(query)
        return units

    # -- over associations ----------------------------------------------------------------------

    @contextmanager
    def counting(self) -> Iterator[CountingObserver]:
        """The observer of every association on which instances arrive; `--metrics` hears of it too."""
        from dcmhaul.cli.network import CountingObserver, counting
        from dcmhaul.net import NullObserver

        settings = self.settings
        with counting(self.session, settings.metrics, settings.peer, settings.durability) as inner:
            yield CountingObserver(self.session, self.count, inner or NullObserver())

    async def over_associations(
        self, units: Sequence[U], work: Callable[[deque[U]], Awaitable[None]]
    ) -> None:
        """Runs `work` once an association; each takes from the units what comes next."""
        import trio

        settings = self.settings
        pending = deque([*units] * settings.repeat)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(show_progress, self.session, self._look)
            async with trio.open_nursery() as workers:
                for _ in range(min(settings.associations, len(pending))):
                    workers.start_soon(work, pending)
            nursery.cancel_scope.cancel()
        if pending:
            self.session.console.error(f"{len(pending)} requests were not made")

    async def each_unit(
        self,
        opened: AbstractAsyncContextManager[Association],
        pending: deque[U],
        retrieve: Callable[[Association, U], Awaitable[None]],
    ) -> None:
        """On one association, one unit after another; where it breaks, others go on with the rest."""
        import trio

        opening = trio.CancelScope()
        self._opening.add(opening)
        try:
            with opening:
                await self._each_unit(opened, opening, pending, retrieve)
        except DcmhaulError as error:
            self.session.begun = self.session.begun or self.count.instances > 0
            self.session.fail(error)
        finally:
            self._opening.discard(opening)

    async def _each_unit(
        self,
        opened: AbstractAsyncContextManager[Association],
        opening: trio.CancelScope,
        pending: deque[U],
        retrieve: Callable[[Association, U], Awaitable[None]],
    ) -> None:
        async with opened as association:
            # From here on a stop is heard by what runs.
            self._opening.discard(opening)
            while pending and not self.stop.requested:
                await retrieve(association, pending.popleft())
            if self.settings.abort:
                await association.abort()

    def _open_no_more(self) -> None:
        """Who waits for an association has nothing in flight."""
        for opening in self._opening:
            opening.cancel()

    # -- what was answered ----------------------------------------------------------------------

    def pending(self, response: RetrieveResponse) -> None:
        """Says how far the peer is."""
        from dcmhaul.protocol.statuses import describe

        if self.session.console.level >= Level.INFO:
            text = describe(response.status, self.operation)
            self.session.console.info(f"{self.operation}-RSP: {text}{_counts(response)}")

    def said(self, response: RetrieveResponse) -> str:
        """Says a final response; returns its status in words."""
        from dcmhaul.cli.responses import response_text

        text = response_text(
            response.status, self.operation, response.offending, response.error_comment
        )
        self.session.console.info(f"final {self.operation}-RSP: {text}{_counts(response)}")
        return text

    def judge(
        self, response: RetrieveResponse, refused_here: int, *, cancelled: bool = False
    ) -> None:
        """Judges a final response. What the peer counts as failed holds what we refused ourselves.

        cancelled: we asked for the end of this one.
        """
        from dcmhaul.protocol.statuses import CANCEL, COERCION, SUCCESS, is_performed

        self.session.begun = True
        console = self.session.console
        failed = max(response.failed or 0, len(response.failed_sop_instance_uids), refused_here)
        self.count.failed += failed - refused_here
        for uid in response.failed_sop_instance_uids:
            console.error(f"failed: {uid}")
            self.session.answer.record({"type": "failed", "sop_instance_uid": uid})
        text = self.said(response)
        if is_performed(response.status):
            if failed:
                self.session.code(Exit.RETRYABLE)
                console.error(f"{failed} sub-operations failed: {text}")
            elif response.status not in (SUCCESS, COERCION):
                console.warn(f"warning: {text}")
        elif response.status == CANCEL and (cancelled or self.stop.requested):
            self.uncounted += 1
        else:
            self.session.refuse(response.status, text)

    def _look(self) -> Progress:
        count = self.count
        return Progress(
            done=count.instances,
            total=self.total,
            byte_count=count.byte_count if count.bytes_known else None,
            failed=count.failed,
        )


def _counts(response: RetrieveResponse) -> str:
    """The sub-operations as the response counts them; nothing where it does not."""
    numbers = (
        (response.completed, "done"),
        (response.remaining, "to come"),
        (response.failed, "failed"),
        (response.warning, "with warnings"),
    )
    told = ", ".join(f"{number} {word}" for number, word in numbers if number is not None)
    return f": {told}" if told else ""
