"""PermissionService over the hall."""

from types import SimpleNamespace
from typing import Any

import pytest

from authz_service.config import Config
from authz_service.server import Worker
from tests.callers import Caller, Refused
from tests.directories import Directory, Recorded

ENVIRONMENT = SimpleNamespace(id="*")
RESTRICTED = ("PERMISSION_DENIED", "ORGANIZATION_RESTRICTED", {})
SEEDED = 6


@pytest.fixture
def directory(api: Caller, worker: Worker, config: Config) -> Directory:
    made = Directory(api, worker, config)
    made.types(workspace=["organization"], document=["workspace"])
    return made


def refusal(call: Any, **fields: Any) -> tuple[str, str, dict[str, str]]:
    with pytest.raises(Refused) as refused:
        call(**fields)
    return refused.value.code, refused.value.reason, refused.value.metadata


def no_permission(slug: str) -> tuple[str, str, dict[str, str]]:
    return "NOT_FOUND", "PERMISSION_NOT_FOUND", {"permission_slug": slug}


def in_use(count: int) -> tuple[str, str, dict[str, str]]:
    return "FAILED_PRECONDITION", "PERMISSION_IN_USE", {"role": str(count)}


def create(api: Caller, slug: str, type_slug: str = "", **fields: Any) -> Any:
    return api.PermissionService.CreatePermission(
        slug=slug, resource_type_slug=type_slug, **{"name": slug} | fields
    ).permission


def update(api: Caller, slug: str, etag: str = "", **values: Any) -> Any:
    return api.PermissionService.UpdatePermission(
        permission={"slug": slug, "etag": etag, **values}, update_mask={"paths": list(values)}
    ).permission


def get(api: Caller, slug: str) -> Any:
    return api.PermissionService.GetPermission(permission_slug=slug).permission


def role(api: Caller, slug: str, *permission_slugs: str, organization_id: str = "") -> Any:
    return api.RoleService.CreateRole(
        organization_id=organization_id, slug=slug, name=slug, permission_slugs=permission_slugs
    ).role


# --- create and read -----------------------------------------------------------------------------


def test_created_permission_can_be_read(directory: Directory) -> None:
    before = len(directory.events(ENVIRONMENT))
    made = create(
        directory.api,
        "document:read.*-1_x",
        "document",
        name=" Read ",
        description=" all of it ",
        assignable_to_api_keys=True,
    )
    assert (made.slug, made.name, made.description) == ("document:read.*-1_x", "Read", "all of it")
    assert (made.resource_type_slug, made.assignable_to_api_keys) == ("document", True)
    assert made.id.startswith("perm_")
    assert get(directory.api, made.slug) == made
    assert directory.recorded(ENVIRONMENT, before) == [
        Recorded("permission.created", made.id, True)
    ]
    assert directory.data(ENVIRONMENT)[0]["etag"] == made.etag
    plain = create(directory.api, "x")
    assert (plain.resource_type_slug, plain.assignable_to_api_keys) == ("organization", False)


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"slug": ""}, "FIELD_REQUIRED", "slug"),
        ({"slug": ":a"}, "FIELD_INVALID", "slug"),
        ({"slug": "A"}, "FIELD_INVALID", "slug"),
        ({"slug": "a b"}, "FIELD_INVALID", "slug"),
        ({"slug": "a" * 49}, "FIELD_INVALID", "slug"),
        ({"name": " "}, "FIELD_REQUIRED", "name"),
        ({"name": "x" * 49}, "FIELD_INVALID", "name"),
        ({"description": "x" * 151}, "FIELD_INVALID", "description"),
    ],
)
def test_badly_shaped_permissions_are_refused(
    directory: Directory, fields: dict[str, Any], reason: str, field: str
) -> None:
    before = len(directory.events(ENVIRONMENT))
    # Shapes come first: the type does not exist either.
    asked = {"slug": "a", "name": "A", "resource_type_slug": "nothing"} | fields
    code, given, metadata = refusal(directory.api.PermissionService.CreatePermission, **asked)
    assert (code, given, metadata["field"]) == ("INVALID_ARGUMENT", reason, field)
    assert len(directory.events(ENVIRONMENT)) == before


def test_values_at_their_limits_are_taken(directory: Directory) -> None:
    made = create(directory.api, "9" + "a" * 47, name="x" * 48, description="x" * 150)
    assert get(directory.api, made.slug) == made


