"""C-FIND and C-GET with both ends in this process, over real sockets on 127.0.0.1."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.lowlevel
from pydicom.dataset import Dataset

from dcmhaul import uids
from dcmhaul.errors import (
    AssociationAborted,
    NoAcceptedContext,
    RemoteProtocolError,
    TransportError,
    UnreadableInstance,
)
from dcmhaul.net import Association, Incoming, open_association, serve_associations
from dcmhaul.objects.instances import IncomingInstance, StoreReply
from dcmhaul.protocol.dimse import (
    CCancelRq,
    CEchoRq,
    CEchoRsp,
    CFindRq,
    CFindRsp,
    CGetRq,
    CGetRsp,
    CStoreRq,
    CStoreRsp,
)
from dcmhaul.protocol.negotiation import AssociationRequest
from dcmhaul.services.identifiers import (
    IDENTIFIER_LENGTH_MAX,
    decode_identifier,
    encode_identifier,
)
from dcmhaul.services.provider import acceptor_policy, serve_services
from dcmhaul.services.query import FindResponse, FindScp, QueryModel, QueryRefused, find
from dcmhaul.services.retrieve import GetResponse, GetScp, get, storage_roles
from dcmhaul.services.storage import StorageScp
from dcmhaul.services.verification import VerificationScp
from dcmhaul.wire.items import PresentationContextRq

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from dcmhaul.net import DatasetSlices

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
IMPLICIT = uids.IMPLICIT_VR_LITTLE_ENDIAN
EXPLICIT = uids.EXPLICIT_VR_LITTLE_ENDIAN
BIG_ENDIAN = uids.EXPLICIT_VR_BIG_ENDIAN

STUDY_FIND = 1
STUDY_GET = 3
CT_STORE = 5
MR_STORE = 7


def request(syntax: str = EXPLICIT, **fields: Any) -> AssociationRequest:
    proposed = (
        (STUDY_FIND, uids.STUDY_ROOT_FIND, syntax),
        (STUDY_GET, uids.STUDY_ROOT_GET, syntax),
        (CT_STORE, CT, EXPLICIT),
        (MR_STORE, MR, EXPLICIT),
        (9, uids.VERIFICATION, IMPLICIT),
        (11, uids.PATIENT_ROOT_FIND, syntax),
    )
    base: dict[str, Any] = {
        "called_ae_title": "THERE",
        "calling_ae_title": "HERE",
        "contexts": tuple(
            PresentationContextRq(context_id=n, abstract_syntax=uid, transfer_syntaxes=(ts,))
            for n, uid, ts in proposed
        ),
        "roles": storage_roles([CT, MR, CT]),
    }
    return AssociationRequest(**(base | fields))


@asynccontextmanager
async def serving(*services: Any, **fields: Any) -> AsyncIterator[int]:
    """A listener with these services; a plain coroutine function serves associations itself."""
    policy = acceptor_policy(
        [
            FindScp(nothing, models=QueryModel),
            GetScp(no_selection),
            VerificationScp(),
            *(s for s in services if hasattr(s, "contexts")),
        ],
        ae_title=None,
        **fields,
    )

    async def handler(association: Association) -> None:
        if services and not hasattr(services[0], "contexts"):
            await services[0](association)
        else:
            await serve_services(association, [VerificationScp(), *services])

    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[list[tuple[str, int]]]) -> None:
            await serve_associations(
                handler, policy, host="127.0.0.1", port=0, task_status=task_status
            )

        ((_, port),) = await nursery.start(serve)
        yield port
        nursery.cancel_scope.cancel()


def nothing(_model: QueryModel, _identifier: Dataset, _calling: str) -> list[Dataset]:
    return []


async def no_selection(_model: QueryModel, _identifier: Dataset, _calling: str) -> list[Any]:
    return []


def keys(**values: Any) -> Dataset:
    dataset = Dataset()
    dataset.QueryRetrieveLevel = "STUDY"
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def encoder(dataset: Dataset) -> Callable[[str], bytes]:
    return lambda syntax: encode_identifier(dataset, syntax)


KEYS = encoder(keys(StudyInstanceUID=""))


async def all_responses(
    association: Association, identifier: Any = KEYS, **options: Any
) -> list[FindResponse]:
    async with find(association, QueryModel.STUDY_ROOT, identifier, **options) as responses:
        return [response async for response in responses]


# -- C-FIND -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG_ENDIAN])
async def test_find_answers_in_the_syntax_of_the_context(syntax: str) -> None:
    asked: list[tuple[QueryModel, str, str]] = []

    def answer(model: QueryModel, identifier: Dataset, calling: str) -> Iterator[Dataset]:
        asked.append((model, calling, str(identifier.PatientName)))
        for n in range(3):
            yield keys(
                StudyInstanceUID=f"1.2.{n}",
                PatientName="Müller^Ä",
                SpecificCharacterSet="ISO_IR 100",
            )

    wanted = keys(PatientName="Müller*", SpecificCharacterSet="ISO_IR 100", StudyInstanceUID="")
    async with (
        serving(FindScp(answer)) as port,
        open_association("127.0.0.1", port, request(syntax)) as association,
    ):
        *matches, final = await all_responses(association, encoder(wanted))
    assert asked == [(QueryModel.STUDY_ROOT, "HERE", "Müller*")]
    assert (final.status, final.identifier, final.pending) == (0x0000, None, False)
    found = [match.dataset() for match in matches]
    assert [str(d.StudyInstanceUID) for d in found] == ["1.2.0", "1.2.1", "1.2.2"]
    assert {str(d.PatientName) for d in found} == {"Müller^Ä"}
    assert {match.status for match in matches} == {0xFF00}
    with pytest.raises(ValueError, match="without an identifier"):
        final.dataset()


async def test_find_with_bytes_and_in_another_model() -> None:
    def answer(model: QueryModel, _identifier: Dataset, _calling: str) -> list[Dataset]:
        return [keys(PatientID=model.name)]

    async with (
        serving(FindScp(answer)) as port,
        open_association("127.0.0.1", port, request()) as association,
    ):
        encoded = encode_identifier(keys(PatientID=""), EXPLICIT)
        async with find(association, QueryModel.PATIENT_ROOT, encoded) as responses:
            first = await anext(responses)
            assert first.dataset().PatientID == "PATIENT_ROOT"
            assert [r.status async for r in responses] == [0x0000]
        # the message ID is free again
        assert len(association.message_ids) == 0


async def test_find_needs_a_context() -> None:
    async with (
        serving(FindScp(nothing)) as port,
        open_association("127.0.0.1", port, request()) as association,
    ):
        with pytest.raises(NoAcceptedContext, match="Modality Worklist"):
            async with find(association, QueryModel.WORKLIST, KEYS):
                raise AssertionError


async def test_a_query_is_refused_with_the_status_and_comment_of_the_archive() -> None:
    async def answer(
        _model: QueryModel, _identifier: Dataset, _calling: str
    ) -> AsyncIterator[Dataset]:
        yield keys(StudyInstanceUID="1.2")
        raise QueryRefused(0xA900, "level missing")

    async with (
        serving(FindScp(answer)) as port,
        open_association("127.0.0.1", port, request()) as association,
    ):
        responses = await all_responses(association)
    assert [r.status for r in responses] == [0xFF00, 0xA900]
    assert responses[-1].error_comment == "level missing"


@pytest.mark.parametrize("where", ["call", "first", "encoding"])
async def test_an_error_of_the_archive_tells_no_patient_data(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(_model: QueryModel, _identifier: Dataset, _calling: str) -> Any:
        if where == "call":
            raise KeyError("Doe^Jane")
        return matches()

    def matches() -> Iterator[Dataset]:
        if where == "first":
            raise KeyError("Doe^Jane")
        dataset = keys(StudyInstanceUID="1.2")
        dataset.PatientName = "Doe^Jane"
        dataset.Rows = 70_000  # no US
        yield dataset

    async with (
        serving(FindScp(answer)) as port,
        open_association("127.0.0.1", port, request()) as association,
    ):
        (final,) = await all_responses(association)
        assert final.status >> 12 == 0xC
        assert final.error_comment
        assert "Doe" not in final.error_comment
        assert await all_responses(association) != []  # the association goes on
    assert "Doe" not in caplog.text


@pytest.mark.parametrize(
    ("identifier", "comment"),
    [
        (b"\x08\x00\x52\x00CS\xff\xff", "ends within"),
        (b"\x08\x00\x52\x00CS", "offset 0"),
        (b"\x00" * (IDENTIFIER_LENGTH_MAX + 2), "above"),
        (b"\x10\x00\x20\x00LO\x00\x00" * 5000, "too many elements"),
    ],
)
async def test_an_identifier_that_is_none(identifier: bytes, comment: str) -> None:
    async with (
        serving(FindScp(nothing)) as port,
        open_association("127.0.0.1", port, request()) as association,
    ):
        (final,) = await all_responses(association, identifier)
        assert final.status == 0xA900
        assert comment in final.error_comment
        assert [r.status for r in await all_responses(association)] == [0x0000]


async def test_a_sequence_of_any_depth_is_refused() -> None:
    deep = b"".join([b"\x40\x00\x00\x01\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"] * 5000)
    async with (
        serving(FindScp(nothing)) as port,
        open_association("127.0.0.1", port, request(IMPLICIT)) as association,
    ):
        (final,) = await all_responses(association, deep)
    assert final.status == 0xA900
    assert "nested" in final.error_comment


async def test_a_large_identifier_is_read_by_a_thread() -> None:
    seen: list[int] = []

    def answer(_model: QueryModel, identifier: Dataset, _calling: str) -> list[Dataset]:
        seen.append(len(identifier.SOPInstanceUID))
        return []

    wanted = keys(SOPInstanceUID=[f"1.2.840.{n}.{n}" for n in range(10_000)])
    async with (
        serving(FindScp(answer)) as port,
        open_association("127.0.0.1", port, request(IMPLICIT)) as association,
    ):
        assert [r.status for r in await all_responses(association, encoder(wanted))] == [0]
    assert seen == [10_000]


async def test_a_limit_of_matches_is_said() -> None:
    def answer(_model: QueryModel, _identifier: Dataset, _calling: str) -> Iterator[Dataset]:
        for n in range(100):
            yield keys(StudyInstanceUID=f"1.2.{n}")

    async with (
        serving(FindScp(answer, matches_max=5)) as port,
        open_association("127.0.0.1", port, request()) as association,
    ):
        *matches, final = await all_responses(association)
    assert len(matches) == 5
    assert final.status == 0xA700
    assert "limit 5" in final.error_comment


async def endless(_m: QueryModel, _i: Dataset, _c: str) -> AsyncIterator[Dataset]:
    n = 0
    while True:
        n += 1
        yield keys(StudyInstanceUID=f"1.2.{n}", PatientName="x" * 60)
        await trio.lowlevel.checkpoint()


async def test_cancel_after_some_matches() -> None:
    with trio.fail_after(20):
        async with (
            serving(FindScp(endless)) as port,
            open_association("127.0.0.1", port, request()) as association,
        ):
            *matches, final = await all_responses(association, cancel_after=10)
            assert final.status == 0xFE00
            assert len(matches) >= 10
            assert [r.status for r in await all_responses(association, cancel_after=1)][
                -1
            ] == 0xFE00


async def test_a_block_left_early_cancels_and_drains() -> None:
    with trio.fail_after(20):
        async with (
            serving(FindScp(endless)) as port,
            open_association("127.0.0.1", port, request()) as association,
        ):
            async with find(association, QueryModel.STUDY_ROOT, KEYS) as responses:
                assert (await anext(responses)).pending
            assert len(association.message_ids) == 0
            (final,) = [
                r for r in await all_responses(association, cancel_after=1) if not r.pending
            ]
            assert final.status == 0xFE00


async def test_a_block_left_by_an_error_aborts() -> None:
    with trio.fail_after(20):
        async with serving(FindScp(endless)) as port:
            with pytest.raises(ZeroDivisionError):
                async with (
                    open_association("127.0.0.1", port, request()) as association,
                    find(association, QueryModel.STUDY_ROOT, KEYS) as responses,
                ):
                    async for _ in responses:
                        raise ZeroDivisionError
            async with open_association("127.0.0.1", port, request()) as association:
                assert await all_responses(association, cancel_after=1)


async def test_cancels_for_nothing_are_ignored_and_a_request_waits_its_turn() -> None:
    async def answer(_m: QueryModel, _i: Dataset, _c: str) -> AsyncIterator[Dataset]:
        for n in range(200):
            yield keys(StudyInstanceUID=f"1.2.{n}", PatientName="x" * 60)
            await trio.lowlevel.checkpoint()

    async with (
        serving(FindScp(answer)) as port,
        open_association("127.0.0.1", port, request()) as association,
    ):
        data = KEYS(EXPLICIT)
        find_rq = CFindRq(message_id=1, affected_sop_class_uid=uids.STUDY_ROOT_FIND)
        association.queue(STUDY_FIND, CCancelRq(message_id_being_responded_to=1))
        association.queue(STUDY_FIND, find_rq, data)
        association.queue(STUDY_FIND, CCancelRq(message_id_being_responded_to=77))
        association.queue(9, CEchoRq(message_id=2, affected_sop_class_uid=uids.VERIFICATION))
        association.queue(
            STUDY_FIND, CFindRq(message_id=3, affected_sop_class_uid=uids.STUDY_ROOT_FIND), data
        )
        await association.flush()
        finals: list[tuple[str, int, int]] = []
        while len(finals) < 3:
            incoming = await association.receive()
            assert incoming is not None
            message = incoming.message
            if message.has_dataset:
                await association.read_dataset(None)
            if isinstance(message, CFindRsp | CEchoRsp) and message.status != 0xFF00:
                kind = type(message).__name__
                finals.append((kind, message.message_id_being_responded_to, message.status))
    assert finals == [("CFindRsp", 1, 0), ("CEchoRsp", 2, 0), ("CFindRsp", 3, 0)]


async def test_a_release_in_the_midst_of_a_find_ends_the_association_alone() -> None:
    closed = trio.Event()

    async def answer(_m: QueryModel, _i: Dataset, _c: str) -> AsyncIterator[Dataset]:
        try:
            while True:
                yield keys(StudyInstanceUID="1.2", PatientName="x" * 60)
                await trio.lowlevel.checkpoint()
        finally:
            closed.set()

    with trio.fail_after(20):
        async with serving(FindScp(answer)) as port:
            async with open_association("127.0.0.1", port, request()) as association:
                await association.send(
                    STUDY_FIND,
                    CFindRq(message_id=1, affected_sop_class_uid=uids.STUDY_ROOT_FIND),
                    KEYS(EXPLICIT),
                )
            await closed.wait()
            async with open_association("127.0.0.1", port, request()) as association:
                assert await all_responses(association, cancel_after=1)


async def raw_find(
    association: Association, message: CFindRq, data: bytes | None
) -> tuple[int, str | None]:
    await association.send(STUDY_FIND, message, data)
    incoming = await association.receive()
    assert incoming is not None
    assert isinstance(incoming.message, CFindRsp)
    return incoming.message.status, incoming.message.error_comment


async def test_requests_that_do_not_fit_their_context() -> None:
    async with (
        serving(FindScp(nothing, models=[QueryModel.PATIENT_ROOT])) as port,
        open_association("127.0.0.1", port, request()) as association,
    ):
        data = KEYS(EXPLICIT)
        study = uids.STUDY_ROOT_FIND
        other = CFindRq(message_id=1, affected_sop_class_uid=uids.PATIENT_ROOT_FIND)
        empty = CFindRq(message_id=2, affected_sop_class_uid=study, has_dataset=False)
        model = CFindRq(message_id=3, affected_sop_class_uid=study)
        assert (await raw_find(association, other, data))[0] == 0x0122
        assert await raw_find(association, empty, None) == (0xA900, "no identifier")
        assert (await raw_find(association, model, data))[0] == 0x0122


def scripted(script: Callable[[Association, Incoming], Awaitable[None]]) -> Any:
    """An SCP that reads requests with their datasets, and does with each what `script` says."""

    async def serve(association: Association) -> None:
        while (incoming := await association.receive()) is not None:
            if incoming.message.has_dataset:
                await association.read_dataset(None)
            await script(association, incoming)
            await association.flush()

    return serve


def find_rsp(message_id: int, status: int, has_dataset: bool = False) -> CFindRsp:
    return CFindRsp(
        message_id_being_responded_to=message_id, status=status, has_dataset=has_dataset
    )


async def test_a_stray_request_of_the_scp_gets_0211() -> None:
    answered: list[Any] = []

    async def script(association: Association, incoming: Incoming) -> None:
        if isinstance(incoming.message, CEchoRsp):
            answered.append(incoming.message.status)
            association.queue(STUDY_FIND, find_rsp(1, 0x0000))
        else:
            association.queue(9, CEchoRq(message_id=50, affected_sop_class_uid=uids.VERIFICATION))

    async with (
        serving(scripted(script)) as port,
        open_association("127.0.0.1", port, request()) as association,
    ):
        assert [r.status for r in await all_responses(association)] == [0]
    assert answered == [0x0211]


@pytest.mark.parametrize("what", ["id", "kind", "size"])
async def test_responses_that_break_the_protocol(what: str) -> None:
    async def script(association: Association, _incoming: Incoming) -> None:
        if what == "id":
            association.queue(STUDY_FIND, find_rsp(99, 0x0000))
        elif what == "kind":
            association.queue(STUDY_FIND, CGetRsp(message_id_being_responded_to=1, status=0))
        else:
            too_much = bytes(IDENTIFIER_LENGTH_MAX + 2)
            association.queue(STUDY_FIND, find_rsp(1, 0xFF00, True), too_much)

    async with serving(scripted(script)) as port:
        with pytest.raises(RemoteProtocolError) as caught:
            async with open_association("127.0.0.1", port, request()) as association:
                await all_responses(association)
    assert (caught.value.source, caught.value.reason) == (0, 0)


async def test_a_release_instead_of_an_answer() -> None:
    async def serve(association: Association) -> None:
        await association.receive()
        await association.read_dataset(None)
        await association.release()

    async with serving(serve) as port:
        with pytest.raises(AssociationAborted, match="released"):
            async with open_association("127.0.0.1", port, request()) as association:
                await all_responses(association)


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
) -> GetResponse:
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
    assert result == GetResponse(status=0, completed=30, failed=0, warning=0)
    assert kept.instances == {h.sop_instance_uid: h.dataset for h in held}
    assert [(h.opened, h.closed) for h in held] == [(1, 1)] * 30


async def test_get_of_nothing() -> None:
    async with (
        serving(GetScp(selecting([]))) as port,
        open_association("127.0.0.1", port, request()) as association,
    ):
        result = await retrieve(association)
    assert result == GetResponse(status=0, completed=0, failed=0, warning=0)


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


async def test_an_event_that_is_never_set_changes_nothing() -> None:
    held = [Held(sop_instance_uid="1.2.3")]
    async with (
        serving(GetScp(selecting(held))) as port,
        open_association("127.0.0.1", port, request()) as association,
    ):
        assert (await retrieve(association, cancel=trio.Event())).completed == 1


async def test_progress_is_told_about_once_a_second() -> None:
    held = [Held(sop_instance_uid=f"1.2.{n}") for n in range(4)]
    seen: list[GetResponse] = []
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
        QueryRefused(0xA900, "no unique key"),
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
    assert answers == {1: 0x0000, 2: 0xA700, 3: 0x0000}
    assert stored == 3


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
    ]
    assert [m.get_uid for m in QueryModel] == [
        "1.2.840.10008.5.1.4.1.2.1.3",
        "1.2.840.10008.5.1.4.1.2.2.3",
        "1.2.840.10008.5.1.4.1.2.3.3",
        "",
    ]
    assert QueryModel.STUDY_ROOT.move_uid == "1.2.840.10008.5.1.4.1.2.2.2"


def test_identifiers_know_no_compressed_syntax() -> None:
    with pytest.raises(ValueError, match="no transfer syntax for identifiers"):
        decode_identifier(b"", uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN)
