"""`make fuzz`: searches FUZZ_SECONDS (60) for input that breaks each target in turn.

atheris is guided by the branches of our Python. Targets whose code is all in the extension give it no
guidance: they get random mutations of real input instead. FUZZ_TARGET names one target. What breaks one
is written to a file that the message names; put it into tests/fuzz/found/TARGET/, from where the test
suite runs it ever after.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SECONDS = int(os.environ.get("FUZZ_SECONDS", "60"))
COMPILED = ("pdu_reader", "elements")


def _guided(name: str) -> None:
    import atheris

    with atheris.instrument_imports(include=["dcmhaul"]):
        from tests.fuzz.corpus import seeds
        from tests.fuzz.targets import TARGETS

    with tempfile.TemporaryDirectory(prefix="dcmhaul-fuzz-") as folder:
        for number, seed in enumerate(seeds(name)):
            (Path(folder) / str(number)).write_bytes(seed)
        atheris.Setup([name, folder, f"-max_total_time={SECONDS}", "-max_len=8192"], TARGETS[name])
        atheris.Fuzz()


def _mutate(name: str) -> None:
    from tests.fuzz.corpus import mutated, seeds
    from tests.fuzz.targets import TARGETS

    chance, begun, runs = random.Random(), seeds(name), 0
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        data = mutated(chance.choice(begun), chance)
        runs += 1
        try:
            TARGETS[name](data)
        except Exception:
            Path(f"crash-{name}").write_bytes(data)
            print(f"run {runs}: the input is in crash-{name}", file=sys.stderr)
            raise
    print(f"{runs} runs")


def main() -> int:
    """Each target in a process of its own, since libFuzzer ends the process that it ran in."""
    if len(sys.argv) > 1:
        name = sys.argv[1]
        (_mutate if name in COMPILED else _guided)(name)
        return 0
    from tests.fuzz.targets import TARGETS

    chosen = os.environ.get("FUZZ_TARGET", "")
    if chosen and chosen not in TARGETS:
        print(f"FUZZ_TARGET is one of {', '.join(TARGETS)}, not {chosen!r}", file=sys.stderr)
        return 2
    broken = []
    for name in [chosen] if chosen else TARGETS:
        print(f"== {name}, {SECONDS} s", flush=True)
        if subprocess.run([sys.executable, "-m", "tests.fuzz", name], check=False).returncode:
            broken.append(name)
    print(f"broken: {', '.join(broken)}" if broken else "nothing was found")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
