"""What an organization is made with, and what goes with it (product.md RS7)."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete as sql_delete
from sqlalchemy import func, select

from authz_service.base import errors
from authz_service.domain import events, groups, resources
from authz_service.domain import organizations as organization_rows
from authz_service.engine import tags
from authz_service.storage.database import Transaction
from authz_service.storage.tables import (
    Group,
    Membership,
    Organization,
    Resource,
    Role,
    RoleAssignment,
)


def create(
    tx: Transaction,
    *,
    name: str,
    external_id: str = "",
    metadata: Mapping[str, str] | None = None,
) -> Organization:
    """Creates an organization with its root resource and its group of everyone.

    Raises:
        Refusal: Those of ``organizations.create``.
    """
    row = organization_rows.create(tx, name=name, external_id=external_id, metadata=metadata)
    resources.create_root(tx, row)
    groups.create_everyone(tx, row)
    return row


def update(
    tx: Transaction, organization_id: str, changes: Mapping[str, Any], *, etag: str = ""
) -> Organization:
    """Updates an organization; its root resource follows a new name.

    Raises:
        Refusal: Those of ``organizations.update``.
    """
    former = organization_rows.for_update(tx, organization_id).name
    row = organization_rows.update(tx, organization_id, changes, etag=etag)
    if row.name != former:
        resources.rename_root(tx, row)
    return row


_COUNTED = {
    "organization_membership": Membership,
    "group": Group,
    "resource": Resource,
    "role_assignment": RoleAssignment,
}


def delete(
    tx: Transaction, organization_id: str, *, etag: str = "", allow_missing: bool = False
) -> dict[str, int]:
    """Deletes an organization and all that carries its id (RS7); its events stay.

    Returns:
        What went, by kind; kinds without any are left out. Empty if nothing was there.

    Raises:
        NotFound: ORGANIZATION_NOT_FOUND, unless ``allow_missing``.
        Aborted: ETAG_MISMATCH.
    """
    try:
        row = organization_rows.for_update(tx, organization_id)
    except errors.NotFound:
        if allow_missing:
            return {}
        raise
    events.check_etag(row, etag)
    counts = {"organization": 1}
    for kind, table in _COUNTED.items():
        counts[kind] = tx.connection.execute(
            select(func.count())
            .select_from(table)
            .where(table.__table__.c.organization_id == organization_id)
        ).scalar_one()
    counts["role"] = tx.connection.execute(
        select(func.count()).select_from(Role).where(Role.realm == organization_id)
    ).scalar_one()
    counts = {kind: count for kind, count in counts.items() if count}
    events.record(
        tx,
        "organization.deleted",
        realm=organization_id,
        target_type="organization",
        target_id=organization_id,
        data={**organization_rows.view(row), "deleted_counts": counts},
        tags=(tags.ORGANIZATION,),
    )
    # The foreign keys take everything of the organization along; its own roles are held by the
    # realm, which stays for its events.
    tx.connection.execute(sql_delete(Organization).where(Organization.id == organization_id))
    tx.connection.execute(sql_delete(Role).where(Role.realm == organization_id))
    tx.session.expunge_all()
    return counts
