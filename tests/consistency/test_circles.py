"""A call that fails must not live on in a circle of exception and frame.

grpcio ends a stream when the call's object dies. A connection has 100 streams; what waits for the
collector of circles, which is told to come seldom, takes them away one by one until the process
refuses every call on the connection. Found when shared entries were altered under load.
"""

import gc
import weakref
from collections.abc import Callable, Iterator

import psycopg
import pytest
import redis
from sqlalchemy import text

from authz_service.base.actor import SYSTEM
from authz_service.base.errors import Refusal
from authz_service.stack.valkey import Server
from authz_service.storage.cache.redis_connections import Connections, Refused
from authz_service.storage.database import Database
from authz_service.telemetry.metrics import Metrics
from tests.servers.postgresql import libpq_url


class Call:
    """Stands for what a front keeps of a call."""


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def outlives(fail: Callable[[], object]) -> bool:
    """Returns whether a call whose work was refused is still there after its answer."""

    def handle() -> "weakref.ref[Call]":
        call = Call()
        try:
            fail()
        except (Refused, Refusal):
            return weakref.ref(call)
        raise AssertionError("nothing was refused")

    return handle()() is not None


@pytest.mark.usefixtures("no_collector")
def test_an_error_of_redis_keeps_no_call_alive(valkey_server: Server) -> None:
    with redis.Redis.from_url(valkey_server.url) as client:
        client.delete("list")
        client.rpush("list", "one")
    connections = Connections(valkey_server.url, "", timeout_seconds=5, metrics=Metrics())
    assert not outlives(lambda: connections.commands("get", (b"GET", b"list")))
    connections.close()


@pytest.mark.usefixtures("no_collector")
def test_an_unreachable_redis_keeps_no_call_alive() -> None:
    connections = Connections("redis://127.0.0.1:1/0", "", timeout_seconds=1, metrics=Metrics())
    assert not outlives(lambda: connections.commands("ping", (b"PING",)))
    connections.close()


@pytest.mark.usefixtures("no_collector")
def test_another_redis_keeps_no_call_alive(valkey_server: Server) -> None:
    connections = Connections(valkey_server.url, "of another", timeout_seconds=5, metrics=Metrics())
    assert not outlives(lambda: connections.commands("ping", (b"PING",)))
    connections.close()


UNREACHABLE = "postgresql+psycopg://postgres@127.0.0.1:1/none"


def _in_snapshot(database: Database, statement: str) -> None:
    with database.snapshot(SYSTEM) as snapshot:
        snapshot.connection.exec_driver_sql(statement)


WAYS: dict[str, Callable[[Database, str], object]] = {
    "snapshot": _in_snapshot,
    "values": lambda database, sql: database.values(text(sql), {}, name="check"),
    "rows": lambda database, sql: database.rows(text(sql), {}, name="revisions"),
    "write": lambda database, sql: database.write(
        lambda tx: tx.connection.exec_driver_sql(sql), actor=SYSTEM
    ),
    "control": lambda database, sql: database.control(
        lambda tx: tx.connection.exec_driver_sql(sql)
    ),
}


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("way", WAYS)
def test_an_unreachable_database_keeps_no_call_alive(way: str) -> None:
    database = Database(UNREACHABLE, pool_size=1)
    assert not outlives(lambda: WAYS[way](database, "SELECT 1"))
    database.close()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("way", WAYS)
def test_a_connection_that_was_cut_keeps_no_call_alive(way: str, postgresql_url: str) -> None:
    database = Database(postgresql_url, pool_size=1)
    _in_snapshot(database, "SELECT 1")
    with psycopg.connect(libpq_url(postgresql_url), autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    assert not outlives(lambda: WAYS[way](database, "SELECT 1"))
    database.close()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("way", WAYS)
def test_a_statement_that_takes_too_long_keeps_no_call_alive(way: str, postgresql_url: str) -> None:
    database = Database(postgresql_url, pool_size=1, statement_seconds=0.2)
    assert not outlives(lambda: WAYS[way](database, "SELECT pg_sleep(1)"))
    database.close()
