"""Valkey and Redis for tests: one server of each per test worker, emptied before each test.

Tests that pause, kill or reconfigure a server take ``throwaway_redis``, or start their own with
``authz_service.stack.valkey``.
"""

from collections.abc import Iterator

import pytest
from redis import Redis

from authz_service.stack.valkey import Server, valkey
from tests.servers.debian import redis_7

_SERVERS = {"valkey_server", "redis_server", "redis_url", "throwaway_redis"}
_PROGRAMS = ["valkey", "redis"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that need a server, so that ``make test-fast`` can leave them out."""
    for item in items:
        if not _SERVERS.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("server")


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Server]:
    """A running Valkey; of this test worker."""
    with valkey() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    """A running Redis 7; of this test worker."""
    with valkey(redis_7()) as server:
        yield server


@pytest.fixture(params=_PROGRAMS)
def redis_url(request: pytest.FixtureRequest) -> str:
    """URL of an empty Valkey, and again of an empty Redis; nobody else uses it meanwhile."""
    server: Server = request.getfixturevalue(f"{request.param}_server")
    with Redis.from_url(server.url) as client:
        client.flushall()
        client.script_flush()
    return server.url


@pytest.fixture(params=_PROGRAMS)
def throwaway_redis(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A Valkey, and again a Redis, that the test may pause, kill and damage."""
    with valkey(redis_7() if request.param == "redis" else None) as server:
        yield server
