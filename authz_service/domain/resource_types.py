"""Resource types: what a resource is, and below which types it may be placed."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, delete, func, insert, select

from authz_service.base import errors, ids, slugs
from authz_service.base.clock import to_datetime
from authz_service.base.consistency import ENVIRONMENT
from authz_service.base.pages import Cursor, Page
from authz_service.domain import events
from authz_service.engine import limits
from authz_service.storage import paging, realms
from authz_service.storage.database import Snapshot, Transaction
from authz_service.storage.tables import (
    Permission,
    Resource,
    ResourceType,
    ResourceTypeParent,
    Role,
    RolePermission,
)

ORGANIZATION_TYPE = "organization"


def parents(snapshot: Snapshot) -> dict[str, set[str]]:
    """Returns every type's parent types, in one statement; there are at most a few hundred."""
    found: dict[str, set[str]] = {}
    for slug, parent in snapshot.connection.execute(
        select(ResourceType.slug, ResourceTypeParent.parent_slug).outerjoin(
            ResourceTypeParent, ResourceTypeParent.slug == ResourceType.slug
        )
    ):
        found.setdefault(slug, set())
        if parent is not None:
            found[slug].add(parent)
    return found


def descendants(snapshot: Snapshot, slug: str) -> set[str]:
    """Returns the child types of a type, their child types, and so on (M2)."""
    return below(parents(snapshot), slug)


def below(parents_of: Mapping[str, Collection[str]], slug: str) -> set[str]:
    """Returns the descendants of a type among types whose parents are given."""
    found: set[str] = set()
    left = [slug]
    while left:
        current = left.pop()
        for child, above in parents_of.items():
            if current in above and child not in found:
                found.add(child)
                left.append(child)
    return found


def view(row: ResourceType | Row[Any], parent_slugs: Iterable[str]) -> dict[str, Any]:
    """Returns the type as callers and events see it."""
    return {
        "id": row.id,
        "slug": row.slug,
        "name": row.name,
        "description": row.description,
        "parent_type_slugs": sorted(parent_slugs),
        "is_built_in": row.is_built_in,
        "created_at": to_datetime(row.created_at),
        "updated_at": to_datetime(row.updated_at),
        "etag": events.etag(row),
    }


def not_found(key: str, slug: str) -> errors.NotFound:
    """RESOURCE_TYPE_NOT_FOUND, with the slug as it was given."""
    return errors.NotFound("RESOURCE_TYPE_NOT_FOUND", "no such resource type", metadata={key: slug})


def require(snapshot: Snapshot, slug: str, *, key: str = "resource_type_slug") -> None:
    """Refuses a type that does not exist.

    Raises:
        NotFound: RESOURCE_TYPE_NOT_FOUND.
    """
    found = snapshot.connection.execute(
        select(ResourceType.slug).where(ResourceType.slug == slug)
    ).one_or_none()
    if found is None:
        raise not_found(key, slug)


def require_all(snapshot: Snapshot, type_slugs: Sequence[str]) -> None:
    """Refuses the first of these types that does not exist.

    Raises:
        NotFound: RESOURCE_TYPE_NOT_FOUND.
    """
    known = set(
        snapshot.connection.execute(
            select(ResourceType.slug).where(ResourceType.slug.in_(type_slugs))
        ).scalars()
    )
    for slug in type_slugs:
        if slug not in known:
            raise not_found("resource_type_slug", slug)


def create(
    tx: Transaction,
    *,
    slug: str,
    name: str,
    description: str = "",
    parent_type_slugs: Sequence[str],
) -> dict[str, Any]:
    """Creates a resource type and returns its view.

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED.
        InvalidArgument: FIELD_REQUIRED, FIELD_INVALID, REQUEST_TOO_LARGE, RESOURCE_TYPE_CYCLE.
        AlreadyExists: SLUG_TAKEN.
        NotFound: RESOURCE_TYPE_NOT_FOUND for a parent.
        ResourceExhausted: LIMIT_REACHED (resource_types).
    """
    tx.actor.require_unrestricted()
    slug = slugs.type_slug("slug", slug)
    name = slugs.short_name("name", name)
    description = slugs.description("description", description)
    _check_count(parent_type_slugs, "parent_type_slugs")
    realms.lock(tx, environment=True)
    known = parents(tx)
    if slug in known:
        raise errors.AlreadyExists("SLUG_TAKEN", "the slug is in use", metadata={"field": "slug"})
    above = _judged(slug, parent_type_slugs, known)
    # The built-in type does not count.
    if len(known) - 1 >= tx.limits.resource_types_max:
        raise errors.limit_reached("resource_types", maximum=tx.limits.resource_types_max)
    row = tx.add(
        ResourceType(
            slug=slug,
            id=ids.new(ids.RESOURCE_TYPE),
            name=name,
            description=description,
            is_built_in=False,
            **events.stamp(tx, ENVIRONMENT),
        )
    )
    tx.connection.execute(
        insert(ResourceTypeParent),
        [{"slug": slug, "parent_slug": parent} for parent in sorted(above)],
    )
    made = view(row, above)
    _record(tx, "resource_type.created", row, made)
    return made


