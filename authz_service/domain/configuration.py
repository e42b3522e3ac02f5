"""Configuration: settings of the deployment and of each organization, and the order of roles.

What changes them is in ``lifecycles/configuration.py``: it relies on roles and memberships.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Row, select

from authz_service.base.clock import to_datetime
from authz_service.base.consistency import ENVIRONMENT
from authz_service.domain import events
from authz_service.storage import role_orders
from authz_service.storage.database import Snapshot
from authz_service.storage.tables import Configuration, OrganizationConfiguration, Role

# The type whose roles are organization-level (product.md 2.1).
ORGANIZATION_TYPE = "organization"


class RoleOrder(NamedTuple):
    """How the roles of type organization look from an organization, or from the deployment.

    Attributes:
        role_ids: Highest priority first.
        default_role_id: The one given where none is named.
    """

    role_ids: list[str]
    default_role_id: str


def view(snapshot: Snapshot, row: Configuration | Row[Any]) -> dict[str, Any]:
    """Returns the settings of the deployment as callers and events see them."""
    slugs = role_slugs(snapshot)
    return {
        "multiple_roles_enabled": row.multiple_roles_enabled,
        "default_role_slug": slugs[row.default_role_id],
        "owner_role_slug": slugs[row.owner_role_id] if row.owner_role_id else "",
        "last_owner_guard_enabled": row.last_owner_guard_enabled,
        "resource_depth_max": row.resource_depth_max,
        "role_priority": [slugs[role_id] for role_id in _ordered(row.role_priority, list(slugs))],
        "updated_at": to_datetime(row.updated_at),
        "etag": events.etag(row),
    }


def organization_view(
    snapshot: Snapshot, row: OrganizationConfiguration | Row[Any]
) -> dict[str, Any]:
    """Returns the settings of an organization as callers and events see them."""
    slugs = role_slugs(snapshot, row.organization_id)
    # An order that was set is complete but for roles created since; one that was not is derived.
    order = _ordered(row.role_priority, sorted(slugs)) if row.role_priority else []
    return {
        "organization_id": row.organization_id,
        "default_role_slug": slugs[row.default_role_id] if row.default_role_id else "",
        "role_priority": [slugs[role_id] for role_id in order],
        "updated_at": to_datetime(row.updated_at),
        "etag": events.etag(row),
    }


def current(snapshot: Snapshot) -> Row[Any]:
    """Returns the settings of the deployment; there is always one row."""
    return snapshot.connection.execute(select(*Configuration.__table__.columns)).one()


def organization(snapshot: Snapshot, organization_id: str) -> Row[Any]:
    """Returns the settings of an organization that exists."""
    return snapshot.connection.execute(
        select(*OrganizationConfiguration.__table__.columns).where(
            OrganizationConfiguration.organization_id == organization_id
        )
    ).one()


def default_role_id(snapshot: Snapshot, organization_id: str) -> str:
    """Returns the role given where none is named: the organization's, else the deployment's."""
    return organization(snapshot, organization_id).default_role_id or str(
        current(snapshot).default_role_id
    )


def role_priority(snapshot: Snapshot, organization_id: str = "") -> list[str]:
    """Returns the ids of the roles of type organization, highest priority first (RO4).

    Args:
        organization_id: Its own roles take part; empty = the environment roles alone.
    """
    stored = role_orders.read(snapshot, (organization_id,) if organization_id else ())
    if organization_id:
        return priority_of(stored, organization_id)
    return _ordered(stored.deployment, stored.role_ids[ENVIRONMENT])


def role_order(snapshot: Snapshot, organization_id: str = "") -> RoleOrder | None:
    """Returns how roles of type organization look from an organization, in one statement.

    Args:
        organization_id: Its own roles take part; empty = the environment roles alone.

    Returns:
        None if there is no such organization.
    """
    stored, defaults = role_orders.read_with_defaults(
        snapshot, (organization_id,) if organization_id else ()
    )
    default_role_id = str(defaults[ENVIRONMENT])
    if not organization_id:
        existing = stored.role_ids[ENVIRONMENT]
        return RoleOrder(_ordered(stored.deployment, existing), default_role_id)
    if organization_id not in stored.own:
        return None
    return RoleOrder(
        priority_of(stored, organization_id), defaults[organization_id] or default_role_id
    )


def role_priorities(
    snapshot: Snapshot, organization_ids: Collection[str]
) -> Mapping[str, list[str]]:
    """Returns ``role_priority`` of each of these organizations, in one statement for all."""
    stored = role_orders.read(snapshot, organization_ids)
    return {each: priority_of(stored, each) for each in organization_ids}


def priority_of(stored: role_orders.RoleOrders, organization_id: str) -> list[str]:
    """Returns ``role_priority`` of an organization whose orders and roles have been read."""
    return _order_of(
        stored.own.get(organization_id),
        stored.deployment,
        [*stored.role_ids[ENVIRONMENT], *stored.role_ids[organization_id]],
    )


def role_slugs(snapshot: Snapshot, organization_id: str = "") -> dict[str, str]:
    """Returns id to slug of the roles of type organization: environment roles and its own."""
    by_realm = _roles(snapshot, [organization_id] if organization_id else ())
    return by_realm[ENVIRONMENT] | by_realm.get(organization_id, {})


def _roles(snapshot: Snapshot, organization_ids: Collection[str]) -> dict[str, dict[str, str]]:
    """Returns realm to id to slug of the roles of type organization, oldest first: ids rise."""
    by_realm: dict[str, dict[str, str]] = {realm: {} for realm in (ENVIRONMENT, *organization_ids)}
    statement = (
        select(Role.realm, Role.id, Role.slug)
        .where(
            Role.resource_type_slug == ORGANIZATION_TYPE,
            snapshot.dialect.among(Role.realm, by_realm.keys()),
        )
        .order_by(Role.id)
    )
    for realm, role_id, slug in snapshot.connection.execute(statement):
        by_realm[realm][role_id] = slug
    return by_realm


def _order_of(
    own: Collection[str] | None, deployment: Collection[str], existing: list[str]
) -> list[str]:
    """Returns an organization's order: its own one, else the deployment's and then its own roles.

    Args:
        existing: The environment roles and then its own ones, each oldest first.
    """
    return _ordered(own, sorted(existing)) if own else _ordered(deployment, existing)


def _ordered(order: Collection[str], existing: list[str]) -> list[str]:
    """Returns the existing roles in the given order, those it does not name last, as they came."""
    place = {role_id: i for i, role_id in enumerate(order)}
    return sorted(existing, key=lambda role_id: place.get(role_id, len(place)))
