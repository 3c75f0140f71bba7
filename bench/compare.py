"""What became faster or slower between two runs of one script, beyond their noise.

    python -m bench.compare before.json after.json

Every list of rounds that both files have at the same place is compared: the ratio of the medians with
a 95 % interval by bootstrap. A line is printed where that interval does not hold 1. Other tools are in
the runs too: where DCMTK changed, the machine did.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bench.tables import short

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROUNDS_MIN: Final = 3
RESAMPLES: Final = 10_000
CONFIDENCE: Final = 0.95
# What a larger number is good for, by the names that the scripts use; everything else is a cost.
_RATES: Final = ("per_second", "rates", "ratio")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One list of rounds in both runs. ratio: median after over median before; low, high: its interval."""

    name: str
    rate: bool
    ratio: float
    low: float
    high: float

    @property
    def beyond_noise(self) -> bool:
        return not self.low <= 1 <= self.high

    @property
    def verdict(self) -> str:
        if not self.beyond_noise:
            return "no difference"
        return "better" if (self.ratio > 1) == self.rate else "worse"


def rounds(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, list[float]]]:
    """Every list of at least three positive numbers, and where it is."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from rounds(inner, (*path, str(key)))
    elif isinstance(value, list):
        numbers = [x for x in value if isinstance(x, int | float) and not isinstance(x, bool)]
        if len(numbers) == len(value) >= ROUNDS_MIN and min(numbers) > 0:
            yield " / ".join(path), [float(x) for x in numbers]
            return
        for number, inner in enumerate(value):
            title = inner.get("title", number) if isinstance(inner, dict) else number
            yield from rounds(inner, (*path, str(title)))


def compare(name: str, before: Sequence[float], after: Sequence[float]) -> Change:
    """The ratio of the medians of two samples that were taken apart from each other."""
    generator = np.random.default_rng(0)  # the same files say the same each time

    def medians(values: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
        drawn = generator.choice(np.asarray(values), size=(RESAMPLES, len(values)))
        return np.asarray(np.median(drawn, axis=1))

    ratios = medians(after) / medians(before)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Change(
        name=name,
        rate=any(word in name for word in _RATES),
        ratio=float(np.median(after) / np.median(before)),
        low=float(low),
        high=float(high),
    )


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Of all rounds that both runs have, in the order of the later one."""
    known = dict(rounds(before))
    return [compare(name, known[name], values) for name, values in rounds(after) if name in known]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"{path}: expected the JSON of a run: {error}")
    if not isinstance(found, dict):
        sys.exit(f"{path}: expected the JSON of a run, an object")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--all", action="store_true", help="print what did not change, too")
    given = parser.parse_args()
    before, after = _read(given.before), _read(given.after)
    machines = [run.get("machine", {}) for run in (before, after)]
    for key in sorted(set(machines[0]) | set(machines[1])):
        values = [str(machine.get(key, "unknown")) for machine in machines]
        if key != "date" and values[0] != values[1]:
            print(f"{key} differs: {values[0]}, then {values[1]}")
    found = changes(before, after)
    if not found:
        sys.exit("the two runs have no rounds in common: are they of one script?")
    shown = [change for change in found if given.all or change.beyond_noise]
    for change in shown:
        interval = f"{short(change.low)}-{short(change.high)}"
        print(f"{change.verdict}: {change.name}: x {short(change.ratio)} ({interval})")
    print(f"{len(found)} compared, {sum(change.beyond_noise for change in found)} beyond noise")


if __name__ == "__main__":
    main()
