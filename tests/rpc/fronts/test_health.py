"""Health follows what it is told, for each service and for the whole."""

import threading
from queue import Queue

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from authz_service.rpc.fronts.health import _LOOK_SECONDS, Health


def asked(service: str = "") -> HealthCheckRequest:
    return HealthCheckRequest(service=service)


def test_a_check_tells_the_present_health_or_that_it_knows_no_such_service() -> None:
    health = Health()
    assert health.check(asked()) is None
    health.set(["", "a"], True)
    health.set(["a"], False)
    whole, part = health.check(asked()), health.check(asked("a"))
    assert whole is not None and whole.status == HealthCheckResponse.SERVING
    assert part is not None and part.status == HealthCheckResponse.NOT_SERVING
    assert health.check(asked("b")) is None


def test_a_watch_tells_changes_only_and_ends_with_the_last() -> None:
    health = Health()
    watch = health.watch(asked("a"), lambda: False)
    assert next(watch).status == HealthCheckResponse.SERVICE_UNKNOWN
    health.set(["a"], True)
    assert next(watch).status == HealthCheckResponse.SERVING
    health.set(["a"], True)
    health.set(["a"], False)
    assert next(watch).status == HealthCheckResponse.NOT_SERVING
    health.close()
    assert list(watch) == []


def test_a_watch_tells_the_last_change_also_when_closed_first() -> None:
    health = Health()
    health.set([""], True)
    watch = health.watch(asked(), lambda: False)
    next(watch)
    health.set([""], False)
    health.close()
    assert [one.status for one in watch] == [HealthCheckResponse.NOT_SERVING]


def test_nothing_changes_once_it_is_closed() -> None:
    health = Health()
    health.set([""], False)
    health.close()
    health.set([""], True)
    told = health.check(asked())
    assert told is not None and told.status == HealthCheckResponse.NOT_SERVING


def test_a_change_wakes_a_watch() -> None:
    health = Health()
    health.set([""], True)
    told: Queue[int] = Queue()

    def watching() -> None:
        for one in health.watch(asked(), lambda: False):
            told.put(one.status)

    thread = threading.Thread(target=watching, daemon=True)
    thread.start()
    assert told.get(timeout=5) == HealthCheckResponse.SERVING
    health.set([""], False)
    # Sooner than it would look by itself.
    assert told.get(timeout=_LOOK_SECONDS / 2) == HealthCheckResponse.NOT_SERVING
    health.close()
    thread.join(_LOOK_SECONDS / 2)
    assert not thread.is_alive()


def test_a_watch_whose_caller_has_gone_ends() -> None:
    assert list(Health().watch(asked(), lambda: True)) == []
