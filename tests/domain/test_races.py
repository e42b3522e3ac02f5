"""Writers that meet: what comes out is what some order of them would have given.

The expected outcomes are not written down: the same writes are first run one after the other, in
every order, and each race must end as one of these did. Races of two kinds of writes that need a
closer look are beside the tests of their services.
"""

import itertools
from collections.abc import Callable, Hashable
from typing import Any

import pytest
from sqlalchemy import func, select

from authz_service.base.actor import SYSTEM
from authz_service.domain import (
    groups,
    memberships,
    permissions,
    resource_types,
    resources,
    role_assignments,
    roles,
    users,
)
from authz_service.domain.lifecycles import groups as group_lifecycle
from authz_service.domain.lifecycles import memberships as membership_lifecycle
from authz_service.domain.lifecycles import organizations as organization_lifecycle
from authz_service.domain.lifecycles import permissions as permission_lifecycle
from authz_service.domain.lifecycles import resources as resource_lifecycle
from authz_service.domain.lifecycles import roles as role_lifecycle
from authz_service.domain.lifecycles import users as user_lifecycle
from authz_service.domain.role_assignments import Entry
from authz_service.engine.facts import GROUP, MEMBERSHIP, ResourceRef, Subject
from authz_service.engine.limits import Limits
from authz_service.storage.database import Database, Snapshot, Transaction
from authz_service.storage.tables import (
    Event,
    Group,
    GroupNesting,
    Membership,
    MembershipRole,
    Organization,
    Resource,
    ResourceCount,
    Role,
    RoleAssignment,
    User,
)
from tests.domain.racing import LOST, Race, hold, race
from tests.domain.test_resources import tree

ROUNDS = 12
Work = Callable[[Transaction], Any]
_numbers = itertools.count()


def unique(text: str) -> str:
    """A text that nothing else has."""
    return f"{text}-{next(_numbers)}"


def write(database: Database, work: Work) -> Any:
    """Runs one write."""
    return database.write(work, actor=SYSTEM).result


@pytest.fixture
def acme(database: Database) -> str:
    """Id of an organization; folders lie in workspaces and in folders."""

    def work(tx: Transaction) -> str:
        resource_types.create(tx, slug="workspace", name="W", parent_type_slugs=["organization"])
        resource_types.create(
            tx, slug="folder", name="F", parent_type_slugs=["workspace", "folder"]
        )
        return organization_lifecycle.create(tx, name="Acme").id

    return str(write(database, work))


@pytest.fixture(params=[1, pytest.param(10, marks=pytest.mark.long)])
def times(request: pytest.FixtureRequest) -> int:
    """How often each race is run, beside what each test finds enough for every day."""
    return int(request.param)


@pytest.fixture(autouse=True)
def whole(database: Database) -> Any:
    """After each test everything that is stored agrees with the rest of it."""
    yield
    tree(database)  # its depths and its closure
    with database.snapshot(SYSTEM) as snapshot:
        sequences: dict[str, list[int]] = {}
        for row in snapshot.connection.execute(
            select(Event.realm, Event.sequence).order_by(Event.sequence)
        ):
            sequences.setdefault(row.realm, []).append(row.sequence)
        for each in sequences.values():
            assert each == list(range(1, len(each) + 1))
        counts = select(*ResourceCount.__table__.columns).where(ResourceCount.count > 0)
        stored = (
            select(Resource.organization_id, Resource.resource_type_slug, func.count())
            .where(Resource.parent_id.is_not(None))
            .group_by(Resource.organization_id, Resource.resource_type_slug)
        )
        assert rows(snapshot, counts) == rows(snapshot, stored)
        # An inner join: what lost its role or its resource would be missing.
        kinds = (
            select(RoleAssignment.id, Role.resource_type_slug, Resource.resource_type_slug)
            .join(Role, Role.id == RoleAssignment.role_id)
            .join(Resource, Resource.id == RoleAssignment.resource_id)
        )
        found = rows(snapshot, kinds)
        assert [row[0] for row in found] == [
            row[0] for row in rows(snapshot, select(RoleAssignment.id))
        ]
        assert all(row[1] == row[2] for row in found)
        above: dict[str, set[str]] = {}
        for row in snapshot.connection.execute(select(*GroupNesting.__table__.columns)):
            above.setdefault(row.member_group_id, set()).add(row.group_id)
        assert all(chain(above, group_id) <= 8 for group_id in above)
        held = select(MembershipRole.membership_id).distinct()
        assert rows(snapshot, held) == rows(snapshot, select(Membership.id))


