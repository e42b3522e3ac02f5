"""One row or more for every RPC that writes: how to call it on a small world, and how it refuses.

The guards of events, tags and secrets go through this table. An RPC without a row fails them.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from google.protobuf import message_factory

from authz_service.pb.authz.v1 import directory_files_pb2 as files
from authz_service.rpc.call import Call
from authz_service.server import Worker
from tests.callers import Caller, Refused, method

# Name in the world to id, for example "acme" to "org_…".
World = Mapping[str, str]
Request = dict[str, Any]

# What the same call does a second time.
NOTHING = "is answered and changes nothing"
REFUSED = "is refused"
MORE = "makes or changes another thing"

LATER = {"seconds": 4_000_000_000}
NOWHERE = {
    "organization": "org_01JZ0000000000000000000000",
    "user": "user_01JZ0000000000000000000000",
    "membership": "om_01JZ0000000000000000000000",
    "group": "group_01JZ0000000000000000000000",
    "role": "role_01JZ0000000000000000000000",
    "resource": "resource_01JZ0000000000000000000000",
    "assignment": "role_assignment_01JZ0000000000000000000000",
    "credential": "credential_01JZ0000000000000000000000",
}


class Write(NamedTuple):
    """A call that has an effect.

    Attributes:
        request: Its fields, from the world.
        refusals: Fields that replace those of the request, one set for each way to be refused.
        again: What the same call does a second time.
        changes_facts: It changes a fact that could be asked for before it.
        label: Tells several rows of one RPC apart.
    """

    service: str
    name: str
    request: Callable[[World], Request]
    refusals: tuple[Request, ...]
    again: str = NOTHING
    changes_facts: bool = False
    label: str = ""

    def __str__(self) -> str:
        return f"{self.name}-{self.label}" if self.label else self.name


def stock(api: Caller) -> World:
    """Makes the world: two organizations that share a user, a tree, groups and grants."""
    world: dict[str, str] = {}
    _definitions(api, world)
    _people(api, world)
    for name in ("acme", "globex"):
        made = api.OrganizationService.CreateOrganization(name=name, external_id=name)
        world[name] = made.organization.id
        world[f"{name} everyone"] = made.organization.everyone_group_id
    world["reviewer"] = api.RoleService.CreateRole(
        organization_id=world["acme"],
        slug="org-reviewer",
        name="Reviewer",
        permission_slugs=["doc:read"],
    ).role.id
    _memberships(api, world)
    _tree(api, world)
    _groups(api, world)
    _assignments(api, world)
    for name in ("robot", "other robot"):
        made = api.ConfigurationService.CreateServiceCredential(name=name, scopes=["check"])
        world[name] = made.service_credential.id
    return world


def _definitions(api: Caller, world: dict[str, str]) -> None:
    for slug, parents in {
        "folder": ["organization", "folder"],
        "doc": ["folder"],
        "unused-type": ["doc"],
    }.items():
        api.ResourceTypeService.CreateResourceType(slug=slug, name=slug, parent_type_slugs=parents)
    for slug in ("doc:read", "doc:edit", "doc:unused"):
        api.PermissionService.CreatePermission(slug=slug, name=slug, resource_type_slug="doc")
    for slug, type_slug, permission_slugs in (
        ("auditor", "organization", ["doc:read"]),
        ("keeper", "folder", ["doc:read"]),
        ("keeper-too", "folder", ["doc:edit"]),
        ("writer", "doc", ["doc:read", "doc:edit"]),
        ("unused-role", "doc", ["doc:edit"]),
    ):
        world[slug] = api.RoleService.CreateRole(
            slug=slug,
            name=slug,
            resource_type_slug=type_slug,
            permission_slugs=permission_slugs,
        ).role.id


def _people(api: Caller, world: dict[str, str]) -> None:
    for name in ("ann", "bob", "cat", "dan"):
        made = api.UserService.CreateUser(email=f"{name}@example.com", external_id=name)
        world[name] = made.user.id


def _memberships(api: Caller, world: dict[str, str]) -> None:
    for user, organization, role_slugs in (
        ("ann", "acme", ["auditor", "member"]),
        ("ann", "globex", ["auditor"]),
        ("bob", "acme", ["org-reviewer"]),
        ("cat", "acme", ["auditor"]),
    ):
        made = api.OrganizationMembershipService.CreateOrganizationMembership(
            user_id=world[user], organization_id=world[organization], role_slugs=role_slugs
        )
        world[f"{user}@{organization}"] = made.organization_membership.id
    api.OrganizationMembershipService.DeactivateOrganizationMembership(
        organization_membership_id=world["cat@acme"]
    )


def _tree(api: Caller, world: dict[str, str]) -> None:
    for name, type_slug, parent in (
        ("one", "folder", ""),
        ("two", "folder", ""),
        ("inside", "folder", "one"),
        ("paper", "doc", "inside"),
        ("letter", "doc", "two"),
    ):
        made = api.ResourceService.CreateResource(
            organization_id=world["acme"],
            resource_type_slug=type_slug,
            external_id=name,
            name=name,
            parent={"resource_id": world[parent]} if parent else None,
        )
        world[name] = made.resource.id


def _groups(api: Caller, world: dict[str, str]) -> None:
    for name in ("team", "crew", "band"):
        made = api.GroupService.CreateGroup(organization_id=world["acme"], name=name)
        world[name] = made.group.id
    api.GroupService.AddGroupMember(
        group_id=world["crew"], organization_membership_id=world["ann@acme"]
    )
    api.GroupService.AddGroupMember(group_id=world["team"], member_group_id=world["crew"])


def _assignments(api: Caller, world: dict[str, str]) -> None:
    for name, subject, role_slug, resource in (
        ("team on one", {"group_id": world["team"]}, "keeper", "one"),
        ("bob on letter", {"organization_membership_id": world["bob@acme"]}, "writer", "letter"),
        ("everyone on two", {"group_id": world["acme everyone"]}, "keeper", "two"),
    ):
        made = api.RoleAssignmentService.CreateRoleAssignment(
            **subject, role_slug=role_slug, resource={"resource_id": world[resource]}
        )
        world[name] = made.role_assignment.id


def perform(write: Write, api: Caller, worker: Worker, request: Request) -> Any:
    """Makes the call and returns the response.

    Raises:
        Refused: As the service refuses it.
    """
    return send(api, worker, write.service, write.name, request)


def send(api: Caller, worker: Worker, service: str, name: str, request: Request) -> Any:
    """Makes a call; that of a client stream has its messages under ``parts``."""
    if not method(service, name).client_streaming:
        return getattr(getattr(api, service), name)(**request)
    message = message_factory.GetMessageClass(method(service, name).input_type)
    parts = iter([message(**part).SerializeToString() for part in request["parts"]])
    metadata = (("authorization", f"Bearer {api._bearer}"), *api._metadata)
    call = Call(f"/authz.v1.{service}/{name}", metadata)
    reply = worker.hall.collect(call, parts, lambda: False)
    if reply.status is not None:
        raise Refused(reply.status)
    return files.ImportDirectoryResponse.FromString(reply.payload)


def file_of(**content: Any) -> list[Request]:
    data = json.dumps({"format": "authz-directory/1", **content}).encode()
    return [{"header": {"format": files.DIRECTORY_FILE_FORMAT_JSON}}, {"chunk": data}]


def _paths(*paths: str) -> Request:
    return {"paths": paths}


def _id(world: World, name: str) -> Request:
    return {"resource_id": world[name]}


_GONE = {"resource": {"resource_id": NOWHERE["resource"]}}
_OTHER_ETAG = {"etag": "0"}

_ORGANIZATIONS = [
    Write(
        "OrganizationService",
        "CreateOrganization",
        lambda w: {"name": "New", "external_id": "new"},
        ({"external_id": "acme"}, {"name": ""}),
        again=REFUSED,
    ),
    Write(
        "OrganizationService",
        "UpdateOrganization",
        lambda w: {
            "organization": {"id": w["acme"], "name": "Acme"},
            "update_mask": _paths("name"),
        },
        ({"organization": {"id": NOWHERE["organization"], "name": "Acme"}},),
    ),
    Write(
        "OrganizationService",
        "DeleteOrganization",
        lambda w: {"organization_id": w["acme"]},
        (_OTHER_ETAG, {"organization_id": NOWHERE["organization"]}),
        again=REFUSED,
        changes_facts=True,
    ),
]
_USERS = [
    Write(
        "UserService",
        "CreateUser",
        lambda w: {"email": "eve@example.com"},
        ({"external_id": "ann"}, {"email": "Ann@example.com"}),
        again=REFUSED,
    ),
    Write(
        "UserService",
        "UpdateUser",
        lambda w: {"user": {"id": w["ann"], "name": "Ann"}, "update_mask": _paths("name")},
        ({"user": {"id": NOWHERE["user"], "name": "Ann"}},),
    ),
    Write(
        "UserService",
        "DeleteUser",
        lambda w: {"user_id": w["ann"]},
        (_OTHER_ETAG, {"user_id": NOWHERE["user"]}),
        again=REFUSED,
        changes_facts=True,
    ),
]


def _membership(w: World) -> Request:
    return {"organization_membership_id": w["bob@acme"]}


_NO_MEMBERSHIP = {"organization_membership_id": NOWHERE["membership"]}
_MEMBERSHIPS = [
    Write(
        "OrganizationMembershipService",
        "CreateOrganizationMembership",
        lambda w: {
            "user_id": w["dan"],
            "organization_id": w["acme"],
            "role_slugs": ["auditor", "member"],
        },
        ({"role_slugs": ["gone"]}, {"role_slugs": ["writer"]}, {"user_id": NOWHERE["user"]}),
        again=REFUSED,
    ),
    Write(
        "OrganizationMembershipService",
        "UpdateOrganizationMembership",
        lambda w: {**_membership(w), "role_slugs": ["member"]},
        (_OTHER_ETAG, {"role_slugs": ["gone"]}, _NO_MEMBERSHIP),
        changes_facts=True,
    ),
    Write(
        "OrganizationMembershipService",
        "DeleteOrganizationMembership",
        _membership,
        (_OTHER_ETAG, _NO_MEMBERSHIP),
        again=REFUSED,
        changes_facts=True,
    ),
    Write(
        "OrganizationMembershipService",
        "DeactivateOrganizationMembership",
        _membership,
        (_OTHER_ETAG, _NO_MEMBERSHIP),
        changes_facts=True,
    ),
    Write(
        "OrganizationMembershipService",
        "ReactivateOrganizationMembership",
        lambda w: {"organization_membership_id": w["cat@acme"]},
        (_OTHER_ETAG, _NO_MEMBERSHIP),
        changes_facts=True,
    ),
]


def _in_group(w: World) -> Request:
    return {"group_id": w["crew"], "organization_membership_id": w["ann@acme"]}


_NO_GROUP = {"group_id": NOWHERE["group"]}
_GROUPS = [
    Write(
        "GroupService",
        "CreateGroup",
        lambda w: {"organization_id": w["acme"], "name": "choir"},
        ({"organization_id": NOWHERE["organization"]},),
        again=MORE,
    ),
    Write(
        "GroupService",
        "UpdateGroup",
        lambda w: {"group": {"id": w["team"], "name": "Team"}, "update_mask": _paths("name")},
        ({"group": {"id": NOWHERE["group"], "name": "Team"}},),
    ),
    Write(
        "GroupService",
        "DeleteGroup",
        lambda w: {"group_id": w["team"]},
        (_OTHER_ETAG, _NO_GROUP),
        again=REFUSED,
        changes_facts=True,
    ),
    Write(
        "GroupService",
        "AddGroupMember",
        lambda w: {"group_id": w["crew"], "organization_membership_id": w["bob@acme"]},
        (_NO_GROUP, _NO_MEMBERSHIP),
        changes_facts=True,
    ),
    Write(
        "GroupService",
        "AddGroupMember",
        lambda w: {"group_id": w["team"], "member_group_id": w["band"]},
        (_NO_GROUP,),
        changes_facts=True,
        label="a group",
    ),
    Write(
        "GroupService",
        "RemoveGroupMember",
        _in_group,
        (_NO_GROUP, _NO_MEMBERSHIP),
        changes_facts=True,
    ),
    Write(
        "GroupService",
        "RemoveGroupMember",
        lambda w: {"group_id": w["team"], "member_group_id": w["crew"]},
        (_NO_GROUP,),
        changes_facts=True,
        label="a group",
    ),
    Write(
        "GroupService",
        "ModifyGroupMembers",
        lambda w: {
            "group_id": w["crew"],
            "add": [{"organization_membership_id": w["bob@acme"]}, {"member_group_id": w["band"]}],
            "remove": [{"organization_membership_id": w["ann@acme"]}],
        },
        (_NO_GROUP, {"add": [_NO_MEMBERSHIP]}),
        changes_facts=True,
    ),
]


def _permissions_of(w: World) -> Request:
    return {"role_id": w["keeper"], "permission_slugs": ["doc:edit"]}


_NO_ROLE = {"role_id": NOWHERE["role"]}
_NO_PERMISSION = {"permission_slugs": ["doc:gone"]}
_ROLES = [
    Write(
        "RoleService",
        "CreateRole",
        lambda w: {
            "organization_id": w["acme"],
            "slug": "org-new",
            "name": "New",
            "permission_slugs": ["doc:read"],
        },
        (_NO_PERMISSION, {"slug": "org-reviewer"}),
        again=REFUSED,
    ),
    Write(
        "RoleService",
        "CreateRole",
        lambda w: {"slug": "new", "name": "New", "resource_type_slug": "doc"},
        (_NO_PERMISSION, {"slug": "writer"}, {"permission_slugs": ["members:view"]}),
        again=REFUSED,
        label="of the environment",
    ),
    Write(
        "RoleService",
        "UpdateRole",
        lambda w: {"role": {"id": w["writer"], "name": "Writer"}, "update_mask": _paths("name")},
        ({"role": {"id": NOWHERE["role"], "name": "Writer"}},),
    ),
    Write(
        "RoleService",
        "DeleteRole",
        lambda w: {"role_id": w["unused-role"]},
        (_OTHER_ETAG, _NO_ROLE, {"replacement_role_slug": "keeper"}),
        again=REFUSED,
    ),
    Write(
        "RoleService",
        "DeleteRole",
        lambda w: {"role_id": w["auditor"], "replacement_role_slug": "guest"},
        (_OTHER_ETAG, {"replacement_role_slug": ""}),
        again=REFUSED,
        changes_facts=True,
        label="with replacement",
    ),
    Write(
        "RoleService",
        "DeleteRole",
        lambda w: {"role_id": w["reviewer"], "replacement_role_slug": "member"},
        (_OTHER_ETAG, {"replacement_role_slug": ""}),
        again=REFUSED,
        changes_facts=True,
        label="of an organization",
    ),
    Write(
        "RoleService",
        "SetRolePermissions",
        _permissions_of,
        (_OTHER_ETAG, _NO_ROLE, _NO_PERMISSION),
        changes_facts=True,
    ),
    Write(
        "RoleService",
        "AddRolePermissions",
        _permissions_of,
        (_OTHER_ETAG, _NO_ROLE, _NO_PERMISSION),
        changes_facts=True,
    ),
    Write(
        "RoleService",
        "AddRolePermissions",
        lambda w: {"role_id": w["reviewer"], "permission_slugs": ["doc:edit"]},
        (_OTHER_ETAG, _NO_PERMISSION),
        changes_facts=True,
        label="of an organization",
    ),
    Write(
        "RoleService",
        "RemoveRolePermissions",
        lambda w: {"role_id": w["writer"], "permission_slugs": ["doc:edit"]},
        (_OTHER_ETAG, _NO_ROLE),
        changes_facts=True,
    ),
]
_PERMISSIONS = [
    Write(
        "PermissionService",
        "CreatePermission",
        lambda w: {"slug": "doc:new", "name": "New", "resource_type_slug": "doc"},
        ({"slug": "doc:read"}, {"resource_type_slug": "gone"}),
        again=REFUSED,
        changes_facts=True,
    ),
    Write(
        "PermissionService",
        "UpdatePermission",
        lambda w: {
            "permission": {"slug": "doc:read", "name": "Read"},
            "update_mask": _paths("name"),
        },
        ({"permission": {"slug": "doc:gone", "name": "Read"}},),
    ),
    Write(
        "PermissionService",
        "DeletePermission",
        lambda w: {"permission_slug": "doc:unused"},
        (_OTHER_ETAG, {"permission_slug": "doc:gone"}),
        again=REFUSED,
        changes_facts=True,
    ),
    Write(
        "PermissionService",
        "DeletePermission",
        lambda w: {"permission_slug": "doc:read", "cascade": True},
        (_OTHER_ETAG, {"cascade": False}),
        again=REFUSED,
        changes_facts=True,
        label="with cascade",
    ),
]
_TYPES = [
    Write(
        "ResourceTypeService",
        "CreateResourceType",
        lambda w: {"slug": "new", "name": "New", "parent_type_slugs": ["doc"]},
        ({"slug": "doc"}, {"parent_type_slugs": ["gone"]}),
        again=REFUSED,
    ),
    Write(
        "ResourceTypeService",
        "UpdateResourceType",
        lambda w: {
            "resource_type": {
                "slug": "doc",
                "name": "Document",
                "parent_type_slugs": ["folder", "organization"],
            },
            "update_mask": _paths("name", "parent_type_slugs"),
        },
        ({"resource_type": {"slug": "gone", "name": "Document"}},),
    ),
    Write(
        "ResourceTypeService",
        "DeleteResourceType",
        lambda w: {"resource_type_slug": "unused-type"},
        (_OTHER_ETAG, {"resource_type_slug": "doc"}),
        again=REFUSED,
    ),
]
_RESOURCES = [
    Write(
        "ResourceService",
        "CreateResource",
        lambda w: {
            "organization_id": w["acme"],
            "resource_type_slug": "doc",
            "external_id": "new",
            "name": "New",
            "parent": _id(w, "one"),
        },
        ({"external_id": "paper"}, {"parent": _GONE["resource"]}),
        again=REFUSED,
    ),
    Write(
        "ResourceService",
        "UpdateResource",
        lambda w: {"resource": _id(w, "one"), "name": "One", "update_mask": _paths("name")},
        (_OTHER_ETAG, _GONE),
    ),
    Write(
        "ResourceService",
        "DeleteResource",
        lambda w: {"resource": _id(w, "one"), "cascade": True},
        (_OTHER_ETAG, _GONE, {"cascade": False}),
        again=REFUSED,
        changes_facts=True,
    ),
    Write(
        "ResourceService",
        "UpsertResource",
        lambda w: {
            "organization_id": w["acme"],
            "resource_type_slug": "doc",
            "external_id": "new",
            "name": "New",
            "parent": _id(w, "one"),
        },
        ({"resource_type_slug": "gone"}, {"parent": _GONE["resource"]}),
    ),
    Write(
        "ResourceService",
        "UpsertResource",
        lambda w: {
            "organization_id": w["acme"],
            "resource_type_slug": "doc",
            "external_id": "letter",
            "name": "Letter",
            "parent": _id(w, "one"),
        },
        ({"parent": _GONE["resource"]},),
        changes_facts=True,
        label="of one that exists",
    ),
    Write(
        "ResourceService",
        "MoveResource",
        lambda w: {"resource": _id(w, "inside"), "parent": _id(w, "two")},
        (_OTHER_ETAG, _GONE, {"parent": _GONE["resource"]}),
        changes_facts=True,
    ),
]
_NO_ASSIGNMENT = {"role_assignment_id": NOWHERE["assignment"]}


def _of_bob(w: World) -> Request:
    return {"organization_membership_id": w["bob@acme"]}


_ASSIGNMENTS = [
    Write(
        "RoleAssignmentService",
        "CreateRoleAssignment",
        lambda w: {**_of_bob(w), "role_slug": "keeper-too", "resource": _id(w, "one")},
        (_GONE, {"role_slug": "gone"}, {"role_slug": "writer"}, _NO_MEMBERSHIP),
        again=REFUSED,
        changes_facts=True,
    ),
    Write(
        "RoleAssignmentService",
        "CreateRoleAssignment",
        lambda w: {
            "group_id": w["team"],
            "role_slug": "keeper-too",
            "resource": _id(w, "two"),
            "expires_at": LATER,
        },
        (_GONE, {"expires_at": {"seconds": 1}}, _NO_GROUP),
        again=REFUSED,
        changes_facts=True,
        label="to a group",
    ),
    Write(
        "RoleAssignmentService",
        "UpdateRoleAssignment",
        lambda w: {
            "role_assignment": {"id": w["team on one"], "expires_at": LATER},
            "update_mask": _paths("expires_at"),
        },
        ({"role_assignment": {"id": NOWHERE["assignment"], "expires_at": LATER}},),
        changes_facts=True,
    ),
    Write(
        "RoleAssignmentService",
        "DeleteRoleAssignment",
        lambda w: {"role_assignment_id": w["everyone on two"]},
        (_OTHER_ETAG, _NO_ASSIGNMENT),
        again=REFUSED,
        changes_facts=True,
    ),
    Write(
        "RoleAssignmentService",
        "SetRoleAssignments",
        lambda w: {
            **_of_bob(w),
            "resource": _id(w, "one"),
            "roles": [{"role_slug": "keeper"}, {"role_slug": "keeper-too", "expires_at": LATER}],
        },
        (_GONE, {"roles": [{"role_slug": "keeper"}, {"role_slug": "gone"}]}),
        changes_facts=True,
    ),
    Write(
        "RoleAssignmentService",
        "ModifyRoleAssignments",
        lambda w: {
            "organization_id": w["acme"],
            "add": [{**_of_bob(w), "role_slug": "keeper", "resource": _id(w, "two")}],
            "remove": [
                {
                    "group_id": w["team"],
                    "role_slug": "keeper",
                    "resource": _id(w, "one"),
                }
            ],
        },
        ({"organization_id": NOWHERE["organization"]}, {"add": [], "remove": []}),
        changes_facts=True,
    ),
]
_NO_CREDENTIAL = {"service_credential_id": NOWHERE["credential"]}
_CONFIGURATION = [
    Write(
        "ConfigurationService",
        "UpdateConfiguration",
        lambda w: {
            "configuration": {"default_role_slug": "guest"},
            "update_mask": _paths("default_role_slug"),
        },
        ({"configuration": {"default_role_slug": "gone"}},),
    ),
    Write(
        "ConfigurationService",
        "UpdateConfiguration",
        lambda w: {
            "configuration": {"multiple_roles_enabled": False},
            "collapse_membership_roles": True,
            "update_mask": _paths("multiple_roles_enabled"),
        },
        ({"collapse_membership_roles": False},),
        changes_facts=True,
        label="to one role each",
    ),
    Write(
        "ConfigurationService",
        "UpdateOrganizationConfiguration",
        lambda w: {
            "organization_configuration": {
                "organization_id": w["acme"],
                "default_role_slug": "org-reviewer",
            },
            "update_mask": _paths("default_role_slug"),
        },
        (
            {
                "organization_configuration": {
                    "organization_id": NOWHERE["organization"],
                    "default_role_slug": "guest",
                }
            },
        ),
    ),
    Write(
        "ConfigurationService",
        "SetRolePriority",
        lambda w: {
            "organization_id": w["acme"],
            "role_slugs": ["org-reviewer", "guest", "member", "admin", "owner", "auditor"],
        },
        ({"role_slugs": ["guest"]}, {"organization_id": NOWHERE["organization"]}),
    ),
    Write(
        "ConfigurationService",
        "SetRolePriority",
        lambda w: {"role_slugs": ["guest", "member", "admin", "owner", "auditor"]},
        ({"role_slugs": ["guest"]},),
        label="of the environment",
    ),
    Write(
        "ConfigurationService",
        "CreateServiceCredential",
        lambda w: {"name": "new", "scopes": ["read"], "organization_ids": [w["acme"]]},
        ({"scopes": ["gone"]}, {"organization_ids": [NOWHERE["organization"]]}),
        again=MORE,
    ),
    Write(
        "ConfigurationService",
        "UpdateServiceCredential",
        lambda w: {
            "service_credential": {"id": w["robot"], "scopes": ["read"]},
            "update_mask": _paths("scopes"),
        },
        ({"service_credential": {"id": NOWHERE["credential"], "scopes": ["read"]}},),
        changes_facts=True,
    ),
    Write(
        "ConfigurationService",
        "RotateServiceCredential",
        lambda w: {"service_credential_id": w["robot"], "overlap": {"seconds": 60}},
        (_NO_CREDENTIAL,),
        again=MORE,
        changes_facts=True,
    ),
    Write(
        "ConfigurationService",
        "RevokeServiceCredential",
        lambda w: {"service_credential_id": w["robot"]},
        (_OTHER_ETAG, _NO_CREDENTIAL),
        changes_facts=True,
    ),
]
_FILES = [
    Write(
        "DirectoryFileService",
        "ImportDirectory",
        lambda w: {
            "parts": file_of(
                users=[{"external_id": "eve", "email": "eve@example.com"}],
                organizations=[
                    {
                        "external_id": "acme",
                        "name": "Acme",
                        "memberships": [
                            {"user": "eve", "roles": ["auditor"]},
                            {"user": "bob", "roles": ["member"]},
                        ],
                    }
                ],
            )
        },
        ({"parts": file_of(users=[{"external_id": "eve", "email": "nobody"}])},),
        changes_facts=True,
    ),
]
WRITES = (
    *_ORGANIZATIONS,
    *_USERS,
    *_MEMBERSHIPS,
    *_GROUPS,
    *_ROLES,
    *_PERMISSIONS,
    *_TYPES,
    *_RESOURCES,
    *_ASSIGNMENTS,
    *_CONFIGURATION,
    *_FILES,
)
