"""Resources: registered things of one organization, in one tree below its root.

``depth``, ``path``, the closure table and the counts are written here alone: ``_place`` for a new
resource, ``_transplant`` for a subtree that moves, ``remove`` for one that goes.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, func, insert, literal, select, tuple_
from sqlalchemy import delete as sql_delete
from sqlalchemy import update as sql_update
from sqlalchemy.orm import aliased

from authz_service.base import errors, ids, slugs
from authz_service.base.clock import to_datetime
from authz_service.base.pages import Cursor, Page
from authz_service.domain import configuration, events, organizations, resource_types
from authz_service.engine import tags
from authz_service.engine.check import resource_not_found
from authz_service.engine.facts import ResourceRef
from authz_service.storage import below, paging, realms
from authz_service.storage.database import Snapshot, Transaction
from authz_service.storage.tables import (
    Organization,
    Resource,
    ResourceAncestor,
    ResourceCount,
)

ORGANIZATION_TYPE = "organization"
UPDATABLE = ("name", "description")


def view(row: Resource | Row[Any]) -> dict[str, Any]:
    """Returns the resource as callers and events see it."""
    return {
        "id": row.id,
        "organization_id": row.organization_id,
        "resource_type_slug": row.resource_type_slug,
        "external_id": row.external_id,
        "name": row.name,
        "description": row.description,
        "parent_resource_id": row.parent_id or "",
        "depth": row.depth,
        "created_at": to_datetime(row.created_at),
        "updated_at": to_datetime(row.updated_at),
        "etag": events.etag(row),
    }


def create_root(tx: Transaction, organization: Organization) -> Resource:
    """Creates the organization resource, the root of the tree (product.md M3)."""
    row = Resource(
        organization_id=organization.id,
        id=organization.root_resource_id,
        resource_type_slug=ORGANIZATION_TYPE,
        external_id=organization.id,
        name=organization.name,
        description="",
        **events.stamp(tx, organization.id),
    )
    _place(tx, row, None)
    _record(tx, "resource.created", row, tags=())
    return row


def rename_root(tx: Transaction, organization: Organization) -> None:
    """Gives the organization resource its organization's new name."""
    row = tx.session.get_one(Resource, (organization.id, organization.root_resource_id))
    before = view(row)
    row.name = organization.name
    events.touch(tx, organization.id, row)
    _record(tx, "resource.updated", row, before=before, tags=())


def find(snapshot: Snapshot, ref: ResourceRef, *, organization_id: str = "") -> Row[Any]:
    """Returns the resource that a request names, by id or by key.

    Args:
        organization_id: Resources of other organizations do not exist (product.md C17); empty =
            whatever the caller may see.

    Raises:
        NotFound: RESOURCE_NOT_FOUND, with the id or key as it was given.
    """
    row = snapshot.connection.execute(
        select(*Resource.__table__.columns).where(*_named(ref))
    ).one_or_none()
    if (
        row is None
        or not snapshot.actor.may_see(row.organization_id)
        or organization_id not in ("", row.organization_id)
    ):
        raise resource_not_found(ref)
    return row


def create(
    tx: Transaction,
    *,
    organization_id: str,
    resource_type_slug: str,
    external_id: str,
    name: str,
    description: str = "",
    parent: ResourceRef | None = None,
) -> Resource:
    """Registers a resource.

    Args:
        parent: None = the organization resource.

    Raises:
        NotFound: ORGANIZATION_NOT_FOUND, RESOURCE_TYPE_NOT_FOUND, RESOURCE_NOT_FOUND (the parent).
        FailedPrecondition: ORGANIZATION_RESOURCE_IMMUTABLE, RESOURCE_DEPTH_EXCEEDED.
        InvalidArgument: FIELD_REQUIRED, FIELD_INVALID, RESOURCE_PARENT_REQUIRED,
            RESOURCE_PARENT_TYPE_NOT_ALLOWED.
        AlreadyExists: EXTERNAL_ID_TAKEN.
        ResourceExhausted: LIMIT_REACHED (resources).
    """
    external_id = slugs.external_id("external_id", external_id)
    name = slugs.display_name("name", name)
    description = slugs.description("description", description)
    parent_types = _begin(tx, organization_id, resource_type_slug)
    above = find(tx, parent, organization_id=organization_id) if parent else None
    key = ResourceRef("", organization_id, resource_type_slug, external_id)
    return _create(tx, key, name, description, above, parent_types)


