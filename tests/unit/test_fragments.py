"""The send queue: PDUs as PS3.8 has them, against the slow codec, at every size that matters."""

from __future__ import annotations

import os
import socket
import struct
import tempfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmhaul.net._sockio import BUDGET_SPENT, DONE, WOULD_BLOCK, run_plan, take_plan
from dcmhaul.wire._fragments import SendQueue
from dcmhaul.wire._frames import COMMAND, DATA, NEED_DATA, PduReader

if TYPE_CHECKING:
    from pathlib import Path


def pdus(stream: bytes) -> list[bytes]:
    out = []
    while stream:
        size = 6 + int.from_bytes(stream[2:6], "big")
        out.append(stream[:size])
        stream = stream[size:]
    return out


def received(stream: bytes, pdu_length_max: int) -> list[object]:
    reader = PduReader(pdu_length_max, strict=True)
    reader.accept_p_data(True)
    reader.set_contexts([1])
    out: list[object] = []
    data = b""
    at = 0
    while True:
        at += reader.feed(stream[at:]) if at < len(stream) else 0
        while (code := reader.next()) != NEED_DATA:
            if code == COMMAND:
                out.append(reader.command)
                reader.expect_dataset(True)
            elif code == DATA:
                data += reader.copy_data()
                if reader.data_last:
                    out.append(data)
                    data = b""
        if at == len(stream):
            return out


@given(
    st.binary(min_size=1, max_size=300).map(lambda b: b * 2),
    st.binary(max_size=900).map(lambda b: b * 2),
    st.integers(min_value=8, max_value=400),
)
def test_what_is_cut_is_put_together_again(command: bytes, dataset: bytes, maximum: int) -> None:
    queue = SendQueue(maximum)
    queue.add_command(1, command)
    queue.add_data(1, dataset, True)
    stream = queue.drain()
    assert received(stream, maximum) == [command, dataset]
    for pdu in pdus(stream):
        assert len(pdu) - 6 <= maximum
        assert int.from_bytes(pdu[6:10], "big") == len(pdu) - 10  # one PDV a PDU
    assert queue.pdus_sent == len(pdus(stream))
    assert queue.dataset_bytes_sent == len(dataset)
    assert queue.pending == 0


def test_every_fragment_but_the_last_is_full_and_even() -> None:
    queue = SendQueue(16383)
    queue.add_data(1, bytes(50_000), True)
    sizes = [len(pdu) - 12 for pdu in pdus(queue.drain())]
    assert sizes == [16376, 16376, 16376, 50_000 - 3 * 16376]


def test_command_and_dataset_never_share_a_pdu() -> None:
    queue = SendQueue(0)
    queue.add_command(1, b"cc")
    queue.add_data(1, b"dd", True)
    assert [(p[10], p[11], p[12:]) for p in pdus(queue.drain())] == [(1, 3, b"cc"), (1, 2, b"dd")]


def test_a_dataset_in_parts() -> None:
    queue = SendQueue(100)
    queue.add_command(1, b"cc")
    queue.add_data(1, bytes(200), False)
    queue.add_data(1, b"", False)
    queue.add_data(1, b"xy", True)
    assert received(queue.drain(), 100)[1] == bytes(200) + b"xy"


def test_an_empty_dataset_is_one_empty_last_fragment() -> None:
    queue = SendQueue(0)
    queue.add_data(3, b"", True)
    assert queue.drain() == bytes.fromhex("040000000006 00000002 0302")


def test_files_and_memory_in_order() -> None:
    content = os.urandom(100_000)
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        queue = SendQueue(4096)
        queue.add_command(1, b"cc")
        queue.add_file(1, file.fileno(), 1000, 90_000, True, file)
        queue.add_bytes(bytes.fromhex("050000000004 00000000"))
        stream = queue.drain()
    assert stream.endswith(bytes.fromhex("050000000004 00000000"))
    assert received(stream[:-10], 4096)[1] == content[1000:91_000]


def test_more_than_one_plan() -> None:
    queue = SendQueue(8)
    dataset = os.urandom(5000)
    queue.add_command(1, b"cc")
    queue.add_data(1, dataset, True)
    for _ in range(40):
        queue.add_command(1, b"dd")
    got = queue.drain()
    assert len(pdus(got)) == 1 + 2500 + 40


