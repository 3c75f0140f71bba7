"""Hypothesis strategies for PDUs, items and command sets, legal or merely encodable."""

from __future__ import annotations

from typing import TypeAlias, TypeVar

from hypothesis import strategies as st

from dcmhaul.wire.command import ELEMENTS
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
from dcmhaul.wire.pdu import (
    AAbort,
    AAssociateAc,
    AAssociateRj,
    AAssociateRq,
    AReleaseRp,
    AReleaseRq,
    PDataTf,
    Pdv,
)

T = TypeVar("T")
Tuples: TypeAlias = st.SearchStrategy[tuple[T, ...]]

u8 = st.integers(0, 0xFF)
u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFFFFFF)
octets = st.binary(max_size=40)

# Anything that an octet can be; padding at the end is not significant, so it cannot come back.
latin = st.text(st.characters(codec="latin-1"), max_size=64)
names = latin.map(lambda text: text.rstrip("\0 "))
uids = st.text("0123456789.", min_size=1, max_size=64)
syntaxes = uids | names
ae_titles = st.text(st.characters(codec="latin-1"), max_size=16).map(lambda text: text.strip(" "))


def unknown_items(*known: int) -> Tuples[UnknownItem]:
    types = u8.filter(lambda number: number not in known)
    item = st.builds(UnknownItem, item_type=types, data=octets)
    return st.lists(item, max_size=3).map(tuple)


def tuples_of(strategy: st.SearchStrategy[T], max_size: int = 4) -> Tuples[T]:
    return st.lists(strategy, max_size=max_size).map(tuple)


contexts_rq = st.builds(
    PresentationContextRq,
    context_id=u8,
    abstract_syntax=syntaxes.filter(bool),
    transfer_syntaxes=tuples_of(syntaxes),
    further_abstract_syntaxes=tuples_of(syntaxes.filter(bool), 2),
    unknown_items=unknown_items(0x30, 0x40),
)
contexts_ac = st.builds(
    PresentationContextAc,
    context_id=u8,
    result=st.just(0),
    transfer_syntax=syntaxes,
    unknown_items=unknown_items(0x40),
) | st.builds(
    PresentationContextAc,
    context_id=u8,
    result=st.integers(1, 0xFF),
    transfer_syntax=st.none(),
)
roles = st.builds(RoleSelection, sop_class_uid=syntaxes, scu=st.booleans(), scp=st.booleans())
extended = st.builds(SopClassExtendedNegotiation, sop_class_uid=syntaxes, information=octets)
common_extended = st.builds(
    SopClassCommonExtendedNegotiation,
    sop_class_uid=syntaxes,
    service_class_uid=syntaxes,
    related=tuples_of(syntaxes),
)
user_identities = st.builds(
    UserIdentityRq,
    identity_type=u8,
    response_requested=st.booleans(),
    primary=octets,
    secondary=octets,
)
user_information = st.builds(
    UserInformation,
    max_length_received=st.none() | u32,
    implementation_class_uid=st.none() | syntaxes,
    implementation_version_name=st.none() | names,
    async_window=st.none() | st.builds(AsyncOperationsWindow, invoked=u16, performed=u16),
    roles=tuples_of(roles),
    extended=tuples_of(extended),
    common_extended=tuples_of(common_extended),
    user_identity=st.none() | user_identities,
    user_identity_response=st.none() | octets,
    unknown=unknown_items(*range(0x51, 0x5A)),
)
associate_rqs = st.builds(
    AAssociateRq,
    called_ae_title=ae_titles,
    calling_ae_title=ae_titles,
    presentation_contexts=tuples_of(contexts_rq),
    user_information=user_information,
    application_context=syntaxes,
    protocol_version=u16,
    unknown_items=unknown_items(0x10, 0x20, 0x50),
)
associate_acs = st.builds(
    AAssociateAc,
    called_ae_title=ae_titles,
    calling_ae_title=ae_titles,
    presentation_contexts=tuples_of(contexts_ac),
    user_information=user_information,
    application_context=syntaxes,
    protocol_version=u16,
    unknown_items=unknown_items(0x10, 0x21, 0x50),
)
pdvs = st.builds(
    Pdv, context_id=u8, is_command=st.booleans(), is_last=st.booleans(), fragment=octets
)
pdus = st.one_of(
    associate_rqs,
    associate_acs,
    st.builds(AAssociateRj, result=u8, source=u8, reason=u8),
    st.builds(PDataTf, pdvs=st.lists(pdvs, min_size=1, max_size=4).map(tuple)),
    st.just(AReleaseRq()),
    st.just(AReleaseRp()),
    st.builds(AAbort, source=u8, reason=u8),
)

_BY_VR: dict[str, st.SearchStrategy[str | int | tuple[int, ...]]] = {
    "US": u16,
    "UI": names,
    "AE": latin.map(lambda text: text.strip("\0 ")),
    "LO": latin.map(lambda text: text.strip("\0 ")),
    "AT": tuples_of(u32),
}
command_sets = st.fixed_dictionaries(
    {},
    optional={
        keyword: _BY_VR[vr]
        for keyword, (_, vr) in ELEMENTS.items()
        if keyword != "CommandGroupLength"
    },
)
