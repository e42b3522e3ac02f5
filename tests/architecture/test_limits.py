"""Every named limit is tested at it and above it: here, or where its row says.

A new limit, in the code or in the configuration, fails ``test_every_limit_has_a_test``.
"""

import ast
import dataclasses
import importlib
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from authz_service import config
from authz_service.base import pages, slugs
from authz_service.domain import discovery, users
from authz_service.engine import explain, limits
from authz_service.pb.authz.v1 import directory_files_pb2 as files
from authz_service.rpc import methods
from authz_service.rpc.call import Call, Reply
from authz_service.server import Worker
from tests.architecture.conftest import Place, Stocked, another
from tests.architecture.writes import Request, World, file_of, send
from tests.callers import Refused
from tests.conftest import ManualClock

ROOT = Path(__file__).resolve().parents[2]
NAMING = ("engine.limits", "base.pages", "base.slugs", "domain.users")
TOO_LARGE = ("INVALID_ARGUMENT", "REQUEST_TOO_LARGE")
INVALID = ("INVALID_ARGUMENT", "FIELD_INVALID")
METADATA = ("INVALID_ARGUMENT", "METADATA_INVALID")
REACHED = ("RESOURCE_EXHAUSTED", "LIMIT_REACHED")


class Limit(NamedTuple):
    """A limit, and calls of one RPC up to it and one above.

    Attributes:
        name: Of the constant, or of the field of the configuration.
        requests: All but the last one are answered; the last is refused.
        lowered: What it is set to for the test; None tests the real value.
    """

    name: str
    service: str
    rpc: str
    requests: Callable[[World], list[Request]]
    refusal: tuple[str, str]
    lowered: int | None = None

    def __str__(self) -> str:
        return f"{self.name}-{self.rpc}"


def each(field: str, *values: Any, **fields: Any) -> list[Request]:
    """Requests that differ in one field."""
    return [{**fields, field: value} for value in values]


def _ask(w: World) -> Request:
    return {
        "subject": {"organization_membership_id": w["ann@acme"]},
        "resource": {"resource_id": w["paper"]},
        "permission_slug": "doc:read",
    }


def _matrix(w: World, permissions: int, resources: int) -> Request:
    refs = [{"resource_id": w[name]} for name in ("paper", "letter", "one")]
    return {
        "subject": {"organization_membership_id": w["ann@acme"]},
        "permission_slugs": ["doc:read", "doc:edit", "doc:unused"][:permissions],
        "resources": refs[:resources],
    }


def _listed(w: World, **fields: Any) -> Request:
    return {
        "subject": {"organization_membership_id": w["ann@acme"]},
        "permission_slugs": ["doc:read"],
        **fields,
    }


def _members(w: World, *names: str) -> list[Request]:
    return [{"organization_membership_id": w[name]} for name in names]


def _resource(w: World, external_id: str, **fields: Any) -> Request:
    return {
        "organization_id": w["acme"],
        "resource_type_slug": "doc",
        "external_id": external_id,
        "name": "New",
        "parent": {"resource_id": w["one"]},
        **fields,
    }


def _assign(w: World, role_slug: str, resource: str) -> Request:
    return {
        "organization_membership_id": w["bob@acme"],
        "role_slug": role_slug,
        "resource": {"resource_id": w[resource]},
    }


def _add(w: World, group: str, member: str) -> Request:
    field = "organization_membership_id" if "@" in member else "member_group_id"
    return {"group_id": w[group], field: w[member]}


