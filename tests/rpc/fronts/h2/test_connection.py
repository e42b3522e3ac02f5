"""Every rule of RFC 9113 that a server meets, and every limit of a connection at it and above.

In tables where they are many: what is sent after the settings are agreed, and what comes back.
"""

from dataclasses import replace
from typing import Any

import pytest
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    RemoteSettingsChanged,
    ResponseReceived,
    SettingsAcknowledged,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.settings import SettingCodes

from authz_service.rpc.fronts.h2 import connection
from authz_service.rpc.fronts.h2.connection import Bodies, Connection
from authz_service.rpc.fronts.h2.headers import Tables
from authz_service.rpc.fronts.h2.limits import Limits
from tests.rpc.fronts.h2.peer import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HAS_PRIORITY,
    HEAD,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    TRAILERS,
    WINDOW_SIZE,
    WINDOW_UPDATE,
    Frame,
    Library,
    Raw,
    block,
    call,
    changed,
    data,
    frame,
    frames_of,
    headers,
    number,
    settings,
)

CODES = ErrorCodes
LIMITS = Limits()
OPEN = headers(1)
HALF = headers(1, END_HEADERS | END_STREAM)
RESET = frame(RST_STREAM, 0, 1, number(8))
WHOLE = call(1, b"whole")


def ends(got: list[Frame]) -> list[tuple[str, int, int]]:
    """What was ended among the frames that we sent: ("goaway", last stream, code) and resets."""
    found = []
    for each in got:
        if each.kind == GOAWAY:
            last, code = each.payload[:4], each.payload[4:8]
            found.append(("goaway", int.from_bytes(last, "big"), int.from_bytes(code, "big")))
        if each.kind == RST_STREAM:
            found.append(("reset", each.stream, int.from_bytes(each.payload, "big")))
    return found


def block_of(got: list[Frame]) -> list[tuple[int, int]]:
    """Kinds and streams only."""
    return [(each.kind, each.stream) for each in got]


# The beginning


def test_our_settings_come_first_and_are_those_of_the_limits() -> None:
    made = Library()
    (changed_settings,) = made.heard(RemoteSettingsChanged)
    told = {code: each.new_value for code, each in changed_settings.changed_settings.items()}
    assert told == {
        SettingCodes.HEADER_TABLE_SIZE: 0,
        SettingCodes.MAX_CONCURRENT_STREAMS: 128,
        SettingCodes.INITIAL_WINDOW_SIZE: 1024 * 1024,
        SettingCodes.MAX_FRAME_SIZE: 16_384,
        SettingCodes.MAX_HEADER_LIST_SIZE: 16 * 1024,
    }
    assert made.theirs.outbound_flow_control_window == LIMITS.connection_window_bytes
    assert made.ours.is_open
    assert made.ours.is_agreed
    assert len(made.heard(SettingsAcknowledged)) == 1


def test_nothing_but_the_preface_may_begin_a_connection() -> None:
    for first in (b"GET / HTTP/1.1\r\n", PREFACE[:-1] + b"x", b"\0" * 24, settings(), b"\x16\x03"):
        raw = Raw(first=b"")
        assert ends(raw.send(first)) == [("goaway", 0, CODES.PROTOCOL_ERROR)], first
        assert raw.ours.ended == "no preface"


def test_a_preface_may_come_byte_by_byte() -> None:
    raw = Raw(first=b"")
    for byte in PREFACE + settings():
        raw.send(bytes((byte,)))
    assert raw.ours.is_open
    assert not raw.ours.is_agreed
    assert raw.still_answers()


@pytest.mark.parametrize(
    "first",
    [
        frame(PING, payload=b"x" * 8), frame(WINDOW_UPDATE, payload=number(1)), OPEN, WHOLE,
        data(1, b""), frame(GOAWAY, payload=b"\0" * 8), frame(0x77),
        frame(PRIORITY, 0, 1, b"x" * 5),
    ],
)  # fmt: skip
def test_settings_must_come_first(first: bytes) -> None:
    raw = Raw(first=PREFACE)
    assert ends(raw.send(first)) == [("goaway", 0, CODES.PROTOCOL_ERROR)]
    assert raw.taken == []


# What ends a connection

