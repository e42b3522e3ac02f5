"""What the deletion of a role or a permission changes elsewhere (product.md RO7, RS7)."""

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, delete, func, insert, select, update

from authz_service.base import errors
from authz_service.base.consistency import ENVIRONMENT
from authz_service.domain import configuration, events, memberships, permissions, roles
from authz_service.domain.lifecycles import assignments
from authz_service.engine import limits, tags
from authz_service.storage import realms
from authz_service.storage.database import Transaction
from authz_service.storage.tables import (
    Configuration,
    Membership,
    MembershipRole,
    OrganizationConfiguration,
    Role,
    RoleAssignment,
    RolePermission,
)


def delete_role(
    tx: Transaction,
    role_id: str,
    *,
    replacement_role_slug: str = "",
    etag: str = "",
    allow_missing: bool = False,
) -> dict[str, int]:
    """Deletes a role; all its uses switch to the replacement, if one is named (RO7).

    Returns:
        How many uses switched, by kind.

    Raises:
        NotFound: ROLE_NOT_FOUND, unless ``allow_missing``.
        PermissionDenied: ORGANIZATION_RESTRICTED.
        FailedPrecondition: ROLE_IS_DEFAULT, ROLE_IN_USE, LAST_OWNER.
        InvalidArgument: REPLACEMENT_ROLE_INVALID.
        ResourceExhausted: LIMIT_REACHED (uses).
        Aborted: ETAG_MISMATCH, CONFLICT.
    """
    try:
        realm = roles.find(tx, role_id=role_id).realm
    except errors.NotFound:
        if allow_missing:
            return {}
        raise
    is_environment = realm == ENVIRONMENT
    if is_environment:
        tx.actor.require_unrestricted()
    users = _organizations_using(tx, role_id) if is_environment else {realm}
    realms.lock(tx, *users, environment=is_environment, definitions=not is_environment)
    row = tx.session.get(Role, role_id)
    if row is None:
        if allow_missing:
            return {}
        raise roles.not_found(role_id=role_id)
    if _organizations_using(tx, role_id) - users:
        raise errors.Aborted("CONFLICT", "the role came into use elsewhere; repeat the call")
    events.check_etag(row, etag)
    _refuse_default(tx, role_id)
    own = _own_uses(tx, role_id)
    held = assignments.unexpired(tx, RoleAssignment.role_id == role_id)
    replacement = _replacement(tx, row, replacement_role_slug)
    if replacement is None and (own or held):
        raise errors.FailedPrecondition(
            "ROLE_IN_USE",
            "the role is in use; name a replacement",
            metadata={
                "organization_memberships": len({use.membership_id for use in own}),
                "role_assignments": len(held),
            },
        )
    if len(own) + len(held) > limits.REPLACED_USES_MAX:
        raise errors.limit_reached("uses of a replaced role", maximum=limits.REPLACED_USES_MAX)
    tag = roles.tag_of(realm)
    roles.record(tx, "role.deleted", row, tags=(tag,))
    if replacement is not None:
        _switch_own(tx, own, role_id, replacement)
        _switch_assignments(tx, held, replacement)
    # Ended assignments go with their role, without a word.
    tx.connection.execute(delete(RoleAssignment).where(RoleAssignment.role_id == role_id))
    _forget(tx, row)
    tx.session.delete(row)
    tx.session.flush()
    counts = {
        "organization_membership": len({use.membership_id for use in own}),
        "role_assignment": len(held),
    }
    return {kind: count for kind, count in counts.items() if count}


def _organizations_using(tx: Transaction, role_id: str) -> set[str]:
    own = select(MembershipRole.organization_id).where(MembershipRole.role_id == role_id)
    held = select(RoleAssignment.organization_id).where(RoleAssignment.role_id == role_id)
    return set(tx.connection.execute(own.union(held)).scalars())


def _own_uses(tx: Transaction, role_id: str) -> Sequence[Row[Any]]:
    columns: list[Any] = [
        MembershipRole.organization_id,
        MembershipRole.membership_id,
        MembershipRole.source,
    ]
    return tx.connection.execute(
        select(*columns)
        .where(MembershipRole.role_id == role_id)
        .order_by(MembershipRole.membership_id)
    ).all()


