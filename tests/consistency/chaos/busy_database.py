"""Faults of PostgreSQL: restarted, standing still, or held up by others (F11, F12, F18)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from authz_service.base.clock import boot_seconds
from tests.consistency.chaos.scene import Scene
from tests.consistency.sizes import PATIENCE_SECONDS
from tests.consistency.stack import CALLED, pause, within
from tests.servers.postgresql import libpq_url
from tests.servers.stopping import all_stopped

# "Health answers within 1 s", and no more calls at work than there are threads.
HEALTH_SECONDS = 1.0
THREADS = 8


def reads_again(scene: Scene, began: float) -> None:
    """Waits for an answer to a read that was sent after an instant."""
    seen = scene.load.record.answered

    def is_answered() -> bool:
        return any(read.ended - read.seconds > began for read in seen[-50:])

    taken = within(PATIENCE_SECONDS, is_answered)
    assert taken is not None
    scene.note("answers again", taken)
    scene.cache_on(PATIENCE_SECONDS)
    pause(0.5)


def database_restarted(scene: Scene) -> None:
    """Restarts PostgreSQL, fast or by killing it."""
    database = scene.servers.postgresql
    if scene.faults % 2 == 0:
        database.kill()
        database.start()
    else:
        database.restart()
    reads_again(scene, boot_seconds())


def _paused(scene: Scene, seconds: float) -> None:
    with all_stopped(scene.servers.postgresql.pid):
        began = boot_seconds()
        while boot_seconds() - began < seconds:
            for service in scene.stack.services:
                taken = service.answers_health(PATIENCE_SECONDS)
                assert taken is not None, "health does not answer"
                scene.note("health answers", taken)
                at_work = sum(
                    count
                    for (name, *labels), count in service.metrics().items()
                    if name == "authz_rpc_in_flight" and labels != ["watch"]
                )
                assert at_work <= THREADS, f"{at_work} calls are at work"
            pause(0.2)
    reads_again(scene, boot_seconds())


def database_paused(scene: Scene) -> None:
    """Stops all processes of PostgreSQL for a second."""
    _paused(scene, 1.0)


def database_paused_for_a_while(scene: Scene) -> None:
    """Stops all processes of PostgreSQL for a moment, or until callers have given up."""
    _paused(scene, (1.0, 5.0, 30.0)[scene.faults % 3])


# --- F18: held up by others ---------------------------------------------------------------------


@contextmanager
def _administrator(scene: Scene) -> Iterator["psycopg.Connection[Any]"]:
    """Gives a connection past the service, in a transaction that is rolled back."""
    url = libpq_url(scene.stack.database_url)
    with psycopg.connect(url, application_name="administrator") as connection:
        yield connection
        connection.rollback()


def _deadlocks(scene: Scene) -> int:
    with _administrator(scene) as connection:
        row = connection.execute(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
    assert row is not None
    return int(row[0])


def _locked(scene: Scene, seconds: float) -> None:
    """Holds the row of a realm, which each write to it waits for."""
    deadlocks = _deadlocks(scene)
    locked, other = scene.load.organizations
    began = boot_seconds()
    with _administrator(scene) as connection:
        connection.execute("SELECT 1 FROM realms WHERE id = %s FOR UPDATE", (locked,))
        pause(seconds)
    ended = boot_seconds()
    taken = [
        write.acknowledged - write.invoked
        for write in list(scene.load.record.writes)
        if write.organizations == {other} and began < write.acknowledged < ended
    ]
    if taken:
        scene.note("longest write of the other organization", max(taken))
    after = within(PATIENCE_SECONDS, lambda: _is_written(scene, locked, ended))
    assert after is not None, "the organization that was locked is not written any more"
    scene.note("written again", after)
    assert _deadlocks(scene) == deadlocks
    pause(0.5)


def _is_written(scene: Scene, organization: str, since: float) -> bool:
    return any(
        organization in write.organizations and write.acknowledged > since
        for write in scene.load.record.writes[-50:]
    )


def realm_locked(scene: Scene) -> None:
    """Locks an organization by direct SQL for 3 seconds, longer than a write waits for it."""
    _locked(scene, 3.0)


def realm_locked_for_a_while(scene: Scene) -> None:
    """Locks an organization by direct SQL, for longer than callers wait."""
    _locked(scene, (3.0, 30.0)[scene.faults % 2])


def long_transaction(scene: Scene) -> None:
    """Keeps a transaction open that has written something: nothing waits for it."""
    with _administrator(scene) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.execute("SELECT pg_current_xact_id(), count(*) FROM events")
        pause(5.0)
    pause(0.5)


def pool_of_one(scene: Scene) -> None:
    """Starts a process with one connection to the database, and takes an organization from it."""
    service = scene.stack.services[1]
    for size in ("1", ""):
        service.change(AUTHZ_DATABASE_POOL=size)
        service.kill()
        service.start()
        service.wait()
        if size:
            with _administrator(scene) as connection:
                (row,) = connection.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s",
                    (CALLED.format(service.number),),
                ).fetchall()
            scene.note("connections with a pool of one", row[0])
            _locked(scene, 3.0)
    scene.cache_on(PATIENCE_SECONDS)
