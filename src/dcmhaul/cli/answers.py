"""What matches say of the keys that were typed: peers may ignore a key (PS3.4 §C.4.1.2, §C.2.2.1.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dcmhaul.archive.attributes import BY_TAG
from dcmhaul.archive.matching import InvalidKey, Matcher, is_universal, make_matcher
from dcmhaul.archive.names import FuzzyName, plain
from dcmhaul.cli.completion import LEVELS, UNIQUE_KEYS, is_single, level_of, levels_of
from dcmhaul.cli.keys import QUERY_RETRIEVE_LEVEL, SPECIFIC_CHARACTER_SET, Step
from dcmhaul.cli.models import cell

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydicom.dataset import Dataset

    from dcmhaul.cli.keys import Element, Identifier

__all__ = ["TypedKeys", "level_of_key"]

# Times, and dates with times, mean other moments in other zones and together with a date.
_JUDGED_VRS = frozenset({"AE", "AS", "CS", "DA", "DS", "IS", "LO", "PN", "SH", "UI"})


def level_of_key(model: str, tag: int) -> str | None:
    """The level that an attribute belongs to; None where the standard's models lack it."""
    if tag not in BY_TAG:
        return None
    levels = levels_of(model)
    level = LEVELS[BY_TAG[tag].level]
    # The attributes of patients are the study's where the model begins with studies (PS3.4 §C.6.2.1).
    return levels[0] if level == "PATIENT" and level not in levels else level


class TypedKeys:
    """The keys of one C-FIND that have a value, and what the answers of a peer say of them."""

    def __init__(self, model: str, identifier: Identifier) -> None:
        self._elements = {
            tag: element
            for tag, element in identifier.elements.items()
            if tag not in (QUERY_RETRIEVE_LEVEL, SPECIFIC_CHARACTER_SET) and _narrows(element)
        }
        levels = {tag: level_of_key(model, tag) for tag in self._elements}
        level = LEVELS.index(level_of(identifier))
        unique = set(UNIQUE_KEYS.values())
        self.above = [
            tag
            for tag, element in self._elements.items()
            if levels[tag] in LEVELS[:level] and not (tag in unique and is_single(element.text))
        ]
        """The keys of levels above, but for the single unique keys that stand there by right."""
        self._below = [tag for tag in self._elements if levels[tag] in LEVELS[level + 1 :]]
        self.lists_above = not unique.isdisjoint(self.above)
        """Whether a unique key above the level has several values, or a wild card."""

    def unproved(self, match: Dataset) -> list[int]:
        """The keys of levels above that the match does not show to be met."""
        unproved = []
        for tag in self.above:
            matcher = self._matcher(tag)
            value = _value(match, tag)
            echoed = value == plain(self._elements[tag].text) and not is_single(value)
            if matcher is None or echoed or not _matches(matcher, value):
                unproved.append(tag)
        return unproved

    def contradicted(self, match: Dataset) -> list[int]:
        """The keys that the match shows not to be met, but for those of levels below.

        A peer may match more loosely than we do, so names are also met by their sound, and what is no
        plain text is not judged.
        """
        found = []
        for tag in self._elements.keys() - self._below:
            matcher = self._matcher(tag, fuzzy=True)
            value = _value(match, tag)
            if matcher and value.isascii() and value and not _matches(matcher, value):
                found.append(tag)
        return found

    def unsaid(self, matches: Iterable[Dataset]) -> set[int]:
        """The keys that none of the matches has a value for, and those of levels below."""
        unsaid = set(self._elements)
        for match in matches:
            unsaid = {tag for tag in unsaid if tag in self._below or not _value(match, tag)}
        return unsaid

    def _matcher(self, tag: int, *, fuzzy: bool = False) -> Matcher | None:
        """What the key accepts; None where that is not for us to say."""
        element = self._elements[tag]
        wanted = plain(element.text)
        if element.vr not in _JUDGED_VRS or not wanted.isascii():
            return None
        # Wild cards are none in lists of UIDs.
        vr = "LO" if element.vr == "UI" and "\\" not in wanted else element.vr
        try:
            matcher = make_matcher(vr, wanted)
        except InvalidKey:
            return None
        return FuzzyName(wanted.split("\\"), matcher) if fuzzy and vr == "PN" else matcher


def _narrows(element: Element) -> bool:
    return not is_universal(element.text) if element.vr in _JUDGED_VRS else bool(element.value)


def _value(match: Dataset, tag: int) -> str:
    """Without case and accents; empty where there is none."""
    return plain(cell(match, (Step(tag),)))


def _matches(matcher: Matcher, value: str) -> bool:
    return any(matcher.matches(part) for part in map(str.strip, value.split("\\")) if part)