def get(snapshot: Snapshot, slug: str) -> dict[str, Any]:
    """Returns one type's view.

    Raises:
        NotFound: RESOURCE_TYPE_NOT_FOUND.
    """
    row = snapshot.connection.execute(
        select(*ResourceType.__table__.columns).where(ResourceType.slug == slug)
    ).one_or_none()
    if row is None:
        raise not_found("resource_type_slug", slug)
    return view(row, parents(snapshot)[slug])


def page(snapshot: Snapshot, *, page: Page) -> tuple[list[dict[str, Any]], Cursor | None]:
    """Returns one page of types, newest first."""
    statement = select(*ResourceType.__table__.columns)
    rows, after = paging.newest_first(snapshot, statement, ResourceType.id, page)
    above = parents(snapshot)
    return [view(row, above[row.slug]) for row in rows], after


def for_update(tx: Transaction, slug: str) -> ResourceType:
    """Locks the environment and returns a type's row.

    Raises:
        NotFound: RESOURCE_TYPE_NOT_FOUND.
    """
    realms.lock(tx, environment=True)
    row = tx.session.get(ResourceType, slug)
    if row is None:
        raise not_found("resource_type_slug", slug)
    return row


def update(
    tx: Transaction, slug: str, changes: Mapping[str, Any], *, etag: str = ""
) -> dict[str, Any]:
    """Applies name, description and parent_type_slugs; returns the view.

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED.
        NotFound: RESOURCE_TYPE_NOT_FOUND.
        InvalidArgument: FIELD_REQUIRED, FIELD_INVALID, REQUEST_TOO_LARGE, RESOURCE_TYPE_CYCLE.
        FailedPrecondition: RESOURCE_TYPE_BUILT_IN, RESOURCE_TYPE_IN_USE.
        Aborted: ETAG_MISMATCH.
    """
    tx.actor.require_unrestricted()
    if "parent_type_slugs" in changes:
        _check_count(changes["parent_type_slugs"], "resource_type.parent_type_slugs")
    row = for_update(tx, slug)
    events.check_etag(row, etag)
    known = parents(tx)
    before = view(row, known[slug])
    above = known[slug]
    if "parent_type_slugs" in changes:
        _refuse_built_in(row)
        above = _judged(slug, changes["parent_type_slugs"], known)
        _refuse_removal(tx, slug, known, above)
    if "name" in changes:
        row.name = slugs.short_name("resource_type.name", changes["name"])
    if "description" in changes:
        row.description = slugs.description("resource_type.description", changes["description"])
    if view(row, above) == before:
        return before
    tx.connection.execute(
        delete(ResourceTypeParent).where(
            ResourceTypeParent.slug == slug,
            ResourceTypeParent.parent_slug.in_(known[slug] - above),
        )
    )
    added = sorted(above - known[slug])
    if added:
        tx.connection.execute(
            insert(ResourceTypeParent), [{"slug": slug, "parent_slug": each} for each in added]
        )
    events.touch(tx, ENVIRONMENT, row)
    after = view(row, above)
    _record(tx, "resource_type.updated", row, after, before)
    return after


