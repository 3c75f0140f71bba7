"""`dcmhaul move`: C-MOVE to a third AE, or to an SCP that it opens itself."""

from __future__ import annotations

import time
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import click

from dcmhaul.cli.dcmtk import accepted_syntaxes
from dcmhaul.cli.exits import Exit
from dcmhaul.cli.options import AE_TITLE, chosen_durability, verb
from dcmhaul.cli.output import TransferCount
from dcmhaul.cli.retrieving import (
    Retrieval,
    RetrieveSettings,
    folder_sinks,
    retrieve_options,
    typed_identifiers,
)
from dcmhaul.config import DEFAULT_AE_TITLE
from dcmhaul.errors import ConfigurationError, DcmhaulError

if TYPE_CHECKING:
    from collections import deque

    from dcmhaul.cli.keys import Identifier
    from dcmhaul.cli.network import CountingObserver
    from dcmhaul.cli.ownscp import OwnScp
    from dcmhaul.cli.retrieval import Questioner
    from dcmhaul.cli.session import NetworkOptions, Session
    from dcmhaul.engine.arrivals import Delivery
    from dcmhaul.net import Association
    from dcmhaul.services.retrieve import RetrieveResponse

    Unit = tuple[Identifier, frozenset[str] | None]
    """A retrieve identifier, and the SOP Instance UIDs that it stands for where they are known."""

__all__ = ["command"]

_EPILOG = """\b
Keys are typed as for find, and completed as for get: without a level (0008,0052)
the lowest whose unique key has a value is taken; where a key is not a unique key,
or a unique key above the level is missing, the matches are asked for by C-FIND
first; --as-typed sends the identifier untouched. -x= -xe -xb -xi choose the
syntax of the request.
Without +P the peer sends to the AE of -aem, which it must know, and only its own
counts tell how far it is. With +P they come here: the SCP takes any called title,
every storage class and transfer syntax (+x= +xe +xs +xv ... say which one is
preferred, +xi takes implicit VR alone), and what arrives is counted, whatever the
peer answers. The peer must know the title of -aem with this host and that port.
Ctrl-C once cancels by C-CANCEL and keeps what still comes, twice stops at once;
the exit code is 130.

\b
Examples:
  dcmhaul move PACS@10.1.2.3:104 -S -k StudyInstanceUID=1.2.3 -aem WORKSTATION
  dcmhaul move PACS@10.1.2.3:104 -aet OURS +P 11112 -S -k PatientName=DOE* -od .
"""


@verb("move", tool="movescu", epilog=_EPILOG)
@click.option(
    "-aem",
    "--move",
    "destination",
    type=AE_TITLE,
    metavar="TITLE",
    help="To whom the peer is to send [default: our -aet].",
)
@click.option(
    "+P", "--port", "port", metavar="PORT", help="Receive here, on this port; 0 takes a free one."
)
@click.option("--no-port", "port", flag_value="", help="Receive nothing here. The default.")
@click.option("--bind", metavar="ADDR", help="Address to receive on [default: 0.0.0.0].")
@click.option(
    "--cancel",
    "cancel_after",
    type=click.IntRange(1),
    metavar="N",
    help="C-CANCEL after N pending responses to a request.",
)
@click.option("+xa", "--accept-all", is_flag=True, expose_value=False, help="Always so.")
@retrieve_options(
    awaited="Wait for any sign of progress [default: 600 with +P, 3600 to a third party"
)
def command(
    session: Session,
    network: NetworkOptions,
    words: tuple[str, ...],
    destination: str | None,
    port: str | None,
    bind: str | None,
    cancel_after: int | None,
    keys: tuple[str, ...],
    model: str | None,
    folder: str | None,
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
    """C-MOVE: PEER sends to the AE of -aem, or here, where +P opens a port.

    PEER is AET@HOST:PORT, HOST PORT (with -aec), or a node of dcmhaul.toml.
    """
    import trio

    if not port:
        _refuse_without_port(
            ("-od", folder), ("--discard", discard), ("--durable", durable), ("--bind", bind)
        )
    mode = chosen_durability(durable, discard=discard) if port else None
    count = TransferCount(bytes_known=bool(port))
    session.summary_fields = count.fields
    session.summary_text = partial(count.text, "received" if port else "moved")
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
        repeat=repeat,
        abort=abort,
        metrics=metrics,
        durability=mode,
    )
    typed = typed_identifiers(settings.model, keys, files)
    title = settings.network.calling_ae_title or DEFAULT_AE_TITLE
    retrieval = Retrieval(session, settings, count, "C-MOVE")
    moving = _Move(retrieval, destination or title, cancel_after)
    if not port:
        trio.run(moving.run, typed)
        return
    from dcmhaul.cli.ownscp import OwnScp, receive_options
    from dcmhaul.engine.arrivals import Arrivals

    options = receive_options(session, settings.network, port, bind, moving.destination)
    with ExitStack() as stack:
        sinks = None if discard else folder_sinks(session, folder or ".", mode or "none", stack)
        moving.own = OwnScp(
            retrieval,
            Arrivals(sinks, title),
            replace(options, transfer_syntaxes=accepted_syntaxes(prefer)),
            folder=None if discard else folder or ".",
        )
        trio.run(moving.run, typed)