def rows(snapshot: Snapshot, statement: Any) -> list[tuple[Any, ...]]:
    """What a query finds, in one order."""
    return sorted(tuple(row) for row in snapshot.connection.execute(statement))


def chain(above: dict[str, set[str]], group_id: str, seen: tuple[str, ...] = ()) -> int:
    """Groups in the longest chain up from a group."""
    assert group_id not in seen, "a cycle"
    outer = (chain(above, each, (*seen, group_id)) for each in above.get(group_id, ()))
    return 1 + max(outer, default=0)


# --- the last owner ------------------------------------------------------------------------------

ENDINGS: dict[str, Callable[[dict[str, Any]], Work]] = {
    "deactivated": lambda member: lambda tx: memberships.deactivate(tx, member["id"]),
    "demoted": lambda member: lambda tx: memberships.update(tx, member["id"], role_slug="guest"),
    "deleted": lambda member: lambda tx: membership_lifecycle.delete(tx, member["id"]),
    "user deleted": lambda member: lambda tx: user_lifecycle.delete(tx, member["user_id"]),
}


def owners(database: Database, count: int) -> tuple[str, list[dict[str, Any]]]:
    """Makes an organization with so many owners."""

    def work(tx: Transaction) -> tuple[str, list[dict[str, Any]]]:
        people = [users.create(tx, email=f"{unique('owner')}@example.com") for _ in range(count)]
        home = organization_lifecycle.create(tx, name="Home")
        return home.id, [
            memberships.create(tx, user_id=user.id, organization_id=home.id, role_slugs=["owner"])
            for user in people
        ]

    found: tuple[str, list[dict[str, Any]]] = write(database, work)
    return found


def owners_left(home: str) -> Callable[[Snapshot], Hashable]:
    """How many owners an organization has."""
    held = (
        select(func.count())
        .select_from(Membership)
        .join(MembershipRole, MembershipRole.membership_id == Membership.id)
        .join(Role, Role.id == MembershipRole.role_id)
        .where(Membership.organization_id == home, Membership.status == "ACTIVE")
        .where(Role.slug == "owner")
    )
    return lambda snapshot: snapshot.connection.execute(held).scalar_one()


def test_an_organization_keeps_its_last_owner(database: Database, times: int) -> None:
    pairs = itertools.combinations_with_replacement(ENDINGS.values(), 2)
    for number, (first, second) in enumerate(pairs):

        def made(first: Any = first, second: Any = second) -> Race:
            home, (one, other) = owners(database, 2)
            return Race([first(one), second(other)], owners_left(home))

        for reasons, left in hold(database, f"owners {number}", made, 5 * times):
            assert left == 1
            assert "LAST_OWNER" in reasons or LOST in reasons


def test_three_owners_leave_one(database: Database, times: int) -> None:
    def made() -> Race:
        home, members = owners(database, 3)
        works = [ending(member) for ending, member in zip(ENDINGS.values(), members, strict=False)]
        return Race(works, owners_left(home))

    assert {left for _, left in hold(database, "three owners", made, ROUNDS * times)} == {1}


# --- trees and groups ----------------------------------------------------------------------------


def folder(tx: Transaction, home: str, key: str, parent: str = "") -> None:
    """Registers a workspace ("w…") or a folder below what has a key."""
    resources.create(
        tx,
        organization_id=home,
        resource_type_slug=ref(home, key).resource_type_slug,
        external_id=key,
        name=key,
        parent=ref(home, parent) if parent else None,
    )


def ref(home: str, key: str) -> ResourceRef:
    """A resource by its key."""
    return ResourceRef("", home, "workspace" if key.startswith("w") else "folder", key)


def moving(home: str, key: str, parent: str) -> Work:
    return lambda tx: resources.move(tx, ref(home, key), parent=ref(home, parent))


