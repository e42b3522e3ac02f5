"""ResourceTypeService over the hall."""

from types import SimpleNamespace
from typing import Any

import pytest

from authz_service.config import Config
from authz_service.server import Worker
from tests.callers import Caller, Refused
from tests.directories import Directory, Recorded

ENVIRONMENT = SimpleNamespace(id="*")
RESTRICTED = ("PERMISSION_DENIED", "ORGANIZATION_RESTRICTED", {})
BUILT_IN = ("FAILED_PRECONDITION", "RESOURCE_TYPE_BUILT_IN", {})


@pytest.fixture
def directory(api: Caller, worker: Worker, config: Config) -> Directory:
    return Directory(api, worker, config)


@pytest.fixture
def example(directory: Directory) -> None:
    """The types of the worked example, and folders in folders."""
    directory.types(
        workspace=["organization"],
        project=["workspace"],
        document=["project", "workspace"],
        folder=["folder", "workspace"],
    )


def refusal(call: Any, **fields: Any) -> tuple[str, str, dict[str, str]]:
    with pytest.raises(Refused) as refused:
        call(**fields)
    return refused.value.code, refused.value.reason, refused.value.metadata


def no_type(slug: str, key: str = "resource_type_slug") -> tuple[str, str, dict[str, str]]:
    return "NOT_FOUND", "RESOURCE_TYPE_NOT_FOUND", {key: slug}


def cycle(slug: str, parent: str) -> tuple[str, str, dict[str, str]]:
    metadata = {"resource_type": slug, "parent_type": parent}
    return "INVALID_ARGUMENT", "RESOURCE_TYPE_CYCLE", metadata


def in_use(**counts: int) -> tuple[str, str, dict[str, str]]:
    metadata = {kind: str(count) for kind, count in counts.items()}
    return "FAILED_PRECONDITION", "RESOURCE_TYPE_IN_USE", metadata


def create(api: Caller, slug: str, *parents: str, **fields: Any) -> Any:
    return api.ResourceTypeService.CreateResourceType(
        slug=slug, **{"name": slug, "parent_type_slugs": parents} | fields
    ).resource_type


def update(api: Caller, slug: str, etag: str = "", **values: Any) -> Any:
    return api.ResourceTypeService.UpdateResourceType(
        resource_type={"slug": slug, "etag": etag, **values}, update_mask={"paths": list(values)}
    ).resource_type


def get(api: Caller, slug: str) -> Any:
    return api.ResourceTypeService.GetResourceType(resource_type_slug=slug).resource_type


def permission(api: Caller, slug: str) -> None:
    api.PermissionService.CreatePermission(
        slug=slug, name=slug, resource_type_slug=slug.partition(":")[0]
    )


# --- create and read -----------------------------------------------------------------------------


def test_created_type_can_be_read(directory: Directory, example: None) -> None:
    before = len(directory.events(ENVIRONMENT))
    made = create(
        directory.api, "page", "project", "folder", "page", name=" Page ", description=" a page "
    )
    assert (made.slug, made.name, made.description) == ("page", "Page", "a page")
    assert list(made.parent_type_slugs) == ["folder", "page", "project"]
    assert not made.is_built_in
    assert made.id.startswith("resource_type_")
    assert get(directory.api, "page") == made
    assert directory.recorded(ENVIRONMENT, before) == [
        Recorded("resource_type.created", made.id, True)
    ]
    assert directory.data(ENVIRONMENT)[0]["etag"] == made.etag


def test_organization_is_built_in(api: Caller) -> None:
    built_in = get(api, "organization")
    assert built_in.is_built_in
    assert not built_in.parent_type_slugs


def test_a_repeat_with_an_idempotency_key_creates_once(directory: Directory) -> None:
    repeating = directory.api.with_metadata(idempotency_key="types-1")
    before = len(directory.events(ENVIRONMENT))
    first, again = (create(repeating, "a", "organization") for _ in range(2))
    assert first == again
    assert len(directory.events(ENVIRONMENT)) == before + 1


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"slug": ""}, "FIELD_REQUIRED", "slug"),
        ({"slug": "9a"}, "FIELD_INVALID", "slug"),
        ({"slug": "A"}, "FIELD_INVALID", "slug"),
        ({"slug": "a" * 49}, "FIELD_INVALID", "slug"),
        ({"name": " "}, "FIELD_REQUIRED", "name"),
        ({"name": "x" * 49}, "FIELD_INVALID", "name"),
        ({"description": "x" * 151}, "FIELD_INVALID", "description"),
        ({"parent_type_slugs": []}, "FIELD_REQUIRED", "parent_type_slugs"),
        ({"parent_type_slugs": ["x"] * 11}, "REQUEST_TOO_LARGE", "parent_type_slugs"),
    ],
)
def test_badly_shaped_types_are_refused(
    directory: Directory, fields: dict[str, Any], reason: str, field: str
) -> None:
    before = len(directory.events(ENVIRONMENT))
    # Shapes come first: the parent type does not exist either.
    asked = {"slug": "a", "name": "A", "parent_type_slugs": ["nothing"]} | fields
    code, given, metadata = refusal(directory.api.ResourceTypeService.CreateResourceType, **asked)
    assert (code, given, metadata["field"]) == ("INVALID_ARGUMENT", reason, field)
    if reason == "REQUEST_TOO_LARGE":
        assert (metadata["maximum"], metadata["actual"]) == ("10", "11")
    assert len(directory.events(ENVIRONMENT)) == before


