"""The reverse questions in SQL: what a subject reaches, who reaches a resource, and through what.

Every statement reads through an index and stops at the page's end, so that its cost follows what is
answered and not the size of the tables.
"""

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Row, TextClause, text

from authz_service.base.consistency import ENVIRONMENT
from authz_service.engine.facts import GROUP, MEMBERSHIP, NO_END, USER, ResourceRef, Subject
from authz_service.storage import poison
from authz_service.storage.database import Reading, Snapshot
from authz_service.storage.dialects import Dialect
from authz_service.storage.facts import HOLDERS_SQL, SUBJECT_SQL, TARGET_SQL

# No id sorts after it: the cursor of a first page.
LAST_ID = "~"


class Frame(NamedTuple):
    """What a question names, as far as it exists.

    Attributes:
        subject_id: Of the membership or group; None if unknown, or if none was asked.
        organization_id: Of the subject, or of the resource if no subject was asked.
        status: Of the membership; ACTIVE for a group.
        resource_id: None if unknown.
        resource_path: Ids from the organization resource down to the resource.
        permission_types: Slug to type, of the asked permissions that exist, in the order asked.
        revisions: Of the environment and of the organization asked about.
        everyone_group_id: Of that organization.
    """

    subject_id: str | None
    organization_id: str | None
    status: str | None
    resource_id: str | None
    resource_organization_id: str | None
    resource_type_slug: str | None
    resource_path: tuple[str, ...]
    permission_types: dict[str, str]
    revisions: dict[str, int]
    everyone_group_id: str | None


def frame(
    snapshot: Snapshot,
    subject: Subject | None,
    resource: ResourceRef | None,
    permission_slugs: Collection[str] = (),
) -> Frame:
    """Returns what a question names, in one statement.

    Args:
        subject: None for questions about a resource alone.
        resource: None for the organization resource of the subject's organization.
    """
    statement = _frame(
        snapshot.dialect,
        subject.kind if subject else None,
        bool(resource.id) if resource else None,
    )
    parameters = _question(snapshot.dialect, subject, resource, permission_slugs)
    (row,) = snapshot.values(statement, parameters)
    return _framed(row, permission_slugs)


def _question(
    dialect: Dialect,
    subject: Subject | None,
    resource: ResourceRef | None,
    permission_slugs: Collection[str],
) -> dict[str, Any]:
    """Returns the parameters that name a question's subject, resource and permissions."""
    parameters: dict[str, Any] = {"slugs": dialect.list_value(permission_slugs)}
    if subject is not None:
        parameters["subject"] = subject.id
        if subject.kind == USER:
            parameters["subject_organization"] = subject.organization_id
    if resource is not None:
        if resource.id:
            parameters["resource"] = resource.id
        else:
            parameters["resource_organization"] = resource.organization_id
            parameters["resource_type"] = resource.resource_type_slug
            parameters["external_id"] = resource.external_id
    return parameters


def _framed(row: Sequence[Any], permission_slugs: Collection[str]) -> Frame:
    found = {}
    for pair in (row[7] or "").split(","):
        slug, _, type_slug = pair.partition(" ")
        found[slug] = type_slug
    types = {slug: found[slug] for slug in permission_slugs if slug in found}
    revisions = {ENVIRONMENT: row[8]}
    if row[1] is not None:
        revisions[row[1]] = row[9]
    path = tuple(row[6].split("/")) if poison.is_path(row[6], row[3]) else ()
    return Frame(row[0], row[1], row[2], row[3], row[4], row[5], path, types, revisions, row[10])


def _target(by_id: bool | None, subject: str) -> str:
    if by_id is not None:
        return TARGET_SQL[by_id]
    return (
        f"SELECT r.id, r.organization_id, r.resource_type_slug, r.path FROM {subject} s"
        " JOIN organizations o ON o.id = s.organization_id"
        " JOIN resources r ON r.id = o.root_resource_id"
    )


