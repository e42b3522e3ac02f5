"""RoleService over the hall."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import insert, select

from authz_service.config import Config
from authz_service.engine import limits
from authz_service.pb.authz.v1.roles_pb2 import RoleKind
from authz_service.server import Worker
from authz_service.storage.tables import MembershipRole, Permission, RoleAssignment
from tests.callers import Caller, Refused
from tests.conftest import ManualClock
from tests.directories import Directory, Recorded
from tests.statements import counting

ENVIRONMENT = SimpleNamespace(id="*")
RESTRICTED = ("PERMISSION_DENIED", "ORGANIZATION_RESTRICTED", {})
IS_DEFAULT = ("FAILED_PRECONDITION", "ROLE_IS_DEFAULT", {})
SEEDED = ["owner", "admin", "member", "guest"]
DAY = 24 * 3_600 * 1_000_000


@pytest.fixture
def directory(api: Caller, worker: Worker, config: Config) -> Directory:
    """Documents lie in projects, and some permissions of each type."""
    made = Directory(api, worker, config)
    made.types(project=["organization"], document=["project"], room=["organization"])
    for slug in ("project:view", "project:edit", "document:read", "document:edit", "room:book"):
        api.PermissionService.CreatePermission(
            slug=slug, name=slug, resource_type_slug=slug.partition(":")[0]
        )
    return made


@pytest.fixture
def acme(directory: Directory) -> Any:
    return directory.organization()


def refusal(call: Any, **fields: Any) -> tuple[str, str, dict[str, str]]:
    with pytest.raises(Refused) as refused:
        call(**fields)
    return refused.value.code, refused.value.reason, refused.value.metadata


def no_role(**named: str) -> tuple[str, str, dict[str, str]]:
    return "NOT_FOUND", "ROLE_NOT_FOUND", named


def no_permission(slug: str) -> tuple[str, str, dict[str, str]]:
    return "NOT_FOUND", "PERMISSION_NOT_FOUND", {"permission_slug": slug}


def out_of_scope(slug: str, role_type: str) -> tuple[str, str, dict[str, str]]:
    metadata = {"permission_slug": slug, "role_type": role_type}
    return "INVALID_ARGUMENT", "PERMISSION_OUT_OF_SCOPE", metadata


def in_use(**counts: int) -> tuple[str, str, dict[str, str]]:
    metadata = {kind: str(count) for kind, count in counts.items()}
    return "FAILED_PRECONDITION", "ROLE_IN_USE", metadata


def limit_reached(limit: str, maximum: int) -> tuple[str, str, dict[str, str]]:
    return "RESOURCE_EXHAUSTED", "LIMIT_REACHED", {"limit": limit, "maximum": str(maximum)}


def role(api: Caller, slug: str, type_slug: str = "", *permissions: str, of: Any = None) -> Any:
    """Creates a role, of an organization if one is given."""
    return api.RoleService.CreateRole(
        organization_id=of.id if of else "",
        slug=slug,
        name=slug or "Made",
        resource_type_slug=type_slug,
        permission_slugs=permissions,
    ).role


def get(api: Caller, slug: str, of: Any = None) -> Any:
    key = {"slug": slug, "organization_id": of.id if of else ""}
    return api.RoleService.GetRole(key=key).role


def by_id(api: Caller, made: Any) -> Any:
    return api.RoleService.GetRole(role_id=made.id).role


def update(api: Caller, role_id: str, etag: str = "", **values: Any) -> Any:
    return api.RoleService.UpdateRole(
        role={"id": role_id, "etag": etag, **values}, update_mask={"paths": list(values)}
    ).role


def set_default(api: Caller, organization: Any, slug: str) -> None:
    api.ConfigurationService.UpdateOrganizationConfiguration(
        organization_configuration={"organization_id": organization.id, "default_role_slug": slug},
        update_mask={"paths": ["default_role_slug"]},
    )


def configure(api: Caller, **values: Any) -> Any:
    return api.ConfigurationService.UpdateConfiguration(
        configuration=values, update_mask={"paths": list(values)}
    ).configuration


def priorities(api: Caller, organization: Any = None) -> list[str]:
    """Returns the roles with a priority in their order."""
    listed = list(
        api.pages(
            "RoleService",
            "ListRoles",
            "roles",
            organization_id=organization.id if organization else "",
            resource_type_slug="organization",
        )
    )
    assert [row.priority for row in listed] == list(range(1, len(listed) + 1))
    return [row.slug for row in listed]


# --- create --------------------------------------------------------------------------------------


def test_created_environment_role_comes_last(directory: Directory, acme: Any) -> None:
    api = directory.api
    before = len(directory.events(ENVIRONMENT))
    made = api.RoleService.CreateRole(
        slug="billing",
        name=" Billing ",
        description=" pays ",
        permission_slugs=["members:view", "document:read", "members:view"],
    ).role
    assert (made.slug, made.name, made.description) == ("billing", "Billing", "pays")
    assert (made.organization_id, made.kind) == ("", RoleKind.ROLE_KIND_ENVIRONMENT)
    assert made.resource_type_slug == "organization"
    assert list(made.permission_slugs) == ["document:read", "members:view"]
    assert (made.priority, made.is_default) == (5, False)
    assert get(api, "billing") == by_id(api, made) == made
    assert priorities(api) == priorities(api, acme) == [*SEEDED, "billing"]
    settings = api.ConfigurationService.GetConfiguration().configuration
    assert list(settings.role_priority) == [*SEEDED, "billing"]
    assert directory.recorded(ENVIRONMENT, before) == [Recorded("role.created", made.id, True)]
    data, _ = directory.data(ENVIRONMENT)
    assert (data["etag"], data["kind"]) == (made.etag, "ROLE_KIND_ENVIRONMENT")
    assert data["permission_slugs"] == ["document:read", "members:view"]
    # What depends on who looks at it is no part of the event.
    assert data.keys().isdisjoint({"is_default", "priority"})


def test_created_organization_role_is_there_only(directory: Directory, acme: Any) -> None:
    api = directory.api
    globex = directory.organization("Globex")
    before = len(directory.events(acme)), len(directory.events(ENVIRONMENT))
    made = role(api, "org-auditor", "", "document:read", of=acme)
    assert (made.organization_id, made.kind) == (acme.id, RoleKind.ROLE_KIND_ORGANIZATION)
    assert (made.slug, made.priority) == ("org-auditor", 5)
    assert directory.recorded(acme, before[0]) == [Recorded("role.created", made.id, True)]
    assert len(directory.events(ENVIRONMENT)) == before[1]
    assert get(api, "org-auditor", acme) == by_id(api, made) == made
    assert refusal(lambda: get(api, "org-auditor", globex)) == no_role(
        organization_id=globex.id, slug="org-auditor"
    )
    assert refusal(lambda: get(api, "org-auditor")) == no_role(slug="org-auditor")
    same = role(api, "org-auditor", "project", "project:view", of=globex)
    assert same.id != made.id
    assert (same.resource_type_slug, same.priority) == ("project", 0)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("Billing Admins!", r"org-billing-admins-[0-9a-f]{8}"),
        ("Señor -- 1", r"org-senor-1-[0-9a-f]{8}"),
        ("監査", r"org-[0-9a-f]{8}"),
        ("Ab" * 24, r"org-(ab){17}a-[0-9a-f]{8}"),
    ],
)
def test_an_organization_role_without_slug_gets_one(
    directory: Directory, acme: Any, name: str, shape: str
) -> None:
    one, other = (
        directory.api.RoleService.CreateRole(organization_id=acme.id, name=name).role
        for _ in range(2)
    )
    assert one.name == name
    for made in (one, other):
        assert re.fullmatch(shape, made.slug)
        assert len(made.slug) <= 48
    assert one.slug != other.slug


def test_a_repeat_with_an_idempotency_key_makes_one_slug(directory: Directory, acme: Any) -> None:
    repeating = directory.api.with_metadata(idempotency_key="role-1")
    before = len(directory.events(acme))
    assert role(repeating, "", of=acme) == role(repeating, "", of=acme)
    assert len(directory.events(acme)) == before + 1


@pytest.mark.parametrize(
    ("organization_id", "fields", "reason", "field"),
    [
        ("", {"slug": ""}, "FIELD_REQUIRED", "slug"),
        ("", {"slug": "org-a"}, "FIELD_INVALID", "slug"),
        ("", {"slug": "A"}, "FIELD_INVALID", "slug"),
        ("", {"slug": "a" * 49}, "FIELD_INVALID", "slug"),
        ("org_x", {"slug": "auditor"}, "FIELD_INVALID", "slug"),
        ("org_x", {"slug": "org-A"}, "FIELD_INVALID", "slug"),
        ("org_x", {"name": " "}, "FIELD_REQUIRED", "name"),
        ("org_x", {"name": "x" * 49}, "FIELD_INVALID", "name"),
        ("org_x", {"description": "x" * 151}, "FIELD_INVALID", "description"),
        ("org_x", {"permission_slugs": ["x"] * 501}, "REQUEST_TOO_LARGE", "permission_slugs"),
    ],
)
def test_badly_shaped_roles_are_refused(
    directory: Directory, organization_id: str, fields: dict[str, Any], reason: str, field: str
) -> None:
    before = len(directory.events(ENVIRONMENT))
    # Shapes come first: neither organization nor type exist.
    asked = {
        "organization_id": organization_id,
        "slug": "org-a" if organization_id else "a",
        "name": "A",
        "resource_type_slug": "nothing",
    } | fields
    code, given, metadata = refusal(directory.api.RoleService.CreateRole, **asked)
    assert (code, given, metadata["field"]) == ("INVALID_ARGUMENT", reason, field)
    assert len(directory.events(ENVIRONMENT)) == before


def test_values_at_their_limits_are_taken(directory: Directory) -> None:
    made = directory.api.RoleService.CreateRole(
        slug="a" * 48, name="x" * 48, description="x" * 150
    ).role
    assert by_id(directory.api, made) == made


def test_create_refuses(directory: Directory, acme: Any) -> None:
    api = directory.api
    role(api, "org-auditor", of=acme)
    restricted = directory.restricted_to(acme)
    globex = directory.organization("Globex")
    before = len(directory.events(acme)), len(directory.events(ENVIRONMENT))
    taken = ("ALREADY_EXISTS", "SLUG_TAKEN", {"field": "slug"})
    for caller, slug, type_slug, permissions, of, expected in (
        (
            api,
            "org-a",
            "nothing",
            ["nothing"],
            SimpleNamespace(id="org_x"),
            ("NOT_FOUND", "ORGANIZATION_NOT_FOUND", {"organization_id": "org_x"}),
        ),
        (
            api,
            "a",
            "nothing",
            ["nothing"],
            None,
            ("NOT_FOUND", "RESOURCE_TYPE_NOT_FOUND", {"resource_type_slug": "nothing"}),
        ),
        (api, "a", "project", ["room:book", "nothing", "never"], None, no_permission("nothing")),
        # Neither above nor beside the role's type.
        (
            api,
            "a",
            "document",
            ["document:read", "project:view"],
            None,
            out_of_scope("project:view", "document"),
        ),
        (
            api,
            "a",
            "project",
            ["document:read", "room:book"],
            None,
            out_of_scope("room:book", "project"),
        ),
        (api, "a", "project", ["members:view"], None, out_of_scope("members:view", "project")),
        (api, "member", "", [], None, taken),
        (api, "org-auditor", "", [], acme, taken),
        (restricted, "a", "", [], None, RESTRICTED),
        (
            restricted,
            "org-a",
            "",
            [],
            globex,
            ("NOT_FOUND", "ORGANIZATION_NOT_FOUND", {"organization_id": globex.id}),
        ),
    ):
        assert (
            refusal(
                lambda c=(caller, slug, type_slug, permissions), of=of: role(
                    c[0], c[1], c[2], *c[3], of=of
                )
            )
            == expected
        )
    assert (len(directory.events(acme)), len(directory.events(ENVIRONMENT))) == before
    role(restricted, "org-a", "project", "document:edit", "project:view", of=acme)


class TestLimits:
    @pytest.fixture
    def settings(self) -> dict[str, str]:
        return {"AUTHZ_LIMIT_ENVIRONMENT_ROLES": "5", "AUTHZ_LIMIT_ORGANIZATION_ROLES": "2"}

    def test_one_role_more_than_allowed_is_refused(self, directory: Directory, acme: Any) -> None:
        api = directory.api
        role(api, "a", "project")
        assert refusal(lambda: role(api, "b")) == limit_reached("environment_roles", 5)
        role(api, "org-a", of=acme)
        last = role(api, "org-b", of=acme)
        assert refusal(lambda: role(api, "org-c", of=acme)) == limit_reached(
            "organization_roles", 2
        )
        role(api, "org-c", of=directory.organization("Globex"))
        api.RoleService.DeleteRole(role_id=last.id)
        role(api, "org-c", of=acme)


# --- read ----------------------------------------------------------------------------------------


def test_a_role_is_shown_as_its_organization_sees_it(directory: Directory, acme: Any) -> None:
    api = directory.api
    own = role(api, "org-auditor", of=acme)
    api.ConfigurationService.SetRolePriority(
        organization_id=acme.id, role_slugs=["guest", "org-auditor", "owner", "admin", "member"]
    )
    set_default(api, acme, "guest")
    seen = [(each.priority, each.is_default) for each in (get(api, "guest"), get(api, "member"))]
    assert seen == [(4, False), (3, True)]
    inside = [get(api, slug, acme) for slug in ("guest", "member", "org-auditor")]
    assert [(each.priority, each.is_default) for each in inside] == [
        (1, True),
        (5, False),
        (2, False),
    ]
    assert by_id(api, own) == inside[2]
    assert (by_id(api, inside[0]).priority, by_id(api, inside[0]).is_default) == (4, False)
    set_default(api, acme, "org-auditor")
    assert by_id(api, own).is_default


def test_get_refuses(directory: Directory, acme: Any) -> None:
    api = directory.api
    globex = directory.organization("Globex")
    foreign = role(api, "org-auditor", of=globex)
    restricted = directory.restricted_to(acme)
    call = api.RoleService.GetRole
    assert refusal(call, role_id="role_x") == no_role(role_id="role_x")
    assert refusal(call, key={"slug": "nothing"}) == no_role(slug="nothing")
    unknown = {"organization_id": "org_x", "slug": "member"}
    assert refusal(call, key=unknown) == no_role(**unknown)
    hidden = {"organization_id": globex.id, "slug": "member"}
    assert refusal(restricted.RoleService.GetRole, key=hidden) == no_role(**hidden)
    named = {"organization_id": globex.id, "slug": "org-auditor"}
    assert refusal(restricted.RoleService.GetRole, key=named) == no_role(**named)
    assert refusal(restricted.RoleService.GetRole, role_id=foreign.id) == no_role(
        role_id=foreign.id
    )
    assert get(restricted, "member", acme) == get(api, "member", acme)
    for fields, field in (({}, "role"), ({"role_id": ""}, "role_id"), ({"key": {}}, "key.slug")):
        assert refusal(call, **fields) == (
            "INVALID_ARGUMENT",
            "FIELD_REQUIRED",
            {"field": field},
        )


def listed(api: Caller, page_size: int = 0, **filters: Any) -> list[str]:
    rows = api.pages("RoleService", "ListRoles", "roles", page_size=page_size, **filters)
    return [row.slug for row in rows]


def test_pages_hold_roles_by_priority_and_the_others_oldest_first(
    directory: Directory, acme: Any
) -> None:
    api = directory.api
    role(api, "project-viewer", "project", "project:view")
    role(api, "org-one", "document", of=acme)
    role(api, "org-two", of=acme)
    role(api, "project-editor", "project")
    role(api, "late")
    role(api, "org-foreign", of=directory.organization("Globex"))
    others = ["project-viewer", "org-one", "project-editor"]
    expected = [*SEEDED, "late", "org-two", *others]
    for size in range(1, len(expected) + 2):
        assert listed(api, size, organization_id=acme.id) == expected
        assert listed(api, size) == [*SEEDED, "late", "project-viewer", "project-editor"]
    answer = api.RoleService.ListRoles(organization_id=acme.id, page_size=1_000)
    assert [row.priority for row in answer.roles] == [1, 2, 3, 4, 5, 6, 0, 0, 0]
    assert [row.slug for row in answer.roles if row.is_default] == ["member"]
    assert list(answer.roles) == [get(api, slug, acme) for slug in expected]
    assert not answer.HasField("total_size")


def test_filter_and_total(directory: Directory, acme: Any) -> None:
    api = directory.api
    role(api, "project-viewer", "project")
    role(api, "org-one", "document", of=acme)
    role(api, "org-two", of=acme)
    for filters, expected in (
        ({"resource_type_slug": "organization"}, SEEDED),
        ({"resource_type_slug": "project"}, ["project-viewer"]),
        ({"resource_type_slug": "document"}, []),
        ({"resource_type_slug": "nothing"}, []),
        ({"resource_type_slug": "document", "organization_id": acme.id}, ["org-one"]),
        ({"organization_id": acme.id}, [*SEEDED, "org-two", "project-viewer", "org-one"]),
    ):
        for size in (1, 2, 10):
            assert listed(api, size, **filters) == expected
        answer = api.RoleService.ListRoles(page_size=1, include_total_size=True, **filters)
        assert answer.total_size == len(expected)
        assert answer.HasField("total_size")


class TestTotal:
    @pytest.fixture
    def settings(self) -> dict[str, str]:
        return {"AUTHZ_LIMIT_TOTAL_SIZE": "5"}

    def test_it_is_absent_above_its_limit(self, directory: Directory) -> None:
        call = directory.api.RoleService.ListRoles
        role(directory.api, "a", "project")
        assert call(include_total_size=True).total_size == 5
        role(directory.api, "b")
        assert not call(include_total_size=True).HasField("total_size")


def test_a_walk_goes_on_where_roles_were_deleted(directory: Directory) -> None:
    api = directory.api
    made = {
        slug: role(api, slug, kind)
        for slug, kind in (("a", ""), ("b", ""), ("x", "project"), ("y", "project"))
    }
    first = api.RoleService.ListRoles(page_size=5)
    assert first.roles[-1].slug == "a"
    api.RoleService.DeleteRole(role_id=made["a"].id)
    second = api.RoleService.ListRoles(page_size=2, page_token=first.next_page_token)
    assert [row.slug for row in second.roles] == ["b", "x"]
    api.RoleService.DeleteRole(role_id=made["x"].id)
    third = api.RoleService.ListRoles(page_size=2, page_token=second.next_page_token)
    assert [row.slug for row in third.roles] == ["y"]


def test_list_refuses(directory: Directory, acme: Any) -> None:
    api = directory.api
    globex = directory.organization("Globex")
    restricted = directory.restricted_to(acme).RoleService
    call = api.RoleService.ListRoles
    for service_call, organization_id in ((call, "org_x"), (restricted.ListRoles, globex.id)):
        assert refusal(service_call, organization_id=organization_id) == (
            "NOT_FOUND",
            "ORGANIZATION_NOT_FOUND",
            {"organization_id": organization_id},
        )
    assert len(restricted.ListRoles(organization_id=acme.id).roles) == 4
    assert len(restricted.ListRoles().roles) == 4
    token = call(page_size=1).next_page_token
    for fields in ({"organization_id": acme.id}, {"resource_type_slug": "project"}):
        assert refusal(call, page_token=token, **fields)[1] == "PAGE_TOKEN_MISMATCH"
    assert refusal(call, page_size=-1)[1] == "FIELD_INVALID"


def test_a_page_takes_as_many_statements_whatever_it_holds(directory: Directory, acme: Any) -> None:
    api = directory.api
    counts = []
    for number in range(3):
        role(api, f"org-{number}", of=acme)
        role(api, f"role-{number}", "project", "document:read")
        with counting() as statements:
            api.RoleService.ListRoles(organization_id=acme.id)
        counts.append(len(statements))
    assert len(set(counts)) == 1


# --- update --------------------------------------------------------------------------------------


def test_update_changes_what_the_mask_names(directory: Directory, acme: Any) -> None:
    api = directory.api
    for home, made in (
        (ENVIRONMENT, role(api, "billing", "", "document:read")),
        (acme, role(api, "org-billing", "", "document:read", of=acme)),
    ):
        before = len(directory.events(home))
        changed = update(api, made.id, made.etag, name=" Billing ", description=" pays ")
        assert (changed.name, changed.description) == ("Billing", "pays")
        assert changed.etag != made.etag
        assert list(changed.permission_slugs) == ["document:read"]
        assert by_id(api, made) == changed
        assert directory.recorded(home, before) == [Recorded("role.updated", made.id, True)]
        data, previous = directory.data(home)
        assert data["permission_slugs"] == ["document:read"]
        assert previous == {"name": made.slug, "description": ""}
        assert update(api, made.id, name="Billing", description="pays ") == changed
        assert update(api, made.id, description="").description == ""
        assert len(directory.events(home)) == before + 2


def test_update_refuses(directory: Directory, acme: Any) -> None:
    api = directory.api
    made = role(api, "billing")
    foreign = role(api, "org-a", of=directory.organization("Globex"))
    own = role(api, "org-a", of=acme)
    update(api, made.id, name="x")
    restricted = directory.restricted_to(acme)
    before = len(directory.events(ENVIRONMENT))
    assert refusal(lambda: update(api, "role_x", name="x")) == no_role(role_id="role_x")
    assert refusal(lambda: update(api, made.id, made.etag, name="y"))[:2] == (
        "ABORTED",
        "ETAG_MISMATCH",
    )
    for values, field in (
        ({"name": ""}, "role.name"),
        ({"name": "x" * 49}, "role.name"),
        ({"description": "x" * 151}, "role.description"),
    ):
        code, reason, metadata = refusal(lambda given=values: update(api, "role_x", **given))
        assert (code, reason) == ("INVALID_ARGUMENT", "FIELD_INVALID")
        assert metadata["field"] == field
    service = api.RoleService.UpdateRole
    for path in ("slug", "permission_slugs", "resource_type_slug", "organization_id", "priority"):
        assert refusal(service, role={"id": made.id}, update_mask={"paths": [path]}) == (
            "INVALID_ARGUMENT",
            "UPDATE_MASK_INVALID",
            {"path": path},
        )
    assert refusal(service, role={"name": "x"}, update_mask={"paths": ["name"]})[2] == {
        "field": "role.id"
    }
    assert refusal(lambda: update(restricted, made.id, name="y")) == RESTRICTED
    assert refusal(lambda: update(restricted, foreign.id, name="y")) == no_role(role_id=foreign.id)
    assert len(directory.events(ENVIRONMENT)) == before
    assert update(restricted, own.id, name="y").name == "y"


# --- permissions of a role -----------------------------------------------------------------------


def test_permissions_are_set_added_and_removed(directory: Directory, acme: Any) -> None:
    service = directory.api.RoleService
    for home, made in (
        (ENVIRONMENT, role(directory.api, "worker", "project", "project:view", "document:read")),
        (acme, role(directory.api, "org-a", "project", "project:view", "document:read", of=acme)),
    ):
        before = len(directory.events(home))
        present = made
        for call, given, expected in (
            (
                service.AddRolePermissions,
                ["document:edit", "document:read", "document:edit"],
                ["document:edit", "document:read", "project:view"],
            ),
            (service.AddRolePermissions, ["document:edit"], None),
            (
                service.RemoveRolePermissions,
                ["project:view", "members:view"],
                ["document:edit", "document:read"],
            ),
            (service.RemoveRolePermissions, ["project:view"], None),
            (
                service.SetRolePermissions,
                ["project:edit", "document:edit"],
                ["document:edit", "project:edit"],
            ),
            (service.SetRolePermissions, ["project:edit", "document:edit"], None),
            (service.SetRolePermissions, [], []),
        ):
            count = len(directory.events(home))
            changed = call(role_id=made.id, permission_slugs=given, etag=present.etag).role
            assert by_id(directory.api, made) == changed
            if expected is None:
                assert changed == present
                assert len(directory.events(home)) == count
                continue
            assert list(changed.permission_slugs) == expected
            assert changed.etag != present.etag
            assert directory.recorded(home, count) == [
                Recorded("role.permissions_changed", made.id, True)
            ]
            data, previous = directory.data(home)
            assert data["permission_slugs"] == expected
            assert previous == {"permission_slugs": list(present.permission_slugs)}
            present = changed
        assert len(directory.events(home)) == before + 4


def test_changes_of_permissions_refuse(directory: Directory, acme: Any) -> None:
    api = directory.api
    made = role(api, "worker", "project", "document:read")
    own = role(api, "org-a", "project", of=acme)
    foreign = role(api, "org-a", of=directory.organization("Globex"))
    restricted = directory.restricted_to(acme).RoleService
    before = len(directory.events(ENVIRONMENT))
    for name in ("SetRolePermissions", "AddRolePermissions", "RemoveRolePermissions"):
        call = getattr(api.RoleService, name)
        slugs = ["document:edit", "room:book"]
        assert refusal(call, role_id="role_x", permission_slugs=slugs) == no_role(role_id="role_x")
        assert refusal(call, role_id=made.id, permission_slugs=["room:book", "x"]) == no_permission(
            "x"
        )
        assert refusal(call, role_id=made.id, permission_slugs=["document:edit"], etag="0")[:2] == (
            "ABORTED",
            "ETAG_MISMATCH",
        )
        assert refusal(call, role_id="role_x", permission_slugs=["x"] * 501) == (
            "INVALID_ARGUMENT",
            "REQUEST_TOO_LARGE",
            {"field": "permission_slugs", "maximum": "500", "actual": "501"},
        )
        blocked = getattr(restricted, name)
        assert refusal(blocked, role_id=made.id, permission_slugs=slugs) == RESTRICTED
        assert refusal(blocked, role_id=foreign.id, permission_slugs=slugs) == no_role(
            role_id=foreign.id
        )
        blocked(role_id=own.id, permission_slugs=["document:read"])
        if name != "RemoveRolePermissions":
            assert refusal(call, role_id=made.id, permission_slugs=slugs) == out_of_scope(
                "room:book", "project"
            )
        if name != "SetRolePermissions":
            assert refusal(call, role_id=made.id)[1] == "FIELD_REQUIRED"
    assert len(directory.events(ENVIRONMENT)) == before


def test_a_role_holds_five_hundred_permissions(directory: Directory) -> None:
    slugs = [f"p{number}" for number in range(limits.ROLE_PERMISSIONS_MAX + 1)]
    rows = [
        {
            "slug": slug,
            "id": f"perm_{slug}",
            "name": slug,
            "description": "",
            "resource_type_slug": "organization",
            "assignable_to_api_keys": False,
            "created_at": 1,
            "updated_at": 1,
            "revision": 1,
        }
        for slug in slugs
    ]
    directory.write(lambda tx: tx.connection.execute(insert(Permission), rows))
    full = role(directory.api, "full", "", *slugs[:-1])
    assert len(full.permission_slugs) == 500
    call = directory.api.RoleService.AddRolePermissions
    assert refusal(call, role_id=full.id, permission_slugs=slugs[-1:]) == limit_reached(
        "role_permissions", 500
    )
    assert call(role_id=full.id, permission_slugs=slugs[:2]).role == full


# --- delete --------------------------------------------------------------------------------------


def delete(api: Caller, made: Any, replacement: str = "", **fields: Any) -> dict[str, int]:
    answer = api.RoleService.DeleteRole(
        role_id=made.id, replacement_role_slug=replacement, **fields
    )
    return dict(answer.replaced_counts)


def test_deleted_role_is_gone_and_absent_ones_are_told(directory: Directory, acme: Any) -> None:
    api = directory.api
    for home, slug in ((ENVIRONMENT, "billing"), (acme, "org-billing")):
        of = None if home is ENVIRONMENT else acme
        made = role(api, slug, "", "document:read", of=of)
        before = len(directory.events(home))
        assert delete(api, made, etag=made.etag) == {}
        assert directory.recorded(home, before) == [Recorded("role.deleted", made.id, True)]
        assert directory.data(home)[0]["permission_slugs"] == ["document:read"]
        for call in (api.RoleService.GetRole, api.RoleService.DeleteRole):
            assert refusal(call, role_id=made.id) == no_role(role_id=made.id)
        assert delete(api, made, allow_missing=True) == {}
        assert len(directory.events(home)) == before + 1
        assert priorities(api, of) == SEEDED
        assert list(role(api, slug, of=of).permission_slugs) == []
        assert get(api, slug, of).priority == 5
        delete(api, get(api, slug, of))
    settings = api.ConfigurationService.GetConfiguration().configuration
    assert list(settings.role_priority) == SEEDED


def test_a_deleted_role_leaves_the_order_of_an_organization(
    directory: Directory, acme: Any
) -> None:
    api = directory.api
    own, wide = role(api, "org-a", of=acme), role(api, "wide")
    api.ConfigurationService.SetRolePriority(
        organization_id=acme.id, role_slugs=["wide", "org-a", *SEEDED[::-1]]
    )
    delete(api, own)
    delete(api, wide)
    role(api, "org-new", of=acme)
    role(api, "new")
    assert priorities(api, acme) == [*SEEDED[::-1], "org-new", "new"]


def test_default_roles_stay(directory: Directory, acme: Any) -> None:
    api = directory.api
    globex = directory.organization("Globex")
    own = role(api, "org-a", of=acme)
    set_default(api, acme, "org-a")
    set_default(api, globex, "guest")
    for made in (get(api, "member"), get(api, "guest"), own):
        assert refusal(lambda each=made: delete(api, each)) == IS_DEFAULT
        # Whatever is named to take its place, and even if that could not.
        for replacement in ("owner", "nothing"):
            refused = refusal(lambda each=made, by=replacement: delete(api, each, by))
            assert refused == IS_DEFAULT
    set_default(api, acme, "")
    assert delete(api, own) == {}


def test_replacements_that_do_not_fit_are_refused(directory: Directory, acme: Any) -> None:
    api = directory.api
    globex = directory.organization("Globex")
    wide, viewer = role(api, "wide"), role(api, "viewer", "project")
    own = role(api, "org-a", of=acme)
    role(api, "org-b", "project", of=acme)
    role(api, "org-foreign", of=globex)
    anywhere = "an environment role, or one of the same organization"
    for made, slug, rule in (
        (wide, "nothing", anywhere),
        (wide, "org-a", anywhere),
        (wide, "wide", "another role than the deleted one"),
        (wide, "viewer", "of type organization"),
        (viewer, "wide", "of type project"),
        (own, "org-foreign", anywhere),
        (own, "org-a", "another role than the deleted one"),
        (own, "org-b", "of type organization"),
    ):
        assert refusal(lambda m=made, s=slug: delete(api, m, s)) == (
            "INVALID_ARGUMENT",
            "REPLACEMENT_ROLE_INVALID",
            {"replacement_role_slug": slug, "rule": rule},
        )
        assert by_id(api, made)
    code, reason, metadata = refusal(lambda: delete(api, SimpleNamespace(id="role_x"), "A"))
    assert (code, reason) == ("INVALID_ARGUMENT", "FIELD_INVALID")
    assert metadata["field"] == "replacement_role_slug"


def test_delete_refuses(directory: Directory, acme: Any) -> None:
    api = directory.api
    made = role(api, "wide")
    own = role(api, "org-a", of=acme)
    foreign = role(api, "org-a", of=directory.organization("Globex"))
    restricted = directory.restricted_to(acme)
    update(api, made.id, name="x")
    before = len(directory.events(ENVIRONMENT))
    assert refusal(lambda: delete(api, made, etag=made.etag))[:2] == ("ABORTED", "ETAG_MISMATCH")
    assert refusal(lambda: delete(restricted, made)) == RESTRICTED
    assert refusal(lambda: delete(restricted, foreign)) == no_role(role_id=foreign.id)
    assert delete(restricted, foreign, allow_missing=True) == {}
    assert by_id(api, foreign) == foreign
    assert len(directory.events(ENVIRONMENT)) == before
    assert delete(restricted, own) == {}


# --- uses ----------------------------------------------------------------------------------------


def own_roles(api: Caller, membership: Any) -> list[str]:
    found = api.OrganizationMembershipService.GetOrganizationMembership(
        organization_membership_id=membership.id
    ).organization_membership
    return [each.slug for each in found.roles]


def set_roles(api: Caller, membership: Any, *slugs: str) -> Any:
    return api.OrganizationMembershipService.UpdateOrganizationMembership(
        organization_membership_id=membership.id, role_slugs=slugs
    ).organization_membership


def store_role(directory: Directory, membership: Any, made: Any, source: str) -> None:
    values = {
        "organization_id": membership.organization_id,
        "membership_id": membership.id,
        "role_id": made.id,
        "source": source,
    }
    directory.write(lambda tx: tx.connection.execute(insert(MembershipRole).values(values)))


def sources(directory: Directory, membership: Any) -> set[tuple[str, str]]:
    """Returns a membership's own roles as stored: (role id, source)."""
    statement = select(MembershipRole.role_id, MembershipRole.source).where(
        MembershipRole.membership_id == membership.id
    )
    return {
        tuple(row) for row in directory.write(lambda tx: tx.connection.execute(statement).all())
    }


