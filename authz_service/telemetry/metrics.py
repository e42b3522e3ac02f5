"""Every metric, declared once, on plain lists: counting a call costs less than a microsecond.

`prometheus_client` writes the text; its own instruments cost ten times as much per observation.
Labels come from closed sets of ours (method, code, reason, class), never from a caller.
"""

import bisect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import generate_latest
from prometheus_client.core import (
    CollectorRegistry,
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

Labels = tuple[str, ...]

# Upper bounds in seconds. A decision takes 0.1 to 1 ms, a query 1 to 10 ms, a call at most 10 s.
SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0,
)  # fmt: skip
COUNTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


class Counter:
    """A number that only rises, per combination of labels."""

    __slots__ = ("_lock", "_values", "help", "labels", "name")

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        self.name = name
        self.help = help
        self.labels = tuple(labels)
        self._values: dict[Labels, float] = {} if labels else {(): 0.0}
        self._lock = threading.Lock()

    def add(self, *labels: str, amount: float = 1.0) -> None:
        """Adds to the counter of these label values, in the declared order."""
        with self._lock:
            self._values[labels] = self._values.get(labels, 0.0) + amount

    def value(self, *labels: str) -> float:
        """Returns the present value, 0 if nothing was counted."""
        with self._lock:
            return self._values.get(labels, 0.0)

    def family(self) -> Metric:
        """Returns the metric as prometheus_client renders it."""
        family = CounterMetricFamily(self.name, self.help, labels=self.labels)
        with self._lock:
            values = dict(self._values)
        for labels, value in values.items():
            family.add_metric(labels, value)
        return family


class Gauge:
    """A number that moves, set here or read from a function when somebody looks.

    Args:
        merge: How the gauges of several workers become one: ``sum`` or ``max``.
    """

    __slots__ = ("_lock", "_read", "_values", "help", "labels", "merge", "name")

    def __init__(
        self, name: str, help: str, labels: Sequence[str] = (), *, merge: str = "sum"
    ) -> None:
        self.name = name
        self.help = help
        self.labels = tuple(labels)
        self.merge = merge
        self._values: dict[Labels, float] = {}
        self._read: Callable[[], Mapping[Labels, float]] | None = None
        self._lock = threading.Lock()

    def set(self, *labels: str, value: float) -> None:
        """Sets the gauge of these label values."""
        with self._lock:
            self._values[labels] = value

    def read_from(self, read: Callable[[], Mapping[Labels, float]]) -> None:
        """Takes all values from a function from now on; without labels its key is ``()``."""
        self._read = read

    def value(self, *labels: str) -> float:
        """Returns the present value, 0 if there is none."""
        return self._present().get(labels, 0.0)

    def _present(self) -> Mapping[Labels, float]:
        if self._read is not None:
            return self._read()
        with self._lock:
            return dict(self._values)

    def family(self) -> Metric:
        """Returns the metric as prometheus_client renders it."""
        family = GaugeMetricFamily(self.name, self.help, labels=self.labels)
        for labels, value in self._present().items():
            family.add_metric(labels, value)
        return family


class Histogram:
    """How observations are spread over fixed buckets, per combination of labels.

    Args:
        bounds: Upper bounds, rising; one more bucket takes what is above.
    """

    __slots__ = ("_bounds", "_lock", "_rows", "help", "labels", "name")

    def __init__(
        self, name: str, help: str, labels: Sequence[str] = (), *, bounds: Sequence[float] = SECONDS
    ) -> None:
        self.name = name
        self.help = help
        self.labels = tuple(labels)
        self._bounds = tuple(bounds)
        # One list per combination: the buckets' counts, then the sum of the observations.
        self._rows: dict[Labels, list[float]] = {}
        self._lock = threading.Lock()

    def observe(self, value: float, *labels: str) -> None:
        """Counts one observation."""
        self.observe_all((value,), *labels)

    def observe_all(self, values: Sequence[float], *labels: str) -> None:
        """Counts observations that have the same labels."""
        bounds = self._bounds
        with self._lock:
            row = self._rows.get(labels)
            if row is None:
                row = self._rows[labels] = [0.0] * (len(bounds) + 2)
            for value in values:
                row[bisect.bisect_left(bounds, value)] += 1.0
                row[-1] += value

    def count(self, *labels: str) -> float:
        """Returns how many observations these label values have."""
        with self._lock:
            return sum(self._rows.get(labels, [0.0])[:-1])

    def family(self) -> Metric:
        """Returns the metric as prometheus_client renders it."""
        family = HistogramMetricFamily(self.name, self.help, labels=self.labels)
        with self._lock:
            rows = {labels: list(row) for labels, row in self._rows.items()}
        for labels, row in rows.items():
            total = 0.0
            buckets = []
            for bound, count in zip((*map(str, self._bounds), "+Inf"), row, strict=False):
                total += count
                buckets.append((bound, total))
            family.add_metric(labels, buckets, row[-1])
        return family


