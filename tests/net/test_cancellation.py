"""Cancelled at its Nth step, for each N until it completes: nothing leaks, and the peer is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from dcmhaul.errors import AssociationAborted, RemoteProtocolError, TransportError
from dcmhaul.net import FileRange, open_association
from dcmhaul.services.storage import StorageScp, StorageScu
from tests.cancelling import CancelAt, descriptors
from tests.net.test_association import CT, SYNTAX, request, serving

if TYPE_CHECKING:
    from dcmhaul.net import Association
    from dcmhaul.services.storage import StoreOutcome

STEPS_MAX = 500


class Memory:
    label = "memory"
    sop_class_uid = CT
    transfer_syntax_uid = SYNTAX

    def __init__(self, number: int, size: int) -> None:
        self.sop_instance_uid = f"1.2.3.{number}"
        self.dataset: bytes | FileRange = bytes(size)
        self.length = size

    def close(self) -> None:
        pass


async def send(port: int, sizes: list[int], outcomes: list[StoreOutcome]) -> None:
    instances = iter([Memory(i, size) for i, size in enumerate(sizes)])

    async def take() -> Memory | None:
        return next(instances, None)

    async with open_association("127.0.0.1", port, request(window=2)) as association:
        await StorageScu(association).run(take, outcomes.append)


SIZES = [10, 12_000_000, 30, 40, 3_000_000, 50]
# How a receiver may see the end of a sender that was cancelled; never a torn message taken for a whole one.
ENDINGS = {"AssociationAborted", "TransportError", "released"}


async def run_once(side: str, step: int) -> bool:
    """One transfer, cancelled before the given step of one side; True where it completed before that."""
    cancel = CancelAt(step)
    endings: list[str] = []
    outcomes: list[StoreOutcome] = []
    scp = StorageScp(None)
    receiver_scope = cancel.scope if side == "receiver" else trio.CancelScope()
    sender_scope = cancel.scope if side == "sender" else trio.CancelScope()

    async def handler(association: Association) -> None:
        if side == "receiver":
            cancel.arm()
        with receiver_scope:
            try:
                while (incoming := await association.receive()) is not None:
                    await scp.handle(association, incoming)
                endings.append("released")
            except (AssociationAborted, TransportError, RemoteProtocolError) as exc:
                endings.append(type(exc).__name__)
                raise
        if receiver_scope.cancelled_caught:
            endings.append("cancelled")

    trio.lowlevel.add_instrument(cancel)
    try:
        async with serving(handler) as port:
            if side == "sender":
                cancel.arm()
            with sender_scope:
                try:
                    await send(port, SIZES, outcomes)
                except (AssociationAborted, TransportError):
                    assert side == "receiver"
            cancel.disarm()
            with trio.move_on_after(5):
                while not endings and outcomes:
                    await trio.sleep(0.001)
    finally:
        trio.lowlevel.remove_instrument(cancel)
    if cancel.cancelled:
        assert set(endings) <= (ENDINGS if side == "sender" else {"cancelled", "released"})
        return False
    assert [outcome.status for outcome in outcomes] == [0] * len(SIZES)
    assert endings == ["released"]
    return True


@pytest.mark.parametrize("side", ["sender", "receiver"])
async def test_cancel_at_every_step(side: str) -> None:
    with trio.fail_after(120):
        await run_once(side, STEPS_MAX)  # whatever trio opens once is open now
        before = descriptors()
        for step in range(1, STEPS_MAX):
            completed = await run_once(side, step)
            assert descriptors() <= before, f"a descriptor leaks at {step}"
            if completed:
                assert step > 5  # it did stop at several places before it got through
                return
    pytest.fail(f"more than {STEPS_MAX} steps")
