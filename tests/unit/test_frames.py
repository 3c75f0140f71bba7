"""The frame reader: events, limits and faults, and that the way bytes are cut changes nothing."""

from __future__ import annotations

import hashlib
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcmhaul.errors import LocalProtocolError, RemoteProtocolError
from dcmhaul.wire._frames import BUILD, COMMAND, DATA, NEED_DATA, PDU, PduReader

SLAB = 524288


def pdu(pdu_type: int, body: bytes) -> bytes:
    return struct.pack(">BBI", pdu_type, 0, len(body)) + body


def pdv(fragment: bytes, *, context: int = 1, command: bool = False, last: bool = False) -> bytes:
    return struct.pack(">IBB", len(fragment) + 2, context, command | last << 1) + fragment


def p_data(*pdvs: bytes) -> bytes:
    return pdu(4, b"".join(pdvs))


def reader(pdu_length_max: int = 16384, *, strict: bool = False) -> PduReader:
    made = PduReader(pdu_length_max, strict=strict)
    made.accept_p_data(True)
    made.set_contexts([1, 3])
    return made


def events(r: PduReader, chunks: list[bytes], *, datasets: bool = True) -> list[object]:
    """What the reader says, with neighbouring dataset slices joined."""
    out: list[object] = []
    data = b""
    for chunk in chunks:
        view = memoryview(chunk)
        while True:
            taken = r.feed(view) if len(view) else 0
            view = view[taken:]
            while (code := r.next()) != NEED_DATA:
                if code == COMMAND:
                    out.append(("command", r.context_id, r.command))
                    r.expect_dataset(datasets)
                elif code == DATA:
                    data += r.copy_data()
                    if r.data_last:
                        out.append(("dataset", data))
                        data = b""
                else:
                    assert code == PDU
                    out.append(("pdu", r.pdu_type, r.pdu_body))
            if not len(view):
                break
    return out


def message(size: int, pdv_size: int = 1000) -> tuple[bytes, bytes]:
    """A command of two fragments and a dataset; returns the bytes and the dataset."""
    dataset = random.Random(size).randbytes(size)
    parts = [p_data(pdv(b"com", command=True)), p_data(pdv(b"mand", command=True, last=True))]
    cuts = range(0, max(size, 1), pdv_size)
    for i in cuts:
        fragment = dataset[i : i + pdv_size]
        parts.append(p_data(pdv(fragment, last=i + pdv_size >= size)))
    return b"".join(parts), dataset


def test_build_switches_are_visible() -> None:
    assert set(BUILD) == {"debug", "sanitize", "trace"}


def test_a_message_and_a_release() -> None:
    stream, dataset = message(2500)
    stream += pdu(5, b"\0\0\0\0")
    assert events(reader(), [stream]) == [
        ("command", 1, b"command"),
        ("dataset", dataset),
        ("pdu", 5, b"\0\0\0\0"),
    ]


@given(st.lists(st.integers(min_value=1, max_value=5000), max_size=30), st.integers(0, 9000))
def test_cuts_change_nothing(sizes: list[int], size: int) -> None:
    first, _ = message(size)
    second, _ = message(17, pdv_size=4)
    stream = first + pdu(2, b"x" * 700) + second + pdu(7, b"\0\0\2\1")
    chunks, at = [], 0
    for cut in sizes:
        chunks.append(stream[at : at + cut])
        at += cut
    chunks.append(stream[at:])
    assert events(reader(), chunks) == events(reader(), [stream])


def test_bytewise() -> None:
    stream, _ = message(300, pdv_size=100)
    assert events(reader(), [bytes([b]) for b in stream]) == events(reader(), [stream])


def test_several_pdvs_in_one_pdu() -> None:
    stream = p_data(pdv(b"comman", command=True, last=True), pdv(b"ab"), pdv(b"cd", last=True))
    assert events(reader(), [stream]) == [("command", 1, b"comman"), ("dataset", b"abcd")]


