"""Header blocks (RFC 7541): from bytes to the head of a call, and back for our own few headers.

We offer a dynamic table of no size, so that once a peer has agreed a block means the same whatever
came before it. Then whole blocks and single fields are remembered by their bytes. Until then, and
for anything unusual, `hpack` decodes.
"""

import binascii
import re
from base64 import b64decode
from collections.abc import Iterable
from typing import Any, NamedTuple

import hpack
from hpack.table import HeaderTable

from authz_service.base.remembered import Remembered
from authz_service.rpc.fronts.h2 import huffman

# Blocks and fields above this are decoded each time: large ones are rare, and must not fill memory.
_REMEMBERED_BYTES_MAX = 512
# One of 500 bytes may stand for as many pairs, and those take far more than its bytes do.
_REMEMBERED_PAIRS_MAX = 64
# Of each kind, twice: the new ones and those before them.
_REMEMBERED_MAX = 2_048

# What a field is to us.
METADATA, IGNORED, MALFORMED = 0, 1, 2
METHOD, SCHEME, PATH, AUTHORITY = 3, 4, 5, 6
CONTENT_TYPE, TIMEOUT, ENCODING, CONTENT_LENGTH = 7, 8, 9, 10
_PSEUDO = frozenset({METHOD, SCHEME, PATH, AUTHORITY})
_PSEUDO_BITS = sum(1 << kind for kind in _PSEUDO)

_KINDS = {
    b":method": METHOD,
    b":scheme": SCHEME,
    b":path": PATH,
    b":authority": AUTHORITY,
    b"content-type": CONTENT_TYPE,
    b"grpc-timeout": TIMEOUT,
    b"grpc-encoding": ENCODING,
    b"content-length": CONTENT_LENGTH,
    b"host": IGNORED,
    # Of a connection, which HTTP/2 has none of in a message (RFC 9113 section 8.2.2).
    b"connection": MALFORMED,
    b"keep-alive": MALFORMED,
    b"proxy-connection": MALFORMED,
    b"transfer-encoding": MALFORMED,
    b"upgrade": MALFORMED,
}
# A token in lower case, or a pseudo header.
_NAME = re.compile(rb":?[!#$%&'*+.^_`|~0-9a-z-]+")
_BROKEN = re.compile(rb"[\x00\r\n]")
# ``grpc-timeout`` as a field with a new name begins, in both codings. Nearly every call has another
# one, and nothing else in a block that changes.
_TIMEOUT_HEADS = (b"\x0cgrpc-timeout", b"\x89\x9a\xca\xc8\xb2\x4d\x49\x4f\x6a\x7f")
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_TIMEOUT_DIGITS_MAX = 8
_LENGTH = re.compile(r"[0-9]{1,18}")
_CONTENT_TYPE = re.compile(r"application/grpc(\+proto)?[ \t]*(;.*)?")


class Broken(Exception):
    """A block that cannot be decoded: the compression state of the connection is lost."""


class Field(NamedTuple):
    """One header field.

    Attributes:
        kind: One of the numbers above.
        value: As text; for METADATA the pairs that it stands for.
        size: As SETTINGS_MAX_HEADER_LIST_SIZE counts it.
    """

    kind: int
    value: Any
    size: int


