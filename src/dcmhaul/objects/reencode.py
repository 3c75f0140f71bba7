"""Datasets from one uncompressed transfer syntax into another, as they pass by (PS3.5 §7, Annex A).

Fed in pieces of any size, it gives pieces of about that size: no value is ever held, and no length
is looked up ahead, for sequences and items leave with undefined length. Group lengths are left out.
It does no I/O and must not change what an element means.
"""

from __future__ import annotations

import functools
import struct
import zlib
from typing import TYPE_CHECKING, Final

from dcmhaul import uids
from dcmhaul.errors import CannotReencode
from dcmhaul.wire.part10 import is_deflated

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DEPTH_MAX", "UNCOMPRESSED", "Reencoder"]

UNCOMPRESSED: Final = (
    uids.EXPLICIT_VR_LITTLE_ENDIAN,
    uids.IMPLICIT_VR_LITTLE_ENDIAN,
    uids.DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN,
    uids.EXPLICIT_VR_BIG_ENDIAN,
)
"""The syntaxes that can be turned into each other, in the order in which they are to be chosen."""

DEPTH_MAX: Final = 64
"""Sequences within sequences; as many as the reader of files takes."""

_UNDEFINED: Final = 0xFFFFFFFF
_SHORT_LENGTH_MAX: Final = 0xFFFE  # an even number in two octets
_INFLATED_STEP: Final = 1 << 18

_SHORT_VRS: Final = frozenset(
    (
        "AE",
        "AS",
        "AT",
        "CS",
        "DA",
        "DS",
        "DT",
        "FL",
        "FD",
        "IS",
        "LO",
        "LT",
        "PN",
        "SH",
        "SL",
        "SS",
        "ST",
        "TM",
        "UI",
        "UL",
        "US",
    )
)
_LONG_VRS: Final = frozenset(
    ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")
)
_NUL_PADDED: Final = frozenset(("UI", "OB", "UN"))
# Octets that change their order together (PS3.5 §7.3); an AT is two of 16 bits.
_UNITS: Final = (
    dict.fromkeys(("AT", "OW", "SS", "US"), 2)
    | dict.fromkeys(("FL", "OF", "OL", "SL", "UL"), 4)
    | dict.fromkeys(("FD", "OD", "OV", "SV", "UV"), 8)
)
# What the dictionary leaves open but for US or SS. PS3.5 §A.1: in implicit VR these are OW.
_OPEN_VRS: Final = {"OB or OW": "OW", "US or OW": "OW", "US or SS or OW": "OW"}
_US_OR_SS: Final = "US or SS"

_ITEM: Final = 0xFFFEE000
_ITEM_END: Final = 0xFFFEE00D
_SEQUENCE_END: Final = 0xFFFEE0DD
_PIXEL_DATA: Final = 0x7FE00010
_PIXEL_REPRESENTATION: Final = 0x00280103


@functools.lru_cache(maxsize=4096)
def _dictionary_vr(tag: int) -> str:
    """The VR of PS3.6 of an element that does not say it; UN for what is private or unknown."""
    if tag >> 16 & 1:
        # The creator alone is public knowledge (PS3.5 §7.8.1).
        return "LO" if 0x10 <= tag & 0xFFFF <= 0xFF else "UN"
    from pydicom.datadict import dictionary_VR

    try:
        vr = dictionary_VR(tag)
    except KeyError:
        return "UN"
    vr = _OPEN_VRS.get(vr, vr)
    return vr if vr == _US_OR_SS or vr in _SHORT_VRS or vr in _LONG_VRS else "UN"


class _Level:
    """A dataset, a sequence or an item that is open in the source.

    end: where a defined length ends. explicit: None until the first element shows it. signed: what
    Pixel Representation said in this dataset.
    """

    __slots__ = ("big", "end", "explicit", "known_only", "sequence", "signed")

    def __init__(
        self, *, sequence: bool, end: int | None, explicit: bool | None, big: bool
    ) -> None:
        self.sequence = sequence
        self.end = end
        self.explicit = explicit
        self.big = big
        self.known_only = False
        self.signed: bool | None = None


