"""Configuration: settings of the deployment and of each organization, and the order of roles."""

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Row, select

from authz_service.base.consistency import ENVIRONMENT
from authz_service.storage.database import Snapshot
from authz_service.storage.tables import Configuration, OrganizationConfiguration, Role

# The type whose roles are organization-level (product.md 2.1).
ORGANIZATION_TYPE = "organization"


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
    if not organization_id:
        return _ordered(current(snapshot).role_priority, _role_ids(snapshot, ())[ENVIRONMENT])
    return role_priorities(snapshot, [organization_id])[organization_id]


def role_priorities(
    snapshot: Snapshot, organization_ids: Collection[str]
) -> Mapping[str, list[str]]:
    """Returns ``role_priority`` of each of these organizations, in three statements for all.

    Args:
        organization_ids: At most a page of a list.
    """
    deployment = current(snapshot).role_priority
    by_realm = _role_ids(snapshot, organization_ids)
    stored = select(
        OrganizationConfiguration.organization_id, OrganizationConfiguration.role_priority
    ).where(OrganizationConfiguration.organization_id.in_(organization_ids))
    own = {row.organization_id: row.role_priority for row in snapshot.connection.execute(stored)}
    found = {}
    for organization_id in organization_ids:
        roles = by_realm[ENVIRONMENT] + by_realm[organization_id]
        if own.get(organization_id):
            found[organization_id] = _ordered(own[organization_id], sorted(roles))
        else:
            found[organization_id] = _ordered(deployment, roles)
    return found


def _role_ids(snapshot: Snapshot, organization_ids: Collection[str]) -> dict[str, list[str]]:
    """Returns the roles of type organization by realm, oldest first: ids rise."""
    by_realm: dict[str, list[str]] = {realm: [] for realm in (ENVIRONMENT, *organization_ids)}
    statement = (
        select(Role.realm, Role.id)
        .where(Role.resource_type_slug == ORGANIZATION_TYPE, Role.realm.in_(by_realm))
        .order_by(Role.id)
    )
    for realm, role_id in snapshot.connection.execute(statement):
        by_realm[realm].append(role_id)
    return by_realm


def _ordered(order: Collection[str], existing: list[str]) -> list[str]:
    """Returns the existing roles in the given order, those it does not name last, as they came."""
    place = {role_id: i for i, role_id in enumerate(order)}
    return sorted(existing, key=lambda role_id: place.get(role_id, len(place)))