ONE_CALL = [
    Limit(
        "MATRIX_PERMISSIONS_MAX",
        "AuthorizationService",
        "CheckMatrix",
        lambda w: [_matrix(w, 2, 1), _matrix(w, 3, 1)],
        TOO_LARGE,
        lowered=2,
    ),
    Limit(
        "MATRIX_RESOURCES_MAX",
        "AuthorizationService",
        "CheckMatrix",
        lambda w: [_matrix(w, 1, 2), _matrix(w, 1, 3)],
        TOO_LARGE,
        lowered=2,
    ),
    Limit(
        "LIST_PERMISSIONS_MAX",
        "AuthorizationService",
        "ListResources",
        lambda w: [
            _listed(w, permission_slugs=["doc:read"]),
            _listed(w, permission_slugs=["doc:read", "doc:edit"]),
        ],
        TOO_LARGE,
        lowered=1,
    ),
    Limit(
        "LIST_TYPES_MAX",
        "AuthorizationService",
        "ListResources",
        lambda w: [
            _listed(w, resource_type_slugs=["doc"]),
            _listed(w, resource_type_slugs=["doc", "folder"]),
        ],
        TOO_LARGE,
        lowered=1,
    ),
    Limit(
        "STALENESS_SECONDS_MAX",
        "AuthorizationService",
        "Check",
        lambda w: [
            {**_ask(w), "consistency": {"max_staleness": span}}
            for span in ({"seconds": 60}, {"seconds": 60, "nanos": 1})
        ],
        INVALID,
    ),
    Limit(
        "MODIFY_ENTRIES_MAX",
        "GroupService",
        "ModifyGroupMembers",
        lambda w: [
            {"group_id": w["band"], "add": _members(w, "ann@acme", "bob@acme")},
            {
                "group_id": w["band"],
                "add": _members(w, "cat@acme"),
                "remove": _members(w, "ann@acme", "bob@acme"),
            },
        ],
        TOO_LARGE,
        lowered=2,
    ),
    Limit(
        "MODIFY_ENTRIES_MAX",
        "RoleAssignmentService",
        "ModifyRoleAssignments",
        lambda w: [
            {"organization_id": w["acme"], "add": [_assign(w, "keeper", "two")]},
            {
                "organization_id": w["acme"],
                "add": [_assign(w, "keeper", "one")],
                "remove": [_assign(w, "keeper", "two")],
            },
        ],
        TOO_LARGE,
        lowered=1,
    ),
    Limit(
        "SET_ROLES_MAX",
        "RoleAssignmentService",
        "SetRoleAssignments",
        lambda w: each(
            "roles",
            [{"role_slug": "keeper"}],
            [{"role_slug": "keeper"}, {"role_slug": "keeper-too"}],
            organization_membership_id=w["bob@acme"],
            resource={"resource_id": w["one"]},
        ),
        TOO_LARGE,
        lowered=1,
    ),
    Limit(
        "OWN_ROLES_MAX",
        "OrganizationMembershipService",
        "UpdateOrganizationMembership",
        lambda w: each(
            "role_slugs",
            ["member", "guest"],
            ["member", "guest", "auditor"],
            organization_membership_id=w["bob@acme"],
        ),
        TOO_LARGE,
        lowered=2,
    ),
    Limit(
        "ROLE_PERMISSIONS_MAX",
        "RoleService",
        "SetRolePermissions",
        lambda w: each(
            "permission_slugs",
            ["doc:read", "doc:edit"],
            ["doc:read", "doc:edit", "doc:unused"],
            role_id=w["keeper"],
        ),
        TOO_LARGE,
        lowered=2,
    ),
    Limit(
        "TYPE_PARENTS_MAX",
        "ResourceTypeService",
        "CreateResourceType",
        lambda w: [
            {"slug": "first", "name": "New", "parent_type_slugs": ["doc", "folder"]},
            {"slug": "second", "name": "New", "parent_type_slugs": ["doc", "folder", "first"]},
        ],
        TOO_LARGE,
        lowered=2,
    ),
    Limit(
        "CREDENTIAL_SCOPES_MAX",
        "ConfigurationService",
        "CreateServiceCredential",
        lambda w: each("scopes", ["read"], ["read", "check"], name="new"),
        TOO_LARGE,
        lowered=1,
    ),
    Limit(
        "CREDENTIAL_ORGANIZATIONS_MAX",
        "ConfigurationService",
        "CreateServiceCredential",
        lambda w: each(
            "organization_ids", [w["acme"]], [w["acme"], w["globex"]], name="new", scopes=["read"]
        ),
        TOO_LARGE,
        lowered=1,
    ),
    Limit(
        "ROTATION_OVERLAP_DAYS_MAX",
        "ConfigurationService",
        "RotateServiceCredential",
        lambda w: each(
            "overlap",
            {"seconds": 7 * 24 * 3_600},
            {"seconds": 7 * 24 * 3_600, "nanos": 1_000},
            service_credential_id=w["robot"],
        ),
        INVALID,
    ),
    Limit(
        "RESOURCE_DEPTH_MAX",
        "ConfigurationService",
        "UpdateConfiguration",
        lambda w: each(
            "configuration",
            {"resource_depth_max": 16},
            {"resource_depth_max": 17},
            update_mask={"paths": ["resource_depth_max"]},
        ),
        INVALID,
    ),
    Limit(
        "RESOURCE_DEPTH_MIN",
        "ConfigurationService",
        "UpdateConfiguration",
        lambda w: each(
            "configuration",
            {"resource_depth_max": 1},
            {"resource_depth_max": 0},
            update_mask={"paths": ["resource_depth_max"]},
        ),
        INVALID,
    ),
    Limit(
        "DIRECTORY_CHUNK_IN_MAX",
        "DirectoryFileService",
        "ImportDirectory",
        lambda w: [_padded(1_000), _padded(1_001)],
        TOO_LARGE,
        lowered=1_000,
    ),
]
TOTALS = [
    Limit(
        "CASCADE_RESOURCES_MAX",
        "ResourceService",
        "DeleteResource",
        lambda w: each(
            "resource", {"resource_id": w["two"]}, {"resource_id": w["one"]}, cascade=True
        ),
        REACHED,
        lowered=2,
    ),
    Limit(
        "REPLACED_USES_MAX",
        "RoleService",
        "DeleteRole",
        lambda w: [
            {"role_id": w["keeper"], "replacement_role_slug": "keeper-too"},
            {"role_id": w["auditor"], "replacement_role_slug": "guest"},
        ],
        REACHED,
        lowered=2,
    ),
    Limit(
        "GROUP_NESTING_MAX",
        "GroupService",
        "AddGroupMember",
        lambda w: [_add(w, "band", "crew"), _add(w, "team", "band")],
        ("FAILED_PRECONDITION", "GROUP_DEPTH_EXCEEDED"),
        lowered=2,
    ),
    Limit(
        "ROLE_PERMISSIONS_MAX",
        "RoleService",
        "AddRolePermissions",
        lambda w: each("permission_slugs", ["doc:edit"], ["doc:unused"], role_id=w["keeper"]),
        REACHED,
        lowered=2,
    ),
    Limit(
        "resource_types_max",
        "ResourceTypeService",
        "CreateResourceType",
        lambda w: each("slug", "first", "second", name="New", parent_type_slugs=["doc"]),
        REACHED,
        lowered=4,
    ),
    Limit(
        "permissions_max",
        "PermissionService",
        "CreatePermission",
        lambda w: each("slug", "doc:first", "doc:second", name="New", resource_type_slug="doc"),
        REACHED,
        lowered=10,
    ),
    Limit(
        "environment_roles_max",
        "RoleService",
        "CreateRole",
        lambda w: each("slug", "first", "second", name="New"),
        REACHED,
        lowered=10,
    ),
    Limit(
        "organization_roles_max",
        "RoleService",
        "CreateRole",
        lambda w: each("slug", "org-first", "org-second", name="New", organization_id=w["acme"]),
        REACHED,
        lowered=2,
    ),
    Limit(
        "resources_max",
        "ResourceService",
        "CreateResource",
        lambda w: [_resource(w, "first"), _resource(w, "second")],
        REACHED,
        lowered=3,
    ),
    Limit(
        "role_assignments_max",
        "RoleAssignmentService",
        "CreateRoleAssignment",
        lambda w: [_assign(w, "keeper", "one"), _assign(w, "keeper", "two")],
        REACHED,
        lowered=2,
    ),
    Limit(
        "groups_max",
        "GroupService",
        "CreateGroup",
        lambda w: each("name", "first", "second", organization_id=w["acme"]),
        REACHED,
        lowered=5,
    ),
    Limit(
        "group_members_max",
        "GroupService",
        "AddGroupMember",
        lambda w: [_add(w, "crew", "bob@acme"), _add(w, "crew", "cat@acme")],
        REACHED,
        lowered=2,
    ),
    Limit(
        "group_groups_max",
        "GroupService",
        "AddGroupMember",
        lambda w: [_add(w, "band", "crew"), _add(w, "band", "team")],
        REACHED,
        lowered=1,
    ),
    Limit(
        "membership_groups_max",
        "GroupService",
        "AddGroupMember",
        lambda w: [_add(w, "team", "ann@acme"), _add(w, "band", "ann@acme")],
        REACHED,
        lowered=2,
    ),
    Limit(
        "service_credentials_max",
        "ConfigurationService",
        "CreateServiceCredential",
        lambda w: each("name", "first", "second", scopes=["read"]),
        REACHED,
        lowered=3,
    ),
]


