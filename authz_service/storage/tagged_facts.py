"""Whole facts with the tags they depend on: what a cache may keep (consistency.md section 3.1).

A decision from SQL reads only what it needs (facts.py). These are complete: they answer every
question about their subject or resource until one of their tags is marked.
"""

from collections.abc import Collection, Mapping
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import TextClause, text

from authz_service.base.consistency import ENVIRONMENT
from authz_service.engine import tags
from authz_service.engine.facts import (
    GROUP,
    MEMBERSHIP,
    NO_END,
    USER,
    Grants,
    Path,
    ResourceRef,
    Subject,
)
from authz_service.storage import poison
from authz_service.storage.database import Snapshot
from authz_service.storage.dialects import Dialect
from authz_service.storage.facts import ACTIVE, end_of, path_of

# Grants of one load, each a permission of a role on a resource. A load of more is not worth
# keeping: whoever asks reads only what its question needs.
GRANTS_MAX = 50_000


class TaggedFact(NamedTuple):
    """A fact and what it depends on.

    Attributes:
        realm: The organization whose control set judges it, or ``*``.
        value: Grants, Path, a mapping of permission slugs to types, or a revision; equal values
            if and only if the fact is the same.
        tags: It may change only when one of them is marked.
        uses_definitions: It also changes with the environment's definitions (tag ``E`` of ``*``).
        expires: The earliest end among the rows looked at, microseconds since 1970; None without.
        size: How many parts the value has, for an estimate of its memory.
    """

    realm: str
    value: Any
    tags: frozenset[str]
    uses_definitions: bool = False
    expires: int | None = None
    size: int = 1


class Loaded(NamedTuple):
    """Facts of one instant.

    Attributes:
        grants, paths: What was asked for and exists.
        permissions, credential: None if not asked for; the credential also if it does not exist.
        revisions: Of the environment and of the organizations of what was asked for.
    """

    grants: dict[Subject, TaggedFact]
    paths: dict[ResourceRef, TaggedFact]
    permissions: TaggedFact | None
    credential: TaggedFact | None
    revisions: dict[str, int]


def load(
    snapshot: Snapshot,
    subjects: Collection[Subject] = (),
    resources: Collection[ResourceRef] = (),
    *,
    permissions: bool = False,
    credential_id: str = "",
    realms: Collection[str] = (),
) -> Loaded | None:
    """Returns facts in at most three statements, None if they are more than ``GRANTS_MAX``.

    Args:
        realms: Whose revisions are to be read too.
    """
    grants = _grants(snapshot, subjects) if subjects else {}
    if grants is None:
        return None
    realms = {ENVIRONMENT, *realms, *(fact.realm for fact in grants.values())}
    realms.update(ref.organization_id for ref in resources if not ref.id)
    paths: dict[ResourceRef, TaggedFact] = {}
    types: dict[str, str] = {}
    revisions: dict[str, int] = {}
    credential = None
    shape = (
        any(ref.id for ref in resources),
        any(not ref.id for ref in resources),
        permissions,
        bool(credential_id),
    )
    parameters = _parameters(snapshot.dialect, resources, realms, credential_id)
    for kind, first, second, third, fourth, number in snapshot.values(
        _others(snapshot.dialect, *shape), parameters
    ):
        if kind in (_PATH_BY_ID, _PATH_BY_KEY):
            if kind == _PATH_BY_ID:
                ref, id = ResourceRef(first), first
            else:
                id, *key = first.split(" ", 3)
                ref = ResourceRef("", *key)
            path = path_of(snapshot, id, second, third, fourth)
            if path is not None:
                paths[ref] = _tagged(path, id)
        elif kind == _PERMISSION:
            types[first] = second
        elif kind == _REVISION:
            revisions[first] = number
        else:
            credential = TaggedFact(ENVIRONMENT, number, tags.of_credential(first))
    every = TaggedFact(ENVIRONMENT, types, tags.OF_PERMISSIONS, size=len(types))
    return Loaded(grants, paths, every if permissions else None, credential, revisions)


def differs(snapshot: Snapshot, one: Any, other: Any) -> bool:
    """True if two values of a fact give different answers in a snapshot.

    What was held on a resource that is gone may still be in cached grants: nobody can ask about it
    any more, so its deletion marks nobody (consistency.md 3.2).
    """
    if one == other:
        return False
    if not (isinstance(one, Grants) and isinstance(other, Grants)):
        return True
    if (one.organization_id, one.is_active) != (other.organization_id, other.is_active):
        return True
    (held,), (also,) = one.holders, other.holders
    ids = [id for id in {*held, *also} if held.get(id) != also.get(id)]
    return bool(
        snapshot.values(_existing(snapshot.dialect), {"ids": snapshot.dialect.list_value(ids)})
    )


