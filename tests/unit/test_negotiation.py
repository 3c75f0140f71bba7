"""Negotiation as tables: what is refused, what is accepted, what both sides then hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcmhaul import uids
from dcmhaul.errors import LocalProtocolError, RemoteProtocolError
from dcmhaul.protocol.negotiation import (
    AcceptedContext,
    AcceptorPolicy,
    Agreement,
    AssociationRequest,
    ContextResult,
    RejectedContext,
    SupportedContext,
    is_valid_ae_title,
    negotiate,
    plan_contexts,
    requestor_agreement,
)
from dcmhaul.wire.items import (
    AsyncOperationsWindow,
    PresentationContextAc,
    PresentationContextRq,
    RoleSelection,
    SopClassCommonExtendedNegotiation,
    SopClassExtendedNegotiation,
    UnknownItem,
    UserIdentityRq,
    UserInformation,
)
from dcmhaul.wire.pdu import AAssociateAc, AAssociateRj, AAssociateRq
from tests.reference import strategies

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
IMPLICIT = uids.IMPLICIT_VR_LITTLE_ENDIAN
EXPLICIT = uids.EXPLICIT_VR_LITTLE_ENDIAN
BIG = uids.EXPLICIT_VR_BIG_ENDIAN
PRIVATE_SYNTAX = "1.3.6.1.4.1.99999.1"
PRIVATE_CLASS = "1.3.6.1.4.1.99999.2"

RJ_NO_REASON = AAssociateRj(result=1, source=2, reason=1)
RJ_VERSION = AAssociateRj(result=1, source=2, reason=2)
RJ_APPLICATION_CONTEXT = AAssociateRj(result=1, source=1, reason=2)
RJ_CALLING = AAssociateRj(result=1, source=1, reason=3)
RJ_CALLED = AAssociateRj(result=1, source=1, reason=7)


def context(context_id: int = 1, abstract: str = CT, *syntaxes: str) -> PresentationContextRq:
    return PresentationContextRq(
        context_id=context_id,
        abstract_syntax=abstract,
        transfer_syntaxes=syntaxes or (IMPLICIT,),
    )


def info(**changes: Any) -> UserInformation:
    return UserInformation(
        **{"max_length_received": 16384, "implementation_class_uid": "1.2.3", **changes}
    )


def request(**changes: Any) -> AAssociateRq:
    fields: dict[str, Any] = {
        "called_ae_title": "OURS",
        "calling_ae_title": "PEER",
        "presentation_contexts": (context(),),
        "user_information": info(),
    }
    return AAssociateRq(**{**fields, **changes})


def policy(**changes: Any) -> AcceptorPolicy:
    fields: dict[str, Any] = {"ae_title": "OURS", "supported": {CT: SupportedContext()}}
    return AcceptorPolicy(**{**fields, **changes})


def accept(rq: AAssociateRq, p: AcceptorPolicy) -> tuple[AAssociateAc, Agreement]:
    answer = negotiate(rq, p, "192.0.2.1")
    assert not isinstance(answer, AAssociateRj), answer
    return answer


def identity(**changes: Any) -> UserInformation:
    fields: dict[str, Any] = {"identity_type": 2, "response_requested": True, "primary": b"user"}
    return info(user_identity=UserIdentityRq(**{**fields, **changes}))


REFUSED: list[tuple[str, AAssociateRq, AcceptorPolicy, AAssociateRj]] = [
    ("version bit 0 clear", request(protocol_version=0xFFFE), policy(), RJ_VERSION),
    (
        "version before anything else",
        request(protocol_version=0, application_context="", presentation_contexts=()),
        policy(),
        RJ_VERSION,
    ),
    ("application context", request(application_context="1.2"), policy(), RJ_APPLICATION_CONTEXT),
    ("no application context", request(application_context=""), policy(), RJ_APPLICATION_CONTEXT),
    ("no contexts", request(presentation_contexts=()), policy(), RJ_NO_REASON),
    (
        "129 contexts",
        request(presentation_contexts=tuple(context(2 * i + 1) for i in range(129))),
        policy(),
        RJ_NO_REASON,
    ),
    (
        "context ID twice",
        request(presentation_contexts=(context(1), context(3), context(1))),
        policy(),
        RJ_NO_REASON,
    ),
    ("context ID even", request(presentation_contexts=(context(2),)), policy(), RJ_NO_REASON),
    ("context ID 0", request(presentation_contexts=(context(0),)), policy(), RJ_NO_REASON),
    (
        "no abstract syntax",
        request(presentation_contexts=(context(1, ""),)),
        policy(),
        RJ_NO_REASON,
    ),
    (
        "two abstract syntaxes",
        request(presentation_contexts=(replace(context(), further_abstract_syntaxes=(MR,)),)),
        policy(),
        RJ_NO_REASON,
    ),
    *[
        (f"maximum length {n}", request(user_information=info(max_length_received=n)), policy(), rj)
        for n, rj in ((1, RJ_NO_REASON), (7, RJ_NO_REASON))
    ],
    ("called unknown", request(called_ae_title="OTHER"), policy(), RJ_CALLED),
    ("called in small letters", request(called_ae_title="ours"), policy(), RJ_CALLED),
    *[
        (f"called {title!r}", request(called_ae_title=title), policy(ae_title=None), RJ_CALLED)
        for title in ("", "OURS\0", "Å", "\\..%", "A\nB", "\x7f")
    ],
    *[
        (f"calling {title!r}", request(calling_ae_title=title), policy(), RJ_CALLING)
        for title in ("", "PEER\0\0", "\x80", "\\..%", "A\r")
    ],
    *[
        (
            f"calling {title!r} not listed",
            request(calling_ae_title=title),
            policy(allowed_callers=("PEER",)),
            RJ_CALLING,
        )
        for title in ("../x", "peer", "PEER2")
    ],
    (
        "caller from elsewhere",
        request(),
        policy(allowed_callers=("PEER@192.0.2.2", "OTHER@192.0.2.1", "OTHER")),
        RJ_CALLING,
    ),
    (
        "identity of a type that does not exist",
        request(user_information=identity(identity_type=9)),
        policy(),
        RJ_NO_REASON,
    ),
    (
        "identity of type 0",
        request(user_information=identity(identity_type=0)),
        policy(),
        RJ_NO_REASON,
    ),
    (
        "user name above 8 KiB",
        request(user_information=identity(primary=bytes(8193))),
        policy(),
        RJ_NO_REASON,
    ),
    (
        "passcode above 8 KiB",
        request(user_information=identity(secondary=bytes(8193))),
        policy(),
        RJ_NO_REASON,
    ),
    (
        "strict: no maximum length",
        request(user_information=info(max_length_received=None)),
        policy(strict=True),
        RJ_NO_REASON,
    ),
    (
        "strict: no implementation class",
        request(user_information=info(implementation_class_uid=None)),
        policy(strict=True),
        RJ_NO_REASON,
    ),
]


@pytest.mark.parametrize(
    ("rq", "p", "expected"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_refused(rq: AAssociateRq, p: AcceptorPolicy, expected: AAssociateRj) -> None:
    assert negotiate(rq, p, "192.0.2.1") == expected


NOT_REFUSED: list[tuple[str, AAssociateRq, AcceptorPolicy, str]] = [
    ("later versions beside 1", request(protocol_version=0xFFFF), policy(), "h"),
    ("an alias", request(called_ae_title="OLD"), policy(aliases=("OLDER", "OLD")), "h"),
    ("any called title", request(called_ae_title="WHATEVER"), policy(ae_title=None), "h"),
    ("a title like a path, unlisted", request(calling_ae_title="../x"), policy(), "h"),
    (
        "128 contexts",
        request(presentation_contexts=tuple(context(2 * i + 1) for i in range(128))),
        policy(),
        "h",
    ),
    ("caller listed", request(), policy(allowed_callers=("OTHER", "PEER")), "h"),
    ("caller at its address", request(), policy(allowed_callers=("PEER@192.0.2.1",)), "192.0.2.1"),
    (
        "caller at its address, mapped",
        request(),
        policy(allowed_callers=("PEER@192.0.2.1",)),
        "::ffff:192.0.2.1",
    ),
    (
        "caller at its IPv6 address",
        request(),
        policy(allowed_callers=("PEER@[2001:DB8::0001]",)),
        "2001:db8::1",
    ),
    ("caller at its name", request(), policy(allowed_callers=("PEER@Modality",)), "modality"),
    (
        "caller with an @ in its title",
        request(calling_ae_title="A@B"),
        policy(allowed_callers=("A@B@192.0.2.1",)),
        "192.0.2.1",
    ),
    *[
        (f"identity {n}", request(user_information=identity(identity_type=n)), policy(), "h")
        for n in range(1, 6)
    ],
    (
        "identity of 8 KiB",
        request(user_information=identity(primary=bytes(8192), secondary=bytes(8192))),
        policy(),
        "h",
    ),
    ("no user information", request(user_information=UserInformation()), policy(), "h"),
    ("strict and complete", request(), policy(strict=True), "h"),
    ("8 octets at most", request(user_information=info(max_length_received=8)), policy(), "h"),
    (
        "unknown items",
        request(unknown_items=(UnknownItem(item_type=0x99, data=b"x"),)),
        policy(),
        "h",
    ),
]


@pytest.mark.parametrize(
    ("rq", "p", "host"), [case[1:] for case in NOT_REFUSED], ids=[case[0] for case in NOT_REFUSED]
)
def test_not_refused(rq: AAssociateRq, p: AcceptorPolicy, host: str) -> None:
    answer = negotiate(rq, p, host)
    assert not isinstance(answer, AAssociateRj)
    assert answer[1].accepted


def test_an_identity_is_not_confirmed_that_nobody_has_checked() -> None:
    ac, _ = accept(request(user_information=identity()), policy())
    assert ac.user_information.user_identity_response is None


ACCEPTED, ABSTRACT, SYNTAX = 0, 3, 4
# proposed abstract and transfer syntaxes, what is supported, accept any, result, chosen
CONTEXTS: list[tuple[str, tuple[str, ...], dict[str, SupportedContext], bool, int, str | None]] = [
    (CT, (IMPLICIT, EXPLICIT), {CT: SupportedContext()}, False, ACCEPTED, IMPLICIT),
    (CT, (PRIVATE_SYNTAX, EXPLICIT), {CT: SupportedContext()}, False, ACCEPTED, EXPLICIT),
    (CT, (PRIVATE_SYNTAX,), {CT: SupportedContext()}, False, SYNTAX, None),
    (CT, (PRIVATE_SYNTAX,), {CT: SupportedContext()}, True, ACCEPTED, PRIVATE_SYNTAX),
    (CT, ("a/b", PRIVATE_SYNTAX), {CT: SupportedContext()}, True, ACCEPTED, PRIVATE_SYNTAX),
    (CT, ("a/b", ""), {CT: SupportedContext()}, True, SYNTAX, None),
    (CT, (), {CT: SupportedContext()}, True, SYNTAX, None),
    (
        CT,
        (IMPLICIT, EXPLICIT, BIG),
        {CT: SupportedContext(transfer_syntaxes=(EXPLICIT, IMPLICIT))},
        False,
        ACCEPTED,
        EXPLICIT,
    ),
    (
        CT,
        (BIG, IMPLICIT),
        {CT: SupportedContext(transfer_syntaxes=(EXPLICIT, IMPLICIT))},
        False,
        ACCEPTED,
        IMPLICIT,
    ),
    (CT, (BIG,), {CT: SupportedContext(transfer_syntaxes=(EXPLICIT,))}, True, SYNTAX, None),
    (MR, (IMPLICIT,), {CT: SupportedContext()}, False, ABSTRACT, None),
    (MR, (IMPLICIT,), {CT: SupportedContext()}, True, ACCEPTED, IMPLICIT),
    (PRIVATE_CLASS, (PRIVATE_SYNTAX,), {}, True, ACCEPTED, PRIVATE_SYNTAX),
    (PRIVATE_CLASS, (PRIVATE_SYNTAX, IMPLICIT), {}, True, ACCEPTED, IMPLICIT),
    (uids.STUDY_ROOT_FIND, (IMPLICIT,), {}, True, ABSTRACT, None),
    (uids.VERIFICATION, (IMPLICIT,), {}, True, ABSTRACT, None),
    ("../../etc", (IMPLICIT,), {}, True, ABSTRACT, None),
    ("1" * 65, (IMPLICIT,), {}, True, ABSTRACT, None),
]


@pytest.mark.parametrize(
    ("abstract", "proposed", "supported", "any_storage", "result", "chosen"), CONTEXTS
)
def test_context(
    abstract: str,
    proposed: tuple[str, ...],
    supported: dict[str, SupportedContext],
    any_storage: bool,
    result: int,
    chosen: str | None,
) -> None:
    rq = request(
        presentation_contexts=(
            PresentationContextRq(
                context_id=7, abstract_syntax=abstract, transfer_syntaxes=proposed
            ),
        )
    )
    ac, agreement = accept(rq, policy(supported=supported, accept_any_storage=any_storage))
    assert ac.presentation_contexts == (
        PresentationContextAc(context_id=7, result=result, transfer_syntax=chosen),
    )
    if chosen is None:
        assert agreement.accepted == {}
        assert agreement.rejected == (
            RejectedContext(context_id=7, abstract_syntax=abstract, result=ContextResult(result)),
        )
    else:
        assert agreement.accepted == {
            7: AcceptedContext(context_id=7, abstract_syntax=abstract, transfer_syntax=chosen)
        }
        assert agreement.rejected == ()


def test_answer_repeats_the_titles_and_names_us() -> None:
    ac, agreement = accept(
        request(user_information=info(implementation_version_name="V")),
        policy(pdu_length_max=65536),
    )
    assert (ac.called_ae_title, ac.calling_ae_title) == ("OURS", "PEER")
    assert ac.application_context == uids.APPLICATION_CONTEXT
    assert ac.user_information == UserInformation(
        max_length_received=65536,
        implementation_class_uid=uids.IMPLEMENTATION_CLASS_UID,
        implementation_version_name=uids.IMPLEMENTATION_VERSION_NAME,
    )
    assert (agreement.called_ae_title, agreement.calling_ae_title) == ("OURS", "PEER")
    assert agreement.peer_implementation_class_uid == "1.2.3"
    assert agreement.peer_implementation_version_name == "V"


@pytest.mark.parametrize(("announced", "binding"), [(0, 0), (8, 8), (16382, 16382), (None, 16384)])
def test_the_length_that_the_requestor_announced_binds_us(
    announced: int | None, binding: int
) -> None:
    rq = request(user_information=info(max_length_received=announced))
    assert accept(rq, policy())[1].pdu_length_send_max == binding


@pytest.mark.parametrize(
    ("asked", "window_max", "granted"),
    [
        (None, 32, None),
        ((1, 1), 32, (1, 1)),
        ((16, 1), 32, (16, 1)),
        ((0, 0), 32, (32, 32)),
        ((65535, 2), 32, (32, 2)),
        ((16, 0), 4, (4, 4)),
        ((0, 40), 0, (32, 32)),
    ],
)
def test_acceptor_window(
    asked: tuple[int, int] | None, window_max: int, granted: tuple[int, int] | None
) -> None:
    window = None
    if asked is not None:
        window = AsyncOperationsWindow(invoked=asked[0], performed=asked[1])
    rq = request(user_information=info(async_window=window))
    ac, agreement = accept(rq, policy(window_max=window_max))
    if granted is None:
        assert ac.user_information.async_window is None
        assert (agreement.window_invoked, agreement.window_performed) == (1, 1)
    else:
        expected = AsyncOperationsWindow(invoked=granted[0], performed=granted[1])
        assert ac.user_information.async_window == expected
        # What the requestor may invoke is what we may have to perform.
        assert (agreement.window_performed, agreement.window_invoked) == granted


def role(scu: bool, scp: bool, uid: str = CT) -> RoleSelection:
    return RoleSelection(sop_class_uid=uid, scu=scu, scp=scp)


@pytest.mark.parametrize(
    ("asked", "allowed", "answered"),
    [
        ((), True, ()),
        ((role(True, True),), True, (role(True, True),)),
        ((role(True, True),), False, (role(True, False),)),
        ((role(False, True),), True, (role(False, True),)),
        ((role(False, True),), False, ()),
        ((role(True, False),), True, (role(True, False),)),
        ((role(False, False),), True, ()),
        ((role(True, True, MR),), True, ()),
        ((role(True, True, "1.2.3"),), True, ()),
        ((role(False, True), role(True, False)), True, (role(False, True),)),
    ],
)
def test_roles_are_granted_where_asked_and_allowed(
    asked: tuple[RoleSelection, ...], allowed: bool, answered: tuple[RoleSelection, ...]
) -> None:
    """MR is proposed, and not supported."""
    rq = request(
        presentation_contexts=(context(1, CT), context(3, MR)), user_information=info(roles=asked)
    )
    ac, agreement = accept(rq, policy(supported={CT: SupportedContext(accept_scp_role=allowed)}))
    assert ac.user_information.roles == answered
    assert agreement.roles == {r.sop_class_uid: (r.scu, r.scp) for r in answered}
    expected = (answered[0].scu, answered[0].scp) if answered else (True, False)
    assert agreement.roles_for(CT) == expected


@pytest.mark.parametrize("allowed", [False, True])
def test_an_unknown_class_gets_the_role_of_the_known_storage_classes(allowed: bool) -> None:
    rq = request(
        presentation_contexts=(context(1, PRIVATE_CLASS),),
        user_information=info(roles=(role(True, True, PRIVATE_CLASS),)),
    )
    supported = {CT: SupportedContext(accept_scp_role=allowed)}
    _, agreement = accept(rq, policy(supported=supported, accept_any_storage=True))
    assert agreement.roles_for(PRIVATE_CLASS) == (True, allowed)


def extended(information: bytes, uid: str = CT) -> SopClassExtendedNegotiation:
    return SopClassExtendedNegotiation(sop_class_uid=uid, information=information)


@pytest.mark.parametrize(
    ("asked", "supported", "granted"),
    [
        ((), b"\1\1", {}),
        ((extended(b"\1"),), b"", {}),
        ((extended(b"\1"),), b"\1\1", {CT: b"\1"}),
        ((extended(b"\1\0\1\1\1\1"),), b"\1\1\1\0", {CT: b"\1\0\1\0"}),
        # The first one of a class counts; one of a class that is not accepted is not answered.
        ((extended(b"\1"), extended(b"\1\1")), b"\1\1", {CT: b"\1"}),
        ((extended(b"\1", MR),), b"\1", {}),
    ],
)
def test_extended_negotiation_is_granted_byte_by_byte(
    asked: tuple[SopClassExtendedNegotiation, ...], supported: bytes, granted: dict[str, bytes]
) -> None:
    ac, agreement = accept(
        request(
            presentation_contexts=(context(1, CT), context(3, MR)),
            user_information=info(extended=asked),
        ),
        policy(supported={CT: SupportedContext(extended=supported)}),
    )
    assert ac.user_information.extended == tuple(extended(b, uid) for uid, b in granted.items())
    assert agreement.extended == granted


def test_a_requestor_holds_what_was_answered_to_what_it_asked() -> None:
    agreement = requestor_agreement(
        request(user_information=info(extended=(extended(b"\1\1"),))),
        answer(
            ac_context(1, 0, IMPLICIT),
            extended=(extended(b"\1\0"), extended(b"\1\1"), extended(b"\1", MR)),
        ),
    )
    assert agreement.extended == {CT: b"\1\0"}


# -- the requestor's side


def answer(*contexts: PresentationContextAc, **changes: Any) -> AAssociateAc:
    return AAssociateAc(
        called_ae_title="ignored",
        calling_ae_title="ignored",
        presentation_contexts=contexts,
        user_information=info(**changes),
    )


def ac_context(context_id: int, result: int, syntax: str | None) -> PresentationContextAc:
    return PresentationContextAc(context_id=context_id, result=result, transfer_syntax=syntax)


NO_REASON = ContextResult.NO_REASON


@pytest.mark.parametrize(
    ("answers", "result"),
    [
        ((ac_context(1, 0, IMPLICIT),), None),
        ((ac_context(1, 0, EXPLICIT),), None),
        ((), NO_REASON),
        ((ac_context(3, 0, IMPLICIT),), NO_REASON),
        ((ac_context(1, 0, BIG),), NO_REASON),
        ((ac_context(1, 0, None),), NO_REASON),
        ((ac_context(1, 1, None),), ContextResult.USER_REJECTION),
        ((ac_context(1, 2, None),), NO_REASON),
        ((ac_context(1, 3, None),), ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED),
        ((ac_context(1, 4, None),), ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED),
        ((ac_context(1, 7, None),), NO_REASON),
        ((ac_context(1, 0, IMPLICIT), ac_context(1, 0, EXPLICIT)), NO_REASON),
        ((ac_context(1, 0, IMPLICIT), ac_context(1, 3, None)), NO_REASON),
    ],
)
def test_requestor_context(
    answers: tuple[PresentationContextAc, ...], result: ContextResult | None
) -> None:
    rq = request(presentation_contexts=(context(1, CT, IMPLICIT, EXPLICIT),))
    agreement = requestor_agreement(rq, answer(*answers))
    if result is None:
        assert agreement.accepted == {
            1: AcceptedContext(
                context_id=1, abstract_syntax=CT, transfer_syntax=answers[0].transfer_syntax or ""
            )
        }
        assert agreement.rejected == ()
    else:
        assert agreement.accepted == {}
        assert agreement.rejected == (
            RejectedContext(context_id=1, abstract_syntax=CT, result=result),
        )


@pytest.mark.parametrize("length", [1, 7])
def test_requestor_aborts_where_no_fragment_fits(length: int) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        requestor_agreement(request(), answer(max_length_received=length))
    assert (caught.value.source, caught.value.reason) == (0, 0)


@pytest.mark.parametrize(("announced", "binding"), [(0, 0), (8, 8), (1023, 1023), (None, 16384)])
def test_the_length_that_the_acceptor_announced_binds_us(
    announced: int | None, binding: int
) -> None:
    agreement = requestor_agreement(request(), answer(max_length_received=announced))
    assert agreement.pdu_length_send_max == binding


@pytest.mark.parametrize(
    ("announced", "ours", "length"),
    [
        (16382, 0, 16382),
        (16382, 65536, 16382),
        (65536, 16382, 16382),
        (0, 0, 1 << 20),
        (2**32 - 1, 0, 1 << 20),
        (0, 1 << 22, 1 << 22),
        (2**32 - 1, 1 << 22, 1 << 22),
    ],
)
def test_the_length_of_what_we_send(announced: int, ours: int, length: int) -> None:
    agreement = requestor_agreement(request(), answer(max_length_received=announced))
    limited = agreement.sending_at_most(ours)
    assert limited == replace(agreement, pdu_length_send_max=length)


@pytest.mark.parametrize(
    ("asked", "answered", "expected"),
    [
        (None, None, (1, 1)),
        (None, (8, 8), (1, 1)),
        (None, (0, 0), (1, 1)),
        ((8, 8), None, (1, 1)),
        ((8, 4), (4, 8), (4, 4)),
        ((8, 8), (16, 16), (8, 8)),
        ((8, 8), (0, 1), (8, 1)),
        ((0, 0), (5, 0), (5, 32)),
    ],
)
def test_requestor_window(
    asked: tuple[int, int] | None, answered: tuple[int, int] | None, expected: tuple[int, int]
) -> None:
    def window(pair: tuple[int, int] | None) -> AsyncOperationsWindow | None:
        return pair and AsyncOperationsWindow(invoked=pair[0], performed=pair[1])

    agreement = requestor_agreement(
        request(user_information=info(async_window=window(asked))),
        answer(async_window=window(answered)),
    )
    assert (agreement.window_invoked, agreement.window_performed) == expected


@pytest.mark.parametrize(
    ("asked", "answered", "expected"),
    [
        ((), (role(True, True),), (True, False)),
        ((role(False, True),), (), (True, False)),
        ((role(False, True),), (role(False, True),), (False, True)),
        ((role(True, True),), (role(True, False),), (True, False)),
        ((role(False, True),), (role(True, True),), (False, True)),
        ((role(True, True),), (role(False, True), role(True, False)), (False, True)),
        ((role(False, True), role(True, True)), (role(True, True),), (False, True)),
    ],
)
def test_requestor_roles(
    asked: tuple[RoleSelection, ...],
    answered: tuple[RoleSelection, ...],
    expected: tuple[bool, bool],
) -> None:
    agreement = requestor_agreement(
        request(user_information=info(roles=asked)),
        answer(ac_context(1, 0, IMPLICIT), roles=answered),
    )
    assert agreement.roles_for(CT) == expected


def test_requestor_keeps_its_own_titles_and_learns_the_peer() -> None:
    agreement = requestor_agreement(request(), answer(implementation_version_name="THEIRS"))
    assert (agreement.called_ae_title, agreement.calling_ae_title) == ("OURS", "PEER")
    assert agreement.peer_implementation_class_uid == "1.2.3"
    assert agreement.peer_implementation_version_name == "THEIRS"


def test_context_for_follows_the_order_of_the_syntaxes() -> None:
    rq = request(
        presentation_contexts=(
            context(1, CT, IMPLICIT),
            context(3, CT, EXPLICIT),
            context(5, CT, IMPLICIT),
            context(7, MR, IMPLICIT),
        )
    )
    _, agreement = accept(rq, policy())

    def found(abstract: str, syntaxes: tuple[str, ...] | None = None) -> int | None:
        context = agreement.context_for(abstract, syntaxes)
        return context.context_id if context else None

    assert found(CT) == 1
    assert found(CT, (EXPLICIT, IMPLICIT)) == 3
    assert found(CT, (BIG, IMPLICIT)) == 1
    assert found(CT, (BIG,)) is None
    assert found(CT, ()) is None
    assert found(MR) is None


# -- proposing


def test_a_request_becomes_a_pdu() -> None:
    extended = SopClassExtendedNegotiation(sop_class_uid=CT, information=b"\1")
    common = SopClassCommonExtendedNegotiation(sop_class_uid=CT, service_class_uid="1.2")
    who = UserIdentityRq(identity_type=1, response_requested=False, primary=b"user")
    pdu = AssociationRequest(
        called_ae_title="THEIRS",
        calling_ae_title="OURS",
        contexts=(context(),),
        pdu_length_max=65536,
        window=8,
        roles=(role(False, True),),
        extended=(extended,),
        common_extended=(common,),
        user_identity=who,
    ).to_pdu()
    assert pdu == AAssociateRq(
        called_ae_title="THEIRS",
        calling_ae_title="OURS",
        presentation_contexts=(context(),),
        user_information=UserInformation(
            max_length_received=65536,
            implementation_class_uid=uids.IMPLEMENTATION_CLASS_UID,
            implementation_version_name=uids.IMPLEMENTATION_VERSION_NAME,
            async_window=AsyncOperationsWindow(invoked=8, performed=8),
            roles=(role(False, True),),
            extended=(extended,),
            common_extended=(common,),
            user_identity=who,
        ),
    )


def test_without_a_window_no_item_is_sent() -> None:
    pdu = AssociationRequest(
        called_ae_title="THEIRS", calling_ae_title="OURS", contexts=(context(),)
    ).to_pdu()
    assert pdu.user_information.async_window is None


@pytest.mark.parametrize(
    "changes",
    [
        {"contexts": ()},
        {"contexts": (context(1), context(1))},
        {"contexts": (context(2),)},
        {"called_ae_title": ""},
        {"calling_ae_title": "A" * 17},
        {"calling_ae_title": "A\\B"},
        {"window": 0},
    ],
    ids=str,
)
def test_what_must_not_be_proposed_is_a_local_fault(changes: dict[str, Any]) -> None:
    fields: dict[str, Any] = {
        "called_ae_title": "THEIRS",
        "calling_ae_title": "OURS",
        "contexts": (context(),),
    }
    with pytest.raises(LocalProtocolError):
        AssociationRequest(**{**fields, **changes}).to_pdu()


@pytest.mark.parametrize(
    ("title", "valid"),
    [
        ("A", True),
        ("A B", True),
        ("A" * 16, True),
        ("../x", True),
        ("", False),
        ("  ", False),
        ("A" * 17, False),
        ("A\\B", False),
        ("A\0", False),
        ("Ä", False),
        ("A\tB", False),
    ],
)
def test_ae_titles(title: str, valid: bool) -> None:
    assert is_valid_ae_title(title) is valid


def test_planned_contexts_are_one_a_pair_in_order() -> None:
    pairs = [(CT, EXPLICIT), (MR, IMPLICIT), (CT, IMPLICIT), (CT, EXPLICIT)]
    assert plan_contexts(pairs) == [
        (context(1, CT, EXPLICIT), context(3, MR, IMPLICIT), context(5, CT, IMPLICIT))
    ]
    assert plan_contexts([]) == []


def test_planned_contexts_spill_into_further_associations() -> None:
    pairs = [(f"1.{number}", IMPLICIT) for number in range(257)]
    plan = plan_contexts(iter(pairs))
    assert [len(contexts) for contexts in plan] == [128, 128, 1]
    for contexts in plan:
        assert [c.context_id for c in contexts] == list(range(1, 2 * len(contexts), 2))
    assert [(c.abstract_syntax, c.transfer_syntaxes[0]) for p in plan for c in p] == pairs


# -- both sides


@given(
    rq=strategies.associate_rqs,
    syntaxes=st.lists(strategies.uids, max_size=3).map(tuple),
    any_storage=st.booleans(),
    strict=st.booleans(),
)
@settings(deadline=None)
def test_whatever_comes_is_answered_and_both_sides_agree(
    rq: AAssociateRq, syntaxes: tuple[str, ...], any_storage: bool, strict: bool
) -> None:
    classes = [proposed.abstract_syntax for proposed in rq.presentation_contexts[::2]]
    p = policy(
        ae_title=None,
        supported=dict.fromkeys(
            classes, SupportedContext(transfer_syntaxes=syntaxes, extended=b"\1\2")
        ),
        accept_any_storage=any_storage,
        strict=strict,
    )
    sound = replace(
        rq,
        called_ae_title="OURS",
        calling_ae_title="PEER",
        application_context=uids.APPLICATION_CONTEXT,
        protocol_version=1,
        presentation_contexts=tuple(
            replace(proposed, context_id=2 * i + 1, further_abstract_syntaxes=())
            for i, proposed in enumerate(rq.presentation_contexts)
        ),
    )
    for asked in (rq, sound):
        result = negotiate(asked, p, "h")
        if isinstance(result, AAssociateRj):
            assert result.result == 1
            continue
        ac, ours = result
        theirs = requestor_agreement(asked, AAssociateAc.decode(ac.encode()[6:]))
        assert theirs.accepted == ours.accepted
        assert {c.context_id for c in theirs.rejected} == {c.context_id for c in ours.rejected}
        assert theirs.window_invoked == ours.window_performed >= 1
        assert theirs.window_performed == ours.window_invoked >= 1
        assert theirs.roles == ours.roles
        assert theirs.extended == ours.extended


def test_of_two_role_items_for_one_class_the_first_counts_on_both_sides() -> None:
    asked = AssociationRequest(
        called_ae_title="OURS",
        calling_ae_title="PEER",
        contexts=(
            PresentationContextRq(
                context_id=1,
                abstract_syntax="1.2",
                transfer_syntaxes=(uids.IMPLICIT_VR_LITTLE_ENDIAN,),
            ),
        ),
        roles=tuple(
            RoleSelection(sop_class_uid="1.2", scu=scu, scp=False) for scu in (False, True)
        ),
    ).to_pdu()
    result = negotiate(asked, policy(ae_title=None, supported={"1.2": SupportedContext()}), "h")
    assert not isinstance(result, AAssociateRj)
    ac, ours = result
    assert (
        requestor_agreement(asked, AAssociateAc.decode(ac.encode()[6:])).roles == ours.roles == {}
    )
