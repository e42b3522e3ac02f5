"""Waiting for the end of processes that are not children of the test."""

import contextlib
import os
import select
from collections.abc import Iterator

_SECONDS = 30


@contextlib.contextmanager
def watched(*pids: int) -> Iterator[list[int]]:
    """Opens a handle on each process, so that its end can be awaited though it is not our child."""
    handles = [os.pidfd_open(pid) for pid in pids]
    try:
        yield handles
    finally:
        for handle in handles:
            os.close(handle)


def has_ended(handle: int) -> bool:
    """Waits until the process of the handle ended; False if it did not in time."""
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(_SECONDS * 1_000))
