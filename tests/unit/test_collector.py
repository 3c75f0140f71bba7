"""The Prometheus side: names, labels and buckets of a scrape, and the little server."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dcmhaul.engine.counters import Counters
from dcmhaul.errors import ConfigurationError
from dcmhaul.net.types import AssociationStats
from dcmhaul.observe.collector import BOUNDS_SECONDS, serve_metrics
from dcmhaul.protocol.events import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

Scrape = dict[str, dict[frozenset[tuple[str, str]], float]]


def scrape(counters: Counters) -> Scrape:
    """What Prometheus would store: sample name -> labels -> value."""
    with (
        serve_metrics("127.0.0.1", 0, counters) as (host, port),
        urllib.request.urlopen(f"http://{host}:{port}/metrics") as answer,
    ):
        assert answer.headers["Content-Type"].startswith("text/plain")
        text = answer.read().decode()
    found: Scrape = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return found


def labels(values: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(values.items())


@pytest.fixture
def counters() -> Counters:
    counters = Counters(["old"])
    observer = counters.observer("old")
    stats = AssociationStats(pdus_in=7, pdus_out=9, bytes_in=1000, bytes_out=0)
    observer.association_opened(Role.ACCEPTOR, "127.0.0.1:1", lambda: stats)
    observer.operation("C-STORE", "in", 0x0000, 0.004, 1000)
    observer.operation("C-STORE", "in", 0xA700, 45.0, 0)
    observer.operation("C-STORE", "in", 0x0000, 0.004, 1000)
    return counters


def test_the_names_of_the_contract(counters: Counters) -> None:
    found = scrape(counters)
    assert found["dcmhaul_bytes_total"][labels({"node": "old", "direction": "in"})] == 1000
    assert found["dcmhaul_pdus_total"] == {
        labels({"direction": "in"}): 7,
        labels({"direction": "out"}): 9,
    }
    instance = {"node": "old", "direction": "in", "status_class": "success"}
    assert found["dcmhaul_instances_total"][labels(instance)] == 2
    state = {"node": "old", "role": "acceptor", "state": "open"}
    assert found["dcmhaul_associations"][labels(state)] == 1
    assert labels({"node": "old", "op": "C-STORE"}) in found["dcmhaul_dimse_seconds_count"]


def test_latency_is_a_cumulative_histogram(counters: Counters) -> None:
    found = scrape(counters)
    buckets = {
        dict(key)["le"]: value for key, value in found["dcmhaul_dimse_seconds_bucket"].items()
    }
    assert len(buckets) == len(BOUNDS_SECONDS) + 1 == 15
    assert (buckets["0.0025"], buckets["0.005"], buckets["30.0"], buckets["+Inf"]) == (0, 2, 2, 3)
    ordered = [buckets[str(bound)] for bound in BOUNDS_SECONDS]
    assert ordered == sorted(ordered)
    where = labels({"node": "old", "op": "C-STORE"})
    assert found["dcmhaul_dimse_seconds_count"][where] == 3
    assert found["dcmhaul_dimse_seconds_sum"][where] == pytest.approx(45.008)


def test_a_scrape_shows_the_moment(counters: Counters) -> None:
    key = labels({"node": "old", "op": "C-STORE"})
    before = scrape(counters)["dcmhaul_dimse_seconds_count"][key]
    counters.observer("old").operation("C-STORE", "in", 0, 0.1, 5)
    assert scrape(counters)["dcmhaul_dimse_seconds_count"][key] == before + 1


def test_other_paths_are_not_found(counters: Counters) -> None:
    with (
        serve_metrics("127.0.0.1", 0, counters) as (host, port),
        pytest.raises(urllib.error.HTTPError, match="404") as caught,
    ):
        urllib.request.urlopen(f"http://{host}:{port}/")
    caught.value.close()


def test_the_port_is_free_again_afterwards(counters: Counters) -> None:
    with serve_metrics("127.0.0.1", 0, counters) as (_, port):
        pass
    with serve_metrics("127.0.0.1", port, counters) as (_, again):
        assert again == port


def test_a_port_in_use_is_one_line(counters: Counters) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with (
            pytest.raises(
                ConfigurationError, match=rf"--metrics cannot listen on 127\.0\.0\.1:{port}"
            ),
            serve_metrics("127.0.0.1", port, counters),
        ):
            pytest.fail("bound a port that is in use")
