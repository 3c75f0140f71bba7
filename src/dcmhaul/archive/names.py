"""Fuzzy semantic matching of person names (PS3.4 §C.2.2.2.1.1): by accent, by order of words, by sound.

Pure. What it does is part of the archive's conformance, so docs/query.md describes it.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dcmhaul.archive.matching import Wildcard

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dcmhaul.archive.matching import Matcher, Narrowing

__all__ = ["FuzzyName", "plain", "soundex"]

# A key with more words is compared literally alone: each word is looked for in every name.
WORDS_MAX = 16
# Where the words of the whole name are among the parts of it.
WHOLE = -1

# Letters that no decomposition turns into plain ones.
_PLAIN = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i"}  # noqa: RUF001
)
_NOT_IN_WORDS = re.compile(r"['’`´]")  # noqa: RUF001
_BETWEEN_WORDS = re.compile(r"[\s.,;:_\-\u2010-\u2015]+")

_SOUNDS = {
    letter: code
    for code, letters in enumerate(("bfpv", "cgjkqsxz", "dt", "l", "mn", "r"), 1)
    for letter in letters
}


def plain(text: str) -> str:
    """Without case and accents: `Müller`, `MULLER` and `mu\u0308ller` are one."""
    if not text.isascii():
        text = "".join(
            character
            for character in unicodedata.normalize("NFKD", text.casefold())
            if not unicodedata.combining(character)
        ).translate(_PLAIN)
    return text.lower()


def soundex(word: str) -> str:
    """The American Soundex code of a plain word; empty where it has other letters than a to z."""
    if not (word.isascii() and word.isalpha()):
        return ""
    code = word[0]
    last = _SOUNDS.get(word[0])
    for letter in word[1:]:
        sound = _SOUNDS.get(letter)
        if sound is not None and sound != last:
            code += str(sound)
            if len(code) == 4:
                break
        # Vowels part two letters of one sound; h and w do not.
        if letter not in "hw":
            last = sound
    return code.ljust(4, "0")


def _words(component: str) -> list[str]:
    text = _NOT_IN_WORDS.sub("", plain(component))
    return [word for word in _BETWEEN_WORDS.split(text) if word]


@dataclass(frozen=True, slots=True)
class _Words:
    """The words of a component, or of a whole name, and how they sound."""

    words: frozenset[str]
    sounds: frozenset[str]

    @classmethod
    def of(cls, components: Iterable[str]) -> _Words:
        words = frozenset(word for component in components for word in _words(component))
        return cls(words, frozenset(filter(None, map(soundex, words))))


def _parts(name: str) -> list[_Words]:
    """The words of each component in all groups; those of the whole name stand at the end."""
    groups = [group.split("^") for group in name.split("=")]
    parts = [
        _Words.of(group[i] for group in groups if len(group) > i)
        for i in range(max(map(len, groups)))
    ]
    return [*parts, _Words.of(component for group in groups for component in group)]


class _Word:
    """One word of a key: a name has it as it is, by a wild card, or as a word that sounds alike."""

    __slots__ = ("_pattern", "_sound", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._pattern = Wildcard(text) if "*" in text or "?" in text else None
        self._sound = soundex(text)

    def is_in(self, words: _Words) -> bool:
        if self._pattern is not None:
            return any(map(self._pattern.matches, words.words))
        return self._text in words.words or (bool(self._sound) and self._sound in words.sounds)


class FuzzyName:
    """Accepts what `literal` accepts, and names that have every word of the key.

    A word of a component is looked for in the same component of the name, in any of its groups; a key
    without a caret is looked for in the whole name. A key with groups (`=`) is compared literally.
    """

    __slots__ = ("_alternatives", "_literal", "narrowing")

    def __init__(self, values: Sequence[str], literal: Matcher) -> None:
        self.narrowing: Narrowing = None
        self._literal = literal
        self._alternatives: list[list[tuple[int, _Word]]] = []
        for value in values:
            components = value.split("^")
            words = [
                (i if len(components) > 1 else WHOLE, _Word(word))
                for i, component in enumerate(components)
                for word in _words(component)
                if word.strip("*")
            ]
            if "=" not in value and 0 < len(words) <= WORDS_MAX:
                self._alternatives.append(words)

    def matches(self, value: str) -> bool:
        if self._literal.matches(value):
            return True
        if not self._alternatives:
            return False
        parts = _parts(value)
        return any(
            all(i < len(parts) - 1 and word.is_in(parts[i]) for i, word in words)
            for words in self._alternatives
        )