@cache
def _existing(dialect: Dialect) -> TextClause:
    return text(f"SELECT id FROM resources WHERE id IN {dialect.in_list('ids')} LIMIT 1")


# --- grants ------------------------------------------------------------------------------------


def _grants(snapshot: Snapshot, subjects: Collection[Subject]) -> dict[Subject, TaggedFact] | None:
    dialect = snapshot.dialect
    asked: dict[str, Subject] = {
        f"{subject.organization_id} {subject.id}": subject for subject in subjects
    }
    users = [(each.organization_id, each.id) for each in subjects if each.kind == USER]
    parameters = {
        "memberships": dialect.list_value([s.id for s in subjects if s.kind == MEMBERSHIP]),
        "groups": dialect.list_value([s.id for s in subjects if s.kind == GROUP]),
        **(dialect.rows_value("users", users) if users else {}),
    }
    known: dict[Subject, tuple[str, str, str]] = {}
    holders: dict[Subject, list[str]] = {}
    for key, id, organization_id, status, holder_id in snapshot.values(
        _holders(dialect, bool(users)), parameters
    ):
        subject = asked[key]
        if holder_id is None:
            known[subject] = (id, organization_id, status)
        else:
            holders.setdefault(subject, []).append(holder_id)
    if not known:
        return {}
    memberships = {id for subject, (id, _, _) in known.items() if subject.kind != GROUP}
    every = memberships.union(*(holders.get(subject, ()) for subject in known))
    rows = snapshot.values(
        _held(dialect),
        {
            **dialect.rows_value("holders", [(id,) for id in every]),
            "memberships": dialect.list_value(memberships),
            "limit": GRANTS_MAX + 1,
        },
    )
    if len(rows) > GRANTS_MAX:
        return None
    held: dict[str, list[tuple[str, str, int]]] = {}
    for holder_id, resource_id, slug, expires_at, role_id, assignment_id in rows:
        if assignment_id is not None:
            end = end_of(snapshot, expires_at, role_id)
        elif role_id is not None:
            end = NO_END
        else:
            snapshot.poisoned(poison.MEMBERSHIP_ROLES)
            continue
        held.setdefault(holder_id, []).append((resource_id, slug, end))
    for _, _, status in known.values():
        if not poison.is_status(status):
            snapshot.poisoned(poison.MEMBERSHIPS)
    return {
        subject: _fact(subject.kind, *seen, holders.get(subject, []), held, snapshot.now)
        for subject, seen in known.items()
    }


def _fact(
    kind: str,
    id: str,
    organization_id: str,
    status: str,
    group_ids: list[str],
    held: Mapping[str, list[tuple[str, str, int]]],
    now: int,
) -> TaggedFact:
    flat: dict[str, dict[str, int]] = {}
    expires: int | None = None
    size = 1
    for holder_id in {id, *group_ids}:
        for resource_id, slug, end in held.get(holder_id, ()):
            if end <= now:
                continue
            if end != NO_END and (expires is None or end < expires):
                expires = end
            ends = flat.setdefault(resource_id, {})
            if end > ends.get(slug, 0):
                ends[slug] = end
                size += 1
    of = (
        tags.of_group_grants(group_ids)
        if kind == GROUP
        else tags.of_membership_grants(id, group_ids)
    )
    value = Grants(organization_id, status == ACTIVE, (flat,))
    return TaggedFact(organization_id, value, of, True, expires, size)