def upsert(
    tx: Transaction,
    *,
    organization_id: str,
    resource_type_slug: str,
    external_id: str,
    name: str,
    description: str | None = None,
    parent: ResourceRef | None = None,
) -> tuple[Resource, bool]:
    """Creates a resource, or brings the present one to the given values (product.md RS3).

    Args:
        description: None keeps the present one.
        parent: None keeps the present one; at creation it means the organization resource.

    Returns:
        The resource, and whether this call created it.

    Raises:
        Refusal: Those of ``create`` but EXTERNAL_ID_TAKEN, and those of ``move``.
    """
    external_id = slugs.external_id("external_id", external_id)
    name = slugs.display_name("name", name)
    if description is not None:
        description = slugs.description("description", description)
    parent_types = _begin(tx, organization_id, resource_type_slug)
    above = find(tx, parent, organization_id=organization_id) if parent else None
    key = ResourceRef("", organization_id, resource_type_slug, external_id)
    row = tx.session.scalars(select(Resource).where(*_named(key))).one_or_none()
    if row is None:
        return _create(tx, key, name, description or "", above, parent_types), True
    before = view(row)
    moves = above is not None and above.id != row.parent_id
    if moves:
        assert above is not None
        _move(tx, row, above, parent_types)
    row.name = name
    if description is not None:
        row.description = description
    _record_change(tx, row, before, moves=moves)
    return row, False


def update(
    tx: Transaction, ref: ResourceRef, changes: Mapping[str, Any], *, etag: str = ""
) -> Resource:
    """Applies new values; equal ones change nothing and record no event.

    Args:
        changes: From ``UPDATABLE``.

    Raises:
        NotFound: RESOURCE_NOT_FOUND.
        FailedPrecondition: ORGANIZATION_RESOURCE_IMMUTABLE.
        InvalidArgument: FIELD_INVALID.
        Aborted: ETAG_MISMATCH.
    """
    changes = dict(changes)
    if "name" in changes:
        changes["name"] = slugs.display_name("name", slugs.not_cleared("name", changes["name"]))
    if "description" in changes:
        changes["description"] = slugs.description("description", changes["description"])
    row = for_update(tx, ref)
    refuse_root(row.resource_type_slug)
    events.check_etag(row, etag)
    before = view(row)
    for name, value in changes.items():
        setattr(row, name, value)
    _record_change(tx, row, before, moves=False)
    return row


def move(tx: Transaction, ref: ResourceRef, *, parent: ResourceRef, etag: str = "") -> Resource:
    """Puts a resource and all below it under another parent (product.md RS4).

    Raises:
        NotFound: RESOURCE_NOT_FOUND (the resource, the parent).
        FailedPrecondition: ORGANIZATION_RESOURCE_IMMUTABLE, RESOURCE_CYCLE,
            RESOURCE_DEPTH_EXCEEDED.
        InvalidArgument: RESOURCE_PARENT_TYPE_NOT_ALLOWED.
        Aborted: ETAG_MISMATCH.
    """
    row = for_update(tx, ref, definitions=True)
    above = find(tx, parent, organization_id=row.organization_id)
    refuse_root(row.resource_type_slug)
    events.check_etag(row, etag)
    if above.id == row.parent_id:
        return row
    before = view(row)
    _move(tx, row, above, _parent_types(tx, row.resource_type_slug))
    _record_change(tx, row, before, moves=True)
    return row


def for_update(tx: Transaction, ref: ResourceRef, *, definitions: bool = False) -> Resource:
    """Locks the realm of a resource and returns its row.

    Args:
        definitions: The change relies on types and settings.

    Raises:
        NotFound: RESOURCE_NOT_FOUND.
    """
    realms.lock(tx, find(tx, ref).organization_id, definitions=definitions)
    # Read again: until now another writer may have deleted it, or given its key to another one.
    row = tx.session.scalars(select(Resource).where(*_named(ref))).one_or_none()
    if row is None:
        raise resource_not_found(ref)
    return row


