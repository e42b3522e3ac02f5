"""Service credentials: what calling services present, and what they may do with it."""

from dataclasses import dataclass

from sqlalchemy import select

from authz_service.storage.database import Database
from authz_service.storage.tables import ServiceCredential


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
    """Returns the present state of a credential, None if there is none.

    Raises:
        Unavailable: DATABASE_UNAVAILABLE.
    """
    table = ServiceCredential.__table__.c
    statement = select(
        table.id,
        table.scopes,
        table.organization_ids,
        table.expires_at,
        table.is_revoked,
        table.secret_hash,
        table.old_secret_hash,
        table.old_secret_until,
        table.revision,
    ).where(table.id == credential_id)
    row = next(iter(database.rows(statement, {})), None)
    if row is None:
        return None
    hashes: list[tuple[bytes, int | None]] = [(row.secret_hash, None)]
    if row.old_secret_hash is not None:
        hashes.append((row.old_secret_hash, row.old_secret_until))
    return Known(
        id=row.id,
        hashes=tuple(hashes),
        scopes=frozenset(row.scopes),
        organization_ids=frozenset(row.organization_ids),
        expires_at=row.expires_at,
        is_revoked=row.is_revoked,
        revision=row.revision,
    )
