"""What no library would send, byte by byte: heads, bodies and frames of our own making."""

import gzip
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from google.rpc.code_pb2 import Code
from hpack import NeverIndexedHeaderTuple

from tests.conformance.fronts import echo
from tests.conformance.fronts.conftest import Stage
from tests.conformance.fronts.echo import MESSAGE_BYTES_MAX, asking
from tests.conformance.fronts.raw import Answer, Header, Raw, framed, headers
from tests.rpc.fronts.test_grpcio import until

PAYLOAD = asking(payload=b"pay")


def is_well(raw: Raw) -> None:
    """The connection still answers."""
    answer = raw.call(PAYLOAD)
    assert (answer.short, answer.payload) == ("OK", b"pay")


def found(stage: Stage, key: str) -> list[str | bytes]:
    """Returns what the hall was given of a key in the last call."""
    return [value for name, value in stage.room.calls[-1].metadata if name == key]


# Answers


def test_an_answer_is_headers_message_and_trailers(raw: Raw) -> None:
    answer = raw.call(PAYLOAD, headers(("x-request-id", "r-1")))
    assert (answer.http, answer.payload) == ("200", b"pay")
    assert dict(answer.initial)["content-type"] == "application/grpc"
    assert answer.last["grpc-status"] == "0"
    assert answer.last["x-request-id"] == "r-1"
    assert "grpc-status" not in dict(answer.initial)


def test_a_refusal_is_nothing_but_headers(raw: Raw) -> None:
    answer = raw.call(PAYLOAD, headers(without=["authorization"]))
    assert (answer.http, answer.data, answer.trailers) == ("200", b"", [])
    assert answer.short == "UNAUTHENTICATED CREDENTIAL_MISSING"


@pytest.mark.usefixtures("every_code")
def test_a_text_is_percent_encoded_and_details_are_unpadded_base64(raw: Raw) -> None:
    for text, sent in (
        ("a%b", "a%25b"), ("ä", "%C3%A4"), ("a\nb", "a%0Ab"), ("a b~!", "a b~!"), ("\x7f", "%7F"),
    ):  # fmt: skip
        answer = raw.call(asking(code=Code.NOT_FOUND, text=text))
        assert (answer.code, answer.last["grpc-message"]) == ("NOT_FOUND", sent)
        assert answer.text == text
        assert "=" not in answer.last["grpc-status-details-bin"]


@pytest.mark.usefixtures("every_code")
def test_no_value_of_ours_begins_or_ends_with_a_blank(raw: Raw, stage: Stage) -> None:
    raw.h2.config.validate_inbound_headers = False
    answer = raw.call(asking(code=Code.NOT_FOUND, text=" a "))
    assert answer.last["grpc-message"] == stage.differs("message with a blank at an end")


def test_trailing_metadata_keeps_its_order(raw: Raw) -> None:
    trailing = {"z": [b"1", b"2"], "a-bin": [b"\xff", b"\x00"], "b": [b"3"]}
    answer = raw.call(asking(trailing=trailing))
    sent = [(key, value.rstrip("=")) for key, value in answer.trailers if key in trailing]
    assert sent == [("z", "1"), ("z", "2"), ("a-bin", "/w"), ("a-bin", "AA"), ("b", "3")]


# Paths and methods


@pytest.mark.parametrize(
    "path",
    ["*", f"http://localhost{echo.PATH}", f"{echo.PATH}#a", echo.PATH.upper(), echo.PATH[1:], "/ä"],
)
def test_odd_paths_are_unimplemented(raw: Raw, path: str) -> None:
    assert raw.call(PAYLOAD, headers(path=path)).code == "UNIMPLEMENTED"
    is_well(raw)


@pytest.mark.parametrize("path", [echo.CHANGE, echo.READ, echo.FOLLOW, "/other.Service/Do"])
def test_what_is_not_served_here_names_the_port_that_does(
    raw: Raw, stage: Stage, path: str
) -> None:
    answer = raw.call(PAYLOAD, headers(path=path))
    if stage.differs("no decision") == "UNIMPLEMENTED":
        assert (answer.code, "AUTHZ_LISTEN" in answer.text) == ("UNIMPLEMENTED", True)
    else:
        assert answer.code == ("UNIMPLEMENTED" if path.startswith("/other") else "OK")


# Heads that differ between the fronts


def _without(*names: str) -> Callable[[], list[Header]]:
    return lambda: headers(without=names)


