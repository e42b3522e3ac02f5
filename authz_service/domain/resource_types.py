"""Resource types: what a resource is, and below which types it may be placed."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, and_, distinct, func, insert, or_, select
from sqlalchemy import delete as sql_delete
from sqlalchemy.orm import aliased

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
UPDATABLE = ("name", "description", "parent_type_slugs")


# --- the types and what lies below them ----------------------------------------------------------


def parents(snapshot: Snapshot) -> dict[str, set[str]]:
    """Returns every type with its parent types, in one statement: there are a few hundred."""
    found: dict[str, set[str]] = {}
    for slug, parent in snapshot.connection.execute(
        select(ResourceType.slug, ResourceTypeParent.parent_slug).outerjoin(
            ResourceTypeParent, ResourceTypeParent.slug == ResourceType.slug
        )
    ):
        above = found.setdefault(slug, set())
        if parent is not None:
            above.add(parent)
    return found


def descendants(snapshot: Snapshot, slug: str) -> set[str]:
    """Returns the child types of a type, their child types, and so on (M2).

    The type itself is among them only if it names itself as a parent.
    """
    return _below(parents(snapshot), slug)


def _below(parents_of: Mapping[str, Collection[str]], slug: str) -> set[str]:
    found: set[str] = set()
    left = [slug]
    while left:
        parent = left.pop()
        for child, above in parents_of.items():
            if parent in above and child not in found:
                found.add(child)
                left.append(child)
    return found


# --- what callers and events see -----------------------------------------------------------------


def view(row: ResourceType | Row[Any], parent_slugs: Iterable[str]) -> dict[str, Any]:
    """Returns the resource type as callers and events see it."""
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


# --- reads ---------------------------------------------------------------------------------------


def require(snapshot: Snapshot, slug: str) -> None:
    """Refuses a type that does not exist.

    Raises:
        NotFound: RESOURCE_TYPE_NOT_FOUND.
    """
    require_all(snapshot, [slug])


def require_all(snapshot: Snapshot, type_slugs: Sequence[str]) -> None:
    """Refuses the first of these types that does not exist.

    Raises:
        NotFound: RESOURCE_TYPE_NOT_FOUND.
    """
    known = set(
        snapshot.connection.execute(
            select(ResourceType.slug).where(snapshot.dialect.among(ResourceType.slug, type_slugs))
        ).scalars()
    )
    for slug in type_slugs:
        if slug not in known:
            raise not_found("resource_type_slug", slug)


def get(snapshot: Snapshot, slug: str) -> dict[str, Any]:
    """Returns one resource type as callers see it.

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
    """Returns one page of the resource types as callers see them, newest first."""
    statement = select(*ResourceType.__table__.columns)
    rows, after = paging.newest_first(snapshot, statement, ResourceType.id, page)
    above = parents(snapshot)
    return [view(row, above[row.slug]) for row in rows], after


# --- writes --------------------------------------------------------------------------------------


def create(
    tx: Transaction,
    *,
    slug: str,
    name: str,
    description: str = "",
    parent_type_slugs: Sequence[str],
) -> dict[str, Any]:
    """Creates a resource type.

    Args:
        parent_type_slugs: 1 to 10 types; its own may be among them if another one is, too.

    Returns:
        The resource type as callers see it.

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED.
        NotFound: RESOURCE_TYPE_NOT_FOUND (a parent type).
        InvalidArgument: FIELD_REQUIRED, FIELD_INVALID, REQUEST_TOO_LARGE, RESOURCE_TYPE_CYCLE.
        AlreadyExists: SLUG_TAKEN.
        ResourceExhausted: LIMIT_REACHED (resource_types).
    """
    tx.actor.require_unrestricted()
    slug = slugs.type_slug("slug", slug)
    name = slugs.short_name("name", name)
    description = slugs.description("description", description)
    if not parent_type_slugs:
        raise errors.field_required("parent_type_slugs")
    _refuse_many_parents("parent_type_slugs", parent_type_slugs)
    realms.lock(tx, environment=True)
    known = parents(tx)
    _require_parents(slug, parent_type_slugs, known)
    _refuse_cycle(slug, parent_type_slugs, known)
    if slug in known:
        raise errors.AlreadyExists("SLUG_TAKEN", "the slug is in use", metadata={"field": "slug"})
    # The built-in type is nobody's and does not count.
    if len(known) > tx.limits.resource_types_max:
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
    _insert_parents(tx, slug, set(parent_type_slugs))
    seen = view(row, set(parent_type_slugs))
    _record(tx, "resource_type.created", seen)
    return seen