def _user(**fields: Any) -> Request:
    return {"email": "eve@example.com", **fields}


def _texts(name: str, service: str, rpc: str, field: str, text: str, /, **fields: Any) -> Limit:
    """A limit on the characters of a field; each call has fields of its own kind."""
    maximum = getattr(slugs, name, None) or getattr(users, name)
    values = (text.ljust(length, "x") for length in (maximum, maximum + 1))
    requests = each(field, *values, **fields)
    return Limit(name, service, rpc, lambda w: requests, INVALID)


def _metadata(name: str, at: dict[str, str], above: dict[str, str]) -> Limit:
    requests = each("metadata", at, above, name="New")
    return Limit(name, "OrganizationService", "CreateOrganization", lambda w: requests, METADATA)


def _keys(number: int) -> dict[str, str]:
    return {f"k{i}": "v" for i in range(number)}


TEXTS = [
    _texts(
        "SLUG_MAX",
        "PermissionService",
        "CreatePermission",
        "slug",
        "doc:",
        name="New",
        resource_type_slug="doc",
    ),
    _texts("SLUG_MAX", "RoleService", "CreateRole", "slug", "", name="New"),
    _texts("SHORT_NAME_MAX", "RoleService", "CreateRole", "name", "", slug="new"),
    _texts("DESCRIPTION_MAX", "RoleService", "CreateRole", "description", "", name="N", slug="n"),
    _texts("DISPLAY_NAME_MAX", "OrganizationService", "CreateOrganization", "name", ""),
    _texts(
        "EXTERNAL_ID_MAX", "OrganizationService", "CreateOrganization", "external_id", "", name="N"
    ),
    _texts("QUERY_MAX", "UserService", "ListUsers", "query", ""),
    Limit("QUERY_MIN", "UserService", "ListUsers", lambda w: each("query", "xx", "x"), INVALID),
    _metadata("METADATA_KEYS_MAX", _keys(50), _keys(51)),
    _metadata("METADATA_KEY_MAX", {"k" * 40: "v"}, {"k" * 41: "v"}),
    _metadata("METADATA_VALUE_MAX", {"k": "v" * 600}, {"k": "v" * 601}),
    Limit(
        "EMAIL_MAX",
        "UserService",
        "CreateUser",
        lambda w: [{"email": address_of(254)}, {"email": address_of(255)}],
        INVALID,
    ),
    *(
        _texts(name, "UserService", "CreateUser", field, text, email="eve@example.com")
        for name, field, text in (
            ("PROFILE_NAME_MAX", "name", ""),
            ("PROFILE_NAME_MAX", "first_name", ""),
            ("PROFILE_NAME_MAX", "last_name", ""),
            ("URL_MAX", "profile_picture_url", "https://example.com/"),
        )
    ),
    Limit(
        "LOCALE_MAX",
        "UserService",
        "CreateUser",
        lambda w: each(
            "locale", "en" + "-12345678" * 6 + "-1234567", "en" + "-12345678" * 7, email="e@x.com"
        ),
        INVALID,
    ),
]
LIMITS = [*ONE_CALL, *TOTALS, *TEXTS]
# What is not refused above it but cut or kept; each has a test of its own.
HERE = {
    "DIRECTORY_CHUNK_OUT_MAX": "test_a_file_goes_out_in_chunks",
    "EXPLAINED_GRANTS_MAX": "test_grants_of_an_explanation_are_cut",
    "EXPIRED_KEPT_DAYS": "test_an_expired_assignment_is_kept_so_long",
    "LISTED_GRANTS_MAX": "test_grants_of_a_listed_member_are_cut",
    "PAGE_SIZE_MAX": "test_a_larger_page_is_the_largest",
    "PAGE_TOKEN_CHARACTERS_MAX": "test_longer_page_tokens_are_not_read",
    "REMEDIES_MAX": "test_remedies_are_cut",
    "batch_items_max": "test_a_batch_above_its_limit_is_refused",
    "directory_file_bytes_max": "test_a_file_above_its_limit_is_refused",
    "event_days": "test_events_are_reached_so_far_back",
    "message_bytes_max": "test_a_message_above_its_limit_is_refused",
    "total_size_max": "test_a_total_above_its_limit_is_not_told",
}
ELSEWHERE = {
    "DIRECTORY_FINDINGS_MAX": (
        "tests/domain/test_directory_files.py",
        "test_at_most_a_hundred_findings_are_told",
    ),
}


