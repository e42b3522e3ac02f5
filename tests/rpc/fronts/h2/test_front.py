"""How many calls the decision front takes together, and which it refuses above that."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from authz_service.rpc.call import Call
from authz_service.rpc.fronts import health
from authz_service.rpc.fronts.h2 import Front, Settings
from authz_service.rpc.fronts.h2.limits import Limits
from authz_service.rpc.fronts.listeners import Listener
from tests.rpc.conftest import build
from tests.rpc.fronts.h2.peer import RST_STREAM, frame, number
from tests.security.wire import Wire, call, check, head


class House:
    """A front and what is behind it."""

    def __init__(self, **limits: Any) -> None:
        self.building = build()
        settings = Settings(limits=replace(Limits(), **limits))
        self.front = Front(self.building.hall, [Listener("127.0.0.1:0")], settings=settings)
        self.front.start()
        self.front.set_serving(True)
        self.wires: list[Wire] = []

    def wire(self) -> Wire:
        """A client."""
        self.wires.append(Wire(self.front.addresses[0]))
        return self.wires[-1]

    def end(self) -> None:
        """Ends everything."""
        for wire in self.wires:
            wire.close()
        self.front.stop(0.2)


@pytest.fixture
def start() -> Iterator[Any]:
    """Starts houses, which end with the test."""
    houses: list[House] = []

    def made(**limits: Any) -> House:
        houses.append(House(**limits))
        return houses[-1]

    yield made
    for house in houses:
        house.end()


@pytest.mark.parametrize(("calls", "refused"), [(4, []), (6, [1, 3])])
def test_of_too_many_calls_the_newest_are_kept(start: Any, calls: int, refused: list[int]) -> None:
    wire = start(calls_max=4).wire()
    assert wire.served() == "answered"
    streams = range(3, 3 + 2 * calls, 2)
    # One segment, and so one turn of the loop.
    wire.send(b"".join(map(call, streams)))
    found = wire.until(streams)
    codes = {stream: answer.code for stream, answer in found.items()}
    assert codes == {stream: 8 if stream - 2 in refused else 0 for stream in streams}
    wire.last_stream = 100
    assert wire.served() == "answered"


def test_calls_that_threads_work_on_count_until_they_are_answered(start: Any) -> None:
    house = start(calls_max=2)
    go, inside = threading.Event(), threading.Semaphore(0)

    def on_check(request: Any, context: Any) -> bool:
        if request.subject == "held":
            inside.release()
            assert go.wait(20)
        return True

    house.building.servicer.on_check = on_check
    wire, other = house.wire(), house.wire()
    wire.send(call(1, message=check("held")), call(3, message=check("held")))
    assert inside.acquire(timeout=20)
    assert inside.acquire(timeout=20)
    assert other.served() == "overloaded"
    go.set()
    assert {answer.code for answer in wire.until([1, 3]).values()} == {0}
    assert other.served() == "answered"
    assert house.front._in_flight == 0


def test_calls_whose_peer_has_gone_are_not_worked_on(start: Any) -> None:
    house = start()
    wire = house.wire()
    gone = [
        call(stream, head("Check"), check("gone")) + frame(RST_STREAM, 0, stream, number(8))
        for stream in range(3, 101, 2)
    ]
    # One segment, and so one turn of the loop, in which they stand behind one that has not gone.
    wire.send(b"".join([call(1), *gone]))
    assert wire.until([1])[1].code == 0
    wire.last_stream = 100
    assert wire.served() == "answered"
    seen = [request.subject for request in house.building.servicer.requests]
    assert seen.count("om_1") == 2
    # Each came with its end; at most what was read in two pieces was begun.
    assert seen.count("gone") <= 5
    assert house.front._in_flight == 0
    # And for bad calls they are not taken either.
    assert {line["code"] for line in house.building.log()} <= {"OK", "CANCELLED"}


def test_the_hall_is_given_few_calls_at_once_and_the_newest_first(start: Any) -> None:
    house = start(together_max=2)
    given: list[list[int]] = []
    answer_soon = house.building.hall.answer_soon

    def watched(calls: Sequence[Call], replies: Any, later: Any) -> None:
        given.append([call.origin.id for call in calls])  # type: ignore[attr-defined]
        answer_soon(calls, replies, later)

    house.building.hall.answer_soon = watched
    wire = house.wire()
    wire.send(b"".join(map(call, (1, 3, 5, 7, 9))))
    assert {answer.code for answer in wire.until([1, 3, 5, 7, 9]).values()} == {0}
    assert given == [[7, 9], [3, 5], [1]]


def test_health_waits_for_nobody(start: Any) -> None:
    wire = start(calls_max=1, together_max=1).wire()
    asked = call(9, head(health.CHECK, bearer=None), b"")
    wire.send(b"".join([*map(call, (1, 3, 5, 7)), asked]))
    codes = {stream: answer.code for stream, answer in wire.until([1, 3, 5, 7, 9]).items()}
    assert codes == {1: 8, 3: 8, 5: 8, 7: 0, 9: 0}


def changed(name: bytes, value: bytes, path: str = "Check") -> list[tuple[bytes, bytes]]:
    """Returns the head of a call with another value of one header."""
    return [(key, value if key == name else given) for key, given in head(path)]


@pytest.mark.parametrize(
    ("pairs", "http", "code"),
    [
        (changed(b":method", b"GET"), b"405", None),
        (changed(b"content-type", b"text/html"), b"415", None),
        (head("Check", (b"grpc-encoding", b"br")), b"200", 12),
        (changed(b":method", b"GET", health.CHECK), b"405", None),
    ],
)
def test_what_the_front_refuses_by_itself_is_sent_in_the_same_turn(
    start: Any, pairs: Any, http: bytes, code: int | None
) -> None:
    house = start()
    wire = house.wire()
    assert wire.served() == "answered"
    # Which looks after connections now and then, and sends what was forgotten.
    timer = house.front._listening._timer
    house.front.loop.call_soon_threadsafe(timer.cancel)
    answer = wire.ask(pairs)
    assert (answer.value(b":status"), answer.code) == (http, code)


def test_calls_that_are_over_before_their_turn_are_told_so_and_counted(start: Any) -> None:
    house = start(together_max=1)
    wire = house.wire()
    short = head("Check", (b"grpc-timeout", b"1n"))
    wire.send(b"".join(call(stream, short) for stream in (1, 3, 5)))
    assert {answer.code for answer in wire.until([1, 3, 5]).values()} == {4}
    # The last of them was not too much to look at.
    assert [line["code"] for line in house.building.log()] == ["DEADLINE_EXCEEDED"]
    assert house.building.metrics.rpc_refused.value("deadline") == 3
    assert house.building.servicer.requests == []


def test_calls_above_the_limit_are_counted(start: Any) -> None:
    house = start(calls_max=2)
    wire = house.wire()
    wire.send(b"".join(map(call, (1, 3, 5, 7))))
    assert [wire.until([stream])[stream].code for stream in (1, 3, 5, 7)] == [8, 8, 0, 0]
    assert house.building.metrics.rpc_refused.value("overloaded") == 2


def watched(seconds: float) -> tuple[Front, threading.Event]:
    """A front whose loop may stand still for so long, and what is set when it stood longer."""
    stalled = threading.Event()
    front = Front(
        build().hall,
        [Listener("127.0.0.1:0")],
        settings=Settings(stalled_seconds_max=seconds),
        stalled=stalled.set,
    )
    front.start()
    return front, stalled


def test_a_loop_that_stands_still_is_told_of_and_one_that_is_only_held_up_is_not() -> None:
    front, stalled = watched(2.0)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        release.wait(60)

    front.loop.call_soon_threadsafe(lambda: threading.Event().wait(0.5))
    assert not stalled.wait(1.0)
    front.loop.call_soon_threadsafe(hold)
    assert held.wait(10)
    assert stalled.wait(30)
    release.set()
    front.stop(0)


def test_a_front_that_never_ran_lets_go_of_its_loop() -> None:
    front = Front(build().hall, [Listener("127.0.0.1:0")])
    front.stop(0)
    assert front.loop.is_closed()