class Metrics(Collector):
    """All metrics of one worker. Built once by the server and handed to the parts that count."""

    def __init__(self) -> None:
        # quality.md section 8
        self.rpc_seconds = Histogram(
            "authz_rpc_seconds", "Seconds from arrival to answer of a call", ("method", "code")
        )
        self.rpc_in_flight = Gauge("authz_rpc_in_flight", "Calls at work", ("class",))
        self.rpc_queue_seconds = Histogram(
            "authz_rpc_queue_seconds", "Seconds a call waited for a thread"
        )
        self.rpc_refused = Counter(
            "authz_rpc_refused_total",
            "Calls refused without work: overloaded, watch_slots, rate, deadline",
            ("why",),
        )
        self.connections_ended = Counter(
            "authz_connections_ended_total",
            "Connections of the decision front that were refused or ended for what they did: alpn,"
            " connections, descriptors, flood, handshake, protocol, silent, tls, unread",
            ("why",),
        )
        self.decisions = Counter("authz_decisions_total", "Answers given", ("allowed",))
        self.unknown = Counter(
            "authz_unknown_total", "Decisions refused with NOT_FOUND", ("reason",)
        )
        self.sql_seconds = Histogram(
            "authz_sql_seconds",
            "Seconds of a statement, named by what ran it and what it did; its outcome is ok,"
            " lost_race, timed_out, unavailable or failed",
            ("statement", "outcome"),
        )
        self.sql_pool_in_use = Gauge("authz_sql_pool_in_use", "Database connections in use")
        self.sql_pool_wait_seconds = Histogram(
            "authz_sql_pool_wait_seconds", "Seconds a call waited for a database connection"
        )
        self.write_attempts = Counter(
            "authz_write_attempts_total",
            "Attempts of writes: committed, again, refused, unknown",
            ("outcome",),
        )
        self.watch_streams = Gauge("authz_watch_streams", "Open Watch streams")
        self.watch_lag_seconds = Histogram(
            "authz_watch_lag_seconds", "Seconds from an event's commit to its sending"
        )
        self.auth_failures = Counter(
            "authz_auth_failures_total", "Calls refused by authentication", ("kind", "reason")
        )
        self.poison_rows = Counter(
            "authz_poison_rows_total",
            "Rows that could not be interpreted when read for a decision, which they deny:"
            " ALARM at 1",
            ("table",),
        )
        self.build_info = Gauge(
            "authz_build_info", "What runs", ("version", "schema", "compat"), merge="max"
        )
        self.log_lines_dropped = Counter(
            "authz_log_lines_dropped_total", "Log lines lost because they could not be written"
        )
        # consistency.md section 8
        self.cache_answers = Counter(
            "authz_cache_answers_total",
            "Calls of decisions by where their facts came from: last_cut, view, l2, mixed, sql,"
            " bypass; a batch is one call",
            ("from",),
        )
        self.cache_facts = Counter(
            "authz_cache_facts_total", "Facts used by source: l1, l2, sql", ("fact", "source")
        )
        self.cache_fills = Counter(
            "authz_cache_fills_total", "Fills of the cache: kept, skipped, failed", ("outcome",)
        )
        self.cache_validation_seconds = Histogram(
            "authz_cache_validation_seconds", "Seconds of a validation"
        )
        self.cache_validation_calls = Histogram(
            "authz_cache_validation_calls", "Calls that shared one validation", bounds=COUNTS
        )
        self.cache_cut_broken = Counter(
            "authz_cache_cut_broken_total", "Validations that could not be joined to a cut"
        )
        self.cache_view_dropped = Counter(
            "authz_cache_view_dropped_total", "Views given up", ("reason",)
        )
        self.cache_mode = Gauge("authz_cache_mode", "1 while the cache is on", merge="max")
        self.cache_generation = Gauge(
            "authz_cache_generation", "The generation in force", merge="max"
        )
        self.cache_lease_remaining_seconds = Gauge(
            "authz_cache_lease_remaining_seconds", "Seconds the lease is still valid", merge="max"
        )
        self.cache_fences = Counter("authz_cache_fences_total", "Fences", ("reason",))
        self.cache_settle_seconds = Histogram(
            "authz_cache_settle_seconds", "Seconds until a fence had settled"
        )
        self.cache_enable = Counter("authz_cache_enable_total", "New generations")
        self.cache_mark_failures = Counter(
            "authz_cache_mark_failures_total", "Marks that failed", ("reason",)
        )
        self.cache_marks_lost = Counter("authz_cache_marks_lost_total", "Marks that were gone")
        self.cache_marks_recovered = Counter(
            "authz_cache_marks_recovered_total", "Abandoned marks that were resolved"
        )
        self.cache_oldest_mark_seconds = Gauge(
            "authz_cache_oldest_mark_seconds", "Age of the oldest mark", merge="max"
        )
        self.cache_redis_seconds = Histogram(
            "authz_cache_redis_seconds", "Seconds of a Redis script", ("script", "outcome")
        )
        self.cache_entries = Gauge("authz_cache_entries", "Entries in L1")
        self.cache_bytes = Gauge("authz_cache_bytes", "Bytes in L1")
        self.cache_rejected = Counter(
            "authz_cache_rejected_total",
            "Entries refused: foreign, damaged, old_format",
            ("reason",),
        )
        self.cache_token_ahead = Counter(
            "authz_cache_token_ahead_total", "Tokens ahead of the database: ALARM at 1"
        )
        self.cache_inconsistency = Counter(
            "authz_cache_inconsistency_total", "Cached answers that were wrong: ALARM at 1"
        )

    def all(self) -> Iterator[Counter | Gauge | Histogram]:
        """Yields every metric in the order of declaration."""
        for value in vars(self).values():
            if isinstance(value, Counter | Gauge | Histogram):
                yield value

    def collect(self) -> Iterator[Metric]:
        """Yields all families, for prometheus_client."""
        for metric in self.all():
            yield metric.family()

    def render(self) -> bytes:
        """Returns all metrics in the Prometheus text format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        return generate_latest(registry)


def largest() -> frozenset[str]:
    """Returns the names of the gauges of which, over several workers, the largest counts."""
    return frozenset(
        metric.name
        for metric in Metrics().all()
        if isinstance(metric, Gauge) and metric.merge == "max"
    )
