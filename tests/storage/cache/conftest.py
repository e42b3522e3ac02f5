"""Fixtures of the cache tests: control sets of every kind."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from authz_service.stack.valkey import Server, valkey
from authz_service.storage.cache.control import Control
from authz_service.storage.cache.memory_control import MemoryControl
from tests.servers.postgresql import Databases
from tests.storage.cache.lives import Place, Process

Begin = Callable[..., Control]


@pytest.fixture
def place(redis_url: str, request: pytest.FixtureRequest) -> Iterator[Place]:
    """A Valkey, and again a Redis, that is empty."""
    program = request.node.callspec.params["redis_url"]
    place = Place(request.getfixturevalue(f"{program}_server"))
    yield place
    place.close()


@pytest.fixture
def throwaway(throwaway_redis: Any) -> Iterator[Place]:
    """A Valkey, and again a Redis, that the test may pause, kill and damage."""
    place = Place(throwaway_redis)
    yield place
    place.close()


@pytest.fixture(
    params=[
        "memory",
        pytest.param("valkey", marks=pytest.mark.server),
        pytest.param("redis", marks=pytest.mark.server),
    ]
)
def begin(request: pytest.FixtureRequest) -> Iterator[Begin]:
    """Begins a life of the cache, of each kind that there is."""
    if request.param == "memory":
        yield MemoryControl
        return
    place = Place(request.getfixturevalue(f"{request.param}_server"))
    place.client.flushall()
    place.client.script_flush()
    yield place.begin
    place.close()


@pytest.fixture
def url(seeded_databases: Databases) -> Iterator[str]:
    """URL of a fresh PostgreSQL database with schema and first rows."""
    url = seeded_databases.create(migrated=True)
    yield url
    seeded_databases.drop(url)


@pytest.fixture
def valkey_place(valkey_server: Server) -> Iterator[Place]:
    """An empty Valkey."""
    place = Place(valkey_server)
    place.client.flushall()
    place.client.script_flush()
    yield place
    place.close()


@pytest.fixture
def own_valkey() -> Iterator[Place]:
    """A Valkey that the test may pause, kill and reconfigure."""
    with valkey() as server:
        place = Place(server)
        yield place
        place.close()


@pytest.fixture
def process(url: str) -> Iterator[Callable[..., Process]]:
    """Starts processes on the database, and stops them all after the test."""
    started: list[Process] = []

    def start(redis_url: str | None, **settings: Any) -> Process:
        made = Process(url, redis_url, **settings)
        started.append(made)
        return made

    yield start
    for each in started:
        each.close()
