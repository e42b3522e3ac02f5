"""The only catcher: whatever ends a call becomes its status here, and nothing passes it.

A known refusal becomes its documented status. Anything else is a bug: the caller learns nothing but
a request id, the log gets the traceback.
"""

from collections.abc import Callable, Iterator
from typing import NoReturn, Protocol, TypeVar

from google.rpc.code_pb2 import Code
from google.rpc.status_pb2 import Status

from authz_service.base.errors import Refusal, Unauthenticated
from authz_service.rpc import status as statuses
from authz_service.rpc.access_log import Record
from authz_service.rpc.call import CallerGone, Metadata, Reply, UnknownMethod
from authz_service.rpc.metadata import AUTHORIZATION, REQUEST_ID
from authz_service.telemetry.logs import Logger
from authz_service.telemetry.metrics import Metrics

_FrontStatus = TypeVar("_FrontStatus", contravariant=True)


class Aborting(Protocol[_FrontStatus]):
    """A front's call that can be ended with a status of that front; grpcio's context is one."""

    def abort_with_status(self, status: _FrontStatus, /) -> NoReturn:
        """Ends the call; raises."""


class Catcher:
    """Runs the steps of a call and turns every way in which they can fail into a reply."""

    def __init__(self, logger: Logger, metrics: Metrics) -> None:
        self._logger = logger
        self._metrics = metrics

    def reply(self, steps: Callable[[Record], bytes], record: Record) -> Reply:
        """Returns the steps' payload as a reply, or the status of what they raised."""
        try:
            payload = steps(record)
        except Exception as error:
            return self.refusal(error, record)
        return Reply(payload, None, trailing(record))

    def refusal(self, error: Exception, record: Record) -> Reply:
        """Returns the status of what ended a call."""
        return Reply(b"", self._status(error, record), trailing(record))

    def replies(self, steps: Iterator[bytes], record: Record) -> Iterator[bytes | Reply]:
        """Yields the messages of a stream, and at its end a reply without payload."""
        status = None
        try:
            yield from steps
        except Exception as error:
            status = self._status(error, record)
        yield Reply(b"", status, trailing(record))

    def _status(self, error: Exception, record: Record) -> Status:
        try:
            status = self._known(error, record)
        except Exception as second:
            # Making a status failed, for example over text that is no Unicode.
            second.__context__ = error
            error, status = second, None
        if status is None:
            status = statuses.internal(record.request_id)
            record.reason = "INTERNAL"
            self._logger.error(
                "call failed",
                method=record.method.path if record.method else "",
                request_id=record.request_id,
                exc_info=error,
            )
        record.code = statuses.CODE_NAMES[status.code]
        return status

    def _known(self, error: Exception, record: Record) -> Status | None:
        """Returns the status of what may happen, None for a bug."""
        if isinstance(error, Refusal):
            record.reason = error.reason
            if isinstance(error, Unauthenticated) or error.reason == "SCOPE_MISSING":
                self._metrics.auth_failures.add(_credential_kind(record), error.reason)
            return statuses.status_of(error)
        if isinstance(error, CallerGone):
            return statuses.bare(Code.CANCELLED, "the caller has gone")
        if isinstance(error, UnknownMethod):
            return statuses.bare(Code.UNIMPLEMENTED, str(error) or "unknown method")
        return None


def trailing(record: Record) -> Metadata:
    """Returns the trailing metadata: the request id, and what the servicer added."""
    echoed = ((REQUEST_ID, record.request_id),)
    if record.context is not None and record.context.trailing:
        return (*echoed, *record.context.trailing)
    return echoed


def _credential_kind(record: Record) -> str:
    if AUTHORIZATION in record.found:
        return "bearer"
    return "certificate" if record.call.certificate_names else "none"


def end(context: Aborting[_FrontStatus], status: _FrontStatus) -> NoReturn:
    """Ends a call of a front with a status; the only place that aborts."""
    context.abort_with_status(status)