def assignments(directory: Directory, resource: Any) -> dict[str, tuple[str, int | None]]:
    """Returns what is assigned on a resource as stored: id to (role id, end)."""
    statement = select(RoleAssignment.id, RoleAssignment.role_id, RoleAssignment.expires_at).where(
        RoleAssignment.resource_id == resource.id
    )
    rows = directory.write(lambda tx: tx.connection.execute(statement).all())
    return {row.id: (row.role_id, row.expires_at) for row in rows}


def test_a_role_in_use_stays_without_replacement(
    directory: Directory, acme: Any, clock: ManualClock, worker: Worker
) -> None:
    api = directory.api
    wide, viewer = role(api, "wide"), role(api, "viewer", "project")
    active, pending = directory.membership(acme), directory.membership(acme, "PENDING")
    group = directory.group(acme, "g")
    project = directory.resource(acme, "project", "p")
    root = api.ResourceService.GetResource(
        resource={
            "key": {
                "organization_id": acme.id,
                "resource_type_slug": "organization",
                "external_id": acme.id,
            }
        }
    ).resource
    # One membership, from two sources: one use.
    store_role(directory, active, wide, "DIRECT")
    store_role(directory, active, wide, "DIRECTORY")
    store_role(directory, pending, wide, "DIRECT")
    directory.assignment(wide, root, group)
    soon = worker.database.now() + DAY
    directory.assignment(viewer, project, active, expires_at=soon)
    before = len(directory.events(ENVIRONMENT)), len(directory.events(acme))
    assert refusal(lambda: delete(api, wide)) == in_use(
        organization_membership=2, role_assignment=1
    )
    assert refusal(lambda: delete(api, viewer)) == in_use(role_assignment=1)
    assert (len(directory.events(ENVIRONMENT)), len(directory.events(acme))) == before
    # An ended assignment is no use and goes without a word.
    clock.advance(days=2)
    assert delete(api, viewer) == {}
    assert assignments(directory, project) == {}
    assert len(directory.events(acme)) == before[1]


