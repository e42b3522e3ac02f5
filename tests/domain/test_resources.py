"""The tree of resources: races, tags, and the cost of its lists."""

from typing import Any

import pytest
from sqlalchemy import select

from authz_service.base.actor import SYSTEM
from authz_service.base.errors import Refusal
from authz_service.base.pages import Page
from authz_service.domain import resource_types, resources
from authz_service.domain.lifecycles import organizations
from authz_service.domain.lifecycles import resources as lifecycle
from authz_service.engine.facts import ResourceRef
from authz_service.storage.database import Database, Transaction, Written
from authz_service.storage.tables import Resource, ResourceAncestor
from tests.domain.racing import race
from tests.statements import counting


@pytest.fixture
def acme(database: Database) -> str:
    """Id of an organization; folders lie in folders and in workspaces."""

    def work(tx: Transaction) -> str:
        resource_types.create(
            tx, slug="workspace", name="Workspace", parent_type_slugs=["organization"]
        )
        resource_types.create(
            tx, slug="folder", name="Folder", parent_type_slugs=["workspace", "folder"]
        )
        return organizations.create(tx, name="Acme").id

    return database.write(work, actor=SYSTEM).result


def named(acme: str, external_id: str) -> ResourceRef:
    type_slug = "workspace" if external_id.startswith("w") else "folder"
    return ResourceRef("", acme, type_slug, external_id)


def create(tx: Transaction, acme: str, external_id: str, parent: str | None = None) -> Resource:
    ref = named(acme, external_id)
    return resources.create(
        tx,
        organization_id=acme,
        resource_type_slug=ref.resource_type_slug,
        external_id=external_id,
        name=external_id,
        parent=named(acme, parent) if parent else None,
    )


def write(database: Database, work: Any) -> Written[Any]:
    return database.write(work, actor=SYSTEM)


def tree(database: Database) -> dict[str, str]:
    """Returns each resource's path of keys, and checks that depth and closure agree with it."""
    with database.snapshot(SYSTEM) as snapshot:
        rows = {
            row.id: row for row in snapshot.connection.execute(select(*Resource.__table__.columns))
        }
        closure = {
            (row.ancestor_id, row.resource_id)
            for row in snapshot.connection.execute(select(*ResourceAncestor.__table__.columns))
        }
    paths = {}
    expected = set()
    for id, row in rows.items():
        above = [id]
        while rows[above[0]].parent_id:
            assert rows[above[0]].parent_id not in above, "a cycle"
            above.insert(0, rows[above[0]].parent_id)
        assert row.path == "/".join(above)
        assert row.depth == len(above) - 1
        expected |= {(node, id) for node in above}
        paths[row.external_id] = "/".join(rows[node].external_id for node in above[1:])
    assert closure == expected
    return paths


def test_crossing_moves_make_no_cycle(database: Database, acme: str) -> None:
    def prepare(tx: Transaction) -> None:
        create(tx, acme, "w")
        for name in "ab":
            create(tx, acme, name, "w")
            create(tx, acme, f"below {name}", name)

    write(database, prepare)
    for _ in range(5):
        # Each under what lies below the other: alone, either may happen.
        reasons = race(
            database,
            lambda tx: resources.move(tx, named(acme, "a"), parent=named(acme, "below b")),
            lambda tx: resources.move(tx, named(acme, "b"), parent=named(acme, "below a")),
        )
        assert sorted(reasons) == ["", "RESOURCE_CYCLE"]
        paths = tree(database)
        assert paths["below a"] in ("w/b/below b/a/below a", "w/a/below a")
        for name in "ab":
            write(
                database,
                lambda tx, name=name: resources.move(
                    tx, named(acme, name), parent=named(acme, "w")
                ),
            )


def test_creating_below_what_is_deleted_is_one_or_the_other(database: Database, acme: str) -> None:
    write(database, lambda tx: create(tx, acme, "w"))
    for i in range(5):
        write(database, lambda tx: create(tx, acme, "f", "w"))
        reasons = race(
            database,
            lambda tx, i=i: create(tx, acme, f"new {i}", "f"),
            lambda tx: lifecycle.delete(tx, named(acme, "f")),
        )
        assert reasons in (["RESOURCE_NOT_FOUND", ""], ["", "RESOURCE_HAS_DEPENDENTS"])
        assert ("f" in tree(database)) == (reasons[0] == "")
        write(
            database,
            lambda tx: lifecycle.delete(tx, named(acme, "f"), cascade=True, allow_missing=True),
        )
        assert set(tree(database)) == {acme, "w"}


