"""Each command line of a session that users know by heart, at each archive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.interop import seed_session

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.filterwarnings("ignore::BytesWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.mark.parametrize("server", seed_session.SERVERS)
def test_the_session(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DCMHAUL_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    with seed_session.open_session(server, tmp_path) as session:
        outcomes = session.type_all()
    assert outcomes.keys() == seed_session.LINES.keys()
    expected = seed_session.EXPECTED[server]
    for line, outcome in outcomes.items():
        assert expected[line].differences(outcome, session.named) == [], (line, outcome)


def test_what_differs_is_told() -> None:
    """The judge can say no."""
    expected = seed_session.Expected(out="yes", err="well", arrives=True)
    named = frozenset({"1.dcm"})
    good = seed_session.Outcome(code=0, out="yes", err="well\n", files=named)
    assert expected.differences(good, named) == []
    bad = seed_session.Outcome(
        code=5, out="no", err="dcmhaul a\ndcmhaul b\n", files=frozenset({"2.dcm"})
    )
    assert len(expected.differences(bad, named)) == 5
