"""What any bytes may do to a decoder, as functions that raise only where that does not hold.

The invariant of all: any bytes give a result or the one error that the decoder promises, never another
exception, and what was decoded and encoded again decodes to the same.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from dcmhaul import uids
from dcmhaul.errors import (
    CannotReencode,
    LocalProtocolError,
    NotDicom,
    RemoteProtocolError,
    UnreadableInstance,
)
from dcmhaul.objects.canonical import DatasetDigest
from dcmhaul.objects.reencode import UNCOMPRESSED, Reencoder
from dcmhaul.wire import part10
from dcmhaul.wire._elements import ElementFault, ElementWalker
from dcmhaul.wire._frames import COMMAND, DATA, NEED_DATA, PDU, PduReader
from dcmhaul.wire.command import decode_command_set, encode_command_set
from dcmhaul.wire.pdu import decode_pdu

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TARGETS"]

SYNTAXES = (
    uids.IMPLICIT_VR_LITTLE_ENDIAN,
    uids.EXPLICIT_VR_LITTLE_ENDIAN,
    uids.EXPLICIT_VR_BIG_ENDIAN,
    uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
)


def _read(data: bytes, cut: int) -> list[object]:
    """What the reader says to the bytes in pieces of `cut`, its fault included."""
    reader = PduReader(1024)
    reader.accept_p_data(True)
    reader.set_contexts([1, 3])
    said: list[object] = []
    slices = b""
    try:
        for start in range(0, len(data), cut):
            piece = memoryview(data)[start : start + cut]
            while piece:
                piece = piece[reader.feed(piece) :]
                while (code := reader.next()) != NEED_DATA:
                    if code == COMMAND:
                        said.append((reader.context_id, reader.command))
                        reader.expect_dataset(True, skip=reader.command[:1] == b"s")
                    elif code == DATA:
                        slices += reader.copy_data()
                        if reader.data_last:
                            said.append(slices)
                            slices = b""
                    else:
                        assert code == PDU
                        said.append((reader.pdu_type, reader.pdu_body))
    except RemoteProtocolError as fault:
        said.append(str(fault))
    return said


def pdu_reader(data: bytes) -> None:
    """First byte: how the rest is cut. The cuts change nothing of what the reader says."""
    cut = data[0] + 1 if data else 1
    assert _read(data[1:], cut) == _read(data[1:], max(1, len(data)))


def a_associate(data: bytes) -> None:
    """First byte: the PDU's type. What decodes, encodes to what decodes to the same."""
    if not data:
        return
    try:
        pdu = decode_pdu(data[0], data[1:])
    except RemoteProtocolError:
        return
    try:
        encoded = pdu.encode()
    except LocalProtocolError:  # tolerated in what comes, never sent
        return
    assert decode_pdu(encoded[0], encoded[6:]) == pdu


def command_set(data: bytes) -> None:
    """A command set that decodes holds nothing that could not be sent again."""
    try:
        values = decode_command_set(data)
    except RemoteProtocolError:
        return
    try:
        encoded = encode_command_set(values)
    except LocalProtocolError:
        return
    again = decode_command_set(encoded)
    assert {name: value for name, value in again.items() if name in values} == values


def elements(data: bytes) -> None:
    """First byte: VR and byte order. A walk bytewise and at once captures the same, or faults alike."""
    flags = data[0] if data else 0
    said: list[object] = []
    for cut in (1, max(1, len(data))):
        walker = ElementWalker(
            (None, True, False)[flags % 3], big_endian=flags & 64 != 0, capture=(0x00080018,)
        )
        try:
            for start in range(1, len(data), cut):
                walker.feed(data[start : start + cut])
            walker.finish()
        except ElementFault as fault:
            said.append(str(fault))
        else:
            said.append((walker.captured, walker.position))
    assert said[0] == said[1]


def content_digest(data: bytes) -> None:
    """First byte: the transfer syntax. The digests do not depend on how the bytes are cut."""
    syntax = SYNTAXES[(data[0] if data else 0) % len(SYNTAXES)]
    said: list[object] = []
    for cut in (7, max(1, len(data))):
        digest = DatasetDigest(syntax, content=True)
        for start in range(1, len(data), cut):
            digest.update(data[start : start + cut])
        said.append((digest.digest(), digest.content()))
    assert said[0] == said[1]


def file_meta(data: bytes) -> None:
    """A file's first bytes: group 0002, or the one line that says why not."""
    try:
        part10.parse_file_meta(data)
    except (NotDicom, UnreadableInstance):
        pass


def reencode(data: bytes) -> None:
    """First byte: both transfer syntaxes. The same octets come out, or the same fault, however it is cut.

    What came out is well formed, and stays as it is.
    """
    flags = data[0] if data else 0
    source, target = UNCOMPRESSED[flags % 4], UNCOMPRESSED[flags // 4 % 4]
    said: list[bytes | str] = []
    for cut in (3, max(1, len(data))):
        reencoder = Reencoder(source, target)
        out: list[bytes] = []
        try:
            for start in range(1, len(data), cut):
                out += reencoder.feed(data[start : start + cut])
            out += reencoder.finish()
        except CannotReencode as fault:
            said.append(str(fault))
        else:
            said.append(b"".join(out))
    if part10.is_deflated(target) and isinstance(said[0], bytes):
        assert isinstance(said[1], bytes)
        said = [zlib.decompress(one, -15) for one in said if isinstance(one, bytes)]
        target = UNCOMPRESSED[0]
    assert said[0] == said[1]
    # The length of a first element without a VR can look like one.
    if isinstance(said[0], bytes) and target != uids.IMPLICIT_VR_LITTLE_ENDIAN:
        again = Reencoder(target, target)
        assert b"".join([*again.feed(said[0]), *again.finish()]) == said[0]


TARGETS: dict[str, Callable[[bytes], None]] = {
    function.__name__: function
    for function in (
        pdu_reader,
        a_associate,
        command_set,
        elements,
        content_digest,
        file_meta,
        reencode,
    )
}
