"""Roles: named lists of permissions, of the environment or of one organization."""

import re
import secrets
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, Select, func, insert, select, union_all
from sqlalchemy import delete as sql_delete

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
from authz_service.storage import realms
from authz_service.storage.database import Snapshot, Transaction
from authz_service.storage.tables import Configuration, Role, RolePermission

AnyRole = Role | Row[Any]
# Slugs of organization roles start with it, and no environment role's does (M8).
ORGANIZATION_PREFIX = "org-"
UPDATABLE = ("name", "description")
# Random bytes in a made slug: two roles of one name do not meet.
_SUFFIX_BYTES = 4
_NOT_IN_SLUGS = re.compile(r"[^a-z0-9]+")


# --- what callers and events see -----------------------------------------------------------------


def view(row: AnyRole, permission_slugs: Iterable[str]) -> dict[str, Any]:
    """Returns the role as events see it: without what depends on who looks at it."""
    return {
        "id": row.id,
        "organization_id": organization_of(row),
        "kind": f"ROLE_KIND_{'ENVIRONMENT' if row.realm == ENVIRONMENT else 'ORGANIZATION'}",
        "slug": row.slug,
        "name": row.name,
        "description": row.description,
        "resource_type_slug": row.resource_type_slug,
        "permission_slugs": sorted(permission_slugs),
        "created_at": to_datetime(row.created_at),
        "updated_at": to_datetime(row.updated_at),
        "etag": events.etag(row),
    }


def views(
    snapshot: Snapshot,
    rows: Sequence[AnyRole],
    order: configuration.RoleOrder,
) -> list[dict[str, Any]]:
    """Returns roles as callers see them, in one statement for all.

    Args:
        rows: At most a page of a list.
        order: Of the organization that looks at them, or of the deployment.
    """
    contained = permissions_of(snapshot, [row.id for row in rows])
    ranks = {role_id: place for place, role_id in enumerate(order.role_ids, start=1)}
    return [
        {
            **view(row, contained[row.id]),
            "is_default": row.id == order.default_role_id,
            "priority": ranks.get(row.id, 0),
        }
        for row in rows
    ]


def organization_of(row: AnyRole) -> str:
    """Returns the id of a role's organization, empty for an environment role."""
    return "" if row.realm == ENVIRONMENT else row.realm


def permissions_of(snapshot: Snapshot, role_ids: Collection[str]) -> dict[str, set[str]]:
    """Returns the permissions of each of these roles, in one statement."""
    found: dict[str, set[str]] = {role_id: set() for role_id in role_ids}
    for role_id, slug in snapshot.connection.execute(
        select(RolePermission.role_id, RolePermission.permission_slug).where(
            snapshot.dialect.among(RolePermission.role_id, role_ids)
        )
    ):
        found[role_id].add(slug)
    return found


def not_found(**named: str) -> errors.NotFound:
    """ROLE_NOT_FOUND, with the id or key as it was given."""
    return errors.NotFound("ROLE_NOT_FOUND", "no such role", metadata=named)


# --- reads ---------------------------------------------------------------------------------------


def get(
    snapshot: Snapshot, role_id: str = "", *, organization_id: str = "", slug: str = ""
) -> Row[Any]:
    """Returns one role, by its id, or by its slug and where it exists.

    Args:
        organization_id: With a slug: needed for an organization role.

    Raises:
        NotFound: ROLE_NOT_FOUND.
    """
    if not role_id:
        named = {"organization_id": organization_id} if organization_id else {}
        missing = not_found(**named, slug=slug)
        try:
            if organization_id:
                organizations.require(snapshot, organization_id)
            return find(snapshot, organization_id=organization_id, slug=slug)
        except errors.NotFound:
            raise missing from None
    row = snapshot.connection.execute(
        select(*Role.__table__.columns).where(Role.id == role_id)
    ).one_or_none()
    if row is None or not (row.realm == ENVIRONMENT or snapshot.actor.may_see(row.realm)):
        raise not_found(role_id=role_id)
    return row


