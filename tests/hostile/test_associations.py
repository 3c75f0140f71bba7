"""On an open association: broken PDUs, PDVs, command sets and message flows."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from dcmhaul.net import association as association_module
from dcmhaul.objects.instances import StoreReply
from tests.hostile.harness import (
    Accepting,
    expect,
    expect_abort,
    expect_refused_instance,
    expect_release,
    target,
)
from tests.hostile.octets import (
    BIG_ENDIAN,
    CT,
    DATASET,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    MR,
    VERIFICATION,
    abort,
    associate_rq,
    big,
    command_pdu,
    context,
    data_pdu,
    dataset_of,
    echo_rq,
    element,
    encoded,
    item,
    p_data,
    pdu,
    pdv,
    reject,
    release_rp,
    release_rq,
    store_rq,
    user_information,
)
from tests.reference import codec
from tests.reference.codec import command_element, encode_command

if TYPE_CHECKING:
    from pathlib import Path

    from dcmhaul.net import DatasetSlices
    from dcmhaul.objects.instances import IncomingInstance

STORED = "1.2.3"

STORE_BEGUN = command_pdu(1, store_rq())
HALF_COMMAND = p_data(pdv(1, 1, store_rq()[:40]))
HALF_DATASET = STORE_BEGUN + p_data(pdv(1, 0, DATASET[:10]))
AC = pdu(2, associate_rq()[6:])

# What is sent on an open association, and the A-ABORT that answers it.
ABORTED: dict[str, tuple[bytes, tuple[int, int]]] = {
    "row 20 second RQ": (associate_rq(), (2, 2)),
    "row 20 AC": (AC, (2, 2)),
    "row 20 AC of nothing": (bytes.fromhex("0200 00000004 00000000"), (2, 2)),
    "row 20 AC in place of a dataset": (STORE_BEGUN + AC, (2, 2)),
    "row 20 AC within a dataset": (HALF_DATASET + AC, (2, 2)),
    "row 20 RJ": (reject(1, 1, 1), (2, 2)),
    "row 20 RELEASE-RP": (release_rp, (2, 2)),
    **{
        f"row 21 type 0x{kind:02x}": (bytes([kind, 0]) + bytes.fromhex("00000002 0000"), (2, 1))
        for kind in (0x00, 0x08, 0x53, 0xFF)
    },
    "row 21 type 0x53 within a dataset": (
        HALF_DATASET + bytes.fromhex("5300 00000002 0000"),
        (2, 1),
    ),
    "row 22 RELEASE-RQ of 5": (pdu(5, bytes(5)), (2, 6)),
    "row 22 RELEASE-RQ of 0": (pdu(5, b""), (2, 6)),
    "row 22 RELEASE-RQ of 4 GiB": (bytes.fromhex("0500ffffffff"), (2, 6)),
    "row 22 RELEASE-RP of 3": (pdu(6, bytes(3)), (2, 6)),
    "row 22 RJ of 8": (pdu(3, bytes(8)), (2, 6)),
    "row 23 RELEASE-RQ within a command": (HALF_COMMAND + release_rq, (0, 0)),
    "row 23 RELEASE-RQ in place of a dataset": (STORE_BEGUN + release_rq, (0, 0)),
    "row 23 RELEASE-RQ within a dataset": (HALF_DATASET + release_rq, (0, 0)),
    "row 24 P-DATA of 4 GiB": (bytes.fromhex("0400ffffffff"), (2, 6)),
    **{f"row 25 P-DATA of {n}": (pdu(4, bytes(n)), (2, 6)) for n in range(6)},
    "row 25 PDV of 0": (bytes.fromhex("0400 00000004 00000000"), (2, 6)),
    "row 25 PDV of 0, with a header": (bytes.fromhex("0400 00000006 00000000 0103"), (2, 6)),
    "row 25 PDV of 1": (bytes.fromhex("0400 00000005 00000001 01"), (2, 6)),
    "row 25 PDV of 1, with a header": (bytes.fromhex("0400 00000006 00000001 0103"), (2, 6)),
    "row 25 PDV of all ones": (bytes.fromhex("0400 00000006 ffffffff 0100"), (2, 6)),
    "row 25 PDV one over": (bytes.fromhex("0400 00000008 00000005 0103 0000"), (2, 6)),
    "row 25 octets behind the last PDV": (
        p_data(pdv(1, 1, store_rq()[:40]) + bytes(5)),
        (2, 6),
    ),
    "row 26 context ID 0": (command_pdu(0, echo_rq()), (2, 5)),
    "row 26 context ID even": (command_pdu(2, echo_rq()), (2, 5)),
    "row 26 context never proposed": (command_pdu(255, echo_rq()), (2, 5)),
    "row 26 context rejected": (command_pdu(5, echo_rq()), (2, 5)),
    "row 27 context changes within the command": (
        p_data(pdv(1, 1, store_rq()[:40])) + p_data(pdv(7, 3, store_rq()[40:])),
        (2, 5),
    ),
    "row 27 context changes before the dataset": (STORE_BEGUN + data_pdu(7, DATASET), (2, 5)),
    "row 27 context changes within the dataset": (
        HALF_DATASET + data_pdu(7, DATASET[10:]),
        (2, 5),
    ),
    "row 27 dataset first": (data_pdu(1, DATASET), (2, 5)),
    "row 27 dataset within a command": (HALF_COMMAND + data_pdu(1, DATASET), (2, 5)),
    "row 27 command within a dataset": (HALF_DATASET + command_pdu(1, store_rq(2)), (2, 5)),
    "row 28 dataset that was not announced": (
        command_pdu(1, store_rq(CommandDataSetType=0x0101)) + data_pdu(1, DATASET),
        (2, 5),
    ),
    "row 28 command in place of a dataset": (
        command_pdu(
            1,
            encode_command(
                {
                    "AffectedSOPClassUID": CT,
                    "CommandField": 0x0020,
                    "MessageID": 1,
                    "Priority": 0,
                    "CommandDataSetType": 0x0102,
                }
            ),
        )
        + command_pdu(1, store_rq(2)),
        (2, 5),
    ),
    "row 35 unknown CommandField": (command_pdu(1, store_rq(CommandField=0x7777)), (0, 0)),
    "row 35 a response to nothing": (
        command_pdu(
            1,
            encode_command(
                {
                    "AffectedSOPClassUID": CT,
                    "CommandField": 0x8001,
                    "MessageIDBeingRespondedTo": 1,
                    "CommandDataSetType": 0x0101,
                    "Status": 0,
                }
            ),
        ),
        (0, 0),
    ),
}


@pytest.mark.parametrize(("sent", "expected"), ABORTED.values(), ids=ABORTED.keys())
async def test_aborted(accepting: Accepting, sent: bytes, expected: tuple[int, int]) -> None:
    async with accepting() as acceptor, acceptor.connect() as peer:
        await peer.associate()
        await peer.send(sent)
        await expect_abort(acceptor, peer, *expected)


@pytest.mark.parametrize(
    "sent",
    [abort(0, 0), abort(2, 0), pdu(7, b""), pdu(7, bytes(5)), bytes.fromhex("0700ffffffff")],
    ids=bytes.hex,
)
async def test_row_22_an_abort_of_any_length_is_not_answered(
    accepting: Accepting, sent: bytes
) -> None:
    async with accepting() as acceptor, acceptor.connect() as peer:
        await peer.associate()
        await peer.send(HALF_DATASET + sent)
        await expect(acceptor, peer)


@pytest.mark.parametrize("over", [0, 1, 12])
async def test_row_24_a_few_octets_above_the_maximum_are_taken(
    accepting: Accepting, over: int
) -> None:
    dataset = dataset_of(4096 - 6 + over)
    async with accepting(pdu_length_max=4096) as acceptor, acceptor.connect() as peer:
        await peer.associate()
        assert await peer.store(store_rq(), data_pdu(1, dataset)) == 0x0000
        acceptor.stored[STORED] = dataset
        await expect_release(acceptor, peer)
        assert acceptor.observer.oversized_pdus == int(over > 0)


@pytest.mark.parametrize(("over", "strict"), [(13, False), (1, True)])
async def test_row_24_more_above_the_maximum_is_not(
    accepting: Accepting, over: int, strict: bool
) -> None:
    acceptor_of = accepting(pdu_length_max=4096, strict=strict)
    async with acceptor_of as acceptor, acceptor.connect() as peer:
        await peer.associate()
        await peer.send(STORE_BEGUN + data_pdu(1, bytes(4096 - 6 + over)))
        await expect_abort(acceptor, peer, 2, 6)


async def test_row_29_a_command_set_that_never_ends(accepting: Accepting) -> None:
    chunk = p_data(pdv(1, 1, command_element(0x0902, bytes(4000))))
    async with accepting() as acceptor, acceptor.connect() as peer:
        await peer.associate()
        answer = await peer.flood(chunk, 1000)
        await expect_abort(acceptor, peer, 0, 0, answer)


@pytest.fixture
def small_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(association_module, "DATASET_LENGTH_MAX", 256 * 1024)
    monkeypatch.setattr(association_module, "OVERLONG_DRAIN_BYTES", 1024 * 1024)


@pytest.mark.usefixtures("small_datasets")
async def test_row_30_a_dataset_above_the_limit_that_ends(accepting: Accepting) -> None:
    part = p_data(pdv(1, 0, bytes(100_000)))
    async with accepting() as acceptor, acceptor.connect() as peer:
        await peer.associate()
        assert await peer.store(store_rq(), part * 8, data_pdu(1, b"")) == 0xA700
        assert await peer.store(store_rq(2), data_pdu(1, DATASET)) == 0x0000
        acceptor.stored[STORED] = DATASET
        await expect_release(acceptor, peer)


@pytest.mark.usefixtures("small_datasets")
async def test_row_30_a_dataset_that_never_ends(accepting: Accepting) -> None:
    chunk = p_data(pdv(1, 0, bytes(100_000)))
    async with accepting() as acceptor, acceptor.connect() as peer:
        await peer.associate()
        await peer.send(STORE_BEGUN)
        answer = await peer.flood(chunk, 1000)
        await expect_abort(acceptor, peer, 0, 0, answer)


@pytest.mark.parametrize("size", [0, 1, 2, 62])
async def test_row_31_a_flood_of_tiny_fragments(accepting: Accepting, size: int) -> None:
    chunk = p_data(*[pdv(1, 0, bytes(size))] * 1000)
    async with accepting() as acceptor, acceptor.connect() as peer:
        await peer.associate()
        await peer.send(STORE_BEGUN)
        answer = await peer.flood(chunk, 100_000)
        await expect_abort(acceptor, peer, 0, 0, answer)


async def test_row_31_tiny_fragments_of_a_small_dataset_are_taken(accepting: Accepting) -> None:
    pdus = [p_data(pdv(1, 0, DATASET[i : i + 2])) for i in range(0, len(DATASET), 2)]
    async with accepting() as acceptor, acceptor.connect() as peer:
        await peer.associate()
        assert await peer.store(store_rq(), *pdus, data_pdu(1, b"")) == 0x0000
        acceptor.stored[STORED] = DATASET
        await expect_release(acceptor, peer)


async def test_row_32_odd_fragments_are_taken_as_they_are(accepting: Accepting) -> None:
    parts = [DATASET[:1], DATASET[1:8], DATASET[8:11]]
    pdus = [p_data(pdv(1, 0, part)) for part in parts]
    async with accepting() as acceptor, acceptor.connect() as peer:
        await peer.associate()
        command = store_rq()
        await peer.send(p_data(pdv(1, 1, command[:33])))
        await peer.send(p_data(pdv(1, 3, command[33:])))
        await peer.send(b"".join(pdus) + data_pdu(1, DATASET[11:]))
        assert (await peer.response())["Status"] == 0x0000
        acceptor.stored[STORED] = DATASET
        await expect_release(acceptor, peer)
        assert acceptor.observer.odd_fragments == 6


async def test_row_32_odd_fragments_are_refused_where_strict(accepting: Accepting) -> None:
    async with accepting(strict=True) as acceptor, acceptor.connect() as peer:
        await peer.associate()
        await peer.send(STORE_BEGUN + p_data(pdv(1, 0, DATASET[:11])))
        await expect_abort(acceptor, peer, 2, 6)


async def test_row_33_reserved_bits_of_the_control_header_mean_nothing(
    accepting: Accepting,
) -> None:
    async with accepting() as acceptor, acceptor.connect() as peer:
        await peer.associate()
        await peer.send(p_data(pdv(1, 0xFF, store_rq())))
        await peer.send(p_data(pdv(1, 0xFC, DATASET[:10])) + p_data(pdv(1, 0xFE, DATASET[10:])))
        assert (await peer.response())["Status"] == 0x0000
        acceptor.stored[STORED] = DATASET
        await expect_release(acceptor, peer)


EXPLICIT_VR = b"\0\0\0\0UL\4\0\x3e\0\0\0" + b"\0\0\2\0UI\x1a\0" + CT.encode() + b"\0"
BROKEN_COMMANDS: dict[str, bytes] = {
    "nothing": b"",
    "no CommandField": store_rq(CommandField=None),
    "no MessageID": store_rq(MessageID=None),
    "no CommandDataSetType": store_rq(CommandDataSetType=None),
    "CommandField empty": store_rq(CommandField=None) + command_element(0x0100, b""),
    "duplicate tag": store_rq() + command_element(0x0110, b"\2\0"),
    "wrong group": store_rq() + command_element(0x0010, b"A^B ", group=0x0010),
    "dataset in place of the command": DATASET,
    "explicit VR": EXPLICIT_VR,
    "odd length": store_rq() + command_element(0x5010, b"odd"),
    "overrun": store_rq()[:-2],
    "overrun by all ones": store_rq() + bytes.fromhex("00001050ffffffff"),
    "ends inside a header": store_rq() + bytes(3),
    "CommandField of four octets": store_rq(CommandField=None)
    + command_element(0x0100, b"\1\0\0\0"),
}


@pytest.mark.parametrize("command", BROKEN_COMMANDS.values(), ids=BROKEN_COMMANDS.keys())
async def test_row_34_a_broken_command_set(accepting: Accepting, command: bytes) -> None:
    async with accepting() as acceptor, acceptor.connect() as peer:
        await peer.associate()
        await peer.send(command_pdu(1, command))
        await expect_abort(acceptor, peer, 0, 0)


FIND_RQ = {
    "AffectedSOPClassUID": CT,
    "CommandField": 0x0020,
    "MessageID": 9,
    "Priority": 0,
    "CommandDataSetType": 1,
}


PRIVATE = "1.3.6.1.4.1.99999.2"


async def test_row_35_an_echo_on_a_class_that_nobody_knows(accepting: Accepting) -> None:
    rq = associate_rq(contexts=context(1, [PRIVATE], [IMPLICIT]))
    acceptor_of = accepting(accept_any_storage=True)
    async with acceptor_of as acceptor, acceptor.connect() as peer:
        await peer.associate(rq)
        await peer.send(command_pdu(1, echo_rq(AffectedSOPClassUID=PRIVATE)))
        assert (await peer.response())["Status"] == 0x0211
        command = store_rq(AffectedSOPClassUID=PRIVATE)
        assert await peer.store(command, data_pdu(1, DATASET)) == 0x0000
        acceptor.stored[STORED] = DATASET
        await expect_release(acceptor, peer)


@pytest.mark.parametrize(
    ("context_id", "command", "dataset"),
    [
        (1, encode_command(FIND_RQ), data_pdu(1, DATASET)),
        (1, encode_command({**FIND_RQ, "CommandDataSetType": 0x0101}), b""),
        (1, echo_rq(9, AffectedSOPClassUID=CT), b""),
        (3, store_rq(9, AffectedSOPClassUID=VERIFICATION), data_pdu(3, DATASET)),
    ],
    ids=["C-FIND on CT", "C-FIND without identifier", "C-ECHO on CT", "C-STORE on Verification"],
)
async def test_row_35_an_operation_that_the_class_does_not_have(
    accepting: Accepting, context_id: int, command: bytes, dataset: bytes
) -> None:
    async with accepting() as acceptor, acceptor.connect() as peer:
        await peer.associate()
        await peer.send(command_pdu(context_id, command) + dataset)
        response = await peer.response()
        assert response["Status"] == 0x0211
        assert response["MessageIDBeingRespondedTo"] == 9
        await expect_release(acceptor, peer)


async def test_row_36_another_class_than_that_of_the_context(accepting: Accepting) -> None:
    async with accepting() as acceptor, acceptor.connect() as peer:
        await peer.associate()
        command = store_rq(AffectedSOPClassUID=MR)
        assert await peer.store(command, data_pdu(1, DATASET)) == 0x0122
        assert await peer.store(store_rq(2), data_pdu(1, DATASET)) == 0x0000
        acceptor.stored[STORED] = DATASET
        await expect_release(acceptor, peer)


class Gate:
    """Sinks that commit only when the gate is open."""

    def __init__(self) -> None:
        self.open = trio.Event()
        self.begun: list[str] = []

    def __call__(self, incoming: IncomingInstance) -> GatedSink:
        self.begun.append(incoming.sop_instance_uid)
        return GatedSink(self)


class GatedSink:
    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    async def write(self, data: DatasetSlices) -> None:
        pass

    async def commit(self) -> StoreReply:
        await self.gate.open.wait()
        return StoreReply(status=0x0000)

    def discard(self) -> None:
        pass


def with_window(window: int) -> bytes:
    return associate_rq(user=user_information(item(0x53, big(window, 2) + big(1, 2))))


def store(message_id: int, instance: str) -> bytes:
    return command_pdu(1, store_rq(message_id, instance)) + data_pdu(1, DATASET)


async def test_row_37_a_message_id_used_again_while_outstanding(tmp_path: Path) -> None:
    gate = Gate()
    async with target(tmp_path, sinks=gate) as acceptor, acceptor.connect() as peer:
        await peer.associate(with_window(8))
        await peer.send(store(5, "1.1") + store(5, "1.2"))
        duplicate = await peer.response()
        assert (duplicate["Status"], duplicate["MessageIDBeingRespondedTo"]) == (0x0210, 5)
        assert duplicate["AffectedSOPInstanceUID"] == "1.2"
        assert gate.begun == ["1.1"]
        gate.open.set()
        first = await peer.response()
        assert (first["Status"], first["AffectedSOPInstanceUID"]) == (0x0000, "1.1")
        # Answered, so it is free.
        assert await peer.store(store_rq(5, "1.3"), data_pdu(1, DATASET)) == 0x0000
        await expect_release(acceptor, peer)


async def test_row_37_more_requests_than_the_window(tmp_path: Path) -> None:
    """What is above the window is not read, so it costs nothing, and is answered in its turn."""
    gate = Gate()
    async with target(tmp_path, sinks=gate) as acceptor, acceptor.connect() as peer:
        await peer.associate(with_window(2))
        await peer.send(b"".join(store(i, f"1.{i}") for i in range(1, 21)))
        while len(gate.begun) < 2:
            await trio.sleep(0.01)
        await trio.testing.wait_all_tasks_blocked()
        assert len(gate.begun) <= 3
        gate.open.set()
        answered = [(await peer.response())["MessageIDBeingRespondedTo"] for _ in range(20)]
        assert sorted(answered) == list(range(1, 21))
        await expect_release(acceptor, peer)


async def test_row_37_requests_in_a_row_without_a_window(accepting: Accepting) -> None:
    async with accepting() as acceptor, acceptor.connect() as peer:
        await peer.associate()
        await peer.send(b"".join(command_pdu(3, echo_rq(i)) for i in (4, 4, 6)))
        answers = [await peer.response() for _ in range(3)]
        assert [a["MessageIDBeingRespondedTo"] for a in answers] == [4, 4, 6]
        assert {a["Status"] for a in answers} == {0x0000}
        await expect_release(acceptor, peer)


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("window", [1, 8])
async def test_a_peer_that_vanishes_with_requests_outstanding(
    tmp_path: Path, window: int, reset: bool
) -> None:
    gate = Gate()
    async with target(tmp_path, sinks=gate) as acceptor, acceptor.connect() as peer:
        await peer.associate(with_window(window))
        await peer.send(store(1, "1.1") + HALF_DATASET)
        while not gate.begun:
            await trio.sleep(0.01)
        if reset:
            peer.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await peer.stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        gate.open.set()
        await acceptor.assert_unharmed()


# -- rows 38 to 40: what an object says of itself


@pytest.mark.parametrize(
    "uid",
    [
        *("..", "../../../etc/pwn", "../../x", "/etc/pwn", "/etc/cron.d/x", "", "a" * 65, "1" * 65),
        *(
            "1.2.3\0/../..",
            "1.2\r\nX",
            "..\\..\\x",
            "%00",
            "1.2.%2e%2e",
            "1.2.3\xe9",
            "~",
            "1.2 .3",
        ),
    ],
    ids=ascii,
)
async def test_row_38_an_instance_uid_that_is_none(
    accepting: Accepting, uid: str, caplog: pytest.LogCaptureFixture
) -> None:
    raw = uid.encode("latin-1")
    command = store_rq(AffectedSOPInstanceUID=None) + command_element(
        0x1000, raw + bytes(len(raw) % 2)
    )
    async with accepting() as acceptor, acceptor.connect() as peer:
        await peer.associate()
        assert await peer.store(command, data_pdu(1, DATASET)) == 0x0117
        await expect_refused_instance(acceptor, peer)
    assert caplog.text == ""


def identified(sop_class: str | None, instance: str | None) -> bytes:
    """The dataset with UIDs of its own."""
    own = b""
    for tag, uid in ((0x00080016, sop_class), (0x00080018, instance)):
        if uid is not None:
            own += element(tag, "UI", uid.encode() + bytes(len(uid) % 2))
    return own + DATASET


@pytest.mark.parametrize("cut", [None, 2, 9], ids=["whole", "by two octets", "by nine octets"])
@pytest.mark.parametrize(
    ("sop_class", "instance"),
    [(CT, "1.2.4"), (MR, "1.2.3"), (None, "1.2.3.4"), (MR, None), (CT, ".."), (CT, "")],
    ids=ascii,
)
async def test_row_39_the_dataset_contradicts_the_command(
    accepting: Accepting, sop_class: str | None, instance: str | None, cut: int | None
) -> None:
    dataset = identified(sop_class, instance)
    size = cut or len(dataset)
    parts = [dataset[i : i + size] for i in range(0, len(dataset), size)]
    pdus = [*(p_data(pdv(1, 0, part)) for part in parts), data_pdu(1, b"")]
    async with accepting() as acceptor, acceptor.connect() as peer:
        await peer.associate()
        status = await peer.store(store_rq(), *pdus)
        if instance == "":
            # An empty value says nothing that could contradict.
            assert status == 0x0000
            acceptor.stored[STORED] = dataset
            await expect_release(acceptor, peer)
            return
        assert status == 0xA900
        await expect_refused_instance(acceptor, peer)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED])
@pytest.mark.parametrize("instance", ["1.2.3", "1.2.4"])
async def test_row_39_in_every_kind_of_syntax(
    accepting: Accepting, syntax: str, instance: str
) -> None:
    dataset = encoded(CT, instance, syntax)
    rq = associate_rq(contexts=context(1, [CT], [syntax]))
    async with accepting() as acceptor, acceptor.connect() as peer:
        await peer.associate(rq)
        status = await peer.store(store_rq(), data_pdu(1, dataset))
        if instance == "1.2.3":
            assert status == 0x0000
            acceptor.stored[STORED] = dataset
            await expect_release(acceptor, peer)
            return
        assert status == 0xA900
        await expect_refused_instance(acceptor, peer, encoded(CT, "1.2.99", syntax))


@pytest.mark.parametrize(
    "study", ["..", "../../etc", "/etc/cron.d/x", "1.2;rm -rf ~", "$(id)", "1.2\0.."]
)
@pytest.mark.parametrize(
    "name", ["/etc/passwd", "A;B", "$(touch pwned)", "`id`", "..^..", "A\r\nB"]
)
async def test_row_40_what_looks_like_a_path_or_a_command(
    accepting: Accepting, study: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a value like any other: stored as it came, under a name of our own."""
    monkeypatch.setattr(os, "system", None)
    monkeypatch.setattr(subprocess, "Popen", None)
    dataset = (
        element(0x00100010, "PN", name.encode() + b" " * (len(name) % 2))
        + element(0x0020000D, "UI", study.encode() + bytes(len(study) % 2))
        + element(0x0020000E, "UI", b"../../x\0")
    )
    async with accepting() as acceptor, acceptor.connect() as peer:
        await peer.associate()
        assert await peer.store(store_rq(), data_pdu(1, dataset)) == 0x0000
        acceptor.stored[STORED] = dataset
        await expect_release(acceptor, peer)


def test_the_dataset_of_these_tests_is_what_it_says() -> None:
    assert len(DATASET) % 2 == 0
    assert codec.split_pdus(STORE_BEGUN)[0][0] == 4
