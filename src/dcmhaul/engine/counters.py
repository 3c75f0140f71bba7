"""What associations did, as plain integers in one flat array; knows no metrics library, no clock.

The array is the whole state: two processes with the same nodes can add theirs, and every place in
it is a sum (the latency buckets too). `families` gives the numbers their names and labels at the
moment somebody asks; until then counting is an addition.
"""

from __future__ import annotations

import itertools
import threading
from array import array
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from dcmhaul.protocol.events import Role
from dcmhaul.protocol.statuses import StatusCategory, category
from dcmhaul.wire._buckets import SLOTS, Buckets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from dcmhaul.net.types import AssociationStats

__all__ = ["OTHER", "Counters", "Family", "NodeObserver"]

OTHER = "other"

DIRECTIONS = ("in", "out")
CALLS = ("recv", "send")
QUIRKS = ("odd_fragment", "oversized_pdu")
ROLES = tuple(role.value for role in Role)
CATEGORIES = tuple(StatusCategory)
OPERATIONS = (
    "C-ECHO",
    "C-STORE",
    "C-FIND",
    "C-GET",
    "C-MOVE",
    "N-EVENT-REPORT",
    "N-GET",
    "N-SET",
    "N-ACTION",
    "N-CREATE",
    "N-DELETE",
    OTHER,
)
DURABILITY_MODES = ("each", "batch", "none")
ORIGINS = ("local", "peer", OTHER)
# A-ASSOCIATE-RJ and A-ABORT: sources 0-3, reasons 0-7 (PS3.8 §9.3.4, §9.3.8); what is above is one.
SOURCES = ("0", "1", "2", "3", OTHER)
REASONS = ("0", "1", "2", "3", "4", "5", "6", "7", OTHER)

# Places in the array. First those of the process, then one block a node.
_PDUS = 0
_CALLS = _PDUS + len(DIRECTIONS)
_WAKEUPS = _CALLS + len(DIRECTIONS)
_QUIRKS = _WAKEUPS + 1
_PROCESS_SIZE = _QUIRKS + len(QUIRKS)

_BYTES = 0
_OPEN = _BYTES + len(DIRECTIONS)
_INSTANCES = _OPEN + len(ROLES)
_REJECTED = _INSTANCES + len(DIRECTIONS) * len(CATEGORIES)
_ABORTED = _REJECTED + len(ROLES) * len(SOURCES) * len(REASONS)
_REQUESTS = _ABORTED + len(ORIGINS) * len(SOURCES) * len(REASONS)
_SECONDS = _REQUESTS + len(OPERATIONS) * len(CATEGORIES)
_NODE_SIZE = _SECONDS + len(OPERATIONS) * SLOTS

_NANOSECONDS = 1_000_000_000
_ROLE_PLACE = {role: place for place, role in enumerate(Role)}
_CATEGORY_PLACE = {found: place for place, found in enumerate(CATEGORIES)}
_OPERATION_PLACE = {name: place for place, name in enumerate(OPERATIONS)}
_ORIGIN_PLACE = {name: place for place, name in enumerate(ORIGINS)}
_DIRECTION_PLACE = {name: place for place, name in enumerate(DIRECTIONS)}
_STORE_PLACE = _OPERATION_PLACE["C-STORE"]


Kind = Literal["counter", "gauge", "histogram"]