def test_own_roles_go_over_to_the_replacement(directory: Directory, acme: Any) -> None:
    api = directory.api
    globex = directory.organization("Globex")
    old, new = role(api, "old", "", "document:edit"), role(api, "new", "", "document:read")
    ann, bob, cat, dan = (directory.membership(acme) for _ in range(4))
    eve = directory.membership(globex, "INACTIVE")
    set_roles(api, ann, "old", "guest")
    set_roles(api, bob, "old", "new")
    set_roles(api, cat, "new")
    store_role(directory, cat, old, "DIRECTORY")
    for source in ("DIRECT", "DIRECTORY"):
        store_role(directory, eve, old, source)
    homes = (ENVIRONMENT, acme, globex)
    before = {each.id: len(directory.events(each)) for each in homes}

    assert delete(api, old, "new") == {"organization_membership": 4}
    assert own_roles(api, ann) == ["guest", "new"]
    assert own_roles(api, bob) == ["new"]
    assert own_roles(api, dan) == ["member"]
    assert sources(directory, cat) == {(new.id, "DIRECT"), (new.id, "DIRECTORY")}
    assert {(new.id, "DIRECT"), (new.id, "DIRECTORY")} < sources(directory, eve)
    assert directory.recorded(ENVIRONMENT, before["*"]) == [Recorded("role.deleted", old.id, True)]
    cause = directory.events(ENVIRONMENT)[-1].id
    for home, members in ((acme, [ann, bob, cat]), (globex, [eve])):
        rows = directory.events(home)[before[home.id] :]
        kind = "organization_membership.updated"
        assert [(row.kind, row.target_id) for row in rows] == [(kind, each.id) for each in members]
        assert {row.cause_event_id for row in rows} == {cause}
    data, previous = directory.data(globex)
    now = api.OrganizationMembershipService.GetOrganizationMembership(
        organization_membership_id=eve.id
    ).organization_membership
    assert data["etag"] == now.etag
    assert [each["slug"] for each in data["roles"]] == ["member", "new"]
    assert [each["slug"] for each in previous["roles"]] == ["member", "old"]


