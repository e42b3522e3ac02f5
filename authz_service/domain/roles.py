"""Roles: named lists of permissions, of the environment or of one organization."""

import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, case, delete, func, insert, literal, or_, select, tuple_

from authz_service.base import errors, ids, slugs
from authz_service.base.clock import to_datetime
from authz_service.base.consistency import ENVIRONMENT
from authz_service.base.pages import Cursor, Page
from authz_service.domain import (
    configuration,
    events,
    organizations,
    permissions,
    resource_types,
)
from authz_service.engine import limits, tags
from authz_service.storage import paging, realms
from authz_service.storage.database import Snapshot, Transaction
from authz_service.storage.tables import Permission, Role, RolePermission

AnyRole = Role | Row[Any]
ORGANIZATION_PREFIX = "org-"
UPDATABLE = ("name", "description")
# Of a slug made from a name: enough that two roles of one name do not meet.
_SUFFIX_BYTES = 3


def view(
    row: AnyRole,
    permission_slugs: Iterable[str],
    *,
    default_role_id: str = "",
    priority: Sequence[str] = (),
) -> dict[str, Any]:
    """Returns the role as callers see it, and events without the last two.

    Args:
        default_role_id, priority: As seen from the organization asked for, else the deployment.
    """
    rank = priority.index(row.id) + 1 if row.id in priority else 0
    of_organization = row.realm != ENVIRONMENT
    return {
        "id": row.id,
        "organization_id": row.realm if of_organization else "",
        "kind": "ROLE_KIND_ORGANIZATION" if of_organization else "ROLE_KIND_ENVIRONMENT",
        "slug": row.slug,
        "name": row.name,
        "description": row.description,
        "resource_type_slug": row.resource_type_slug,
        "permission_slugs": sorted(permission_slugs),
        "is_default": row.id == default_role_id,
        "priority": rank,
        "created_at": to_datetime(row.created_at),
        "updated_at": to_datetime(row.updated_at),
        "etag": events.etag(row),
    }


def seen(
    snapshot: Snapshot, rows: Sequence[AnyRole], organization_id: str = ""
) -> list[dict[str, Any]]:
    """Returns roles as callers see them, in a constant number of statements."""
    contained = permissions_of(snapshot, [row.id for row in rows])
    priority = configuration.role_priority(snapshot, organization_id)
    default = (
        configuration.default_role_id(snapshot, organization_id)
        if organization_id
        else configuration.current(snapshot).default_role_id
    )
    return [
        view(row, contained[row.id], default_role_id=default, priority=priority) for row in rows
    ]


def permissions_of(snapshot: Snapshot, role_ids: Sequence[str]) -> dict[str, set[str]]:
    """Returns the permissions of each of these roles."""
    found: dict[str, set[str]] = defaultdict(set)
    for role_id, slug in snapshot.connection.execute(
        select(RolePermission.role_id, RolePermission.permission_slug).where(
            RolePermission.role_id.in_(role_ids)
        )
    ):
        found[role_id].add(slug)
    return found


def not_found(**named: str) -> errors.NotFound:
    """ROLE_NOT_FOUND, with the id or slug as it was given."""
    return errors.NotFound("ROLE_NOT_FOUND", "no such role", metadata=named)


