"""Facts straight from SQL: one statement for one question, a handful in one snapshot for many.

Only grants that contain an asked permission on a node of an asked path are read, so that the cost
does not grow with what a subject holds elsewhere.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import TextClause, text

from authz_service.base.actor import SYSTEM
from authz_service.base.consistency import ENVIRONMENT
from authz_service.engine.facts import (
    API_KEY,
    GROUP,
    MEMBERSHIP,
    NO_END,
    USER,
    Ends,
    Facts,
    Grants,
    MayBe,
    Path,
    Question,
    ResourceRef,
    Subject,
)
from authz_service.storage import poison, statements
from authz_service.storage.database import Database, Snapshot
from authz_service.storage.dialects import Dialect

ACTIVE = "ACTIVE"

# --- one question: one statement -------------------------------------------------------------

SUBJECT_SQL = {
    MEMBERSHIP: f"SELECT id, organization_id, {poison.STATUS_SQL} FROM memberships"
    " WHERE id = :subject",
    USER: f"SELECT id, organization_id, {poison.STATUS_SQL} FROM memberships"
    " WHERE user_id = :subject AND organization_id = :subject_organization",
    GROUP: f"SELECT id, organization_id, '{ACTIVE}' AS status FROM groups WHERE id = :subject",
    # No API key can exist yet, so each one that is asked about is unknown.
    API_KEY: "SELECT id, organization_id, status FROM memberships WHERE id = :subject AND 1 = 0",
}
TARGET_SQL = {
    True: "SELECT id, organization_id, resource_type_slug, path FROM resources"
    " WHERE id = :resource",
    False: "SELECT id, organization_id, resource_type_slug, path FROM resources"
    " WHERE organization_id = :resource_organization AND resource_type_slug = :resource_type"
    " AND external_id = :external_id",
}
# Who may hold what the subject has: itself, the groups it is in and, for a membership, everyone;
# and the groups that contain those.
_ABOVE_SQL = (
    " UNION SELECT n.group_id FROM holders h JOIN group_nestings n ON n.member_group_id = h.id"
)
HOLDERS_SQL = {
    MEMBERSHIP: "SELECT s.id FROM subject s"
    " UNION ALL SELECT m.group_id FROM subject s JOIN group_members m ON m.membership_id = s.id"
    " UNION ALL SELECT o.everyone_group_id FROM subject s"
    " JOIN organizations o ON o.id = s.organization_id" + _ABOVE_SQL,
    GROUP: "SELECT s.id FROM subject s" + _ABOVE_SQL,
}
# Own roles are held on the organization resource, which is above everything in the organization.
_OWN_SQL = {
    MEMBERSHIP: "(SELECT max(CASE WHEN x.id IS NULL THEN 1 ELSE 2 END) FROM membership_roles r"
    " JOIN role_permissions p ON p.role_id = r.role_id AND p.permission_slug = :permission"
    " LEFT JOIN roles x ON x.id = p.role_id WHERE r.membership_id = s.id)",
    GROUP: "NULL",
}
# None that contains the permission still exists.
_GONE_OWN_ROLE = 1


def _one_statement(dialect: Dialect, kind: str, by_id: bool) -> TextClause:
    start = GROUP if kind == GROUP else MEMBERSHIP
    return text(
        f"WITH RECURSIVE subject AS ({SUBJECT_SQL[kind]}), target AS ({TARGET_SQL[by_id]}),"
        f" holders(id) AS ({HOLDERS_SQL[start]})"
        " SELECT s.organization_id, s.status, t.id, t.organization_id, t.resource_type_slug,"
        " t.path, (SELECT resource_type_slug FROM permissions WHERE slug = :permission),"
        f" {_OWN_SQL[start]},"
        f" (SELECT max(CASE WHEN x.id IS NULL OR a.expires_at > {NO_END} THEN {poison.POISONED_END}"
        f" ELSE coalesce(a.expires_at, {NO_END}) END) FROM resource_ancestors n"
        " CROSS JOIN holders h"
        + dialect.probe(
            "role_assignments", "a", "a.subject_id = h.id AND a.resource_id = n.ancestor_id"
        )
        + " JOIN role_permissions p ON p.role_id = a.role_id AND p.permission_slug = :permission"
        " LEFT JOIN roles x ON x.id = p.role_id WHERE n.resource_id = t.id),"
        f" (SELECT revision FROM realms WHERE id = '{ENVIRONMENT}'),"
        " (SELECT revision FROM realms WHERE id = s.organization_id),"
        " (SELECT revision FROM service_credentials WHERE id = :credential)"
        " FROM (SELECT 1 AS one) q LEFT JOIN subject s ON q.one = 1 LEFT JOIN target t ON q.one = 1"
    )


class SqlFacts:
    """The FactSource that always reads the database: exact, and never remembers anything."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._one = {
            (kind, by_id): _one_statement(database.dialect, kind, by_id)
            for kind in SUBJECT_SQL
            for by_id in (True, False)
        }

    def load(
        self,
        subjects: Collection[Subject],
        permission_slugs: Collection[str],
        resources: Collection[ResourceRef],
        *,
        credential_id: str = "",
        may_be: MayBe | None = None,
    ) -> Facts:
        """Returns the facts for every combination of the arguments, of one instant.

        Raises:
            Unavailable: DATABASE_UNAVAILABLE.
        """
        if len(subjects) == len(permission_slugs) == len(resources) == 1:
            (subject,) = subjects
            (slug,) = permission_slugs
            (resource,) = resources
            return self._load_one(subject, slug, resource, credential_id)
        with self._database.snapshot(SYSTEM) as snapshot:
            return load(
                snapshot, subjects, permission_slugs, resources, credential_id=credential_id
            )

    def at_once(
        self, questions: Sequence[Question], then: Callable[[Sequence[Facts | None]], None]
    ) -> None:
        """Knows nothing without waiting."""
        then([None] * len(questions))

    def revisions(self, realms: Collection[str]) -> Mapping[str, int]:
        """Returns the present revisions of realms.

        Raises:
            Unavailable: DATABASE_UNAVAILABLE.
        """
        dialect = self._database.dialect
        statement = _listed(dialect, _REVISIONS, ("realms",))
        parameters = {"realms": dialect.list_value(realms)}
        return dict(self._database.values(statement, parameters, name=statements.REVISIONS))

    def _load_one(
        self, subject: Subject, slug: str, resource: ResourceRef, credential_id: str
    ) -> Facts:
        by_id = bool(resource.id)
        parameters: dict[str, Any] = {
            "subject": subject.id,
            "permission": slug,
            "credential": credential_id,
        }
        if subject.kind == USER:
            parameters["subject_organization"] = subject.organization_id
        if by_id:
            parameters["resource"] = resource.id
        else:
            parameters["resource_organization"] = resource.organization_id
            parameters["resource_type"] = resource.resource_type_slug
            parameters["external_id"] = resource.external_id
        now = self._database.now()
        (row,) = self._database.values(
            self._one[subject.kind, by_id], parameters, name=statements.CHECK
        )
        (
            organization_id,
            status,
            resource_id,
            resource_organization_id,
            resource_type_slug,
            path,
            permission_type,
            own_role,
            end,
            environment_revision,
            organization_revision,
            credential_revision,
        ) = row
        revisions = {ENVIRONMENT: environment_revision}
        grants = {}
        if organization_id is not None:
            revisions[organization_id] = organization_revision
            if own_role is not None:
                if own_role == _GONE_OWN_ROLE:
                    self._database.poisoned(poison.MEMBERSHIP_ROLES)
                else:
                    end = NO_END
            if end == poison.POISONED_END:
                self._database.poisoned(poison.ROLE_ASSIGNMENTS)
            if status != ACTIVE and not poison.is_status(status):
                self._database.poisoned(poison.MEMBERSHIPS)
            held: Ends = {resource_id: {slug: end}} if end is not None else {}
            grants[subject] = Grants(organization_id, status == ACTIVE, (held,))
        paths = {}
        if resource_id is not None:
            nodes: tuple[str, ...] = (resource_id,)
            if resource_type_slug is None or not poison.is_path(path, resource_id):
                self._database.poisoned(poison.RESOURCES)
                nodes = ()
            if resource_type_slug is not None:
                paths[resource] = Path(resource_organization_id, resource_type_slug, nodes)
        types = {slug: permission_type} if permission_type is not None else {}
        return Facts(grants, paths, types, now, revisions, credential_revision)