class Head:
    """The head of a call.

    Attributes:
        path: ``:path``.
        metadata: Everything that HTTP and gRPC do not keep for themselves, in order.
        method: ``:method``.
        is_grpc: The content type is gRPC's, with protocol buffers.
        encoding: ``grpc-encoding``; empty without one.
        length: ``content-length``, -1 without one.
        size: As SETTINGS_MAX_HEADER_LIST_SIZE counts it.
        is_malformed: HTTP/2 does not allow such a head.
        fits_trailers: HTTP/2 allows it at the end of a message.
    """

    __slots__ = (
        "encoding", "fits_trailers", "is_grpc", "is_malformed", "length", "metadata", "method",
        "path", "size",
    )  # fmt: skip

    def __init__(self, fields: Iterable[Field]) -> None:
        self.path = self.method = self.encoding = scheme = ""
        self.is_grpc = False
        self.length = -1
        malformed = False
        pairs: list[tuple[str, str | bytes]] = []
        total = 0
        # Pseudo headers, which may come once, and what gRPC reads, once as well.
        seen = 0
        is_regular = False
        for kind, value, size in fields:
            total += size
            if kind == METADATA:
                is_regular = True
                pairs += value
                continue
            if kind == IGNORED:
                is_regular = True
                continue
            bit = 1 << kind
            if kind == MALFORMED or seen & bit:
                malformed = True
            seen |= bit
            if kind in _PSEUDO:
                if is_regular:
                    malformed = True
                if kind == PATH:
                    self.path = value
                elif kind == METHOD:
                    self.method = value
                elif kind == SCHEME:
                    scheme = value
                continue
            is_regular = True
            if kind == CONTENT_TYPE:
                self.is_grpc = value
            elif kind == ENCODING:
                self.encoding = value
            elif kind == CONTENT_LENGTH:
                malformed = malformed or value is None
                self.length = value
        self.fits_trailers = not malformed and not seen & _PSEUDO_BITS
        if not (self.path and self.method and scheme):
            malformed = True
        self.metadata = tuple(pairs)
        self.size = total
        self.is_malformed = malformed


class Timeout(NamedTuple):
    """The ``grpc-timeout`` of a call.

    Attributes:
        seconds: None without one.
        is_bad: There was one that means nothing.
    """

    seconds: float | None = None
    is_bad: bool = False


Read = tuple[Head, Timeout]
_NO_TIMEOUT = Timeout()


class Tables:
    """What blocks and fields mean; for all connections of a front together."""

    def __init__(self) -> None:
        self.blocks: Remembered[bytes, Read] = Remembered(_REMEMBERED_MAX)
        self.fields: Remembered[bytes, Field] = Remembered(_REMEMBERED_MAX)
        # What stands before and after a timeout, and the head that they make together with it.
        self.around: Remembered[tuple[bytes, bytes], Head] = Remembered(_REMEMBERED_MAX)


class Reader:
    """Decodes the blocks of one connection, in order.

    Args:
        header_bytes_max: Decoding stops far above; what is just above is told by ``Head.size``.
    """

    __slots__ = ("_bytes_max", "_decoder", "_is_agreed", "_is_plain", "_tables")

    def __init__(self, tables: Tables, header_bytes_max: int) -> None:
        self._tables = tables
        self._bytes_max = header_bytes_max
        self._decoder: hpack.Decoder | None = None
        self._is_agreed = False
        # The dynamic table is empty and stays so, whatever comes.
        self._is_plain = False

    def agree(self) -> None:
        """The peer has taken our settings: from now on its dynamic table has no size."""
        self._is_agreed = True
        if self._decoder is None:
            # Nothing was ever put into the table.
            self._is_plain = True
        else:
            self._decoder.max_allowed_table_size = 0

    def read(self, block: bytes) -> Read:
        """Returns what a block says.

        Raises:
            Broken: It is no block.
        """
        if not self._is_plain:
            return self._read_early(block)
        tables = self._tables
        if len(block) > _REMEMBERED_BYTES_MAX:
            return _read(_known(plain(block, tables, is_empty=True)))
        found = tables.blocks.get(block)
        if found is None:
            found = _around_timeout(block, tables)
            if found is None:
                found = _read(_known(plain(block, tables, is_empty=True)))
                if len(found[0].metadata) <= _REMEMBERED_PAIRS_MAX:
                    tables.blocks.put(block, found)
        return found

    def _read_early(self, block: bytes) -> Read:
        """Reads while the peer may still use a dynamic table."""
        if self._decoder is None:
            fields = plain(block, self._tables, is_empty=False)
            if fields is not None:
                return _read(fields)
            self._decoder = hpack.Decoder(self._bytes_max * 4)
        try:
            pairs = self._decoder.decode(block, raw=True)
        except (hpack.HPACKError, UnicodeDecodeError, IndexError):
            raise Broken from None
        if self._is_agreed and self._decoder.header_table_size == 0:
            self._decoder, self._is_plain = None, True
        return _read([field_of(bytes(pair[0]), bytes(pair[1])) for pair in pairs])


