"""`dcmhaul ups`: unified procedure steps at a peer (PS3.4 Annex CC), and their events."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

import click

from dcmhaul.cli.exits import Exit
from dcmhaul.cli.options import key_options, network_options, verb
from dcmhaul.config import DEFAULT_AE_TITLE
from dcmhaul.errors import ConfigurationError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from dcmhaul.cli.keys import Identifier
    from dcmhaul.cli.session import NetworkOptions, Session
    from dcmhaul.config import Peer
    from dcmhaul.net import Association
    from dcmhaul.services.normalized import (
        NormalizedAnswer,
        NormalizedRequest,
        NormalizedResponse,
    )

__all__ = ["command"]

# What is done -> whether a step must be named, and whether it takes attributes.
_ACTIONS = {
    "create": (False, True),
    "find": (False, True),
    "get": (True, True),
    "claim": (True, False),
    "set": (True, True),
    "complete": (True, True),
    "cancel": (True, True),
    "request-cancel": (True, True),
    "subscribe": (False, False),
    "unsubscribe": (False, False),
    "suspend": (False, False),
    "watch": (False, False),
}

_EPILOG = """\b
ACTION is one of
  create          makes a step, SCHEDULED, of --dataset and -k
  find            steps that -k matches; -k without a value is asked for
  get             the attributes of a step, those of -k, or all
  claim           begins it: IN PROGRESS; its key, a Transaction UID, goes to stdout
  set             changes attributes; a step in progress needs --transaction
  complete        ends it; with -k or --dataset these are set before
  cancel          the same, as CANCELED
  request-cancel  asks whoever performs it to cancel it; -k gives the reason
  subscribe       has PEER tell --receiver of --instance, or of all steps
  unsubscribe     ends that; suspend ends it for steps that are still to come
  watch           subscribes us, and shows each event, until Ctrl-C, --count or --for;
                  PEER must know us by our -aet, at the port of +P

\b
Examples:
  dcmhaul ups WORK@10.1.2.3:104 create -k ProcedureStepLabel=Segment
  dcmhaul ups WORK@10.1.2.3:104 find -k ProcedureStepState=SCHEDULED -k ProcedureStepLabel
  dcmhaul ups WORK@10.1.2.3:104 claim --instance 1.2.3
  dcmhaul ups WORK@10.1.2.3:104 complete --instance 1.2.3 --transaction 2.25.1 --dataset done.json
  dcmhaul ups WORK@10.1.2.3:104 watch -aet OURS +P 11112
