"""A client of HTTP/2 that is as rude as a test needs it: frames by hand, on a socket."""

import contextlib
import select
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import hpack

from tests.rpc import widgets
from tests.rpc.conftest import FIRST
from tests.rpc.fronts.h2.peer import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    Frame,
    Pairs,
    block,
    frame,
    frames_of,
    headers,
    number,
    settings,
)

SECONDS_MAX = 20.0
HELLO = PREFACE + settings()
AGREED = frame(SETTINGS, ACK)


def _ready(connection: socket.socket, event: int, seconds: float) -> bool:
    """Waits for a socket; not by select, which knows no descriptor above 1,023."""
    poll = select.poll()
    poll.register(connection, event)
    return bool(poll.poll(max(0.0, seconds) * 1_000))


@dataclass
class Answer:
    """What came for a stream.

    Attributes:
        pairs: All headers and trailers.
        reset: The code of a RST_STREAM, None without one.
    """

    pairs: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    reset: int | None = None
    is_ended: bool = False

    def value(self, name: bytes) -> bytes | None:
        """Returns the value of a header, None without it."""
        return dict(self.pairs).get(name)

    @property
    def code(self) -> int | None:
        """The status of gRPC."""
        value = self.value(b"grpc-status")
        return None if value is None else int(value)


def head(name: str = "Check", *more: tuple[bytes, bytes], bearer: str | None = FIRST) -> Pairs:
    """Returns the head of a call."""
    path = name if name.startswith("/") else widgets.path(name)
    pairs = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()),
        (b":authority", b"127.0.0.1"), (b"content-type", b"application/grpc"), (b"te", b"trailers"),
    ]  # fmt: skip
    if bearer is not None:
        pairs.append((b"authorization", f"Bearer {bearer}".encode()))
    return [*pairs, *more]


def check(subject: str = "om_1") -> bytes:
    """Returns the request of a check."""
    return bytes(widgets.message("CheckRequest", subject=subject).SerializeToString())


def body(message: bytes, flag: bytes = b"\0") -> bytes:
    """Returns a message with its prefix."""
    return flag + number(len(message)) + message


def call(
    stream: int, pairs: Pairs | None = None, message: bytes | None = None, flag: bytes = b"\0"
) -> bytes:
    """Returns a whole call, in as many frames as it needs."""
    data = block(head() if pairs is None else pairs)
    parts = [data[at : at + 16_384] for at in range(0, len(data), 16_384)]
    sent = [headers(stream, END_HEADERS if len(parts) == 1 else 0, parts[0])]
    for place, part in enumerate(parts[1:], 2):
        sent.append(frame(CONTINUATION, END_HEADERS * (place == len(parts)), stream, part))
    rest = body(check() if message is None else message, flag)
    for at in range(0, len(rest), 16_384):
        is_last = at + 16_384 >= len(rest)
        sent.append(frame(DATA, END_STREAM * is_last, stream, rest[at : at + 16_384]))
    return b"".join(sent)


class Wire:
    """A connection.

    Attributes:
        is_over: The other side has closed it.
        goaway: The code of its GOAWAY, None without one.
    """

    def __init__(self, address: str, hello: bytes = HELLO, *, receive_bytes: int = 0) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.socket()
        if receive_bytes:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self._socket.settimeout(SECONDS_MAX)
        self._socket.connect((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""
        self._decoder = hpack.Decoder()
        self.answers: dict[int, Answer] = {}
        self.is_over = False
        self.goaway: int | None = None
        self.last_stream = 0
        self.send(hello)

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Goes away."""
        self._socket.close()

    def send(self, *parts: bytes) -> bool:
        """Sends; False if the other side is gone."""
        try:
            for part in parts:
                self._socket.sendall(part)
        except TimeoutError:
            raise
        except OSError:
            self.is_over = True
        return not self.is_over

    def push(self, data: bytes, seconds: float) -> bool:
        """Sends as far as the other side reads within a time; False if it does not, or is gone."""
        self._socket.setblocking(False)
        end = time.monotonic() + seconds
        try:
            while data:
                if not _ready(self._socket, select.POLLOUT, end - time.monotonic()):
                    return False
                data = data[self._socket.send(data) :]
        except (OSError, ValueError):
            self.is_over = True
            return False
        finally:
            self._socket.settimeout(SECONDS_MAX)
        return True

    def drop(self) -> None:
        """Throws away what has come."""
        with contextlib.suppress(OSError):
            while _ready(self._socket, select.POLLIN, 0):
                if not self._socket.recv(1 << 20):
                    self.is_over = True
                    return
            return
        self.is_over = True

    def read(self, seconds: float = SECONDS_MAX) -> list[Frame]:
        """Returns the frames of one look at the socket; none at the end, or after this time."""
        self._socket.settimeout(seconds)
        try:
            got = self._socket.recv(1 << 18)
        except TimeoutError:
            return []
        except OSError:
            got = b""
        finally:
            self._socket.settimeout(SECONDS_MAX)
        if not got:
            self.is_over = True
            return []
        data = self._rest + got
        at = 0
        while len(data) - at >= 9:
            length = int.from_bytes(data[at : at + 3], "big")
            if len(data) - at - 9 < length:
                break
            at += 9 + length
        self._rest = data[at:]
        found = frames_of(data[:at])
        for each in found:
            self._note(each)
        return found

    def _note(self, each: Frame) -> None:
        if each.kind == SETTINGS and not each.flags & ACK:
            self.send(AGREED)
        elif each.kind == PING and not each.flags & ACK:
            self.send(frame(PING, ACK, 0, each.payload))
        elif each.kind == GOAWAY:
            self.goaway = int.from_bytes(each.payload[4:8], "big")
        elif each.kind in (HEADERS, DATA, RST_STREAM):
            answer = self.answers.setdefault(each.stream, Answer())
            if each.kind == HEADERS:
                # Ours and grpcio's are neither padded nor in parts.
                assert each.flags & END_HEADERS
                pairs: Any = self._decoder.decode(each.payload, raw=True)
                answer.pairs += [(bytes(name), bytes(value)) for name, value in pairs]
            elif each.kind == DATA:
                answer.body += each.payload
            elif not answer.is_ended:
                answer.reset = int.from_bytes(each.payload, "big")
            answer.is_ended |= each.kind == RST_STREAM or bool(each.flags & END_STREAM)

    def until(self, streams: Iterable[int]) -> dict[int, Answer]:
        """Returns what came for these streams, once they have ended."""
        wanted = set(streams)
        end = time.monotonic() + SECONDS_MAX
        while not self.is_over:
            if all(each in self.answers and self.answers[each].is_ended for each in wanted):
                break
            assert time.monotonic() < end, "no answer"
            self.read()
        return {each: self.answers[each] for each in wanted if each in self.answers}

    def ask(
        self, pairs: Pairs | None = None, message: bytes | None = None, flag: bytes = b"\0"
    ) -> Answer:
        """Makes a call on the next stream; returns what came."""
        self.last_stream += 2
        stream = self.last_stream - 1
        self.send(call(stream, pairs, message, flag))
        return self.until([stream]).get(stream, Answer())

    def served(self) -> str:
        """Makes an ordinary call; returns "answered", "overloaded", or what came instead."""
        answer = self.ask()
        words = {0: "answered", 8: "overloaded"}
        return words.get(-1 if answer.code is None else answer.code, f"{answer}, {self.goaway}")

    def end(self) -> None:
        """Reads up to the end of the connection, which must come."""
        end = time.monotonic() + SECONDS_MAX
        while not self.is_over:
            assert time.monotonic() < end, "the connection is still there"
            self.read()
