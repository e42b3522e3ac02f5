"""The fixtures of the database tests: fresh, separate databases, prepared once."""

import uuid
from collections.abc import Iterator

import psycopg
import pytest

from authz_service.stack.postgresql import Server
from tests.servers.postgresql import Databases, libpq_url


class Recorder:
    """Prepares a database and counts how often it was asked to."""

    def __init__(self) -> None:
        self.urls: list[str] = []

    def __call__(self, url: str) -> None:
        self.urls.append(url)
        with psycopg.connect(libpq_url(url)) as connection:
            connection.execute("CREATE TABLE present (number integer)")


@pytest.fixture
def prepare() -> Recorder:
    """Stands for the migrations."""
    return Recorder()


@pytest.fixture
def databases(postgresql_server: Server, prepare: Recorder) -> Iterator[Databases]:
    """Databases of this test, under names and a template of its own."""
    databases = Databases(postgresql_server, prepare, prefix=f"own_{uuid.uuid4().hex}")
    yield databases
    databases.close()


def tables(url: str) -> list[tuple[str]]:
    """Returns the names of the tables of a database."""
    with psycopg.connect(libpq_url(url)) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return found.fetchall()


def test_every_migrated_database_is_a_clone_of_one_prepared_once(
    databases: Databases, prepare: Recorder
) -> None:
    first, second = databases.create(migrated=True), databases.create(migrated=True)

    assert tables(first) == tables(second) == [("present",)]
    assert len(prepare.urls) == 1


def test_an_empty_database_has_no_table(databases: Databases) -> None:
    databases.create(migrated=True)

    assert tables(databases.create(migrated=False)) == []


def test_rows_of_one_database_are_not_in_the_next(databases: Databases) -> None:
    first, second = databases.create(migrated=True), databases.create(migrated=True)
    with psycopg.connect(libpq_url(first)) as connection:
        connection.execute("INSERT INTO present VALUES (1)")

    with psycopg.connect(libpq_url(second)) as connection:
        assert connection.execute("SELECT * FROM present").fetchall() == []


def test_a_database_in_use_can_be_dropped(databases: Databases) -> None:
    url = databases.create(migrated=False)
    with psycopg.connect(libpq_url(url)) as connection:
        databases.drop(url)

        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(libpq_url(url))
