"""Spares calls the wait for a Redis that did not answer the last ones."""

from collections.abc import Callable

from authz_service.base.clock import boot_seconds

# Failures one after the other until nobody asks any more: fewer would be taken for a lost packet.
FAILURES_MAX = 3
# How long nobody asks then; after it, one call at a time finds out.
OPEN_SECONDS = 1.0


class Breaker:
    """Tells whether Redis may be asked for what the database can answer as well.

    Threads may disagree for an instant: then one call more or less asks.

    Args:
        now: The boot clock.
    """

    def __init__(self, now: Callable[[], float] = boot_seconds) -> None:
        self._now = now
        self._failures = 0
        self._closed_at = 0.0

    @property
    def is_open(self) -> bool:
        """True while nobody need ask; each second one caller hears False, and so finds out."""
        if self._failures < FAILURES_MAX:
            return False
        now = self._now()
        if now < self._closed_at:
            return True
        self._closed_at = now + OPEN_SECONDS
        return False

    def failed(self) -> None:
        """Redis did not answer."""
        self._failures += 1
        if self._failures == FAILURES_MAX:
            self._closed_at = self._now() + OPEN_SECONDS

    def worked(self) -> None:
        """Redis answered."""
        self._failures = 0