@cache
def _holders(dialect: Dialect, with_users: bool) -> TextClause:
    subjects = [
        f"SELECT ' ' || id, id, organization_id, {poison.STATUS_SQL} FROM memberships"
        f" WHERE id IN {dialect.in_list('memberships')}",
        f"SELECT ' ' || id, id, organization_id, '{ACTIVE}' FROM groups"
        f" WHERE id IN {dialect.in_list('groups')}",
    ]
    if with_users:
        subjects.append(
            "SELECT g.organization_id || ' ' || g.user_id, m.id, m.organization_id,"
            " coalesce(m.status, '')"
            f" FROM {dialect.rows('users', 'organization_id', 'user_id')} g"
            + dialect.probe(
                "memberships",
                "m",
                "m.organization_id = g.organization_id AND m.user_id = g.user_id",
            )
        )
    return text(
        f"WITH RECURSIVE subject(asked, id, organization_id, status) AS ("
        f"{' UNION ALL '.join(subjects)}), holders(asked, id) AS ("
        "SELECT s.asked, m.group_id FROM subject s"
        " JOIN group_members m ON m.membership_id = s.id"
        " UNION ALL SELECT s.asked, o.everyone_group_id FROM subject s"
        " JOIN organizations o ON o.id = s.organization_id WHERE s.id >= 'om_' AND s.id < 'om`'"
        " UNION ALL SELECT s.asked, s.id FROM subject s WHERE s.id >= 'group_' AND s.id < 'group`'"
        " UNION SELECT h.asked, n.group_id FROM holders h"
        " JOIN group_nestings n ON n.member_group_id = h.id)"
        " SELECT asked, id, organization_id, status, NULL AS holder FROM subject"
        " UNION ALL SELECT asked, NULL, NULL, NULL, id FROM holders"
    )


@cache
def _held(dialect: Dialect) -> TextClause:
    return text(
        "SELECT a.subject_id, a.resource_id, p.permission_slug, a.expires_at, x.id, a.id"
        f" FROM {dialect.rows('holders', 'id')} h"
        + dialect.probe("role_assignments", "a", "a.subject_id = h.id")
        + " JOIN role_permissions p ON p.role_id = a.role_id LEFT JOIN roles x ON x.id = p.role_id"
        " UNION ALL SELECT r.membership_id, o.root_resource_id, p.permission_slug, NULL, x.id, NULL"
        f" FROM membership_roles r JOIN organizations o ON o.id = r.organization_id"
        " JOIN role_permissions p ON p.role_id = r.role_id LEFT JOIN roles x ON x.id = p.role_id"
        f" WHERE r.membership_id IN {dialect.in_list('memberships')} LIMIT :limit"
    )


# --- paths, permissions, the credential, revisions -----------------------------------------------

_PATH_BY_ID, _PATH_BY_KEY, _PERMISSION, _REVISION, _CREDENTIAL = range(5)


def _tagged(path: Path, id: str) -> TaggedFact:
    nodes = path.resource_ids
    return TaggedFact(path.organization_id, path, tags.of_path(nodes or (id,)), size=len(nodes) + 1)


def _parameters(
    dialect: Dialect, resources: Collection[ResourceRef], realms: Collection[str], credential: str
) -> dict[str, Any]:
    parameters: dict[str, Any] = {"realms": dialect.list_value(realms)}
    ids = [ref.id for ref in resources if ref.id]
    keys = [ref[1:] for ref in resources if not ref.id]
    if ids:
        parameters["ids"] = dialect.list_value(ids)
    if keys:
        parameters.update(dialect.rows_value("keys", keys))
    if credential:
        parameters["credential"] = credential
    return parameters


@cache
def _others(
    dialect: Dialect, by_id: bool, by_key: bool, permissions: bool, credential: bool
) -> TextClause:
    none = "CAST(NULL AS bigint)"
    parts = [
        f"SELECT {_REVISION} AS kind, id AS a, NULL AS b, NULL AS c, NULL AS d, revision AS n"
        f" FROM realms WHERE id IN {dialect.in_list('realms')}"
    ]
    if by_id:
        parts.append(
            f"SELECT {_PATH_BY_ID}, id, organization_id, resource_type_slug, path, {none}"
            f" FROM resources WHERE id IN {dialect.in_list('ids')}"
        )
    if by_key:
        columns = ("organization_id", "resource_type_slug", "external_id")
        condition = " AND ".join(f"r.{column} = g.{column}" for column in columns)
        key = " || ' ' || ".join(("r.id", *(f"g.{column}" for column in columns)))
        parts.append(
            f"SELECT {_PATH_BY_KEY}, {key}, r.organization_id, r.resource_type_slug, r.path,"
            f" {none} FROM {dialect.rows('keys', *columns)} g"
            + dialect.probe("resources", "r", condition)
        )
    if permissions:
        parts.append(
            f"SELECT {_PERMISSION}, slug, resource_type_slug, NULL, NULL, {none} FROM permissions"
        )
    if credential:
        parts.append(
            f"SELECT {_CREDENTIAL}, id, NULL, NULL, NULL, revision FROM service_credentials"
            " WHERE id = :credential"
        )
    return text(" UNION ALL ".join(parts))