@cache
def _frame(dialect: Dialect, kind: str | None, by_id: bool | None) -> TextClause:
    subject = f"subject AS ({SUBJECT_SQL[kind]})" if kind else ""
    target = f"target AS ({_target(by_id, 'subject')})"
    if not subject:
        subject = "subject AS (SELECT NULL AS id, organization_id, NULL AS status FROM target)"
        parts = f"{target}, {subject}"
    else:
        parts = f"{subject}, {target}"
    type_pairs = dialect.joined("slug || ' ' || resource_type_slug")
    return text(
        f"WITH {parts} SELECT s.id, s.organization_id, s.status,"
        " t.id, t.organization_id, t.resource_type_slug, t.path,"
        f" (SELECT {type_pairs} FROM permissions WHERE slug IN {dialect.in_list('slugs')}),"
        f" (SELECT revision FROM realms WHERE id = '{ENVIRONMENT}'),"
        " (SELECT revision FROM realms WHERE id = s.organization_id),"
        " (SELECT everyone_group_id FROM organizations WHERE id = s.organization_id)"
        " FROM (SELECT 1 AS one) q LEFT JOIN subject s ON q.one = 1 LEFT JOIN target t ON q.one = 1"
    )


# --- what a subject reaches ------------------------------------------------------------------


class ListedResource(NamedTuple):
    """A resource of a page, in the organization asked about; named as its columns are."""

    id: str
    resource_type_slug: str
    external_id: str
    name: str
    description: str
    parent_id: str
    path: str
    created_at: int
    updated_at: int
    depth: int
    revision: int


class Reached(NamedTuple):
    """One page of what a subject reaches, and the frame of the question.

    Attributes:
        rows: Resources strictly below the parent, newest first, at most the limit.
        held: Resource id to the asked permissions held right there; None if only one was asked,
            which is then held on every row.
    """

    frame: Frame
    rows: list[ListedResource]
    held: dict[str, set[str]] | None


def reached(
    reading: Reading,
    subject: Subject,
    parent: ResourceRef | None,
    permission_slugs: Collection[str],
    *,
    type_slugs: Collection[str],
    children_only: bool,
    after: str | None,
    limit: int,
) -> Reached:
    """Returns a page of the resources on which a subject holds an asked permission.

    One statement, so that it needs no transaction around it: round trips are most of its price.

    Args:
        parent: None for the organization resource.
        type_slugs: Only resources of these types; empty = of any.
        after: Only ids below this one.
    """
    dialect = reading.dialect
    parameters = _question(dialect, subject, parent, permission_slugs)
    parameters.update(now=reading.now, before=LAST_ID if after is None else after, limit=limit)
    if type_slugs:
        parameters["types"] = dialect.list_value(type_slugs)
    with_held = len(permission_slugs) > 1
    statement = _reached(
        dialect,
        subject.kind,
        bool(parent.id) if parent else None,
        bool(type_slugs),
        children_only,
        with_held,
    )
    found = reading.values(statement, parameters)
    # Without an order of the whole, the databases answer in any.
    found.sort(reverse=True)
    *listed, first = found
    _, subject_id, organization_id, status, resource_id, resource_organization_id, *others = first
    type_slug, types, environment_revision, revision, _, _, held_pairs = others
    framed = _framed(
        (
            subject_id, organization_id, status, resource_id, resource_organization_id, type_slug,
            None, types, environment_revision, revision, None,
        ),
        permission_slugs,
    )  # fmt: skip
    rows = [ListedResource._make(row[1:12]) for row in listed]
    if not with_held:
        return Reached(framed, rows, None)
    held: dict[str, set[str]] = {}
    for pair in filter(None, (held_pairs or "").split(",")):
        node_id, _, slug = pair.partition(" ")
        held.setdefault(node_id, set()).add(slug)
    return Reached(framed, rows, held)


