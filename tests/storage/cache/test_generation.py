"""Lease, fence, settle, enable, and writes, on a real PostgreSQL and a real Valkey."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from redis import Redis
from sqlalchemy import Connection, event

from authz_service.base.clock import boot_seconds
from authz_service.base.errors import Aborted, Refusal, Unavailable
from authz_service.server import prepare
from authz_service.stack.postgresql import postgresql
from authz_service.stack.valkey import valkey
from authz_service.storage.cache import generation as module
from authz_service.storage.cache.control import Look
from authz_service.storage.cache.generation import LOCK, LeaseDiffers
from authz_service.storage.cache.marking import Marked, Marking, Tags
from authz_service.storage.database import Database
from tests import histories
from tests.histories import Together
from tests.servers.postgresql import libpq_url
from tests.storage.cache.lives import Place, Process, eventually, opened, seen

Start = Callable[..., Process]
L = 0.5
# What a busy machine may add to what is measured.
SLACK = 2.0


@pytest.fixture
def admin(url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection past everything of ours, in autocommit mode."""
    with psycopg.connect(libpq_url(url), autocommit=True) as connection:
        yield connection


@pytest.fixture
def acme(url: str) -> str:
    """Id of an organization, made before anything is cached."""
    database = Database(url, pool_size=1)
    try:
        return histories.new_organization(database)
    finally:
        database.close()


def state(admin: psycopg.Connection[Any]) -> tuple[int, str, str]:
    """Generation, mode and name of the life."""
    found = admin.execute("SELECT gen, mode, name FROM cache_state").fetchone()
    assert found is not None
    return found


def notes(admin: psycopg.Connection[Any], realm: str) -> list[str]:
    """What the writes in an organization noted, in order."""
    rows = admin.execute(
        "SELECT data::jsonb ->> 'note' FROM events WHERE realm = %s AND kind = %s"
        " ORDER BY sequence",
        (realm, "organization.updated"),
    )
    return [row[0] for row in rows]


def members(place: Place, control: Any, realm: str) -> set[str]:
    """Members of a control set, without its name."""
    found = {member.decode() for member in place.client.zrange(control.key(realm), 0, -1)}
    return {member for member in found if not member.startswith("n:")}


def pending(place: Place, control: Any, realm: str) -> set[str]:
    """The tags that are marked in a control set."""
    return {
        member.split(":", 3)[3]
        for member in members(place, control, realm)
        if member.startswith("p:")
    }


def at(database: Database, words: str, then: Callable[[], Any], *, after: bool = False) -> None:
    """Does something once, when somebody is about to run a statement with these words."""
    waiting = [then]

    def look(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if words in statement and waiting:
            waiting.pop()()

    moment = "after_cursor_execute" if after else "before_cursor_execute"
    event.listen(database._engine, moment, look)


@contextlib.contextmanager
def alone(url: str) -> Iterator[psycopg.Connection[Any]]:
    """Holds the lock of fences, as a fence does; committed at the end."""
    with psycopg.connect(libpq_url(url)) as connection:
        connection.execute(f"SELECT pg_advisory_xact_lock({LOCK})")
        yield connection


def waits_for_the_lock(admin: psycopg.Connection[Any]) -> bool:
    """Whether somebody waits for the lock of fences."""
    found = admin.execute(
        "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database"
        " WHERE l.locktype = 'advisory' AND NOT l.granted AND d.datname = current_database()"
    ).fetchone()
    return found is not None and found[0] > 0


# --- enable --------------------------------------------------------------------------------------


def test_the_first_process_begins_a_life(
    process: Start, valkey_place: Place, admin: psycopg.Connection[Any]
) -> None:
    assert state(admin) == (1, "off", "")
    first = process(valkey_place.server.url)
    control = first.life()
    assert state(admin) == (1, "on", control.name)
    assert valkey_place.client.hgetall(control.registry) == {b"": b"1"}
    run_id = admin.execute("SELECT redis_run_id FROM cache_state").fetchone()
    assert run_id == (valkey_place.server.run_id,)
    assert process(valkey_place.server.url).life().name == control.name
    assert (first.metrics.cache_mode.value(), first.metrics.cache_generation.value()) == (1, 1)
    assert 0 < first.metrics.cache_lease_remaining_seconds.value() <= L


def test_what_other_lives_left_is_swept_and_nothing_else(
    process: Start, valkey_place: Place
) -> None:
    client = valkey_place.client
    strangers = ["az:x", "azure:{x}", "session:az:{x}", "az{x}:z", "{az:x}"]
    for key in strangers:
        client.set(key, "theirs")
    for number in range(1_200):
        client.set(f"az:{{old{number}}}:org:e:1", "ours")
        client.zadd(f"az:{{old{number}}}:org:z", {"s": 1})
        client.hset(f"az:{{old{number}}}", "", "1")
    control = process(valkey_place.server.url).life()
    left = {control.registry, *strangers}
    assert eventually(lambda: {key.decode() for key in client.scan_iter()} == left)


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("appendonly", "yes", "persistence"),
        ("maxmemory-policy", "allkeys-lru", "eviction"),
        ("maxmemory-policy", "allkeys-random", "eviction"),
        ("maxmemory-policy", "noeviction", ""),
        ("maxmemory-policy", "volatile-ttl", ""),
    ],
)
def test_only_a_fit_redis_is_enabled(
    process: Start,
    own_valkey: Place,
    admin: psycopg.Connection[Any],
    setting: str,
    value: str,
    reason: str,
) -> None:
    own_valkey.client.config_set(setting, value)
    idle = process(own_valkey.server.url, is_running=False)
    assert idle.generation.enable_now() == reason
    assert state(admin)[1] == ("off" if reason else "on")
    assert idle.is_caching is not bool(reason)
    assert own_valkey.client.dbsize() == (0 if reason else 1)


