"""What a refusal becomes on the wire: the only table of classes and codes (product.md C10)."""

from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.rpc.code_pb2 import Code
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status

from authz_service.base.errors import (
    Aborted,
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Refusal,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)

DOMAIN = "authz_service"

CODES: dict[type[Refusal], int] = {
    InvalidArgument: Code.INVALID_ARGUMENT,
    Unauthenticated: Code.UNAUTHENTICATED,
    PermissionDenied: Code.PERMISSION_DENIED,
    NotFound: Code.NOT_FOUND,
    AlreadyExists: Code.ALREADY_EXISTS,
    FailedPrecondition: Code.FAILED_PRECONDITION,
    Aborted: Code.ABORTED,
    ResourceExhausted: Code.RESOURCE_EXHAUSTED,
    Unavailable: Code.UNAVAILABLE,
    DeadlineExceeded: Code.DEADLINE_EXCEEDED,
}

CODE_NAMES: dict[int, str] = {value: name for name, value in Code.items()}

# After how many seconds to repeat, where the refusal itself does not say. A lost race is over when
# the winner has committed; a full server or a lost database needs longer.
RETRY_SECONDS = {"CONFLICT": 0.05, "RATE_LIMITED": 0.5, "OVERLOADED": 0.25, "USER_LOCKED": 60.0}
RETRY_SECONDS_UNAVAILABLE = 1.0

# A status travels in trailing metadata, in base 64 and its message once more beside it. Clients
# refuse more than 8 KiB of metadata, and then see nothing of the error at all.
DETAIL_BYTES_MAX = 3_500
TEXT_MAX = 256

_TYPE = "type.googleapis.com/google.rpc."
_ERROR_INFO = _TYPE + "ErrorInfo"
_BAD_REQUEST = _TYPE + "BadRequest"
_RETRY_INFO = _TYPE + "RetryInfo"
_QUOTA_FAILURE = _TYPE + "QuotaFailure"


def status_of(refusal: Refusal) -> Status:
    """Returns the refusal as a status with its details, at most about 4 KiB.

    Also for the items of a batch, so it must stay cheap: a refusal with nothing but a reason and
    metadata costs one ErrorInfo.
    """
    reason = refusal.reason
    info = ErrorInfo(reason=reason, domain=DOMAIN)
    if refusal.metadata:
        for key, value in refusal.metadata.items():
            info.metadata[key] = value if len(value) <= TEXT_MAX else value[:TEXT_MAX]
    details = [Any(type_url=_ERROR_INFO, value=info.SerializeToString())]
    if refusal.fields:
        details.append(_bad_request(refusal, DETAIL_BYTES_MAX - len(details[0].value)))
    retry_seconds = refusal.retry_seconds
    if retry_seconds is None:
        retry_seconds = RETRY_SECONDS.get(reason)
        if retry_seconds is None and isinstance(refusal, Unavailable):
            retry_seconds = RETRY_SECONDS_UNAVAILABLE
    if retry_seconds is not None:
        details.append(_retry_info(retry_seconds))
    if reason == "LIMIT_REACHED":
        details.append(_quota_failure(refusal))
    return Status(code=CODES[type(refusal)], message=refusal.message[:TEXT_MAX], details=details)


def internal(request_id: str) -> Status:
    """Returns the status of a bug: no text, only the id under which the log tells more."""
    info = ErrorInfo(reason="INTERNAL", domain=DOMAIN, metadata={"request_id": request_id})
    return Status(
        code=Code.INTERNAL, details=[Any(type_url=_ERROR_INFO, value=info.SerializeToString())]
    )


def bare(code: int, message: str = "") -> Status:
    """Returns a status without a reason, for what the gRPC protocol itself answers."""
    return Status(code=code, message=message)


def reason_of(status: Status) -> str:
    """Returns the reason inside a status, empty without one."""
    for detail in status.details:
        if detail.type_url == _ERROR_INFO:
            return str(ErrorInfo.FromString(detail.value).reason)
    return ""


def _bad_request(refusal: Refusal, bytes_left: int) -> Any:
    request = BadRequest()
    for field, description in refusal.fields:
        bytes_left -= len(field.encode()) + len(description.encode()) + 8
        if bytes_left < 0:
            break
        request.field_violations.add(field=field, description=description)
    return Any(type_url=_BAD_REQUEST, value=request.SerializeToString())


def _retry_info(seconds: float) -> Any:
    whole = int(seconds)
    info = RetryInfo(retry_delay=Duration(seconds=whole, nanos=int((seconds - whole) * 1e9)))
    return Any(type_url=_RETRY_INFO, value=info.SerializeToString())


def _quota_failure(refusal: Refusal) -> Any:
    failure = QuotaFailure()
    failure.violations.add(
        subject=refusal.metadata.get("limit", ""),
        description=f"at most {refusal.metadata.get('maximum', '')}",
    )
    return Any(type_url=_QUOTA_FAILURE, value=failure.SerializeToString())
