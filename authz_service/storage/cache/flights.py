"""One computation of a missing fact at a time, and not too many of all together."""

import contextlib
import threading
from collections.abc import Collection, Hashable, Iterator

from authz_service.base import errors
from authz_service.base.waits import waits

# Longer than a snapshot takes; who waited so long is better told than kept.
WAIT_SECONDS = 2.0


class Flights:
    """Keeps a cold cache from asking SQL the same thing a thousand times.

    Args:
        together_max: Computations at once; more wait.
    """

    def __init__(self, together_max: int) -> None:
        self._room = threading.BoundedSemaphore(together_max)
        self._under_way: dict[Hashable, threading.Event] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def alone(self, keys: Collection[Hashable], *, waiting: bool) -> Iterator[bool]:
        """Waits while somebody computes one of these, else makes the caller the one who does.

        Gives False after such a wait: what was missing may be there now.

        Args:
            waiting: False for who waited already: what is still missing then cannot be kept.

        Raises:
            ResourceExhausted: OVERLOADED, after ``WAIT_SECONDS``.
        """
        mine, keys = threading.Event(), set(keys)
        with self._lock:
            other = next((self._under_way[key] for key in keys if key in self._under_way), None)
            if other is None:
                for key in keys:
                    self._under_way[key] = mine
        if other is not None and waiting:
            with waits:
                if not other.wait(WAIT_SECONDS):
                    raise _overloaded()
            yield False
            return
        try:
            with waits:
                if not self._room.acquire(timeout=WAIT_SECONDS):
                    raise _overloaded()
            try:
                yield True
            finally:
                self._room.release()
        finally:
            if other is None:
                with self._lock:
                    for key in keys:
                        del self._under_way[key]
                mine.set()


def _overloaded() -> errors.ResourceExhausted:
    return errors.ResourceExhausted(
        "OVERLOADED", "too many facts are being read at once", retry_seconds=1
    )
