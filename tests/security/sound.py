"""A sound request for every RPC, and a way to ask any of them: what the tests here then spoil.

``ROWS`` has one or more requests for each method; ``test_sound.py`` shows that they are answered as
they are, and that together they name everything an RPC can name.
"""

import contextlib
import re
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from sqlalchemy import select

from authz_service.base import ids
from authz_service.base.actor import SYSTEM
from authz_service.pb.authz.v1 import configuration_pb2, directory_files_pb2, memberships_pb2
from authz_service.pb.authz.v1.authorization_pb2 import BatchCheckRequest
from authz_service.rpc.call import Call, Reply
from authz_service.rpc.methods import CLIENT_STREAM, UNARY
from authz_service.server import Worker
from authz_service.storage.feed import Feed
from authz_service.storage.tables import Base, Event
from tests.callers import Caller, Refused, method

ADMIN = "admin"
JSON = directory_files_pb2.DIRECTORY_FILE_FORMAT_JSON
ACTIVE = configuration_pb2.SERVICE_CREDENTIAL_STATE_ACTIVE
INACTIVE = memberships_pb2.MEMBERSHIP_STATUS_INACTIVE
# What a client stream sends after its first message.
NEW_USER = (
    b'{"format": "authz-directory/1", "users": [{"external_id": "n", "email": "n@example.com"}]}'
)
# Written by every call that is let in, whatever becomes of it.
UNTOLD = {"last_used_at"}


@dataclass(frozen=True)
class Place:
    """What one organization is called by, and everything in it: ids and keys, no two alike.

    Attributes:
        api_key: No API keys exist yet, so this names none.
    """

    organization: str
    organization_key: str
    user: str
    user_key: str
    email: str
    former_user: str
    membership: str
    former: str
    other: str
    group: str
    inner: str
    spare: str
    role: str
    role_slug: str
    editor: str
    editor_slug: str
    workspace: str
    workspace_key: str
    desk: str
    desk_key: str
    document: str
    document_key: str
    assignment: str
    event: str
    credential: str
    api_key: str

    @property
    def values(self) -> dict[str, str]:
        """From a name or key to the attribute that holds it."""
        return {getattr(self, field.name): field.name for field in fields(self)}


def nowhere(like: Place) -> Place:
    """Returns names of the same shape and length that name nothing."""
    named = {}
    for value, kind in like.values.items():
        prefix = value.rpartition("_")[0]
        if ids.is_id(value, prefix):
            named[kind] = ids.new(prefix)
        else:
            named[kind] = re.sub(r"[0-9]{3}", "zzz", value)
    return Place(**named)


def prepare(api: Caller) -> None:
    """Makes what belongs to no organization and the requests name."""
    types, permissions = api.ResourceTypeService, api.PermissionService
    types.CreateResourceType(slug="workspace", name="Workspace", parent_type_slugs=["organization"])
    types.CreateResourceType(slug="document", name="Document", parent_type_slugs=["workspace"])
    types.CreateResourceType(slug="spare", name="Spare", parent_type_slugs=["workspace"])
    permissions.CreatePermission(slug="document:read", name="Read", resource_type_slug="document")
    permissions.CreatePermission(slug="document:edit", name="Edit", resource_type_slug="document")
    permissions.CreatePermission(slug="spare", name="Spare")