def address_of(length: int) -> str:
    """An address of so many characters; no label is longer than 63."""
    domain = ".".join(["d" * 60] * 3) + ".com"
    return "l" * (length - len(domain) - 1) + "@" + domain


def _padded(length: int) -> Request:
    header, chunk = file_of()
    return {"parts": [header, {"chunk": chunk["chunk"].ljust(length)}]}


def names() -> Iterator[str]:
    """Names of all limits: constants that say so, and the configuration."""
    for module in NAMING:
        for name in vars(importlib.import_module(f"authz_service.{module}")):
            if re.fullmatch(r"[A-Z][A-Z_]*_(MAX|MIN)|[A-Z_]*DAYS", name):
                yield name
    for field in dataclasses.fields(config.Limits):
        yield field.name


def lower(monkeypatch: pytest.MonkeyPatch, worker: Worker, limit: Limit) -> None:
    """Sets a limit where the code reads it."""
    if limit.lowered is None:
        return
    if limit.name.isupper():
        monkeypatch.setattr(limits, limit.name, limit.lowered)
        return
    lowered = dataclasses.replace(worker.database._limits, **{limit.name: limit.lowered})
    monkeypatch.setattr(worker.database, "_limits", lowered)


def test_every_limit_has_a_test() -> None:
    tested = {limit.name for limit in LIMITS} | set(HERE) | set(ELSEWHERE)
    assert set(names()) == tested


