"""Whole facts with the tags they depend on: what a cache may keep (consistency.md section 3.1).

A decision from SQL reads only what it needs (facts.py). These are complete: they answer every
question about their subject or resource until one of their tags is marked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import TextClause, text

from authz_service.base.consistency import ENVIRONMENT
from authz_service.engine import tags
from authz_service.engine.facts import GROUP, MEMBERSHIP, NO_END
from authz_service.storage.database import Snapshot
from authz_service.storage.dialects import Dialect
from authz_service.storage.facts import ACTIVE, HOLDERS_SQL, SUBJECT_SQL


@dataclass(frozen=True, slots=True)
class TaggedFact:
    """A fact and what it depends on.

    Attributes:
        realm: The organization whose control set judges it, or ``*``.
        value: Plain values that compare equal if and only if the fact is the same.
        tags: It may change only when one of them is marked.
        uses_definitions: It also changes with the environment's definitions (tag ``E`` of ``*``).
        expires: The earliest end among the rows looked at, microseconds since 1970; None without.
    """

    realm: str
    value: Any
    tags: frozenset[str]
    uses_definitions: bool = False
    expires: int | None = None


def grants(snapshot: Snapshot, kind: str, subject_id: str) -> TaggedFact | None:
    """Returns ``grants(subject)`` of a membership or group, None if it does not exist.

    The value is (is active, resource id -> permission slug -> latest end); ended grants are left
    out.
    """
    parameters = {"subject": subject_id}
    subject = snapshot.connection.execute(_SUBJECT[kind], parameters).one_or_none()
    if subject is None:
        return None
    holder_ids = set(snapshot.connection.execute(_HOLDERS[kind], parameters).scalars())
    group_ids = holder_ids - {subject.id} if kind == MEMBERSHIP else holder_ids
    held: dict[str, dict[str, int]] = {}
    expires: int | None = None
    rows = snapshot.connection.execute(
        _held(snapshot.dialect),
        {
            "holders": snapshot.dialect.list_value(holder_ids),
            "membership": subject.id if kind == MEMBERSHIP else "",
        },
    )
    for resource_id, slug, end in rows:
        if end is not None:
            if end <= snapshot.now:
                continue
            expires = end if expires is None else min(expires, end)
        ends = held.setdefault(resource_id, {})
        ends[slug] = max(ends.get(slug, 0), NO_END if end is None else end)
    value = (subject.status == ACTIVE, held)
    of = (
        tags.of_membership_grants(subject.id, group_ids)
        if kind == MEMBERSHIP
        else tags.of_group_grants(group_ids)
    )
    return TaggedFact(subject.organization_id, value, of, uses_definitions=True, expires=expires)


_SUBJECT = {kind: text(SUBJECT_SQL[kind]) for kind in (MEMBERSHIP, GROUP)}
_HOLDERS = {
    kind: text(
        f"WITH RECURSIVE subject AS ({SUBJECT_SQL[kind]}), holders(id) AS ({HOLDERS_SQL[kind]})"
        " SELECT id FROM holders"
    )
    for kind in (MEMBERSHIP, GROUP)
}


@cache
def _held(dialect: Dialect) -> TextClause:
    return text(
        "SELECT a.resource_id, p.permission_slug, a.expires_at FROM role_assignments a"
        " JOIN role_permissions p ON p.role_id = a.role_id"
        f" WHERE a.subject_id IN {dialect.in_list('holders')}"
        " UNION ALL SELECT o.root_resource_id, p.permission_slug, NULL FROM membership_roles r"
        " JOIN organizations o ON o.id = r.organization_id"
        " JOIN role_permissions p ON p.role_id = r.role_id WHERE r.membership_id = :membership"
    )


def path(snapshot: Snapshot, resource_id: str) -> TaggedFact | None:
    """Returns ``path(resource)``, None if it does not exist.

    The value is (type slug, external id, ids from the organization resource down).
    """
    row = snapshot.connection.execute(_PATH, {"resource": resource_id}).one_or_none()
    if row is None:
        return None
    nodes = tuple(row.path.split("/"))
    value = (row.resource_type_slug, row.external_id, nodes)
    return TaggedFact(row.organization_id, value, tags.of_path(nodes))


_PATH = text(
    "SELECT organization_id, resource_type_slug, external_id, path FROM resources"
    " WHERE id = :resource"
)


def permissions(snapshot: Snapshot) -> TaggedFact:
    """Returns ``permissions``: every permission slug with its resource type slug."""
    rows = snapshot.connection.execute(text("SELECT slug, resource_type_slug FROM permissions"))
    value: Mapping[str, str] = {row.slug: row.resource_type_slug for row in rows}
    return TaggedFact(ENVIRONMENT, value, tags.OF_PERMISSIONS)


def credential(snapshot: Snapshot, credential_id: str) -> TaggedFact | None:
    """Returns ``credential(c)``: what authentication knows of a service credential."""
    row = snapshot.connection.execute(_CREDENTIAL, {"id": credential_id}).one_or_none()
    if row is None:
        return None
    return TaggedFact(ENVIRONMENT, tuple(row), tags.of_credential(credential_id))


_CREDENTIAL = text(
    "SELECT scopes, organization_ids, expires_at, is_revoked, secret_hash, old_secret_hash,"
    " old_secret_until FROM service_credentials WHERE id = :id"
)