def test_create_refuses(directory: Directory) -> None:
    call = directory.api.PermissionService.CreatePermission
    restricted = directory.restricted_to(directory.organization()).PermissionService
    before = len(directory.events(ENVIRONMENT))
    assert refusal(call, slug="a", name="A", resource_type_slug="nothing") == (
        "NOT_FOUND",
        "RESOURCE_TYPE_NOT_FOUND",
        {"resource_type_slug": "nothing"},
    )
    # Unique in the deployment, whatever the type.
    assert refusal(call, slug="members:view", name="A", resource_type_slug="document") == (
        "ALREADY_EXISTS",
        "SLUG_TAKEN",
        {"field": "slug"},
    )
    assert refusal(restricted.CreatePermission, slug="a", name="A") == RESTRICTED
    assert len(directory.events(ENVIRONMENT)) == before


class TestLimit:
    @pytest.fixture
    def settings(self) -> dict[str, str]:
        return {"AUTHZ_LIMIT_PERMISSIONS": str(SEEDED + 1)}

    def test_one_permission_more_than_allowed_is_refused(self, directory: Directory) -> None:
        create(directory.api, "a")
        assert refusal(directory.api.PermissionService.CreatePermission, slug="b", name="B") == (
            "RESOURCE_EXHAUSTED",
            "LIMIT_REACHED",
            {"limit": "permissions", "maximum": str(SEEDED + 1)},
        )
        directory.api.PermissionService.DeletePermission(permission_slug="a")
        create(directory.api, "b")


def listed(api: Caller, page_size: int = 0, **filters: Any) -> list[str]:
    rows = api.pages(
        "PermissionService", "ListPermissions", "permissions", page_size=page_size, **filters
    )
    return [row.slug for row in rows]


def test_pages_hold_every_permission_once_newest_first(directory: Directory) -> None:
    slugs = ["document:read", "document:edit", "workspace:view"]
    for slug in slugs:
        create(directory.api, slug, slug.partition(":")[0])
    for size in range(1, SEEDED + 5):
        found = listed(directory.api, size)
        assert found[:3] == slugs[::-1]
        assert len(set(found)) == len(found) == SEEDED + 3


def test_filters_are_joined(directory: Directory) -> None:
    api = directory.api
    create(api, "document:read", "document", name="Read")
    create(api, "document:edit", "document", name="Read and write")
    create(api, "workspace:read", "workspace", name="100%")
    assert listed(api, resource_type_slug="document") == ["document:edit", "document:read"]
    # Slug or name, whatever the case; a wildcard is an ordinary character.
    assert listed(api, query="READ") == ["workspace:read", "document:edit", "document:read"]
    assert listed(api, query="0%") == ["workspace:read"]
    assert listed(api, query="_%") == []
    assert listed(api, query="read", resource_type_slug="workspace") == ["workspace:read"]
    assert refusal(api.PermissionService.ListPermissions, resource_type_slug="nothing") == (
        "NOT_FOUND",
        "RESOURCE_TYPE_NOT_FOUND",
        {"resource_type_slug": "nothing"},
    )
    code, reason, metadata = refusal(api.PermissionService.ListPermissions, query="x")
    assert (code, reason, metadata["field"]) == ("INVALID_ARGUMENT", "FIELD_INVALID", "query")


def test_a_page_token_is_good_for_its_question_only(directory: Directory) -> None:
    call = directory.api.PermissionService.ListPermissions
    token = call(page_size=1).next_page_token
    assert refusal(call, page_token=token, query="read")[1] == "PAGE_TOKEN_MISMATCH"
    roles = directory.api.RoleService.ListRoles
    assert refusal(roles, page_token=token)[1] == "PAGE_TOKEN_MISMATCH"
    assert call(page_token=token, page_size=100).permissions


def test_permissions_are_readable_by_restricted_credentials(directory: Directory) -> None:
    restricted = directory.restricted_to(directory.organization())
    assert get(restricted, "members:view") == get(directory.api, "members:view")
    assert len(listed(restricted)) == SEEDED


def test_get_of_an_unknown_permission_is_refused(directory: Directory) -> None:
    call = directory.api.PermissionService.GetPermission
    assert refusal(call, permission_slug="nothing") == no_permission("nothing")


# --- update --------------------------------------------------------------------------------------


def test_update_changes_what_the_mask_names(directory: Directory) -> None:
    former = create(directory.api, "document:read", "document", description="all")
    before = len(directory.events(ENVIRONMENT))
    changed = update(
        directory.api, former.slug, former.etag, name=" Read ", assignable_to_api_keys=True
    )
    assert (changed.name, changed.description) == ("Read", "all")
    assert changed.assignable_to_api_keys
    assert changed.etag != former.etag
    assert get(directory.api, former.slug) == changed
    assert directory.recorded(ENVIRONMENT, before) == [
        Recorded("permission.updated", former.id, True)
    ]
    assert directory.data(ENVIRONMENT)[1] == {
        "name": "document:read",
        "assignable_to_api_keys": False,
    }
    assert update(directory.api, former.slug, description="").description == ""
    assert update(directory.api, former.slug, name="Read", description=" ").name == "Read"
    assert len(directory.events(ENVIRONMENT)) == before + 2


