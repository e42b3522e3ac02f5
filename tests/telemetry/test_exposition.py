"""Several workers are one: counts survive a worker, gauges do not."""

import http.client
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from authz_service.telemetry import exposition
from authz_service.telemetry.exposition import Page, Teller, Totals
from authz_service.telemetry.metrics import Metrics, largest
from tests.telemetry.test_metrics import sample


def worker(calls: int, *, in_flight: float = 1, version: str = "1") -> bytes:
    metrics = Metrics()
    for _ in range(calls):
        metrics.rpc_seconds.observe(0.003, "/a/b", "OK")
        metrics.decisions.add("true")
    metrics.rpc_in_flight.set("write", value=in_flight)
    metrics.build_info.set(version, "s", "c", value=1)
    metrics.cache_oldest_mark_seconds.set(value=in_flight)
    return metrics.render()


def test_counts_and_gauges_of_workers_are_added() -> None:
    totals = Totals(largest())
    totals.tell("a", worker(2))
    totals.tell("b", worker(3, in_flight=4))
    text = totals.render()
    labels = {"method": "/a/b", "code": "OK"}
    assert sample(text, "authz_rpc_seconds_count", **labels) == 5
    assert sample(text, "authz_rpc_seconds_bucket", le="0.005", **labels) == 5
    assert sample(text, "authz_rpc_seconds_bucket", le="0.001", **labels) == 0
    assert sample(text, "authz_decisions_total", allowed="true") == 5
    assert sample(text, "authz_rpc_in_flight", **{"class": "write"}) == 5
    assert sample(text, "authz_build_info", version="1", schema="s", compat="c") == 1
    assert sample(text, "authz_cache_oldest_mark_seconds") == 4


def test_telling_again_replaces() -> None:
    totals = Totals(largest())
    totals.tell("a", worker(2))
    totals.tell("a", worker(3))
    assert sample(totals.render(), "authz_decisions_total", allowed="true") == 3


def test_an_ended_worker_stays_counted_and_leaves_no_gauge() -> None:
    totals = Totals(largest())
    totals.tell("a", worker(2))
    totals.retire("a")
    totals.retire("unknown")
    totals.tell("b", worker(1, in_flight=7))
    text = totals.render()
    assert sample(text, "authz_decisions_total", allowed="true") == 3
    assert sample(text, "authz_rpc_in_flight", **{"class": "write"}) == 7


def test_the_sum_is_text_that_can_be_summed_again() -> None:
    totals, again = Totals(), Totals()
    totals.tell("a", worker(2))
    again.tell("sum", totals.render())
    assert again.render() == totals.render()


def test_a_worker_tells_over_a_socket_that_only_its_user_opens(tmp_path: Path) -> None:
    path = str(tmp_path / "worker.sock")
    Path(path).touch()  # left by an earlier process
    teller = Teller(path, lambda: b"# nothing\n" * 50_000)
    try:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        assert exposition.fetch(path) == b"# nothing\n" * 50_000
        assert exposition.fetch(path) == b"# nothing\n" * 50_000
    finally:
        teller.close()
    assert exposition.fetch(path) is None


def test_a_reader_that_goes_away_does_not_end_the_teller(tmp_path: Path) -> None:
    path = str(tmp_path / "worker.sock")
    teller = Teller(path, lambda: b"x" * 5_000_000)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(path)
        assert exposition.fetch(path) == b"x" * 5_000_000
    finally:
        teller.close()


@pytest.fixture
def page() -> Iterator[Page]:
    page = Page("127.0.0.1", 0, lambda: worker(1))
    yield page
    page.close()


def get(page: Page, path: str, method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=5)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_the_page_shows_metrics_and_nothing_else(page: Page) -> None:
    status, text = get(page, "/metrics")
    assert status == 200
    assert sample(text, "authz_decisions_total", allowed="true") == 1
    assert get(page, "/")[0] == 404
    assert get(page, "/metrics/../metrics")[0] == 404
    assert get(page, "/metrics", "POST")[0] == 501