BROKEN: dict[str, tuple[bytes, ErrorCodes]] = {
    # Frames in general (section 4).
    "frame above the size we offer": (frame(0x77, 0, 0, b"x" * 16_385), CODES.FRAME_SIZE_ERROR),
    # In each of the three bytes of a length; what follows it must not be taken for more frames.
    **{
        f"frame of {size:,} bytes": (
            number(size, 3) + b"\0\0\0\0\0\1" + bytes(300),
            CODES.FRAME_SIZE_ERROR,
        )
        for size in (0x4001, 0x8000, 0x010000, 0x010001, 0x010100, 0x100000, 0xFF0000, 0xFFFFFF)
    },
    "data above the size we offer": (
        OPEN + frame(DATA, 0, 1, b"x" * 16_385),
        CODES.FRAME_SIZE_ERROR,
    ),
    # Header blocks (sections 4.3, 6.2 and 6.10).
    "block that is none": (headers(1, 4, b"\xbe"), CODES.COMPRESSION_ERROR),
    "block that ends early": (headers(1, 4, b"\0\5abc"), CODES.COMPRESSION_ERROR),
    "larger table": (headers(1, 4, b"\x3f\xe1\x1f" + block()), CODES.COMPRESSION_ERROR),
    "table update within a block": (headers(1, 4, block() + b"\x20"), CODES.COMPRESSION_ERROR),
    "trailers that are no block": (OPEN + headers(1, 5, b"\xff"), CODES.COMPRESSION_ERROR),
    "block on the connection": (headers(0), CODES.PROTOCOL_ERROR),
    "stream of a server": (headers(2), CODES.PROTOCOL_ERROR),
    "data between the parts of a block": (
        headers(1, 0, block()[:5]) + data(1, b""),
        CODES.PROTOCOL_ERROR,
    ),
    "ping between the parts of a block": (
        headers(1, 0, block()[:5]) + frame(PING, payload=b"x" * 8),
        CODES.PROTOCOL_ERROR,
    ),
    "unknown frame between the parts of a block": (
        headers(1, 0, block()[:5]) + frame(0x77),
        CODES.PROTOCOL_ERROR,
    ),
    "another head between the parts of a block": (
        headers(1, 0, block()[:5]) + headers(3),
        CODES.PROTOCOL_ERROR,
    ),
    "continuation on another stream": (
        headers(1, 0, block()[:5]) + frame(CONTINUATION, END_HEADERS, 3, block()[5:]),
        CODES.PROTOCOL_ERROR,
    ),
    "continuation of nothing": (frame(CONTINUATION, END_HEADERS, 1, b""), CODES.PROTOCOL_ERROR),
    "continuation of a whole block": (
        OPEN + frame(CONTINUATION, END_HEADERS, 1, b""),
        CODES.PROTOCOL_ERROR,
    ),
    "continuation on the connection": (frame(CONTINUATION, END_HEADERS), CODES.PROTOCOL_ERROR),
    "priority of a head is cut off": (
        headers(1, END_HEADERS | HAS_PRIORITY, b"\0" * 4),
        CODES.FRAME_SIZE_ERROR,
    ),
    "head that depends on itself": (
        headers(1, END_HEADERS | HAS_PRIORITY, number(1) + b"\0" + block()),
        CODES.PROTOCOL_ERROR,
    ),
    # Padding (sections 6.1 and 6.2).
    "padding as long as the frame": (
        OPEN + frame(DATA, PADDED, 1, b"\3\0\0"),
        CODES.PROTOCOL_ERROR,
    ),
    "padding of nothing": (OPEN + frame(DATA, PADDED, 1, b""), CODES.PROTOCOL_ERROR),
    "padding as long as the head": (
        headers(1, END_HEADERS | PADDED, b"\1"),
        CODES.PROTOCOL_ERROR,
    ),
    # States of streams (section 5.1).
    "data on the connection": (data(0, b""), CODES.PROTOCOL_ERROR),
    "data on an idle stream": (OPEN + data(3, b""), CODES.PROTOCOL_ERROR),
    "data on a stream of ours": (OPEN + data(2, b""), CODES.PROTOCOL_ERROR),
    "data on a stream that was skipped": (headers(3) + data(1, b""), CODES.STREAM_CLOSED),
    "reset of the connection": (frame(RST_STREAM, 0, 0, number(8)), CODES.PROTOCOL_ERROR),
    "reset of an idle stream": (OPEN + frame(RST_STREAM, 0, 3, number(8)), CODES.PROTOCOL_ERROR),
    "reset of a stream of ours": (
        headers(3) + frame(RST_STREAM, 0, 2, number(8)),
        CODES.PROTOCOL_ERROR,
    ),
    "window of an idle stream": (
        OPEN + frame(WINDOW_UPDATE, 0, 3, number(1)),
        CODES.PROTOCOL_ERROR,
    ),
    "window of a stream of ours": (
        headers(3) + frame(WINDOW_UPDATE, 0, 2, number(1)),
        CODES.PROTOCOL_ERROR,
    ),
    "head on a stream that was reset": (OPEN + RESET + OPEN, CODES.STREAM_CLOSED),
    "data on a stream that was reset": (OPEN + RESET + data(1, b""), CODES.STREAM_CLOSED),
    "head below an earlier one": (headers(3) + headers(1), CODES.STREAM_CLOSED),
    # Sizes of frames (section 6).
    "reset of three bytes": (OPEN + frame(RST_STREAM, 0, 1, b"\0" * 3), CODES.FRAME_SIZE_ERROR),
    "reset of five bytes": (OPEN + frame(RST_STREAM, 0, 1, b"\0" * 5), CODES.FRAME_SIZE_ERROR),
    "window of three bytes": (frame(WINDOW_UPDATE, payload=b"\0\0\1"), CODES.FRAME_SIZE_ERROR),
    "window of five bytes": (frame(WINDOW_UPDATE, payload=b"\0" * 5), CODES.FRAME_SIZE_ERROR),
    "settings of five bytes": (frame(SETTINGS, payload=b"\0" * 5), CODES.FRAME_SIZE_ERROR),
    "settings agreed with content": (
        frame(SETTINGS, ACK, 0, number(1, 2) + number(1)),
        CODES.FRAME_SIZE_ERROR,
    ),
    "ping of seven bytes": (frame(PING, payload=b"x" * 7), CODES.FRAME_SIZE_ERROR),
    "ping of nine bytes": (frame(PING, payload=b"x" * 9), CODES.FRAME_SIZE_ERROR),
    "goaway of seven bytes": (frame(GOAWAY, payload=b"\0" * 7), CODES.FRAME_SIZE_ERROR),
    "priority of four bytes before the head": (
        frame(PRIORITY, 0, 1, b"\0" * 4),
        CODES.FRAME_SIZE_ERROR,
    ),
    # Where frames belong.
    "settings of a stream": (frame(SETTINGS, 0, 1), CODES.PROTOCOL_ERROR),
    "agreed settings of a stream": (frame(SETTINGS, ACK, 1), CODES.PROTOCOL_ERROR),
    "ping of a stream": (frame(PING, 0, 1, b"x" * 8), CODES.PROTOCOL_ERROR),
    "goaway of a stream": (frame(GOAWAY, 0, 1, b"\0" * 8), CODES.PROTOCOL_ERROR),
    "priority of the connection": (frame(PRIORITY, payload=b"\0" * 5), CODES.PROTOCOL_ERROR),
    "priority of a stream after itself": (
        frame(PRIORITY, 0, 3, number(3) + b"\0"),
        CODES.PROTOCOL_ERROR,
    ),
    "push": (
        OPEN + frame(PUSH_PROMISE, END_HEADERS, 1, number(2) + block()),
        CODES.PROTOCOL_ERROR,
    ),
    # Values of settings (section 6.5.2).
    "push neither on nor off": (settings((2, 2)), CODES.PROTOCOL_ERROR),
    "window above 31 bits": (settings((4, 2**31)), CODES.FLOW_CONTROL_ERROR),
    "frames below the least": (settings((5, 16_383)), CODES.PROTOCOL_ERROR),
    "frames above the most": (settings((5, 2**24)), CODES.PROTOCOL_ERROR),
    # Windows (section 6.9).
    "window opened by nothing": (frame(WINDOW_UPDATE, payload=number(0)), CODES.PROTOCOL_ERROR),
    "window opened too far": (
        frame(WINDOW_UPDATE, payload=number(2**31 - 65_535)),
        CODES.FLOW_CONTROL_ERROR,
    ),
    "windows of streams opened too far by a setting": (
        OPEN + frame(WINDOW_UPDATE, 0, 1, number(1)) + settings((4, 2**31 - 1)),
        CODES.FLOW_CONTROL_ERROR,
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_breaks_the_protocol_ends_the_connection(what: str) -> None:
    sent, code = BROKEN[what]
    raw = Raw()
    got = raw.send(sent)
    assert [(kind, told) for kind, _, told in ends(got)] == [("goaway", code)]
    assert raw.ours.ended
    assert got[-1].kind == GOAWAY
    # Nothing more is read, answered or held.
    assert raw.send(frame(PING, payload=b"x" * 8), call(101)) == []
    assert (raw.ours.streams, raw.bodies.size) == ({}, 0)


def test_the_last_stream_that_was_seen_is_named_at_the_end() -> None:
    raw = Raw()
    raw.send(call(1), call(5))
    assert ends(raw.send(frame(PUSH_PROMISE, 4, 5, number(2)))) == [
        ("goaway", 5, CODES.PROTOCOL_ERROR)
    ]


# What ends a stream, and nothing else

SMALL_WINDOW = replace(LIMITS, stream_window_bytes=1_000)
SPOILED: dict[str, tuple[bytes, ErrorCodes]] = {
    # States (section 5.1).
    "data after the end": (HALF + data(1, b""), CODES.STREAM_CLOSED),
    "head after the end": (HALF + HALF, CODES.STREAM_CLOSED),
    # Trailers (section 8.1).
    "trailers that do not end": (OPEN + headers(1), CODES.PROTOCOL_ERROR),
    "trailers with a pseudo header": (
        OPEN + headers(1, 5, block([(b":path", b"/a")])),
        CODES.PROTOCOL_ERROR,
    ),
    "trailers with a field of a connection": (
        OPEN + headers(1, 5, block([(b"connection", b"close")])),
        CODES.PROTOCOL_ERROR,
    ),
    "trailers with a field in upper case": (
        OPEN + headers(1, 5, block([(b"Upper", b"a")])),
        CODES.PROTOCOL_ERROR,
    ),
    # Sizes (sections 6.3 and 6.9).
    "priority of four bytes": (OPEN + frame(PRIORITY, 0, 1, b"\0" * 4), CODES.FRAME_SIZE_ERROR),
    "priority of an open stream after itself": (
        OPEN + frame(PRIORITY, 0, 1, number(1) + b"\0"),
        CODES.PROTOCOL_ERROR,
    ),
    "window opened by nothing": (
        OPEN + frame(WINDOW_UPDATE, 0, 1, number(0)),
        CODES.PROTOCOL_ERROR,
    ),
    "window opened too far": (
        OPEN + frame(WINDOW_UPDATE, 0, 1, number(2**31 - 65_535)),
        CODES.FLOW_CONTROL_ERROR,
    ),
    # Length of content (section 8.1.1).
    "content of more than its length": (
        headers(1, 4, block(HEAD, (b"content-length", b"6"))) + data(1, b"ab"),
        CODES.PROTOCOL_ERROR,
    ),
    "content of less than its length": (
        headers(1, 4, block(HEAD, (b"content-length", b"8"))) + data(1, b"ab"),
        CODES.PROTOCOL_ERROR,
    ),
    "content of less than its length by trailers": (
        headers(1, 4, block(HEAD, (b"content-length", b"8")))
        + data(1, b"ab", 0)
        + headers(1, 5, block([(b"a", b"b")])),
        CODES.PROTOCOL_ERROR,
    ),
    "no content though it has a length": (
        headers(1, 5, block(HEAD, (b"content-length", b"1"))),
        CODES.PROTOCOL_ERROR,
    ),
    "two lengths": (
        headers(1, 4, block(HEAD, (b"content-length", b"0"), (b"content-length", b"0"))),
        CODES.PROTOCOL_ERROR,
    ),
    "length that is no number": (
        headers(1, 4, block(HEAD, (b"content-length", b"-1"))),
        CODES.PROTOCOL_ERROR,
    ),
    # Heads (sections 8.2 and 8.3).
    **{
        f"head without {name}": (
            headers(1, 4, block(changed(name.encode(), None))),
            CODES.PROTOCOL_ERROR,
        )
        for name in (":method", ":scheme", ":path")
    },
    **{
        f"head with {name} twice": (
            headers(1, 4, block([(name.encode(), b"/a"), *HEAD])),
            CODES.PROTOCOL_ERROR,
        )
        for name in (":method", ":scheme", ":path", ":authority")
    },
    **{
        f"head with {name!r}: {value!r}": (
            headers(1, 4, block(HEAD, (name, value))),
            CODES.PROTOCOL_ERROR,
        )
        for name, value in [
            (b"connection", b"close"), (b"keep-alive", b"1"), (b"proxy-connection", b"a"),
            (b"transfer-encoding", b"chunked"), (b"upgrade", b"h2c"), (b"te", b"gzip"),
            (b"Upper", b"a"), (b"white space", b"a"), (b"nul\0", b"a"), (b"colon:", b"a"),
            (b"\xff", b"a"), (b"", b"a"), (b"a", b"nul\0"), (b"a", b"line\n"), (b"a", b"return\r"),
            (b":authority", b"late"), (b":status", b"200"), (b":unknown", b"a"), (b":", b"a"),
        ]
    },
    "head with an empty path": (
        headers(1, 4, block(changed(b":path", b""))),
        CODES.PROTOCOL_ERROR,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILED)
def test_what_breaks_a_rule_of_streams_ends_that_stream_alone(what: str) -> None:
    sent, code = SPOILED[what]
    raw = Raw()
    got = raw.send(sent)
    assert ends(got) == [("reset", 1, code)]
    assert raw.ours.ended == ""
    assert (raw.ours.streams, raw.bodies.size) == ({}, 0)
    # Whoever was asked meanwhile finds it gone.
    for stream in raw.taken:
        raw.ours.answer(stream, b"late", TRAILERS)
        raw.ours.refuse(stream, TRAILERS)
    assert raw.got() == []
    # What it is told to be wrong about is not asked for an answer.
    if "content" in what or "head" in what.split():
        assert [stream.id for stream in raw.taken] == [1] * (what == "head after the end")
    # What was on its way for it is let pass.
    if "priority" not in what:
        assert ends(raw.send(data(1, b"late"), headers(1, 5))) == []
    assert raw.still_answers()


# What is fine

FINE: dict[str, bytes] = {
    "a reserved bit": frame(HEADERS, 4, 2**31 + 1, block()) + frame(DATA, 1, 2**31 + 1, bytes(5)),
    "an unknown frame": frame(0x77, 0xFF, 5, b"x" * 100),
    "an unknown frame as large as it may be": frame(0x77, 0, 0, b"x" * 16_384),
    "an unknown setting": settings((0x7777, 2**32 - 1)),
    "settings at their ends": settings(
        (1, 2**32 - 1), (2, 0), (2, 1), (4, 2**31 - 1), (5, 2**24 - 1), (5, 2**14)
    ),
    "empty settings": settings(),
    "settings agreed again": frame(SETTINGS, ACK),
    "a window opened to its end": frame(WINDOW_UPDATE, payload=number(2**31 - 1 - 65_535)),
    "priority of an idle stream": frame(PRIORITY, 0, 7, number(5) + b"\0"),
    "priority of a closed stream": call(1) + RESET + frame(PRIORITY, 0, 1, number(5) + b"\0"),
    "a goaway": frame(GOAWAY, payload=b"\0" * 8 + b"going"),
    "a ping that we did not send": frame(PING, ACK, 0, b"x" * 8),
    "a reset of a closed stream": OPEN + RESET + RESET,
    "a window of a closed stream": OPEN + RESET + frame(WINDOW_UPDATE, 0, 1, number(1)),
    "flags that mean nothing": frame(PING, 0xFE, 0, b"x" * 8) + frame(SETTINGS, 0xFE),
    "ids that were skipped": call(1) + call(501),
    "data that is empty": OPEN + frame(DATA, 0, 1) + data(1, b""),
}  # fmt: skip


@pytest.mark.parametrize("what", FINE)
def test_what_is_odd_and_allowed_changes_nothing(what: str) -> None:
    raw = Raw()
    assert ends(raw.send(FINE[what])) == []
    assert raw.still_answers()


WAYS: dict[str, bytes] = {
    "in one frame each": headers(1, 4) + data(1, b"abc"),
    "with padding": headers(1, END_HEADERS | PADDED, b"\7" + block() + b"\0" * 7)
    + frame(DATA, END_STREAM | PADDED, 1, b"\3\0\0\0\0\3abc\0\0\0"),
    "with much padding": headers(1, END_HEADERS | PADDED, b"\xff" + block() + b"\0" * 255)
    + frame(DATA, END_STREAM | PADDED, 1, b"\xff\0\0\0\0\3abc" + b"\0" * 255),
    "with a priority": headers(1, END_HEADERS | HAS_PRIORITY, number(2**31 + 3) + b"\7" + block())
    + data(1, b"abc"),
    "with padding and a priority": headers(
        1, END_HEADERS | PADDED | HAS_PRIORITY, b"\2" + number(0) + b"\7" + block() + b"\0\0"
    )
    + data(1, b"abc"),
    "with continuations": headers(1, 0, block()[:7])
    + frame(CONTINUATION, 0, 1, block()[7:9])
    + frame(CONTINUATION, 0, 1, b"")
    + frame(CONTINUATION, END_HEADERS, 1, block()[9:])
    + data(1, b"abc"),
    "with all of its head in a continuation": headers(1, 0, b"")
    + frame(CONTINUATION, END_HEADERS, 1, block())
    + data(1, b"abc"),
    "with trailers": headers(1) + data(1, b"abc", 0) + headers(1, 5, block([(b"late", b"b")])),
    "with trailers in two parts": headers(1)
    + data(1, b"abc", 0)
    + headers(1, 1, block([(b"late", b"b")])[:3])
    + frame(CONTINUATION, END_HEADERS, 1, block([(b"late", b"b")])[3:]),
    "with an end of its own": headers(1) + data(1, b"abc", 0) + frame(DATA, END_STREAM, 1),
    "with a body in many parts": headers(1)
    + b"".join(frame(DATA, 0, 1, bytes((byte,))) for byte in b"\0\0\0\0\3abc")
    + frame(DATA, END_STREAM, 1),
    "with a body whose last part ends it": headers(1)
    + frame(DATA, 0, 1, b"\0\0\0\0\3")
    + frame(DATA, END_STREAM, 1, b"abc"),
    "with its length": headers(1, 4, block(HEAD, (b"content-length", b"8"))) + data(1, b"abc"),
    "with its length and padding": headers(1, 4, block(HEAD, (b"content-length", b"8")))
    + frame(DATA, END_STREAM | PADDED, 1, b"\1\0\0\0\0\3abc\0"),
    "with its length and trailers": headers(1, 4, block(HEAD, (b"content-length", b"8")))
    + data(1, b"abc", 0)
    + headers(1, 5, block([(b"late", b"b")])),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_call_may_come_in_many_ways(way: str) -> None:
    raw = Raw()
    assert ends(raw.send(WAYS[way])) == []
    (stream,) = raw.taken
    # In one piece, whatever it came in.
    assert stream.parts == [b"\0\0\0\0\3abc"]
    assert (stream.is_complete, stream.head.path) == (True, "/test.v1.WidgetService/Check")
    assert raw.bodies.size == 0
    got = raw.answer(b"yes")
    assert block_of(got) == [(HEADERS, 1), (DATA, 1), (HEADERS, 1)]
    assert raw.ours.streams == {}


@pytest.mark.parametrize("way", WAYS)
def test_a_call_may_come_byte_by_byte(way: str) -> None:
    raw = Raw()
    for byte in WAYS[way]:
        assert ends(raw.send(bytes((byte,)))) == []
    assert raw.bodies_taken() == [b"\0\0\0\0\3abc"]


def test_a_call_without_content_may_have_a_length_of_nothing() -> None:
    raw = Raw()
    raw.send(headers(1, 5, block(HEAD, (b"content-length", b"0"))))
    assert raw.bodies_taken() == [b""]


def test_trailers_of_a_stream_that_was_reset_are_let_pass() -> None:
    raw = Raw(replace(LIMITS, streams_max=1))
    raw.send(headers(1))
    assert ends(raw.send(headers(3))) == [("reset", 3, CODES.REFUSED_STREAM)]
    assert raw.send(data(3, b"abc", 0), headers(3, 5, block([(b"a", b"b")]))) == []


# Replies


def test_an_answer_is_what_a_client_takes_for_one() -> None:
    made = Library()
    stream = made.call(b"question")
    assert made.taken[0].parts == [b"\0\0\0\0\x08question"]
    made.answer(b"answer")
    (response,) = made.heard(ResponseReceived)
    assert response.headers == [(b":status", b"200"), (b"content-type", b"application/grpc")]
    assert made.body_of(stream) == b"\0\0\0\0\6answer"
    (trailers,) = made.heard(TrailersReceived)
    assert trailers.headers == [(b"grpc-status", b"0")]
    assert [event.stream_id for event in made.heard(StreamEnded)] == [stream]
    assert made.heard(StreamReset) == []


def test_a_refusal_is_one_block() -> None:
    made = Library()
    stream = made.call()
    made.ours.refuse(made.taken[0], b"\x88" + TRAILERS)
    made.exchange()
    (response,) = made.heard(ResponseReceived)
    assert response.headers == [(b":status", b"200"), (b"grpc-status", b"0")]
    assert [event.stream_id for event in made.heard(StreamEnded)] == [stream]


def test_calls_are_answered_in_any_order() -> None:
    made = Library()
    streams = [made.call(b"%d" % place) for place in range(100)]
    for place in (99, 0, *range(98, 0, -1)):
        made.answer(b"to %d" % place, of=place)
    for place, stream in enumerate(streams):
        assert made.body_of(stream)[5:] == b"to %d" % place


def test_who_is_answered_early_need_not_send_the_rest() -> None:
    raw = Raw()
    raw.send(headers(1), data(1, b"x" * 100, 0))
    stream = raw.ours.streams[1]
    raw.ours.refuse(stream, TRAILERS)
    got = raw.got()
    assert block_of(got) == [(HEADERS, 1), (RST_STREAM, 1)]
    assert ends(got) == [("reset", 1, CODES.NO_ERROR)]
    assert raw.bodies.size == 0
    # What was on its way comes, and is let pass.
    assert ends(raw.send(data(1, b"rest"))) == []
    assert raw.still_answers()


@pytest.mark.parametrize("size", [0, 4_095])
def test_a_client_that_makes_its_table_smaller_is_told_so_once(size: int) -> None:
    """RFC 7541 section 4.2: who reduces a table waits for the word of the one that fills it."""
    for is_answer in (True, False):
        made = Library(header_table_size=size)
        for _ in range(2):
            stream = made.call()
            if is_answer:
                made.answer(b"yes")
            else:
                made.ours.refuse(made.taken[-1], b"\x88" + TRAILERS)
                made.exchange()
            assert made.heard(StreamEnded)[-1].stream_id == stream
    raw = Raw()
    raw.send(settings((1, size)), settings((1, size)), call(1), call(3), settings((1, 0)), call(5))
    firsts = [raw.answer(of=place)[0].payload[:1] for place in range(3)]
    assert firsts == [b"\x20", b"\x88", b"\x88"]


def test_a_client_whose_table_is_as_large_as_ever_is_told_nothing() -> None:
    raw = Raw(first=PREFACE + settings((1, 4_096)))
    raw.send(call(1))
    assert raw.answer()[0].payload[:1] == b"\x88"


def test_a_large_answer_to_a_client_with_a_small_table_says_so_too() -> None:
    made = Library(header_table_size=0, initial_window_size=10)
    stream = made.call()
    made.answer(b"x" * 100)
    assert len(made.body_of(stream)) == 10


# Windows, from us


def test_a_reply_goes_as_far_as_the_windows_are_open() -> None:
    made = Library(initial_window_size=10)
    stream = made.call()
    made.answer(b"x" * 100)
    assert len(made.body_of(stream)) == 10
    assert made.ours.unread == 95
    made.theirs.increment_flow_control_window(40, stream)
    made.exchange()
    assert len(made.body_of(stream)) == 50
    assert made.heard(StreamEnded) == []
    made.theirs.increment_flow_control_window(55, stream)
    made.exchange()
    assert made.body_of(stream) == b"\0\0\0\0\x64" + b"x" * 100
    assert made.ours.unread == 0
    assert len(made.heard(StreamEnded)) == 1


@pytest.mark.parametrize(("window", "comes"), [(8, 8), (7, 7)])
def test_a_window_at_the_size_of_a_reply_lets_it_go_and_one_below_holds_it(
    window: int, comes: int
) -> None:
    made = Library(initial_window_size=window)
    stream = made.call()
    made.answer(b"abc")
    assert len(made.body_of(stream)) == comes
    assert len(made.heard(StreamEnded)) == (comes == 8)


def test_the_window_of_the_connection_is_shared() -> None:
    raw = Raw(first=PREFACE + settings((WINDOW_SIZE, 2**20)) + frame(SETTINGS, ACK))
    raw.send(*[call(stream) for stream in (1, 3, 5)])
    sizes = []
    for place in range(3):
        got = raw.answer(b"x" * 30_000, of=place)
        sizes.append(sum(len(each.payload) for each in got if each.kind == DATA))
    assert sizes == [30_005, 30_005, 65_535 - 2 * 30_005]
    assert raw.ours.window == 0
    # A window of the stream alone does not help.
    assert raw.send(frame(WINDOW_UPDATE, 0, 5, number(100_000))) == []
    got = raw.send(frame(WINDOW_UPDATE, payload=number(3 * 30_005 - 65_535)))
    assert block_of(got) == [(DATA, 5), (DATA, 5), (HEADERS, 5)]
    assert raw.ours.streams == {}


def test_frames_are_no_larger_than_the_peer_allows() -> None:
    for size in (16_384, 20_000):
        raw = Raw(first=PREFACE + settings((WINDOW_SIZE, 2**20), (5, size)) + frame(SETTINGS, ACK))
        raw.send(call(1))
        got = raw.answer(b"x" * 50_000)
        assert [len(each.payload) for each in got if each.kind == DATA] == [
            *[size] * (50_005 // size),
            50_005 % size,
        ]


@pytest.mark.parametrize(("message", "parts"), [(16_379, 1), (16_380, 2)])
def test_a_reply_of_one_frame_is_not_split(message: int, parts: int) -> None:
    raw = Raw()
    raw.send(call(1))
    got = raw.answer(b"x" * message)
    assert len([each for each in got if each.kind == DATA]) == parts


def test_a_late_setting_moves_the_windows_of_open_streams() -> None:
    raw = Raw(first=PREFACE + settings((WINDOW_SIZE, 100)) + frame(SETTINGS, ACK))
    raw.send(call(1), call(3))
    got = raw.answer(b"x" * 195, of=0)
    assert sum(len(each.payload) for each in got if each.kind == DATA) == 100
    # Smaller: what was sent counts, and the window is below nothing.
    assert ends(raw.send(settings((WINDOW_SIZE, 50)))) == []
    assert [raw.ours.streams[id].window for id in (1, 3)] == [-50, 50]
    assert raw.send(frame(WINDOW_UPDATE, 0, 1, number(50))) == []
    assert block_of(raw.send(frame(WINDOW_UPDATE, 0, 1, number(1)))) == [(DATA, 1)]
    # Larger: what waits goes at once.
    got = raw.send(settings((WINDOW_SIZE, 149)))
    assert block_of(got) == [(SETTINGS, 0), (DATA, 1), (HEADERS, 1)]
    assert [len(each.payload) for each in got if each.kind == DATA] == [99]
    assert raw.ours.streams[3].window == 149


def test_settings_are_taken_in_order_and_new_streams_have_the_last() -> None:
    raw = Raw()
    raw.send(settings((WINDOW_SIZE, 7), (WINDOW_SIZE, 9)), call(1))
    assert raw.ours.streams[1].window == 9


def test_a_stream_that_is_reset_frees_what_waited() -> None:
    raw = Raw(first=PREFACE + settings((WINDOW_SIZE, 1)) + frame(SETTINGS, ACK))
    raw.send(call(1))
    raw.answer(b"x" * 100)
    assert raw.ours.unread == 104
    raw.send(RESET)
    assert raw.ours.unread == 0
    assert [stream.id for stream in raw.ours.gone] == [1]
    assert raw.send(frame(WINDOW_UPDATE, payload=number(1_000))) == []
    raw.ours.answer(raw.taken[0], b"late", TRAILERS)
    assert raw.got() == []


# Windows, to us


def test_bodies_far_above_the_windows_pass_because_they_are_opened_again() -> None:
    made = Library()
    body = b"\0" + number(5_000_000) + bytes(5_000_000)
    for _ in range(2):
        made.upload(made.open(), body)
    assert [stream.parts for stream in made.taken] == [[body], [body]]
    assert made.bodies.size == 0


def test_padding_counts_for_the_windows_and_is_given_back() -> None:
    raw = Raw(replace(LIMITS, connection_window_bytes=70_000, stream_window_bytes=2_000))
    raw.send(headers(1))
    padded = frame(DATA, PADDED, 1, b"\xff" + bytes(499))
    assert raw.send(padded) == []
    assert raw.send(padded) == [Frame(WINDOW_UPDATE, 0, 1, number(1_000))]


@pytest.mark.parametrize(("more", "is_over"), [(0, False), (1, True)])
def test_who_overruns_the_window_of_a_stream_loses_that_stream(more: int, is_over: bool) -> None:
    raw = Raw(replace(LIMITS, stream_window_bytes=1_000))
    raw.send(headers(1), frame(DATA, 0, 1, b"\0" + number(5_000) + bytes(494)))
    got = raw.send(frame(DATA, 0, 1, bytes(501 + more)))
    assert (("reset", 1, CODES.FLOW_CONTROL_ERROR) in ends(got)) is is_over
    assert raw.ours.ended == ""
    assert raw.bodies.size == (0 if is_over else 1_000)


@pytest.mark.parametrize(("more", "is_over"), [(0, False), (1, True)])
def test_who_overruns_the_window_of_the_connection_loses_it(more: int, is_over: bool) -> None:
    # Frames that are nearly as large: it is opened again when half of it is used.
    raw = Raw(replace(LIMITS, connection_window_bytes=70_000, frame_bytes_max=100_000))
    raw.send(headers(1))
    assert raw.send(frame(DATA, 0, 1, b"\0" + number(90_000) + bytes(34_994))) == []
    got = raw.send(frame(DATA, 0, 1, bytes(35_001 + more)))
    assert (("goaway", 1, CODES.FLOW_CONTROL_ERROR) in ends(got)) is is_over
    assert (Frame(WINDOW_UPDATE, 0, 0, number(70_000)) in got) is not is_over


def test_bytes_of_streams_that_are_gone_still_open_the_window_of_the_connection() -> None:
    raw = Raw(replace(LIMITS, connection_window_bytes=65_535, streams_max=1))
    raw.send(headers(1), headers(3))
    opened = 0
    for _ in range(100):
        for each in raw.send(frame(DATA, 0, 3, bytes(16_384))):
            assert (each.kind, each.stream) == (WINDOW_UPDATE, 0)
            opened += int.from_bytes(each.payload, "big")
    assert 100 * 16_384 - opened < 65_535 // 2


def test_a_refused_body_has_its_window_opened_no_more() -> None:
    raw = Raw()
    raw.send(headers(1))
    raw.send(frame(DATA, 0, 1, b"\0\xff\xff\xff\xff"))
    got = raw.send(*[frame(DATA, 0, 1, bytes(16_384))] * 60)
    assert [each for each in got if each.stream] == []


# Pings


def test_a_ping_comes_back_as_it_was() -> None:
    raw = Raw()
    assert raw.send(frame(PING, payload=b"12345678")) == [Frame(PING, ACK, 0, b"12345678")]
    assert raw.send(frame(PING, ACK, 0, b"12345678")) == []


# Bodies: limits


def body(size: int) -> bytes:
    """The bytes of a message of this size, with its prefix."""
    return b"\0" + number(size) + bytes(size)


@pytest.mark.parametrize("first", [1, 4, 5, 6])
@pytest.mark.parametrize("more", [0, 1])
def test_a_message_above_its_size_is_refused_at_its_prefix(first: int, more: int) -> None:
    raw = Raw(replace(LIMITS, message_bytes_max=1_000))
    start = body(1_000 + more)
    raw.send(headers(1), frame(DATA, 0, 1, start[:first]), frame(DATA, 0, 1, start[first:7]))
    assert [stream.refusal for stream in raw.taken] == [connection.MESSAGE_TOO_LARGE] * more
    assert raw.bodies.size == (0 if more else 7)
    # It goes on until it is answered, and nothing is held.
    raw.send(frame(DATA, END_STREAM, 1, start[7:]))
    assert len(raw.taken) == 1
    assert raw.bodies.size == 0
    assert raw.taken[0].parts == ([] if more else [start])
    assert raw.answer() != []


@pytest.mark.parametrize("more", [0, 1])
def test_a_body_may_not_go_on_after_its_message(more: int) -> None:
    raw = Raw(replace(LIMITS, message_bytes_max=1_000))
    raw.send(headers(1), frame(DATA, 0, 1, body(0)), frame(DATA, 0, 1, bytes(1_000 + more)))
    assert [stream.refusal for stream in raw.taken] == [connection.MESSAGE_TOO_LARGE] * more


@pytest.mark.parametrize("more", [0, 1])
def test_unfinished_bodies_of_a_connection_are_bounded(more: int) -> None:
    raw = Raw(replace(LIMITS, unfinished_bytes_max=1_000))
    parts = [body(500), body(490 + more)]
    raw.send(headers(1), frame(DATA, 0, 1, parts[0]), headers(3), frame(DATA, 0, 3, parts[1]))
    assert [(s.id, s.refusal) for s in raw.taken] == [(3, connection.BODIES_TOO_LARGE)] * more
    assert raw.bodies.size == (505 if more else 1_000)
    raw.send(frame(DATA, END_STREAM, 1))
    assert raw.taken[-1].parts == [parts[0]]
    raw.send(RESET, frame(RST_STREAM, 0, 3, number(8)))
    assert raw.bodies.size == 0


@pytest.mark.parametrize("more", [0, 1])
def test_unfinished_bodies_of_all_connections_are_bounded(more: int) -> None:
    limits = replace(LIMITS, unfinished_bytes_max_in_all=1_000)
    one, other = Raw(limits), Raw(limits)
    other.ours._bodies = one.bodies
    one.send(headers(1), frame(DATA, 0, 1, body(500)))
    other.send(headers(1), frame(DATA, 0, 1, body(490 + more)))
    assert [s.refusal for s in other.taken] == [connection.BODIES_TOO_LARGE] * more
    one.ours.close()
    other.ours.close()
    assert one.bodies.size == 0


def test_a_refused_body_that_ends_is_refused_once() -> None:
    raw = Raw(replace(LIMITS, message_bytes_max=10))
    raw.send(headers(1), frame(DATA, 0, 1, body(11)), frame(DATA, END_STREAM, 1, b"more"))
    assert [stream.id for stream in raw.taken] == [1]
    got = raw.answer()
    # It has ended, so nothing needs to be stopped.
    assert ends(got) == []


# Heads: limits


@pytest.mark.parametrize(("streams", "refused"), [(3, 0), (4, 1)])
def test_streams_above_the_limit_are_refused_and_may_come_again(streams: int, refused: int) -> None:
    raw = Raw(replace(LIMITS, streams_max=3))
    got = raw.send(*[headers(1 + 2 * place) for place in range(streams)])
    assert ends(got) == [("reset", 7, CODES.REFUSED_STREAM)] * refused
    raw.send(data(1, b""))
    raw.answer()
    assert raw.still_answers()


def test_every_way_out_of_a_stream_makes_room_for_another() -> None:
    raw = Raw(replace(LIMITS, streams_max=1, body_seconds_max=5.0))
    assert raw.still_answers(1)
    raw.send(headers(3), frame(RST_STREAM, 0, 3, number(8)))
    assert raw.still_answers(5)
    raw.send(headers(7), data(7, b""), data(7, b""))
    assert raw.still_answers(9)
    raw.send(headers(11))
    raw.after(5.1)
    assert raw.still_answers(13)
    raw.send(headers(15, 5, block(HEAD, (b"content-length", b"1"))))
    assert raw.still_answers(17)


def sized(size: int) -> bytes:
    """A header block of a call that counts for exactly so many bytes when it is decoded."""
    used = sum(len(name) + len(value) + 32 for name, value in HEAD)
    return block(HEAD, (b"x", b"a" * (size - used - 33)))


@pytest.mark.parametrize("more", [0, 1])
def test_a_head_above_its_size_is_refused(more: int) -> None:
    raw = Raw(replace(LIMITS, header_bytes_max=1_000))
    raw.send(headers(1, 4, sized(1_000 + more)))
    assert [stream.refusal for stream in raw.taken] == [connection.HEAD_TOO_LARGE] * more
    if more:
        assert raw.taken[0].head.size == 1_001
        # Before its body came.
        assert ends(raw.answer()) == [("reset", 1, CODES.NO_ERROR)]
    raw.send(headers(3, 5, sized(1_000 + more)))
    assert raw.taken[-1].refusal == (connection.HEAD_TOO_LARGE if more else "")
    assert [stream.id for stream in raw.taken].count(3) == 1


@pytest.mark.parametrize("more", [0, 1])
def test_a_block_above_its_size_ends_the_connection(more: int) -> None:
    raw = Raw(replace(LIMITS, header_block_bytes_max=200))
    got = raw.send(
        headers(1, 0, bytes(100)),
        frame(CONTINUATION, 0, 1, bytes(50)),
        frame(CONTINUATION, 0, 1, bytes(50 + more)),
    )
    assert ends(got) == [("goaway", 0, CODES.ENHANCE_YOUR_CALM)] * more


def test_empty_parts_of_a_block_are_not_kept() -> None:
    raw = Raw()
    raw.send(headers(1, 0, block()[:5]), *[frame(CONTINUATION, 0, 1)] * 1_000)
    assert len(raw.ours._block) == 1
    raw.send(frame(CONTINUATION, END_HEADERS, 1, block()[5:]), data(1, b"abc"))
    assert raw.bodies_taken() == [b"\0\0\0\0\3abc"]


# The budget

COSTS: dict[str, tuple[bytes, bytes, float]] = {
    "ping": (b"", frame(PING, payload=b"x" * 8), 1),
    "pong": (b"", frame(PING, ACK, 0, b"x" * 8), 1),
    "settings": (b"", settings(), 1),
    "settings with values": (b"", settings(*[(7, 7)] * 10), 2),
    "settings agreed": (b"", frame(SETTINGS, ACK), 1),
    "priority": (b"", frame(PRIORITY, 0, 9, b"\0" * 5), 1),
    "goaway": (b"", frame(GOAWAY, payload=b"\0" * 8), 1),
    "unknown frame": (b"", frame(0x77), 1),
    "window of the connection": (b"", frame(WINDOW_UPDATE, payload=number(1_000)), 1),
    "window of a stream": (headers(1), frame(WINDOW_UPDATE, 0, 1, number(1_000)), 1),
    "window of a closed stream": (OPEN + RESET, frame(WINDOW_UPDATE, 0, 1, number(1_000)), 1),
    "reset of a closed stream": (OPEN + RESET, RESET, 1),
    "empty data": (headers(1), frame(DATA, 0, 1), 1),
    "tiny data": (headers(1), frame(DATA, 0, 1, b"x" * 255), 1),
    "data of a fair size besides its padding": (
        headers(1),
        frame(DATA, PADDED, 1, b"\xff" + bytes(511)),
        0,
    ),
    "nothing but padding": (headers(1), frame(DATA, PADDED, 1, b"\xff" + bytes(255)), 1),
    "data of a fair size": (headers(1), frame(DATA, 0, 1, b"\0" * 256), 0),
    "data for a stream that was refused": (
        headers(1, 4, block(changed(b":path", b""))),
        frame(DATA, 0, 1, b"x" * 1_000),
        1,
    ),
    "trailers of a stream that was refused": (
        headers(1, 4, block(changed(b":path", b""))),
        headers(1, 5, block([(b"a", b"b")])),
        1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", COSTS)
def test_frames_that_do_no_work_cost_their_share(what: str) -> None:
    before, each, cost = COSTS[what]
    raw = Raw()
    raw.send(before)
    left = raw.ours._budget
    raw.send(*[each] * 10)
    assert raw.ours.ended == ""
    assert left - raw.ours._budget == pytest.approx(10 * cost)


ONCE: dict[str, tuple[bytes, float]] = {
    "reset": (OPEN + RESET, 1),
    "malformed head": (headers(1, 4, block(changed(b":path", b""))), 1),
    "head in two parts": (headers(1, 0, block()) + frame(CONTINUATION, END_HEADERS, 1), 2),
    "trailers": (OPEN + headers(1, 5, block([(b"a", b"b")])), 1),
    "data after the end": (HALF + data(1, b""), 2),
    "whole call": (WHOLE, 0),
    "tiny data at the end": (OPEN + frame(DATA, END_STREAM, 1), 0),
}


@pytest.mark.parametrize("what", ONCE)
def test_what_can_be_done_once_to_a_stream_costs_its_share(what: str) -> None:
    raw = Raw()
    left = raw.ours._budget
    raw.send(ONCE[what][0])
    assert left - raw.ours._budget == pytest.approx(ONCE[what][1])


def test_a_flood_ends_the_connection_when_the_budget_is_spent() -> None:
    raw = Raw(replace(LIMITS, budget=102.0))
    # The settings cost two.
    assert ends(raw.send(*[frame(PING, payload=b"x" * 8)] * 99)) == []
    assert ends(raw.send(frame(PING, payload=b"x" * 8))) == [("goaway", 0, CODES.ENHANCE_YOUR_CALM)]
    assert raw.ours.ended == "flood"


def test_the_budget_comes_back_with_time_and_no_further_than_it_was() -> None:
    raw = Raw(replace(LIMITS, budget=100.0, budget_per_second=10.0))
    ping = frame(PING, payload=b"x" * 8)
    raw.send(*[ping] * 97)
    raw.now += 1.05
    assert ends(raw.send(*[ping] * 11)) == []
    assert [code for _, _, code in ends(raw.send(ping))] == [CODES.ENHANCE_YOUR_CALM]
    raw = Raw(replace(LIMITS, budget=100.0, budget_per_second=10.0))
    raw.send(*[ping] * 97)
    raw.now += 1_000.0
    assert ends(raw.send(*[ping] * 100)) == []
    assert [code for _, _, code in ends(raw.send(ping))] == [CODES.ENHANCE_YOUR_CALM]


def test_finished_calls_give_back_what_frames_cost() -> None:
    raw = Raw(replace(LIMITS, budget=10.0))
    for place in range(100):
        raw.send(call(1 + 2 * place), frame(PING, payload=b"x" * 8))
        if place % 2:
            raw.answer()
        else:
            raw.ours.refuse(raw.taken[-1], TRAILERS)
    assert raw.ours.ended == ""
    assert raw.ours._budget <= 10.0
    # But no more than there was.
    for place in range(100, 200):
        raw.send(call(1 + 2 * place))
        raw.answer()
    assert raw.ours._budget == 10.0


def test_a_client_that_gives_up_a_thousand_calls_a_second_is_no_flood() -> None:
    raw = Raw()
    for place in range(20_000):
        raw.now += 0.001
        stream = 1 + 2 * place
        raw.send(call(stream), frame(RST_STREAM, 0, stream, number(8)))
        assert raw.ours.ended == ""
        raw.ours.gone.clear()


def test_streams_opened_and_reset_without_a_pause_are_a_flood() -> None:
    raw = Raw()
    for place in range(50_000):
        stream = 1 + 2 * place
        raw.send(call(stream), frame(RST_STREAM, 0, stream, number(8)))
        if raw.ours.ended:
            break
    assert raw.ours.ended == "flood"
    assert place < 4_000


def test_windows_that_let_hardly_anything_go_are_a_flood_also_while_replies_wait() -> None:
    raw = Raw(replace(LIMITS, budget=500.0))
    raw.send(settings((WINDOW_SIZE, 0)), *[call(1 + 2 * place) for place in range(100)])
    for place in range(100):
        raw.answer(b"x" * 10_000, of=place)
    for sent in (
        frame(WINDOW_UPDATE, payload=number(1)),
        frame(WINDOW_UPDATE, payload=number(1_000)),
        frame(WINDOW_UPDATE, 0, 1, number(1)),
        frame(WINDOW_UPDATE, 0, 1, number(255)),
    ):
        left = raw.ours._budget
        raw.send(*[sent] * 10)
        assert left - raw.ours._budget == 10
    left = raw.ours._budget
    raw.send(frame(WINDOW_UPDATE, 0, 3, number(256)))
    assert raw.ours._budget == left


def test_a_reply_that_goes_by_small_windows_is_not_copied_for_each() -> None:
    """A megabyte, a byte at a time: copying the rest each time would be gigabytes."""
    raw = Raw(replace(LIMITS, budget=1e9))
    raw.send(settings((WINDOW_SIZE, 0)), call(1))
    raw.answer(b"x" * 1_000_000)
    whole = raw.ours.streams[1].waiting
    assert whole is not None
    raw.send(*[frame(WINDOW_UPDATE, 0, 1, number(1))] * 1_000)
    waiting = raw.ours.streams[1].waiting
    assert waiting is not None
    assert len(waiting[0]) == 1_000_005 - 1_000
    assert waiting[0].obj is whole[0].obj


def test_streams_that_we_ended_are_forgiven_their_rest_up_to_a_bound() -> None:
    raw = Raw()
    count = connection._FORGIVEN_MAX + 1
    for place in range(count):
        raw.send(headers(1 + 2 * place, 4, block(changed(b":path", b""))))
    assert len(raw.ours._forgiven) == connection._FORGIVEN_MAX
    assert ends(raw.send(data(3, b""))) == []
    assert ends(raw.send(data(1, b""))) == [("goaway", 2 * count - 1, CODES.STREAM_CLOSED)]


# Time


@pytest.mark.parametrize(("seconds", "why"), [(10.0, ""), (10.1, "handshake")])
def test_who_does_not_begin_in_time_is_let_go(seconds: float, why: str) -> None:
    raw = Raw(first=PREFACE)
    got = raw.after(seconds)
    assert ends(got) == [("goaway", 0, CODES.PROTOCOL_ERROR)] * bool(why)
    assert raw.ours.ended == why


@pytest.mark.parametrize(("seconds", "is_over"), [(5.0, False), (5.1, True)])
def test_a_body_that_does_not_end_in_time_is_given_up(seconds: float, is_over: bool) -> None:
    raw = Raw()
    raw.send(headers(1), frame(DATA, 0, 1, body(100)))
    got = raw.after(seconds)
    assert ends(got) == [("reset", 1, CODES.CANCEL)] * is_over
    assert raw.bodies.size == (0 if is_over else 105)
    assert [stream.id for stream in raw.ours.gone] == [1] * is_over


def test_a_call_that_has_come_has_all_the_time_it_needs() -> None:
    raw = Raw()
    raw.send(call(1))
    assert raw.after(29.0) == []
    assert raw.answer(b"late") != []


@pytest.mark.parametrize(("seconds", "is_over"), [(30.0, False), (30.1, True)])
def test_a_reply_that_is_not_taken_in_time_is_given_up(seconds: float, is_over: bool) -> None:
    raw = Raw(first=PREFACE + settings((WINDOW_SIZE, 0)) + frame(SETTINGS, ACK))
    raw.send(call(1))
    raw.answer(b"x")
    got = raw.after(seconds)
    assert ends(got) == [("reset", 1, CODES.CANCEL)] * is_over
    assert raw.ours.unread == (0 if is_over else 6)


def test_a_reply_that_moves_is_not_given_up() -> None:
    raw = Raw(first=PREFACE + settings((WINDOW_SIZE, 0)) + frame(SETTINGS, ACK))
    raw.send(call(1))
    raw.answer(b"x" * 100)
    for _ in range(5):
        raw.now += 20
        assert block_of(raw.send(frame(WINDOW_UPDATE, 0, 1, number(1)))) == [(DATA, 1)]
        assert raw.after(0) == []
    assert ends(raw.after(31)) == [("reset", 1, CODES.CANCEL)]


def test_who_is_silent_is_asked_and_let_go_if_it_does_not_answer() -> None:
    raw = Raw()
    assert raw.after(59.9) == []
    (asked,) = raw.after(0.1)
    assert (asked.kind, asked.flags, len(asked.payload)) == (PING, 0, 8)
    assert raw.after(20.0) == []
    assert [(kind, code) for kind, _, code in ends(raw.after(0.1))] == [("goaway", 0)]
    assert raw.ours.ended == "silent"


def test_who_answers_when_asked_is_kept_and_asked_again() -> None:
    raw = Raw()
    for _ in range(3):
        (asked,) = raw.after(60.0)
        assert raw.after(10.0) == []
        raw.send(frame(PING, ACK, 0, asked.payload))
        assert raw.after(0) == []
    assert raw.still_answers()


def test_time_may_end_a_connection_that_has_spent_its_budget() -> None:
    """Giving up streams costs too; that must not escape into the loop of all connections."""
    raw = Raw(replace(LIMITS, budget=50.0, budget_per_second=1.0))
    raw.send(*[headers(1 + 2 * place) for place in range(40)])
    raw.now += 5.1
    raw.send(*[frame(PING, payload=b"x" * 8)] * 45)
    assert raw.ours.ended == ""
    got = raw.after(0)
    assert ends(got)[-1] == ("goaway", 79, CODES.ENHANCE_YOUR_CALM)
    assert raw.ours.ended == "flood"
    assert len(raw.ours.gone) == 40
    assert raw.after(100) == []


# Going


def test_a_drain_names_no_last_stream_until_the_peer_has_heard_of_it() -> None:
    raw = Raw()
    raw.send(call(1))
    raw.ours.go(raw.now)
    first, ping = raw.got()
    assert ends([first]) == [("goaway", 2**31 - 1, CODES.NO_ERROR)]
    # A call that was on its way is still taken.
    raw.send(call(3))
    got = raw.send(frame(PING, ACK, 0, ping.payload))
    assert ends(got) == [("goaway", 3, CODES.NO_ERROR)]
    # One more is not; it was told.
    assert raw.send(call(5)) == []
    assert [stream.id for stream in raw.taken] == [1, 3]
    raw.answer(of=0)
    assert raw.ours.ended == ""
    assert raw.answer(of=1) != []
    assert raw.ours.ended == "going"
    raw.ours.go(raw.now)
    assert raw.got() == []


def test_a_drain_begins_once() -> None:
    raw = Raw()
    raw.ours.go(raw.now)
    assert len(raw.got()) == 2
    raw.ours.go(raw.now)
    assert raw.got() == []


def test_an_idle_connection_goes_when_the_peer_has_heard_of_it() -> None:
    raw = Raw()
    raw.ours.go(raw.now)
    (_, ping) = raw.got()
    assert ends(raw.send(frame(PING, ACK, 0, ping.payload))) == [("goaway", 0, CODES.NO_ERROR)]
    assert raw.ours.ended == "going"


@pytest.mark.parametrize(("seconds", "why"), [(1.0, ""), (1.1, "going")])
def test_an_idle_connection_goes_after_a_while_also_if_the_peer_says_nothing(
    seconds: float, why: str
) -> None:
    raw = Raw()
    raw.ours.go(raw.now)
    raw.after(seconds)
    assert raw.ours.ended == why


def test_a_client_takes_the_end_for_one() -> None:
    made = Library()
    made.call()
    made.ours.receive(frame(PUSH_PROMISE, 4, 1, number(2)), made.now)
    made.exchange()
    (event,) = made.heard(ConnectionTerminated)
    assert (event.last_stream_id, event.error_code) == (1, CODES.PROTOCOL_ERROR)


def test_pings_of_others_end_no_drain() -> None:
    raw = Raw()
    raw.ours.go(raw.now)
    (_, ping) = raw.got()
    assert raw.send(frame(PING, ACK, 0, b"x" * 8)) == []
    assert raw.ours.ended == ""
    raw = Raw()
    raw.send(frame(PING, ACK, 0, ping.payload))
    assert raw.ours.ended == ""


def test_calls_in_flight_have_a_while_to_end_and_no_more() -> None:
    raw = Raw()
    raw.send(call(1))
    raw.ours.go(raw.now)
    raw.got()
    assert ends(raw.after(1.1)) == [("goaway", 1, CODES.NO_ERROR)]
    assert raw.after(58.9) != [] or raw.ours.ended == ""
    assert raw.ours.ended == ""
    raw.after(0.1)
    assert raw.ours.ended == "age"
    assert [stream.id for stream in raw.ours.gone] == [1]


def test_the_last_stream_that_was_named_does_not_grow() -> None:
    raw = Raw()
    raw.send(call(1))
    raw.ours.go(raw.now)
    raw.after(1.1)
    raw.send(call(3), call(5))
    assert ends(raw.send(frame(PUSH_PROMISE, 4, 1, number(2)))) == [
        ("goaway", 1, CODES.PROTOCOL_ERROR)
    ]


def test_calls_after_the_last_one_cost() -> None:
    raw = Raw(replace(LIMITS, budget=100.0))
    raw.send(call(1))
    raw.ours.go(raw.now)
    raw.after(1.1)
    for place in range(1, 200):
        raw.send(headers(1 + 2 * place, 5))
    assert raw.ours.ended == "flood"


def test_bodies_must_end_in_time_while_going_too() -> None:
    raw = Raw()
    raw.send(headers(1), frame(DATA, 0, 1, body(100)))
    raw.ours.go(raw.now)
    raw.after(1.1)
    assert ends(raw.after(4.0)) == [("reset", 1, CODES.CANCEL)]
    assert raw.ours.ended == "going"
    assert raw.bodies.size == 0


def test_a_stream_that_the_peer_gives_up_ends_the_drain_too() -> None:
    raw = Raw()
    raw.send(call(1))
    raw.ours.go(raw.now)
    raw.after(1.1)
    raw.send(RESET)
    assert raw.ours.ended == "going"


# Closing


def test_a_connection_that_is_lost_lets_go_of_everything() -> None:
    raw = Raw(first=PREFACE + settings((WINDOW_SIZE, 0)) + frame(SETTINGS, ACK))
    raw.send(call(1), call(3), headers(5), frame(DATA, 0, 5, body(100)))
    raw.answer(b"x" * 100, of=0)
    raw.ours.close()
    assert raw.ours.ended == "closed"
    assert [stream.id for stream in raw.ours.gone] == [1, 3, 5]
    assert (raw.ours.streams, raw.ours.unread, raw.bodies.size) == ({}, 0, 0)
    raw.ours.answer(raw.taken[1], b"late", TRAILERS)
    raw.ours.go(raw.now)
    raw.ours.tick(raw.now + 1_000)
    assert raw.got() == []
    raw.ours.close()
    assert len(raw.ours.gone) == 3


def test_a_stream_that_is_gone_is_told_once() -> None:
    raw = Raw()
    raw.send(call(1), RESET, RESET)
    assert [stream.id for stream in raw.ours.gone] == [1]


def test_connections_share_nothing_but_tables_and_bodies() -> None:
    tables, bodies = Tables(), Bodies()
    both: list[Any] = [Connection(LIMITS, tables, bodies, 0.0) for _ in range(2)]
    for each in both:
        each.receive(PREFACE + settings() + frame(SETTINGS, ACK) + WHOLE, 0.0)
    both[0].close()
    assert both[1].streams[1].parts == [b"\0\0\0\0\5whole"]
    assert frames_of(both[1].take())[-1].kind == SETTINGS
