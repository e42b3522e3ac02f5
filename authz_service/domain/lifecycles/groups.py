"""What goes with a group (product.md RS7)."""

from authz_service.base import errors
from authz_service.domain import events, groups
from authz_service.domain.lifecycles import assignments
from authz_service.storage.database import Transaction
from authz_service.storage.tables import RoleAssignment


def delete(tx: Transaction, group_id: str, *, etag: str = "", allow_missing: bool = False) -> int:
    """Deletes a group, its role assignments, and its places in other groups; its members stay.

    Returns:
        How many role assignments went with it.

    Raises:
        NotFound: GROUP_NOT_FOUND, unless ``allow_missing``.
        FailedPrecondition: GROUP_BUILT_IN.
        Aborted: ETAG_MISMATCH.
    """
    try:
        row = groups.for_update(tx, group_id)
    except errors.NotFound:
        if allow_missing:
            return 0
        raise
    groups.refuse_built_in(row.kind)
    events.check_etag(row, etag)
    ended = assignments.unexpired(tx, RoleAssignment.group_id == row.id)
    groups.delete(tx, row)
    # The group's tag is in every fact that its assignments made.
    assignments.record_deleted(tx, ended, tags=())
    return len(ended)