def build(api: Caller, number: int) -> Place:
    """Makes an organization with one object or more of every kind.

    Args:
        number: Part of its keys; two places of one number cannot be in one database.
    """
    mark = f"{number:03d}"
    organization = api.OrganizationService.CreateOrganization(
        name="Acme", external_id=f"organization-{mark}"
    ).organization
    roles, groups = api.RoleService, api.GroupService
    role = roles.CreateRole(
        organization_id=organization.id, slug=f"org-role-{mark}", name="Role"
    ).role
    editor = roles.CreateRole(
        organization_id=organization.id,
        slug=f"org-editor-{mark}",
        name="Editor",
        resource_type_slug="workspace",
        permission_slugs=["document:read"],
    ).role
    users, members = [], []
    for name in ("user", "former", "other"):
        users.append(
            api.UserService.CreateUser(
                email=f"{name}-{mark}@example.com", external_id=f"{name}-{mark}"
            ).user
        )
        members.append(
            api.OrganizationMembershipService.CreateOrganizationMembership(
                user_id=users[-1].id,
                organization_id=organization.id,
                role_slugs=["member", role.slug],
            ).organization_membership
        )
    api.OrganizationMembershipService.DeactivateOrganizationMembership(
        organization_membership_id=members[1].id
    )
    made = [
        groups.CreateGroup(organization_id=organization.id, name=name).group
        for name in ("Group", "Inner", "Spare")
    ]
    groups.ModifyGroupMembers(
        group_id=made[0].id,
        add=[{"organization_membership_id": members[0].id}, {"member_group_id": made[1].id}],
    )
    resources = []
    for type_slug, key, parent in (
        ("workspace", "workspace", None),
        ("workspace", "desk", None),
        ("document", "document", 0),
    ):
        resources.append(
            api.ResourceService.CreateResource(
                organization_id=organization.id,
                resource_type_slug=type_slug,
                external_id=f"{key}-{mark}",
                name=key,
                parent=None if parent is None else {"resource_id": resources[parent].id},
            ).resource
        )
    assignment = api.RoleAssignmentService.CreateRoleAssignment(
        organization_membership_id=members[0].id,
        role_slug=editor.slug,
        resource={"resource_id": resources[0].id},
    ).role_assignment
    api.RoleAssignmentService.CreateRoleAssignment(
        group_id=made[1].id, role_slug=editor.slug, resource={"resource_id": resources[0].id}
    )
    credential = api.ConfigurationService.CreateServiceCredential(
        name="Restricted", scopes=["read"], organization_ids=[organization.id]
    ).service_credential
    event = api.EventService.ListEvents(organization_id=organization.id, page_size=1).events[0]
    return Place(
        organization=organization.id,
        organization_key=organization.external_id,
        user=users[0].id,
        user_key=users[0].external_id,
        email=users[0].email,
        former_user=users[1].id,
        membership=members[0].id,
        former=members[1].id,
        other=members[2].id,
        group=made[0].id,
        inner=made[1].id,
        spare=made[2].id,
        role=role.id,
        role_slug=role.slug,
        editor=editor.id,
        editor_slug=editor.slug,
        workspace=resources[0].id,
        workspace_key=resources[0].external_id,
        desk=resources[1].id,
        desk_key=resources[1].external_id,
        document=resources[2].id,
        document_key=resources[2].external_id,
        assignment=assignment.id,
        event=event.id,
        credential=credential.id,
        api_key=ids.new(ids.API_KEY),
    )


Fields = dict[str, Any]


def _workspace(p: Place) -> list[Fields]:
    """A workspace by its id and by its key."""
    key = {
        "organization_id": p.organization,
        "resource_type_slug": "workspace",
        "external_id": p.workspace_key,
    }
    return [{"resource_id": p.workspace}, {"key": key}]


def _document(p: Place) -> list[Fields]:
    key = {
        "organization_id": p.organization,
        "resource_type_slug": "document",
        "external_id": p.document_key,
    }
    return [{"resource_id": p.document}, {"key": key}]


def _desk_key(p: Place) -> Fields:
    return {
        "organization_id": p.organization,
        "resource_type_slug": "workspace",
        "external_id": p.desk_key,
    }


def _subjects(p: Place) -> list[Fields]:
    """A subject of each kind that exists."""
    return [
        {"organization_membership_id": p.membership},
        {"user": {"user_id": p.user, "organization_id": p.organization}},
        {"group_id": p.group},
    ]


def _api_key(p: Place) -> Fields:
    """The kind of subject that does not exist yet: its answer is a refusal."""
    return {"api_key_id": p.api_key}


def _holders(p: Place) -> list[Fields]:
    """A holder of role assignments of each kind."""
    return [{"organization_membership_id": p.membership}, {"group_id": p.group}]


def _questions(p: Place, **more: Any) -> list[Fields]:
    """Every kind of subject, and every kind of resource."""
    first, *others = _subjects(p)
    by_id, by_key = _document(p)
    return [
        {"subject": first, "resource": by_key, **more},
        {"subject": first, "resource": by_id, **more},
        *({"subject": each, "resource": by_id, **more} for each in others),
        {"subject": _api_key(p), "resource": by_id, **more},
    ]


def _check(p: Place) -> list[Fields]:
    return _questions(p, permission_slug="document:read")


