"""DCMTK's spellings before click sees them, and the refusal of what would be misread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from dcmhaul.cli.arguments import expand_files, normalise
from dcmhaul.cli.dcmtk import SYNTAX_LETTERS, TOOL_FLAGS, preferred_syntaxes
from dcmhaul.errors import ConfigurationError
from dcmhaul.uids import TRANSFER_SYNTAXES

if TYPE_CHECKING:
    from pathlib import Path

VALUES = {
    "-aet": 1,
    "-k": 1,
    "--key": 1,
    "-od": 1,
    "-xf": 2,
    "-v": 0,
    "-d": 0,
    "-q": 0,
    "-S": 0,
    "+sd": 0,
    "--propose": 1,
    "--prefer": 1,
}


@pytest.mark.parametrize(
    "words",
    [
        ["-aet", "A", "host", "104", "-k", "PatientName=X"],
        ["host", "104", "+sd", "-S"],
        ["-k", "-v", "host"],
        ["-xf", "-a", "-b", "host"],
        ["--key=0010,0010=V", "host"],
        ["-", "+", ""],
        ["--", "-od", "-nonsense"],
        ["-k"],
    ],
)
def test_words_that_stay(words: list[str]) -> None:
    assert normalise(words, VALUES) == words


def test_clusters_of_v_d_q_come_apart() -> None:
    assert normalise(["-vd", "host", "-vv"], VALUES) == ["-v", "-d", "host", "-v", "-v"]


@pytest.mark.parametrize(
    "word", ["-odx", "-kx", "-vS", "+x", "-aetX", "--nonsense", "-k=V", "+sdr"]
)
def test_an_unknown_word_is_refused(word: str) -> None:
    with pytest.raises(ConfigurationError, match="no such option"):
        normalise([word, "host"], VALUES)


def test_an_attached_value_is_explained() -> None:
    with pytest.raises(ConfigurationError, match="a value stands apart from its option"):
        normalise(["-odx"], VALUES)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("-x=", ["--propose", "="]),
        ("-xs", ["--propose", "s"]),
        ("--propose-lossless", ["--propose", "s"]),
        ("-xi", ["--propose", "i"]),
    ],
)
def test_letters_of_storescu(word: str, expected: list[str]) -> None:
    assert normalise([word], VALUES, tool="storescu") == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("+x=", ["--prefer", "="]),
        ("+xi", ["--prefer", "i"]),
        ("--implicit", ["--prefer", "i"]),
        ("--prefer-rle", ["--prefer", "r"]),
    ],
)
def test_letters_of_storescp(word: str, expected: list[str]) -> None:
    assert normalise([word], VALUES, tool="storescp") == expected


def test_a_letter_of_another_tool_is_not_taken() -> None:
    # storescp's -xs is --exec-sync: misread as a syntax it would change what is accepted.
    with pytest.raises(ConfigurationError, match=r"-xs: an option of DCMTK's storescp"):
        normalise(["-xs"], VALUES, tool="storescp")
    with pytest.raises(ConfigurationError, match="no such option: -xs"):
        normalise(["-xs"], VALUES, tool="findscu")


@pytest.mark.parametrize(
    ("tool", "flag"),
    [
        ("echoscu", "+tls"),
        ("echoscu", "-pts"),
        ("findscu", "-Xs"),
        ("getscu", "+cf"),
        ("storescu", "-xf"),
        ("storescu", "--jwt"),
        ("storescu", "+II"),
        ("storescp", "+t="),
        ("storescp", "--fork"),
        ("storescp", "-ss"),
    ],
)
def test_a_flag_of_dcmtk_is_refused_by_name(tool: str, flag: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        normalise([flag, "x"], {"-v": 0}, tool=tool)
    assert str(caught.value).startswith(f"{flag}: an option of DCMTK's {tool} ")


def test_a_long_flag_with_a_value_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"--config-file: an option of DCMTK's storescu"):
        normalise(["--config-file=x"], {"-v": 0}, tool="storescu")


def test_syntaxes_are_those_of_the_dictionary() -> None:
    for letter in SYNTAX_LETTERS.values():
        assert set(letter.uids) <= TRANSFER_SYNTAXES.keys()


def test_of_several_letters_the_last_holds() -> None:
    assert preferred_syntaxes(("i", "s")) == ("1.2.840.10008.1.2.4.70",)
    assert preferred_syntaxes(("s", "i")) == ("1.2.840.10008.1.2",)
    assert preferred_syntaxes(()) == ()


def test_tools_have_their_general_flags() -> None:
    for tool, flags in TOOL_FLAGS.items():
        assert {"-v", "-d", "-aet", "--help", "+tls"} <= flags, tool


def test_a_file_of_arguments(tmp_path: Path) -> None:
    path = tmp_path / "arguments"
    path.write_text("-aet 'MY AET'  # ours\n-k PatientName=\"A B\"\n")
    assert expand_files(["find", f"@{path}", "host"]) == [
        "find",
        "-aet",
        "MY AET",
        "-k",
        "PatientName=A B",
        "host",
    ]
    assert expand_files(["@", "A@host:104"]) == ["@", "A@host:104"]


def test_a_file_of_arguments_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        expand_files([f"@{tmp_path}/absent"])
    (tmp_path / "open").write_text("'never closed")
    with pytest.raises(ConfigurationError):
        expand_files([f"@{tmp_path}/open"])
