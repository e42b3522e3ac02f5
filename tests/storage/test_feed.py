"""The one order of all events: numbering, reading by position, waking, and many of each at once."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from psycopg import sql
from sqlalchemy import func, insert, literal, select, text, tuple_

from authz_service.base.actor import SYSTEM
from authz_service.base.clock import boot_seconds, utc_now
from authz_service.base.errors import DeadlineExceeded, Unavailable
from authz_service.storage import positions
from authz_service.storage.database import Database, Snapshot
from authz_service.storage.feed import Feed
from authz_service.storage.positions import Selection
from authz_service.storage.tables import Event, EventPosition, EventQueueEntry
from tests import histories
from tests.conftest import ManualClock
from tests.histories import Seen, Together
from tests.statements import counting

ALL = Selection()


@pytest.fixture
def feed(database: Database) -> Feed:
    """A feed that nobody turns."""
    return Feed(database)


def _read_all(snapshot: Snapshot, selection: Selection, after: int = 0, size: int = 7) -> list[Any]:
    rows: list[Any] = []
    while True:
        stretch = positions.read(snapshot, selection, after=after, size=size)
        rows += stretch.rows
        if stretch.position is None:
            return rows
        assert stretch.position > after
        after = stretch.position


def _placed(database: Database) -> list[Any]:
    with database.snapshot(SYSTEM) as snapshot:
        return list(
            snapshot.connection.execute(
                select(*EventPosition.__table__.columns).order_by(EventPosition.position)
            )
        )


class _ByPosition:
    """Reads as lists and streams do: on after the position that was seen last."""

    def __init__(self, database: Database, feed: Feed) -> None:
        self.seen: list[Seen] = []
        self._database = database
        self._feed = feed
        self.position = 0

    def read(self) -> None:
        self._feed.catch_up()
        self.look()

    def look(self) -> None:
        with self._database.snapshot(SYSTEM) as snapshot:
            rows = _read_all(snapshot, ALL, self.position)
        self.seen += histories.keys(rows)
        self.position = rows[-1].position if rows else self.position

    def wait(self) -> None:
        """Looks when the feed says so."""
        if self._feed.wait(self.position, 0.05):
            self.look()


class _ByKey:
    """Reads on after the largest (time, id) or id that was seen: what must not be done."""

    def __init__(self, database: Database, *columns: Any) -> None:
        self.seen: list[Seen] = []
        self._database = database
        self._columns = columns
        self._last: tuple[Any, ...] | None = None

    def read(self) -> None:
        statement = select(Event.realm, Event.sequence, *self._columns).order_by(*self._columns)
        if self._last is not None:
            statement = statement.where(tuple_(*self._columns) > tuple_(*map(literal, self._last)))
        with self._database.snapshot(SYSTEM) as snapshot:
            rows = snapshot.connection.execute(statement).all()
        self.seen += histories.keys(rows)
        if rows:
            self._last = tuple(rows[-1])[2:]


def test_a_late_commit_is_missed_by_time_and_by_id_but_not_by_position(
    database: Database, feed: Feed, backend: str
) -> None:
    slow, quick = (histories.new_organization(database) for _ in range(2))
    by_time = _ByKey(database, Event.created_at, Event.id)
    by_id = _ByKey(database, Event.id)
    by_position = _ByPosition(database, feed)
    readers = (by_time, by_id)

    def meanwhile() -> None:
        others = Together()
        others.start(lambda: histories.write(database, quick))
        others.join()
        for reader in readers:
            reader.read()
        if backend == "postgresql":
            # SQLite has one writer at a time, and the feed would have to wait for this one.
            by_position.read()

    def work(tx: Any) -> None:
        histories.record(tx, slow)
        meanwhile()

    if backend == "postgresql":
        database.write(work, actor=SYSTEM)
    else:
        meanwhile()
        histories.write(database, slow)
    by_position.read()
    for reader in readers:
        reader.read()
    last = histories.truth(database)
    missed = [f"reader missed {(slow, last[slow])}"] if backend == "postgresql" else []
    assert histories.faults(last, {"reader": by_time.seen}) == missed
    assert histories.faults(last, {"reader": by_id.seen}) == missed
    assert histories.faults(last, {"reader": by_position.seen}) == []


def test_many_writers_and_readers_of_several_processes_see_one_history(
    database_url: str, clock: ManualClock
) -> None:
    processes = [Database(database_url, clock=clock, lock_seconds=20.0) for _ in range(2)]
    feeds = [Feed(process, poll_seconds=0.02) for process in processes]
    organization_ids = [histories.new_organization(processes[0]) for _ in range(3)]
    written = threading.Event()
    pagers = [_ByPosition(*pair) for pair in zip(processes, feeds, strict=True)]
    watchers = [_ByPosition(*pair) for pair in zip(processes, feeds, strict=True)]

    def writer(number: int) -> Callable[[], None]:
        def work() -> None:
            for i in range(20):
                chosen = organization_ids[(number + i) % len(organization_ids)]
                histories.write(processes[number % 2], chosen, 1 + i % 3)

        return work

    def repeated(step: Callable[[], None]) -> Callable[[], None]:
        def work() -> None:
            while not written.is_set():
                step()

        return work

    writers, readers = Together(), Together()
    with feeds[0].watching(), feeds[1].watching():
        readers.start(*(repeated(feed.turn) for feed in feeds))
        readers.start(*(repeated(reader.read) for reader in pagers))
        readers.start(*(repeated(reader.wait) for reader in watchers))
        writers.start(*(writer(number) for number in range(4)))
        writers.join()
        written.set()
        readers.join()
    for reader in (*pagers, *watchers):
        reader.read()
    seen = {f"reader {i}": reader.seen for i, reader in enumerate((*pagers, *watchers))}
    assert histories.faults(histories.truth(processes[0]), seen) == []
    places = [row.position for row in _placed(processes[0])]
    assert places == list(range(1, len(places) + 1))
    for process in processes:
        process.close()


def test_each_event_gets_one_position_and_leaves_the_queue(database: Database, feed: Feed) -> None:
    organization_id = histories.new_organization(database)
    histories.write(database, organization_id, 3)
    feed.catch_up()
    first = _placed(database)
    feed.catch_up()
    histories.write(database, organization_id)
    feed.catch_up()
    again = _placed(database)
    assert again[: len(first)] == first
    assert len(again) == len(first) + 1
    with database.snapshot(SYSTEM) as snapshot:
        waiting = select(func.count()).select_from(EventQueueEntry)
        assert snapshot.connection.execute(waiting).scalar_one() == 0


def test_what_waits_together_is_ordered_by_time_as_far_as_realms_allow(
    database: Database, feed: Feed, clock: ManualClock
) -> None:
    one, two = (histories.new_organization(database) for _ in range(2))
    feed.catch_up()
    before = len(_placed(database))
    instant = utc_now()
    # The clock of the second event of ``one`` is behind: it stays behind its first.
    for organization_id, minute in ((one, 10), (two, 5), (one, 2), (two, 12)):
        clock.stop_at(instant + timedelta(minutes=minute))
        histories.write(database, organization_id)
    feed.catch_up()
    assert [row.realm for row in _placed(database)[before:]] == [two, one, one, two]


def test_times_never_fall_along_the_positions_and_follow_no_wrong_clock(
    database_url: str, database: Database, feed: Feed, clock: ManualClock
) -> None:
    organization_id = histories.new_organization(database)
    ahead = ManualClock()
    ahead.advance(days=400)
    other = Database(database_url, clock=ahead)
    histories.write(other, organization_id)
    other.close()
    feed.catch_up()
    histories.write(database, organization_id)
    feed.catch_up()
    times = [row.created_at for row in _placed(database)]
    assert times == sorted(times)
    assert times[-1] <= database.now() + positions.LATE_MICROSECONDS


def test_a_batch_is_bounded_and_catching_up_takes_as_many_as_it_needs(
    database: Database, feed: Feed
) -> None:
    organization_id = histories.new_organization(database)
    feed.catch_up()
    histories.write(database, organization_id, 2 * positions.BATCH_MAX + 5)
    assert database.control(positions.number).count == positions.BATCH_MAX
    feed.catch_up()
    last = histories.truth(database)
    assert len(_placed(database)) == sum(last.values())


def test_catching_up_costs_one_statement_when_nothing_waits(database: Database, feed: Feed) -> None:
    feed.catch_up()
    with counting() as statements:
        feed.catch_up()
    assert len(statements) == 1


def test_catching_up_ends_with_the_callers_time(database: Database, feed: Feed) -> None:
    histories.new_organization(database)
    with pytest.raises(DeadlineExceeded):
        feed.catch_up(deadline=boot_seconds() - 1)
    feed.catch_up(deadline=boot_seconds() + 60)


def test_a_reader_that_cannot_number_is_told_to_come_again(
    database_url: str, database: Database
) -> None:
    histories.new_organization(database)
    impatient = Database(database_url, lock_seconds=0.05)
    feed = Feed(impatient)

    def held(control: Any) -> None:
        positions.number(control)
        with pytest.raises(Unavailable) as refused:
            feed.catch_up()
        assert refused.value.reason == "DATABASE_UNAVAILABLE"

    database.control(held)
    feed.catch_up()
    impatient.close()


def test_a_commit_wakes_the_feed_at_once_while_somebody_watches(database: Database) -> None:
    feed = Feed(database, poll_seconds=60.0)
    organization_id = histories.new_organization(database)
    feed.catch_up()
    position = len(_placed(database))
    turning = Together()
    with feed.watching():
        turning.start(feed.turn)
        assert not feed.wait(position, 0.0)
        began = boot_seconds()
        histories.write(database, organization_id)
        assert feed.wait(position, 20.0)
        # By the commit, and not because the time to wait was over.
        assert boot_seconds() - began < 10
        turning.join()
    assert feed.watchers == 0


def test_one_commit_makes_one_turn(database: Database) -> None:
    feed = Feed(database, poll_seconds=0.2)
    organization_id = histories.new_organization(database)
    with feed.watching():
        histories.write(database, organization_id)
        feed.turn()
        began = boot_seconds()
        feed.turn()
        assert boot_seconds() - began >= 0.2


def test_a_slow_look_does_not_take_back_what_a_quicker_one_found(
    database: Database, feed: Feed
) -> None:
    organization_id = histories.new_organization(database)
    feed.catch_up()
    position = len(_placed(database))
    rows = database.rows

    def slow(*args: Any, **more: Any) -> Any:
        found = rows(*args, **more)
        database.rows = rows  # type: ignore[method-assign]
        histories.write(database, organization_id)
        feed.catch_up()
        return found

    database.rows = slow  # type: ignore[method-assign]
    feed.catch_up()
    assert feed.wait(position, 0.0)


def test_only_one_of_a_process_waits_in_the_database_to_number(database_url: str) -> None:
    crowded = Database(database_url, pool_size=2, lock_seconds=20.0)
    feed = Feed(crowded)
    histories.new_organization(crowded)
    other = Database(database_url)
    looked, rows = threading.Semaphore(0), crowded.rows

    def counted(*args: Any, **more: Any) -> Any:
        found = rows(*args, **more)
        looked.release()
        return found

    crowded.rows = counted  # type: ignore[method-assign]
    readers = Together()

    def held(control: Any) -> None:
        positions.number(control)
        readers.start(*[feed.catch_up] * 4)
        for _ in range(4):
            assert looked.acquire(timeout=20.0)
        # The pool of two has room for whoever decides.
        for _ in range(20):
            with crowded.snapshot(SYSTEM) as snapshot:
                assert positions.last(snapshot) == 0

    other.control(held)
    readers.join()
    other.close()
    crowded.close()


def test_the_feed_finds_what_other_processes_commit(database_url: str, database: Database) -> None:
    feed = Feed(database, poll_seconds=0.01)
    feed.catch_up()
    position = len(_placed(database))
    other = Database(database_url)
    histories.new_organization(other)
    other.close()
    began = boot_seconds()
    with feed.watching():
        feed.turn()
    assert feed.wait(position, 0.0)
    assert boot_seconds() - began < 10


def test_filters_look_at_a_bounded_number_of_events_at_once(
    database: Database, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(positions, "EXAMINED_MAX", 100)
    organization_id = histories.new_organization(database)
    histories.write(database, organization_id, 250)
    histories.write(database, organization_id, kind="organization.deleted")
    feed.catch_up()
    rare = Selection(realms=(organization_id,), kinds={"organization.deleted"})
    with database.snapshot(SYSTEM) as snapshot:
        stretch = positions.read(snapshot, rare, after=0, size=5)
        assert list(stretch.rows) == []
        assert stretch.position is not None
        (found,) = _read_all(snapshot, rare)
    assert found.kind == "organization.deleted"
    assert found.position > stretch.position


def test_a_range_of_time_ends_without_looking_at_all_that_follows(
    database: Database, feed: Feed, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(positions, "EXAMINED_MAX", 100)
    organization_id = histories.new_organization(database)
    end = database.now() + 1
    clock.advance(hours=2)
    histories.write(database, organization_id, 300)
    feed.catch_up()
    with database.snapshot(SYSTEM) as snapshot:
        for realms in ((), (organization_id,), (organization_id, "*")):
            early = Selection(realms=realms, end_at=end)
            stretch = positions.read(snapshot, early, after=0, size=1_000)
            assert len(stretch.rows) < 100
            # The whole window lies behind the end: one more look, and that is all.
            assert stretch.position is not None
            rest = positions.read(snapshot, early, after=stretch.position, size=1_000)
            assert (list(rest.rows), rest.position) == ([], None)


def test_a_time_finds_its_position_also_when_early_rows_are_gone(
    database: Database, feed: Feed, clock: ManualClock
) -> None:
    organization_id = histories.new_organization(database)
    for _ in range(9):
        clock.advance(minutes=10)
        histories.write(database, organization_id, 2)
    feed.catch_up()
    placed = _placed(database)
    for gone in (0, 5):
        database.control(
            lambda control, gone=gone: control.connection.execute(
                EventPosition.__table__.delete().where(EventPosition.position <= gone)
            )
        )
        with database.snapshot(SYSTEM) as snapshot:
            for row in placed[gone + 1 :]:
                earlier = [each.position for each in placed if each.created_at < row.created_at]
                assert positions.before(snapshot, row.created_at) == max([gone, *earlier])
            assert positions.before(snapshot, placed[-1].created_at + 1) == placed[-1].position
            assert positions.before(snapshot, 0) == gone


def test_no_position_is_before_any_time_in_an_empty_order(database: Database) -> None:
    with database.snapshot(SYSTEM) as snapshot:
        assert positions.before(snapshot, database.now()) == 0
        assert positions.last(snapshot) == 0
        assert positions.following(snapshot, 0) is None


_EVENTS = 60_000
_PLACES = "SEARCH event_positions USING INDEX ix_event_positions_realm_position"


def _fill(database: Database, realms: list[str]) -> None:
    """Stores very many events, round the realms; of the first only one in a thousand."""
    made = []
    counts = dict.fromkeys(realms, 1_000)
    for position in range(1, _EVENTS + 1):
        realm = realms[0] if position % 1_000 == 0 else realms[1 + position % (len(realms) - 1)]
        counts[realm] += 1
        made.append({"position": 1_000_000 + position, "realm": realm, "sequence": counts[realm]})
    now = database.now()

    def work(control: Any) -> None:
        control.connection.execute(
            insert(Event),
            [
                {
                    "realm": row["realm"], "sequence": row["sequence"],
                    "id": f"event_{row['position']}", "kind": "organization.updated",
                    "is_primary": True, "cause_event_id": "", "actor_kind": "SYSTEM",
                    "actor_id": "system", "on_behalf_of_user_id": "", "request_id": "",
                    "target_type": "organization", "target_id": row["realm"], "data": "{}",
                    "previous": "{}", "created_at": now, "previous_hash": b"", "hash": b"",
                }
                for row in made
            ],
        )  # fmt: skip
        control.connection.execute(
            insert(EventPosition), [{**row, "created_at": now} for row in made]
        )
        control.connection.exec_driver_sql("ANALYZE")

    database.control(work)


def _statements(dialect: Any, realms: int) -> Iterator[str]:
    yield str(positions._selected(dialect, realms))
    for with_times in (True, False):
        yield str(positions._looked_at(dialect, realms, with_times))


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)


def _touched(node: dict[str, Any]) -> float:
    each = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
    return float(each * node["Actual Loops"])


def _prepared(snapshot: Snapshot, statement: str, values: dict[str, Any]) -> dict[str, Any]:
    """Returns the plan that a prepared statement gets, run once, with scans of tables allowed."""
    names = list(dict.fromkeys(re.findall(r"(?<!:):(\w+)", statement)))
    for i, name in enumerate(names, 1):
        statement = re.sub(rf"(?<!:):{name}\b", f"${i}", statement)
    run = snapshot.connection.exec_driver_sql
    run("SET LOCAL enable_seqscan = on")
    run(f"PREPARE asked AS {statement}")
    given = sql.SQL(", ").join([sql.Literal(values[name]) for name in names]).as_string(None)
    ((plan,),) = run(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE asked ({given})".replace("%", "%%"))
    run("DEALLOCATE asked")
    return (json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]


def test_reading_by_position_walks_indexes_and_never_a_table(
    database: Database, backend: str
) -> None:
    realms = [histories.new_organization(database) for _ in range(4)]
    _fill(database, realms)
    for named in ((), (realms[0],), (realms[1],), (realms[0], "*"), (realms[1], realms[2])):
        selection = Selection(realms=named, kinds={"role.created"}, target_id="role_none")
        values = {
            **positions._conditions(database.dialect, selection),
            **{f"realm_{i}": realm for i, realm in enumerate(named)},
            "after": 1_000_100,
            "window": positions.EXAMINED_MAX,
            "size": 51,
        }
        with database.snapshot(SYSTEM) as snapshot:
            for statement in _statements(database.dialect, len(named)):
                if backend == "sqlite":
                    asked = text(f"EXPLAIN QUERY PLAN {statement}")
                    used = [row.detail for row in snapshot.connection.execute(asked, values)]
                    assert not [line for line in used if re.match(r"SCAN (e|event\w+)\b", line)]
                    assert len([line for line in used if _PLACES in line]) == len(named)
                    continue
                nodes = list(_nodes(_prepared(snapshot, statement, values)))
                assert "Seq Scan" not in {node["Node Type"] for node in nodes}
                assert max(map(_touched, nodes)) <= 2 * positions.EXAMINED_MAX
