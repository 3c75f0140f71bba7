"""Association negotiation as pure functions: what is proposed, answered and thereby agreed.

Decides, and sends nothing (PS3.8 §7.1, §9.3.2-9.3.4, Annex D; PS3.7 Annex D.3).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

from dcmhaul.errors import LocalProtocolError, RemoteProtocolError
from dcmhaul.uids import (
    APPLICATION_CONTEXT,
    IMPLEMENTATION_CLASS_UID,
    IMPLEMENTATION_VERSION_NAME,
    OTHER_UIDS,
    TRANSFER_SYNTAXES,
    is_valid_uid,
)
from dcmhaul.wire.items import (
    AsyncOperationsWindow,
    PresentationContextAc,
    PresentationContextRq,
    RoleSelection,
    SopClassCommonExtendedNegotiation,
    SopClassExtendedNegotiation,
    UserIdentityRq,
    UserInformation,
)
from dcmhaul.wire.pdu import AE_TITLE_SIZE, AAssociateAc, AAssociateRj, AAssociateRq

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "CONTEXTS_MAX",
    "PDU_LENGTH_DEFAULT",
    "PDU_LENGTH_SEND_DEFAULT",
    "WINDOW_MAX",
    "AcceptedContext",
    "AcceptorPolicy",
    "Agreement",
    "AssociationRequest",
    "ContextResult",
    "RejectedContext",
    "SupportedContext",
    "is_caller",
    "is_valid_ae_title",
    "negotiate",
    "plan_contexts",
    "requestor_agreement",
]

CONTEXTS_MAX: Final = 128
"""Presentation contexts of one association: the odd IDs from 1 to 255 (PS3.8 §9.3.2.2)."""
PDU_LENGTH_DEFAULT: Final = 131072
PDU_LENGTH_SEND_DEFAULT: Final = 1 << 20
"""What we send in one P-DATA-TF at most, where only the peer could set a limit: longer gains nothing."""
WINDOW_MAX: Final = 32
"""The most operations that we let be outstanding in one direction, whatever is offered."""

_PDU_LENGTH_WHEN_ABSENT: Final = 16384
"""The item is mandatory; a peer without it gets PDUs that every implementation takes."""
_PDU_LENGTH_MIN: Final = 8
"""The smallest P-DATA-TF that carries anything: one PDV header and an even fragment of 2 octets."""
_USER_IDENTITY_FIELD_MAX: Final = 8 * 1024
_USER_IDENTITY_TYPES: Final = range(1, 6)
_VERSION_1: Final = 0x0001
_DEFAULT_ROLES: Final = (True, False)

_NOTHING_SAID: Final = AAssociateRj(result=1, source=2, reason=1)
_VERSION_NOT_SUPPORTED: Final = AAssociateRj(result=1, source=2, reason=2)
_APPLICATION_CONTEXT_NOT_SUPPORTED: Final = AAssociateRj(result=1, source=1, reason=2)
_CALLING_NOT_RECOGNIZED: Final = AAssociateRj(result=1, source=1, reason=3)
_CALLED_NOT_RECOGNIZED: Final = AAssociateRj(result=1, source=1, reason=7)


class ContextResult(IntEnum):
    """Result/Reason of a presentation context in the A-ASSOCIATE-AC (PS3.8 Table 9-18)."""

    ACCEPTANCE = 0
    USER_REJECTION = 1
    NO_REASON = 2
    ABSTRACT_SYNTAX_NOT_SUPPORTED = 3
    TRANSFER_SYNTAXES_NOT_SUPPORTED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedContext:
    """A presentation context that both sides may use."""

    context_id: int
    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedContext:
    """A proposed presentation context that is not to be used."""

    context_id: int
    abstract_syntax: str
    result: ContextResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What an association was opened with, seen from our side; both roles hold the same kind.

    pdu_length_send_max: what the peer takes in the variable field of a P-DATA-TF; 0 is unlimited. An
    open association holds what `sending_at_most` left of it.
    window_invoked: operations that we may have outstanding. window_performed: those of the peer.
    roles: abstract syntax -> (requestor is SCU, requestor is SCP), where it was negotiated.
    extended: SOP class -> the service-class-application-information that the acceptor answered.
    """

    accepted: Mapping[int, AcceptedContext]
    rejected: tuple[RejectedContext, ...]
    pdu_length_send_max: int
    window_invoked: int
    window_performed: int
    roles: Mapping[str, tuple[bool, bool]]
    extended: Mapping[str, bytes]
    calling_ae_title: str
    called_ae_title: str
    peer_implementation_class_uid: str | None
    peer_implementation_version_name: str | None
    _by_syntax: dict[tuple[str, str | None], AcceptedContext] = field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        by_syntax: dict[tuple[str, str | None], AcceptedContext] = {}
        for context in self.accepted.values():
            by_syntax.setdefault((context.abstract_syntax, None), context)
            by_syntax.setdefault((context.abstract_syntax, context.transfer_syntax), context)
        object.__setattr__(self, "_by_syntax", by_syntax)

    def sending_at_most(self, length: int) -> Agreement:
        """The same where we send no longer P-DATA-TF than `length` either; 0 is the default of it."""
        length = length or PDU_LENGTH_SEND_DEFAULT
        if 0 < self.pdu_length_send_max <= length:
            return self
        return replace(self, pdu_length_send_max=length)

    def context_for(
        self, abstract_syntax: str, transfer_syntaxes: Iterable[str] | None = None
    ) -> AcceptedContext | None:
        """The accepted context of a class, the first in the order of `transfer_syntaxes`."""
        if transfer_syntaxes is None:
            return self._by_syntax.get((abstract_syntax, None))
        for syntax in transfer_syntaxes:
            context = self._by_syntax.get((abstract_syntax, syntax))
            if context is not None:
                return context
        return None

    def roles_for(self, abstract_syntax: str) -> tuple[bool, bool]:
        """(requestor is SCU, requestor is SCP); not negotiated, the requestor is SCU alone."""
        return self.roles.get(abstract_syntax, _DEFAULT_ROLES)


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationRequest:
    """What a requestor proposes.

    pdu_length_max: what we take in a P-DATA-TF. pdu_length_send_max: what we send in one at most,
    whatever the peer takes; 0 is PDU_LENGTH_SEND_DEFAULT. window: operations outstanding in each
    direction; 1 sends no item, for some peers drop the connection at it.
    """

    called_ae_title: str
    calling_ae_title: str
    contexts: tuple[PresentationContextRq, ...]
    pdu_length_max: int = PDU_LENGTH_DEFAULT
    pdu_length_send_max: int = 0
    window: int = 1
    roles: tuple[RoleSelection, ...] = ()
    extended: tuple[SopClassExtendedNegotiation, ...] = ()
    common_extended: tuple[SopClassCommonExtendedNegotiation, ...] = ()
    user_identity: UserIdentityRq | None = None

    def to_pdu(self) -> AAssociateRq:
        """The A-ASSOCIATE-RQ. LocalProtocolError where the standard would not allow it."""
        ids = {context.context_id for context in self.contexts}
        if not self.contexts or len(ids) < len(self.contexts) or any(i % 2 == 0 for i in ids):
            raise LocalProtocolError(
                f"{len(self.contexts)} presentation contexts with {len(ids)} IDs: expected 1 to "
                f"{CONTEXTS_MAX} with odd IDs of their own"
            )
        for title in (self.called_ae_title, self.calling_ae_title):
            if not is_valid_ae_title(title):
                raise LocalProtocolError(f"{title!r} is no AE title")
        if self.window < 1:
            raise LocalProtocolError(f"window {self.window}: an unlimited one is never proposed")
        window = None
        if self.window > 1:
            window = AsyncOperationsWindow(invoked=self.window, performed=self.window)
        return AAssociateRq(
            called_ae_title=self.called_ae_title,
            calling_ae_title=self.calling_ae_title,
            presentation_contexts=self.contexts,
            user_information=UserInformation(
                max_length_received=self.pdu_length_max,
                implementation_class_uid=IMPLEMENTATION_CLASS_UID,
                implementation_version_name=IMPLEMENTATION_VERSION_NAME,
                async_window=window,
                roles=self.roles,
                extended=self.extended,
                common_extended=self.common_extended,
                user_identity=self.user_identity,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SupportedContext:
    """What an acceptor takes of one abstract syntax.

    transfer_syntaxes: in the acceptor's order of preference; () takes the first proposed one that
    is known. accept_scp_role: the requestor may be its SCP (the storage classes of a C-GET).
    extended: the highest value of each byte of its service-class-application-information that is
    agreed to; b"" answers no extended negotiation.
    """

    transfer_syntaxes: tuple[str, ...] = ()
    accept_scp_role: bool = False
    extended: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptorPolicy:
    """What an acceptor agrees to.

    ae_title: the called title that is answered, None answers any; `aliases` are, too. accept_any_storage:
    an abstract syntax that nothing knows is taken for a storage class. allowed_callers: `AET` or `AET@ADDRESS`;
    () allows any. strict: a request without its mandatory user information items is rejected.
    """

    ae_title: str | None
    supported: Mapping[str, SupportedContext]
    aliases: tuple[str, ...] = ()
    accept_any_storage: bool = False
    allowed_callers: tuple[str, ...] = ()
    pdu_length_max: int = PDU_LENGTH_DEFAULT
    window_max: int = WINDOW_MAX
    strict: bool = False


def is_valid_ae_title(title: str) -> bool:
    """1 to 16 printable ASCII characters, no backslash, not spaces alone (PS3.5 §6.2, VR AE)."""
    return (
        0 < len(title) <= AE_TITLE_SIZE
        and title.isascii()
        and title.isprintable()
        and "\\" not in title
        and not title.isspace()
    )


def negotiate(
    rq: AAssociateRq, policy: AcceptorPolicy, peer_host: str
) -> tuple[AAssociateAc, Agreement] | AAssociateRj:
    """The acceptor's answer to a request from the address `peer_host`, and what it agrees to.

    Decodable nonsense is rejected, not aborted. No acceptable context at all is a legal answer: an
    A-ASSOCIATE-AC in which every context is rejected.
    """
    rejection = _refuse(rq, policy, peer_host)
    if rejection is not None:
        return rejection
    accepted: dict[int, AcceptedContext] = {}
    rejected: list[RejectedContext] = []
    answers: list[PresentationContextAc] = []
    taken: dict[str, SupportedContext] = {}
    for context in rq.presentation_contexts:
        supported = _supported(context.abstract_syntax, policy)
        answer = _answer(context, supported, policy)
        answers.append(answer)
        if answer.transfer_syntax is None or supported is None:
            rejected.append(_rejected(context, answer.result))
        else:
            taken[context.abstract_syntax] = supported
            accepted[context.context_id] = AcceptedContext(
                context_id=context.context_id,
                abstract_syntax=context.abstract_syntax,
                transfer_syntax=answer.transfer_syntax,
            )
    asked = rq.user_information
    granted = None
    window_max = policy.window_max or WINDOW_MAX
    if asked.async_window is not None:
        granted = AsyncOperationsWindow(
            invoked=_lower(asked.async_window.invoked, window_max),
            performed=_lower(asked.async_window.performed, window_max),
        )
    roles = _grant_roles(asked.roles, taken)
    extended = _grant_extended(asked.extended, taken)
    ac = AAssociateAc(
        called_ae_title=rq.called_ae_title,
        calling_ae_title=rq.calling_ae_title,
        presentation_contexts=tuple(answers),
        user_information=UserInformation(
            max_length_received=policy.pdu_length_max,
            implementation_class_uid=IMPLEMENTATION_CLASS_UID,
            implementation_version_name=IMPLEMENTATION_VERSION_NAME,
            async_window=granted,
            roles=tuple(
                RoleSelection(sop_class_uid=uid, scu=scu, scp=scp)
                for uid, (scu, scp) in roles.items()
            ),
            extended=tuple(
                SopClassExtendedNegotiation(sop_class_uid=uid, information=information)
                for uid, information in extended.items()
            ),
        ),
    )
    agreement = Agreement(
        accepted=accepted,
        rejected=tuple(rejected),
        pdu_length_send_max=_binding_length(asked),
        # The item counts from the requestor's side; we are the other one.
        window_invoked=granted.performed if granted else 1,
        window_performed=granted.invoked if granted else 1,
        roles=roles,
        extended=extended,
        calling_ae_title=rq.calling_ae_title,
        called_ae_title=rq.called_ae_title,
        peer_implementation_class_uid=asked.implementation_class_uid,
        peer_implementation_version_name=asked.implementation_version_name,
    )
    return ac, agreement


def requestor_agreement(rq: AAssociateRq, ac: AAssociateAc) -> Agreement:
    """What the acceptor's answer `ac` to our `rq` lets us do.

    Tolerant: a context that the answer leaves out, repeats, or accepts with a syntax that was not
    proposed counts as rejected; one that was not proposed is ignored, and so is a role or an
    extended negotiation. A window that was enlarged is held at ours, one that was not asked for is 1
    (PS3.7 §D.3.3.3). RemoteProtocolError(0, 0) where the peer's maximum length cannot carry a single fragment.
    """
    info = ac.user_information
    length = _binding_length(info)
    if 0 < length < _PDU_LENGTH_MIN:
        raise RemoteProtocolError(
            f"peer takes P-DATA of {length} octets at most, a fragment needs {_PDU_LENGTH_MIN}",
            source=0,
            reason=0,
        )
    answers: dict[int, PresentationContextAc | None] = {}
    for answer in ac.presentation_contexts:
        repeated = answer.context_id in answers
        answers[answer.context_id] = None if repeated else answer
    accepted: dict[int, AcceptedContext] = {}
    rejected: list[RejectedContext] = []
    for context in rq.presentation_contexts:
        answered = answers.get(context.context_id)
        if answered is None:
            rejected.append(_rejected(context, ContextResult.NO_REASON))
        elif (
            answered.transfer_syntax is None
            or answered.transfer_syntax not in context.transfer_syntaxes
        ):
            rejected.append(_rejected(context, answered.result))
        else:
            accepted[context.context_id] = AcceptedContext(
                context_id=context.context_id,
                abstract_syntax=context.abstract_syntax,
                transfer_syntax=answered.transfer_syntax,
            )
    answered_roles = {role.sop_class_uid: role for role in reversed(info.roles)}
    roles: dict[str, tuple[bool, bool]] = {}
    for asked in rq.user_information.roles:
        granted = answered_roles.get(asked.sop_class_uid)
        if granted is not None and asked.sop_class_uid not in roles:
            roles[asked.sop_class_uid] = (asked.scu and granted.scu, asked.scp and granted.scp)
    asked_extended = {item.sop_class_uid for item in rq.user_information.extended}
    invoked, performed = _requestor_window(rq.user_information.async_window, info.async_window)
    return Agreement(
        accepted=accepted,
        rejected=tuple(rejected),
        pdu_length_send_max=length,
        window_invoked=invoked,
        window_performed=performed,
        roles=roles,
        extended={
            item.sop_class_uid: item.information
            for item in reversed(info.extended)
            if item.sop_class_uid in asked_extended
        },
        calling_ae_title=rq.calling_ae_title,
        called_ae_title=rq.called_ae_title,
        peer_implementation_class_uid=info.implementation_class_uid,
        peer_implementation_version_name=info.implementation_version_name,
    )


def plan_contexts(pairs: Iterable[tuple[str, str]]) -> list[tuple[PresentationContextRq, ...]]:
    """The contexts that (abstract syntax, transfer syntax) pairs need, an association a tuple.

    Each distinct pair gets a context of its own, so that the acceptor cannot choose one syntax and
    shut out the other; the order stays, and an association holds at most 128.
    """
    distinct = list(dict.fromkeys(pairs))
    return [
        tuple(
            PresentationContextRq(
                context_id=2 * index + 1, abstract_syntax=abstract, transfer_syntaxes=(transfer,)
            )
            for index, (abstract, transfer) in enumerate(distinct[start : start + CONTEXTS_MAX])
        )
        for start in range(0, len(distinct), CONTEXTS_MAX)
    ]


def _refuse(rq: AAssociateRq, policy: AcceptorPolicy, peer_host: str) -> AAssociateRj | None:
    """The rejection of the request as a whole, None where there is none."""
    if not rq.protocol_version & _VERSION_1:
        return _VERSION_NOT_SUPPORTED
    if rq.application_context != APPLICATION_CONTEXT:
        return _APPLICATION_CONTEXT_NOT_SUPPORTED
    if not _is_sound(rq, strict=policy.strict):
        return _NOTHING_SAID
    called, calling = rq.called_ae_title, rq.calling_ae_title
    answered = policy.ae_title in (None, called) or called in policy.aliases
    if not is_valid_ae_title(called) or not answered:
        return _CALLED_NOT_RECOGNIZED
    allowed = policy.allowed_callers
    if not is_valid_ae_title(calling) or (allowed and not is_caller(calling, peer_host, allowed)):
        return _CALLING_NOT_RECOGNIZED
    return None


def _is_sound(rq: AAssociateRq, *, strict: bool) -> bool:
    """False for a request that could be decoded, and yet means nothing or carries too much."""
    contexts = rq.presentation_contexts
    if not 0 < len(contexts) <= CONTEXTS_MAX:
        return False
    if len({context.context_id for context in contexts}) < len(contexts):
        return False
    for context in contexts:
        if (
            context.context_id % 2 == 0
            or not context.abstract_syntax
            or context.further_abstract_syntaxes
        ):
            return False
    info = rq.user_information
    if 0 < _binding_length(info) < _PDU_LENGTH_MIN:
        return False
    identity = info.user_identity
    if identity is not None and (
        identity.identity_type not in _USER_IDENTITY_TYPES
        or len(identity.primary) > _USER_IDENTITY_FIELD_MAX
        or len(identity.secondary) > _USER_IDENTITY_FIELD_MAX
    ):
        return False
    return not strict or (
        info.max_length_received is not None and info.implementation_class_uid is not None
    )


def is_caller(calling: str, peer_host: str, entries: Iterable[str]) -> bool:
    """Whether a calling AE title at an address is among `entries`, each `AET` or `AET@ADDRESS`."""
    for entry in entries:
        title, at, host = entry.rpartition("@")
        if not at:
            title, host = entry, ""
        if title == calling and (not host or _address(host) == _address(peer_host)):
            return True
    return False


def _address(host: str) -> str:
    """One spelling an address: no brackets, IPv4 out of its IPv6 mapping, lower case."""
    host = host.strip("[]")
    try:
        address = ip_address(host)
    except ValueError:
        return host.lower()
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)


def _supported(abstract_syntax: str, policy: AcceptorPolicy) -> SupportedContext | None:
    supported = policy.supported.get(abstract_syntax)
    if supported is not None or not policy.accept_any_storage:
        return supported
    if abstract_syntax in OTHER_UIDS or not is_valid_uid(abstract_syntax):
        return None  # known, and no storage class; or no UID at all
    # It goes where the known storage classes go, so the requestor may be SCP where it may be there.
    scp = any(known.accept_scp_role for known in policy.supported.values())
    return SupportedContext(accept_scp_role=scp)


def _answer(
    context: PresentationContextRq, supported: SupportedContext | None, policy: AcceptorPolicy
) -> PresentationContextAc:
    result = ContextResult.ACCEPTANCE
    syntax = None
    if supported is None:
        result = ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED
    else:
        syntax = _choose_syntax(context.transfer_syntaxes, supported, policy)
        if syntax is None:
            result = ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED
    return PresentationContextAc(
        context_id=context.context_id, result=int(result), transfer_syntax=syntax
    )


def _choose_syntax(
    proposed: tuple[str, ...], supported: SupportedContext, policy: AcceptorPolicy
) -> str | None:
    if supported.transfer_syntaxes:
        return next((uid for uid in supported.transfer_syntaxes if uid in proposed), None)
    known = next((uid for uid in proposed if uid in TRANSFER_SYNTAXES), None)
    if known is None and policy.accept_any_storage:
        return next((uid for uid in proposed if is_valid_uid(uid)), None)
    return known


def _rejected(context: PresentationContextRq, result: int) -> RejectedContext:
    """An accepting or unknown result becomes NO_REASON: the context cannot be used all the same."""
    known = result in ContextResult.__members__.values() and result != ContextResult.ACCEPTANCE
    return RejectedContext(
        context_id=context.context_id,
        abstract_syntax=context.abstract_syntax,
        result=ContextResult(result) if known else ContextResult.NO_REASON,
    )


def _grant_roles(
    asked: tuple[RoleSelection, ...], taken: Mapping[str, SupportedContext]
) -> dict[str, tuple[bool, bool]]:
    """Roles that were asked for and are allowed (PS3.7 §D.3.3.4), of accepted classes only.

    Where nothing of what was asked can be granted there is no answer, and the default roles hold.
    """
    roles: dict[str, tuple[bool, bool]] = {}
    # Of several items for one class the first counts, also where nothing of it is granted.
    for role in {role.sop_class_uid: role for role in reversed(asked)}.values():
        supported = taken.get(role.sop_class_uid)
        if supported is None:
            continue
        scp = role.scp and supported.accept_scp_role
        if role.scu or scp:
            roles[role.sop_class_uid] = (role.scu, scp)
    return roles


def _grant_extended(
    asked: tuple[SopClassExtendedNegotiation, ...], taken: Mapping[str, SupportedContext]
) -> dict[str, bytes]:
    """What is answered to the extended negotiation of accepted classes (PS3.7 §D.3.3.5).

    No byte above what was asked or is supported, and none that was not asked.
    """
    granted: dict[str, bytes] = {}
    for item in asked:
        supported = taken.get(item.sop_class_uid)
        if supported is None or not supported.extended or item.sop_class_uid in granted:
            continue
        granted[item.sop_class_uid] = bytes(
            map(min, zip(item.information, supported.extended, strict=False))
        )
    return granted


def _lower(asked: int, ours: int) -> int:
    """The smaller of two windows, where 0 is unlimited."""
    return min(asked, ours) if asked and ours else asked or ours


def _requestor_window(
    asked: AsyncOperationsWindow | None, granted: AsyncOperationsWindow | None
) -> tuple[int, int]:
    """(invoked, performed) as they bind the requestor: never above what was asked, never 0."""
    if asked is None or granted is None:
        return 1, 1
    return (
        _lower(asked.invoked, granted.invoked) or WINDOW_MAX,
        _lower(asked.performed, granted.performed) or WINDOW_MAX,
    )


def _binding_length(info: UserInformation) -> int:
    length = info.max_length_received
    return _PDU_LENGTH_WHEN_ABSENT if length is None else length
