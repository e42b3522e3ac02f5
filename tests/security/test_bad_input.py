"""Bad input to every RPC, from the descriptors, so that none can be forgotten.

Whatever comes in, the answer is a documented code with a reason, nothing is written, and the next
call is answered.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from google.api import field_behavior_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from sqlalchemy import func, select

from authz_service.base.actor import SYSTEM
from authz_service.pb.authz.v1 import error_reason_pb2
from authz_service.rpc.call import Call
from authz_service.server import Worker
from authz_service.storage.tables import Event, Realm
from tests.callers import Caller, Refused, method

REASONS = {
    name.removeprefix("ERROR_REASON_")
    for name in error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_name
}
# What a request that names nothing that exists may be refused with.
ORDINARY = {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "PERMISSION_DENIED"}
NOWHERE = {
    "organization": "org_01JZ0000000000000000000000",
    "user": "user_01JZ0000000000000000000000",
    "organization_membership": "om_01JZ0000000000000000000000",
    "membership": "om_01JZ0000000000000000000000",
    "group": "group_01JZ0000000000000000000000",
    "role": "role_01JZ0000000000000000000000",
    "resource": "resource_01JZ0000000000000000000000",
    "role_assignment": "role_assignment_01JZ0000000000000000000000",
    "service_credential": "credential_01JZ0000000000000000000000",
    "event": "event_01JZ0000000000000000000000",
    "api_key": "api_key_01JZ0000000000000000000000",
}


def unary(worker: Worker) -> list[tuple[str, str]]:
    """Service and name of every unary method."""
    return [
        (each.service.rpartition(".")[2], each.name)
        for each in worker.hall.methods.values()
        if each.streaming == "unary"
    ]


def state(worker: Worker) -> tuple[Any, ...]:
    """What a write would have changed."""
    with worker.database.snapshot(SYSTEM) as snapshot:
        realms = snapshot.connection.execute(select(Realm.id, Realm.revision)).all()
        events = snapshot.connection.execute(select(func.count()).select_from(Event)).scalar_one()
    return sorted(tuple(row) for row in realms), events


def request_class(service: str, name: str) -> type[Message]:
    """The message a method takes."""
    return message_factory.GetMessageClass(method(service, name).input_type)


def refusal_of(api: Caller, service: str, name: str, request: Message | bytes) -> Refused | None:
    """How a call was refused, None if it was answered."""
    try:
        api.call(service, name, request)
    except Refused as refused:
        assert refused.reason in REASONS, f"{service}.{name}: {refused}"
        assert refused.code != "INTERNAL", f"{service}.{name}: {refused}"
        return refused
    return None


def filled(descriptor: Descriptor, depth: int = 0) -> Message:
    """A message with something in every field: ids that exist nowhere, texts of the right shape."""
    made = message_factory.GetMessageClass(descriptor)()
    chosen: set[str] = set()
    for field in descriptor.fields:
        oneof = field.containing_oneof
        if oneof is not None and oneof.name in chosen:
            continue
        if oneof is not None:
            chosen.add(oneof.name)
        _fill(made, field, depth)
    return made


def _fill(made: Message, field: FieldDescriptor, depth: int) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        getattr(made, field.name)["key"] = "value"
    elif field.message_type is not None:
        _fill_message(made, field, depth)
    elif field.type == FieldDescriptor.TYPE_STRING:
        value = text_for(field.name)
        if field.is_repeated:
            getattr(made, field.name).append(value)
        elif value:
            setattr(made, field.name, value)
    elif field.enum_type is not None:
        number = field.enum_type.values[-1].number
        if field.is_repeated:
            getattr(made, field.name).append(number)
        else:
            setattr(made, field.name, number)
    elif field.type == FieldDescriptor.TYPE_BOOL:
        setattr(made, field.name, field.name == "strong")


def _fill_message(made: Message, field: FieldDescriptor, depth: int) -> None:
    kind = field.message_type
    if depth > 3:
        return
    if kind.full_name == "google.protobuf.Timestamp":
        getattr(made, field.name).seconds = 4_000_000_000
    elif kind.full_name == "google.protobuf.Duration":
        getattr(made, field.name).seconds = 1
    elif kind.full_name == "google.protobuf.FieldMask":
        getattr(made, field.name).paths.append("name")
    elif field.is_repeated:
        getattr(made, field.name).append(filled(kind, depth + 1))
    else:
        getattr(made, field.name).CopyFrom(filled(kind, depth + 1))


def text_for(name: str) -> str:
    """A text that a field of this name could hold."""
    if name in ("page_token", "after_cursor", "etag"):
        return ""
    for suffix in ("_ids", "_id"):
        stem = name.removesuffix(suffix)
        if stem != name and stem in NOWHERE:
            return NOWHERE[stem]
    if name == "email":
        return "nobody@example.com"
    if "scopes" in name:
        return "check"
    if "kinds" in name:
        return "role.created"
    return "org-nothing" if "slug" in name else "nothing"


def is_ignored(field: FieldDescriptor) -> bool:
    """What the service sets is ignored where a caller sends it back, or compared as it is."""
    behaviors = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    return field_behavior_pb2.OUTPUT_ONLY in behaviors


def texts(descriptor: Descriptor, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all text fields that can be reached through single messages."""
    for field in descriptor.fields:
        if field.is_repeated or is_ignored(field):
            continue
        if field.type == FieldDescriptor.TYPE_STRING:
            yield (*path, field.name)
        elif (
            field.message_type is not None
            and field.message_type.full_name.startswith("authz.")
            and len(path) < 3
        ):
            yield from texts(field.message_type, (*path, field.name))


