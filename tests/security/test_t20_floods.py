"""Floods of calls (T20, F25): handlers stay within their limit, a normal client gets through."""

import time
from collections.abc import Iterator

import pytest

from tests.oracle.sizes import is_nightly
from tests.rpc.fronts.h2.peer import END_HEADERS, RST_STREAM, block, frame, headers, number
from tests.security.served import FRONTS, THREADS, Served
from tests.security.wire import Wire, call, check, head

pytestmark = pytest.mark.server

# A hundredth of the nightly size.
RESETS = 50_000 if is_nightly() else 500
CANCELLED = 1_000
CANCELLED_SECONDS = 30 if is_nightly() else 1


@pytest.fixture(params=FRONTS)
def front(request: pytest.FixtureRequest) -> str:
    """Each of the fronts."""
    return str(request.param)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """The server."""
    served = Served()
    yield served
    served.end()


def recovers(served: Served, front: str) -> None:
    """A normal client is answered within five seconds."""
    end = time.monotonic() + 5.0
    with Wire(served.addresses[front]) as wire:
        while wire.served() != "answered":
            assert time.monotonic() < end


def test_streams_that_are_opened_and_reset_cost_little(served: Served, front: str) -> None:
    address = served.addresses[front]
    recovers(served, front)
    before = served.memory_mb()
    threads = served.stats()["threads"]
    left, began = RESETS, time.monotonic()
    closed = 0
    while left:
        with Wire(address) as wire:
            for place in range(left):
                stream = 1 + 2 * place
                one = call(stream, message=check("slow")) + frame(RST_STREAM, 0, stream, number(8))
                if not wire.push(one, 10.0):
                    closed += 1
                    break
                left -= 1
                wire.drop()
                if wire.is_over:
                    closed += 1
                    break
    assert time.monotonic() - began < 60
    recovers(served, front)
    told = served.until(lambda stats: stats[front]["inside"] == 0 and not stats["in_flight"])
    assert told[front]["most"] <= THREADS
    assert told["threads"] <= threads + 2 * THREADS
    assert served.memory_mb() - before < 50.0


def test_a_flood_of_resets_is_told_to_calm_down(served: Served) -> None:
    """More than the budget of one connection, at once."""
    with Wire(served.addresses["decisions"]) as wire:
        data = block(head())
        sent = b"".join(
            headers(stream, END_HEADERS, data) + frame(RST_STREAM, 0, stream, number(8))
            for stream in range(1, 60_001, 2)
        )
        wire.push(sent, 20.0)
        wire.end()
    # Its last word may be lost with what was on its way.
    assert served.stats()["ended"][-1] == "flood"
    recovers(served, "decisions")


def test_waves_never_put_more_into_handlers_than_there_are_places(
    served: Served, front: str
) -> None:
    recovers(served, front)
    address = served.addresses[front]
    for _ in range(3):
        # Three times as many as places: threads, and those that wait for one.
        wires = [Wire(address) for _ in range(3)]
        streams = range(1, 1 + 2 * 90, 2)
        for wire in wires:
            wire.send(b"".join(call(stream, message=check("slow")) for stream in streams))
        answers = [answer for wire in wires for answer in wire.until(streams).values()]
        # Answered, or refused with the advice to come again: as overloaded, or as one stream too
        # many on its connection.
        kinds = {answer.code if answer.code is not None else answer.reset for answer in answers}
        assert kinds <= {0, 7, 8}
        assert 0 in kinds
        told = served.stats()
        assert told[front]["most"] <= THREADS
        recovers(served, front)
        for wire in wires:
            wire.close()
    served.until(lambda stats: stats[front]["inside"] == 0 and not stats["in_flight"])


def test_a_thousand_cancellations_a_second_are_no_flood(served: Served) -> None:
    """Of an honest client: a deadline of a millisecond is over before the answer is there."""
    recovers(served, "decisions")
    with Wire(served.addresses["decisions"]) as wire:
        timeout = head("Check", (b"grpc-timeout", b"1m"))
        began = time.monotonic()
        count = CANCELLED * CANCELLED_SECONDS
        for place in range(count):
            stream = 1 + 2 * place
            wire.send(call(stream, timeout, check("slow")), frame(RST_STREAM, 0, stream, number(8)))
            wire.drop()
            while time.monotonic() - began < place / CANCELLED:
                wire.drop()
        wire.last_stream = 2 * count
        assert not wire.is_over
    recovers(served, "decisions")


@pytest.mark.parametrize("value", [b"0n", b"0S"])
def test_calls_that_are_past_their_deadline_do_no_work(
    served: Served, front: str, value: bytes
) -> None:
    recovers(served, front)
    begun = served.stats()[front]["begun"]
    with Wire(served.addresses[front]) as wire:
        for _ in range(50):
            answer = wire.ask(head("Check", (b"grpc-timeout", value)), check("slow"))
            assert answer.code == 4 or answer.reset is not None
    told = served.stats()[front]["begun"]
    assert told - begun <= 50 * 5 // 100


def test_honest_deadlines_of_a_millisecond_are_answered_or_exceeded(
    served: Served, front: str
) -> None:
    recovers(served, front)
    with Wire(served.addresses[front]) as wire:
        for _ in range(200):
            answer = wire.ask(head("Check", (b"grpc-timeout", b"1m")))
            assert answer.code in (0, 4) or answer.reset is not None
        assert wire.served() == "answered"
