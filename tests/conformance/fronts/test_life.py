"""Connections over time: idle, old, asked to go; and the end of a front with calls in flight."""

import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from authz_service.rpc.fronts.listeners import Listener
from tests.conformance.fronts.clients import Ask, Client, Sync, see
from tests.conformance.fronts.conftest import Maker, Stage
from tests.conformance.fronts.echo import SECONDS, asking, payload_of
from tests.conformance.fronts.raw import Raw, connected, framed
from tests.conformance.fronts.test_calls import HEALTH
from tests.conformance.fronts.test_wire import is_well
from tests.rpc.fronts.test_grpcio import until

Staged = Callable[..., Stage]
Connections = Callable[..., Raw]
Run = Callable[..., threading.Thread]


# The end


def test_a_drain_finishes_calls_in_flight_and_takes_no_new_ones(
    staged: Staged, clients_of: Maker, in_thread: Run
) -> None:
    stage = staged()
    client, late = clients_of(stage.address), clients_of(stage.address)
    assert see(late, Ask()).code == "OK"
    going = [client.start(Ask(asking(held=True, payload=b"%d" % at))) for at in range(4)]
    stage.servicer.entered(4)
    stopping = in_thread(stage.stop, SECONDS)
    for one in (late, client):
        until(partial(_is_turned_away, one))
    assert stopping.is_alive()
    stage.servicer.go.set()
    assert [payload_of(one.seen().payload) for one in going] == [b"0", b"1", b"2", b"3"]
    stopping.join(5)
    assert not stopping.is_alive()


def _is_turned_away(client: Client) -> bool:
    return see(client, Ask(seconds=1)).code == "UNAVAILABLE"


def test_a_drain_says_so_with_goaway(
    staged: Staged, connections: Connections, in_thread: Run
) -> None:
    stage = staged()
    raw, idle = connections(stage.address), connections(stage.address)
    is_well(idle)
    id = raw.open()
    raw.data(id, framed(asking(held=True, payload=b"late")), end=True)
    stage.servicer.entered()
    in_thread(stage.stop, SECONDS)
    assert idle.closed() == 0
    while not raw.goaways:
        raw.receive()
    assert (raw.goaway, raw.answers[id].is_ended) == (0, False)
    stage.servicer.go.set()
    answer = raw.ended(id)
    assert (answer.short, answer.payload) == ("OK", b"late")
    assert raw.closed() == 0
    last = raw.goaways[-1]
    assert last is not None and last >= id


def test_a_drain_ends_within_its_grace(staged: Staged, clients_of: Maker, in_thread: Run) -> None:
    stage = staged()
    client = clients_of(stage.address)
    going = client.start(Ask(asking(held=True)))
    stage.servicer.entered()
    began = time.monotonic()
    in_thread(stage.stop, 0.3)
    assert going.seen().code in ("UNAVAILABLE", "CANCELLED")
    assert time.monotonic() - began < 3
    stage.servicer.go.set()


def test_a_drain_with_nothing_to_do_waits_for_nothing(
    staged: Staged, clients_of: Maker, connections: Connections, in_thread: Run
) -> None:
    stage = staged()
    clients = [clients_of(stage.address) for _ in range(3)]
    assert {see(one, Ask()).code for one in clients} == {"OK"}
    idle = connections(stage.address)
    idle.ping()
    began = time.monotonic()
    stopping = in_thread(stage.stop, SECONDS)
    assert idle.closed() == 0
    stopping.join(5)
    assert not stopping.is_alive()
    assert time.monotonic() - began < 5


def test_calls_that_come_during_a_drain_go_elsewhere(staged: Staged, in_thread: Run) -> None:
    first = staged(reuse_port=True)
    second = staged(Listener(first.address), reuse_port=True)
    client = Sync(first.address)
    codes: list[str] = []
    held = [Sync(first.address) for _ in range(8)]
    try:
        going = [one.start(Ask(asking(held=True))) for one in held]
        until(lambda: len(first.servicer.contexts) + len(second.servicer.contexts) == 8)
        stopping = in_thread(first.stop, SECONDS)
        second.servicer.go.set()
        # A call that meets the drain itself is repeated, as UNAVAILABLE asks for.
        while codes.count("OK") < 50:
            codes.append(see(client, Ask()).code)
            if codes[-1] != "OK":
                assert codes[-1] == "UNAVAILABLE"
                until(lambda: see(client, Ask()).code == "OK")
        first.servicer.go.set()
        assert {one.seen().code for one in going} == {"OK"}
        stopping.join(5)
        assert not stopping.is_alive()
    finally:
        for one in (client, *held):
            one.close()


