"""What SQLite and PostgreSQL do differently: engines, locks, lists as parameters, error codes."""

import json
import sqlite3
from collections.abc import Collection, Sequence
from typing import Any

import psycopg
from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Engine,
    Text,
    TextClause,
    any_,
    create_engine,
    event,
    func,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.pool import QueuePool

# serialization_failure, deadlock_detected, unique_violation, foreign_key_violation, and
# lock_not_available: a concurrent writer won; run the work again and let it see the winner's rows.
_LOST_RACE = {"40001", "40P01", "23505", "23503", "55P03"}
_STATEMENT_TIMEOUT = "57014"
# A session that paused inside a transaction was ended, and its transaction with it.
_IDLE_IN_TRANSACTION = "25P03"
# "canceling wait for synchronous replication": a warning beside a COMMIT that succeeded here.
_WARNING = "01000"


Column = ColumnElement[Any] | InstrumentedAttribute[Any]


_PSYCOPG = PGDialect_psycopg()  # type: ignore[no-untyped-call]


class Dialect:
    """The differences, chosen once by the database's URL."""

    name: str

    driver_error: type[Exception]

    def driver_text(self, statement: TextClause) -> str:
        """A constant statement in the driver's own words, with parameters by name."""
        raise NotImplementedError

    def lock_clause(self, *, shared: bool) -> str:
        """The suffix that locks the selected rows until the transaction ends."""
        raise NotImplementedError

    def advisory_lock(self, number: int) -> str | None:
        """The statement that keeps out others who ask for this number until the transaction ends.

        None where every transaction that may write is alone anyway.
        """
        raise NotImplementedError

    def in_list(self, parameter: str) -> str:
        """The right side of ``IN`` for one parameter that holds a list of text."""
        raise NotImplementedError

    def list_value(self, values: Collection[str]) -> Any:
        """A Python collection as that parameter's value."""
        raise NotImplementedError

    def among(self, column: Column, values: Collection[str]) -> ColumnElement[bool]:
        """``column IN values`` with all values in one parameter, however many there are."""
        raise NotImplementedError

    def probe(self, table: str, name: str, condition: str) -> str:
        """A join that looks rows up one by one in an index, whatever the planner believes.

        Args:
            condition: Equalities of the table's columns with columns further left in the FROM.
        """
        raise NotImplementedError

    def rows(self, parameter: str, *columns: str) -> str:
        """A FROM item, to be given a name, whose rows and text columns come with the call."""
        raise NotImplementedError

    def rows_value(self, parameter: str, rows: Sequence[Sequence[str]]) -> dict[str, Any]:
        """The values of that parameter: all rows with as many columns as it has."""
        raise NotImplementedError

    def each(self, select: str, name: str) -> str:
        """A join that runs a SELECT of one column, ``value``, for each row to its left."""
        raise NotImplementedError

    def joined(self, expression: str) -> str:
        """An aggregate that joins text with commas."""
        raise NotImplementedError

    def lost_race(self, error: DBAPIError) -> bool:
        """True if the transaction lost against a concurrent one and may be run again."""
        raise NotImplementedError

    def unavailable(self, error: DBAPIError) -> bool:
        """True if the database, not the statement, is at fault."""
        raise NotImplementedError

    def timed_out(self, error: DBAPIError) -> bool:
        """True if the statement was ended for its time."""
        raise NotImplementedError

    def was_cut_off(self, error: DBAPIError) -> bool:
        """True if the transaction had ended, without a COMMIT, before the statement arrived."""
        raise NotImplementedError

    def notices(self, connection: Connection) -> int:
        """How many warnings a connection was given that put a COMMIT in doubt."""
        raise NotImplementedError


