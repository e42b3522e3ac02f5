"""The faults of the cache and of the database (fault table of the quality specification)."""

import contextlib
import signal

import redis

from authz_service.base.clock import boot_seconds
from tests.consistency.chaos.busy_database import (
    database_paused,
    database_paused_for_a_while,
    database_restarted,
    long_transaction,
    pool_of_one,
    realm_locked,
    realm_locked_for_a_while,
)
from tests.consistency.chaos.scene import BEHIND_PROXY, Fault, Scene
from tests.consistency.chaos.storms import clock_at_another_rate, clocks_jump, storm
from tests.consistency.chaos.unfit_redis import (
    out_of_memory,
    redis_becomes_a_replica,
    redis_gets_a_replica,
    redis_slow,
    redis_unfit,
)
from tests.consistency.server import POINTS
from tests.consistency.sizes import CACHE_ON_SECONDS, PATIENCE_SECONDS
from tests.consistency.stack import Service, pause, within

# Whoever sees a mark asks after 2 s what became of its write; if the process that died is back by
# then, it may be the one.
MARK_SECONDS = 10.0


# --- F1, F29: processes -------------------------------------------------------------------------


def _ordered(service: Service, point: str, what: signal.Signals) -> None:
    """Has a process that takes orders meet its end, or a stop, at a point of a write."""
    service.order(point, what)
    taken = within(PATIENCE_SECONDS, lambda: service.was_obeyed(point))
    assert taken is not None, f"no write passed by {point!r}"


def _killed_at(scene: Scene, point: str) -> None:
    service = scene.stack.services[scene.chance.choice([1, 2])]
    others = [each for each in scene.stack.services if each is not service]
    recovered = _recovered(others)
    _ordered(service, point, signal.SIGKILL)
    service.reap()
    died = boot_seconds()
    service.start()
    if point in ("after mark", "after commit"):
        # The mark stays, until somebody who sees it finds out what became of its write.
        taken = within(MARK_SECONDS, lambda: _recovered(others) > recovered)
        if taken is not None:
            scene.note("mark cleared", boot_seconds() - died)
    service.wait()
    assert within(PATIENCE_SECONDS, service.is_cache_on) is not None


def _recovered(services: list[Service]) -> float:
    return sum(each.metrics()["authz_cache_marks_recovered_total",] for each in services)


def killed_in_a_write(scene: Scene) -> None:
    """Kills a process at each point of a write, one after the other, and starts it again."""
    _killed_at(scene, POINTS[scene.faults % len(POINTS)])


def killed(scene: Scene) -> None:
    """Kills a process anywhere, and starts it again."""
    service = scene.chance.choice(scene.stack.services)
    service.kill()
    pause(scene.chance.uniform(0, 0.5))
    service.start()
    service.wait()


def all_killed(scene: Scene) -> None:
    """Kills all processes at once, and starts them again."""
    for service in scene.stack.services:
        service.kill()
    for service in scene.stack.services:
        service.start()
    for service in scene.stack.services:
        service.wait()
    scene.cache_on(PATIENCE_SECONDS)


def stopped_in_a_write(scene: Scene, seconds: float = 0.5) -> None:
    """Stops a process between mark and commit, where it holds locks, and lets it go on."""
    service = scene.stack.services[scene.chance.choice([1, 2])]
    _ordered(service, "after mark", signal.SIGSTOP)
    pause(seconds)
    service.send(signal.SIGCONT)
    taken = within(PATIENCE_SECONDS, service.has_lease)
    assert taken is not None
    scene.note("lease regained", taken)
    pause(0.5)


def stopped(scene: Scene) -> None:
    """Stops a process anywhere, for longer than its lease, and lets it go on."""
    service = scene.chance.choice(scene.stack.services)
    service.send(signal.SIGSTOP)
    pause(scene.chance.choice([0.5, 2.0, 4.0]))
    service.send(signal.SIGCONT)
    taken = within(PATIENCE_SECONDS, service.is_cache_on)
    assert taken is not None
    pause(0.5)


# --- F4, F6, F10: Redis as a whole --------------------------------------------------------------


def _redis_killed(scene: Scene, seconds: float) -> None:
    over = scene.generation()
    scene.servers.redis.kill()
    pause(seconds)
    scene.servers.redis.start()
    scene.cache_on(CACHE_ON_SECONDS + PATIENCE_SECONDS, after=over)


def redis_killed(scene: Scene) -> None:
    """Kills Redis; it is back at once, empty."""
    _redis_killed(scene, 0.05)


def redis_killed_for_a_while(scene: Scene) -> None:
    """Kills Redis; it is back at once or later, empty."""
    _redis_killed(scene, scene.chance.choice([0.05, 0.6, 10.0]))


def _redis_stopped(scene: Scene, seconds: float) -> None:
    over = scene.generation()
    scene.servers.redis.stop()
    pause(seconds)
    scene.servers.redis.cont()
    scene.cache_on(CACHE_ON_SECONDS + PATIENCE_SECONDS, after=over)
    pause(0.5)


def redis_stopped(scene: Scene) -> None:
    """Stops Redis for a moment: what was sent to it acts later."""
    _redis_stopped(scene, 0.2)


def redis_stopped_for_a_while(scene: Scene) -> None:
    """Stops Redis for a moment, or for longer than leases last."""
    _redis_stopped(scene, scene.chance.choice([0.2, 0.7, 5.0]))