def test_a_redis_with_replicas_is_not_enabled_and_is_left(
    process: Start, own_valkey: Place, admin: psycopg.Connection[Any]
) -> None:
    with valkey() as other, Redis.from_url(other.url) as replica:
        replica.config_set("masterauth", own_valkey.server.url.split(":")[2].split("@")[0])
        replica.replicaof("127.0.0.1", own_valkey.server.port)
        eventually(lambda: own_valkey.client.info("replication")["connected_slaves"] == 1)
        idle = process(own_valkey.server.url, is_running=False)
        assert idle.generation.enable_now() == "replication"
        assert process(other.url, is_running=False).generation.enable_now() == "replication"
        replica.replicaof("NO", "ONE")
        eventually(lambda: own_valkey.client.info("replication")["connected_slaves"] == 0)
        running = process(own_valkey.server.url)
        assert running.life()
        replica.replicaof("127.0.0.1", own_valkey.server.port)
        eventually(lambda: running.metrics.cache_fences.value("replication") == 1)
        eventually(lambda: state(admin)[:2] == (2, "off"))


def test_two_that_enable_at_once_begin_one_life(
    process: Start, valkey_place: Place, admin: psycopg.Connection[Any]
) -> None:
    idle = [process(valkey_place.server.url, is_running=False) for _ in range(4)]
    together = Together()
    together.start(*(each.generation.enable_now for each in idle))
    together.join()
    (name,) = {each.life().name for each in idle if each.generation.renew()}
    assert state(admin) == (1, "on", name)
    assert sum(each.metrics.cache_enable.value() for each in idle) == 1
    assert valkey_place.client.keys() == [b"az:{%b}" % name.encode()]


def test_enable_waits_for_a_write_that_does_not_mark(
    process: Start, valkey_place: Place, acme: str, admin: psycopg.Connection[Any]
) -> None:
    """Else its facts could be read, and cached, before it commits."""
    idle = process(valkey_place.server.url, is_running=False)
    together, modes = Together(), []
    at(
        idle.database,
        "COMMIT",
        lambda: (
            together.start(idle.generation.enable_now),
            eventually(lambda: waits_for_the_lock(admin)),
            modes.append(state(admin)[1]),
        ),
    )
    assert idle.write(acme, "m:1") == {}
    together.join()
    assert modes == ["off"]
    assert state(admin)[1] == "on"


# --- lease ---------------------------------------------------------------------------------------


def test_a_lease_ends_unless_it_is_renewed(process: Start, valkey_place: Place) -> None:
    idle = process(valkey_place.server.url, is_running=False)
    control = idle.begin()
    began = boot_seconds()
    idle.generation.renew()
    assert control.is_alive()
    eventually(lambda: not idle.is_caching)
    # Below L by all that clocks may differ; above it somebody could have settled.
    assert 0.9 * L < boot_seconds() - began < 0.98 * L + 0.02 + SLACK / 10
    assert not control.is_alive()
    assert idle.metrics.cache_lease_remaining_seconds.value() == 0
    idle.generation.renew()
    assert control.is_alive()
    assert idle.generation.current() is control


def test_a_running_process_keeps_its_lease(process: Start, valkey_place: Place) -> None:
    running = process(valkey_place.server.url, lease_seconds=1.0)
    running.life()
    until = boot_seconds() + 1.5
    while boot_seconds() < until:
        assert running.is_caching


class Rated:
    """The boot clock, at another rate from when it is told so."""

    def __init__(self) -> None:
        self.rate = 1.0
        self._since = self._shown = boot_seconds()

    def run_at(self, rate: float) -> None:
        self._shown, self._since, self.rate = self(), boot_seconds(), rate

    def __call__(self) -> float:
        return self._shown + (boot_seconds() - self._since) * self.rate


