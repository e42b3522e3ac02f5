"""A write cools what it changed and nothing else: all other questions stay answered from memory."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from authz_service.config import Config
from authz_service.server import Worker
from tests.callers import Caller, Refused
from tests.conftest import begun
from tests.directories import Directory

pytestmark = pytest.mark.every_cache
READ = "document:read"


class Place(NamedTuple):
    """Two organizations whose questions are all remembered.

    Attributes:
        members, documents: Of the first organization; all may read all, through different ways.
        stranger, elsewhere: A member and a document of the other one.
    """

    api: Caller
    worker: Worker
    acme: Any
    members: list[Any]
    documents: list[Any]
    folder: Any
    group: Any
    roles: dict[str, Any]
    stranger: Any
    elsewhere: Any

    def questions(self) -> Iterator[tuple[Any, Any]]:
        """All pairs that are asked about."""
        for member in self.members:
            for document in self.documents:
                yield member, document
        yield self.stranger, self.elsewhere

    def ask(self, member: Any, document: Any) -> bool:
        """Asks one; true if it was answered from memory."""
        answers = self.worker.metrics.cache_answers
        before = answers.value("view")
        with contextlib.suppress(Refused):
            self.api.AuthorizationService.Check(
                subject={"organization_membership_id": member.id},
                permission_slug=READ,
                resource={"resource_id": document.id},
            )
        return answers.value("view") > before

    def cold(self) -> set[str]:
        """Whose questions are not all answered from memory now; they are afterwards."""
        return {
            self.name(member)
            for member, document in list(self.questions())
            if not self.ask(member, document)
        }

    def name(self, member: Any) -> str:
        """A member by its place."""
        return "stranger" if member is self.stranger else f"m{self.members.index(member)}"


@pytest.fixture
def settings() -> dict[str, str]:
    return {"AUTHZ_CACHE_VERIFY_RATIO": "0"}


@pytest.fixture
def place(api: Caller, worker: Worker, config: Config) -> Place:
    directory = Directory(api, worker, config)
    directory.types(folder=["organization"], document=["folder"])
    api.PermissionService.CreatePermission(slug=READ, name="read", resource_type_slug="document")
    roles = {
        slug: api.RoleService.CreateRole(
            slug=slug, name=slug, resource_type_slug=type_slug, permission_slugs=[READ]
        ).role
        for slug, type_slug in (("folder-reader", "folder"), ("document-reader", "document"))
    }
    acme, other = directory.organization(), directory.organization("Other")
    roles["org-own"] = api.RoleService.CreateRole(
        organization_id=acme.id, slug="org-own", name="Own", permission_slugs=[READ]
    ).role
    members = [directory.membership(acme) for _ in range(3)]
    group = directory.group(acme, "Crew", members[1])
    folder = directory.resource(acme, "folder", "f")
    documents = [directory.resource(acme, "document", f"d{i}", folder) for i in range(2)]
    stranger = directory.membership(other)
    elsewhere = directory.resource(other, "document", "e", directory.resource(other, "folder", "g"))
    for subject in (
        {"organization_membership_id": members[0].id},
        {"group_id": group.id},
    ):
        api.RoleAssignmentService.CreateRoleAssignment(
            **subject, role_slug="folder-reader", resource={"resource_id": folder.id}
        )
    made = Place(api, worker, acme, members, documents, folder, group, roles, stranger, elsewhere)
    begun(worker)
    for _ in range(2):
        made.cold()
    assert made.cold() == set()
    return made


ALL = {"m0", "m1", "m2"}
WRITES: dict[str, tuple[Callable[[Place], Any], set[str]]] = {
    "a role for a member": (
        lambda p: p.api.RoleAssignmentService.CreateRoleAssignment(
            organization_membership_id=p.members[2].id,
            role_slug="document-reader",
            resource={"resource_id": p.documents[0].id},
        ),
        {"m2"},
    ),
    "a member into a group": (
        lambda p: p.api.GroupService.AddGroupMember(
            group_id=p.group.id, organization_membership_id=p.members[2].id
        ),
        {"m2"},
    ),
    "a role for a group": (
        lambda p: p.api.RoleAssignmentService.CreateRoleAssignment(
            group_id=p.group.id,
            role_slug="document-reader",
            resource={"resource_id": p.documents[0].id},
        ),
        {"m1", "m2"},
    ),
    "a member deactivated": (
        lambda p: p.api.OrganizationMembershipService.DeactivateOrganizationMembership(
            organization_membership_id=p.members[0].id
        ),
        {"m0"},
    ),
    "a new resource": (
        lambda p: p.api.ResourceService.CreateResource(
            organization_id=p.acme.id,
            resource_type_slug="document",
            external_id="new",
            name="new",
            parent={"resource_id": p.folder.id},
        ),
        set(),
    ),
    "a resource renamed": (
        lambda p: p.api.ResourceService.UpdateResource(
            resource={"resource_id": p.documents[0].id},
            name="another",
            update_mask={"paths": ["name"]},
        ),
        set(),
    ),
    "a role of the organization": (
        lambda p: p.api.RoleService.RemoveRolePermissions(
            role_id=p.roles["org-own"].id, permission_slugs=[READ]
        ),
        ALL,
    ),
    "a new member": (
        lambda p: p.api.OrganizationMembershipService.CreateOrganizationMembership(
            user_id=p.api.UserService.CreateUser(email="new@example.com").user.id,
            organization_id=p.acme.id,
        ),
        set(),
    ),
    "a role of the environment": (
        lambda p: p.api.RoleService.RemoveRolePermissions(
            role_id=p.roles["document-reader"].id, permission_slugs=[READ]
        ),
        ALL | {"stranger"},
    ),
    "a user renamed": (
        lambda p: p.api.UserService.UpdateUser(
            user={"id": p.members[0].user_id, "name": "Ann"}, update_mask={"paths": ["name"]}
        ),
        set(),
    ),
    # The last, for it cannot be asked about again.
    "a resource deleted": (
        lambda p: p.api.ResourceService.DeleteResource(
            resource={"resource_id": p.documents[0].id}, cascade=True
        ),
        ALL,
    ),
}


def test_only_what_changed_is_cold(place: Place) -> None:
    for name, (write, cold) in WRITES.items():
        write(place)
        assert place.cold() == cold, name
        place.cold()