def count_reached(
    snapshot: Snapshot,
    subject: Subject,
    parent: ResourceRef | None,
    permission_slugs: Collection[str],
    *,
    type_slugs: Collection[str],
    children_only: bool,
    limit: int,
) -> int:
    """Returns how many resources ``reached`` lists in all, counted up to ``limit``."""
    dialect = snapshot.dialect
    parameters = _question(dialect, subject, parent, permission_slugs)
    parameters.update(now=snapshot.now, before=LAST_ID, limit=limit)
    if type_slugs:
        parameters["types"] = dialect.list_value(type_slugs)
    statement = _count_reached(
        dialect,
        subject.kind,
        bool(parent.id) if parent else None,
        bool(type_slugs),
        children_only,
    )
    ((count,),) = snapshot.values(statement, parameters)
    return int(count)


def _reached_parts(
    dialect: Dialect, kind: str, by_id: bool | None, with_types: bool, children_only: bool
) -> str:
    """Returns the CTEs up to ``page(id)``: the ids of the page."""
    start = GROUP if kind == GROUP else MEMBERSHIP
    own = ""
    if start == MEMBERSHIP:
        own = (
            "SELECT o.root_resource_id, r.role_id, NULL AS expires_at FROM subject s"
            " JOIN membership_roles r ON r.membership_id = s.id"
            " JOIN organizations o ON o.id = s.organization_id UNION ALL "
        )
    of_types = f" AND a.type_slug IN {dialect.in_list('types')}" if with_types else ""
    covered = (
        "SELECT t.id AS ancestor_id, r.type_slug FROM target t"
        " JOIN resource_ancestors n ON n.resource_id = t.id"
        " JOIN roots r ON r.resource_id = n.ancestor_id"
    )
    if children_only:
        # Compared as one value, so that no other index than that of the children gives the order:
        # PostgreSQL might else walk the resources of everybody back from the newest.
        select = (
            "SELECT c.id AS value FROM resources c"
            " WHERE (c.parent_id, c.resource_type_slug) >= (g.ancestor_id, g.type_slug)"
            " AND (c.parent_id, c.resource_type_slug, c.id) < (g.ancestor_id, g.type_slug, :before)"
            " ORDER BY c.parent_id DESC, c.resource_type_slug DESC, c.id DESC LIMIT :limit"
        )
        sources = f"{covered} GROUP BY t.id, r.type_slug"
        # Nothing flows up: a child is reached from above, or by a grant on the child itself.
        more = (
            " UNION SELECT c.id FROM roots r CROSS JOIN target t"
            + dialect.probe("resources", "c", "c.id = r.resource_id")
            + " WHERE c.parent_id = t.id AND c.resource_type_slug = r.type_slug AND c.id < :before"
        )
    else:
        select = (
            "SELECT n.resource_id AS value FROM resource_ancestors n"
            " WHERE n.ancestor_id = g.ancestor_id AND n.resource_type_slug = g.type_slug"
            " AND n.resource_id < :before AND n.resource_id <> g.parent_id"
            " ORDER BY n.resource_id DESC LIMIT :limit"
        )
        # Below the organization resource lies everything that the subject can hold anything on.
        lies_below = (
            ""
            if by_id is None
            else (
                " AND EXISTS (SELECT 1 FROM resource_ancestors n"
                " WHERE n.resource_id = r.resource_id AND n.ancestor_id = t.id)"
            )
        )
        sources = (
            f"{covered} UNION SELECT r.resource_id, r.type_slug FROM roots r CROSS JOIN target t"
            f" WHERE r.resource_id <> t.id{lies_below}"
        )
        more = ""
    return (
        f"WITH RECURSIVE asker AS ({SUBJECT_SQL[kind]}),"
        # Inactive memberships hold nothing (M25), but the question is still about them.
        " subject AS (SELECT id, organization_id FROM asker WHERE status = 'ACTIVE'),"
        f" target AS ({_target(by_id, 'asker')}), holders(id) AS ({HOLDERS_SQL[start]}),"
        f" held(resource_id, role_id, expires_at) AS ({own}"
        "SELECT a.resource_id, a.role_id, a.expires_at FROM holders h"
        + dialect.probe("role_assignments", "a", "a.subject_id = h.id")
        + "), asked(slug, type_slug) AS (SELECT slug, resource_type_slug FROM permissions"
        f" WHERE slug IN {dialect.in_list('slugs')}),"
        " roots(resource_id, type_slug, slug) AS"
        " (SELECT h.resource_id, a.type_slug, a.slug FROM held h"
        " JOIN role_permissions p ON p.role_id = h.role_id"
        f" JOIN asked a ON a.slug = p.permission_slug{of_types}"
        f" JOIN roles x ON x.id = p.role_id WHERE {poison.valid_sql('h')}),"
        f" sources(ancestor_id, type_slug) AS ({sources}),"
        " page(id) AS (SELECT id FROM (SELECT b.value AS id FROM"
        " (SELECT s.ancestor_id, s.type_slug, t.id AS parent_id FROM sources s"
        f" CROSS JOIN target t) g{dialect.each(select, 'b')}{more}"
        f"{'' if more else ' UNION SELECT NULL WHERE 1 = 0'}"
        ") found ORDER BY id DESC LIMIT :limit)"
    )