def test_the_tests_that_are_named_exist() -> None:
    for name in HERE.values():
        assert callable(globals()[name]), name
    for path, name in ELSEWHERE.values():
        found = ast.walk(ast.parse((ROOT / path).read_text()))
        assert name in {node.name for node in found if isinstance(node, ast.FunctionDef)}, name


@pytest.mark.parametrize("limit", LIMITS, ids=str)
def test_at_a_limit_is_answered_and_above_is_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch, limit: Limit
) -> None:
    lower(monkeypatch, place.worker, limit)
    *answered, above = limit.requests(place.world)
    for request in answered:
        send(place.api, place.worker, limit.service, limit.rpc, request)
    with pytest.raises(Refused) as refused:
        send(place.api, place.worker, limit.service, limit.rpc, above)
    assert (refused.value.code, refused.value.reason) == limit.refusal
    if limit.lowered is not None:
        assert refused.value.metadata["maximum"] == str(limit.lowered)


def test_a_larger_page_is_the_largest(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert methods.PAGE_SIZE_MAX == pages.PAGE_SIZE_MAX == 1_000
    monkeypatch.setattr(pages, "PAGE_SIZE_MAX", 2)
    for asked, got in ((1, 1), (2, 2), (3, 2)):
        assert len(place.api.UserService.ListUsers(page_size=asked).users) == got


def test_longer_page_tokens_are_not_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    list_users = place.api.UserService.ListUsers
    token = list_users(page_size=1).next_page_token
    assert len(token) <= pages.PAGE_TOKEN_CHARACTERS_MAX
    monkeypatch.setattr(pages, "PAGE_TOKEN_CHARACTERS_MAX", len(token))
    list_users(page_token=token)
    monkeypatch.setattr(pages, "PAGE_TOKEN_CHARACTERS_MAX", len(token) - 1)
    with pytest.raises(Refused) as refused:
        list_users(page_token=token)
    assert refused.value.reason == "PAGE_TOKEN_INVALID"


def _read_by_ann(place: Place) -> Any:
    """How ann reads the paper: through her own role, and through a group."""
    answer = place.api.AuthorizationService.ListMembers(
        resource={"resource_id": place.world["paper"]}, permission_slug="doc:read"
    )
    (ann,) = (
        member
        for member in answer.members
        if member.organization_membership.id == place.world["ann@acme"]
    )
    return ann


@pytest.mark.parametrize(("maximum", "shown"), [(2, 2), (1, 1)])
def test_grants_of_a_listed_member_are_cut(
    place: Place, monkeypatch: pytest.MonkeyPatch, maximum: int, shown: int
) -> None:
    assert limits.LISTED_GRANTS_MAX == discovery.LISTED_GRANTS_MAX
    monkeypatch.setattr(discovery, "LISTED_GRANTS_MAX", maximum)
    ann = _read_by_ann(place)
    assert (len(ann.grants), ann.grants_truncated) == (shown, maximum < 2)


@pytest.mark.parametrize(("maximum", "shown"), [(2, 2), (1, 1)])
def test_grants_of_an_explanation_are_cut(
    place: Place, monkeypatch: pytest.MonkeyPatch, maximum: int, shown: int
) -> None:
    monkeypatch.setattr(limits, "EXPLAINED_GRANTS_MAX", maximum)
    answer = place.api.AuthorizationService.Explain(**_ask(place.world))
    assert (len(answer.grants), answer.grants_truncated) == (shown, maximum < 2)


def test_remedies_are_cut(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    question = {**_ask(place.world), "permission_slug": "doc:edit"}
    ask = place.api.AuthorizationService.Explain
    all_remedies = len(ask(**question).remedies)
    assert all_remedies > 1
    for maximum in (all_remedies, all_remedies - 1):
        monkeypatch.setattr(explain, "REMEDIES_MAX", maximum)
        assert len(ask(**question).remedies) == maximum


@pytest.mark.parametrize(("maximum", "is_told"), [(9, True), (8, False)])
def test_a_total_above_its_limit_is_not_told(
    place: Place, monkeypatch: pytest.MonkeyPatch, maximum: int, is_told: bool
) -> None:
    database = place.worker.database
    lowered = dataclasses.replace(database._limits, total_size_max=maximum)
    monkeypatch.setattr(database, "_limits", lowered)
    answer = place.api.RoleService.ListRoles(include_total_size=True)
    assert answer.HasField("total_size") == is_told


def test_a_file_goes_out_in_chunks(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DIRECTORY_CHUNK_OUT_MAX", 100)
    request = files.ExportDirectoryRequest(format=files.DIRECTORY_FILE_FORMAT_JSON)
    call = Call(
        "/authz.v1.DirectoryFileService/ExportDirectory",
        (("authorization", f"Bearer {place.api._bearer}"),),
        request.SerializeToString(),
    )
    sizes = [
        len(files.ExportDirectoryResponse.FromString(each).chunk)
        for each in place.worker.hall.stream(call, lambda: False)
        if not isinstance(each, Reply)
    ]
    assert len(sizes) > 2
    assert set(sizes[:-1]) == {100}
    assert 0 < sizes[-1] <= 100


@pytest.fixture
def stopped(place: Place, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> ManualClock:
    """The clock of the place's database, which moves by command only."""
    clock.stop_at(datetime.now(UTC))
    monkeypatch.setattr(place.worker.database, "_clock", clock)
    return clock


def test_an_expired_assignment_is_kept_so_long(place: Place, stopped: ManualClock) -> None:
    service = place.api.RoleAssignmentService
    end = stopped() + timedelta(hours=1)
    request = _assign(place.world, "keeper", "one")
    made = service.CreateRoleAssignment(**request, expires_at=end).role_assignment
    stopped.advance(hours=1, days=limits.EXPIRED_KEPT_DAYS, microseconds=-1)
    assert service.GetRoleAssignment(role_assignment_id=made.id).role_assignment.id == made.id
    stopped.advance(microseconds=1)
    with pytest.raises(Refused) as refused:
        service.GetRoleAssignment(role_assignment_id=made.id)
    assert refused.value.reason == "ROLE_ASSIGNMENT_NOT_FOUND"


def test_events_are_reached_so_far_back(place: Place, stopped: ManualClock) -> None:
    list_events = place.api.EventService.ListEvents
    start = stopped()
    stopped.advance(days=config.Limits().event_days)
    list_events(start_at=start)
    stopped.advance(microseconds=1)
    with pytest.raises(Refused) as refused:
        list_events(start_at=start)
    assert refused.value.reason == "CURSOR_EXPIRED"


@pytest.fixture
def small(stocked: Stocked, tmp_path: Path) -> Iterator[Place]:
    """The world behind a worker whose limits on messages, batches and files are low."""
    worker, api = another(
        stocked,
        tmp_path,
        AUTHZ_BATCH_ITEMS_MAX="2",
        AUTHZ_LIMIT_DIRECTORY_FILE_BYTES="1000",
        AUTHZ_MESSAGE_BYTES_MAX="65536",
    )
    yield Place(worker, api, stocked.place.world)
    worker.stop()


def test_a_batch_above_its_limit_is_refused(small: Place) -> None:
    ask = _ask(small.world)
    small.api.AuthorizationService.BatchCheck(items=[ask] * 2)
    with pytest.raises(Refused) as refused:
        small.api.AuthorizationService.BatchCheck(items=[ask] * 3)
    assert (refused.value.code, refused.value.reason) == TOO_LARGE
    assert refused.value.metadata == {"field": "items", "maximum": "2", "actual": "3"}


def test_a_file_above_its_limit_is_refused(small: Place) -> None:
    def imported(length: int) -> Any:
        header, chunk = _padded(length)["parts"]
        data = chunk["chunk"]
        parts = [header, {"chunk": data[:500]}, {"chunk": data[500:]}]
        return send(
            small.api, small.worker, "DirectoryFileService", "ImportDirectory", {"parts": parts}
        )

    imported(1_000)
    with pytest.raises(Refused) as refused:
        imported(1_001)
    assert (refused.value.code, refused.value.reason) == TOO_LARGE


def test_a_message_above_its_limit_is_refused(small: Place) -> None:
    def asked(length: int) -> Any:
        return small.api.call("UserService", "ListUsers", padded(length))

    def padded(length: int) -> bytes:
        # An unknown field of bytes: key in two bytes, length in three.
        return b"\xfa\x7f" + varint(length - 5) + b"x" * (length - 5)

    def varint(value: int) -> bytes:
        return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14))

    asked(65_536)
    with pytest.raises(Refused) as refused:
        asked(65_537)
    assert (refused.value.code, refused.value.reason) == TOO_LARGE