def _matrix(p: Place) -> list[Fields]:
    return [
        {
            "subject": subject,
            "permission_slugs": ["document:read", "document:edit"],
            "resources": _document(p),
        }
        for subject in [*_subjects(p), _api_key(p)]
    ]


def _below(p: Place) -> list[Fields]:
    return [
        {"subject": subject, "permission_slugs": ["document:read"], **more}
        for subject, more in [
            *((subject, {}) for subject in [*_subjects(p), _api_key(p)]),
            *((_subjects(p)[0], {"parent": ref}) for ref in _workspace(p)),
            (_subjects(p)[0], {"resource_type_slugs": ["document"]}),
        ]
    ]


def _modified(p: Place) -> list[Fields]:
    end = {"seconds": 4_000_000_000}
    return [
        {
            "organization_id": p.organization,
            "add": [
                {**holder, "role_slug": p.editor_slug, "resource": ref, "expires_at": end}
                for holder, ref in zip(_holders(p), _workspace(p), strict=True)
            ],
        },
        {
            "organization_id": p.organization,
            "add": [
                {"group_id": p.spare, "role_slug": p.editor_slug, "resource": _workspace(p)[0]}
            ],
            "remove": [
                {**holder, "role_slug": p.editor_slug, "resource": ref}
                for holder, ref in zip(_holders(p), _workspace(p), strict=True)
            ],
        },
    ]


def _group_members(p: Place, membership: str, group: str) -> list[Fields]:
    return [
        {"group_id": p.group, "organization_membership_id": membership},
        {"group_id": p.group, "member_group_id": group},
    ]


def _masked(*paths: str) -> Fields:
    return {"update_mask": {"paths": paths}}


def _by_ref(refs: list[Fields], **more: Any) -> list[Fields]:
    return [{"resource": ref, **more} for ref in refs]


def _permissions_of(p: Place) -> list[Fields]:
    return [{"role_id": p.editor, "permission_slugs": ["document:read", "document:edit"]}]


def _new_resource(p: Place, external_id: str) -> list[Fields]:
    return [
        {
            "organization_id": p.organization,
            "resource_type_slug": "document",
            "external_id": external_id,
            "name": "New",
            "description": "New",
            "parent": ref,
        }
        for ref in _workspace(p)
    ]