@pytest.mark.parametrize("rate", [0.95, 1.05])
def test_a_clock_at_another_rate_costs_the_lease(
    process: Start,
    valkey_place: Place,
    admin: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
    rate: float,
) -> None:
    """What is slower could go on when the others think that it has ended (F28)."""
    clock = Rated()
    monkeypatch.setattr(module, "boot_seconds", clock)
    running = process(valkey_place.server.url, lease_seconds=1.0)
    control = running.life()
    clock.run_at(rate)
    eventually(lambda: not running.generation._pace.is_right)
    for _ in range(5):
        last = renewed(admin)
        while renewed(admin) == last:
            assert not running.is_caching
    assert not control.is_alive()
    clock.run_at(1.0)
    assert running.life() is control
    # It was this process alone that stopped.
    assert state(admin)[0] == 1


def test_a_clock_at_another_rate_ends_no_settle(
    process: Start,
    valkey_place: Place,
    admin: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who waits by a fast clock would end it while others still answer from the old generation."""
    clock = Rated()
    monkeypatch.setattr(module, "boot_seconds", clock)
    idle = process(valkey_place.server.url, is_running=False)
    idle.begin()
    clock.run_at(1.5)

    def is_found() -> bool:
        idle.generation.renew()
        return not idle.generation._pace.is_right

    eventually(is_found)
    # Rows prove nothing then: it takes somebody who waits.
    admin.execute("UPDATE cache_state SET gen = 2, mode = 'settling', full_settle = true")
    together = Together()
    began = boot_seconds()
    together.start(lambda: idle.generation.settle(2))
    eventually(lambda: boot_seconds() - began > 2 * L)
    assert state(admin)[1] == "settling"
    clock.run_at(1.0)
    together.join()
    assert state(admin)[1] == "off"


def renewed(admin: psycopg.Connection[Any]) -> Any:
    """When the lease of the only process was renewed."""
    return admin.execute("SELECT max(renewed) FROM node_lease").fetchone()


def test_the_lease_counts_from_before_the_renewal(
    process: Start, url: str, valkey_place: Place, admin: psycopg.Connection[Any]
) -> None:
    """What was read late says nothing about now."""
    idle = process(valkey_place.server.url, is_running=False)
    idle.begin()
    together = Together()
    with alone(url):
        together.start(idle.generation.renew)
        eventually(lambda: waits_for_the_lock(admin))
        # The last lease has ended, and so has the one that it is about to get.
        eventually(lambda: not idle.is_caching)
        threading.Event().wait(0.1)
    together.join()
    assert not idle.is_caching


def test_the_lease_is_dropped_before_others_can_see_that_it_is(
    process: Start, valkey_place: Place
) -> None:
    """The row of the renewal tells who settles that nobody here uses the old generation."""
    idle, other = (
        process(valkey_place.server.url, lease_seconds=5.0, is_running=False) for _ in range(2)
    )
    control = idle.begin()
    other.generation.renew()
    other.generation.fence(1, "test")
    assert control.is_alive()
    seen_alive = []
    at(idle.own, "INSERT INTO node_lease", lambda: seen_alive.append(control.is_alive()))
    idle.generation.renew()
    assert seen_alive == [False]


def test_lock_first_then_the_row(
    process: Start, url: str, valkey_place: Place, acme: str, admin: psycopg.Connection[Any]
) -> None:
    """A renewal and a write that waited for a fence must know of it (I11)."""
    idle = process(valkey_place.server.url, lease_seconds=5.0, is_running=False)
    control = idle.begin()
    for step in (idle.generation.renew, lambda: idle.write(acme, "m:1")):
        gen, mode, _ = state(admin)
        assert mode == "on"
        together = Together()
        results: list[Any] = []
        with alone(url) as fence:
            together.start(lambda step=step, results=results: results.append(step()))  # type: ignore[misc]
            eventually(lambda: waits_for_the_lock(admin))
            fence.execute("UPDATE cache_state SET gen = gen + 1, mode = 'settling'")
        together.join()
        assert not control.is_alive()
        if not isinstance(results[0], tuple):
            # The write has helped to settle, and marked nothing.
            assert results == [{}]
            assert state(admin)[:2] == (gen + 1, "off")
        else:
            assert results[0][:2] == (gen + 1, "settling")
        control = idle.begin()


def test_processes_agree_on_the_length_of_leases(
    process: Start, valkey_place: Place, admin: psycopg.Connection[Any]
) -> None:
    first = process(valkey_place.server.url, is_running=False)
    with pytest.raises(LeaseDiffers):
        process(valkey_place.server.url, lease_seconds=1.0)
    assert process(valkey_place.server.url, is_running=False)
    # Nobody who used the old length can still have a lease.
    eventually(lambda: not first.is_caching)
    again = eventually(lambda: _started(process, valkey_place.server.url, 1.0))
    assert admin.execute("SELECT lease_ms FROM cache_state").fetchone() == (1_000,)
    again.begin()
    # Who slept meanwhile goes by the length that is in force, and whoever settles too.
    first.generation.renew()
    assert first.metrics.cache_lease_remaining_seconds.value() > 0.6


def _started(process: Start, url: str, lease_seconds: float) -> Process | None:
    try:
        return process(url, lease_seconds=lease_seconds, is_running=False)
    except LeaseDiffers:
        return None


def test_one_that_stops_gives_up_its_lease(
    process: Start, valkey_place: Place, admin: psycopg.Connection[Any]
) -> None:
    one, other = (
        process(valkey_place.server.url, lease_seconds=5.0, is_running=False) for _ in range(2)
    )
    control = one.begin()
    other.generation.renew()
    one.generation.stop()
    assert not control.is_alive()
    began = boot_seconds()
    other.generation.leave()
    assert boot_seconds() - began < 4
    assert state(admin)[:2] == (2, "off")


def test_a_renewal_that_ends_after_the_stop_gives_no_lease(
    process: Start, valkey_place: Place
) -> None:
    idle = process(valkey_place.server.url, lease_seconds=5.0, is_running=False)
    control = idle.begin()
    at(idle.own, "COMMIT", idle.generation.stop, after=True)
    idle.generation.renew()
    assert not control.is_alive()


def test_the_database_pauses_and_cached_answers_end(valkey_place: Place) -> None:
    with postgresql() as server:
        url = server.url_of("postgres")
        prepare(url)
        running = Process(url, valkey_place.server.url)
        with contextlib.closing(running):
            control = running.life()
            with psycopg.connect(libpq_url(url), autocommit=True) as admin:
                rows = admin.execute("SELECT pid FROM pg_stat_activity").fetchall()
                # First who could start another.
                pids = [server.pid, *(row[0] for row in rows)]
                began = boot_seconds()
                for pid in pids:
                    os.kill(pid, signal.SIGSTOP)
                try:
                    eventually(lambda: not running.is_caching)
                    assert boot_seconds() - began < L + SLACK / 4
                    assert not control.is_alive()
                finally:
                    for pid in pids:
                        os.kill(pid, signal.SIGCONT)
                assert running.life() is control
                assert state(admin)[0] == 1


# --- fence and settle ----------------------------------------------------------------------------


def test_two_that_fence_at_once_leave_one_generation(
    process: Start, valkey_place: Place, admin: psycopg.Connection[Any]
) -> None:
    idle = [process(valkey_place.server.url, is_running=False) for _ in range(3)]
    idle[0].begin()
    together = Together()
    together.start(*(lambda each=each: each.generation.fence(1, "test") for each in idle))
    together.join()
    assert state(admin)[:2] == (2, "settling")
    assert sum(each.metrics.cache_fences.value("test") for each in idle) == 1
    together.start(*(lambda each=each: each.generation.settle(2) for each in idle))
    together.join()
    assert state(admin)[:2] == (2, "off")
    # Of a generation that is over there is nothing to leave.
    idle[0].generation.fence(1, "test")
    idle[0].generation.settle(1)
    assert state(admin)[:2] == (2, "off")


def test_a_paused_process_is_waited_for(process: Start, valkey_place: Place) -> None:
    length = 1.0
    paused, other = (
        process(valkey_place.server.url, lease_seconds=length, is_running=False) for _ in range(2)
    )
    control = paused.begin()
    other.generation.renew()
    paused.generation.renew()
    until = boot_seconds() + 0.9 * length
    other.generation.leave()
    assert until < boot_seconds() < until + 0.14 * length + SLACK
    assert not control.is_alive()


def test_a_living_process_is_waited_for_until_it_renews(
    process: Start, valkey_place: Place
) -> None:
    length = 3.0
    living, other = (process(valkey_place.server.url, lease_seconds=length) for _ in range(2))
    control = living.life()
    other.life()
    began = boot_seconds()
    other.generation.leave()
    assert not control.is_alive()
    # A fifth of it, give or take a fifth of that.
    assert boot_seconds() - began < 0.24 * length + 1.5


def test_to_leave_waits_for_a_settle_that_somebody_began(
    process: Start, valkey_place: Place, admin: psycopg.Connection[Any]
) -> None:
    """Whoever asks has changed rows by hand: nobody may answer from before when it returns."""
    paused, other = (
        process(valkey_place.server.url, lease_seconds=1.0, is_running=False) for _ in range(2)
    )
    control = paused.begin()
    other.generation.renew()
    other.generation.fence(1, "test")
    assert control.is_alive()
    other.generation.leave()
    assert not control.is_alive()
    assert state(admin)[:2] == (2, "off")


def test_another_length_in_a_process_without_redis_shortens_no_settle(
    process: Start, valkey_place: Place, acme: str
) -> None:
    """It never compared its setting with that of the others, which hold the leases."""
    paused = process(valkey_place.server.url, lease_seconds=1.2, is_running=False)
    control = paused.begin()
    paused.generation.renew()
    process(None, lease_seconds=0.5).write(acme, "m:1")
    assert not control.is_alive()


def test_another_timeline_is_left_and_waited_for_to_the_end(
    process: Start, valkey_place: Place, admin: psycopg.Connection[Any]
) -> None:
    idle = process(valkey_place.server.url, lease_seconds=1.0, is_running=False)
    control = idle.begin()
    present = admin.execute("SELECT timeline FROM cache_state").fetchone()
    # As after a failover: the row came with the data, from another primary.
    admin.execute("UPDATE cache_state SET timeline = 'before'")
    idle.generation.renew()
    assert not control.is_alive()
    # What it remembers has writes that the other primary lost.
    assert control.is_over
    row = admin.execute("SELECT gen, mode, timeline, full_settle FROM cache_state").fetchone()
    assert present is not None
    assert row == (2, "settling", present[0], True)
    # Renewals of the old primary may be unknown here, so that rows prove nothing.
    began = boot_seconds()
    idle.generation.settle(2)
    assert boot_seconds() - began >= 1.04
    assert admin.execute("SELECT mode, full_settle FROM cache_state").fetchone() == ("off", False)


# --- writes --------------------------------------------------------------------------------------


def test_a_write_is_marked_before_its_commit_and_finished_after_it(
    process: Start, valkey_place: Place, acme: str, admin: psycopg.Connection[Any]
) -> None:
    running = process(valkey_place.server.url)
    control = running.life()
    look, star = opened(control, acme), opened(control, "*")
    before, after = [], []

    def work(tx: Any) -> None:
        histories.record(tx, acme, note="one")
        tx.tags = {acme: {"m:1", "R"}, "*": {"E"}}

    def look_at(into: list[Any]) -> None:
        into.append((seen(control, look), seen(control, star), notes(admin, acme)))

    at(running.database, "COMMIT", lambda: look_at(before))
    at(running.database, "COMMIT", lambda: look_at(after), after=True)
    written = running.database.write(work, actor=histories.SYSTEM)
    assert before == [((0, {}, {"m:1", "R"}), (0, {}, {"E"}), [])]
    assert after == [((0, {}, {"m:1", "R"}), (0, {}, {"E"}), ["one"])]
    assert seen(control, look) == (1, {"m:1": 1, "R": 1}, set())
    assert seen(control, star) == (1, {"E": 1}, set())
    assert written.positions == dict.fromkeys((acme, "*"), (control.name, 1))


def test_a_write_that_changes_no_fact_touches_no_redis(
    process: Start, own_valkey: Place, acme: str, admin: psycopg.Connection[Any]
) -> None:
    idle = process(own_valkey.server.url, lease_seconds=30.0, is_running=False)
    idle.begin()
    own_valkey.server.kill()
    assert idle.write(acme, note="one") == {}
    assert notes(admin, acme) == ["one"]
    assert state(admin)[:2] == (1, "on")


def test_very_many_tags_are_marked_as_the_organization(
    process: Start, valkey_place: Place, acme: str
) -> None:
    idle = process(valkey_place.server.url, lease_seconds=30.0, is_running=False)
    control = idle.begin()
    look = opened(control, acme)
    idle.write(acme, *(f"m:{number}" for number in range(257)))
    assert seen(control, look) == (1, {"O": 1}, set())


def test_a_commit_that_fails_for_certain_lifts_its_marks(
    process: Start, valkey_place: Place, acme: str, admin: psycopg.Connection[Any]
) -> None:
    admin.execute(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '23514'; END$$"
    )
    admin.execute(
        "CREATE CONSTRAINT TRIGGER no AFTER INSERT ON events DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION no()"
    )
    idle = process(valkey_place.server.url, lease_seconds=30.0, is_running=False)
    control = idle.begin()
    look = opened(control, acme)
    marked = []
    at(idle.database, "COMMIT", lambda: marked.append(seen(control, look)))
    with pytest.raises(Exception, match="no"):
        idle.write(acme, "m:1", note="one")
    assert marked == [(0, {}, {"m:1"})]
    assert seen(control, look)[2] == set()
    assert notes(admin, acme) == []


def test_a_write_that_cannot_mark_leaves_the_cache_first(
    process: Start, own_valkey: Place, acme: str, admin: psycopg.Connection[Any]
) -> None:
    writer, other = (process(own_valkey.server.url, redis_seconds=0.1) for _ in range(2))
    controls = [writer.life(), other.life()]
    alive_at_commit: list[bool] = []
    own_valkey.server.stop()
    try:
        writer.database.on_commit = lambda: alive_at_commit.extend(
            control.is_alive() for control in controls
        )
        assert writer.write(acme, "m:1", note="one") == {}
        assert alive_at_commit == [False, False]
        assert state(admin)[:2] == (2, "off")
        assert notes(admin, acme) == ["one"]
        assert writer.metrics.cache_fences.value("mark") == 1
        assert writer.metrics.cache_mark_failures.value("timeout") == 1
        # The next ones have nothing to wait for.
        began = boot_seconds()
        assert other.write(acme, "m:1", note="two") == {}
        assert boot_seconds() - began < SLACK
    finally:
        own_valkey.server.cont()
    # It comes back by itself, as another life.
    assert writer.life().name != controls[0].name
    assert eventually(lambda: other.write(acme, "m:1", note="three"))


def test_no_write_commits_in_a_generation_it_did_not_mark(
    process: Start, own_valkey: Place, acme: str
) -> None:
    """The lease of one that is cut off from the database, but not from Redis, has to end."""
    paused = process(own_valkey.server.url, lease_seconds=1.0, is_running=False)
    writer = process(own_valkey.server.url, lease_seconds=1.0, is_running=False)
    control = paused.begin()
    alive: list[bool] = []
    writer.database.on_commit = lambda: alive.append(control.is_alive())
    own_valkey.client.delete(control.registry)
    paused.generation.renew()
    writer.write(acme, "m:1")
    assert alive == [False]
    assert writer.metrics.cache_mark_failures.value("registry") == 1


@pytest.mark.parametrize("loss", ["everything", "set", "mark"])
def test_a_bump_that_was_lost_leaves_the_cache_before_the_acknowledgement(
    process: Start,
    valkey_place: Place,
    acme: str,
    admin: psycopg.Connection[Any],
    loss: str,
) -> None:
    writer, other = (process(valkey_place.server.url, is_running=False) for _ in range(2))
    control = writer.begin()
    opened(control, acme)
    other.generation.renew()
    old = other.life()

    def lose() -> None:
        if loss == "everything":
            valkey_place.client.flushall()
        elif loss == "set":
            valkey_place.client.delete(control.key(acme))
        else:
            (mark,) = [
                each for each in members(valkey_place, control, acme) if each.startswith("p:")
            ]
            valkey_place.client.zrem(control.key(acme), mark)

    at(writer.database, "COMMIT", lose, after=True)
    assert writer.write(acme, "m:1", note="one") == {}
    assert not old.is_alive()
    assert not control.is_alive()
    assert state(admin)[:2] == (2, "off")
    assert notes(admin, acme) == ["one"]
    assert writer.metrics.cache_marks_lost.value() == 1
    assert writer.metrics.cache_fences.value("bump") == 1


def test_a_write_helps_to_settle(
    process: Start, valkey_place: Place, acme: str, admin: psycopg.Connection[Any]
) -> None:
    paused, writer = (process(valkey_place.server.url, is_running=False) for _ in range(2))
    control = paused.begin()
    writer.generation.renew()
    writer.generation.fence(1, "test")
    paused_ends = control.is_alive()
    assert paused_ends
    alive: list[bool] = []
    writer.database.on_commit = lambda: alive.append(control.is_alive())
    assert writer.write(acme, "m:1", note="one") == {}
    assert alive == [False]
    assert state(admin)[:2] == (2, "off")
    assert notes(admin, acme) == ["one"]


def test_a_process_without_redis_leaves_the_cache_of_the_others(
    process: Start, valkey_place: Place, acme: str, admin: psycopg.Connection[Any]
) -> None:
    controls = [process(valkey_place.server.url).life(), process(valkey_place.server.url).life()]
    without = process(None)
    alive: list[bool] = []
    without.database.on_commit = lambda: alive.extend(each.is_alive() for each in controls)
    assert without.write(acme, "m:1", note="one") == {}
    assert alive == [False, False]
    assert without.metrics.cache_fences.value("without_redis") == 1
    assert notes(admin, acme) == ["one"]
    assert state(admin)[0] == 2


class Meddling:
    """Marks as the process does, after something has happened."""

    def __init__(self, marking: Marking, first: Callable[[Connection], Any]) -> None:
        self._marking, self._first = marking, first

    def mark(self, connection: Connection, tags: Tags) -> Marked:
        self._first(connection)
        return self._marking.mark(connection, tags)


def killing(admin: psycopg.Connection[Any]) -> Callable[[Connection], None]:
    """Ends the server's side of a connection."""

    def kill(connection: Connection) -> None:
        pid = connection.connection.dbapi_connection.info.backend_pid  # type: ignore[union-attr]
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))

    return kill