def test_the_buffer_is_frozen_until_it_is_sent() -> None:
    queue = SendQueue(0)
    data = bytearray(b"abcd")
    queue.add_data(1, data, True)
    with pytest.raises(BufferError):
        data.extend(b"e")
    queue.drain()
    data.extend(b"e")


def test_clear_lets_go() -> None:
    queue = SendQueue(0)
    data = bytearray(b"abcd")
    queue.add_data(1, data, True)
    queue.clear()
    data.extend(b"e")
    assert queue.drain() == b""


def test_cut_with_nothing_half_out_forgets_all() -> None:
    queue = SendQueue(0)
    queue.add_data(1, b"abcd", True)
    assert not queue.cut()
    assert queue.drain() == b""


@pytest.mark.parametrize("maximum", [1, 6, 7])
def test_a_maximum_that_cannot_carry_a_fragment(maximum: int) -> None:
    with pytest.raises(ValueError, match="cannot carry"):
        SendQueue(maximum)


@pytest.mark.parametrize(
    ("maximum", "fragment"),
    [(8, 2), (9, 2), (16382, 16376), (2**31, 2**31 - 6), (2**32 - 1, 2**32 - 8), (0, 1048570)],
)
def test_the_largest_fragment(maximum: int, fragment: int) -> None:
    assert SendQueue(maximum).fragment_size_max == fragment


def test_odd_parts_are_refused() -> None:
    queue = SendQueue(0)
    with pytest.raises(ValueError, match="even"):
        queue.add_data(1, b"abc", False)
    with pytest.raises(ValueError, match="even"):
        queue.add_file(1, 0, 0, 3, False, None)
    with pytest.raises(ValueError, match="even"):
        queue.add_file(1, 0, -1, 4, True, None)


def fill(near: socket.socket, queue: SendQueue) -> None:
    """Sends until the socket is full; on a busy machine a step may end by its budget of time before."""
    while (status := run_plan(near.fileno(), queue)[0]) == BUDGET_SPENT:
        pass
    assert status == WOULD_BLOCK


def test_cut_keeps_the_rest_of_a_file_that_is_closed_before_it_is_sent(tmp_path: Path) -> None:
    """The descriptor may be another file's by then, and a last fragment would end a forged dataset."""
    ours, other = tmp_path / "ours", tmp_path / "other"
    ours.write_bytes(b"\xaa" * 1_000_000)
    other.write_bytes(b"\xbb" * 1_000_000)
    file = os.open(ours, os.O_RDONLY)
    queue = SendQueue(0)
    queue.add_file(1, file, 0, 1_000_000, True, None)
    near, far = socket.socketpair()
    with near, far, open(other, "rb") as stranger:
        near.setblocking(False)
        fill(near, queue)
        assert queue.cut()
        os.dup2(stranger.fileno(), file)
        queue.add_bytes(b"abort")
        rest = queue.drain()
        near.shutdown(socket.SHUT_WR)
        sent = b"".join(iter(lambda: far.recv(1 << 20), b""))
    os.close(file)
    header = b"\4\0" + struct.pack(">IIBB", 1_000_006, 1_000_002, 1, 2)
    assert sent + rest == header + b"\xaa" * 1_000_000 + b"abort"


def test_a_long_pdu_that_is_half_out_is_not_read_into_memory() -> None:
    queue = SendQueue(2**32 - 1)
    near, far = socket.socketpair()
    with near, far, tempfile.TemporaryFile() as file:
        file.truncate(2**31)
        queue.add_file(1, file.fileno(), 0, 2**31, True, file)
        near.setblocking(False)
        fill(near, queue)
        assert queue.cut()
        queue.add_bytes(b"abort")  # behind a PDU that is never completed
        header = far.recv(6)
        far.recv(1 << 20)
        with pytest.raises(EOFError):
            run_plan(near.fileno(), queue)
    assert header == b"\4\0" + struct.pack(">I", 2**31 + 6)


