"""gRPC over HTTP/2: from a stream to a message, and from a reply to blocks of headers."""

import zlib
from base64 import b64encode
from urllib.parse import quote_from_bytes

from google.rpc.status_pb2 import Status

from authz_service.rpc.call import Metadata
from authz_service.rpc.fronts.h2.connection import PREFIX_BYTES, declared
from authz_service.rpc.fronts.h2.headers import literal

# What a percent-encoded message may show as it is: printable ASCII but the percent sign.
_SHOWN = "".join(chr(code) for code in range(0x20, 0x7F) if code != 0x25)
_OK = literal(b"grpc-status", b"0")
# ``:status`` 200 and the content type, by the static table.
_HEAD = b"\x88\x0f\x10\x10application/grpc"
# How the last block of a call begins that has one more field, by the name of that.
_STARTS: dict[str, bytes] = {}
_STARTS_MAX = 64
_METHOD_NOT_ALLOWED = b"\x08\x03405" + literal(b"allow", b"POST")
_UNSUPPORTED_MEDIA_TYPE = b"\x08\x03415" + literal(b"accept", b"application/grpc")
_ENCODINGS = literal(b"grpc-accept-encoding", b"identity,gzip")
GZIP = "gzip"
IDENTITY = ("", "identity")


class NotOneMessage(Exception):
    """A body that is not exactly one message; its text says what it is."""


class TooLarge(Exception):
    """A message that is larger than it may be once it is decompressed."""


def message(body: bytes, encoding: str) -> tuple[bytes, bool]:
    """Returns the one message of a body, and whether it is compressed.

    Raises:
        NotOneMessage: It has none, several, or says that it is compressed and not how.
    """
    if len(body) < PREFIX_BYTES or len(body) != declared(body) + PREFIX_BYTES:
        raise NotOneMessage("a unary call has exactly one message")
    if body[0] == 0:
        return body[PREFIX_BYTES:], False
    if body[0] != 1 or encoding in IDENTITY:
        raise NotOneMessage("the message says that it is compressed, the call does not say how")
    return body[PREFIX_BYTES:], True


def decompressed(data: bytes, bytes_max: int) -> bytes:
    """Returns what was compressed with gzip.

    Raises:
        NotOneMessage: It is not.
        TooLarge: It is above ``bytes_max``; no more than that was unpacked.
    """
    unpacking = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        unpacked = unpacking.decompress(data, bytes_max + 1)
    except zlib.error:
        raise NotOneMessage("the message is not compressed as the call says") from None
    if len(unpacked) > bytes_max:
        raise TooLarge
    if not unpacking.eof or unpacking.unused_data:
        raise NotOneMessage("the message is not compressed as the call says")
    return unpacked


def trailers(metadata: Metadata) -> bytes:
    """Returns the block that ends a call which went well."""
    if len(metadata) == 1:
        # Nearly always: the request id, of a length that needs one byte.
        ((name, value),) = metadata
        if isinstance(value, str) and len(value) < 0x7F:
            start = _STARTS.get(name)
            if start is None and len(_STARTS) < _STARTS_MAX:
                start = _STARTS[name] = _OK + literal(name.encode(), b"")[:-1]
            if start is not None:
                return b"%b%c%b" % (start, len(value), value.encode("latin-1"))
    return _OK + _fields(metadata)


def refusal(status: Status, metadata: Metadata = ()) -> bytes:
    """Returns the block that answers a call with a status and nothing else."""
    block = _HEAD + literal(b"grpc-status", b"%d" % status.code)
    if status.message:
        block += literal(b"grpc-message", percent_encoded(status.message))
    if status.details:
        details = b64encode(status.SerializeToString()).rstrip(b"=")
        block += literal(b"grpc-status-details-bin", details)
    return block + _fields(metadata)


def encoding_unknown(status: Status, metadata: Metadata) -> bytes:
    """Returns the refusal of an encoding, which tells those that are known."""
    return refusal(status, metadata) + _ENCODINGS


def not_grpc(method: str) -> bytes:
    """Returns what a request gets that is none of gRPC's."""
    return _UNSUPPORTED_MEDIA_TYPE if method == "POST" else _METHOD_NOT_ALLOWED


def percent_encoded(text: str) -> bytes:
    """Returns a message as it travels in ``grpc-message``."""
    encoded = quote_from_bytes(text.encode("utf-8", "replace"), safe=_SHOWN)
    # At the ends of a value HTTP/2 allows no space.
    if encoded.startswith(" "):
        encoded = "%20" + encoded[1:]
    if encoded.endswith(" "):
        encoded = encoded[:-1] + "%20"
    return encoded.encode()


def _fields(metadata: Metadata) -> bytes:
    return b"".join(
        literal(
            name.encode(),
            value.encode("latin-1") if isinstance(value, str) else b64encode(value).rstrip(b"="),
        )
        for name, value in metadata
    )
