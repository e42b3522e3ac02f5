"""Fixtures of every test: a database of each kind, a worker on it, and callers.

Unmarked tests run on SQLite; those below ``storage``, ``domain``, ``api`` and ``oracle`` again on
PostgreSQL.
"""

import shutil
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from authz_service.base.clock import utc_now
from authz_service.config import Config, dev_environment
from authz_service.server import Worker, prepare
from authz_service.storage.database import Database
from tests.callers import Caller, through_hall
from tests.oracle import sizes as sizes  # registers the nightly profile
from tests.servers.postgresql import Databases

BOTH_DATABASES = {"storage", "domain", "api", "oracle"}


class ManualClock:
    """The wall clock of a test: stands still, or runs, and moves only forward by command."""

    def __init__(self) -> None:
        self._ahead = timedelta()
        self._stopped_at: datetime | None = None

    def __call__(self) -> datetime:
        return (self._stopped_at or utc_now()) + self._ahead

    def advance(self, **span: float) -> None:
        """Moves on by days, hours, minutes or seconds."""
        self._ahead += timedelta(**span)

    def stop_at(self, instant: datetime) -> None:
        """Stands still at an instant in UTC."""
        self._stopped_at, self._ahead = instant.astimezone(UTC), timedelta()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a test once per kind of database, if it uses one."""
    if "backend" not in metafunc.fixturenames:
        return
    folder = metafunc.definition.path.relative_to(Path(__file__).parent).parts[0]
    backends = ["sqlite"]
    if folder in BOTH_DATABASES or metafunc.definition.get_closest_marker("both_databases"):
        backends.append("postgresql")
    if metafunc.definition.get_closest_marker("every_cache"):
        backends.append("valkey")
    metafunc.parametrize(
        "backend",
        [
            pytest.param(name, marks=[pytest.mark.server] if name != "sqlite" else [])
            for name in backends
        ],
        indirect=True,
    )


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """``sqlite``, ``postgresql``, or ``valkey`` for PostgreSQL with a cache in Valkey."""
    return str(request.param)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with schema and first rows, to be copied."""
    path = tmp_path_factory.mktemp("template") / "authz.db"
    prepare(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def seeded_databases(postgresql_server: Any) -> Iterator[Databases]:
    """Makes PostgreSQL databases with schema and first rows."""
    databases = Databases(postgresql_server, prepare, prefix="seeded")
    yield databases
    databases.close()


@pytest.fixture
def database_url(backend: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a fresh database of this kind, with schema and first rows."""
    if backend == "sqlite":
        path = tmp_path / "authz.db"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    databases = request.getfixturevalue("seeded_databases")
    url = databases.create(migrated=True)
    yield url
    databases.drop(url)


@pytest.fixture
def clock() -> ManualClock:
    """The wall clock of the database and the worker."""
    return ManualClock()


@pytest.fixture
def database(database_url: str, clock: ManualClock) -> Iterator[Database]:
    """The database, without a server."""
    database = Database(database_url, clock=clock)
    yield database
    database.close()


@pytest.fixture
def settings() -> dict[str, str]:
    """Settings of the worker; a test module may override this fixture to lower limits."""
    return {}


@pytest.fixture
def cache_settings(request: pytest.FixtureRequest) -> dict[str, str]:
    """Settings of the cache that a kind of database comes with."""
    if request.getfixturevalue("backend") != "valkey":
        return {}
    url = request.getfixturevalue("valkey_server").url
    # What a settle waits for, and so what a test pays for each world.
    return {"AUTHZ_REDIS_URL": url, "AUTHZ_CACHE_LEASE_SECONDS": "0.5"}


@pytest.fixture
def config(database_url: str, settings: dict[str, str], cache_settings: dict[str, str]) -> Config:
    """The worker's configuration: ephemeral ports, a made-up first credential, no rate."""
    environment, _ = dev_environment(
        {
            "AUTHZ_DATABASE_URL": database_url,
            "AUTHZ_LISTEN": "127.0.0.1:0",
            "AUTHZ_METRICS_LISTEN": "127.0.0.1:0",
            "AUTHZ_RATE_PER_SECOND": "0",
            # Every answer from the cache is compared with SQL.
            "AUTHZ_CACHE_VERIFY_RATIO": "1",
            **cache_settings,
            **settings,
        }
    )
    return Config.from_environment(environment)


@pytest.fixture
def worker(config: Config, clock: ManualClock) -> Iterator[Worker]:
    """A worker whose hall answers; ``start()`` it for a socket."""
    worker = Worker(config, clock=clock)
    yield worker
    worker.stop()
    assert worker.metrics.cache_inconsistency.value() == 0


@pytest.fixture
def api(worker: Worker, config: Config) -> Caller:
    """An unrestricted admin, through the hall."""
    first = config.security.first_credential
    assert first is not None
    return Caller(through_hall(worker.hall), first.reveal())


def begun(worker: Worker) -> None:
    """Lets the worker forget everything, after rows were changed past it; it caches again then."""
    worker.fence()
    if not worker.has_cache:
        return
    deadline = time.monotonic() + 30
    while not worker.is_caching:
        assert time.monotonic() < deadline, "the cache did not begin anew"
        threading.Event().wait(0.01)
