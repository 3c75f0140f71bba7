"""What the layers below log is said by the console, by its level."""

from __future__ import annotations

import logging

import pytest

from dcmhaul.cli.console import Console, Level, logged


@pytest.mark.parametrize(
    ("level", "said"),
    [
        (Level.FATAL, []),
        (Level.ERROR, ["lost\\x07"]),
        (Level.WARN, ["odd", "lost\\x07"]),
        (Level.DEBUG, ["odd", "lost\\x07", "why", "ValueError: because"]),
    ],
)
def test_the_log_by_level(
    level: Level, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("dcmhaul.net.listener")
    with logged(Console(level)):
        log.warning("%s", "odd")
        log.error("lost\a")
        log.debug("why", exc_info=ValueError("because"))
    assert capsys.readouterr().err.splitlines() == said
    assert not logging.getLogger("dcmhaul").handlers