def _known(fields: list[Field] | None) -> list[Field]:
    if fields is None:
        raise Broken
    return fields


def _read(fields: list[Field]) -> Read:
    for kind, value, _ in fields:
        if kind == TIMEOUT:
            return Head(fields), Timeout(value, value is None)
    return Head(fields), _NO_TIMEOUT


def _around_timeout(block: bytes, tables: Tables) -> Read | None:
    """Reads a block by what stands before and after its timeout; None if it cannot be done.

    That the name stands there proves nothing: it may be a part of another value. So what stands
    before it must once have been read as whole fields; then the next one begins there.
    """
    for name in _TIMEOUT_HEADS:
        at = block.find(name) - 1
        if at >= 0:
            break
    else:
        return None
    length_at = at + 1 + len(name)
    if block[at] not in (0x00, 0x10, 0x40) or length_at >= len(block):
        return None
    length = block[length_at] & 0x7F
    end = length_at + 1 + length
    if length > 16 or end > len(block):
        return None
    key = block[:at], block[end:]
    head = tables.around.get(key)
    try:
        value = _string(block, length_at, end)
        if head is None:
            parts = [plain(part, tables, is_empty=True) for part in key]
            if parts[0] is None or parts[1] is None or key[1][:1] == b"\x20":
                return None
            head = Head([*parts[0], field_of(b"grpc-timeout", b"1S"), *parts[1]])
            if len(head.metadata) <= _REMEMBERED_PAIRS_MAX:
                tables.around.put(key, head)
    except hpack.HPACKError:
        return None
    seconds = _seconds(value)
    # What is no timeout may not even be a value.
    return None if seconds is None else (head, Timeout(seconds))


def plain(block: bytes, tables: Tables, *, is_empty: bool) -> list[Field] | None:
    """Decodes a block whose meaning does not depend on what came before it.

    Args:
        is_empty: The dynamic table is empty and has no size: what is put into it is lost, and
            reducing it to nothing changes nothing.

    Returns:
        The fields; None if the block depends on a dynamic table, or is broken.
    """
    remembered = tables.fields
    found = []
    at, end = 0, len(block)
    if is_empty:
        # A peer that reduces its table says so at the start of its next block.
        while at < end and block[at] == 0x20:
            at += 1
    try:
        while at < end:
            start = at
            first = block[at]
            at += 1
            if first & 0x80:
                if not 0x80 < first <= 0x80 + len(_STATIC):
                    return None
                found.append(_STATIC[(first & 0x7F) - 1])
                continue
            if first >= 0x40:
                if not is_empty:
                    return None
                index = mask = 0x3F
            elif first >= 0x20:
                return None
            else:
                index = mask = 0x0F
            index &= first
            if index == mask:
                index, at = _number(block, at, mask)
            name_at = at
            if not index:
                length = block[at] & 0x7F
                at += 1
                if length == 0x7F:
                    length, at = _number(block, at, 0x7F)
                at += length
            value_at = at
            length = block[at] & 0x7F
            at += 1
            if length == 0x7F:
                length, at = _number(block, at, 0x7F)
            at += length
            if at > end:
                return None
            key = block[start:at]
            field = remembered.get(key)
            if field is None:
                if index > len(_STATIC):
                    return None
                name = _STATIC_NAMES[index - 1] if index else _string(block, name_at, value_at)
                field = field_of(name, _string(block, value_at, at))
                if len(key) <= _REMEMBERED_BYTES_MAX and (
                    field.kind != METADATA or len(field.value) <= _REMEMBERED_PAIRS_MAX
                ):
                    remembered.put(key, field)
            found.append(field)
    except (IndexError, hpack.HPACKError):
        return None
    return found


