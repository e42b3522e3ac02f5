"""What the lists of AuthorizationService show of an object is what its own service shows."""

import pytest

from authz_service.config import Config
from authz_service.server import Worker
from tests.callers import Caller
from tests.directories import Directory


@pytest.fixture
def directory(api: Caller, worker: Worker, config: Config) -> Directory:
    made = Directory(api, worker, config)
    made.types(folder=["organization"], document=["folder"])
    for slug in ("folder:read", "document:read"):
        api.PermissionService.CreatePermission(
            slug=slug, name=slug, resource_type_slug=slug.partition(":")[0]
        )
    return made


def test_listed_objects_are_shown_as_their_services_show_them(
    api: Caller, directory: Directory
) -> None:
    organization = directory.organization()
    other = directory.organization("Other")
    member, second = directory.membership(organization), directory.membership(organization)
    directory.membership(other)
    inner = directory.group(organization, "Inner", second)
    outer = directory.group(organization, "Outer", inner)
    folder = directory.resource(organization, "folder", "f")
    document = directory.resource(organization, "document", "d", folder)
    api.ResourceService.UpdateResource(
        resource={"resource_id": folder.id},
        description="All of it",
        update_mask={"paths": ["description"]},
    )
    api.RoleService.CreateRole(
        organization_id=organization.id,
        slug="org-reader",
        name="Reader",
        permission_slugs=["document:read", "folder:read"],
    )
    api.OrganizationMembershipService.UpdateOrganizationMembership(
        organization_membership_id=member.id, role_slugs=["org-reader"]
    )
    api.RoleAssignmentService.CreateRoleAssignment(
        group_id=outer.id,
        role_slug="org-reader",
        resource={
            "key": {
                "organization_id": organization.id,
                "resource_type_slug": "organization",
                "external_id": organization.id,
            }
        },
    )
    listed = api.AuthorizationService.ListMembers(
        resource={"resource_id": document.id}, permission_slug="document:read"
    ).members
    assert [each.organization_membership.id for each in listed] == sorted(
        [member.id, second.id], reverse=True
    )
    for each in listed:
        shown = each.organization_membership
        service = api.OrganizationMembershipService
        assert (
            shown
            == service.GetOrganizationMembership(
                organization_membership_id=shown.id
            ).organization_membership
        )
    reached = api.AuthorizationService.ListResources(
        subject={"organization_membership_id": second.id},
        permission_slugs=["document:read", "folder:read"],
    ).items
    assert [each.resource.id for each in reached] == [document.id, folder.id]
    for item in reached:
        assert (
            item.resource
            == api.ResourceService.GetResource(resource={"resource_id": item.resource.id}).resource
        )
        assert list(item.permission_slugs) == [f"{item.resource.resource_type_slug}:read"]
