"""Writes a world of worlds.py straight into the tables, with its own ids, and takes it out again.

For comparing what reads the tables with the oracle thousands of times; that the API writes the same
rows is compared elsewhere.
"""

from collections import Counter
from typing import Any

from sqlalchemy import delete, insert

from authz_service.base.actor import SYSTEM
from authz_service.storage.database import Database, Transaction
from authz_service.storage.tables import (
    Base,
    Configuration,
    Group,
    GroupMember,
    GroupNesting,
    Membership,
    MembershipRole,
    Organization,
    OrganizationConfiguration,
    Permission,
    Realm,
    Resource,
    ResourceAncestor,
    ResourceCount,
    ResourceType,
    ResourceTypeParent,
    Role,
    RoleAssignment,
    RolePermission,
    User,
)
from tests.oracle import naive

STAMP = {"created_at": 1, "updated_at": 1, "revision": 1}
KEPT = {"cache_state", "node_lease", "schema_info"}


def microseconds(instant: int | None) -> int | None:
    """The world's whole seconds as they are stored."""
    return None if instant is None else instant * 1_000_000


def replace(database: Database, world: dict[str, Any]) -> None:
    """Makes the database hold exactly this world."""

    def work(tx: Transaction) -> None:
        if database.dialect.name == "sqlite":
            tx.connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        for table in reversed(Base.metadata.sorted_tables):
            if table.name not in KEPT:
                tx.connection.execute(delete(table))
        for model, rows in _rows(world):
            if rows:
                tx.connection.execute(insert(model), rows)

    database.write(work, actor=SYSTEM)


def _path(world: dict[str, Any], resource_id: str) -> list[str]:
    return list(reversed(naive.path(world, resource_id)))


def _rows(world: dict[str, Any]) -> list[tuple[Any, list[dict[str, Any]]]]:
    roles, resources = world["roles"], world["resources"]
    ordered = sorted(resources, key=lambda id: len(_path(world, id)))
    settings = world["configuration"]
    return [
        (
            Realm,
            [{"id": id, "revision": 1, "last_hash": b""} for id in ("*", *world["organizations"])],
        ),
        (
            ResourceType,
            [
                {"slug": slug, "id": f"resource_type_{slug}", "name": row["name"],
                 "description": "", "is_built_in": slug == naive.ROOT_TYPE, **STAMP}
                for slug, row in world["resource_types"].items()
            ],
        ),
        (
            ResourceTypeParent,
            [
                {"slug": slug, "parent_slug": parent}
                for slug, row in world["resource_types"].items()
                for parent in row["parent_type_slugs"]
            ],
        ),
        (
            Permission,
            [
                {"slug": slug, "id": f"perm_{slug}", "name": row["name"], "description": "",
                 "resource_type_slug": row["resource_type_slug"],
                 "assignable_to_api_keys": row["assignable_to_api_keys"], **STAMP}
                for slug, row in world["permissions"].items()
            ],
        ),
        (
            Role,
            [
                {"id": id, "realm": row["organization_id"] or "*", "slug": row["slug"],
                 "name": row["name"], "description": "",
                 "resource_type_slug": row["resource_type_slug"], **STAMP}
                for id, row in roles.items()
            ],
        ),
        (
            RolePermission,
            [
                {"role_id": id, "permission_slug": slug}
                for id, row in roles.items()
                for slug in row["permission_slugs"]
            ],
        ),
        (
            Configuration,
            [
                {"one": 1, "multiple_roles_enabled": True,
                 "default_role_id": settings["default_role_id"],
                 "owner_role_id": settings["owner_role_id"],
                 "last_owner_guard_enabled": settings["last_owner_guard_enabled"],
                 "resource_depth_max": settings["resource_depth_max"],
                 "role_priority": list(settings["role_priority"]), **STAMP}
            ],
        ),
        (
            User,
            [
                {"id": id, "email": row["email"], "canonical_email": row["email"],
                 "email_verified": False, "email_verification_source": "NONE", "first_name": "",
                 "last_name": "", "name": row["name"], "profile_picture_url": "",
                 "phone_number": "", "locale": "", "external_id": None, "metadata_json": {},
                 **STAMP}
                for id, row in world["users"].items()
            ],
        ),
        (
            Organization,
            [
                {"id": id, "name": row["name"], "external_id": row["external_id"],
                 "metadata_json": {}, "everyone_group_id": row["everyone_group_id"],
                 "root_resource_id": row["resource_id"], **STAMP}
                for id, row in world["organizations"].items()
            ],
        ),
        (
            OrganizationConfiguration,
            [
                {"organization_id": id, "default_role_id": row["default_role_id"],
                 "role_priority": row["role_priority"] and list(row["role_priority"]), **STAMP}
                for id, row in world["organizations"].items()
            ],
        ),
        (
            Membership,
            [
                {"organization_id": row["organization_id"], "id": id, "user_id": row["user_id"],
                 "status": row["status"], **STAMP}
                for id, row in world["memberships"].items()
            ],
        ),
        (
            MembershipRole,
            [
                {"organization_id": row["organization_id"], "membership_id": id,
                 "role_id": role_id, "source": source}
                for id, row in world["memberships"].items()
                for source, field in (("DIRECT", "direct_role_ids"),
                                      ("DIRECTORY", "directory_role_ids"))
                for role_id in dict.fromkeys(row[field])
            ],
        ),
        (
            Group,
            [
                {"organization_id": row["organization_id"], "id": id, "kind": row["kind"],
                 "name": row["name"], "description": "", **STAMP}
                for id, row in world["groups"].items()
            ],
        ),
        (
            GroupMember,
            [
                {"organization_id": row["organization_id"], "group_id": id,
                 "membership_id": member}
                for id, row in world["groups"].items()
                for member in row["membership_ids"]
            ],
        ),
        (
            GroupNesting,
            [
                {"organization_id": row["organization_id"], "group_id": id,
                 "member_group_id": member}
                for id, row in world["groups"].items()
                for member in row["group_ids"]
            ],
        ),
        (
            Resource,
            [
                {"organization_id": resources[id]["organization_id"], "id": id,
                 "resource_type_slug": resources[id]["resource_type_slug"],
                 "external_id": resources[id]["external_id"], "name": resources[id]["name"],
                 "description": "", "parent_id": resources[id]["parent_id"],
                 "depth": len(_path(world, id)) - 1, "path": "/".join(_path(world, id)), **STAMP}
                for id in ordered
            ],
        ),
        (
            ResourceAncestor,
            [
                {"organization_id": resources[id]["organization_id"], "ancestor_id": ancestor,
                 "resource_type_slug": resources[id]["resource_type_slug"], "resource_id": id}
                for id in ordered
                for ancestor in _path(world, id)
            ],
        ),
        (
            ResourceCount,
            [
                {"organization_id": home, "resource_type_slug": slug, "count": count}
                for (home, slug), count in Counter(
                    (row["organization_id"], row["resource_type_slug"])
                    for row in resources.values()
                    if row["parent_id"] is not None
                ).items()
            ],
        ),
        (
            RoleAssignment,
            [
                {"organization_id": row["organization_id"], "id": id,
                 "membership_id": row["subject"][1] if row["subject"][0] == "membership" else None,
                 "group_id": row["subject"][1] if row["subject"][0] == "group" else None,
                 "role_id": row["role_id"], "resource_id": row["resource_id"],
                 "expires_at": microseconds(row["expires_at"]), "is_end_recorded": False, **STAMP}
                for id, row in world["role_assignments"].items()
            ],
        ),
    ]  # fmt: skip
