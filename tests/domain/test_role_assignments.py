"""Role assignments: races, tags, and the cost of batches and lists."""

from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from typing import Any, NamedTuple

import pytest
from sqlalchemy import select

from authz_service.base.actor import SYSTEM
from authz_service.base.errors import Aborted, AlreadyExists
from authz_service.base.pages import Page
from authz_service.domain import (
    groups,
    memberships,
    resource_types,
    resources,
    role_assignments,
    roles,
    users,
)
from authz_service.domain.lifecycles import groups as group_lifecycle
from authz_service.domain.lifecycles import memberships as membership_lifecycle
from authz_service.domain.lifecycles import organizations
from authz_service.domain.lifecycles import resources as resource_lifecycle
from authz_service.domain.lifecycles import role_assignments as lifecycle
from authz_service.domain.lifecycles import roles as role_lifecycle
from authz_service.domain.role_assignments import Entry
from authz_service.engine.facts import GROUP, MEMBERSHIP, ResourceRef, Subject
from authz_service.storage.database import Database, Transaction
from authz_service.storage.tables import Event, RoleAssignment
from tests.conftest import ManualClock
from tests.domain.racing import race
from tests.statements import counting

ROUNDS = 5
DAY = 24 * 3_600 * 1_000_000
_numbers = count()


class Things(NamedTuple):
    """What one round of a race is about, new each time."""

    member: Subject
    group: Subject
    role_id: str
    role_slug: str
    resource: ResourceRef

    def entry(self, subject: Subject | None = None, expires_at: int | None = None) -> Entry:
        return Entry(subject or self.member, self.role_slug, self.resource, expires_at)


@pytest.fixture
def acme(database: Database) -> str:
    def work(tx: Transaction) -> str:
        resource_types.create(
            tx, slug="project", name="Project", parent_type_slugs=["organization"]
        )
        return organizations.create(tx, name="Acme").id

    return write(database, work).result


def write(database: Database, work: Any) -> Any:
    return database.write(work, actor=SYSTEM)


def things(database: Database, acme: str) -> Things:
    number = next(_numbers)
    slug = f"editor-{number}"
    user_id = write(
        database, lambda tx: users.create(tx, email=f"user{number}@example.com").id
    ).result
    role_id = write(
        database,
        lambda tx: roles.create(tx, slug=slug, name="Editor", resource_type_slug="project").id,
    ).result

    def work(tx: Transaction) -> Things:
        member = memberships.create(tx, user_id=user_id, organization_id=acme)
        group = groups.create(tx, organization_id=acme, name="g")
        resource = resources.create(
            tx,
            organization_id=acme,
            resource_type_slug="project",
            external_id=str(number),
            name="p",
        )
        return Things(
            Subject(MEMBERSHIP, member["id"]),
            Subject(GROUP, group.id),
            role_id,
            slug,
            ResourceRef(resource.id),
        )

    return write(database, work).result


def rounds(database: Database, acme: str) -> Iterator[Things]:
    for _ in range(ROUNDS):
        yield things(database, acme)


def tomorrow(database: Database) -> int:
    return database.now() + DAY


def stored(database: Database, of: Things) -> list[Any]:
    """Returns the stored assignments on the resource of a round."""
    with database.snapshot(SYSTEM) as snapshot:
        return list(
            snapshot.connection.execute(
                select(*RoleAssignment.__table__.columns).where(
                    RoleAssignment.resource_id == of.resource.id
                )
            )
        )


def told(database: Database, assignment_id: str) -> list[str]:
    """Returns the kinds of events about an assignment, in order."""
    with database.snapshot(SYSTEM) as snapshot:
        return list(
            snapshot.connection.execute(
                select(Event.kind).where(Event.target_id == assignment_id).order_by(Event.sequence)
            ).scalars()
        )


# --- races ---------------------------------------------------------------------------------------