def _more(*pairs: Header) -> Callable[[], list[Header]]:
    return lambda: headers(*pairs)


def _changed(**changes: str) -> Callable[[], list[Header]]:
    return lambda: headers(**changes)


HEADS: list[tuple[str, Callable[[], list[Header]]]] = [
    *(
        ("content type of something else", _changed(content_type=kind))
        for kind in (
            "application/json", "application/grpc+json", "application/grpc-web", "text/plain",
            "application/grpcx", "",
        )
    ),
    ("content type of something else", _without("content-type")),
    *(("method that it knows", _changed(pseudo_method=method)) for method in ("GET", "PUT")),
    *(
        ("method that it does not know", _changed(pseudo_method=method))
        for method in ("HEAD", "OPTIONS", "DELETE", "post")
    ),
    ("no te", _without("te")),
    ("another te", _changed(te="gzip")),
    ("another te", _changed(te="trailers, deflate")),
    ("no authority", _without(":authority")),
    ("another scheme", _changed(pseudo_scheme="ftp")),
    *(("no pseudo header", _without(name)) for name in (":scheme", ":path", ":method")),
    ("empty path", _changed(pseudo_path="")),
    ("doubled pseudo header", _more((":path", echo.PATH))),
    ("late pseudo header", lambda: [*headers(without=[":path"]), (":path", echo.PATH)]),
    ("pseudo header of an answer", _more((":status", "200"))),
    *(
        ("header of a connection", _more(pair))
        for pair in (("connection", "close"), ("transfer-encoding", "chunked"), ("upgrade", "h2c"))
    ),
    *(("value with a line end or NUL", _more(("x", value))) for value in ("a\nb", "a\rb", "a\0b")),
    *(("name that is none", _more((name, "a"))) for name in ("X-Upper", "x y", "", ":other")),
    ("content length of another size", _more(("content-length", "3"))),
    ("content length of another size", _more(("content-length", "x"))),
    *(
        ("timeout that is none", _more(("grpc-timeout", value)))
        for value in ("", "5", "S", "-1S", "+5S", "5X", "5s", "1.5S", "0x5S", "\u0665S")
    ),
    *(
        ("timeout of more than 8 digits", _more(("grpc-timeout", value)))
        for value in ("123456789S", "000000005S")
    ),
    ("timeout with a blank", _more(("grpc-timeout", "5 S"))),
    ("deadline that has passed", _more(("grpc-timeout", "0S"))),
    ("doubled timeout", _more(("grpc-timeout", "5S"), ("grpc-timeout", "6S"))),
    *(
        ("binary values joined by commas", _more(("a-bin", value)))
        for value in ("AAAA,AAAA", "AA==,AP8=", "AA,AP8", "AA, AP8")
    ),
    *(
        ("binary value that is no base64", _more(("a-bin", value)))
        for value in ("A", "****", "AA=A", "-_8=", "AAAA AAAA")
    ),
    ("deflate", _more(("grpc-encoding", "deflate"))),
    *(
        ("unknown encoding", _more(("grpc-encoding", value)))
        for value in ("snappy", "br", "GZIP", "gzip,identity")
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "fields"), HEADS, ids=[f"{at}-{case}" for at, (case, _) in enumerate(HEADS)]
)
def test_heads_on_which_the_fronts_differ(
    raw: Raw, stage: Stage, case: str, fields: Callable[[], list[Header]]
) -> None:
    # Out of the compression's table: grpcio remembers there that a field was bad.
    apart: list[Any] = [NeverIndexedHeaderTuple(*pair) for pair in fields()]
    answer = raw.call(PAYLOAD, apart)
    assert raw.outcome(answer) == stage.differs(case)
    # It ends that stream, and nothing else.
    is_well(raw)


def test_an_unknown_encoding_is_told_the_known_ones(raw: Raw, stage: Stage) -> None:
    answer = raw.call(PAYLOAD, headers(("grpc-encoding", "br")))
    if stage.differs("unknown encoding") == "UNIMPLEMENTED":
        assert answer.last["grpc-accept-encoding"] == "identity,gzip"
    else:
        assert answer.last == {}


# Heads on which they agree


