"""What gRPC makes of HTTP/2: messages out of bodies, and replies as blocks of headers."""

import gzip
import zlib
from base64 import b64decode
from typing import Any
from urllib.parse import unquote_to_bytes

import hpack
import pytest
from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status
from h2.events import ResponseReceived, StreamEnded
from hypothesis import given
from hypothesis import strategies as st

from authz_service.base.errors import field_invalid
from authz_service.rpc import status as statuses
from authz_service.rpc.fronts.h2 import grpc
from tests.rpc.fronts.h2.peer import Library, number


def read(block: bytes) -> list[tuple[bytes, bytes]]:
    """The pairs of a block, as another implementation reads them; it uses no table."""
    decoder = hpack.Decoder()
    decoder.header_table_size = decoder.max_allowed_table_size = 0
    return [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]


def seen(block: bytes) -> list[tuple[bytes, bytes]]:
    """The pairs of a block that ends a call, as a client lets them pass that is strict."""
    made = Library()
    stream = made.call()
    made.ours.refuse(made.taken[0], block)
    made.exchange()
    (response,) = made.heard(ResponseReceived)
    assert [event.stream_id for event in made.heard(StreamEnded)] == [stream]
    return [(bytes(name), bytes(value)) for name, value in response.headers]


# Messages


@pytest.mark.parametrize("size", [0, 1, 255, 256, 70_000])
def test_a_body_of_one_message_is_that_message(size: int) -> None:
    body = b"\0" + number(size) + b"x" * size
    assert grpc.message(body, "") == (b"x" * size, False)
    assert grpc.message(body, "gzip") == (b"x" * size, False)
    assert grpc.message(b"\1" + body[1:], "gzip") == (b"x" * size, True)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\0", b"\0\0\0\0", b"\0\0\0\0\1", b"\0\0\0\0\0x", b"\0\0\0\0\2x", b"\0\0\0\0\0" * 2,
        b"\0\xff\xff\xff\xffx", b"\2\0\0\0\0", b"\xff\0\0\0\0",
    ],
)  # fmt: skip
def test_anything_else_is_none(body: bytes) -> None:
    for encoding in ("", "gzip"):
        with pytest.raises(grpc.NotOneMessage):
            grpc.message(body, encoding)


@pytest.mark.parametrize("encoding", ["", "identity"])
def test_compression_must_be_named(encoding: str) -> None:
    with pytest.raises(grpc.NotOneMessage, match="does not say how"):
        grpc.message(b"\1\0\0\0\0", encoding)


@pytest.mark.parametrize(("size", "is_larger"), [(0, False), (1_000, False), (1_001, True)])
def test_what_was_compressed_is_unpacked_up_to_a_size(size: int, is_larger: bool) -> None:
    for level in (0, 1, 9):
        packed = gzip.compress(b"x" * size, level)
        if is_larger:
            with pytest.raises(grpc.TooLarge):
                grpc.decompressed(packed, 1_000)
        else:
            assert grpc.decompressed(packed, 1_000) == b"x" * size


def test_of_a_bomb_no_more_is_unpacked_than_is_looked_at() -> None:
    import tracemalloc

    bomb = gzip.compress(bytes(200_000_000), 9)
    tracemalloc.start()
    with pytest.raises(grpc.TooLarge):
        grpc.decompressed(bomb, 1_000_000)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


# Without the time, which the names of the tests would tell.
PACKED = gzip.compress(b"message", mtime=0)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"x", PACKED[:-1], PACKED + b"x", PACKED * 2, zlib.compress(b"message"),
        PACKED[:-8] + bytes(8), PACKED[:12] + b"\xff" + PACKED[13:],
    ],
    ids=range(8),
)  # fmt: skip
def test_what_is_not_compressed_as_it_says_is_refused(data: bytes) -> None:
    with pytest.raises(grpc.NotOneMessage, match="not compressed"):
        grpc.decompressed(data, 1_000)


# Replies


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 5_000])
def test_a_call_that_went_well_ends_with_its_metadata(size: int) -> None:
    for metadata in [
        (("x-request-id", "r" * size),),
        (("x-request-id", "r" * size), ("idempotency-replayed", "true")),
    ]:
        # Twice: how it begins is remembered.
        for _ in range(2):
            assert read(grpc.trailers(metadata)) == [
                (b"grpc-status", b"0"),
                *[(name.encode(), value.encode()) for name, value in metadata],
            ]
    assert read(grpc.trailers(())) == [(b"grpc-status", b"0")]
    assert read(grpc.trailers((("x-bin", b"\0\xff"),)))[1] == (b"x-bin", b"AP8")
    assert read(grpc.trailers((("x", "é"),)))[1] == (b"x", b"\xe9")


def test_what_is_remembered_of_trailers_is_bounded() -> None:
    for place in range(1_000):
        name = f"x-{place}"
        assert read(grpc.trailers(((name, "a"),)))[1] == (name.encode(), b"a")
    assert len(grpc._STARTS) <= grpc._STARTS_MAX


def test_a_refusal_has_code_text_and_details() -> None:
    status = statuses.status_of(field_invalid("name", "1 to 10 characters"))
    found = seen(grpc.refusal(status, (("x-request-id", "r-1"),)))
    assert found[:3] == [
        (b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-status", b"3"),
    ]  # fmt: skip
    pairs = dict(found)
    assert unquote_to_bytes(pairs[b"grpc-message"]).decode() == status.message
    packed = pairs[b"grpc-status-details-bin"]
    assert not packed.endswith(b"=")
    assert Status.FromString(b64decode(packed + b"=" * (-len(packed) % 4))) == status
    assert pairs[b"x-request-id"] == b"r-1"


def test_a_bare_refusal_has_what_there_is() -> None:
    assert seen(grpc.refusal(statuses.bare(Code.UNIMPLEMENTED, ""))) == [
        (b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-status", b"12"),
    ]  # fmt: skip
    found = seen(grpc.encoding_unknown(statuses.bare(Code.UNIMPLEMENTED, "no"), ()))
    assert found[-2:] == [(b"grpc-message", b"no"), (b"grpc-accept-encoding", b"identity,gzip")]


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("plain text ~ !", b"plain text ~ !"),
        ("100%", b"100%25"),
        ("é齿", b"%C3%A9%E9%BD%BF"),
        ("a\nb\0\x7f", b"a%0Ab%00%7F"),
        ("\ud800", b"?"),
        # HTTP/2 has no value that begins or ends with white space (RFC 9113 section 8.2.1).
        (" a b ", b"%20a b%20"),
        (" ", b"%20"),
        ("   ", b"%20 %20"),
        ("", b""),
    ],
)
def test_texts_are_percent_encoded(text: str, sent: bytes) -> None:
    assert grpc.percent_encoded(text) == sent


@given(st.text(max_size=40))
def test_any_text_arrives(text: str) -> None:
    status = Status(code=Code.INTERNAL, message=text.encode("utf-8", "replace").decode())
    found = dict(seen(grpc.refusal(status)))
    assert unquote_to_bytes(found.get(b"grpc-message", b"")).decode() == status.message


@pytest.mark.parametrize(
    ("method", "found"),
    [
        ("POST", [(b":status", b"415"), (b"accept", b"application/grpc")]),
        ("GET", [(b":status", b"405"), (b"allow", b"POST")]),
        ("", [(b":status", b"405"), (b"allow", b"POST")]),
    ],
)
def test_what_is_none_of_grpcs_gets_an_answer_of_http(method: str, found: Any) -> None:
    assert seen(grpc.not_grpc(method)) == found