def test_of_two_equal_assignments_one_is_made(database: Database, acme: str) -> None:
    for of in rounds(database, acme):
        create = lambda tx, of=of: role_assignments.create(tx, of.entry())  # noqa: E731
        assert sorted(race(database, create, create)) == ["", "ROLE_ASSIGNMENT_EXISTS"]
        assert len(stored(database, of)) == 1


def test_of_two_equal_sets_one_makes_the_assignment(database: Database, acme: str) -> None:
    for of in rounds(database, acme):
        works = [
            lambda tx, of=of, end=end: role_assignments.replace(
                tx, subject=of.member, resource=of.resource, roles=[(of.role_slug, end)]
            )
            for end in (None, tomorrow(database))
        ]
        assert race(database, *works) == ["", ""]
        (row,) = stored(database, of)
        assert told(database, row.id) == ["role_assignment.created", "role_assignment.updated"]


ASSIGNING: dict[str, Callable[[Transaction, Things, str], object]] = {
    "create": lambda tx, of, acme: role_assignments.create(tx, of.entry()),
    "set": lambda tx, of, acme: role_assignments.replace(
        tx, subject=of.member, resource=of.resource, roles=[(of.role_slug, None)]
    ),
    "modify": lambda tx, of, acme: role_assignments.modify(
        tx, organization_id=acme, add=[of.entry()]
    ),
}


def test_deleted_role_is_assigned_to_nobody(database: Database, acme: str) -> None:
    for of in rounds(database, acme):
        reasons = race(
            database,
            lambda tx, of=of: role_assignments.create(tx, of.entry()),
            lambda tx, of=of: role_lifecycle.delete(tx, of.role_id),
        )
        assert reasons in (["", "ROLE_IN_USE"], ["", "CONFLICT"], ["ROLE_NOT_FOUND", ""])
        assert len(stored(database, of)) == (reasons[0] == "")


@pytest.mark.parametrize("way", ASSIGNING)
def test_definitions_stand_still_while_a_role_is_assigned(
    database: Database, database_url: str, acme: str, way: str
) -> None:
    of = things(database, acme)

    def define(tx: Transaction) -> object:
        return roles.create(tx, slug="other", name="Other", resource_type_slug="project")

    def work(tx: Transaction) -> None:
        ASSIGNING[way](tx, of, acme)
        with pytest.raises(Aborted):
            write(impatient, define)

    with closing(Database(database_url, lock_seconds=0.05)) as impatient:
        write(database, work)
        write(impatient, define)
    assert len(stored(database, of)) == 1


@pytest.mark.parametrize("cascade", [False, True])
def test_nothing_is_assigned_on_a_deleted_resource(
    database: Database, acme: str, cascade: bool
) -> None:
    for of in rounds(database, acme):
        reasons = race(
            database,
            lambda tx, of=of: role_assignments.create(tx, of.entry()),
            lambda tx, of=of: resource_lifecycle.delete(tx, of.resource, cascade=cascade),
        )
        after_all = ["", ""] if cascade else ["", "RESOURCE_HAS_DEPENDENTS"]
        assert reasons in (after_all, ["RESOURCE_NOT_FOUND", ""])
        assert len(stored(database, of)) == (reasons == ["", "RESOURCE_HAS_DEPENDENTS"])


def test_nothing_is_assigned_to_a_deleted_membership(database: Database, acme: str) -> None:
    for of in rounds(database, acme):
        reasons = race(
            database,
            lambda tx, of=of: role_assignments.modify(
                tx, organization_id=acme, add=[of.entry(of.group), of.entry()]
            ),
            lambda tx, of=of: membership_lifecycle.delete(tx, of.member.id),
        )
        assert reasons in (["", ""], ["MEMBERSHIP_NOT_FOUND", ""])
        # The batch is whole or not at all; what the member had went with it.
        assert [row.subject_id for row in stored(database, of)] == (
            [of.group.id] if reasons[0] == "" else []
        )