@pytest.mark.parametrize("maximum", [0, 16384])
@pytest.mark.parametrize("how", ["shorter", "unreadable"])
def test_a_file_that_cannot_be_read_further_sends_nothing_more(
    tmp_path: Path, how: str, maximum: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1_000_000))
    queue = SendQueue(maximum)
    near, far = socket.socketpair()
    with near, far, open(path, "r+b") as file, open(tmp_path / "other", "wb") as write_only:
        queue.add_file(1, file.fileno(), 0, 1_000_000, True, None)
        near.setblocking(False)
        fill(near, queue)
        if how == "shorter":
            file.truncate(10)
        else:
            os.dup2(write_only.fileno(), file.fileno())
        far.recv(1 << 20)
        with pytest.raises(EOFError, match="shorter, or unreadable"):
            run_plan(near.fileno(), queue)
        if queue.cut():
            queue.add_bytes(b"abort")  # behind a PDU that can never be completed
            with pytest.raises(EOFError):
                run_plan(near.fileno(), queue)
        else:
            assert maximum  # short PDUs may have ended just where the socket was full


@pytest.mark.parametrize("maximum", [4096, 16384, 49152])
def test_short_fragments_of_files_leave_together(tmp_path: Path, maximum: int) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(os.urandom(700_001))
    second.write_bytes(os.urandom(300_000))

    def queued(one: int, two: int) -> SendQueue:
        queue = SendQueue(maximum)
        for file, offset, length in ((one, 100, 699_901), (two, 0, 300_000), (one, 0, 20_000)):
            queue.add_command(1, bytes(120))
            queue.add_file(1, file, offset, length, True, None)
        return queue

    near, far = socket.socketpair()
    with first.open("rb") as one, second.open("rb") as two, near, far:
        near.setblocking(False)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 150_000)
        whole = queued(one.fileno(), two.fileno()).drain()
        queue = queued(one.fileno(), two.fileno())
        came = bytearray()
        calls = 0
        while queue.pending:
            _, sent, made = run_plan(near.fileno(), queue)
            came += far.recv(sent, socket.MSG_WAITALL)
            calls += made
        assert came == whole
        assert calls < len(whole) / maximum


def filled(file: int, length: int) -> SendQueue:
    """Messages from memory and from a file, more than one plan holds."""
    queue = SendQueue(64)
    for number in range(300):
        queue.add_command(1, bytes([number % 256]) * 100)
        if number % 3 == 0:
            queue.add_file(1, file, 0, length, True, None)
        else:
            queue.add_data(1, bytes(number), True)
    queue.add_bytes(b"release")
    return queue


@pytest.mark.parametrize("limit", [1, 7, 100, 65536])
def test_what_is_taken_in_steps_is_the_same(limit: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(200)))
    with path.open("rb") as file:
        whole = filled(file.fileno(), 200).drain()
        queue = filled(file.fileno(), 200)
        taken = []
        while step := take_plan(queue, limit):
            assert len(step) <= limit
            taken.append(step)
    assert b"".join(taken) == whole
    assert queue.pending == 0
    assert take_plan(queue, limit) == b""


def test_a_budget_that_is_spent_between_messages_lets_go_of_those_that_are_sent(
    tmp_path: Path,
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(200)))
    near, far = socket.socketpair()
    with path.open("rb") as file, near, far:
        near.setblocking(False)
        whole = filled(file.fileno(), 200).drain()
        queue = filled(file.fileno(), 200)
        came = b""
        spent = 0
        while queue.pending:
            status, sent, _ = run_plan(near.fileno(), queue, 5000)
            assert status in (DONE, BUDGET_SPENT)
            spent += status == BUDGET_SPENT
            came += far.recv(sent, socket.MSG_WAITALL)
    assert spent
    assert came == whole


def test_taking_stops_at_a_file_that_is_spent(tmp_path: Path) -> None:
    """What lies before it is taken first, and an A-ABORT can follow a whole PDU."""
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    queue = SendQueue(0)
    with path.open("rb") as file:
        queue.add_file(1, file.fileno(), 0, 300, True, None)
        assert take_plan(queue, 1000) == b"\4\0" + struct.pack(">IIBB", 306, 302, 1, 2) + bytes(100)
        with pytest.raises(EOFError, match="shorter, or unreadable"):
            take_plan(queue, 1000)
        assert queue.cut()
        queue.clear()
        queue.add_data(1, b"whole", True)
        assert len(take_plan(queue, 1000)) == 17