def refuse_root(resource_type_slug: str) -> None:
    """Refuses what cannot be done to an organization resource (product.md M3).

    Raises:
        FailedPrecondition: ORGANIZATION_RESOURCE_IMMUTABLE.
    """
    if resource_type_slug == ORGANIZATION_TYPE:
        raise errors.FailedPrecondition(
            "ORGANIZATION_RESOURCE_IMMUTABLE",
            "the organization resource comes, changes and goes with its organization only",
        )


def subtree(tx: Transaction, row: Resource, *, limit: int) -> Sequence[Row[Any]]:
    """Returns a resource and all below it, nearest first, at most ``limit`` of them."""
    return tx.connection.execute(
        select(*Resource.__table__.columns)
        .where(Resource.id.in_(ids_below(row.id).limit(limit)))
        .order_by(Resource.depth, Resource.id)
    ).all()


def ids_below(resource_id: str) -> Select[Any]:
    """Returns the SELECT of the ids of a resource and of all below it."""
    # Under a name of its own, for it also stands in statements about the closure table itself.
    inside = aliased(ResourceAncestor, name="inside")
    return select(inside.resource_id).where(inside.ancestor_id == resource_id)


def count_children(tx: Transaction, row: Resource) -> int:
    """Returns how many resources lie directly below."""
    return tx.connection.execute(
        select(func.count()).select_from(Resource).where(Resource.parent_id == row.id)
    ).scalar_one()


def remove(tx: Transaction, rows: Sequence[Row[Any]]) -> None:
    """Deletes a whole subtree and records an event for each, the first of ``rows`` first.

    Args:
        rows: As ``subtree`` returns them; role assignments on them are gone already.
    """
    root = rows[0]
    inside = ids_below(root.id)
    # One statement: a row may go before its parent within it. The closure's rows follow.
    tx.connection.execute(sql_delete(Resource).where(Resource.id.in_(inside)))
    for slug, count in Counter(row.resource_type_slug for row in rows).items():
        _count(tx, root.organization_id, slug, -count)
    tx.session.expunge_all()
    for row in rows:
        # What lies below a deleted resource has its tag in every fact about it.
        marked = (tags.resource(row.id),) if row.id == root.id else ()
        _record(tx, "resource.deleted", row, tags=marked)


def page(
    snapshot: Snapshot,
    *,
    organization_id: str,
    resource_type_slug: str = "",
    parent: ResourceRef | None = None,
    children_only: bool = False,
    query: str = "",
    page: Page,
) -> tuple[Sequence[Row[Any]], Cursor | None]:
    """Returns one page of an organization's resources as stored, newest first.

    Args:
        resource_type_slug: Empty = all types.
        parent: Only what is strictly below; None = all, the organization resource included.
        children_only: Only what is directly below the parent, or the organization resource.
        query: Case-insensitive part of the name; empty = all.

    Raises:
        NotFound: ORGANIZATION_NOT_FOUND, RESOURCE_TYPE_NOT_FOUND, RESOURCE_NOT_FOUND (the parent).
        InvalidArgument: FIELD_INVALID.
    """
    query = slugs.query("query", query)
    organizations.require(snapshot, organization_id)
    if resource_type_slug:
        resource_types.require(snapshot, resource_type_slug)
    root = ResourceRef("", organization_id, ORGANIZATION_TYPE, organization_id)
    above = find(snapshot, parent or root, organization_id=organization_id)
    rows = below.resources_page(
        snapshot,
        organization_id=organization_id,
        parent_id=above.id,
        type_slug=resource_type_slug,
        is_root=above.parent_id is None,
        with_parent=parent is None and not children_only,
        children_only=children_only,
        query=query,
        before=None if page.after is None else str(page.after[0]),
        limit=page.size + 1,
    )
    return paging.cut(rows, page)


def _named(ref: ResourceRef) -> tuple[ColumnElement[bool], ...]:
    if ref.id:
        return (Resource.id == ref.id,)
    return (
        Resource.organization_id == ref.organization_id,
        Resource.resource_type_slug == ref.resource_type_slug,
        Resource.external_id == ref.external_id,
    )


