"""Groups in groups: races, tags, and the cost of their lists."""

from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import insert

from authz_service.base import ids
from authz_service.base.actor import SYSTEM
from authz_service.base.pages import Page
from authz_service.domain import groups, users
from authz_service.domain.lifecycles import groups as lifecycle
from authz_service.domain.lifecycles import organizations
from authz_service.engine.facts import GROUP, MEMBERSHIP, Subject
from authz_service.storage.database import Database, Transaction
from authz_service.storage.tables import Membership
from tests.domain.racing import race
from tests.statements import counting


@pytest.fixture
def acme(database: Database) -> str:
    return database.write(lambda tx: organizations.create(tx, name="Acme").id, actor=SYSTEM).result


def write(database: Database, work: Any) -> Any:
    return database.write(work, actor=SYSTEM)


def made(database: Database, acme: str, *names: str) -> list[str]:
    def work(tx: Transaction) -> list[str]:
        return [groups.create(tx, organization_id=acme, name=name).id for name in names]

    return write(database, work).result


def membership(database: Database, acme: str, email: str) -> str:
    """Stores a membership without roles."""

    def work(tx: Transaction) -> str:
        user = users.create(tx, email=email)
        row = {
            "organization_id": acme,
            "id": ids.new(ids.MEMBERSHIP),
            "user_id": user.id,
            "status": "ACTIVE",
            "created_at": 1,
            "updated_at": 1,
            "revision": 1,
        }
        tx.connection.execute(insert(Membership).values(row))
        return str(row["id"])

    return write(database, work).result


def test_crossing_nestings_make_no_cycle(database: Database, acme: str) -> None:
    for _ in range(5):
        a, b = made(database, acme, "a", "b")
        reasons = race(
            database,
            lambda tx, a=a, b=b: groups.add_member(tx, a, member=Subject(GROUP, b)),
            lambda tx, a=a, b=b: groups.modify_members(tx, b, add=[Subject(GROUP, a)]),
        )
        assert sorted(reasons) == ["", "GROUP_CYCLE"]


def test_chains_that_grow_at_both_ends_stay_within_the_limit(database: Database, acme: str) -> None:
    chain = made(database, acme, *"0123456")

    def prepare(tx: Transaction) -> None:
        for outer, inner in pairwise(chain):
            groups.add_member(tx, outer, member=Subject(GROUP, inner))

    write(database, prepare)
    for _ in range(3):
        top, bottom = made(database, acme, "top", "bottom")
        reasons = race(
            database,
            lambda tx, top=top: groups.add_member(tx, top, member=Subject(GROUP, chain[0])),
            lambda tx, bottom=bottom: groups.add_member(
                tx, chain[-1], member=Subject(GROUP, bottom)
            ),
        )
        assert sorted(reasons) == ["", "GROUP_DEPTH_EXCEEDED"]
        for group_id in (top, bottom):
            write(database, lambda tx, group_id=group_id: lifecycle.delete(tx, group_id))


def test_a_deleted_group_goes_nowhere(database: Database, acme: str) -> None:
    for _ in range(5):
        outer, inner = made(database, acme, "outer", "inner")
        reasons = race(
            database,
            lambda tx, outer=outer, inner=inner: groups.add_member(
                tx, outer, member=Subject(GROUP, inner)
            ),
            lambda tx, inner=inner: lifecycle.delete(tx, inner),
        )
        assert reasons in (["", ""], ["GROUP_NOT_FOUND", ""])
        with database.snapshot(SYSTEM) as snapshot:
            (seen,) = groups.views(snapshot, [groups.get(snapshot, outer)])
        assert seen["member_group_count"] == 0


def test_what_goes_in_or_out_is_marked(database: Database, acme: str) -> None:
    def marked(work: Any) -> set[str]:
        tags = write(database, work).tags
        assert set(tags) <= {acme}
        return set(tags.get(acme, ()))

    made_tags = marked(lambda tx: groups.create(tx, organization_id=acme, name="g"))
    assert made_tags == set()
    outer, inner, other = made(database, acme, "outer", "inner", "other")
    anna, bert = (membership(database, acme, f"{name}@example.com") for name in ("anna", "bert"))
    a, b = Subject(MEMBERSHIP, anna), Subject(MEMBERSHIP, bert)
    i, o = Subject(GROUP, inner), Subject(GROUP, other)
    assert marked(lambda tx: groups.update(tx, outer, {"name": "x"})) == set()
    assert marked(lambda tx: groups.add_member(tx, outer, member=a)) == {f"m:{anna}"}
    assert marked(lambda tx: groups.add_member(tx, outer, member=a)) == set()
    assert marked(lambda tx: groups.add_member(tx, outer, member=i)) == {f"g:{inner}"}
    both = marked(lambda tx: groups.modify_members(tx, outer, add=[a, b, o], remove=[i]))
    assert both == {f"m:{bert}", f"g:{other}", f"g:{inner}"}
    assert marked(lambda tx: groups.remove_member(tx, outer, member=a)) == {f"m:{anna}"}
    assert marked(lambda tx: groups.remove_member(tx, outer, member=a)) == set()
    assert marked(lambda tx: groups.remove_member(tx, outer, member=o)) == {f"g:{other}"}
    assert marked(lambda tx: lifecycle.delete(tx, outer)) == {f"g:{outer}"}


@pytest.mark.parametrize("count", [2, 40])
def test_lists_run_as_many_statements_for_any_page(
    database: Database, acme: str, count: int
) -> None:
    made(database, acme, *(f"g{i}" for i in range(count)))
    with database.snapshot(SYSTEM) as snapshot, counting() as statements:
        rows, _ = groups.page(snapshot, organization_id=acme, page=Page(1_000))
        assert len(groups.views(snapshot, rows)) == count + 1
    # BEGIN and ROLLBACK are not among them: the organization, the page, two counts.
    assert len(statements) <= 4, statements
