"""Where a thread waits for something outside of this process, and who wants to know.

Python runs one thread at a time. Whoever has threads that take turns with short work lets few of
them run at once, and another one whenever one of those says here that it only waits.
"""

import threading
from types import TracebackType
from typing import Protocol


class Watcher(Protocol):
    """Who runs a thread."""

    def leaves(self) -> None:
        """The thread begins to wait."""

    def returns(self) -> None:
        """The thread goes on."""


class _OfThread(threading.local):
    watcher: Watcher | None = None


_of_thread = _OfThread()


def watch(watcher: Watcher | None) -> None:
    """Tells a watcher of all waits of the present thread."""
    _of_thread.watcher = watcher


class _Waits:
    """What is within ``with waits:`` waits for a database, for Redis, for a peer or for others.

    It may be entered again within itself: each entry is told.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        watcher = _of_thread.watcher
        if watcher is not None:
            watcher.leaves()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        watcher = _of_thread.watcher
        if watcher is not None:
            watcher.returns()


waits = _Waits()