def _begin(tx: Transaction, organization_id: str, resource_type_slug: str) -> Collection[str]:
    """Locks for a resource that may be new and returns the types it may be placed below."""
    realms.lock(tx, organization_id, definitions=True)
    organizations.require(tx, organization_id)
    parent_types = _parent_types(tx, resource_type_slug)
    refuse_root(resource_type_slug)
    return parent_types


def _parent_types(snapshot: Snapshot, slug: str) -> Collection[str]:
    """Returns the slugs of the types below which resources of a type may be placed.

    Raises:
        NotFound: RESOURCE_TYPE_NOT_FOUND.
    """
    parent_types = resource_types.parents(snapshot).get(slug)
    if parent_types is None:
        raise resource_types.not_found("resource_type_slug", slug)
    return parent_types


def _create(
    tx: Transaction,
    key: ResourceRef,
    name: str,
    description: str,
    above: Row[Any] | None,
    parent_types: Collection[str],
) -> Resource:
    if above is None:
        if ORGANIZATION_TYPE not in parent_types:
            raise errors.InvalidArgument(
                "RESOURCE_PARENT_REQUIRED",
                "resources of this type are not placed directly below the organization",
                metadata={
                    "resource_type": key.resource_type_slug,
                    "parent_type": ORGANIZATION_TYPE,
                },
            )
        root = ResourceRef("", key.organization_id, ORGANIZATION_TYPE, key.organization_id)
        above = find(tx, root)
    _require_type(key.resource_type_slug, parent_types, above)
    _require_depth(tx, above.depth + 1)
    taken = tx.connection.execute(select(Resource.id).where(*_named(key))).one_or_none()
    if taken is not None:
        raise errors.AlreadyExists(
            "EXTERNAL_ID_TAKEN", "the external id is in use", metadata={"field": "external_id"}
        )
    _count(tx, key.organization_id, key.resource_type_slug, 1)
    row = Resource(
        organization_id=key.organization_id,
        id=ids.new(ids.RESOURCE),
        resource_type_slug=key.resource_type_slug,
        external_id=key.external_id,
        name=name,
        description=description,
        **events.stamp(tx, key.organization_id),
    )
    _place(tx, row, above)
    # Unknown resources are never cached, so no fact changes.
    _record(tx, "resource.created", row, tags=())
    return row


def _require_type(slug: str, parent_types: Collection[str], above: Row[Any]) -> None:
    if above.resource_type_slug not in parent_types:
        raise errors.InvalidArgument(
            "RESOURCE_PARENT_TYPE_NOT_ALLOWED",
            "resources of this type may not be placed below one of that type",
            metadata={"resource_type": slug, "parent_type": above.resource_type_slug},
        )


def _require_depth(tx: Transaction, depth: int) -> None:
    maximum = configuration.current(tx).resource_depth_max
    if depth > maximum:
        raise errors.FailedPrecondition(
            "RESOURCE_DEPTH_EXCEEDED",
            f"it would lie {depth} levels below the organization, at most {maximum} are allowed",
            metadata={"maximum": maximum, "actual": depth},
        )


def _count(tx: Transaction, organization_id: str, slug: str, change: int) -> None:
    """Keeps the number of resources of a type up to date, within its limit.

    Raises:
        ResourceExhausted: LIMIT_REACHED (resources).
    """
    counted = tx.session.get(ResourceCount, (organization_id, slug))
    if counted is None:
        counted = ResourceCount(organization_id=organization_id, resource_type_slug=slug, count=0)
        tx.session.add(counted)
    if change > 0 and counted.count + change > tx.limits.resources_max:
        raise errors.limit_reached("resources", maximum=tx.limits.resources_max)
    counted.count += change
    tx.session.flush()


def _place(tx: Transaction, row: Resource, above: Row[Any] | None) -> None:
    """Inserts a new resource at its place in the tree."""
    row.parent_id = above.id if above else None
    row.depth = above.depth + 1 if above else 0
    row.path = f"{above.path}/{row.id}" if above else row.id
    tx.add(row)
    tx.connection.execute(
        insert(ResourceAncestor),
        [
            {
                "organization_id": row.organization_id,
                "ancestor_id": ancestor_id,
                "resource_type_slug": row.resource_type_slug,
                "resource_id": row.id,
            }
            for ancestor_id in row.path.split("/")
        ],
    )


