"""`dcmhaul get`: C-GET into a folder."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from dcmhaul.cli.dcmtk import preferred_syntaxes
from dcmhaul.cli.options import chosen_durability, verb
from dcmhaul.cli.output import TransferCount
from dcmhaul.cli.retrieving import (
    Retrieval,
    RetrieveSettings,
    folder_sinks,
    retrieve_options,
    typed_identifiers,
)

if TYPE_CHECKING:
    from collections import deque

    from dcmhaul.cli.keys import Identifier
    from dcmhaul.cli.network import CountingObserver
    from dcmhaul.cli.retrieval import Questioner
    from dcmhaul.cli.session import NetworkOptions, Session
    from dcmhaul.net import Association
    from dcmhaul.objects.instances import SinkFactory
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
@retrieve_options(awaited="Wait for any sign of progress [default: 600")
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
        repeat=repeat,
        abort=abort,
        metrics=metrics,
        durability=mode,
    )
    typed = typed_identifiers(settings.model, keys, files)
    with ExitStack() as stack:
        sinks = None if discard else folder_sinks(session, folder or ".", mode, stack)
        getting = _Get(
            Retrieval(session, settings, count, "C-GET"), preferred_syntaxes(prefer), sinks
        )
        trio.run(getting.run, typed)


class _Get:
    """What is C-GET's own: contexts and roles for the instances, which come on the same association."""

    def __init__(
        self, retrieval: Retrieval, preferred: tuple[str, ...], sinks: SinkFactory | None
    ) -> None:
        self.retrieval = retrieval
        self.preferred = preferred
        self.sinks = sinks

    async def run(self, typed: list[Identifier]) -> None:
        """Retrieves what the identifiers stand for."""
        from dcmhaul.cli.retrieval import COMMON_CLASSES

        await self.retrieval.run(typed, self._plan, list(COMMON_CLASSES), self._retrieve_all)

    async def _plan(
        self, questioner: Questioner, units: list[Identifier]
    ) -> tuple[list[Identifier], list[str]]:
        """The units, in as many as there are associations, and the SOP classes to expect."""
        from dcmhaul.cli.retrieval import COMMON_CLASSES, FindFailed

        associations = self.retrieval.settings.associations
        try:
            classes = await questioner.sop_classes(units)
            if associations > 1:
                units = await questioner.split(units, associations)
        except FindFailed as error:
            self.retrieval.session.console.warn(
                f"warning: {error}; the commonest storage classes are proposed"
            )
            return units, list(COMMON_CLASSES)
        return units, classes

    async def _retrieve_all(self, units: list[Identifier], classes: list[str]) -> None:
        from dcmhaul.cli.retrieval import storage_contexts

        contexts = storage_contexts(classes, self.preferred)
        with self.retrieval.counting() as observer:
            await self.retrieval.over_associations(units, partial(self._work, contexts, observer))

    async def _work(
        self,
        contexts: tuple[PresentationContextRq, ...],
        observer: CountingObserver,
        pending: deque[Identifier],
    ) -> None:
        from dcmhaul.cli import models
        from dcmhaul.cli.network import open_peer
        from dcmhaul.services.retrieve import storage_roles
        from dcmhaul.services.storage import StorageScp

        settings = self.retrieval.settings
        get_uid = models.MODELS[settings.model].get_uid
        classes = [context.abstract_syntax for context in contexts]
        opened = open_peer(
            self.retrieval.session,
            settings.network,
            settings.peer,
            (models.query_context(1, get_uid, settings.propose), *contexts),
            roles=storage_roles(classes),
            extended=(models.relational(get_uid),) if settings.relational else (),
            observer=observer,
        )
        storage = StorageScp(self.sinks, extra_classes=classes)
        await self.retrieval.each_unit(opened, pending, partial(self._retrieve, storage))

    async def _retrieve(
        self, storage: StorageScp, association: Association, unit: Identifier
    ) -> None:
        from dcmhaul.cli.keys import dump_lines, encode_identifier
        from dcmhaul.cli.models import MODELS
        from dcmhaul.services.retrieve import GET_SECONDS, get

        retrieval = self.retrieval
        settings = retrieval.settings
        retrieval.session.console.debug_lines(dump_lines(unit))
        before = retrieval.count.failed
        response = await get(
            association,
            MODELS[settings.model],
            partial(encode_identifier, unit),
            storage.handle,
            on_pending=retrieval.pending,
            cancel=retrieval.stop.event,
            seconds=settings.network.timeouts.get("dimse", GET_SECONDS),
        )
        retrieval.judge(response, retrieval.count.failed - before)