def test_an_empty_last_fragment_ends_the_dataset() -> None:
    stream = (
        p_data(pdv(b"c", command=True, last=True))
        + p_data(pdv(b"ab"))
        + p_data(pdv(b"", last=True))
    )
    assert events(reader(), [stream]) == [("command", 1, b"c"), ("dataset", b"ab")]


def test_a_dataset_larger_than_the_slab() -> None:
    stream, dataset = message(3 * SLAB + 11, pdv_size=16000)
    r = reader()
    assert events(r, [stream])[1] == ("dataset", dataset)
    assert r.dataset_bytes_received == len(dataset)
    assert r.odd_fragments > 0


def test_more_fragments_than_slices() -> None:
    stream, dataset = message(20_000, pdv_size=16)
    assert events(reader(), [stream])[1] == ("dataset", dataset)


def test_a_full_slab_takes_no_more_until_it_is_read() -> None:
    r = reader(0)
    stream, _ = message(SLAB * 2, pdv_size=SLAB * 2)
    assert r.feed(stream) == SLAB
    assert r.feed(stream[SLAB:]) == 0
    assert r.buffered == SLAB
    assert r.next() == COMMAND
    r.expect_dataset(True)
    assert r.feed(stream[SLAB:]) > 0  # what was read makes room


def test_slices_stay_where_they_are_while_they_are_out() -> None:
    r = reader(0)
    stream, dataset = message(SLAB * 2, pdv_size=SLAB * 2)
    r.feed(stream)
    assert r.next() == COMMAND
    r.expect_dataset(True)
    assert r.next() == DATA
    before = r.copy_data()
    assert r.feed(stream[SLAB:]) == 0  # the slab is full of slices that somebody looks at
    assert r.copy_data() == before == dataset[: len(before)]


def test_update_sees_each_byte_once_and_releases_its_views() -> None:
    stream, dataset = message(5000)
    r = reader()
    r.feed(stream)
    r.next()
    r.expect_dataset(True)
    digest = hashlib.sha256()
    kept: list[memoryview] = []
    while r.next() == DATA:
        r.update(digest.update)
        r.update(kept.append)
    assert digest.digest() == hashlib.sha256(dataset).digest()
    with pytest.raises(ValueError, match="released"):
        bytes(kept[0])


def test_a_skipped_dataset_is_counted_only() -> None:
    stream, dataset = message(5000)
    r = reader()
    r.feed(stream)
    assert r.next() == COMMAND
    r.expect_dataset(True, True)
    total = 0
    while r.next() == DATA:
        assert r.copy_data() == b""
        total += r.data_length
        if r.data_last:
            break
    assert total == len(dataset)


def test_skip_in_the_middle() -> None:
    stream, _ = message(9000)
    r = reader()
    r.feed(stream[:4000])
    r.next()
    r.expect_dataset(True)
    assert r.next() == DATA
    r.skip_dataset()
    r.feed(stream[4000:])
    assert r.next() == DATA
    assert r.copy_data() == b""


def test_park_returns_an_empty_slab_only() -> None:
    r = reader()
    r.park()
    stream, _ = message(10)
    r.feed(stream[:20])
    r.park()
    assert r.buffered == 20
    r.next()
    r.feed(stream[20:])
    assert r.next() == COMMAND
    r.expect_dataset(True)
    while r.next() != NEED_DATA:
        pass
    r.park()
    assert r.buffered == 0


def test_message_incomplete() -> None:
    def states(r: PduReader) -> list[bool]:
        seen = [r.message_incomplete]
        r.feed(p_data(pdv(b"c", command=True)))
        r.next()
        seen.append(r.message_incomplete)
        r.feed(p_data(pdv(b"d", command=True, last=True)))
        assert r.next() == COMMAND
        r.expect_dataset(False)
        seen.append(r.message_incomplete)
        return seen

    assert states(reader()) == [False, True, False]


def test_calls_out_of_order_are_our_own_bugs() -> None:
    r = reader()
    with pytest.raises(LocalProtocolError):
        r.expect_dataset(True)
    r.feed(p_data(pdv(b"c", command=True, last=True)))
    r.next()
    with pytest.raises(LocalProtocolError):
        r.next()


