"""Each target on its seeds, on what a search once found, and on many mutations of both."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.corpus import mutated, seeds
from tests.fuzz.targets import TARGETS

FOUND = Path(__file__).parent / "found"
MUTATIONS = 4000


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_keep_the_invariant(name: str) -> None:
    chance = random.Random(2026)
    begun = seeds(name) + [path.read_bytes() for path in sorted((FOUND / name).glob("*"))]
    for seed in begun:
        TARGETS[name](seed)
    for number in range(MUTATIONS):
        data = mutated(chance.choice(begun), chance)
        try:
            TARGETS[name](data)
        except Exception as error:
            raise AssertionError(f"mutation {number}: {data.hex()}") from error
