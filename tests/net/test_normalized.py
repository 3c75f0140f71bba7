"""DIMSE-N in both roles over real sockets: what each side gets, and what is refused how."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
import trio
from pydicom import Dataset

import dcmhaul
from dcmhaul import uids
from dcmhaul.errors import (
    AssociationAborted,
    NoAcceptedContext,
    PeerTimeout,
    RemoteProtocolError,
)
from dcmhaul.net import Timeouts
from dcmhaul.protocol import statuses
from dcmhaul.protocol.dimse import (
    CEchoRq,
    NCreateRsp,
    NEventReportRq,
    NGetRsp,
    NSetRq,
    Request,
)
from dcmhaul.services import normalized
from dcmhaul.services.normalized import (
    NormalizedAnswer,
    NormalizedRefused,
    NormalizedRequest,
    NormalizedScp,
    SopClass,
    n_action,
    n_create,
    n_delete,
    n_event_report,
    n_get,
    n_set,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dcmhaul.net import Association, Incoming

SESSION = "1.2.840.10008.5.1.1.1"  # Basic Film Session
META = "1.2.840.10008.5.1.1.9"  # Basic Grayscale Print Management, a meta SOP class
COMMITMENT = "1.2.840.10008.1.20.1"
COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"


@dataclass
class Sessions:
    """Film sessions in memory, with all that may be done to them."""

    held: dict[str, Dataset] = field(default_factory=dict)
    asked: list[NormalizedRequest] = field(default_factory=list)

    def _find(self, request: NormalizedRequest) -> Dataset:
        self.asked.append(request)
        if request.sop_instance_uid not in self.held:
            raise NormalizedRefused(statuses.NO_SUCH_SOP_INSTANCE, "no such session")
        return self.held[request.sop_instance_uid]

    async def create(self, request: NormalizedRequest) -> NormalizedAnswer:
        self.asked.append(request)
        uid = request.sop_instance_uid or "1.2.3.4"
        if uid in self.held:
            raise NormalizedRefused(statuses.DUPLICATE_SOP_INSTANCE, "it is there")
        self.held[uid] = request.dataset or Dataset()
        if "NumberOfCopies" not in self.held[uid]:
            raise NormalizedRefused(
                statuses.MISSING_ATTRIBUTE, "no number of copies", attributes=(0x20000010,)
            )
        return NormalizedAnswer(sop_instance_uid=uid, dataset=self.held[uid])

    async def set(self, request: NormalizedRequest) -> NormalizedAnswer:
        held = self._find(request)
        assert request.dataset is not None
        if "PatientID" in request.dataset:
            raise NormalizedRefused(
                statuses.NO_SUCH_ATTRIBUTE, "no", offending=(0x00100020,), error_id=7
            )
        held.update(request.dataset)
        return NormalizedAnswer(status=0x0116, dataset=held, comment="out of range")

    async def get(self, request: NormalizedRequest) -> NormalizedAnswer:
        held = self._find(request)
        wanted = Dataset()
        for tag in request.attributes or held.keys():
            wanted[tag] = held[tag]  # what is not held is an error of ours
        return NormalizedAnswer(dataset=wanted)

    async def act(self, request: NormalizedRequest) -> NormalizedAnswer:
        self._find(request)
        if request.type_id != 1:
            raise NormalizedRefused(statuses.NO_SUCH_ACTION_TYPE, "only 1")
        return NormalizedAnswer(dataset=request.dataset)

    async def delete(self, request: NormalizedRequest) -> NormalizedAnswer:
        self._find(request)
        del self.held[request.sop_instance_uid]
        return NormalizedAnswer()

    def offered(self, *contexts: str) -> SopClass:
        return SopClass(
            uid=SESSION,
            contexts=contexts,
            operations={
                "N-CREATE": self.create,
                "N-SET": self.set,
                "N-GET": self.get,
                "N-ACTION": self.act,
                "N-DELETE": self.delete,
            },
        )


def copies(number: int | None = 2) -> Dataset:
    made = Dataset()
    if number is not None:
        made.NumberOfCopies = number
    made.FilmSessionLabel = "Ünder ISO"
    made.SpecificCharacterSet = "ISO_IR 100"
    return made


@asynccontextmanager
async def conversing(
    *classes: SopClass, propose: tuple[str, ...] = (SESSION,), timeouts: Timeouts | None = None
) -> AsyncIterator[Association]:
    async with (
        dcmhaul.serve([NormalizedScp(classes), dcmhaul.VerificationScp()]) as peer,
        dcmhaul.open_association(peer, propose, timeouts=timeouts) as association,
    ):
        yield association


# -- all six


@pytest.mark.parametrize(
    "syntax",
    [
        uids.IMPLICIT_VR_LITTLE_ENDIAN,
        uids.EXPLICIT_VR_LITTLE_ENDIAN,
        uids.EXPLICIT_VR_BIG_ENDIAN,
    ],
)
async def test_the_life_of_an_instance(syntax: str) -> None:
    sessions = Sessions()
    async with (
        dcmhaul.serve([NormalizedScp([sessions.offered()])]) as peer,
        dcmhaul.open_association(peer, [(SESSION, syntax)]) as association,
    ):
        made = await n_create(association, SESSION, "1.2.3", copies())
        assert (made.status, made.sop_class_uid, made.sop_instance_uid) == (0, SESSION, "1.2.3")
        assert made.dataset() == copies()
        assert made.transfer_syntax == syntax

        changed = await n_set(association, SESSION, "1.2.3", copies(5))
        assert (changed.status, changed.error_comment) == (0x0116, "out of range")
        got = await n_get(association, SESSION, "1.2.3", [0x20000010])
        found = got.dataset()
        assert found is not None
        assert [element.value for element in found] == [5]
        assert (await n_get(association, SESSION, "1.2.3")).dataset() == copies(5)

        printed = await n_action(association, SESSION, "1.2.3", 1, copies(1))
        assert (printed.status, printed.dataset()) == (0, copies(1))
        assert (await n_action(association, SESSION, "1.2.3", 1)).dataset() is None
        assert (await n_delete(association, SESSION, "1.2.3")).status == 0
        assert not sessions.held
        assert len(association.message_ids) == 0
    kinds = [request.operation for request in sessions.asked]
    assert kinds == ["N-CREATE", "N-SET", "N-GET", "N-GET", "N-ACTION", "N-ACTION", "N-DELETE"]
    assert {request.calling_ae_title for request in sessions.asked} == {"DCMHAUL"}
    assert sessions.asked[-2].type_id == 1


async def test_the_peer_chooses_the_uid_and_the_dataset_is_bytes() -> None:
    sessions = Sessions()
    async with conversing(sessions.offered()) as association:
        made = await n_create(
            association, SESSION, attributes=lambda syntax: b"\0\x20\x10\0IS\2\0001 "
        )
    assert made.sop_instance_uid == "1.2.3.4"
    assert sessions.held["1.2.3.4"].NumberOfCopies == 1


async def test_a_class_under_the_context_of_another() -> None:
    sessions = Sessions()
    async with conversing(sessions.offered(META), propose=(META,)) as association:
        assert (await n_create(association, SESSION, "1.2", copies(), context=META)).status == 0
        with pytest.raises(NoAcceptedContext, match="Film Session"):
            await n_create(association, SESSION, "1.2", copies())


# -- refusals


@pytest.mark.parametrize(
    ("ask", "status", "comment"),
    [
        (lambda a: n_set(a, SESSION, "1.2.9", copies()), 0x0112, "no such session"),
        (lambda a: n_create(a, SESSION, "1.2.3", copies()), 0x0111, "it is there"),
        (lambda a: n_create(a, SESSION, "1.2.3.x", copies()), 0x0117, "not 1-64"),
        (lambda a: n_delete(a, SESSION, ""), 0x0117, "not 1-64"),
        (lambda a: n_delete(a, "1.2.999", "1.2.3", context=SESSION), 0x0118, "does not belong"),
        (lambda a: n_delete(a, COMMITMENT, "1.2.3", context=SESSION), 0x0119, "does not belong"),
        (lambda a: n_action(a, SESSION, "1.2.3", 2), 0x0123, "only 1"),
        (lambda a: n_event_report(a, SESSION, "1.2.3", 1), 0x0211, "no N-EVENT-REPORT"),
        (lambda a: n_action(a, SESSION, "1.2.3", 1, b"\x10\0"), 0x0110, "identifier"),
        (
            lambda a: n_get(a, SESSION, "1.2.3", [0x00100010]),
            0x0110,
            "unable to process (KeyError)",
        ),
        (
            lambda a: n_delete(a, COMMITMENT, "1.2.3", context=COMMITMENT),
            0x0211,
            "no N-DELETE of this",
        ),
        (lambda a: n_action(a, COMMITMENT, "1.2.3", 1), 0x0112, "well-known"),
    ],
)
async def test_what_is_refused_has_its_status_and_the_association_goes_on(
    ask: object, status: int, comment: str
) -> None:
    sessions = Sessions({"1.2.3": copies()})
    commitment = SopClass(
        uid=COMMITMENT, operations={"N-ACTION": sessions.act}, well_known=COMMITMENT_INSTANCE
    )
    async with conversing(
        sessions.offered(), commitment, propose=(SESSION, COMMITMENT)
    ) as association:
        assert callable(ask)
        response = await ask(association)
        assert response.status == status
        assert comment in response.error_comment
        assert (await n_get(association, SESSION, "1.2.3")).status == 0


async def test_what_is_to_blame_is_named() -> None:
    sessions = Sessions({"1.2.3": copies()})
    async with conversing(sessions.offered()) as association:
        missing = await n_create(association, SESSION, "1.2.4", copies(None))
        assert (missing.status, missing.attributes) == (0x0120, (0x20000010,))
        wrong = Dataset()
        wrong.PatientID = "X"
        refused = await n_set(association, SESSION, "1.2.3", wrong)
        assert (refused.status, refused.offending, refused.error_id) == (0x0105, (0x00100020,), 7)


async def test_n_set_without_a_modification_list() -> None:
    async with conversing(Sessions({"1.2.3": copies()}).offered()) as association:
        request = NSetRq(
            message_id=1,
            requested_sop_class_uid=SESSION,
            requested_sop_instance_uid="1.2.3",
            has_dataset=False,
        )
        await association.send(1, request)
        response = await association.receive()
        assert response is not None
        assert response.message.status == 0x0212  # type: ignore[attr-defined]


async def test_a_dataset_above_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalized, "DATASET_LENGTH_MAX", 100)
    big = copies()
    big.FilmSessionLabel = "x" * 60
    big.PrintPriority = "LOW"
    big.PatientComments = "y" * 60
    offered = replace(Sessions({"1.2.3": big}).offered(), dataset_length_max=90)
    async with conversing(offered) as association:
        assert (await n_create(association, SESSION, "1.2.4", big)).status == 0x0213
        with pytest.raises(RemoteProtocolError, match="above 100 bytes"):
            await n_get(association, SESSION, "1.2.3")


async def test_a_large_dataset_is_decoded_beside_the_event_loop() -> None:
    big = copies()
    big.ReferencedFilmBoxSequence = []
    for number in range(5000):
        item = Dataset()
        item.ReferencedSOPClassUID = SESSION
        item.ReferencedSOPInstanceUID = f"1.2.{number}"
        big.ReferencedFilmBoxSequence.append(item)
    sessions = Sessions()
    async with conversing(sessions.offered()) as association:
        assert (await n_create(association, SESSION, "1.2.4", big)).dataset() == big


# -- events


@dataclass
class Events:
    got: list[NormalizedRequest] = field(default_factory=list)

    async def report(self, request: NormalizedRequest) -> NormalizedAnswer:
        self.got.append(request)
        return NormalizedAnswer()

    def offered(self) -> SopClass:
        return SopClass(
            uid=COMMITMENT,
            operations={"N-EVENT-REPORT": self.report},
            well_known=COMMITMENT_INSTANCE,
            from_scp=True,
        )


async def test_an_event_on_an_association_that_its_scp_opened() -> None:
    events = Events()
    async with (
        dcmhaul.serve([NormalizedScp([events.offered()])]) as peer,
        dcmhaul.open_association(peer, [], receive=[COMMITMENT]) as association,
    ):
        assert association.agreement.roles_for(COMMITMENT) == (False, True)
        answered = await n_event_report(association, COMMITMENT, COMMITMENT_INSTANCE, 2, copies())
    assert answered.status == 0
    [event] = events.got
    assert (event.type_id, event.dataset) == (2, copies())


async def test_an_event_comes_before_the_response() -> None:
    """The SCP reports while its answer to the N-ACTION is still to come."""
    events = Events()

    async def act(request: NormalizedRequest) -> NormalizedAnswer:
        reported = await n_event_report(request.association, COMMITMENT, COMMITMENT_INSTANCE, 1)
        return NormalizedAnswer(status=reported.status)

    commitment = SopClass(uid=COMMITMENT, operations={"N-ACTION": act})
    services = [NormalizedScp([events.offered()])]
    async with conversing(commitment, propose=(COMMITMENT,)) as association:
        uid = COMMITMENT_INSTANCE
        done = await n_action(association, COMMITMENT, uid, 1, services=services)
        assert done.status == 0
        assert len(events.got) == 1
        # Whoever answers nothing meanwhile refuses.
        assert (await n_action(association, COMMITMENT, uid, 1)).status == 0x0211


async def test_what_is_left_to_do_follows_the_response() -> None:
    order: list[str] = []
    left = trio.Event()

    async def later() -> None:
        order.append("afterwards")
        left.set()

    async def act(_request: NormalizedRequest) -> NormalizedAnswer:
        order.append("performed")
        return NormalizedAnswer(afterwards=later)

    offered = SopClass(uid=COMMITMENT, operations={"N-ACTION": act})
    async with conversing(offered, propose=(COMMITMENT,)) as association:
        await n_action(association, COMMITMENT, COMMITMENT_INSTANCE, 1)
        await left.wait()
    assert order == ["performed", "afterwards"]


# -- peers that break the rules


@asynccontextmanager
async def answering(*answers: object) -> AsyncIterator[Association]:
    """An association with a peer that reads one request, then sends these."""

    class Odd:
        def contexts(self) -> object:
            return NormalizedScp([SopClass(uid=SESSION)]).contexts()

        def handles(self) -> object:
            return NormalizedScp([]).handles()

        async def handle(self, association: Association, incoming: Incoming) -> None:
            if incoming.message.has_dataset:
                await association.read_dataset(None)
            for answer in answers:
                if answer == "release":
                    await association.release()
                else:
                    await association.send(incoming.context.context_id, answer)  # type: ignore[arg-type]

    async with (
        dcmhaul.serve([Odd()]) as peer,  # type: ignore[list-item]
        dcmhaul.open_association(
            peer, [SESSION], timeouts=Timeouts(dimse=0.2, release=0.2)
        ) as association,
    ):
        yield association


@pytest.mark.parametrize(
    ("answers", "error"),
    [
        ((), PeerTimeout),
        (("release",), AssociationAborted),
        ((NGetRsp(message_id_being_responded_to=99, status=0),), RemoteProtocolError),
        ((NCreateRsp(message_id_being_responded_to=1, status=0),), RemoteProtocolError),
    ],
)
async def test_a_peer_that_does_not_answer_what_was_asked(
    answers: tuple[object, ...], error: type[Exception]
) -> None:
    with pytest.raises(error):
        async with answering(*answers) as association:
            await n_get(association, SESSION, "1.2.3")


async def test_requests_of_the_peer_are_answered_meanwhile() -> None:
    stray: tuple[Request, ...] = (
        CEchoRq(message_id=5, affected_sop_class_uid=SESSION),
        NEventReportRq(
            message_id=6,
            affected_sop_class_uid=SESSION,
            affected_sop_instance_uid="1.2",
            event_type_id=1,
        ),
    )
    last = NGetRsp(message_id_being_responded_to=1, status=0)
    async with answering(*stray, last) as association:
        response = await n_get(association, SESSION, "1.2.3")
    assert response.status == 0
    with pytest.raises(ValueError, match="identifier"):
        normalized.NormalizedResponse(
            status=0,
            sop_class_uid="",
            sop_instance_uid="",
            data=b"\1",
            transfer_syntax=uids.IMPLICIT_VR_LITTLE_ENDIAN,
        ).dataset()
