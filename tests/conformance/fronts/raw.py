"""A client that sends what no library would: HTTP/2 by hand, over a plain socket."""

import socket
import ssl
import struct
from base64 import b64decode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)

from authz_service.rpc import status as statuses
from tests.conformance.fronts import echo
from tests.conformance.fronts.echo import SECONDS

Header = tuple[str, str | bytes]


def connected(address: str) -> socket.socket:
    """Returns a socket that is connected to an address as a front tells it."""
    if address.startswith("unix:"):
        one = socket.socket(socket.AF_UNIX)
        one.settimeout(SECONDS)
        one.connect(address.removeprefix("unix:"))
        return one
    host, _, port = address.rpartition(":")
    one = socket.create_connection((host, int(port)), SECONDS)
    # What is sent in pieces would else wait for the other side's acknowledgements.
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return one


def framed(payload: bytes, flag: int = 0) -> bytes:
    """Returns a message with its prefix of five bytes."""
    return struct.pack(">BI", flag, len(payload)) + payload


def unframed(data: bytes) -> list[bytes]:
    """Returns the messages of a body, all of them uncompressed and whole."""
    found = []
    while data:
        flag, size = struct.unpack(">BI", data[:5])
        assert flag == 0 and len(data) >= 5 + size
        found.append(data[5 : 5 + size])
        data = data[5 + size :]
    return found


def headers(
    *more: Header, path: str = echo.PATH, without: Sequence[str] = (), **changes: str
) -> list[Header]:
    """Returns the headers of a call: changed, some left out, more at the end.

    Args:
        changes: By name, with ``_`` for ``-`` and ``pseudo_`` for the colon.
    """
    found: dict[str, str] = {
        ":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost",
        "content-type": "application/grpc", "te": "trailers",
        "authorization": f"Bearer {echo.BEARER}",
    }  # fmt: skip
    for name, value in changes.items():
        found[name.replace("pseudo_", ":").replace("_", "-")] = value
    for name in without:
        del found[name]
    return [*found.items(), *more]


class _Connection(H2Connection):
    """One for which GOAWAY is no end: what is in flight is still answered (RFC 9113, 6.8)."""

    def _receive_goaway_frame(self, frame: Any) -> Any:
        event = ConnectionTerminated()
        event.error_code, event.last_stream_id = frame.error_code, frame.last_stream_id
        return [], [event]


@dataclass
class Answer:
    """What came back on one stream.

    Attributes:
        reset: The code of RST_STREAM.
    """

    initial: list[tuple[str, str]] = field(default_factory=list)
    trailers: list[tuple[str, str]] = field(default_factory=list)
    data: bytes = b""
    reset: int | None = None
    is_ended: bool = False

    @property
    def http(self) -> str:
        """The HTTP status, empty before there is one."""
        return dict(self.initial).get(":status", "")

    @property
    def last(self) -> dict[str, str]:
        """The trailers, or the headers if there was nothing else."""
        return dict(self.trailers or self.initial)

    @property
    def code(self) -> str:
        """The name of the gRPC status, empty without one."""
        number = self.last.get("grpc-status")
        return "" if number is None else Code.Name(int(number))

    @property
    def text(self) -> str:
        """The message of the status, decoded."""
        return unquote(self.last.get("grpc-message", ""))

    @property
    def reason(self) -> str:
        """The reason within the details, empty without."""
        packed = self.last.get("grpc-status-details-bin", "")
        status = Status.FromString(b64decode(packed + "=" * (-len(packed) % 4)))
        return statuses.reason_of(status)

    @property
    def short(self) -> str:
        """Code and reason, or what came instead of a status."""
        if self.code:
            return f"{self.code} {self.reason}".rstrip()
        if self.reset is not None:
            return f"reset {self.reset}"
        return f"HTTP {self.http}" if self.http else "closed"

    @property
    def payload(self) -> bytes:
        """What the one message of the answer echoes."""
        (one,) = unframed(self.data)
        return echo.payload_of(one)


