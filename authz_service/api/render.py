"""Times, references and masks: from protos to the values of the lower floors, and back."""

from collections.abc import Mapping
from typing import Any, cast

from google.protobuf.descriptor import Descriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from authz_service.base import errors
from authz_service.engine.facts import API_KEY, GROUP, MEMBERSHIP, USER, ResourceRef, Subject
from authz_service.pb.authz.v1 import core_pb2
from authz_service.rpc.validation import update_paths


def timestamp(instant: int) -> Timestamp:
    """Returns microseconds since 1970 as a Timestamp."""
    return Timestamp(seconds=instant // 1_000_000, nanos=instant % 1_000_000 * 1_000)


def fill_timestamp(value: Timestamp, instant: int) -> None:
    """Sets a Timestamp to microseconds since 1970."""
    value.seconds, rest = divmod(instant, 1_000_000)
    value.nanos = rest * 1_000


def instant(value: Timestamp) -> int:
    """Returns a Timestamp in whole microseconds since 1970, rounded down."""
    return value.seconds * 1_000_000 + value.nanos // 1_000


def optional_instant(message: Message, field: str) -> int | None:
    """Returns a Timestamp field of a message, None if it is absent."""
    return instant(getattr(message, field)) if message.HasField(field) else None


def span(value: Duration) -> int:
    """Returns a Duration in whole microseconds, rounded down; 0 if it is absent."""
    return value.seconds * 1_000_000 + value.nanos // 1_000


def required(field: str, value: str) -> str:
    """Returns a text that must be there.

    Raises:
        InvalidArgument: FIELD_REQUIRED.
    """
    if not value:
        raise errors.field_required(field)
    return value


def required_oneof(message: Message, name: str) -> str:
    """Returns which field of a oneof is set and not empty.

    Raises:
        InvalidArgument: FIELD_REQUIRED, with the oneof's name as the field.
    """
    chosen = message.WhichOneof(name)
    if chosen is None:
        raise errors.field_required(name)
    if isinstance(getattr(message, chosen), str) and not getattr(message, chosen):
        raise errors.field_required(chosen)
    return str(chosen)


def subject(value: core_pb2.Subject, field: str = "subject") -> Subject:
    """Returns the subject of a question.

    Raises:
        InvalidArgument: FIELD_REQUIRED.
    """
    kind = value.WhichOneof("subject")
    if kind == "organization_membership_id":
        if value.organization_membership_id:
            return Subject(MEMBERSHIP, value.organization_membership_id)
    elif kind == "user":
        user = value.user
        if user.user_id and user.organization_id:
            return Subject(USER, user.user_id, user.organization_id)
        missing = "organization_id" if user.user_id else "user_id"
        raise errors.field_required(f"{field}.user.{missing}")
    elif kind == "group_id":
        if value.group_id:
            return Subject(GROUP, value.group_id)
    elif kind == "api_key_id" and value.api_key_id:
        return Subject(API_KEY, value.api_key_id)
    raise errors.field_required(f"{field}.{kind}" if kind else field)


def resource_ref(value: core_pb2.ResourceRef, field: str = "resource") -> ResourceRef:
    """Returns the resource a request names.

    Raises:
        InvalidArgument: FIELD_REQUIRED.
    """
    kind = value.WhichOneof("resource")
    if kind == "resource_id":
        if value.resource_id:
            return ResourceRef(value.resource_id)
    elif kind == "key":
        key = value.key
        if key.organization_id and key.resource_type_slug and key.external_id:
            return ResourceRef("", key.organization_id, key.resource_type_slug, key.external_id)
        for name in ("organization_id", "resource_type_slug", "external_id"):
            if not getattr(key, name):
                raise errors.field_required(f"{field}.key.{name}")
    raise errors.field_required(f"{field}.{kind}" if kind else field)


def changes(message: Message, mask: FieldMask, *, field: str = "update_mask") -> Mapping[str, Any]:
    """Returns the masked fields of an update's object: path to new value.

    An absent Timestamp is None, a map a dict, a list a tuple.

    Raises:
        InvalidArgument: FIELD_REQUIRED for an empty mask, UPDATE_MASK_INVALID.
    """
    # The stubs of protobuf name its C class too, which is a Descriptor in all but name.
    descriptor = cast(Descriptor, message.DESCRIPTOR)
    return {path: _plain(message, path) for path in update_paths(mask, descriptor, field=field)}


def _plain(message: Message, name: str) -> Any:
    value = getattr(message, name)
    if isinstance(value, Timestamp):
        return optional_instant(message, name)
    if isinstance(value, str | bool | int):
        return value
    if hasattr(value, "items"):
        return dict(value)
    return tuple(value)
