"""Role assignments that go with their subject, their role or their resource (product.md RS7)."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Row, or_, select

from authz_service.base.clock import to_datetime
from authz_service.domain import events
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
            data=_view(row),
            tags=tags,
        )


def _view(row: Row[Any]) -> dict[str, Any]:
    subject = (
        {"group_id": row.group_id}
        if row.membership_id is None
        else {"organization_membership_id": row.membership_id}
    )
    return {
        "id": row.id,
        "organization_id": row.organization_id,
        **subject,
        "role_id": row.role_id,
        "role_slug": row.role_slug,
        "resource": {
            "id": row.resource_id,
            "resource_type_slug": row.resource_type_slug,
            "external_id": row.resource_external_id,
            "name": row.resource_name,
        },
        "expires_at": None if row.expires_at is None else to_datetime(row.expires_at),
        "state": "ROLE_ASSIGNMENT_STATE_ACTIVE",
        "created_at": to_datetime(row.created_at),
        "updated_at": to_datetime(row.updated_at),
        "etag": events.etag(row),
    }


def record_updated(tx: Transaction, assignment_id: str, *, tags: Iterable[str]) -> None:
    """Records that a role assignment has another role or end now."""
    (row,) = unexpired(tx, RoleAssignment.id == assignment_id)
    events.record(
        tx,
        "role_assignment.updated",
        realm=row.organization_id,
        target_type="role_assignment",
        target_id=row.id,
        data=_view(row),
        tags=tuple(tags),
    )
