"""A connection that an event loop watches: answers in order, and none for whom there is none."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from authz_service.storage.cache.prompt import Prompt
from authz_service.storage.cache.redis_connections import Refused, packed
from authz_service.telemetry.metrics import Metrics

SECONDS = 20.0
PING = packed([(b"PING",)])


class Connection:
    """One end of a pair of sockets, as redis-py has it."""

    def __init__(self) -> None:
        self._sock, self.far = socket.socketpair()
        self.far.settimeout(SECONDS)

    def disconnect(self) -> None:
        self._sock.close()


class Source:
    """Where connections come from: each time a new pair, or nothing."""

    def __init__(self) -> None:
        self.closing: list[Callable[[], object]] = []
        self.made: list[Connection] = []
        self.is_up = True

    def connected(self) -> Connection:
        if not self.is_up:
            raise Refused("connection")
        self.made.append(Connection())
        return self.made[-1]


class Stage:
    """A prompt in a loop of its own.

    Attributes:
        told: What each packet was answered, in order; None for those that have no answer.
    """

    def __init__(self, timeout_seconds: float = SECONDS) -> None:
        self.loop = asyncio.new_event_loop()
        self.source = Source()
        self.metrics = Metrics()
        self.prompt = Prompt(self.source, self.loop, timeout_seconds, self.metrics)  # type: ignore[arg-type]
        self.told: list[Any] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def ask(self, packet: bytes = PING, answers: int = 1) -> None:
        self.loop.call_soon_threadsafe(self.prompt.send, "ping", packet, answers, self._tell)

    def _tell(self, answer: Any) -> None:
        with self._changed:
            self.told.append(answer)
            self._changed.notify_all()

    def until(self, count: int) -> list[Any]:
        """Waits until so many were told."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.told) >= count, SECONDS), self.told
            return self.told

    def connect(self) -> socket.socket:
        """Lets it connect; returns the far end, which has read nothing yet."""

        async def connected() -> None:
            while self.prompt._socket is None:
                await asyncio.sleep(0.001)

        self.ask()
        assert self.until(1) == [None]
        self.told.clear()
        asyncio.run_coroutine_threadsafe(connected(), self.loop).result(SECONDS)
        return self.source.made[-1].far

    def stop(self) -> None:
        """Ends the loop."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
            self.loop.close()

    def end(self) -> None:
        self.stop()
        for connection in self.source.made:
            connection.disconnect()
            connection.far.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Stage]]:
    stages: list[Stage] = []

    def made(**settings: Any) -> Stage:
        stages.append(Stage(**settings))
        return stages[-1]

    yield made
    for stage in stages:
        stage.end()


def outcomes(stage: Stage) -> dict[str, float]:
    names = ("ok", "error", "timeout", "connection")
    count = stage.metrics.cache_redis_seconds.count
    return {name: count("ping", name) for name in names if count("ping", name)}


def test_before_there_is_a_connection_the_answer_is_none_at_once(start: Any) -> None:
    stage = start()
    stage.source.is_up = False
    stage.ask()
    assert stage.until(1) == [None]
    assert outcomes(stage) == {}


def test_answers_come_in_order_in_whatever_pieces(start: Any) -> None:
    stage = start()
    far = stage.connect()
    stage.ask(PING * 2, 2)
    stage.ask()
    for piece in (b"+on", b"e\r\n$3\r\nt", b"wo\r", b"\n:3", b"\r\n"):
        far.sendall(piece)
    assert stage.until(2) == [[b"one", b"two"], [3]]
    assert outcomes(stage) == {"ok": 2}


def test_an_error_among_the_answers_is_none_and_the_next_packet_is_well(start: Any) -> None:
    stage = start()
    far = stage.connect()
    stage.ask(PING * 2, 2)
    stage.ask()
    far.sendall(b"-ERR no\r\n+a\r\n+b\r\n")
    assert stage.until(2) == [None, [b"b"]]
    assert outcomes(stage) == {"error": 1, "ok": 1}


def test_who_waits_too_long_gets_none_and_so_do_all_behind_on_that_connection(start: Any) -> None:
    stage = start(timeout_seconds=0.2)
    stage.connect()
    stage.ask()
    stage.ask()
    assert stage.until(2) == [None, None]
    assert outcomes(stage) == {"timeout": 2}
    assert stage.source.made[-1]._sock.fileno() == -1


@pytest.mark.parametrize("last", [b"", b"+half", b"what is no answer\r\n"])
def test_the_end_of_the_connection_and_nonsense_are_none(start: Any, last: bytes) -> None:
    stage = start()
    far = stage.connect()
    stage.ask()
    far.sendall(last)
    if b"\n" not in last:
        far.shutdown(socket.SHUT_WR)
    assert stage.until(1) == [None]


def test_a_packet_larger_than_the_socket_takes_goes_whole(start: Any) -> None:
    stage = start()
    far = stage.connect()
    large = packed([(b"ECHO", b"x" * 4_000_000)])
    stage.ask(large)
    stage.ask()
    wanted, got = large + PING, b""
    while len(got) < len(wanted):
        got += far.recv(1 << 20)
    assert got == wanted
    far.sendall(b"+a\r\n+b\r\n")
    assert stage.until(2) == [[b"a"], [b"b"]]


def test_what_is_closed_from_elsewhere_answers_none_and_connects_no_more(start: Any) -> None:
    stage = start()
    stage.connect()
    stage.ask()
    (close,) = stage.source.closing
    close()
    assert stage.until(1) == [None]
    # Not only for the pause after a failure.
    stage.prompt._not_before = 0.0
    stage.ask()
    assert stage.until(2) == [None, None]
    assert not stage.prompt._is_connecting
    assert len(stage.source.made) == 1


def test_what_is_closed_after_its_loop_closes_the_socket(start: Any) -> None:
    stage = start()
    stage.connect()
    stage.stop()
    (close,) = stage.source.closing
    close()
    assert stage.source.made[-1]._sock.fileno() == -1
