"""PostgreSQL for tests: one server per test worker, one fresh database per test.

Starting a server takes half a second and cloning a database a few hundredths, so that nothing is
shared between workers and no lock is needed. Tests that stop or kill a server start their own with
``authz_service.stack.postgresql``.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import sql

from authz_service.stack.postgresql import Server, postgresql

Prepare = Callable[[str], None]


class Databases:
    """Makes and drops databases on one server.

    Args:
        server: Runs as long as this object is used.
        prepare: Called with the URL of an empty database; brings it to the present schema and
            closes its connections.
        prefix: Starts the name of each database.
    """

    def __init__(self, server: Server, prepare: Prepare, *, prefix: str = "test") -> None:
        self._server = server
        self._prepare = prepare
        self._prefix = prefix
        self._template = f"{prefix}_template"
        self._admin = psycopg.connect(libpq_url(server.url), autocommit=True)
        self._has_template = False
        self._made = 0

    def create(self, *, migrated: bool) -> str:
        """Returns the URL of a new database without rows, and without a schema unless migrated."""
        if migrated and not self._has_template:
            self._create(self._template, "template0")
            self._prepare(self._server.url_of(self._template))
            self._has_template = True
        self._made += 1
        name = f"{self._prefix}_{self._made}"
        self._create(name, self._template if migrated else "template0")
        return self._server.url_of(name)

    def drop(self, url: str) -> None:
        """Drops a database, whoever is still connected to it."""
        name = psycopg.conninfo.conninfo_to_dict(libpq_url(url))["dbname"]
        drop = sql.SQL("DROP DATABASE {} WITH (FORCE)")
        self._admin.execute(drop.format(sql.Identifier(str(name))))

    def close(self) -> None:
        """Closes the connection to the server."""
        self._admin.close()

    def _create(self, name: str, template: str) -> None:
        # Copying files costs two checkpoints, which are cheap without fsync, and no WAL.
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
        self._admin.execute(create.format(sql.Identifier(name), sql.Identifier(template)))


def libpq_url(url: str) -> str:
    """Returns a SQLAlchemy URL in the form that psycopg itself takes."""
    return url.replace("postgresql+psycopg://", "postgresql://", 1)


def migrate(url: str) -> None:
    """Brings a database to the present schema."""
    if importlib.util.find_spec("authz_service.storage.schema") is not None:
        importlib.import_module("authz_service.storage.schema").upgrade(url)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that need the server, so that ``make test-fast`` can leave them out."""
    for item in items:
        if "postgresql_server" in getattr(item, "fixturenames", ()):
            item.add_marker("server")


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Server]:
    """A running server, not durable; of this test worker."""
    with postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def postgresql_databases(postgresql_server: Server) -> Iterator[Databases]:
    """Makes databases on the server of this test worker."""
    databases = Databases(postgresql_server, migrate)
    yield databases
    databases.close()


@pytest.fixture
def postgresql_url(postgresql_databases: Databases) -> Iterator[str]:
    """URL of a fresh database with the present schema and no rows."""
    url = postgresql_databases.create(migrated=True)
    yield url
    postgresql_databases.drop(url)


@pytest.fixture
def postgresql_empty_url(postgresql_databases: Databases) -> Iterator[str]:
    """URL of a fresh database without any schema."""
    url = postgresql_databases.create(migrated=False)
    yield url
    postgresql_databases.drop(url)