@pytest.mark.parametrize("octets", [pdu(7, b""), pdu(7, b"123"), b"\7\0\xff\xff\xff\xff"])
def test_an_abort_of_any_length_is_an_abort_at_once(octets: bytes) -> None:
    r = reader()
    r.feed(octets)
    assert r.next() == PDU
    assert (r.pdu_type, r.pdu_body) == (7, b"")


COMMAND_1 = p_data(pdv(b"command!", command=True, last=True))
OPEN_COMMAND = p_data(pdv(b"command!", command=True))

FAULTS = {
    "unknown type": (pdu(8, b""), (2, 1)),
    "HTTP": (b"GET / HTTP/1.1\r\n\r\n", (2, 1)),
    "type zero": (pdu(0, b""), (2, 1)),
    "release of length 5": (pdu(5, b"12345"), (2, 6)),
    "release-rp of length 0": (pdu(6, b""), (2, 6)),
    "reject of length 8": (pdu(3, b"12345678"), (2, 6)),
    "request of 4 GiB": (b"\1\0\xff\xff\xff\xff", (2, 6)),
    "accept over 1 MiB": (b"\2\0\0\x10\0\1", (2, 6)),
    "P-DATA of length 0": (b"\4\0\0\0\0\0", (2, 6)),
    "P-DATA of length 5": (b"\4\0\0\0\0\5", (2, 6)),
    "P-DATA above the maximum": (struct.pack(">BBI", 4, 0, 16384 + 13), (2, 6)),
    "PDV length 0": (b"\4\0\0\0\0\6" + b"\0\0\0\0\1\3", (2, 6)),
    "PDV length 1": (b"\4\0\0\0\0\6" + b"\0\0\0\1\1\3", (2, 6)),
    "PDV beyond its PDU": (b"\4\0\0\0\0\6" + b"\0\0\0\3\1\3", (2, 6)),
    "PDV of 4 GiB": (b"\4\0\0\0\0\6" + b"\xff\xff\xff\xff\1\3", (2, 6)),
    "rest too short for a PDV": (b"\4\0\0\0\0\x0a" + b"\0\0\0\3\1\3", (2, 6)),
    "context not accepted": (p_data(pdv(b"c", context=5, command=True)), (2, 5)),
    "even context": (p_data(pdv(b"c", context=2, command=True)), (2, 5)),
    "context changes": (OPEN_COMMAND + p_data(pdv(b"c", context=3, command=True)), (2, 5)),
    "dataset first": (p_data(pdv(b"d")), (2, 5)),
    "dataset in a command": (OPEN_COMMAND + p_data(pdv(b"d")), (2, 5)),
    "command in a dataset": (COMMAND_1 + p_data(pdv(b"d")) + OPEN_COMMAND, (2, 5)),
    "endless command": (p_data(pdv(b"c" * 16000, command=True)) * 5, (0, 0)),
    "tiny fragments": (COMMAND_1 + p_data(pdv(b"dd")) * 16384, (0, 0)),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("cut", [1, 7, 10**9])
def test_faults(name: str, cut: int) -> None:
    stream, (source, reason) = FAULTS[name]
    if cut == 1 and len(stream) > 10_000:
        cut = 501
    r = reader()
    with pytest.raises(RemoteProtocolError) as caught:
        events(r, [stream[i : i + cut] for i in range(0, len(stream), cut)])
    assert (caught.value.source, caught.value.reason) == (source, reason)
    with pytest.raises(RemoteProtocolError) as again:
        r.next()
    assert str(again.value) == str(caught.value)


def test_what_came_before_another_pdu_is_handed_out_first() -> None:
    r = reader()
    r.feed(COMMAND_1 + p_data(pdv(b"data")) + pdu(7, b"\0\0\2\0"))
    assert r.next() == COMMAND
    r.expect_dataset(True)
    assert r.next() == DATA
    assert r.copy_data() == b"data"
    assert r.next() == PDU


def test_what_came_before_a_fault_is_handed_out_first() -> None:
    r = reader()
    r.feed(COMMAND_1 + p_data(pdv(b"data")) + pdu(9, b""))
    assert r.next() == COMMAND
    r.expect_dataset(True)
    assert r.next() == DATA
    assert r.copy_data() == b"data"
    with pytest.raises(RemoteProtocolError):
        r.next()


def test_p_data_outside_an_association() -> None:
    r = PduReader(16384)
    r.feed(COMMAND_1)
    with pytest.raises(RemoteProtocolError) as caught:
        r.next()
    assert (caught.value.source, caught.value.reason) == (2, 2)


def test_a_dataset_where_none_was_promised() -> None:
    r = reader()
    with pytest.raises(RemoteProtocolError) as caught:
        events(r, [COMMAND_1 + p_data(pdv(b"data"))], datasets=False)
    assert (caught.value.source, caught.value.reason) == (2, 5)


def test_a_little_over_the_maximum_is_tolerated_and_counted() -> None:
    stream = COMMAND_1 + p_data(pdv(b"d" * (16384 + 12 - 6), last=True))
    r = reader()
    assert len(events(r, [stream])) == 2
    assert r.oversized_pdus == 1
    with pytest.raises(RemoteProtocolError):
        events(reader(strict=True), [stream])


def test_no_maximum() -> None:
    stream = COMMAND_1 + p_data(pdv(b"d" * 1_000_000, last=True))
    assert len(events(reader(0), [stream])) == 2


def test_odd_fragments_are_counted_or_refused() -> None:
    stream = COMMAND_1 + p_data(pdv(b"d")) + p_data(pdv(b"d", last=True))
    r = reader()
    assert events(r, [stream])[1] == ("dataset", b"dd")
    assert r.odd_fragments == 2
    with pytest.raises(RemoteProtocolError) as caught:
        events(reader(strict=True), [stream])
    assert (caught.value.source, caught.value.reason) == (2, 6)


def test_large_fragments_keep_the_floor() -> None:
    stream = COMMAND_1 + p_data(pdv(b"d" * 64)) * 16384 * 2
    assert len(events(reader(), [stream])) == 1


@given(st.binary(max_size=400), st.integers(1, 60))
def test_any_bytes_give_events_or_one_kind_of_error(data: bytes, cut: int) -> None:
    def run(chunks: list[bytes]) -> object:
        try:
            return events(reader(), chunks)
        except RemoteProtocolError as exc:
            return str(exc)

    assert run([data]) == run([data[i : i + cut] for i in range(0, len(data), cut)])


@pytest.mark.parametrize("announced", [8, 4096, 16382, 2**31 - 1, 2**31, 2**32 - 13])
def test_the_announced_length_at_its_edges(announced: int) -> None:
    """Unsigned 32 bits throughout; the header alone decides."""
    for length, taken in ((announced, True), (announced + 12, True), (announced + 13, False)):
        r = reader(announced)
        if length < 2**32:
            r.feed(struct.pack(">BBIIBB", 4, 0, length, length - 4, 1, 1))
            if taken:
                assert r.next() == NEED_DATA
                assert r.oversized_pdus == (length > announced)
            else:
                with pytest.raises(RemoteProtocolError, match=f"P-DATA-TF length {length} is out"):
                    r.next()


@pytest.mark.parametrize("announced", [0, 2**32 - 1])
def test_the_longest_pdu_of_all(announced: int) -> None:
    """It is never gathered: slices of the slab are handed out as they come."""
    r = reader(announced)
    r.feed(p_data(pdv(b"command", command=True, last=True)))
    assert r.next() == COMMAND
    r.expect_dataset(True)
    r.feed(struct.pack(">BBIIBB", 4, 0, 2**32 - 1, 2**32 - 5, 1, 2))
    for _ in range(4):
        assert r.feed(bytes(SLAB)) > 0
        assert r.next() == DATA
        assert not r.data_last
        assert r.next() == NEED_DATA
    assert r.oversized_pdus == 0
