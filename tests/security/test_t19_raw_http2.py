"""Bad bytes on a raw connection (T19, F23, F26): that stream or connection fails, and nothing else.

A server in a process of its own is met with one hostile peer after the other while an honest one
goes on asking. Before the decision front its memory stays within 50 MB of where it began, and what
it holds is given back.
"""

import gzip
import itertools
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from tests.oracle.sizes import is_nightly
from tests.rpc import widgets
from tests.rpc.fronts.h2.peer import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_SIZE,
    WINDOW_UPDATE,
    block,
    frame,
    headers,
    number,
    settings,
    string,
)
from tests.security.served import FRONTS, Served
from tests.security.wire import HELLO, Wire, body, call, check, head

pytestmark = pytest.mark.server

MEMORY_MB = 50.0
# How long each of them may go on.
SECONDS = 5.0 if is_nightly() else 0.4
OPEN = HELLO + frame(SETTINGS, ACK)
GREEDY = (
    PREFACE
    + settings((WINDOW_SIZE, 2**31 - 1))
    + frame(SETTINGS, ACK)
    + frame(WINDOW_UPDATE, payload=number(2**31 - 1 - 65_535))
)
STUCK = PREFACE + settings((WINDOW_SIZE, 0)) + frame(SETTINGS, ACK)
Bytes = Iterator[bytes]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """The server."""
    served = Served()
    yield served
    served.end()


def streams() -> Iterator[int]:
    """Ids of streams."""
    return iter(range(1, 2**31, 2))


def nested(depth: int) -> bytes:
    """A request with a part in a part in a part."""
    inner = b""
    for _ in range(depth):
        inner = b"\x1a" + varint(len(inner)) + inner
    return b"\x0a" + varint(len(inner)) + inner


def varint(value: int) -> bytes:
    """A number as protocol buffers write it."""
    found = []
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*found, value))