@pytest.mark.parametrize(
    "fields",
    [
        _changed(content_type="application/grpc+proto"),
        _changed(content_type="application/grpc;charset=utf-8"),
        _changed(pseudo_scheme="https"),
        lambda: headers(("host", "localhost"), without=[":authority"]),
        _more(("grpc-unknown", "1"), ("grpc-status", "5"), ("grpc-message", "no")),
        _more(("grpc-tags-bin", "AAA"), ("grpc-trace-bin", "AAA")),
        _more(("user-agent", "other"), ("x", ""), ("x", "a\tb"), ("x", "a\x7fb"), ("x", "ä")),
        _more(("grpc-accept-encoding", "br")),
        _more(("grpc-encoding", "identity")),
        _more(("grpc-encoding", "gzip")),
        _more(("grpc-timeout", "00000005S")),
    ],
    ids=range(11),
)
def test_heads_that_are_served(raw: Raw, fields: Callable[[], list[Header]]) -> None:
    answer = raw.call(PAYLOAD, fields())
    assert (answer.short, answer.payload) == ("OK", b"pay")


def test_what_the_protocol_keeps_for_itself_is_no_metadata(raw: Raw, stage: Stage) -> None:
    raw.call(PAYLOAD, headers(("grpc-timeout", "5S"), ("grpc-accept-encoding", "gzip"), ("x", "1")))
    names = [name for name, _ in stage.room.calls[-1].metadata]
    kept = [name for name in names if name.startswith((":", "grpc-")) or name in ("te", "host")]
    assert (kept, names.count("x")) == ([], 1)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1H", 3_600), ("2M", 120), ("5S", 5), ("5000m", 5), ("5000000u", 5), ("99999999u", 100),
        ("99999999S", 99_999_999), ("00000005S", 5), ("99999999m", 99_999.999),
    ],
)  # fmt: skip
def test_deadlines_come_in_six_units(raw: Raw, stage: Stage, value: str, seconds: float) -> None:
    assert raw.call(PAYLOAD, headers(("grpc-timeout", value))).short == "OK"
    (call,) = stage.room.calls
    assert call.deadline is not None
    assert seconds - 1 < call.deadline - call.arrived <= seconds + 0.1


def test_nanoseconds_are_a_unit_too(raw: Raw, stage: Stage) -> None:
    assert raw.call(PAYLOAD, headers(("grpc-timeout", "99999999n"))).short == "OK"
    (call,) = stage.room.calls
    assert call.deadline is not None
    assert 0 < call.deadline - call.arrived <= 0.1


def test_a_deadline_that_passes_in_the_handler(raw: Raw, stage: Stage) -> None:
    id = raw.open(headers(("grpc-timeout", "100m")))
    raw.data(id, framed(asking(held=True, payload=b"late")), end=True)
    stage.servicer.entered()
    told = stage.differs("deadline that passes in the handler")
    if told == "OK":
        until(lambda: stage.servicer.contexts[-1].seconds_left() == 0)
        stage.servicer.go.set()
    assert raw.ended(id).short == told
    stage.servicer.go.set()
    is_well(raw)


def test_an_endless_deadline_is_as_good_as_none(raw: Raw, stage: Stage) -> None:
    assert raw.call(PAYLOAD, headers(("grpc-timeout", "99999999H"))).short == "OK"
    assert 9 < stage.servicer.contexts[-1].seconds_left() <= 10


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("", b""), ("AA==", b"\x00"), ("AA", b"\x00"), ("AP8=", b"\x00\xff"), ("AP8", b"\x00\xff"),
        ("AAEC", b"\x00\x01\x02"), ("/+8", b"\xff\xef"),
    ],
)  # fmt: skip
def test_binary_values_may_be_padded_or_not(
    raw: Raw, stage: Stage, value: str, read: bytes
) -> None:
    assert raw.call(PAYLOAD, headers(("a-bin", value))).short == "OK"
    assert found(stage, "a-bin") == [read]


def test_joined_binary_values_are_taken_apart(raw: Raw, stage: Stage) -> None:
    raw.call(PAYLOAD, headers(("a-bin", "AA==,AP8,"), ("b-bin", "AA")))
    if stage.differs("binary values joined by commas") == "OK":
        assert found(stage, "a-bin") == [b"\x00", b"\x00\xff", b""]
    else:
        assert found(stage, "a-bin") == [b""]


@pytest.mark.parametrize("value", [" a", "a ", "\ta"])
def test_blanks_at_the_ends_of_a_value_end_no_call(raw: Raw, stage: Stage, value: str) -> None:
    assert raw.call(PAYLOAD, headers(("x", value))).short == "OK"
    assert [one.strip() for one in found(stage, "x")] == ["a"]


