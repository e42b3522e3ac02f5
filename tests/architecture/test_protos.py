"""What buf cannot say about the contract, read from the descriptors that ship with the stubs.

The rules are those of docs/product.md sections 4.0 and 7 and docs/architecture.md section 8.
"""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
from google.api.field_behavior_pb2 import FieldBehavior, field_behavior
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet, MethodOptions
from grpc import StatusCode

from authz_service.pb.authz.v1.options_pb2 import required_scope

ROOT = Path(__file__).resolve().parents[2]

# product.md C12.
SCOPES = frozenset(
    [
        *("check", "list", "explain", "read", "watch", "authenticate", "scim", "admin"),
        *("write:organizations", "write:users", "write:memberships", "write:roles"),
        *("write:resources", "write:assignments", "write:flags", "write:api_keys"),
        *("write:sessions", "write:directories", "write:audit", "read:audit"),
    ]
)

# The headings of product.md section 4: the scope of a service's readers and of its other RPCs.
SCOPES_OF_SERVICE = {
    "OrganizationService": ("read", "write:organizations"),
    "UserService": ("read", "write:users"),
    "OrganizationMembershipService": ("read", "write:memberships"),
    "GroupService": ("read", "write:memberships"),
    "RoleService": ("read", "write:roles"),
    "PermissionService": ("read", "write:roles"),
    "ResourceTypeService": ("read", "write:roles"),
    "ResourceService": ("read", "write:resources"),
    "RoleAssignmentService": ("read", "write:assignments"),
    "AuthorizationService": ("check", None),
    "WatchService": ("watch", None),
    "EventService": ("watch", None),
    "ConfigurationService": ("read", "admin"),
    "DirectoryFileService": ("admin", "admin"),
}
SCOPES_OF_RPC = {
    "AuthorizationService.ListResources": "list",
    "AuthorizationService.ListMembers": "list",
    "AuthorizationService.ListPermissions": "list",
    "AuthorizationService.Explain": "explain",
    "ConfigurationService.ListServiceCredentials": "admin",
}

# Two services have RPCs of these names; product.md C1 says whose messages carry the service's name.
LONG_NAMES = frozenset({"ListResources", "ListPermissions"})

# These name their object in the request instead of carrying it (product.md C4).
NAMES_ITS_OBJECT = frozenset({"UpdateResource", "UpdateOrganizationMembership"})

READER = re.compile(r"(Get|List|Check|BatchCheck|Explain|Watch|Export)")
NO_ERRORS = "Errors: only those that every RPC may answer."


@dataclass(frozen=True)
class Rpc:
    """An RPC, with the comment above it, one line each."""

    method: MethodDescriptor
    comment: str

    def __str__(self) -> str:
        return f"{self.method.containing_service.name}.{self.method.name}"

    @property
    def name(self) -> str:
        return str(self.method.name)

    @property
    def request(self) -> dict[str, FieldDescriptor]:
        return dict(self.method.input_type.fields_by_name)

    @property
    def response(self) -> dict[str, FieldDescriptor]:
        return dict(self.method.output_type.fields_by_name)

    @property
    def is_reader(self) -> bool:
        return bool(self.method.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS)

    def errors(self) -> list[tuple[str, str]]:
        """The documented (code, reason) pairs in their order, continuation lines joined."""
        block = self.comment.partition("Errors:\n")[2].partition("\n\n")[0]
        entries = re.sub(r"\n +(?!- )", " ", block)
        pairs = []
        for line in entries.splitlines():
            entry = re.fullmatch(r"- ([A-Z_]+): ([A-Z_]+(?:, [A-Z_]+)*)", line.strip())
            assert entry, f"{self}: {line!r} is not `- CODE: REASON, REASON`"
            pairs += [(entry[1], reason) for reason in entry[2].split(", ")]
        return pairs


def _files() -> list[FileDescriptorProto]:
    image = (ROOT / "authz_service" / "pb" / "descriptors.binpb").read_bytes()
    return [file for file in FileDescriptorSet.FromString(image).file if file.package == "authz.v1"]


def _comments(file: FileDescriptorProto) -> dict[tuple[int, ...], str]:
    """The comments of a file by descriptor path, without the space that follows ``//``."""
    return {
        tuple(location.path): re.sub(r"(?m)^ ", "", location.leading_comments)
        for location in file.source_code_info.location
    }


FILES = _files()
MODULES = {
    file.name: import_module(
        "authz_service.pb." + file.name.removesuffix(".proto").replace("/", ".") + "_pb2"
    )
    for file in FILES
}


def _rpcs() -> Iterator[Rpc]:
    for file in FILES:
        comments = _comments(file)
        for i, service in enumerate(file.service):
            methods = MODULES[file.name].DESCRIPTOR.services_by_name[service.name].methods
            for j, method in enumerate(methods):
                yield Rpc(method, comments.get((6, i, 2, j), ""))


def _messages() -> Iterator[Descriptor]:
    for module in MODULES.values():
        waiting = list(module.DESCRIPTOR.message_types_by_name.values())
        while waiting:
            message = waiting.pop()
            if not message.GetOptions().map_entry:
                yield message
            waiting += message.nested_types


