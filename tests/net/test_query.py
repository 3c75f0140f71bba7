"""C-FIND with both ends in one process: every way to answer, to refuse and to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.lowlevel

from dcmhaul import uids
from dcmhaul.errors import (
    AssociationAborted,
    NoAcceptedContext,
    RemoteProtocolError,
)
from dcmhaul.net import Association, Incoming, open_association
from dcmhaul.protocol.dimse import (
    CCancelRq,
    CEchoRq,
    CEchoRsp,
    CFindRq,
    CFindRsp,
    CGetRsp,
)
from dcmhaul.services.identifiers import (
    IDENTIFIER_LENGTH_MAX,
    encode_identifier,
)
from dcmhaul.services.query import FindScp, QueryModel, QueryRefused, find
from tests.net.conversation import (
    BIG_ENDIAN,
    EXPLICIT,
    IMPLICIT,
    KEYS,
    STUDY_FIND,
    all_responses,
    encoder,
    find_rsp,
    keys,
    nothing,
    request,
    scripted,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from pydicom.dataset import Dataset


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
        raise QueryRefused(0xA900, "level missing", (0x00080052,))

    async with (
        serving(FindScp(answer)) as port,
        open_association("127.0.0.1", port, request()) as association,
    ):
        responses = await all_responses(association)
    assert [r.status for r in responses] == [0xFF00, 0xA900]
    assert responses[-1].error_comment == "level missing"
    assert responses[-1].offending == (0x00080052,)


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
        assert final.status == 0xC000
        assert comment in final.error_comment
        assert [r.status for r in await all_responses(association)] == [0x0000]


async def test_a_sequence_of_any_depth_is_refused() -> None:
    deep = b"".join([b"\x40\x00\x00\x01\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"] * 5000)
    async with (
        serving(FindScp(nothing)) as port,
        open_association("127.0.0.1", port, request(IMPLICIT)) as association,
    ):
        (final,) = await all_responses(association, deep)
    assert final.status == 0xC000
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