def create(
    tx: Transaction,
    *,
    organization_id: str = "",
    slug: str = "",
    name: str,
    description: str = "",
    resource_type_slug: str = "",
    permission_slugs: Sequence[str] = (),
) -> Role:
    """Creates a role: of an organization if one is named, else of the environment.

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED.
        NotFound: ORGANIZATION_NOT_FOUND, RESOURCE_TYPE_NOT_FOUND, PERMISSION_NOT_FOUND.
        InvalidArgument: FIELD_REQUIRED, FIELD_INVALID, REQUEST_TOO_LARGE, PERMISSION_OUT_OF_SCOPE.
        AlreadyExists: SLUG_TAKEN.
        ResourceExhausted: LIMIT_REACHED.
    """
    name = slugs.short_name("name", name)
    slug = _slug(organization_id, slug, name)
    description = slugs.description("description", description)
    _check_count(permission_slugs)
    realm = organization_id or ENVIRONMENT
    if organization_id:
        realms.lock(tx, organization_id, definitions=True)
        organizations.require(tx, organization_id)
    else:
        tx.actor.require_unrestricted()
        realms.lock(tx, environment=True)
    type_slug = resource_type_slug or resource_types.ORGANIZATION_TYPE
    resource_types.require(tx, type_slug)
    _judge(tx, type_slug, permission_slugs)
    taken = tx.connection.execute(
        select(Role.id).where(Role.realm == realm, Role.slug == slug)
    ).one_or_none()
    if taken is not None:
        raise errors.AlreadyExists("SLUG_TAKEN", "the slug is in use", metadata={"field": "slug"})
    _refuse_too_many(tx, realm)
    row = tx.add(
        Role(
            id=ids.new(ids.ROLE),
            realm=realm,
            slug=slug,
            name=name,
            description=description,
            resource_type_slug=type_slug,
            **events.stamp(tx, realm),
        )
    )
    _insert(tx, row.id, set(permission_slugs))
    # Nobody holds it yet, so no fact changes.
    record(tx, "role.created", row, tags=())
    return row


def find(
    snapshot: Snapshot, *, role_id: str = "", organization_id: str = "", slug: str = ""
) -> Any:
    """Returns a role by its id, or by the slug it has in an organization (M8).

    Args:
        organization_id: Where the slug is looked up; empty = environment roles alone.

    Raises:
        NotFound: ROLE_NOT_FOUND.
    """
    statement = select(*Role.__table__.columns)
    if role_id:
        statement, missing = statement.where(Role.id == role_id), not_found(role_id=role_id)
    else:
        is_own = slug.startswith(ORGANIZATION_PREFIX)
        realm = organization_id if is_own else ENVIRONMENT
        statement = statement.where(Role.realm == realm, Role.slug == slug)
        missing = not_found(role_slug=slug)
    row = snapshot.connection.execute(statement).one_or_none()
    if row is None or (row.realm != ENVIRONMENT and not snapshot.actor.may_see(row.realm)):
        raise missing
    return row


def page(
    snapshot: Snapshot,
    *,
    organization_id: str = "",
    resource_type_slug: str = "",
    page: Page,
    include_total: bool = False,
) -> tuple[Sequence[Row[Any]], Cursor | None, int | None]:
    """Returns one page of roles: type organization by priority, then the others oldest first.

    Args:
        organization_id: Environment roles and its own; empty = environment roles.

    Raises:
        NotFound: ORGANIZATION_NOT_FOUND, RESOURCE_TYPE_NOT_FOUND.
    """
    if organization_id:
        organizations.require(snapshot, organization_id)
    if resource_type_slug:
        resource_types.require(snapshot, resource_type_slug)
    priority = configuration.role_priority(snapshot, organization_id)
    # Roles are few: at most seven hundred of them, of which a page is shown.
    rank = case(
        {role_id: place for place, role_id in enumerate(priority)},
        value=Role.id,
        else_=literal(len(priority)),
    )
    columns: list[Any] = [*Role.__table__.columns, rank.label("rank")]
    statement = select(*columns).where(
        or_(Role.realm == ENVIRONMENT, Role.realm == organization_id)
    )
    if resource_type_slug:
        statement = statement.where(Role.resource_type_slug == resource_type_slug)
    total = None
    if include_total:
        total = paging.total(snapshot, statement, snapshot.limits.total_size_max)
    if page.after is not None:
        statement = statement.where(tuple_(rank, Role.id) > tuple_(*page.after))
    rows: Sequence[Row[Any]] = snapshot.connection.execute(
        statement.order_by(rank, Role.id).limit(page.size + 1)
    ).all()
    shown = rows[: page.size]
    after = (shown[-1].rank, shown[-1].id) if len(rows) > page.size else None
    return shown, after, total