def _reasons() -> dict[str, str]:
    """The comment of each reason by its name without the prefix."""
    file = next(file for file in FILES if file.name == "authz/v1/error_reason.proto")
    comments = _comments(file)
    return {
        value.name.removeprefix("ERROR_REASON_"): comments.get((5, 0, 2, i), "")
        for i, value in enumerate(file.enum_type[0].value)
        if value.number
    }


RPCS = list(_rpcs())
MESSAGES = list(_messages())
REASONS = _reasons()

each_rpc = pytest.mark.parametrize("rpc", RPCS, ids=str)
each_message = pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.name)


def _behaviors(field: FieldDescriptor) -> list[int]:
    return list(field.GetOptions().Extensions[field_behavior])


def _is_required(field: FieldDescriptor | None) -> bool:
    return field is not None and FieldBehavior.REQUIRED in _behaviors(field)


def _type(field: FieldDescriptor | None) -> str:
    """The full name of a message or enum field's type, empty for others."""
    kind = (field.message_type or field.enum_type) if field else None
    return str(kind.full_name) if kind else ""


def _reachable(message: Descriptor) -> set[str]:
    """The full names of a message and of all messages it may contain."""
    found: set[str] = set()
    waiting = [message]
    while waiting:
        current = waiting.pop()
        if current.full_name not in found:
            found.add(current.full_name)
            waiting += [field.message_type for field in current.fields if field.message_type]
    return found


OUTPUTS = set().union(*(_reachable(m) for m in MESSAGES if m.name.endswith("Response")))


def test_buf_finds_neither_style_problems_nor_breaking_changes() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "protos" / "lint.py")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_each_service_has_a_file_of_its_own_and_its_scopes_are_known() -> None:
    assert [file.name for file in FILES if len(file.service) > 1] == []
    assert {service.name for file in FILES for service in file.service} == set(SCOPES_OF_SERVICE)
    assert set(SCOPES_OF_RPC) <= {str(rpc) for rpc in RPCS}


@each_rpc
def test_scope_is_that_of_the_specification(rpc: Rpc) -> None:
    reading, writing = SCOPES_OF_SERVICE[rpc.method.containing_service.name]
    expected = SCOPES_OF_RPC.get(str(rpc), reading if rpc.is_reader else writing)
    assert rpc.method.GetOptions().Extensions[required_scope] == expected
    assert expected in SCOPES


@each_rpc
def test_exactly_the_readers_declare_no_side_effects(rpc: Rpc) -> None:
    level = rpc.method.GetOptions().idempotency_level
    assert level in (MethodOptions.IDEMPOTENCY_UNKNOWN, MethodOptions.NO_SIDE_EFFECTS)
    assert rpc.is_reader == bool(READER.match(rpc.name))


@each_rpc
def test_messages_are_named_after_their_rpc(rpc: Rpc) -> None:
    service = rpc.method.containing_service.name
    stem = (
        service + rpc.name if service == "AuthorizationService" and rpc.name in LONG_NAMES else ""
    )
    assert rpc.method.input_type.name == (stem or rpc.name) + "Request"
    assert rpc.method.output_type.name == (stem or rpc.name) + "Response"


def test_no_message_serves_two_rpcs_and_none_is_left_over() -> None:
    uses = Counter(
        message.full_name
        for rpc in RPCS
        for message in (rpc.method.input_type, rpc.method.output_type)
    )
    assert {name for name, count in uses.items() if count > 1} == set()
    ends = ("Request", "Response")
    assert {m.full_name for m in MESSAGES if m.name.endswith(ends)} == set(uses)


@each_rpc
def test_errors_are_reasons_with_their_own_code(rpc: Rpc) -> None:
    errors = rpc.errors()
    assert bool(errors) != (NO_ERRORS in rpc.comment)
    assert [pair for pair, count in Counter(errors).items() if count > 1] == []
    for code, reason in errors:
        assert reason in REASONS
        assert REASONS[reason].startswith(f"{code}: ")


@each_rpc
def test_errors_name_what_the_request_makes_possible(rpc: Rpc) -> None:
    reasons = {reason for _, reason in rpc.errors()}
    updated = [
        field.message_type
        for field in rpc.request.values()
        if rpc.name.startswith("Update") and field.message_type
    ]
    carries_etag = "etag" in rpc.request or any("etag" in m.fields_by_name for m in updated)
    assert ("ETAG_MISMATCH" in reasons) == carries_etag
    assert ("UPDATE_MASK_INVALID" in reasons) == ("update_mask" in rpc.request)
    for reason in ("CONSISTENCY_TOKEN_INVALID", "CONSISTENCY_TOKEN_AHEAD"):
        assert (reason in reasons) == ("consistency" in rpc.request)


@pytest.mark.parametrize("reason", REASONS)
def test_reason_says_code_cause_and_metadata(reason: str) -> None:
    code, _, rest = REASONS[reason].replace("\n", " ").strip().partition(": ")
    assert code in StatusCode.__members__ and code != "OK"
    assert re.fullmatch(r"[A-Z].+\. Metadata: (none|.*`.+`.*|a count per kind.*)\.", rest)


