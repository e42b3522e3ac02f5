"""Calls that need the same validation share one, if it was sent after each of them arrived."""

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from authz_service.base.waits import waits

T = TypeVar("T")

# Combinations of organizations that are asked about at once; a lane forgotten costs a validation.
_LANES_MAX = 4_096


class _Turn(Generic[T]):
    """One validation, and the calls that wait for it."""

    __slots__ = ("calls", "done", "outcome")

    def __init__(self) -> None:
        self.calls = 0
        self.done = threading.Lock()
        self.done.acquire()
        self.outcome: T | None = None


class _Lane(Generic[T]):
    """At most one turn under way, and one that waits for its end."""

    __slots__ = ("lock", "under_way", "waiting")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.under_way = threading.Lock()
        self.waiting: _Turn[T] | None = None


class Lanes(Generic[T]):
    """Shares the outcomes of a function among the calls that arrive while it is under way.

    Args:
        shared: Told how many calls shared an outcome.
    """

    def __init__(self, shared: Callable[[int], None] = lambda calls: None) -> None:
        self._lanes: dict[Hashable, _Lane[T]] = {}
        self._shared = shared

    def run(self, key: Hashable, function: Callable[[], T]) -> T | None:
        """Returns what the function gives, begun after this call; None if it raised elsewhere.

        Args:
            key: Calls with the same key share.
        """
        lane = self._lanes.get(key)
        if lane is None:
            if len(self._lanes) >= _LANES_MAX:
                self._lanes.clear()
            lane = self._lanes.setdefault(key, _Lane())
        with lane.lock:
            turn = lane.waiting
            is_first = turn is None
            if turn is None:
                turn = lane.waiting = _Turn()
            turn.calls += 1
        if not is_first:
            # Released by the first once, and by each that waited: everybody passes.
            with waits, turn.done:
                return turn.outcome
        with waits, lane.under_way:
            with lane.lock:
                # Who arrives from now on was not there when this is sent.
                lane.waiting = None
            try:
                turn.outcome = function()
            finally:
                turn.done.release()
        self._shared(turn.calls)
        return turn.outcome
