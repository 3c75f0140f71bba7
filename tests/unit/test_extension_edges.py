"""Corners of the extension that no message of an ordinary association reaches."""

from __future__ import annotations

import resource
import signal
import socket
import struct
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pydicom.data
import pytest

from dcmhaul import uids
from dcmhaul.net import _sockio
from dcmhaul.wire import _commands
from dcmhaul.wire._elements import ElementWalker, probe
from dcmhaul.wire._frames import COMMAND, DATA, NEED_DATA, PduReader
from dcmhaul.wire.part10 import encode_file_meta, parse_file_meta

if TYPE_CHECKING:
    from collections.abc import Iterator

SLABS_POOLED_MAX = 16


def p_data(fragment: bytes, *, command: bool = False, last: bool = False) -> bytes:
    pdv = struct.pack(">IBB", len(fragment) + 2, 1, command | last << 1) + fragment
    return struct.pack(">BBI", 4, 0, len(pdv)) + pdv


def holding(*fragments: bytes) -> PduReader:
    """A reader whose event is DATA: one slice a fragment."""
    reader = PduReader(16384)
    reader.accept_p_data(True)
    reader.set_contexts([1])
    data = p_data(b"\0\0", command=True, last=True)
    data += b"".join(p_data(fragment) for fragment in fragments)
    assert reader.feed(data) == len(data)
    assert reader.next() == COMMAND
    reader.expect_dataset(True)
    assert reader.next() == DATA
    return reader


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """A file that would grow beyond it is written up to there, then EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)


def test_a_write_that_stops_in_the_middle_goes_on_and_then_fails(tmp_path: Path) -> None:
    view = _sockio.SliceView(holding(b"ab" * 300, b"cd" * 300, b"ef" * 300))
    target = tmp_path / "short"
    with target.open("wb") as sink:
        with file_size_limit(1000), pytest.raises(OSError, match="large"):
            view.pwrite(sink.fileno(), 0)
        assert target.read_bytes() == (b"ab" * 300 + b"cd" * 200)
        assert view.pwrite(sink.fileno(), 0) == 1800
    assert target.read_bytes() == b"ab" * 300 + b"cd" * 300 + b"ef" * 300


def test_a_full_slab_takes_nothing_more() -> None:
    sender, receiver = socket.socketpair()
    with sender, receiver:
        receiver.setblocking(False)
        reader = PduReader(16384)
        got = 0
        while (count := _sockio.receive(receiver.fileno(), reader)) != -2:
            if count == -1:
                sender.send(bytes(65536), socket.MSG_DONTWAIT)
            else:
                got += count
        assert got == reader.buffered


def test_receiving_from_what_is_no_socket_is_an_error(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb+") as plain, pytest.raises(OSError, match="ocket"):
        _sockio.receive(plain.fileno(), PduReader(16384))


def test_reading_ahead_ends_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3_000_000))
    with path.open("rb") as source:
        assert _sockio.read_ahead(source.fileno(), 0, 3_000_000) == 3_000_000
        assert _sockio.read_ahead(source.fileno(), 2_500_000, 1_000_000) == 500_000


def test_slabs_beyond_the_pool_are_freed() -> None:
    readers = [PduReader(16384) for _ in range(SLABS_POOLED_MAX + 4)]
    for reader in readers:
        reader.feed(b"\4")
        assert reader.next() == NEED_DATA
    readers.clear()
    again = [PduReader(16384) for _ in range(SLABS_POOLED_MAX + 4)]
    assert [reader.feed(b"\4\0") for reader in again] == [2] * len(again)


@pytest.mark.parametrize("element", [-1, 0x1100])
def test_a_command_element_outside_the_table_is_refused(element: int) -> None:
    with pytest.raises(ValueError, match="outside the table"):
        _commands.define(element, "Nothing", "US")


def test_text_of_a_command_loses_its_padding_at_both_ends() -> None:
    element = struct.pack("<HHI", 0, 0x0600, 8) + b"  AET \0\0"  # MoveDestination
    assert _commands.decode(element) == {"MoveDestination": "AET"}


@pytest.mark.parametrize(
    ("elements", "values"),
    [((0x0100,), ()), ((0x1100,), (1,)), ((0x0600,), ("A" * 4096,)), ((0x0100,), (-1,))],
    ids=["fewer values", "outside the table", "too long", "negative"],
)
def test_a_command_that_is_not_regular_is_left_to_the_slow_path(
    elements: tuple[int, ...], values: tuple[str | int, ...]
) -> None:
    assert _commands.encode(elements, values) is None


def test_fragments_under_another_tag_than_pixel_data() -> None:
    header = struct.pack("<HH2s2xI", 0x5400, 0x1010, b"OB", 0xFFFFFFFF)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 4) + b"\1\2\3\4"
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    walker = ElementWalker(explicit=True)
    walker.feed(header + item + end)
    walker.finish()
    assert walker.position == len(header + item + end)


@pytest.mark.parametrize(
    ("syntax", "looked_at"),
    [
        (uids.EXPLICIT_VR_LITTLE_ENDIAN, True),
        (uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN, False),
        (uids.EXPLICIT_VR_BIG_ENDIAN, False),
    ],
)
def test_a_syntax_that_needs_the_walker_is_not_probed(syntax: str, looked_at: bool) -> None:
    """Whatever the dataset looks like: here it is explicit little endian each time."""
    whole = (Path(pydicom.data.__file__).parent / "test_files" / "CT_small.dcm").read_bytes()
    meta = parse_file_meta(whole[:4096])
    renamed = encode_file_meta(meta.sop_class_uid, meta.sop_instance_uid, syntax)
    found = probe(renamed + whole[meta.dataset_offset :])
    assert (found is not None) == looked_at
