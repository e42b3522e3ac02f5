"""One connection of HTTP/2 (RFC 9113), from the server's side: states, windows and budgets.

Pure: bytes go in, bytes and events come out, and time is told. It knows of gRPC only where a body's
size stands.
"""

from authz_service.rpc.fronts.h2 import frames
from authz_service.rpc.fronts.h2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEAD_BYTES,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    STREAM_ID_MAX,
    WINDOW_DEFAULT,
    WINDOW_MAX,
    WINDOW_UPDATE,
    frame,
)
from authz_service.rpc.fronts.h2.headers import Broken, Head, Reader, Tables, Timeout
from authz_service.rpc.fronts.h2.limits import Limits

# A message begins with a flag and its length (gRPC over HTTP/2, "Length-Prefixed-Message").
PREFIX_BYTES = 5

# RFC 7541 sections 4.2 and 6.3.
_TABLE_BYTES_DEFAULT = 4_096
_TABLE_OF_NO_SIZE = b"\x20"
# Streams that we ended before the peer knew: what is still on its way for them is let pass.
_FORGIVEN_MAX = 512
# Reasons why a stream is refused, which the mapping turns into an answer.
MESSAGE_TOO_LARGE, BODIES_TOO_LARGE, HEAD_TOO_LARGE = "message", "bodies", "head"
_AGE_PING = b"authz-go"
_ALIVE_PING = b"authz-ok"
# How long a peer may take to see that no new calls are wanted, before the last one is named.
_GOING_SECONDS = 1.0


class Stream:
    """One call on a connection.

    Attributes:
        parts: What has come of its body; one at most once it is complete.
        size: Of those, in bytes.
        window: What we may send.
        is_complete: The peer has sent everything.
        opened: When its head was there, or when some of its reply was last taken.
        refusal: Why it is refused, before its body was complete.
        waiting: What is to be sent of a reply that windows held up, and its trailers.
        owner: Whatever the caller of the connection wants to know it by.
    """

    __slots__ = (
        "head", "held", "id", "is_complete", "opened", "owner", "parts", "received", "refusal",
        "size", "timeout", "waiting", "window",
    )  # fmt: skip

    def __init__(self, id: int, head: Head, timeout: Timeout, window: int, now: float) -> None:
        self.id = id
        self.head = head
        self.timeout = timeout
        self.window = window
        self.opened = now
        self.parts: list[bytes] = []
        self.size = 0
        # What of it counts as unfinished.
        self.held = 0
        # Since the window of this stream was last opened again.
        self.received = 0
        self.is_complete = False
        self.refusal = ""
        self.waiting: tuple[memoryview, bytes] | None = None
        self.owner: object = None


