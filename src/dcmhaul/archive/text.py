"""Text of a dataset to str and back, by Specific Character Set (PS3.3 §C.12.1.1.2, PS3.5 §6.1).

Never fails on what a peer sends: what a character set cannot explain is read byte by byte, so that
it can be given back as it came.
"""

from __future__ import annotations

import re

__all__ = ["TEXT_LENGTH_MAX", "UTF8", "clean", "codec_of", "decode", "fold", "terms"]

UTF8 = "ISO_IR 192"
# Longer values are not kept: no attribute of the index may hold more than 64 characters but LT,
# and an index must not grow by what one peer sends.
TEXT_LENGTH_MAX = 1024

# PS3.3 Tables C.12-2 to C.12-5. JIS X 0201 (13) is the single-byte part of Shift JIS.
_CODECS = {
    "": "latin_1",
    "ISO_IR 6": "latin_1",
    "ISO_IR 13": "shift_jis",
    "ISO_IR 100": "latin_1",
    "ISO_IR 101": "iso8859_2",
    "ISO_IR 109": "iso8859_3",
    "ISO_IR 110": "iso8859_4",
    "ISO_IR 126": "iso8859_7",
    "ISO_IR 127": "iso8859_6",
    "ISO_IR 138": "iso8859_8",
    "ISO_IR 144": "iso8859_5",
    "ISO_IR 148": "iso8859_9",
    "ISO_IR 166": "iso8859_11",
    "ISO_IR 203": "iso8859_15",
    UTF8: "utf_8",
    "GB18030": "gb18030",
    "GBK": "gbk",
}
# ISO 2022 escape sequences: the codec of what follows, and what it must be shown first.
_ESCAPES = {
    b"(B": ("latin_1", b""),
    b"(J": ("shift_jis", b""),
    b")I": ("shift_jis", b""),
    b"-A": ("latin_1", b""),
    b"-B": ("iso8859_2", b""),
    b"-C": ("iso8859_3", b""),
    b"-D": ("iso8859_4", b""),
    b"-F": ("iso8859_7", b""),
    b"-G": ("iso8859_6", b""),
    b"-H": ("iso8859_8", b""),
    b"-L": ("iso8859_5", b""),
    b"-M": ("iso8859_9", b""),
    b"-T": ("iso8859_11", b""),
    b"-b": ("iso8859_15", b""),
    b"$B": ("iso2022_jp", b"\x1b$B"),
    b"$(D": ("iso2022_jp_2", b"\x1b$(D"),
    b"$)C": ("euc_kr", b""),
    b"$)A": ("gb2312", b""),
}
_ESCAPE = re.compile(rb"\x1b(\$[()][ACD]|\$B|[()-][A-Za-z])")
_NOT_TEXT = re.compile(r"[\x00\x1b]")


def terms(value: bytes) -> str:
    """The value of (0008,0005) as it came, its terms without padding."""
    text = value.decode("ascii", "replace").replace("\0", " ").replace("\ufffd", " ")
    return "\\".join(term.strip() for term in text.split("\\")).rstrip("\\")[:TEXT_LENGTH_MAX]


def _codec(term: str) -> str:
    """The codec of one defined term; code extensions name the same sets (ISO 2022 IR n)."""
    term = term.upper().replace("ISO 2022 IR", "ISO_IR").replace("ISO-IR", "ISO_IR")
    term = term.replace("ISO IR", "ISO_IR").replace("ISO_IR_", "ISO_IR ")
    return _CODECS.get(term, "latin_1")


def decode(value: bytes, character_set: str) -> str:
    """`value` as text, padding and control characters that text cannot have taken out.

    character_set: the terms of (0008,0005), separated by backslashes; empty for the default.
    """
    if value.isascii() and b"\x1b" not in value:
        return value.decode("ascii").replace("\0", "").strip(" ")[:TEXT_LENGTH_MAX].rstrip(" ")
    codec = _codec(character_set.partition("\\")[0])
    if b"\x1b" not in value:
        return clean(_piece(value, codec, b""))
    out = []
    start = 0
    lead = b""
    for escape in _ESCAPE.finditer(value):
        out.append(_piece(value[start : escape.start()], codec, lead))
        codec, lead = _ESCAPES.get(escape.group(1), (codec, lead))
        start = escape.end()
    out.append(_piece(value[start:], codec, lead))
    return clean("".join(out))


def _piece(value: bytes, codec: str, lead: bytes) -> str:
    try:
        return (lead + value).decode(codec)
    except UnicodeDecodeError:
        # Latin 1 gives every byte a character of its own, which encoding turns into it again.
        return value.decode("latin_1")


def clean(text: str) -> str:
    """Without padding at the ends, NUL and ESC (PS3.5 §6.2), cut at `TEXT_LENGTH_MAX`."""
    if "\0" in text or "\x1b" in text:
        text = _NOT_TEXT.sub("", text)
    return text.strip(" ")[:TEXT_LENGTH_MAX].strip(" ")


def codec_of(character_set: str) -> str | None:
    """The codec of a character set of one term; None for code extensions, read but not written."""
    return None if "\\" in character_set else _codec(character_set)


def fold(text: str) -> str:
    """For comparing names: case is ignored (PS3.4 §C.2.2.2.1), the length stays as it is."""
    if text.isascii():
        return text.lower()
    return "".join(map(_fold_character, text))


def _fold_character(character: str) -> str:
    for folded in (character.casefold(), character.lower()):
        if len(folded) == 1:
            return folded
    return character
