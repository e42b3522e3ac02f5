"""How much each caller may ask per second, in cost units; in this process only."""

import threading
from collections import OrderedDict
from collections.abc import Callable

from authz_service.base.clock import boot_seconds
from authz_service.base.errors import ResourceExhausted
from authz_service.rpc.methods import COST_ONE
from authz_service.telemetry.metrics import Metrics

# Callers remembered at once. A bucket that has refilled is as good as a new one, so dropping the
# longest unused loses nothing unless more callers than this are in debt at the same time.
BUCKETS_MAX = 10_000


class Rate:
    """A token bucket per caller that may be overdrawn.

    A bucket holds at most one second's worth. A call is admitted while one unit is left, and its
    cost is taken when it is known, also below zero: so one batch larger than the bucket passes,
    and its caller waits until the debt is paid.

    Args:
        per_second: Cost units per caller and second; 0 switches it off.
        now: The boot clock.
    """

    def __init__(
        self,
        *,
        per_second: float,
        metrics: Metrics,
        buckets_max: int = BUCKETS_MAX,
        now: Callable[[], float] = boot_seconds,
    ) -> None:
        self._per_second = per_second
        # A rate below one per second must still let one call through.
        self._most = max(per_second, COST_ONE)
        self._buckets: OrderedDict[tuple[str, str], list[float]] = OrderedDict()
        self._buckets_max = buckets_max
        self._lock = threading.Lock()
        self._metrics = metrics
        self._now = now

    def admit(self, kind: str, id: str) -> None:
        """Takes one unit from the caller's bucket.

        Raises:
            ResourceExhausted: RATE_LIMITED, with the seconds until one unit is there again.
        """
        per_second = self._per_second
        if not per_second:
            return
        key = (kind, id)
        now = self._now()
        with self._lock:
            bucket = self._buckets.get(key)
            if bucket is None:
                if len(self._buckets) >= self._buckets_max:
                    self._buckets.popitem(last=False)
                self._buckets[key] = [self._most - COST_ONE, now]
                return
            self._buckets.move_to_end(key)
            level = min(self._most, bucket[0] + (now - bucket[1]) * per_second)
            bucket[1] = now
            if level >= COST_ONE:
                bucket[0] = level - COST_ONE
                return
            bucket[0] = level
        self._metrics.rpc_refused.add("rate")
        raise ResourceExhausted(
            "RATE_LIMITED",
            "the caller asks more than its rate allows",
            retry_seconds=(COST_ONE - level) / per_second,
        )

    def charge(self, kind: str, id: str, cost: float) -> None:
        """Takes the rest of a call's cost, once its request is decoded."""
        if not self._per_second or cost <= COST_ONE:
            return
        with self._lock:
            bucket = self._buckets.get((kind, id))
            if bucket is not None:
                bucket[0] -= cost - COST_ONE