def test_keys_keep_their_order(raw: Raw, stage: Stage) -> None:
    pairs = [("z", "1"), ("a", "2"), ("z", "3"), ("m-bin", "AA"), ("a", "4"), ("z", "1")]
    assert raw.call(PAYLOAD, headers(*pairs)).short == "OK"
    names = {name for name, _ in pairs}
    given = [tuple(one) for one in stage.room.calls[-1].metadata if one[0] in names]
    assert given == [
        ("z", "1"), ("a", "2"), ("z", "3"), ("m-bin", b"\x00"), ("a", "4"), ("z", "1"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "pairs",
    [
        [("authorization", f"Bearer {echo.BEARER}")],
        [("authorization", "Bearer other")],
        [("authorization-bin", "AA")],
        [("authorization-bin", "****")],
        [("proxy-authorization", "Bearer x")],
    ],
    ids=range(5),
)
def test_a_second_credential_is_refused(raw: Raw, stage: Stage, pairs: list[Header]) -> None:
    answer = raw.call(PAYLOAD, headers(*pairs))
    if ("authorization-bin", "****") in pairs:
        assert answer.short == stage.differs("binary value that is no base64")
    else:
        assert answer.short == "UNAUTHENTICATED CREDENTIAL_INVALID"
    answer = raw.call(PAYLOAD, [*headers(without=["authorization"]), *pairs, *headers()[-1:]])
    assert answer.code != "OK"
    is_well(raw)


# Bodies


def test_a_message_may_come_in_any_pieces(raw: Raw) -> None:
    body = framed(PAYLOAD)
    for sizes in ((1,) * len(body), (3, 2, 100), (5, 100), (6, 100)):
        id, rest = raw.open(), body
        for size in sizes:
            raw.data(id, rest[:size])
            rest = rest[size:]
        raw.h2.end_stream(id)
        raw.flush()
        answer = raw.ended(id)
        assert (answer.short, answer.payload) == ("OK", b"pay")


def test_empty_frames_around_a_message_are_nothing(raw: Raw) -> None:
    id = raw.open()
    for part in (b"", b"", framed(PAYLOAD), b"", b""):
        raw.h2.send_data(id, part)
    raw.h2.end_stream(id)
    raw.flush()
    assert raw.ended(id).payload == b"pay"


def test_trailers_of_the_caller_end_its_message(raw: Raw) -> None:
    id = raw.open()
    raw.data(id, framed(PAYLOAD))
    raw.h2.send_headers(id, [("x-trailer", "1")], end_stream=True)
    raw.flush()
    assert raw.ended(id).payload == b"pay"


def test_padding_is_taken_off(raw: Raw, stage: Stage) -> None:
    for padding in (0, 1, 255):
        id = raw.open()
        raw.h2.send_data(id, framed(PAYLOAD), pad_length=padding, end_stream=True)
        raw.flush()
        answer = raw.ended(id)
        assert answer.short == stage.differs("padding")
        assert answer.short != "OK" or answer.payload == b"pay"


def test_a_body_of_the_length_that_its_head_says_is_served(raw: Raw) -> None:
    body = framed(PAYLOAD)
    assert raw.sent(body, headers(("content-length", str(len(body))))).payload == b"pay"


def test_a_head_larger_than_a_frame_is_continued(raw: Raw) -> None:
    # Many different values: the table of names and the coding make little of equal ones.
    pairs = [(f"x{at}", "~{}|" * 12) for at in range(80)]
    raw.h2.outbound_flow_control_window  # noqa: B018 - the settings have come once this is known
    id = raw.h2.get_next_available_stream_id()
    raw.answers[id] = Answer()
    raw.h2.max_outbound_frame_size = 1_000
    raw.h2.send_headers(id, headers(*pairs))
    raw.h2.max_outbound_frame_size = 16_384
    raw.data(id, framed(PAYLOAD), end=True)
    assert raw.ended(id).short == "OK"


@pytest.mark.parametrize("body", [b"", b"\0\0", framed(PAYLOAD)[:-1], framed(PAYLOAD)[:5]])
def test_less_than_a_message_is_none(raw: Raw, stage: Stage, body: bytes) -> None:
    assert raw.sent(body).short == stage.differs("no whole message")
    is_well(raw)


def test_a_call_that_ends_with_its_head_has_no_message(raw: Raw, stage: Stage) -> None:
    id = raw.open(end=True)
    assert raw.ended(id).short == stage.differs("no whole message")
    is_well(raw)


@pytest.mark.parametrize("more", [framed(PAYLOAD), b"x", b"\0\0\0\0\5", framed(b"")])
@pytest.mark.parametrize("pieces", [1, 2])
def test_more_than_a_message_is_not_one(raw: Raw, stage: Stage, more: bytes, pieces: int) -> None:
    id = raw.open()
    if pieces == 2:
        raw.data(id, framed(PAYLOAD))
        raw.data(id, more, end=True)
    else:
        raw.data(id, framed(PAYLOAD) + more, end=True)
    assert raw.ended(id).short == stage.differs("more than one message")
    is_well(raw)


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff" * 100,
        b"\x7b" * 10_000,
        b"\x0a" * 10_000,
        bytes(range(256)) * 40,
    ],
    ids=["ones", "nested", "lengths", "all"],
)
def test_bytes_that_are_no_message_are_told_so(raw: Raw, payload: bytes) -> None:
    assert raw.call(payload).short == "INVALID_ARGUMENT FIELD_INVALID"
    is_well(raw)


