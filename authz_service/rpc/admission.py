"""How many calls of which class are worked on at once; what does not fit is refused at once.

The outer wall (how many wait for a thread) belongs to the front; this is the inner one.
"""

import threading

from authz_service.base.clock import boot_seconds
from authz_service.base.errors import (
    DeadlineExceeded,
    ResourceExhausted,
    Unavailable,
    limit_reached,
)
from authz_service.rpc.call import Call
from authz_service.rpc.methods import LIST, WATCH, WORKS, WRITE
from authz_service.telemetry.metrics import Metrics


def overloaded(message: str = "the server is working on all it can") -> ResourceExhausted:
    """OVERLOADED, with the time after which to repeat."""
    return ResourceExhausted("OVERLOADED", message)


def shutting_down() -> Unavailable:
    """SHUTTING_DOWN: this process takes no more calls, another one may."""
    return Unavailable("SHUTTING_DOWN", "the server is shutting down")


def deadline_exceeded() -> DeadlineExceeded:
    """DEADLINE_EXCEEDED."""
    return DeadlineExceeded("DEADLINE_EXCEEDED", "the call's deadline passed")


class Admission:
    """Counts calls at work by class.

    Args:
        threads: Calls at work in all, streams of class ``watch`` aside. Lists and writes get half
            of it each, at least one, so that neither can keep decisions waiting.
        watch_streams: Streams of class ``watch`` at once.
        queue_seconds_max: Calls that waited longer for a thread are refused: their caller has
            probably given up, and who is served late keeps everybody late.
    """

    def __init__(
        self,
        *,
        threads: int,
        watch_streams: int,
        queue_seconds_max: float = 0.5,
        metrics: Metrics,
    ) -> None:
        half = max(1, threads // 2)
        self._caps = {LIST: half, WRITE: half, WATCH: watch_streams}
        self._threads = threads
        self._counts = dict.fromkeys(WORKS, 0)
        self._at_work = 0
        self._queue_seconds_max = queue_seconds_max
        self._lock = threading.Lock()
        self._metrics = metrics
        self._closed_at: float | None = None
        metrics.rpc_in_flight.read_from(lambda: {(work,): n for work, n in self._counts.items()})

    def close(self) -> None:
        """From now on refuses calls that arrive; those that already waited are still served."""
        if self._closed_at is None:
            self._closed_at = boot_seconds()

    @property
    def is_closed(self) -> bool:
        """True once ``close`` was called."""
        return self._closed_at is not None

    def enter(self, call: Call, work: str) -> None:
        """Takes a place for the call; the caller must give it back with ``leave``.

        Raises:
            DeadlineExceeded: The deadline passed while the call waited.
            ResourceExhausted: OVERLOADED, or LIMIT_REACHED for streams of class ``watch``.
            Unavailable: SHUTTING_DOWN.
        """
        self.judge(call)
        cap = self._caps.get(work)
        with self._lock:
            count = self._counts[work]
            is_full = (cap is not None and count >= cap) or (
                work != WATCH and self._at_work >= self._threads
            )
            if not is_full:
                self._counts[work] = count + 1
                if work != WATCH:
                    self._at_work += 1
                return
        if work == WATCH:
            self._metrics.rpc_refused.add("watch_slots")
            raise limit_reached("watch_streams", maximum=self._caps[WATCH])
        self._metrics.rpc_refused.add("overloaded")
        raise overloaded()

    def judge(self, call: Call) -> None:
        """Refuses a call for the time it waited, or because the server closes.

        For one that takes no place: its front bounds how many of those there are.

        Raises:
            DeadlineExceeded: The deadline passed while the call waited.
            ResourceExhausted: OVERLOADED.
            Unavailable: SHUTTING_DOWN.
        """
        now = boot_seconds()
        waited = now - call.arrived
        self._metrics.rpc_queue_seconds.observe(waited)
        if call.deadline is not None and call.deadline <= now:
            self._metrics.rpc_refused.add("deadline")
            raise deadline_exceeded()
        if self._closed_at is not None and call.arrived >= self._closed_at:
            raise shutting_down()
        if waited > self._queue_seconds_max:
            self._metrics.rpc_refused.add("overloaded")
            raise overloaded("the call waited too long for a thread")

    def shed(self, *, overloaded: int, expired: int) -> None:
        """Counts calls that a front refused by itself."""
        if overloaded:
            self._metrics.rpc_refused.add("overloaded", amount=overloaded)
        if expired:
            self._metrics.rpc_refused.add("deadline", amount=expired)

    def leave(self, work: str) -> None:
        """Gives back the place of a call."""
        with self._lock:
            self._counts[work] -= 1
            if work != WATCH:
                self._at_work -= 1