def test_assignments_go_over_to_the_replacement_and_merge(
    directory: Directory, acme: Any, worker: Worker
) -> None:
    api = directory.api
    old, new = role(api, "old", "project"), role(api, "new", "project")
    ann, bob, cat, dan = (directory.membership(acme) for _ in range(4))
    group = directory.group(acme, "g")
    project = directory.resource(acme, "project", "p")
    now = worker.database.now()
    store = directory.assignment
    alone = store(old, project, ann, expires_at=now + DAY)
    endless = store(old, project, group)
    kept = store(new, project, group, expires_at=now + DAY)
    shorter = store(old, project, bob, expires_at=now + DAY)
    longer = store(new, project, bob, expires_at=now + 2 * DAY)
    later = store(old, project, cat, expires_at=now + 3 * DAY)
    ended = store(new, project, cat, expires_at=now - DAY)
    store(old, project, dan, expires_at=now - DAY)
    before = len(directory.events(acme))

    assert delete(api, old, "new") == {"role_assignment": 4}
    assert assignments(directory, project) == {
        alone: (new.id, now + DAY),
        kept: (new.id, None),
        longer: (new.id, now + 2 * DAY),
        ended: (new.id, now + 3 * DAY),
    }
    rows = directory.events(acme)[before:]
    assert [(row.kind.removeprefix("role_assignment."), row.target_id) for row in rows] == [
        ("updated", alone),
        ("updated", kept),
        ("deleted", endless),
        ("deleted", shorter),
        # It had ended, and nobody had said so.
        ("expired", ended),
        ("updated", ended),
        ("deleted", later),
    ]
    assert [row.actor_kind == "SYSTEM" for row in rows].index(True) == 4
    seen = api.RoleAssignmentService.GetRoleAssignment(role_assignment_id=alone).role_assignment
    assert seen.role_slug == "new"
    assert f'"etag":"{seen.etag}"' in rows[0].data
    assert '"role_slug":"old"' in rows[0].previous
    assert '"role_slug":"old"' in rows[2].data


