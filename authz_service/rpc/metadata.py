"""What is read of a call's metadata: the five keys of product.md C13, one value each, printable.

Everything else a caller sends is ignored, and nothing of it reaches a log or a decision.
"""

import itertools
import os
import re
from dataclasses import dataclass

from authz_service.base import ids
from authz_service.base.errors import InvalidArgument, Unauthenticated, field_invalid
from authz_service.rpc.call import Metadata

AUTHORIZATION = "authorization"
IDEMPOTENCY_KEY = "idempotency-key"
REQUEST_ID = "x-request-id"
ON_BEHALF_OF = "authz-on-behalf-of-user-id"
TRACEPARENT = "traceparent"

# All keys and values of a call with 32 bytes for each pair, as HTTP/2 counts them (product.md 6).
METADATA_BYTES_MAX = 8 * 1024
_PAIR_BYTES = 32

_READ = frozenset({AUTHORIZATION, IDEMPOTENCY_KEY, REQUEST_ID, ON_BEHALF_OF, TRACEPARENT})
# A second way to say who is calling is never guessed at: these end the call.
_TWINS = frozenset({"authorization-bin", "proxy-authorization"})

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_IDEMPOTENCY_KEY = re.compile(r"[\x20-\x7e]{1,255}")
# RFC 6750: the token68 alphabet. A comma or a blank, as in joined headers, is outside of it.
_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] ([A-Za-z0-9._~+/=-]+)")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")

_DOUBLED = "\x00"


@dataclass(slots=True)
class CallMetadata:
    """The checked metadata of one call; empty where absent.

    Attributes:
        bearer: What came after ``Bearer ``.
        idempotency_key: As sent; always empty for calls that do not change anything.
        on_behalf_of_user_id: A well-formed user id, recorded and never used to decide.
    """

    bearer: str = ""
    idempotency_key: str = ""
    on_behalf_of_user_id: str = ""


# A request id is no secret, only unique: random once per process, then counted. Asking the system
# for random bytes in every call would release the interpreter in the middle of it.
_PROCESS = os.urandom(8).hex()
_COUNT = itertools.count(1)


def new_request_id() -> str:
    """Returns 32 hexadecimal digits that no other call has."""
    return f"{_PROCESS}{next(_COUNT):016x}"


def collected(metadata: Metadata) -> dict[str, str]:
    """Returns the keys that have a meaning, each with its value, or a NUL if it came twice.

    Never raises: it runs first, so that also a refusal can carry the caller's request id.
    """
    found: dict[str, str] = {}
    size = 0
    for key, value in metadata:
        size += len(key) + len(value) + _PAIR_BYTES
        if key in _READ:
            if key in found or not isinstance(value, str):
                found[key] = _DOUBLED
            else:
                found[key] = value
        elif key in _TWINS:
            found[AUTHORIZATION] = _DOUBLED
    if size > METADATA_BYTES_MAX:
        found[""] = str(size)
    return found


def request_id(found: dict[str, str]) -> str:
    """Returns the caller's request id, or a new one if it is absent, doubled or malformed."""
    given = found.get(REQUEST_ID)
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return new_request_id()


def trace_id(found: dict[str, str]) -> str:
    """Returns the trace id of a well-formed ``traceparent``, else nothing."""
    given = found.get(TRACEPARENT)
    if given is None:
        return ""
    match = _TRACEPARENT.fullmatch(given)
    return match[1] if match else ""


def checked(found: dict[str, str], *, is_mutating: bool) -> CallMetadata:
    """Returns the metadata that may be used.

    Args:
        found: From ``collected``.
        is_mutating: Whether an idempotency key has a meaning for this call.

    Raises:
        Unauthenticated: CREDENTIAL_INVALID for a doubled, joined or malformed bearer, or a twin.
        InvalidArgument: IDEMPOTENCY_KEY_INVALID, FIELD_INVALID (the user id), or
            REQUEST_TOO_LARGE for metadata above METADATA_BYTES_MAX.
    """
    if "" in found:
        raise _too_large(int(found[""]))
    bearer = ""
    authorization = found.get(AUTHORIZATION)
    if authorization is not None:
        bearer = authorization[7:]
        # Our own secrets are letters, digits and `_` after this very prefix, which is seen without
        # the expression; anything else goes through it.
        if authorization[:7] != "Bearer " or not bearer.isidentifier() or not bearer.isascii():
            match = _BEARER.fullmatch(authorization)
            if match is None:
                raise Unauthenticated(
                    "CREDENTIAL_INVALID", "authorization must be one value: Bearer and one token"
                )
            bearer = match[1]
    key = ""
    if is_mutating and IDEMPOTENCY_KEY in found:
        key = found[IDEMPOTENCY_KEY]
        if not _IDEMPOTENCY_KEY.fullmatch(key):
            raise InvalidArgument(
                "IDEMPOTENCY_KEY_INVALID",
                "idempotency-key must be one value of 1 to 255 printable ASCII characters",
            )
    user_id = ""
    if ON_BEHALF_OF in found:
        user_id = found[ON_BEHALF_OF]
        if not ids.is_id(user_id, ids.USER):
            raise field_invalid(ON_BEHALF_OF, "one well-formed user id")
    return CallMetadata(bearer, key, user_id)


def _too_large(size: int) -> InvalidArgument:
    return InvalidArgument(
        "REQUEST_TOO_LARGE",
        f"call metadata has {size} bytes, at most {METADATA_BYTES_MAX} are allowed",
        metadata={"field": "metadata", "maximum": METADATA_BYTES_MAX, "actual": size},
    )