@cache
def _reached(
    dialect: Dialect,
    kind: str,
    by_id: bool | None,
    with_types: bool,
    children_only: bool,
    with_held: bool,
) -> TextClause:
    held = "NULL"
    if with_held:
        held_pairs = dialect.joined("resource_id || ' ' || slug")
        held = f"(SELECT {held_pairs} FROM roots)"
    type_pairs = dialect.joined("slug || ' ' || type_slug")
    return text(
        f"{_reached_parts(dialect, kind, by_id, with_types, children_only)}"
        # One row for the question, named as the columns of the resources that follow it.
        " SELECT 0 AS kind, s.id AS id, s.organization_id AS resource_type_slug,"
        " s.status AS external_id, t.id AS name, t.organization_id AS description,"
        f" t.resource_type_slug AS parent_id, (SELECT {type_pairs} FROM asked) AS path,"
        f" (SELECT revision FROM realms WHERE id = '{ENVIRONMENT}') AS created_at,"
        " (SELECT revision FROM realms WHERE id = s.organization_id) AS updated_at,"
        f" NULL AS depth, NULL AS revision, {held} AS held"
        " FROM (SELECT 1 AS one) q LEFT JOIN asker s ON q.one = 1 LEFT JOIN target t ON q.one = 1"
        " UNION ALL SELECT 1, r.id, coalesce(r.resource_type_slug, ''), r.external_id, r.name,"
        " r.description, r.parent_id, r.path, r.created_at, r.updated_at, r.depth, r.revision, NULL"
        " FROM page" + dialect.probe("resources", "r", "r.id = page.id")
    )


@cache
def _count_reached(
    dialect: Dialect, kind: str, by_id: bool | None, with_types: bool, children_only: bool
) -> TextClause:
    return text(
        f"{_reached_parts(dialect, kind, by_id, with_types, children_only)}"
        " SELECT count(*) FROM page"
    )


# --- through what a subject has a permission -------------------------------------------------


class Held(NamedTuple):
    """A role that contains the permission, held on a node of a path.

    Attributes:
        holder_id: The membership or group that holds it.
        assignment_id: None for an own role of a membership.
        expires_at: None = no end. Ended ones are included.
    """

    holder_id: str
    assignment_id: str | None
    resource_id: str
    role_id: str
    role_slug: str
    expires_at: int | None