def for_update(tx: Transaction, role_id: str) -> Role:
    """Locks the role's realm, and the definitions it relies on, and returns its row.

    Raises:
        NotFound: ROLE_NOT_FOUND.
        PermissionDenied: ORGANIZATION_RESTRICTED for an environment role.
    """
    realm = find(tx, role_id=role_id).realm
    if realm == ENVIRONMENT:
        tx.actor.require_unrestricted()
        realms.lock(tx, environment=True)
    else:
        realms.lock(tx, realm, definitions=True)
    row = tx.session.get(Role, role_id)
    if row is None:
        raise not_found(role_id=role_id)
    return row


def update(tx: Transaction, role_id: str, changes: Mapping[str, Any], *, etag: str = "") -> Role:
    """Applies name and description; equal ones change nothing and record no event.

    Raises:
        NotFound: ROLE_NOT_FOUND.
        PermissionDenied: ORGANIZATION_RESTRICTED.
        InvalidArgument: FIELD_REQUIRED, FIELD_INVALID.
        Aborted: ETAG_MISMATCH.
    """
    row = for_update(tx, role_id)
    events.check_etag(row, etag)
    before = (row.name, row.description)
    if "name" in changes:
        row.name = slugs.short_name("role.name", changes["name"])
    if "description" in changes:
        row.description = slugs.description("role.description", changes["description"])
    if (row.name, row.description) == before:
        return row
    events.touch(tx, row.realm, row)
    # Names are part of no fact.
    previous = {"name": before[0], "description": before[1]}
    record(tx, "role.updated", row, tags=(), before=previous)
    return row


def set_permissions(
    tx: Transaction, role_id: str, permission_slugs: Sequence[str], *, etag: str = ""
) -> Role:
    """Makes the role's permissions exactly these.

    Raises:
        NotFound: ROLE_NOT_FOUND, PERMISSION_NOT_FOUND.
        PermissionDenied: ORGANIZATION_RESTRICTED.
        InvalidArgument: REQUEST_TOO_LARGE, PERMISSION_OUT_OF_SCOPE.
        Aborted: ETAG_MISMATCH.
    """
    _check_count(permission_slugs)
    row = for_update(tx, role_id)
    _judge(tx, row.resource_type_slug, permission_slugs)
    events.check_etag(row, etag)
    return _change(tx, row, set(permission_slugs))


def add_permissions(
    tx: Transaction, role_id: str, permission_slugs: Sequence[str], *, etag: str = ""
) -> Role:
    """Adds permissions; present ones are skipped. Refusals as ``set_permissions``."""
    _check_count(permission_slugs)
    row = for_update(tx, role_id)
    _judge(tx, row.resource_type_slug, permission_slugs)
    events.check_etag(row, etag)
    wanted = permissions_of(tx, [role_id])[role_id] | set(permission_slugs)
    if len(wanted) > limits.ROLE_PERMISSIONS_MAX:
        raise errors.limit_reached("permissions of one role", maximum=limits.ROLE_PERMISSIONS_MAX)
    return _change(tx, row, wanted)


def remove_permissions(
    tx: Transaction, role_id: str, permission_slugs: Sequence[str], *, etag: str = ""
) -> Role:
    """Takes permissions away; absent ones are skipped. Refusals as ``set_permissions``."""
    _check_count(permission_slugs)
    row = for_update(tx, role_id)
    _types(tx, permission_slugs)
    events.check_etag(row, etag)
    return _change(tx, row, permissions_of(tx, [role_id])[role_id] - set(permission_slugs))


def _change(tx: Transaction, row: Role, wanted: set[str]) -> Role:
    before = permissions_of(tx, [row.id])[row.id]
    if wanted == before:
        return row
    drop_permissions(tx, row.id, before - wanted)
    _insert(tx, row.id, wanted - before)
    events.touch(tx, row.realm, row)
    record(
        tx,
        "role.permissions_changed",
        row,
        tags=(tag_of(row.realm),),
        before={"permission_slugs": sorted(before)},
    )
    return row


def tag_of(realm: str) -> str:
    """Returns the tag that a change of a role's permissions marks in its realm."""
    return tags.ENVIRONMENT_DEFINITIONS if realm == ENVIRONMENT else tags.ORGANIZATION_ROLES


