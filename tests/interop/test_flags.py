"""Every flag that a DCMTK tool knows is taken as it means it, or refused by name: none is misread."""

from __future__ import annotations

import re

import pytest

from dcmhaul.cli import ALIASES, _load, main
from dcmhaul.cli.arguments import PREFER, PROPOSE, normalise
from dcmhaul.cli.dcmtk import TOOL_FLAGS
from dcmhaul.errors import ConfigurationError
from tests.interop import peers

# A line of `TOOL --help`: `  -aet  --aetitle   [a]etitle: string`; either flag may stand alone.
_LINE = re.compile(r" +([-+]\S+)?(?: +(--[a-z0-9-]+))?  +(.*)")

# What every verb takes where its tool knows it; the letters are those of `-x?` and `+x?`.
PROMISED = """--help -v -d -q -ll -aet -aec -aem -pdu --max-send-pdu -to -ta -td -ts +v -k -W -P -S -O +P -od
    -R -nh +fo -B +B -x= -xe -xi -xv +x= +xe +xi +xs +xv +xa -pm -X --cancel --repeat --abort --ignore
    +sd +r -usr -pwd +tls +tla +cf -rc -vc -ic"""


def flags_of(tool: str) -> dict[str, int]:
    """What the installed tool says that it takes: flag -> how many words follow it."""
    found: dict[str, int] = {}
    for line in peers.run_tool(tool, "--help").stdout.splitlines():
        match = _LINE.match(line)
        if match is not None:
            found |= {flag: match[3].count("[") for flag in match.groups()[:2] if flag}
    return found


@pytest.mark.parametrize("tool", ALIASES)
def test_each_flag_of_the_installed_tool(tool: str) -> None:
    flags = flags_of(tool)
    assert len(flags) > 60
    assert (flags["-aet"], flags["--max-pdu"], flags["-v"]) == (1, 1, 0)
    assert flags.keys() <= TOOL_FLAGS[tool], f"new: {sorted(flags.keys() - TOOL_FLAGS[tool])}"
    values = _load(ALIASES[tool]).values()
    taken = set()
    for flag, words in flags.items():
        arguments = [flag, *["1"] * words]
        if flag in values:
            assert values[flag] == words, flag
        try:
            found = normalise(arguments, values, tool=tool)
        except ConfigurationError as error:
            expected = f"{flag}: an option of DCMTK's {tool} that dcmhaul does not support"
            assert str(error).partition(";")[0] == expected  # noqa: PT017  # most are taken
        else:
            assert found[0] in (flag, PREFER, PROPOSE)
            taken.add(flag)
    promised = {*PROMISED.split(), "-xs"} if tool == "storescu" else set(PROMISED.split())
    assert taken >= promised & flags.keys()


def test_a_refusal_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["storescp", "0", "--fork"]) == 2
    assert capsys.readouterr() == (
        "",
        "dcmhaul: --fork: an option of DCMTK's storescp that dcmhaul does not support; many "
        "associations are served at once without it\n",
    )