def with_text(message: Message, path: tuple[str, ...], value: str) -> Message:
    """The message with one text replaced."""
    *outer, last = path
    target = message
    for name in outer:
        target = getattr(target, name)
    setattr(target, last, value)
    return message


@pytest.mark.parametrize("payload", [b"\xff", b"\x08", b"\x0a\xff\xff\xff\xff\x0f", b"\x0b" * 64])
def test_bytes_that_are_no_message_are_refused(api: Caller, worker: Worker, payload: bytes) -> None:
    before = state(worker)
    for service, name in unary(worker):
        refused = refusal_of(api, service, name, payload)
        assert refused is not None, name
        assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", "FIELD_INVALID"), name
    assert state(worker) == before


def test_empty_requests_name_what_is_missing(api: Caller, worker: Worker) -> None:
    before = state(worker)
    answered = []
    for service, name in unary(worker):
        refused = refusal_of(api, service, name, b"")
        if refused is None:
            answered.append(name)
            continue
        # No order of roles is one, but not for want of a field: organizations may go without.
        reason = "FIELD_INVALID" if name == "SetRolePriority" else "FIELD_REQUIRED"
        assert (refused.code, refused.reason) == ("INVALID_ARGUMENT", reason), refused
        assert refused.fields, refused
    # Only lists and settings can be asked for without saying anything.
    assert all(name.startswith(("List", "Get")) for name in answered), answered
    assert state(worker) == before


def test_unknown_fields_are_ignored(api: Caller, worker: Worker) -> None:
    unknown = b"\xfa\x7f\x03abc"  # field 2047, three bytes
    for service, name in unary(worker):
        plain, with_unknown = refusal_of(api, service, name, b""), None
        with_unknown = refusal_of(api, service, name, unknown)
        assert (plain and plain.reason) == (with_unknown and with_unknown.reason), name


def test_ids_of_nothing_are_not_found(api: Caller, worker: Worker) -> None:
    before = state(worker)
    for service, name in unary(worker):
        request = filled(method(service, name).input_type)
        refused = refusal_of(api, service, name, request)
        if refused is None:
            answered = ("Create", "List", "BatchCheck", "Update", "GetConfiguration")
            assert name.startswith(answered), name
            continue
        assert refused.code in ORDINARY, f"{name}: {refused}"
    # Only what needs nothing else to exist can have been made.
    kinds = {row[0] for row in state(worker)[0]} - {row[0] for row in before[0]}
    assert all(kind.startswith("org_") for kind in kinds)


@pytest.mark.parametrize("bad", ["a\x00b", "a\nb", "\x7f", "a\x1b[31m"])
def test_control_characters_are_refused_in_every_text(
    api: Caller, worker: Worker, bad: str
) -> None:
    before = state(worker)
    for service, name in unary(worker):
        descriptor = method(service, name).input_type
        for path in texts(descriptor):
            request = with_text(filled(descriptor), path, bad)
            refused = refusal_of(api, service, name, request)
            assert refused is not None, f"{name} took {path}"
            assert refused.code in ("INVALID_ARGUMENT",), f"{name} {path}: {refused}"
    assert state(worker) == before


def test_damaged_page_tokens_are_refused(api: Caller, worker: Worker) -> None:
    seen = 0
    for service, name in unary(worker):
        descriptor = method(service, name).input_type
        if "page_token" not in descriptor.fields_by_name:
            continue
        for token in ("damaged", "A" * 2_000, "' OR 1=1 --"):
            request = filled(descriptor)
            request.page_token = token  # type: ignore[attr-defined]
            refused = refusal_of(api, service, name, request)
            assert refused is not None, name
            assert refused.code in ("INVALID_ARGUMENT", "NOT_FOUND"), f"{name}: {refused}"
            seen += refused.reason == "PAGE_TOKEN_INVALID"
        request = filled(descriptor)
        request.page_size = -1  # type: ignore[attr-defined]
        refused = refusal_of(api, service, name, request)
        assert refused is not None, name
        assert refused.code in ("INVALID_ARGUMENT", "NOT_FOUND"), f"{name}: {refused}"
    assert seen > 30


def test_damaged_consistency_tokens_are_refused(api: Caller, worker: Worker) -> None:
    seen = 0
    for service, name in unary(worker):
        descriptor = method(service, name).input_type
        if "consistency" not in descriptor.fields_by_name:
            continue
        for token in ("damaged", "x" * 600):
            request: Any = filled(descriptor)
            request.consistency.at_least_as_fresh = token
            refused = refusal_of(api, service, name, request)
            assert refused is not None, name
            assert refused.reason == "CONSISTENCY_TOKEN_INVALID", f"{name}: {refused}"
            seen += 1
        for seconds in (0, 61, -1):
            request = filled(descriptor)
            request.consistency.max_staleness.seconds = seconds
            refused = refusal_of(api, service, name, request)
            assert refused is not None, name
            assert refused.reason == "FIELD_INVALID", f"{name}: {refused}"
    assert seen == 14


def test_streams_refuse_bad_bytes_too(api: Caller, worker: Worker) -> None:
    bearer = (("authorization", f"Bearer {api._bearer}"),)
    before = state(worker)
    for path in ("/authz.v1.WatchService/Watch", "/authz.v1.DirectoryFileService/ExportDirectory"):
        *_, reply = worker.hall.stream(Call(path, bearer, b"\xff"), lambda: False)
        assert Refused(reply.status).reason == "FIELD_INVALID"
    call = Call("/authz.v1.DirectoryFileService/ImportDirectory", bearer)
    for parts in ([], [b"\xff"], [b"\x12\x03abc"]):
        reply = worker.hall.collect(call, iter(parts), lambda: False)
        assert Refused(reply.status).code == "INVALID_ARGUMENT"
    assert state(worker) == before
