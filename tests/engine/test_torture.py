"""The small form of `make torture`: fifty kills, every labelled point among them."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from dcmhaul import crash
from tests.engine.torture.campaign import POINTS, RANDOM, Campaign, deck
from tests.engine.torture.sessions import run_sessions

if TYPE_CHECKING:
    from pathlib import Path

KILLS = 50
SEED = 1


@pytest.mark.slow
async def test_killed_again_and_again(tmp_path: Path) -> None:
    seed = int(os.environ.get("TORTURE_SEED") or SEED)
    print(f"TORTURE_SEED={seed}")
    async with Campaign.opened(tmp_path, seed) as campaign:
        await run_sessions(campaign, deck(random.Random(seed), KILLS), print)
        print("\n".join(campaign.tally.lines()))
    made = campaign.tally.kills
    assert made.total() == KILLS
    assert {label for _, _, label in made} == {*crash.LABELS, RANDOM}
    assert campaign.tally.acknowledged > 0


@pytest.mark.parametrize("kills", [50, 500])
def test_a_deck_has_every_label_and_as_many_random_moments(kills: int) -> None:
    chosen = deck(random.Random(SEED), kills)
    assert len(chosen) == kills
    assert {kill.label for kill in chosen} == {*crash.LABELS, RANDOM}
    assert {(kill.transfer, kill.victim) for kill in chosen} == set(POINTS)
    at_random = sum(kill.label == RANDOM for kill in chosen)
    assert kills // 4 <= at_random <= kills * 3 // 5
