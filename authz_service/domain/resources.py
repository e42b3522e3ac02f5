"""Resources: registered things of one organization, in one tree below its root."""

from typing import Any

from sqlalchemy import Row

from authz_service.base.clock import to_datetime
from authz_service.domain import events
from authz_service.storage.database import Transaction
from authz_service.storage.tables import Organization, Resource, ResourceAncestor

ORGANIZATION_TYPE = "organization"


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
    row = tx.add(
        Resource(
            organization_id=organization.id,
            id=organization.root_resource_id,
            resource_type_slug=ORGANIZATION_TYPE,
            external_id=organization.id,
            name=organization.name,
            description="",
            parent_id=None,
            depth=0,
            path=organization.root_resource_id,
            **events.stamp(tx, organization.id),
        )
    )
    tx.add(
        ResourceAncestor(
            organization_id=organization.id,
            ancestor_id=row.id,
            resource_type_slug=ORGANIZATION_TYPE,
            resource_id=row.id,
        )
    )
    _record(tx, "resource.created", row, tags=())
    return row


def rename_root(tx: Transaction, organization: Organization) -> None:
    """Gives the organization resource its organization's new name."""
    row = tx.session.get_one(Resource, (organization.id, organization.root_resource_id))
    before = view(row)
    row.name = organization.name
    events.touch(tx, organization.id, row)
    _record(tx, "resource.updated", row, before=before, tags=())


def _record(
    tx: Transaction,
    kind: str,
    row: Resource,
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
