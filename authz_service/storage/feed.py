"""The feed: numbers committed events, and wakes those who wait for them. One a process."""

import contextlib
import threading
from collections.abc import Iterator

from authz_service.base import errors
from authz_service.storage import positions, statements
from authz_service.storage.database import Database

# How often a process looks for what others have committed: bounds how late its watchers hear of it.
POLL_SECONDS = 0.5


class Feed:
    """The only sequencer and the only poller of its process, shared by all watchers.

    Somebody must call ``turn`` again and again. Whoever reads events by position calls
    ``catch_up`` first and then sees everything that was committed before (product.md M32).

    Args:
        database: Its ``on_commit`` is taken.
        poll_seconds: Longest time between two looks at the database.
    """

    def __init__(self, database: Database, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._database = database
        self._poll_seconds = poll_seconds
        self._woken = threading.Event()
        self._numbering = threading.Lock()
        self._changed = threading.Condition()
        self._position = 0
        self._watchers = 0
        database.on_commit = self._committed

    @property
    def watchers(self) -> int:
        """How many wait for events now."""
        return self._watchers

    def turn(self) -> None:
        """Waits for a commit of this process or the time to look for others', then catches up.

        Raises:
            Refusal: Those of ``catch_up``; the next turn tries again.
        """
        self._woken.wait(self._poll_seconds)
        self._woken.clear()
        self.catch_up()

    def catch_up(self, deadline: float | None = None) -> None:
        """Makes sure that every event committed before the call has its position.

        Args:
            deadline: Boot clock, seconds.

        Raises:
            Unavailable: DATABASE_UNAVAILABLE; also if it is so busy (SQLite: with one long write)
                that the events cannot be numbered.
            DeadlineExceeded: More were waiting than could be numbered in the time.
        """
        (state,) = self._database.rows(positions.STATE, {}, name=statements.FEED)
        position, is_behind = state.position, bool(state.waiting)
        while is_behind:
            # One of this process at a time: more would only wait in the database, each holding a
            # connection.
            with self._numbering:
                numbered = self._number(deadline)
            # A transaction that leaves room has taken everything there was when it began.
            position, is_behind = numbered.position, numbered.count == positions.BATCH_MAX
        with self._changed:
            if position > self._position:
                self._position = position
                self._changed.notify_all()

    def _number(self, deadline: float | None) -> positions.Numbered:
        try:
            return self._database.control(positions.number, deadline=deadline)
        except errors.Aborted as error:
            # For a reader this is no lost race of its own.
            raise errors.Unavailable(
                "DATABASE_UNAVAILABLE", "the latest events cannot be read yet", retry_seconds=1
            ) from error

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Counts a watcher: while there is one, commits wake the feed at once."""
        with self._changed:
            self._watchers += 1
        try:
            yield
        finally:
            with self._changed:
                self._watchers -= 1

    def wait(self, position: int, seconds: float) -> bool:
        """Waits until there are events after a position; True if there are."""
        with self._changed:
            return self._changed.wait_for(lambda: self._position > position, seconds)

    def _committed(self) -> None:
        # Without a watcher nobody is in a hurry: commits of half a second share one transaction.
        if self._watchers:
            self._woken.set()
