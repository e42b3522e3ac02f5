"""Memberships below the API: who is an owner, races, tags, and the statements of a page."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import insert, select, text, update

from authz_service.base import errors, ids
from authz_service.base.actor import SYSTEM
from authz_service.base.pages import Page
from authz_service.domain import groups, memberships, users
from authz_service.domain.lifecycles import memberships as membership_lifecycle
from authz_service.domain.lifecycles import organizations
from authz_service.domain.lifecycles import users as user_lifecycle
from authz_service.engine import tags
from authz_service.engine.facts import MEMBERSHIP, Subject
from authz_service.storage import realms
from authz_service.storage.database import Database, Transaction, Written
from authz_service.storage.tables import (
    Configuration,
    Event,
    Membership,
    Organization,
    Role,
    RoleAssignment,
)
from tests.statements import counting

Work = Callable[[Transaction], Any]


class World:
    """One organization and what tests do in it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.organization_id = self.organization()
        self._users = 0

    def write(self, work: Work) -> Any:
        return self.database.write(work, actor=SYSTEM).result

    def organization(self) -> str:
        return str(self.write(lambda tx: organizations.create(tx, name="Acme").id))

    def user(self) -> str:
        self._users += 1
        email = f"user{self._users}@example.com"
        return str(self.write(lambda tx: users.create(tx, email=email).id))

    def member(
        self, *role_slugs: str, user_id: str = "", organization_id: str = ""
    ) -> dict[str, Any]:
        user_id = user_id or self.user()
        organization_id = organization_id or self.organization_id
        made: dict[str, Any] = self.write(joining(user_id, organization_id, *role_slugs))
        return made

    def events(self) -> list[tuple[str, int]]:
        with self.database.snapshot(SYSTEM) as snapshot:
            rows = snapshot.connection.execute(
                select(Event.realm, Event.sequence).order_by(Event.realm, Event.sequence)
            )
            return [(row.realm, row.sequence) for row in rows]

    def configure(self, **values: Any) -> None:
        self.write(lambda tx: tx.connection.execute(update(Configuration).values(values)))

    def role_id(self, slug: str) -> str:
        with self.database.snapshot(SYSTEM) as snapshot:
            return str(
                snapshot.connection.execute(select(Role.id).where(Role.slug == slug)).scalar_one()
            )


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


def joining(user_id: str, organization_id: str, *role_slugs: str) -> Work:
    return lambda tx: memberships.create(
        tx, user_id=user_id, organization_id=organization_id, role_slugs=role_slugs
    )


def deactivating(member: dict[str, Any]) -> Work:
    return lambda tx: memberships.deactivate(tx, member["id"])


def losing_roles(member: dict[str, Any]) -> Work:
    return lambda tx: memberships.update(tx, member["id"], role_slug="guest")


def deleting(member: dict[str, Any]) -> Work:
    return lambda tx: membership_lifecycle.delete(tx, member["id"])


def deleting_user(member: dict[str, Any]) -> Work:
    return lambda tx: user_lifecycle.delete(tx, member["user_id"])


ENDINGS = [deactivating, losing_roles, deleting, deleting_user]


def refused(world: World, work: Work) -> tuple[str, dict[str, str]]:
    """Returns reason and metadata of a refusal, and checks that it changed nothing."""
    before = world.events()
    with pytest.raises(errors.Refusal) as refusal:
        world.write(work)
    assert world.events() == before
    return refusal.value.reason, refusal.value.metadata


# --- who is an owner (LO1) -----------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("other", ["none", "admin", "inactive", "pending", "through a group"])
def test_only_an_active_membership_with_the_role_itself_is_an_owner(
    world: World, ending: Callable[[dict[str, Any]], Work], other: str
) -> None:
    owner = world.member("owner")
    if other == "admin":
        world.member("admin")
    elif other in ("inactive", "pending"):
        second = world.member("owner")
        world.write(
            lambda tx: tx.connection.execute(
                update(Membership).where(Membership.id == second["id"]).values(status=other.upper())
            )
        )
    elif other == "through a group":
        give_through_group(world, world.member(), "owner")
    assert refused(world, ending(owner)) == (
        "LAST_OWNER",
        {"organization_id": world.organization_id},
    )


def give_through_group(world: World, member: dict[str, Any], slug: str) -> None:
    """Puts a membership into a group that holds the role on the organization resource."""
    role_id = world.role_id(slug)

    def work(tx: Transaction) -> None:
        group = groups.create(tx, organization_id=world.organization_id, name="Team")
        groups.add_member(tx, group.id, member=Subject(MEMBERSHIP, member["id"]))
        root = select(Organization.root_resource_id).where(Organization.id == world.organization_id)
        tx.connection.execute(
            insert(RoleAssignment).values(
                organization_id=world.organization_id,
                id=ids.new(ids.ROLE_ASSIGNMENT),
                group_id=group.id,
                role_id=role_id,
                resource_id=tx.connection.execute(root).scalar_one(),
                is_end_recorded=False,
                created_at=1,
                updated_at=1,
                revision=1,
            )
        )

    world.write(work)


