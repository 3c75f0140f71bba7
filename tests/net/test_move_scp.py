"""The SCP of C-MOVE with a mover of the test's own: its responses, and what it hears meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from dcmhaul import uids
from dcmhaul.errors import AssociationAborted, TransportError
from dcmhaul.net import Association, open_association
from dcmhaul.protocol.dimse import (
    CCancelRq,
    CEchoRq,
    CEchoRsp,
    CFindRq,
    CFindRsp,
    CMoveRq,
    CMoveRsp,
    CStoreRsp,
)
from dcmhaul.services import move as move_module
from dcmhaul.services.move import MoveOrder, MoveScp, move
from dcmhaul.services.query import FindScp, QueryModel, QueryRefused
from dcmhaul.services.retrieve import RetrieveResponse
from tests.net.conversation import (
    CT_STORE,
    EXPLICIT,
    IMPLICIT,
    KEYS,
    STUDY_FIND,
    STUDY_MOVE,
    no_selection,
    nothing,
    request,
    serving,
)
from tests.net.test_retrieve import Held, selecting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pydicom.dataset import Dataset


class Mover:
    """Knows THIRD, and does with an order what `step` says."""

    def __init__(self, step: Callable[[MoveOrder], Awaitable[str]] | None = None) -> None:
        self.orders: list[MoveOrder] = []
        self.ended: list[str] = []
        self.begun = trio.Event()
        self.over = trio.Event()
        self._step = step

    def knows(self, ae_title: str) -> bool:
        return ae_title == "THIRD"

    async def move(self, order: MoveOrder) -> str:
        self.orders.append(order)
        self.begun.set()
        try:
            comment = "" if self._step is None else await self._step(order)
        except trio.Cancelled:
            self.ended.append("cancelled")
            self.over.set()
            raise
        self.ended.append("done")
        return comment


def three() -> list[Held]:
    return [Held(sop_instance_uid=f"1.2.{n}") for n in (1, 2, 3)]


def deciding(completed: int, warning: int, failed: int, comment: str = "") -> Any:
    """A step that lets so many instances end so, in this order."""

    async def step(order: MoveOrder) -> str:
        await trio.lowlevel.checkpoint()
        counts = order.counts
        counts.completed += completed
        counts.warning += warning
        counts.remaining -= completed + warning
        for instance in order.instances[completed + warning :][:failed]:
            counts.fail(instance.sop_instance_uid)
        return comment

    return step


async def moved(
    mover: Mover,
    *,
    select: Any = None,
    syntax: str = EXPLICIT,
    destination: str = "THIRD",
    identifier: Any = KEYS,
    **options: Any,
) -> RetrieveResponse:
    """The final response of one C-MOVE; afterwards the association still answers."""
    scp = MoveScp(select or selecting(three()), mover)
    async with (
        serving(scp) as port,
        open_association("127.0.0.1", port, request(syntax)) as association,
    ):
        with trio.fail_after(20):
            response = await move(
                association, QueryModel.STUDY_ROOT, identifier, destination, **options
            )
            await echo(association)
    return response


async def echo(association: Association) -> None:
    rq = CEchoRq(message_id=association.next_message_id(), affected_sop_class_uid=uids.VERIFICATION)
    await association.send(9, rq)
    incoming = await association.receive()
    assert incoming is not None
    assert isinstance(incoming.message, CEchoRsp)


async def test_an_order_holds_what_was_asked_and_the_first_response_says_how_much_it_is() -> None:
    mover = Mover(deciding(3, 0, 0))
    asked: list[tuple[QueryModel, str, str]] = []
    held = three()

    async def select(model: QueryModel, identifier: Dataset, calling: str) -> list[Held]:
        asked.append((model, identifier.QueryRetrieveLevel, calling))
        return held

    pending: list[RetrieveResponse] = []
    response = await moved(mover, select=select, on_pending=pending.append, priority=1)
    assert response == RetrieveResponse(status=0, completed=3, failed=0, warning=0)
    assert pending[0] == RetrieveResponse(
        status=0xFF00, remaining=3, completed=0, failed=0, warning=0
    )
    assert asked == [(QueryModel.STUDY_ROOT, "STUDY", "HERE")]
    [order] = mover.orders
    assert order.instances == held
    assert (order.originator.ae_title, order.originator.message_id) == ("HERE", 1)
    assert (order.destination_ae_title, order.priority) == ("THIRD", 1)
    assert not order.stop.is_set()


async def test_a_priority_that_the_standard_does_not_know_is_medium() -> None:
    mover = Mover(deciding(3, 0, 0))
    await moved(mover, priority=77)
    assert mover.orders[0].priority == 0


async def test_nothing_selected_is_a_success_without_a_move() -> None:
    mover = Mover()
    response = await moved(mover, select=no_selection)
    assert response == RetrieveResponse(status=0, completed=0, failed=0, warning=0)
    assert not mover.orders


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
@pytest.mark.parametrize(
    ("outcome", "status", "listed"),
    [
        ((1, 0, 2), 0xB000, ("1.2.2", "1.2.3")),
        ((2, 1, 0), 0xB000, ()),
        ((0, 1, 2), 0xB000, ("1.2.2", "1.2.3")),
        ((0, 0, 3), 0xA702, ("1.2.1", "1.2.2", "1.2.3")),
    ],
)
async def test_the_final_status_follows_from_the_counts(
    outcome: tuple[int, int, int], status: int, listed: tuple[str, ...], syntax: str
) -> None:
    response = await moved(Mover(deciding(*outcome, comment="why")), syntax=syntax)
    completed, warning, failed = outcome
    assert response == RetrieveResponse(
        status=status,
        completed=completed,
        warning=warning,
        failed=failed,
        failed_sop_instance_uids=listed,
        error_comment="why" if failed else "",
    )


@pytest.mark.parametrize(
    ("destination", "comment"),
    [
        ("OTHER", "no move destination OTHER is configured"),
        ("third", "no move destination third is configured"),
        ("../..", "no move destination ../.. is configured"),
        ("a\\b", "no move destination is configured"),
        ("", "no move destination is configured"),
    ],
)
async def test_an_unknown_destination_is_a801(destination: str, comment: str) -> None:
    mover = Mover()

    async def select(_m: QueryModel, _i: Dataset, _c: str) -> list[Held]:
        raise AssertionError("nothing is to be looked for")

    response = await moved(mover, select=select, destination=destination)
    assert (response.status, response.error_comment) == (0xA801, comment)
    assert response.completed is None
    assert not mover.orders


async def test_a_refused_or_failing_selection() -> None:
    faults = [QueryRefused(0xA900, "no unique key", (0x0020000D,)), KeyError("Doe^Jane")]

    async def select(_m: QueryModel, _i: Dataset, _c: str) -> list[Held]:
        raise faults.pop(0)

    refused = await moved(Mover(), select=select)
    failed = await moved(Mover(), select=select)
    assert (refused.status, refused.error_comment) == (0xA900, "no unique key")
    assert (refused.offending, failed.offending) == ((0x0020000D,), ())
    assert failed.status == 0xC000
    assert "Doe" not in failed.error_comment


@pytest.mark.parametrize("data", [b"\x08\x00\x52\x00CS\xff\xff", b"\x08"])
async def test_a_malformed_identifier(data: bytes) -> None:
    response = await moved(Mover(), identifier=data)
    assert response.status in (0xA900, 0xC000)


async def test_a_request_without_an_identifier_or_of_another_class() -> None:
    answers: list[int] = []
    async with (
        serving(MoveScp(selecting(three()), Mover())) as port,
        open_association("127.0.0.1", port, request()) as association,
    ):
        for class_uid, has_dataset in (
            (uids.STUDY_ROOT_MOVE, False),
            (uids.PATIENT_ROOT_MOVE, True),
        ):
            rq = CMoveRq(
                message_id=association.next_message_id(),
                affected_sop_class_uid=class_uid,
                move_destination="THIRD",
                has_dataset=has_dataset,
            )
            await association.send(STUDY_MOVE, rq, KEYS(EXPLICIT) if has_dataset else None)
            incoming = await association.receive()
            assert incoming is not None
            assert isinstance(incoming.message, CMoveRsp)
            answers.append(incoming.message.status)
    assert answers == [0xA900, 0x0122]


async def test_pending_responses_go_on_while_it_is_performed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(move_module, "PENDING_SECONDS", 0.005)
    told: list[RetrieveResponse] = []
    enough = trio.Event()

    def pending(response: RetrieveResponse) -> None:
        told.append(response)
        if len(told) == 4:
            enough.set()

    async def step(order: MoveOrder) -> str:
        order.counts.fail("1.2.3")
        await enough.wait()
        order.counts.completed, order.counts.remaining = 2, 0
        return ""

    response = await moved(Mover(step), on_pending=pending)
    assert (response.status, response.completed, response.failed) == (0xB000, 2, 1)
    assert all((r.remaining, r.failed, r.failed_sop_instance_uids) == (2, 1, ()) for r in told[1:4])


# -- stopping it ------------------------------------------------------------------------------------


async def until_stopped(order: MoveOrder) -> str:
    await order.stop.wait()
    order.counts.completed, order.counts.remaining = 1, 2
    return ""


def cancelling() -> dict[str, Any]:
    cancel = trio.Event()
    return {"cancel": cancel, "on_pending": lambda _response: cancel.set()}


async def test_a_cancel_lets_end_what_was_begun() -> None:
    mover = Mover(until_stopped)
    response = await moved(mover, **cancelling())
    assert response == RetrieveResponse(
        status=0xFE00, remaining=2, completed=1, failed=0, warning=0
    )
    assert mover.ended == ["done"]


async def test_a_cancel_that_finds_all_done_is_no_cancel() -> None:
    async def step(order: MoveOrder) -> str:
        await order.stop.wait()
        order.counts.completed, order.counts.remaining = 3, 0
        return ""

    response = await moved(Mover(step), **cancelling())
    assert response == RetrieveResponse(status=0, completed=3, failed=0, warning=0)


async def test_what_does_not_end_after_a_cancel_is_aborted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(move_module, "STOP_SECONDS", 0.02)

    async def step(order: MoveOrder) -> str:
        order.counts.fail("1.2.1")
        await trio.sleep_forever()

    mover = Mover(step)
    response = await moved(mover, **cancelling())
    assert response.status == 0xFE00
    assert (response.remaining, response.failed) == (2, 1)
    assert response.failed_sop_instance_uids == ("1.2.1",)
    assert mover.ended == ["cancelled"]


async def test_what_comes_beside_a_move_is_answered() -> None:
    """C-ECHO is, at once; queries and retrieves within the window are, one after another, or cancelled.

    A message ID that is in use, and what is beyond the window, is refused; a strange C-CANCEL is nothing.
    """
    go_on = trio.Event()

    async def step(order: MoveOrder) -> str:
        await go_on.wait()
        assert not order.stop.is_set()
        order.counts.completed, order.counts.remaining = 3, 0
        return ""

    mover = Mover(step)
    answers: list[tuple[int, int]] = []
    async with (
        serving(FindScp(nothing), MoveScp(selecting(three()), mover)) as port,
        open_association("127.0.0.1", port, request(window=4)) as association,
    ):
        data = KEYS(EXPLICIT)
        first = CMoveRq(
            message_id=1, affected_sop_class_uid=uids.STUDY_ROOT_MOVE, move_destination="THIRD"
        )
        finds = [
            CFindRq(message_id=n, affected_sop_class_uid=uids.STUDY_ROOT_FIND)
            for n in (3, 1, 5, 6, 7)
        ]
        echo_rq = CEchoRq(message_id=4, affected_sop_class_uid=uids.VERIFICATION)
        await association.send(STUDY_MOVE, first, data)
        await mover.begun.wait()
        association.queue(STUDY_MOVE, CCancelRq(message_id_being_responded_to=9))
        for find in finds:
            association.queue(STUDY_FIND, find, data)
        association.queue(STUDY_FIND, CCancelRq(message_id_being_responded_to=5))
        association.queue(9, echo_rq)
        while len(answers) < 7:
            incoming = await association.receive()
            assert incoming is not None
            message = incoming.message
            assert isinstance(message, CMoveRsp | CFindRsp | CEchoRsp)
            if message.status != 0xFF00:
                answers.append((message.message_id_being_responded_to, message.status))
            if len(answers) == 4:
                go_on.set()
    # In the window of four there is room for three beside the move; what is cancelled makes none.
    assert answers == [
        (1, 0x0210),
        (7, 0xA700),
        (5, 0xFE00),
        (4, 0x0000),
        (1, 0x0000),
        (3, 0x0000),
        (6, 0x0000),
    ]


@pytest.mark.parametrize("end", ["abort", "close", "release", "nonsense"])
async def test_a_move_whose_requestor_is_lost_stops(end: str) -> None:
    async def step(_order: MoveOrder) -> str:
        await trio.sleep_forever()

    mover = Mover(step)
    async with serving(MoveScp(selecting(three()), mover)) as port:
        try:
            async with open_association("127.0.0.1", port, request()) as association:
                rq = CMoveRq(
                    message_id=1,
                    affected_sop_class_uid=uids.STUDY_ROOT_MOVE,
                    move_destination="THIRD",
                )
                await association.send(STUDY_MOVE, rq, KEYS(EXPLICIT))
                await mover.begun.wait()
                if end == "abort":
                    await association.abort()
                elif end == "close":
                    await association.close(0)
                elif end == "release":
                    await association.release()
                else:
                    rsp = CStoreRsp(message_id_being_responded_to=1, status=0)
                    await association.send(CT_STORE, rsp)
                    while await association.receive():
                        pass
        except (AssociationAborted, TransportError):
            assert end == "nonsense"
        with trio.fail_after(10):
            await mover.over.wait()
        assert mover.ended == ["cancelled"]
        # The listener is none the worse for it.
        async with open_association("127.0.0.1", port, request()) as another:
            await echo(another)