def test_update_refuses(directory: Directory) -> None:
    api = directory.api
    stale = create(api, "document:read", "document").etag
    update(api, "document:read", name="x")
    restricted = directory.restricted_to(directory.organization())
    before = len(directory.events(ENVIRONMENT))
    assert refusal(lambda: update(api, "nothing", name="x")) == no_permission("nothing")
    assert refusal(lambda: update(api, "document:read", stale, name="y"))[:2] == (
        "ABORTED",
        "ETAG_MISMATCH",
    )
    for values, field in (
        ({"name": " "}, "permission.name"),
        ({"name": "x" * 49}, "permission.name"),
        ({"description": "x" * 151}, "permission.description"),
    ):
        code, reason, metadata = refusal(lambda given=values: update(api, "nothing", **given))
        assert (code, reason) == ("INVALID_ARGUMENT", "FIELD_INVALID")
        assert metadata["field"] == field
    service = api.PermissionService.UpdatePermission
    for path in ("slug", "resource_type_slug"):
        assert refusal(
            service, permission={"slug": "document:read"}, update_mask={"paths": [path]}
        ) == ("INVALID_ARGUMENT", "UPDATE_MASK_INVALID", {"path": path})
    assert refusal(service, permission={"name": "x"}, update_mask={"paths": ["name"]}) == (
        "INVALID_ARGUMENT",
        "FIELD_REQUIRED",
        {"field": "permission.slug"},
    )
    assert refusal(lambda: update(restricted, "document:read", name="y")) == RESTRICTED
    assert len(directory.events(ENVIRONMENT)) == before


# --- delete --------------------------------------------------------------------------------------


def test_deleted_permission_is_gone_and_absent_ones_are_told(directory: Directory) -> None:
    service = directory.api.PermissionService
    made = create(directory.api, "document:read", "document")
    before = len(directory.events(ENVIRONMENT))
    service.DeletePermission(permission_slug=made.slug, etag=made.etag)
    assert directory.recorded(ENVIRONMENT, before) == [
        Recorded("permission.deleted", made.id, True)
    ]
    assert directory.data(ENVIRONMENT)[0]["slug"] == made.slug
    for call in (service.GetPermission, service.DeletePermission):
        assert refusal(call, permission_slug=made.slug) == no_permission(made.slug)
    service.DeletePermission(permission_slug=made.slug, allow_missing=True)
    assert len(directory.events(ENVIRONMENT)) == before + 1


def test_a_permission_in_roles_is_taken_out_of_them_only_with_cascade(
    directory: Directory,
) -> None:
    api = directory.api
    acme, globex, other = (directory.organization(name) for name in ("Acme", "Globex", "Other"))
    create(api, "x")
    create(api, "y")
    wide = role(api, "wide", "x", "y")
    first = role(api, "org-first", "x", organization_id=acme.id)
    second = role(api, "org-second", "y", "x", organization_id=acme.id)
    third = role(api, "org-third", "x", organization_id=globex.id)
    role(api, "org-fourth", "y", organization_id=other.id)
    restricted = directory.restricted_to(acme).PermissionService
    before = {each.id: len(directory.events(each)) for each in (ENVIRONMENT, acme, globex, other)}
    call = api.PermissionService.DeletePermission
    assert refusal(call, permission_slug="x") == in_use(4)
    etag = get(api, "x").etag
    assert refusal(call, permission_slug="x", cascade=True, etag=f"{etag}0")[1] == "ETAG_MISMATCH"
    assert refusal(restricted.DeletePermission, permission_slug="x", cascade=True) == RESTRICTED
    assert {key: len(directory.events(SimpleNamespace(id=key))) for key in before} == before

    call(permission_slug="x", cascade=True, etag=etag)
    changed = "role.permissions_changed"
    permission_id = directory.events(ENVIRONMENT)[before["*"]].target_id
    assert directory.recorded(ENVIRONMENT, before["*"]) == [
        Recorded("permission.deleted", permission_id, True),
        Recorded(changed, wide.id, False),
    ]
    cause = directory.events(ENVIRONMENT)[before["*"]].id
    for home, roles in ((acme, [first, second]), (globex, [third]), (other, [])):
        rows = directory.events(home)[before[home.id] :]
        assert [(row.kind, row.target_id) for row in rows] == [(changed, each.id) for each in roles]
        assert {row.cause_event_id for row in rows} <= {cause}
    data, previous = directory.data(acme)
    assert (data["permission_slugs"], previous) == (["y"], {"permission_slugs": ["x", "y"]})
    for each, left in ((wide, ["y"]), (first, []), (second, ["y"]), (third, [])):
        now = api.RoleService.GetRole(role_id=each.id).role
        assert list(now.permission_slugs) == left
        assert now.etag != each.etag
