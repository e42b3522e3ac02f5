"""Huffman coding (RFC 7541 section 5.2) as another implementation reads and writes it."""

import random

import hpack
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hpack.huffman_table import decode_huffman
from hypothesis import given
from hypothesis import strategies as st

from authz_service.rpc.fronts.h2 import huffman

ENCODER = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


def outcome(decode: object, text: bytes) -> bytes | None:
    """What a decoder makes of a text, None if it refuses it."""
    try:
        return decode(text)  # type: ignore[operator, no-any-return]
    except hpack.HPACKError:
        return None


@given(st.binary(max_size=200))
def test_what_was_coded_is_read(text: bytes) -> None:
    assert huffman.decode(ENCODER.encode(text)) == text


@given(st.binary(max_size=40))
def test_any_bytes_are_read_as_the_other_reads_them(text: bytes) -> None:
    assert outcome(huffman.decode, text) == outcome(decode_huffman, text)


def test_every_pair_of_bytes_is_read_as_the_other_reads_it() -> None:
    for number in range(65_536):
        text = number.to_bytes(2, "big")
        assert outcome(huffman.decode, text) == outcome(decode_huffman, text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"\xff", "padding of eight bits"),
        (b"\x1f\xff", "padding of more than seven bits after an a"),
        (b"\xff\xff\xff\xff", "the end of a string itself"),
        (b"\x18", "padding that is not the beginning of it"),
        (b"\xfe", "half a character"),
    ],
)
def test_what_is_no_coded_string_is_refused(text: bytes, why: str) -> None:
    with pytest.raises(hpack.HPACKDecodingError):
        huffman.decode(text)


def test_padding_up_to_seven_bits_is_fine() -> None:
    assert huffman.decode(b"") == b""
    # Five bits of an a, three of padding.
    assert huffman.decode(b"\x1f") == b"a"
    lengths = {len(ENCODER.encode(bytes((code,)))) * 8 for code in range(256)}
    assert len(lengths) == 4


def test_what_is_remembered_is_bounded() -> None:
    chosen = random.Random(1)
    for _ in range(3_000):
        outcome(huffman.decode, chosen.randbytes(30))
    assert len(huffman._steps) <= 65_536
    assert all(state < 256 for state, _, _ in huffman._steps.values())
