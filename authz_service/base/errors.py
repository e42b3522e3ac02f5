"""The tree of refusals: every way in which the service says no, in its own words.

Refusal
  InvalidArgument      the request itself is wrong
  Unauthenticated      nobody we know is calling
  PermissionDenied     the caller may not call this
  NotFound             the named thing does not exist for this caller
  AlreadyExists        a unique value is in use
  FailedPrecondition   the state of the directory forbids it
  Aborted              a lost race or a stale etag: read and repeat
  ResourceExhausted    a limit, a rate or the whole server
  Unavailable          a part we need is away
  DeadlineExceeded     the caller's time is over

Which gRPC code a class becomes is written once, in rpc/status.py. The reasons are those of
protos/authz/v1/error_reason.proto and no others.
"""

from collections.abc import Mapping, Sequence


class Refusal(Exception):
    """A known refusal with its documented reason.

    Args:
        reason: A value of the enum ErrorReason, without prefix (``ROLE_NOT_FOUND``).
        message: One sentence for the developer who reads the error; never repeats a secret or a
            name that the caller may not see.
        metadata: Details documented with the reason; values become strings.
        fields: (field path, what is wrong) for each bad field, for ``google.rpc.BadRequest``.
        retry_seconds: When repeating the call makes sense, after how many seconds.
    """

    def __init__(
        self,
        reason: str,
        message: str = "",
        *,
        metadata: Mapping[str, object] | None = None,
        fields: Sequence[tuple[str, str]] = (),
        retry_seconds: float | None = None,
    ) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message or reason.lower().replace("_", " ")
        self.metadata = {key: str(value) for key, value in (metadata or {}).items()}
        self.fields = tuple(fields)
        self.retry_seconds = retry_seconds


class InvalidArgument(Refusal):
    """The request is wrong whatever the state of the directory."""


class Unauthenticated(Refusal):
    """No valid credential came with the call."""


class PermissionDenied(Refusal):
    """The credential does not allow the call."""


class NotFound(Refusal):
    """What the request names does not exist, or is hidden from this caller (C16, C17)."""


class AlreadyExists(Refusal):
    """A unique value is in use."""


class FailedPrecondition(Refusal):
    """The present state forbids the change; repeating it unchanged will not help."""


class Aborted(Refusal):
    """A concurrent change won; read the object again and repeat."""


class ResourceExhausted(Refusal):
    """A limit of section 6 of product.md, the caller's rate, or the server's capacity."""


class Unavailable(Refusal):
    """A part of the service is away; after a write it may or may not have happened."""


class DeadlineExceeded(Refusal):
    """The call's deadline passed."""


def field_required(field: str) -> InvalidArgument:
    """FIELD_REQUIRED for one field path (``role.name``)."""
    return InvalidArgument(
        "FIELD_REQUIRED",
        f"{field} is required",
        metadata={"field": field},
        fields=[(field, "is required")],
    )


def field_invalid(field: str, rule: str) -> InvalidArgument:
    """FIELD_INVALID for one field path, with the rule it broke (``1 to 256 characters``)."""
    return InvalidArgument(
        "FIELD_INVALID",
        f"{field}: {rule}",
        metadata={"field": field, "rule": rule},
        fields=[(field, rule)],
    )


def fields_exclusive(*fields: str, rule: str = "at most one of these") -> InvalidArgument:
    """FIELDS_EXCLUSIVE for inputs that may not come together, or one entry in two lists."""
    return InvalidArgument(
        "FIELDS_EXCLUSIVE",
        f"{', '.join(fields)}: {rule}",
        metadata={"fields": ",".join(fields), "rule": rule},
        fields=[(field, rule) for field in fields],
    )


def request_too_large(field: str, *, maximum: int, actual: int) -> InvalidArgument:
    """REQUEST_TOO_LARGE for a list or message above its limit (product.md section 6)."""
    return InvalidArgument(
        "REQUEST_TOO_LARGE",
        f"{field} has {actual} entries, at most {maximum} are allowed",
        metadata={"field": field, "maximum": maximum, "actual": actual},
        fields=[(field, f"at most {maximum}")],
    )


def limit_reached(limit: str, *, maximum: int) -> ResourceExhausted:
    """LIMIT_REACHED for a stored total or a number of streams (product.md section 6)."""
    return ResourceExhausted(
        "LIMIT_REACHED",
        f"{limit}: at most {maximum}",
        metadata={"limit": limit, "maximum": maximum},
    )