def _refuse_default(tx: Transaction, role_id: str) -> None:
    count = tx.connection.execute(
        select(func.count())
        .select_from(OrganizationConfiguration)
        .where(OrganizationConfiguration.default_role_id == role_id)
    ).scalar_one()
    if configuration.current(tx).default_role_id == role_id or count:
        raise errors.FailedPrecondition(
            "ROLE_IS_DEFAULT",
            "the role is the default of the deployment or of an organization",
            metadata={"organizations": count},
        )


def _replacement(tx: Transaction, row: Role, slug: str) -> Row[Any] | None:
    if not slug:
        return None

    def invalid(rule: str) -> errors.InvalidArgument:
        return errors.InvalidArgument(
            "REPLACEMENT_ROLE_INVALID",
            f"the replacement {rule}",
            metadata={"replacement_role_slug": slug, "rule": rule},
        )

    organization_id = "" if row.realm == ENVIRONMENT else row.realm
    try:
        found = roles.find(tx, organization_id=organization_id, slug=slug)
    except errors.NotFound:
        raise invalid("is no role that all uses could hold") from None
    if found.id == row.id:
        raise invalid("is the role itself")
    if found.resource_type_slug != row.resource_type_slug:
        raise invalid("belongs to another type")
    return found  # type: ignore[no-any-return]


def _switch_own(
    tx: Transaction, uses: Sequence[Row[Any]], role_id: str, replacement: Row[Any]
) -> None:
    by_membership: dict[tuple[str, str], set[str]] = defaultdict(set)
    for use in uses:
        by_membership[use.organization_id, use.membership_id].add(use.source)
    concerned = {organization_id for organization_id, _ in by_membership}
    # Deleting the owner role itself leaves no role that could be guarded.
    is_owner = configuration.current(tx).owner_role_id == role_id
    guard = contextlib.nullcontext() if is_owner else memberships.last_owner_guard(tx, concerned)
    with guard:
        for (organization_id, membership_id), sources in sorted(by_membership.items()):
            _switch_membership(tx, organization_id, membership_id, sources, role_id, replacement)


def _switch_membership(
    tx: Transaction,
    organization_id: str,
    membership_id: str,
    sources: set[str],
    role_id: str,
    replacement: Row[Any],
) -> None:
    before = memberships.views_by_id(tx, [membership_id])[membership_id]
    tx.connection.execute(
        delete(MembershipRole).where(
            MembershipRole.membership_id == membership_id, MembershipRole.role_id == role_id
        )
    )
    present = set(
        tx.connection.execute(
            select(MembershipRole.source).where(
                MembershipRole.membership_id == membership_id,
                MembershipRole.role_id == replacement.id,
            )
        ).scalars()
    )
    for source in sorted(sources - present):
        tx.connection.execute(
            insert(MembershipRole).values(
                organization_id=organization_id,
                membership_id=membership_id,
                role_id=replacement.id,
                source=source,
            )
        )
    row = tx.session.get_one(Membership, (organization_id, membership_id))
    events.touch(tx, organization_id, row)
    tx.session.flush()
    after = memberships.views_by_id(tx, [membership_id])[membership_id]
    events.record(
        tx,
        "organization_membership.updated",
        realm=organization_id,
        target_type="organization_membership",
        target_id=membership_id,
        data=after,
        previous=events.changes(before, after),
        tags=(tags.membership(membership_id),),
    )


