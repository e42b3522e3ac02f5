"""What goes with a membership (product.md RS7)."""

from authz_service.base import errors
from authz_service.domain import events, memberships
from authz_service.domain.lifecycles import assignments
from authz_service.storage.database import Transaction
from authz_service.storage.tables import RoleAssignment


def delete(
    tx: Transaction, membership_id: str, *, etag: str = "", allow_missing: bool = False
) -> None:
    """Deletes a membership of any status, its role assignments and places in groups.

    Raises:
        NotFound: MEMBERSHIP_NOT_FOUND, unless ``allow_missing``.
        FailedPrecondition: LAST_OWNER.
        Aborted: ETAG_MISMATCH.
    """
    try:
        row = memberships.for_update(tx, membership_id)
    except errors.NotFound:
        if allow_missing:
            return
        raise
    events.check_etag(row, etag)
    ended = assignments.unexpired(tx, RoleAssignment.membership_id == row.id)
    with memberships.last_owner_guard(tx, [row.organization_id]):
        memberships.delete(tx, [row])
    # The membership's tag is in every fact that its assignments made.
    assignments.record_deleted(tx, ended, tags=())
