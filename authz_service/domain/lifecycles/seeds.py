"""The first rows of an empty database (product.md RO1)."""

from typing import Any

from sqlalchemy import insert, select

from authz_service.base import ids
from authz_service.base.consistency import ENVIRONMENT
from authz_service.domain import events, resources
from authz_service.engine import tags
from authz_service.storage import realms
from authz_service.storage.database import Transaction
from authz_service.storage.tables import (
    Configuration,
    Permission,
    Realm,
    ResourceType,
    Role,
    RolePermission,
)

SEEDED_PERMISSIONS = {
    "organization:view": "View organization",
    "organization:manage": "Manage organization",
    "organization:delete": "Delete organization",
    "members:view": "View members",
    "members:manage": "Manage members",
    "roles:manage": "Manage roles",
}
SEEDED_ROLES = {
    "owner": tuple(SEEDED_PERMISSIONS),
    "admin": tuple(slug for slug in SEEDED_PERMISSIONS if slug != "organization:delete"),
    "member": ("organization:view", "members:view"),
    "guest": ("organization:view",),
}
_DEFAULT_ROLE, _OWNER_ROLE = "member", "owner"
RESOURCE_DEPTH_DEFAULT = 8


def seed(tx: Transaction) -> bool:
    """Writes the built-in type, the first permissions, roles and settings into an empty database.

    Returns:
        True if it did; False if the environment was there already.
    """
    if tx.connection.execute(select(Realm.id).where(Realm.id == ENVIRONMENT)).one_or_none():
        return False
    realms.create(tx, ENVIRONMENT)
    organization_type = tx.add(
        ResourceType(
            slug=resources.ORGANIZATION_TYPE,
            id=ids.new(ids.RESOURCE_TYPE),
            name="Organization",
            description="",
            is_built_in=True,
            **events.stamp(tx, ENVIRONMENT),
        )
    )
    _record_seed(tx, "resource_type", organization_type.id, slug=organization_type.slug)
    for slug, name in SEEDED_PERMISSIONS.items():
        permission = tx.add(
            Permission(
                slug=slug,
                id=ids.new(ids.PERMISSION),
                name=name,
                description="",
                resource_type_slug=resources.ORGANIZATION_TYPE,
                assignable_to_api_keys=False,
                **events.stamp(tx, ENVIRONMENT),
            )
        )
        _record_seed(tx, "permission", permission.id, slug=slug)
    role_ids = {}
    for slug, permission_slugs in SEEDED_ROLES.items():
        role = tx.add(
            Role(
                id=ids.new(ids.ROLE),
                realm=ENVIRONMENT,
                slug=slug,
                name=slug.capitalize(),
                description="",
                resource_type_slug=resources.ORGANIZATION_TYPE,
                **events.stamp(tx, ENVIRONMENT),
            )
        )
        tx.connection.execute(
            insert(RolePermission),
            [{"role_id": role.id, "permission_slug": each} for each in permission_slugs],
        )
        role_ids[slug] = role.id
        _record_seed(tx, "role", role.id, slug=slug, permission_slugs=list(permission_slugs))
    tx.add(
        Configuration(
            one=1,
            multiple_roles_enabled=True,
            default_role_id=role_ids[_DEFAULT_ROLE],
            owner_role_id=role_ids[_OWNER_ROLE],
            last_owner_guard_enabled=True,
            resource_depth_max=RESOURCE_DEPTH_DEFAULT,
            role_priority=list(role_ids.values()),
            # No event tells of its creation: it is as old as the last one recorded, so that the
            # first change gives it another etag.
            created_at=tx.now,
            updated_at=tx.now,
            revision=tx.realms[ENVIRONMENT].revision,
        )
    )
    return True


def _record_seed(tx: Transaction, target_type: str, target_id: str, **data: Any) -> None:
    events.record(
        tx,
        f"{target_type}.created",
        realm=ENVIRONMENT,
        target_type=target_type,
        target_id=target_id,
        data={"id": target_id, **data},
        tags=(tags.ENVIRONMENT_DEFINITIONS,),
        by_system=True,
    )