# --- many questions: one snapshot ------------------------------------------------------------


def load(
    snapshot: Snapshot,
    subjects: Collection[Subject],
    permission_slugs: Collection[str],
    resources: Collection[ResourceRef],
    *,
    credential_id: str = "",
) -> Facts:
    """Returns the facts for every combination of the arguments, from an open snapshot."""
    paths = _paths(snapshot, resources)
    types = _permission_types(snapshot, permission_slugs)
    found = _subjects(snapshot, subjects)
    nodes = {node for path in paths.values() for node in path.resource_ids}
    grants = _grants(snapshot, found, types.keys(), nodes)
    organization_ids = {row.organization_id for row in found.values()}
    return Facts(
        grants,
        paths,
        types,
        snapshot.now,
        _revisions(snapshot, organization_ids),
        _credential_revision(snapshot, credential_id),
    )


def _rows(snapshot: Snapshot, sql: str, **parameters: Any) -> Iterable[Any]:
    """Runs constant SQL; ``{name}`` in it stands for a list parameter of that name."""
    lists = tuple(name for name in parameters if not isinstance(parameters[name], str))
    values = {
        name: snapshot.dialect.list_value(value) if name in lists else value
        for name, value in parameters.items()
    }
    return snapshot.values(_listed(snapshot.dialect, sql, lists), values)