def find(snapshot: Snapshot, *, organization_id: str, slug: str) -> Row[Any]:
    """Returns the role that a slug names within an organization (M8).

    Args:
        organization_id: One that exists and that the caller may see; empty = environment roles
            alone.

    Raises:
        NotFound: ROLE_NOT_FOUND.
    """
    realm = organization_id if slug.startswith(ORGANIZATION_PREFIX) else ENVIRONMENT
    row = snapshot.connection.execute(
        select(*Role.__table__.columns).where(Role.realm == realm, Role.slug == slug)
    ).one_or_none()
    if row is None:
        raise not_found(role_slug=slug)
    return row


def page(
    snapshot: Snapshot,
    *,
    organization_id: str = "",
    resource_type_slug: str = "",
    include_total: bool = False,
    page: Page,
) -> tuple[list[dict[str, Any]], Cursor | None, int | None]:
    """Returns one page of the environment roles and, with an organization, of its own ones.

    Roles of type organization come first, by priority; then the others, oldest first.

    Args:
        resource_type_slug: Only roles of this type; empty = all.
        include_total: Count all pages together.

    Returns:
        The roles as callers see them, the cursor, and the count: None if not wanted or above its
        limit.

    Raises:
        NotFound: ORGANIZATION_NOT_FOUND.
    """
    order = configuration.role_order(snapshot, organization_id)
    if order is None or (organization_id and not snapshot.actor.may_see(organization_id)):
        raise organizations.not_found("organization_id", organization_id)
    of_organization = resource_type_slug == resource_types.ORGANIZATION_TYPE
    ranked = order.role_ids if of_organization or not resource_type_slug else []
    start, last_other = _place(ranked, page.after)
    # One more than the page holds tells whether there is another one.
    wanted = page.size + 1
    ranked_ids = ranked[start : start + wanted]
    places = {role_id: place for place, role_id in enumerate(ranked_ids)}
    others = (
        select(*Role.__table__.columns)
        .where(
            Role.realm.in_((ENVIRONMENT, organization_id)),
            Role.resource_type_slug != resource_types.ORGANIZATION_TYPE,
        )
        .order_by(Role.id)
    )
    if resource_type_slug:
        others = others.where(Role.resource_type_slug == resource_type_slug)
    following = None
    if len(ranked_ids) < wanted and not of_organization:
        following = others.where(Role.id > last_other).limit(wanted - len(ranked_ids))
    # Ids rise, and no other role has a place.
    rows = sorted(
        _rows(snapshot, ranked_ids, following),
        key=lambda row: (places.get(row.id, len(places)), row.id),
    )
    shown = rows[: page.size]
    after: Cursor | None = None
    if len(rows) > page.size:
        last = shown[-1].id
        after = (start + places[last] + 1, last) if last in places else (0, last)
    total = None
    if include_total:
        count = len(ranked)
        if not of_organization:
            counted = select(func.count()).select_from(others.order_by(None).subquery())
            count += snapshot.connection.execute(counted).scalar_one()
        total = count if count <= snapshot.limits.total_size_max else None
    return views(snapshot, shown, order), after, total


def _place(ranked: Sequence[str], after: Cursor | None) -> tuple[int, str]:
    """Returns where a page goes on: the index among the ranked roles, and the last other role.

    Args:
        after: The rank of the last ranked role of the page before and its id; or 0, and the id of
            the last other role.
    """
    if after is None:
        return 0, ""
    rank, role_id = int(after[0]), str(after[1])
    if not rank:
        return len(ranked), role_id
    if role_id in ranked:
        return ranked.index(role_id) + 1, ""
    # It has been deleted since: what followed it has its rank now.
    return rank - 1, ""


def _rows(
    snapshot: Snapshot, role_ids: Sequence[str], following: Select[Any] | None
) -> Sequence[Row[Any]]:
    """Returns these roles and those of another statement, in one; in no order."""
    named = select(*Role.__table__.columns).where(snapshot.dialect.among(Role.id, role_ids))
    if following is None:
        return snapshot.connection.execute(named).all() if role_ids else ()
    if not role_ids:
        return snapshot.connection.execute(following).all()
    others = select(*following.subquery().columns)
    return snapshot.connection.execute(union_all(named, others)).all()