@pytest.mark.parametrize("ending", ENDINGS)
def test_one_of_two_owners_may_go(world: World, ending: Callable[[dict[str, Any]], Work]) -> None:
    owner = world.member("owner", "member")
    world.member("guest", "owner")
    world.write(ending(owner))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("values", [{"last_owner_guard_enabled": False}, {"owner_role_id": None}])
def test_guard_is_off_where_the_settings_say_so(
    world: World, ending: Callable[[dict[str, Any]], Work], values: dict[str, Any]
) -> None:
    owner = world.member("owner")
    world.configure(**values)
    world.write(ending(owner))


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_owner_role_is_the_one_the_settings_name(
    world: World, ending: Callable[[dict[str, Any]], Work]
) -> None:
    world.configure(owner_role_id=world.role_id("admin"))
    world.write(ending(world.member("owner")))
    assert refused(world, ending(world.member("admin")))[0] == "LAST_OWNER"


@pytest.mark.parametrize("ending", ENDINGS)
def test_organization_without_an_owner_is_not_concerned(
    world: World, ending: Callable[[dict[str, Any]], Work]
) -> None:
    inactive = world.member("owner")
    world.configure(last_owner_guard_enabled=False)
    world.write(deactivating(inactive))
    world.configure(last_owner_guard_enabled=True)
    world.write(ending(world.member("member")))
    if ending is not deactivating:
        world.write(ending(inactive))


def test_guard_judges_the_result_for_every_organization_and_names_the_first(
    world: World,
) -> None:
    second = world.organization()
    owners = [world.member("owner", organization_id=each) for each in (second, second)]
    only = world.member("owner")
    both = [world.organization_id, second]

    def one_of_two_goes(tx: Transaction) -> None:
        with memberships.last_owner_guard(tx, both):
            tx.session.get(Membership, (second, owners[0]["id"])).status = "INACTIVE"  # type: ignore[union-attr]

    world.write(one_of_two_goes)

    def all_go(tx: Transaction) -> None:
        with memberships.last_owner_guard(tx, both):
            tx.connection.execute(update(Membership).values(status="INACTIVE"))

    assert refused(world, all_go) == ("LAST_OWNER", {"organization_id": min(both)})

    def unconcerned(tx: Transaction) -> None:
        with memberships.last_owner_guard(tx, []):
            tx.session.get(Membership, (world.organization_id, only["id"])).status = "INACTIVE"  # type: ignore[union-attr]

    world.write(unconcerned)


# --- races ---------------------------------------------------------------------------------------


def race(world: World, first: Work, second: Work) -> Future[Written[Any]]:
    """Runs a write that begins while another holds its locks and has changed its rows.

    On PostgreSQL the first one commits once the second waits for it; on SQLite the second cannot
    even begin before.
    """
    begun = threading.Event()

    def held(tx: Transaction) -> None:
        first(tx)
        if not begun.is_set():
            begun.set()
            later.append(pool.submit(world.database.write, second, actor=SYSTEM))
        if tx.dialect.name == "postgresql":
            until_waiting(tx, later[0])

    later: list[Future[Written[Any]]] = []
    with ThreadPoolExecutor(1) as pool:
        world.write(held)
    return later[0]


def until_waiting(tx: Transaction, later: Future[Written[Any]]) -> None:
    """Asks until a write waits for a lock that this transaction holds, or is done without."""
    waiting = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid)) AND datname = current_database()"
    )
    while not tx.connection.execute(waiting).scalar_one() and not later.done():
        # Else a transaction goes on seeing the sessions as it saw them first.
        tx.connection.execute(text("SELECT pg_stat_clear_snapshot()"))


def reason(later: Future[Written[Any]]) -> str:
    error = later.exception()
    assert isinstance(error, errors.Refusal)
    return error.reason


@pytest.mark.parametrize("first", ENDINGS)
@pytest.mark.parametrize("second", ENDINGS)
def test_of_two_writes_against_the_last_two_owners_one_is_refused(
    world: World,
    first: Callable[[dict[str, Any]], Work],
    second: Callable[[dict[str, Any]], Work],
) -> None:
    one, other = world.member("owner"), world.member("owner")
    later = race(world, first(one), second(other))
    assert reason(later) == "LAST_OWNER"
    with world.database.snapshot(SYSTEM) as snapshot:
        seen = memberships.views_by_id(snapshot, [other["id"]])[other["id"]]
    assert seen == other


def test_user_who_joins_while_being_deleted_leaves_no_membership(world: World) -> None:
    user_id = world.user()
    known = world.member(user_id=user_id)
    elsewhere = world.organization()
    later = race(world, joining(user_id, elsewhere), deleting_user(known))
    # The deletion waited, and takes the membership it could not see before.
    written = later.result()
    assert written.result == 2
    with world.database.snapshot(SYSTEM) as snapshot:
        assert snapshot.connection.execute(select(Membership.id)).all() == []
    assert elsewhere in written.revisions