def test_nothing_is_assigned_to_a_deleted_group(database: Database, acme: str) -> None:
    for of in rounds(database, acme):
        reasons = race(
            database,
            lambda tx, of=of: role_assignments.create(tx, of.entry(of.group)),
            lambda tx, of=of: group_lifecycle.delete(tx, of.group.id),
        )
        assert reasons in (["", ""], ["GROUP_NOT_FOUND", ""])
        assert stored(database, of) == []


def test_nothing_is_assigned_in_a_deleted_organization(database: Database, acme: str) -> None:
    for _ in range(2):
        home = write(database, lambda tx: organizations.create(tx, name="Gone").id).result
        of = things(database, home)
        reasons = race(
            database,
            lambda tx, of=of: role_assignments.create(tx, of.entry()),
            lambda tx, home=home: organizations.delete(tx, home),
        )
        assert reasons in (["", ""], ["MEMBERSHIP_NOT_FOUND", ""])
        assert stored(database, of) == []


def test_deletion_and_a_new_end_of_one_assignment_are_one_after_the_other(
    database: Database, acme: str
) -> None:
    for of in rounds(database, acme):
        made = write(database, lambda tx, of=of: role_assignments.create(tx, of.entry())).result
        end = tomorrow(database)
        reasons = race(
            database,
            lambda tx, made=made: role_assignments.delete(tx, made["id"]),
            lambda tx, made=made, end=end: role_assignments.update(
                tx, made["id"], {"expires_at": end}
            ),
        )
        assert reasons in (["", ""], ["", "ROLE_ASSIGNMENT_NOT_FOUND"])
        assert stored(database, of) == []


def test_an_end_is_told_once_however_many_look_for_it(
    database: Database, acme: str, clock: ManualClock
) -> None:
    for of in rounds(database, acme):
        end = database.now() + 60_000_000
        made = write(
            database, lambda tx, of=of, end=end: role_assignments.create(tx, of.entry(None, end))
        ).result
        clock.advance(minutes=2)
        end_expired = lambda tx: lifecycle.end_expired(tx, 100)  # noqa: E731
        assert race(database, end_expired, end_expired) == ["", ""]
        assert told(database, made["id"]) == ["role_assignment.created", "role_assignment.expired"]


def test_an_end_is_told_before_what_takes_its_place(
    database: Database, acme: str, clock: ManualClock
) -> None:
    for of in rounds(database, acme):
        end = database.now() + 60_000_000
        made = write(
            database, lambda tx, of=of, end=end: role_assignments.create(tx, of.entry(None, end))
        ).result
        clock.advance(minutes=2)
        reasons = race(
            database,
            lambda tx: lifecycle.end_expired(tx, 100),
            lambda tx, made=made: role_assignments.update(tx, made["id"], {"expires_at": None}),
        )
        assert reasons == ["", ""]
        assert told(database, made["id"]) == [
            "role_assignment.created",
            "role_assignment.expired",
            "role_assignment.updated",
        ]
        (row,) = stored(database, of)
        assert (row.expires_at, row.is_end_recorded) == (None, False)


# --- background ----------------------------------------------------------------------------------


def test_each_round_takes_on_as_many_as_it_may_the_earliest_first(
    database: Database, acme: str, clock: ManualClock
) -> None:
    of = [things(database, acme) for _ in range(3)]
    made = []
    for i, each in enumerate(of):
        end = database.now() + (3 - i) * 60_000_000
        made.append(
            write(
                database,
                lambda tx, each=each, end=end: role_assignments.create(tx, each.entry(None, end)),
            ).result["id"]
        )
    clock.advance(hours=1)
    for expected, latest in ((2, made[0]), (1, None), (0, None)):
        assert write(database, lambda tx: lifecycle.end_expired(tx, 2)).result == expected
        if latest:
            assert told(database, latest) == ["role_assignment.created"]
    assert write(database, lambda tx: lifecycle.sweep(tx, 2)).result == 0
    clock.advance(days=30)
    revision = write(database, lambda tx: None).revisions
    for expected in (2, 1, 0):
        swept = write(database, lambda tx: lifecycle.sweep(tx, 2))
        assert swept.result == expected
        assert swept.tags == {}
    assert [stored(database, each) for each in of] == [[], [], []]
    assert revision == {}


