"""The ends of role assignments, in the background: first an event, 30 days later they go (RA2)."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, TextClause, delete, select, text, update

from authz_service.domain import role_assignments
from authz_service.storage import realms
from authz_service.storage.database import Transaction
from authz_service.storage.tables import RoleAssignment

# In the words of the two indexes, so that SQLite recognizes that they hold these rows.
_UNRECORDED = text("NOT is_end_recorded AND expires_at IS NOT NULL")
_RECORDED = text("is_end_recorded")


def end_expired(tx: Transaction, limit: int) -> int:
    """Records the ends that have passed since the last time, each as an event of its own.

    Another process that does the same waits for the realms and then finds nothing left to do.

    Args:
        limit: The most it takes on; each is one event and at most one locked realm.

    Returns:
        How many it found; as many as the limit: there may be more.
    """
    found = _ended(tx, _UNRECORDED, tx.now, limit)
    rows = _again(tx, _UNRECORDED, tx.now, found)
    for row, seen in zip(rows, role_assignments.views(tx, rows), strict=True):
        role_assignments.record_end(tx, row, seen)
    if rows:
        # Not the object's own field: neither etag nor time of change is touched.
        tx.connection.execute(
            update(RoleAssignment)
            .where(tx.dialect.among(RoleAssignment.id, [row.id for row in rows]))
            .values(is_end_recorded=True)
        )
    return len(found)


def sweep(tx: Transaction, limit: int) -> int:
    """Removes the role assignments that ended more than 30 days ago, without an event.

    Args:
        limit: The most it removes.

    Returns:
        How many it found; as many as the limit: there may be more.
    """
    oldest = tx.now - role_assignments.KEPT
    found = _ended(tx, _RECORDED, oldest, limit)
    rows = _again(tx, _RECORDED, oldest, found)
    if rows:
        tx.connection.execute(
            delete(RoleAssignment).where(
                tx.dialect.among(RoleAssignment.id, [row.id for row in rows])
            )
        )
    return len(found)


def _ended(tx: Transaction, which: TextClause, instant: int, limit: int) -> Sequence[Row[Any]]:
    """Returns those that had ended at an instant, the earliest end first."""
    return tx.connection.execute(
        select(*RoleAssignment.__table__.columns)
        .where(which, RoleAssignment.expires_at <= instant)
        .order_by(RoleAssignment.expires_at)
        .limit(limit)
    ).all()


def _again(
    tx: Transaction, which: TextClause, instant: int, found: Sequence[Row[Any]]
) -> Sequence[Row[Any]]:
    """Locks the realms of what was found and returns what is still so."""
    if not found:
        return ()
    realms.lock(tx, *{row.organization_id for row in found})
    return tx.connection.execute(
        select(*RoleAssignment.__table__.columns)
        .where(
            which,
            RoleAssignment.expires_at <= instant,
            tx.dialect.among(RoleAssignment.id, [row.id for row in found]),
        )
        .order_by(RoleAssignment.expires_at, RoleAssignment.id)
    ).all()