class Bodies:
    """What all connections hold of unfinished bodies."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 0


class _Fatal(Exception):
    """The peer broke the protocol: the connection ends."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Connection:
    """The state of one connection.

    Args:
        tables: Shared by all connections.
        bodies: Shared by all connections.
        now: The boot clock, in seconds.

    Attributes:
        requests: Streams that are complete, or refused; whoever takes them empties the list.
        gone: Streams that the peer gave up; as above.
        ended: Why the connection is over, empty while it is not: nothing more is read then.
        is_going: No new calls are taken.
    """

    __slots__ = (
        "_block", "_block_flags", "_block_size", "_block_stream", "_bodies", "_budget",
        "_budget_at", "_forgiven", "_frame_bytes_max", "_going_since", "_heard", "_last_id",
        "_limits", "_out", "_pinged", "_preface", "_reader", "_received", "_rest", "_sending",
        "_started", "_table_update", "_unfinished", "_window_of_streams", "closing_id", "ended",
        "gone", "is_agreed", "is_going", "is_open", "requests", "streams", "window",
    )  # fmt: skip

    def __init__(self, limits: Limits, tables: Tables, bodies: Bodies, now: float) -> None:
        self._limits = limits
        self._bodies = bodies
        self._reader = Reader(tables, limits.header_bytes_max)
        self._rest = b""
        self._preface = True
        self._started = now
        # The peer's first SETTINGS have come; it has taken ours.
        self.is_open = self.is_agreed = False
        self._heard = now
        self._pinged = 0.0
        self._budget = limits.budget
        self._budget_at = now
        self._last_id = 0
        self.closing_id = STREAM_ID_MAX
        self.is_going = False
        self._going_since = 0.0
        self.streams: dict[int, Stream] = {}
        self._sending: dict[int, Stream] = {}
        self._forgiven: dict[int, None] = {}
        self._unfinished = 0
        self._received = 0
        self.window = WINDOW_DEFAULT
        self._window_of_streams = WINDOW_DEFAULT
        self._frame_bytes_max = 16_384
        # What our next header block begins with.
        self._table_update: bytes | None = b""
        # A header block that has not ended.
        self._block: list[bytes] = []
        self._block_stream = self._block_flags = self._block_size = 0
        self.requests: list[Stream] = []
        self.gone: list[Stream] = []
        self.ended = ""
        self._out: list[bytes] = [
            frames.settings(
                {
                    frames.HEADER_TABLE_SIZE: 0,
                    frames.MAX_CONCURRENT_STREAMS: limits.streams_max,
                    frames.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
                    frames.MAX_FRAME_SIZE: limits.frame_bytes_max,
                    frames.MAX_HEADER_LIST_SIZE: limits.header_bytes_max,
                }
            ),
            frames.window_update(0, limits.connection_window_bytes - WINDOW_DEFAULT),
        ]

    # --- what comes in -------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> None:
        """Reads what the peer sent; what it means is in ``requests``, ``gone`` and ``ended``."""
        if self.ended:
            return
        self._heard = now
        if self._rest:
            data = self._rest + data
            self._rest = b""
        try:
            self._read(data, now)
        except _Fatal as fatal:
            self._end(fatal.code, fatal.text)

    def _read(self, data: bytes, now: float) -> None:
        at = 0
        if self._preface:
            preface = frames.PREFACE
            if not preface.startswith(data[: len(preface)]):
                raise _Fatal(frames.PROTOCOL_ERROR, "no preface")
            if len(data) < len(preface):
                self._rest = data
                return
            self._preface = False
            at = len(preface)
        end = len(data)
        read_head = frames.read_head
        bytes_max = self._limits.frame_bytes_max
        while end - at >= HEAD_BYTES:
            high, low, kind, flags, stream_id = read_head(data, at)
            length = high << 16 | low
            if length > bytes_max:
                raise _Fatal(frames.FRAME_SIZE_ERROR, "frame too large")
            stop = at + HEAD_BYTES + length
            if stop > end:
                break
            payload = data[at + HEAD_BYTES : stop]
            at = stop
            stream_id &= STREAM_ID_MAX
            if self._block_stream and kind != CONTINUATION:
                raise _Fatal(frames.PROTOCOL_ERROR, "header block interrupted")
            if kind == DATA:
                self._data(stream_id, flags, payload, now)
            elif kind == HEADERS:
                self._headers(stream_id, flags, payload, now)
            else:
                self._other(kind, flags, stream_id, payload, now)
        if at < end:
            self._rest = data[at:]

    def _headers(self, stream_id: int, flags: int, payload: bytes, now: float) -> None:
        if not stream_id & 1:
            raise _Fatal(frames.PROTOCOL_ERROR, "stream of another kind")
        if not self.is_open:
            raise _Fatal(frames.PROTOCOL_ERROR, "no settings")
        if flags & PADDED:
            payload = _unpadded(payload)
        if flags & HAS_PRIORITY:
            if len(payload) < 5:
                raise _Fatal(frames.FRAME_SIZE_ERROR, "priority")
            if frames.read_number(payload)[0] & STREAM_ID_MAX == stream_id:
                raise _Fatal(frames.PROTOCOL_ERROR, "stream depends on itself")
            payload = payload[5:]
        if flags & END_HEADERS:
            self._head(stream_id, flags, payload, now)
            return
        self._spend(1.0, now)
        self._block, self._block_size = [payload], len(payload)
        self._block_stream, self._block_flags = stream_id, flags

    def _continuation(self, stream_id: int, flags: int, payload: bytes, now: float) -> None:
        if stream_id != self._block_stream or not stream_id:
            raise _Fatal(frames.PROTOCOL_ERROR, "continuation of nothing")
        self._spend(1.0, now)
        if payload:
            # Without end there may be empty ones.
            self._block.append(payload)
        self._block_size += len(payload)
        if self._block_size > self._limits.header_block_bytes_max:
            raise _Fatal(frames.ENHANCE_YOUR_CALM, "header block too large")
        if flags & END_HEADERS:
            block, self._block = b"".join(self._block), []
            self._block_stream = 0
            self._head(stream_id, self._block_flags, block, now)

    def _head(self, stream_id: int, flags: int, block: bytes, now: float) -> None:
        """Takes a whole header block: of a new call, or trailers."""
        try:
            head, timeout = self._reader.read(block)
        except Broken:
            raise _Fatal(frames.COMPRESSION_ERROR, "header block") from None
        if stream_id <= self._last_id:
            self._trailers(stream_id, flags, head, now)
            return
        self._last_id = stream_id
        if stream_id > self.closing_id:
            # It was told not to; what it sends for this stream is let pass.
            self._forgive(stream_id)
            self._spend(1.0, now)
            return
        if head.is_malformed or (flags & END_STREAM and head.length > 0):
            self._reset(stream_id, frames.PROTOCOL_ERROR, now)
            return
        if len(self.streams) >= self._limits.streams_max:
            self._reset(stream_id, frames.REFUSED_STREAM, now)
            return
        stream = Stream(stream_id, head, timeout, self._window_of_streams, now)
        self.streams[stream_id] = stream
        if head.size > self._limits.header_bytes_max:
            stream.refusal = HEAD_TOO_LARGE
        if flags & END_STREAM:
            stream.is_complete = True
            self.requests.append(stream)
        elif stream.refusal:
            self.requests.append(stream)

    def _trailers(self, stream_id: int, flags: int, head: Head, now: float) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            if stream_id not in self._forgiven:
                raise _Fatal(frames.STREAM_CLOSED, "headers on a closed stream")
            self._spend(1.0, now)
            return
        if stream.is_complete:
            self._give_up(stream, frames.STREAM_CLOSED, now)
        elif not flags & END_STREAM or not head.fits_trailers:
            self._give_up(stream, frames.PROTOCOL_ERROR, now)
        else:
            self._spend(1.0, now)
            self._complete(stream, now)

    def _data(self, stream_id: int, flags: int, payload: bytes, now: float) -> None:
        size = len(payload)
        if size:
            self._received += size
            if self._received > self._limits.connection_window_bytes:
                raise _Fatal(frames.FLOW_CONTROL_ERROR, "window of the connection")
            if self._received >= self._limits.connection_window_bytes // 2:
                self._out.append(frames.window_update(0, self._received))
                self._received = 0
        stream = self.streams.get(stream_id)
        if stream is None or stream.is_complete:
            self._data_after_end(stream_id, stream, now)
            return
        if flags & PADDED:
            payload = _unpadded(payload)
        stream.received += size
        if stream.received > self._limits.stream_window_bytes:
            self._give_up(stream, frames.FLOW_CONTROL_ERROR, now)
            return
        if not flags & END_STREAM and len(payload) < self._limits.tiny_bytes:
            self._spend(1.0, now)
        stream.size += len(payload)
        if payload and not stream.refusal:
            stream.parts.append(payload)
            if not flags & END_STREAM or len(stream.parts) > 1:
                self._hold(stream, len(payload))
        if flags & END_STREAM:
            self._complete(stream, now)
        elif stream.received >= self._limits.stream_window_bytes // 2 and not stream.refusal:
            self._out.append(frames.window_update(stream_id, stream.received))
            stream.received = 0

    def _hold(self, stream: Stream, more: int) -> None:
        """Keeps a part of a body, if it may be kept."""
        limits = self._limits
        stream.held += more
        self._unfinished += more
        self._bodies.size += more
        if stream.size >= PREFIX_BYTES > stream.size - more:
            # Its length can be read now; the first frames may be as small as a byte.
            stream.parts = [b"".join(stream.parts)]
            if declared(stream.parts[0]) > limits.message_bytes_max:
                self._refuse_body(stream, MESSAGE_TOO_LARGE)
                return
        if (
            self._unfinished > limits.unfinished_bytes_max
            or self._bodies.size > limits.unfinished_bytes_max_in_all
        ):
            self._refuse_body(stream, BODIES_TOO_LARGE)
        elif stream.size > limits.message_bytes_max + PREFIX_BYTES:
            self._refuse_body(stream, MESSAGE_TOO_LARGE)

    def _refuse_body(self, stream: Stream, refusal: str) -> None:
        stream.refusal = refusal
        stream.parts = []
        self._release(stream)
        self.requests.append(stream)

    def _release(self, stream: Stream) -> None:
        if stream.held:
            self._unfinished -= stream.held
            self._bodies.size -= stream.held
            stream.held = 0

    def _data_after_end(self, stream_id: int, stream: Stream | None, now: float) -> None:
        if not stream_id or stream_id > self._last_id or not stream_id & 1:
            raise _Fatal(frames.PROTOCOL_ERROR, "data on an idle stream")
        self._spend(1.0, now)
        if stream is not None:
            self._give_up(stream, frames.STREAM_CLOSED, now)
        elif stream_id not in self._forgiven:
            raise _Fatal(frames.STREAM_CLOSED, "data on a closed stream")

    def _complete(self, stream: Stream, now: float) -> None:
        if stream.head.length >= 0 and stream.head.length != stream.size:
            self._give_up(stream, frames.PROTOCOL_ERROR, now)
            return
        stream.is_complete = True
        self._release(stream)
        if not stream.refusal:
            if len(stream.parts) > 1:
                stream.parts = [b"".join(stream.parts)]
            self.requests.append(stream)

    def _other(self, kind: int, flags: int, stream_id: int, payload: bytes, now: float) -> None:
        if not self.is_open and kind != SETTINGS:
            raise _Fatal(frames.PROTOCOL_ERROR, "no settings")
        if kind == WINDOW_UPDATE:
            self._window_update(stream_id, payload, now)
        elif kind == RST_STREAM:
            if len(payload) != 4:
                raise _Fatal(frames.FRAME_SIZE_ERROR, "reset")
            self._known_stream(stream_id)
            self._spend(1.0, now)
            if stream_id in self.streams:
                stream = self.streams[stream_id]
                self._forget(stream)
                self.gone.append(stream)
        elif kind == SETTINGS:
            self._settings(flags, stream_id, payload, now)
        elif kind == PING:
            self._ping(flags, stream_id, payload, now)
        elif kind == PRIORITY:
            self._spend(1.0, now)
            if not stream_id:
                raise _Fatal(frames.PROTOCOL_ERROR, "priority of the connection")
            if len(payload) != 5:
                if stream_id in self.streams:
                    self._give_up(self.streams[stream_id], frames.FRAME_SIZE_ERROR, now)
                else:
                    # A stream that is not open is not reset (RFC 9113 section 6.4).
                    raise _Fatal(frames.FRAME_SIZE_ERROR, "priority")
            elif frames.read_number(payload)[0] & STREAM_ID_MAX == stream_id:
                if stream_id in self.streams:
                    self._give_up(self.streams[stream_id], frames.PROTOCOL_ERROR, now)
                else:
                    raise _Fatal(frames.PROTOCOL_ERROR, "stream depends on itself")
        elif kind == CONTINUATION:
            self._continuation(stream_id, flags, payload, now)
        elif kind == GOAWAY:
            self._spend(1.0, now)
            if stream_id:
                raise _Fatal(frames.PROTOCOL_ERROR, "goaway of a stream")
            if len(payload) < 8:
                raise _Fatal(frames.FRAME_SIZE_ERROR, "goaway")
        elif kind == PUSH_PROMISE:
            raise _Fatal(frames.PROTOCOL_ERROR, "push from a client")
        else:
            # Extensions are let pass (RFC 9113 section 5.5).
            self._spend(1.0, now)

    def _known_stream(self, stream_id: int) -> None:
        """Ends the connection over a frame for a stream that was never opened."""
        if not stream_id or stream_id > self._last_id or not stream_id & 1:
            raise _Fatal(frames.PROTOCOL_ERROR, "idle stream")

    def _window_update(self, stream_id: int, payload: bytes, now: float) -> None:
        if len(payload) != 4:
            raise _Fatal(frames.FRAME_SIZE_ERROR, "window update")
        more = frames.read_number(payload)[0] & STREAM_ID_MAX
        if not stream_id:
            if not more:
                raise _Fatal(frames.PROTOCOL_ERROR, "window update of nothing")
            self.window += more
            if self.window > WINDOW_MAX:
                raise _Fatal(frames.FLOW_CONTROL_ERROR, "window of the connection")
            before = len(self._out)
            for stream in list(self._sending.values()):
                if stream.window > 0:
                    self._send_waiting(stream)
            if more < self._limits.tiny_bytes or len(self._out) == before:
                # Nothing waits for it, or hardly anything goes: too many of them are a flood.
                self._spend(1.0, now)
            return
        if more < self._limits.tiny_bytes or stream_id not in self._sending:
            self._spend(1.0, now)
        self._known_stream(stream_id)
        if stream_id not in self.streams:
            return
        stream = self.streams[stream_id]
        stream.window += more
        if not more:
            self._give_up(stream, frames.PROTOCOL_ERROR, now)
        elif stream.window > WINDOW_MAX:
            self._give_up(stream, frames.FLOW_CONTROL_ERROR, now)
        elif stream.waiting is not None:
            self._send_waiting(stream)

    def _settings(self, flags: int, stream_id: int, payload: bytes, now: float) -> None:
        if stream_id:
            raise _Fatal(frames.PROTOCOL_ERROR, "settings of a stream")
        if flags & ACK:
            if payload:
                raise _Fatal(frames.FRAME_SIZE_ERROR, "settings")
            self._spend(1.0, now)
            if not self.is_agreed:
                self.is_agreed = True
                self._reader.agree()
            return
        if len(payload) % 6:
            raise _Fatal(frames.FRAME_SIZE_ERROR, "settings")
        self._spend(1.0 + len(payload) / 60, now)
        for name, value in frames.read_setting(payload):
            if name == frames.ENABLE_PUSH and value > 1:
                raise _Fatal(frames.PROTOCOL_ERROR, "push")
            if name == frames.INITIAL_WINDOW_SIZE:
                if value > WINDOW_MAX:
                    raise _Fatal(frames.FLOW_CONTROL_ERROR, "window of streams")
                more = value - self._window_of_streams
                self._window_of_streams = value
                for stream in self.streams.values():
                    # May become negative: what was sent under the old size counts.
                    stream.window += more
                    if stream.window > WINDOW_MAX:
                        raise _Fatal(frames.FLOW_CONTROL_ERROR, "window of a stream")
            elif name == frames.MAX_FRAME_SIZE:
                if not 16_384 <= value <= 2**24 - 1:
                    raise _Fatal(frames.PROTOCOL_ERROR, "frame size")
                self._frame_bytes_max = value
            elif (
                name == frames.HEADER_TABLE_SIZE
                and value < _TABLE_BYTES_DEFAULT
                and self._table_update is not None
            ):
                # We use no table, but who makes its own smaller waits to be told so, once.
                self._table_update = _TABLE_OF_NO_SIZE
        self.is_open = True
        self._out.append(frames.SETTINGS_ACK)
        for stream in list(self._sending.values()):
            self._send_waiting(stream)

    def _ping(self, flags: int, stream_id: int, payload: bytes, now: float) -> None:
        if stream_id:
            raise _Fatal(frames.PROTOCOL_ERROR, "ping of a stream")
        if len(payload) != 8:
            raise _Fatal(frames.FRAME_SIZE_ERROR, "ping")
        self._spend(1.0, now)
        if not flags & ACK:
            self._out.append(frame(PING, ACK, 0, payload))
        elif payload == _AGE_PING and self.is_going:
            self._close_to_new()

    # --- what goes out -------------------------------------------------------------------------

    def take(self) -> bytes:
        """Returns what is to be sent, and forgets it."""
        out, self._out = self._out, []
        return out[0] if len(out) == 1 else b"".join(out)

    def answer(self, stream: Stream, message: bytes, trailers: bytes) -> None:
        """Sends a reply: its message with its prefix, and a block of trailers.

        Nothing happens if the stream has ended meanwhile.
        """
        stream_id = stream.id
        if self.streams.get(stream_id) is not stream:
            return
        size = len(message) + PREFIX_BYTES
        if self._budget < self._limits.budget:
            self._budget += 1.0
        number = stream_id.to_bytes(4, "big")
        if self._table_update:
            head, block = _FIRST_ANSWER_HEAD, _TABLE_OF_NO_SIZE + _ANSWER_BLOCK
            self._table_update = None
        else:
            head, block = _ANSWER_HEAD, _ANSWER_BLOCK
        if size <= self.window and size <= stream.window and size <= self._frame_bytes_max:
            self.window -= size
            self._out.append(
                b"%b%b%b%b\0\0%b\0%b%b%b\1\5%b%b"
                % (
                    head, number, block,
                    size.to_bytes(3, "big"), number, (size - PREFIX_BYTES).to_bytes(4, "big"),
                    message, len(trailers).to_bytes(3, "big"), number, trailers,
                )
            )  # fmt: skip
            self._sent(stream)
            return
        self._out.append(b"%b%b%b" % (head, number, block))
        prefix = b"\0" + len(message).to_bytes(4, "big")
        stream.waiting = memoryview(prefix + message), trailers
        self._sending[stream_id] = stream
        self._send_waiting(stream)

    def refuse(self, stream: Stream, block: bytes) -> None:
        """Sends an answer that is a block of headers only."""
        if self.streams.get(stream.id) is not stream:
            return
        if self._budget < self._limits.budget:
            self._budget += 1.0
        if self._table_update:
            block = self._table_update + block
            self._table_update = None
        self._out.append(frame(HEADERS, END_HEADERS | END_STREAM, stream.id, block))
        self._sent(stream)

    def _send_waiting(self, stream: Stream) -> None:
        assert stream.waiting is not None
        message, trailers = stream.waiting
        at, end = 0, len(message)
        while at < end:
            size = min(end - at, self.window, stream.window, self._frame_bytes_max)
            if size <= 0:
                break
            self._out.append(frame(DATA, 0, stream.id, bytes(message[at : at + size])))
            self.window -= size
            stream.window -= size
            at += size
            # That it moves at all is what counts; it moves when something was heard.
            stream.opened = max(stream.opened, self._heard)
        if at < end:
            stream.waiting = message[at:], trailers
            return
        self._out.append(frame(HEADERS, END_HEADERS | END_STREAM, stream.id, trailers))
        self._sent(stream)

    def _sent(self, stream: Stream) -> None:
        """Everything of a reply is on its way."""
        del self.streams[stream.id]
        if stream.waiting is not None:
            stream.waiting = None
            del self._sending[stream.id]
        if not stream.is_complete:
            # It need not send the rest; what is on its way is let pass.
            self._release(stream)
            self._forgive(stream.id)
            self._out.append(frames.reset(stream.id, frames.NO_ERROR))
        if self.is_going and not self.streams:
            self._end_if_done()

    @property
    def unread(self) -> int:
        """Bytes of replies that wait for the peer's windows."""
        if not self._sending:
            return 0
        return sum(len(stream.waiting[0]) for stream in self._sending.values() if stream.waiting)

    # --- ends ----------------------------------------------------------------------------------

    def go(self, now: float) -> None:
        """Tells the peer to open no new calls here; those that are open are answered."""
        if self.is_going or self.ended:
            return
        self.is_going = True
        self._going_since = now
        # First without a last stream: calls on their way are still taken (RFC 9113 section 6.8).
        self._out.append(frames.goaway(STREAM_ID_MAX, frames.NO_ERROR))
        self._out.append(frame(PING, 0, 0, _AGE_PING))

    def _close_to_new(self) -> None:
        if self.closing_id == STREAM_ID_MAX:
            self.closing_id = self._last_id
            self._out.append(frames.goaway(self._last_id, frames.NO_ERROR))
            self._end_if_done()

    def _end_if_done(self) -> None:
        if self.closing_id != STREAM_ID_MAX and not self.streams:
            self.ended = "going"

    def tick(self, now: float) -> None:
        """Does what time alone asks for; to be called about each second."""
        if self.ended:
            return
        try:
            self._tick(now)
        except _Fatal as fatal:
            self._end(fatal.code, fatal.text)

    def _tick(self, now: float) -> None:
        limits = self._limits
        if not self.is_open and now - self._started > limits.handshake_seconds_max:
            self._end(frames.PROTOCOL_ERROR, "handshake")
            return
        if self.is_going and now - self._going_since > _GOING_SECONDS:
            self._close_to_new()
            if not self.ended and now - self._going_since > limits.age_grace_seconds:
                self._end(frames.NO_ERROR, "age")
            if self.ended:
                return
        for stream in list(self.streams.values()):
            waited = now - stream.opened
            if (not stream.is_complete and waited > limits.body_seconds_max) or (
                stream.waiting is not None and waited > limits.unread_seconds_max
            ):
                self._give_up(stream, frames.CANCEL, now)
        silent = now - self._heard
        if silent < limits.keepalive_seconds:
            self._pinged = 0.0
        elif not self._pinged:
            self._pinged = now
            self._out.append(frame(PING, 0, 0, _ALIVE_PING))
        elif now - self._pinged > limits.keepalive_timeout_seconds:
            self._end(frames.NO_ERROR, "silent")

    def close(self) -> None:
        """Lets go of everything: the connection is lost."""
        for stream in list(self.streams.values()):
            self._forget(stream)
            self.gone.append(stream)
        self.ended = self.ended or "closed"

    def _end(self, code: int, text: str) -> None:
        # What was named once as the last stream may not grow (RFC 9113 section 6.8).
        last_id = min(self._last_id, self.closing_id)
        self._out.append(frames.goaway(last_id, code, text.encode()))
        self.close()
        self.ended = text

    def _give_up(self, stream: Stream, code: int, now: float) -> None:
        """Ends one stream over what its peer did."""
        self._forget(stream)
        self.gone.append(stream)
        self._reset(stream.id, code, now)

    def _reset(self, stream_id: int, code: int, now: float) -> None:
        self._forgive(stream_id)
        self._out.append(frames.reset(stream_id, code))
        self._spend(1.0, now)

    def _forgive(self, stream_id: int) -> None:
        if len(self._forgiven) >= _FORGIVEN_MAX:
            del self._forgiven[next(iter(self._forgiven))]
        self._forgiven[stream_id] = None

    def _forget(self, stream: Stream) -> None:
        self.streams.pop(stream.id, None)
        self._sending.pop(stream.id, None)
        stream.waiting = None
        stream.parts = []
        self._release(stream)
        if self.is_going:
            self._end_if_done()

    def _spend(self, cost: float, now: float) -> None:
        """Pays for a frame that does no work."""
        self._budget -= cost
        if self._budget > 0:
            return
        limits = self._limits
        self._budget += (now - self._budget_at) * limits.budget_per_second
        self._budget_at = now
        self._budget = min(self._budget, limits.budget)
        if self._budget <= 0:
            raise _Fatal(frames.ENHANCE_YOUR_CALM, "flood")


def declared(prefix: bytes) -> int:
    """Returns the length that a message's prefix tells."""
    return int.from_bytes(prefix[1:PREFIX_BYTES], "big")


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise _Fatal(frames.PROTOCOL_ERROR, "padding")
    return payload[1 : len(payload) - payload[0]]


# ``:status`` 200 and the content type, the same in every reply that has a message.
_BLOCK = b"\x88\x0f\x10\x10application/grpc"
_ANSWER_HEAD = len(_BLOCK).to_bytes(3, "big") + bytes((HEADERS, END_HEADERS))
_FIRST_ANSWER_HEAD = (len(_BLOCK) + 1).to_bytes(3, "big") + bytes((HEADERS, END_HEADERS))
_ANSWER_BLOCK = _BLOCK
