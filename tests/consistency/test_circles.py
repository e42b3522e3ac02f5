"""A call that fails must not live on in a circle of exception and frame.

grpcio ends a stream when the call's object dies. A connection has 100 streams; what waits for the
collector of circles, which is told to come seldom, takes them away one by one until the process
refuses every call on the connection. Found when shared entries were altered under load.
"""

import gc
import weakref
from collections.abc import Callable, Iterator

import pytest
import redis

from authz_service.stack.valkey import Server
from authz_service.storage.cache.redis_connections import Connections, Refused
from authz_service.telemetry.metrics import Metrics


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
        except Refused:
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