# Service and RPC: requests that are answered as long as nobody spoils them.
ROWS: dict[tuple[str, str], Callable[[Place], list[Fields]]] = {
    ("AuthorizationService", "Check"): _check,
    ("AuthorizationService", "BatchCheck"): lambda p: [{"items": [each]} for each in _check(p)],
    ("AuthorizationService", "CheckMatrix"): _matrix,
    ("AuthorizationService", "ListResources"): _below,
    ("AuthorizationService", "ListMembers"): lambda p: _by_ref(
        _document(p), permission_slug="document:read"
    ),
    ("AuthorizationService", "ListPermissions"): _questions,
    ("AuthorizationService", "Explain"): _check,
    ("ConfigurationService", "GetConfiguration"): lambda p: [{}],
    ("ConfigurationService", "UpdateConfiguration"): lambda p: [
        {
            "configuration": {
                "default_role_slug": "guest",
                "owner_role_slug": "admin",
                "resource_depth_max": 5,
            },
            **_masked("default_role_slug", "owner_role_slug", "resource_depth_max"),
        }
    ],
    ("ConfigurationService", "GetOrganizationConfiguration"): lambda p: [
        {"organization_id": p.organization}
    ],
    ("ConfigurationService", "UpdateOrganizationConfiguration"): lambda p: [
        {
            "organization_configuration": {
                "organization_id": p.organization,
                "default_role_slug": p.role_slug,
            },
            **_masked("default_role_slug"),
        }
    ],
    ("ConfigurationService", "SetRolePriority"): lambda p: [
        {
            "organization_id": p.organization,
            "role_slugs": [p.role_slug, "owner", "admin", "member", "guest"],
        }
    ],
    ("ConfigurationService", "CreateServiceCredential"): lambda p: [
        {"name": "New", "scopes": ["read"], "organization_ids": [p.organization]}
    ],
    ("ConfigurationService", "ListServiceCredentials"): lambda p: [{}, {"states": [ACTIVE]}],
    ("ConfigurationService", "UpdateServiceCredential"): lambda p: [
        {
            "service_credential": {
                "id": p.credential,
                "name": "Changed",
                "scopes": ["list"],
                "organization_ids": [p.organization],
            },
            **_masked("name", "scopes", "organization_ids"),
        }
    ],
    ("ConfigurationService", "RotateServiceCredential"): lambda p: [
        {"service_credential_id": p.credential, "overlap": {"seconds": 60}}
    ],
    ("ConfigurationService", "RevokeServiceCredential"): lambda p: [
        {"service_credential_id": p.credential}
    ],
    ("DirectoryFileService", "ImportDirectory"): lambda p: [{"header": {"format": JSON}}],
    ("DirectoryFileService", "ExportDirectory"): lambda p: [
        {"organization_ids": [p.organization], "format": JSON}
    ],
    ("EventService", "GetEvent"): lambda p: [{"event_id": p.event}],
    ("EventService", "ListEvents"): lambda p: [
        {"organization_id": p.organization, "include_global_events": True},
        {"organization_id": p.organization, "target_id": p.group},
        {"organization_id": p.organization, "actor_id": p.credential, "kinds": ["role.*"]},
    ],
    ("GroupService", "CreateGroup"): lambda p: [
        {"organization_id": p.organization, "name": "New", "description": "New"}
    ],
    ("GroupService", "GetGroup"): lambda p: [{"group_id": p.group}],
    ("GroupService", "ListGroups"): lambda p: [
        {"organization_id": p.organization},
        {"organization_id": p.organization, "query": "ro"},
    ],
    ("GroupService", "UpdateGroup"): lambda p: [
        {
            "group": {"id": p.group, "name": "Changed", "description": "Changed"},
            **_masked("name", "description"),
        }
    ],
    ("GroupService", "DeleteGroup"): lambda p: [
        {"group_id": p.group},
        {"group_id": p.group, "allow_missing": True},
    ],
    ("GroupService", "AddGroupMember"): lambda p: _group_members(p, p.other, p.spare),
    ("GroupService", "RemoveGroupMember"): lambda p: _group_members(p, p.membership, p.inner),
    ("GroupService", "ModifyGroupMembers"): lambda p: [
        {
            "group_id": p.group,
            "add": [{"organization_membership_id": p.other}, {"member_group_id": p.spare}],
            "remove": [
                {"organization_membership_id": p.membership},
                {"member_group_id": p.inner},
            ],
        }
    ],
    ("GroupService", "ListGroupMembers"): lambda p: [
        {"group_id": p.group},
        {"group_id": p.group, "recursive": True, "statuses": [INACTIVE]},
    ],
    ("GroupService", "ListMemberGroups"): lambda p: [{"group_id": p.group}],
    ("GroupService", "ListMembershipGroups"): lambda p: [
        {"organization_membership_id": p.membership, "recursive": recursive}
        for recursive in (False, True)
    ],
    ("GroupService", "ListContainingGroups"): lambda p: [
        {"group_id": p.inner, "recursive": recursive} for recursive in (False, True)
    ],
    ("OrganizationMembershipService", "CreateOrganizationMembership"): lambda p: [
        {"user_id": p.former_user, "organization_id": p.organization, **roles}
        for roles in ({"role_slug": p.role_slug}, {"role_slugs": ["guest", p.role_slug]})
    ],
    ("OrganizationMembershipService", "GetOrganizationMembership"): lambda p: [
        {"organization_membership_id": p.membership},
        {"user": {"user_id": p.user, "organization_id": p.organization}},
    ],
    ("OrganizationMembershipService", "ListOrganizationMemberships"): lambda p: [
        {"organization_id": p.organization, "role_slugs": [p.role_slug], "query": "us"},
        {"organization_id": p.organization, "user_id": p.user},
        {"user_id": p.user},
    ],
    ("OrganizationMembershipService", "UpdateOrganizationMembership"): lambda p: [
        {"organization_membership_id": p.membership, **roles}
        for roles in ({"role_slug": p.role_slug}, {"role_slugs": ["guest", p.role_slug]})
    ],
    ("OrganizationMembershipService", "DeleteOrganizationMembership"): lambda p: [
        {"organization_membership_id": p.membership},
        {"organization_membership_id": p.membership, "allow_missing": True},
    ],
    ("OrganizationMembershipService", "DeactivateOrganizationMembership"): lambda p: [
        {"organization_membership_id": p.membership}
    ],
    ("OrganizationMembershipService", "ReactivateOrganizationMembership"): lambda p: [
        {"organization_membership_id": p.former}
    ],
    ("OrganizationService", "CreateOrganization"): lambda p: [
        {"name": "New", "external_id": "new", "metadata": {"key": "value"}}
    ],
    ("OrganizationService", "GetOrganization"): lambda p: [
        {"organization_id": p.organization},
        {"external_id": p.organization_key},
    ],
    ("OrganizationService", "ListOrganizations"): lambda p: [{}, {"query": "ac"}],
    ("OrganizationService", "UpdateOrganization"): lambda p: [
        {
            "organization": {
                "id": p.organization,
                "name": "Changed",
                "external_id": p.organization_key,
                "metadata": {"key": "value"},
            },
            **_masked("name", "external_id", "metadata"),
        }
    ],
    ("OrganizationService", "DeleteOrganization"): lambda p: [
        {"organization_id": p.organization},
        {"organization_id": p.organization, "allow_missing": True},
    ],
    ("PermissionService", "CreatePermission"): lambda p: [
        {
            "slug": "document:new",
            "name": "New",
            "description": "New",
            "resource_type_slug": "document",
        }
    ],
    ("PermissionService", "GetPermission"): lambda p: [{"permission_slug": "document:read"}],
    ("PermissionService", "ListPermissions"): lambda p: [
        {},
        {"resource_type_slug": "document", "query": "do"},
    ],
    ("PermissionService", "UpdatePermission"): lambda p: [
        {
            "permission": {"slug": "document:read", "name": "Changed", "description": "Changed"},
            **_masked("name", "description"),
        }
    ],
    ("PermissionService", "DeletePermission"): lambda p: [{"permission_slug": "spare"}],
    ("ResourceTypeService", "CreateResourceType"): lambda p: [
        {
            "slug": "new",
            "name": "New",
            "description": "New",
            "parent_type_slugs": ["organization"],
        }
    ],
    ("ResourceTypeService", "GetResourceType"): lambda p: [{"resource_type_slug": "document"}],
    ("ResourceTypeService", "ListResourceTypes"): lambda p: [{}],
    ("ResourceTypeService", "UpdateResourceType"): lambda p: [
        {
            "resource_type": {
                "slug": "spare",
                "name": "Changed",
                "description": "Changed",
                "parent_type_slugs": ["organization"],
            },
            **_masked("name", "description", "parent_type_slugs"),
        }
    ],
    ("ResourceTypeService", "DeleteResourceType"): lambda p: [{"resource_type_slug": "spare"}],
    ("ResourceService", "CreateResource"): lambda p: _new_resource(p, "new"),
    ("ResourceService", "GetResource"): lambda p: _by_ref(_document(p)),
    ("ResourceService", "ListResources"): lambda p: [
        {"organization_id": p.organization, **more}
        for more in (
            {"query": "do", "resource_type_slug": "document"},
            *({"parent": ref} for ref in _workspace(p)),
        )
    ],
    ("ResourceService", "UpdateResource"): lambda p: _by_ref(
        _document(p), name="Changed", description="Changed", **_masked("name", "description")
    ),
    ("ResourceService", "DeleteResource"): lambda p: [
        *_by_ref(_document(p)),
        *_by_ref(_document(p), allow_missing=True),
    ],
    ("ResourceService", "UpsertResource"): lambda p: _new_resource(p, p.document_key),
    ("ResourceService", "MoveResource"): lambda p: [
        {"resource": _document(p)[0], "parent": {"resource_id": p.desk}},
        *({"resource": ref, "parent": {"key": _desk_key(p)}} for ref in _document(p)),
    ],
    ("RoleAssignmentService", "CreateRoleAssignment"): lambda p: (
        [
            {"organization_membership_id": p.other, "role_slug": p.editor_slug, "resource": ref}
            for ref in _workspace(p)
        ]
        + [{"group_id": p.group, "role_slug": p.editor_slug, "resource": _workspace(p)[0]}]
    ),
    ("RoleAssignmentService", "GetRoleAssignment"): lambda p: [
        {"role_assignment_id": p.assignment}
    ],
    ("RoleAssignmentService", "ListRoleAssignments"): lambda p: [
        {"organization_id": p.organization, "role_slug": p.editor_slug},
        *({"organization_id": p.organization, **holder} for holder in _holders(p)),
        *({**holder, "resource": _workspace(p)[0]} for holder in _holders(p)),
        *_by_ref(_workspace(p), resource_type_slug="workspace"),
    ],
    ("RoleAssignmentService", "UpdateRoleAssignment"): lambda p: [
        {
            "role_assignment": {"id": p.assignment, "expires_at": {"seconds": 4_000_000_000}},
            **_masked("expires_at"),
        }
    ],
    ("RoleAssignmentService", "DeleteRoleAssignment"): lambda p: [
        {"role_assignment_id": p.assignment},
        {"role_assignment_id": p.assignment, "allow_missing": True},
        *(
            {
                "key": {
                    "organization_membership_id": p.membership,
                    "role_slug": p.editor_slug,
                    "resource": ref,
                }
            }
            for ref in _workspace(p)
        ),
        {
            "key": {
                "group_id": p.inner,
                "role_slug": p.editor_slug,
                "resource": {"resource_id": p.workspace},
            },
            "allow_missing": True,
        },
    ],
    ("RoleAssignmentService", "SetRoleAssignments"): lambda p: [
        {**holder, "resource": ref, "roles": [{"role_slug": p.editor_slug}]}
        for holder, ref in zip(
            [{"organization_membership_id": p.other}, {"group_id": p.group}],
            _workspace(p),
            strict=True,
        )
    ],
    ("RoleAssignmentService", "ModifyRoleAssignments"): _modified,
    ("RoleService", "CreateRole"): lambda p: [
        {
            "organization_id": p.organization,
            "slug": "org-new",
            "name": "New",
            "description": "New",
            "resource_type_slug": "workspace",
            "permission_slugs": ["document:read"],
        }
    ],
    ("RoleService", "GetRole"): lambda p: [
        {"role_id": p.role},
        {"key": {"organization_id": p.organization, "slug": p.role_slug}},
    ],
    ("RoleService", "ListRoles"): lambda p: [
        {},
        {"organization_id": p.organization, "resource_type_slug": "workspace"},
    ],
    ("RoleService", "UpdateRole"): lambda p: [
        {
            "role": {"id": p.role, "name": "Changed", "description": "Changed"},
            **_masked("name", "description"),
        }
    ],
    ("RoleService", "DeleteRole"): lambda p: [
        {"role_id": p.role, "replacement_role_slug": "guest"},
        {"role_id": p.role, "replacement_role_slug": "guest", "allow_missing": True},
    ],
    ("RoleService", "SetRolePermissions"): _permissions_of,
    ("RoleService", "AddRolePermissions"): _permissions_of,
    ("RoleService", "RemoveRolePermissions"): _permissions_of,
    ("UserService", "CreateUser"): lambda p: [
        {
            "email": "new@example.com",
            "external_id": "new",
            "first_name": "New",
            "last_name": "New",
            "name": "New",
            "profile_picture_url": "https://example.com/new.png",
            "phone_number": "+4930123456",
            "locale": "de-DE",
            "metadata": {"key": "value"},
        }
    ],
    ("UserService", "GetUser"): lambda p: [
        {"user_id": p.user},
        {"external_id": p.user_key},
        {"email": p.email},
    ],
    ("UserService", "ListUsers"): lambda p: [
        {"organization_id": p.organization, "query": "example"},
        {"email": p.email},
    ],
    ("UserService", "UpdateUser"): lambda p: [
        {
            "user": {
                "id": p.user,
                "email": p.email,
                "first_name": "New",
                "last_name": "New",
                "name": "New",
                "profile_picture_url": "https://example.com/new.png",
                "phone_number": "+4930123456",
                "locale": "de-DE",
                "external_id": p.user_key,
                "metadata": {"key": "value"},
            },
            **_masked(
                *("email", "first_name", "last_name", "name", "profile_picture_url"),
                *("phone_number", "locale", "external_id", "metadata"),
            ),
        }
    ],
    ("UserService", "DeleteUser"): lambda p: [
        {"user_id": p.user},
        {"user_id": p.user, "allow_missing": True},
    ],
    ("WatchService", "Watch"): lambda p: [
        {"organization_id": p.organization, "include_global_events": True, "kinds": ["role.*"]}
    ],
}


