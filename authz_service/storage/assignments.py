"""Role assignments as stored: pages of them, and those of given subjects, resources and roles.

Every statement reaches them through an index: by subject, by resource, or all of an organization.
No planner chooses which, for an organization may hold very many of which a subject has few.
"""

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Row, TextClause, text

from authz_service.storage.database import Snapshot
from authz_service.storage.dialects import Dialect
from authz_service.storage.searches import LAST_ID

_COLUMNS = (
    "a.id, a.organization_id, a.membership_id, a.group_id, a.subject_id, a.role_id, a.resource_id,"
    " a.expires_at, a.is_end_recorded, a.created_at, a.updated_at, a.revision"
)


class Wanted(NamedTuple):
    """Which assignments a list holds; one of the first three is not empty.

    Attributes:
        organization_id: Only those of this organization; not needed with one of the next two.
        subject_ids: Only those of one of these, each named once; empty = of any.
        resource_id: Only those on this very resource; empty = on any.
        role_id: Only those of this role; empty = of any.
        type_slug: Only those on resources of this type; empty = of any.
        ends_after: Only those without end, or with one after this instant.
    """

    organization_id: str
    subject_ids: Collection[str]
    resource_id: str
    role_id: str
    type_slug: str
    ends_after: int


def page(
    snapshot: Snapshot, wanted: Wanted, *, before: str | None, limit: int
) -> Sequence[Row[Any]]:
    """Returns role assignments, newest first, at most ``limit``.

    Args:
        before: Only ids below this one; None = from the newest.
    """
    statement, parameters = _listed(snapshot, wanted, before, limit)
    return snapshot.rows(statement, parameters)


def count(snapshot: Snapshot, wanted: Wanted, *, limit: int) -> int:
    """Returns how many role assignments a list has, counted up to ``limit``."""
    statement, parameters = _listed(snapshot, wanted, None, limit, is_counted=True)
    ((found,),) = snapshot.rows(statement, parameters)
    return int(found)


def of_keys(snapshot: Snapshot, keys: Collection[tuple[str, str, str]]) -> Sequence[str]:
    """Returns the ids of the stored assignments of these (subject, resource, role) ids."""
    if not keys:
        return ()
    parameters = snapshot.dialect.rows_value("keys", list(keys))
    return [row.id for row in snapshot.rows(_of_keys(snapshot.dialect), parameters)]


@cache
def _of_keys(dialect: Dialect) -> TextClause:
    return text(
        f"SELECT a.id FROM {dialect.rows('keys', 'subject_id', 'resource_id', 'role_id')} k"
        + dialect.probe(
            "role_assignments",
            "a",
            "a.subject_id = k.subject_id AND a.resource_id = k.resource_id"
            " AND a.role_id = k.role_id",
        )
    )


def _listed(
    snapshot: Snapshot,
    wanted: Wanted,
    before: str | None,
    limit: int,
    *,
    is_counted: bool = False,
) -> tuple[TextClause, dict[str, Any]]:
    parameters: dict[str, Any] = {
        "ends_after": wanted.ends_after,
        "before": LAST_ID if before is None else before,
        "limit": limit,
    }
    if wanted.subject_ids:
        subjects = [(subject_id,) for subject_id in wanted.subject_ids]
        parameters |= snapshot.dialect.rows_value("subjects", subjects)
    elif not wanted.resource_id:
        parameters["organization"] = wanted.organization_id
    for name, value in (
        ("resource", wanted.resource_id),
        ("role", wanted.role_id),
        ("type", wanted.type_slug),
    ):
        if value:
            parameters[name] = value
    statement = _statement(
        snapshot.dialect,
        bool(wanted.subject_ids),
        bool(wanted.resource_id),
        bool(wanted.role_id),
        bool(wanted.type_slug),
        is_counted,
    )
    return statement, parameters


@cache
def _statement(
    dialect: Dialect,
    has_subjects: bool,
    has_resource: bool,
    has_role: bool,
    has_type: bool,
    is_counted: bool,
) -> TextClause:
    if has_subjects:
        place = " AND a.resource_id = :resource" if has_resource else ""
        rows = f"{dialect.rows('subjects', 'id')} s" + dialect.probe(
            "role_assignments", "a", f"a.subject_id = s.id{place}"
        )
        within = ""
    elif has_resource:
        rows = "(SELECT CAST(:resource AS text) AS id) p" + dialect.probe(
            "role_assignments", "a", "a.resource_id = p.id"
        )
        within = ""
    else:
        # The key of the table: the organization, then the id, which is the order of the list.
        rows = "role_assignments a"
        within = " AND a.organization_id = :organization"
    listed = (
        f"SELECT {_COLUMNS} FROM {rows} WHERE a.id < :before{within}"
        " AND (a.expires_at IS NULL OR a.expires_at > :ends_after)"
    )
    if has_role:
        # Judged row by row: the index of a role leads to its assignments in all organizations.
        listed += " AND a.role_id = :role"
    if has_type:
        # A role is held on resources of its own type only (product.md M11).
        listed += (
            " AND EXISTS (SELECT 1 FROM roles r WHERE r.id = a.role_id"
            " AND r.resource_type_slug = :type)"
        )
    listed += " ORDER BY a.id DESC LIMIT :limit"
    return text(f"SELECT count(*) FROM ({listed}) AS counted" if is_counted else listed)
