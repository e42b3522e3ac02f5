"""Roles, permissions and types: what writers mark, and who meets whom."""

from itertools import count
from typing import Any

import pytest

from authz_service.base.actor import SYSTEM
from authz_service.base.consistency import ENVIRONMENT
from authz_service.domain import memberships, permissions, resource_types, resources, roles, users
from authz_service.domain.lifecycles import organizations
from authz_service.domain.lifecycles import permissions as permission_lifecycle
from authz_service.domain.lifecycles import roles as lifecycle
from authz_service.engine import tags
from authz_service.storage.database import Database, Transaction, Written
from tests.domain.racing import race

ROUNDS = 4
E, R = {ENVIRONMENT: {tags.ENVIRONMENT_DEFINITIONS}}, {tags.ORGANIZATION_ROLES}
_numbers = count()


@pytest.fixture
def acme(database: Database) -> str:
    """Id of an organization; projects lie in workspaces."""

    def work(tx: Transaction) -> str:
        resource_types.create(
            tx, slug="workspace", name="Workspace", parent_type_slugs=["organization"]
        )
        resource_types.create(tx, slug="project", name="Project", parent_type_slugs=["workspace"])
        permissions.create(tx, slug="project:view", name="View", resource_type_slug="project")
        return organizations.create(tx, name="Acme").id

    return write(database, work).result


def write(database: Database, work: Any) -> Written[Any]:
    return database.write(work, actor=SYSTEM)


def marked(database: Database, work: Any) -> dict[str, set[str]]:
    """Returns the tags that a write marks, by realm, of those realms where it marks any."""
    return {realm: set(found) for realm, found in write(database, work).tags.items() if found}


def role(database: Database, organization_id: str = "", *permission_slugs: str) -> str:
    slug = f"{'org-' if organization_id else ''}role-{next(_numbers)}"
    return str(
        write(
            database,
            lambda tx: (
                roles.create(
                    tx,
                    organization_id=organization_id,
                    slug=slug,
                    name="Role",
                    permission_slugs=permission_slugs,
                ).id
            ),
        ).result
    )


def slug_of(database: Database, role_id: str) -> str:
    with database.snapshot(SYSTEM) as snapshot:
        return str(roles.get(snapshot, role_id).slug)


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


# --- tags ----------------------------------------------------------------------------------------


def test_types_change_no_fact(database: Database, acme: str) -> None:
    for work in (
        lambda tx: resource_types.create(
            tx, slug="room", name="Room", parent_type_slugs=["organization"]
        ),
        lambda tx: resource_types.update(tx, "room", {"parent_type_slugs": ["workspace"]}),
        lambda tx: resource_types.delete(tx, "room"),
    ):
        assert marked(database, work) == {}


def test_which_permissions_there_are_is_a_fact(database: Database, acme: str) -> None:
    def change(tx: Transaction) -> None:
        permissions.update(tx, "x", {"name": "Y", "assignable_to_api_keys": True})

    assert marked(database, lambda tx: permissions.create(tx, slug="x", name="X")) == E
    assert marked(database, change) == {}
    role(database, acme, "x")
    role(database, "", "x")
    # Every fact about grants carries the environment's tag.
    assert marked(database, lambda tx: permission_lifecycle.delete(tx, "x", cascade=True)) == E


def test_permissions_of_a_role_and_its_end_are_marked_where_it_lives(
    database: Database, acme: str
) -> None:
    def judge(organization_id: str, expected: dict[str, set[str]]) -> None:
        new = role(database, organization_id)
        made = role(database, organization_id)
        member(database, acme, slug_of(database, made))
        slug = slug_of(database, new)
        for work, wanted in (
            (lambda tx: roles.set_permissions(tx, made, ["members:view"]), expected),
            (lambda tx: roles.set_permissions(tx, made, ["members:view"]), {}),
            (lambda tx: roles.add_permissions(tx, made, ["project:view"]), expected),
            (lambda tx: roles.remove_permissions(tx, made, ["project:view"]), expected),
            (lambda tx: roles.update(tx, made, {"name": "New"}), {}),
            (lambda tx: lifecycle.delete(tx, made, replacement_role_slug=slug), expected),
        ):
            assert marked(database, work) == wanted

    judge("", E)
    judge(acme, {acme: R})


def test_a_new_role_is_in_no_fact(database: Database, acme: str) -> None:
    for organization_id in ("", acme):
        assert (
            marked(
                database,
                lambda tx, of=organization_id: roles.create(
                    tx,
                    organization_id=of,
                    slug="org-a" if of else "a",
                    name="A",
                    permission_slugs=["members:view"],
                ),
            )
            == {}
        )


# --- types ---------------------------------------------------------------------------------------


