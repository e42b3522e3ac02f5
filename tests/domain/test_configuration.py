"""Settings: races with what relies on them, tags, and the cost of priorities."""

from itertools import count
from typing import Any

import pytest

from authz_service.base.actor import SYSTEM
from authz_service.domain import configuration, memberships, roles, users
from authz_service.domain.lifecycles import configuration as lifecycle
from authz_service.domain.lifecycles import organizations
from authz_service.domain.lifecycles import roles as role_lifecycle
from authz_service.storage.database import Database
from tests.domain.racing import race
from tests.statements import counting

ROUNDS = 4
_numbers = count()


@pytest.fixture
def acme(database: Database) -> str:
    return organization(database)


def write(database: Database, work: Any) -> Any:
    return database.write(work, actor=SYSTEM)


def organization(database: Database) -> str:
    return str(write(database, lambda tx: organizations.create(tx, name="Acme").id).result)


def member(database: Database, organization_id: str, *role_slugs: str) -> str:
    email = f"user{next(_numbers)}@example.com"
    user_id = write(database, lambda tx: users.create(tx, email=email).id).result
    made = write(
        database,
        lambda tx: memberships.create(
            tx, user_id=user_id, organization_id=organization_id, role_slugs=role_slugs
        ),
    )
    return str(made.result["id"])


# --- races ---------------------------------------------------------------------------------------


def test_nobody_gets_a_second_role_while_several_are_turned_off(
    database: Database, acme: str
) -> None:
    for _ in range(ROUNDS):
        one = member(database, acme, "member")
        reasons = race(
            database,
            lambda tx: lifecycle.update(tx, {"multiple_roles_enabled": False}),
            lambda tx, one=one: memberships.update(tx, one, role_slugs=["member", "guest"]),
        )
        assert reasons in (["MULTIPLE_ROLES_IN_USE", ""], ["", "MULTIPLE_ROLES_DISABLED"])
        write(database, lambda tx: lifecycle.update(tx, {"multiple_roles_enabled": True}))
        write(database, lambda tx, one=one: memberships.update(tx, one, role_slug="member"))


def test_default_role_of_an_organization_is_a_role_that_stays(
    database: Database, acme: str
) -> None:
    for number in range(ROUNDS):
        slug = f"org-{number}"
        role_id = write(
            database,
            lambda tx, slug=slug: roles.create(tx, organization_id=acme, slug=slug, name="n").id,
        ).result
        reasons = race(
            database,
            lambda tx, slug=slug: lifecycle.update_organization(
                tx, acme, {"default_role_slug": slug}
            ),
            lambda tx, role_id=role_id: role_lifecycle.delete(tx, role_id),
        )
        assert reasons in (["", "ROLE_IS_DEFAULT"], ["ROLE_NOT_FOUND", ""])


def test_last_holder_of_a_new_owner_role_stays(database: Database, acme: str) -> None:
    for _ in range(ROUNDS):
        home = organization(database)
        member(database, home, "owner")
        admin = member(database, home, "admin")
        reasons = race(
            database,
            lambda tx: lifecycle.update(tx, {"owner_role_slug": "admin"}),
            lambda tx, admin=admin: memberships.deactivate(tx, admin),
        )
        assert reasons in (["", "LAST_OWNER"], ["LAST_OWNER", ""])
        # The next round begins as this one did, whatever organizations stand there by then.
        write(
            database,
            lambda tx: lifecycle.update(
                tx, {"owner_role_slug": "owner", "last_owner_guard_enabled": False}
            ),
        )
        write(database, lambda tx, home=home: organizations.delete(tx, home))
        write(database, lambda tx: lifecycle.update(tx, {"last_owner_guard_enabled": True}))


# --- tags ----------------------------------------------------------------------------------------


def test_only_a_collapse_changes_facts(database: Database, acme: str) -> None:
    member(database, acme, "guest", "member")

    def tags(work: Any) -> dict[str, frozenset[str]]:
        return {realm: marked for realm, marked in write(database, work).tags.items() if marked}

    assert tags(lambda tx: lifecycle.update(tx, {"resource_depth_max": 3})) == {}
    order = ["guest", "member", "admin", "owner"]
    assert tags(lambda tx: lifecycle.set_role_priority(tx, role_slugs=order)) == {}
    assert (
        tags(lambda tx: lifecycle.update_organization(tx, acme, {"default_role_slug": "guest"}))
        == {}
    )
    assert tags(
        lambda tx: lifecycle.update(
            tx, {"multiple_roles_enabled": False}, collapse_membership_roles=True
        )
    ) == {"*": {"E"}}
    assert tags(lambda tx: lifecycle.update(tx, {"multiple_roles_enabled": True})) == {}


# --- cost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("organizations_count", [1, 20])
def test_priorities_of_a_page_cost_one_statement(
    database: Database, organizations_count: int
) -> None:
    homes = [organization(database) for _ in range(organizations_count)]
    with database.snapshot(SYSTEM) as snapshot:
        with counting() as statements:
            found = configuration.role_priorities(snapshot, homes)
        assert set(found) == set(homes)
        assert len(statements) == 1, statements
