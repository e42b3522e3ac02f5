"""Changes of settings, which roles and memberships depend on (product.md RO3 to RO5, LO1)."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, bindparam, delete, func, select

from authz_service.base import errors, slugs
from authz_service.base.clock import to_datetime
from authz_service.base.consistency import ENVIRONMENT
from authz_service.domain import configuration, events, memberships, organizations, roles
from authz_service.domain.lifecycles import own_roles
from authz_service.engine import limits, tags
from authz_service.storage import realms
from authz_service.storage.database import Transaction
from authz_service.storage.tables import (
    Configuration,
    Membership,
    MembershipRole,
    OrganizationConfiguration,
)


def update(
    tx: Transaction,
    changes: Mapping[str, Any],
    *,
    collapse_membership_roles: bool = False,
    etag: str = "",
) -> dict[str, Any]:
    """Applies new settings of the deployment; equal ones change nothing and record no event.

    Args:
        changes: Of the settings, by their names in the contract.
        collapse_membership_roles: With ``multiple_roles_enabled`` turned off, memberships with
            several own roles keep one (RO5); else they are in the way.

    Returns:
        The settings as callers see them.

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED.
        NotFound: ROLE_NOT_FOUND.
        FailedPrecondition: MULTIPLE_ROLES_IN_USE, LAST_OWNER.
        InvalidArgument: FIELD_INVALID, ROLE_RESOURCE_TYPE_MISMATCH.
        Aborted: ETAG_MISMATCH.
        ResourceExhausted: LIMIT_REACHED (collapsed_memberships).
    """
    tx.actor.require_unrestricted()
    _check_shapes(changes)
    realms.lock(tx, environment=True)
    row = tx.session.get_one(Configuration, 1)
    new = {name: value for name, value in changes.items() if not name.endswith("_role_slug")}
    for name in ("default_role", "owner_role"):
        slug = changes.get(f"{name}_slug")
        if slug is not None:
            new[f"{name}_id"] = _role_id(tx, slug) if slug else None
    events.check_etag(row, etag)
    several: Sequence[Row[str, str]] = ()
    if row.multiple_roles_enabled and new.get("multiple_roles_enabled") is False:
        several = _with_several_roles(tx)
    if several and not collapse_membership_roles:
        raise errors.FailedPrecondition(
            "MULTIPLE_ROLES_IN_USE",
            "memberships hold several own roles",
            metadata={"count": len(several)},
        )
    if len(several) > limits.REPLACED_USES_MAX:
        raise errors.limit_reached("collapsed_memberships", maximum=limits.REPLACED_USES_MAX)
    before = configuration.view(tx, row)
    former_owner_role_id = row.owner_role_id
    # The environment, held alone, keeps everybody from giving a membership a second role.
    collapsed = {each.organization_id for each in several}
    realms.lock(tx, *collapsed)
    owned = _owned(tx, former_owner_role_id, collapsed, new)
    for name, value in new.items():
        setattr(row, name, value)
    tx.session.flush()
    if configuration.view(tx, row) == before:
        return before
    former_views = _collapse(tx, several)
    if row.last_owner_guard_enabled:
        _refuse_lost_owners(tx, owned, row.owner_role_id)
    events.touch(tx, ENVIRONMENT, row)
    after = configuration.view(tx, row)
    events.record(
        tx,
        "configuration.updated",
        realm=ENVIRONMENT,
        target_type="configuration",
        target_id="",
        data=after,
        previous=events.changes(before, after),
        # No fact reads a setting; but a collapse changes the grants of memberships anywhere.
        tags=(tags.ENVIRONMENT_DEFINITIONS,) if several else (),
    )
    own_roles.record_changed(tx, former_views)
    return after


def update_organization(
    tx: Transaction, organization_id: str, changes: Mapping[str, Any], *, etag: str = ""
) -> dict[str, Any]:
    """Applies new settings of an organization; equal ones change nothing and record no event.

    Args:
        changes: ``default_role_slug``; empty = the deployment's default role.

    Returns:
        The settings as callers see them.

    Raises:
        NotFound: ORGANIZATION_NOT_FOUND, ROLE_NOT_FOUND.
        InvalidArgument: FIELD_INVALID, ROLE_RESOURCE_TYPE_MISMATCH.
        Aborted: ETAG_MISMATCH.
    """
    slug = changes.get("default_role_slug")
    if slug:
        slugs.role_slug("organization_configuration.default_role_slug", slug)
    realms.lock(tx, organization_id, definitions=True)
    organizations.require(tx, organization_id)
    role_id = _role_id(tx, slug, organization_id) if slug else None
    row = tx.session.get_one(OrganizationConfiguration, organization_id)
    events.check_etag(row, etag)
    before = configuration.organization_view(tx, row)
    if slug is None or role_id == row.default_role_id:
        return before
    row.default_role_id = role_id
    events.touch(tx, organization_id, row)
    after = configuration.organization_view(tx, row)
    events.record(
        tx,
        "organization_configuration.updated",
        realm=organization_id,
        target_type="organization_configuration",
        target_id=organization_id,
        data=after,
        previous=events.changes(before, after),
        # No fact reads a setting.
        tags=(),
    )
    return after


def set_role_priority(
    tx: Transaction, *, organization_id: str = "", role_slugs: Sequence[str]
) -> list[str]:
    """Sets the order of the roles of type organization (RO4).

    Args:
        organization_id: Whose order; empty = the deployment's.
        role_slugs: Every role concerned once, highest first; with an organization also none, which
            goes back to the order derived from the deployment's.

    Returns:
        The order in force, as slugs.

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED.
        NotFound: ORGANIZATION_NOT_FOUND, ROLE_NOT_FOUND.
        InvalidArgument: FIELD_REQUIRED, FIELD_INVALID, ROLE_RESOURCE_TYPE_MISMATCH.
    """
    for i, slug in enumerate(role_slugs):
        slugs.role_slug(f"role_slugs[{i}]", slug)
    if len(set(role_slugs)) < len(role_slugs):
        raise errors.field_invalid("role_slugs", "each role once")
    row: Configuration | OrganizationConfiguration
    if organization_id:
        realms.lock(tx, organization_id, definitions=True)
        organizations.require(tx, organization_id)
        row = tx.session.get_one(OrganizationConfiguration, organization_id)
    else:
        tx.actor.require_unrestricted()
        realms.lock(tx, environment=True)
        row = tx.session.get_one(Configuration, 1)
    known = configuration.role_slugs(tx, organization_id)
    by_slug = {slug: role_id for role_id, slug in known.items()}
    order = [by_slug.get(slug) or _role_id(tx, slug, organization_id) for slug in role_slugs]
    is_reset = not order and bool(organization_id)
    if not is_reset and len(order) < len(known):
        raise errors.field_invalid("role_slugs", "every role of type organization exactly once")
    former = configuration.role_priority(tx, organization_id)
    # What is stored may lack roles created since: the order in force is what is compared.
    if (order == former and row.role_priority) or (is_reset and not row.role_priority):
        return [known[role_id] for role_id in former]
    row.role_priority = order or None
    tx.session.flush()
    present = [known[role_id] for role_id in configuration.role_priority(tx, organization_id)]
    realm = organization_id or ENVIRONMENT
    events.touch(tx, realm, row)
    events.record(
        tx,
        "role_priority.changed",
        realm=realm,
        target_type="organization_configuration" if organization_id else "configuration",
        target_id=organization_id,
        data={
            "organization_id": organization_id,
            "role_slugs": present,
            "is_derived": is_reset,
            "updated_at": to_datetime(row.updated_at),
            "etag": events.etag(row),
        },
        previous={"role_slugs": [known[role_id] for role_id in former]},
        # Priority takes no access away: no fact reads it.
        tags=(),
    )
    return present


def _check_shapes(changes: Mapping[str, Any]) -> None:
    low, high = limits.RESOURCE_DEPTH_MIN, limits.RESOURCE_DEPTH_MAX
    if not low <= changes.get("resource_depth_max", low) <= high:
        raise errors.field_invalid("configuration.resource_depth_max", f"{low} to {high}")
    if "default_role_slug" in changes:
        field, slug = "configuration.default_role_slug", changes["default_role_slug"]
        slugs.role_slug(field, slugs.not_cleared(field, slug))
    if changes.get("owner_role_slug"):
        slugs.role_slug("configuration.owner_role_slug", changes["owner_role_slug"])


def _role_id(tx: Transaction, slug: str, organization_id: str = "") -> str:
    """Returns the id of a role of type organization.

    Raises:
        NotFound: ROLE_NOT_FOUND.
        InvalidArgument: ROLE_RESOURCE_TYPE_MISMATCH.
    """
    row = roles.find(tx, organization_id=organization_id, slug=slug)
    if row.resource_type_slug != configuration.ORGANIZATION_TYPE:
        raise errors.InvalidArgument(
            "ROLE_RESOURCE_TYPE_MISMATCH",
            "the role belongs to another resource type",
            metadata={
                "role_slug": slug,
                "role_type": row.resource_type_slug,
                "resource_type": configuration.ORGANIZATION_TYPE,
            },
        )
    return str(row.id)


# --- the last owner ------------------------------------------------------------------------------


def _owned(
    tx: Transaction,
    owner_role_id: str | None,
    collapsed: Collection[str],
    new: Mapping[str, Any],
) -> set[str]:
    """Returns the organizations that have an owner and that new settings may leave without one."""
    if owner_role_id is None:
        return set()
    if new.get("owner_role_id", owner_role_id) != owner_role_id:
        return _with_holder(tx, owner_role_id)
    return _with_holder(tx, owner_role_id) & set(collapsed) if collapsed else set()


def _refuse_lost_owners(tx: Transaction, owned: set[str], owner_role_id: str | None) -> None:
    """Refuses what has left an organization that had an owner without one (LO1).

    Without an owner role nobody is an owner any more.

    Raises:
        FailedPrecondition: LAST_OWNER, with the first such organization by id.
    """
    if not owned:
        return
    lost = owned - (_with_holder(tx, owner_role_id) if owner_role_id else set())
    if lost:
        raise errors.FailedPrecondition(
            "LAST_OWNER",
            "the organization would lose its last owner",
            metadata={"organization_id": min(lost)},
        )


def _with_holder(tx: Transaction, role_id: str) -> set[str]:
    """Returns the organizations in which an active membership has this own role."""
    return set(
        tx.connection.execute(
            select(MembershipRole.organization_id)
            .distinct()
            .join(Membership, Membership.id == MembershipRole.membership_id)
            .where(MembershipRole.role_id == role_id, Membership.status == memberships.ACTIVE)
        ).scalars()
    )


# --- from several own roles to one (RO5) ---------------------------------------------------------


def _with_several_roles(tx: Transaction) -> Sequence[Row[str, str]]:
    """Returns organization and membership ids of those with more than one own role, in order.

    One role from two sources is one role (RO6).
    """
    return tx.connection.execute(
        select(MembershipRole.organization_id, MembershipRole.membership_id)
        .group_by(MembershipRole.organization_id, MembershipRole.membership_id)
        .having(func.count(MembershipRole.role_id.distinct()) > 1)
        .order_by(MembershipRole.organization_id, MembershipRole.membership_id)
    ).all()


def _collapse(tx: Transaction, several: Sequence[Row[str, str]]) -> dict[str, dict[str, Any]]:
    """Leaves each of these memberships one own role.

    Returns:
        Id to the membership as it was, in the order of ``several``.
    """
    former = own_roles.seen(tx, [row.membership_id for row in several])
    kept = _kept_roles(tx, several)
    if kept:
        tx.connection.execute(
            delete(MembershipRole).where(
                MembershipRole.membership_id == bindparam("member"),
                MembershipRole.role_id != bindparam("kept"),
            ),
            [{"member": member, "kept": role_id} for member, role_id in kept.items()],
        )
    return former


def _kept_roles(tx: Transaction, several: Sequence[Row[str, str]]) -> dict[str, str]:
    """Returns membership id to the own role it keeps: a mapped one before others, then by order."""
    orders = configuration.role_priorities(tx, {row.organization_id for row in several})
    places = {
        organization_id: {role_id: place for place, role_id in enumerate(order)}
        for organization_id, order in orders.items()
    }
    ranked: dict[str, list[tuple[bool, int, str]]] = defaultdict(list)
    for some in own_roles.chunks([row.membership_id for row in several]):
        held = select(*MembershipRole.__table__.columns).where(
            tx.dialect.among(MembershipRole.membership_id, some)
        )
        for row in tx.connection.execute(held):
            ranked[row.membership_id].append(
                (
                    row.source != memberships.DIRECTORY,
                    places[row.organization_id][row.role_id],
                    row.role_id,
                )
            )
    return {membership_id: min(held)[2] for membership_id, held in ranked.items()}