def upserting(home: str, key: str, parent: str) -> Work:
    return lambda tx: resources.upsert(
        tx,
        organization_id=home,
        resource_type_slug="folder",
        external_id=key,
        name=key,
        parent=ref(home, parent),
    )


def removing(home: str, key: str) -> Work:
    return lambda tx: resource_lifecycle.delete(tx, ref(home, key), cascade=True)


# Below w1: a > b > c; below w2: d > e.
SHAPE = {"w1": "", "w2": "", "a": "w1", "b": "a", "c": "b", "d": "w2", "e": "d"}


def forest(tx: Transaction) -> str:
    """Makes an organization with that tree."""
    home = organization_lifecycle.create(tx, name="Home").id
    for key, parent in SHAPE.items():
        folder(tx, home, key, parent)
    return str(home)


def parents(home: str) -> Callable[[Snapshot], Hashable]:
    """Each resource with what it is directly in."""

    def seen(snapshot: Snapshot) -> Hashable:
        rows = snapshot.connection.execute(
            select(Resource.id, Resource.external_id, Resource.parent_id).where(
                Resource.organization_id == home
            )
        ).all()
        names = {row.id: row.external_id for row in rows if row.parent_id}
        return tuple(sorted((names[row.id], names.get(row.parent_id, ""))
                            for row in rows if row.parent_id))  # fmt: skip

    return seen


MEETINGS: dict[str, Callable[[str], list[Work]]] = {
    "each below the other": lambda h: [moving(h, "a", "e"), moving(h, "d", "c")],
    "each below the other, one by upsert": lambda h: [moving(h, "a", "e"), upserting(h, "d", "c")],
    "one to two places": lambda h: [moving(h, "b", "w1"), moving(h, "b", "d")],
    "one thrice": lambda h: [moving(h, "c", "a"), moving(h, "c", "d"), upserting(h, "c", "e")],
    "outer and inner": lambda h: [moving(h, "a", "d"), moving(h, "b", "w2")],
    "turned inside out": lambda h: [moving(h, "c", "w1"), moving(h, "a", "c")],
    "three in a ring": lambda h: [moving(h, "a", "d"), moving(h, "d", "b"), moving(h, "b", "w2")],
    "into what goes": lambda h: [moving(h, "a", "e"), removing(h, "d")],
    "out of what goes": lambda h: [moving(h, "b", "w2"), removing(h, "a")],
    "created in what goes": lambda h: [upserting(h, "new", "c"), removing(h, "a")],
    "created in what moves": lambda h: [upserting(h, "new", "c"), moving(h, "a", "e")],
    "created twice": lambda h: [upserting(h, "new", "a"), upserting(h, "new", "d")],
    "both gone": lambda h: [removing(h, "a"), removing(h, "b")],
}


def test_moves_that_meet_are_one_after_the_other(database: Database, times: int, acme: str) -> None:
    for meeting, works in MEETINGS.items():

        def made(works: Callable[[str], list[Work]] = works) -> Race:
            home = write(database, forest)
            return Race(works(home), parents(home))

        hold(database, meeting, made, 3 * times)


def test_moves_that_meet_stay_within_the_depth(database: Database, times: int, acme: str) -> None:
    """Each alone fits: four levels below the fourth; both do not."""

    def prepare(tx: Transaction) -> str:
        home = organization_lifecycle.create(tx, name="Home").id
        above = ""
        for key in ("w", "a1", "a2", "a3"):
            folder(tx, home, key, above)
            above = key
        folder(tx, home, "wb", "")
        for key, parent in (("b1", "wb"), ("b2", "b1"), ("c1", "wb"), ("c2", "c1"), ("c3", "c2")):
            folder(tx, home, key, parent)
        return str(home)

    def made() -> Race:
        home = write(database, prepare)
        return Race([moving(home, "b1", "a3"), moving(home, "c1", "b2")], parents(home))

    assert {reasons for reasons, _ in hold(database, "depth", made, ROUNDS * times)} <= {
        ("", "RESOURCE_DEPTH_EXCEEDED"),
        ("RESOURCE_DEPTH_EXCEEDED", ""),
    }