def remove(tx: Transaction, slug: str, *, etag: str = "", allow_missing: bool = False) -> None:
    """Deletes a type that nothing uses.

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED.
        NotFound: RESOURCE_TYPE_NOT_FOUND, unless ``allow_missing``.
        FailedPrecondition: RESOURCE_TYPE_BUILT_IN, RESOURCE_TYPE_IN_USE with counts.
        Aborted: ETAG_MISMATCH.
    """
    tx.actor.require_unrestricted()
    try:
        row = for_update(tx, slug)
    except errors.NotFound:
        if allow_missing:
            return
        raise
    events.check_etag(row, etag)
    _refuse_built_in(row)
    known = parents(tx)
    counts = {
        kind: tx.connection.execute(
            select(func.count()).select_from(
                select(table.resource_type_slug)
                .where(table.resource_type_slug == slug)
                .limit(limits.CASCADE_RESOURCES_MAX)
                .subquery()
            )
        ).scalar_one()
        for kind, table in (("resources", Resource), ("roles", Role), ("permissions", Permission))
    }
    counts["resource_types"] = sum(slug in above for child, above in known.items() if child != slug)
    if any(counts.values()):
        raise _in_use(counts)
    _record(tx, "resource_type.deleted", row, view(row, known[slug]))
    tx.connection.execute(delete(ResourceTypeParent).where(ResourceTypeParent.slug == slug))
    tx.session.delete(row)
    tx.session.flush()


def _in_use(counts: Mapping[str, int]) -> errors.FailedPrecondition:
    return errors.FailedPrecondition(
        "RESOURCE_TYPE_IN_USE",
        "the type is in use",
        metadata={kind: count for kind, count in counts.items() if count},
    )


def _refuse_built_in(row: ResourceType) -> None:
    if row.is_built_in:
        raise errors.FailedPrecondition(
            "RESOURCE_TYPE_BUILT_IN", "of the built-in type only name and description change"
        )


def _check_count(parent_slugs: Sequence[str], field: str) -> None:
    if not parent_slugs:
        raise errors.field_required(field)
    if len(parent_slugs) > limits.TYPE_PARENTS_MAX:
        raise errors.request_too_large(
            field, maximum=limits.TYPE_PARENTS_MAX, actual=len(parent_slugs)
        )


def _judged(slug: str, parent_slugs: Sequence[str], known: Mapping[str, set[str]]) -> set[str]:
    """Returns the parents as a set after judging them by M2."""
    above = set(parent_slugs)
    for parent in parent_slugs:
        if parent not in known and parent != slug:
            raise not_found("parent_type_slugs", parent)
    result = {**known, slug: above}
    # A type may name itself if it names another one too, and lies below nothing that lies below it.
    others = above - {slug}
    if not others or not others.isdisjoint(below({**result, slug: others}, slug)):
        raise errors.InvalidArgument(
            "RESOURCE_TYPE_CYCLE",
            "the parent types of every type end at organization",
            metadata={"resource_type": slug, "parent_type": ",".join(sorted(above))},
        )
    return above


def _refuse_removal(
    tx: Transaction, slug: str, known: Mapping[str, set[str]], above: set[str]
) -> None:
    """Refuses to take a parent type away while something relies on it (RS6)."""
    removed = known[slug] - above
    if not removed:
        return
    parent = Resource.__table__.alias("parent")
    child = Resource.__table__.alias("child")
    resources = tx.connection.execute(
        select(func.count()).select_from(
            select(child.c.id)
            .join(parent, parent.c.id == child.c.parent_id)
            .where(child.c.resource_type_slug == slug, parent.c.resource_type_slug.in_(removed))
            .limit(limits.CASCADE_RESOURCES_MAX)
            .subquery()
        )
    ).scalar_one()
    result = {**known, slug: above}
    pairs = tx.connection.execute(
        select(Role.id, Role.resource_type_slug, Permission.resource_type_slug)
        .join(RolePermission, RolePermission.role_id == Role.id)
        .join(Permission, Permission.slug == RolePermission.permission_slug)
        .distinct()
    ).all()
    scopes = {role_type: {role_type} | below(result, role_type) for role_type in result}
    roles = {
        role_id
        for role_id, role_type, permission_type in pairs
        if permission_type not in scopes[role_type]
    }
    if resources or roles:
        raise _in_use({"resources": resources, "roles": len(roles)})


def _record(
    tx: Transaction,
    kind: str,
    row: ResourceType,
    data: Mapping[str, Any],
    before: Mapping[str, Any] | None = None,
) -> None:
    events.record(
        tx,
        kind,
        realm=ENVIRONMENT,
        target_type="resource_type",
        target_id=row.id,
        data=data,
        previous=events.changes(before, data) if before else None,
        # No fact reads types: they only say what may be written.
        tags=(),
    )