def repeated(data: bytes, first: bytes = OPEN) -> Callable[[], Bytes]:
    """The same again and again."""

    def made() -> Bytes:
        yield first
        many = data * (1 + 20_000 // len(data))
        while True:
            yield many

    return made


def each_stream(one: Callable[[int], bytes], first: bytes = OPEN) -> Callable[[], Bytes]:
    """The same on one stream after the other."""

    def made() -> Bytes:
        yield first
        for stream in streams():
            yield one(stream)

    return made


def once(*parts: bytes) -> Callable[[], Bytes]:
    """Something once."""
    return lambda: iter(parts)


def random_bytes(first: bytes) -> Callable[[], Bytes]:
    """Noise, always the same."""

    def made() -> Bytes:
        chosen = random.Random(19)
        yield first
        while True:
            yield chosen.randbytes(10_000)

    return made


def filling_tables() -> Bytes:
    """Heads that are each new, and stand for as many pairs as so few bytes can."""
    yield OPEN
    for stream in streams():
        many = (b"a-bin", b"," * 380 + b"%06d" % stream)
        yield call(stream, head("Check", many, bearer=None))


def table_bomb() -> Bytes:
    """A small block that stands for a large one, before the settings are agreed."""
    yield HELLO
    large = b"\x40" + string(b"x") + string(b"a" * 4_000)
    yield headers(1, END_HEADERS, block(head()) + large + b"\xbe" * 10_000)


def slow_bytes() -> Bytes:
    """One byte at a time."""
    for stream in itertools.chain(streams()):
        for byte in (OPEN if stream == 1 else b"") + call(stream):
            yield bytes((byte,))


def bodies_without_end() -> Bytes:
    """As much of a body as fits, on one stream after the other, and none ends."""
    yield OPEN
    for stream in streams():
        yield headers(stream, END_HEADERS, block(head()))
        yield frame(DATA, 0, stream, b"\0" + number(4_000_000))
        for _ in range(40):
            yield frame(DATA, 0, stream, bytes(16_384))


BOMB = gzip.compress(bytes(200_000_000), 9)


class Hostile(NamedTuple):
    """A peer.

    Attributes:
        reads: It takes what is sent to it.
    """

    sends: Callable[[], Bytes]
    reads: bool = True


HOSTILE: dict[str, Hostile] = {
    "random bytes": Hostile(random_bytes(b"")),
    "random bytes after the beginning": Hostile(random_bytes(OPEN)),
    "random bytes as a header block": Hostile(
        each_stream(lambda stream: headers(stream, END_HEADERS, os.urandom(100)))
    ),
    "HTTP/1": Hostile(repeated(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"")),
    "a hello of TLS": Hostile(once(b"\x16\x03\x01\x02\0\1\0\1\xfc\3\3" + bytes(500))),
    "bad base64": Hostile(
        each_stream(lambda stream: call(stream, head("Check", (b"x-bin", b"!" * 100))))
    ),
    "9 KB of headers": Hostile(
        each_stream(lambda stream: call(stream, head("Check", (b"x", b"a" * 9_000))))
    ),
    "20 KB of headers": Hostile(
        each_stream(lambda stream: call(stream, head("Check", (b"x", b"a" * 20_000))))
    ),
    "100,000 headers": Hostile(once(OPEN, call(1, head("Check", *[(b"a", b"b")] * 100_000)))),
    "a flood of continuations": Hostile(
        repeated(frame(CONTINUATION, 0, 1, bytes(1_000)), OPEN + headers(1, 0, block(head())))
    ),
    "a flood of empty continuations": Hostile(
        repeated(frame(CONTINUATION, 0, 1), OPEN + headers(1, 0, block(head())))
    ),
    "a table that grows": Hostile(table_bomb),
    "heads that are each new": Hostile(filling_tables),
    "heads that are malformed": Hostile(
        each_stream(lambda stream: headers(stream, END_HEADERS, block(head("/", (b"X", b"")))))
    ),
    "a huge length": Hostile(
        each_stream(
            lambda stream: (
                headers(stream, END_HEADERS, block(head()))
                + frame(DATA, 0, stream, b"\0\xff\xff\xff\xff" + bytes(1_000))
            )
        )
    ),
    "a huge frame": Hostile(once(OPEN, b"\xff\xff\xff\0\0\0\0\0\1", bytes(1_000_000))),
    "bodies without end": Hostile(bodies_without_end),
    "deep nesting": Hostile(
        each_stream(lambda stream: call(stream, head("BatchCheck"), nested(10_000)))
    ),
    "bombs of gzip": Hostile(
        each_stream(
            lambda stream: call(stream, head("Check", (b"grpc-encoding", b"gzip")), BOMB, b"\1")
        )
    ),
    "calls that are reset": Hostile(
        each_stream(lambda stream: call(stream) + frame(RST_STREAM, 0, stream, number(8)))
    ),
    "heads that are reset": Hostile(
        each_stream(
            lambda stream: (
                headers(stream, END_HEADERS, block(head()))
                + frame(RST_STREAM, 0, stream, number(8))
            )
        )
    ),
    "pings": Hostile(repeated(frame(PING, payload=b"x" * 8))),
    "pings that are not read": Hostile(repeated(frame(PING, payload=b"x" * 8)), reads=False),
    "settings": Hostile(repeated(settings((WINDOW_SIZE, 1)))),
    "many settings at once": Hostile(repeated(settings(*[(WINDOW_SIZE, 1)] * 2_730))),
    "settings that are not read": Hostile(repeated(settings()), reads=False),
    "empty data": Hostile(
        repeated(frame(DATA, 0, 1), OPEN + headers(1, END_HEADERS, block(head())))
    ),
    "data that is padding": Hostile(
        repeated(
            frame(DATA, PADDED, 1, b"\xff" + bytes(255)),
            OPEN + headers(1, END_HEADERS, block(head())),
        )
    ),
    "priorities": Hostile(repeated(frame(PRIORITY, 0, 7, number(5) + b"\0"))),
    "unknown frames": Hostile(repeated(frame(0x77, 0, 0, bytes(16_384)))),
    "farewells": Hostile(repeated(frame(GOAWAY, payload=bytes(8)))),
    "a push": Hostile(once(OPEN, call(1), frame(PUSH_PROMISE, END_HEADERS, 1, number(2)))),
    "windows that open by a byte": Hostile(
        repeated(frame(WINDOW_UPDATE, payload=number(1)), STUCK + call(1))
    ),
    "windows of a stuck reply that open by a byte": Hostile(
        lambda: itertools.chain(
            [STUCK, b"".join(call(stream) for stream in range(1, 100, 2))],
            itertools.repeat(frame(WINDOW_UPDATE, payload=number(1)) * 1_000),
        )
    ),
    "calls with closed windows": Hostile(each_stream(call, STUCK)),
    "calls whose answers are not read": Hostile(each_stream(call, GREEDY), reads=False),
    "data after the end": Hostile(
        each_stream(lambda stream: call(stream) + frame(DATA, END_STREAM, stream, b"x"))
    ),
    "heads that depend on themselves": Hostile(
        each_stream(
            lambda stream: headers(
                stream, END_HEADERS | HAS_PRIORITY, number(stream) + b"\0" + block(head())
            )
        )
    ),
    "byte by byte": Hostile(slow_bytes),
    "nothing": Hostile(once()),
}


def attack(wire: Wire, hostile: Hostile, honest: Wire, allowed: set[str]) -> None:
    """Lets a hostile peer go on for a while, and asks as an honest one meanwhile."""
    end = time.monotonic() + SECONDS
    asked = 0.0
    for part in hostile.sends():
        if not wire.push(part, max(0.05, end - time.monotonic())) and hostile.reads:
            break
        if hostile.reads:
            wire.drop()
        if time.monotonic() - asked > SECONDS / 4:
            assert honest.served() in allowed
            asked = time.monotonic()
        if wire.is_over or time.monotonic() > end:
            break


def recovers(honest: Wire) -> None:
    """An honest peer is answered soon."""
    end = time.monotonic() + 5.0
    while honest.served() != "answered":
        assert time.monotonic() < end


# What grpcio's transport takes in much faster than it lets go of, gigabytes by night; nothing of
# ours can bound that.
GROWS = {"bodies without end", "pings", "pings that are not read"}


@pytest.mark.parametrize(
    ("front", "name"),
    [
        (front, name)
        for front in FRONTS
        for name in HOSTILE
        if front == "decisions" or name not in GROWS
    ],
)
def test_a_hostile_peer_hurts_itself_alone(served: Served, front: str, name: str) -> None:
    address = served.addresses[front]
    # Before grpcio stands a wall of as many places as threads and queue have: who fills them with
    # calls is refused, and so are others, until those calls are gone.
    allowed = {"answered"} if front == "decisions" else {"answered", "overloaded"}
    with Wire(address) as honest:
        recovers(honest)
        before, threads = served.memory_mb(), served.stats()["threads"]
        with Wire(address, b"") as wire:
            attack(wire, HOSTILE[name], honest, allowed)
            # What grpcio's own transport holds is none of ours, and comes and goes as it likes.
            assert front == "grpcio" or served.memory_mb() - before < MEMORY_MB
        recovers(honest)
        with Wire(address) as new:
            recovers(new)
        # What it held is let go.
        told = served.until(
            lambda stats: stats["links"] <= 1 and not stats["bodies"] and not stats["in_flight"]
        )
        assert told["threads"] <= threads + 8
        assert told[front]["inside"] == 0


def test_all_of_them_together_leave_no_memory_behind(served: Served) -> None:
    """After all of the above, which ran in this process."""
    address = served.addresses["decisions"]
    with Wire(address) as honest:
        before = served.memory_mb()
        for name, hostile in HOSTILE.items():
            if name in ("bombs of gzip", "100,000 headers"):
                continue
            with Wire(address, b"") as wire:
                for part, _ in zip(hostile.sends(), range(200), strict=False):
                    if not wire.push(part, 0.05):
                        break
                    wire.drop()
        assert honest.served() == "answered"
        served.until(lambda stats: stats["links"] == 1 and not stats["bodies"])
        assert served.memory_mb() - before < MEMORY_MB


def test_what_can_be_answered_is_refused_with_its_reason(served: Served) -> None:
    """Where grpcio's transport has a code of its own, or resets the stream, that stands second."""
    gzipped = head("Check", (b"grpc-encoding", b"gzip"))
    cases = [
        # That stream is reset.
        (head("Check", (b"x-bin", b"!")), check(), b"\0", (None, None)),
        (head("Check", (b"x", b"a" * 9_000)), check(), b"\0", (3, 3)),
        (head("Check", (b"x", b"a" * 16_200)), check(), b"\0", (3, 8)),
        (head("BatchCheck"), nested(10_000), b"\0", (3, 3)),
        (gzipped, BOMB, b"\1", (3, 8)),
        (gzipped, b"none", b"\1", (3, 13)),
        (head("Check"), b"\xff\xff", b"\0", (3, 3)),
        (head("/nowhere"), b"", b"\0", (12, 12)),
    ]
    for place, front in enumerate(FRONTS):
        with Wire(served.addresses[front]) as wire:
            for pairs, message, flag, codes in cases:
                assert wire.ask(pairs, message, flag).code == codes[place], (front, pairs)
                assert wire.served() == "answered"


# Slow readers (F23)


@pytest.mark.parametrize("front", FRONTS)
def test_clients_that_do_not_read_hold_little_and_hurt_nobody(served: Served, front: str) -> None:
    address = served.addresses[front]
    with Wire(address) as honest:
        recovers(honest)
        before = served.memory_mb()
        stuck = [Wire(address, GREEDY, receive_bytes=4_096) for _ in range(20)]
        for wire in stuck:
            for stream in itertools.islice(streams(), 60):
                wire.push(call(stream, head("Check", (b"x-request-id", b"r" * 60))), 0.2)
        for _ in range(20):
            recovers(honest)
        # 64 KB for each stuck stream at most.
        assert (served.memory_mb() - before) * 1_024 < 64 * 20 * 60
        for wire in stuck:
            wire.close()
        served.until(lambda stats: stats["links"] <= 1)


def test_a_client_that_reads_a_byte_at_a_time_gets_its_answer(served: Served) -> None:
    with Wire(served.addresses["decisions"], STUCK) as wire:
        wire.send(call(1))
        for _ in range(7):
            wire.send(frame(WINDOW_UPDATE, 0, 1, number(1)))
        answer = wire.until([1])[1]
        assert (answer.code, answer.body) == (
            0,
            body(widgets.message("CheckResponse", allowed=True).SerializeToString()),
        )
