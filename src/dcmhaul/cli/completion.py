"""What was typed, made a whole query or retrieve identifier (PS3.4 §C.4); pure functions.

A retrieve identifier holds unique keys alone: one value for each level above, one or for UIDs
several at its own. Users type a patient's name. So a level is added, and where keys are not unique keys the
matches are asked for first, and then retrieved by their unique keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dcmhaul.cli.keys import QUERY_RETRIEVE_LEVEL, SPECIFIC_CHARACTER_SET, Element, Identifier

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "LEVELS",
    "UNIQUE_KEYS",
    "add_level",
    "default_level",
    "is_single",
    "level_of",
    "levels_of",
    "needs_query",
    "question",
    "retrieve_identifiers",
    "warnings",
]

# Level -> its unique key (PS3.4 Tables C.6-1 to C.6-5), highest level first.
UNIQUE_KEYS = {
    "PATIENT": 0x00100020,
    "STUDY": 0x0020000D,
    "SERIES": 0x0020000E,
    "IMAGE": 0x00080018,
}
LEVELS = tuple(UNIQUE_KEYS)

_MODEL_LEVELS = {
    "patient": LEVELS,
    "study": LEVELS[1:],
    "psonly": LEVELS[:2],
}

# UIDs in one identifier. The standard sets no limit; some archives fail on values of kilobytes.
UIDS_PER_IDENTIFIER = 100


def levels_of(model: str) -> tuple[str, ...]:
    """The levels of a model (`patient`, `study`, `psonly`), highest first; () for the worklist."""
    return _MODEL_LEVELS.get(model, ())


def level_of(identifier: Identifier) -> str:
    """The Query/Retrieve Level as typed, in capitals; empty where none was."""
    return identifier.text(QUERY_RETRIEVE_LEVEL).upper()


def default_level(model: str, identifier: Identifier) -> str:
    """The lowest level whose unique key has a value, else the model's highest."""
    levels = levels_of(model)
    for level in reversed(levels):
        if identifier.text(UNIQUE_KEYS[level]):
            return level
    return levels[0]


def add_level(model: str, identifier: Identifier) -> Identifier:
    """The identifier with a level, where the model has levels and none was typed."""
    if not levels_of(model) or QUERY_RETRIEVE_LEVEL in identifier.elements:
        return identifier
    completed = identifier.copy()
    completed.put(QUERY_RETRIEVE_LEVEL, default_level(model, identifier), "CS")
    return completed


def warnings(model: str, identifier: Identifier) -> list[str]:
    """What looks wrong in a query that goes out all the same."""
    levels = levels_of(model)
    level = level_of(identifier)
    if not levels:
        return ["a worklist query has no level (0008,0052)"] if level else []
    if level not in levels:
        return [f"level {level or 'empty'} is none of this model's ({', '.join(levels)})"]
    found = []
    for above in levels[: levels.index(level)]:
        value = identifier.text(UNIQUE_KEYS[above])
        if not value or "\\" in value or "*" in value or "?" in value:
            found.append(
                f"a query at {level} level holds one {above} (its unique key); not every peer "
                "answers without"
            )
    return found


def is_single(value: str) -> bool:
    """Whether this is one value, without wild cards."""
    return bool(value) and not any(sign in value for sign in "\\*?")


def needs_query(model: str, identifier: Identifier) -> bool:
    """True where a retrieve identifier of these keys would not be one of the standard's."""
    levels = levels_of(model)
    level = level_of(identifier)
    if level not in levels:
        return False
    upper = levels[: levels.index(level) + 1]
    allowed = {UNIQUE_KEYS[name] for name in upper} | {QUERY_RETRIEVE_LEVEL, SPECIFIC_CHARACTER_SET}
    if not identifier.elements.keys() <= allowed:
        return True
    if not all(is_single(identifier.text(UNIQUE_KEYS[name])) for name in upper[:-1]):
        return True
    value = identifier.text(UNIQUE_KEYS[level])
    # A list of UIDs is allowed at the level itself; Patient ID is no UID.
    parts = [value] if level == "PATIENT" else value.split("\\")
    return not all(map(is_single, parts))


def question(model: str, identifier: Identifier) -> Identifier:
    """The C-FIND that tells the unique keys of what matches the keys as typed."""
    asked = identifier.copy()
    for level in levels_of(model):
        asked.elements.setdefault(UNIQUE_KEYS[level], _empty(level))
        if level == level_of(identifier):
            break
    return asked


def _empty(level: str) -> Element:
    return Element(UNIQUE_KEYS[level], "LO" if level == "PATIENT" else "UI", "")


def retrieve_identifiers(
    model: str, level: str, matches: Iterable[Mapping[int, str]], *, uids_max: int | None = None
) -> list[Identifier]:
    """The retrieve identifiers of matches, each given as its unique keys by tag.

    Matches under the same parents share an identifier, as a list of UIDs, at most `uids_max` each;
    Patient IDs cannot be listed. Matches without a value at `level` are left out, twins are merged.
    """
    levels = levels_of(model)
    upper = levels[: levels.index(level)]
    key = UNIQUE_KEYS[level]
    groups: dict[tuple[str, ...], dict[str, None]] = {}
    for match in matches:
        value = match.get(key, "")
        if value:
            parents = tuple(match.get(UNIQUE_KEYS[name], "") for name in upper)
            groups.setdefault(parents, {})[value] = None
    size = 1 if level == "PATIENT" else uids_max or UIDS_PER_IDENTIFIER
    identifiers = []
    for parents, found in groups.items():
        values = list(found)
        for start in range(0, len(values), size):
            identifier = Identifier()
            identifier.put(QUERY_RETRIEVE_LEVEL, level, "CS")
            for name, parent in zip(upper, parents, strict=True):
                if parent:
                    identifier.put(UNIQUE_KEYS[name], parent, _empty(name).vr)
            identifier.put(key, "\\".join(values[start : start + size]), _empty(level).vr)
            identifiers.append(identifier)
    return identifiers
