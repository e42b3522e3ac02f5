"""Permissions: actions on resources of one type."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, func, or_, select

from authz_service.base import errors, ids, slugs
from authz_service.base.clock import to_datetime
from authz_service.base.consistency import ENVIRONMENT
from authz_service.base.pages import Cursor, Page
from authz_service.domain import events, resource_types
from authz_service.engine import tags
from authz_service.engine.check import permission_not_found
from authz_service.storage import paging, realms
from authz_service.storage.database import Snapshot, Transaction
from authz_service.storage.tables import Permission

UPDATABLE = ("name", "description", "assignable_to_api_keys")


def view(row: Permission | Row[Any]) -> dict[str, Any]:
    """Returns the permission as callers and events see it."""
    return {
        "id": row.id,
        "slug": row.slug,
        "name": row.name,
        "description": row.description,
        "resource_type_slug": row.resource_type_slug,
        "assignable_to_api_keys": row.assignable_to_api_keys,
        "created_at": to_datetime(row.created_at),
        "updated_at": to_datetime(row.updated_at),
        "etag": events.etag(row),
    }


def create(
    tx: Transaction,
    *,
    slug: str,
    name: str,
    description: str = "",
    resource_type_slug: str = "",
    assignable_to_api_keys: bool = False,
) -> Permission:
    """Creates a permission, which no role contains yet.

    Args:
        resource_type_slug: Empty = organization.

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED.
        NotFound: RESOURCE_TYPE_NOT_FOUND.
        InvalidArgument: FIELD_REQUIRED, FIELD_INVALID.
        AlreadyExists: SLUG_TAKEN.
        ResourceExhausted: LIMIT_REACHED (permissions).
    """
    tx.actor.require_unrestricted()
    slug = slugs.permission_slug("slug", slug)
    name = slugs.short_name("name", name)
    description = slugs.description("description", description)
    type_slug = resource_type_slug or resource_types.ORGANIZATION_TYPE
    realms.lock(tx, environment=True)
    resource_types.require(tx, type_slug)
    if tx.session.get(Permission, slug) is not None:
        raise errors.AlreadyExists("SLUG_TAKEN", "the slug is in use", metadata={"field": "slug"})
    count = tx.connection.execute(select(func.count()).select_from(Permission)).scalar_one()
    if count >= tx.limits.permissions_max:
        raise errors.limit_reached("permissions", maximum=tx.limits.permissions_max)
    row = tx.add(
        Permission(
            slug=slug,
            id=ids.new(ids.PERMISSION),
            name=name,
            description=description,
            resource_type_slug=type_slug,
            assignable_to_api_keys=assignable_to_api_keys,
            **events.stamp(tx, ENVIRONMENT),
        )
    )
    # The fact of all permissions is a complete list.
    _record(tx, "permission.created", row, tags=(tags.ENVIRONMENT_DEFINITIONS,))
    return row


def get(snapshot: Snapshot, slug: str) -> Row[Any]:
    """Returns one permission.

    Raises:
        NotFound: PERMISSION_NOT_FOUND.
    """
    row = snapshot.connection.execute(
        select(*Permission.__table__.columns).where(Permission.slug == slug)
    ).one_or_none()
    if row is None:
        raise permission_not_found(slug)
    return row


def types_of(snapshot: Snapshot, permission_slugs: Collection[str]) -> dict[str, str]:
    """Returns each of these permissions with its resource type.

    Raises:
        NotFound: PERMISSION_NOT_FOUND, for the first one that does not exist.
    """
    found: dict[str, str] = {
        row.slug: row.resource_type_slug
        for row in snapshot.connection.execute(
            select(Permission.slug, Permission.resource_type_slug).where(
                snapshot.dialect.among(Permission.slug, permission_slugs)
            )
        )
    }
    for slug in permission_slugs:
        if slug not in found:
            raise permission_not_found(slug)
    return found


def page(
    snapshot: Snapshot, *, resource_type_slug: str = "", query: str = "", page: Page
) -> tuple[Sequence[Row[Any]], Cursor | None]:
    """Returns one page of the permissions, newest first.

    Args:
        resource_type_slug: Empty = all types.
        query: Case-insensitive part of the slug or the name; empty = all.

    Raises:
        NotFound: RESOURCE_TYPE_NOT_FOUND.
        InvalidArgument: FIELD_INVALID.
    """
    query = slugs.query("query", query)
    statement = select(*Permission.__table__.columns)
    if resource_type_slug:
        resource_types.require(snapshot, resource_type_slug)
        statement = statement.where(Permission.resource_type_slug == resource_type_slug)
    if query:
        statement = statement.where(
            or_(
                Permission.slug.icontains(query, autoescape=True),
                Permission.name.icontains(query, autoescape=True),
            )
        )
    return paging.newest_first(snapshot, statement, Permission.id, page)


def for_update(tx: Transaction, slug: str) -> Permission:
    """Locks the environment and returns the row of a permission.

    Raises:
        NotFound: PERMISSION_NOT_FOUND.
    """
    realms.lock(tx, environment=True)
    row = tx.session.get(Permission, slug)
    if row is None:
        raise permission_not_found(slug)
    return row


def update(tx: Transaction, slug: str, changes: Mapping[str, Any], *, etag: str = "") -> Permission:
    """Applies new values; equal ones change nothing and record no event.

    Args:
        changes: From ``UPDATABLE``.

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED.
        NotFound: PERMISSION_NOT_FOUND.
        InvalidArgument: FIELD_INVALID.
        Aborted: ETAG_MISMATCH.
    """
    tx.actor.require_unrestricted()
    changes = dict(changes)
    if "name" in changes:
        given = slugs.not_cleared("permission.name", changes["name"])
        changes["name"] = slugs.short_name("permission.name", given)
    if "description" in changes:
        field = "permission.description"
        changes["description"] = slugs.description(field, changes["description"])
    row = for_update(tx, slug)
    events.check_etag(row, etag)
    before = view(row)
    for name, value in changes.items():
        setattr(row, name, value)
    if view(row) == before:
        return row
    events.touch(tx, ENVIRONMENT, row)
    # No fact reads names, nor what API keys may be given from now on.
    _record(tx, "permission.updated", row, before=before, tags=())
    return row


def delete(tx: Transaction, row: Permission) -> None:
    """Deletes a permission; ``lifecycles.permissions.delete`` does the rest.

    Args:
        row: From ``for_update``; what contains it loses it.
    """
    _record(tx, "permission.deleted", row, tags=(tags.ENVIRONMENT_DEFINITIONS,))
    tx.session.delete(row)
    tx.session.flush()


def _record(
    tx: Transaction,
    kind: str,
    row: Permission,
    *,
    tags: tuple[str, ...],
    before: Mapping[str, Any] | None = None,
) -> None:
    seen = view(row)
    events.record(
        tx,
        kind,
        realm=ENVIRONMENT,
        target_type="permission",
        target_id=row.id,
        data=seen,
        previous=events.changes(before, seen) if before else None,
        tags=tags,
    )
