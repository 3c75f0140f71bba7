"""What a query or retrieve may be asked to do beyond the baseline (PS3.4 §C.5): the bytes of item 0x56.

Byte 5 and those behind it (Enhanced Multi-Frame Image Conversion, empty and multiple value matching)
are proposed and agreed to by nobody here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BASELINE", "RETRIEVE_SUPPORTED", "FindOptions"]

RETRIEVE_SUPPORTED: Final = b"\x01\x00"
"""C-GET and C-MOVE: relational retrieval, no conversion (PS3.4 Table C.5-3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FindOptions:
    """The options of a C-FIND in the order of their bytes (PS3.4 Table C.5-1).

    relational: keys of any level, and none needed above the level. date_time: a range of dates and
    one of times are one range of moments. fuzzy: person names by their meaning. timezone: dates and
    times are those of Timezone Offset From UTC (0008,0201) in the identifier.
    """

    relational: bool = False
    date_time: bool = False
    fuzzy: bool = False
    timezone: bool = False

    def encode(self) -> bytes:
        """As short as it can be; b"" where nothing is asked for."""
        return bytes((self.relational, self.date_time, self.fuzzy, self.timezone)).rstrip(b"\0")

    @classmethod
    def decode(cls, information: bytes) -> FindOptions:
        """What was agreed; bytes that are missing are 0, and those behind the fourth are left out."""
        relational, date_time, fuzzy, timezone = (
            byte == 1 for byte in information[:4].ljust(4, b"\0")
        )
        return cls(relational=relational, date_time=date_time, fuzzy=fuzzy, timezone=timezone)

    def missing(self, answered: FindOptions) -> list[str]:
        """The names of what was asked for and not agreed to."""
        return [
            name
            for field, name in _NAMES.items()
            if getattr(self, field) and not getattr(answered, field)
        ]


BASELINE: Final = FindOptions()
"""Nothing beyond what every SCP does."""
_NAMES: Final[Mapping[str, str]] = {
    "relational": "relational queries",
    "date_time": "combined date-time matching",
    "fuzzy": "fuzzy matching of person names",
    "timezone": "timezone query adjustment",
}
