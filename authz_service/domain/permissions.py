"""Permissions: actions on resources of one type."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, func, select

from authz_service.base import errors, ids, slugs
from authz_service.base.clock import to_datetime
from authz_service.base.consistency import ENVIRONMENT
from authz_service.base.pages import Cursor, Page
from authz_service.domain import events, resource_types
from authz_service.engine import tags
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


def not_found(key: str, slug: str) -> errors.NotFound:
    """PERMISSION_NOT_FOUND, with the slug as it was given."""
    return errors.NotFound("PERMISSION_NOT_FOUND", "no such permission", metadata={key: slug})


def create(
    tx: Transaction,
    *,
    slug: str,
    name: str,
    description: str = "",
    resource_type_slug: str = "",
    assignable_to_api_keys: bool = False,
) -> Permission:
    """Creates a permission, of type organization unless said otherwise.

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED.
        InvalidArgument: FIELD_REQUIRED, FIELD_INVALID.
        NotFound: RESOURCE_TYPE_NOT_FOUND.
        AlreadyExists: SLUG_TAKEN.
        ResourceExhausted: LIMIT_REACHED (permissions).
    """
    tx.actor.require_unrestricted()
    slug = slugs.permission_slug("slug", slug)
    name = slugs.short_name("name", name)
    description = slugs.description("description", description)
    realms.lock(tx, environment=True)
    type_slug = resource_type_slug or resource_types.ORGANIZATION_TYPE
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
    # The fact ``permissions`` is the complete list.
    record(tx, "permission.created", row, is_definition=True)
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
        raise not_found("permission_slug", slug)
    return row


def page(
    snapshot: Snapshot, *, resource_type_slug: str = "", query: str = "", page: Page
) -> tuple[Sequence[Row[Any]], Cursor | None]:
    """Returns one page of permissions, newest first.

    Args:
        resource_type_slug: Only of this type.
        query: Case-insensitive part of slug or name.

    Raises:
        NotFound: RESOURCE_TYPE_NOT_FOUND.
    """
    query = slugs.query("query", query)
    statement = select(*Permission.__table__.columns)
    if resource_type_slug:
        resource_types.require(snapshot, resource_type_slug)
        statement = statement.where(Permission.resource_type_slug == resource_type_slug)
    if query:
        statement = statement.where(
            Permission.slug.icontains(query, autoescape=True)
            | Permission.name.icontains(query, autoescape=True)
        )
    return paging.newest_first(snapshot, statement, Permission.id, page)


def for_update(tx: Transaction, slug: str) -> Permission:
    """Returns a permission's row; the environment must be locked.

    Raises:
        NotFound: PERMISSION_NOT_FOUND.
    """
    row = tx.session.get(Permission, slug)
    if row is None:
        raise not_found("permission_slug", slug)
    return row


def update(tx: Transaction, slug: str, changes: Mapping[str, Any], *, etag: str = "") -> Permission:
    """Applies new values; equal ones change nothing and record no event.

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED.
        NotFound: PERMISSION_NOT_FOUND.
        InvalidArgument: FIELD_REQUIRED, FIELD_INVALID.
        Aborted: ETAG_MISMATCH.
    """
    tx.actor.require_unrestricted()
    realms.lock(tx, environment=True)
    row = for_update(tx, slug)
    events.check_etag(row, etag)
    before = view(row)
    if "name" in changes:
        row.name = slugs.short_name("permission.name", changes["name"])
    if "description" in changes:
        row.description = slugs.description("permission.description", changes["description"])
    if "assignable_to_api_keys" in changes:
        row.assignable_to_api_keys = changes["assignable_to_api_keys"]
    if view(row) == before:
        return row
    events.touch(tx, ENVIRONMENT, row)
    record(tx, "permission.updated", row, before=before)
    return row


def record(
    tx: Transaction,
    kind: str,
    row: Permission,
    *,
    before: Mapping[str, Any] | None = None,
    is_definition: bool = False,
) -> None:
    """Records an event about a permission.

    Args:
        is_definition: Which permissions exist, or their type, changes; names are part of no fact.
    """
    after = view(row)
    events.record(
        tx,
        kind,
        realm=ENVIRONMENT,
        target_type="permission",
        target_id=row.id,
        data=after,
        previous=events.changes(before, after) if before else None,
        tags=(tags.ENVIRONMENT_DEFINITIONS,) if is_definition else (),
    )
