"""Sessions of a real client, damaged in every way, against the state machine alone.

Whatever comes: no exception escapes, what is held stays below the named limits after each step,
what is sent is HTTP/2, every stream is answered or ended, and nothing is held at the end.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import h2.exceptions
import pytest

from authz_service.rpc.fronts.h2 import connection
from authz_service.rpc.fronts.h2.connection import Bodies, Connection, Stream
from authz_service.rpc.fronts.h2.headers import Tables
from authz_service.rpc.fronts.h2.limits import Limits
from tests.rpc.fronts.h2.peer import (
    ACK,
    DATA,
    END_STREAM,
    GOAWAY,
    HEAD,
    HEADERS,
    PING,
    PREFACE,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    TRAILERS,
    WINDOW_UPDATE,
    Library,
    frame,
    frames_of,
    number,
)

# Small enough that every limit is met.
LIMITS = replace(
    Limits(),
    streams_max=6,
    header_block_bytes_max=2_000,
    header_bytes_max=1_000,
    message_bytes_max=60_000,
    stream_window_bytes=70_000,
    connection_window_bytes=100_000,
    unfinished_bytes_max=90_000,
    unfinished_bytes_max_in_all=150_000,
    budget=60.0,
    budget_per_second=20.0,
)
# One for all: what a session leaves there must not hurt the next.
TABLES = Tables()


@lru_cache(maxsize=4)
def session(seed: int) -> list[bytes]:
    """What a client of the h2 library sends in a session, frame by frame; without the preface."""
    chosen = random.Random(seed)
    library = Library(LIMITS if chosen.random() < 0.5 else None)
    for _ in range(chosen.randrange(1, 9)):
        try:
            _act(library, chosen)
        except h2.exceptions.ProtocolError:
            # What it would not do itself, another client does: see below.
            break
    sent = b"".join(library.sent)
    assert sent.startswith(PREFACE)
    return [
        frame(each.kind, each.flags, each.stream, each.payload)
        for each in frames_of(sent[len(PREFACE) :])
    ]


def _act(library: Library, chosen: random.Random) -> None:
    what = chosen.choice(
        ["call", "call", "large", "trailers", "cancel", "settings", "ping", "answer", "timeout"]
    )
    if library.ours.ended:
        return
    if what == "call":
        library.call(bytes(chosen.randrange(300)))
    elif what == "timeout":
        library.call(b"", [*HEAD, (b"grpc-timeout", b"%dm" % chosen.randrange(10_000))])
    elif what == "large":
        size = chosen.randrange(80_000)
        stream = library.open([*HEAD, (b"x", b"y" * chosen.choice((1, 100, 900)))])
        library.theirs.send_data(stream, b"\0" + number(size))
        left = size
        while left and not library.ours.ended:
            part = min(left, 16_384, library.theirs.local_flow_control_window(stream))
            left -= part
            library.theirs.send_data(stream, bytes(part), end_stream=not left)
            library.exchange()
    elif what == "trailers":
        stream = library.open()
        library.theirs.send_data(stream, b"\0\0\0\0\3abc", pad_length=chosen.choice((None, 0, 9)))
        library.theirs.send_headers(stream, [(b"late", b"yes")], end_stream=True)
    elif what == "cancel":
        stream = library.open()
        library.theirs.send_data(stream, b"\0\0\0\1\0half")
        library.theirs.reset_stream(stream, 8)
    elif what == "settings":
        library.theirs.update_settings({4: chosen.choice((0, 1, 100, 65_535, 2**20))})
    elif what == "ping":
        library.theirs.ping(chosen.randbytes(8))
    elif library.taken:
        library.answer(bytes(chosen.randrange(1_000)), of=chosen.randrange(len(library.taken)))
    library.exchange()


def damaged(parts: list[bytes], chosen: random.Random) -> list[bytes]:
    """The frames of a session with some of them changed, lost, doubled, moved, or made up."""
    parts = list(parts)
    for _ in range(chosen.randrange(5)):
        at = chosen.randrange(len(parts))
        each = parts[at]
        what = chosen.randrange(8)
        if what == 0:
            place = chosen.randrange(len(each))
            parts[at] = (
                each[:place] + bytes((each[place] ^ 1 << chosen.randrange(8),)) + each[place + 1 :]
            )
        elif what == 1 and len(parts) > 1:
            del parts[at]
        elif what == 2:
            parts[at:at] = [each] * chosen.randrange(1, 30)
        elif what == 3:
            other = chosen.randrange(len(parts))
            parts[at], parts[other] = parts[other], each
        elif what == 4:
            # Its length does not fit what it holds.
            size = chosen.choice((0, 1, 4, 5, 8, 16_384, 16_385, 2**24 - 1, len(each)))
            parts[at] = number(size, 3) + each[3:]
        elif what == 5:
            # Cut or prolonged, and it fits.
            body = each[9:]
            body = body[: chosen.randrange(len(body) + 1)] + chosen.randbytes(chosen.randrange(3))
            parts[at] = number(len(body), 3) + each[3:9] + body
        elif what == 6:
            kind, flags = chosen.randrange(12), chosen.getrandbits(8)
            stream = chosen.choice((0, 1, 2, 3, 5, 9, 2**31 - 1))
            size = chosen.choice((0, 1, 4, 5, 8, 100))
            parts.insert(at, frame(kind, flags, stream, chosen.randbytes(size)))
        else:
            # Another stream, or other flags.
            flags = each[4] ^ 1 << chosen.choice((0, 2, 3, 5))
            stream = chosen.choice((0, 1, 2, 3, 5, 7, 4_001))
            parts[at] = each[:4] + bytes((flags,)) + number(stream) + each[9:]
    return parts


def pieces(data: bytes, chosen: random.Random) -> Iterator[bytes]:
    """The bytes as a network brings them."""
    way = chosen.randrange(4)
    if way == 0:
        yield data
        return
    if way == 1 and len(data) < 3_000:
        for place in range(len(data)):
            yield data[place : place + 1]
        return
    while data:
        size = chosen.choice((1, 8, 9, 10, 100, 1_000, 16_000, 100_000))
        yield data[:size]
        data = data[size:]


class Judge:
    """Runs one session and judges it."""

    def __init__(self, seed: int) -> None:
        self.chosen = random.Random(seed)
        # Each is damaged in many ways: to record one takes longer than to read it.
        self.session = session(seed // 20)
        self.bodies = Bodies()
        self.now = 1_000.0
        self.ours = Connection(LIMITS, TABLES, self.bodies, self.now)
        self.taken: list[Stream] = []
        self.gone: list[Stream] = []
        self.opened: set[int] = set()
        # How far each stream is that we sent something on: nothing, head, end.
        self.sent: dict[int, str] = {}
        self.reset: set[int] = set()
        self.is_over = False
        self.frames = 0

    def run(self) -> None:
        """From the preface to the end."""
        chosen = self.chosen
        parts = damaged(self.session, chosen)
        self.frames = len(parts)
        for piece in pieces(PREFACE + b"".join(parts), chosen):
            self.ours.receive(piece, self.now)
            self.look()
            if chosen.random() < 0.1:
                self.now += chosen.choice((0.001, 0.1, 2.0, 6.0, 40.0))
                self.ours.tick(self.now)
                self.look()
            if chosen.random() < 0.02:
                self.ours.go(self.now)
            if self.taken and chosen.random() < 0.4:
                self.reply(self.taken.pop(chosen.randrange(len(self.taken))))
        self.finish()

    def reply(self, stream: Stream) -> None:
        """Answers or refuses, whether it is still there or not."""
        if stream.refusal or self.chosen.random() < 0.2:
            self.ours.refuse(stream, b"\x88" + TRAILERS)
        else:
            size = self.chosen.choice((0, 1, 100, 20_000, 200_000))
            self.ours.answer(stream, bytes(size), TRAILERS)
        self.look()

    def finish(self) -> None:
        """Answers all, lets time pass, and counts what is left."""
        for stream in self.taken:
            self.reply(stream)
        for _ in range(4):
            self.now += 31.0
            self.ours.tick(self.now)
            self.look()
        assert self.ours.streams == {} or self.ours.ended == "", "streams of an ended connection"
        assert not self.ours.streams, "a stream that nothing ends"
        self.ours.close()
        self.look()
        assert self.bodies.size == 0
        assert self.ours.unread == 0
        ended = {stream for stream, state in self.sent.items() if state == "end"}
        ended |= self.reset | {stream.id for stream in self.gone}
        assert self.opened <= ended, "streams that were neither answered nor ended"

    def look(self) -> None:
        """What holds after each step."""
        ours = self.ours
        self.taken += ours.requests
        self.gone += ours.gone
        ours.requests, ours.gone = [], []
        self.opened.update(ours.streams)
        streams = ours.streams.values()
        assert len(ours._rest) < LIMITS.frame_bytes_max + 9
        assert len(ours.streams) <= LIMITS.streams_max
        assert len(ours._forgiven) <= connection._FORGIVEN_MAX
        # The first part of a block may be as large as any frame.
        held = sum(map(len, ours._block))
        assert held <= max(LIMITS.header_block_bytes_max, LIMITS.frame_bytes_max)
        # Some frames cost a part of a unit, a call gives back a whole one.
        assert ours._budget < LIMITS.budget + 1
        assert self.bodies.size == ours._unfinished == sum(stream.held for stream in streams)
        assert self.bodies.size <= LIMITS.unfinished_bytes_max
        assert 0 <= ours.window < 2**31 or ours.ended
        for stream in streams:
            held = sum(map(len, stream.parts))
            assert held <= LIMITS.message_bytes_max + connection.PREFIX_BYTES
            assert stream.is_complete or held == stream.held
            assert stream.window < 2**31
        if ours.ended:
            assert not ours.streams
        self.read(ours.take())

    def read(self, data: bytes) -> None:
        """What we send must be what HTTP/2 allows to be sent."""
        for each in frames_of(data):
            assert not self.is_over, "something after the end"
            assert len(each.payload) <= max(16_384, self.ours._frame_bytes_max)
            assert each.kind != PUSH_PROMISE
            if each.kind in (SETTINGS, PING, GOAWAY):
                assert each.stream == 0
            elif each.kind == RST_STREAM:
                self.reset.add(each.stream)
            elif each.kind == WINDOW_UPDATE:
                assert int.from_bytes(each.payload, "big") > 0
                assert each.stream not in self.reset
            else:
                self._read_reply(each.kind, each.flags, each.stream)
            if each.kind == GOAWAY and self.ours.ended not in ("", "going", "closed"):
                self.is_over = each.payload[4:8] != bytes(4) or self.ours.ended in ("age", "silent")
        assert self.ours._limits is LIMITS

    def _read_reply(self, kind: int, flags: int, stream: int) -> None:
        assert stream in self.opened
        assert stream not in self.reset
        state = self.sent.get(stream, "")
        if kind == DATA:
            assert state == "head"
            assert not flags & END_STREAM
        else:
            assert kind == HEADERS
            assert state in ("", "head")
            assert flags & END_STREAM or not state
            self.sent[stream] = "end" if flags & END_STREAM else "head"


def fuzz(frames: int, seed: int) -> None:
    """Runs sessions until so many frames were sent; the seed of a bad one is told."""
    count = 0
    print(f"seeds from {seed} on")
    while count < frames:
        judge = Judge(seed)
        try:
            judge.run()
        except Exception as error:
            raise AssertionError(f"session {seed}") from error
        count += judge.frames
        seed += 1


def test_damaged_sessions() -> None:
    fuzz(100_000, random.SystemRandom().randrange(2**40))


@pytest.mark.long
@pytest.mark.timeout(7_200)
def test_many_damaged_sessions() -> None:
    fuzz(10_000_000, random.SystemRandom().randrange(2**40))


def test_a_session_means_the_same_wherever_it_is_split() -> None:
    def read(*pieces: bytes) -> object:
        bodies = Bodies()
        ours = Connection(Limits(), TABLES, bodies, 0.0)
        for piece in pieces:
            ours.receive(piece, 0.0)
        requests = [(stream.id, stream.parts, stream.refusal) for stream in ours.requests]
        return requests, [stream.id for stream in ours.gone], ours.ended, bodies.size, ours.take()

    for seed in range(20):
        parts = PREFACE + b"".join(session(seed))
        for place in range(0, len(parts), 1 + len(parts) // 1_000):
            assert read(parts[:place], parts[place:]) == read(parts)


def test_random_bytes_after_the_preface() -> None:
    chosen = random.Random(2)
    for _ in range(500):
        ours = Connection(LIMITS, TABLES, Bodies(), 0.0)
        ours.receive(PREFACE + frame(SETTINGS) + frame(SETTINGS, ACK), 0.0)
        ours.receive(chosen.randbytes(chosen.randrange(200)), 0.0)
        ours.tick(1_000.0)
        frames_of(ours.take())