def test_an_organization_role_is_replaced_by_one_of_either_kind(
    directory: Directory, acme: Any
) -> None:
    api = directory.api
    first, second = role(api, "org-first", of=acme), role(api, "org-second", of=acme)
    ann = directory.membership(acme)
    set_roles(api, ann, "org-first")
    before = len(directory.events(acme)), len(directory.events(ENVIRONMENT))
    restricted_free = [
        Recorded("role.deleted", first.id, True),
        Recorded("organization_membership.updated", ann.id, False),
    ]
    assert delete(api, first, "org-second") == {"organization_membership": 1}
    assert directory.recorded(acme, before[0]) == restricted_free
    assert len(directory.events(ENVIRONMENT)) == before[1]
    restricted = directory.restricted_to(acme)
    assert delete(restricted, second, "guest") == {"organization_membership": 1}
    assert own_roles(api, ann) == ["guest"]


def test_uses_in_hidden_organizations_are_no_obstacle_for_own_roles(
    directory: Directory, acme: Any
) -> None:
    globex = directory.organization("Globex")
    own = role(directory.api, "org-a", of=acme)
    role(directory.api, "org-a", of=globex)
    set_roles(directory.api, directory.membership(globex), "org-a")
    assert delete(directory.api, own) == {}


def test_deleting_the_owner_role_needs_organizations_without_owner(
    directory: Directory, acme: Any
) -> None:
    api = directory.api
    owner = get(api, "owner")
    ann = directory.membership(acme)
    bob = directory.membership(directory.organization("Globex"), "INACTIVE")
    for each in (ann, bob):
        set_roles(api, each, "owner")
    before = len(directory.events(ENVIRONMENT)), len(directory.events(acme))
    last_owner = ("FAILED_PRECONDITION", "LAST_OWNER", {"organization_id": acme.id})
    assert refusal(lambda: delete(api, owner)) == in_use(organization_membership=2)
    assert refusal(lambda: delete(api, owner, "admin")) == last_owner
    assert own_roles(api, ann) == ["owner"]
    assert (len(directory.events(ENVIRONMENT)), len(directory.events(acme))) == before
    former = configure(api, last_owner_guard_enabled=False)
    assert delete(api, owner, "admin") == {"organization_membership": 2}
    settings = api.ConfigurationService.GetConfiguration().configuration
    assert settings.owner_role_slug == ""
    assert list(settings.role_priority) == SEEDED[1:]
    assert settings.etag != former.etag
    assert own_roles(api, ann) == own_roles(api, bob) == ["admin"]


