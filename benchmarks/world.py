"""Worlds to measure on: organizations with members, nested groups, a tree and assignments.

Rows go in by COPY, past the API, which would need an hour for a million of them. Everything about
a world follows from its seed and sizes.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from authz_service.base import ids

STAMP = (1_700_000_000_000_000, 1_700_000_000_000_000, 1)
STAMPED = ("created_at", "updated_at", "revision")
GROUPS = 20
WORKSPACES = 10
DOCUMENT_ROLES = 8
OWN_DOCUMENTS = 76
DOCUMENT_MEMBERS = 20


@dataclass
class Organization:
    """What the questions of a benchmark name."""

    id: str
    root: str
    everyone: str
    members: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    workspaces: list[str] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)


@dataclass
class World:
    """A built world and the places that the list questions ask about, in its first organization.

    Attributes:
        reader: A member with 76 documents of its own.
        shared: A document with 20 people.
        overseer: A member who reads everything, through a role on every workspace.
        open: A document that a group of all members may read.
        assignments: How many role assignments there are.
    """

    organizations: list[Organization]
    reader: str = ""
    shared: str = ""
    overseer: str = ""
    open: str = ""
    assignments: int = 0


class _Tables:
    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def copy(self, table: str, columns: Sequence[str], rows: Iterator[Sequence[Any]]) -> int:
        statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
            sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
        )
        count = 0
        with self._connection.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)
                count += 1
        return count


def build(
    url: str, *, organizations: int, members: int, documents: int, each: int, seed: int = 1
) -> World:
    """Fills a seeded PostgreSQL database.

    Args:
        members, documents: Of each organization.
        each: Assignments of documents to each member.
    """
    chance = random.Random(seed)
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        tables = _Tables(connection)
        roles = _definitions(tables)
        world = World([])
        for number in range(organizations):
            world.organizations.append(_organization(tables, number, members, documents))
        world.assignments = _assignments(tables, world, roles, each, chance)
        connection.execute("UPDATE organizations SET name = name")
        connection.commit()
        connection.autocommit = True
        connection.execute("VACUUM ANALYZE")
    return world


def _definitions(tables: _Tables) -> dict[str, list[str]]:
    tables.copy(
        "resource_types",
        ("slug", "id", "name", "description", "is_built_in", *STAMPED),
        iter((slug, ids.new("resource_type"), slug, "", False, *STAMP)
             for slug in ("workspace", "document")),
    )  # fmt: skip
    tables.copy(
        "resource_type_parents",
        ("slug", "parent_slug"),
        iter([("workspace", "organization"), ("document", "workspace")]),
    )
    slugs = [f"document:p{number}" for number in range(40)]
    tables.copy(
        "permissions",
        ("slug", "id", "name", "description", "resource_type_slug", "assignable_to_api_keys",
         *STAMPED),
        iter((slug, ids.new("perm"), slug, "", "document", False, *STAMP) for slug in slugs),
    )  # fmt: skip
    roles = {
        "organization": [ids.new("role") for _ in range(2)],
        "workspace": [ids.new("role") for _ in range(2)],
        "document": [ids.new("role") for _ in range(DOCUMENT_ROLES)],
    }
    tables.copy(
        "roles",
        ("id", "realm", "slug", "name", "description", "resource_type_slug", *STAMPED),
        iter((id, "*", f"{kind}-{number}", kind, "", kind, *STAMP)
             for kind, found in roles.items() for number, id in enumerate(found)),
    )  # fmt: skip
    contained = [
        (id, slug)
        for kind, found in roles.items()
        for number, id in enumerate(found)
        for place, slug in enumerate(slugs)
        # The first role of each type reads (p0); the others hold a share of the rest.
        if (place == 0 and number == 0) or (place and place % len(found) == number)
    ]
    tables.copy("role_permissions", ("role_id", "permission_slug"), iter(contained))
    return roles


def _organization(tables: _Tables, number: int, members: int, documents: int) -> Organization:
    made = Organization(ids.new("org"), ids.new("resource"), ids.new("group"))
    tables.copy("realms", ("id", "revision", "last_hash"), iter([(made.id, 1, b"")]))
    tables.copy(
        "organizations",
        ("id", "name", "external_id", "metadata_json", "everyone_group_id", "root_resource_id",
         *STAMPED),
        iter([(made.id, f"Organization {number}", None, "{}", made.everyone, made.root, *STAMP)]),
    )  # fmt: skip
    tables.copy(
        "organization_configurations",
        ("organization_id", "default_role_id", "role_priority", *STAMPED),
        iter([(made.id, None, json.dumps(None), *STAMP)]),
    )
    _people(tables, made, number, members)
    _tree(tables, made, documents)
    return made


def _people(tables: _Tables, made: Organization, number: int, members: int) -> None:
    users = [ids.new("user") for _ in range(members)]
    tables.copy(
        "users",
        ("id", "email", "canonical_email", "email_verified", "email_verification_source",
         "first_name", "last_name", "name", "profile_picture_url", "phone_number", "locale",
         "external_id", "metadata_json", *STAMPED),
        iter((id, f"u{place}@o{number}.example", f"u{place}@o{number}.example", True, "CALLER",
              "", "", f"User {place}", "", "", "", None, "{}", *STAMP)
             for place, id in enumerate(users)),
    )  # fmt: skip
    made.members = [ids.new("om") for _ in users]
    tables.copy(
        "memberships",
        ("organization_id", "id", "user_id", "status", *STAMPED),
        iter((made.id, id, user, "ACTIVE", *STAMP)
             for id, user in zip(made.members, users, strict=True)),
    )  # fmt: skip
    made.groups = [ids.new("group") for _ in range(GROUPS)]
    kinds = [(made.everyone, "EVERYONE", "everyone")]
    kinds += [(id, "STANDARD", f"Group {place}") for place, id in enumerate(made.groups)]
    tables.copy(
        "groups",
        ("organization_id", "id", "kind", "name", "description", *STAMPED),
        iter((made.id, id, kind, name, "", *STAMP) for id, kind, name in kinds),
    )
    # The first half is where people are, each in one; those lie in the second half.
    half = GROUPS // 2
    tables.copy(
        "group_members",
        ("organization_id", "group_id", "membership_id"),
        iter((made.id, made.groups[place % half], id) for place, id in enumerate(made.members)),
    )
    tables.copy(
        "group_nestings",
        ("organization_id", "group_id", "member_group_id"),
        iter((made.id, made.groups[half + place // 2], made.groups[place])
             for place in range(half)),
    )  # fmt: skip


def _tree(tables: _Tables, made: Organization, documents: int) -> None:
    made.workspaces = [ids.new("resource") for _ in range(WORKSPACES)]
    made.documents = [ids.new("resource") for _ in range(documents)]
    rows = [(made.root, "organization", made.id, "Root", None, 0, made.root)]
    rows += [
        (id, "workspace", f"w{place}", f"Workspace {place}", made.root, 1, f"{made.root}/{id}")
        for place, id in enumerate(made.workspaces)
    ]
    for place, id in enumerate(made.documents):
        above = made.workspaces[place % WORKSPACES]
        rows.append(
            (id, "document", f"d{place}", f"Document {place}", above, 2,
             f"{made.root}/{above}/{id}")
        )  # fmt: skip
    tables.copy(
        "resources",
        ("organization_id", "id", "resource_type_slug", "external_id", "name", "description",
         "parent_id", "depth", "path", *STAMPED),
        iter((made.id, id, kind, external, name, "", parent, depth, path, *STAMP)
             for id, kind, external, name, parent, depth, path in rows),
    )  # fmt: skip
    tables.copy(
        "resource_ancestors",
        ("organization_id", "ancestor_id", "resource_type_slug", "resource_id"),
        iter((made.id, ancestor, kind, id)
             for id, kind, _, _, _, _, path in rows for ancestor in path.split("/")),
    )  # fmt: skip


def _assignments(
    tables: _Tables,
    world: World,
    roles: dict[str, list[str]],
    each: int,
    chance: random.Random,
) -> int:
    def rows() -> Iterator[Sequence[Any]]:
        first = world.organizations[0]
        world.reader, world.overseer = first.members[0], first.members[1]
        world.shared, world.open = first.documents[0], first.documents[1]
        for organization in world.organizations:
            yield from _of_organization(organization, organization is first)

    def _of_organization(organization: Organization, is_first: bool) -> Iterator[Sequence[Any]]:
        special = set()
        if is_first:
            reads = roles["document"][0]
            special = {world.reader, world.overseer}
            kept = chance.sample(organization.documents[2:], OWN_DOCUMENTS)
            pairs = [(world.reader, None, id, reads) for id in kept]
            pairs += [
                (id, None, world.shared, reads)
                for id in organization.members[2 : 2 + DOCUMENT_MEMBERS - 1]
            ]
            pairs += [(world.overseer, None, id, roles["workspace"][0])
                      for id in organization.workspaces]  # fmt: skip
            half = GROUPS // 2
            pairs += [(None, id, world.open, reads) for id in organization.groups[half:]]
            for membership, group, resource, role in pairs:
                yield _row(organization.id, membership, group, role, resource)
        others = organization.documents[2:]
        for member in organization.members:
            if member in special:
                continue
            for id in chance.sample(others, each):
                role = chance.choice(roles["document"])
                yield _row(organization.id, member, None, role, id)

    return tables.copy(
        "role_assignments",
        ("organization_id", "id", "membership_id", "group_id", "role_id", "resource_id",
         "expires_at", "is_end_recorded", *STAMPED),
        rows(),
    )  # fmt: skip


def _row(
    organization_id: str, membership: str | None, group: str | None, role: str, resource: str
) -> Sequence[Any]:
    id = ids.new("role_assignment")
    return (organization_id, id, membership, group, role, resource, None, False, *STAMP)
