"""A stale etag stops every method that takes one, and so does the etag of something else (C9).

Which methods take one is read from the descriptors: a new one without a row here fails.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from authz_service.server import Worker
from tests.callers import Caller, method
from tests.security import sound
from tests.security.sound import Place, Saved

END = {"seconds": 4_100_000_000}
WRONG = ["0", "-1", "x", "null", "*", "W/1", '"1"', "00", "f" * 2_000, "ünïcode", "' OR '1'='1"]


class Kind(NamedTuple):
    """How to read one object of a kind, and how to change it without the method under test."""

    read: Callable[[Caller, Place], Any]
    change: Callable[[Caller, Place], Any]


def _credential(api: Caller, place: Place) -> Any:
    rows = api.ConfigurationService.ListServiceCredentials().service_credentials
    return next(row for row in rows if row.id == place.credential)


def _membership(api: Caller, membership_id: str) -> Any:
    return api.OrganizationMembershipService.GetOrganizationMembership(
        organization_membership_id=membership_id
    ).organization_membership


def _configure(api: Caller, **fields: Any) -> None:
    api.ConfigurationService.UpdateConfiguration(
        configuration=fields, update_mask={"paths": list(fields)}
    )


CONFIGURATION = Kind(
    lambda api, p: api.ConfigurationService.GetConfiguration().configuration,
    lambda api, p: _configure(api, resource_depth_max=7),
)
ORGANIZATION_CONFIGURATION = Kind(
    lambda api, p: (
        api.ConfigurationService.GetOrganizationConfiguration(
            organization_id=p.organization
        ).organization_configuration
    ),
    lambda api, p: api.ConfigurationService.UpdateOrganizationConfiguration(
        organization_configuration={
            "organization_id": p.organization,
            "default_role_slug": "guest",
        },
        update_mask={"paths": ["default_role_slug"]},
    ),
)
CREDENTIAL = Kind(
    _credential,
    lambda api, p: api.ConfigurationService.UpdateServiceCredential(
        service_credential={"id": p.credential, "name": "Meanwhile"},
        update_mask={"paths": ["name"]},
    ),
)
GROUP = Kind(
    lambda api, p: api.GroupService.GetGroup(group_id=p.group).group,
    lambda api, p: api.GroupService.UpdateGroup(
        group={"id": p.group, "name": "Meanwhile"}, update_mask={"paths": ["name"]}
    ),
)
MEMBERSHIP = Kind(
    lambda api, p: _membership(api, p.membership),
    lambda api, p: api.OrganizationMembershipService.UpdateOrganizationMembership(
        organization_membership_id=p.membership, role_slug="guest"
    ),
)
FORMER = Kind(
    lambda api, p: _membership(api, p.former),
    lambda api, p: api.OrganizationMembershipService.UpdateOrganizationMembership(
        organization_membership_id=p.former, role_slug="guest"
    ),
)
ORGANIZATION = Kind(
    lambda api, p: (
        api.OrganizationService.GetOrganization(organization_id=p.organization).organization
    ),
    lambda api, p: api.OrganizationService.UpdateOrganization(
        organization={"id": p.organization, "name": "Meanwhile"},
        update_mask={"paths": ["name"]},
    ),
)


def _permission(slug: str) -> Kind:
    return Kind(
        lambda api, p: api.PermissionService.GetPermission(permission_slug=slug).permission,
        lambda api, p: api.PermissionService.UpdatePermission(
            permission={"slug": slug, "name": "Meanwhile"}, update_mask={"paths": ["name"]}
        ),
    )


RESOURCE_TYPE = Kind(
    lambda api, p: (
        api.ResourceTypeService.GetResourceType(resource_type_slug="spare").resource_type
    ),
    lambda api, p: api.ResourceTypeService.UpdateResourceType(
        resource_type={"slug": "spare", "name": "Meanwhile"}, update_mask={"paths": ["name"]}
    ),
)
RESOURCE = Kind(
    lambda api, p: api.ResourceService.GetResource(resource={"resource_id": p.document}).resource,
    lambda api, p: api.ResourceService.UpdateResource(
        resource={"resource_id": p.document}, name="Meanwhile", update_mask={"paths": ["name"]}
    ),
)
ASSIGNMENT = Kind(
    lambda api, p: (
        api.RoleAssignmentService.GetRoleAssignment(role_assignment_id=p.assignment).role_assignment
    ),
    lambda api, p: api.RoleAssignmentService.UpdateRoleAssignment(
        role_assignment={"id": p.assignment, "expires_at": END},
        update_mask={"paths": ["expires_at"]},
    ),
)


def _role(attribute: str) -> Kind:
    return Kind(
        lambda api, p: api.RoleService.GetRole(role_id=getattr(p, attribute)).role,
        lambda api, p: api.RoleService.UpdateRole(
            role={"id": getattr(p, attribute), "name": "Meanwhile"},
            update_mask={"paths": ["name"]},
        ),
    )


USER = Kind(
    lambda api, p: api.UserService.GetUser(user_id=p.user).user,
    lambda api, p: api.UserService.UpdateUser(
        user={"id": p.user, "name": "Meanwhile"}, update_mask={"paths": ["name"]}
    ),
)

# What the first sound request of a method is about.
ABOUT: dict[tuple[str, str], Kind] = {
    ("ConfigurationService", "UpdateConfiguration"): CONFIGURATION,
    ("ConfigurationService", "UpdateOrganizationConfiguration"): ORGANIZATION_CONFIGURATION,
    ("ConfigurationService", "UpdateServiceCredential"): CREDENTIAL,
    ("ConfigurationService", "RevokeServiceCredential"): CREDENTIAL,
    ("GroupService", "UpdateGroup"): GROUP,
    ("GroupService", "DeleteGroup"): GROUP,
    ("OrganizationMembershipService", "UpdateOrganizationMembership"): MEMBERSHIP,
    ("OrganizationMembershipService", "DeleteOrganizationMembership"): MEMBERSHIP,
    ("OrganizationMembershipService", "DeactivateOrganizationMembership"): MEMBERSHIP,
    ("OrganizationMembershipService", "ReactivateOrganizationMembership"): FORMER,
    ("OrganizationService", "UpdateOrganization"): ORGANIZATION,
    ("OrganizationService", "DeleteOrganization"): ORGANIZATION,
    ("PermissionService", "UpdatePermission"): _permission("document:read"),
    ("PermissionService", "DeletePermission"): _permission("spare"),
    ("ResourceTypeService", "UpdateResourceType"): RESOURCE_TYPE,
    ("ResourceTypeService", "DeleteResourceType"): RESOURCE_TYPE,
    ("ResourceService", "UpdateResource"): RESOURCE,
    ("ResourceService", "DeleteResource"): RESOURCE,
    ("ResourceService", "MoveResource"): RESOURCE,
    ("RoleAssignmentService", "UpdateRoleAssignment"): ASSIGNMENT,
    ("RoleAssignmentService", "DeleteRoleAssignment"): ASSIGNMENT,
    ("RoleService", "UpdateRole"): _role("role"),
    ("RoleService", "DeleteRole"): _role("role"),
    ("RoleService", "SetRolePermissions"): _role("editor"),
    ("RoleService", "AddRolePermissions"): _role("editor"),
    ("RoleService", "RemoveRolePermissions"): _role("editor"),
    ("UserService", "UpdateUser"): USER,
    ("UserService", "DeleteUser"): USER,
}


class World(NamedTuple):
    """One organization, and the rows to go back to."""

    place: Place
    saved: Saved


@pytest.fixture
def world(api: Caller, worker: Worker, database_url: str) -> Iterator[World]:
    sound.prepare(api)
    place = sound.build(api, 0)
    with contextlib.closing(Saved(worker, database_url)) as saved:
        yield World(place, saved)


def etag_path(descriptor: Descriptor) -> tuple[str, ...] | None:
    """Where a request carries an etag: itself, or the object in it."""
    if "etag" in descriptor.fields_by_name:
        return ("etag",)
    for field in descriptor.fields:
        inner = field.message_type
        if inner is not None and not field.is_repeated and "etag" in inner.fields_by_name:
            return (field.name, "etag")
    return None


def with_etag(request: Message, etag: str) -> Message:
    """The request with this etag."""
    made: Any = type(request)()
    made.CopyFrom(request)
    path = etag_path(request.DESCRIPTOR)
    assert path is not None
    (made if len(path) == 1 else getattr(made, path[0])).etag = etag
    return made  # type: ignore[no-any-return]


def rows(place: Place) -> Iterator[tuple[str, str, Message]]:
    """The first sound request of every method that takes an etag."""
    seen = set()
    for service, name, request in sound.requests(place):
        if (service, name) in ABOUT and (service, name) not in seen:
            seen.add((service, name))
            yield service, name, request


def test_every_method_with_an_etag_has_a_row(worker: Worker) -> None:
    found = set()
    for each in worker.hall.methods.values():
        service = each.service.rpartition(".")[2]
        descriptor = method(service, each.name).input_type
        if etag_path(descriptor) is not None:
            found.add((service, each.name))
    assert set(ABOUT) == found


def test_a_stale_etag_is_refused_and_the_present_one_is_not(
    world: World, api: Caller, worker: Worker
) -> None:
    bearers = [f"Bearer {api._bearer}"]
    for service, name, request in rows(world.place):
        kind = ABOUT[service, name]
        stale = kind.read(api, world.place).etag
        kind.change(api, world.place)
        present = kind.read(api, world.place).etag
        assert present, name
        assert present != stale, name
        before = sound.everything(worker)
        refused = sound.refusal(
            sound.ask(worker, bearers, service, name, with_etag(request, stale))
        )
        assert refused is not None, f"{service}.{name} took a stale etag"
        # The present etag is not shown (product.md 7).
        assert (refused.code, refused.reason, refused.metadata) == ("ABORTED", "ETAG_MISMATCH", {})
        assert sound.everything(worker) == before, name
        reply = sound.ask(worker, bearers, service, name, with_etag(request, present))
        assert sound.refusal(reply) is None, f"{service}.{name}: {sound.refusal(reply)}"
        assert sound.everything(worker) != before, name
        world.saved.restore()


def test_what_is_no_etag_of_the_object_is_refused(
    world: World, api: Caller, worker: Worker
) -> None:
    bearers = [f"Bearer {api._bearer}"]
    others = {
        kind.read(api, world.place).etag
        for kind in {id(each): each for each in ABOUT.values()}.values()
    }
    assert len(others) > 8
    for service, name, request in rows(world.place):
        present = ABOUT[service, name].read(api, world.place).etag
        wrong = [*WRONG, present + "0", "0" + present, f" {present}", present * 2]
        for etag in [*wrong, *(others - {present})]:
            assert etag != present
            refused = sound.refusal(
                sound.ask(worker, bearers, service, name, with_etag(request, etag))
            )
            assert refused is not None, f"{service}.{name} took {etag!r}"
            assert refused.reason == "ETAG_MISMATCH", f"{service}.{name} {etag!r}: {refused}"
            # A text of the caller's is not sent back.
            assert len(str(refused)) < 200
        assert sound.everything(worker) == world.saved.rows, name


def test_an_etag_does_not_survive_the_write_it_allowed(
    world: World, api: Caller, worker: Worker
) -> None:
    """A repeat with the etag of before: refused, or nothing is there any more."""
    bearers = [f"Bearer {api._bearer}"]
    for service, name, request in rows(world.place):
        once = with_etag(request, ABOUT[service, name].read(api, world.place).etag)
        assert sound.refusal(sound.ask(worker, bearers, service, name, once)) is None, name
        before = sound.everything(worker)
        refused = sound.refusal(sound.ask(worker, bearers, service, name, once))
        assert refused is not None, f"{service}.{name}"
        expected = "NOT_FOUND" if name.startswith("Delete") else "ABORTED"
        assert refused.code == expected, f"{service}.{name}: {refused}"
        assert sound.everything(worker) == before, name
        world.saved.restore()
