"""Counters: every count lands under its labels, arrays add, open associations are included."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import pytest

from dcmhaul.engine.counters import OTHER, Counters, NodeObserver
from dcmhaul.net.types import AssociationStats
from dcmhaul.protocol.events import Role
from dcmhaul.wire._buckets import Buckets

if TYPE_CHECKING:
    from dcmhaul.net.types import Observer

Samples = dict[tuple[str, ...], int]


def samples(counters: Counters, name: str) -> Samples:
    family = next(family for family in counters.families() if family.name == name)
    return {labels: value for labels, value in family.samples if isinstance(value, int)}


def nonzero(counters: Counters, name: str) -> Samples:
    return {labels: value for labels, value in samples(counters, name).items() if value}


class OpenAssociation:
    """Stands for an association: its statistics change while it is open."""

    def __init__(self) -> None:
        self.counts = AssociationStats()

    def stats(self) -> AssociationStats:
        return self.counts


def test_an_observer_is_one_of_net() -> None:
    observer: Observer = Counters().observer("anything")
    assert isinstance(observer, NodeObserver)


def test_open_associations_are_included_and_counted_once() -> None:
    counters = Counters(["old"])
    observer = counters.observer("old")
    association = OpenAssociation()
    observer.association_opened(Role.REQUESTOR, "127.0.0.1:104", association.stats)
    association.counts = AssociationStats(
        pdus_in=3, pdus_out=5, bytes_in=70, bytes_out=110, receive_calls=2, send_calls=4, wakeups=1
    )
    for final in (False, True):
        if final:
            observer.association_closed(Role.REQUESTOR, association.stats(), association.stats)
            association.counts = AssociationStats(pdus_in=1_000_000)  # nobody asks it any more
        assert nonzero(counters, "bytes") == {("old", "in"): 70, ("old", "out"): 110}
        assert nonzero(counters, "pdus") == {("in",): 3, ("out",): 5}
        assert nonzero(counters, "syscalls") == {("recv",): 2, ("send",): 4}
        assert nonzero(counters, "wakeups") == {(): 1}
        expected = {} if final else {("old", "requestor", "open"): 1}
        assert nonzero(counters, "associations") == expected


def test_what_was_tolerated_is_counted() -> None:
    counters = Counters(["old"])
    assert samples(counters, "tolerated_quirks") == {("odd_fragment",): 0, ("oversized_pdu",): 0}
    association = OpenAssociation()
    counters.observer("old").association_opened(Role.ACCEPTOR, "h:1", association.stats)
    association.counts = AssociationStats(odd_fragments_in=3, oversized_pdus_in=2)
    assert samples(counters, "tolerated_quirks") == {("odd_fragment",): 3, ("oversized_pdu",): 2}


def test_two_open_associations_of_one_node() -> None:
    counters = Counters(["old"])
    observer = counters.observer("old")
    first, second = OpenAssociation(), OpenAssociation()
    for association in (first, second):
        observer.association_opened(Role.ACCEPTOR, "h:1", association.stats)
        association.counts.bytes_in = 10
    assert samples(counters, "bytes")["old", "in"] == 20
    observer.association_closed(Role.ACCEPTOR, first.stats(), first.stats)
    second.counts.bytes_in = 15
    assert samples(counters, "bytes")["old", "in"] == 25
    assert samples(counters, "associations")["old", "acceptor", "open"] == 1


def test_instances_by_direction_and_class_of_status() -> None:
    counters = Counters(["old"])
    observer = counters.observer("old")
    for status in (0x0000, 0x0000, 0xB000, 0xA700):
        observer.operation("C-STORE", "out", status, 0.01, 500)
    observer.operation("C-STORE", "in", 0xC000, 0.01, 500)
    observer.operation("C-ECHO", "out", 0x0000, 0.01, 0)  # no instance
    assert nonzero(counters, "instances") == {
        ("old", "out", "success"): 2,
        ("old", "out", "warning"): 1,
        ("old", "out", "failure"): 1,
        ("old", "in", "failure"): 1,
    }
    assert nonzero(counters, "dimse_requests") == {
        ("old", "C-STORE", "success"): 2,
        ("old", "C-STORE", "warning"): 1,
        ("old", "C-STORE", "failure"): 2,
        ("old", "C-ECHO", "success"): 1,
    }


def test_latencies_by_operation() -> None:
    counters = Counters(["old"])
    for seconds in (0.001, 0.002, 0.5):
        counters.observer("old").operation("C-FIND", "out", 0, seconds, 0)
    counters.observer("new").operation("C-FIND", "out", 0, 2.0, 0)
    family = next(family for family in counters.families() if family.name == "dimse_seconds")
    found = dict(family.samples)
    assert set(found) == {("old", "C-FIND"), (OTHER, "C-FIND")}
    buckets = found["old", "C-FIND"]
    assert isinstance(buckets, Buckets)
    assert buckets.count == 3
    assert buckets.total == pytest.approx(0.503e9)


def test_rejections_and_aborts_keep_their_reason() -> None:
    counters = Counters(["old"])
    observer = counters.observer("old")
    observer.association_rejected(Role.REQUESTOR, 1, 1, 7)
    observer.association_rejected(Role.ACCEPTOR, 2, 3, 2)
    observer.association_aborted(Role.REQUESTOR, "peer", 0, 0)
    observer.association_aborted(Role.REQUESTOR, "local", 2, 6)
    assert nonzero(counters, "associations_rejected") == {
        ("old", "requestor", "1", "7"): 1,
        ("old", "acceptor", "3", "2"): 1,
    }
    assert nonzero(counters, "associations_aborted") == {
        ("old", "peer", "0", "0"): 1,
        ("old", "local", "2", "6"): 1,
    }


@pytest.mark.parametrize(("source", "reason"), [(255, 255), (4, 0), (0, 8), (-1, -1)])
def test_what_a_peer_invents_makes_no_new_label(source: int, reason: int) -> None:
    counters = Counters(["old"])
    observer = counters.observer("a title that nobody configured")
    observer.association_rejected(Role.REQUESTOR, 9, source, reason)
    observer.association_aborted(Role.REQUESTOR, "moon", source, reason)
    observer.operation("X-ODD", "in", 0xFFFF, 0.0, 0)
    for name in ("associations_rejected", "associations_aborted"):
        ((labels, count),) = nonzero(counters, name).items()
        assert count == 1
        assert labels[0] == OTHER
        assert OTHER in labels[2:]
    ((labels, _),) = nonzero(counters, "dimse_requests").items()
    assert labels[:2] == (OTHER, OTHER)


def test_another_process_is_added() -> None:
    first, second = Counters(["a", "b"]), Counters(["a", "b"])
    for counters, seconds in ((first, 0.01), (second, 0.02), (second, 0.03)):
        counters.observer("b").operation("C-STORE", "in", 0, seconds, 9)
    sent = array("q")
    sent.frombytes(second.snapshot().tobytes())  # as it would cross a socket
    first.add(sent)
    assert nonzero(first, "instances") == {("b", "in", "success"): 3}
    ((_, buckets),) = next(f for f in first.families() if f.name == "dimse_seconds").samples
    assert isinstance(buckets, Buckets)
    assert buckets.total == pytest.approx(0.06e9)


def test_counters_for_other_nodes_are_not_added() -> None:
    with pytest.raises(ValueError, match="same nodes"):
        Counters(["a"]).add(Counters(["a", "b"]).snapshot())


def test_other_is_there_once_and_last() -> None:
    assert Counters(["a", OTHER, "a", "b"]).nodes == ("a", "b", OTHER)


def test_known_metrics_show_zeros_from_the_start() -> None:
    counters = Counters(["old"])
    assert samples(counters, "bytes") == {
        (node, way): 0 for node in ("old", OTHER) for way in ("in", "out")
    }
    assert len(samples(counters, "instances")) == 2 * 2 * 3
    assert samples(counters, "associations_rejected") == {}
