"""Secrets we hand out (service credentials, API keys), and a type that never prints its value.

A secret is ``<prefix>_<ULID of the id>_<256 random bits>``: the middle finds the row, the whole
text is what is hashed, so that a secret cannot be moved to another id.
"""

import hmac
import os
import re
from collections.abc import Sequence

from authz_service.base import ids

SERVICE_CREDENTIAL = "azc"
API_KEY = "sk"

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# 62 ** 43 is the first power of 62 above 2 ** 256.
_RANDOM_LENGTH = 43
_SHAPE = re.compile(r"([a-z]{2,8})_([0-9A-Z]{26})_[0-9A-Za-z]{43}")
# Longest text that can have the shape; anything longer is refused before it is looked at.
LENGTH_MAX = 8 + 1 + 26 + 1 + _RANDOM_LENGTH


class Secret:
    """A text that shows itself as ``***`` everywhere but in ``reveal()``."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Returns the text itself."""
        return self._value

    def __repr__(self) -> str:
        return "***"

    def __str__(self) -> str:
        return "***"

    def __format__(self, _spec: str) -> str:
        return "***"

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    # A secret as a key of a dict would be compared and found in time that depends on it.
    __hash__ = None  # type: ignore[assignment]


def make(prefix: str, id_prefix: str, id: str) -> Secret:
    """Returns a fresh secret for the row of that id.

    Args:
        prefix: SERVICE_CREDENTIAL or API_KEY.
        id_prefix: The prefix of the id, from ``base/ids.py``.
        id: The id of the row, with that prefix.

    Raises:
        ValueError: The id does not have that prefix: a bug of the caller.
    """
    if not ids.is_id(id, id_prefix):
        raise ValueError(f"not an id with prefix {id_prefix}")
    number = int.from_bytes(os.urandom(32), "big")
    digits = []
    for _ in range(_RANDOM_LENGTH):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return Secret(f"{prefix}_{id.removeprefix(id_prefix + '_')}_{''.join(digits)}")


def id_of(prefix: str, id_prefix: str, text: str) -> str | None:
    """Returns the id that a secret names, None for text that is no secret of that kind.

    Says nothing about whether the secret is right: compare its hash for that.
    """
    if len(text) > LENGTH_MAX:
        return None
    match = _SHAPE.fullmatch(text)
    if match is None or match[1] != prefix:
        return None
    id = f"{id_prefix}_{match[2]}"
    return id if ids.is_id(id, id_prefix) else None


def hashed(key: bytes, text: str) -> bytes:
    """Returns the 32 bytes to store for a secret.

    Args:
        key: The derived key of this purpose, from ``base/sealed.py``.

    256 random bits need no slow hash; the key makes a copy of the database useless by itself.
    """
    return hmac.digest(key, text.encode("utf-8", "surrogatepass"), "sha256")


def matches(keys: Sequence[bytes], text: str, stored: bytes) -> bool:
    """True if the stored hash is that of this secret under one of the keys.

    Takes the same time for every text of one length, and for every key that could match.

    Args:
        keys: All keys in force: the first makes new hashes, old ones are still recognised.
    """
    found = False
    for key in keys:
        found |= hmac.compare_digest(hashed(key, text), stored)
    return found


def obfuscated(text: str) -> str:
    """Returns what may be shown of a secret later: its prefix and its last four characters."""
    return f"{text.partition('_')[0]}_…{text[-4:]}"