def test_values_at_their_limits_are_taken(directory: Directory) -> None:
    tops = [f"t{number}" for number in range(9)]
    directory.types(**{slug: ["organization"] for slug in tops})
    slug = "a" * 48
    made = create(directory.api, slug, "organization", *tops, name="x" * 48, description="x" * 150)
    assert len(made.parent_type_slugs) == 10


def test_create_refuses(directory: Directory, example: None) -> None:
    call = directory.api.ResourceTypeService.CreateResourceType
    restricted = directory.restricted_to(directory.organization()).ResourceTypeService
    before = len(directory.events(ENVIRONMENT))
    for fields, expected in (
        (("page", "project", "nothing"), no_type("nothing", "parent_type_slug")),
        (("page", "page"), cycle("page", "page")),
        (("page", "page", "page"), cycle("page", "page")),
        (("project", "workspace"), ("ALREADY_EXISTS", "SLUG_TAKEN", {"field": "slug"})),
        (("organization", "workspace"), cycle("organization", "workspace")),
    ):
        slug, *parents = fields
        assert refusal(call, slug=slug, name="x", parent_type_slugs=parents) == expected
    asked = {"slug": "page", "name": "x", "parent_type_slugs": ["project"]}
    assert refusal(restricted.CreateResourceType, **asked) == RESTRICTED
    assert len(directory.events(ENVIRONMENT)) == before


class TestLimit:
    @pytest.fixture
    def settings(self) -> dict[str, str]:
        return {"AUTHZ_LIMIT_RESOURCE_TYPES": "2"}

    def test_one_type_more_than_allowed_is_refused(self, directory: Directory) -> None:
        # The built-in one does not count.
        directory.types(a=["organization"], b=["organization"])
        asked = {"slug": "c", "name": "C", "parent_type_slugs": ["a"]}
        assert refusal(directory.api.ResourceTypeService.CreateResourceType, **asked) == (
            "RESOURCE_EXHAUSTED",
            "LIMIT_REACHED",
            {"limit": "resource_types", "maximum": "2"},
        )
        directory.api.ResourceTypeService.DeleteResourceType(resource_type_slug="b")
        create(directory.api, "c", "a")


def test_pages_hold_every_type_once_newest_first(api: Caller, example: None) -> None:
    expected = ["folder", "document", "project", "workspace", "organization"]
    for size in range(1, 7):
        listed = list(
            api.pages("ResourceTypeService", "ListResourceTypes", "resource_types", page_size=size)
        )
        assert [row.slug for row in listed] == expected
    assert listed[1] == get(api, "document")


def test_a_page_token_is_good_for_its_list_and_caller_only(
    directory: Directory, example: None
) -> None:
    api = directory.api
    token = api.ResourceTypeService.ListResourceTypes(page_size=1).next_page_token
    other = directory.restricted_to(directory.organization())
    for call, given, reason in (
        (other.ResourceTypeService.ListResourceTypes, token, "PAGE_TOKEN_MISMATCH"),
        (api.PermissionService.ListPermissions, token, "PAGE_TOKEN_MISMATCH"),
        (api.ResourceTypeService.ListResourceTypes, token[:-2], "PAGE_TOKEN_INVALID"),
    ):
        assert refusal(call, page_token=given)[:2] == ("INVALID_ARGUMENT", reason)


def test_types_are_readable_by_restricted_credentials(directory: Directory, example: None) -> None:
    restricted = directory.restricted_to(directory.organization())
    assert get(restricted, "project") == get(directory.api, "project")
    assert len(restricted.ResourceTypeService.ListResourceTypes().resource_types) == 5


def test_get_of_an_unknown_type_is_refused(api: Caller) -> None:
    call = api.ResourceTypeService.GetResourceType
    assert refusal(call, resource_type_slug="nothing") == no_type("nothing")
    assert refusal(call)[:2] == ("INVALID_ARGUMENT", "FIELD_REQUIRED")


# --- update --------------------------------------------------------------------------------------


