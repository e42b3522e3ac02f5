"""Carries out the oracle's writes over the API of a service that holds its world."""

from collections.abc import Callable
from typing import Any

from tests.callers import Caller

World = dict[str, Any]
Write = dict[str, Any]
# Old id to the id the service made.
Made = dict[str, str]


def perform(api: Caller, world: World, write: Write) -> Made:
    """Makes the call that a write stands for.

    Returns:
        The ids that the service gave to what was created.

    Raises:
        Refused: As the service refuses it.
    """
    return _PERFORM[write["op"]](api, world, write) or {}


def _slug(world: World, role_id: str) -> str:
    return str(world["roles"][role_id]["slug"]) if role_id in world["roles"] else "org-gone"


def _slugs(world: World, role_ids: list[str]) -> list[str]:
    return [_slug(world, role_id) for role_id in role_ids]


def _end(write: Write) -> dict[str, Any]:
    end = write["expires_at"]
    return {} if end is None else {"expires_at": {"seconds": end}}


def _subject(subject: tuple[str, str]) -> dict[str, str]:
    fields = {"membership": "organization_membership_id", "group": "group_id"}
    return {fields[subject[0]]: subject[1]}


def _assign(api: Caller, world: World, write: Write) -> Made:
    answer = api.RoleAssignmentService.CreateRoleAssignment(
        **_subject(write["subject"]),
        role_slug=_slug(world, write["role_id"]),
        resource={"resource_id": write["resource_id"]},
        **_end(write),
    )
    return {write["id"]: answer.role_assignment.id}


def _unassign(api: Caller, world: World, write: Write) -> None:
    api.RoleAssignmentService.DeleteRoleAssignment(role_assignment_id=write["id"])


def _change_end(api: Caller, world: World, write: Write) -> None:
    api.RoleAssignmentService.UpdateRoleAssignment(
        role_assignment={"id": write["id"], **_end(write)},
        update_mask={"paths": ["expires_at"]},
    )


def _group(name: str, **fields: Callable[[Write], str]) -> Callable[..., None]:
    def call(api: Caller, world: World, write: Write) -> None:
        getattr(api.GroupService, name)(**{key: value(write) for key, value in fields.items()})

    return call


def _create_group(api: Caller, world: World, write: Write) -> Made:
    answer = api.GroupService.CreateGroup(
        organization_id=write["organization_id"], name=write["name"]
    )
    return {write["id"]: answer.group.id}


def _create_membership(api: Caller, world: World, write: Write) -> Made:
    answer = api.OrganizationMembershipService.CreateOrganizationMembership(
        user_id=write["user_id"],
        organization_id=write["organization_id"],
        role_slugs=_slugs(world, write["role_ids"]),
    )
    return {write["id"]: answer.organization_membership.id}


def _membership(name: str) -> Callable[..., None]:
    def call(api: Caller, world: World, write: Write) -> None:
        getattr(api.OrganizationMembershipService, name)(organization_membership_id=write["id"])

    return call


def _set_own_roles(api: Caller, world: World, write: Write) -> None:
    api.OrganizationMembershipService.UpdateOrganizationMembership(
        organization_membership_id=write["id"], role_slugs=_slugs(world, write["role_ids"])
    )


def _create_user(api: Caller, world: World, write: Write) -> Made:
    answer = api.UserService.CreateUser(email=write["email"], name=write["name"])
    return {write["id"]: answer.user.id}


def _create_role(api: Caller, world: World, write: Write) -> Made:
    answer = api.RoleService.CreateRole(
        organization_id=write["organization_id"] or "",
        slug=write["slug"],
        name=write["name"],
        resource_type_slug=write["resource_type_slug"],
        permission_slugs=write["permission_slugs"],
    )
    return {write["id"]: answer.role.id}


def _role_permissions(name: str) -> Callable[..., None]:
    def call(api: Caller, world: World, write: Write) -> None:
        getattr(api.RoleService, name)(
            role_id=write["id"], permission_slugs=write["permission_slugs"]
        )

    return call


def _delete_role(api: Caller, world: World, write: Write) -> None:
    new, roles = write["replacement_role_id"], world["roles"]
    slug = _slug(world, new) if new else ""
    if write["id"] in roles and new in roles:
        homes = (None, roles[write["id"]]["organization_id"])
        if roles[new]["organization_id"] not in homes:
            # By its slug it would be another role, if the organization has one of that slug too.
            slug = "org-gone"
    api.RoleService.DeleteRole(role_id=write["id"], replacement_role_slug=slug)


def _set_priority(api: Caller, world: World, write: Write) -> None:
    api.ConfigurationService.SetRolePriority(
        organization_id=write["organization_id"] or "",
        role_slugs=_slugs(world, write["role_ids"]),
    )


def _create_permission(api: Caller, world: World, write: Write) -> None:
    api.PermissionService.CreatePermission(
        slug=write["slug"],
        name=write["name"],
        resource_type_slug=write["resource_type_slug"],
        assignable_to_api_keys=write["assignable_to_api_keys"],
    )