def drop_permissions(tx: Transaction, role_id: str, permission_slugs: set[str]) -> None:
    """Takes permissions out of a role, without a record."""
    if permission_slugs:
        tx.connection.execute(
            delete(RolePermission).where(
                RolePermission.role_id == role_id,
                RolePermission.permission_slug.in_(permission_slugs),
            )
        )


def _insert(tx: Transaction, role_id: str, permission_slugs: set[str]) -> None:
    if permission_slugs:
        tx.connection.execute(
            insert(RolePermission),
            [{"role_id": role_id, "permission_slug": slug} for slug in sorted(permission_slugs)],
        )


def record(
    tx: Transaction,
    kind: str,
    row: Role,
    *,
    tags: Iterable[str],
    before: Mapping[str, Any] | None = None,
) -> None:
    """Records an event about a role in its realm."""
    data = view(row, permissions_of(tx, [row.id])[row.id])
    # What depends on the organization that looks at it is not the role's own.
    data = {name: value for name, value in data.items() if name not in ("is_default", "priority")}
    events.record(
        tx,
        kind,
        realm=row.realm,
        target_type="role",
        target_id=row.id,
        data=data,
        previous=events.changes(before, data) if before else None,
        tags=tags,
    )


def _slug(organization_id: str, slug: str, name: str) -> str:
    if not organization_id:
        slug = slugs.role_slug("slug", slug)
        if slug.startswith(ORGANIZATION_PREFIX):
            raise errors.field_invalid("slug", f"must not start with {ORGANIZATION_PREFIX}")
        return slug
    if not slug:
        kept = "".join(each if each.isascii() and each.isalnum() else "-" for each in name.lower())
        suffix = secrets.token_hex(_SUFFIX_BYTES)
        room = slugs.SLUG_MAX - len(ORGANIZATION_PREFIX) - len(suffix) - 1
        return f"{ORGANIZATION_PREFIX}{kept.strip('-')[:room] or 'role'}-{suffix}"
    slug = slugs.role_slug("slug", slug)
    if not slug.startswith(ORGANIZATION_PREFIX):
        raise errors.field_invalid("slug", f"must start with {ORGANIZATION_PREFIX}")
    return slug


def _check_count(permission_slugs: Sequence[str]) -> None:
    if len(permission_slugs) > limits.ROLE_PERMISSIONS_MAX:
        raise errors.request_too_large(
            "permission_slugs",
            maximum=limits.ROLE_PERMISSIONS_MAX,
            actual=len(permission_slugs),
        )


def _types(tx: Transaction, permission_slugs: Sequence[str]) -> dict[str, str]:
    found = {
        row.slug: row.resource_type_slug
        for row in tx.connection.execute(
            select(Permission.slug, Permission.resource_type_slug).where(
                Permission.slug.in_(permission_slugs)
            )
        )
    }
    for slug in permission_slugs:
        if slug not in found:
            raise permissions.not_found("permission_slug", slug)
    return found


def _judge(tx: Transaction, type_slug: str, permission_slugs: Sequence[str]) -> None:
    """Refuses permissions that do not exist, or that a role of this type may not contain (M7)."""
    types = _types(tx, permission_slugs)
    if not types:
        return
    scope = {type_slug} | resource_types.descendants(tx, type_slug)
    for slug in permission_slugs:
        if types[slug] not in scope:
            raise errors.InvalidArgument(
                "PERMISSION_OUT_OF_SCOPE",
                "a role contains permissions of its own type and of types below it",
                metadata={"permission_slug": slug, "role_type": type_slug},
            )


def _refuse_too_many(tx: Transaction, realm: str) -> None:
    count = tx.connection.execute(
        select(func.count()).select_from(Role).where(Role.realm == realm)
    ).scalar_one()
    name, maximum = (
        ("environment_roles", tx.limits.environment_roles_max)
        if realm == ENVIRONMENT
        else ("organization_roles", tx.limits.organization_roles_max)
    )
    if count >= maximum:
        raise errors.limit_reached(name, maximum=maximum)
