"""Waits until a service says that it serves."""

import threading
from collections.abc import Callable

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub


def is_serving_within(
    address: str, seconds: float, *, ended: Callable[[], object] | None = None
) -> bool:
    """Returns True as soon as the service says SERVING, False if it does not in time.

    Args:
        address: ``host:port`` or ``unix:/path``, plaintext.
        ended: Blocks until the service's process has ended: nobody waits for the dead.
    """
    with grpc.insecure_channel(address) as channel:
        watch = HealthStub(channel).Watch(
            HealthCheckRequest(), timeout=seconds, wait_for_ready=True
        )
        if ended is not None:
            threading.Thread(target=lambda: (ended(), watch.cancel()), daemon=True).start()
        try:
            return any(answer.status == HealthCheckResponse.SERVING for answer in watch)
        except grpc.RpcError:
            return False
        finally:
            watch.cancel()
