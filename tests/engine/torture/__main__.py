"""`make torture`: TORTURE_KILLS kills (500) of one TORTURE_SEED; says what happened.

Where an invariant does not hold the processes' folders stay, and their place is printed.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from pathlib import Path

import trio

from tests.engine.torture.campaign import Campaign, deck
from tests.engine.torture.sessions import run_sessions


def say(line: str) -> None:
    print(line, flush=True)


async def main(folder: Path, kills: int, seed: int) -> None:
    started = time.monotonic()
    async with Campaign.opened(folder, seed) as campaign:
        try:
            await run_sessions(campaign, deck(random.Random(seed), kills), say)
        finally:
            say(f"seed {seed}, {time.monotonic() - started:.0f} s")
            say("\n".join(campaign.tally.lines()))


if __name__ == "__main__":
    given = os.environ.get("TORTURE_SEED") or random.SystemRandom().randrange(1_000_000)
    where = Path(tempfile.mkdtemp(prefix="dcmhaul-torture-"))
    say(f"seed {given}, {where}")
    trio.run(main, where, int(os.environ.get("TORTURE_KILLS") or "500"), int(given))
    shutil.rmtree(where)
