"""The rows an import writes, collected while it is judged and written together."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from sqlalchemy import bindparam, delete, insert, update

from authz_service.storage.database import Transaction
from authz_service.storage.tables import (
    Base,
    Group,
    GroupMember,
    GroupNesting,
    Membership,
    MembershipRole,
    Organization,
    OrganizationConfiguration,
    Permission,
    Resource,
    ResourceAncestor,
    ResourceCount,
    ResourceType,
    ResourceTypeParent,
    Role,
    RoleAssignment,
    RolePermission,
    User,
)

# Parents before children; what is taken away goes in the other direction.
_ORDER: tuple[type[Base], ...] = (
    ResourceType,
    ResourceTypeParent,
    Permission,
    Role,
    RolePermission,
    User,
    Organization,
    OrganizationConfiguration,
    Membership,
    MembershipRole,
    Group,
    GroupMember,
    GroupNesting,
    Resource,
    ResourceAncestor,
    ResourceCount,
    RoleAssignment,
)
# Rows of one statement: parameters of one statement are limited on both databases.
_CHUNK = 2_000
CREATED, UPDATED, UNCHANGED = "created", "updated", "unchanged"


def touched(stamp: Mapping[str, int]) -> dict[str, int]:
    """Returns the columns of a stamp that a changed row gets."""
    return {"updated_at": stamp["updated_at"], "revision": stamp["revision"]}


class Changes:
    """What differs from the database, and how much of each kind there is.

    Attributes:
        counts: Kind to created, updated, unchanged.
        changed: Realms in which anything differs.
    """

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, int]] = defaultdict(
            lambda: {CREATED: 0, UPDATED: 0, UNCHANGED: 0}
        )
        self.changed: set[str] = set()
        self._inserts: dict[type[Base], list[dict[str, Any]]] = defaultdict(list)
        self._updates: dict[type[Base], dict[tuple[str, ...], list[dict[str, Any]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        self._deletes: dict[type[Base], list[dict[str, Any]]] = defaultdict(list)

    def count(self, kind: str, what: str, realm: str) -> None:
        """Counts one object of the file."""
        self.counts[kind][what] += 1
        if what != UNCHANGED:
            self.changed.add(realm)

    def insert(self, table: type[Base], **row: Any) -> None:
        """Adds a row."""
        self._inserts[table].append(row)

    def update(self, table: type[Base], key: Mapping[str, Any], **values: Any) -> None:
        """Changes columns of the row with this key."""
        row = {f"key_{name}": value for name, value in key.items()} | values
        self._updates[table][(*key, "=", *sorted(values))].append(row)

    def delete(self, table: type[Base], **key: Any) -> None:
        """Removes the row with this key."""
        self._deletes[table].append(key)

    def write(self, tx: Transaction) -> None:
        """Writes everything, a handful of statements for each table."""
        for table in reversed(_ORDER):
            self._execute(tx, self._deletes[table], lambda rows, t=table: _delete(t, rows[0]))
        for table in _ORDER:
            self._execute(tx, self._inserts[table], lambda rows, t=table: insert(t))
            for names, rows in self._updates[table].items():
                split = names.index("=")
                statement = _update(table, names[:split], names[split + 1 :])
                self._execute(tx, rows, lambda rows, s=statement: s)

    @staticmethod
    def _execute(tx: Transaction, rows: list[dict[str, Any]], statement: Any) -> None:
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            tx.connection.execute(statement(chunk), chunk)


def _delete(table: type[Base], key: Mapping[str, Any]) -> Any:
    columns = table.__table__.c
    return delete(table).where(*(columns[name] == bindparam(name) for name in key))


def _update(table: type[Base], key: tuple[str, ...], values: tuple[str, ...]) -> Any:
    columns = table.__table__.c
    return (
        update(table)
        .where(*(columns[name] == bindparam(f"key_{name}") for name in key))
        .values({name: bindparam(name) for name in values})
    )