def _refuse_without_port(*flags: tuple[str, object]) -> None:
    for flag, given in flags:
        if given:
            raise ConfigurationError(f"{flag} is about what arrives here: give +P PORT too")


class _Move:
    """What is C-MOVE's own: the destination, and what the responses mean beside what arrived.

    own: the SCP to which the peer is to send, None for a third party.
    """

    def __init__(self, retrieval: Retrieval, destination: str, cancel_after: int | None) -> None:
        self.retrieval = retrieval
        self.session = retrieval.session
        self.destination = destination
        self.cancel_after = cancel_after
        self.own: OwnScp | None = None

    async def run(self, typed: list[Identifier]) -> None:
        """Moves what the identifiers stand for; our SCP is open before the first request."""
        unplanned: list[frozenset[str] | None] = []
        with self.retrieval.counting() as observer:
            listening = nullcontext() if self.own is None else self.own.listening(observer)
            async with listening:
                await self.retrieval.run(
                    typed, self._plan, unplanned, partial(self._move_all, observer)
                )

    async def _plan(
        self, questioner: Questioner, units: list[Identifier]
    ) -> tuple[list[Identifier], list[frozenset[str] | None]]:
        """The units, in as many as there are associations, and for our SCP what each is to bring."""
        from dcmhaul.cli.retrieval import FindFailed

        associations = self.retrieval.settings.associations
        if associations > 1:
            try:
                units = await questioner.split(units, associations)
            except FindFailed as error:
                self.session.console.warn(f"warning: {error}; the requests are not split")
        return units, await questioner.instances(units) if self.own is not None else []

    async def _move_all(
        self,
        observer: CountingObserver,
        identifiers: list[Identifier],
        expected: list[frozenset[str] | None],
    ) -> None:
        retrieval = self.retrieval
        known = expected or [None] * len(identifiers)
        if all(uids is not None for uids in known):
            retrieval.total = sum(map(len, filter(None, known))) * retrieval.settings.repeat
        units = list(zip(identifiers, known, strict=True))
        await retrieval.over_associations(units, partial(self._work, observer))
        if self.own is not None:
            await self.own.close()

    async def _work(self, observer: CountingObserver, pending: deque[Unit]) -> None:
        from dcmhaul.cli import models
        from dcmhaul.cli.network import open_peer

        settings = self.retrieval.settings
        move_uid = models.MODELS[settings.model].move_uid
        opened = open_peer(
            self.session,
            settings.network,
            settings.peer,
            (models.query_context(1, move_uid, settings.propose),),
            extended=(models.relational(move_uid),) if settings.relational else (),
            observer=observer,
        )
        await self.retrieval.each_unit(opened, pending, self._retrieve)

    async def _retrieve(self, association: Association, unit: Unit) -> None:
        if self.own is None:
            await self._to_third_party(association, unit[0])
        else:
            await self._to_own_scp(self.own, association, unit)

    async def _to_third_party(self, association: Association, identifier: Identifier) -> None:
        """The peer's counts are all that is known; where it tells none, nothing is made up."""
        from dcmhaul.services.move import THIRD_PARTY_SECONDS

        retrieval = self.retrieval
        counted = _Counted(retrieval.count)
        started = time.perf_counter()
        response, cancelled = await self._request(
            association, identifier, counted, seconds=THIRD_PARTY_SECONDS
        )
        retrieval.judge(response, 0, cancelled=cancelled)
        counted.take(response)
        ended = time.perf_counter()
        retrieval.count.operation(ended, ended - started)
        if response.status == 0:
            if counted.done is None:
                retrieval.uncounted += 1
                self.session.console.warn("the peer did not say how many instances it sent")
            elif not counted.done and not response.failed:
                self._nothing_moved(response)
        self._hint(response)

    async def _to_own_scp(self, own: OwnScp, association: Association, unit: Unit) -> None:
        """What arrived is the truth: it is waited for, and compared with what was to come."""
        from dcmhaul.cli.completion import UNIQUE_KEYS
        from dcmhaul.services.move import OWN_SCP_SECONDS

        retrieval = self.retrieval
        identifier, expected = unit
        studies = identifier.text(UNIQUE_KEYS["STUDY"]).split("\\")
        with own.arrivals.delivery(association, expected, filter(None, studies)) as delivery:
            try:
                response, cancelled = await self._request(
                    association, identifier, None, seconds=OWN_SCP_SECONDS, delivery=delivery
                )
                await own.settled(delivery, response)
            except DcmhaulError:
                retrieval.count.failed += len(delivery.missing)
                raise
        retrieval.judge(response, len(delivery.refused), cancelled=cancelled)
        if not (cancelled or retrieval.stop.requested):
            self._compare(delivery, response)
        self._hint(response)

    async def _request(
        self,
        association: Association,
        identifier: Identifier,
        counted: _Counted | None,
        *,
        seconds: float,
        delivery: Delivery | None = None,
    ) -> tuple[RetrieveResponse, bool]:
        """One C-MOVE: its final response, and whether we asked for the end of it.

        seconds: without any sign of life, where nothing else was typed.
        """
        import trio

        from dcmhaul.cli.completion import level_of
        from dcmhaul.cli.keys import dump_lines, encode_identifier
        from dcmhaul.cli.models import MODELS
        from dcmhaul.services.move import move

        retrieval = self.retrieval
        settings = retrieval.settings
        console = self.session.console
        console.info(f"C-MOVE-RQ to {self.destination}, level {level_of(identifier) or 'none'}")
        console.debug_lines(dump_lines(identifier))
        cancel = trio.Event()
        retrieval.stop.on_request(cancel.set)
        responses = 0

        def pending(response: RetrieveResponse) -> None:
            nonlocal responses
            responses += 1
            retrieval.pending(response)
            if counted is not None:
                counted.take(response)
            if responses == self.cancel_after:
                console.info("C-CANCEL, as --cancel says")
                cancel.set()

        response = await move(
            association,
            MODELS[settings.model],
            partial(encode_identifier, identifier),
            self.destination,
            on_pending=pending,
            cancel=cancel,
            seconds=settings.network.timeouts.get("dimse", seconds),
            signs=delivery.signs if delivery is not None else None,
        )
        return response, cancel.is_set()

    def _compare(self, delivery: Delivery, response: RetrieveResponse) -> None:
        """Says what did not arrive, though the peer answered a success."""
        from dcmhaul.protocol.statuses import describe, is_performed

        if not is_performed(response.status):
            return
        done = (response.completed or 0) + (response.warning or 0)
        here = len(delivery.arrived)
        if not here and not done and not response.failed and not delivery.refused:
            self._nothing_moved(response, len(delivery.missing))
            return
        lacking = delivery.lacking(response)
        if not lacking:
            return
        console = self.session.console
        for uid in delivery.missing:
            if uid not in response.failed_sop_instance_uids:
                console.error(f"missing: {uid}")
                self.session.answer.record({"type": "missing", "sop_instance_uid": uid})
        self.retrieval.count.failed += lacking
        self.session.code(Exit.RETRYABLE)
        text = (
            f"{lacking} instances did not arrive, {here} did, though the peer answered "
            f"{describe(response.status, 'C-MOVE')}"
        )
        if response.completed is not None:
            text += f", {done} done"
        if not here and done:
            text += f": does it know {self.destination} under another host or port?"
        console.error(f"dcmhaul {self.session.name}: {text}")
        self.session.errors.append(text)

    def _nothing_moved(self, response: RetrieveResponse, expected: int = 0) -> None:
        """A success without a sub-operation is an outcome of its own: some peers answer so under load."""
        from dcmhaul.protocol.statuses import describe

        text = f"the peer answered {describe(response.status, 'C-MOVE')} and moved nothing"
        if expected:
            text += f", though it has {expected} instances of this: a smaller request may do"
        self.session.code(Exit.NOTHING_MATCHED)
        self.session.console.error(f"dcmhaul {self.session.name}: {text}")
        self.session.errors.append(text)

    def _hint(self, response: RetrieveResponse) -> None:
        """What to do about a destination that cannot be reached."""
        from dcmhaul.protocol.statuses import (
            MOVE_DESTINATION_UNKNOWN,
            UNABLE_TO_PERFORM_SUBOPERATIONS,
        )

        title = self.destination
        where = "that AE's host and port"
        if self.own is not None:
            where = f"this host and port {self.own.port}"
        hint = ""
        if response.status == MOVE_DESTINATION_UNKNOWN:
            hint = f"the peer does not know the title {title}: it must be given {where} for it"
        elif response.status == UNABLE_TO_PERFORM_SUBOPERATIONS:
            hint = f"does anything listen where the peer finds {title}? It must have {where}"
        elif response.status >> 12 == 0xC and not response.error_comment:
            hint = f"some peers answer so where they do not know {title}, or cannot reach it"
        if hint:
            self.session.console.error(hint)


class _Counted:
    """What a peer counts as sent in one C-MOVE, added to the run's count as it grows.

    done: with warnings or without, None while it told no number.
    """

    def __init__(self, count: TransferCount) -> None:
        self._count = count
        self.done: int | None = None

    def take(self, response: RetrieveResponse) -> None:
        if response.completed is None and response.warning is None:
            return
        done = (response.completed or 0) + (response.warning or 0)
        self._count.instances += done - (self.done or 0)
        self.done = done
