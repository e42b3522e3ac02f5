"""The frames of HTTP/2 (RFC 9113 section 6): numbers, and bytes for those that we send."""

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9

# Flags; ACK and END_STREAM share a bit.
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL = 5, 6, 7, 8
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 9, 11

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS = 1, 2, 3
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 4, 5, 6

HEAD_BYTES = 9
WINDOW_DEFAULT = 65_535
WINDOW_MAX = 2**31 - 1
STREAM_ID_MAX = 2**31 - 1

# Length (1 and 2 bytes), type, flags, stream.
read_head = struct.Struct(">BHBBI").unpack_from
read_number = struct.Struct(">I").unpack_from
read_setting = struct.Struct(">HI").iter_unpack


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Returns one frame."""
    return b"%b%c%c%b%b" % (
        len(payload).to_bytes(3, "big"),
        kind,
        flags,
        stream_id.to_bytes(4, "big"),
        payload,
    )


def settings(values: dict[int, int]) -> bytes:
    """Returns a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in values.items()))


def reset(stream_id: int, code: int) -> bytes:
    """Returns a RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, code.to_bytes(4, "big"))


def window_update(stream_id: int, bytes_more: int) -> bytes:
    """Returns a WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream_id, bytes_more.to_bytes(4, "big"))


def goaway(last_stream_id: int, code: int, text: bytes = b"") -> bytes:
    """Returns a GOAWAY frame."""
    return frame(GOAWAY, 0, 0, struct.pack(">II", last_stream_id, code) + text)


SETTINGS_ACK = frame(SETTINGS, ACK, 0)
