"""Fixtures of the cache tests: control sets of every kind."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from authz_service.storage.cache.control import Control
from authz_service.storage.cache.memory_control import MemoryControl
from tests.storage.cache.lives import Place

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
