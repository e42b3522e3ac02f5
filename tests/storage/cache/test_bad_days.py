"""Bad days of Redis: the answers stay right, a metric and a line of the log say what is wrong.

When Redis is well again the cache comes back by itself: nothing is to be cleaned up by hand.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from redis import Redis

from authz_service.config import dev_environment
from authz_service.stack.valkey import Server, valkey
from authz_service.telemetry.metrics import Metrics
from tests.storage.cache.deployment import Deployment, deployed
from tests.storage.cache.lives import eventually

Deploy = Callable[..., Deployment]
pytestmark = pytest.mark.server
PASSWORD = "canary@pass:word/7f3a"


@pytest.fixture
def server() -> Iterator[Server]:
    """A Valkey of the test's own."""
    with valkey() as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    """An administrator of it."""
    with Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
def deploy(url: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deploy]:
    """Starts a worker on it, or on another URL."""
    with contextlib.ExitStack() as exits:

        def start(redis_url: str = "", **more: Any) -> Deployment:
            return exits.enter_context(deployed(url, redis_url or server.url, monkeypatch, **more))

        yield start


def is_off(deployment: Deployment) -> None:
    """The cache is off, as the metric says, and what is answered is right."""
    eventually(lambda: not deployment.worker.is_caching)
    assert deployment.metrics.cache_mode.value() == 0
    assert deployment.is_right()


# --- at the start ------------------------------------------------------------------------------


def test_absent_at_the_start(deploy: Deploy, server: Server) -> None:
    server.kill()
    deployment = deploy()
    is_off(deployment)
    assert deployment.metrics.cache_redis_seconds.count("info", "connection") > 0
    deployment.is_told("cache_redis_unreachable", reason="connection")
    server.start()
    deployment.caches()
    deployment.is_told("cache_redis_answers")
    assert deployment.is_right()


class Unfit(NamedTuple):
    """A configuration that is not that of a cache of permissions."""

    reason: str
    setting: str
    bad: str
    good: str


UNFIT = (
    Unfit("eviction", "maxmemory-policy", "allkeys-lru", "volatile-lru"),
    Unfit("persistence", "appendonly", "yes", "no"),
)


@pytest.mark.parametrize("unfit", UNFIT, ids=lambda unfit: unfit.reason)
def test_a_configuration_that_is_not_that_of_a_cache(
    deploy: Deploy, client: Any, unfit: Unfit
) -> None:
    client.config_set(unfit.setting, unfit.bad)
    deployment = deploy()
    is_off(deployment)
    deployment.is_told("cache_not_enabled", reason=unfit.reason)
    assert deployment.metrics.cache_enable.value() == 0
    client.config_set(unfit.setting, unfit.good)
    deployment.caches()
    assert deployment.is_right()


def test_a_wrong_password(deploy: Deploy, client: Any, server: Server) -> None:
    right = server.url.removeprefix("redis://:").partition("@")[0]
    deployment = deploy(server.url.replace(right, quote(PASSWORD, safe="")))
    is_off(deployment)
    deployment.is_told("cache_redis_unreachable", reason="authentication")
    assert deployment.metrics.cache_redis_seconds.count("info", "authentication") > 0
    for secret in (PASSWORD, quote(PASSWORD, safe=""), "pass:word"):
        assert secret not in deployment.log.text
    client.config_set("requirepass", PASSWORD)
    deployment.caches()
    assert deployment.is_right()


def test_keys_of_another_service(deploy: Deploy, client: Any) -> None:
    others = {f"session:{i}": "x" for i in range(2_000)} | {"az": "1", "azure:{a}:b": "2", "a": "3"}
    client.mset(others)
    deployment = deploy()
    deployment.caches()
    deployment.is_told("cache_enabled")
    assert deployment.is_right()
    deployment.worker.fence()
    deployment.caches()
    assert client.mget(list(others)) == [value.encode() for value in others.values()]
    assert deployment.metrics.cache_enable.value() == 2


# --- while it is in use ------------------------------------------------------------------------


