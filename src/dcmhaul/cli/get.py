"""`dcmhaul get`: C-GET into a folder."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import click

from dcmhaul.cli.dcmtk import preferred_syntaxes
from dcmhaul.cli.exits import Exit
from dcmhaul.cli.options import chosen_durability, verb
from dcmhaul.cli.output import TransferCount
from dcmhaul.cli.retrieving import (
    Retrieval,
    RetrieveSettings,
    folder_sinks,
    retrieve_options,
    typed_identifiers,
)
from dcmhaul.errors import DcmhaulError

if TYPE_CHECKING:
    from collections import deque

    from dcmhaul.cli.getunits import Pass, Unit
    from dcmhaul.cli.keys import Identifier
    from dcmhaul.cli.network import CountingObserver
    from dcmhaul.cli.retrieval import Questioner
    from dcmhaul.cli.session import NetworkOptions, Session
    from dcmhaul.engine.planning import ExpectedInstance
    from dcmhaul.net import Association, Incoming
    from dcmhaul.objects.instances import (
        IncomingInstance,
        SinkFactory,
        StorageSink,
        StoreReply,
    )
    from dcmhaul.services.provider import Completion
    from dcmhaul.services.retrieve import RetrieveResponse
    from dcmhaul.services.storage import StorageScp

__all__ = ["command"]

_EPILOG = """\b
Keys are typed as for find. Without a level (0008,0052) the lowest whose unique
key has a value is taken. Where a key is not a unique key, or a unique key above
the level is missing, the matches are asked for by C-FIND first and retrieved by
their UIDs; --as-typed sends the identifier untouched. +x= +xe +xs +xv ... say
which transfer syntax is wanted first, +xi takes implicit VR alone; -x= -xe -xb
-xi choose the syntax of the request.
What the peer lists below a match decides the contexts: one for each class and
syntax, over several associations where that is more than 128. What failed is
asked for again in other contexts; what was listed and did not come is told.
Ctrl-C once cancels by C-CANCEL and keeps what still comes, twice stops at once;
the exit code is 130.

\b
Examples:
  dcmhaul get PACS@10.1.2.3:104 -S -k StudyInstanceUID=1.2.3 -od ./study
  dcmhaul get PACS@10.1.2.3:104 -S -k PatientName=DOE* -od . --associations 4