def redis_from_an_old_file(scene: Scene) -> None:
    """Kills Redis and starts it with what it held some seconds ago."""
    over = scene.generation()
    old = scene.servers.redis.snapshot()
    pause(scene.chance.uniform(0.2, 1.5))
    scene.servers.redis.restart(from_snapshot=old)
    scene.cache_on(CACHE_ON_SECONDS + PATIENCE_SECONDS, after=over)
    pause(0.5)


# --- F5: what is in Redis -----------------------------------------------------------------------


def _keys(scene: Scene, ending: str) -> list[bytes]:
    with scene.admin() as client:
        return sorted(client.scan_iter(f"az:*{ending}"))


def emptied(scene: Scene) -> None:
    """Deletes everything in Redis, a control set, or the registry; or makes them something else."""
    over = scene.generation()
    how = scene.chance.choice(["all", "set", "registry", "set type", "registry type"])
    with scene.admin() as client:
        if how == "all":
            client.flushall()
        else:
            keys = _keys(scene, ":z" if how.startswith("set") else "}")
            for key in keys[:1] if not keys else [scene.chance.choice(keys)]:
                client.delete(key)
                if how.endswith("type"):
                    client.set(key, "of another type")
    scene.cache_on(CACHE_ON_SECONDS + PATIENCE_SECONDS, after=over)
    pause(0.5)


def altered(scene: Scene) -> None:
    """Changes bytes of shared entries, exchanges them, and puts other things in their places."""
    with scene.admin() as client:
        keys = list(client.scan_iter("az:*:e:*"))
        scene.chance.shuffle(keys)
        for key in keys:
            with contextlib.suppress(redis.ResponseError):
                blob = client.get(key)
                if not isinstance(blob, bytes) or not blob:
                    continue
                _alter(scene, client, key, blob, scene.chance.choice(keys))
    pause(0.25)


def _alter(scene: Scene, client: "redis.Redis", key: bytes, blob: bytes, other: bytes) -> None:
    how = scene.chance.randrange(5)
    place = scene.chance.randrange(len(blob))
    if how == 0:
        changed = bytes([blob[place] ^ 1 << scene.chance.randrange(8)])
        client.set(key, blob[:place] + changed + blob[place + 1 :], keepttl=True)
    elif how == 1:
        client.set(key, blob[:place], keepttl=True)
    elif how == 2:
        client.set(other, blob, keepttl=True)
    elif how == 3:
        # Of another type, so that reading it is an error.
        client.delete(key)
        client.rpush(key, blob)
    else:
        client.delete(key)


# --- F8: one process ----------------------------------------------------------------------------


def cut_off(scene: Scene) -> None:
    """Cuts one process off from Redis, or swallows what it sends, until its first write fences."""
    fences, over = scene.fences(), scene.generation()
    began = boot_seconds()
    (scene.proxy.cut if scene.faults % 2 == 0 else scene.proxy.swallow)()
    taken = within(PATIENCE_SECONDS, lambda: scene.fences() > fences)
    assert taken is not None, "no write of the process that is cut off has fenced"
    scene.note("fenced", boot_seconds() - began)
    pause(0.5)
    scene.proxy.mend()
    scene.cache_on(CACHE_ON_SECONDS + PATIENCE_SECONDS, after=over)
    assert scene.stack.services[BEHIND_PROXY].is_running()


ALL = [
    Fault("F1", "killed in a write", killed_in_a_write, ends_processes=True),
    Fault("F1", "killed", killed, ends_processes=True),
    Fault("F2", "all killed", all_killed, ends_processes=True),
    Fault("F4", "redis killed", redis_killed),
    Fault("F4", "redis killed for a while", redis_killed_for_a_while),
    Fault("F5", "emptied", emptied),
    Fault("F5", "altered", altered),
    Fault("F6", "redis stopped", redis_stopped),
    Fault("F6", "redis stopped for a while", redis_stopped_for_a_while),
    Fault("F7", "redis slow", redis_slow),
    Fault("F8", "cut off", cut_off),
    Fault("F9", "redis out of memory", out_of_memory),
    Fault("F9", "redis unfit", redis_unfit),
    Fault("F10", "redis from an old file", redis_from_an_old_file),
    Fault("F10", "redis gets a replica", redis_gets_a_replica),
    Fault("F10", "redis becomes a replica", redis_becomes_a_replica),
    Fault("F11", "database restarted", database_restarted, stops_database=True),
    Fault("F12", "database paused", database_paused, stops_database=True, is_slow=True),
    Fault(
        "F12",
        "database paused for a while",
        database_paused_for_a_while,
        stops_database=True,
        is_slow=True,
    ),
    Fault("F18", "realm locked", realm_locked, is_slow=True),
    Fault("F18", "realm locked for a while", realm_locked_for_a_while, is_slow=True),
    Fault("F18", "long transaction", long_transaction),
    Fault("F18", "pool of one", pool_of_one, ends_processes=True),
    Fault("F28", "clocks jump", clocks_jump),
    Fault("F28", "clock at another rate", clock_at_another_rate),
    Fault("F29", "stopped in a write", stopped_in_a_write, ends_processes=True),
    Fault("F29", "stopped", stopped, ends_processes=True),
    Fault("F35", "storm", storm),
]
BY_NAME = {fault.name: fault for fault in ALL}
# By day, the rows that say so; what an old file does by night.
QUICK = [
    BY_NAME[name]
    for name in (
        "killed in a write",
        "redis killed",
        "emptied",
        "altered",
        "redis stopped",
        "cut off",
        "database restarted",
        "realm locked",
        "stopped in a write",
    )
]
