"""Every transaction of the service: snapshots, ``write(work)``, and ``control(work)`` for its own.

Nothing else begins, commits or rolls back. Connections are in the driver's autocommit mode, so a
single statement is a snapshot by itself and costs one round trip.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, NoReturn, Protocol, TypeVar

from sqlalchemy import Connection, Engine, Executable, Row, TextClause, insert, update
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from authz_service.base import errors
from authz_service.base.actor import Actor
from authz_service.base.clock import Clock, boot_seconds, microseconds, utc_now
from authz_service.base.consistency import Position
from authz_service.base.waits import waits
from authz_service.engine.limits import Limits
from authz_service.storage import dialects, poison, statements
from authz_service.storage.cache.marking import Marked, Marking, NoMarking, NotMarked, Unmarked
from authz_service.storage.statements import Statements
from authz_service.storage.tables import Event, EventQueueEntry, Realm
from authz_service.telemetry.metrics import Metrics

ATTEMPTS_MAX = 3
# For work on thousands of rows: time to compute between statements, and hashes to join by.
_PATIENCE = (
    "SET LOCAL idle_in_transaction_session_timeout = '60s'; SET LOCAL statement_timeout = '60s';"
    " SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on"
)
T = TypeVar("T")
RowT = TypeVar("RowT")


class Reading(Protocol):
    """What a question reads from: an open snapshot, or one statement that is its own."""

    dialect: dialects.Dialect
    now: int
    actor: Actor
    limits: Limits

    def rows(self, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Row[Any]]:
        """Returns the rows of a statement."""
        ...

    def values(self, statement: TextClause, parameters: Mapping[str, Any]) -> list[Any]:
        """Returns the rows of a constant statement as plain tuples."""
        ...


@dataclass(slots=True)
class Single:
    """Reads one statement, which needs no transaction around it. Attributes as in ``Snapshot``."""

    database: "Database"
    dialect: dialects.Dialect
    now: int
    actor: Actor
    limits: Limits

    def rows(self, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Row[Any]]:
        """Returns the rows of the statement."""
        return self.database.rows(statement, parameters, name=statements.LIST)

    def values(self, statement: TextClause, parameters: Mapping[str, Any]) -> list[Any]:
        """Returns the rows of the statement as plain tuples."""
        return self.database.values(statement, parameters, name=statements.LIST)


@dataclass(slots=True)
class Snapshot:
    """One consistent state of the database, for reading.

    Attributes:
        now: The instant of the snapshot in microseconds since 1970, on this server's clock.
        actor: Who is asking; decides what is visible (product.md C16).
        limits: Those of the deployment.
        measure: Counts the statements that do not go through SQLAlchemy.
        select_name: Under which they are counted.
        poisoned: Counts a row that cannot be interpreted, by its table.
    """

    connection: Connection
    dialect: dialects.Dialect
    now: int
    actor: Actor
    limits: Limits
    measure: Statements
    poisoned: Callable[[str], None]
    select_name: ClassVar[str] = f"{statements.SNAPSHOT}_select"

    def rows(self, statement: Executable, parameters: Mapping[str, Any]) -> Sequence[Row[Any]]:
        """Returns the rows of a statement."""
        return self.connection.execute(statement, parameters).all()

    def values(self, statement: TextClause, parameters: Mapping[str, Any]) -> list[Any]:
        """Returns the rows of a constant statement as plain tuples.

        It goes to the driver at once: SQLAlchemy's execution and rows cost more than such a
        statement does.

        Args:
            statement: One of a fixed number; its text is kept.
        """
        connection = self.connection.connection.dbapi_connection
        begun = boot_seconds()
        try:
            found = _values(connection, self.dialect, statement, parameters)
        except DBAPIError as error:
            self.measure.failed(self.select_name, begun, error)
            raise
        self.measure.done(self.select_name, begun)
        return found


@dataclass(slots=True)
class Transaction(Snapshot):
    """A write under way. ``work`` must touch nothing else, for it may be run again.

    Attributes:
        session: For rows that the write changes. Use ``add`` for new ones.
        realms: The realms locked for writing, by id.
        holds_definitions: The environment is locked shared.
        events: Event rows recorded so far, in order; written with the commit.
        primary_event_id: Of the event that the call itself is; empty before it is recorded.
        tags: Realm to the tags whose facts this write may change (consistency.md 3.2).
        changed: Realms whose revision was raised.
    """

    select_name: ClassVar[str] = f"{statements.WRITE}_select"

    session: Session
    realms: dict[str, Realm] = field(default_factory=dict)
    holds_definitions: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)
    primary_event_id: str = ""
    tags: dict[str, set[str]] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)

    def add(self, row: RowT) -> RowT:
        """Inserts a new row at once, so that the order of inserts is the order of the calls."""
        self.session.add(row)
        self.session.flush()
        return row


@dataclass(slots=True)
class Control:
    """A short transaction of the service itself: nobody's change, so no event and no revision.

    Attributes:
        now: The instant of its beginning in microseconds since 1970, on this server's clock.
    """

    connection: Connection
    dialect: dialects.Dialect
    now: int


@dataclass(frozen=True, slots=True)
class Written(Generic[T]):
    """What an acknowledged write returns.

    Attributes:
        result: What ``work`` returned.
        revisions: The realms it held, with the revisions they have now: the state of the token.
        tags: What was declared, by realm; tests compare it with the facts.
        positions: Of the realms in whose control sets it was marked, with it.
    """

    result: T
    revisions: Mapping[str, int]
    tags: Mapping[str, frozenset[str]]
    positions: Mapping[str, Position] = field(default_factory=dict)


class OutcomeUnknown(Exception):
    """The connection broke at COMMIT: the write may or may not have happened."""


class Database:
    """The database of one process.

    Args:
        url: ``postgresql://…`` or ``sqlite:///file``.
        pool_size: Connections of this process.
        lock_seconds, statement_seconds: The longest wait for a lock; the longest statement.
        clock: The wall clock.
        limits: Put on each snapshot and transaction.
        marking: Tells the cache of writes.
        metrics: Counts statements, attempts of writes, and connections in use.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 10,
        lock_seconds: float = 2.0,
        statement_seconds: float = 5.0,
        wait_seconds: float = 5.0,
        clock: Clock = utc_now,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        marking: Marking | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.dialect = dialects.of(url)
        self._engine = dialects.engine(
            url,
            pool_size=pool_size,
            lock_seconds=lock_seconds,
            statement_seconds=statement_seconds,
            wait_seconds=wait_seconds,
        )
        self._clock = clock
        self._limits = limits
        self._marking = marking or NoMarking()
        counting = metrics or Metrics()
        self._attempts = counting.write_attempts
        self._measure = Statements(self.dialect, counting)
        self._measure.watch_errors(self._engine)
        for table in poison.TABLES:
            counting.poison_rows.add(table, amount=0.0)
        # Counts a row that cannot be interpreted, by its table.
        self.poisoned: Callable[[str], None] = counting.poison_rows.add
        self._snapshots, self._writes, self._controls = (
            self._measure.watched(self._engine, kind) for kind in statements.TRANSACTIONS
        )
        if metrics is not None:
            pool = self._engine.pool
            assert isinstance(pool, QueuePool)
            metrics.sql_pool_in_use.read_from(lambda: {(): float(pool.checkedout())})
        self._is_postgresql = self.dialect.name == "postgresql"
        # Called after each commit that recorded events; the feed wakes its watchers.
        self.on_commit: Callable[[], None] = lambda: None

    def now(self) -> int:
        """Returns the wall clock in microseconds since 1970."""
        return microseconds(self._clock())

    def close(self) -> None:
        """Closes all idle connections."""
        self._engine.dispose()

    def rows(
        self, statement: Executable, parameters: Mapping[str, Any], *, name: str
    ) -> Sequence[Row[Any]]:
        """Returns the rows of a single statement, which is a snapshot by itself.

        Args:
            name: One of ``statements.SINGLES``.

        Raises:
            Unavailable: DATABASE_UNAVAILABLE.
        """
        try:
            with waits, self._connected(self._engine) as connection:
                begun = boot_seconds()
                try:
                    rows = connection.execute(statement, parameters).all()
                except DBAPIError as error:
                    self._measure.failed(name, begun, error)
                    raise
                self._measure.done(name, begun)
                return rows
        except (DBAPIError, PoolTimeoutError) as error:
            self._refuse(error)

    def values(
        self, statement: TextClause, parameters: Mapping[str, Any], *, name: str
    ) -> list[Any]:
        """Returns the rows of a single constant statement as plain tuples (``Snapshot.values``).

        Args:
            name: One of ``statements.SINGLES``.

        Raises:
            Unavailable: DATABASE_UNAVAILABLE.
        """
        measure = self._measure
        with waits:
            begun = boot_seconds()
            try:
                pooled = self._engine.raw_connection()
            except PoolTimeoutError as error:
                measure.waited(begun)
                self._refuse(error)
            except self.dialect.driver_error as error:
                measure.waited(begun)
                self._refuse(_wrapped(error))
            begun = measure.waited(begun)
            try:
                found = _values(pooled.dbapi_connection, self.dialect, statement, parameters)
                measure.done(name, begun)
                return found
            except DBAPIError as error:
                measure.failed(name, begun, error)
                if self.dialect.unavailable(error):
                    # The pool must not hand it out again.
                    pooled.invalidate(error)
                self._refuse(error)
            finally:
                pooled.close()

    def single(self, actor: Actor) -> Single:
        """Gives what reads one statement without a transaction around it."""
        return Single(self, self.dialect, self.now(), actor, self._limits)

    @contextlib.contextmanager
    def snapshot(self, actor: Actor) -> Iterator[Snapshot]:
        """Gives one read-only snapshot for any number of statements.

        Raises:
            Unavailable: DATABASE_UNAVAILABLE.
        """
        try:
            with waits, self._connected(self._snapshots) as connection:
                connection.exec_driver_sql(
                    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;"
                    " SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on"
                    if self._is_postgresql
                    else "BEGIN"
                )
                try:
                    yield Snapshot(
                        connection,
                        self.dialect,
                        self.now(),
                        actor,
                        self._limits,
                        self._measure,
                        self.poisoned,
                    )
                finally:
                    self._roll_back(connection)
        except (DBAPIError, PoolTimeoutError) as error:
            self._refuse(error)

    def write(
        self,
        work: Callable[[Transaction], T],
        *,
        actor: Actor,
        deadline: float | None = None,
        patient: bool = False,
    ) -> Written[T]:
        """Runs ``work`` in one transaction and acknowledges it once it is durable.

        An attempt that lost a race (a unique value, a foreign key, a deadlock, a lock's time) is
        run again and then sees the winner's rows, so that it refuses for the right reason.

        Args:
            work: Touches nothing but the transaction it is given, which is new for each attempt.
            deadline: Boot clock, seconds.
            patient: The work computes for seconds between statements, or moves very many rows.

        Raises:
            Refusal: What ``work`` refused.
            Aborted: CONFLICT after three lost races.
            Unavailable: DATABASE_UNAVAILABLE; the write may or may not have happened.
            DeadlineExceeded: Before an attempt began.
        """
        with waits:
            return self._repeated(lambda: self._attempt(work, actor, patient), deadline)

    def control(self, work: Callable[[Control], T], *, deadline: float | None = None) -> T:
        """Runs ``work`` in one short transaction of the service itself, durable when it returns.

        Args:
            work: Touches nothing but the transaction it is given, which is new for each attempt.
            deadline: Boot clock, seconds.

        Raises:
            Aborted: CONFLICT after three lost races.
            Unavailable: DATABASE_UNAVAILABLE.
            DeadlineExceeded: Before an attempt began.
        """

        def attempt() -> T:
            with self._connected(self._controls) as connection, self._transaction(connection):
                return work(Control(connection, self.dialect, self.now()))

        with waits:
            return self._repeated(attempt, deadline)

    def _repeated(self, once: Callable[[], T], deadline: float | None) -> T:
        for attempt in range(1, ATTEMPTS_MAX + 1):
            if deadline is not None and boot_seconds() >= deadline:
                raise errors.DeadlineExceeded("DEADLINE_EXCEEDED")
            try:
                result = once()
            except DBAPIError as error:
                if not self.dialect.lost_race(error):
                    self._attempts.add("refused")
                    self._refuse(error)
                self._attempts.add("again")
                _let_go(error)
                if attempt == ATTEMPTS_MAX:
                    raise errors.Aborted(
                        "CONFLICT", "a concurrent change won; repeat the call", retry_seconds=0.1
                    ) from error
            except NotMarked as refused:
                self._attempts.add("again")
                if attempt == ATTEMPTS_MAX:
                    raise errors.Unavailable(
                        "DATABASE_UNAVAILABLE",
                        "the cache could not be told of the write",
                        retry_seconds=1,
                    ) from None
                refused.mend()
            except OutcomeUnknown as unknown:
                self._attempts.add("unknown")
                _let_go(unknown)
                raise errors.Unavailable(
                    "DATABASE_UNAVAILABLE",
                    "the database did not confirm the write; it may have happened",
                    retry_seconds=1,
                ) from unknown
            except PoolTimeoutError as error:
                self._attempts.add("refused")
                self._refuse(error)
            except errors.Refusal:
                self._attempts.add("refused")
                raise
            else:
                self._attempts.add("committed")
                return result
        raise AssertionError("unreachable")

    def _attempt(self, work: Callable[[Transaction], T], actor: Actor, patient: bool) -> Written[T]:
        marked: Marked = Unmarked()
        try:
            with (
                self._connected(self._writes) as connection,
                self._transaction(connection, patient),
            ):
                session = Session(bind=connection, expire_on_commit=False)
                tx = Transaction(
                    connection,
                    self.dialect,
                    self.now(),
                    actor,
                    self._limits,
                    self._measure,
                    self.poisoned,
                    session,
                )
                result = work(tx)
                session.flush()
                self._store_events(tx)
                tags = {realm: frozenset(tags) for realm, tags in tx.tags.items()}
                # The last thing before COMMIT: from here on nobody may use what this changes.
                marked = self._marking.mark(connection, tags)
        except OutcomeUnknown:
            # The marks stay: whoever finds out what became of the transaction lifts them.
            raise
        except BaseException:
            marked.bump(committed=False)
            raise
        try:
            positions = marked.bump(committed=True)
        except errors.Refusal as refusal:
            # Whatever kept the cache from being left: it has happened, so it must not be said that
            # it lost a race and is to be done again.
            raise OutcomeUnknown from refusal
        if tx.changed:
            self.on_commit()
        revisions = {realm.id: realm.revision for realm in tx.realms.values()}
        return Written(result, revisions, tags, positions)

    def _connected(self, engine: Engine) -> Connection:
        """Returns a connection of the pool, and counts how long that took."""
        begun = boot_seconds()
        try:
            return engine.connect()
        finally:
            self._measure.waited(begun)

    @contextlib.contextmanager
    def _transaction(self, connection: Connection, patient: bool = False) -> Iterator[None]:
        """Begins a transaction that may write; commits it, or rolls it back if anything fails."""
        # The realm's lock orders writers; a higher level would only abort them. SQLite takes its
        # one writer's lock at once, for a reader that becomes a writer may have to fail.
        connection.exec_driver_sql("BEGIN" if self._is_postgresql else "BEGIN IMMEDIATE")
        try:
            if patient and self._is_postgresql:
                connection.exec_driver_sql(_PATIENCE)
            yield
        except BaseException:
            self._roll_back(connection)
            raise
        notices = self.dialect.notices(connection)
        try:
            connection.exec_driver_sql("COMMIT")
        except DBAPIError as error:
            self._roll_back(connection)
            if self.dialect.unavailable(error) and not self.dialect.was_cut_off(error):
                raise OutcomeUnknown from error
            raise
        if self.dialect.notices(connection) != notices:
            # Durable here, but no standby has said that it has it: a failover would lose it.
            raise OutcomeUnknown

    @staticmethod
    def _store_events(tx: Transaction) -> None:
        if not tx.events:
            return
        tx.connection.execute(insert(Event), tx.events)
        tx.connection.execute(
            insert(EventQueueEntry),
            [{"realm": event["realm"], "sequence": event["sequence"]} for event in tx.events],
        )
        for realm_id in sorted(tx.changed):
            realm = tx.realms[realm_id]
            tx.connection.execute(
                update(Realm)
                .where(Realm.id == realm.id)
                .values(revision=realm.revision, last_hash=realm.last_hash)
            )

    def _roll_back(self, connection: Connection) -> None:
        try:
            if self._is_postgresql or connection.connection.dbapi_connection.in_transaction:  # type: ignore[union-attr]
                connection.exec_driver_sql("ROLLBACK")
        except (DBAPIError, PendingRollbackError):
            # The connection is of no use any more; the pool must not hand it out again.
            connection.invalidate()

    def _refuse(self, error: DBAPIError | PoolTimeoutError) -> NoReturn:
        if self._refusal(error) is None:
            # A bug, whose frames the log will show.
            raise error
        _let_go(error)
        # Never kept in a variable: its frame would know it, and that is a circle too.
        raise self._refusal(error) or error from error

    def _refusal(self, error: DBAPIError | PoolTimeoutError) -> errors.Refusal | None:
        """Returns what an error of the database is to a caller, None for a bug."""
        if isinstance(error, PoolTimeoutError):
            return errors.ResourceExhausted(
                "OVERLOADED", "all database connections are in use", retry_seconds=1
            )
        if self.dialect.timed_out(error):
            return errors.DeadlineExceeded("DEADLINE_EXCEEDED")
        if self.dialect.unavailable(error):
            return errors.Unavailable(
                "DATABASE_UNAVAILABLE", "the database cannot be reached", retry_seconds=1
            )
        return None


def _let_go(error: BaseException) -> None:
    """Takes their frames from an error and those behind it.

    A driver's frame that knows its own error is a circle, and below it hangs the call with all that
    its front keeps for it: it would live until the collector finds it, which is told to come
    seldom, and meanwhile cost its connection a stream.
    """
    behind: list[BaseException | None] = [error]
    seen = set()
    while behind:
        one = behind.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = None
        behind += [one.__cause__, one.__context__, getattr(one, "orig", None)]


def _values(
    connection: Any, dialect: dialects.Dialect, statement: TextClause, parameters: Mapping[str, Any]
) -> list[Any]:
    try:
        cursor = connection.cursor()
        try:
            cursor.execute(dialect.driver_text(statement), parameters)
            found: list[Any] = cursor.fetchall()
            return found
        finally:
            cursor.close()
    except dialect.driver_error as error:
        raise _wrapped(error) from error


def _wrapped(error: BaseException) -> DBAPIError:
    """Returns a driver's error as SQLAlchemy would raise it, without the statement's values."""
    return DBAPIError(None, None, error)
