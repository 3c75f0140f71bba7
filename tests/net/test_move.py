"""C-MOVE with both ends in one process: what the requestor reads, waits for, and stops."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import trio

from dcmhaul import uids
from dcmhaul.errors import (
    AssociationAborted,
    DcmhaulError,
    NoAcceptedContext,
    PeerTimeout,
    RemoteProtocolError,
)
from dcmhaul.net import Association, Incoming, Timeouts, open_association
from dcmhaul.objects.instances import IncomingInstance, MoveOriginator
from dcmhaul.protocol.dimse import (
    CCancelRq,
    CEchoRq,
    CEchoRsp,
    CGetRsp,
    CMoveRq,
    CMoveRsp,
    CStoreRq,
)
from dcmhaul.protocol.negotiation import SupportedContext
from dcmhaul.services.identifiers import encode_uid_list
from dcmhaul.services.move import move
from dcmhaul.services.query import QueryModel
from dcmhaul.services.retrieve import RetrieveResponse, SignsOfLife
from dcmhaul.services.storage import StorageScp, StorageScu, StoreOutcome
from tests.net.conversation import (
    CT,
    CT_STORE,
    EXPLICIT,
    IMPLICIT,
    KEYS,
    STUDY_MOVE,
    request,
    scripted,
    serving,
)
from tests.net.test_retrieve import Held

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping


class Offered:
    """Accepts the context of a C-MOVE, and serves nothing."""

    def contexts(self) -> Mapping[str, SupportedContext]:
        return {uids.STUDY_ROOT_MOVE: SupportedContext()}


def rsp(status: int, message_id: int = 1, **fields: Any) -> CMoveRsp:
    """fields: counts as `remaining`, `completed`, `failed`, `warning`, or the message's own."""
    counts = {
        f"number_of_{name}_suboperations": fields.pop(name)
        for name in ("remaining", "completed", "failed", "warning")
        if name in fields
    }
    return CMoveRsp(message_id_being_responded_to=message_id, status=status, **counts, **fields)


def answering(*responses: CMoveRsp | tuple[CMoveRsp, bytes]) -> Any:
    """An SCP that answers each C-MOVE-RQ with all of these, which may have a dataset."""

    async def script(association: Association, incoming: Incoming) -> None:
        if isinstance(incoming.message, CMoveRq):
            for response in responses:
                message, data = response if isinstance(response, tuple) else (response, None)
                association.queue(STUDY_MOVE, message, data)

    return scripted(script)


async def moved(scp: Any, syntax: str = EXPLICIT, **options: Any) -> RetrieveResponse:
    """The final response of one C-MOVE, or what it raises, out of the nursery of the SCP."""
    async with serving(scp, Offered()) as port:
        try:
            async with open_association("127.0.0.1", port, request(syntax)) as association:
                with trio.fail_after(20):
                    response = await move(
                        association, QueryModel.STUDY_ROOT, KEYS, "THIRD", **options
                    )
                assert len(association.message_ids) == 0
                return response
        except DcmhaulError as exc:
            error = exc
    raise error


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
async def test_request_and_final_response(syntax: str) -> None:
    seen: list[CMoveRq] = []
    data, _ = encode_uid_list(["1.2.3", "1.2.4"], syntax)

    async def script(association: Association, incoming: Incoming) -> None:
        assert isinstance(incoming.message, CMoveRq)
        seen.append(incoming.message)
        final = rsp(
            0xB000, completed=5, failed=2, warning=1, error_comment="no disk", has_dataset=True
        )
        association.queue(STUDY_MOVE, final, data)

    response = await moved(scripted(script), syntax, priority=2)
    assert response == RetrieveResponse(
        status=0xB000,
        completed=5,
        failed=2,
        warning=1,
        failed_sop_instance_uids=("1.2.3", "1.2.4"),
        error_comment="no disk",
    )
    assert [(m.move_destination, m.priority, m.affected_sop_class_uid) for m in seen] == [
        ("THIRD", 2, uids.STUDY_ROOT_MOVE)
    ]


async def test_pending_responses_are_told_as_they_come() -> None:
    pending: list[RetrieveResponse] = []
    counted = {"remaining": 2, "completed": 1, "failed": 0, "warning": 0}
    final = await moved(
        answering(
            rsp(0xFF00, **counted),
            rsp(0xFF00, **counted),  # the same again
            rsp(0xFF00),  # without any count
            rsp(0xFF00, remaining=1),
            (rsp(0xFF00, has_dataset=True), b"\x08\x00\x58\x00junk"),  # where none belongs
            rsp(0x0000),
        ),
        on_pending=pending.append,
    )
    assert [(r.remaining, r.completed) for r in pending] == [
        (2, 1),
        (2, 1),
        (None, None),
        (1, None),
        (None, None),
    ]
    assert all(r.pending and not r.failed_sop_instance_uids for r in pending)
    assert final == RetrieveResponse(status=0)


