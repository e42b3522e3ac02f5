"""The standard health protocol, answered without the hall: no credential, no place, no log line.

Our own servicer, because grpcio's sends to its watchers while it holds the lock that checks need:
one watcher that does not read would silence health for all.
"""

import threading
from collections.abc import Iterable, Iterator
from typing import Any

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from authz_service.rpc.call import Cancelled

SERVICE = "grpc.health.v1.Health"
CHECK = f"/{SERVICE}/Check"
WATCH = f"/{SERVICE}/Watch"

# Longest time after which a watcher sees that its caller has gone.
_LOOK_SECONDS = 5.0


class Health:
    """What each service's health is, and who wants to hear of changes."""

    def __init__(self) -> None:
        self._statuses: dict[str, Any] = {}
        self._changed = threading.Condition()
        self._is_closed = False

    def set(self, services: Iterable[str], serving: bool) -> None:
        """Sets the health of services; the empty name stands for the whole process.

        Once closed nothing changes any more: a probe that was still at work must not call a
        process that drains a serving one.
        """
        status = HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
        with self._changed:
            if self._is_closed:
                return
            for service in services:
                self._statuses[service] = status
            self._changed.notify_all()

    def close(self) -> None:
        """Ends all watches, after each has told the last change."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def check(self, request: HealthCheckRequest) -> HealthCheckResponse | None:
        """Returns the health of a service, None for an unknown one."""
        status = self._statuses.get(request.service)
        return None if status is None else _response(status)

    def watch(
        self, request: HealthCheckRequest, is_cancelled: Cancelled
    ) -> Iterator[HealthCheckResponse]:
        """Yields the health of a service now and after each change, until closed or cancelled."""
        told: Any = None
        while not is_cancelled():
            with self._changed:
                status = self._status(request.service)
                if status == told:
                    if self._is_closed:
                        return
                    self._changed.wait(_LOOK_SECONDS)
                    continue
            told = status
            yield _response(status)

    def _status(self, service: str) -> Any:
        return self._statuses.get(service, HealthCheckResponse.SERVICE_UNKNOWN)


def _response(status: Any) -> HealthCheckResponse:
    return HealthCheckResponse(status=status)