def test_update_changes_what_the_mask_names(directory: Directory, example: None) -> None:
    former = get(directory.api, "document")
    before = len(directory.events(ENVIRONMENT))
    changed = update(
        directory.api,
        "document",
        former.etag,
        name=" Doc ",
        description=" text ",
        parent_type_slugs=["document", "workspace", "project", "folder", "folder"],
    )
    assert (changed.name, changed.description) == ("Doc", "text")
    assert list(changed.parent_type_slugs) == ["document", "folder", "project", "workspace"]
    assert (changed.id, changed.slug) == (former.id, "document")
    assert changed.etag != former.etag
    assert get(directory.api, "document") == changed
    assert directory.recorded(ENVIRONMENT, before) == [
        Recorded("resource_type.updated", changed.id, True)
    ]
    data, previous = directory.data(ENVIRONMENT)
    assert (data["name"], data["etag"]) == ("Doc", changed.etag)
    assert previous == {
        "name": "Document",
        "description": "",
        "parent_type_slugs": ["project", "workspace"],
    }
    assert update(directory.api, "document", description="").description == ""


def test_an_update_to_equal_values_records_nothing(directory: Directory, example: None) -> None:
    former = get(directory.api, "document")
    before = len(directory.events(ENVIRONMENT))
    same = update(
        directory.api, "document", name="Document ", parent_type_slugs=["workspace", "project"]
    )
    assert same == former
    assert len(directory.events(ENVIRONMENT)) == before


def test_new_parent_types_count_at_once_and_unused_ones_may_go(
    directory: Directory, example: None
) -> None:
    acme = directory.organization()
    call = directory.api.ResourceService.CreateResource
    asked = {
        "organization_id": acme.id,
        "resource_type_slug": "project",
        "external_id": "p",
        "name": "p",
    }
    assert refusal(call, **asked)[1] == "RESOURCE_PARENT_REQUIRED"
    update(directory.api, "project", parent_type_slugs=["organization"])
    call(**asked)


@pytest.mark.parametrize(
    ("values", "reason", "field"),
    [
        ({"name": " "}, "FIELD_INVALID", "resource_type.name"),
        ({"name": "x" * 49}, "FIELD_INVALID", "resource_type.name"),
        ({"description": "x" * 151}, "FIELD_INVALID", "resource_type.description"),
        ({"parent_type_slugs": []}, "FIELD_INVALID", "resource_type.parent_type_slugs"),
        ({"parent_type_slugs": ["x"] * 11}, "REQUEST_TOO_LARGE", "resource_type.parent_type_slugs"),
    ],
)
def test_badly_shaped_changes_are_refused(
    api: Caller, values: dict[str, Any], reason: str, field: str
) -> None:
    # Shapes come first: the type does not exist either.
    code, given, metadata = refusal(lambda: update(api, "nothing", **values))
    assert (code, given, metadata["field"]) == ("INVALID_ARGUMENT", reason, field)


def test_update_refuses(directory: Directory, example: None) -> None:
    api = directory.api
    restricted = directory.restricted_to(directory.organization())
    stale = get(api, "project").etag
    update(api, "project", name="P")
    before = len(directory.events(ENVIRONMENT))
    for arguments, values, expected in (
        (("nothing",), {"name": "x"}, no_type("nothing")),
        (("project", stale), {"name": "x"}, ("ABORTED", "ETAG_MISMATCH", {})),
        (
            ("project",),
            {"parent_type_slugs": ["workspace", "nothing"]},
            no_type("nothing", "parent_type_slug"),
        ),
        (("project",), {"parent_type_slugs": ["project"]}, cycle("project", "project")),
        (
            ("workspace",),
            {"parent_type_slugs": ["organization", "folder", "document"]},
            cycle("workspace", "folder"),
        ),
        (
            ("project",),
            {"parent_type_slugs": ["workspace", "document"]},
            cycle("project", "document"),
        ),
        (("organization",), {"parent_type_slugs": ["workspace"]}, BUILT_IN),
    ):
        assert refusal(lambda a=arguments, v=values: update(api, *a, **v)) == expected
    service = api.ResourceTypeService.UpdateResourceType
    for path in ("slug", "is_built_in", "nothing", "id"):
        assert refusal(
            service, resource_type={"slug": "project"}, update_mask={"paths": [path]}
        ) == ("INVALID_ARGUMENT", "UPDATE_MASK_INVALID", {"path": path})
    assert refusal(service, resource_type={"name": "x"}, update_mask={"paths": ["name"]}) == (
        "INVALID_ARGUMENT",
        "FIELD_REQUIRED",
        {"field": "resource_type.slug"},
    )
    assert refusal(lambda: update(restricted, "project", name="x")) == RESTRICTED
    assert len(directory.events(ENVIRONMENT)) == before


def test_of_organization_name_and_description_change(directory: Directory) -> None:
    changed = update(directory.api, "organization", name="Customer", description="who pays")
    assert (changed.name, changed.description) == ("Customer", "who pays")
    assert changed.is_built_in


