"""Prometheus metrics of one node, on a registry of its own. Labels are bounded: model ids, endpoints, outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from meshnode.api.record import STATUS_CALLER_LEFT, Record

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Gauge = tuple[str, str, dict[str, str], float]
"""Name, help, labels, value."""


class Metrics:
    """Counts finished requests; reads everything that has a present value from `gauges` when it is scraped."""

    def __init__(self, gauges: Callable[[], Iterable[Gauge]]) -> None:
        self._registry = CollectorRegistry()
        self._gauges = gauges
        self._registry.register(self)
        labels = ["model", "endpoint"]
        self._requests = Counter(
            "meshnode_requests_total", "Finished requests", [*labels, "outcome"], registry=self._registry
        )
        self._seconds = Histogram(
            "meshnode_request_seconds", "From request to last byte", labels, buckets=SECONDS, registry=self._registry
        )
        self._first = Histogram(
            "meshnode_time_to_first_token_seconds",
            "From request to first byte of the answer",
            labels,
            buckets=SECONDS,
            registry=self._registry,
        )
        self._queued = Histogram(
            "meshnode_queue_seconds", "Waiting for a slot", ["model"], buckets=SECONDS, registry=self._registry
        )
        self._tokens = Counter(
            "meshnode_tokens_total", "Tokens read and written", ["model", "direction"], registry=self._registry
        )

        self._retries = Counter(
            "meshnode_retries_total",
            "Requests sent to a next host before an answer began",
            ["model"],
            registry=self._registry,
        )
        self._resumed = Counter(
            "meshnode_resumed_total",
            "Answers continued by another host after one failed",
            ["model", "outcome"],
            registry=self._registry,
        )

    def finished(self, record: Record) -> None:
        """Count one request. A caller's made-up model name never becomes a label: `record.model` is a served id."""
        self._requests.labels(record.model, record.endpoint, outcome(record)).inc()
        if not record.model:
            return
        self._seconds.labels(record.model, record.endpoint).observe(record.total_s)
        self._queued.labels(record.model).observe(record.queued_s)
        if record.first_byte_s is not None:
            self._first.labels(record.model, record.endpoint).observe(record.first_byte_s)
        self._retries.labels(record.model).inc(record.retries)
        self._resumed.labels(record.model, "continued").inc(record.resumed)
        self._resumed.labels(record.model, "failed").inc(record.resume_failed)
        self._tokens.labels(record.model, "in").inc(record.tokens_in)
        self._tokens.labels(record.model, "out").inc(record.tokens_out)

    def collect(self) -> Sequence[Metric]:
        """The present values, one family a name (called by the registry)."""
        families: dict[str, GaugeMetricFamily] = {}
        for name, text, labels, value in self._gauges():
            family = families.setdefault(name, GaugeMetricFamily(name, text, labels=list(labels)))
            family.add_metric(list(labels.values()), value)
        return list(families.values())

    def render(self) -> bytes:
        """The text that a Prometheus server reads."""
        return generate_latest(self._registry)


def outcome(record: Record) -> str:
    """`ok`, `left` (the caller), `refused` (4xx) or `failed`; an error inside a begun stream is a failure too."""
    if record.status == STATUS_CALLER_LEFT:
        return "left"
    if record.status >= 500 or (record.error and record.status < 400):
        return "failed"
    return "refused" if record.status >= 400 else "ok"