_DESCRIPTIONS: dict[str, tuple[Kind, str, tuple[str, ...]]] = {
    "bytes": (
        "counter",
        "Dataset bytes, without PDU and PDV headers",
        ("node", "direction"),
    ),
    "instances": (
        "counter",
        "C-STORE requests that were answered, by the class of the status",
        ("node", "direction", "status_class"),
    ),
    "associations": (
        "gauge",
        "Associations, by what they are doing now",
        ("node", "role", "state"),
    ),
    "associations_rejected": (
        "counter",
        "A-ASSOCIATE-RJ received (requestor) or sent (acceptor), PS3.8 9.3.4",
        ("node", "role", "source", "reason"),
    ),
    "associations_aborted": (
        "counter",
        "Associations that ended by A-ABORT or by a lost connection, PS3.8 9.3.8",
        ("node", "origin", "source", "reason"),
    ),
    "dimse_requests": (
        "counter",
        "DIMSE operations that were answered, by the class of the status",
        ("node", "op", "status_class"),
    ),
    "dimse_seconds": (
        "histogram",
        "Time of a DIMSE operation, from its request to its final response",
        ("node", "op"),
    ),
    "durability_mode": (
        "gauge",
        "1 for what 0000 promises of the instances that are stored here",
        ("mode",),
    ),
    "pdus": ("counter", "PDUs of every type", ("direction",)),
    "syscalls": ("counter", "System calls on the sockets of associations", ("call",)),
    "tolerated_quirks": (
        "counter",
        "What peers did against PS3.8 that was taken all the same",
        ("quirk",),
    ),
    "wakeups": ("counter", "Waits for a socket to become readable or writable", ()),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric without its prefix: what it is called, what its labels are, what was counted.

    A counter's name has no `_total`. A histogram's values are Buckets of nanoseconds.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    samples: tuple[tuple[tuple[str, ...], int | Buckets], ...]


class Counters:
    """The counts of a process. One thread counts; any thread may ask.

    nodes: the configured names. Whatever else turns up is counted under `other`, so the number of
    label values is known from the start. durability: the mode in force (objects.paths.Durability),
    None where nothing is stored.
    """

    def __init__(self, nodes: Iterable[str] = (), *, durability: str | None = None) -> None:
        self.durability = durability
        self.nodes = (*(node for node in dict.fromkeys(nodes) if node != OTHER), OTHER)
        size = _PROCESS_SIZE + len(self.nodes) * _NODE_SIZE
        self._values = array("q", bytes(size * 8))
        # Held while an association comes or goes and while the array is copied, never per message:
        # without it a scrape could see an association's counts twice, or not at all.
        self._lock = threading.Lock()
        self._live: dict[Callable[[], AssociationStats], int] = {}
        self._observers = {
            node: NodeObserver(self, _PROCESS_SIZE + place * _NODE_SIZE)
            for place, node in enumerate(self.nodes)
        }

    def observer(self, node: str) -> NodeObserver:
        """What associations with this node report to; `other` unless the name was configured."""
        return self._observers.get(node, self._observers[OTHER])

    def snapshot(self) -> array[int]:
        """A copy of the array, with what the open associations have counted so far."""
        with self._lock:
            values = self._values[:]
            for live, base in self._live.items():
                _add_stats(values, base, live())
        return values

    def add(self, values: array[int]) -> None:
        """Adds the snapshot of another process that counts for the same nodes."""
        if len(values) != len(self._values):
            raise ValueError(
                f"counters of {len(self._values)} places cannot take {len(values)}: "
                "both processes must count for the same nodes"
            )
        with self._lock:
            for place, value in enumerate(values):
                if value:
                    self._values[place] += value

    def families(self) -> tuple[Family, ...]:
        """Everything that was counted up to now, named as a metrics system wants it."""
        modes = DURABILITY_MODES if self.durability is not None else ()
        mode = _described(
            "durability_mode", (((mode,), int(mode == self.durability)) for mode in modes)
        )
        return (*_families(self.nodes, self.snapshot()), mode)

    def _opened(self, base: int, live: Callable[[], AssociationStats]) -> None:
        with self._lock:
            self._live[live] = base

    def _closed(
        self, base: int, stats: AssociationStats, live: Callable[[], AssociationStats]
    ) -> None:
        with self._lock:
            self._live.pop(live, None)
            _add_stats(self._values, base, stats)


class NodeObserver:
    """The net.types.Observer of all associations with one node; made by `Counters`."""

    def __init__(self, counters: Counters, base: int) -> None:
        self._counters = counters
        self._values = counters._values
        self._base = base
        memory = memoryview(self._values)
        first = base + _SECONDS
        self._seconds = [
            Buckets(memory[first + place * SLOTS : first + (place + 1) * SLOTS])
            for place in range(len(OPERATIONS))
        ]
        # (operation, status) -> places; at most one entry a status value and operation.
        self._places: dict[tuple[str, int], tuple[int, int]] = {}

    def of(self, node: str) -> NodeObserver:
        """The observer of another node, in the same counters."""
        return self._counters.observer(node)

    def association_opened(
        self, role: Role, peer: str, live: Callable[[], AssociationStats]
    ) -> None:
        self._values[self._base + _OPEN + _ROLE_PLACE[role]] += 1
        self._counters._opened(self._base, live)

    def association_closed(
        self, role: Role, stats: AssociationStats, live: Callable[[], AssociationStats]
    ) -> None:
        self._values[self._base + _OPEN + _ROLE_PLACE[role]] -= 1
        self._counters._closed(self._base, stats, live)

    def association_rejected(self, role: Role, result: int, source: int, reason: int) -> None:
        self._values[self._base + _REJECTED + _table_place(_ROLE_PLACE[role], source, reason)] += 1

    def association_aborted(self, role: Role, origin: str, source: int, reason: int) -> None:
        place = _ORIGIN_PLACE.get(origin, _ORIGIN_PLACE[OTHER])
        self._values[self._base + _ABORTED + _table_place(place, source, reason)] += 1

    def operation(
        self, operation: str, direction: str, status: int, seconds: float, dataset_bytes: int
    ) -> None:
        try:
            kind, found = self._places[operation, status]
        except KeyError:
            kind, found = self._places[operation, status] = _operation_places(operation, status)
        values, base = self._values, self._base
        values[base + _REQUESTS + kind * len(CATEGORIES) + found] += 1
        if kind == _STORE_PLACE:
            way = _DIRECTION_PLACE[direction]
            values[base + _INSTANCES + way * len(CATEGORIES) + found] += 1
        self._seconds[kind].record(int(seconds * _NANOSECONDS))


def _operation_places(operation: str, status: int) -> tuple[int, int]:
    kind = _OPERATION_PLACE.get(operation, _OPERATION_PLACE[OTHER])
    return kind, _CATEGORY_PLACE[category(status, operation)]


def _table_place(first: int, source: int, reason: int) -> int:
    """Where (first, source, reason) stands; values that the standard does not know share one."""
    row = source if 0 <= source < len(SOURCES) - 1 else len(SOURCES) - 1
    column = reason if 0 <= reason < len(REASONS) - 1 else len(REASONS) - 1
    return (first * len(SOURCES) + row) * len(REASONS) + column


def _add_stats(values: array[int], base: int, stats: AssociationStats) -> None:
    values[base + _BYTES] += stats.bytes_in
    values[base + _BYTES + 1] += stats.bytes_out
    values[_PDUS] += stats.pdus_in
    values[_PDUS + 1] += stats.pdus_out
    values[_CALLS] += stats.receive_calls
    values[_CALLS + 1] += stats.send_calls
    values[_WAKEUPS] += stats.wakeups
    values[_QUIRKS] += stats.odd_fragments_in
    values[_QUIRKS + 1] += stats.oversized_pdus_in


class _Block:
    """Reads the blocks of all nodes in a snapshot."""

    def __init__(self, nodes: tuple[str, ...], values: array[int]) -> None:
        self.values = values
        self.bases = [
            (node, _PROCESS_SIZE + place * _NODE_SIZE) for place, node in enumerate(nodes)
        ]

    def family(self, name: str, offset: int, *axes: tuple[str, ...], zeros: bool) -> Family:
        """Every combination of the axes, in the order in which it lies in a node's block.

        zeros: whether places that are still 0 are shown too.
        """
        kind, text, labels = _DESCRIPTIONS[name]
        found: list[tuple[tuple[str, ...], int]] = []
        for node, base in self.bases:
            for place, rest in enumerate(itertools.product(*axes), base + offset):
                if zeros or self.values[place]:
                    found.append(((node, *rest), self.values[place]))
        return Family(name=name, kind=kind, help=text, labels=labels, samples=tuple(found))


def _families(nodes: tuple[str, ...], values: array[int]) -> Iterator[Family]:
    block = _Block(nodes, values)
    categories = tuple(found.name.lower() for found in CATEGORIES)
    yield block.family("bytes", _BYTES, DIRECTIONS, zeros=True)
    instances = block.family("instances", _INSTANCES, DIRECTIONS, categories, zeros=True)
    final = ("success", "warning", "failure")
    yield replace(
        instances,
        samples=tuple(
            (labels, value) for labels, value in instances.samples if value or labels[2] in final
        ),
    )
    yield block.family("associations", _OPEN, ROLES, ("open",), zeros=True)
    yield block.family("associations_rejected", _REJECTED, ROLES, SOURCES, REASONS, zeros=False)
    yield block.family("associations_aborted", _ABORTED, ORIGINS, SOURCES, REASONS, zeros=False)
    yield block.family("dimse_requests", _REQUESTS, OPERATIONS, categories, zeros=False)
    yield _described("dimse_seconds", _histograms(block.bases, values))
    yield _described("pdus", (((way,), values[_PDUS + i]) for i, way in enumerate(DIRECTIONS)))
    yield _described("syscalls", (((c,), values[_CALLS + i]) for i, c in enumerate(CALLS)))
    yield _described("wakeups", [((), values[_WAKEUPS])])
    yield _described(
        "tolerated_quirks", (((quirk,), values[_QUIRKS + i]) for i, quirk in enumerate(QUIRKS))
    )


def _described(name: str, samples: Iterable[tuple[tuple[str, ...], int | Buckets]]) -> Family:
    kind, text, labels = _DESCRIPTIONS[name]
    return Family(name=name, kind=kind, help=text, labels=labels, samples=tuple(samples))


def _histograms(
    bases: list[tuple[str, int]], values: array[int]
) -> Iterator[tuple[tuple[str, ...], Buckets]]:
    memory = memoryview(values)
    for node, base in bases:
        for place, name in enumerate(OPERATIONS):
            first = base + _SECONDS + place * SLOTS
            buckets = Buckets(memory[first : first + SLOTS])
            if buckets.count:
                yield (node, name), buckets
