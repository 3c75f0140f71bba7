"""What a response says besides its dataset, in one line: status, offending elements, error comment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dcmhaul.cli.console import printable
from dcmhaul.protocol.statuses import describe

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dcmhaul.services.normalized import NormalizedResponse

__all__ = ["normalized_text", "response_text"]

# An error comment has 64 characters (VR LO); a peer that writes an essay does not fill the screen.
COMMENT_LENGTH_MAX = 256


def response_text(
    status: int, service: str, offending: Iterable[int] = (), comment: str = ""
) -> str:
    """Name and meaning of a status in `service`, and what the peer adds (PS3.7 Annex C).

    offending: tags. They are named, and what they held is not said: it may be a patient's.
    """
    text = describe(status, service)
    if names := ", ".join(map(_tag_name, offending)):
        text += f"; offending: {names}"
    if comment:
        text += f" ({printable(comment[:COMMENT_LENGTH_MAX])})"
    return text


def normalized_text(response: NormalizedResponse, service: str) -> str:
    """The same of a DIMSE-N response; the attributes that it lists are to blame, too."""
    blamed = dict.fromkeys((*response.offending, *response.attributes))
    return response_text(response.status, service, blamed, response.error_comment)


def _tag_name(tag: int) -> str:
    from pydicom.datadict import keyword_for_tag

    return f"({tag >> 16:04X},{tag & 0xFFFF:04X}) {keyword_for_tag(tag)}".rstrip()
