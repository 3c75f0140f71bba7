"""Shows counters to Prometheus; the only module that imports prometheus_client.

The numbers stay where they are counted. A scrape asks for them and maps them; between scrapes
nothing happens here, so the hot path never meets a lock of the client library.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from typing import TYPE_CHECKING, Any, Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from dcmhaul.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["BOUNDS_SECONDS", "CounterCollector", "CounterSource", "serve_metrics"]

PREFIX = "dcmhaul_"

# The fourteen classic buckets that the fine ones are folded into: a LAN round trip to a time-out.
BOUNDS_SECONDS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)


class CountedFamily(Protocol):
    """One metric: its samples are pairs of label values and a number, or buckets of nanoseconds."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def help(self) -> str: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def samples(self) -> Sequence[tuple[tuple[str, ...], Any]]: ...


class CounterSource(Protocol):
    """Whoever counts; `families` may be called from any thread."""

    def families(self) -> Iterable[CountedFamily]: ...


class CounterCollector(Collector):
    """Maps a CounterSource to Prometheus families, at each scrape anew."""

    def __init__(self, source: CounterSource) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        for family in self._source.families():
            yield _metric(family)


def _metric(family: CountedFamily) -> Metric:
    name = PREFIX + family.name
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(name, family.help, labels=family.labels)
        for labels, buckets in family.samples:
            histogram.add_metric(labels, _classic(buckets), sum_value=buckets.total / 1e9)
        return histogram
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = kind(name, family.help, labels=family.labels)
    for labels, value in family.samples:
        metric.add_metric(labels, value)
    return metric


def _classic(buckets: Any) -> list[tuple[str, float]]:
    """Cumulative counts; a value that is less than 1/32 below a bound may count above it."""
    counts = [(str(bound), buckets.count_at_most(int(bound * 1e9))) for bound in BOUNDS_SECONDS]
    return [*counts, ("+Inf", buckets.count)]


class _Server(WSGIServer):
    """Binds without asking the resolver for a name, which http.server does."""

    def __init__(self, address: tuple[str, int], handler: type[WSGIRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()


class _Quiet(WSGIRequestHandler):
    timeout = 10  # seconds: a client that says nothing must not hold the one thread for ever

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name is wsgiref's
        pass


@contextlib.contextmanager
def serve_metrics(host: str, port: int, *sources: CounterSource) -> Iterator[tuple[str, int]]:
    """Serves `/metrics` of all sources as Prometheus text on a thread while the block runs.

    Yields the address that was bound (port 0 takes a free one); ConfigurationError where that
    fails.
    """
    registry = CollectorRegistry(auto_describe=False)
    for source in sources:
        registry.register(CounterCollector(source))
    try:
        server = make_server(
            host, port, _only_metrics(registry), server_class=_Server, handler_class=_Quiet
        )
    except OSError as error:
        raise ConfigurationError(
            f"--metrics cannot listen on {host}:{port}: {error.strerror or error}"
        ) from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield str(server.server_address[0]), server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _only_metrics(registry: CollectorRegistry) -> Any:
    """The client's WSGI application, at `/metrics` alone."""
    application = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ.get("PATH_INFO") == "/metrics":
            return application(environ, start_response)  # type: ignore[no-any-return]
        start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"metrics are at /metrics\n"]

    return answer