def test_what_has_no_event_yet_is_not_swept(
    database: Database, acme: str, clock: ManualClock
) -> None:
    of = things(database, acme)
    end = database.now() + 60_000_000
    write(database, lambda tx: role_assignments.create(tx, of.entry(None, end)))
    clock.advance(days=40)
    assert write(database, lambda tx: lifecycle.sweep(tx, 2)).result == 0
    write(database, lambda tx: lifecycle.end_expired(tx, 2))
    assert write(database, lambda tx: lifecycle.sweep(tx, 2)).result == 1


# --- tags ----------------------------------------------------------------------------------------


def test_every_change_marks_its_subjects(database: Database, acme: str, clock: ManualClock) -> None:
    of = things(database, acme)
    m, g = {f"m:{of.member.id}"}, {f"g:{of.group.id}"}

    def marked(work: Any) -> set[str]:
        tags = write(database, work).tags
        assert set(tags) <= {acme}
        return set(tags.get(acme, ()))

    def replace(subject: Subject, *ends: int | None) -> Any:
        return lambda tx: role_assignments.replace(
            tx,
            subject=subject,
            resource=of.resource,
            roles=[(of.role_slug, each) for each in ends],
        )

    end = tomorrow(database)
    made: list[str] = []
    assert marked(lambda tx: made.append(role_assignments.create(tx, of.entry())["id"])) == m
    assert marked(lambda tx: role_assignments.create(tx, of.entry(of.group, end))) == g
    with pytest.raises(AlreadyExists):
        marked(lambda tx: role_assignments.create(tx, of.entry()))
    new_end = {"expires_at": end}
    assert marked(lambda tx: role_assignments.update(tx, made[0], new_end)) == m
    assert marked(lambda tx: role_assignments.update(tx, made[0], new_end)) == set()
    assert marked(replace(of.group, end)) == set()
    assert marked(replace(of.group, None)) == g
    assert marked(replace(of.group)) == g
    both = [of.entry(of.group, end), of.entry(None, end)]
    assert marked(lambda tx: role_assignments.modify(tx, organization_id=acme, add=both)) == g
    clock.advance(days=1)
    assert marked(lambda tx: lifecycle.end_expired(tx, 100)) == set()
    assert marked(lambda tx: role_assignments.update(tx, made[0], {"expires_at": None})) == m
    assert marked(replace(of.group, None)) == g
    gone = [of.entry(of.group), of.entry()]
    assert marked(lambda tx: role_assignments.modify(tx, organization_id=acme, remove=gone)) == {
        *m,
        *g,
    }


# --- cost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [2, 40])
def test_lists_run_as_many_statements_for_any_page(
    database: Database, acme: str, members: int
) -> None:
    of = things(database, acme)

    def assign(tx: Transaction) -> None:
        subjects = [
            Subject(GROUP, groups.create(tx, organization_id=acme, name="g").id)
            for _ in range(members)
        ]
        for subject in subjects:
            role_assignments.create(tx, of.entry(subject))

    write(database, assign)
    with database.snapshot(SYSTEM) as snapshot, counting() as statements:
        rows, _, _ = role_assignments.page(snapshot, resource=of.resource, page=Page(1_000))
        assert len(role_assignments.views(snapshot, rows)) == members
    # The resource, the page, the roles and resources of the page.
    assert len(statements) == 3, statements


@pytest.mark.parametrize("entries", [1, 8])
def test_batch_looks_up_all_its_entries_at_once(
    database: Database, acme: str, entries: int
) -> None:
    of = [things(database, acme) for _ in range(entries)]

    def work(tx: Transaction) -> list[str]:
        with counting() as statements:
            role_assignments.modify(
                tx, organization_id=acme, remove=[each.entry(each.group) for each in of]
            )
        return statements

    # Two locks, the organization; groups, roles, resources; ids of what is stored, its rows.
    statements = write(database, work).result
    assert len(statements) == 8, statements
