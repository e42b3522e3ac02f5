"""What a deleted role hands over to its replacement (product.md RO7)."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, exists, func, or_, select
from sqlalchemy import delete as sql_delete
from sqlalchemy import update as sql_update
from sqlalchemy.orm import aliased

from authz_service.base import errors, slugs
from authz_service.base.consistency import ENVIRONMENT
from authz_service.domain import configuration, events, memberships, role_assignments, roles
from authz_service.domain.lifecycles import own_roles
from authz_service.engine import limits
from authz_service.storage import realms
from authz_service.storage.database import Transaction
from authz_service.storage.tables import (
    Configuration,
    MembershipRole,
    OrganizationConfiguration,
    Role,
    RoleAssignment,
)


def delete(
    tx: Transaction,
    role_id: str,
    *,
    replacement_role_slug: str = "",
    etag: str = "",
    allow_missing: bool = False,
) -> dict[str, int]:
    """Deletes a role; whoever holds it holds the replacement afterwards, where one is named.

    Returns:
        How many uses went over to the replacement, by kind; kinds without any are left out.

    Raises:
        NotFound: ROLE_NOT_FOUND, unless ``allow_missing``.
        PermissionDenied: ORGANIZATION_RESTRICTED.
        InvalidArgument: FIELD_INVALID, REPLACEMENT_ROLE_INVALID.
        FailedPrecondition: ROLE_IS_DEFAULT, ROLE_IN_USE, LAST_OWNER.
        Aborted: ETAG_MISMATCH.
        ResourceExhausted: LIMIT_REACHED (replaced_uses).
    """
    if replacement_role_slug:
        slugs.role_slug("replacement_role_slug", replacement_role_slug)
    try:
        row = roles.for_update(tx, role_id)
    except errors.NotFound:
        if allow_missing:
            return {}
        raise
    events.check_etag(row, etag)
    # No replacement helps a default role, so a wrong one is not what is wrong.
    _refuse_default(tx, row)
    replacement = _replacement(tx, row, replacement_role_slug)
    if row.realm == ENVIRONMENT:
        # Held alone, so that nobody gives the role to anybody: no organization joins these.
        realms.lock(tx, *_organizations_with(tx, row.id), environment=True)
    counts = _count_uses(tx, row.id)
    if counts and replacement is None:
        raise errors.FailedPrecondition(
            "ROLE_IN_USE", "the role is in use; name a replacement", metadata=counts
        )
    if sum(counts.values()) > limits.REPLACED_USES_MAX:
        raise errors.limit_reached("replaced_uses", maximum=limits.REPLACED_USES_MAX)
    holders = _holders(tx, row.id)
    with memberships.last_owner_guard(tx, {holder.organization_id for holder in holders}):
        _forget(tx, row)
        # Its tag is in every fact about grants that the role or its replacement is part of.
        contained = roles.permissions_of(tx, [row.id])[row.id]
        roles.record(tx, "role.deleted", row, contained, tags=(roles.tag_of(row),))
        if replacement is not None:
            _hand_over(tx, row, replacement, [holder.membership_id for holder in holders])
    # Ended assignments, and those that were merged, go with the role.
    tx.connection.execute(sql_delete(RoleAssignment).where(RoleAssignment.role_id == row.id))
    tx.session.delete(row)
    tx.session.flush()
    return counts


def _replacement(tx: Transaction, row: Role, slug: str) -> Row[Any] | None:
    """Returns the role that takes over, None if none is named.

    Raises:
        InvalidArgument: REPLACEMENT_ROLE_INVALID.
    """
    if not slug:
        return None
    try:
        found = roles.find(tx, organization_id=roles.organization_of(row), slug=slug)
    except errors.NotFound:
        raise _invalid(slug, "an environment role, or one of the same organization") from None
    if found.id == row.id:
        raise _invalid(slug, "another role than the deleted one")
    if found.resource_type_slug != row.resource_type_slug:
        raise _invalid(slug, f"of type {row.resource_type_slug}")
    return found


def _invalid(slug: str, rule: str) -> errors.InvalidArgument:
    return errors.InvalidArgument(
        "REPLACEMENT_ROLE_INVALID",
        f"the replacement must be {rule}",
        metadata={"replacement_role_slug": slug, "rule": rule},
        fields=[("replacement_role_slug", rule)],
    )


def _refuse_default(tx: Transaction, row: Role) -> None:
    named = exists().where(OrganizationConfiguration.default_role_id == row.id)
    if (
        configuration.current(tx).default_role_id == row.id
        or tx.connection.execute(select(named)).scalar_one()
    ):
        raise errors.FailedPrecondition(
            "ROLE_IS_DEFAULT", "the role is the default of the deployment or of an organization"
        )


# --- uses ----------------------------------------------------------------------------------------


def _organizations_with(tx: Transaction, role_id: str) -> set[str]:
    """Returns the organizations with a use of the role, ended ones too: such can be revived."""
    own = select(MembershipRole.organization_id).where(MembershipRole.role_id == role_id)
    assigned = select(RoleAssignment.organization_id).where(RoleAssignment.role_id == role_id)
    return set(tx.connection.execute(own.union(assigned)).scalars())


def _count_uses(tx: Transaction, role_id: str) -> dict[str, int]:
    holders = func.count(MembershipRole.membership_id.distinct())
    counts = {
        "organization_membership": tx.connection.execute(
            select(holders).where(MembershipRole.role_id == role_id)
        ).scalar_one(),
        "role_assignment": tx.connection.execute(
            select(func.count()).where(RoleAssignment.role_id == role_id, _unexpired(tx))
        ).scalar_one(),
    }
    return {kind: count for kind, count in counts.items() if count}


def _holders(tx: Transaction, role_id: str) -> Sequence[Row[str, str]]:
    """Returns the memberships with this own role, in the order of their events."""
    return tx.connection.execute(
        select(MembershipRole.organization_id, MembershipRole.membership_id)
        .distinct()
        .where(MembershipRole.role_id == role_id)
        .order_by(MembershipRole.organization_id, MembershipRole.membership_id)
    ).all()


def _unexpired(
    tx: Transaction, table: type[RoleAssignment] = RoleAssignment
) -> ColumnElement[bool]:
    return or_(table.expires_at.is_(None), table.expires_at > tx.now)


# --- what changes --------------------------------------------------------------------------------


def _forget(tx: Transaction, row: Role) -> None:
    """Takes the role out of the deployment's settings.

    Orders of organizations may go on naming it: ids are never used again and are skipped there.
    """
    settings = tx.session.get_one(Configuration, 1)
    is_owner = settings.owner_role_id == row.id
    if not is_owner and row.id not in settings.role_priority:
        return
    if is_owner:
        settings.owner_role_id = None
    settings.role_priority = [each for each in settings.role_priority if each != row.id]
    events.touch(tx, ENVIRONMENT, settings)
    tx.session.flush()


def _hand_over(
    tx: Transaction, row: Role, replacement: Row[Any], membership_ids: Sequence[str]
) -> None:
    """Gives every use to the replacement and records each change in its organization."""
    former = own_roles.seen(tx, membership_ids)
    _switch_own_roles(tx, row.id, replacement.id)
    assignments = _assignments(tx, row.id)
    twins = _twins(tx, row.id, replacement.id)
    own_roles.record_changed(tx, former)
    _switch_assignments(tx, replacement, assignments, twins)


def _switch_own_roles(tx: Transaction, role_id: str, replacement_id: str) -> None:
    """Puts the replacement in the role's place, by source, unless it is there already."""
    other = aliased(MembershipRole, name="other")
    tx.connection.execute(
        sql_delete(MembershipRole).where(
            MembershipRole.role_id == role_id,
            exists().where(
                other.membership_id == MembershipRole.membership_id,
                other.role_id == replacement_id,
                other.source == MembershipRole.source,
            ),
        )
    )
    tx.connection.execute(
        sql_update(MembershipRole)
        .where(MembershipRole.role_id == role_id)
        .values(role_id=replacement_id)
    )