"""


@verb("get", tool="getscu", epilog=_EPILOG)
@retrieve_options(awaited="Wait for any sign of progress [default: 600")
@click.option(
    "--window",
    type=click.IntRange(1, 32),
    default=1,
    show_default=True,
    help="Unanswered C-STOREs on each association, where the peer goes along.",
)
def command(
    session: Session,
    network: NetworkOptions,
    words: tuple[str, ...],
    keys: tuple[str, ...],
    model: str | None,
    folder: str | None,
    discard: bool,
    durable: str | None,
    associations: int | None,
    window: int,
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

    # Here and not only where they are needed: a peer would wait for the imports.
    from dcmhaul.engine import retry  # noqa: F401
    from dcmhaul.objects.sinks import discard_instance

    mode = chosen_durability(durable, discard=discard)
    count = TransferCount()
    session.summary_fields = count.fields
    session.summary_text = partial(count.text, "retrieved")
    peer, files = session.split_peer(words, network)
    settings = RetrieveSettings.of(
        session,
        network,
        peer,
        model=model,
        associations=associations,
        as_typed=as_typed,
        relational=relational,
        propose=propose,
        repeat=1,
        abort=abort,
        metrics=metrics,
        durability=mode,
    )
    typed = typed_identifiers(settings.model, keys, files)
    with ExitStack() as stack:
        sinks = discard_instance if discard else folder_sinks(session, folder or ".", mode, stack)
        getting = _Get(
            Retrieval(session, settings, count, "C-GET"),
            preferred_syntaxes(prefer),
            sinks,
            repeat,
            window,
        )
        trio.run(getting.run, typed)


class _Planned(NamedTuple):
    """What was learnt by asking first. listed: the instances of each unit, None where they are not known.

    classes: the SOP classes to expect of units whose instances are not known.
    """

    listed: list[dict[str, dict[str, ExpectedInstance]] | None]
    classes: list[str]


class _Get:
    """What is C-GET's own: contexts and roles for the instances, which come on the same association.

    What failed for want of a context is asked for again in others, and what was listed and did not come
    is told.
    """

    def __init__(
        self,
        retrieval: Retrieval,
        preferred: tuple[str, ...],
        sinks: SinkFactory,
        repeat: int,
        window: int,
    ) -> None:
        self.retrieval = retrieval
        self.session = retrieval.session
        self.preferred = preferred
        self.sinks = sinks
        self.repeat = repeat
        self.window = window

    async def run(self, typed: list[Identifier]) -> None:
        """Retrieves what the identifiers stand for."""
        from dcmhaul.cli.retrieval import COMMON_CLASSES

        unplanned = _Planned([], list(COMMON_CLASSES))
        await self.retrieval.run(typed, self._plan, unplanned, self._retrieve_all)

    async def _plan(
        self, questioner: Questioner, units: list[Identifier]
    ) -> tuple[list[Identifier], _Planned]:
        """The units, in as many as there are associations, and what each is to bring."""
        from dcmhaul.cli.retrieval import COMMON_CLASSES, FindFailed

        associations = self.retrieval.settings.associations
        try:
            if associations > 1:
                units = await questioner.split(units, associations)
            # A peer that lists nothing may hold it all the same.
            listed = [await questioner.listed(unit) or None for unit in units]
            unknown = [unit for unit, found in zip(units, listed, strict=True) if found is None]
            classes = await questioner.sop_classes(unknown) if unknown else []
        except FindFailed as error:
            self.session.console.warn(
                f"warning: {error}; the commonest storage classes are proposed"
            )
            return units, _Planned([], list(COMMON_CLASSES))
        return units, _Planned(listed, classes)

    async def _retrieve_all(self, identifiers: list[Identifier], planned: _Planned) -> None:
        from dcmhaul.cli.getunits import ROUNDS, Unit, passes

        retrieval = self.retrieval
        listed = planned.listed or [None] * len(identifiers)
        units: list[Unit] = []
        with retrieval.counting() as observer:
            for _ in range(self.repeat):
                units = [
                    Unit(identifier=identifier, studies=studies)
                    for identifier, studies in zip(identifiers, listed, strict=True)
                ]
                if planned.listed and None not in listed:
                    retrieval.total = self.repeat * sum(len(unit.expected) for unit in units)
                for number in range(ROUNDS):
                    for one, wanting in passes(units, planned.classes, self.preferred, number):
                        if not retrieval.stop.requested:
                            work = partial(self._work, one, observer)
                            await retrieval.over_associations(wanting, work)
                for unit in units:
                    self._judge(unit)

    async def _work(self, one: Pass, observer: CountingObserver, pending: deque[Unit]) -> None:
        from dcmhaul.cli import models
        from dcmhaul.cli.network import open_peer
        from dcmhaul.services.retrieve import storage_roles

        settings = self.retrieval.settings
        get_uid = models.MODELS[settings.model].get_uid
        opened = open_peer(
            self.session,
            settings.network,
            settings.peer,
            (models.query_context(1, get_uid, settings.propose), *one.contexts),
            roles=storage_roles(context.abstract_syntax for context in one.contexts),
            window=self.window,
            extended=(models.relational(get_uid),) if settings.relational else (),
            observer=observer,
        )
        await self.retrieval.each_unit(opened, pending, partial(self._retrieve, one))

    async def _retrieve(self, one: Pass, association: Association, unit: Unit) -> None:
        """Asks for what a unit lacks and this association may bring."""
        wanted: set[str] | None = None
        identifiers = [unit.identifier]
        if unit.studies is not None:
            accepted = tuple(
                pair
                for pair in one.pairs
                if association.agreement.context_for(pair[0], (pair[1],)) is not None
            )
            wanted = unit.usable(unit.wanted(one), accepted, one)
            identifiers = unit.requests(wanted) if wanted else []
        for identifier in identifiers:
            if self.retrieval.stop.requested or unit.over:
                return
            try:
                response = await self._request(one, association, unit, identifier)
            except DcmhaulError:
                unit.over = True
                raise
            unit.answered(response, wanted)
            if wanted is not None and not unit.over:
                unit.said = self.retrieval.said(response)

    async def _request(
        self, one: Pass, association: Association, unit: Unit, identifier: Identifier
    ) -> RetrieveResponse:
        from dcmhaul.cli.completion import level_of
        from dcmhaul.cli.keys import dump_lines, encode_identifier
        from dcmhaul.cli.models import MODELS
        from dcmhaul.services.retrieve import GET_SECONDS, get
        from dcmhaul.services.storage import StorageScp

        retrieval = self.retrieval
        settings = retrieval.settings
        self.session.console.info(f"C-GET-RQ, level {level_of(identifier) or 'none'}")
        self.session.console.debug_lines(dump_lines(identifier))
        storage = StorageScp(
            partial(_counted_sink, self.sinks, unit),
            extra_classes=[context.abstract_syntax for context in one.contexts],
        )
        unit.held = frozenset(unit.arrived)
        response = await get(
            association,
            MODELS[settings.model],
            partial(encode_identifier, identifier),
            partial(_store, storage, unit.held),
            on_pending=retrieval.pending,
            cancel=retrieval.stop.event,
            seconds=settings.network.timeouts.get("dimse", GET_SECONDS),
        )
        self.session.begun = True
        return response

    # -- what came of it ------------------------------------------------------------------------

    def _judge(self, unit: Unit) -> None:
        """Says what failed or did not come, once nothing more is asked for."""
        from dcmhaul.cli.getunits import ended
        from dcmhaul.protocol.statuses import SUCCESS, is_performed

        response = unit.response
        if unit.studies is None or (response is not None and not ended(response)):
            if response is not None:
                self.retrieval.judge(response, len(unit.refused))
                if is_performed(response.status) and not self.retrieval.stop.requested:
                    self._judge_counted(unit, response)
            return
        unfit = sorted(unit.unfit - unit.asked)
        for uid in unfit:
            reason = f"the peer accepted no presentation context for {_kind(unit.expected[uid])}"
            self.session.code(Exit.PERMANENT)
            self._say("failed", uid, reason)
        self.retrieval.count.failed += len(unfit)
        if response is not None:
            self._judge_answered(unit, success=response.status == SUCCESS)
        elif unit.over:
            self.retrieval.count.failed += len(
                unit.missing
            )  # the association was lost, which is said

    def _judge_counted(self, unit: Unit, response: RetrieveResponse) -> None:
        """What did not come of instances that nobody has listed: only the peer's own count says so."""
        from dcmhaul.protocol.statuses import describe

        lacking = unit.counted - unit.stored - len(unit.refused)
        if lacking <= 0:
            return
        self.retrieval.count.failed += lacking
        self._lack(
            lacking, unit.stored, f"though the peer answered {describe(response.status, 'C-GET')}"
        )

    def _judge_answered(self, unit: Unit, *, success: bool) -> None:
        """What the peer says that it failed to send, and what it does not say so of."""
        count, stopped = self.retrieval.count, self.retrieval.stop.requested
        for uid in sorted(unit.listed_failed):
            self._say("failed", uid)
        told = len(unit.listed_failed) + unit.unexplained
        count.failed += told
        if told or unit.refused:
            self.session.code(Exit.RETRYABLE)
            failed = told + len(unit.refused)
            self.session.console.error(f"{failed} sub-operations failed: {unit.said}")
        lacking = [uid for uid in unit.missing if uid in unit.asked - unit.listed_failed]
        if not lacking or stopped:
            return
        count.failed += len(lacking)
        if unit.over:
            return  # the association was lost, which is said
        for uid in lacking:
            self._say("missing", uid)
        though = "though the peer answered" if success else "the peer answered"
        self._lack(len(lacking), len(unit.arrived), f"{though} {unit.said}")

    def _lack(self, lacking: int, came: int, answered: str) -> None:
        line = f"{lacking} instances did not come, {came} did, {answered}"
        self.session.code(Exit.RETRYABLE)
        self.session.console.error(f"dcmhaul {self.session.name}: {line}")
        self.session.errors.append(line)

    def _say(self, what: str, uid: str, reason: str = "") -> None:
        self.session.console.error(f"{what}: {uid}: {reason}" if reason else f"{what}: {uid}")
        record = {"type": what, "sop_instance_uid": uid}
        self.session.answer.record(record | {"error": reason} if reason else record)