# --- the role itself -----------------------------------------------------------------------------


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
    """Creates a role with the lowest priority.

    Args:
        organization_id: Empty = an environment role.
        slug: Of an organization role, empty = made from the name.
        resource_type_slug: Empty = organization.
        permission_slugs: At most 500, of its type or of types below it (M7).

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED.
        NotFound: ORGANIZATION_NOT_FOUND, RESOURCE_TYPE_NOT_FOUND, PERMISSION_NOT_FOUND.
        InvalidArgument: FIELD_REQUIRED, FIELD_INVALID, REQUEST_TOO_LARGE, PERMISSION_OUT_OF_SCOPE.
        AlreadyExists: SLUG_TAKEN.
        ResourceExhausted: LIMIT_REACHED (environment_roles, organization_roles).
    """
    if not organization_id:
        tx.actor.require_unrestricted()
    name = slugs.short_name("name", name)
    slug = _own_slug(slug, name) if organization_id else _environment_slug(slug)
    description = slugs.description("description", description)
    _refuse_many(permission_slugs)
    type_slug = resource_type_slug or resource_types.ORGANIZATION_TYPE
    if organization_id:
        realms.lock(tx, organization_id, definitions=True)
        organizations.require(tx, organization_id)
    else:
        realms.lock(tx, environment=True)
    realm = organization_id or ENVIRONMENT
    resource_types.require(tx, type_slug)
    _require_permissions(tx, type_slug, permission_slugs)
    _refuse_taken(tx, realm, slug)
    _refuse_full(tx, realm)
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
    _insert_permissions(tx, row.id, set(permission_slugs))
    if realm == ENVIRONMENT and type_slug == resource_types.ORGANIZATION_TYPE:
        # Orders of organizations need no entry: what they do not name comes last (RO4).
        settings = tx.session.get_one(Configuration, 1)
        settings.role_priority = [*settings.role_priority, row.id]
        events.touch(tx, ENVIRONMENT, settings)
        tx.session.flush()
    # Nobody holds it yet: no fact changes.
    record(tx, "role.created", row, set(permission_slugs), tags=())
    return row


def for_update(tx: Transaction, role_id: str, *, definitions: bool = True) -> Role:
    """Locks the realm of a role and returns its row.

    Args:
        definitions: The write relies on types, permissions, other roles or settings.

    Raises:
        NotFound: ROLE_NOT_FOUND.
        PermissionDenied: ORGANIZATION_RESTRICTED, for an environment role.
    """
    realm = get(tx, role_id).realm
    if realm == ENVIRONMENT:
        tx.actor.require_unrestricted()
        realms.lock(tx, environment=True)
    else:
        realms.lock(tx, realm, definitions=definitions)
    row = tx.session.get(Role, role_id)
    if row is None:
        raise not_found(role_id=role_id)
    return row


def update(tx: Transaction, role_id: str, changes: Mapping[str, Any], *, etag: str = "") -> Role:
    """Applies new values; equal ones change nothing and record no event.

    Args:
        changes: From ``UPDATABLE``.

    Raises:
        NotFound: ROLE_NOT_FOUND.
        PermissionDenied: ORGANIZATION_RESTRICTED.
        InvalidArgument: FIELD_INVALID.
        Aborted: ETAG_MISMATCH.
    """
    changes = dict(changes)
    if "name" in changes:
        given = slugs.not_cleared("role.name", changes["name"])
        changes["name"] = slugs.short_name("role.name", given)
    if "description" in changes:
        changes["description"] = slugs.description("role.description", changes["description"])
    row = for_update(tx, role_id, definitions=False)
    events.check_etag(row, etag)
    contained = permissions_of(tx, [row.id])[row.id]
    before = view(row, contained)
    for name, value in changes.items():
        setattr(row, name, value)
    if view(row, contained) == before:
        return row
    events.touch(tx, row.realm, row)
    # No fact reads names.
    record(tx, "role.updated", row, contained, before=before, tags=())
    return row


