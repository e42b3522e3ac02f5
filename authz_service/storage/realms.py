"""Locks realms in the one order that cannot deadlock, and tells their revisions."""

from collections.abc import Collection, Iterable

from sqlalchemy import insert, text

from authz_service.base.consistency import ENVIRONMENT
from authz_service.storage.database import Snapshot, Transaction
from authz_service.storage.tables import Realm


def lock(
    tx: Transaction,
    *organization_ids: str,
    environment: bool = False,
    definitions: bool = False,
) -> None:
    """Locks realms until the transaction ends: the environment first, then organizations by id.

    One call takes all the locks that a write needs; a second call may only repeat what is held, or
    go on in the same order: organizations after the environment alone, whose lock tells which.

    Args:
        organization_ids: Realms that the write changes. Unknown ids lock nothing: the look-up that
            follows says what is missing.
        environment: The write changes what belongs to no organization.
        definitions: The write relies on roles, permissions, types or settings of the environment
            staying as they are, and does not change them.
    """
    wanted = sorted(set(organization_ids) - {""})
    held = tx.realms.keys()
    if environment and ENVIRONMENT not in held:
        _lock(tx, [ENVIRONMENT], shared=False)
    elif definitions and ENVIRONMENT not in held and not tx.holds_definitions:
        _lock(tx, [ENVIRONMENT], shared=True)
    missing = [realm for realm in wanted if realm not in held]
    if missing:
        _lock(tx, missing, shared=False)


def _lock(tx: Transaction, realms: Collection[str], *, shared: bool) -> None:
    statement = text(
        "SELECT id, revision, last_hash FROM realms"
        f" WHERE id IN {tx.dialect.in_list('realms')} ORDER BY id"
        + tx.dialect.lock_clause(shared=shared)
    )
    rows = tx.connection.execute(statement, {"realms": tx.dialect.list_value(realms)}).all()
    for row in rows:
        if shared:
            tx.holds_definitions = True
        else:
            tx.realms[row.id] = Realm(id=row.id, revision=row.revision, last_hash=row.last_hash)


def revisions(snapshot: Snapshot, organization_ids: Iterable[str]) -> dict[str, int]:
    """Returns the revisions of the environment and of those organizations that exist."""
    statement = text(
        f"SELECT id, revision FROM realms WHERE id IN {snapshot.dialect.in_list('realms')}"
    )
    realms = {ENVIRONMENT, *organization_ids}
    rows = snapshot.connection.execute(
        statement, {"realms": snapshot.dialect.list_value(realms)}
    ).all()
    return {row.id: row.revision for row in rows}


def create(tx: Transaction, realm: str) -> None:
    """Inserts the row of a new realm, which this transaction then holds locked."""
    draft(tx, realm)
    insert_drafts(tx, [realm])


def draft(tx: Transaction, realm: str) -> None:
    """Holds a new realm that has no row yet, so that its rows can be stamped before it is sure."""
    tx.realms[realm] = Realm(id=realm, revision=0, last_hash=b"")


def insert_drafts(tx: Transaction, realms: Collection[str]) -> None:
    """Inserts the rows of realms from ``draft``."""
    if realms:
        tx.connection.execute(
            insert(Realm), [{"id": realm, "revision": 0, "last_hash": b""} for realm in realms]
        )
