"""Role assignments that go with their subject, their role or their resource (product.md RS7)."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, or_, select

from authz_service.domain import events, role_assignments
from authz_service.storage.database import Transaction
from authz_service.storage.tables import Resource, Role, RoleAssignment


def unexpired(tx: Transaction, condition: ColumnElement[bool]) -> Sequence[Row[Any]]:
    """Returns the unexpired role assignments that meet a condition, oldest first.

    Expired ones go with what they name without a word (RA2).
    """
    columns: list[Any] = [
        *RoleAssignment.__table__.columns,
        Role.slug.label("role_slug"),
        Resource.resource_type_slug,
        Resource.external_id.label("resource_external_id"),
        Resource.name.label("resource_name"),
    ]
    return tx.connection.execute(
        select(*columns)
        .join(Role, Role.id == RoleAssignment.role_id)
        .join(Resource, Resource.id == RoleAssignment.resource_id)
        .where(
            condition,
            or_(RoleAssignment.expires_at.is_(None), RoleAssignment.expires_at > tx.now),
        )
        .order_by(RoleAssignment.id)
    ).all()


def record_deleted(tx: Transaction, rows: Sequence[Row[Any]], *, tags: Iterable[str]) -> None:
    """Records the end of role assignments that the foreign keys took along.

    Args:
        rows: From ``unexpired``, read before they went.
        tags: What their end marks beyond what the deletion of the thing itself marks.
    """
    tags = tuple(tags)
    for row in rows:
        events.record(
            tx,
            "role_assignment.deleted",
            realm=row.organization_id,
            target_type="role_assignment",
            target_id=row.id,
            data=_seen(tx, row),
            tags=tags,
        )


def _seen(tx: Transaction, row: Row[Any]) -> dict[str, Any]:
    """Returns an assignment as it was read, with the names of what may be gone by now."""
    place = role_assignments.Place(
        row.resource_id, row.resource_type_slug, row.resource_external_id, row.resource_name
    )
    return role_assignments.view(row, row.role_slug, place, tx.now)
