"""A serving process of the harness: ``authz serve``, with what a test wants to happen inside it.

    python -m tests.consistency.server ORDERS

ORDERS is JSON: ``naive`` puts the cache that lies in the place of the product's, ``fill_seconds``
delays fills, ``seed`` makes the delays random, ``late_seconds`` is how long validations of the
decision front are under way, with ``joins`` a call shares one that was sent before it arrived, and
``failpoints`` is a folder in which a test
leaves a file to have the process killed or stopped at a point of its next write, its wall clock
jump, or its boot clock run at another rate.
"""

import faulthandler
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import authz_service.server
from authz_service import cli
from authz_service.base.clock import utc_now
from authz_service.storage.cache.marking import Marked, Marking, Tags
from authz_service.storage.cache.redis_control import RedisControl
from authz_service.storage.cache.views import Views, _Soon
from tests.consistency.naive import NaiveFacts, NaiveMarking, Store

# The file that says how far the wall clock is ahead.
CLOCK = "clock"
# The file that says how fast the boot clock is, and how often it is looked at.
RATE = "rate"
RATE_SECONDS = 0.05
# Where a write can be cut: it holds its locks and is not marked; marked, not committed; committed,
# not bumped; bumped, not answered.
POINTS = ("before mark", "after mark", "after commit", "after bump")


class Delays:
    """Waits now and then, for as long as a slow thread or network would."""

    def __init__(self, seed: int, seconds_max: float) -> None:
        self._random = random.Random(seed)
        self._seconds_max = seconds_max
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            # Short ones mostly, for they meet other calls most often.
            seconds = self._seconds_max * self._random.random() ** 3
        threading.Event().wait(seconds)


class DelayedViews(Views):
    """The product's views, with time passing between a snapshot and each fill from it."""

    delay: Callable[[], None] = staticmethod(lambda: None)

    def put(self, *arguments: Any, **named: Any) -> Any:
        self.delay()
        return super().put(*arguments, **named)


class JoiningViews(DelayedViews):
    """Views that break one rule: a call shares the validation that is under way already."""

    def validate_soon(
        self, control: Any, combinations: Any, then: Callable[[Any], None], poller: Any
    ) -> None:
        if self._under_way is not None:
            self._under_way.append(_Soon(control, combinations, then))
        else:
            super().validate_soon(control, combinations, then, poller)


def delay_validations(seconds: float) -> None:
    """Lets the decision front hear late of what Redis answered, as from a Redis far away."""
    honest = RedisControl.validate_soon

    def late(self: RedisControl, looks: Any, then: Callable[[Any], None], poller: Any) -> None:
        def answered(replies: Any) -> None:
            poller.call_later(seconds, lambda: then(replies))

        honest(self, looks, answered, poller)

    RedisControl.validate_soon = late  # type: ignore[method-assign]


class Failpoints:
    """Ends or stops this process at a point, once, if a test has left a file for it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def pass_by(self, point: str) -> None:
        """Does what was ordered for the point.

        Args:
            point: One of ``POINTS``.
        """
        order = self._folder / point
        try:
            what = order.read_text()
            # Only one of several writes that come by together takes the order.
            order.rename(self._folder / f"{point}.done")
        except OSError:
            return
        os.kill(os.getpid(), signal.Signals[what])


class _PassingMarked:
    def __init__(self, marked: Marked, failpoints: Failpoints) -> None:
        self._marked, self._failpoints = marked, failpoints

    def bump(self, *, committed: bool) -> Mapping[str, int]:
        if committed:
            self._failpoints.pass_by("after commit")
        sequences = self._marked.bump(committed=committed)
        if committed:
            self._failpoints.pass_by("after bump")
        return sequences


class PassingMarking:
    """The product's marking, between failpoints."""

    def __init__(self, marking: Marking, failpoints: Failpoints) -> None:
        self._marking, self._failpoints = marking, failpoints

    def mark(self, connection: Any, tags: Tags) -> Marked:
        self._failpoints.pass_by("before mark")
        marked = self._marking.mark(connection, tags)
        self._failpoints.pass_by("after mark")
        return _PassingMarked(marked, self._failpoints)


class JumpingClock:
    """The wall clock, as far ahead or behind as a test says.

    Args:
        file: Holds the seconds; absent = none.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def __call__(self) -> datetime:
        try:
            seconds = float(self._file.read_text())
        except FileNotFoundError:
            seconds = 0.0
        return utc_now() + timedelta(seconds=seconds)


class RatedClock:
    """All clocks of the machine, of which the boot clock runs at the rate that a test says.

    It takes the place of ``time.clock_gettime``, so that nothing here knows better.

    Args:
        file: Holds the rate; absent = 1.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._honest = time.clock_gettime
        self._rate = 1.0
        self._since = self._shown = self._looked = self._honest(time.CLOCK_BOOTTIME)
        self._lock = threading.Lock()

    def __call__(self, clock: int) -> float:
        now = self._honest(clock)
        if clock != time.CLOCK_BOOTTIME:
            return now
        with self._lock:
            if now - self._looked >= RATE_SECONDS:
                self._looked = now
                self._turn(now)
            return self._shown + (now - self._since) * self._rate

    def _turn(self, now: float) -> None:
        try:
            rate = float(self._file.read_text())
        except FileNotFoundError:
            rate = 1.0
        if rate != self._rate:
            # It changes its pace and does not jump.
            self._shown += (now - self._since) * self._rate
            self._since, self._rate = now, rate


class ProtocolWorker(authz_service.server.Worker):
    """The product's worker, with failpoints around its marking and a clock that can jump."""

    failpoints: Failpoints | None = None
    clock: Callable[[], datetime] = staticmethod(utc_now)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, clock=self.clock, **named)

    def _cache(self, *arguments: Any) -> Any:
        marking, *others = super()._cache(*arguments)
        if self.failpoints is not None:
            marking = PassingMarking(marking, self.failpoints)
        return (marking, *others)


class NaiveWorker(authz_service.server.Worker):
    """The product's worker with a cache that is told of changes after COMMIT."""

    delay: Callable[[], None] = staticmethod(lambda: None)

    def _cache(self, config: Any, exits: Any) -> Any:
        self._store = Store(config.cache.redis_url.reveal())
        exits.callback(self._store.close)
        return NaiveMarking(self._store), None, lambda: None

    def _fact_source(self, *arguments: Any) -> Any:
        return NaiveFacts(self.database, self._store, self.metrics, self.delay)


def main() -> None:
    """Runs the server as ordered."""
    # SIGUSR1 tells what every thread is doing: on the log, for whoever looks into a run that hangs.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    orders = json.loads(sys.argv[1])
    delay = Delays(orders["seed"], orders["fill_seconds"])
    if orders["naive"]:
        NaiveWorker.delay = staticmethod(delay)
        authz_service.server.Worker = NaiveWorker  # type: ignore[misc]
    else:
        DelayedViews.delay = staticmethod(delay)
        views = JoiningViews if orders.get("joins") else DelayedViews
        authz_service.server.Views = views  # type: ignore[misc]
        if orders.get("late_seconds"):
            delay_validations(orders["late_seconds"])
        if orders["failpoints"]:
            folder = Path(orders["failpoints"])
            ProtocolWorker.failpoints = Failpoints(folder)
            ProtocolWorker.clock = staticmethod(JumpingClock(folder / CLOCK))
            time.clock_gettime = RatedClock(folder / RATE)
        authz_service.server.Worker = ProtocolWorker  # type: ignore[misc]
    sys.argv = ["authz", "serve"]
    cli.main()


if __name__ == "__main__":
    main()
