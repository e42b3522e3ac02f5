"""Peers of a connection, bytes to bytes and without a socket: the h2 library, and frames by hand.

Frames are written and read here without the code that is tested.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event
from h2.settings import SettingCodes

from authz_service.rpc.fronts.h2 import grpc
from authz_service.rpc.fronts.h2.connection import Bodies, Connection, Stream
from authz_service.rpc.fronts.h2.headers import Tables
from authz_service.rpc.fronts.h2.limits import Limits

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = range(5)
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(5, 10)
END_STREAM = ACK = 1
END_HEADERS, PADDED, HAS_PRIORITY = 4, 8, 32
WINDOW_SIZE = 4

Pairs = Sequence[tuple[bytes, bytes]]
HEAD: Pairs = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/test.v1.WidgetService/Check"),
    (b":authority", b"127.0.0.1"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
)
TRAILERS = grpc.trailers(())
E = TypeVar("E", bound=Event)


class Frame(NamedTuple):
    """A frame that we sent."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """Returns the bytes of a frame, however wrong."""
    length = len(payload).to_bytes(3, "big")
    return length + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def frames_of(data: bytes) -> list[Frame]:
    """Returns whole frames."""
    return list(_frames_of(data))


def _frames_of(data: bytes) -> Iterator[Frame]:
    at = 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 3], "big")
        stream = int.from_bytes(data[at + 5 : at + 9], "big")
        payload = data[at + 9 : at + 9 + length]
        assert len(payload) == length
        yield Frame(data[at + 3], data[at + 4], stream, payload)
        at += 9 + length


def number(value: int, size: int = 4) -> bytes:
    """Returns a number as frames hold them."""
    return value.to_bytes(size, "big")


def settings(*pairs: tuple[int, int]) -> bytes:
    """Returns a SETTINGS frame."""
    return frame(SETTINGS, payload=b"".join(number(k, 2) + number(v) for k, v in pairs))


def block(pairs: Pairs = HEAD, *more: tuple[bytes, bytes]) -> bytes:
    """Returns a header block that needs no table, with any bytes as names and values."""
    return b"".join(b"\0" + string(name) + string(value) for name, value in (*pairs, *more))


def string(text: bytes) -> bytes:
    """Returns a string of a header block, not coded."""
    return prefixed(0, 7, len(text)) + text


def prefixed(first: int, bits: int, value: int) -> bytes:
    """Returns a number after the first bits of a byte (RFC 7541 section 5.1)."""
    most = (1 << bits) - 1
    if value < most:
        return bytes((first | value,))
    found = [first | most]
    value -= most
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*found, value))


def changed(name: bytes, value: bytes | None) -> Pairs:
    """Returns the usual head with one field changed or, with None, left out."""
    found = []
    for each, old in HEAD:
        if each != name:
            found.append((each, old))
        elif value is not None:
            found.append((each, value))
    return found


def headers(stream: int, flags: int = END_HEADERS, data: bytes | None = None) -> bytes:
    """Returns a HEADERS frame, of an ordinary call unless told otherwise."""
    return frame(HEADERS, flags, stream, block() if data is None else data)


def call(stream: int, message: bytes = b"", *, pairs: Pairs = HEAD) -> bytes:
    """Returns a whole call."""
    return headers(stream, END_HEADERS, block(pairs)) + data(stream, message)


def data(stream: int, message: bytes, flags: int = END_STREAM) -> bytes:
    """Returns a DATA frame with a whole message."""
    return frame(DATA, flags, stream, b"\0" + number(len(message)) + message)


class Raw:
    """A connection of ours whose settings are agreed, and what it sent, frame by frame.

    Attributes:
        now: What the connection is told the time is.
        taken: Streams that asked for an answer.
    """

    def __init__(self, limits: Limits | None = None, *, first: bytes | None = None) -> None:
        self.now = 100.0
        self.bodies = Bodies()
        self.ours = Connection(limits or Limits(), Tables(), self.bodies, self.now)
        self.taken: list[Stream] = []
        self.send(PREFACE + settings() + frame(SETTINGS, ACK) if first is None else first)

    def send(self, *parts: bytes) -> list[Frame]:
        """Sends something; returns what came back."""
        for part in parts:
            self.ours.receive(part, self.now)
        taken, self.ours.requests = self.ours.requests, []
        self.taken += taken
        return self.got()

    def got(self) -> list[Frame]:
        """Returns what was sent since the last look."""
        return frames_of(self.ours.take())

    def after(self, seconds: float) -> list[Frame]:
        """Lets time pass; returns what was sent over it."""
        self.now += seconds
        self.ours.tick(self.now)
        return self.got()

    def answer(self, message: bytes = b"", *, of: int = -1) -> list[Frame]:
        """Answers one that asked."""
        self.ours.answer(self.taken[of], message, TRAILERS)
        return self.got()

    def bodies_taken(self) -> list[bytes]:
        """Returns the bodies of all that asked."""
        return [b"".join(stream.parts) for stream in self.taken]

    def still_answers(self, stream: int = 1_001) -> bool:
        """Tells whether a new call is taken and answered."""
        if self.ours.ended:
            return False
        self.send(call(stream, b"still"))
        if not self.taken or self.taken[-1].id != stream:
            return False
        got = self.answer(b"yes")
        return [each.payload for each in got if each.kind == DATA] == [b"\0\0\0\0\3yes"]


class Library:
    """A connection of ours, and the h2 library as its client.

    Attributes:
        taken: Streams that asked for an answer.
        events: What the library made of what we sent.
    """

    def __init__(self, limits: Limits | None = None, **theirs: int) -> None:
        self.now = 100.0
        self.bodies = Bodies()
        self.ours = Connection(limits or Limits(), Tables(), self.bodies, self.now)
        self.theirs = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self.taken: list[Stream] = []
        self.events: list[Any] = []
        #: Everything that the library sent, for whoever wants to send it again.
        self.sent: list[bytes] = []
        self.theirs.initiate_connection()
        if theirs:
            self.theirs.update_settings(
                {SettingCodes[name.upper()]: value for name, value in theirs.items()}
            )
        self.exchange()

    def exchange(self) -> None:
        """Carries bytes to and fro until both are silent."""
        while True:
            there = self.theirs.data_to_send()
            if there:
                self.sent.append(there)
                self.ours.receive(there, self.now)
                taken, self.ours.requests = self.ours.requests, []
                self.taken += taken
            back = self.ours.take()
            if back:
                self.events += self.theirs.receive_data(back)
            if not there and not back:
                return

    def open(self, pairs: Pairs = HEAD, **changes: Any) -> int:
        """Sends the head of a call."""
        stream = int(self.theirs.get_next_available_stream_id())
        self.theirs.send_headers(stream, list(pairs), **changes)
        self.exchange()
        return stream

    def upload(self, stream: int, body: bytes, *, end: bool = True) -> None:
        """Sends a body as the windows allow, with the largest frames."""
        while body:
            size = min(
                len(body),
                self.theirs.local_flow_control_window(stream),
                self.theirs.max_outbound_frame_size,
            )
            assert size > 0, "the windows are closed"
            part, body = body[:size], body[size:]
            self.theirs.send_data(stream, part, end_stream=end and not body)
            self.exchange()

    def call(self, message: bytes = b"", pairs: Pairs = HEAD) -> int:
        """Sends a whole call."""
        stream = self.open(pairs)
        self.upload(stream, b"\0" + number(len(message)) + message)
        return stream

    def answer(self, message: bytes, *, of: int = -1) -> None:
        """Answers one that asked."""
        self.ours.answer(self.taken[of], message, TRAILERS)
        self.exchange()

    def heard(self, kind: type[E]) -> list[E]:
        """Returns all events of a kind so far."""
        return [event for event in self.events if isinstance(event, kind)]

    def body_of(self, stream: int) -> bytes:
        """Returns what has come of a reply."""
        return b"".join(
            event.data for event in self.heard(DataReceived) if event.stream_id == stream
        )