def test_creating_below_a_cascade_goes_with_it_or_is_refused(database: Database, acme: str) -> None:
    write(database, lambda tx: create(tx, acme, "w"))
    for i in range(5):
        write(database, lambda tx: create(tx, acme, "f", "w"))
        reasons = race(
            database,
            lambda tx, i=i: create(tx, acme, f"new {i}", "f"),
            lambda tx: lifecycle.delete(tx, named(acme, "f"), cascade=True),
        )
        assert reasons in (["RESOURCE_NOT_FOUND", ""], ["", ""])
        assert set(tree(database)) == {acme, "w"}


def test_one_key_is_given_once(database: Database, acme: str) -> None:
    for i in range(3):
        reasons = race(
            database,
            lambda tx, i=i: create(tx, acme, f"w{i}"),
            lambda tx, i=i: create(tx, acme, f"w{i}"),
        )
        assert sorted(reasons) == ["", "EXTERNAL_ID_TAKEN"]


def test_only_what_moves_or_goes_is_marked(database: Database, acme: str) -> None:
    def marked(work: Any) -> set[str]:
        tags = write(database, work).tags
        assert set(tags) <= {acme}
        return set(tags.get(acme, ()))

    ids: dict[str, str] = {}

    def prepare(tx: Transaction) -> None:
        for name, parent in (("w", None), ("w2", None), ("a", "w"), ("b", "a")):
            ids[name] = create(tx, acme, name, parent).id

    assert marked(prepare) == set()
    a, w2 = named(acme, "a"), named(acme, "w2")
    assert marked(lambda tx: resources.update(tx, a, {"name": "A"})) == set()
    assert marked(lambda tx: resources.move(tx, a, parent=named(acme, "w"))) == set()
    assert marked(lambda tx: resources.move(tx, a, parent=w2)) == {f"r:{ids['a']}"}
    upsert = {"organization_id": acme, "resource_type_slug": "folder", "external_id": "a"}
    assert marked(lambda tx: resources.upsert(tx, **upsert, name="x")) == set()
    moved = {**upsert, "name": "y", "parent": named(acme, "w")}
    assert marked(lambda tx: resources.upsert(tx, **moved)) == {f"r:{ids['a']}"}
    deleted = marked(lambda tx: lifecycle.delete(tx, named(acme, "w"), cascade=True))
    assert deleted == {f"r:{ids['w']}"}


@pytest.mark.parametrize("names", [2, 60])
def test_lists_run_as_many_statements_for_any_page(
    database: Database, acme: str, names: int
) -> None:
    def prepare(tx: Transaction) -> None:
        create(tx, acme, "w")
        for i in range(names):
            create(tx, acme, f"f{i}", "w")

    write(database, prepare)
    for filters in (
        {},
        {"parent": named(acme, "w")},
        {"parent": named(acme, "w"), "resource_type_slug": "folder"},
        {"parent": named(acme, "w"), "children_only": True},
    ):
        with database.snapshot(SYSTEM) as snapshot, counting() as statements:
            rows, _ = resources.page(snapshot, organization_id=acme, page=Page(1_000), **filters)
        assert len(rows) in (names, names + 2)
        # The organization, the type if asked for, the parent or root, the page.
        assert len(statements) <= 5, statements


@pytest.mark.parametrize("count", [3, 40])
def test_a_move_runs_as_many_statements_for_any_subtree(
    database: Database, acme: str, count: int
) -> None:
    def prepare(tx: Transaction) -> None:
        for name in ("w", "w2"):
            create(tx, acme, name)
        create(tx, acme, "a", "w")
        for i in range(count):
            create(tx, acme, f"f{i}", "a")

    write(database, prepare)
    with counting() as statements:
        write(
            database,
            lambda tx: resources.move(tx, named(acme, "a"), parent=named(acme, "w2")),
        )
    assert len(statements) <= 22, statements
    assert tree(database)["f1"] == "w2/a/f1"


def test_cascade_is_limited(database: Database, acme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("authz_service.engine.limits.CASCADE_RESOURCES_MAX", 3)

    def prepare(tx: Transaction) -> None:
        create(tx, acme, "w")
        for i in range(3):
            create(tx, acme, f"f{i}", "w")

    write(database, prepare)

    def delete(tx: Transaction) -> tuple[int, int]:
        return lifecycle.delete(tx, named(acme, "w"), cascade=True)

    with pytest.raises(Refusal) as refused:
        write(database, delete)
    assert refused.value.reason == "LIMIT_REACHED"
    assert refused.value.metadata == {"limit": "cascade_resources", "maximum": "3"}
    write(database, lambda tx: lifecycle.delete(tx, named(acme, "f0")))
    assert write(database, delete).result == (3, 0)