def _delete_permission(api: Caller, world: World, write: Write) -> None:
    api.PermissionService.DeletePermission(permission_slug=write["slug"], cascade=write["cascade"])


def _create_resource(api: Caller, world: World, write: Write) -> Made:
    parent = {"parent": {"resource_id": write["parent_id"]}} if write["parent_id"] else {}
    answer = api.ResourceService.CreateResource(
        organization_id=write["organization_id"],
        resource_type_slug=write["resource_type_slug"],
        external_id=write["external_id"],
        name=write["name"],
        **parent,
    )
    return {write["id"]: answer.resource.id}


def _move_resource(api: Caller, world: World, write: Write) -> None:
    api.ResourceService.MoveResource(
        resource={"resource_id": write["id"]}, parent={"resource_id": write["parent_id"]}
    )


def _delete_resource(api: Caller, world: World, write: Write) -> None:
    api.ResourceService.DeleteResource(
        resource={"resource_id": write["id"]}, cascade=write["cascade"]
    )


def _rename(api: Caller, world: World, write: Write) -> None:
    table, id, name = write["table"], write["id"], write["name"]
    mask = {"paths": ["name"]}
    if table == "organizations":
        api.OrganizationService.UpdateOrganization(
            organization={"id": id, "name": name}, update_mask=mask
        )
    elif table == "groups":
        api.GroupService.UpdateGroup(group={"id": id, "name": name}, update_mask=mask)
    elif table == "roles":
        api.RoleService.UpdateRole(role={"id": id, "name": name}, update_mask=mask)
    elif table == "users":
        api.UserService.UpdateUser(user={"id": id, "name": name}, update_mask=mask)
    elif table == "resources":
        api.ResourceService.UpdateResource(
            resource={"resource_id": id}, name=name, update_mask=mask
        )
    elif table == "permissions":
        api.PermissionService.UpdatePermission(
            permission={"slug": id, "name": name}, update_mask=mask
        )
    elif table == "resource_types":
        api.ResourceTypeService.UpdateResourceType(
            resource_type={"slug": id, "name": name}, update_mask=mask
        )
    else:
        raise KeyError(table)


def _create_organization(api: Caller, world: World, write: Write) -> Made:
    made = api.OrganizationService.CreateOrganization(
        name=write["name"], external_id=write["external_id"] or ""
    ).organization
    root = api.ResourceService.GetResource(
        resource={
            "key": {
                "organization_id": made.id,
                "resource_type_slug": "organization",
                "external_id": made.id,
            }
        }
    ).resource
    return {
        write["id"]: made.id,
        write["resource_id"]: root.id,
        write["everyone_group_id"]: made.everyone_group_id,
    }


def _delete_organization(api: Caller, world: World, write: Write) -> None:
    api.OrganizationService.DeleteOrganization(organization_id=write["id"])


_PERFORM: dict[str, Callable[[Caller, World, Write], Made | None]] = {
    "assign": _assign,
    "unassign": _unassign,
    "change_end": _change_end,
    "add_member": _group(
        "AddGroupMember",
        group_id=lambda write: write["group_id"],
        organization_membership_id=lambda write: write["membership_id"],
    ),
    "remove_member": _group(
        "RemoveGroupMember",
        group_id=lambda write: write["group_id"],
        organization_membership_id=lambda write: write["membership_id"],
    ),
    "nest": _group(
        "AddGroupMember",
        group_id=lambda write: write["outer_id"],
        member_group_id=lambda write: write["inner_id"],
    ),
    "unnest": _group(
        "RemoveGroupMember",
        group_id=lambda write: write["outer_id"],
        member_group_id=lambda write: write["inner_id"],
    ),
    "create_group": _create_group,
    "delete_group": _group("DeleteGroup", group_id=lambda write: write["id"]),
    "create_membership": _create_membership,
    "deactivate": _membership("DeactivateOrganizationMembership"),
    "reactivate": _membership("ReactivateOrganizationMembership"),
    "set_own_roles": _set_own_roles,
    "delete_membership": _membership("DeleteOrganizationMembership"),
    "create_user": _create_user,
    "delete_user": lambda api, world, write: (
        api.UserService.DeleteUser(user_id=write["id"]) and None
    ),
    "create_role": _create_role,
    "set_role_permissions": _role_permissions("SetRolePermissions"),
    "add_role_permissions": _role_permissions("AddRolePermissions"),
    "remove_role_permissions": _role_permissions("RemoveRolePermissions"),
    "delete_role": _delete_role,
    "set_priority": _set_priority,
    "create_permission": _create_permission,
    "delete_permission": _delete_permission,
    "create_resource": _create_resource,
    "move_resource": _move_resource,
    "delete_resource": _delete_resource,
    "rename": _rename,
    "create_organization": _create_organization,
    "delete_organization": _delete_organization,
}
# Not in this release, or not by a call of its own.
NOT_CALLED = {"accept_invitation"}
