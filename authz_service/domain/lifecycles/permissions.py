"""What a deleted permission is taken out of (product.md 4.8, RS7)."""

from collections.abc import Sequence

from sqlalchemy import func, select

from authz_service.base import errors
from authz_service.base.consistency import ENVIRONMENT
from authz_service.base.pages import PAGE_SIZE_MAX
from authz_service.domain import events, permissions, roles
from authz_service.storage import realms
from authz_service.storage.database import Transaction
from authz_service.storage.tables import Role, RolePermission


def delete(
    tx: Transaction,
    slug: str,
    *,
    cascade: bool = False,
    etag: str = "",
    allow_missing: bool = False,
) -> None:
    """Deletes a permission, with ``cascade`` also from every role that contains it.

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED.
        NotFound: PERMISSION_NOT_FOUND, unless ``allow_missing``.
        FailedPrecondition: PERMISSION_IN_USE.
        Aborted: ETAG_MISMATCH.
    """
    tx.actor.require_unrestricted()
    try:
        row = permissions.for_update(tx, slug)
    except errors.NotFound:
        if allow_missing:
            return
        raise
    events.check_etag(row, etag)
    containing = select(RolePermission.role_id).where(RolePermission.permission_slug == slug)
    # Whoever puts a permission into a role holds the environment, which is held alone here: no
    # role is added to these.
    count = tx.connection.execute(
        select(func.count()).select_from(containing.subquery())
    ).scalar_one()
    if count and not cascade:
        raise errors.FailedPrecondition(
            "PERMISSION_IN_USE", "roles contain the permission", metadata={"role": count}
        )
    owners = tx.connection.execute(
        select(Role.realm).distinct().where(Role.id.in_(containing))
    ).scalars()
    realms.lock(tx, *(set(owners) - {ENVIRONMENT}), environment=True)
    # Read under their locks: an organization may have gone meanwhile, and its roles with it.
    role_ids = (
        tx.connection.execute(select(Role.id).where(Role.id.in_(containing)).order_by(Role.id))
        .scalars()
        .all()
    )
    # The foreign keys take it out of them.
    permissions.delete(tx, row)
    for start in range(0, len(role_ids), PAGE_SIZE_MAX):
        _record_taken_out(tx, slug, role_ids[start : start + PAGE_SIZE_MAX])


def _record_taken_out(tx: Transaction, slug: str, role_ids: Sequence[str]) -> None:
    """Records that roles do not contain the permission any more, each in its realm."""
    contained = roles.permissions_of(tx, role_ids)
    rows = tx.session.scalars(
        select(Role).where(tx.dialect.among(Role.id, role_ids)).order_by(Role.id)
    )
    for row in rows:
        present = contained[row.id]
        before = roles.view(row, {*present, slug})
        events.touch(tx, row.realm, row)
        # The environment's tag, marked with the permission, is in every fact about grants.
        roles.record(tx, "role.permissions_changed", row, present, before=before, tags=())
