"""Every bound of the decision front, with its reason. Each has a test at it and above it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection, and all together, may hold or cost.

    Attributes:
        streams_max: Calls at once on a connection; the next is answered REFUSED_STREAM, which a
            client may repeat.
        frame_bytes_max: Payload of a frame: the least that HTTP/2 allows us to offer.
        header_block_bytes_max: An encoded header block, CONTINUATION included. Far more than the
            metadata that is allowed; above it the connection ends, for a block must be decoded.
        header_bytes_max: A decoded header list, 32 bytes for each pair added. Wider than the
            hall's limit of metadata, which has a documented reason.
        message_bytes_max: A request message, refused at its five-byte prefix. Wider than the
            hall's own limit for the same reason.
        stream_window_bytes: What a caller may send of a body before we have seen any of it.
        connection_window_bytes: The same for all streams of a connection.
        unfinished_bytes_max: Bodies that have not ended, of one connection.
        unfinished_bytes_max_in_all: The same for all connections.
        unread_bytes_max: Replies that a connection has not taken; above it the connection ends.
        connections_max: Connections at once; more are closed at once.
        calls_max: Calls that wait or are worked on, of all connections; of more, the oldest are
            refused. So many take about 50 ms: who waits longer has often given up.
        together_max: Calls that the hall is given at once, the newest first. They take a few
            milliseconds, in which nobody reads what comes.
        budget: What a connection may spend at once on frames that do no work: resets, pings,
            settings, priorities, empty and tiny frames, one unit each.
        budget_per_second: How fast that comes back. An honest client with deadlines of 1 ms resets
            a thousand calls a second; a unit costs us about 3 us.
        tiny_bytes: A DATA frame below this that does not end its body costs a unit.
        handshake_seconds_max: From the connection to the peer's first SETTINGS.
        body_seconds_max: From the head of a call to the end of its body.
        unread_seconds_max: A reply that the peer does not take for so long ends the connection.
        keepalive_seconds: A connection this long without a byte from the peer is asked with a PING.
        keepalive_timeout_seconds: How long it may take to answer that.
        age_grace_seconds: After its age, calls of a connection have this long to end.
    """

    streams_max: int = 128
    frame_bytes_max: int = 16_384
    header_block_bytes_max: int = 32 * 1024
    header_bytes_max: int = 16 * 1024
    message_bytes_max: int = 5 * 1024 * 1024
    stream_window_bytes: int = 1024 * 1024
    connection_window_bytes: int = 8 * 1024 * 1024
    unfinished_bytes_max: int = 8 * 1024 * 1024
    unfinished_bytes_max_in_all: int = 64 * 1024 * 1024
    unread_bytes_max: int = 8 * 1024 * 1024
    connections_max: int = 10_000
    calls_max: int = 1_024
    together_max: int = 256
    budget: float = 4_000.0
    budget_per_second: float = 2_000.0
    tiny_bytes: int = 256
    handshake_seconds_max: float = 10.0
    body_seconds_max: float = 5.0
    unread_seconds_max: float = 30.0
    keepalive_seconds: float = 60.0
    keepalive_timeout_seconds: float = 20.0
    age_grace_seconds: float = 60.0