def test_health_says_so_before_the_end(staged: Staged, clients_of: Maker, in_thread: Run) -> None:
    stage = staged()
    client, other = clients_of(stage.address), clients_of(stage.address)
    going = client.start(Ask(asking(held=True)))
    stage.servicer.entered()
    stage.front.set_serving(False)
    assert see(other, Ask(b"", HEALTH, ())).payload == b"\x08\x02"
    in_thread(stage.stop, SECONDS)
    stage.servicer.go.set()
    assert going.seen().code == "OK"


# Age


def test_a_client_sees_nothing_of_the_age_of_its_connections(
    staged: Staged, clients_of: Maker
) -> None:
    stage = staged(connection_age_ms=200)
    client = clients_of(stage.address)
    codes: list[str] = []
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        going = [client.start(Ask(asking(payload=b"%d" % at))) for at in range(20)]
        for at, one in enumerate(going):
            seen = one.seen()
            codes.append(seen.code)
            assert payload_of(seen.payload) == b"%d" % at
    assert set(codes) == {"OK"}


def test_an_old_connection_is_asked_to_go_and_its_calls_end_well(
    staged: Staged, connections: Connections
) -> None:
    stage = staged(connection_age_ms=200)
    raw = connections(stage.address)
    id = raw.open()
    raw.data(id, framed(asking(held=True, payload=b"old")), end=True)
    stage.servicer.entered()
    while not raw.goaways:
        raw.receive()
    assert raw.goaway == 0
    stage.servicer.go.set()
    assert raw.ended(id).payload == b"old"
    assert raw.closed() == 0


# Idle connections and those that say nothing


def test_two_hundred_idle_connections_hold_up_nobody(stage: Stage, clients_of: Maker) -> None:
    with _idle(stage.address, 200):
        _calls(clients_of(stage.address))


@pytest.mark.long
def test_two_thousand_idle_connections_hold_up_nobody(staged: Staged, clients_of: Maker) -> None:
    stage = staged()
    with _idle(stage.address, 2_000):
        _calls(clients_of(stage.address))


def test_connections_that_come_and_go_leave_nothing_behind(
    stage: Stage, connections: Connections
) -> None:
    threads = threading.active_count()
    for _ in range(100):
        one = connected(stage.address)
        one.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        one.close()
    is_well(connections(stage.address))
    assert threading.active_count() <= threads + 10


def test_a_client_that_dies_in_a_call_hurts_nobody(stage: Stage, connections: Connections) -> None:
    for _ in range(3):
        raw = connections(stage.address)
        id = raw.open()
        raw.data(id, framed(asking(held=True)), end=True)
        stage.servicer.entered()
        raw.close()
    stage.servicer.go.set()
    until(lambda: stage.room.in_flight() == 0)
    is_well(connections(stage.address))


@pytest.mark.long
def test_keepalive_of_a_client_keeps_its_connection(staged: Staged) -> None:
    stage = staged()
    client = Sync(
        stage.address, None, ("grpc.keepalive_time_ms", 11_000),
        ("grpc.keepalive_permit_without_calls", 1), ("grpc.http2.max_pings_without_data", 0),
    )  # fmt: skip
    states: list[Any] = []
    try:
        client.channel.subscribe(states.append)
        assert see(client, Ask()).code == "OK"
        # Time itself is what this is about: four pings are sent, three too many would be a flood.
        end = time.monotonic() + 48
        until(lambda: time.monotonic() > end or len(states) > 3, 60)
        assert see(client, Ask()).code == "OK"
    finally:
        client.close()
    names = [state.name for state in states]
    assert "TRANSIENT_FAILURE" not in names
    assert names.count("READY") == 1


def _idle(address: str, count: int) -> ExitStack:
    """Opens connections, waits until each is greeted, and returns what closes them."""
    stack = ExitStack()
    waiting: set[socket.socket] = set()
    chosen = stack.enter_context(selectors.DefaultSelector())
    for _ in range(count):
        one = stack.enter_context(connected(address))
        one.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        chosen.register(one, selectors.EVENT_READ)
        waiting.add(one)
    for one in _greeted(chosen, waiting):
        assert one.recv(9)[3] == 4  # SETTINGS
    return stack


def _greeted(chosen: Any, waiting: set[socket.socket]) -> Iterator[socket.socket]:
    while waiting:
        events = chosen.select(SECONDS)
        assert events, f"{len(waiting)} were not greeted"
        for key, _ in events:
            chosen.unregister(key.fileobj)
            waiting.discard(key.fileobj)
            yield key.fileobj


def _calls(client: Client) -> None:
    for at in range(50):
        seen = see(client, Ask(asking(payload=b"%d" % at), seconds=5))
        assert payload_of(seen.payload) == b"%d" % at
