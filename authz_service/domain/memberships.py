"""Memberships: which user belongs to which organization, with which own roles."""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, insert, select
from sqlalchemy import delete as sql_delete

from authz_service.base import errors, ids, slugs
from authz_service.base.clock import to_datetime
from authz_service.base.consistency import ENVIRONMENT
from authz_service.base.pages import PAGE_SIZE_MAX, Cursor, Page
from authz_service.domain import configuration, events, organizations, users
from authz_service.engine import limits, tags
from authz_service.engine.check import subject_not_found
from authz_service.engine.facts import MEMBERSHIP, USER, Subject
from authz_service.storage import members, paging, realms
from authz_service.storage.database import Snapshot, Transaction
from authz_service.storage.tables import Membership, MembershipRole, Organization, Role

PENDING, ACTIVE, INACTIVE = "PENDING", "ACTIVE", "INACTIVE"
DIRECT, DIRECTORY, GROUP = "DIRECT", "DIRECTORY", "GROUP"
_SOURCES = (DIRECT, DIRECTORY, GROUP)


# --- what callers and events see -----------------------------------------------------------------


def views(snapshot: Snapshot, rows: Sequence[Membership | Row[Any]]) -> list[dict[str, Any]]:
    """Returns memberships as callers and events see them, in one statement.

    Args:
        rows: At most a page of a list; they exist, and their own roles are stored.
    """
    if not rows:
        return []
    return _views(rows, members.shown(snapshot, [row.id for row in rows]))


def views_by_id(snapshot: Snapshot, membership_ids: Collection[str]) -> dict[str, dict[str, Any]]:
    """Returns id to membership as callers see it, of those that exist; at most a page of a list."""
    shown = members.shown(snapshot, membership_ids)
    return {seen["id"]: seen for seen in _views(list(shown.people.values()), shown)}


def _views(
    rows: Sequence[Membership | Row[Any] | members.Person], shown: members.Shown
) -> list[dict[str, Any]]:
    orders: dict[str, dict[str, int]] = {}
    for row in rows:
        if row.organization_id not in orders:
            order = configuration.priority_of(shown.orders, row.organization_id)
            orders[row.organization_id] = {id: place for place, id in enumerate(order)}
    return [
        _view(row, shown.people[row.id], shown.roles.get(row.id, {}), orders[row.organization_id])
        for row in rows
    ]


def _view(
    row: Membership | Row[Any] | members.Person,
    person: members.Person,
    held: Mapping[str, members.HeldRole],
    order: Mapping[str, int],
) -> dict[str, Any]:
    roles = sorted(held.values(), key=lambda role: order[role.role_id])
    return {
        "id": row.id,
        "user_id": row.user_id,
        "organization_id": row.organization_id,
        "status": f"MEMBERSHIP_STATUS_{row.status}",
        "roles": [_role(role) for role in roles],
        "role": roles[0].slug if roles else "",
        "user": {
            "id": row.user_id,
            "email": person.email,
            "first_name": person.first_name,
            "last_name": person.last_name,
            "name": person.name,
            "profile_picture_url": person.profile_picture_url,
            "external_id": person.external_id or "",
        },
        "organization_name": person.organization_name,
        "created_at": to_datetime(row.created_at),
        "updated_at": to_datetime(row.updated_at),
        "etag": events.etag(row),
    }


def _role(role: members.HeldRole) -> dict[str, Any]:
    return {
        "role_id": role.role_id,
        "slug": role.slug,
        "sources": role_sources(role),
        "group_ids": sorted(role.group_ids),
    }


def role_sources(role: members.HeldRole) -> list[str]:
    """Returns where a role of a membership comes from, as callers see it."""
    sources = {*role.sources, GROUP} if role.group_ids else role.sources
    return [f"MEMBERSHIP_ROLE_SOURCE_{each}" for each in _SOURCES if each in sources]


# --- the last owner ------------------------------------------------------------------------------


