"""Page tokens: a typed cursor, sealed and bound to its list (product.md C3, AIP-158)."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

from authz_service.base import errors
from authz_service.base.clock import wall_milliseconds
from authz_service.base.sealed import Sealer

PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 1_000
PAGE_TOKEN_SECONDS = 24 * 3_600
PAGE_TOKEN_CHARACTERS_MAX = 1_024

Cursor = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """What one call asks of a list.

    Attributes:
        size: Rows wanted, 1 to 1,000.
        after: The place of the last row of the page before; None for the first page.
    """

    size: int
    after: Cursor | None = None


@dataclass(frozen=True, slots=True)
class Binding:
    """The question a token belongs to: RPC, filters and caller, as one digest."""

    digest: str

    @classmethod
    def of(cls, *, rpc: str, filters: bytes, caller: str) -> "Binding":
        """Returns the binding; the parts are length-prefixed, so no two questions share one."""
        hashed = hashlib.blake2b(digest_size=16)
        for part in (rpc.encode(), filters, caller.encode()):
            hashed.update(len(part).to_bytes(8, "big"))
            hashed.update(part)
        return cls(hashed.hexdigest())


class Pages:
    """Makes and reads page tokens.

    Args:
        sealer: Of the purpose ``page``.
        wall_ms: The wall clock in milliseconds.
    """

    def __init__(self, sealer: Sealer, wall_ms: Callable[[], int] = wall_milliseconds) -> None:
        self._sealer = sealer
        self._wall_ms = wall_ms

    def open(self, binding: Binding, *, page_size: int, page_token: str) -> Page:
        """Returns the page that a request asks for.

        Raises:
            InvalidArgument: FIELD_INVALID (negative size), PAGE_TOKEN_INVALID (damaged, expired),
                PAGE_TOKEN_MISMATCH (of another question).
        """
        if page_size < 0:
            raise errors.field_invalid("page_size", "0 or more")
        size = min(page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
        if not page_token:
            return Page(size)
        payload = None
        if len(page_token) <= PAGE_TOKEN_CHARACTERS_MAX:
            payload = self._sealer.open(page_token)
        if payload is None:
            raise errors.InvalidArgument("PAGE_TOKEN_INVALID", "the page token is damaged")
        digest, until, *after = json.loads(payload)
        if digest != binding.digest:
            raise errors.InvalidArgument(
                "PAGE_TOKEN_MISMATCH", "the page token belongs to another question"
            )
        if until * 1_000 <= self._wall_ms():
            raise errors.InvalidArgument("PAGE_TOKEN_INVALID", "the page token has expired")
        return Page(size, tuple(after))

    def seal(self, binding: Binding, after: Cursor | None) -> str:
        """Returns the token of the page after that cursor; empty after the last page."""
        if after is None:
            return ""
        until = self._wall_ms() // 1_000 + PAGE_TOKEN_SECONDS
        return self._sealer.seal(json.dumps([binding.digest, until, *after]).encode())
