"""Associations as the verbs open them: what is proposed, what `-v` says of it, and metrics."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from dcmhaul import uids
from dcmhaul.cli.console import Level, printable
from dcmhaul.config import ANY_SCP, DEFAULT_AE_TITLE, port_number
from dcmhaul.errors import ConfigurationError, NoAcceptedContext
from dcmhaul.net import SocketOptions, Timeouts, open_association
from dcmhaul.protocol.negotiation import PDU_LENGTH_DEFAULT, AssociationRequest, ContextResult

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from dcmhaul.cli.session import NetworkOptions, Session
    from dcmhaul.config import Peer
    from dcmhaul.net import Association, Observer
    from dcmhaul.protocol.negotiation import Agreement
    from dcmhaul.wire.items import PresentationContextRq, RoleSelection, UserIdentityRq

__all__ = [
    "counting",
    "open_peer",
    "say_agreement",
    "socket_options",
    "split_address",
    "timeouts",
]

_RESULT_TEXT = {
    ContextResult.USER_REJECTION: "rejected by the user",
    ContextResult.NO_REASON: "rejected without a reason",
    ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED: "abstract syntax not supported",
    ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED: "transfer syntaxes not supported",
}


def timeouts(network: NetworkOptions) -> Timeouts:
    """The deadlines as typed or configured, else the shipped ones."""
    return Timeouts(**network.timeouts)  # type: ignore[arg-type]  # artim is not among the names


def socket_options(network: NetworkOptions) -> SocketOptions:
    return SocketOptions(congestion=network.congestion)


@asynccontextmanager
async def open_peer(
    session: Session,
    network: NetworkOptions,
    peer: Peer,
    contexts: Sequence[PresentationContextRq],
    *,
    roles: Sequence[RoleSelection] = (),
    window: int = 1,
    user_identity: UserIdentityRq | None = None,
    observer: Observer | None = None,
) -> AsyncIterator[Association]:
    """An association with the peer; NoAcceptedContext where it accepts none of the contexts."""
    called = peer.ae_title or ANY_SCP
    calling = network.calling_ae_title or DEFAULT_AE_TITLE
    request = AssociationRequest(
        called_ae_title=called,
        calling_ae_title=calling,
        contexts=tuple(contexts),
        roles=tuple(roles),
        window=window,
        user_identity=user_identity,
        pdu_length_max=network.pdu_length_max or PDU_LENGTH_DEFAULT,
        pdu_length_send_max=network.pdu_length_send_max or 0,
    )
    session.console.info(
        f"associating with {called}@{peer.address} as {calling}: {len(contexts)} contexts, "
        f"PDU {request.pdu_length_max}, window {window}"
    )
    async with open_association(
        peer.host,
        peer.port,
        request,
        timeouts=timeouts(network),
        options=socket_options(network),
        observer=observer,
    ) as association:
        say_agreement(session, network, association.agreement)
        if not association.agreement.accepted:
            raise NoAcceptedContext(
                f"{peer} accepted none of the {len(contexts)} presentation contexts"
                + _reasons(association.agreement)
            )
        yield association
    session.console.info(f"association with {called}@{peer.address} ended")


def _reasons(agreement: Agreement) -> str:
    results = {context.result for context in agreement.rejected}
    reasons = sorted(_RESULT_TEXT.get(result, f"result {int(result)}") for result in results)
    return f": {', '.join(reasons)}" if reasons else ""


def say_agreement(session: Session, network: NetworkOptions, agreement: Agreement) -> None:
    """What was negotiated: the numbers under `-v`, each context under `+v` and `-d`."""
    console = session.console
    if console.level >= Level.INFO:
        implementation = agreement.peer_implementation_version_name or "no implementation name"
        send = agreement.pdu_length_send_max or "unlimited"
        console.info(
            f"association accepted: {len(agreement.accepted)} contexts, PDU to send {send}, "
            f"window {agreement.window_invoked}, peer {printable(implementation)} "
            f"({agreement.peer_implementation_class_uid or 'no implementation UID'})"
        )
    if not (network.show_contexts or console.level >= Level.DEBUG):
        return
    for accepted in agreement.accepted.values():
        console.always(
            f"  context {accepted.context_id}: {uids.name(accepted.abstract_syntax)}, "
            f"{uids.name(accepted.transfer_syntax)}"
        )
    for rejected in agreement.rejected:
        text = _RESULT_TEXT.get(rejected.result, f"result {int(rejected.result)}")
        console.always(
            f"  context {rejected.context_id}: {uids.name(rejected.abstract_syntax)}: {text}"
        )


def split_address(text: str, option: str) -> tuple[str, int]:
    """HOST:PORT, IPv6 in brackets; port 0 takes a free one."""
    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ConfigurationError(f"{option}: expected HOST:PORT, not {text!r}")
    return host.strip("[]"), 0 if port == "0" else port_number(port)


@contextmanager
def counting(session: Session, metrics: str | None, peer: Peer | None) -> Iterator[Observer | None]:
    """The observer of a run, served as Prometheus text where `--metrics` asked for it, else None."""
    if metrics is None:
        yield None
        return
    from dcmhaul.engine.counters import Counters
    from dcmhaul.observe.collector import serve_metrics

    host, port = split_address(metrics, "--metrics")
    counters = Counters(session.configuration.nodes)
    with serve_metrics(host, port, counters) as (bound_host, bound_port):
        session.console.always(f"metrics at http://{bound_host}:{bound_port}/metrics")
        yield counters.observer(peer.name if peer is not None and peer.name else "other")