@contextlib.contextmanager
def last_owner_guard(tx: Transaction, organization_ids: Collection[str]) -> Iterator[None]:
    """Refuses what is done inside if it takes the last owner of one of these organizations (LO1).

    Judged on the result, by the owner role and the switch as they were set before. Organizations
    without an owner are not concerned.

    Args:
        organization_ids: All whose memberships change inside; their realms are locked, and the
            environment at least shared.

    Raises:
        FailedPrecondition: LAST_OWNER, with the first such organization by id.
    """
    settings = configuration.current(tx)
    owner_role_id = settings.owner_role_id
    if owner_role_id is None or not settings.last_owner_guard_enabled:
        yield
        return
    owned = _with_owner(tx, organization_ids, owner_role_id)
    yield
    tx.session.flush()
    lost = owned - _with_owner(tx, owned, owner_role_id)
    if lost:
        raise errors.FailedPrecondition(
            "LAST_OWNER",
            "the organization would lose its last owner",
            metadata={"organization_id": min(lost)},
        )


def _with_owner(tx: Transaction, organization_ids: Collection[str], owner_role_id: str) -> set[str]:
    if not organization_ids:
        return set()
    owner = (
        select(MembershipRole.membership_id)
        .join(Membership, Membership.id == MembershipRole.membership_id)
        .where(
            MembershipRole.organization_id == Organization.id,
            MembershipRole.role_id == owner_role_id,
            Membership.status == ACTIVE,
        )
        .exists()
    )
    return set(
        tx.connection.execute(
            select(Organization.id).where(
                tx.dialect.among(Organization.id, organization_ids), owner
            )
        ).scalars()
    )


# --- reads ---------------------------------------------------------------------------------------


def get(
    snapshot: Snapshot, membership_id: str = "", *, user_id: str = "", organization_id: str = ""
) -> Row[Any]:
    """Returns one membership of any status, by its id or by its user and organization.

    Raises:
        NotFound: MEMBERSHIP_NOT_FOUND.
    """
    if membership_id:
        named, subject = Membership.id == membership_id, Subject(MEMBERSHIP, membership_id)
        statement = select(*Membership.__table__.columns).where(named)
    else:
        subject = Subject(USER, user_id, organization_id)
        statement = select(*Membership.__table__.columns).where(
            Membership.user_id == user_id, Membership.organization_id == organization_id
        )
    row = snapshot.connection.execute(statement).one_or_none()
    if row is None or not snapshot.actor.may_see(row.organization_id):
        raise subject_not_found(subject)
    return row


def page(
    snapshot: Snapshot,
    *,
    organization_id: str = "",
    user_id: str = "",
    statuses: Collection[str] = (),
    role_slugs: Collection[str] = (),
    query: str = "",
    include_total: bool = False,
    is_known: bool = False,
    page: Page,
) -> tuple[Sequence[Row[Any]], Cursor | None, int | None]:
    """Returns one page of the memberships of an organization, of a user, or both, newest first.

    Args:
        is_known: The organization exists, and the caller may see it.
        statuses: PENDING, ACTIVE, INACTIVE; none = ACTIVE (MB3).
        role_slugs: Only those with one of these among their own roles; none = all.
        query: Part of the user's address or of a name, whatever the case; empty = all.
        include_total: Count all pages together.

    Returns:
        Rows, the cursor, and the count: None if not wanted or above its limit.

    Raises:
        NotFound: ORGANIZATION_NOT_FOUND, USER_NOT_FOUND.
        InvalidArgument: FIELD_REQUIRED, FIELD_INVALID.
    """
    if not organization_id and not user_id:
        raise errors.field_required("organization_id")
    query = slugs.query("query", query)
    if organization_id and not is_known:
        organizations.require(snapshot, organization_id)
    if user_id:
        users.require(snapshot, user_id)
    wanted = members.Wanted(
        organization_id,
        user_id,
        # Of one user, whatever the organization: a restricted credential sees its own ones.
        within=() if organization_id else snapshot.actor.organization_ids,
        statuses=tuple(dict.fromkeys(statuses)) or (ACTIVE,),
        role_slugs=tuple(dict.fromkeys(role_slugs)),
        query=query,
    )
    before = None if page.after is None else str(page.after[0])
    rows, after = paging.cut(
        members.page(snapshot, wanted, before=before, limit=page.size + 1), page
    )
    total = None
    if include_total:
        maximum = snapshot.limits.total_size_max
        counted = members.count(snapshot, wanted, limit=maximum + 1)
        total = counted if counted <= maximum else None
    return rows, after, total