def test_descendants_are_all_below(database: Database, acme: str) -> None:
    def work(tx: Transaction) -> None:
        for slug, parents in (
            ("folder", ["folder", "project"]),
            ("file", ["folder", "workspace"]),
            ("room", ["organization"]),
        ):
            resource_types.create(tx, slug=slug, name=slug, parent_type_slugs=parents)

    write(database, work)
    with database.snapshot(SYSTEM) as snapshot:
        found = {
            slug: resource_types.descendants(snapshot, slug)
            for slug in ("organization", "workspace", "folder", "file", "room", "nothing")
        }
        parents = resource_types.parents(snapshot)
    assert found == {
        "organization": {"workspace", "project", "folder", "file", "room"},
        "workspace": {"project", "folder", "file"},
        "folder": {"folder", "file"},
        "file": set(),
        "room": set(),
        "nothing": set(),
    }
    assert parents["organization"] == set()
    assert parents["folder"] == {"folder", "project"}


# --- races ---------------------------------------------------------------------------------------


def test_two_changes_of_types_make_no_cycle(database: Database, acme: str) -> None:
    for number in range(ROUNDS):
        one, other = f"a{number}", f"b{number}"
        for slug in (one, other):
            write(
                database,
                lambda tx, slug=slug: resource_types.create(
                    tx, slug=slug, name=slug, parent_type_slugs=["organization"]
                ),
            )
        works = [
            lambda tx, slug=slug, parent=parent: resource_types.update(
                tx, slug, {"parent_type_slugs": ["organization", parent]}
            )
            for slug, parent in ((one, other), (other, one))
        ]
        assert sorted(race(database, *works)) == ["", "RESOURCE_TYPE_CYCLE"]


def test_no_resource_is_placed_below_a_parent_type_taken_away(
    database: Database, acme: str
) -> None:
    for number in range(ROUNDS):
        slug = f"room{number}"
        write(
            database,
            lambda tx, slug=slug: resource_types.create(
                tx, slug=slug, name=slug, parent_type_slugs=["organization", "workspace"]
            ),
        )
        reasons = race(
            database,
            lambda tx, slug=slug: resources.create(
                tx,
                organization_id=acme,
                resource_type_slug=slug,
                external_id="1",
                name="r",
            ),
            lambda tx, slug=slug: resource_types.update(
                tx, slug, {"parent_type_slugs": ["workspace"]}
            ),
        )
        assert reasons in (["", "RESOURCE_TYPE_IN_USE"], ["RESOURCE_PARENT_REQUIRED", ""])


def test_no_role_contains_a_deleted_permission(database: Database, acme: str) -> None:
    for number in range(ROUNDS):
        slug = f"x{number}"
        write(database, lambda tx, slug=slug: permissions.create(tx, slug=slug, name="X"))
        own = role(database, acme)
        reasons = race(
            database,
            lambda tx, slug=slug, own=own: roles.add_permissions(tx, own, [slug]),
            lambda tx, slug=slug: permission_lifecycle.delete(tx, slug),
        )
        assert reasons in (["", "PERMISSION_IN_USE"], ["PERMISSION_NOT_FOUND", ""])


@pytest.mark.parametrize("of_organization", [False, True])
def test_nobody_holds_a_deleted_role(database: Database, acme: str, of_organization: bool) -> None:
    for _ in range(ROUNDS):
        made = role(database, acme if of_organization else "")
        slug, member_id = slug_of(database, made), member(database, acme)
        reasons = race(
            database,
            lambda tx, one=member_id, slug=slug: memberships.update(tx, one, role_slug=slug),
            lambda tx, made=made: lifecycle.delete(tx, made, replacement_role_slug="guest"),
        )
        assert reasons in (["", ""], ["ROLE_NOT_FOUND", ""])
        with database.snapshot(SYSTEM) as snapshot:
            held = memberships.views_by_id(snapshot, [member_id])[member_id]["role"]
        assert held == ("guest" if reasons[0] == "" else "member")


def test_roles_that_replace_each_other_leave_one(database: Database, acme: str) -> None:
    for _ in range(ROUNDS):
        one, other = role(database), role(database)
        slugs = [slug_of(database, made) for made in (one, other)]
        holders = [member(database, acme, slug) for slug in slugs]
        reasons = race(
            database,
            lambda tx, one=one, slugs=slugs: lifecycle.delete(
                tx, one, replacement_role_slug=slugs[1]
            ),
            lambda tx, other=other, slugs=slugs: lifecycle.delete(
                tx, other, replacement_role_slug=slugs[0]
            ),
        )
        assert sorted(reasons) == ["", "REPLACEMENT_ROLE_INVALID"]
        with database.snapshot(SYSTEM) as snapshot:
            seen = memberships.views_by_id(snapshot, holders)
        assert {each["role"] for each in seen.values()} == {slugs[reasons.index("") - 1]}


def test_a_deleted_organization_takes_its_roles_from_a_permission(database: Database) -> None:
    for number in range(ROUNDS):
        home = write(database, lambda tx: organizations.create(tx, name="Acme").id).result
        slug = f"y{number}"
        write(database, lambda tx, slug=slug: permissions.create(tx, slug=slug, name="Y"))
        role(database, home, slug)
        reasons = race(
            database,
            lambda tx, slug=slug: permission_lifecycle.delete(tx, slug, cascade=True),
            lambda tx, home=home: organizations.delete(tx, home),
        )
        assert reasons == ["", ""]
