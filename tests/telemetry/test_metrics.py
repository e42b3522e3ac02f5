"""Counting is cheap and exact, and the text is what Prometheus reads."""

import re
import threading

from prometheus_client.parser import text_string_to_metric_families

from authz_service.telemetry.metrics import Counter, Gauge, Histogram, Metrics, largest


def sample(text: bytes, name: str, **labels: str) -> float:
    for family in text_string_to_metric_families(text.decode()):
        for found in family.samples:
            if found.name == name and found.labels == labels:
                return found.value
    raise AssertionError(f"no sample {name} {labels}")


def test_a_counter_counts_each_combination_of_labels() -> None:
    counter = Counter("a_total", "help", ("why",))
    counter.add("rate")
    counter.add("rate", amount=2)
    assert counter.value("rate") == 3
    assert counter.value("deadline") == 0


def test_a_histogram_puts_an_observation_into_the_first_bucket_that_holds_it() -> None:
    metrics = Metrics()
    for seconds in (0.0001, 0.00011, 3.0, 11.0):
        metrics.rpc_seconds.observe(seconds, "/a/b", "OK")
    text = metrics.render()
    labels = {"method": "/a/b", "code": "OK"}
    assert sample(text, "authz_rpc_seconds_bucket", le="0.0001", **labels) == 1
    assert sample(text, "authz_rpc_seconds_bucket", le="0.00025", **labels) == 2
    assert sample(text, "authz_rpc_seconds_bucket", le="2.5", **labels) == 2
    assert sample(text, "authz_rpc_seconds_bucket", le="5.0", **labels) == 3
    assert sample(text, "authz_rpc_seconds_bucket", le="10.0", **labels) == 3
    assert sample(text, "authz_rpc_seconds_bucket", le="+Inf", **labels) == 4
    assert sample(text, "authz_rpc_seconds_count", **labels) == 4
    assert round(sample(text, "authz_rpc_seconds_sum", **labels), 5) == 14.00021
    assert metrics.rpc_seconds.count("/a/b", "OK") == 4


def test_a_gauge_is_set_or_read_when_somebody_looks() -> None:
    gauge = Gauge("a", "help", ("class",))
    gauge.set("list", value=2)
    assert gauge.value("list") == 2
    gauge.read_from(lambda: {("list",): 5})
    assert gauge.value("list") == 5
    assert gauge.value("write") == 0


def test_no_observation_is_lost_between_threads() -> None:
    histogram = Histogram("a", "help", ("code",))
    counter = Counter("b_total", "help")

    def count() -> None:
        for _ in range(5_000):
            histogram.observe(0.001, "OK")
            counter.add()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert histogram.count("OK") == counter.value() == 20_000


def test_every_metric_is_named_by_the_rules_and_once() -> None:
    names = [metric.name for metric in Metrics().all()]
    assert len(names) == len(set(names))
    for metric in Metrics().all():
        assert re.fullmatch(r"authz_[a-z0-9_]+", metric.name)
        assert metric.help
        assert metric.name.endswith("_total") == isinstance(metric, Counter)


def test_a_label_value_cannot_break_the_text() -> None:
    metrics = Metrics()
    metrics.unknown.add('a"\n\\')
    assert sample(metrics.render(), "authz_unknown_total", reason='a"\n\\') == 1


def test_gauges_that_are_not_added_are_known() -> None:
    assert "authz_build_info" in largest()
    assert "authz_rpc_in_flight" not in largest()