def nesting(outer: str, inner: str) -> Work:
    return lambda tx: groups.add_member(tx, outer, member=Subject(GROUP, inner))


def ring(database: Database, count: int) -> tuple[str, list[str]]:
    """Makes an organization with so many groups."""

    def work(tx: Transaction) -> tuple[str, list[str]]:
        home = organization_lifecycle.create(tx, name="Home").id
        return home, [
            groups.create(tx, organization_id=home, name=str(number)).id for number in range(count)
        ]

    found: tuple[str, list[str]] = write(database, work)
    return found


def nestings(home: str) -> Callable[[Snapshot], Hashable]:
    """Each group with the groups it is directly in, by name."""

    def seen(snapshot: Snapshot) -> Hashable:
        rows = snapshot.connection.execute(
            select(Group.id, Group.name).where(Group.organization_id == home)
        ).all()
        names = {row.id: row.name for row in rows}
        pairs = snapshot.connection.execute(
            select(GroupNesting.group_id, GroupNesting.member_group_id).where(
                GroupNesting.organization_id == home
            )
        ).all()
        return (
            tuple(sorted(names.values())),
            tuple(sorted((names[pair[0]], names[pair[1]]) for pair in pairs)),
        )

    return seen


@pytest.mark.parametrize("count", [2, 3])
def test_groups_that_close_a_ring_leave_it_open(database: Database, times: int, count: int) -> None:
    def made() -> Race:
        home, made_groups = ring(database, count)
        works = [
            nesting(made_groups[number], made_groups[(number + 1) % count])
            for number in range(count)
        ]
        return Race(works, nestings(home))

    for reasons, (_, pairs) in hold(database, f"ring of {count}", made, ROUNDS * times):  # type: ignore[misc]
        assert len(pairs) == count - 1
        assert sorted(set(reasons) - {LOST}) in (["", "GROUP_CYCLE"], [""])


def test_a_group_is_nested_or_gone(database: Database, times: int) -> None:
    def made() -> Race:
        home, (outer, inner, other) = ring(database, 3)
        works = [
            nesting(outer, inner),
            lambda tx: groups.modify_members(
                tx, inner, add=[Subject(GROUP, other)], remove=[Subject(GROUP, outer)]
            ),
            lambda tx: group_lifecycle.delete(tx, inner),
        ]
        return Race(works, nestings(home))

    hold(database, "nested or gone", made, ROUNDS * times)


# --- unique values -------------------------------------------------------------------------------


def counted(column: Any, *values: str) -> Callable[[Snapshot], Hashable]:
    """How many rows have each of some values."""
    return lambda snapshot: tuple(
        snapshot.connection.execute(
            select(func.count()).select_from(column.class_).where(column == value)
        ).scalar_one()
        for value in values
    )


def test_an_external_id_of_organizations_is_taken_once(database: Database, times: int) -> None:
    def made() -> Race:
        taken, free = unique("o"), unique("o")
        known = write(
            database, lambda tx: organization_lifecycle.create(tx, name="A", external_id=free).id
        )
        works: list[Work] = [
            lambda tx: organization_lifecycle.create(tx, name="B", external_id=taken),
            lambda tx: organization_lifecycle.update(tx, known, {"external_id": taken}),
            lambda tx: organization_lifecycle.create(tx, name="C", external_id=free),
        ]
        return Race(works, counted(Organization.external_id, taken, free))

    for _, (taken, free) in hold(database, "organizations", made, ROUNDS * times):  # type: ignore[misc]
        assert (taken, free) in ((1, 1), (1, 0))


@pytest.mark.parametrize("field", ["email", "external_id"])
def test_a_value_of_users_is_taken_once(database: Database, times: int, field: str) -> None:
    def made() -> Race:
        taken = f"{unique('Taken')}@example.com"
        known = write(
            database, lambda tx: users.create(tx, email=f"{unique('known')}@example.com").id
        )

        def create(text: str) -> Work:
            values = {"email": f"{unique('new')}@example.com", field: text}
            return lambda tx: users.create(tx, **values)

        works: list[Work] = [
            create(taken),
            # Addresses are compared in canonical form (US1), external ids byte for byte.
            create(taken.upper() if field == "email" else taken),
            lambda tx: users.update(tx, known, {field: taken}),
        ]
        column = User.canonical_email if field == "email" else User.external_id
        return Race(works, counted(column, taken.lower() if field == "email" else taken))

    assert {seen for _, seen in hold(database, f"users {field}", made, ROUNDS * times)} == {(1,)}


