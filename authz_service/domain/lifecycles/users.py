"""What goes with a user (product.md RS7)."""

from sqlalchemy import select

from authz_service.base import errors
from authz_service.domain import events, memberships, users
from authz_service.domain.lifecycles import assignments
from authz_service.storage import realms
from authz_service.storage.database import Transaction
from authz_service.storage.tables import Membership, RoleAssignment


def delete(tx: Transaction, user_id: str, *, etag: str = "", allow_missing: bool = False) -> int:
    """Deletes a user, the memberships in every organization, and what goes with these.

    Returns:
        How many memberships went.

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED.
        NotFound: USER_NOT_FOUND, unless ``allow_missing``.
        FailedPrecondition: LAST_OWNER.
        Aborted: ETAG_MISMATCH.
    """
    try:
        row = users.for_update(tx, user_id)
    except errors.NotFound:
        if allow_missing:
            return 0
        raise
    events.check_etag(row, etag)
    # The environment is held alone, and whoever makes a membership holds it shared: the user can
    # join no organization any more, so these are all there will be.
    of_user = select(Membership.organization_id).where(Membership.user_id == user_id)
    organization_ids = tx.connection.execute(of_user).scalars().all()
    realms.lock(tx, *organization_ids, environment=True)
    rows = tx.connection.execute(
        select(*Membership.__table__.columns)
        .where(Membership.user_id == user_id)
        .order_by(Membership.organization_id)
    ).all()
    ended = assignments.unexpired(
        tx,
        RoleAssignment.membership_id.in_(
            select(Membership.id).where(Membership.user_id == user_id)
        ),
    )
    with memberships.last_owner_guard(tx, [row.organization_id for row in rows]):
        users.delete(tx, row)
        memberships.delete(tx, rows)
    # Each membership's tag is in every fact that its assignments made.
    assignments.record_deleted(tx, ended, tags=())
    return len(rows)