class Day(NamedTuple):
    """What happens to a Redis in use.

    Attributes:
        happen, mend: The fault, and its end.
        event, fields: The line of the log.
        metric: What is counted.
    """

    happen: Callable[[Server, Any], Any]
    mend: Callable[[Server, Any], Any]
    event: str
    fields: dict[str, Any]
    metric: Callable[[Metrics], float]


def _from_an_old_file(server: Server, client: Any) -> None:
    server.restart(from_snapshot=server.snapshot())


DAYS = {
    "slow": Day(
        lambda server, client: server.stop(),
        lambda server, client: server.cont(),
        "cache_redis_unreachable",
        {"reason": "timeout"},
        lambda metrics: metrics.cache_redis_seconds.count("info", "timeout"),
    ),
    "killed": Day(
        lambda server, client: server.kill(),
        lambda server, client: server.start(),
        "cache_redis_unreachable",
        {"reason": "connection"},
        lambda metrics: metrics.cache_redis_seconds.count("info", "connection"),
    ),
    "full": Day(
        lambda server, client: client.config_set("maxmemory", "1"),
        lambda server, client: client.config_set("maxmemory", "0"),
        "cache_fenced",
        {"reason": "mark"},
        lambda metrics: metrics.cache_fences.value("mark"),
    ),
    "restarted empty": Day(
        lambda server, client: server.restart(),
        lambda server, client: None,
        "cache_fenced",
        {},
        # Whoever sees it first: a renewal or a write.
        lambda metrics: metrics.cache_fences.value("run_id") + metrics.cache_fences.value("mark"),
    ),
    "restarted from an old file": Day(
        _from_an_old_file,
        lambda server, client: None,
        "cache_fenced",
        {},
        # Whoever sees it first: a renewal or a write.
        lambda metrics: metrics.cache_fences.value("run_id") + metrics.cache_fences.value("mark"),
    ),
    "emptied": Day(
        lambda server, client: client.flushall(),
        lambda server, client: None,
        "cache_fenced",
        {},
        lambda metrics: metrics.cache_enable.value(),
    ),
}


@pytest.mark.parametrize("name", DAYS)
def test_a_day_in_the_life_of_a_redis(
    deploy: Deploy, server: Server, client: Any, name: str
) -> None:
    day = DAYS[name]
    deployment = deploy()
    deployment.caches()
    assert deployment.is_right()
    before = day.metric(deployment.metrics)
    day.happen(server, client)
    assert deployment.is_right()
    deployment.is_told(day.event, **day.fields)
    day.mend(server, client)
    deployment.caches()
    assert day.metric(deployment.metrics) > before
    assert deployment.is_right()


def test_a_replica_appears(deploy: Deploy, server: Server, client: Any) -> None:
    deployment = deploy()
    deployment.caches()
    password = server.url.removeprefix("redis://:").partition("@")[0]
    with valkey() as other, Redis.from_url(other.url) as replica:
        replica.config_set("masterauth", password)
        replica.replicaof("127.0.0.1", server.port)
        deployment.is_told("cache_fenced", reason="replication")
        is_off(deployment)
        deployment.is_told("cache_not_enabled", reason="replication")
        assert deployment.metrics.cache_fences.value("replication") == 1
        replica.replicaof("NO", "ONE")
        deployment.caches()
        assert deployment.is_right()


def test_flipped_bits(deploy: Deploy, client: Any) -> None:
    keys = dev_environment({})[0]["AUTHZ_ROOT_KEYS"]
    first = deploy(AUTHZ_ROOT_KEYS=keys)
    first.caches()
    eventually(lambda: not first.is_allowed and shared(client))
    for key in shared(client):
        blob = bytearray(client.get(key))
        blob[len(blob) // 2] ^= 1
        client.set(key, bytes(blob), keepttl=True)
    second = deploy(AUTHZ_ROOT_KEYS=keys, like=first)
    eventually(lambda: second.worker.is_caching)
    eventually(lambda: not second.is_allowed and second.metrics.cache_rejected.value("damaged"))
    second.is_told("cache_entries_rejected", reason="damaged")
    assert second.is_right()
    assert second.worker.is_caching


def shared(client: Any) -> list[bytes]:
    """The keys of the entries that processes share."""
    return [key for key in client.scan_iter("az:*") if client.type(key) == b"string"]