def requests(place: Place) -> Iterator[tuple[str, str, Message]]:
    """Yields every request of every RPC about a place: service, name, request."""
    for (service, name), rows in ROWS.items():
        request_class = message_factory.GetMessageClass(method(service, name).input_type)
        for row in rows(place):
            yield service, name, request_class(**row)


def is_sound(request: Message) -> bool:
    """False for a question about an API key, for none exists; a batch answers it in its item."""
    return isinstance(request, BatchCheckRequest) or "api_key_id:" not in str(request)


@dataclass(frozen=True)
class Leaf:
    """One text inside a message.

    Attributes:
        path: As errors name it, without places in lists: ``items.subject.group_id``.
        replace: Puts another text in its place.
    """

    path: str
    value: str
    replace: Callable[[str], None]


def leaves(message: Message, prefix: str = "") -> Iterator[Leaf]:
    """Yields every text of a message, however deep."""
    for field, value in message.ListFields():
        path = prefix + field.name
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            continue
        if inner is not None:
            for each in value if field.is_repeated else [value]:
                yield from leaves(each, f"{path}.")
        elif field.type == FieldDescriptor.TYPE_STRING and field.is_repeated:
            for place in range(len(value)):
                yield Leaf(path, value[place], lambda new, v=value, i=place: v.__setitem__(i, new))
        elif field.type == FieldDescriptor.TYPE_STRING:
            yield Leaf(path, value, lambda new, m=message, n=field.name: setattr(m, n, new))


