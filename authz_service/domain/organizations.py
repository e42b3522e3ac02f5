"""Organizations: customers, each the root of a resource tree and a realm of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, select

from authz_service.base import errors, ids, slugs
from authz_service.base.clock import to_datetime
from authz_service.base.pages import Cursor, Page
from authz_service.domain import events
from authz_service.storage import paging, realms
from authz_service.storage.database import Snapshot, Transaction
from authz_service.storage.tables import Organization, OrganizationConfiguration

UPDATABLE = ("name", "external_id", "metadata")


def view(row: Organization | Row[Any]) -> dict[str, Any]:
    """Returns the organization as callers and events see it."""
    return {
        "id": row.id,
        "name": row.name,
        "external_id": row.external_id or "",
        "metadata": dict(row.metadata_json),
        "everyone_group_id": row.everyone_group_id,
        "created_at": to_datetime(row.created_at),
        "updated_at": to_datetime(row.updated_at),
        "etag": events.etag(row),
    }


def not_found(key: str, value: str) -> errors.NotFound:
    """ORGANIZATION_NOT_FOUND, with the id or key as it was given."""
    return errors.NotFound("ORGANIZATION_NOT_FOUND", "no such organization", metadata={key: value})


def require(snapshot: Snapshot, organization_id: str) -> None:
    """Refuses an organization that does not exist or that the caller may not see.

    Raises:
        NotFound: ORGANIZATION_NOT_FOUND.
    """
    found = snapshot.connection.execute(
        select(Organization.id).where(Organization.id == organization_id)
    ).one_or_none()
    if found is None or not snapshot.actor.may_see(organization_id):
        raise not_found("organization_id", organization_id)


def create(
    tx: Transaction,
    *,
    name: str,
    external_id: str = "",
    metadata: Mapping[str, str] | None = None,
) -> Organization:
    """Creates an organization and its realm; ``lifecycles.create_organization`` adds the rest.

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED.
        AlreadyExists: EXTERNAL_ID_TAKEN.
        InvalidArgument: FIELD_REQUIRED, FIELD_INVALID, METADATA_INVALID.
    """
    tx.actor.require_unrestricted()
    name = slugs.display_name("name", name)
    external_id = slugs.external_id("external_id", external_id) if external_id else ""
    stored_metadata = slugs.metadata({}, metadata or {})
    organization_id = ids.new(ids.ORGANIZATION)
    _refuse_taken(tx, external_id)
    realms.create(tx, organization_id)
    row = tx.add(
        Organization(
            id=organization_id,
            name=name,
            external_id=external_id or None,
            metadata_json=stored_metadata,
            everyone_group_id=ids.new(ids.GROUP),
            root_resource_id=ids.new(ids.RESOURCE),
            **events.stamp(tx, organization_id),
        )
    )
    tx.add(
        OrganizationConfiguration(
            organization_id=organization_id,
            default_role_id=None,
            role_priority=None,
            **events.stamp(tx, organization_id),
        )
    )
    events.record(
        tx,
        "organization.created",
        realm=organization_id,
        target_type="organization",
        target_id=organization_id,
        data=view(row),
        tags=(),
    )
    return row


def get(snapshot: Snapshot, *, organization_id: str = "", external_id: str = "") -> Row[Any]:
    """Returns one organization, by its id or by the caller's key.

    Raises:
        NotFound: ORGANIZATION_NOT_FOUND.
    """
    columns = select(*Organization.__table__.columns)
    if organization_id:
        statement = columns.where(Organization.id == organization_id)
        missing = not_found("organization_id", organization_id)
    else:
        statement = columns.where(Organization.external_id == external_id)
        missing = not_found("external_id", external_id)
    row = snapshot.connection.execute(statement).one_or_none()
    if row is None or not snapshot.actor.may_see(row.id):
        raise missing
    return row


def page(
    snapshot: Snapshot, *, query: str = "", page: Page
) -> tuple[Sequence[Row[Any]], Cursor | None]:
    """Returns one page of the visible organizations, newest first.

    Args:
        query: Case-insensitive part of the name; empty = all.
    """
    statement = select(*Organization.__table__.columns)
    if snapshot.actor.organization_ids:
        statement = statement.where(Organization.id.in_(snapshot.actor.organization_ids))
    query = slugs.query("query", query)
    if query:
        statement = statement.where(Organization.name.icontains(query, autoescape=True))
    return paging.newest_first(snapshot, statement, Organization.id, page)


def for_update(tx: Transaction, organization_id: str) -> Organization:
    """Locks the organization's realm and returns its row.

    Raises:
        NotFound: ORGANIZATION_NOT_FOUND.
    """
    realms.lock(tx, organization_id)
    row = tx.session.get(Organization, organization_id)
    if row is None or not tx.actor.may_see(organization_id):
        raise not_found("organization_id", organization_id)
    return row


def update(
    tx: Transaction, organization_id: str, changes: Mapping[str, Any], *, etag: str = ""
) -> Organization:
    """Applies new values; equal ones change nothing and record no event.

    Args:
        changes: From ``UPDATABLE``; an empty external_id clears it, ``metadata`` follows C15.

    Raises:
        NotFound: ORGANIZATION_NOT_FOUND.
        AlreadyExists: EXTERNAL_ID_TAKEN.
        InvalidArgument: FIELD_REQUIRED, FIELD_INVALID, METADATA_INVALID.
        Aborted: ETAG_MISMATCH.
    """
    row = for_update(tx, organization_id)
    events.check_etag(row, etag)
    before = view(row)
    if "name" in changes:
        row.name = slugs.display_name("organization.name", changes["name"])
    if "external_id" in changes:
        external_id = changes["external_id"]
        if external_id:
            external_id = slugs.external_id("organization.external_id", external_id)
        if external_id != before["external_id"]:
            _refuse_taken(tx, external_id)
            row.external_id = external_id or None
    if "metadata" in changes:
        row.metadata_json = slugs.metadata(row.metadata_json, changes["metadata"])
    if view(row) == before:
        return row
    events.touch(tx, organization_id, row)
    after = view(row)
    events.record(
        tx,
        "organization.updated",
        realm=organization_id,
        target_type="organization",
        target_id=organization_id,
        data=after,
        previous=events.changes(before, after),
        tags=(),
    )
    return row


def _refuse_taken(tx: Transaction, external_id: str) -> None:
    if not external_id:
        return
    taken = tx.connection.execute(
        select(Organization.id).where(Organization.external_id == external_id)
    ).one_or_none()
    if taken is not None:
        raise errors.AlreadyExists(
            "EXTERNAL_ID_TAKEN", "the external id is in use", metadata={"field": "external_id"}
        )
