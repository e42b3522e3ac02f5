"""Huffman-coded strings (RFC 7541 section 5.2), a byte at a time.

`hpack` has the automaton and goes through it by half bytes, a microsecond for each character. Here
its steps are put together to whole bytes as they are met, and remembered: at most 65,536.
"""

from hpack.exceptions import HPACKDecodingError
from hpack.huffman_table import (
    HUFFMAN_COMPLETE,
    HUFFMAN_EMIT_SYMBOL,
    HUFFMAN_FAIL,
    HUFFMAN_TABLE,
)

# (state, byte) -> next state, what is emitted, whether the string may end here.
_steps: dict[int, tuple[int, bytes, bool]] = {}


def decode(text: bytes) -> bytes:
    """Returns what a coded string says.

    Raises:
        HPACKDecodingError: It is none, or ends in the middle of a character.
    """
    state, is_end = 0, True
    pieces = []
    steps = _steps
    for byte in text:
        key = state << 8 | byte
        step = steps.get(key)
        if step is None:
            step = steps[key] = _step(state, byte)
        state, piece, is_end = step
        pieces.append(piece)
    if not is_end:
        raise HPACKDecodingError
    return b"".join(pieces)


def _step(state: int, byte: int) -> tuple[int, bytes, bool]:
    emitted, flags = b"", 0
    for half in (byte >> 4, byte & 0x0F):
        state, flags, character = HUFFMAN_TABLE[state * 16 + half]
        if flags & HUFFMAN_FAIL:
            raise HPACKDecodingError
        if flags & HUFFMAN_EMIT_SYMBOL:
            emitted += bytes((character,))
    return state, emitted, bool(flags & HUFFMAN_COMPLETE)