def held_on_path(
    snapshot: Snapshot,
    subject_id: str,
    kind: str,
    node_ids: Collection[str],
    permission_slugs: Collection[str],
) -> list[Held]:
    """Returns every grant of a subject on these nodes whose role contains a permission.

    Args:
        kind: MEMBERSHIP or GROUP.
        node_ids: The organization resource must be among them for own roles to be found.
    """
    rows = snapshot.values(
        _held_on_path(snapshot.dialect, kind, True),
        {
            "subject": subject_id,
            "nodes": snapshot.dialect.list_value(node_ids),
            "slugs": snapshot.dialect.list_value(permission_slugs),
        },
    )
    return [Held(*row) for row in rows]


@cache
def _held_on_path(dialect: Dialect, kind: str, with_permissions: bool) -> TextClause:
    containing = ""
    if with_permissions:
        containing = (
            " WHERE EXISTS (SELECT 1 FROM role_permissions p WHERE p.role_id = h.role_id"
            f" AND p.permission_slug IN {dialect.in_list('slugs')})"
        )
    own = ""
    if kind == MEMBERSHIP:
        own = (
            "SELECT DISTINCT s.id, NULL AS assignment_id, o.root_resource_id, r.role_id,"
            # After DISTINCT, PostgreSQL takes an untyped NULL for text.
            " CAST(NULL AS bigint) AS expires_at"
            " FROM subject s JOIN membership_roles r ON r.membership_id = s.id"
            " JOIN organizations o ON o.id = s.organization_id"
            f" WHERE o.root_resource_id IN {dialect.in_list('nodes')} UNION ALL "
        )
    return text(
        f"WITH RECURSIVE subject AS ({SUBJECT_SQL[kind]}), holders(id) AS ({HOLDERS_SQL[kind]}),"
        " held(holder_id, assignment_id, resource_id, role_id, expires_at) AS"
        f" ({own}SELECT h.id, a.id, a.resource_id, a.role_id, a.expires_at"
        f" FROM (SELECT id AS node_id FROM resources WHERE id IN {dialect.in_list('nodes')}) n"
        " CROSS JOIN holders h"
        + dialect.probe(
            "role_assignments",
            "a",
            "a.subject_id = h.id AND a.resource_id = n.node_id"
            f" AND (a.expires_at IS NULL OR a.expires_at <= {NO_END})",
        )
        + ") SELECT h.holder_id, h.assignment_id, h.resource_id, h.role_id, r.slug, h.expires_at"
        f" FROM held h JOIN roles r ON r.id = h.role_id{containing}"
    )


def holders(snapshot: Snapshot, subject: Subject) -> set[str]:
    """Returns a membership or group and every group it belongs to, in one statement (M10a)."""
    return {id for (id,) in snapshot.values(_HOLDERS[subject.kind], {"subject": subject.id})}


_HOLDERS = {
    kind: text(
        f"WITH RECURSIVE subject AS ({SUBJECT_SQL[kind]}), holders(id) AS ({HOLDERS_SQL[kind]})"
        " SELECT id FROM holders"
    )
    for kind in (MEMBERSHIP, GROUP)
}


def direct_groups(snapshot: Snapshot, subject_id: str, kind: str) -> set[str]:
    """Returns the groups that a membership or group is directly in, without everyone."""
    statement = _DIRECT_GROUPS[kind]
    return {group_id for (group_id,) in snapshot.values(statement, {"subject": subject_id})}


_DIRECT_GROUPS = {
    MEMBERSHIP: text("SELECT group_id FROM group_members WHERE membership_id = :subject"),
    GROUP: text("SELECT group_id FROM group_nestings WHERE member_group_id = :subject"),
}


def groups_above(snapshot: Snapshot, group_ids: Collection[str]) -> dict[str, set[str]]:
    """Returns, for these groups and all that contain them, the groups each is directly in."""
    statement = _groups_above(snapshot.dialect)
    above: dict[str, set[str]] = {}
    for inner, outer in snapshot.values(
        statement, {"groups": snapshot.dialect.list_value(group_ids)}
    ):
        above.setdefault(inner, set()).add(outer)
    return above