def ask(
    worker: Worker,
    bearers: list[str],
    service: str,
    name: str,
    request: Message,
    more: tuple[tuple[str, str], ...] = (),
) -> Reply:
    """Asks any RPC, unary or streaming, and returns its answer; of a stream the first message.

    Args:
        bearers: What each ``authorization`` says; none sends none.
        more: Metadata beside it.
    """
    metadata = (*(("authorization", bearer) for bearer in bearers), *more)
    path = f"/authz.v1.{service}/{name}"
    payload = request.SerializeToString()
    streaming = worker.hall.methods[path].streaming
    if streaming == UNARY:
        (reply,) = worker.hall.answer([Call(path, metadata, payload)])
        return reply
    if streaming == CLIENT_STREAM:
        chunk = type(request)(chunk=NEW_USER)
        parts = [payload, chunk.SerializeToString()]
        return worker.hall.collect(Call(path, metadata), iter(parts), lambda: False)
    replies = worker.hall.stream(Call(path, metadata, payload), lambda: False)
    try:
        first = next(replies)
    finally:
        replies.close()
    return first if isinstance(first, Reply) else Reply(first)


def refusal(reply: Reply) -> Refused | None:
    """How a call was refused, None if it was answered."""
    if reply.status is None or not reply.status.code:
        return None
    return Refused(reply.status)


