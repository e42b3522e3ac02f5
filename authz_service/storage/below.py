"""Pages of the directory's trees as stored: what lies below a resource, who belongs to a group.

Every statement reads through an index, type by type or group by group, and stops at the page's end,
so that its cost follows what is answered and not the size of the tables. Searches for a part of a
name are the exception: they read on until the page is full.
"""

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Row, TextClause, text

from authz_service.storage.database import Snapshot
from authz_service.storage.dialects import Dialect
from authz_service.storage.searches import LAST_ID

_RESOURCE_COLUMNS = (
    "r.id, r.organization_id, r.resource_type_slug, r.external_id, r.name, r.description,"
    " r.parent_id, r.depth, r.path, r.created_at, r.updated_at, r.revision"
)
_NAMED = " AND lower(r.name) LIKE lower(:pattern) ESCAPE '\\'"


def resources_page(
    snapshot: Snapshot,
    *,
    organization_id: str,
    parent_id: str,
    type_slug: str,
    is_root: bool,
    with_parent: bool,
    children_only: bool,
    query: str,
    before: str | None,
    limit: int,
) -> Sequence[Row[Any]]:
    """Returns resources of one organization, newest first, at most ``limit``.

    Args:
        parent_id: Only what is below it.
        type_slug: Only of this type; empty = all.
        is_root: The parent is the organization resource.
        with_parent: The parent itself is listed too.
        children_only: Only what is directly below the parent.
        query: Part of the name, whatever the case; empty = all.
        before: Only ids below this one; None = from the newest.
    """
    statement = _resources_page(
        snapshot.dialect, bool(type_slug), is_root, children_only, bool(query)
    )
    parameters = {
        "organization": organization_id,
        "parent": parent_id,
        "excluded": "" if with_parent else parent_id,
        "before": LAST_ID if before is None else before,
        "limit": limit,
    }
    if type_slug:
        parameters["type"] = type_slug
    if query:
        parameters["pattern"] = pattern(query)
    return snapshot.rows(statement, parameters)


def pattern(query: str) -> str:
    """Returns the LIKE pattern that finds a text anywhere.

    The database lowers it as it lowers the column: its ``lower`` may know fewer letters than ours.
    """
    escaped = query
    for special in ("\\", "%", "_"):
        escaped = escaped.replace(special, f"\\{special}")
    return f"%{escaped}%"


@cache
def _resources_page(
    dialect: Dialect, has_type: bool, is_root: bool, children_only: bool, has_query: bool
) -> TextClause:
    types = "(SELECT slug FROM resource_types) t"
    if has_type:
        types = "(SELECT slug FROM resource_types WHERE slug = :type) t"
    named = _NAMED if has_query else ""
    if children_only:
        # Compared as one value, so that no other index than that of the children gives the order:
        # PostgreSQL might else walk the resources of everybody back from the newest.
        each = (
            "SELECT r.id AS value FROM resources r"
            " WHERE (r.parent_id, r.resource_type_slug) >= (:parent, t.slug)"
            f" AND (r.parent_id, r.resource_type_slug, r.id) < (:parent, t.slug, :before){named}"
            " ORDER BY r.parent_id DESC, r.resource_type_slug DESC, r.id DESC LIMIT :limit"
        )
        ids = f"SELECT b.value AS id FROM {types}{dialect.each(each, 'b')}"
    elif is_root and not has_type:
        ids = (
            "SELECT r.id FROM resources r WHERE r.organization_id = :organization"
            f" AND r.id < :before AND r.id <> :excluded{named}"
        )
    else:
        resource = dialect.probe("resources", "r", "r.id = n.resource_id") if has_query else ""
        each = (
            f"SELECT n.resource_id AS value FROM resource_ancestors n{resource}"
            " WHERE n.ancestor_id = :parent AND n.resource_type_slug = t.slug"
            f" AND n.resource_id < :before AND n.resource_id <> :excluded{named}"
            " ORDER BY n.resource_id DESC LIMIT :limit"
        )
        ids = f"SELECT b.value AS id FROM {types}{dialect.each(each, 'b')}"
    return text(
        f"WITH page(id) AS ({ids} ORDER BY id DESC LIMIT :limit) SELECT {_RESOURCE_COLUMNS}"
        f" FROM page{dialect.probe('resources', 'r', 'r.id = page.id')} ORDER BY r.id DESC"
    )


_MEMBERSHIP_COLUMNS = (
    "s.id, s.organization_id, s.user_id, s.status, s.created_at, s.updated_at, s.revision"
)


class Members(NamedTuple):
    """Which memberships a list of members of a group holds.

    Attributes:
        group_id: Of a group with member rows; everyone has none.
        recursive: Also those in the groups in it, at any depth.
        statuses: Only those in one of these.
    """

    group_id: str
    recursive: bool
    statuses: Collection[str]


def members_page(
    snapshot: Snapshot, wanted: Members, *, before: str | None, limit: int
) -> Sequence[Row[Any]]:
    """Returns memberships in a group, newest first, each once, at most ``limit``.

    Args:
        before: Only ids below this one; None = from the newest.
    """
    statement = _members_page(snapshot.dialect, wanted.recursive)
    return snapshot.rows(statement, _parameters(snapshot, wanted, before, limit))


def count_members(snapshot: Snapshot, wanted: Members, *, limit: int) -> int:
    """Returns how many memberships a list has, counted up to ``limit``."""
    statement = _count_members(snapshot.dialect, wanted.recursive)
    ((found,),) = snapshot.rows(statement, _parameters(snapshot, wanted, None, limit))
    return int(found)


def _parameters(
    snapshot: Snapshot, wanted: Members, before: str | None, limit: int
) -> dict[str, Any]:
    return {
        "group": wanted.group_id,
        "statuses": snapshot.dialect.list_value(wanted.statuses),
        "before": LAST_ID if before is None else before,
        "limit": limit,
    }


def _member_ids(dialect: Dialect, recursive: bool) -> str:
    """The WITH clauses that end in ``page(id)``."""
    inside = "SELECT id FROM groups WHERE id = :group"
    if recursive:
        inside += (
            " UNION SELECT n.member_group_id FROM inside i"
            " JOIN group_nestings n ON n.group_id = i.id"
        )
    each = (
        "SELECT m.membership_id AS value FROM group_members m"
        + dialect.probe("memberships", "s", "s.id = m.membership_id")
        + " WHERE m.group_id = g.id AND m.membership_id < :before"
        f" AND s.status IN {dialect.in_list('statuses')}"
        " ORDER BY m.membership_id DESC LIMIT :limit"
    )
    return (
        f"WITH RECURSIVE inside(id) AS ({inside}), page(id) AS ("
        f"SELECT DISTINCT b.value AS id FROM inside g{dialect.each(each, 'b')}"
        " ORDER BY id DESC LIMIT :limit)"
    )


def _memberships(dialect: Dialect) -> str:
    return (
        f" SELECT {_MEMBERSHIP_COLUMNS} FROM page"
        + dialect.probe("memberships", "s", "s.id = page.id")
        + " ORDER BY s.id DESC"
    )


@cache
def _members_page(dialect: Dialect, recursive: bool) -> TextClause:
    return text(_member_ids(dialect, recursive) + _memberships(dialect))


@cache
def _count_members(dialect: Dialect, recursive: bool) -> TextClause:
    return text(_member_ids(dialect, recursive) + " SELECT count(*) FROM page")