# --- its permissions -----------------------------------------------------------------------------


def set_permissions(
    tx: Transaction, role_id: str, permission_slugs: Sequence[str], *, etag: str = ""
) -> Role:
    """Makes the permissions of a role exactly these.

    Raises:
        NotFound: ROLE_NOT_FOUND, PERMISSION_NOT_FOUND.
        PermissionDenied: ORGANIZATION_RESTRICTED.
        InvalidArgument: REQUEST_TOO_LARGE, PERMISSION_OUT_OF_SCOPE.
        Aborted: ETAG_MISMATCH.
    """
    _refuse_many(permission_slugs)
    row = for_update(tx, role_id)
    _require_permissions(tx, row.resource_type_slug, permission_slugs)
    events.check_etag(row, etag)
    former = permissions_of(tx, [row.id])[row.id]
    return _change_permissions(tx, row, former, set(permission_slugs))


def add_permissions(
    tx: Transaction, role_id: str, permission_slugs: Sequence[str], *, etag: str = ""
) -> Role:
    """Adds permissions to a role; those it has are skipped.

    Raises:
        NotFound: ROLE_NOT_FOUND, PERMISSION_NOT_FOUND.
        PermissionDenied: ORGANIZATION_RESTRICTED.
        InvalidArgument: REQUEST_TOO_LARGE, PERMISSION_OUT_OF_SCOPE.
        Aborted: ETAG_MISMATCH.
        ResourceExhausted: LIMIT_REACHED (role_permissions).
    """
    _refuse_many(permission_slugs)
    row = for_update(tx, role_id)
    _require_permissions(tx, row.resource_type_slug, permission_slugs)
    events.check_etag(row, etag)
    former = permissions_of(tx, [row.id])[row.id]
    present = former.union(permission_slugs)
    if len(present) > limits.ROLE_PERMISSIONS_MAX:
        raise errors.limit_reached("role_permissions", maximum=limits.ROLE_PERMISSIONS_MAX)
    return _change_permissions(tx, row, former, present)


def remove_permissions(
    tx: Transaction, role_id: str, permission_slugs: Sequence[str], *, etag: str = ""
) -> Role:
    """Takes permissions out of a role; those it does not have are skipped.

    Raises:
        NotFound: ROLE_NOT_FOUND, PERMISSION_NOT_FOUND.
        PermissionDenied: ORGANIZATION_RESTRICTED.
        InvalidArgument: REQUEST_TOO_LARGE.
        Aborted: ETAG_MISMATCH.
    """
    _refuse_many(permission_slugs)
    row = for_update(tx, role_id)
    permissions.types_of(tx, permission_slugs)
    events.check_etag(row, etag)
    former = permissions_of(tx, [row.id])[row.id]
    return _change_permissions(tx, row, former, former.difference(permission_slugs))


def _change_permissions(tx: Transaction, row: Role, former: set[str], present: set[str]) -> Role:
    if present == former:
        return row
    before = view(row, former)
    gone = former - present
    if gone:
        tx.connection.execute(
            sql_delete(RolePermission).where(
                RolePermission.role_id == row.id,
                tx.dialect.among(RolePermission.permission_slug, gone),
            )
        )
    _insert_permissions(tx, row.id, present - former)
    events.touch(tx, row.realm, row)
    record(tx, "role.permissions_changed", row, present, before=before, tags=(tag_of(row),))
    return row


def _insert_permissions(tx: Transaction, role_id: str, permission_slugs: Collection[str]) -> None:
    if permission_slugs:
        tx.connection.execute(
            insert(RolePermission),
            [{"role_id": role_id, "permission_slug": slug} for slug in sorted(permission_slugs)],
        )


# --- rules ---------------------------------------------------------------------------------------


