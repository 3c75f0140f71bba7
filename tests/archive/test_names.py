"""Fuzzy matching of person names: what sounds alike, what is the same without accents, what is not."""

from __future__ import annotations

import pytest

from dcmhaul.archive.matching import make_matcher
from dcmhaul.archive.names import WORDS_MAX, FuzzyName, plain, soundex


@pytest.mark.parametrize(
    ("word", "code"),
    [
        # The examples of the National Archives' description of the American Soundex.
        ("robert", "r163"),
        ("rupert", "r163"),
        ("ashcraft", "a261"),
        ("tymczak", "t522"),
        ("pfister", "p236"),
        ("honeyman", "h555"),
        ("lee", "l000"),
        ("gutierrez", "g362"),
        ("vandeusen", "v532"),
        ("washington", "w252"),
        ("j", "j000"),
        ("", ""),
        ("太郎", ""),
        ("x1", ""),
    ],
)
def test_soundex(word: str, code: str) -> None:
    assert soundex(word) == code


@pytest.mark.parametrize(
    "text",
    ["Müller", "MULLER", "mu\u0308ller", "MU\u0308LLER", "\uff2d\uff35\uff2c\uff2c\uff25\uff32"],
)
def test_accents_and_case_go(text: str) -> None:
    assert plain(text) == "muller"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Łódź", "lodz"),
        ("Straße", "strasse"),
        ("Ærø", "aero"),
        ("Ñandú", "nandu"),
        ("山田", "山田"),
    ],
)
def test_letters_without_accents(text: str, expected: str) -> None:
    assert plain(text) == expected


def accepts(key: str, name: str) -> bool:
    values = key.split("\\")
    return FuzzyName(values, make_matcher("PN", key)).matches(name)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("Mueller", "Müller^Hans"),
        ("Muller^Hans", "MÜLLER^HANS"),
        ("Swain", "Swayne^Bob"),
        ("Smith^Jon", "Smyth^John"),
        ("Mary Smith", "Smith^Mary"),
        ("Smith", "Garcia-Smith^Ana"),
        ("O'Brien", "OBRIEN^PAT"),
        ("Brien, Patrick", "Brien^Patrick"),
        ("Smi*^M?ry", "Smithers^Mary^Ann"),
        ("Smith^*", "Smith"),
        ("^Mary", "Smith^Mary"),
        ("Yamada", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("山田", "Yamada^Tarou=山田^太郎"),
        ("Nobody\\Smith", "Smyth^Mary"),
        # What is accepted literally is accepted.
        ("Yamada=山田", "Yamada=山田"),
        ("D*", "Doe^Jane"),
    ],
)
def test_what_is_accepted(key: str, name: str) -> None:
    assert accepts(key, name)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("Smith", "Jones^Mary"),
        ("Smith^Mary", "Smith"),
        ("Smith^Mary", "Smith^Peter"),
        ("Mary^Smith", "Smith^Mary"),
        ("^Smith", "Smith^Mary"),
        ("Smith Jones", "Smith^Mary"),
        ("山", "山田^太郎"),
        ("Yamada=川", "Yamada=山田"),
        ("X?", "Smith"),
    ],
)
def test_what_is_not(key: str, name: str) -> None:
    assert not accepts(key, name)


def test_a_key_of_too_many_words_is_literal() -> None:
    words = " ".join(["smith"] * (WORDS_MAX + 1))
    assert not accepts(words, "Smith")
    assert accepts(words, words.upper())
