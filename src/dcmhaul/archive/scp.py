"""The embedded archive: keeps what is stored, finds it, gives it out.

0000 is answered for a C-STORE only when the data, its name, the folder and the index row are
durable. It speaks PS3.4 through the services; what a message means is theirs.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import trio

from dcmhaul.archive import index
from dcmhaul.archive.attributes import SOP_INSTANCE_UID
from dcmhaul.archive.commitments import CommitmentScp
from dcmhaul.archive.identifier import (
    InvalidIdentifier,
    MismatchedIdentifier,
)
from dcmhaul.archive.importing import ImportSummary, import_files
from dcmhaul.archive.index import Added, Addition, Duplicates, Index, Object, Totals
from dcmhaul.archive.linking import link_folder
from dcmhaul.archive.moves import MoveStatistics, OutgoingMoves
from dcmhaul.archive.notices import AvailabilityNotices
from dcmhaul.archive.printing import PrintScp
from dcmhaul.archive.query import FindQuery, Root, Selected, SelectQuery
from dcmhaul.archive.recovery import RecoveryReport, recover
from dcmhaul.archive.sink import ArchiveSink, Received, file_meta
from dcmhaul.archive.steps import ProcedureSteps
from dcmhaul.archive.store import Refused, Store, StoredInstance, check_uids
from dcmhaul.archive.tables import KIND, METADATA, SCHEMA_VERSION, add_kept
from dcmhaul.archive.unified import MODELS as UNIFIED_MODELS
from dcmhaul.archive.unified import UnifiedSteps
from dcmhaul.archive.worklist import Worklist
from dcmhaul.database import (
    CommitFailed,
    Database,
    DatabaseError,
    Prepared,
    WriterStatistics,
    open_database,
)
from dcmhaul.engine.counters import Family
from dcmhaul.engine.scheduler import flat_nursery
from dcmhaul.errors import ConfigurationError
from dcmhaul.objects import instances
from dcmhaul.objects.instances import NO_ANSWER, IncomingInstance, StoreRefused, StoreReply
from dcmhaul.objects.paths import Durability, Trouble, make_folder
from dcmhaul.protocol import statuses
from dcmhaul.services.extended import FindOptions
from dcmhaul.services.identifiers import EncodedIdentifier, QueryRefused
from dcmhaul.services.move import MoveScp
from dcmhaul.services.normalized import NormalizedScp
from dcmhaul.services.query import FindScp, QueryModel
from dcmhaul.services.retrieve import GetScp
from dcmhaul.services.storage import StorageScp
from dcmhaul.services.verification import VerificationScp
from dcmhaul.uids import is_valid_uid

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence

    from sqlalchemy.engine import Connection

    from dcmhaul.archive.index import Description, Place
    from dcmhaul.objects.paths import Folder, TemporaryFile
    from dcmhaul.services.provider import Service

__all__ = ["Archive", "ArchiveStatistics", "open_archive"]

T = TypeVar("T")

STORED = StoreReply(status=0x0000)
INVALID_INSTANCE_UID = StoreReply(
    status=0x0117, error_comment="SOP Instance UID is not 1-64 of 0-9 and ."
)
CONFLICT = StoreReply(
    status=0xC001,
    error_comment="other bytes are held under this UID; kept aside",
    offending=(SOP_INSTANCE_UID,),
)

# Bytes of all datasets that a sink holds; what comes beyond goes to a file at once.
HELD_TOTAL_MAX = 32 << 20
# The first answers leave soon; then pages large enough that the trip to the thread costs little.
FIRST_PAGE = 16
PAGE = 256
# Above this an identifier is read in a thread: it may be a list of 100 000 UIDs.
THREAD_LENGTH = 16 * 1024

FIND_OPTIONS = FindOptions(relational=True, date_time=True, fuzzy=True, timezone=True)
ROOTS = {
    QueryModel.PATIENT_ROOT: Root.PATIENT,
    QueryModel.STUDY_ROOT: Root.STUDY,
    QueryModel.PATIENT_STUDY_ONLY: Root.PATIENT_STUDY_ONLY,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveStatistics:
    """What the archive holds, and what came since it was opened.

    stored: new objects. duplicates: the same bytes again. conflicts: other bytes under a known UID,
    which were set aside. replaced: other bytes, which took the place of the first. refused: objects
    that were not stored. moves: what was sent by C-MOVE.
    """

    holds: Totals
    stored: int
    duplicates: int
    conflicts: int
    replaced: int
    refused: int
    moves: MoveStatistics
    writer: WriterStatistics


class Archive:
    """One open archive; `open_archive` makes it. Its services may serve many associations at
    once."""

    def __init__(
        self,
        *,
        database: Database,
        store: Store,
        rows: Index,
        ae_title: str,
        durability: Durability,
        strict: bool,
        report: Callable[[str], None],
        moves: OutgoingMoves,
        worklist: Worklist,
    ) -> None:
        self.ae_title = ae_title
        self.worklist = worklist
        self.durability = durability
        self.recovery = RecoveryReport()
        self._database = database
        self._store = store
        self._rows = rows
        self._strict = strict
        self._report = report
        self._trouble = Trouble(store.root, report)
        self._moves = moves
        self.commitments = CommitmentScp(
            database, store, moves, durable=durability is not Durability.NONE, report=report
        )
        self.steps = ProcedureSteps(database, strict=strict)
        self.unified = UnifiedSteps(database, moves, report=report)
        self.notices = AvailabilityNotices(database)
        self._printing = PrintScp(ae_title)
        self._held = 0
        self._doubtful: list[Place] = []
        self._holds = Totals()
        self._counts = dict.fromkeys(Added, 0)
        self._refused = 0

    @property
    def duplicates(self) -> Duplicates:
        """What becomes of other bytes under a UID that is held."""
        return self._rows.duplicates

    def services(
        self, *, extra_classes: Iterable[str] = (), matches_max: int | None = None
    ) -> list[Service]:
        """Verification, storage and its commitment, query and retrieve by C-GET and C-MOVE, for
        `serve_services`.

        extra_classes: SOP classes taken beside every Storage SOP class of PS3.6; whatever else is
        up to the policy's `accept_any_storage`. matches_max: as FindScp has it.
        """
        extra = tuple(extra_classes)
        models = tuple(ROOTS)
        return [
            VerificationScp(),
            StorageScp(self.sink, extra_classes=extra),
            FindScp(
                self.find,
                encoded=True,
                models=models,
                matches_max=matches_max,
                options=FIND_OPTIONS,
            ),
            FindScp(
                self.worklist.find,
                encoded=True,
                models=(QueryModel.WORKLIST,),
                matches_max=matches_max,
            ),
            FindScp(
                self.unified.find, encoded=True, models=UNIFIED_MODELS, matches_max=matches_max
            ),
            GetScp(self.select, encoded=True, models=models, extra_classes=extra, relational=True),
            MoveScp(self.select, self._moves, encoded=True, models=models, relational=True),
            NormalizedScp(
                [
                    self.commitments.sop_class,
                    *self.steps.sop_classes,
                    *self.unified.sop_classes,
                    self.notices.sop_class,
                    *self._printing.sop_classes,
                ]
            ),
        ]

    def statistics(self) -> ArchiveStatistics:
        return ArchiveStatistics(
            holds=self._holds,
            stored=self._counts[Added.STORED],
            duplicates=self._counts[Added.SAME],
            conflicts=self._counts[Added.CONFLICT] + self._counts[Added.CONFLICT_KNOWN],
            replaced=self._counts[Added.REPLACED],
            refused=self._refused,
            moves=self._moves.statistics,
            writer=self._database.writer.statistics(),
        )

    def families(self) -> list[Family]:
        """What `statistics` counts, for the Prometheus collector."""
        came = self.statistics()
        outcomes = ("stored", "duplicates", "conflicts", "replaced", "refused")
        return [
            Family(
                name="archive_objects",
                kind="counter",
                help="Objects that came, by what became of them",
                labels=("outcome",),
                samples=tuple(((outcome,), getattr(came, outcome)) for outcome in outcomes),
            ),
            *self._moves.families(),
        ]

    # -- storing --------------------------------------------------------------------------------

    def sink(self, incoming: IncomingInstance) -> ArchiveSink:
        """Where one dataset goes; a SinkFactory. StoreRefused where none can be taken."""
        if not is_valid_uid(incoming.sop_instance_uid):
            self._refused += 1
            raise StoreRefused(INVALID_INSTANCE_UID)
        return ArchiveSink(self, incoming)

    async def import_files(
        self, paths: Iterable[str | os.PathLike[str]], *, source_ae_title: str = ""
    ) -> ImportSummary:
        """Stores local Part-10 files as if they had been received; one failure stops nothing."""
        return await import_files(self, paths, source_ae_title)

    async def link_folder(self, folder: str | os.PathLike[str]) -> ImportSummary:
        """Indexes the instances below a folder where they lie; none is copied, changed or removed."""
        summary, gained = await link_folder(self._database, self._store, self._rows, folder)
        self._holds += gained
        return summary

    def hold(self, size: int) -> bool:
        """Whether so many bytes more, or fewer, may be held in memory."""
        if size > 0 and self._held + size > HELD_TOTAL_MAX:
            return False
        self._held += size
        return True

    def create(self) -> TemporaryFile:
        """A new file for an object; OSError as open(2) gives it."""
        return self._store.create()

    def _publish(self, received: Received) -> tuple[Object, Folder]:
        """Checks the whole object, writes and names its file; blocks. Refused, or OSError."""
        received.examine()
        digest, description = received.intake.finish()
        incoming = received.incoming
        check_uids(description, incoming.sop_class_uid, incoming.sop_instance_uid)
        file = received.file
        if file is None:
            file = self._store.create()
        try:
            if received.file is None:
                received.write_held(file, direct=self.durability is not Durability.NONE)
            received.place, folder = self._store.publish(file)
        finally:
            file.close()
        return _object(incoming, description, digest, received.place, received.length), folder

    def _prepare(self, received: Received) -> Prepared[Addition]:
        obj, folder = self._publish(received)
        return partial(self._add, obj), (folder.sync,)

    async def keep(
        self, received: Received, let_go: Callable[[], None]
    ) -> tuple[StoreReply, Added | None]:
        """Makes a received dataset durable, by the order of the module's docstring, and counts
        it. let_go: called when nothing needs `received` any more, which may be later."""
        settled: list[tuple[StoreReply, Added | None]] = []
        unforeseen: list[Exception] = []

        def settle(addition: Addition | None, error: Exception | None) -> None:
            let_go()
            settled.append(self._settled(received, addition, error))
            if error is not None and not isinstance(error, (Refused, OSError, DatabaseError)):
                unforeseen.append(error)

        # Once the file has a name it is to get its row: a cancellation waits for that, yet nobody waits
        # for a disk that does not answer. What it did with the object then is found out later.
        with trio.CancelScope(
            shield=True, deadline=trio.current_time() + instances.PATIENCE_SECONDS
        ):
            await self._database.writer.submit_prepared(
                partial(self._prepare, received),
                settle,
                inline=self.durability is Durability.NONE,
            )
            if self._doubtful and settled and settled[0][1] is not None:
                await self._clear_doubt()
        if unforeseen:
            raise unforeseen[0]
        return settled[0] if settled else (self.failure(None), None)

    async def _clear_doubt(self) -> None:
        """A COMMIT that succeeded after one that failed leaves no doubt what of that one counts."""
        doubtful, self._doubtful = self._doubtful, []
        try:
            named = await self._database.submit(partial(_named, doubtful))
        except (DatabaseError, trio.Cancelled) as exc:
            self._doubtful += doubtful
            if isinstance(exc, trio.Cancelled):
                raise
            return
        for place in doubtful:
            if place not in named:
                self._remove(place)

    def _settled(
        self, received: Received, addition: Addition | None, error: Exception | None
    ) -> tuple[StoreReply, Added | None]:
        """What is answered for an object that is as durable as it will be."""
        if addition is None:
            assert error is not None
            self._refused += 1
            return self._failed(received, error), None
        for spare in addition.spare:
            if addition.added is Added.REPLACED:
                self._store.replaced(spare, _selected(received))
            self._remove(spare)
        self._trouble.worked()
        added = addition.added
        self._counts[added] += 1
        self._holds += addition.gained
        aside = added in (Added.CONFLICT, Added.CONFLICT_KNOWN)
        if aside or added is Added.REPLACED:
            assert received.place is not None
            fate = "they are aside already"
            if added is not Added.CONFLICT_KNOWN:
                what = "kept aside as" if aside else "they replace it, as"
                fate = f"{what} {self._store.path(received.place)}"
            self._report(
                f"other bytes under a SOP Instance UID that is held, from "
                f"{received.incoming.calling_ae_title}: {fate}"
            )
        conflict = aside and self.duplicates is Duplicates.KEEP_FIRST
        return CONFLICT if conflict else STORED, added

    def _failed(self, received: Received, error: Exception) -> StoreReply:
        if isinstance(error, Refused):
            return error.reply()
        if received.place is not None:
            if isinstance(error, CommitFailed):
                # Its row may yet be found, at the next start too, and must find its file.
                self._doubtful.append(received.place)
            else:
                self._remove(received.place)
        return self.failure(error)

    def failure(self, error: Exception | None) -> StoreReply:
        """What is answered after an error, or where there was no answer at all."""
        reply = NO_ANSWER if error is None else _out_of_resources(error)
        self._trouble.failed(reply.error_comment)
        return reply

    def _remove(self, place: Place) -> None:
        """Takes away a file that no row speaks of; one that stays is found at the next start."""
        with contextlib.suppress(OSError):
            self._store.remove(place)

    def count_refused(self) -> None:
        self._refused += 1

    def _add(self, obj: Object, connection: Connection) -> Addition:
        return self._rows.add(connection, obj)

    # -- finding and giving out -----------------------------------------------------------------

    async def find(
        self, model: QueryModel, identifier: EncodedIdentifier, _calling_ae_title: str
    ) -> AsyncGenerator[bytes, None]:
        """The encoded matches of a C-FIND, as they are found; an EncodedAnswer."""
        query = await _refusing(
            identifier,
            partial(
                FindQuery,
                identifier.data,
                ROOTS[model],
                transfer_syntax_uid=identifier.transfer_syntax,
                ae_title=self.ae_title,
                strict=self._strict,
                options=FindOptions.decode(identifier.extended),
            ),
        )
        pks = await self._database.read(query.pks)
        start, size = 0, FIRST_PAGE
        while start < len(pks):
            part = pks[start : start + size]
            for match in await self._database.read(partial(_page, query, part)):
                yield match
            start, size = start + size, PAGE

    async def select(
        self, model: QueryModel, identifier: EncodedIdentifier, _calling_ae_title: str
    ) -> Sequence[StoredInstance]:
        """The instances of a retrieve; an EncodedSelection."""
        query = await _refusing(
            identifier,
            partial(
                SelectQuery,
                identifier.data,
                ROOTS[model],
                transfer_syntax_uid=identifier.transfer_syntax,
                strict=self._strict,
                relational=FindOptions.decode(identifier.extended).relational,
                aside=self.duplicates is Duplicates.KEEP_BOTH,
            ),
        )
        return [self._store.instance(found) for found in await self._database.read(query.run)]

    async def _start(self) -> None:
        self.recovery = await recover(self._database, self._store, self._rows)
        self._holds = await self._database.read(index.totals)
        await add_kept(self._database)
        await self.commitments.open()


def _selected(received: Received) -> Selected:
    """An object that was stored just now, as a retrieve selects it."""
    incoming, place = received.incoming, received.place
    assert place is not None
    return Selected(
        sop_class_uid=incoming.sop_class_uid,
        sop_instance_uid=incoming.sop_instance_uid,
        transfer_syntax_uid=incoming.transfer_syntax_uid,
        folder=place.folder,
        name=place.name,
        dataset_offset=len(file_meta(incoming)),
        length=received.length,
    )


def _unreported(_line: str) -> None:
    """Stands where nobody asked for the lines."""


@contextlib.asynccontextmanager
async def open_archive(
    directory: str | os.PathLike[str],
    *,
    ae_title: str = "DCMHAUL",
    database_url: str | None = None,
    durability: Durability = Durability.BATCH,
    duplicates: Duplicates = Duplicates.KEEP_FIRST,
    strict: bool = False,
    report: Callable[[str], None] = _unreported,
    moves: OutgoingMoves | None = None,
    worklist: Worklist | None = None,
) -> AsyncIterator[Archive]:
    """Opens the archive in `directory`, which is made if missing, and recovers from a kill.

    database_url: where the index is; by default `index.db` in the folder. duplicates: other bytes
    under a UID that is held; `report` gets a line for each, without anything of a patient. strict:
    queries must name level and unique keys. moves: what a C-MOVE may send to; without it nothing is.
    worklist: what a modality worklist query finds; without it the items that are put into `archive.worklist`.
    ConfigurationError where another process has it open,
    or it cannot be used.
    """
    root = Path(directory)
    try:
        durable = durability is not Durability.NONE
        await trio.to_thread.run_sync(partial(make_folder, root, mode=0o700, durable=durable))
    except OSError as exc:
        raise ConfigurationError(f"cannot make the folder {root}: {exc.strerror}") from exc
    url = database_url or f"sqlite:///{root / 'index.db'}"
    async with open_database(
        url,
        METADATA,
        SCHEMA_VERSION,
        kind=KIND,
        synchronous=durability is not Durability.NONE,
        **({"batch_jobs": 1} if durability is Durability.EACH else {}),
    ) as database:
        try:
            store = await trio.to_thread.run_sync(Store, root, durability)
        except OSError as exc:
            raise ConfigurationError(f"cannot use the folder {root}: {exc.strerror}") from exc
        try:
            archive = Archive(
                database=database,
                store=store,
                rows=Index(database, duplicates),
                ae_title=ae_title,
                durability=durability,
                strict=strict,
                report=report,
                moves=moves or OutgoingMoves(ae_title=ae_title),
                worklist=worklist or Worklist(),
            )
            await archive._start()
            async with flat_nursery() as nursery:
                nursery.start_soon(archive.commitments.run)
                nursery.start_soon(archive.unified.run)
                yield archive
                nursery.cancel_scope.cancel()
        finally:
            store.close()


def _object(
    incoming: IncomingInstance, description: Description, digest: bytes, place: Place, length: int
) -> Object:
    return Object(
        description=description,
        sop_class_uid=incoming.sop_class_uid,
        sop_instance_uid=incoming.sop_instance_uid,
        transfer_syntax_uid=incoming.transfer_syntax_uid,
        place=place,
        dataset_offset=len(file_meta(incoming)),
        length=length,
        sha256=digest,
        received=index.now(),
        source_ae_title=incoming.calling_ae_title,
    )


def _out_of_resources(exc: Exception) -> StoreReply:
    """A700 with the system's reason: the peer may try again later."""
    reason = (
        exc.strerror if isinstance(exc, OSError) and exc.strerror else "the index cannot be written"
    )
    return StoreReply(status=0xA700, error_comment=f"cannot store: {reason}"[:64])


def _named(places: Sequence[Place], connection: Connection) -> set[Place]:
    """Those that a row speaks of."""
    return {
        place
        for folder in {place.folder for place in places}
        for place in (index.Place(folder, name) for name in index.names_in(connection, folder))
    } & set(places)


def _page(query: FindQuery, pks: Sequence[int], connection: Connection) -> list[bytes]:
    return query.page(connection, pks)


async def _refusing(identifier: EncodedIdentifier, make: Callable[[], T]) -> T:
    try:
        if len(identifier.data) > THREAD_LENGTH:
            return await trio.to_thread.run_sync(make)
        return make()
    except MismatchedIdentifier as exc:
        raise QueryRefused(statuses.DATASET_MISMATCH, str(exc)[:64], exc.offending) from exc
    except InvalidIdentifier as exc:
        raise QueryRefused(statuses.CANNOT_UNDERSTAND, str(exc)[:64], exc.offending) from exc