class Reencoder:
    """Turns one dataset in `source` into the same dataset in `target`; one owner.

    signed: what values of VR US or SS are that come before any Pixel Representation.
    CannotReencode where the dataset is broken, or the target cannot say it; the text has no value in it.
    looking: nobody wants what is given out, so it is not deflated.
    length: octets given out so far, before they are deflated. signed: as the dataset itself says.
    """

    def __init__(
        self, source: str, target: str, *, signed: bool = False, looking: bool = False
    ) -> None:
        for uid in (source, target):
            if uid not in UNCOMPRESSED:
                raise CannotReencode(f"{uids.name(uid)} is no uncompressed transfer syntax")
        self.length = 0
        self.signed = signed
        self._position = 0
        self._remaining = 0
        self._unit = 1
        self._swap = False
        self._drop = False
        self._pad = b""
        self._tag = 0
        self._held = b""
        self._big = target == uids.EXPLICIT_VR_BIG_ENDIAN
        self._explicit = target != uids.IMPLICIT_VR_LITTLE_ENDIAN
        order = ">" if self._big else "<"
        self._short = struct.Struct(f"{order}HH2sH")
        self._long = struct.Struct(f"{order}HH2sxxI")
        self._plain = struct.Struct(f"{order}HHI")
        self._levels = [
            _Level(
                sequence=False,
                end=None,
                explicit=None,
                big=source == uids.EXPLICIT_VR_BIG_ENDIAN,
            )
        ]
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS) if is_deflated(source) else None
        self._deflater = (
            zlib.compressobj(wbits=-zlib.MAX_WBITS) if is_deflated(target) and not looking else None
        )
        self._deflated = 0

    # -- feeding --------------------------------------------------------------------------------

    def feed(self, data: bytes | memoryview) -> Iterator[bytes]:
        """What the next octets of the source become; each piece is made when it is asked for."""
        if self._inflater is None:
            yield from self._given_out(self._turn(data))
            return
        while data and not self._inflater.eof:
            try:
                plain = self._inflater.decompress(data, _INFLATED_STEP)
            except zlib.error as error:
                raise CannotReencode(f"broken deflate stream: {error}") from error
            data = self._inflater.unconsumed_tail
            yield from self._given_out(self._turn(plain))

    def finish(self) -> Iterator[bytes]:
        """The last octets; CannotReencode where the source ended within something."""
        rest = b""
        if self._inflater is not None:
            rest = self._inflater.flush()
            if not self._inflater.eof:
                raise CannotReencode("truncated: the deflate stream has no end")
        out = self._turn(rest)
        if self._held or self._remaining or len(self._levels) > 1:
            raise self._fault("the dataset ends within an element or a sequence")
        yield from self._given_out(out)
        if self._deflater is not None:
            last = self._deflater.flush()
            # PS3.5 §A.5: a stream of odd length ends with a NUL.
            yield last + b"\0" * ((self._deflated + len(last)) % 2)

    @property
    def skip(self) -> int:
        """Octets of a value of the source that come next, which `jump` may pass over unseen."""
        captured = self._tag == _PIXEL_REPRESENTATION
        return 0 if captured or self._held or self._inflater is not None else self._remaining

    def jump(self, count: int) -> None:
        """Counts so many octets of a value as if they had been fed; for a look at a dataset only."""
        self._remaining -= count
        self._position += count
        if not self._drop:
            self.length += count

    def _given_out(self, out: list[bytes]) -> Iterator[bytes]:
        data = b"".join(out)
        if self._deflater is not None and data:
            data = self._deflater.compress(data)
            self._deflated += len(data)
        if data:
            yield data

    def _fault(self, text: str) -> CannotReencode:
        return CannotReencode(f"{text}, at offset {self._position}")

    # -- the walk -------------------------------------------------------------------------------

    def _turn(self, data: bytes | memoryview) -> list[bytes]:
        out: list[bytes] = []
        view = memoryview(self._held + bytes(data) if self._held else data)
        at = 0
        while True:
            if self._remaining:
                take = min(self._remaining, len(view) - at)
                if take < self._remaining:
                    take -= take % self._unit
                self._value(view[at : at + take], out)
                at += take
                if self._remaining:
                    break
            if self._pad:
                self._put(self._pad, out)
                self._pad = b""
            self._close(out)
            size = self._header(view[at : at + 12], out)
            if not size:
                break
            at += size
        self._held = bytes(view[at:])
        return out

    def _put(self, data: bytes, out: list[bytes]) -> None:
        self.length += len(data)
        out.append(data)

    def _value(self, value: memoryview, out: list[bytes]) -> None:
        """The next octets of the value, whole units of it."""
        self._remaining -= len(value)
        self._position += len(value)
        if self._drop or not len(value):
            return
        if self._tag == _PIXEL_REPRESENTATION and self._unit == 2:
            level = self._levels[-1]
            level.signed = value[1 if level.big else 0] == 1
            if len(self._levels) == 1:
                self.signed = level.signed
        if self._swap:
            import numpy as np

            data = np.frombuffer(value, f"u{self._unit}").byteswap().tobytes()
        else:
            data = bytes(value)
        self._put(data, out)

    def _close(self, out: list[bytes]) -> None:
        """Ends what has a defined length and is at its end."""
        while len(self._levels) > 1 and self._levels[-1].end == self._position:
            level = self._levels.pop()
            self._mark(_SEQUENCE_END if level.sequence else _ITEM_END, 0, out)

    def _mark(self, tag: int, length: int, out: list[bytes]) -> None:
        """An item or a delimiter, which have no VR in any syntax (PS3.5 §7.5)."""
        self._put(self._plain.pack(tag >> 16, tag & 0xFFFF, length), out)

    def _header(self, view: memoryview, out: list[bytes]) -> int:
        """Reads one header and writes its like; its size, or 0 where more octets are needed."""
        if len(view) < 8:
            return 0
        level = self._levels[-1]
        order = ">" if level.big else "<"
        group, element = struct.unpack_from(f"{order}HH", view)
        tag = group << 16 | element
        vr = ""
        size = 8
        if not level.sequence and group != 0xFFFE:
            vr = _vr_at(view, level)
        if vr in _LONG_VRS or (vr and vr not in _SHORT_VRS and not view[6] and not view[7]):
            if len(view) < 12:
                return 0
            (length,) = struct.unpack_from(f"{order}I", view, 8)
            size = 12
        elif vr:
            (length,) = struct.unpack_from(f"{order}H", view, 6)
        else:
            (length,) = struct.unpack_from(f"{order}I", view, 4)
        self._tag = tag
        self._position += size
        end = self._end(length)
        if level.sequence:
            self._item(tag, end, out)
        elif group == 0xFFFE:
            if tag != _ITEM_END or len(self._levels) == 1 or level.end is not None:
                raise self._fault("an item or a delimiter outside a sequence (PS3.5 §7.5)")
            self._levels.pop()
            self._mark(_ITEM_END, 0, out)
        else:
            self._element(tag, vr, length, end, out)
        return size

    def _end(self, length: int) -> int | None:
        """Where something of this length ends, None if that is undefined; it must be within what holds it."""
        end = None if length == _UNDEFINED else self._position + length
        for level in reversed(self._levels):
            if level.end is not None:
                if (self._position if end is None else end) > level.end:
                    raise self._fault("an element runs past the sequence that it is in")
                break
        return end

    def _item(self, tag: int, end: int | None, out: list[bytes]) -> None:
        level = self._levels[-1]
        if tag == _SEQUENCE_END and level.end is None:
            self._levels.pop()
            self._mark(_SEQUENCE_END, 0, out)
            return
        if tag != _ITEM:
            raise self._fault("an item or a delimiter was expected in a sequence (PS3.5 §7.5)")
        item = _Level(sequence=False, end=end, explicit=level.explicit, big=level.big)
        item.known_only = level.known_only
        self._levels.append(item)
        self._mark(_ITEM, _UNDEFINED, out)

    # -- elements -------------------------------------------------------------------------------

    def _element(self, tag: int, vr: str, length: int, end: int | None, out: list[bytes]) -> None:
        level = self._levels[-1]
        told = vr
        vr = vr or _dictionary_vr(tag)
        if vr == _US_OR_SS:
            vr = "SS" if self._is_signed() else "US"
        elif vr not in _SHORT_VRS and vr not in _LONG_VRS:
            vr = "UN"
        if end is None:
            if tag == _PIXEL_DATA or (told and told not in ("SQ", "UN")):
                raise self._fault("an encapsulated value, which no uncompressed syntax has")
            # PS3.5 §6.2.2: what is in an UN of undefined length is implicit little endian.
            self._sequence(tag, None, out, foreign=told == "UN")
        elif vr == "SQ":
            if length:
                self._sequence(tag, end, out)
            else:
                self._put(self._head(tag, "SQ", 0), out)
        elif not tag & 0xFFFF:
            self._remaining, self._unit, self._drop = length, 1, True
        else:
            self._plain_value(tag, vr, length, swap=level.big != self._big, out=out)

    def _is_signed(self) -> bool:
        for level in reversed(self._levels):
            if level.signed is not None:
                return level.signed
        return self.signed

    def _sequence(
        self, tag: int, end: int | None, out: list[bytes], *, foreign: bool = False
    ) -> None:
        level = self._levels[-1]
        if len(self._levels) > 2 * DEPTH_MAX:
            raise self._fault("sequences are nested too deeply")
        opened = _Level(
            sequence=True,
            end=end,
            explicit=None if foreign else level.explicit,
            big=level.big and not foreign,
        )
        opened.known_only = foreign or level.known_only
        self._levels.append(opened)
        self._put(self._head(tag, "SQ", _UNDEFINED), out)

    def _plain_value(self, tag: int, vr: str, length: int, *, swap: bool, out: list[bytes]) -> None:
        unit = _UNITS.get(vr, 1)
        even = length + length % 2
        if self._explicit and vr in _SHORT_VRS and even > _SHORT_LENGTH_MAX:
            # PS3.5 §6.2.2 note 2; yet nobody could tell the byte order of numbers under an UN.
            if unit > 1 and (swap or self._big):
                raise self._fault(f"a value of VR {vr} above 65534 octets, which becomes UN")
            vr, unit = "UN", 1
        if unit > 1 and swap and length % unit:
            raise self._fault(f"a value of VR {vr} that is no multiple of {unit} octets")
        self._remaining, self._drop = length, False
        self._unit, self._swap = unit, swap and unit > 1
        if length % 2:
            self._pad = b"\0" if vr in _NUL_PADDED or unit > 1 else b" "
        self._put(self._head(tag, vr, even), out)

    def _head(self, tag: int, vr: str, length: int) -> bytes:
        group, element = tag >> 16, tag & 0xFFFF
        if not self._explicit:
            return self._plain.pack(group, element, length)
        form = self._long if vr in _LONG_VRS else self._short
        return form.pack(group, element, vr.encode("ascii"), length)


def _vr_at(view: memoryview, level: _Level) -> str:
    """The VR that an element's header has, "" where it has none; settles the form of its level.

    Two capitals at the first element mean explicit. Within an UN only a known VR does.
    """
    capitals = 0x41 <= view[4] <= 0x5A and 0x41 <= view[5] <= 0x5A
    vr = bytes(view[4:6]).decode("ascii") if capitals else ""
    if level.explicit is None:
        level.explicit = (vr in _SHORT_VRS or vr in _LONG_VRS) if level.known_only else capitals
    return vr if level.explicit else ""