# Text that is none


@pytest.mark.parametrize(
    "value",
    [
        b"\xff\xfe", b"\xed\xa0\x80", b"\xef\xbb\xbfa", b"\xe2\x80\xaea", b"\xc3\x28", b"\x7f",
        b"\xf0\x9f\x94\x92", b"a\xa0",
    ],
    ids=range(8),
)  # fmt: skip
def test_odd_text_in_metadata_is_no_key_with_a_meaning(
    raw: Raw, stage: Stage, value: bytes
) -> None:
    assert raw.call(PAYLOAD, headers(("x", value))).short == "OK"
    (made,) = [raw.call(PAYLOAD, headers(("x-request-id", value))).last["x-request-id"]]
    assert len(made) == 32 and made.isascii()
    bearer = ("authorization", b"Bearer " + value)
    answer = raw.call(PAYLOAD, [*headers(without=["authorization"]), bearer])
    assert answer.short == "UNAUTHENTICATED CREDENTIAL_INVALID"
    is_well(raw)


# Compression


ZIPPED = gzip.compress(PAYLOAD)
GZIP = ("grpc-encoding", "gzip")


def test_gzip_is_read_and_so_is_what_is_not_compressed(raw: Raw) -> None:
    for body in (framed(ZIPPED, 1), framed(PAYLOAD)):
        assert raw.sent(body, headers(GZIP)).payload == b"pay"
    assert raw.sent(framed(PAYLOAD), headers(("grpc-encoding", "identity"))).payload == b"pay"


def test_compressed_in_several_frames_is_read(raw: Raw) -> None:
    id, body = raw.open(headers(GZIP)), framed(ZIPPED, 1)
    for at in range(0, len(body), 7):
        raw.data(id, body[at : at + 7])
    raw.h2.end_stream(id)
    raw.flush()
    assert raw.ended(id).payload == b"pay"


@pytest.mark.parametrize("more", [[], [("grpc-encoding", "identity")]], ids=["none", "identity"])
def test_compressed_without_saying_how(raw: Raw, stage: Stage, more: list[Header]) -> None:
    answer = raw.sent(framed(PAYLOAD, 1), headers(*more))
    assert answer.short == stage.differs("compressed without saying how")
    is_well(raw)


def test_a_flag_that_is_none(raw: Raw, stage: Stage) -> None:
    assert raw.sent(framed(PAYLOAD, 255)).short in stage.may("flag that is none")
    is_well(raw)


@pytest.mark.parametrize(
    "data",
    [
        b"garbage", ZIPPED[:-3], ZIPPED + b"x", ZIPPED + ZIPPED, zlib.compress(PAYLOAD),
        ZIPPED[:-8] + b"\0\0\0\0" + ZIPPED[-4:],
    ],
    ids=["garbage", "cut", "more", "two", "deflate", "sum"],
)  # fmt: skip
def test_broken_compression_is_refused(raw: Raw, stage: Stage, data: bytes) -> None:
    answer = raw.sent(framed(data, 1), headers(GZIP))
    assert answer.short == stage.differs("broken compression")
    is_well(raw)


def test_nothing_is_no_gzip(raw: Raw, stage: Stage) -> None:
    assert raw.sent(framed(b"", 1), headers(GZIP)).short == stage.differs("compressed nothing")


