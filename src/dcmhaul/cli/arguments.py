"""Argument vectors before click: `@file`, DCMTK's spellings, and refusal of what would be misread.

click splits an option at `=` and reads an unknown single-dash word as a cluster or as an attached
value; so `-x=` would fail and `-odx` would mean `-o dx`. Here every such word is either rewritten
to a spelling that click reads rightly, or refused by name.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from dcmhaul.cli.dcmtk import SYNTAX_LETTERS, TOOL_FLAGS, instead_of
from dcmhaul.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["PREFER", "PROPOSE", "expand_files", "normalise"]

# The click options that carry the letters of -x? and +x?; hidden, for the letters are documented.
PROPOSE = "--propose"
PREFER = "--prefer"

_CLUSTER = frozenset("vdq")


def expand_files(arguments: Sequence[str]) -> list[str]:
    """Each `@file` replaced by the words of that file; quotes and `#` comments as in a shell."""
    expanded: list[str] = []
    for argument in arguments:
        if not argument.startswith("@") or len(argument) == 1:
            expanded.append(argument)
            continue
        try:
            text = Path(argument[1:]).read_text(encoding="utf-8")
            expanded += shlex.split(text, comments=True)
        except OSError as error:
            raise ConfigurationError(f"{argument}: {error.strerror}") from error
        except ValueError as error:
            raise ConfigurationError(f"{argument}: {error}") from error
    return expanded


def _syntax_spellings(values: Mapping[str, int], tool: str | None) -> dict[str, list[str]]:
    """DCMTK's spellings of the letters that this verb takes: spelling -> our option, letter."""
    flags = TOOL_FLAGS.get(tool or "", frozenset())
    spellings: dict[str, list[str]] = {}
    for option, sign, verb in ((PROPOSE, "-", "propose"), (PREFER, "+", "prefer")):
        if option not in values:
            continue
        for letter, syntax in SYNTAX_LETTERS.items():
            short = f"{sign}x{letter}"
            long = "--implicit" if short == "+xi" else f"--{verb}-{syntax.long}"
            # Both, because storescp's -xs is another option. No peer deflates identifiers.
            deflated = letter == "d" and tool in ("findscu", "getscu", "movescu") and sign == "-"
            if {short, long} <= flags and not deflated:
                spellings[short] = spellings[long] = [option, letter]
    return spellings


def normalise(
    arguments: Sequence[str], values: Mapping[str, int], *, tool: str | None = None
) -> list[str]:
    """The arguments in spellings that click reads rightly; ConfigurationError for any other.

    values: each spelling that the verb's click command declares, and how many words follow it.
    tool: the DCMTK tool that the verb stands for, whose other flags are refused by name.
    """
    syntaxes = _syntax_spellings(values, tool)
    result: list[str] = []
    words = list(arguments)
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word == "--":
            result += words[position - 1 :]
            break
        if len(word) < 2 or word[0] not in "-+":
            result.append(word)
        elif word in values:
            # The words after an option are its values, whatever they look like.
            result += words[position - 1 : position + values[word]]
            position += values[word]
        elif word in syntaxes:
            result += syntaxes[word]
        elif word.startswith("--") and "=" in word and word.partition("=")[0] in values:
            result.append(word)
        elif word[0] == "-" and word[1] != "-" and _CLUSTER.issuperset(word[1:]):
            result += [f"-{letter}" for letter in word[1:]]
        else:
            raise ConfigurationError(_refusal(word, tool))
    return result


def _refusal(word: str, tool: str | None) -> str:
    spelling = word if word in TOOL_FLAGS.get(tool or "", ()) else word.partition("=")[0]
    if tool is not None and spelling in TOOL_FLAGS[tool]:
        instead = instead_of(spelling)
        text = f"{spelling}: an option of DCMTK's {tool} that dcmhaul does not support"
        return f"{text}; {instead}" if instead else text
    hint = "; a value stands apart from its option" if word[:2] != "--" and len(word) > 2 else ""
    return f"no such option: {word}{hint} (--help lists them)"
