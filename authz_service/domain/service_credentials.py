"""Service credentials: what calling services present, and what they may do with it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Row,
    Text,
    and_,
    bindparam,
    cast,
    func,
    or_,
    select,
)
from sqlalchemy import update as sql_update

from authz_service.base import errors, ids, secrets, slugs
from authz_service.base.actor import Actor
from authz_service.base.clock import to_datetime
from authz_service.base.consistency import ENVIRONMENT
from authz_service.base.pages import Cursor, Page
from authz_service.base.secrets import Secret
from authz_service.domain import events
from authz_service.engine import limits, tags
from authz_service.storage import paging, poison, realms, statements
from authz_service.storage.database import Database, Snapshot, Transaction
from authz_service.storage.tables import Organization, ServiceCredential

# Product.md C12, in the order in which a credential shows them.
SCOPES = (
    "check",
    "list",
    "explain",
    "read",
    "watch",
    "authenticate",
    "write:organizations",
    "write:users",
    "write:memberships",
    "write:roles",
    "write:resources",
    "write:assignments",
    "write:flags",
    "write:api_keys",
    "write:sessions",
    "write:directories",
    "write:audit",
    "read:audit",
    "scim",
    "admin",
)
ACTIVE, EXPIRED, REVOKED = "ACTIVE", "EXPIRED", "REVOKED"
STATES = (ACTIVE, EXPIRED, REVOKED)
_DAY = 24 * 3_600 * 1_000_000
_OVERLAP_MAX = limits.ROTATION_OVERLAP_DAYS_MAX * _DAY
# A use that is less than this later than the one stored is not worth a new row version.
_USES_APART = 20 * 1_000_000


@dataclass(frozen=True, slots=True)
class Known:
    """A credential as authentication needs it; instants in microseconds since 1970.

    Attributes:
        hashes: (keyed hash, the first instant at which it no longer counts or None).
    """

    id: str
    hashes: tuple[tuple[bytes, int | None], ...]
    scopes: frozenset[str]
    organization_ids: frozenset[str]
    expires_at: int | None
    is_revoked: bool
    revision: int


def find(database: Database, credential_id: str) -> Known | None:
    """Returns the present state of a credential, None if there is none or it makes no sense.

    Raises:
        Unavailable: DATABASE_UNAVAILABLE.
    """
    table = ServiceCredential.__table__.c
    statement = select(
        table.id,
        # As text: a row that cannot be read must not be an error of the statement.
        cast(table.scopes, Text).label("scopes"),
        cast(table.organization_ids, Text).label("organization_ids"),
        table.expires_at,
        table.is_revoked,
        table.secret_hash,
        table.old_secret_hash,
        table.old_secret_until,
        table.revision,
    ).where(table.id == credential_id)
    row = next(iter(database.rows(statement, {}, name=statements.CREDENTIAL)), None)
    if row is None:
        return None
    scopes, organization_ids = poison.names(row.scopes), poison.names(row.organization_ids)
    if not (scopes and organization_ids is not None and row.secret_hash) or row.is_revoked is None:
        # Without its organizations it would be unrestricted.
        database.poisoned(poison.SERVICE_CREDENTIALS)
        return None
    hashes: list[tuple[bytes, int | None]] = [(row.secret_hash, None)]
    if row.old_secret_hash is not None:
        hashes.append((row.old_secret_hash, row.old_secret_until))
    return Known(
        id=row.id,
        hashes=tuple(hashes),
        scopes=scopes,
        organization_ids=organization_ids,
        expires_at=row.expires_at,
        is_revoked=row.is_revoked,
        revision=row.revision,
    )


def view(row: ServiceCredential | Row[Any], now: int) -> dict[str, Any]:
    """Returns the credential as callers and events see it at an instant."""
    return {
        "id": row.id,
        "name": row.name,
        "scopes": list(row.scopes),
        "organization_ids": list(row.organization_ids),
        "expires_at": None if row.expires_at is None else to_datetime(row.expires_at),
        "state": f"SERVICE_CREDENTIAL_STATE_{state(row, now)}",
        "obfuscated_secret": row.obfuscated_secret,
        "last_used_at": None if row.last_used_at is None else to_datetime(row.last_used_at),
        "created_at": to_datetime(row.created_at),
        "updated_at": to_datetime(row.updated_at),
        "etag": events.etag(row),
    }


def state(row: ServiceCredential | Row[Any], now: int) -> str:
    """Returns ACTIVE, EXPIRED or REVOKED."""
    if row.is_revoked:
        return REVOKED
    if row.expires_at is not None and row.expires_at <= now:
        return EXPIRED
    return ACTIVE


def not_found(credential_id: str) -> errors.NotFound:
    """SERVICE_CREDENTIAL_NOT_FOUND, with the id as it was given."""
    return errors.NotFound(
        "SERVICE_CREDENTIAL_NOT_FOUND",
        "no such service credential",
        metadata={"service_credential_id": credential_id},
    )


def create(
    tx: Transaction,
    *,
    key: bytes,
    name: str,
    scopes: Collection[str],
    organization_ids: Collection[str] = (),
    expires_at: int | None = None,
) -> tuple[ServiceCredential, Secret]:
    """Creates a credential and returns it with its secret, which is kept nowhere.

    Args:
        key: What secrets are hashed under.
        organization_ids: Empty = unrestricted.
        expires_at: Microseconds since 1970, in the future; None = no end.

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED, SCOPE_MISSING.
        NotFound: ORGANIZATION_NOT_FOUND.
        InvalidArgument: FIELD_REQUIRED, FIELD_INVALID, REQUEST_TOO_LARGE.
        ResourceExhausted: LIMIT_REACHED.
    """
    tx.actor.require_unrestricted()
    name = slugs.display_name("name", name)
    stored_scopes = _scopes("scopes", scopes)
    stored_organization_ids = _organization_ids("organization_ids", organization_ids)
    _require_future("expires_at", expires_at, tx.now)
    _refuse_climbing(tx.actor, stored_scopes)
    realms.lock(tx, environment=True)
    _require_organizations(tx, organization_ids)
    active = tx.connection.execute(
        select(func.count()).select_from(ServiceCredential).where(_in_state(ACTIVE, tx.now))
    ).scalar_one()
    if active >= tx.limits.service_credentials_max:
        raise errors.limit_reached("service_credentials", maximum=tx.limits.service_credentials_max)
    credential_id = ids.new(ids.CREDENTIAL)
    secret = secrets.make(secrets.SERVICE_CREDENTIAL, ids.CREDENTIAL, credential_id)
    row = tx.add(
        ServiceCredential(
            id=credential_id,
            name=name,
            scopes=stored_scopes,
            organization_ids=stored_organization_ids,
            expires_at=expires_at,
            is_revoked=False,
            secret_hash=secrets.hashed(key, secret.reveal()),
            obfuscated_secret=secrets.obfuscated(secret.reveal()),
            old_secret_hash=None,
            old_secret_until=None,
            last_used_at=None,
            **events.stamp(tx, ENVIRONMENT),
        )
    )
    # Unknown credentials are never cached, so a new one makes no fact untrue.
    _record(tx, "service_credential.created", row, marked=())
    return row, secret


def page(
    snapshot: Snapshot, *, states: Collection[str] = (), page: Page
) -> tuple[Sequence[Row[Any]], Cursor | None]:
    """Returns one page of credentials, newest first.

    They belong to the deployment, so that a restricted caller sees none (C16).

    Args:
        states: Of ``STATES``; empty = all.
    """
    if snapshot.actor.organization_ids:
        return (), None
    statement = select(*ServiceCredential.__table__.columns)
    if states:
        statement = statement.where(or_(*(_in_state(each, snapshot.now) for each in states)))
    return paging.newest_first(snapshot, statement, ServiceCredential.id, page)


def update(
    tx: Transaction, credential_id: str, changes: Mapping[str, Any], *, etag: str = ""
) -> ServiceCredential:
    """Applies new values; equal ones change nothing and record no event.

    Args:
        changes: Of name, scopes, organization_ids, expires_at (None = no end).

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED, SCOPE_MISSING.
        NotFound: SERVICE_CREDENTIAL_NOT_FOUND, ORGANIZATION_NOT_FOUND.
        FailedPrecondition: SERVICE_CREDENTIAL_NOT_ACTIVE.
        InvalidArgument: FIELD_INVALID, REQUEST_TOO_LARGE.
        Aborted: ETAG_MISMATCH.
    """
    tx.actor.require_unrestricted()
    new: dict[str, Any] = {}
    if "name" in changes:
        name = slugs.not_cleared("service_credential.name", changes["name"])
        new["name"] = slugs.display_name("service_credential.name", name)
    if "scopes" in changes:
        if not changes["scopes"]:
            raise errors.field_invalid("service_credential.scopes", "may not be empty")
        new["scopes"] = _scopes("service_credential.scopes", changes["scopes"])
        _refuse_climbing(tx.actor, new["scopes"])
    if "organization_ids" in changes:
        new["organization_ids"] = _organization_ids(
            "service_credential.organization_ids", changes["organization_ids"]
        )
    if "expires_at" in changes:
        _require_future("service_credential.expires_at", changes["expires_at"], tx.now)
        new["expires_at"] = changes["expires_at"]
    row = _for_update(tx, credential_id)
    _require_organizations(tx, changes.get("organization_ids", ()))
    events.check_etag(row, etag)
    _require_active(row, tx.now)
    before = view(row, tx.now)
    for name, value in new.items():
        setattr(row, name, value)
    if view(row, tx.now) == before:
        return row
    events.touch(tx, ENVIRONMENT, row)
    _record(tx, "service_credential.updated", row, before=before)
    return row


def rotate(
    tx: Transaction, credential_id: str, *, key: bytes, overlap: int
) -> tuple[ServiceCredential, Secret]:
    """Gives a credential a new secret and returns both.

    Args:
        key: What secrets are hashed under.
        overlap: Microseconds, 0 to 7 days, for which the former secret stays valid; what was left
            of an earlier overlap ends now.

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED, SCOPE_MISSING.
        NotFound: SERVICE_CREDENTIAL_NOT_FOUND.
        FailedPrecondition: SERVICE_CREDENTIAL_NOT_ACTIVE.
        InvalidArgument: FIELD_INVALID.
    """
    tx.actor.require_unrestricted()
    if not 0 <= overlap <= _OVERLAP_MAX:
        raise errors.field_invalid("overlap", f"0 to {limits.ROTATION_OVERLAP_DAYS_MAX} days")
    row = _for_update(tx, credential_id)
    _require_active(row, tx.now)
    # Whoever holds the new secret has the credential's scopes.
    _refuse_climbing(tx.actor, row.scopes)
    before = view(row, tx.now)
    secret = secrets.make(secrets.SERVICE_CREDENTIAL, ids.CREDENTIAL, row.id)
    row.old_secret_hash = row.secret_hash if overlap else None
    row.old_secret_until = tx.now + overlap if overlap else None
    row.secret_hash = secrets.hashed(key, secret.reveal())
    row.obfuscated_secret = secrets.obfuscated(secret.reveal())
    events.touch(tx, ENVIRONMENT, row)
    _record(tx, "service_credential.rotated", row, before=before)
    return row, secret


def revoke(tx: Transaction, credential_id: str, *, etag: str = "") -> ServiceCredential:
    """Ends a credential for good; revoked already, it stays as it is.

    Raises:
        PermissionDenied: ORGANIZATION_RESTRICTED.
        NotFound: SERVICE_CREDENTIAL_NOT_FOUND.
        Aborted: ETAG_MISMATCH.
    """
    tx.actor.require_unrestricted()
    row = _for_update(tx, credential_id)
    events.check_etag(row, etag)
    if row.is_revoked:
        return row
    before = view(row, tx.now)
    row.is_revoked = True
    events.touch(tx, ENVIRONMENT, row)
    _record(tx, "service_credential.revoked", row, before=before)
    return row


def record_uses(tx: Transaction, uses: Mapping[str, int]) -> None:
    """Notes when credentials were last used: no change of the object, so without event (C6).

    Args:
        uses: Credential id to microseconds since 1970; ids that do not exist are passed over.
    """
    table = ServiceCredential
    statement = (
        sql_update(table)
        .where(
            table.id == bindparam("used_id"),
            or_(
                table.last_used_at.is_(None),
                table.last_used_at < bindparam("used_at") - _USES_APART,
            ),
        )
        .values(last_used_at=bindparam("used_at"))
    )
    # In the order of their ids: two processes that note the same credentials wait for each other.
    tx.connection.execute(
        statement, [{"used_id": each, "used_at": uses[each]} for each in sorted(uses)]
    )


def _for_update(tx: Transaction, credential_id: str) -> ServiceCredential:
    realms.lock(tx, environment=True)
    row = tx.session.get(ServiceCredential, credential_id)
    if row is None:
        raise not_found(credential_id)
    return row


def _scopes(field: str, given: Collection[str]) -> list[str]:
    """Returns the scopes, each once, in the order of ``SCOPES``."""
    if not given:
        raise errors.field_required(field)
    if len(given) > limits.CREDENTIAL_SCOPES_MAX:
        raise errors.request_too_large(
            field, maximum=limits.CREDENTIAL_SCOPES_MAX, actual=len(given)
        )
    for i, scope in enumerate(given):
        if scope not in SCOPES:
            raise errors.field_invalid(f"{field}[{i}]", "one of the scopes")
    return [scope for scope in SCOPES if scope in given]


def _organization_ids(field: str, given: Collection[str]) -> list[str]:
    if len(given) > limits.CREDENTIAL_ORGANIZATIONS_MAX:
        raise errors.request_too_large(
            field, maximum=limits.CREDENTIAL_ORGANIZATIONS_MAX, actual=len(given)
        )
    for i, organization_id in enumerate(given):
        if not organization_id:
            raise errors.field_required(f"{field}[{i}]")
    return sorted(set(given))


def _require_future(field: str, instant: int | None, now: int) -> None:
    if instant is not None and instant <= now:
        raise errors.field_invalid(field, "in the future")


def _require_organizations(tx: Transaction, organization_ids: Collection[str]) -> None:
    if not organization_ids:
        return
    found = set(
        tx.connection.execute(
            select(Organization.id).where(Organization.id.in_(organization_ids))
        ).scalars()
    )
    for organization_id in organization_ids:
        if organization_id not in found:
            raise errors.NotFound(
                "ORGANIZATION_NOT_FOUND",
                "no such organization",
                metadata={"organization_id": organization_id},
            )


def _require_active(row: ServiceCredential, now: int) -> None:
    present = state(row, now)
    if present != ACTIVE:
        raise errors.FailedPrecondition(
            "SERVICE_CREDENTIAL_NOT_ACTIVE",
            f"the service credential is {present.lower()}",
            metadata={"state": present},
        )


def _refuse_climbing(actor: Actor, scopes: Collection[str]) -> None:
    """Refuses to hand out more than the caller has itself (quality.md section 6)."""
    for scope in scopes:
        if not actor.has_scope(scope):
            raise errors.PermissionDenied(
                "SCOPE_MISSING",
                f"the credential lacks the scope {scope}",
                metadata={"scope": scope},
            )


def _in_state(wanted: str, now: int) -> ColumnElement[bool]:
    table = ServiceCredential
    if wanted == REVOKED:
        return table.is_revoked.is_(True)
    has_ended = table.expires_at <= now
    if wanted == EXPIRED:
        return and_(table.is_revoked.is_(False), has_ended)
    return and_(table.is_revoked.is_(False), or_(table.expires_at.is_(None), ~has_ended))


def _record(
    tx: Transaction,
    kind: str,
    row: ServiceCredential,
    *,
    before: Mapping[str, Any] | None = None,
    marked: tuple[str, ...] | None = None,
) -> None:
    after = view(row, tx.now)
    events.record(
        tx,
        kind,
        realm=ENVIRONMENT,
        target_type="service_credential",
        target_id=row.id,
        data=after,
        previous=events.changes(before, after) if before else None,
        tags=(tags.credential(row.id),) if marked is None else marked,
    )