# --- writes --------------------------------------------------------------------------------------


def create(
    tx: Transaction,
    *,
    user_id: str,
    organization_id: str,
    role_slug: str = "",
    role_slugs: Sequence[str] = (),
) -> dict[str, Any]:
    """Makes a user a member, active at once; an inactive membership becomes active again.

    Args:
        role_slug, role_slugs: The DIRECT roles to hold, in one form or the other; neither = the
            default role (RO3).

    Returns:
        The membership as callers see it.

    Raises:
        NotFound: USER_NOT_FOUND, ORGANIZATION_NOT_FOUND, ROLE_NOT_FOUND.
        AlreadyExists: MEMBERSHIP_EXISTS.
        FailedPrecondition: MULTIPLE_ROLES_DISABLED, MEMBERSHIP_PENDING.
        InvalidArgument: FIELD_INVALID, FIELDS_EXCLUSIVE, REQUEST_TOO_LARGE,
            ROLE_RESOURCE_TYPE_MISMATCH.
        ResourceExhausted: LIMIT_REACHED (membership_roles).
    """
    named = _named_roles(role_slug, role_slugs)
    # The environment, shared, also keeps the user: whoever deletes one holds it alone.
    realms.lock(tx, organization_id, definitions=True)
    users.require(tx, user_id)
    organizations.require(tx, organization_id)
    role_ids = _role_ids(tx, organization_id, named)
    _refuse_several(tx, role_ids)
    if not role_ids:
        role_ids = [configuration.default_role_id(tx, organization_id)]
    row = tx.session.execute(
        select(Membership).where(
            Membership.user_id == user_id, Membership.organization_id == organization_id
        )
    ).scalar_one_or_none()
    if row is None:
        row = tx.add(
            Membership(
                organization_id=organization_id,
                id=ids.new(ids.MEMBERSHIP),
                user_id=user_id,
                status=ACTIVE,
                **events.stamp(tx, organization_id),
            )
        )
        _set_direct_roles(tx, row, role_ids)
        return _record(tx, "organization_membership.created", row)
    _refuse_pending(row)
    if row.status == ACTIVE:
        raise errors.AlreadyExists(
            "MEMBERSHIP_EXISTS",
            "the user is a member of the organization",
            metadata={"organization_membership_id": row.id},
        )
    (before,) = views(tx, [row])
    _set_direct_roles(tx, row, role_ids)
    row.status = ACTIVE
    return _record_changed(tx, "organization_membership.reactivated", row, before)


def for_update(tx: Transaction, membership_id: str, *, definitions: bool = True) -> Membership:
    """Locks the realm of a membership and returns its row.

    Args:
        definitions: The write relies on roles or settings of the environment.

    Raises:
        NotFound: MEMBERSHIP_NOT_FOUND.
    """
    organization_id = get(tx, membership_id).organization_id
    realms.lock(tx, organization_id, definitions=definitions)
    row = tx.session.get(Membership, (organization_id, membership_id))
    if row is None:
        raise subject_not_found(Subject(MEMBERSHIP, membership_id))
    return row


def update(
    tx: Transaction,
    membership_id: str,
    *,
    role_slug: str = "",
    role_slugs: Sequence[str] = (),
    etag: str = "",
) -> dict[str, Any]:
    """Replaces the DIRECT roles of a membership, in any status (RO6); equal ones have no effect.

    Args:
        role_slug, role_slugs: The roles to hold, in exactly one of the two forms.

    Returns:
        The membership as callers see it.

    Raises:
        NotFound: MEMBERSHIP_NOT_FOUND, ROLE_NOT_FOUND.
        FailedPrecondition: MULTIPLE_ROLES_DISABLED, LAST_OWNER.
        InvalidArgument: FIELD_REQUIRED, FIELD_INVALID, FIELDS_EXCLUSIVE, REQUEST_TOO_LARGE,
            ROLE_RESOURCE_TYPE_MISMATCH.
        Aborted: ETAG_MISMATCH.
        ResourceExhausted: LIMIT_REACHED (membership_roles).
    """
    named = _named_roles(role_slug, role_slugs)
    if not named:
        raise errors.field_required("role_slugs")
    row = for_update(tx, membership_id)
    role_ids = _role_ids(tx, row.organization_id, named)
    events.check_etag(row, etag)
    _refuse_several(tx, role_ids)
    (before,) = views(tx, [row])
    with last_owner_guard(tx, [row.organization_id]):
        if not _set_direct_roles(tx, row, role_ids):
            return before
    return _record_changed(tx, "organization_membership.updated", row, before)