@cache
def _listed(dialect: Dialect, sql: str, lists: tuple[str, ...]) -> TextClause:
    return text(sql.format(**{name: dialect.in_list(name) for name in lists}))


def _paths(snapshot: Snapshot, resources: Collection[ResourceRef]) -> dict[ResourceRef, Path]:
    found = {}
    by_id = [resource.id for resource in resources if resource.id]
    if by_id:
        for row in _rows(
            snapshot,
            "SELECT id, organization_id, resource_type_slug, path FROM resources WHERE id IN {ids}",
            ids=by_id,
        ):
            path = path_of(snapshot, *row)
            if path is not None:
                found[ResourceRef(row[0])] = path
    keys = [resource[1:] for resource in resources if not resource.id]
    if keys:
        dialect = snapshot.dialect
        for id, organization_id, type_slug, external_id, nodes in snapshot.values(
            _paths_by_key(dialect), dialect.rows_value("keys", keys)
        ):
            path = path_of(snapshot, id, organization_id, type_slug, nodes)
            if path is not None:
                found[ResourceRef("", organization_id, type_slug, external_id)] = path
    return found


def path_of(
    snapshot: Snapshot, id: str, organization_id: str, type_slug: str | None, path: Any
) -> Path | None:
    """Returns the path that a row tells, without nodes if it cannot be interpreted.

    None if it does not even say what the resource is.
    """
    is_sound = type_slug is not None and poison.is_path(path, id)
    if not is_sound:
        snapshot.poisoned(poison.RESOURCES)
    if type_slug is None:
        return None
    return Path(organization_id, type_slug, tuple(path.split("/")) if is_sound else ())


@cache
def _paths_by_key(dialect: Dialect) -> TextClause:
    columns = ("organization_id", "resource_type_slug", "external_id")
    return text(
        "SELECT r.id, r.organization_id, r.resource_type_slug, r.external_id, r.path"
        f" FROM {dialect.rows('keys', *columns)} g"
        + dialect.probe(
            "resources", "r", " AND ".join(f"r.{column} = g.{column}" for column in columns)
        )
    )


def _permission_types(snapshot: Snapshot, slugs: Collection[str]) -> dict[str, str]:
    rows = _rows(
        snapshot,
        "SELECT slug, resource_type_slug FROM permissions WHERE slug IN {slugs}",
        slugs=slugs,
    )
    return {row[0]: row[1] for row in rows}


class _Known(NamedTuple):
    """A subject that exists: a membership, in any status, or a group."""

    id: str
    organization_id: str
    status: str


def _subjects(snapshot: Snapshot, subjects: Collection[Subject]) -> dict[Subject, _Known]:
    """Returns the subjects that exist."""
    found: dict[Subject, _Known] = {}
    memberships = [subject.id for subject in subjects if subject.kind == MEMBERSHIP]
    if memberships:
        for row in _rows(
            snapshot,
            f"SELECT id, organization_id, {poison.STATUS_SQL} FROM memberships WHERE id IN {{ids}}",
            ids=memberships,
        ):
            found[Subject(MEMBERSHIP, row[0])] = _Known(*row)
    groups = [subject.id for subject in subjects if subject.kind == GROUP]
    if groups:
        for row in _rows(
            snapshot,
            f"SELECT id, organization_id, '{ACTIVE}' AS status FROM groups WHERE id IN {{ids}}",
            ids=groups,
        ):
            found[Subject(GROUP, row[0])] = _Known(*row)
    users = [(subject.organization_id, subject.id) for subject in subjects if subject.kind == USER]
    if users:
        dialect = snapshot.dialect
        for user_id, *known in snapshot.values(
            _members_by_user(dialect), dialect.rows_value("users", users)
        ):
            found[Subject(USER, user_id, known[1])] = _Known(*known)
    for known in found.values():
        if not poison.is_status(known.status):
            snapshot.poisoned(poison.MEMBERSHIPS)
    return found


@cache
def _members_by_user(dialect: Dialect) -> TextClause:
    return text(
        "SELECT m.user_id, m.id, m.organization_id, coalesce(m.status, '')"
        f" FROM {dialect.rows('users', 'organization_id', 'user_id')} g"
        + dialect.probe(
            "memberships",
            "m",
            "m.organization_id = g.organization_id AND m.user_id = g.user_id",
        )
    )