def for_update(tx: Transaction, slug: str) -> ResourceType:
    """Locks the environment and returns the row of a type.

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
    """Applies new values; equal ones change nothing and record no event.

    Args:
        changes: From ``UPDATABLE``; parent types count at once (RS6).

    Returns:
        The resource type as callers see it.

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED.
        NotFound: RESOURCE_TYPE_NOT_FOUND (the type, a parent type).
        InvalidArgument: FIELD_INVALID, REQUEST_TOO_LARGE, RESOURCE_TYPE_CYCLE.
        FailedPrecondition: RESOURCE_TYPE_BUILT_IN, RESOURCE_TYPE_IN_USE.
        Aborted: ETAG_MISMATCH.
    """
    tx.actor.require_unrestricted()
    changes = dict(changes)
    if "name" in changes:
        given = slugs.not_cleared("resource_type.name", changes["name"])
        changes["name"] = slugs.short_name("resource_type.name", given)
    if "description" in changes:
        field = "resource_type.description"
        changes["description"] = slugs.description(field, changes["description"])
    wanted = changes.pop("parent_type_slugs", None)
    if wanted is not None:
        if not wanted:
            raise errors.field_invalid("resource_type.parent_type_slugs", "may not be empty")
        _refuse_many_parents("resource_type.parent_type_slugs", wanted)
    row = for_update(tx, slug)
    known = parents(tx)
    former = present = known[slug]
    if wanted is not None:
        _require_parents(slug, wanted, known)
        _refuse_built_in(row)
    events.check_etag(row, etag)
    before = view(row, former)
    if wanted is not None:
        _refuse_cycle(slug, wanted, known)
        present = set(wanted)
        _refuse_used_parents(tx, slug, known, present)
    for name, value in changes.items():
        setattr(row, name, value)
    if view(row, present) == before:
        return before
    _replace_parents(tx, slug, former, present)
    events.touch(tx, ENVIRONMENT, row)
    after = view(row, present)
    _record(tx, "resource_type.updated", after, before=before)
    return after


def delete(tx: Transaction, slug: str, *, etag: str = "", allow_missing: bool = False) -> None:
    """Deletes a resource type that nothing uses.

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED.
        NotFound: RESOURCE_TYPE_NOT_FOUND, unless ``allow_missing``.
        FailedPrecondition: RESOURCE_TYPE_BUILT_IN, RESOURCE_TYPE_IN_USE.
        Aborted: ETAG_MISMATCH.
    """
    tx.actor.require_unrestricted()
    try:
        row = for_update(tx, slug)
    except errors.NotFound:
        if allow_missing:
            return
        raise
    _refuse_built_in(row)
    events.check_etag(row, etag)
    known = parents(tx)
    _refuse_in_use(
        {
            "resource": _count(tx, select(Resource.id).where(Resource.resource_type_slug == slug)),
            "role": _count(tx, select(Role.id).where(Role.resource_type_slug == slug)),
            "permission": _count(
                tx, select(Permission.id).where(Permission.resource_type_slug == slug)
            ),
            "resource_type": sum(child != slug and slug in above for child, above in known.items()),
        }
    )
    _record(tx, "resource_type.deleted", view(row, known[slug]))
    _replace_parents(tx, slug, known[slug], set())
    tx.session.delete(row)
    tx.session.flush()


# --- rules ---------------------------------------------------------------------------------------


def _refuse_many_parents(field: str, parent_slugs: Sequence[str]) -> None:
    if len(parent_slugs) > limits.TYPE_PARENTS_MAX:
        raise errors.request_too_large(
            field, maximum=limits.TYPE_PARENTS_MAX, actual=len(parent_slugs)
        )


def _require_parents(
    slug: str, parent_slugs: Sequence[str], known: Mapping[str, Collection[str]]
) -> None:
    for parent in parent_slugs:
        # The type itself exists, or is about to.
        if parent not in known and parent != slug:
            raise not_found("parent_type_slug", parent)


def _refuse_cycle(
    slug: str, parent_slugs: Sequence[str], known: Mapping[str, Collection[str]]
) -> None:
    """Refuses parent types that do not lead to organization (M2).

    Every other type leads there already, so this one does through any parent that is not below it.

    Raises:
        InvalidArgument: RESOURCE_TYPE_CYCLE, with the first parent type that leads back.
    """
    below = _below(known, slug) - {slug}
    leading_back = [parent for parent in parent_slugs if parent in below]
    if not leading_back and set(parent_slugs) == {slug}:
        leading_back = [slug]
    if leading_back:
        raise errors.InvalidArgument(
            "RESOURCE_TYPE_CYCLE",
            "following parent types from any type ends at organization",
            metadata={"resource_type": slug, "parent_type": leading_back[0]},
        )


def _refuse_built_in(row: ResourceType) -> None:
    if row.is_built_in:
        raise errors.FailedPrecondition(
            "RESOURCE_TYPE_BUILT_IN", "of the built-in type only name and description change"
        )


def _refuse_used_parents(
    tx: Transaction, slug: str, known: Mapping[str, set[str]], present: set[str]
) -> None:
    """Refuses to take away a parent type that a resource or a role relies on (RS6).

    The environment is held alone, and whoever places a resource or fills a role holds it shared.

    Raises:
        FailedPrecondition: RESOURCE_TYPE_IN_USE.
    """
    removed = known[slug] - present
    if not removed:
        return
    parent = aliased(Resource, name="parent")
    placed = (
        select(Resource.id)
        .join(parent, parent.id == Resource.parent_id)
        .where(Resource.resource_type_slug == slug, parent.resource_type_slug.in_(removed))
    )
    _refuse_in_use(
        {
            "resource": _count(tx, placed),
            "role": _count_roles_out_of_scope(tx, known, {**known, slug: present}),
        }
    )


def _count_roles_out_of_scope(
    tx: Transaction, former: Mapping[str, set[str]], present: Mapping[str, set[str]]
) -> int:
    """Returns how many roles contain a permission that M7 allows under the former parents only."""
    lost: list[ColumnElement[bool]] = []
    for slug in former:
        out_of_scope = _below(former, slug) - _below(present, slug) - {slug}
        if out_of_scope:
            lost.append(
                and_(
                    Role.resource_type_slug == slug,
                    Permission.resource_type_slug.in_(out_of_scope),
                )
            )
    if not lost:
        return 0
    return tx.connection.execute(
        select(func.count(distinct(Role.id)))
        .join(RolePermission, RolePermission.role_id == Role.id)
        .join(Permission, Permission.slug == RolePermission.permission_slug)
        .where(or_(*lost))
    ).scalar_one()


def _refuse_in_use(counts: Mapping[str, int]) -> None:
    if any(counts.values()):
        raise errors.FailedPrecondition(
            "RESOURCE_TYPE_IN_USE",
            "resources, roles, permissions or other types rely on it",
            metadata={kind: count for kind, count in counts.items() if count},
        )


def _count(tx: Transaction, statement: Select[Any]) -> int:
    """Returns how many there are, up to what any total counts: it is only told."""
    counted = statement.limit(tx.limits.total_size_max).subquery()
    return tx.connection.execute(select(func.count()).select_from(counted)).scalar_one()


# --- rows and events -----------------------------------------------------------------------------


def _replace_parents(tx: Transaction, slug: str, former: set[str], present: set[str]) -> None:
    if former - present:
        tx.connection.execute(
            sql_delete(ResourceTypeParent).where(
                ResourceTypeParent.slug == slug,
                ResourceTypeParent.parent_slug.in_(former - present),
            )
        )
    _insert_parents(tx, slug, present - former)


def _insert_parents(tx: Transaction, slug: str, parent_slugs: Collection[str]) -> None:
    if parent_slugs:
        tx.connection.execute(
            insert(ResourceTypeParent),
            [{"slug": slug, "parent_slug": parent} for parent in sorted(parent_slugs)],
        )


def _record(
    tx: Transaction,
    kind: str,
    seen: Mapping[str, Any],
    *,
    before: Mapping[str, Any] | None = None,
) -> None:
    events.record(
        tx,
        kind,
        realm=ENVIRONMENT,
        target_type="resource_type",
        target_id=seen["id"],
        data=seen,
        previous=events.changes(before, seen) if before else None,
        # No fact reads which types there are: they only say what may be written.
        tags=(),
    )