def test_a_parent_type_of_placed_resources_stays(directory: Directory, example: None) -> None:
    acme = directory.organization()
    workspace = directory.resource(acme, "workspace", "w")
    project = directory.resource(acme, "project", "p", workspace)
    for number in range(2):
        directory.resource(acme, "document", f"w{number}", workspace)
    kept = directory.resource(acme, "document", "p1", project)
    before = len(directory.events(ENVIRONMENT))
    for parents, count in ((["project"], 2), (["workspace"], 1), (["folder"], 3)):
        assert refusal(
            lambda given=parents: update(directory.api, "document", parent_type_slugs=given)
        ) == in_use(resource=count)
    assert len(directory.events(ENVIRONMENT)) == before
    directory.api.ResourceService.DeleteResource(resource={"resource_id": kept.id})
    update(directory.api, "document", parent_type_slugs=["workspace"])


def test_a_parent_type_that_brings_permissions_into_a_role_stays(
    directory: Directory, example: None
) -> None:
    api = directory.api
    permission(api, "document:read")
    permission(api, "folder:open")
    directory.types(sheet=["document"])
    permission(api, "sheet:sum")
    # Only through document below project.
    one = api.RoleService.CreateRole(
        slug="reader",
        name="r",
        resource_type_slug="project",
        permission_slugs=["document:read", "sheet:sum"],
    ).role
    acme = directory.organization()
    api.RoleService.CreateRole(
        organization_id=acme.id,
        name="r",
        resource_type_slug="project",
        permission_slugs=["sheet:sum"],
    )
    # Also through document below workspace, and what has nothing to do with it.
    api.RoleService.CreateRole(
        slug="all",
        name="r",
        resource_type_slug="workspace",
        permission_slugs=["document:read", "folder:open"],
    )
    api.RoleService.CreateRole(
        slug="own", name="r", resource_type_slug="document", permission_slugs=["document:read"]
    )
    assert refusal(lambda: update(api, "document", parent_type_slugs=["workspace"])) == in_use(
        role=2
    )
    update(api, "document", parent_type_slugs=["project"])
    assert refusal(lambda: update(api, "project", parent_type_slugs=["organization"])) == in_use(
        role=1
    )
    update(api, "document", parent_type_slugs=["project", "workspace"])
    update(api, "project", parent_type_slugs=["organization"])
    api.RoleService.SetRolePermissions(role_id=one.id, permission_slugs=["document:read"])
    assert refusal(lambda: update(api, "sheet", parent_type_slugs=["folder"])) == in_use(role=1)


# --- delete --------------------------------------------------------------------------------------


def test_deleted_type_is_gone_and_absent_ones_are_told(directory: Directory, example: None) -> None:
    service = directory.api.ResourceTypeService
    former = get(directory.api, "folder")
    before = len(directory.events(ENVIRONMENT))
    # That it may lie below itself is no use of it.
    service.DeleteResourceType(resource_type_slug="folder", etag=former.etag)
    assert directory.recorded(ENVIRONMENT, before) == [
        Recorded("resource_type.deleted", former.id, True)
    ]
    assert directory.data(ENVIRONMENT)[0]["parent_type_slugs"] == ["folder", "workspace"]
    for call in (service.GetResourceType, service.DeleteResourceType):
        assert refusal(call, resource_type_slug="folder") == no_type("folder")
    service.DeleteResourceType(resource_type_slug="folder", allow_missing=True)
    assert len(directory.events(ENVIRONMENT)) == before + 1
    again = create(directory.api, "folder", "workspace")
    assert again.id != former.id


def test_a_type_in_use_stays(directory: Directory, example: None) -> None:
    api = directory.api
    permission(api, "document:read")
    permission(api, "document:edit")
    directory.role("reader", "document")
    acme = directory.organization()
    workspace = directory.resource(acme, "workspace", "w")
    for number in range(3):
        directory.resource(acme, "document", f"d{number}", workspace)
    restricted = directory.restricted_to(acme).ResourceTypeService
    etag = get(api, "folder").etag
    update(api, "folder", name="F")
    call = api.ResourceTypeService.DeleteResourceType
    before = len(directory.events(ENVIRONMENT))
    for slug, expected in (
        ("document", in_use(resource=3, role=1, permission=2)),
        ("workspace", in_use(resource=1, resource_type=3)),
        ("project", in_use(resource_type=1)),
        ("organization", BUILT_IN),
    ):
        assert refusal(call, resource_type_slug=slug) == expected
    assert refusal(call, resource_type_slug="folder", etag=etag)[1] == "ETAG_MISMATCH"
    assert refusal(restricted.DeleteResourceType, resource_type_slug="folder") == RESTRICTED
    assert len(directory.events(ENVIRONMENT)) == before
