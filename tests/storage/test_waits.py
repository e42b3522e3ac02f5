"""Whoever waits for a database, for Redis or for others says so (``base/waits.py``)."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import text

from authz_service.base.actor import SYSTEM
from authz_service.base.waits import waits, watch
from authz_service.stack.valkey import valkey
from authz_service.storage.cache.flights import Flights
from authz_service.storage.cache.lanes import Lanes
from authz_service.storage.cache.redis_connections import Connections
from authz_service.storage.database import Database
from authz_service.telemetry.metrics import Metrics

ONE = text("SELECT 1")
SECONDS = 20.0


class Recorder:
    """Counts what it is told, and sees whether the thread waits."""

    def __init__(self) -> None:
        self.left = self.depth = 0

    def leaves(self) -> None:
        self.left += 1
        self.depth += 1

    def returns(self) -> None:
        self.depth -= 1


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """Watches the test's own thread."""
    made = Recorder()
    watch(made)
    yield made
    watch(None)


def snapshot(database: Database, seen: Callable[[], None]) -> None:
    with database.snapshot(SYSTEM):
        seen()


def write(database: Database, seen: Callable[[], None]) -> None:
    database.write(lambda tx: seen(), actor=SYSTEM)


def control(database: Database, seen: Callable[[], None]) -> None:
    database.control(lambda tx: seen())


@pytest.mark.parametrize("enter", [snapshot, write, control])
def test_a_transaction_is_a_wait(database: Database, recorder: Recorder, enter: Any) -> None:
    depths: list[int] = []
    enter(database, lambda: depths.append(recorder.depth))
    assert depths == [1]
    assert recorder.depth == 0


@pytest.mark.parametrize("name", ["rows", "values"])
def test_a_single_statement_is_a_wait(database: Database, recorder: Recorder, name: str) -> None:
    getattr(database, name)(ONE, {}, name="list")
    assert (recorder.left, recorder.depth) == (1, 0)


@pytest.mark.server
def test_a_question_to_redis_is_a_wait_and_so_is_connecting(recorder: Recorder) -> None:
    with valkey() as server:
        connections = Connections(server.url, "", timeout_seconds=SECONDS, metrics=Metrics())
        connections.commands("ping", ("PING",))
        assert (recorder.left, recorder.depth) == (2, 0)
        connections.commands("ping", ("PING",))
        assert (recorder.left, recorder.depth) == (3, 0)
        connections.close()


def test_who_shares_a_validation_waits_and_so_does_who_makes_it(recorder: Recorder) -> None:
    lanes: Lanes[int] = Lanes()
    assert lanes.run("a", lambda: recorder.depth) == 1
    begun, go, told = threading.Event(), threading.Event(), Recorder()

    def first() -> int:
        begun.set()
        assert go.wait(SECONDS)
        return 0

    def share() -> None:
        watch(told)
        lanes.run("a", lambda: 0)

    threads = [threading.Thread(target=lanes.run, args=("a", first))]
    threads[0].start()
    assert begun.wait(SECONDS)
    # One waits for its turn, the other for that one's outcome.
    threads += [threading.Thread(target=share) for _ in range(2)]
    for thread in threads[1:]:
        thread.start()
    while told.left < 2:
        pass
    assert told.depth == 2
    go.set()
    for thread in threads:
        thread.join(SECONDS)
    assert told.depth == 0


def test_who_fills_waits_for_room_and_who_is_second_for_the_first(recorder: Recorder) -> None:
    flights = Flights(1)
    with flights.alone(["a"], waiting=True) as is_first:
        assert is_first
        assert (recorder.left, recorder.depth) == (1, 0)
        told = Recorder()

        def second() -> None:
            watch(told)
            with flights.alone(["a"], waiting=True):
                pass

        thread = threading.Thread(target=second)
        thread.start()
        while told.left < 1:
            pass
        assert told.depth == 1
    thread.join(SECONDS)
    assert told.depth == 0


def test_without_a_watcher_nobody_is_told() -> None:
    with waits, waits:
        pass