@each_rpc
def test_pages_come_whole(rpc: Rpc) -> None:
    assert ("page_size" in rpc.request) == rpc.name.startswith("List")
    assert ("page_token" in rpc.request) == ("page_size" in rpc.request)
    assert ("next_page_token" in rpc.response) == ("page_size" in rpc.request)
    assert ("total_size" in rpc.response) == ("include_total_size" in rpc.request)
    if "total_size" in rpc.response:
        assert rpc.response["total_size"].has_presence  # absent means more than are counted


@each_rpc
def test_consistency_tokens(rpc: Rpc) -> None:
    decides = rpc.method.containing_service.name == "AuthorizationService"
    assert (_type(rpc.request.get("consistency")) == "authz.v1.Consistency") == decides
    says_state = decides or not rpc.is_reader or rpc.name == "Watch"
    assert ("consistency_token" in rpc.response) == says_state


@each_rpc
def test_updates_carry_the_object_and_a_mask(rpc: Rpc) -> None:
    if not rpc.name.startswith("Update"):
        assert "update_mask" not in rpc.request
        return
    if rpc.name == "UpdateOrganizationMembership":
        assert "update_mask" not in rpc.request and "etag" in rpc.request
        return
    mask = rpc.request["update_mask"]
    assert _type(mask) == "google.protobuf.FieldMask" and _is_required(mask)
    if rpc.name in NAMES_ITS_OBJECT:
        assert "etag" in rpc.request
        return
    (updated,) = [
        field for field in rpc.request.values() if field.message_type and field is not mask
    ]
    assert _is_required(updated)
    assert rpc.response[updated.name].message_type is updated.message_type
    assert "etag" in updated.message_type.fields_by_name
    identifiers = [
        field
        for field in updated.message_type.fields
        if FieldBehavior.IDENTIFIER in _behaviors(field)
    ]
    assert len(identifiers) == (0 if rpc.name == "UpdateConfiguration" else 1)


@each_rpc
def test_deletes_allow_what_is_missing(rpc: Rpc) -> None:
    assert ("allow_missing" in rpc.request) == rpc.name.startswith("Delete")
    if rpc.name.startswith("Delete"):
        assert "etag" in rpc.request


@each_rpc
def test_what_acts_on_one_object_names_it(rpc: Rpc) -> None:
    if not re.match(r"Get|Update|Delete|Move|Rotate|Revoke|Deactivate|Reactivate", rpc.name):
        return
    if rpc.name == "GetConfiguration":
        return  # there is one
    oneofs = [oneof for oneof in rpc.method.input_type.oneofs if len(oneof.fields) > 1]
    assert oneofs or any(_is_required(field) for field in rpc.request.values())


@each_message
def test_field_behavior_is_where_it_means_something(message: Descriptor) -> None:
    is_envelope = message.name.endswith(("Request", "Response"))
    for field in message.fields:
        behaviors = _behaviors(field)
        assert len(behaviors) <= 1, field.full_name
        if FieldBehavior.REQUIRED in behaviors:
            assert message.full_name not in OUTPUTS, field.full_name
            # In a choice the choice is required, which only a comment can say.
            assert field.containing_oneof is None, field.full_name
        elif behaviors:
            assert not is_envelope, field.full_name


@each_message
def test_stored_objects_mark_what_callers_cannot_set(message: Descriptor) -> None:
    if "etag" not in message.fields_by_name or message.name.endswith("Request"):
        return
    output = [FieldBehavior.OUTPUT_ONLY]
    for name in ("created_at", "updated_at", "etag", "state", "status", "kind"):
        field = message.fields_by_name.get(name)
        assert field is None or _behaviors(field) == output, name
    if "id" in message.fields_by_name:
        assert _behaviors(message.fields_by_name["id"]) in (output, [FieldBehavior.IDENTIFIER])
        assert {"created_at", "updated_at"} <= set(message.fields_by_name)


@each_message
def test_names_tell_types(message: Descriptor) -> None:
    for field in message.fields:
        name = field.full_name
        is_time = _type(field) == "google.protobuf.Timestamp"
        assert is_time == (field.name.endswith("_at") or field.name == "allowed_until"), name
        if re.search(r"(^|_)(ids?|slugs?|etag|token|cursor)$", field.name):
            assert field.type == FieldDescriptor.TYPE_STRING, name
        if re.search(r"_(id|slug)s?$", field.name):
            assert field.is_repeated == field.name.endswith("s"), name
        if re.fullmatch(r".*_count|total_size|sequence", field.name):
            assert field.type == FieldDescriptor.TYPE_INT64, name


@each_message
def test_secrets_are_redacted(message: Descriptor) -> None:
    for field in message.fields:
        is_secret = field.type == FieldDescriptor.TYPE_STRING and re.search(
            r"^(?!obfuscated_).*(secret|password)", field.name
        )
        assert field.GetOptions().debug_redact == bool(is_secret), field.full_name