def _assignments(tx: Transaction, role_id: str) -> Sequence[RoleAssignment]:
    return tx.session.scalars(
        select(RoleAssignment)
        .where(RoleAssignment.role_id == role_id, _unexpired(tx))
        .order_by(RoleAssignment.organization_id, RoleAssignment.id)
    ).all()


def _twins(
    tx: Transaction, role_id: str, replacement_id: str
) -> dict[tuple[str, str], RoleAssignment]:
    """Returns what the replacement is assigned to already, ended or not, by subject and resource.

    Only where the role itself is assigned, too.
    """
    old = aliased(RoleAssignment, name="old")
    rows = tx.session.scalars(
        select(RoleAssignment).join(
            old,
            and_(
                old.role_id == role_id,
                old.subject_id == RoleAssignment.subject_id,
                old.resource_id == RoleAssignment.resource_id,
                RoleAssignment.role_id == replacement_id,
                _unexpired(tx, old),
            ),
        )
    )
    return {(row.subject_id, row.resource_id): row for row in rows}


def _switch_assignments(
    tx: Transaction,
    replacement: Row[Any],
    assignments: Sequence[RoleAssignment],
    twins: dict[tuple[str, str], RoleAssignment],
) -> None:
    rows = [*assignments, *twins.values()]
    former = {seen["id"]: seen for seen in role_assignments.views(tx, rows)}
    for row in assignments:
        before = former[row.id]
        twin = twins.get((row.subject_id, row.resource_id))
        if twin is None:
            row.role_id = replacement.id
            _record_updated(tx, row, replacement.slug, before)
            continue
        end = _later(row.expires_at, twin.expires_at)
        if end != twin.expires_at:
            # It may have ended, and nobody have said so yet.
            role_assignments.record_end(tx, twin, former[twin.id])
            twin.expires_at, twin.is_end_recorded = end, False
            _record_updated(tx, twin, replacement.slug, former[twin.id])
        _record(tx, "role_assignment.deleted", row, before)
    tx.session.flush()


def _later(one: int | None, other: int | None) -> int | None:
    """Returns the later of two ends; no end is later than any."""
    return None if one is None or other is None else max(one, other)


def _record_updated(
    tx: Transaction, row: RoleAssignment, role_slug: str, before: dict[str, Any]
) -> None:
    events.touch(tx, row.organization_id, row)
    place = role_assignments.Place(**before["resource"])
    seen = role_assignments.view(row, role_slug, place, tx.now)
    _record(tx, "role_assignment.updated", row, seen, before=before)


def _record(
    tx: Transaction,
    kind: str,
    row: RoleAssignment,
    seen: dict[str, Any],
    *,
    before: dict[str, Any] | None = None,
) -> None:
    events.record(
        tx,
        kind,
        realm=row.organization_id,
        target_type="role_assignment",
        target_id=row.id,
        data=seen,
        previous=events.changes(before, seen) if before else None,
        # The tag marked with the role is in every fact about grants concerned.
        tags=(),
    )