def _kind(instance: ExpectedInstance) -> str:
    from dcmhaul import uids

    kind = uids.name(instance.sop_class_uid) or "an unnamed SOP class"
    syntax = instance.transfer_syntax_uid
    return f"{kind} in {uids.name(syntax)}" if syntax else kind


async def _store(
    storage: StorageScp, held: frozenset[str], association: Association, incoming: Incoming
) -> Completion | None:
    """Stores what comes; what an earlier request has brought is answered 0000, and is not stored again."""
    from dcmhaul.protocol.dimse import CStoreRq, response_to

    request = incoming.message
    assert isinstance(request, CStoreRq)  # get() dispatches by type
    if request.affected_sop_instance_uid not in held:
        return await storage.handle(association, incoming)
    if request.has_dataset:
        await association.read_dataset(None)
    association.queue(incoming.context.context_id, response_to(request, 0))
    return None


class _Counted:
    """A sink that tells the unit what became of its instance."""

    __slots__ = ("_incoming", "_sink", "_unit", "discard", "immediate", "write")

    def __init__(self, sink: StorageSink, unit: Unit, incoming: IncomingInstance) -> None:
        self._sink = sink
        self._unit = unit
        self._incoming = incoming
        self.write = sink.write
        self.discard = sink.discard
        self.immediate = getattr(sink, "immediate", False)

    async def commit(self) -> StoreReply:
        from dcmhaul.engine.retry import is_stored

        reply = await self._sink.commit()
        self._unit.came(self._incoming.sop_instance_uid, stored=is_stored(reply.status))
        return reply


def _counted_sink(sinks: SinkFactory, unit: Unit, incoming: IncomingInstance) -> StorageSink:
    from dcmhaul.objects.instances import StoreRefused
    from dcmhaul.objects.sinks import discard_instance

    try:
        sink = sinks(incoming)
    except StoreRefused:
        unit.came(incoming.sop_instance_uid, stored=False)
        raise
    return _Counted(sink or discard_instance(incoming), unit, incoming)