def end_of(snapshot: Snapshot, expires_at: Any, role_id: str | None) -> int:
    """Returns the end of an assignment, one long ago if it cannot be interpreted.

    Args:
        role_id: None if the role that it gives is gone.
    """
    if role_id is not None:
        if expires_at is None:
            return NO_END
        if type(expires_at) is int:
            return expires_at
    snapshot.poisoned(poison.ROLE_ASSIGNMENTS)
    return poison.POISONED_END


_MEMBERSHIP_BELONGS = (
    "WITH RECURSIVE belongs(subject_id, group_id) AS ("
    " SELECT m.membership_id, m.group_id FROM group_members m WHERE m.membership_id IN {subjects}"
    " UNION SELECT b.subject_id, n.group_id FROM belongs b"
    " JOIN group_nestings n ON n.member_group_id = b.group_id)"
    " SELECT subject_id, group_id FROM belongs"
)
_GROUP_BELONGS = (
    "WITH RECURSIVE belongs(subject_id, group_id) AS ("
    " SELECT g.id, g.id FROM groups g WHERE g.id IN {subjects}"
    " UNION SELECT b.subject_id, n.group_id FROM belongs b"
    " JOIN group_nestings n ON n.member_group_id = b.group_id)"
    " SELECT subject_id, group_id FROM belongs"
)
_HELD = (
    "SELECT a.subject_id, a.resource_id, p.permission_slug, a.expires_at, x.id"
    " FROM role_assignments a JOIN role_permissions p ON p.role_id = a.role_id"
    " LEFT JOIN roles x ON x.id = p.role_id"
    " WHERE a.subject_id IN {holders} AND a.resource_id IN {nodes}"
    " AND p.permission_slug IN {slugs}"
)
_OWN_ROLES = (
    "SELECT r.membership_id, o.root_resource_id, p.permission_slug, x.id FROM membership_roles r"
    " JOIN role_permissions p ON p.role_id = r.role_id LEFT JOIN roles x ON x.id = p.role_id"
    " JOIN organizations o ON o.id = r.organization_id"
    " WHERE r.membership_id IN {holders} AND p.permission_slug IN {slugs}"
)


def _grants(
    snapshot: Snapshot,
    subjects: dict[Subject, _Known],
    slugs: Collection[str],
    nodes: Collection[str],
) -> dict[Subject, Grants]:
    memberships = {row.id for subject, row in subjects.items() if subject.kind != GROUP}
    groups = {row.id for subject, row in subjects.items() if subject.kind == GROUP}
    organizations = {row.organization_id for row in subjects.values()}
    belongs: dict[str, list[str]] = defaultdict(list)
    if memberships:
        for row in _rows(snapshot, _MEMBERSHIP_BELONGS, subjects=memberships):
            belongs[row[0]].append(row[1])
    if groups:
        for row in _rows(snapshot, _GROUP_BELONGS, subjects=groups):
            belongs[row[0]].append(row[1])
    everyone = {
        row[0]: row[1]
        for row in _rows(
            snapshot,
            "SELECT id, everyone_group_id FROM organizations WHERE id IN {ids}",
            ids=organizations,
        )
    }
    ends: dict[str, dict[str, dict[str, int]]] = {}

    def hold(holder: str, resource_id: str, slug: str, end: int) -> None:
        held = ends.setdefault(holder, {}).setdefault(resource_id, {})
        held[slug] = max(held.get(slug, 0), end)

    if memberships:
        for row in _rows(snapshot, _OWN_ROLES, holders=memberships, slugs=slugs):
            if row[3] is None:
                snapshot.poisoned(poison.MEMBERSHIP_ROLES)
            else:
                hold(row[0], row[1], row[2], NO_END)
    holders = {group_id for group_ids in belongs.values() for group_id in group_ids}
    holders.update(memberships, everyone.values())
    for row in _rows(snapshot, _HELD, holders=holders, nodes=nodes, slugs=slugs):
        hold(row[0], row[1], row[2], end_of(snapshot, row[3], row[4]))
    grants = {}
    for subject, row in subjects.items():
        holding = [row.id, *belongs[row.id]]
        if subject.kind != GROUP:
            holding.append(everyone[row.organization_id])
        held = tuple(ends[holder] for holder in dict.fromkeys(holding) if holder in ends)
        grants[subject] = Grants(row.organization_id, row.status == ACTIVE, held)
    return grants


_REVISIONS = "SELECT id, revision FROM realms WHERE id IN {realms}"


def _revisions(snapshot: Snapshot, organization_ids: Collection[str]) -> dict[str, int]:
    rows = _rows(snapshot, _REVISIONS, realms={ENVIRONMENT, *organization_ids})
    return {row[0]: row[1] for row in rows}


def _credential_revision(snapshot: Snapshot, credential_id: str) -> int | None:
    if not credential_id:
        return None
    rows = _rows(
        snapshot,
        "SELECT revision FROM service_credentials WHERE id = :credential",
        credential=credential_id,
    )
    return next((row[0] for row in rows), None)