@cache
def _groups_above(dialect: Dialect) -> TextClause:
    return text(
        "WITH RECURSIVE edges(inner_id, outer_id) AS ("
        " SELECT member_group_id, group_id FROM group_nestings"
        f" WHERE member_group_id IN {dialect.in_list('groups')}"
        " UNION SELECT n.member_group_id, n.group_id FROM edges e"
        " JOIN group_nestings n ON n.member_group_id = e.outer_id)"
        " SELECT inner_id, outer_id FROM edges"
    )


class ContainingRole(NamedTuple):
    """A role that contains a permission."""

    id: str
    slug: str
    resource_type_slug: str


def roles_containing(
    snapshot: Snapshot, permission_slug: str, organization_id: str
) -> list[ContainingRole]:
    """Returns the roles of an organization that contain a permission."""
    parameters = {
        "permission": permission_slug,
        "organization": organization_id,
        "environment": ENVIRONMENT,
    }
    return [ContainingRole._make(row) for row in snapshot.values(_ROLES_CONTAINING, parameters)]


_ROLES_CONTAINING = text(
    "SELECT r.id, r.slug, r.resource_type_slug FROM role_permissions p"
    " JOIN roles r ON r.id = p.role_id AND r.realm IN (:environment, :organization)"
    " WHERE p.permission_slug = :permission"
)


# --- what a subject may do on a resource -----------------------------------------------------


def valid_roles(
    snapshot: Snapshot, subject_id: str, kind: str, node_ids: Collection[str]
) -> set[str]:
    """Returns the roles that a subject holds on these nodes and that have not ended."""
    rows = snapshot.values(
        _held_on_path(snapshot.dialect, kind, False),
        {"subject": subject_id, "nodes": snapshot.dialect.list_value(node_ids)},
    )
    held = [Held(*row) for row in rows]
    return {
        each.role_id for each in held if each.expires_at is None or snapshot.now < each.expires_at
    }


class Node(NamedTuple):
    """A resource of a path."""

    id: str
    resource_type_slug: str
    external_id: str
    name: str


def path_rows(snapshot: Snapshot, path: Sequence[str]) -> list[Node]:
    """Returns the nodes of a path, in its order."""
    rows = snapshot.values(
        _path_rows(snapshot.dialect), {"nodes": snapshot.dialect.list_value(path)}
    )
    places = {resource_id: place for place, resource_id in enumerate(path)}
    return sorted(map(Node._make, rows), key=lambda node: places[node.id])


@cache
def _path_rows(dialect: Dialect) -> TextClause:
    return text(
        "SELECT id, resource_type_slug, external_id, name FROM resources"
        f" WHERE id IN {dialect.in_list('nodes')}"
    )


def permissions_page(
    snapshot: Snapshot,
    role_ids: Collection[str],
    type_slugs: Collection[str],
    *,
    after: str | None,
    limit: int,
) -> Sequence[Row[Any]]:
    """Returns the permissions of these types that some of these roles contain, by slug."""
    return snapshot.connection.execute(
        _permissions_page(snapshot.dialect),
        {
            "roles": snapshot.dialect.list_value(role_ids),
            "types": snapshot.dialect.list_value(type_slugs),
            "after": after or "",
            "limit": limit,
        },
    ).all()


@cache
def _permissions_page(dialect: Dialect) -> TextClause:
    return text(
        "SELECT p.slug, p.id, p.name, p.description, p.resource_type_slug,"
        " p.assignable_to_api_keys, p.created_at, p.updated_at, p.revision FROM permissions p"
        f" WHERE p.slug > :after AND p.resource_type_slug IN {dialect.in_list('types')}"
        " AND EXISTS (SELECT 1 FROM role_permissions r WHERE r.permission_slug = p.slug"
        f" AND r.role_id IN {dialect.in_list('roles')}) ORDER BY p.slug LIMIT :limit"
    )
