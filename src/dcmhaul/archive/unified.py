"""The archive as SCP of Unified Procedure Steps (PS3.4 Annex CC): push, pull, watch, event and query."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from dcmhaul import uids
from dcmhaul.archive import unified_changes as changes
from dcmhaul.archive.subscriptions import GLOBAL, EventReporter
from dcmhaul.archive.tables import keep
from dcmhaul.archive.worklist import read_query
from dcmhaul.protocol import statuses
from dcmhaul.services.normalized import (
    STEP_LENGTH_MAX,
    NormalizedAnswer,
    NormalizedRefused,
    SopClass,
    check_present,
    give_attributes,
)
from dcmhaul.services.query import QueryModel
from dcmhaul.services.unified import (
    CHANGE_STATE,
    REQUEST_CANCEL,
    SCHEDULED,
    SUBSCRIBE,
    SUSPEND,
    UNSUBSCRIBE,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from sqlalchemy.engine import Connection

    from dcmhaul.archive.moves import OutgoingMoves
    from dcmhaul.database import Database
    from dcmhaul.services.identifiers import EncodedIdentifier
    from dcmhaul.services.normalized import NormalizedRequest

__all__ = ["UnifiedSteps"]

MODELS: Final = (
    QueryModel.UNIFIED_STEP_PULL,
    QueryModel.UNIFIED_STEP_WATCH,
    QueryModel.UNIFIED_STEP_QUERY,
)


class UnifiedSteps:
    """The steps of one archive, each change durable before it is answered; `run` tells subscribers."""

    def __init__(
        self, database: Database, moves: OutgoingMoves, *, report: Callable[[str], None]
    ) -> None:
        self._database = database
        self._events = EventReporter(moves, report)
        self.run = self._events.run
        actions: dict[str, dict[int, changes.Action]] = {
            uids.UNIFIED_STEP_PUSH: {REQUEST_CANCEL: changes.request_cancel},
            uids.UNIFIED_STEP_PULL: {CHANGE_STATE: changes.change_state},
            uids.UNIFIED_STEP_WATCH: {
                REQUEST_CANCEL: changes.request_cancel,
                SUBSCRIBE: changes.subscribe,
                UNSUBSCRIBE: changes.unsubscribe,
                SUSPEND: changes.suspend,
            },
            uids.UNIFIED_STEP_QUERY: {},
        }
        own: dict[str, dict[str, Callable[[NormalizedRequest], Awaitable[NormalizedAnswer]]]] = {
            uids.UNIFIED_STEP_PUSH: {"N-CREATE": self._create},
            uids.UNIFIED_STEP_PULL: {"N-SET": self._set},
        }
        self.sop_classes = tuple(
            SopClass(
                uid=uids.UNIFIED_STEP_PUSH,
                contexts=(context,),
                dataset_length_max=STEP_LENGTH_MAX,
                operations={
                    "N-GET": self._get,
                    **({"N-ACTION": partial(self._act, offered)} if offered else {}),
                    **own.get(context, {}),
                },
            )
            for context, offered in actions.items()
        )

    # -- operations -----------------------------------------------------------------------------

    async def _create(self, request: NormalizedRequest) -> NormalizedAnswer:
        attributes = changes.given(request)
        check_present(attributes, (changes.STATE,))
        if changes.text_of(attributes, changes.STATE) != SCHEDULED:
            raise NormalizedRefused(*changes.NOT_SCHEDULED, attributes=(changes.STATE,))
        check_present(attributes, changes.REQUIRED)
        uid = request.sop_instance_uid or uids.new_uid()
        if uid == GLOBAL:
            raise NormalizedRefused(statuses.INVALID_SOP_INSTANCE, "a well-known instance")
        attributes.pop(changes.TRANSACTION_UID, None)
        attributes.SOPClassUID = uids.UNIFIED_STEP_PUSH
        attributes.SOPInstanceUID = uid
        if not changes.text_of(attributes, changes.WORKLIST_LABEL):
            attributes.WorklistLabel = "DEFAULT"
        await self._write(partial(changes.insert, uid, attributes))
        return NormalizedAnswer(sop_instance_uid=uid)

    async def _set(self, request: NormalizedRequest) -> NormalizedAnswer:
        asked = changes.given(request)
        fixed = tuple(tag for tag in (0x00080016, 0x00080018, changes.STATE) if tag in asked)
        if fixed:
            raise NormalizedRefused(
                statuses.NO_SUCH_ATTRIBUTE, "N-SET does not set these", attributes=fixed
            )
        transaction = changes.text_of(asked, changes.TRANSACTION_UID)
        asked.pop(changes.TRANSACTION_UID, None)
        await self._write(partial(changes.update, request.sop_instance_uid, transaction, asked))
        return NormalizedAnswer()

    async def _get(self, request: NormalizedRequest) -> NormalizedAnswer:
        held = await self._database.read(partial(changes.read_step, request.sop_instance_uid))
        return give_attributes(held, request.attributes)

    async def _act(
        self, actions: dict[int, changes.Action], request: NormalizedRequest
    ) -> NormalizedAnswer:
        action = actions.get(request.type_id or 0)
        if action is None:
            raise NormalizedRefused(
                statuses.NO_SUCH_ACTION_TYPE, "no such action of the SOP Class of this context"
            )
        information = request.dataset
        receiver = ""
        if action in (changes.subscribe, changes.unsubscribe, changes.suspend):
            receiver = changes.receiver_of(information)
            if action is changes.subscribe and not self._events.knows(receiver):
                raise NormalizedRefused(*changes.RECEIVER_UNKNOWN)
        act = changes.Act(request, information or changes.nothing(), receiver)
        status = await self._write(partial(action, act))
        if action is changes.subscribe and (act.uid != GLOBAL or act.locks):
            return NormalizedAnswer(afterwards=partial(self._tell_states, act))
        return NormalizedAnswer(status=status)

    async def _tell_states(self, act: changes.Act) -> None:
        """What a subscription begins with (PS3.4 §CC.2.4.3)."""
        last = 0
        while True:
            last, events = await self._database.read(partial(changes.state_reports, act.uid, last))
            self._events.tell([act.receiver], events)
            if not last:
                return

    async def _write(self, write: Callable[[Connection], tuple[int, list[changes.Told]]]) -> int:
        """The status; whoever is to hear of it is told."""
        status, told = await keep(self._database, write, "the step")
        for titles, events in told:
            self._events.tell(titles, events)
        return status

    # -- queries --------------------------------------------------------------------------------

    async def find(
        self, _model: QueryModel, identifier: EncodedIdentifier, _calling_ae_title: str
    ) -> AsyncGenerator[bytes, None]:
        """The encoded matches of a C-FIND (PS3.4 §CC.2.8); an EncodedAnswer."""
        query = await read_query(identifier)
        state = query.single_value(changes.STATE)
        last = 0
        while True:
            last, matches = await self._database.read(
                partial(changes.find_page, query, state, last)
            )
            for match in matches:
                yield match
            if not last:
                return