SLUGGED = ("role", "organization role", "permission", "resource type")


def creating(kind: str, home: str, slug: str) -> Work:
    """Makes what has a slug."""
    return {
        "role": lambda tx: roles.create(tx, slug=slug, name="R"),
        "organization role": lambda tx: roles.create(
            tx, organization_id=home, slug=f"org-{slug}", name="R"
        ),
        "permission": lambda tx: permissions.create(tx, slug=slug, name="P"),
        "resource type": lambda tx: resource_types.create(
            tx, slug=slug, name="T", parent_type_slugs=["organization"]
        ),
    }[kind]


def deleting(kind: str, slug: str) -> Work:
    """Deletes it, whichever it is by then."""

    def role_id(tx: Transaction, name: str) -> str:
        return str(tx.connection.execute(select(Role.id).where(Role.slug == name)).scalar_one())

    return {
        "role": lambda tx: role_lifecycle.delete(tx, role_id(tx, slug)),
        "organization role": lambda tx: role_lifecycle.delete(tx, role_id(tx, f"org-{slug}")),
        "permission": lambda tx: permission_lifecycle.delete(tx, slug),
        "resource type": lambda tx: resource_types.delete(tx, slug),
    }[kind]


def test_a_slug_is_taken_once_and_free_again_after_its_deletion(
    database: Database, times: int, acme: str
) -> None:
    for kind in SLUGGED:

        def made(kind: str = kind) -> Race:
            slug = unique("s")
            create = creating(kind, acme, slug)
            write(database, create)
            return Race([create, create, deleting(kind, slug)], lambda snapshot: "")

        for reasons, _ in hold(database, f"slug of a {kind}", made, 4 * times):
            assert sorted(reasons)[-1] in ("SLUG_TAKEN", LOST)


# --- assignments and what they name --------------------------------------------------------------


def assignments(home: str) -> Callable[[Snapshot], Hashable]:
    """Every assignment of an organization: kind of holder, role, resource; and own roles."""

    def seen(snapshot: Snapshot) -> Hashable:
        rows = snapshot.connection.execute(
            select(RoleAssignment.group_id, Role.name, Resource.name)
            .join(Role, Role.id == RoleAssignment.role_id)
            .join(Resource, Resource.id == RoleAssignment.resource_id)
            .where(RoleAssignment.organization_id == home)
        ).all()
        held = snapshot.connection.execute(
            select(Role.name)
            .join(MembershipRole, MembershipRole.role_id == Role.id)
            .where(MembershipRole.organization_id == home)
        ).scalars()
        kinds = sorted((bool(row[0]), row[1], row[2]) for row in rows)
        return tuple(kinds), tuple(sorted(held))

    return seen


