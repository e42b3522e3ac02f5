"""Derives keys by purpose from the root keys, and signs and opens opaque strings with them."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence

_KEY_ID_BYTES = 2
_MAC_BYTES = 16


def derive(root_key: bytes, purpose: str) -> bytes:
    """Returns the 32-byte key of one purpose; different purposes never share a key.

    Source: RFC 5869, the expand step with one block.
    """
    return hmac.digest(root_key, purpose.encode() + b"\x01", "sha256")


class Sealer:
    """Signs short byte strings into opaque ASCII text, and opens what it signed.

    The first root key signs, all verify, so that a key can be taken out of use in two steps. The
    text is signed, not encrypted: put nothing secret into it.

    Args:
        root_keys: At least one, each at least 32 bytes.
        purpose: Names what the strings are for; text of another purpose does not open.
    """

    def __init__(self, root_keys: Sequence[bytes], purpose: str) -> None:
        keys = [derive(root_key, "seal:" + purpose) for root_key in root_keys]
        self._keys = {hashlib.sha256(key).digest()[:_KEY_ID_BYTES]: key for key in reversed(keys)}
        self._signing_id = hashlib.sha256(keys[0]).digest()[:_KEY_ID_BYTES]
        self._signing_key = keys[0]

    def seal(self, payload: bytes) -> str:
        """Returns the payload as signed URL-safe text: a third longer, and 24 characters."""
        body = self._signing_id + payload
        mac = hmac.digest(self._signing_key, body, "sha256")[:_MAC_BYTES]
        return base64.urlsafe_b64encode(body + mac).rstrip(b"=").decode()

    def open(self, text: str) -> bytes | None:
        """Returns the payload, or None for anything this purpose and these keys did not sign."""
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        body, mac = raw[:-_MAC_BYTES], raw[-_MAC_BYTES:]
        key = self._keys.get(body[:_KEY_ID_BYTES])
        if key is None or len(mac) != _MAC_BYTES:
            return None
        expected = hmac.digest(key, body, "sha256")[:_MAC_BYTES]
        if not hmac.compare_digest(expected, mac):
            return None
        # Base 64 has spare bits in its last character: only the spelling we made is accepted.
        if base64.urlsafe_b64encode(raw).rstrip(b"=").decode() != text:
            return None
        return body[_KEY_ID_BYTES:]