def _environment_slug(slug: str) -> str:
    slug = slugs.role_slug("slug", slug)
    if slug.startswith(ORGANIZATION_PREFIX):
        raise errors.field_invalid(
            "slug", f"of an environment role, does not start with {ORGANIZATION_PREFIX}"
        )
    return slug


def _own_slug(slug: str, name: str) -> str:
    if not slug:
        return _made_slug(name)
    slug = slugs.role_slug("slug", slug)
    if not slug.startswith(ORGANIZATION_PREFIX):
        raise errors.field_invalid(
            "slug", f"of an organization role, starts with {ORGANIZATION_PREFIX}"
        )
    return slug


def _made_slug(name: str) -> str:
    """Returns a slug that shows what a name has of letters and digits, and ends at random."""
    suffix = secrets.token_hex(_SUFFIX_BYTES)
    plain = unicodedata.normalize("NFKD", name.lower()).encode("ascii", "ignore").decode()
    words = _NOT_IN_SLUGS.sub("-", plain)[: slugs.SLUG_MAX - len(ORGANIZATION_PREFIX + suffix) - 1]
    shown = words.strip("-")
    return f"{ORGANIZATION_PREFIX}{shown}-{suffix}" if shown else f"{ORGANIZATION_PREFIX}{suffix}"


def _refuse_many(permission_slugs: Sequence[str]) -> None:
    if len(permission_slugs) > limits.ROLE_PERMISSIONS_MAX:
        raise errors.request_too_large(
            "permission_slugs",
            maximum=limits.ROLE_PERMISSIONS_MAX,
            actual=len(permission_slugs),
        )


def _require_permissions(tx: Transaction, type_slug: str, permission_slugs: Sequence[str]) -> None:
    """Refuses permissions that do not exist, or that a role of this type may not contain (M7).

    Raises:
        NotFound: PERMISSION_NOT_FOUND.
        InvalidArgument: PERMISSION_OUT_OF_SCOPE.
    """
    if not permission_slugs:
        return
    types = permissions.types_of(tx, permission_slugs)
    scope = {type_slug} | resource_types.descendants(tx, type_slug)
    for slug in permission_slugs:
        if types[slug] not in scope:
            raise errors.InvalidArgument(
                "PERMISSION_OUT_OF_SCOPE",
                "a role contains permissions of its own type and of types below it",
                metadata={"permission_slug": slug, "role_type": type_slug},
            )


def _refuse_taken(tx: Transaction, realm: str, slug: str) -> None:
    taken = tx.connection.execute(
        select(Role.id).where(Role.realm == realm, Role.slug == slug)
    ).one_or_none()
    if taken is not None:
        raise errors.AlreadyExists("SLUG_TAKEN", "the slug is in use", metadata={"field": "slug"})


def _refuse_full(tx: Transaction, realm: str) -> None:
    limit, maximum = (
        ("environment_roles", tx.limits.environment_roles_max)
        if realm == ENVIRONMENT
        else ("organization_roles", tx.limits.organization_roles_max)
    )
    present = tx.connection.execute(
        select(func.count()).select_from(Role).where(Role.realm == realm)
    ).scalar_one()
    if present >= maximum:
        raise errors.limit_reached(limit, maximum=maximum)


# --- events --------------------------------------------------------------------------------------


def tag_of(row: AnyRole) -> str:
    """Returns the tag, of the role's realm, that a change of its permissions or its end marks."""
    return tags.ENVIRONMENT_DEFINITIONS if row.realm == ENVIRONMENT else tags.ORGANIZATION_ROLES


def record(
    tx: Transaction,
    kind: str,
    row: Role,
    permission_slugs: Iterable[str],
    *,
    tags: tuple[str, ...],
    before: Mapping[str, Any] | None = None,
) -> None:
    """Records an event about a role, in its realm."""
    seen = view(row, permission_slugs)
    events.record(
        tx,
        kind,
        realm=row.realm,
        target_type="role",
        target_id=row.id,
        data=seen,
        previous=events.changes(before, seen) if before else None,
        tags=tags,
    )
