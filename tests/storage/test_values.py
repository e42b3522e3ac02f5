"""Statements that go to the driver at once fail as all others do, and their pool recovers."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import text

from authz_service.base import errors
from authz_service.base.actor import SYSTEM
from authz_service.stack.postgresql import Server, postgresql
from authz_service.storage.database import Database

ONE = text("SELECT 1 + :more, '10%', CAST(NULL AS integer)")
SLEEP = text("SELECT pg_sleep(:seconds)")
Ask = Callable[[Database, Any, dict[str, Any]], Any]


def single(database: Database, statement: Any, parameters: dict[str, Any]) -> Any:
    """Asks outside of a snapshot."""
    return database.values(statement, parameters, name="list")


def within(database: Database, statement: Any, parameters: dict[str, Any]) -> Any:
    """Asks in a snapshot."""
    with database.snapshot(SYSTEM) as snapshot:
        return snapshot.values(statement, parameters)


@pytest.fixture(params=[single, within])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Both ways."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def server() -> Iterator[Server]:
    """A PostgreSQL that may be killed."""
    with postgresql() as server:
        yield server


def test_values_are_plain(database: Database, ask: Ask) -> None:
    for _ in range(5):
        (row,) = ask(database, ONE, {"more": 1})
        assert type(row) is tuple
        assert row == (2, "10%", None)


@pytest.mark.server
def test_a_lost_database_is_unavailable_and_comes_back(server: Server, ask: Ask) -> None:
    database = Database(server.url_of("postgres"), pool_size=2)
    try:
        assert ask(database, ONE, {"more": 0})[0][0] == 1
        server.kill()
        # Its processes live until they notice; then it is as lost as it will be.
        with pytest.raises(errors.Unavailable):
            for _ in range(100_000):
                ask(database, ONE, {"more": 0})
        for _ in range(3):
            with pytest.raises(errors.Unavailable) as refused:
                ask(database, ONE, {"more": 0})
            assert refused.value.reason == "DATABASE_UNAVAILABLE"
        server.start()
        assert ask(database, ONE, {"more": 0})[0][0] == 1
    finally:
        database.close()


@pytest.mark.server
def test_a_long_statement_ends_with_the_time_it_has(server: Server, ask: Ask) -> None:
    database = Database(server.url_of("postgres"), pool_size=1, statement_seconds=0.05)
    try:
        with pytest.raises(errors.DeadlineExceeded):
            ask(database, SLEEP, {"seconds": 20.0})
        assert ask(database, ONE, {"more": 1})[0][0] == 2
    finally:
        database.close()


@pytest.mark.server
def test_a_full_pool_is_overloaded(server: Server) -> None:
    database = Database(server.url_of("postgres"), pool_size=1, wait_seconds=0.01)
    try:
        with database.snapshot(SYSTEM), pytest.raises(errors.ResourceExhausted) as refused:
            database.values(ONE, {"more": 1}, name="list")
        assert refused.value.reason == "OVERLOADED"
    finally:
        database.close()