def _move(tx: Transaction, row: Resource, above: Row[Any], parent_types: Collection[str]) -> None:
    """Moves a subtree after all checks.

    Raises:
        FailedPrecondition: RESOURCE_CYCLE, RESOURCE_DEPTH_EXCEEDED.
        InvalidArgument: RESOURCE_PARENT_TYPE_NOT_ALLOWED.
    """
    _require_type(row.resource_type_slug, parent_types, above)
    if row.id in above.path.split("/"):
        raise errors.FailedPrecondition(
            "RESOURCE_CYCLE", "the new parent is the resource itself or lies below it"
        )
    inside = ids_below(row.id)
    deepest = tx.connection.execute(
        select(func.max(Resource.depth)).where(Resource.id.in_(inside))
    ).scalar_one()
    _require_depth(tx, above.depth + 1 + deepest - row.depth)
    _transplant(tx, row, above)


def _transplant(tx: Transaction, row: Resource, above: Row[Any]) -> None:
    """Rewrites parent, depth, path and closure of a subtree, in one statement each."""
    inside = ids_below(row.id)
    former = row.path.split("/")[:-1]
    present = above.path.split("/")
    # Ancestors that stay keep their rows: a move to a neighbour rewrites little.
    lost = [ancestor_id for ancestor_id in former if ancestor_id not in present]
    won = [ancestor_id for ancestor_id in present if ancestor_id not in former]
    # The offset keeps PostgreSQL from guessing how few rows it may be and comparing each with each.
    tx.connection.execute(
        sql_delete(ResourceAncestor).where(
            tuple_(*_CLOSURE).in_(_closure_rows(tx, row, lost).offset(0))
        )
    )
    tx.connection.execute(
        insert(ResourceAncestor).from_select(
            [column.key for column in _CLOSURE], _closure_rows(tx, row, won)
        )
    )
    former_length, deeper = len(row.path), above.depth + 1 - row.depth
    row.parent_id = above.id
    row.depth += deeper
    row.path = f"{above.path}/{row.id}"
    tx.session.flush()
    tx.connection.execute(
        sql_update(Resource)
        .where(Resource.id.in_(inside), Resource.id != row.id)
        .values(
            depth=Resource.depth + deeper,
            path=literal(row.path) + func.substr(Resource.path, former_length + 1),
        )
    )


_CLOSURE = (
    ResourceAncestor.organization_id,
    ResourceAncestor.ancestor_id,
    ResourceAncestor.resource_type_slug,
    ResourceAncestor.resource_id,
)


def _closure_rows(tx: Transaction, row: Resource, ancestor_ids: Collection[str]) -> Select[Any]:
    """Returns the SELECT of the closure's rows between some ancestors and a whole subtree."""
    moved = aliased(ResourceAncestor, name="moved")
    columns: list[Any] = [
        moved.organization_id,
        Resource.id,
        moved.resource_type_slug,
        moved.resource_id,
    ]
    return (
        select(*columns)
        .join(moved, moved.organization_id == Resource.organization_id)
        .where(tx.dialect.among(Resource.id, ancestor_ids), moved.ancestor_id == row.id)
    )


def _record_change(tx: Transaction, row: Resource, before: dict[str, Any], *, moves: bool) -> None:
    """Records what became of a resource: a move with all other changes, an update, or nothing."""
    if view(row) == before:
        return
    events.touch(tx, row.organization_id, row)
    if moves:
        _record(tx, "resource.moved", row, before=before, tags=(tags.resource(row.id),))
    else:
        # No fact reads names.
        _record(tx, "resource.updated", row, before=before, tags=())


def _record(
    tx: Transaction,
    kind: str,
    row: Resource | Row[Any],
    *,
    tags: tuple[str, ...],
    before: dict[str, Any] | None = None,
) -> None:
    after = view(row)
    events.record(
        tx,
        kind,
        realm=row.organization_id,
        target_type="resource",
        target_id=row.id,
        data=after,
        previous=events.changes(before, after) if before else None,
        tags=tags,
    )