class PostgreSQL(Dialect):
    """PostgreSQL through psycopg 3."""

    driver_error = psycopg.Error

    def __init__(self) -> None:
        self._texts: dict[TextClause, str] = {}

    def driver_text(self, statement: TextClause) -> str:
        found = self._texts.get(statement)
        if found is None:
            found = self._texts[statement] = str(statement.compile(dialect=_PSYCOPG))
        return found

    name = "postgresql"

    def lock_clause(self, *, shared: bool) -> str:
        return " FOR SHARE" if shared else " FOR UPDATE"

    def advisory_lock(self, number: int) -> str | None:
        return f"SELECT pg_advisory_xact_lock({number})"

    def in_list(self, parameter: str) -> str:
        return f"(SELECT unnest(CAST(:{parameter} AS text[])))"

    def list_value(self, values: Collection[str]) -> Any:
        return list(values)

    def among(self, column: Column, values: Collection[str]) -> ColumnElement[bool]:
        return column == any_(literal(list(values), ARRAY(Text)))

    def probe(self, table: str, name: str, condition: str) -> str:
        # OFFSET 0 keeps the subquery from being merged into the join and planned by statistics.
        return (
            f" CROSS JOIN LATERAL (SELECT * FROM {table} {name} WHERE {condition} OFFSET 0) {name}"
        )

    def rows(self, parameter: str, *columns: str) -> str:
        arrays = ", ".join(f"CAST(:{parameter}_{i} AS text[])" for i in range(len(columns)))
        names = ", ".join(columns)
        return f"(SELECT * FROM unnest({arrays}) AS given({names}))"

    def rows_value(self, parameter: str, rows: Sequence[Sequence[str]]) -> dict[str, Any]:
        return {
            f"{parameter}_{i}": list(column) for i, column in enumerate(zip(*rows, strict=True))
        }

    def each(self, select: str, name: str) -> str:
        return f" CROSS JOIN LATERAL ({select}) {name}"

    def joined(self, expression: str) -> str:
        return f"string_agg({expression}, ',')"

    def lost_race(self, error: DBAPIError) -> bool:
        return getattr(error.orig, "sqlstate", None) in _LOST_RACE

    def unavailable(self, error: DBAPIError) -> bool:
        state = getattr(error.orig, "sqlstate", None)
        if state is None:
            return error.connection_invalidated or isinstance(
                error.orig, psycopg.OperationalError | psycopg.InterfaceError
            )
        # Connection exceptions, insufficient resources, operator intervention, system errors.
        return state == _IDLE_IN_TRANSACTION or (
            state[:2] in ("08", "53", "57", "58") and state != _STATEMENT_TIMEOUT
        )

    def timed_out(self, error: DBAPIError) -> bool:
        return getattr(error.orig, "sqlstate", None) == _STATEMENT_TIMEOUT

    def was_cut_off(self, error: DBAPIError) -> bool:
        return getattr(error.orig, "sqlstate", None) == _IDLE_IN_TRANSACTION

    def notices(self, connection: Connection) -> int:
        return int(connection.info.get("warnings", 0))


class SQLite(Dialect):
    """SQLite in this process: one writer at a time, readers see snapshots (WAL)."""

    driver_error = sqlite3.Error

    def driver_text(self, statement: TextClause) -> str:
        # Its own form of parameters is that of the statements.
        return statement.text

    name = "sqlite"

    def lock_clause(self, *, shared: bool) -> str:
        return ""

    def advisory_lock(self, number: int) -> str | None:
        return None

    def in_list(self, parameter: str) -> str:
        return f"(SELECT value FROM json_each(:{parameter}))"

    def list_value(self, values: Collection[str]) -> Any:
        return json.dumps(list(values))

    def among(self, column: Column, values: Collection[str]) -> ColumnElement[bool]:
        given = func.json_each(json.dumps(list(values))).table_valued("value")
        return column.in_(select(given.c.value))

    def probe(self, table: str, name: str, condition: str) -> str:
        # SQLite keeps the order of CROSS JOIN.
        return f" CROSS JOIN {table} {name} ON {condition}"

    def rows(self, parameter: str, *columns: str) -> str:
        extracted = ", ".join(
            f"json_extract(value, '$[{i}]') AS {column}" for i, column in enumerate(columns)
        )
        return f"(SELECT {extracted} FROM json_each(:{parameter}))"

    def rows_value(self, parameter: str, rows: Sequence[Sequence[str]]) -> dict[str, Any]:
        return {parameter: json.dumps([list(row) for row in rows])}

    def each(self, select: str, name: str) -> str:
        # SQLite has no LATERAL, but the argument of a table function may look to its left.
        return f" CROSS JOIN json_each((SELECT json_group_array(value) FROM ({select}))) {name}"

    def joined(self, expression: str) -> str:
        return f"group_concat({expression}, ',')"

    def lost_race(self, error: DBAPIError) -> bool:
        code = getattr(error.orig, "sqlite_errorcode", None)
        return code in (
            sqlite3.SQLITE_CONSTRAINT_UNIQUE,
            sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
            sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY,
            sqlite3.SQLITE_BUSY,
            sqlite3.SQLITE_BUSY_SNAPSHOT,
        )

    def unavailable(self, error: DBAPIError) -> bool:
        code = getattr(error.orig, "sqlite_errorcode", None)
        return code in (
            sqlite3.SQLITE_IOERR,
            sqlite3.SQLITE_FULL,
            sqlite3.SQLITE_CANTOPEN,
            sqlite3.SQLITE_CORRUPT,
            sqlite3.SQLITE_NOTADB,
        )

    def timed_out(self, error: DBAPIError) -> bool:
        return getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT

    def was_cut_off(self, error: DBAPIError) -> bool:
        return False

    def notices(self, connection: Connection) -> int:
        return 0


