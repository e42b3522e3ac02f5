"""Repeats calls that may be repeated: those the service says are worth it, and no others."""

import random
import time
from collections.abc import Callable
from typing import Any

import grpc
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from authz_service.base.clock import boot_seconds

# What a failed call raises, for callers that should not have to know gRPC.
CallFailed = grpc.RpcError
ATTEMPTS_MAX = 5
_DETAILS = "grpc-status-details-bin"
_RETRIED = (grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE)
_BACK_OFF_SECONDS = 0.05


def _status_of(error: grpc.RpcError) -> Status | None:
    trailing: Any = error.trailing_metadata() if isinstance(error, grpc.Call) else None
    for key, value in trailing or ():
        if key == _DETAILS:
            status = Status()
            status.ParseFromString(value)
            return status
    return None


def refusal_of(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    """Returns a failed call's code and documented reason, which is empty without one."""
    code = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    status = _status_of(error)
    for detail in status.details if status else ():
        info = ErrorInfo()
        if detail.Unpack(info):
            return code, info.reason
    return code, ""


def described(error: grpc.RpcError) -> str:
    """Returns a failed call's code, reason and text on one line."""
    code, reason = refusal_of(error)
    details = error.details() if isinstance(error, grpc.Call) else ""
    return f"{code.name} {reason}: {details}" if reason else f"{code.name}: {details}"


def retrying(
    call: Callable[[float], Any],
    *,
    deadline_seconds: float,
    repeatable: bool,
    sleep: Callable[[float], None] = time.sleep,
) -> Any:
    """Makes a call, again after ABORTED and UNAVAILABLE, at most five times within the deadline.

    Args:
        call: Takes the seconds left and makes one attempt.
        deadline_seconds: For all attempts together.
        repeatable: The call is a read, or carries an idempotency key. Another write is tried once:
            after UNAVAILABLE it may have happened.

    Raises:
        grpc.RpcError: Of the last attempt.
    """
    end = boot_seconds() + deadline_seconds
    for attempt in range(1, ATTEMPTS_MAX + 1):
        try:
            return call(max(0.0, end - boot_seconds()))
        except grpc.RpcError as error:
            code, _ = refusal_of(error)
            wait = max(_wait_of(error), _BACK_OFF_SECONDS * 2**attempt) * random.uniform(0.5, 1)
            is_last = attempt == ATTEMPTS_MAX or boot_seconds() + wait >= end
            if is_last or code not in _RETRIED or not repeatable:
                raise
            sleep(wait)
    raise AssertionError("unreachable")


def _wait_of(error: grpc.RpcError) -> float:
    status = _status_of(error)
    for detail in status.details if status else ():
        info = RetryInfo()
        if detail.Unpack(info):
            return float(info.retry_delay.seconds) + float(info.retry_delay.nanos) / 1e9
    return 0.0
