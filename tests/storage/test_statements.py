"""Statements are counted under names of ours, with how they ended, and so is the wait for room."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, event, select, text, update
from sqlalchemy.exc import DBAPIError

from authz_service.base import errors
from authz_service.base.actor import SYSTEM
from authz_service.engine.facts import MEMBERSHIP, ResourceRef, Subject
from authz_service.storage import realms, statements
from authz_service.storage.database import Database, Transaction
from authz_service.storage.facts import SqlFacts
from authz_service.storage.tables import Realm
from authz_service.telemetry.metrics import Metrics

ONE = text("SELECT 1")


@pytest.fixture
def metrics() -> Metrics:
    """Of the database alone."""
    return Metrics()


@pytest.fixture
def database(database_url: str, metrics: Metrics) -> Iterator[Database]:
    """One that counts, and gives up a lock and a wait soon."""
    database = Database(
        database_url, pool_size=2, lock_seconds=0.05, wait_seconds=0.05, metrics=metrics
    )
    yield database
    database.close()


def told(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """How often each statement ended in each way."""
    counts = {}
    for sample in metrics.sql_seconds.family().samples:
        if sample.name.endswith("_count") or sample.labels.get("le") == "+Inf":
            counts[sample.labels["statement"], sample.labels["outcome"]] = sample.value
    return counts


def waits(metrics: Metrics) -> float:
    """How often somebody waited for a connection."""
    return metrics.sql_pool_wait_seconds.count()


def test_a_check_is_one_statement_and_one_wait(database: Database, metrics: Metrics) -> None:
    SqlFacts(database).load([Subject(MEMBERSHIP, "om_x")], ["a:b"], [ResourceRef("resource_x")])
    assert told(metrics) == {("check", "ok"): 1}
    assert waits(metrics) == 1


def test_statements_of_a_snapshot_are_told_by_what_they_do(
    database: Database, metrics: Metrics
) -> None:
    with database.snapshot(SYSTEM) as snapshot:
        snapshot.values(ONE, {})
        snapshot.rows(ONE, {})
        snapshot.connection.execute(select(Realm.id))
    assert told(metrics) == {
        ("snapshot_begin", "ok"): 1,
        ("snapshot_select", "ok"): 3,
        ("snapshot_rollback", "ok"): 1,
    }
    assert waits(metrics) == 1


def test_statements_of_a_write_are_told_apart_from_its_waiting(
    database: Database, metrics: Metrics
) -> None:
    def work(tx: Transaction) -> None:
        realms.lock(tx, definitions=True)
        tx.values(ONE, {})
        tx.connection.execute(update(Realm).values(revision=Realm.revision))

    database.write(work, actor=SYSTEM)
    counts = told(metrics)
    for verb in ("begin", "update", "commit"):
        assert counts["write_" + verb, "ok"] == 1
    assert counts["write_select", "ok"] >= 1
    assert ("write_lock", "ok") in counts or database.dialect.name == "sqlite"
    assert "write_rollback" not in dict(counts)


def test_own_transactions_have_their_own_names(database: Database, metrics: Metrics) -> None:
    database.control(lambda control: control.connection.execute(ONE).all())
    assert {name for name, _ in told(metrics)} == {
        "control_begin",
        "control_select",
        "control_commit",
    }


def test_what_failed_is_counted_with_how(database: Database, metrics: Metrics) -> None:
    wrong = text("SELECT nothing FROM nowhere")

    def work(tx: Transaction) -> None:
        tx.connection.execute(wrong)

    for fail in (
        lambda: database.values(wrong, {}, name=statements.LIST),
        lambda: database.rows(wrong, {}, name=statements.FEED),
        lambda: database.write(work, actor=SYSTEM),
    ):
        with pytest.raises(DBAPIError):
            fail()
    with database.snapshot(SYSTEM) as snapshot, pytest.raises(DBAPIError):
        snapshot.values(wrong, {})
    failed = {name for name, outcome in told(metrics) if outcome == "failed"}
    assert failed == {"list", "feed", "write_select", "snapshot_select"}


def test_a_lost_race_is_no_failure(database_url: str, database: Database, metrics: Metrics) -> None:
    holding, done = threading.Event(), threading.Event()

    def hold(tx: Transaction) -> None:
        tx.connection.execute(update(Realm).values(revision=Realm.revision))
        holding.set()
        assert done.wait(30)

    def work(tx: Transaction) -> None:
        tx.connection.execute(update(Realm).values(revision=Realm.revision))

    other = Database(database_url)
    holder = threading.Thread(target=lambda: other.write(hold, actor=SYSTEM))
    holder.start()
    try:
        assert holding.wait(30)
        with pytest.raises(errors.Aborted):
            database.write(work, actor=SYSTEM)
    finally:
        done.set()
        holder.join()
        other.close()
    lost = {name: count for (name, outcome), count in told(metrics).items() if outcome != "ok"}
    # SQLite waits for its one writer where a transaction begins.
    assert lost == {"write_begin" if database.dialect.name == "sqlite" else "write_update": 3}


def test_a_wait_in_vain_is_counted_with_its_time(database: Database, metrics: Metrics) -> None:
    with database.snapshot(SYSTEM), database.snapshot(SYSTEM):
        with pytest.raises(errors.ResourceExhausted):
            database.values(ONE, {}, name=statements.LIST)
        with pytest.raises(errors.ResourceExhausted):
            database.rows(ONE, {}, name=statements.LIST)
    assert waits(metrics) == 4
    assert metrics.sql_pool_wait_seconds._rows[()][-1] >= 0.1


def test_every_name_belongs_to_the_closed_set(database: Database, metrics: Metrics) -> None:
    seen: set[str] = set()

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        seen.add(statement)

    def work(tx: Transaction) -> None:
        tx.connection.exec_driver_sql("SAVEPOINT caller_text")

    event.listen(Engine, "before_cursor_execute", note)
    try:
        database.write(work, actor=SYSTEM)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert "SAVEPOINT caller_text" in seen
    names = {name for name, _ in told(metrics)}
    assert "write_other" in names
    assert names <= statements.NAMES
    assert {outcome for _, outcome in told(metrics)} <= statements.OUTCOMES