@pytest.mark.parametrize("status", [0xA801, 0xA702, 0xA701, 0xA900, 0xC000, 0x0122, 0xFFFF])
async def test_a_refusal_is_the_final_response(status: int) -> None:
    response = await moved(answering(rsp(status, error_comment="because")))
    assert (response.status, response.error_comment) == (status, "because")


async def test_a_success_before_the_end_is_told_as_it_was_said() -> None:
    early = rsp(0x0000, remaining=7, completed=3, has_dataset=True)
    response = await moved(answering((early, b"")))
    assert (response.status, response.remaining, response.completed) == (0, 7, 3)


@pytest.mark.parametrize("event", [True, False])
async def test_faults_of_the_scp_reach_the_caller_bare(event: bool) -> None:
    cancel = trio.Event() if event else None
    with pytest.raises(RemoteProtocolError, match="no request of ours"):
        await moved(answering(rsp(0x0000, message_id=77)), cancel=cancel)

    async def other_kind(association: Association, _incoming: Incoming) -> None:
        association.queue(STUDY_MOVE, CGetRsp(message_id_being_responded_to=1, status=0))

    with pytest.raises(RemoteProtocolError, match="CGetRsp to no request"):
        await moved(scripted(other_kind), cancel=cancel)


async def test_a_release_within_a_move() -> None:
    async def serve(association: Association) -> None:
        await association.receive()
        await association.read_dataset(None)
        await association.release()

    with pytest.raises(AssociationAborted, match="within a C-MOVE"):
        await moved(serve)


async def test_a_stray_request_within_a_move_gets_0211() -> None:
    seen: list[int] = []

    async def script(association: Association, incoming: Incoming) -> None:
        if isinstance(incoming.message, CEchoRsp):
            seen.append(incoming.message.status)
            association.queue(STUDY_MOVE, rsp(0x0000))
        else:
            association.queue(9, CEchoRq(message_id=50, affected_sop_class_uid=uids.VERIFICATION))

    assert (await moved(scripted(script))).status == 0
    assert seen == [0x0211]


async def test_a_model_that_the_peer_does_not_have() -> None:
    async with (
        serving(answering()) as port,
        open_association("127.0.0.1", port, request()) as association,
    ):
        with pytest.raises(NoAcceptedContext, match="Study Root"):
            await move(association, QueryModel.STUDY_ROOT, KEYS, "THIRD")


# -- stopping it ------------------------------------------------------------------------------------


async def test_cancel_names_the_message_and_ends_with_fe00() -> None:
    cancelled: list[CCancelRq] = []

    async def script(association: Association, incoming: Incoming) -> None:
        if isinstance(incoming.message, CCancelRq):
            cancelled.append(incoming.message)
            association.queue(STUDY_MOVE, rsp(0xFE00, 2, remaining=3, completed=2, failed=0))
        elif len(seen) < 2:
            message_id = 1 if not seen else 2
            association.queue(STUDY_MOVE, rsp(0x0000 if not seen else 0xFF00, message_id))
            seen.append(message_id)

    seen: list[int] = []
    cancel = trio.Event()
    async with (
        serving(scripted(script), Offered()) as port,
        open_association("127.0.0.1", port, request()) as association,
    ):
        with trio.fail_after(20):
            await move(association, QueryModel.STUDY_ROOT, KEYS, "THIRD", cancel=trio.Event())
            response = await move(
                association,
                QueryModel.STUDY_ROOT,
                KEYS,
                "THIRD",
                cancel=cancel,
                on_pending=lambda _: cancel.set(),
            )
    assert (response.status, response.remaining, response.completed) == (0xFE00, 3, 2)
    assert [m.message_id_being_responded_to for m in cancelled] == [2]


def endlessly(step: Callable[[Association], Awaitable[None]]) -> tuple[Any, trio.Event]:
    """An SCP that does `step` for ever, deaf to everything; the event is set when it was aborted."""
    aborted = trio.Event()

    async def serve(association: Association) -> None:
        await association.receive()
        await association.read_dataset(None)
        try:
            async with trio.open_nursery() as nursery:

                async def deaf() -> None:
                    while await association.receive() is not None:
                        pass

                nursery.start_soon(deaf)
                while True:
                    await step(association)
        except* AssociationAborted:
            aborted.set()

    return serve, aborted


async def pending_again(association: Association) -> None:
    await association.send(STUDY_MOVE, rsp(0xFF00, remaining=9, completed=1))
    await trio.sleep(0.001)