def deactivate(tx: Transaction, membership_id: str, *, etag: str = "") -> dict[str, Any]:
    """Ends a member's access and keeps roles, assignments and places in groups.

    Returns:
        The membership as callers see it; an inactive one unchanged.

    Raises:
        NotFound: MEMBERSHIP_NOT_FOUND.
        FailedPrecondition: MEMBERSHIP_PENDING, LAST_OWNER.
        Aborted: ETAG_MISMATCH.
    """
    row = for_update(tx, membership_id)
    events.check_etag(row, etag)
    _refuse_pending(row)
    (before,) = views(tx, [row])
    if row.status == INACTIVE:
        return before
    with last_owner_guard(tx, [row.organization_id]):
        row.status = INACTIVE
    return _record_changed(tx, "organization_membership.deactivated", row, before)


def reactivate(tx: Transaction, membership_id: str, *, etag: str = "") -> dict[str, Any]:
    """Gives an inactive member the access back, with the roles, assignments and groups it has.

    Returns:
        The membership as callers see it; an active one unchanged.

    Raises:
        NotFound: MEMBERSHIP_NOT_FOUND.
        FailedPrecondition: MEMBERSHIP_PENDING.
        Aborted: ETAG_MISMATCH.
    """
    row = for_update(tx, membership_id, definitions=False)
    events.check_etag(row, etag)
    _refuse_pending(row)
    (before,) = views(tx, [row])
    if row.status == ACTIVE:
        return before
    row.status = ACTIVE
    return _record_changed(tx, "organization_membership.reactivated", row, before)


def delete(tx: Transaction, rows: Sequence[Membership | Row[Any]]) -> None:
    """Deletes memberships with their places in groups; ``lifecycles.memberships`` does the rest.

    Args:
        rows: Of locked realms; their role assignments go with them.
    """
    for start in range(0, len(rows), PAGE_SIZE_MAX):
        some = rows[start : start + PAGE_SIZE_MAX]
        for seen in views(tx, some):
            _record_view(tx, "organization_membership.deleted", seen)
        tx.connection.execute(
            sql_delete(Membership).where(tx.dialect.among(Membership.id, [row.id for row in some]))
        )


def _named_roles(role_slug: str, role_slugs: Sequence[str]) -> list[str]:
    """Returns the slugs a request names, each once, in its order.

    Raises:
        InvalidArgument: FIELDS_EXCLUSIVE, REQUEST_TOO_LARGE, FIELD_REQUIRED, FIELD_INVALID.
    """
    if role_slug and role_slugs:
        raise errors.fields_exclusive("role_slug", "role_slugs")
    if role_slug:
        return [slugs.role_slug("role_slug", role_slug)]
    if len(role_slugs) > limits.OWN_ROLES_MAX:
        raise errors.request_too_large(
            "role_slugs", maximum=limits.OWN_ROLES_MAX, actual=len(role_slugs)
        )
    return list(
        dict.fromkeys(
            slugs.role_slug(f"role_slugs[{i}]", slug) for i, slug in enumerate(role_slugs)
        )
    )