class Saved:
    """A database as it stood, to go back to; far cheaper than making everything again.

    Only for SQLite, and only while nobody writes. What a worker remembers may be ahead of it, so
    no test may hold consistency tokens across.
    """

    def __init__(self, worker: Worker, url: str) -> None:
        self._worker = worker
        self._path = url.removeprefix("sqlite:///")
        self._copy = sqlite3.connect(":memory:")
        # Readers of events give them their places, which is no change of anything else.
        Feed(worker.database).catch_up()
        with contextlib.closing(sqlite3.connect(self._path)) as connection:
            connection.backup(self._copy)
        self.rows = everything(worker)

    def restore(self) -> None:
        """Makes the database what it was."""
        with contextlib.closing(sqlite3.connect(self._path)) as connection:
            self._copy.backup(connection)
        self._worker.fence()

    def close(self) -> None:
        """Forgets it."""
        self._copy.close()


def everything(worker: Worker) -> dict[str, list[str]]:
    """Every row of every table, but for when a credential was last used."""
    with worker.database.snapshot(SYSTEM) as snapshot:
        return {
            table.name: sorted(
                repr(tuple(row))
                for row in snapshot.connection.execute(
                    select(*(column for column in table.c if column.name not in UNTOLD))
                )
            )
            for table in Base.metadata.sorted_tables
        }


def events(worker: Worker) -> list[tuple[str, str]]:
    """Realm and kind of every event."""
    with worker.database.snapshot(SYSTEM) as snapshot:
        rows = snapshot.connection.execute(select(Event.realm, Event.kind)).all()
    return [tuple(row) for row in rows]