async def silence(_association: Association) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize("step", [pending_again, silence])
async def test_an_ignored_cancel_ends_in_an_abort(step: Any) -> None:
    serve, aborted = endlessly(step)
    cancel = trio.Event()
    cancel.set()
    async with serving(serve, Offered()) as port:
        with pytest.raises(PeerTimeout, match="goes on with the C-MOVE") as caught:
            async with open_association("127.0.0.1", port, request()) as association:
                await move(
                    association,
                    QueryModel.STUDY_ROOT,
                    KEYS,
                    "THIRD",
                    cancel=cancel,
                    cancel_seconds=0.05,
                )
        assert caught.value.phase == "C-CANCEL"
        with trio.fail_after(10):
            await aborted.wait()


# -- waiting for it ---------------------------------------------------------------------------------


async def test_silence_ends_with_the_name_of_the_timer() -> None:
    for signs in (None, SignsOfLife()):
        with pytest.raises(PeerTimeout, match=r"0\.05 s \(C-MOVE time-out\)"):
            await moved(answering(), seconds=0.05, signs=signs)


@pytest.mark.parametrize("status", [0x0000, 0xB000, 0xFE00, 0xA702])
async def test_at_the_deadline_the_peer_is_asked_to_end_it(status: int) -> None:
    """What it has done by then is done; that it has ended otherwise does not hide the deadline."""
    asked: list[int] = []

    async def script(association: Association, incoming: Incoming) -> None:
        if isinstance(incoming.message, CCancelRq):
            asked.append(incoming.message.message_id_being_responded_to)
            association.queue(STUDY_MOVE, rsp(status, completed=3))

    if status == 0:
        assert await moved(scripted(script), seconds=0.1) == RetrieveResponse(status=0, completed=3)
    else:
        with pytest.raises(PeerTimeout, match=r"0\.1 s \(C-MOVE time-out\)"):
            await moved(scripted(script), seconds=0.1)
    assert asked == [1]


async def test_a_sign_of_life_prolongs_the_wait() -> None:
    asked = trio.Event()

    async def script(association: Association, _incoming: Incoming) -> None:
        asked.set()
        await trio.sleep(0.3)
        association.queue(STUDY_MOVE, rsp(0x0000, completed=1))

    signs = SignsOfLife()
    before = signs.last
    async with trio.open_nursery() as nursery:

        async def see_something_arrive() -> None:
            await asked.wait()
            signs.touch()
            assert signs.last >= before
            signs.last += 60

        nursery.start_soon(see_something_arrive)
        response = await moved(scripted(script), seconds=0.1, signs=signs)
    assert response == RetrieveResponse(status=0, completed=1)


async def test_other_timers_are_not_taken_for_silence() -> None:
    async def serve(association: Association) -> None:
        await association.receive()
        await association.read_dataset(None)
        writer = await association.open_dataset(STUDY_MOVE, rsp(0xB000, has_dataset=True))
        await writer.write(b"\x08\x00")
        with contextlib.suppress(AssociationAborted):
            await association.receive()
        await association.abort()

    async with serving(serve, Offered()) as port:
        with pytest.raises(PeerTimeout) as caught:
            async with open_association(
                "127.0.0.1", port, request(), timeouts=Timeouts(progress=0.05)
            ) as association:
                await move(association, QueryModel.STUDY_ROOT, KEYS, "THIRD", signs=SignsOfLife())
    assert caught.value.phase == "progress"


# -- the sub-operations -----------------------------------------------------------------------------


async def test_sub_operations_name_their_move() -> None:
    """PS3.7 §9.1.1.1: Move Originator Application Entity Title and Message ID."""
    arrived: list[IncomingInstance] = []
    async with (
        serving(StorageScp(arrived.append)) as port,
        open_association("127.0.0.1", port, request()) as association,
    ):
        held = iter([Held(sop_instance_uid="1.2.3"), Held(sop_instance_uid="1.2.4")])

        async def take() -> Held | None:
            await trio.lowlevel.checkpoint()
            return next(held, None)

        outcomes: list[StoreOutcome] = []
        originator = MoveOriginator("ASKED", 65535)
        await StorageScu(association, originator=originator, priority=1).run(take, outcomes.append)
        for fields in (
            {},
            {"move_originator_application_entity_title": "ALONE"},
            {"move_originator_message_id": 7},
        ):
            rq = CStoreRq(
                message_id=association.next_message_id(),
                affected_sop_class_uid=CT,
                affected_sop_instance_uid="1.2.5",
                **fields,
            )
            await association.send(CT_STORE, rq, b"")
            await association.receive()
    assert [outcome.status for outcome in outcomes] == [0, 0]
    assert [instance.move_originator for instance in arrived] == [
        originator,
        originator,
        None,
        None,
        None,
    ]
