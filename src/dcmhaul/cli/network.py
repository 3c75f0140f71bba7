"""Associations as the verbs open them: what is proposed, what `-v` says of it, and metrics."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from dcmhaul import uids
from dcmhaul.cli.console import Level, printable
from dcmhaul.config import ANY_SCP, DEFAULT_AE_TITLE, port_number
from dcmhaul.errors import ConfigurationError, NoAcceptedContext
from dcmhaul.net import SocketOptions, Timeouts, open_association, secured
from dcmhaul.protocol.negotiation import AssociationRequest, ContextResult
from dcmhaul.protocol.statuses import StatusCategory, category, describe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from dcmhaul.cli.output import TransferCount
    from dcmhaul.cli.session import NetworkOptions, Session
    from dcmhaul.config import Peer
    from dcmhaul.engine.counters import NodeObserver
    from dcmhaul.net import Association, AssociationStats, Observer
    from dcmhaul.observe.collector import CounterSource
    from dcmhaul.protocol.events import Role
    from dcmhaul.protocol.negotiation import Agreement
    from dcmhaul.wire.items import (
        PresentationContextRq,
        RoleSelection,
        SopClassExtendedNegotiation,
        UserIdentityRq,
    )

__all__ = [
    "CountingObserver",
    "association_request",
    "check_agreement",
    "counting",
    "open_peer",
    "say_agreement",
    "say_end",
    "say_request",
    "say_tls",
    "socket_options",
    "split_address",
    "timeouts",
]

# So many presentation contexts `-v` lists; a retrieve proposes a hundred of them.
CONTEXTS_FEW = 4

# Below it more goes out in headers than a link should bear; such a peer may not mean it.
PDU_LENGTH_SLOW = 1024

_RESULT_TEXT = {
    ContextResult.USER_REJECTION: "rejected by the user",
    ContextResult.NO_REASON: "rejected without a reason",
    ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED: "abstract syntax not supported",
    ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED: "transfer syntaxes not supported",
}


def timeouts(network: NetworkOptions) -> Timeouts:
    """The deadlines as typed or configured, else the shipped ones."""
    return Timeouts(**network.timeouts)  # type: ignore[arg-type]  # artim is not among the names


def socket_options(network: NetworkOptions, peer: Peer | None = None) -> SocketOptions:
    """The options of sockets; `peer`: of those to it, with its TLS."""
    options = SocketOptions(congestion=network.congestion)
    return options if peer is None else secured(options, peer.tls)


@asynccontextmanager
async def open_peer(
    session: Session,
    network: NetworkOptions,
    peer: Peer,
    contexts: Sequence[PresentationContextRq],
    *,
    roles: Sequence[RoleSelection] = (),
    window: int = 1,
    extended: Sequence[SopClassExtendedNegotiation] = (),
    observer: Observer | None = None,
) -> AsyncIterator[Association]:
    """An association with the peer; NoAcceptedContext where it accepts none of the contexts."""
    request = association_request(
        network, peer, contexts, roles=roles, window=window, extended=extended
    )
    say_request(session, peer, request)
    async with open_association(
        peer.host,
        peer.port,
        request,
        timeouts=timeouts(network),
        options=socket_options(network, peer),
        observer=observer,
    ) as association:
        check_agreement(session, network, association)
        yield association
        aborted = association.ended
    say_end(session, peer, aborted=aborted)


def association_request(
    network: NetworkOptions,
    peer: Peer,
    contexts: Sequence[PresentationContextRq],
    *,
    roles: Sequence[RoleSelection] = (),
    window: int = 1,
    extended: Sequence[SopClassExtendedNegotiation] = (),
    user_identity: UserIdentityRq | None = None,
) -> AssociationRequest:
    """What the options propose to the peer."""
    return AssociationRequest(
        called_ae_title=peer.ae_title or ANY_SCP,
        calling_ae_title=network.calling_ae_title or DEFAULT_AE_TITLE,
        contexts=tuple(contexts),
        roles=tuple(roles),
        window=window,
        extended=tuple(extended),
        user_identity=user_identity,
        pdu_length_max=network.pdu_length_announced,
        pdu_length_send_max=network.pdu_length_send_max or 0,
    )


def say_request(session: Session, peer: Peer, request: AssociationRequest) -> None:
    """What is proposed to whom, under `-v`."""
    session.console.info(
        f"associating with {peer} as {request.calling_ae_title}: "
        f"{_contexts(len(request.contexts))}, PDU {request.pdu_length_max or 'unlimited'}, "
        f"window {request.window}"
    )


def say_end(session: Session, peer: Peer, *, aborted: bool) -> None:
    """How an association ended that did not end by an error, under `-v`."""
    session.console.info(f"association with {peer} {'aborted' if aborted else 'released'}")


def check_agreement(
    session: Session,
    network: NetworkOptions,
    association: Association,
    proposed: Sequence[PresentationContextRq] = (),
) -> None:
    """Says what was negotiated; NoAcceptedContext where that is nothing. proposed: as `say_agreement`."""
    agreement = association.agreement
    say_tls(session, association)
    say_agreement(session, network, agreement, proposed)
    if not agreement.accepted:
        refused = {context.abstract_syntax for context in agreement.rejected}
        what = f"none of the {len(agreement.rejected)} presentation contexts"
        if len(refused) == 1:
            what = f"no context for {uids.name(refused.pop())}"
        raise NoAcceptedContext(f"{association.peer} accepted {what}{_reasons(agreement)}")
    length = agreement.pdu_length_send_max
    if length < PDU_LENGTH_SLOW:
        session.console.warn_once(
            f"warning: {association.peer} takes PDUs of {length} bytes at most, which is slow"
        )


def _contexts(count: int) -> str:
    return f"{count} context" if count == 1 else f"{count} contexts"


def _reasons(agreement: Agreement) -> str:
    results = {context.result for context in agreement.rejected}
    reasons = sorted(_RESULT_TEXT.get(result, f"result {int(result)}") for result in results)
    return f": {', '.join(reasons)}" if reasons else ""


def say_tls(session: Session, association: Association) -> None:
    """Under `-v`, what TLS agreed on."""
    if association.tls is not None and session.console.level >= Level.INFO:
        version, cipher, subject = association.tls
        shown = printable(subject) or "no certificate that was checked"
        session.console.info(f"{association.peer}: {version}, {cipher}, peer {shown}")


def say_agreement(
    session: Session,
    network: NetworkOptions,
    agreement: Agreement,
    proposed: Sequence[PresentationContextRq] = (),
) -> None:
    """What was negotiated, under `-v`; each context too where they are few, or under `+v` and `-d`.

    proposed: the contexts that were; with them all are listed, and what was proposed in each.
    """
    console = session.console
    if console.level >= Level.INFO:
        implementation = agreement.peer_implementation_version_name or "no implementation name"
        console.info(
            f"association accepted: {_contexts(len(agreement.accepted))}, "
            f"PDU to send {agreement.pdu_length_send_max}, "
            f"window {agreement.window_invoked}, peer {printable(implementation)} "
            f"({agreement.peer_implementation_class_uid or 'no implementation UID'})"
        )
    few = bool(proposed) or len(agreement.accepted) + len(agreement.rejected) <= CONTEXTS_FEW
    if not (
        network.show_contexts
        or console.level >= Level.DEBUG
        or (few and console.level >= Level.INFO)
    ):
        return
    syntaxes = {context.context_id: context.transfer_syntaxes for context in proposed}
    for accepted in agreement.accepted.values():
        offered = [uids.name(uid) for uid in syntaxes.get(accepted.context_id, ())]
        choice = f" (of {', '.join(offered)})" if len(offered) > 1 else ""
        console.always(
            f"  context {accepted.context_id}: {uids.name(accepted.abstract_syntax)}, "
            f"{uids.name(accepted.transfer_syntax)}{choice}"
        )
    for rejected in agreement.rejected:
        text = _RESULT_TEXT.get(rejected.result, f"result {int(rejected.result)}")
        offered = [uids.name(uid) for uid in syntaxes.get(rejected.context_id, ())]
        what = ", ".join([uids.name(rejected.abstract_syntax), *offered])
        console.always(f"  context {rejected.context_id}: {what}: {text}")


def split_address(text: str, option: str) -> tuple[str, int]:
    """HOST:PORT, IPv6 in brackets; port 0 takes a free one."""
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ConfigurationError(f"{option}: expected HOST:PORT, not {text!r}")
    return host.strip("[]"), 0 if port == "0" else port_number(port)


@contextmanager
def counting(
    session: Session,
    metrics: str | None,
    peer: Peer | None,
    durability: str | None = None,
    counted: CounterSource | None = None,
) -> Iterator[NodeObserver | None]:
    """The observer of a run, served as Prometheus text where `--metrics` asked for it, else None.

    durability: the mode of what the run stores, where it stores anything. counted: what else counts.
    """
    if metrics is None:
        yield None
        return
    from dcmhaul.engine.counters import Counters
    from dcmhaul.observe.collector import serve_metrics

    host, port = split_address(metrics, "--metrics")
    counters = Counters(session.configuration.nodes, durability=durability)
    sources = (counters,) if counted is None else (counters, counted)
    with serve_metrics(host, port, *sources) as (bound_host, bound_port):
        session.console.always(f"metrics at http://{bound_host}:{bound_port}/metrics")
        yield counters.observer(peer.name if peer is not None and peer.name else "other")


class CountingObserver:
    """An observer that counts what is stored and tells the rest to another one."""

    def __init__(self, session: Session, count: TransferCount, inner: Observer) -> None:
        self._session = session
        self._count = count
        self._inner = inner

    def association_opened(
        self, role: Role, peer: str, live: Callable[[], AssociationStats]
    ) -> None:
        self._inner.association_opened(role, peer, live)

    def association_closed(
        self, role: Role, stats: AssociationStats, live: Callable[[], AssociationStats]
    ) -> None:
        self._inner.association_closed(role, stats, live)

    def association_rejected(self, role: Role, result: int, source: int, reason: int) -> None:
        self._session.console.info(
            f"association rejected: result {result}, source {source}, reason {reason}"
        )
        self._inner.association_rejected(role, result, source, reason)

    def association_aborted(self, role: Role, origin: str, source: int, reason: int) -> None:
        self._session.console.info(
            f"association aborted by {origin}: source {source}, reason {reason}"
        )
        self._inner.association_aborted(role, origin, source, reason)

    def operation(
        self, operation: str, direction: str, status: int, seconds: float, dataset_bytes: int
    ) -> None:
        if operation == "C-STORE" and direction == "in":
            count = self._count
            count.operation(time.perf_counter(), seconds)
            if category(status) in (StatusCategory.SUCCESS, StatusCategory.WARNING):
                count.instances += 1
                count.byte_count += dataset_bytes
            else:
                count.failed += 1
                self._session.console.warn(f"not stored: {describe(status)}")
        if self._session.console.level >= Level.INFO:
            self._session.console.info(f"{operation} {direction}: {describe(status, operation)}")
        self._inner.operation(operation, direction, status, seconds, dataset_bytes)
