"""C-GET with both ends in one process: every sub-operation, every way to fail and to stop."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.lowlevel

from dcmhaul import uids
from dcmhaul.errors import (
    AssociationAborted,
    PeerTimeout,
    RemoteProtocolError,
    TransportError,
    UnreadableInstance,
)
from dcmhaul.net import Association, Incoming, open_association
from dcmhaul.objects.instances import IncomingInstance, StoreReply
from dcmhaul.protocol.dimse import (
    CCancelRq,
    CEchoRq,
    CEchoRsp,
    CGetRq,
    CGetRsp,
    CStoreRq,
    CStoreRsp,
)
from dcmhaul.services.identifiers import (
    decode_identifier,
)
from dcmhaul.services.query import QueryModel, QueryRefused
from dcmhaul.services.retrieve import GetScp, RetrieveResponse, get
from dcmhaul.services.storage import StorageScp, StorageScu
from tests.net.conversation import (
    BIG_ENDIAN,
    CT,
    CT_STORE,
    EXPLICIT,
    IMPLICIT,
    KEYS,
    MR,
    STUDY_FIND,
    STUDY_GET,
    all_responses,
    find_rsp,
    no_selection,
    request,
    scripted,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom.dataset import Dataset

    from dcmhaul.net import DatasetSlices


# -- C-GET ------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Held:
    """A StoredInstance and, once opened, its OutgoingInstance."""

    sop_instance_uid: str
    sop_class_uid: str = CT
    transfer_syntax_uid: str = EXPLICIT
    dataset: bytes = b"\x08\x00\x60\x00CS\x02\x00CT"
    fault: Exception | None = None
    opened: int = 0
    closed: int = 0
    label: str = "held"

    @property
    def length(self) -> int:
        return len(self.dataset)

    def open(self) -> Held:
        if self.fault is not None:
            raise self.fault
        self.opened += 1
        return self

    def close(self) -> None:
        self.closed += 1


def selecting(held: Sequence[Held]) -> Any:
    async def select(_model: QueryModel, _identifier: Dataset, _calling: str) -> Sequence[Held]:
        await trio.lowlevel.checkpoint()
        return held

    return select


@dataclass
class Kept:
    """A SinkFactory that keeps what comes, and answers as told."""

    replies: dict[str, int] = field(default_factory=dict)
    instances: dict[str, bytes] = field(default_factory=dict)
    delay: float = 0.0

    def __call__(self, incoming: IncomingInstance) -> Any:
        return _KeptSink(self, incoming)


class _KeptSink:
    def __init__(self, owner: Kept, incoming: IncomingInstance) -> None:
        self._owner = owner
        self._uid = incoming.sop_instance_uid
        self._parts: list[bytes] = []

    async def write(self, data: DatasetSlices) -> None:
        self._parts.append(data.copy_data())

    async def commit(self) -> StoreReply:
        await trio.sleep(self._owner.delay)
        self._owner.instances[self._uid] = b"".join(self._parts)
        return StoreReply(status=self._owner.replies.get(self._uid, 0x0000))

    def discard(self) -> None:
        pass


def storing(kept: Kept) -> Any:
    return StorageScp(kept).handle


async def retrieve(
    association: Association, kept: Kept | None = None, **options: Any
) -> RetrieveResponse:
    with trio.fail_after(30):
        return await get(
            association, QueryModel.STUDY_ROOT, KEYS, storing(kept or Kept()), **options
        )


@pytest.mark.parametrize("window", [1, 8])
@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG_ENDIAN])
async def test_get_brings_every_instance(window: int, syntax: str) -> None:
    held = [Held(sop_instance_uid=f"1.2.{n}", dataset=bytes([n, 0]) * 5000) for n in range(30)]
    held[7].sop_class_uid = MR
    kept = Kept()
    async with (
        serving(GetScp(selecting(held))) as port,
        open_association("127.0.0.1", port, request(syntax, window=window)) as association,
    ):
        result = await retrieve(association, kept)
        assert len(association.message_ids) == 0
    assert result == RetrieveResponse(status=0, completed=30, failed=0, warning=0)
    assert kept.instances == {h.sop_instance_uid: h.dataset for h in held}
    assert [(h.opened, h.closed) for h in held] == [(1, 1)] * 30


async def test_get_of_nothing() -> None:
    async with (
        serving(GetScp(selecting([]))) as port,
        open_association("127.0.0.1", port, request()) as association,
    ):
        result = await retrieve(association)
    assert result == RetrieveResponse(status=0, completed=0, failed=0, warning=0)


@pytest.mark.parametrize("window", [1, 8])
async def test_each_way_to_fail_is_counted_and_listed(window: int) -> None:
    held = [
        Held(sop_instance_uid="1.1"),
        Held(sop_instance_uid="1.2", sop_class_uid=MR, transfer_syntax_uid=IMPLICIT),
        Held(sop_instance_uid="1.3", fault=UnreadableInstance("truncated")),
        Held(sop_instance_uid="1.4", fault=FileNotFoundError("gone")),
        Held(sop_instance_uid="1.5", sop_class_uid="1.2.840.10008.5.1.4.1.1.7"),
        Held(sop_instance_uid="1.6"),
        Held(sop_instance_uid="1.7"),
        Held(sop_instance_uid="1.8"),
    ]
    kept = Kept(replies={"1.6": 0xA700, "1.7": 0xB007, "1.8": 0xB100})
    async with (
        serving(GetScp(selecting(held))) as port,
        open_association("127.0.0.1", port, request(window=window)) as association,
    ):
        result = await retrieve(association, kept)
    assert (result.status, result.remaining) == (0xB000, None)
    assert (result.completed, result.failed, result.warning) == (1, 6, 1)
    assert sorted(result.failed_sop_instance_uids) == ["1.2", "1.3", "1.4", "1.5", "1.6", "1.8"]
    assert all(h.opened == h.closed for h in held)


async def test_without_the_scp_role_all_have_failed() -> None:
    held = [Held(sop_instance_uid="1.1"), Held(sop_instance_uid="1.2")]
    async with (
        serving(GetScp(selecting(held))) as port,
        open_association("127.0.0.1", port, request(roles=())) as association,
    ):
        result = await retrieve(association)
    assert (result.status, result.completed, result.failed) == (0xA702, 0, 2)
    assert result.failed_sop_instance_uids == ("1.1", "1.2")


@pytest.mark.parametrize(("syntax", "whole"), [(IMPLICIT, True), (EXPLICIT, False)])
async def test_a_list_that_explicit_vr_cannot_hold_says_so(syntax: str, whole: bool) -> None:
    held = [Held(sop_instance_uid=f"1.2.3.{n:050d}1") for n in range(1500)]
    async with (
        serving(GetScp(selecting(held))) as port,
        open_association("127.0.0.1", port, request(syntax, roles=())) as association,
    ):
        result = await retrieve(association)
    listed = result.failed_sop_instance_uids
    assert result.failed == 1500
    assert list(listed) == [h.sop_instance_uid for h in held][: len(listed)]
    assert (len(listed) == 1500) is whole
    assert ("of 1500" in result.error_comment) is not whole


@pytest.mark.parametrize("window", [1, 4])
async def test_cancel_stops_promptly(window: int) -> None:
    held = [Held(sop_instance_uid=f"1.2.{n}") for n in range(5000)]
    cancel = trio.Event()

    class Counting(Kept):
        def __call__(self, incoming: IncomingInstance) -> Any:
            if len(self.instances) == 20:
                cancel.set()
            return super().__call__(incoming)

    kept = Counting(delay=0.001)
    async with (
        serving(GetScp(selecting(held))) as port,
        open_association("127.0.0.1", port, request(window=window)) as association,
    ):
        result = await retrieve(association, kept, cancel=cancel)
        assert result.status == 0xFE00
        assert result.completed is not None
        assert result.remaining is not None
        assert result.completed + result.remaining == 5000
        assert result.completed == len(kept.instances) < 1000
        # the association is as good as before
        assert [r.status for r in await all_responses(association)] == [0x0211]


@pytest.mark.parametrize("window", [1, 4])
async def test_a_cancel_that_is_ignored_ends_the_get(window: int) -> None:
    cancel = trio.Event()
    cancel.set()
    held = (Held(sop_instance_uid=f"1.2.{n}") for n in count())

    async def serve(association: Association) -> None:
        await association.receive()
        await association.read_dataset(None)

        async def take() -> Held:
            await trio.lowlevel.checkpoint()
            return next(held)

        async def ignore(incoming: Incoming) -> None:
            assert isinstance(incoming.message, CCancelRq)

        await StorageScu(association, on_other=ignore).run(take, lambda _: None)

    async with serving(serve, GetScp(no_selection)) as port:
        with pytest.raises(PeerTimeout, match="goes on with the C-GET") as caught:
            async with open_association("127.0.0.1", port, request(window=window)) as association:
                await retrieve(association, cancel=cancel, cancel_seconds=0.05)
    assert caught.value.phase == "C-CANCEL"


async def test_an_event_that_is_never_set_changes_nothing() -> None:
    held = [Held(sop_instance_uid="1.2.3")]
    async with (
        serving(GetScp(selecting(held))) as port,
        open_association("127.0.0.1", port, request()) as association,
    ):
        assert (await retrieve(association, cancel=trio.Event())).completed == 1


async def test_progress_is_told_about_once_a_second() -> None:
    held = [Held(sop_instance_uid=f"1.2.{n}") for n in range(4)]
    seen: list[RetrieveResponse] = []
    async with (
        serving(GetScp(selecting(held))) as port,
        open_association("127.0.0.1", port, request()) as association,
    ):
        result = await retrieve(association, Kept(delay=0.6), on_pending=seen.append)
    assert result.status == 0
    assert 1 <= len(seen) <= 3
    assert all(r.pending and r.remaining is not None for r in seen)
    assert [(r.remaining or 0) + (r.completed or 0) for r in seen] == [4] * len(seen)


async def test_a_refused_or_failing_selection() -> None:
    faults: list[Exception] = [
        QueryRefused(0xA900, "no unique key", (0x0020000D,)),
        KeyError("Doe^Jane"),
    ]

    async def select(_m: QueryModel, _i: Dataset, _c: str) -> list[Held]:
        raise faults.pop(0)

    async with (
        serving(GetScp(select)) as port,
        open_association("127.0.0.1", port, request()) as association,
    ):
        refused = await retrieve(association)
        failed = await retrieve(association)
    assert (refused.status, refused.error_comment) == (0xA900, "no unique key")
    assert (refused.offending, failed.offending) == ((0x0020000D,), ())
    assert failed.status == 0xC000
    assert "Doe" not in failed.error_comment


async def test_a_model_that_is_not_served() -> None:
    async with (
        serving(GetScp(selecting([]), models=[QueryModel.PATIENT_ROOT])) as port,
        open_association("127.0.0.1", port, request()) as association,
    ):
        assert (await retrieve(association)).status == 0x0122


async def test_requests_within_a_get_are_answered() -> None:
    held = [Held(sop_instance_uid=f"1.2.{n}") for n in range(3)]
    async with (
        serving(GetScp(selecting(held)), StorageScp(None)) as port,
        open_association("127.0.0.1", port, request(window=4)) as association,
    ):
        data = KEYS(EXPLICIT)
        rq = CGetRq(message_id=1, affected_sop_class_uid=uids.STUDY_ROOT_GET)
        await association.send(STUDY_GET, rq, data)
        answers: dict[int, int] = {}
        stored = 0
        while 1 not in answers or len(answers) < 3:
            incoming = await association.receive()
            assert incoming is not None
            message = incoming.message
            if message.has_dataset:
                await association.read_dataset(None)
            if isinstance(message, CStoreRq):
                if not stored:
                    other = CGetRq(message_id=2, affected_sop_class_uid=uids.STUDY_ROOT_GET)
                    association.queue(
                        9, CEchoRq(message_id=3, affected_sop_class_uid=uids.VERIFICATION)
                    )
                    association.queue(STUDY_GET, CCancelRq(message_id_being_responded_to=8))
                    association.queue(STUDY_GET, other, data)
                stored += 1
                association.queue(
                    incoming.context.context_id,
                    CStoreRsp(
                        message_id_being_responded_to=message.message_id,
                        status=0,
                        affected_sop_class_uid=message.affected_sop_class_uid,
                        affected_sop_instance_uid=message.affected_sop_instance_uid,
                    ),
                )
            elif isinstance(message, CGetRsp | CEchoRsp):
                answers[message.message_id_being_responded_to] = message.status
    assert list(answers.items()) == [(3, 0x0000), (1, 0x0000), (2, 0x0000)]
    assert stored == 6


async def test_a_response_of_another_kind_within_a_get_aborts() -> None:
    held = [Held(sop_instance_uid=f"1.2.{n}") for n in range(3)]
    async with serving(GetScp(selecting(held))) as port:
        with pytest.raises((AssociationAborted, TransportError)):
            async with open_association("127.0.0.1", port, request()) as association:
                rq = CGetRq(message_id=1, affected_sop_class_uid=uids.STUDY_ROOT_GET)
                association.queue(STUDY_GET, rq, KEYS(EXPLICIT))
                association.queue(STUDY_FIND, find_rsp(1, 0xFF00, True), b"")
                while await association.receive():
                    await association.read_dataset(None)
    assert [h.opened for h in held] == [h.closed for h in held]


async def test_a_traversing_uid_is_answered_0117_and_nothing_is_stored() -> None:
    statuses: list[int] = []

    async def script(association: Association, incoming: Incoming) -> None:
        if isinstance(incoming.message, CGetRq):
            bad = CStoreRq(
                message_id=1, affected_sop_class_uid=CT, affected_sop_instance_uid="../../x"
            )
            association.queue(CT_STORE, bad, b"\x00\x00")
        elif isinstance(incoming.message, CStoreRsp):
            statuses.append(incoming.message.status)
            association.queue(
                STUDY_GET,
                CGetRsp(
                    message_id_being_responded_to=1,
                    status=0xA702,
                    number_of_failed_suboperations=1,
                    has_dataset=True,
                ),
                b"\x08\x00\x58\x00UI",  # a list that cannot be read
            )

    kept = Kept()
    async with (
        serving(scripted(script), GetScp(no_selection)) as port,
        open_association("127.0.0.1", port, request()) as association,
    ):
        result = await retrieve(association, kept)
    assert statuses == [0x0117]
    assert kept.instances == {}
    assert (result.status, result.failed, result.failed_sop_instance_uids) == (0xA702, 1, ())


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("event", [True, False])
async def test_the_scps_faults_reach_the_caller_bare(window: int, event: bool) -> None:
    async def script(association: Association, _incoming: Incoming) -> None:
        association.queue(STUDY_GET, CGetRsp(message_id_being_responded_to=55, status=0))

    async with serving(scripted(script), GetScp(no_selection)) as port:
        with pytest.raises(RemoteProtocolError, match="no request of ours"):
            async with open_association("127.0.0.1", port, request(window=window)) as association:
                await retrieve(association, cancel=trio.Event() if event else None)


async def test_a_release_within_a_get() -> None:
    async def serve(association: Association) -> None:
        await association.receive()
        await association.read_dataset(None)
        await association.release()

    async with serving(serve, GetScp(no_selection)) as port:
        with pytest.raises(AssociationAborted, match="within a C-GET"):
            async with open_association("127.0.0.1", port, request()) as association:
                await retrieve(association)


async def test_a_stray_request_within_a_get_gets_0211() -> None:
    seen: list[int] = []

    async def script(association: Association, incoming: Incoming) -> None:
        if isinstance(incoming.message, CEchoRsp):
            seen.append(incoming.message.status)
            association.queue(STUDY_GET, CGetRsp(message_id_being_responded_to=1, status=0))
        else:
            association.queue(9, CEchoRq(message_id=50, affected_sop_class_uid=uids.VERIFICATION))

    async with (
        serving(scripted(script), GetScp(no_selection)) as port,
        open_association("127.0.0.1", port, request()) as association,
    ):
        assert (await retrieve(association)).status == 0
    assert seen == [0x0211]


async def test_cancelling_the_caller_of_get_cancels_it() -> None:
    async def serve(association: Association) -> None:
        while await association.receive() is not None:
            await association.read_dataset(None)

    async with serving(serve, GetScp(no_selection)) as port:
        with trio.move_on_after(0.2) as scope:
            async with open_association("127.0.0.1", port, request(window=4)) as association:
                await retrieve(association, cancel=trio.Event())
        assert scope.cancelled_caught


def test_models_have_the_classes_of_the_standard() -> None:
    assert [m.find_uid for m in QueryModel] == [
        "1.2.840.10008.5.1.4.1.2.1.1",
        "1.2.840.10008.5.1.4.1.2.2.1",
        "1.2.840.10008.5.1.4.1.2.3.1",
        "1.2.840.10008.5.1.4.31",
        "1.2.840.10008.5.1.4.34.6.3",
        "1.2.840.10008.5.1.4.34.6.2",
        "1.2.840.10008.5.1.4.34.6.5",
    ]
    assert [m.get_uid for m in QueryModel] == [
        "1.2.840.10008.5.1.4.1.2.1.3",
        "1.2.840.10008.5.1.4.1.2.2.3",
        "1.2.840.10008.5.1.4.1.2.3.3",
        *[""] * 4,
    ]
    assert QueryModel.STUDY_ROOT.move_uid == "1.2.840.10008.5.1.4.1.2.2.2"


def test_identifiers_know_no_compressed_syntax() -> None:
    with pytest.raises(ValueError, match="no transfer syntax for identifiers"):
        decode_identifier(b"", uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)