def test_replacing_a_role_by_the_owner_role_makes_owners(directory: Directory, acme: Any) -> None:
    api = directory.api
    ann, bob = directory.membership(acme), directory.membership(acme)
    set_roles(api, ann, "owner")
    set_roles(api, bob, "admin")
    assert delete(api, get(api, "admin"), "owner") == {"organization_membership": 1}
    assert own_roles(api, bob) == ["owner"]
    assert api.ConfigurationService.GetConfiguration().configuration.owner_role_slug == "owner"
    set_roles(api, ann, "member")


def test_too_many_uses_are_refused(
    directory: Directory, acme: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "REPLACED_USES_MAX", 3)
    api = directory.api
    wide = role(api, "wide")
    group = directory.group(acme, "g")
    root = SimpleNamespace(id=directory.events(acme)[1].target_id, organization_id=acme.id)
    for _ in range(3):
        set_roles(api, directory.membership(acme), "wide")
    extra = directory.assignment(wide, root, group)
    assert refusal(lambda: delete(api, wide, "guest")) == limit_reached("replaced_uses", 3)
    api.RoleAssignmentService.DeleteRoleAssignment(role_assignment_id=extra)
    assert delete(api, wide, "guest") == {"organization_membership": 3}


def test_many_uses_take_few_statements(directory: Directory, acme: Any) -> None:
    api = directory.api
    project = directory.resource(acme, "project", "p")
    counts = []
    for size in (1, 6):
        wide, viewer = role(api, f"wide-{size}"), role(api, f"viewer-{size}", "project")
        for _ in range(size):
            member = directory.membership(acme)
            set_roles(api, member, wide.slug)
            directory.assignment(viewer, project, member)
        for made, replacement in ((wide, "guest"), (viewer, "viewer")):
            if replacement == "viewer" and size == 1:
                role(api, "viewer", "project")
            with counting() as statements:
                assert sum(delete(api, made, replacement).values()) == size
            counts.append(len(statements))
    assert counts[:2] == counts[2:]
