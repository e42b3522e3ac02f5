"""Wall time and boot time. Parts that need a clock take one of these functions as an argument."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Returns the wall clock, in UTC, with microseconds."""
    return datetime.now(UTC)


def wall_milliseconds() -> int:
    """Returns the wall clock in whole milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def boot_seconds() -> float:
    """Returns seconds on a clock that never jumps and counts while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def microseconds(instant: datetime) -> int:
    """Returns an instant as whole microseconds since 1970, as it is stored and compared."""
    return (instant - _EPOCH) // _MICROSECOND


def to_datetime(instant: int) -> datetime:
    """Returns a stored instant as a datetime in UTC."""
    return _EPOCH + timedelta(microseconds=instant)