def _number(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """Returns the rest of a prefixed integer (RFC 7541 section 5.1), and where it ends."""
    number, shift = mask, 0
    while True:
        byte = block[at]
        at += 1
        number += (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return number, at
        if shift > 28:
            # Nothing here is that long.
            raise IndexError


def _string(block: bytes, at: int, end: int) -> bytes:
    """Returns the string literal between two places (RFC 7541 section 5.2)."""
    is_coded = block[at] & 0x80
    length = block[at] & 0x7F
    at += 1
    if length == 0x7F:
        length, at = _number(block, at, 0x7F)
    text = block[at:end]
    return huffman.decode(text) if is_coded else text


def field_of(name: bytes, value: bytes) -> Field:
    """Returns what a header field is to us."""
    size = len(name) + len(value) + 32
    if not _NAME.fullmatch(name) or _BROKEN.search(value):
        return Field(MALFORMED, None, size)
    # HTTP/2 has no blanks there, and every client of gRPC sends them if it is given them: the
    # protocol document lets them be stripped.
    value = value.strip(b" \t")
    text = value.decode("latin-1")
    kind = _KINDS.get(name)
    if kind is None:
        if name[:1] == b":" or (name == b"te" and value != b"trailers"):
            return Field(MALFORMED, None, size)
        if name == b"te" or name[:5] == b"grpc-":
            return Field(IGNORED, None, size)
        pairs = _pairs(name.decode(), text)
        return Field(MALFORMED if pairs is None else METADATA, pairs, size)
    if kind == PATH and not value:
        return Field(MALFORMED, None, size)
    if kind == TIMEOUT:
        return Field(kind, _seconds(value), size)
    if kind == CONTENT_TYPE:
        return Field(kind, _CONTENT_TYPE.fullmatch(text) is not None, size)
    if kind == CONTENT_LENGTH:
        return Field(kind, int(text) if _LENGTH.fullmatch(text) else None, size)
    return Field(kind, text, size)


def _seconds(value: bytes) -> float | None:
    """Returns what a ``grpc-timeout`` means, None if nothing."""
    digits, unit = value[:-1], _UNITS.get(value[-1:])
    if unit is None or not digits.isdigit() or len(digits) > _TIMEOUT_DIGITS_MAX:
        return None
    return int(digits) * unit


def _pairs(name: str, value: str) -> tuple[tuple[str, str | bytes], ...] | None:
    """Returns a field as metadata, None if it is none.

    Binary ones may hold several values, joined by commas.
    """
    if not name.endswith("-bin"):
        return ((name, value),)
    pairs: list[tuple[str, str | bytes]] = []
    for part in value.split(","):
        part = part.strip(" ")
        try:
            pairs.append((name, b64decode(part + "=" * (-len(part) % 4), validate=True)))
        except (binascii.Error, ValueError):
            return None
    return tuple(pairs)


_STATIC_NAMES = tuple(pair[0] for pair in HeaderTable.STATIC_TABLE)
_STATIC = tuple(field_of(*pair) for pair in HeaderTable.STATIC_TABLE)


def literal(name: bytes, value: bytes) -> bytes:
    """Returns a field that no table remembers, neither coded nor indexed."""
    return b"\x00%b%b%b%b" % (_length(name), name, _length(value), value)


def _length(text: bytes) -> bytes:
    size = len(text)
    if size < 0x7F:
        return b"%c" % size
    parts = [0x7F]
    size -= 0x7F
    while size >= 0x80:
        parts.append(size & 0x7F | 0x80)
        size >>= 7
    parts.append(size)
    return bytes(parts)
