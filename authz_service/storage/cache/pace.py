"""Compares how fast the clock of this process and that of the database run."""

from typing import NamedTuple

# Leases and settles are durations on the clocks of different machines, and allow for so much.
RATE_ERROR_MAX = 0.02


class _Reading(NamedTuple):
    """What the database said its clock is, and this process's clock before and after that."""

    before: float
    sql: int
    after: float


class Pace:
    """Tells whether durations of this process can be those of the others.

    What is found holds until something else is: a clock that was found to run wrong is not believed
    again before it was found to run right. A step of the database's clock looks like a wrong rate,
    until it is over.

    Attributes:
        is_right: Nothing else was found last.
    """

    def __init__(self) -> None:
        self.is_right = True
        self._since: _Reading | None = None

    def begin_anew(self) -> None:
        """Forgets what another database said."""
        self._since = None

    def compare(self, before: float, sql: int, after: float) -> bool:
        """Compares with an earlier reading.

        Args:
            before, after: The boot clock, around the statement that read the database's.
            sql: Microseconds.

        Returns:
            ``is_right``.
        """
        now, since = _Reading(before, sql, after), self._since
        if since is None:
            self._since = now
            return self.is_right
        passed = (now.sql - since.sql) / 1_000_000
        slowest, fastest = passed * (1 - RATE_ERROR_MAX), passed * (1 + RATE_ERROR_MAX)
        # It took some time to hear of the database's clock, so that ours is known within limits.
        least, most = now.before - since.after, now.after - since.before
        if slowest <= least and most <= fastest:
            self.is_right = True
        elif most < slowest or fastest < least:
            self.is_right = False
        else:
            # A longer time will tell.
            return self.is_right
        self._since = now
        return self.is_right