def _switch_assignments(tx: Transaction, held: Sequence[Row[Any]], replacement: Row[Any]) -> None:
    for use in held:
        marked = (
            tags.membership(use.membership_id) if use.membership_id else tags.group(use.group_id)
        )
        same = tx.connection.execute(
            select(RoleAssignment.id, RoleAssignment.expires_at).where(
                RoleAssignment.subject_id == (use.membership_id or use.group_id),
                RoleAssignment.resource_id == use.resource_id,
                RoleAssignment.role_id == replacement.id,
            )
        ).one_or_none()
        kept_id, values = use.id, {"role_id": replacement.id}
        if same is not None:
            ends = [use.expires_at, same.expires_at]
            kept_id = same.id
            values = {"expires_at": None if None in ends else max(ends), "is_end_recorded": False}
            tx.connection.execute(delete(RoleAssignment).where(RoleAssignment.id == use.id))
            assignments.record_deleted(tx, [use], tags=(marked,))
        stamp = events.stamp(tx, use.organization_id)
        tx.connection.execute(
            update(RoleAssignment)
            .where(RoleAssignment.id == kept_id)
            .values(**values, updated_at=stamp["updated_at"], revision=stamp["revision"])
        )
        if same is None or values["expires_at"] != same.expires_at:
            assignments.record_updated(tx, kept_id, tags=(marked,))


def _forget(tx: Transaction, row: Role) -> None:
    """Takes the role out of priority orders, and out of the setting that names it owner (LO1)."""
    settings = tx.session.get_one(Configuration, 1)
    if row.realm == ENVIRONMENT:
        if row.id in settings.role_priority:
            settings.role_priority = [each for each in settings.role_priority if each != row.id]
        if settings.owner_role_id == row.id:
            settings.owner_role_id = None
    tx.session.flush()
    orders = select(
        OrganizationConfiguration.organization_id, OrganizationConfiguration.role_priority
    ).where(OrganizationConfiguration.role_priority.is_not(None))
    if row.realm != ENVIRONMENT:
        orders = orders.where(OrganizationConfiguration.organization_id == row.realm)
    for organization_id, order in tx.connection.execute(orders).all():
        if order and row.id in order:
            tx.connection.execute(
                update(OrganizationConfiguration)
                .where(OrganizationConfiguration.organization_id == organization_id)
                .values(role_priority=[each for each in order if each != row.id])
            )


def delete_permission(
    tx: Transaction,
    slug: str,
    *,
    cascade: bool = False,
    etag: str = "",
    allow_missing: bool = False,
) -> None:
    """Deletes a permission; with ``cascade`` it is taken out of every role first.

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED.
        NotFound: PERMISSION_NOT_FOUND, unless ``allow_missing``.
        FailedPrecondition: PERMISSION_IN_USE with counts.
        Aborted: ETAG_MISMATCH, CONFLICT.
    """
    tx.actor.require_unrestricted()
    users = _roles_with(tx, slug)
    realms.lock(tx, *({row.realm for row in users} - {ENVIRONMENT}), environment=True)
    try:
        row = permissions.for_update(tx, slug)
    except errors.NotFound:
        if allow_missing:
            return
        raise
    events.check_etag(row, etag)
    present = _roles_with(tx, slug)
    if {each.realm for each in present} - {each.realm for each in users} - {ENVIRONMENT}:
        raise errors.Aborted("CONFLICT", "the permission came into a role; repeat the call")
    if present and not cascade:
        raise errors.FailedPrecondition(
            "PERMISSION_IN_USE",
            "roles contain the permission",
            metadata={"roles": len(present)},
        )
    permissions.record(tx, "permission.deleted", row, is_definition=True)
    for each in present:
        role = tx.session.get_one(Role, each.id)
        before = {"permission_slugs": sorted(roles.permissions_of(tx, [role.id])[role.id])}
        roles.drop_permissions(tx, role.id, {slug})
        events.touch(tx, role.realm, role)
        roles.record(
            tx,
            "role.permissions_changed",
            role,
            tags=(roles.tag_of(role.realm),),
            before=before,
        )
    tx.session.delete(row)
    tx.session.flush()


def _roles_with(tx: Transaction, slug: str) -> Sequence[Row[Any]]:
    columns: list[Any] = [Role.id, Role.realm]
    return tx.connection.execute(
        select(*columns)
        .join(RolePermission, RolePermission.role_id == Role.id)
        .where(RolePermission.permission_slug == slug)
        .order_by(Role.realm, Role.id)
    ).all()
