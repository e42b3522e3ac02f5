"""Groups: named sets of memberships and of other groups, and the built-in one, everyone."""

from typing import Any

from sqlalchemy import Row

from authz_service.base.clock import to_datetime
from authz_service.domain import events
from authz_service.storage.database import Transaction
from authz_service.storage.tables import Group, Organization

STANDARD, EVERYONE = "STANDARD", "EVERYONE"
EVERYONE_NAME = "everyone"


def view(row: Group | Row[Any]) -> dict[str, Any]:
    """Returns the group as callers and events see it, without the counts of its members."""
    return {
        "id": row.id,
        "organization_id": row.organization_id,
        "kind": f"GROUP_KIND_{row.kind}",
        "name": row.name,
        "description": row.description,
        "created_at": to_datetime(row.created_at),
        "updated_at": to_datetime(row.updated_at),
        "etag": events.etag(row),
    }


def create_everyone(tx: Transaction, organization: Organization) -> Group:
    """Creates the built-in group that holds every membership of the organization (GR1)."""
    row = tx.add(
        Group(
            organization_id=organization.id,
            id=organization.everyone_group_id,
            kind=EVERYONE,
            name=EVERYONE_NAME,
            description="",
            **events.stamp(tx, organization.id),
        )
    )
    events.record(
        tx,
        "group.created",
        realm=organization.id,
        target_type="group",
        target_id=row.id,
        data=view(row),
        tags=(),
    )
    return row