def test_a_connection_that_breaks_before_the_mark(
    process: Start, valkey_place: Place, acme: str, url: str, admin: psycopg.Connection[Any]
) -> None:
    idle = process(valkey_place.server.url, is_running=False)
    control = idle.begin()
    opened(control, acme)
    database = Database(url, marking=Meddling(idle.generation, killing(admin)))
    try:
        with pytest.raises(Unavailable) as refused:
            database.write(_marking(acme, "m:1"), actor=histories.SYSTEM)
    finally:
        database.close()
    assert refused.value.reason == "DATABASE_UNAVAILABLE"
    assert notes(admin, acme) == []
    assert pending(valkey_place, control, acme) == set()


def _marking(realm: str, *tags: str) -> Callable[[Any], None]:
    def work(tx: Any) -> None:
        histories.record(tx, realm)
        tx.tags.setdefault(realm, set()).update(tags)

    return work


def test_a_write_that_waits_too_long_for_a_fence_is_a_lost_race(
    process: Start, valkey_place: Place, acme: str, url: str, admin: psycopg.Connection[Any]
) -> None:
    idle = process(valkey_place.server.url, is_running=False, lock_seconds=0.1)
    with alone(url), pytest.raises(Aborted) as refused:
        idle.write(acme, "m:1", note="one")
    assert refused.value.reason == "CONFLICT"
    assert notes(admin, acme) == []
    assert idle.write(acme, "m:1", note="two") == {}