"""


@verb("ups", epilog=_EPILOG)
@network_options()
@click.option("--instance", default="", metavar="UID", help="The step.")
@click.option("--transaction", default="", metavar="UID", help="The key of a step in progress.")
@click.option("--dataset", metavar="FILE", help="What goes with the request.")
@key_options
@click.option("--receiver", metavar="AET", help="Who is told of events [default: our -aet].")
@click.option("--lock", is_flag=True, help="PEER keeps steps that ended until we unsubscribe.")
@click.option("+P", "--port", "port", metavar="PORT", help="watch: listen on this port.")
@click.option("--bind", metavar="ADDR", help="watch: address to listen on [default: 0.0.0.0].")
@click.option("--count", type=click.IntRange(1), help="watch: end after so many events.")
@click.option("--for", "seconds", type=click.FloatRange(0), help="watch: end after so many s.")
@click.argument("words", nargs=-1, metavar="PEER ACTION")
def command(
    session: Session,
    network: NetworkOptions,
    words: tuple[str, ...],
    **given: Any,
) -> None:
    """Unified procedure steps at PEER.

    PEER is AET@HOST:PORT, HOST PORT (with -aec), or a node of dcmhaul.toml.
    """
    import trio

    from dcmhaul.cli.models import quiet_pydicom

    quiet_pydicom()
    peer, rest = session.split_peer(words, network)
    action = rest[0] if rest else ""
    if action not in _ACTIONS or len(rest) != 1:
        raise ConfigurationError(
            f"after PEER expected one ACTION of {', '.join(_ACTIONS)}; "
            f"got {' '.join(rest) or 'none'}"
        )
    _check(action, given)
    run = _Ups(session, session.network(network, peer), peer, action, _Given(**given))
    trio.run(run.run)


def _check(action: str, given: dict[str, Any]) -> None:
    """ConfigurationError where an option is missing, or of another action."""
    from dcmhaul.uids import is_valid_uid

    named, attributes = _ACTIONS[action]
    for option in ("instance", "transaction"):
        if given[option] and not is_valid_uid(given[option]):
            raise ConfigurationError(f"--{option} {given[option]}: expected a UID")
    if named and not given["instance"]:
        raise ConfigurationError(f"{action} needs the step: --instance UID")
    if action in ("complete", "cancel") and not given["transaction"]:
        raise ConfigurationError(f"{action} needs the key that claim gave out: --transaction UID")
    if action == "watch" and not given["port"]:
        raise ConfigurationError("watch needs a port that PEER knows us by: +P PORT")
    if not attributes and (given["keys"] or given["dataset"]):
        raise ConfigurationError(f"{action} takes no -k and no --dataset")
    for option in ("port", "bind", "count", "seconds"):
        if action != "watch" and given[option] is not None:
            typed = {"port": "+P", "seconds": "--for"}.get(option, f"--{option}")
            raise ConfigurationError(f"{typed} belongs to watch")
    if action == "set" and not (given["keys"] or given["dataset"]):
        raise ConfigurationError("set needs what is to be set: -k or --dataset")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """What was typed."""

    instance: str
    transaction: str
    dataset: str | None
    keys: tuple[str, ...]
    receiver: str | None
    lock: bool
    port: str | None
    bind: str | None
    count: int | None
    seconds: float | None

    def identifier(self) -> Identifier:
        from dcmhaul.cli.keys import build_identifier
        from dcmhaul.cli.queryfiles import read_query_file

        base = read_query_file(self.dataset) if self.dataset is not None else None
        return build_identifier(self.keys, base)

    def attributes(self) -> Dataset:
        from dcmhaul.cli.keys import as_dataset

        return as_dataset(self.identifier())


class _Ups:
    """One run of one action."""

    def __init__(
        self, session: Session, network: NetworkOptions, peer: Peer, action: str, given: _Given
    ) -> None:
        from dcmhaul import uids

        self.session = session
        self.network = network
        self.peer = peer
        self.action = action
        self.given = given
        self.title = network.calling_ae_title or DEFAULT_AE_TITLE
        self.step = given.instance or uids.UNIFIED_STEP_SUBSCRIPTION
        self._heard = 0

    async def run(self) -> None:
        from dcmhaul import uids
        from dcmhaul.cli.models import query_context
        from dcmhaul.cli.network import open_peer

        if self.action == "watch":
            await self._watch()
            return
        pull, watch = uids.UNIFIED_STEP_PULL, uids.UNIFIED_STEP_WATCH
        classes = {
            "create": (uids.UNIFIED_STEP_PUSH,),
            "find": (pull, watch, uids.UNIFIED_STEP_QUERY),
            "get": (pull, watch, uids.UNIFIED_STEP_PUSH, uids.UNIFIED_STEP_QUERY),
            "request-cancel": (uids.UNIFIED_STEP_PUSH, watch),
            "subscribe": (watch,),
            "unsubscribe": (watch,),
            "suspend": (watch,),
        }.get(self.action, (pull,))
        contexts = tuple(
            query_context(2 * number + 1, uid, ()) for number, uid in enumerate(classes)
        )
        async with open_peer(self.session, self.network, self.peer, contexts) as association:
            accepted = [uid for uid in classes if association.agreement.context_for(uid)]
            # Where none was, the request says so.
            context = (accepted or classes)[0]
            perform = getattr(self, "_" + self.action.replace("-", "_"), self._subscription)
            await perform(association, context)

    # -- actions --------------------------------------------------------------------------------

    async def _create(self, association: Association, _context: str) -> None:
        from dcmhaul import uids
        from dcmhaul.services.normalized import n_create

        made = _scheduled()
        made.update(self.given.attributes())
        uid = self.given.instance or uids.new_uid()
        response = await n_create(association, uids.UNIFIED_STEP_PUSH, uid, made)
        self._tell("N-CREATE", response, response.sop_instance_uid or uid, "SCHEDULED")

    async def _find(self, association: Association, context: str) -> None:
        from dcmhaul.cli.keys import build_identifier, encode_identifier
        from dcmhaul.cli.models import json_object, match_lines
        from dcmhaul.cli.responses import response_text
        from dcmhaul.services.query import QueryModel, find

        model = next(model for model in QueryModel if model.find_uid == context)
        # Whatever is typed stands above these, which name a step.
        named = build_identifier(("SOPInstanceUID", "ProcedureStepState"))
        typed = self.given.identifier()
        wanted = type(typed)({**named.elements, **typed.elements})
        matches = 0
        async with find(association, model, partial(encode_identifier, wanted)) as responses:
            async for response in responses:
                self.session.begun = True
                if not response.pending:
                    if response.status:
                        text = response_text(
                            response.status, "C-FIND", response.offending, response.error_comment
                        )
                        self.session.refuse(response.status, text, "C-FIND")
                    break
                matches += 1
                found = response.dataset()
                uid = str(found.get("SOPInstanceUID", ""))
                state = str(found.get("ProcedureStepState", ""))
                self.session.answer.record(
                    {"type": "step", "sop_instance_uid": uid, "state": state}
                    | {"dataset": json_object(found)}
                )
                if not self.session.answer.json_lines:
                    self.session.answer.line(f"{uid}\t{state}")
                    for line in match_lines(found, "  "):
                        self.session.answer.line(line)
        if not matches and not any(self.session.codes):
            self.session.code(Exit.NOTHING_MATCHED)

    async def _get(self, association: Association, context: str) -> None:
        from dcmhaul import uids
        from dcmhaul.cli.models import json_object, match_lines
        from dcmhaul.services.normalized import n_get

        response = await n_get(
            association,
            uids.UNIFIED_STEP_PUSH,
            self.step,
            self.given.identifier().elements,
            context=context,
        )
        held = response.dataset()
        state = "" if held is None else str(held.get("ProcedureStepState", ""))
        record = {"dataset": None if held is None else json_object(held)}
        done = self._tell("N-GET", response, self.step, state, record)
        if done and held is not None and not self.session.answer.json_lines:
            for line in match_lines(held, "  "):
                self.session.answer.line(line)

    async def _claim(self, association: Association, _context: str) -> None:
        from dcmhaul import uids

        await self._change(association, "IN PROGRESS", self.given.transaction or uids.new_uid())

    async def _set(self, association: Association, _context: str) -> bool:
        from dcmhaul import uids
        from dcmhaul.services.normalized import n_set

        changes = self.given.attributes()
        if self.given.transaction:
            changes.TransactionUID = self.given.transaction
        push, pull = uids.UNIFIED_STEP_PUSH, uids.UNIFIED_STEP_PULL
        response = await n_set(association, push, self.step, changes, context=pull)
        return self._tell("N-SET", response, self.step, "")

    async def _complete(self, association: Association, context: str) -> None:
        await self._end(association, context, "COMPLETED")

    async def _cancel(self, association: Association, context: str) -> None:
        await self._end(association, context, "CANCELED")

    async def _end(self, association: Association, context: str, state: str) -> None:
        typed = self.given.keys or self.given.dataset
        if not typed or await self._set(association, context):
            await self._change(association, state, self.given.transaction)

    async def _change(self, association: Association, state: str, transaction: str) -> None:
        from dcmhaul.services.unified import change_state

        response = await change_state(association, self.step, state, transaction)
        self._tell("N-ACTION", response, self.step, state, {"transaction_uid": transaction})

    async def _request_cancel(self, association: Association, context: str) -> None:
        from dcmhaul.services.unified import request_cancel

        response = await request_cancel(
            association, self.step, self.given.attributes(), context=context
        )
        self._tell("N-ACTION", response, self.step, "cancel requested")

    async def _subscription(self, association: Association, _context: str) -> bool:
        from dcmhaul.services import unified

        receiver = self.given.receiver or self.title
        if self.action in ("subscribe", "watch"):
            response = await unified.subscribe(
                association, receiver, self.step, deletion_lock=self.given.lock
            )
        elif self.action == "unsubscribe":
            response = await unified.unsubscribe(association, receiver, self.step)
        else:
            response = await unified.suspend(association, receiver)
        state = {"unsubscribe": "unsubscribed", "suspend": "suspended"}.get(
            self.action, "subscribed"
        )
        return self._tell("N-ACTION", response, self.step, state)

    # -- events ---------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Subscribes, shows events, and ends the subscription."""
        import trio

        from dcmhaul.cli.server import listening_scp
        from dcmhaul.cli.stopping import stopping
        from dcmhaul.engine.scheduler import StopRequest
        from dcmhaul.services.normalized import NormalizedScp
        from dcmhaul.services.unified import event_class

        given = self.given
        stop = StopRequest()
        services = [NormalizedScp([event_class(partial(self._event, stop))])]
        assert given.port is not None  # it was checked
        async with (
            listening_scp(self.session, self.network, services, given.port, given.bind),
            stopping(self.session, stop),
        ):
            if not await self._subscribed(begin=True):
                return
            with trio.move_on_after(inf if given.seconds is None else given.seconds):
                await stop.event.wait()
            await self._subscribed(begin=False)

    async def _subscribed(self, *, begin: bool) -> bool:
        from dcmhaul import uids
        from dcmhaul.cli.models import query_context
        from dcmhaul.cli.network import open_peer
        from dcmhaul.services import unified

        contexts = (query_context(1, uids.UNIFIED_STEP_WATCH, ()),)
        async with open_peer(self.session, self.network, self.peer, contexts) as association:
            if begin:
                return await self._subscription(association, "")
            await unified.unsubscribe(association, self.title, self.step)
        return True

    async def _event(self, stop: Any, request: NormalizedRequest) -> NormalizedAnswer:
        from dcmhaul.cli.models import json_object
        from dcmhaul.protocol import statuses
        from dcmhaul.services.normalized import NormalizedAnswer, NormalizedRefused
        from dcmhaul.services.unified import EVENTS

        told = request.dataset
        kind = EVENTS.get(request.type_id or 0)
        if kind is None:
            raise NormalizedRefused(statuses.NO_SUCH_EVENT_TYPE, "event types are 1 to 5")
        values = [
            str(told.get(keyword, ""))
            for keyword in ("ProcedureStepState", "InputReadinessState")
            if told is not None
        ]
        self.session.answer.line("\t".join(filter(None, (request.sop_instance_uid, kind, *values))))
        self.session.answer.record(
            {
                "type": "event",
                "event": request.type_id,
                "sop_instance_uid": request.sop_instance_uid,
                "dataset": None if told is None else json_object(told),
            }
        )
        self._heard += 1
        if self._heard == self.given.count:
            return NormalizedAnswer(afterwards=partial(_stop, stop))
        return NormalizedAnswer()

    # -- answers --------------------------------------------------------------------------------

    def _tell(
        self,
        operation: str,
        response: NormalizedResponse,
        uid: str,
        state: str,
        more: dict[str, Any] | None = None,
    ) -> bool:
        """Whether it was done; the step and what it is now go to stdout."""
        from dcmhaul.cli.responses import normalized_text
        from dcmhaul.protocol.statuses import StatusCategory, category

        session = self.session
        session.begun = True
        text = normalized_text(response, "UPS")
        session.console.info(f"{operation}-RSP: {text}")
        session.answer.record(
            {
                "type": "step",
                "operation": operation,
                "sop_instance_uid": uid,
                "status": f"{response.status:04X}",
                "state": state,
                **(more or {}),
            }
        )
        kind = category(response.status, "UPS")
        if kind is StatusCategory.FAILURE:
            session.refuse(response.status, text, operation)
            return False
        if kind is StatusCategory.WARNING:
            session.console.warn(f"warning: {operation}: {text}")
        texts = (uid, state, (more or {}).get("transaction_uid", ""))
        session.answer.line("\t".join(part for part in texts if part))
        return True


async def _stop(stop: Any) -> None:
    stop.request()


def _scheduled() -> Dataset:
    """What a new step has at least (PS3.4 Table CC.2.5-3), where nothing else was typed."""
    from pydicom.dataset import Dataset

    made = Dataset()
    made.TransactionUID = ""
    made.ProcedureStepState = "SCHEDULED"
    made.ScheduledProcedureStepPriority = "MEDIUM"
    made.ProcedureStepLabel = "dcmhaul"
    made.WorklistLabel = "dcmhaul"
    made.ScheduledProcedureStepStartDateTime = time.strftime("%Y%m%d%H%M%S")
    made.InputReadinessState = "READY"
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex"):
        setattr(made, keyword, "")
    for keyword in (
        "ScheduledWorkitemCodeSequence",
        "ScheduledStationNameCodeSequence",
        "InputInformationSequence",
        "ReferencedRequestSequence",
        "ProcedureStepProgressInformationSequence",
        "UnifiedProcedureStepPerformedProcedureSequence",
    ):
        setattr(made, keyword, [])
    return made