def test_what_unpacks_to_too_much_is_refused(raw: Raw, stage: Stage) -> None:
    at_limit = gzip.compress(echo.sized(MESSAGE_BYTES_MAX))
    assert raw.sent(framed(at_limit, 1), headers(GZIP)).short == "OK"
    above = gzip.compress(echo.sized(MESSAGE_BYTES_MAX + 1))
    refused = raw.sent(framed(above, 1), headers(GZIP))
    assert refused.short == "INVALID_ARGUMENT REQUEST_TOO_LARGE"
    bomb = gzip.compress(bytes(20_000_000))
    answer = raw.sent(framed(bomb, 1), headers(GZIP))
    assert answer.short == stage.differs("unpacked far above the limit")
    is_well(raw)


# Sizes


def test_a_message_above_the_limit_is_told_so(raw: Raw) -> None:
    assert raw.call(echo.sized(MESSAGE_BYTES_MAX)).short == "OK"
    answer = raw.call(echo.sized(MESSAGE_BYTES_MAX + 1))
    assert answer.short == "INVALID_ARGUMENT REQUEST_TOO_LARGE"
    assert answer.text == "the message has 100001 bytes, at most 100000 are allowed"


@pytest.mark.parametrize("size", [10_000_000, 2**31, 2**32 - 1])
def test_a_message_that_announces_itself_too_large_is_not_waited_for(
    staged: Callable[..., Stage], connections: Callable[..., Raw], size: int
) -> None:
    stage = staged(request_seconds_max=0.4)
    raw = connections(stage.address)
    id = raw.open()
    raw.data(id, struct.pack(">BI", 0, size))
    assert raw.ended(id).short == stage.differs("large message announced")
    is_well(raw)


def test_what_still_comes_of_a_refused_message_hurts_nobody(raw: Raw, stage: Stage) -> None:
    answer = raw.sent(framed(bytes(8_000_000)))
    assert answer.short == stage.differs("message far above the limit")
    is_well(raw)


def test_metadata_up_to_its_limit_passes_and_more_is_told_so(raw: Raw, stage: Stage) -> None:
    raw.call(PAYLOAD)
    used = sum(len(key) + len(value) + 32 for key, value in stage.room.calls[-1].metadata)
    room = 8 * 1024 - used - 33
    assert raw.call(PAYLOAD, headers(("x", "a" * room))).short == "OK"
    answer = raw.call(PAYLOAD, headers(("x", "a" * (room + 1))))
    assert answer.short == "INVALID_ARGUMENT REQUEST_TOO_LARGE"
    for more in ([("x", "a" * 14_000)], [(f"x{at}", "a") for at in range(300)]):
        answer = raw.call(PAYLOAD, headers(*more))
        assert answer.short == "INVALID_ARGUMENT REQUEST_TOO_LARGE"
    is_well(raw)


@pytest.mark.parametrize(
    "pairs", [[("x", "a" * 25_000)], [(f"x{at}", "a") for at in range(600)]], ids=["one", "many"]
)
def test_metadata_above_twice_its_limit_ends_its_call(
    raw: Raw, stage: Stage, pairs: list[Header]
) -> None:
    # What the settings say holds from the moment in which they are acknowledged.
    is_well(raw)
    answer = raw.call(PAYLOAD, headers(*pairs))
    assert answer.short == stage.differs("metadata above twice its limit")
    is_well(raw)


@pytest.mark.parametrize(
    "pairs",
    [[("x", "~" * 40_000)], [(f"x{at}", "a") for at in range(8_000)]],
    ids=["one", "many"],
)
def test_a_header_block_far_above_the_limit_is_not_kept(
    raw: Raw, connections: Callable[..., Raw], stage: Stage, pairs: list[Header]
) -> None:
    other = connections(stage.address)
    is_well(other)
    is_well(raw)
    answer = raw.call(PAYLOAD, headers(*pairs))
    assert answer.short == stage.differs("header block far above the limit")
    is_well(other)


def test_a_stranger_who_sends_no_message_holds_nothing(
    staged: Callable[..., Stage], connections: Callable[..., Raw]
) -> None:
    stage = staged(request_seconds_max=0.4)
    raw = connections(stage.address)
    id = raw.open(headers(without=["authorization"]))
    assert raw.ended(id).short == stage.differs("stranger without a message")
    is_well(raw)