def test_an_unknown_outcome_leaves_the_marks(
    process: Start,
    valkey_place: Place,
    acme: str,
    admin: psycopg.Connection[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_ABANDONED_SECONDS", 0.2)
    running = process(valkey_place.server.url, lease_seconds=2.0)
    control = running.life()
    look = opened(control, acme)
    pids: list[int] = []

    def work(tx: Any) -> None:
        histories.record(tx, acme, note="one")
        tx.tags = {acme: {"m:1"}}
        pids.append(tx.connection.connection.dbapi_connection.info.backend_pid)

    at(
        running.database,
        "COMMIT",
        lambda: admin.execute("SELECT pg_terminate_backend(%s, 5000)", (pids[-1],)),
    )
    with pytest.raises(Unavailable) as refused:
        running.database.write(work, actor=histories.SYSTEM)
    assert refused.value.reason == "DATABASE_UNAVAILABLE"
    assert len(pids) == 1
    assert seen(control, look)[2] == {"m:1"}
    assert eventually(lambda: seen(control, look) == (1, {"m:1": 1}, set()))
    assert running.metrics.cache_marks_recovered.value() == 1
    assert state(admin)[:2] == (1, "on")
    assert running.write(acme, "m:1")


def test_abandoned_marks_are_lifted_once_their_transactions_are_over(
    process: Start, valkey_place: Place, acme: str, admin: psycopg.Connection[Any]
) -> None:
    """Of writers that were killed between MARK and COMMIT, and between COMMIT and BUMP."""
    running = process(valkey_place.server.url, lease_seconds=2.0)
    control = running.life()
    look = opened(control, acme)
    together, engine = Together(), running.database._engine

    def killed(tag: str, how: str) -> None:
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN")
            running.generation.mark(connection, {acme: frozenset({tag})})
            connection.exec_driver_sql(how)

    with engine.connect() as alive:
        alive.exec_driver_sql("BEGIN")
        running.generation.mark(alive, {acme: frozenset({"m:alive"})})
        # As one whose COMMIT takes long.
        alive.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        together.start(
            lambda: killed("m:aborted", "ROLLBACK"), lambda: killed("m:committed", "COMMIT")
        )
        together.join()
        began = boot_seconds()
        every = {"m:alive", "m:aborted", "m:committed"}
        assert seen(control, look) == (0, {}, every)
        # Only these are pending meanwhile, and for 2 s.
        found = eventually(lambda: _unless_pending(control, look, every))
        assert boot_seconds() - began >= 2.0
        while len(found[1]) < 2:
            found = seen(control, look)
        assert found == (2, found[1], {"m:alive"})
        assert set(found[1]) == {"m:aborted", "m:committed"}
        # The turns of two renewals later that of the living one is still there.
        until = boot_seconds() + 1.0
        while boot_seconds() < until:
            assert seen(control, look)[2] == {"m:alive"}
        alive.exec_driver_sql("ROLLBACK")
    assert eventually(lambda: seen(control, look)[2] == set())
    assert running.metrics.cache_marks_recovered.value() == 3
    assert boot_seconds() - began < 2.0 + 1.0 + 2.0 + SLACK
    assert state(admin)[:2] == (1, "on")


def _unless_pending(control: Any, look: Look, tags: set[str]) -> Any:
    found = seen(control, look)
    return found if found[2] != tags else None


@pytest.mark.parametrize("patient", [False, True], ids=["short", "patient"])
def test_a_writer_that_pauses_with_the_lock_is_cut_off(
    process: Start,
    valkey_place: Place,
    acme: str,
    admin: psycopg.Connection[Any],
    patient: bool,
) -> None:
    writer, other = (process(valkey_place.server.url, is_running=False) for _ in range(2))
    control = writer.begin()
    opened(control, acme)
    other.generation.renew()
    together, inside, resume = Together(), threading.Event(), threading.Event()
    outcome: list[Any] = []

    def pause() -> None:
        inside.set()
        assert resume.wait(30)

    def work(tx: Any) -> None:
        histories.record(tx, acme, note="one")
        tx.tags = {acme: {"m:1"}}

    def write() -> None:
        try:
            outcome.append(writer.database.write(work, actor=histories.SYSTEM, patient=patient))
        except Refusal as refusal:
            outcome.append(refusal)

    at(writer.database, "COMMIT", pause)
    together.start(write)
    try:
        assert inside.wait(20)
        began = boot_seconds()
        other.generation.fence(1, "test")
        assert boot_seconds() - began < 2.0 + SLACK
        assert state(admin)[0] == 2
        assert notes(admin, acme) == []
    finally:
        resume.set()
        together.join()
    # It did not happen, and its caller is told so; or it was done again, outside the cache.
    if isinstance(outcome[0], Refusal):
        assert isinstance(outcome[0], Unavailable)
        assert notes(admin, acme) == []
    else:
        assert notes(admin, acme) == ["one"]


# --- what happens to Redis -----------------------------------------------------------------------


def test_another_redis_process_is_left_without_a_write(
    process: Start, own_valkey: Place, admin: psycopg.Connection[Any]
) -> None:
    running = process(own_valkey.server.url)
    control = running.life()
    snapshot = own_valkey.server.snapshot()
    own_valkey.server.restart(from_snapshot=snapshot)
    assert own_valkey.client.exists(control.registry)
    eventually(lambda: running.metrics.cache_fences.value("run_id") == 1)
    assert eventually(lambda: state(admin)[:2] == (2, "on"))
    again = running.life()
    assert again.name != control.name
    assert eventually(lambda: not own_valkey.client.exists(control.registry))


def test_a_lost_life_is_left_once(
    process: Start, valkey_place: Place, acme: str, admin: psycopg.Connection[Any]
) -> None:
    running = process(valkey_place.server.url)
    control = running.life()
    opened(control, acme)
    valkey_place.client.flushall()
    assert control.open([acme]) is None
    eventually(lambda: state(admin)[:2] == (2, "on"))
    again = running.life()
    # Who asked the lost one late finds out about it as well: that is no reason to leave the next.
    assert control.open([acme]) is None
    for _ in range(3):
        assert opened(running.life(), acme)
        remaining = running.metrics.cache_lease_remaining_seconds.value()
        eventually(
            lambda was=remaining: running.metrics.cache_lease_remaining_seconds.value() > was
        )
    assert state(admin) == (2, "on", again.name)
    assert running.metrics.cache_fences.value("registry") == 1


def test_the_age_of_the_oldest_mark_is_told(process: Start, valkey_place: Place, acme: str) -> None:
    running = process(valkey_place.server.url, lease_seconds=2.0)
    control = running.life()
    look = opened(control, acme)
    age = running.metrics.cache_oldest_mark_seconds
    with running.database._engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        running.generation.mark(connection, {acme: frozenset({"m:1"})})
        assert eventually(lambda: seen(control, look)[2] == {"m:1"} and age.value() > 0.3)
        connection.exec_driver_sql("ROLLBACK")
    assert eventually(lambda: seen(control, look)[2] == set())
    # It is gone; what was known of it is forgotten a few seconds later.
    assert eventually(lambda: age.value() == 0)


def test_a_commit_that_no_standby_confirmed_has_an_unknown_outcome(valkey_place: Place) -> None:
    """PostgreSQL says so with a warning only: after a failover the write may be gone."""
    with postgresql(durable=True) as server, contextlib.ExitStack() as exits:
        url = server.url_of("postgres")
        prepare(url)
        running = Process(url, valkey_place.server.url, lease_seconds=30.0, is_running=False)
        exits.callback(running.close)
        admin = exits.enter_context(psycopg.connect(libpq_url(url), autocommit=True))
        acme = histories.new_organization(running.database)
        control = running.begin()
        opened(control, acme)
        admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        admin.execute("SELECT pg_reload_conf()")
        eventually(lambda: admin.execute("SHOW synchronous_standby_names").fetchone() != ("",))
        together = Together()
        outcome: list[Any] = []

        def write() -> None:
            try:
                outcome.append(running.write(acme, "m:1"))
            except Unavailable as refused:
                outcome.append(refused.reason)

        together.start(write)
        eventually(
            lambda: admin.execute(
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            ).fetchone()
        )
        together.join()
        admin.execute("SET synchronous_commit = local")
        admin.execute("ALTER SYSTEM RESET synchronous_standby_names")
        admin.execute("SELECT pg_reload_conf()")
        assert outcome == ["DATABASE_UNAVAILABLE"]
        assert pending(valkey_place, control, acme) == {"m:1"}