def _lower(value: str | None) -> str | None:
    return None if value is None else value.lower()


def of(url: str | URL) -> Dialect:
    """Returns the dialect of a database URL.

    Raises:
        ValueError: For a database we do not support.
    """
    backend = make_url(url).get_backend_name()
    if backend == "postgresql":
        return PostgreSQL()
    if backend == "sqlite":
        return SQLite()
    raise ValueError(f"databases of kind {backend} are not supported")


# The text of an error reaches the log with its traceback; addresses, keys and hashes may not.
_HIDE_PARAMETERS = True


def engine(
    url: str,
    *,
    pool_size: int,
    lock_seconds: float,
    statement_seconds: float,
    wait_seconds: float,
) -> Engine:
    """Returns an engine whose connections are in the driver's autocommit mode.

    Transactions are begun and ended by database.py in so many words, so that a single statement is
    one round trip.

    Args:
        pool_size: Connections kept and allowed.
        lock_seconds: The longest wait for a row lock (SQLite: for the writer's lock).
        statement_seconds: The longest statement.
        wait_seconds: The longest wait for a free connection.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        made = create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=wait_seconds,
            pool_reset_on_return=None,
            isolation_level="AUTOCOMMIT",
            hide_parameters=_HIDE_PARAMETERS,
            connect_args={
                # An idle transaction would hold its realm's lock: a paused writer is cut off.
                "options": f"-c statement_timeout={int(statement_seconds * 1000)}"
                f" -c lock_timeout={int(lock_seconds * 1000)}"
                " -c idle_in_transaction_session_timeout=2000 -c timezone=UTC"
                # Our statements are look-ups through indexes: neither compiling them nor choosing a
                # plan by the size of a table can save anything. database.snapshot() lets the
                # statements about many objects at once use hashes again.
                " -c jit=off -c plan_cache_mode=force_generic_plan"
                " -c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off",
                "connect_timeout": 5,
                "prepare_threshold": 2,
            },
        )

        @event.listens_for(made, "connect")
        def listen(connection: psycopg.Connection[Any], record: Any) -> None:
            def count(diagnostic: psycopg.errors.Diagnostic) -> None:
                if diagnostic.sqlstate == _WARNING:
                    record.info["warnings"] = record.info.get("warnings", 0) + 1

            connection.add_notice_handler(count)

        return made
    made = create_engine(
        parsed,
        poolclass=QueuePool,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=wait_seconds,
        pool_reset_on_return=None,
        isolation_level="AUTOCOMMIT",
        hide_parameters=_HIDE_PARAMETERS,
        connect_args={"timeout": lock_seconds, "check_same_thread": False},
    )

    @event.listens_for(made, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        # WAL without FULL may lose the last commits when the machine loses power; an acknowledged
        # write must be as durable as its database.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA mmap_size = 268435456")
        # SQLite's own lower() knows ASCII only; searches ignore the case of all letters.
        connection.create_function("lower", 1, _lower, deterministic=True)

    return made
