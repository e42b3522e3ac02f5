"""Typed, sortable, never reused ids: a prefix and a ULID. The only file that looks inside one."""

import os
import re
import threading

from authz_service.base.clock import wall_milliseconds

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_SHAPE = re.compile(r"([a-z][a-z_]{0,31})_([0-7][0-9A-HJKMNP-TV-Z]{25})")

ORGANIZATION = "org"
USER = "user"
MEMBERSHIP = "om"
GROUP = "group"
ROLE = "role"
PERMISSION = "perm"
RESOURCE_TYPE = "resource_type"
RESOURCE = "resource"
ROLE_ASSIGNMENT = "role_assignment"
API_KEY = "api_key"
EVENT = "event"
CREDENTIAL = "credential"

_lock = threading.Lock()
_last = 0


def new(prefix: str) -> str:
    """Returns a fresh id: ``prefix_`` and a 26-character ULID.

    Within one process ids rise strictly, also within one millisecond, so that "newest first by id"
    is the order in which one process created things.

    Source: the ULID specification (48 bits of milliseconds, 80 random bits, Crockford base 32).
    """
    global _last
    value = (wall_milliseconds() << 80) | int.from_bytes(os.urandom(10), "big")
    with _lock:
        # Same or earlier millisecond than the last id: go on from that one, by a random step.
        if value >> 80 <= _last >> 80:
            value = _last + 1 + int.from_bytes(os.urandom(4), "big")
        _last = value
    text = "".join(_ALPHABET[(value >> shift) & 31] for shift in range(125, -5, -5))
    return f"{prefix}_{text}"


def is_id(text: str, prefix: str) -> bool:
    """True if the text has the shape of an id with that prefix."""
    match = _SHAPE.fullmatch(text)
    return match is not None and match[1] == prefix