@pytest.mark.parametrize("more", [b"", b"\0\1x\1a" * 200], ids=["empty", "full"])
def test_a_head_without_an_end(
    raw: Raw, stage: Stage, connections: Callable[..., Raw], more: bytes
) -> None:
    is_well(raw)
    # HEADERS and CONTINUATION by hand: the library cannot be made to send them.
    id = struct.pack(">I", 101)
    raw.send(b"\0\0\0\1\0" + id)
    piece = struct.pack(">I", len(more))[1:] + b"\x09\0" + id + more
    for _ in range(100):
        raw.send(piece * 50)
    raw.send(b"\0\0\0\x09\4" + id + b"\0\0\x08\6\0\0\0\0\0its ping")
    told = "open" if raw.hears(b"its ping") else "closed"
    assert told == stage.differs("head without an end")
    is_well(connections(stage.address))


# Connections


def test_pings_are_answered(raw: Raw) -> None:
    raw.ping(b"01234567")
    raw.ping(b"76543210")
    assert raw.pongs == [b"01234567", b"76543210"]
    is_well(raw)


def test_pings_soon_after_each_other(raw: Raw, stage: Stage) -> None:
    for _ in range(20):
        raw.ping()
    told = f"closed {raw.goaway}" if raw.is_closed else raw.call(PAYLOAD).short
    assert told == stage.differs("pings soon after each other")


def test_pings_without_end_are_a_flood_for_both(
    raw: Raw, stage: Stage, connections: Callable[..., Raw]
) -> None:
    for _ in range(1_000):
        for _ in range(100):
            raw.h2.ping(b"12345678")
        raw.ping()
        if raw.is_closed:
            break
    assert raw.is_closed
    is_well(connections(stage.address))


def test_resets_end_their_call_and_no_other(raw: Raw, stage: Stage) -> None:
    for _ in range(20):
        id = raw.open()
        raw.data(id, framed(asking(payload=b"x")))
        raw.h2.reset_stream(id, 8)
        raw.flush()
    is_well(raw)
    id = raw.open()
    raw.data(id, framed(asking(held=True)), end=True)
    stage.servicer.entered()
    raw.h2.reset_stream(id, 8)
    raw.flush()
    is_well(raw)
    stage.servicer.go.set()
    is_well(raw)


def test_an_answer_waits_for_the_windows_of_its_reader(
    stage: Stage, connections: Callable[..., Raw]
) -> None:
    raw = connections(stage.address, settings={4: 10})
    answer = raw.call(asking(payload=b"a" * 5_000))
    assert answer.payload == b"a" * 5_000


def test_a_later_setting_opens_windows_of_streams_that_wait(
    stage: Stage, connections: Callable[..., Raw]
) -> None:
    raw = connections(stage.address, settings={4: 0})
    id = raw.open()
    raw.data(id, framed(asking(payload=b"a" * 5_000)), end=True)
    raw.ping()
    assert raw.answers[id].data == b""
    raw.h2.update_settings({4: 65_535})
    raw.flush()
    assert raw.ended(id).payload == b"a" * 5_000


def test_many_streams_are_answered_each_with_its_own(raw: Raw) -> None:
    ids = [raw.open() for _ in range(100)]
    for id in reversed(ids):
        raw.data(id, framed(asking(payload=b"%d" % id)), end=True)
    assert [raw.ended(id).payload for id in ids] == [b"%d" % id for id in ids]


def test_a_stream_beyond_those_that_are_allowed_is_refused_and_may_be_repeated(
    raw: Raw, stage: Stage
) -> None:
    is_well(raw)
    most = raw.h2.remote_settings.max_concurrent_streams
    raw.h2.remote_settings[3] = most + 50
    raw.h2.remote_settings.acknowledge()
    ids = [raw.open() for _ in range(most + 20)]
    refused = [raw.ended(id).short for id in ids[most:]]
    assert set(refused) == {"reset 7"}
    for id in ids[:most]:
        raw.data(id, framed(PAYLOAD), end=True)
    assert {raw.ended(id).short for id in ids[:most]} == {"OK"}
    assert len(stage.room.calls) == most + 1
    is_well(raw)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        b"\x00" * 1_000,
    ],
    ids=["get", "post", "1.0", "tls", "preface", "zeros"],
)
def test_what_is_not_http2_is_closed(
    stage: Stage, connections: Callable[..., Raw], raw: Raw, data: bytes
) -> None:
    other = connections(stage.address, preface=data)
    assert not other.hears(b"HTTP/1.1 200")
    is_well(raw)
