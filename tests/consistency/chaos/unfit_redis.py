"""Faults of a Redis that answers, but late, or as none that may be a cache of permissions (F7, F9,
F10)."""

import contextlib
from collections.abc import Iterator
from urllib.parse import urlsplit

import redis

from authz_service.base.clock import boot_seconds
from authz_service.stack.valkey import valkey
from tests.consistency.chaos.proxy import Manner
from tests.consistency.chaos.scene import BEHIND_PROXY, Scene
from tests.consistency.sizes import CACHE_ON_SECONDS, PATIENCE_SECONDS
from tests.consistency.stack import pause, within

# What replies meet on their way, one after the other.
MANNERS = (
    Manner(seconds=(0.005, 0.02)),
    Manner(seconds=(0.05, 1.0)),
    Manner(hangs=0.01),
    Manner(resets=0.05),
    Manner(loses=True),
)
# Times that a process looks at a Redis and refuses it: more than fit into the calm that comes
# before a new life of the cache.
REFUSALS_MIN = 20


def redis_slow(scene: Scene) -> None:
    """Delays, hangs, breaks or loses the replies to one process."""
    began = boot_seconds()
    scene.proxy.behave(MANNERS[scene.faults % len(MANNERS)])
    pause(2.0)
    scene.proxy.mend()
    scene.note("p99 ms behind the slow redis", scene.percentile(BEHIND_PROXY, began, 0.99))
    scene.cache_on(CACHE_ON_SECONDS + PATIENCE_SECONDS)
    pause(0.5)


def _fenced(scene: Scene, fences: int, name: str) -> None:
    """Waits for a fence more than there were, and notes how long that took."""
    taken = within(PATIENCE_SECONDS, lambda: scene.fences() > fences)
    assert taken is not None, "nobody left the cache"
    scene.note(name, taken)


def out_of_memory(scene: Scene) -> None:
    """Leaves Redis no memory: it answers, and takes no mark and no entry."""
    over, fences = scene.generation(), scene.fences()
    with scene.admin() as client, _configured(client, maxmemory="1"):
        _fenced(scene, fences, "fenced without memory")
        pause(1.0)
    scene.cache_on(CACHE_ON_SECONDS + PATIENCE_SECONDS, after=over)
    pause(0.5)


@contextlib.contextmanager
def _configured(client: "redis.Redis", **settings: str) -> Iterator[None]:
    """Changes settings of a Redis during the block."""
    names = {name: name.replace("_", "-") for name in settings}
    before = {name: client.config_get(name)[name] for name in names.values()}
    for name, value in settings.items():
        client.config_set(names[name], value)
    try:
        yield
    finally:
        for name, value in before.items():
            client.config_set(name, value)


def _refused(scene: Scene, reason: str) -> None:
    """Waits until each process has refused the Redis often, and asserts that none uses it."""
    services = scene.stack.services
    before = {each.number: each.told("cache_not_enabled", reason=reason) for each in services}

    def is_refused() -> bool:
        assert not any(each.is_cache_on() for each in services), "an unfit Redis is in use"
        return all(
            each.told("cache_not_enabled", reason=reason) >= before[each.number] + REFUSALS_MIN
            for each in services
        )

    taken = within(PATIENCE_SECONDS, is_refused)
    assert taken is not None, f"a Redis is not refused for {reason}"


def redis_unfit(scene: Scene) -> None:
    """Has Redis evict what does not expire, or keep what it holds, and then begin anew."""
    over, fences = scene.generation(), scene.fences()
    how, reason = (
        ({"maxmemory_policy": "allkeys-lru"}, "eviction"),
        ({"appendonly": "yes"}, "persistence"),
    )[scene.faults % 2]
    with scene.admin() as client, _configured(client, **how):
        client.flushall()
        _fenced(scene, fences, "fenced")
        _off(scene)
        _refused(scene, reason)
    scene.cache_on(CACHE_ON_SECONDS + PATIENCE_SECONDS, after=over)
    pause(0.5)


def _off(scene: Scene) -> None:
    """Waits until no process uses the cache."""
    services = scene.stack.services
    taken = within(PATIENCE_SECONDS, lambda: not any(each.is_cache_on() for each in services))
    assert taken is not None


@contextlib.contextmanager
def _second(scene: Scene) -> Iterator[tuple["redis.Redis", "redis.Redis"]]:
    """Starts a second server like the first; each may become the other's replica."""
    with (
        valkey(scene.servers.program) as other,
        redis.Redis.from_url(other.url, socket_timeout=5) as second,
        scene.admin() as first,
    ):
        for client, url in ((first, other.url), (second, scene.servers.redis.url)):
            client.config_set("masterauth", urlsplit(url).password or "")
        yield first, second


def _follow(client: "redis.Redis", url: str) -> None:
    client.execute_command("REPLICAOF", "127.0.0.1", str(urlsplit(url).port))


def _alone(client: "redis.Redis") -> None:
    client.execute_command("REPLICAOF", "NO", "ONE")


def redis_gets_a_replica(scene: Scene) -> None:
    """Gives Redis a replica: at the next renewal it is left, and refused as long as it has one."""
    over, fences = scene.generation(), scene.fences()
    with _second(scene) as (first, second):
        _follow(second, scene.servers.redis.url)
        there = within(PATIENCE_SECONDS, lambda: first.info("replication")["connected_slaves"])
        assert there is not None
        _fenced(scene, fences, "fenced for a replica")
        _off(scene)
        _refused(scene, "replication")
        _alone(second)
    scene.cache_on(CACHE_ON_SECONDS + PATIENCE_SECONDS, after=over)
    pause(0.5)


def redis_becomes_a_replica(scene: Scene) -> None:
    """Makes Redis the replica of an empty one, as a failover would, and then a primary again."""
    over, fences = scene.generation(), scene.fences()
    with _second(scene) as (first, second):
        _follow(first, f"redis://127.0.0.1:{_port(second)}")
        _fenced(scene, fences, "fenced as a replica")
        _off(scene)
        _refused(scene, "replication")
        _alone(first)
    scene.cache_on(CACHE_ON_SECONDS + PATIENCE_SECONDS, after=over)
    pause(0.5)


def _port(client: "redis.Redis") -> int:
    port: int = client.connection_pool.connection_kwargs["port"]
    return port
