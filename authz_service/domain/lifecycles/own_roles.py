"""Changes of the own roles of very many memberships: what they were, and what became of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import select

from authz_service.base.clock import to_datetime
from authz_service.base.pages import PAGE_SIZE_MAX
from authz_service.domain import events, memberships
from authz_service.storage.database import Transaction
from authz_service.storage.tables import Membership


def chunks(membership_ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yields ids a page at a time, as ``memberships.views`` takes them."""
    for start in range(0, len(membership_ids), PAGE_SIZE_MAX):
        yield membership_ids[start : start + PAGE_SIZE_MAX]


def seen(tx: Transaction, membership_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns id to membership as callers see it now, in the given order."""
    found: dict[str, dict[str, Any]] = {}
    for some in chunks(membership_ids):
        views = memberships.views_by_id(tx, some)
        found.update((membership_id, views[membership_id]) for membership_id in some)
    return found


def record_changed(tx: Transaction, former: Mapping[str, dict[str, Any]]) -> None:
    """Records what became of memberships, each in its organization.

    What made the change has marked a tag that is in every fact about their grants.

    Args:
        former: From ``seen``, before the change.
    """
    for some in chunks(list(former)):
        rows = {
            row.id: row
            for row in tx.session.scalars(
                select(Membership).where(tx.dialect.among(Membership.id, some))
            )
        }
        views = memberships.views_by_id(tx, some)
        for membership_id in some:
            row = rows[membership_id]
            events.touch(tx, row.organization_id, row)
            after = views[membership_id] | {
                "updated_at": to_datetime(row.updated_at),
                "etag": events.etag(row),
            }
            events.record(
                tx,
                "organization_membership.updated",
                realm=row.organization_id,
                target_type="organization_membership",
                target_id=membership_id,
                data=after,
                previous=events.changes(former[membership_id], after),
                tags=(),
            )