def _role_ids(tx: Transaction, organization_id: str, role_slugs: Sequence[str]) -> list[str]:
    """Looks up roles by slug, among those of the environment and of the organization (M8).

    Raises:
        NotFound: ROLE_NOT_FOUND.
        InvalidArgument: ROLE_RESOURCE_TYPE_MISMATCH.
    """
    found = {
        row.slug: row
        for row in tx.connection.execute(
            select(Role.slug, Role.id, Role.resource_type_slug).where(
                Role.realm.in_((ENVIRONMENT, organization_id)), Role.slug.in_(role_slugs)
            )
        )
    }
    for slug in role_slugs:
        if slug not in found:
            raise errors.NotFound("ROLE_NOT_FOUND", "no such role", metadata={"role_slug": slug})
    for slug in role_slugs:
        role_type = found[slug].resource_type_slug
        if role_type != configuration.ORGANIZATION_TYPE:
            raise errors.InvalidArgument(
                "ROLE_RESOURCE_TYPE_MISMATCH",
                "the role belongs to another resource type",
                metadata={
                    "role_slug": slug,
                    "role_type": role_type,
                    "resource_type": configuration.ORGANIZATION_TYPE,
                },
            )
    return [found[slug].id for slug in role_slugs]


def _refuse_several(tx: Transaction, role_ids: Sequence[str]) -> None:
    """Refuses more than one own role where the deployment allows one (RO5).

    Raises:
        FailedPrecondition: MULTIPLE_ROLES_DISABLED.
    """
    if len(role_ids) > 1 and not configuration.current(tx).multiple_roles_enabled:
        raise errors.FailedPrecondition(
            "MULTIPLE_ROLES_DISABLED",
            "a membership holds exactly one role here",
            metadata={"count": len(role_ids)},
        )


def _refuse_pending(row: Membership) -> None:
    if row.status == PENDING:
        raise errors.FailedPrecondition(
            "MEMBERSHIP_PENDING",
            "the user has been invited and has not accepted yet",
            metadata={"organization_membership_id": row.id},
        )


def _set_direct_roles(tx: Transaction, row: Membership, role_ids: Collection[str]) -> bool:
    """Makes the DIRECT roles of a membership these and leaves mapped ones (RO6).

    Returns:
        True if that changed anything.

    Raises:
        ResourceExhausted: LIMIT_REACHED (membership_roles).
    """
    present: dict[str, set[str]] = {DIRECT: set(), DIRECTORY: set()}
    for role_id, source in tx.connection.execute(
        select(MembershipRole.role_id, MembershipRole.source).where(
            MembershipRole.membership_id == row.id
        )
    ):
        present[source].add(role_id)
    if len(present[DIRECTORY].union(role_ids)) > limits.OWN_ROLES_MAX:
        raise errors.limit_reached("membership_roles", maximum=limits.OWN_ROLES_MAX)
    gone = present[DIRECT].difference(role_ids)
    new = [role_id for role_id in role_ids if role_id not in present[DIRECT]]
    if gone:
        tx.connection.execute(
            sql_delete(MembershipRole).where(
                MembershipRole.membership_id == row.id,
                MembershipRole.source == DIRECT,
                MembershipRole.role_id.in_(gone),
            )
        )
    if new:
        tx.connection.execute(
            insert(MembershipRole),
            [
                {
                    "organization_id": row.organization_id,
                    "membership_id": row.id,
                    "role_id": role_id,
                    "source": DIRECT,
                }
                for role_id in new
            ],
        )
    return bool(gone or new)


def _record_changed(
    tx: Transaction, kind: str, row: Membership, before: Mapping[str, Any]
) -> dict[str, Any]:
    events.touch(tx, row.organization_id, row)
    return _record(tx, kind, row, before=before)


def _record(
    tx: Transaction, kind: str, row: Membership, *, before: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    (after,) = views(tx, [row])
    _record_view(tx, kind, after, before=before)
    return after


def _record_view(
    tx: Transaction,
    kind: str,
    seen: Mapping[str, Any],
    *,
    before: Mapping[str, Any] | None = None,
) -> None:
    # Status, own roles and existence are facts of the membership itself (consistency.md 3.2).
    events.record(
        tx,
        kind,
        realm=seen["organization_id"],
        target_type="organization_membership",
        target_id=seen["id"],
        data=seen,
        previous=events.changes(before, seen) if before else None,
        tags=(tags.membership(seen["id"]),),
    )