class Office:
    """An organization with a member, a group, two roles of workspaces and a workspace."""

    def __init__(self, tx: Transaction) -> None:
        self.home = organization_lifecycle.create(tx, name="Home").id
        user = users.create(tx, email=f"{unique('member')}@example.com")
        self.member = memberships.create(tx, user_id=user.id, organization_id=self.home)["id"]
        self.user_id = user.id
        self.group = groups.create(tx, organization_id=self.home, name="G").id
        self.slugs = [unique("org-editor"), unique("org-reader")]
        self.roles = [
            roles.create(
                tx,
                organization_id=self.home,
                slug=slug,
                name=slug.rpartition("-")[0],
                resource_type_slug="workspace",
            ).id
            for slug in self.slugs
        ]
        self.own_slug = unique("org-own")
        self.own = roles.create(tx, organization_id=self.home, slug=self.own_slug, name="own").id
        folder(tx, self.home, "w")
        self.place = ref(self.home, "w")

    def assigning(self, subject: Subject, role: int = 0) -> Work:
        entry = Entry(subject, self.slugs[role], self.place, None)
        return lambda tx: role_assignments.create(tx, entry)

    def setting(self, subject: Subject, *wanted: int) -> Work:
        return lambda tx: role_assignments.replace(
            tx,
            subject=subject,
            resource=self.place,
            roles=[(self.slugs[each], None) for each in wanted],
        )

    def works(self) -> dict[str, Work]:
        """Everything that may happen to an assignment or to what it names."""
        member, group = Subject(MEMBERSHIP, self.member), Subject(GROUP, self.group)
        return {
            "assigned": self.assigning(member),
            "assigned to the group": self.assigning(group),
            "set": self.setting(member, 0, 1),
            "cleared": self.setting(member),
            "holder changed": lambda tx: memberships.update(
                tx, self.member, role_slug=self.own_slug
            ),
            "role deleted": lambda tx: role_lifecycle.delete(tx, self.roles[0]),
            "role replaced": lambda tx: role_lifecycle.delete(
                tx, self.roles[0], replacement_role_slug=self.slugs[1]
            ),
            "own role deleted": lambda tx: role_lifecycle.delete(tx, self.own),
            "member deleted": lambda tx: membership_lifecycle.delete(tx, self.member),
            "user deleted": lambda tx: user_lifecycle.delete(tx, self.user_id),
            "group deleted": lambda tx: group_lifecycle.delete(tx, self.group),
            "resource deleted": lambda tx: resource_lifecycle.delete(tx, self.place),
            "resource taken away": lambda tx: resource_lifecycle.delete(
                tx, self.place, cascade=True
            ),
            "organization deleted": lambda tx: organization_lifecycle.delete(tx, self.home),
        }


ANY = ("role deleted", "role replaced", "resource deleted", "resource taken away")
# What may take away what another write gives at that moment.
MEETING = {
    "assigned": (*ANY, "cleared", "member deleted", "user deleted", "organization deleted"),
    "assigned to the group": (*ANY, "group deleted"),
    "set": (*ANY, "assigned", "member deleted", "organization deleted"),
    "holder changed": ("own role deleted", "member deleted", "user deleted"),
}


def test_what_is_assigned_and_what_goes_meet_in_some_order(
    database: Database, times: int, acme: str
) -> None:
    for assigning, taking in ((one, other) for one, those in MEETING.items() for other in those):

        def made(assigning: str = assigning, taking: str = taking) -> Race:
            office = write(database, Office)
            works = office.works()
            return Race([works[assigning], works[taking]], assignments(office.home))

        hold(database, f"{assigning}, {taking}", made, 3 * times)


# --- limits, etags -------------------------------------------------------------------------------


def test_the_last_place_below_a_limit_is_taken_once(database_url: str) -> None:
    limited = Database(database_url, limits=Limits(groups_max=4, organization_roles_max=1))
    try:
        for _ in range(ROUNDS):
            home, _ = ring(limited, 2)
            for work in (
                lambda tx, home=home: groups.create(tx, organization_id=home, name="x"),
                lambda tx, home=home: roles.create(tx, organization_id=home, name="x"),
            ):
                reasons = race(limited, work, work, work)
                assert sorted(reasons) == ["", "LIMIT_REACHED", "LIMIT_REACHED"]
    finally:
        limited.close()


def test_of_two_changes_from_one_etag_one_is_made(database: Database) -> None:
    for _ in range(ROUNDS):
        _, (group, _) = ring(database, 2)
        with database.snapshot(SYSTEM) as snapshot:
            (seen,) = groups.views(snapshot, [groups.get(snapshot, group)])
        works: list[Work] = [
            lambda tx, group=group, name=name, etag=seen["etag"]: groups.update(
                tx, group, {"name": name}, etag=etag
            )
            for name in ("one", "other")
        ]
        works.append(
            lambda tx, group=group, etag=seen["etag"]: group_lifecycle.delete(tx, group, etag=etag)
        )
        reasons = race(database, *works)
        assert reasons.count("") == 1
        assert set(reasons) <= {"", "ETAG_MISMATCH", "GROUP_NOT_FOUND", LOST}