class Raw:
    """One HTTP/2 connection.

    Args:
        settings: Ours, by number, right after the first ones.
        preface: What is sent instead of HTTP/2's own beginning.

    Attributes:
        goaway: The code with which the server said that it ends the connection.
        goaways: The last streams that it named each time.
        is_closed: The server has closed it.
    """

    def __init__(
        self,
        address: str,
        context: ssl.SSLContext | None = None,
        settings: dict[int, int] | None = None,
        preface: bytes = b"",
    ) -> None:
        self.socket: Any = connected(address)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_hostname="localhost")
        self.h2 = _Connection(
            H2Configuration(
                client_side=True, header_encoding="utf-8", validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )  # fmt: skip
        self.answers: dict[int, Answer] = {}
        self.goaway: int | None = None
        self.goaways: list[int | None] = []
        self.is_closed = False
        self.pongs: list[bytes] = []
        if preface:
            self.send(preface)
            return
        self.h2.initiate_connection()
        if settings:
            self.h2.update_settings(settings)
        self.flush()

    def flush(self) -> None:
        """Sends what is due."""
        self.send(self.h2.data_to_send())

    def send(self, data: bytes) -> None:
        """Sends bytes as they are. A server that has closed is noticed when reading."""
        try:
            self.socket.sendall(data)
        except OSError:
            self.is_closed = True

    def open(self, fields: Iterable[Header] | None = None, *, end: bool = False) -> int:
        """Sends headers; returns the new stream."""
        id = self.h2.get_next_available_stream_id()
        self.h2.send_headers(id, list(fields if fields is not None else headers()), end_stream=end)
        self.answers[id] = Answer()
        self.flush()
        return id

    def data(self, id: int, data: bytes, *, end: bool = False) -> None:
        """Sends a body or a part of it, as the windows allow, until the call has ended."""
        answer = self.answers[id]
        while data and not answer.is_ended and not self.is_closed:
            room = min(self.h2.local_flow_control_window(id), self.h2.max_outbound_frame_size)
            if not room:
                self.receive()
                continue
            self.h2.send_data(id, data[:room])
            data = data[room:]
            self.flush()
        if end and not answer.is_ended and not self.is_closed:
            self.h2.end_stream(id)
            self.flush()

    def call(self, payload: bytes = b"", fields: Iterable[Header] | None = None) -> Answer:
        """Makes a call with one message and waits for its end."""
        return self.sent(framed(payload), fields)

    def sent(self, body: bytes, fields: Iterable[Header] | None = None) -> Answer:
        """Makes a call with a body and waits for its end."""
        id = self.open(fields)
        self.data(id, body, end=True)
        return self.ended(id)

    def ended(self, id: int) -> Answer:
        """Waits for the end of a stream, or of the connection."""
        answer = self.answers[id]
        while not answer.is_ended and not self.is_closed:
            self.receive()
        return answer

    def outcome(self, answer: Answer) -> str:
        """Returns how a call ended, in the words of the table of differences."""
        return f"closed {self.goaway}" if answer.short == "closed" else answer.short

    def closed(self) -> int | None:
        """Waits until the server has closed the connection; returns its code."""
        while not self.is_closed:
            self.receive()
        return self.goaway

    def ping(self, data: bytes = b"12345678") -> None:
        """Sends a ping and waits for its answer, or for the end of the connection."""
        before = len(self.pongs)
        self.h2.ping(data)
        self.flush()
        while len(self.pongs) == before and not self.is_closed:
            self.receive()

    def receive(self) -> None:
        """Waits for bytes and takes them in."""
        try:
            data = self.socket.recv(65_536)
        except TimeoutError:
            raise
        except OSError:
            data = b""
        if not data:
            self.is_closed = True
            return
        for event in self.h2.receive_data(data):
            self._take(event)
        self.flush()

    def hears(self, wanted: bytes) -> bool:
        """Reads past the library until these bytes come, True, or the server closes."""
        data = b""
        try:
            while wanted not in data:
                more = self.socket.recv(65_536)
                if not more:
                    break
                data += more
        except ConnectionError:
            pass
        return wanted in data

    def drain(self) -> None:
        """Reads until the server has closed the connection, whatever it sends."""
        while self.socket.recv(65_536):
            pass

    def close(self) -> None:
        """Ends the connection."""
        self.socket.close()

    def _take(self, event: Event) -> None:
        if isinstance(event, ConnectionTerminated):
            self.goaway = int(event.error_code or 0)
            self.goaways.append(event.last_stream_id)
        elif isinstance(event, PingAckReceived):
            self.pongs.append(event.ping_data)
        answer = self.answers.get(getattr(event, "stream_id", None) or 0)
        if answer is None:
            return
        if isinstance(event, ResponseReceived):
            answer.initial = _texts(event.headers)
        elif isinstance(event, TrailersReceived):
            answer.trailers = _texts(event.headers)
        elif isinstance(event, DataReceived):
            answer.data += event.data
            if event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            answer.is_ended = True
        elif isinstance(event, StreamReset):
            # A server that has answered may reset with NO_ERROR, to have no more of the request.
            answer.reset = int(event.error_code or 0)
            answer.is_ended = True


def _texts(fields: Any) -> list[tuple[str, str]]:
    return [
        (
            name if isinstance(name, str) else name.decode(),
            value if isinstance(value, str) else value.decode(),
        )
        for name, value in fields or ()
    ]
