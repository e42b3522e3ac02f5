"""Fixtures of the guards: a stocked world, of which each test gets a copy with a worker on it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from authz_service.config import Config, dev_environment
from authz_service.server import Worker
from tests.architecture.writes import World, stock
from tests.callers import Caller, through_hall


class Place(NamedTuple):
    """A worker whose database holds the world, an admin before it, and the world's ids."""

    worker: Worker
    api: Caller
    world: World


class Stocked(NamedTuple):
    """The place of all tests, its SQLite file, and a copy to begin from."""

    place: Place
    path: Path
    template: Path


def opened(database: Path, **settings: str) -> tuple[Worker, Caller]:
    """A worker on a SQLite file, with these settings, and an admin."""
    environment, _ = dev_environment(
        {
            "AUTHZ_DATABASE_URL": f"sqlite:///{database}",
            "AUTHZ_LISTEN": "127.0.0.1:0",
            "AUTHZ_METRICS_LISTEN": "127.0.0.1:0",
            "AUTHZ_RATE_PER_SECOND": "0",
            "AUTHZ_CACHE_VERIFY_RATIO": "0",
            **settings,
        }
    )
    worker = Worker(Config.from_environment(environment))
    return worker, Caller(through_hall(worker.hall), environment["AUTHZ_FIRST_CREDENTIAL"])


def another(stocked: Stocked, folder: Path, **settings: str) -> tuple[Worker, Caller]:
    """A second worker, on a copy of the world, with these settings."""
    path = folder / "another.db"
    shutil.copyfile(stocked.template, path)
    return opened(path, **settings)


@pytest.fixture(scope="session")
def stocked(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stocked]:
    """One worker for all tests, on a file that holds the world of ``writes.stock``."""
    folder = tmp_path_factory.mktemp("stocked")
    path, template = folder / "authz.db", folder / "template.db"
    shutil.copyfile(sqlite_template, path)
    worker, api = opened(path)
    world = stock(api)
    worker.database.close()
    shutil.copyfile(path, template)
    yield Stocked(Place(worker, api, world), path, template)
    worker.stop()


@pytest.fixture
def place(stocked: Stocked) -> Place:
    """The stocked world as it was first."""
    # Without a connection the journal is part of the file; the next call opens it anew.
    stocked.place.worker.database.close()
    shutil.copyfile(stocked.template, stocked.path)
    stocked.place.worker.fence()
    return stocked.place
