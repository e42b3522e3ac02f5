"""Who has a permission on a resource, through what, and how it is shown: one statement a page.

Round trips are most of the price of such a question, and one statement needs no transaction around
it. Its rows are of several kinds, which ``_KINDS`` names; each kind reads through an index and
stops at the page's end, so that the cost follows what is answered and not the size of the tables.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import TextClause, text

from authz_service.base.consistency import ENVIRONMENT
from authz_service.engine.facts import ResourceRef
from authz_service.storage import members, poison, role_orders
from authz_service.storage.database import Reading
from authz_service.storage.dialects import Dialect
from authz_service.storage.facts import TARGET_SQL
from authz_service.storage.members import HeldRole, Person
from authz_service.storage.role_orders import RoleOrders
from authz_service.storage.searches import LAST_ID, Frame, Held, Node

# Ids start with their kind: the groups among the subjects of an index are one range of it, the
# memberships another.
_IS_GROUP = "a.subject_id >= 'group_' AND a.subject_id < 'group`'"
_IS_MEMBERSHIP = "a.subject_id >= 'om_' AND a.subject_id < 'om`'"
_IS_VALID = poison.valid_sql("a")
# Nobody is a member of what cannot be interpreted.
_IS_SOUND = poison.path_sql("t")

# Kinds of rows. The question's own, the lowest, is always there.
_ASKED, _ROLE, _NODE, _HOLDING_GROUP, _EDGE, _ORDER = range(6)
_BY_OWN_ROLE, _BY_ASSIGNMENT, _IN_GROUP, _PERSON, _ORGANIZATION_ROLE = range(6, 11)
_TEXTS, _NUMBERS = 10, 3


class ResourceMembers(NamedTuple):
    """A page of members, newest first, and all that is shown of them.

    Attributes:
        nodes: The resources of the asked path, from the organization resource down.
        groups: Valid assignments of groups on the nodes, everyone's too.
        inner: For each group that holds the permission or lies in one that does, those directly
            in it.
        ids: Memberships, at most the limit.
        held: Membership id to its own roles and valid assignments.
        direct_groups: Membership id to those of the groups of ``inner`` it is directly in.
        people: Membership id to what is shown of it.
        roles: Membership id to role id to its organization-level roles (M10).
        orders: What the order of these roles is made of.
    """

    frame: Frame
    nodes: list[Node]
    groups: list[Held]
    inner: dict[str, set[str]]
    ids: list[str]
    held: dict[str, list[Held]]
    direct_groups: dict[str, set[str]]
    people: dict[str, Person]
    roles: dict[str, dict[str, HeldRole]]
    orders: RoleOrders


def page(
    reading: Reading,
    resource: ResourceRef,
    permission_slug: str,
    *,
    direct_only: bool,
    after: str | None,
    limit: int,
) -> ResourceMembers:
    """Returns a page of the active memberships that have a permission on a resource.

    Args:
        direct_only: Only what is held on the resource itself counts.
        after: Only ids below this one.
    """
    statement = _page(reading.dialect, bool(resource.id), direct_only)
    parameters = _parameters(reading, resource, permission_slug, after, limit)
    of_kind: dict[int, list[Any]] = defaultdict(list)
    for row in reading.values(statement, parameters):
        of_kind[row[0]].append(row[1:])
    (asked,) = of_kind[_ASKED]
    frame = _framed(asked, permission_slug)
    root_id = frame.resource_path[0] if frame.resource_path else ""
    slugs = {row[0]: row[1] for row in of_kind[_ROLE]}
    groups = [
        Held(row[0], row[1], row[2], row[3], slugs[row[3]], row[_TEXTS])
        for row in of_kind[_HOLDING_GROUP]
    ]
    inner: dict[str, set[str]] = {group.holder_id: set() for group in groups}
    for row in of_kind[_EDGE]:
        inner.setdefault(row[0], set()).add(row[1])
        inner.setdefault(row[1], set())
    people = {
        row[0]: Person(
            row[0], frame.organization_id or "", row[1], row[2], *row[_TEXTS:], *row[3:10]
        )
        for row in of_kind[_PERSON]
    }
    ids = sorted(people, reverse=True)
    held: dict[str, list[Held]] = {id: [] for id in ids}
    direct_groups: dict[str, set[str]] = {id: set() for id in ids}
    for row in of_kind[_BY_OWN_ROLE]:
        held[row[0]].append(Held(row[0], None, root_id, row[1], slugs[row[1]], None))
    for row in of_kind[_BY_ASSIGNMENT]:
        held[row[0]].append(Held(row[0], row[1], row[2], row[3], slugs[row[3]], row[_TEXTS]))
    for row in of_kind[_IN_GROUP]:
        direct_groups[row[0]].add(row[1])
    depth = {resource_id: place for place, resource_id in enumerate(frame.resource_path)}
    nodes = sorted((Node(*row[:4]) for row in of_kind[_NODE]), key=lambda node: depth[node.id])
    return ResourceMembers(
        frame,
        nodes,
        groups,
        inner,
        ids,
        held,
        direct_groups,
        people,
        members.held_roles(row[:5] for row in of_kind[_ORGANIZATION_ROLE]),
        role_orders.collect(
            ((row[_TEXTS], row[0], row[1]) for row in of_kind[_ORDER]),
            (frame.organization_id,) if frame.organization_id else (),
        ),
    )


def count(
    reading: Reading,
    resource: ResourceRef,
    permission_slug: str,
    *,
    direct_only: bool,
    limit: int,
) -> int:
    """Returns how many memberships ``page`` lists in all, counted up to ``limit``."""
    statement = _count(reading.dialect, bool(resource.id), direct_only)
    parameters = _parameters(reading, resource, permission_slug, None, limit)
    ((found,),) = reading.values(statement, parameters)
    return int(found)


def _parameters(
    reading: Reading, resource: ResourceRef, permission_slug: str, after: str | None, limit: int
) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "permission": permission_slug,
        "now": reading.now,
        "before": LAST_ID if after is None else after,
        "limit": limit,
    }
    if resource.id:
        parameters["resource"] = resource.id
    else:
        parameters["resource_organization"] = resource.organization_id
        parameters["resource_type"] = resource.resource_type_slug
        parameters["external_id"] = resource.external_id
    return parameters


def _framed(row: Sequence[Any], permission_slug: str) -> Frame:
    resource_id, organization_id, type_slug, path, permission_type, everyone_group_id = row[:6]
    revisions = {ENVIRONMENT: row[_TEXTS]}
    if organization_id is not None:
        revisions[organization_id] = row[_TEXTS + 1]
    return Frame(
        None,
        organization_id,
        None,
        resource_id,
        organization_id,
        type_slug,
        tuple(path.split("/")) if poison.is_path(path, resource_id) else (),
        {} if permission_type is None else {permission_slug: permission_type},
        revisions,
        everyone_group_id,
    )


def _sources(dialect: Dialect, by_id: bool, direct_only: bool) -> str:
    """Returns the CTEs from the question up to ``page(id)``."""
    nodes = (
        f"SELECT t.id FROM target t WHERE {_IS_SOUND}"
        if direct_only
        else "SELECT n.ancestor_id FROM target t JOIN resource_ancestors n ON n.resource_id = t.id"
        f" WHERE {_IS_SOUND}"
    )
    active = "JOIN memberships m ON m.id = {id} AND m.status = 'ACTIVE'"
    by_own_role = (
        # A role may be held from two sources (RO6): one row, or a page would end early.
        "SELECT DISTINCT o.membership_id AS value FROM membership_roles o"
        f" {active.format(id='o.membership_id')}"
        " WHERE o.organization_id = g.organization_id AND o.role_id = g.role_id"
        " AND o.membership_id < :before ORDER BY o.membership_id DESC LIMIT :limit"
    )
    by_assignment = (
        "SELECT a.subject_id AS value FROM role_assignments a"
        f" {active.format(id='a.subject_id')}"
        " WHERE a.resource_id = g.resource_id AND a.role_id = g.role_id"
        f" AND {_IS_MEMBERSHIP} AND a.subject_id < :before AND {_IS_VALID}"
        " ORDER BY a.subject_id DESC LIMIT :limit"
    )
    in_group = (
        "SELECT i.membership_id AS value FROM group_members i"
        f" {active.format(id='i.membership_id')}"
        " WHERE i.group_id = g.group_id AND i.membership_id < :before"
        " ORDER BY i.membership_id DESC LIMIT :limit"
    )
    anybody = (
        "SELECT m.id AS value FROM memberships m WHERE m.organization_id = g.organization_id"
        " AND m.status = 'ACTIVE' AND m.id < :before ORDER BY m.id DESC LIMIT :limit"
    )
    return (
        f"WITH RECURSIVE target AS MATERIALIZED ({TARGET_SQL[by_id]}),"
        " asked AS MATERIALIZED (SELECT t.id, t.organization_id, t.resource_type_slug, t.path,"
        " o.everyone_group_id, o.root_resource_id FROM target t"
        " JOIN organizations o ON o.id = t.organization_id),"
        f" nodes(id) AS MATERIALIZED ({nodes}),"
        " containing(id, slug) AS MATERIALIZED (SELECT r.id, r.slug FROM asked q"
        + dialect.probe("role_permissions", "p", "p.permission_slug = :permission")
        + dialect.probe("roles", "r", "r.id = p.role_id")
        + f" WHERE r.realm = '{ENVIRONMENT}' OR r.realm = q.organization_id),"
        " own(organization_id, role_id) AS (SELECT q.organization_id, c.id FROM asked q"
        " JOIN nodes n ON n.id = q.root_resource_id CROSS JOIN containing c),"
        " places(resource_id, role_id) AS (SELECT n.id, c.id FROM nodes n CROSS JOIN containing c),"
        " holding(group_id, assignment_id, resource_id, role_id, expires_at) AS MATERIALIZED ("
        "SELECT a.subject_id, a.id, a.resource_id, a.role_id, a.expires_at FROM places g"
        + dialect.probe(
            "role_assignments",
            "a",
            f"a.resource_id = g.resource_id AND a.role_id = g.role_id AND {_IS_GROUP}"
            f" AND {_IS_VALID}",
        )
        + "), edges(outer_id, inner_id) AS ("
        "SELECT n.group_id, n.member_group_id FROM holding h"
        " JOIN group_nestings n ON n.group_id = h.group_id"
        " UNION SELECT n.group_id, n.member_group_id FROM edges e"
        " JOIN group_nestings n ON n.group_id = e.inner_id),"
        " within(group_id) AS MATERIALIZED"
        " (SELECT group_id FROM holding UNION SELECT inner_id FROM edges),"
        " everyone(organization_id) AS (SELECT DISTINCT q.organization_id FROM holding h"
        " JOIN asked q ON q.everyone_group_id = h.group_id),"
        " page(id) AS MATERIALIZED (SELECT DISTINCT value AS id FROM ("
        f"SELECT b.value FROM own g{dialect.each(by_own_role, 'b')}"
        f" UNION ALL SELECT b.value FROM places g{dialect.each(by_assignment, 'b')}"
        f" UNION ALL SELECT b.value FROM within g{dialect.each(in_group, 'b')}"
        f" UNION ALL SELECT b.value FROM everyone g{dialect.each(anybody, 'b')}"
        ") sources ORDER BY id DESC LIMIT :limit)"
    )


def _row(kind: int, texts: Sequence[str], numbers: Sequence[str] = (), source: str = "") -> str:
    """Returns the SELECT of one kind of rows, filled up to the columns that all kinds have."""
    # A type for each, once, in the first SELECT: PostgreSQL takes an untyped NULL for text.
    columns = [*texts, *["NULL"] * (_TEXTS - len(texts)), *numbers]
    columns += ["CAST(NULL AS bigint)"] * (_NUMBERS - len(numbers))
    return f"SELECT {kind}, {', '.join(columns)}{source}"


@cache
def _page(dialect: Dialect, by_id: bool, direct_only: bool) -> TextClause:
    realms = f"(SELECT organization_id AS id FROM asked UNION ALL SELECT '{ENVIRONMENT}') wanted"
    kinds = (
        _row(
            _ASKED,
            (
                "q.id",
                "q.organization_id",
                "q.resource_type_slug",
                "q.path",
                "(SELECT resource_type_slug FROM permissions WHERE slug = :permission)",
                "q.everyone_group_id",
            ),
            (
                f"(SELECT revision FROM realms WHERE id = '{ENVIRONMENT}')",
                "(SELECT revision FROM realms WHERE id = q.organization_id)",
            ),
            " FROM (SELECT 1 AS one) one LEFT JOIN asked q ON one.one = 1",
        ),
        _row(_ROLE, ("id", "slug"), (), " FROM containing"),
        _row(
            _NODE,
            ("r.id", "r.resource_type_slug", "r.external_id", "r.name"),
            (),
            " FROM target t JOIN resource_ancestors n ON n.resource_id = t.id"
            + dialect.probe("resources", "r", "r.id = n.ancestor_id")
            + f" WHERE {_IS_SOUND}",
        ),
        _row(
            _HOLDING_GROUP,
            ("group_id", "assignment_id", "resource_id", "role_id"),
            ("expires_at",),
            " FROM holding",
        ),
        _row(_EDGE, ("outer_id", "inner_id"), (), " FROM edges"),
        _row(
            _ORDER,
            ("realm", "value"),
            ("kind",),
            f" FROM ({role_orders.sql(dialect, realms)}) orders",
        ),
        _row(
            _BY_OWN_ROLE,
            ("h.membership_id", "h.role_id"),
            (),
            # A role may be held from two sources (RO6); it is one grant.
            " FROM (SELECT DISTINCT o.membership_id, o.role_id FROM page m"
            + dialect.probe("membership_roles", "o", "o.membership_id = m.id")
            + " JOIN own c ON c.role_id = o.role_id) h",
        ),
        _row(
            _BY_ASSIGNMENT,
            ("a.subject_id", "a.id", "a.resource_id", "a.role_id"),
            ("a.expires_at",),
            " FROM page m CROSS JOIN nodes n"
            + dialect.probe(
                "role_assignments",
                "a",
                f"a.subject_id = m.id AND a.resource_id = n.id AND {_IS_VALID}",
            )
            + " JOIN containing c ON c.id = a.role_id",
        ),
        _row(
            _IN_GROUP,
            ("i.membership_id", "i.group_id"),
            (),
            " FROM page m"
            + dialect.probe("group_members", "i", "i.membership_id = m.id")
            # Not a join: the planner may not hash those, and there may be very many groups.
            + " WHERE (i.group_id IN (SELECT group_id FROM within) OR 1 = 0)",
        ),
        _row(
            _PERSON,
            (
                "m.id",
                "m.user_id",
                "m.status",
                "u.email",
                "u.first_name",
                "u.last_name",
                "u.name",
                "u.profile_picture_url",
                "u.external_id",
                "o.name",
            ),
            ("m.created_at", "m.updated_at", "m.revision"),
            " FROM page p"
            + dialect.probe("memberships", "m", "m.id = p.id")
            + dialect.probe("users", "u", "u.id = m.user_id")
            + dialect.probe("organizations", "o", "o.id = m.organization_id"),
        ),
        _row(
            _ORGANIZATION_ROLE,
            ("membership_id", "role_id", "slug", "source", "group_id"),
            (),
            " FROM shown_roles",
        ),
    )
    return text(
        f"{_sources(dialect, by_id, direct_only)},"
        f" {members.organization_roles_sql(dialect, '(SELECT id FROM page)', 'shown_roles')} "
        + " UNION ALL ".join(kinds)
    )


@cache
def _count(dialect: Dialect, by_id: bool, direct_only: bool) -> TextClause:
    return text(f"{_sources(dialect, by_id, direct_only)} SELECT count(*) FROM page")
