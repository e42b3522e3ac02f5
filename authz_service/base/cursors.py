"""Cursors: places among all events, as sealed strings (product.md EV4, EV5)."""

from dataclasses import dataclass

from authz_service.base import errors
from authz_service.base.sealed import Sealer

CURSOR_CHARACTERS_MAX = 128
_FORMAT = "1"


@dataclass(frozen=True, slots=True)
class Place:
    """A place among all events: behind the event with that position.

    It stays a place when the rows before it are gone.

    Attributes:
        position: 0 = before all events.
        instant: When whoever holds it had seen all events up to it, in microseconds since 1970:
            the event's own time, or that of a stream which had come to the end.
    """

    position: int
    instant: int


class Cursors:
    """Makes and reads cursors. They are signed, and expire with the reach of the events.

    Args:
        sealer: Of the purpose ``cursor``.
    """

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer

    def seal(self, place: Place) -> str:
        """Returns the cursor of a place: at most 128 ASCII characters."""
        return self._sealer.seal(f"{_FORMAT} {place.position} {place.instant}".encode())

    def open(self, cursor: str) -> Place:
        """Returns the place that a cursor names.

        Raises:
            InvalidArgument: CURSOR_INVALID for anything this service did not sign.
        """
        payload = self._sealer.open(cursor) if len(cursor) <= CURSOR_CHARACTERS_MAX else None
        if payload is None:
            raise errors.InvalidArgument("CURSOR_INVALID", "the cursor is damaged")
        _, position, instant = payload.split(b" ")
        return Place(int(position), int(instant))