def test_user_who_is_being_deleted_can_join_nothing(world: World) -> None:
    user_id = world.user()
    known = world.member(user_id=user_id)
    later = race(world, deleting_user(known), joining(user_id, world.organization()))
    assert reason(later) == "USER_NOT_FOUND"


def test_user_who_leaves_an_organization_while_being_deleted_is_counted_once(
    world: World,
) -> None:
    known = world.member()
    stays = world.member(user_id=known["user_id"], organization_id=world.organization())
    later = race(world, deleting(known), deleting_user(known))
    written = later.result()
    assert written.result == 1
    assert written.tags[stays["organization_id"]] == {tags.membership(stays["id"])}
    assert known["organization_id"] not in written.tags


def test_settings_that_change_meanwhile_are_those_that_count(world: World) -> None:
    def setting(**values: Any) -> Work:
        def work(tx: Transaction) -> None:
            realms.lock(tx, environment=True)
            tx.connection.execute(update(Configuration).values(values))

        return work

    user_id, member = world.user(), world.member("admin")
    several = ("guest", "member")
    for second, expected in (
        (joining(user_id, world.organization_id, *several), "MULTIPLE_ROLES_DISABLED"),
        (
            lambda tx: memberships.update(tx, member["id"], role_slugs=several),
            "MULTIPLE_ROLES_DISABLED",
        ),
    ):
        assert reason(race(world, setting(multiple_roles_enabled=False), second)) == expected
        world.configure(multiple_roles_enabled=True)
    # The member becomes the owner before the second write can look.
    admin = setting(owner_role_id=world.role_id("admin"))
    for ending in ENDINGS:
        assert reason(race(world, admin, ending(member))) == "LAST_OWNER"
        world.configure(owner_role_id=world.role_id("owner"))


def test_user_joins_once(world: World) -> None:
    user_id = world.user()
    join = joining(user_id, world.organization_id)
    assert reason(race(world, join, join)) == "MEMBERSHIP_EXISTS"


def test_address_is_taken_once(world: World) -> None:
    def create(tx: Transaction) -> None:
        users.create(tx, email="ann@example.com")

    assert reason(race(world, create, create)) == "EMAIL_TAKEN"


def test_membership_deleted_meanwhile_is_not_found(world: World) -> None:
    member = world.member()
    for ending in (deactivating, losing_roles, deleting):
        member = world.member()
        assert reason(race(world, deleting(member), ending(member))) == "MEMBERSHIP_NOT_FOUND"


# --- tags ----------------------------------------------------------------------------------------


def test_each_write_marks_its_membership_and_no_write_to_a_user_marks_anything(
    world: World,
) -> None:
    def marked(work: Work) -> dict[str, Any]:
        return dict(world.database.write(work, actor=SYSTEM).tags)

    user_id = world.user()
    organization_id = world.organization_id
    written = world.database.write(joining(user_id, organization_id), actor=SYSTEM)
    member = written.result
    own = {organization_id: {tags.membership(member["id"])}}
    assert dict(written.tags) == own
    for work in (
        losing_roles(member),
        deactivating(member),
        joining(user_id, organization_id, "admin"),
        deactivating(member),
        lambda tx: memberships.reactivate(tx, member["id"]),
        deleting(member),
    ):
        assert marked(work) == own
    change = {"name": "Ann", "email": "other@example.com"}
    assert marked(lambda tx: users.update(tx, user_id, change)) == {"*": set()}
    first = world.member(user_id=user_id)
    second = world.member(user_id=user_id, organization_id=world.organization())
    assert marked(deleting_user(first)) == {
        "*": set(),
        **{each["organization_id"]: {tags.membership(each["id"])} for each in (first, second)},
    }


def test_what_changes_nothing_marks_nothing(world: World) -> None:
    member = world.member("guest")
    for work in (losing_roles(member), lambda tx: memberships.reactivate(tx, member["id"])):
        written = world.database.write(work, actor=SYSTEM)
        assert dict(written.tags) == {}
        assert written.result == member


# --- statements ----------------------------------------------------------------------------------


def test_a_page_costs_as_many_statements_as_one_row(world: World) -> None:
    user_id = world.user()
    world.member("owner", user_id=user_id)
    for number in range(3):
        member = world.member("guest", user_id=user_id, organization_id=world.organization())
        assert member["role"] == "guest"
        give_through_group(world, world.member("member", "guest"), ["admin", "member"][number % 2])
    counts = []
    for wanted, size in (
        ({"user_id": user_id}, 1),
        ({"user_id": user_id}, 4),
        ({"organization_id": world.organization_id}, 1),
        ({"organization_id": world.organization_id}, 4),
    ):
        with world.database.snapshot(SYSTEM) as snapshot:
            rows, _, _ = memberships.page(snapshot, **wanted, page=Page(size))
            assert len(rows) == size
            with counting() as statements:
                assert len(memberships.views(snapshot, rows)) == size
        counts.append(len(statements))
    assert set(counts) == {counts[0]}
    assert counts[0] == 1
