"""Pages of memberships and of the users behind them, and the organization-level roles of a page.

Every statement reads through an index, status by status or role by role, and stops at the page's
end. Searches for a part of a name read on until the page is full.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import Row, TextClause, TextualSelect, text

from authz_service.base.consistency import ENVIRONMENT
from authz_service.storage import poison, role_orders
from authz_service.storage.below import pattern
from authz_service.storage.database import Snapshot
from authz_service.storage.dialects import Dialect
from authz_service.storage.role_orders import RoleOrders
from authz_service.storage.searches import LAST_ID
from authz_service.storage.tables import User

_COLUMNS = "m.id, m.organization_id, m.user_id, m.status, m.created_at, m.updated_at, m.revision"
_USER_COLUMNS = (
    "u.id, u.email, u.canonical_email, u.email_verified, u.email_verification_source,"
    " u.first_name, u.last_name, u.name, u.profile_picture_url, u.phone_number, u.locale,"
    " u.external_id, u.metadata_json, u.created_at, u.updated_at, u.revision"
)
_FOUND = " AND ({})".format(
    " OR ".join(
        f"lower(u.{column}) LIKE lower(:pattern) ESCAPE '\\'"
        for column in ("email", "first_name", "last_name", "name")
    )
)


# --- lists ---------------------------------------------------------------------------------------


class Wanted(NamedTuple):
    """Which memberships a list holds; one of the first two is not empty.

    Attributes:
        organization_id: Only those of this organization; empty = of any.
        user_id: Only those of this user; empty = of any.
        within: Only those of these organizations; empty = of any. For lists of one user.
        statuses: Only those in one of these.
        role_slugs: Only those with one of these among their own roles; empty = all.
        query: Only those whose user's address or names contain this; empty = all.
    """

    organization_id: str
    user_id: str
    within: Collection[str]
    statuses: Collection[str]
    role_slugs: Collection[str]
    query: str


def page(
    snapshot: Snapshot, wanted: Wanted, *, before: str | None, limit: int
) -> Sequence[Row[Any]]:
    """Returns memberships, newest first, at most ``limit``.

    Args:
        before: Only ids below this one; None = from the newest.
    """
    statement = _page(snapshot.dialect, *_shape(wanted))
    return snapshot.rows(statement, _parameters(snapshot, wanted, before, limit))


def count(snapshot: Snapshot, wanted: Wanted, *, limit: int) -> int:
    """Returns how many memberships a list has, counted up to ``limit``."""
    statement = _count(snapshot.dialect, *_shape(wanted))
    ((found,),) = snapshot.rows(statement, _parameters(snapshot, wanted, None, limit))
    return int(found)


def _shape(wanted: Wanted) -> tuple[bool, bool, bool, bool]:
    return (
        bool(wanted.user_id),
        bool(wanted.organization_id or wanted.within),
        bool(wanted.role_slugs),
        bool(wanted.query),
    )


def _parameters(
    snapshot: Snapshot, wanted: Wanted, before: str | None, limit: int
) -> dict[str, Any]:
    dialect = snapshot.dialect
    parameters: dict[str, Any] = {
        "before": LAST_ID if before is None else before,
        "limit": limit,
    }
    of_user, is_within, has_roles, has_query = _shape(wanted)
    if of_user:
        parameters["user"] = wanted.user_id
        if is_within:
            within = [wanted.organization_id] if wanted.organization_id else wanted.within
            parameters["within"] = dialect.list_value(within)
    else:
        parameters["organization"] = wanted.organization_id
    if of_user or has_roles:
        parameters["statuses"] = dialect.list_value(wanted.statuses)
    else:
        parameters.update(dialect.rows_value("statuses", [(each,) for each in wanted.statuses]))
    if has_roles:
        parameters["slugs"] = dialect.list_value(wanted.role_slugs)
    if has_query:
        parameters["pattern"] = pattern(wanted.query)
    return parameters


def _ids(dialect: Dialect, of_user: bool, is_within: bool, has_roles: bool, has_query: bool) -> str:
    """The WITH clause that ends in ``page(id)``."""
    person = dialect.probe("users", "u", "u.id = m.user_id") if has_query else ""
    found = _FOUND if has_query else ""
    in_status = f" AND m.status IN {dialect.in_list('statuses')}"
    if of_user:
        # A user has few memberships, whatever the size of the organizations.
        ids = (
            f"SELECT m.id AS id FROM memberships m{person} WHERE m.user_id = :user"
            + (f" AND m.organization_id IN {dialect.in_list('within')}" if is_within else "")
            + f" AND m.id < :before{in_status}{found}"
        )
        if has_roles:
            ids += (
                " AND EXISTS (SELECT 1 FROM membership_roles h JOIN roles r ON r.id = h.role_id"
                f" WHERE h.membership_id = m.id AND r.slug IN {dialect.in_list('slugs')})"
            )
    elif has_roles:
        # A role may be given and come from the directory too: two rows for one membership.
        each = (
            "SELECT DISTINCT h.membership_id AS value FROM membership_roles h"
            + dialect.probe("memberships", "m", "m.id = h.membership_id")
            + person
            + " WHERE h.organization_id = :organization AND h.role_id = g.role_id"
            f" AND h.membership_id < :before{in_status}{found}"
            " ORDER BY value DESC LIMIT :limit"
        )
        given = (
            f"(SELECT id AS role_id FROM roles WHERE realm IN ('{ENVIRONMENT}', :organization)"
            f" AND slug IN {dialect.in_list('slugs')})"
        )
        ids = f"SELECT DISTINCT b.value AS id FROM {given} g{dialect.each(each, 'b')}"
    else:
        each = (
            f"SELECT m.id AS value FROM memberships m{person}"
            " WHERE m.organization_id = :organization AND m.status = g.status"
            f" AND m.id < :before{found} ORDER BY m.id DESC LIMIT :limit"
        )
        given = dialect.rows("statuses", "status")
        ids = f"SELECT b.value AS id FROM {given} g{dialect.each(each, 'b')}"
    return f"WITH page(id) AS ({ids} ORDER BY id DESC LIMIT :limit)"


@cache
def _page(dialect: Dialect, *shape: bool) -> TextClause:
    return text(
        f"{_ids(dialect, *shape)} SELECT {_COLUMNS} FROM page"
        + dialect.probe("memberships", "m", "m.id = page.id")
        + " ORDER BY m.id DESC"
    )


@cache
def _count(dialect: Dialect, *shape: bool) -> TextClause:
    return text(f"{_ids(dialect, *shape)} SELECT count(*) FROM page")


def users_page(
    snapshot: Snapshot,
    *,
    organization_ids: Collection[str],
    query: str,
    before: str | None,
    limit: int,
) -> Sequence[Row[Any]]:
    """Returns users with a membership in one of these organizations, newest first, each once.

    Args:
        organization_ids: At least one.
        query: Part of the address or of a name, whatever the case; empty = all.
        before: Only ids below this one; None = from the newest.
        limit: Rows at most.
    """
    parameters = {
        **snapshot.dialect.rows_value("organizations", [(each,) for each in organization_ids]),
        "before": LAST_ID if before is None else before,
        "limit": limit,
    }
    if query:
        parameters["pattern"] = pattern(query)
    return snapshot.rows(_users_page(snapshot.dialect, bool(query)), parameters)


@cache
def _users_page(dialect: Dialect, has_query: bool) -> TextualSelect:
    each = (
        "SELECT m.user_id AS value FROM memberships m"
        + (dialect.probe("users", "u", "u.id = m.user_id") if has_query else "")
        + " WHERE m.organization_id = g.organization_id AND m.user_id < :before"
        + (_FOUND if has_query else "")
        + " ORDER BY m.user_id DESC LIMIT :limit"
    )
    given = dialect.rows("organizations", "organization_id")
    return text(
        f"WITH page(id) AS (SELECT DISTINCT b.value AS id FROM {given} g{dialect.each(each, 'b')}"
        f" ORDER BY id DESC LIMIT :limit) SELECT {_USER_COLUMNS} FROM page"
        + dialect.probe("users", "u", "u.id = page.id")
        + " ORDER BY u.id DESC"
    ).columns(*User.__table__.columns)


# --- what a page shows ---------------------------------------------------------------------------


class HeldRole(NamedTuple):
    """An organization-level role of a membership.

    Attributes:
        sources: DIRECT and DIRECTORY for own roles.
        group_ids: The groups it belongs to that hold the role on the organization resource.
    """

    role_id: str
    slug: str
    sources: set[str]
    group_ids: set[str]


def held_roles(rows: Iterable[Sequence[Any]]) -> dict[str, dict[str, HeldRole]]:
    """Returns membership id to role id to the role, from rows of ``organization_roles_sql``."""
    found: dict[str, dict[str, HeldRole]] = defaultdict(dict)
    for membership_id, role_id, slug, source, group_id in rows:
        held = found[membership_id]
        role = held.get(role_id)
        if role is None:
            role = held[role_id] = HeldRole(role_id, slug, set(), set())
        if source:
            role.sources.add(source)
        else:
            role.group_ids.add(group_id)
    return found


def organization_roles_sql(dialect: Dialect, ids: str, name: str) -> str:
    """Returns the CTEs of a WITH RECURSIVE that end in rows of organization-level roles.

    Their columns are membership_id, role_id, slug, source and group_id; a source, or a group that
    holds the role.

    Args:
        ids: The right side of ``IN``, for ids of memberships.
        name: Of the last one, and what the others begin with.
    """
    return (
        f"{name}_asked(id, everyone_id, root_id) AS ("
        "SELECT m.id, o.everyone_group_id, o.root_resource_id"
        " FROM memberships m"
        + dialect.probe("organizations", "o", "o.id = m.organization_id")
        + f" WHERE m.id IN {ids}"
        f"), {name}_places(membership_id, group_id, root_id) AS ("
        f"SELECT a.id, p.group_id, a.root_id FROM {name}_asked a"
        + dialect.probe("group_members", "p", "p.membership_id = a.id")
        + f" UNION ALL SELECT a.id, a.everyone_id, a.root_id FROM {name}_asked a"
        # Each group of the page once, with all above it.
        f"), {name}_above(start_id, group_id, root_id) AS ("
        f"SELECT group_id, group_id, root_id FROM {name}_places"
        f" UNION SELECT b.start_id, n.group_id, b.root_id FROM {name}_above b"
        " JOIN group_nestings n ON n.member_group_id = b.group_id"
        f"), {name}_held(start_id, group_id, role_id) AS ("
        f"SELECT b.start_id, b.group_id, s.role_id FROM {name}_above b"
        + dialect.probe(
            "role_assignments", "s", "s.subject_id = b.group_id AND s.resource_id = b.root_id"
        )
        + f" WHERE {poison.valid_sql('s')}"
        f"), {name}_found(membership_id, role_id, source, group_id) AS ("
        f"SELECT a.id, h.role_id, h.source, '' FROM {name}_asked a"
        + dialect.probe("membership_roles", "h", "h.membership_id = a.id")
        + " UNION ALL SELECT p.membership_id, h.role_id, '', h.group_id"
        f" FROM {name}_held h JOIN {name}_places p ON p.group_id = h.start_id"
        f"), {name} AS (SELECT f.membership_id, f.role_id, r.slug, f.source, f.group_id"
        f" FROM {name}_found f" + dialect.probe("roles", "r", "r.id = f.role_id") + ")"
    )


class Person(NamedTuple):
    """A membership with the summary of its user, and the name of its organization."""

    id: str
    organization_id: str
    user_id: str
    status: str
    created_at: int
    updated_at: int
    revision: int
    email: str
    first_name: str
    last_name: str
    name: str
    profile_picture_url: str
    external_id: str | None
    organization_name: str


class Shown(NamedTuple):
    """What is shown of memberships.

    Attributes:
        people: Id to those of the memberships that exist.
        roles: Id to role id to the role, own and through unexpired assignments (M10).
        orders: What the order of these roles is made of.
    """

    people: dict[str, Person]
    roles: dict[str, dict[str, HeldRole]]
    orders: RoleOrders


# Kinds of rows of the one statement.
_PERSON, _HELD_ROLE, _ORDER = range(3)


def shown(snapshot: Snapshot, membership_ids: Collection[str]) -> Shown:
    """Returns all that is shown of memberships, in one statement.

    Groups are followed upwards once each, however many members they share.

    Args:
        membership_ids: At most a page of a list.
    """
    dialect = snapshot.dialect
    parameters = {"memberships": dialect.list_value(membership_ids), "now": snapshot.now}
    people: dict[str, Person] = {}
    roles: list[Sequence[Any]] = []
    orders: list[Sequence[Any]] = []
    for kind, *columns in snapshot.values(_shown(dialect), parameters):
        if kind == _PERSON:
            people[columns[0]] = Person._make(columns)
        elif kind == _HELD_ROLE:
            roles.append((*columns[:4], columns[7]))
        else:
            orders.append((columns[4], *columns[:2]))
    organization_ids = {person.organization_id for person in people.values()}
    return Shown(people, held_roles(roles), role_orders.collect(orders, organization_ids))


@cache
def _shown(dialect: Dialect) -> TextClause:
    asked = f"FROM memberships m WHERE m.id IN {dialect.in_list('memberships')}"
    parts = organization_roles_sql(dialect, dialect.in_list("memberships"), "shown")
    orders = role_orders.sql(dialect, "realms_shown wanted")
    # PostgreSQL takes an untyped NULL for text.
    number = "CAST(NULL AS bigint)"
    return text(
        f"WITH RECURSIVE {parts}, realms_shown(id) AS"
        f" (SELECT DISTINCT m.organization_id {asked} UNION ALL SELECT '{ENVIRONMENT}')"
        f" SELECT {_PERSON}, m.id, m.organization_id, m.user_id, m.status, m.created_at,"
        " m.updated_at, m.revision, u.email, u.first_name, u.last_name, u.name,"
        " u.profile_picture_url, u.external_id, o.name FROM memberships m"
        + dialect.probe("users", "u", "u.id = m.user_id")
        + dialect.probe("organizations", "o", "o.id = m.organization_id")
        + f" WHERE m.id IN {dialect.in_list('memberships')}"
        f" UNION ALL SELECT {_HELD_ROLE}, membership_id, role_id, slug, source,"
        f" {number}, {number}, {number}, group_id, NULL, NULL, NULL, NULL, NULL, NULL FROM shown"
        f" UNION ALL SELECT {_ORDER}, realm, value, NULL, NULL,"
        f" kind, {number}, {number}, NULL, NULL, NULL, NULL, NULL, NULL, NULL"
        f" FROM ({orders}) orders"
    )
