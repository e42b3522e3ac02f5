"""Entries on their way to Redis: few are sent together, many wait, and none is waited for."""

import socket
from collections.abc import Iterator

import pytest

from authz_service.storage.cache import redis_control
from authz_service.storage.cache.redis_connections import Connections
from authz_service.storage.cache.redis_control import RedisControl
from authz_service.telemetry.metrics import Metrics


def control_of(url: str) -> RedisControl:
    """A life without a lease: it only shares."""
    metrics = Metrics()
    return RedisControl(
        "life",
        Connections(url, "", timeout_seconds=5.0, metrics=metrics),
        is_leased=lambda: False,
        lost=lambda reason: None,
        metrics=metrics,
        mark_seconds=5.0,
        members_max=100,
    )


@pytest.fixture
def nowhere() -> Iterator[str]:
    """A port of this machine at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{taken.getsockname()[1]}/0"


def test_what_cannot_be_sent_is_counted_and_given_up(nowhere: str) -> None:
    control = control_of(nowhere)
    for number in range(3):
        control.share("org_1", str(number), b"entry", 1_000)
    control.share_next(0.0)
    assert control._metrics.cache_fills.value("failed") == 3
    control.share_next(0.0)
    assert control._metrics.cache_fills.value("failed") == 3


def test_so_many_are_sent_together(redis_url: str) -> None:
    control = control_of(redis_url)
    together = redis_control._SHARED_TOGETHER
    for number in range(together + 1):
        control.share("org_1", str(number), b"entry", 60_000)
    for expected in (together, together + 1):
        control.share_next(1.0)
        (keys,) = control.connections.commands("keys", (b"KEYS", b"az:*"))
        assert len(keys) == expected
    assert control._metrics.cache_fills.value("failed") == 0
    control.connections.close()


def test_only_so_many_wait(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_control, "_WAITING_MAX", 2)
    control = control_of(redis_url)
    for number in range(3):
        control.share("org_1", str(number), b"entry", 60_000)
    control.share_next(1.0)
    (keys,) = control.connections.commands("keys", (b"KEYS", b"az:*"))
    assert sorted(keys) == [f"az:{{life}}:org_1:e:{number}".encode() for number in range(2)]
    control.connections.close()
