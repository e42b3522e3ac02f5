"""Measures statements, under names of ours, and the wait for a connection to run them on.

A name says what ran the statement and, inside a transaction, what it did: the names are few, so
that a dashboard can show them all, and no caller can make one up.
"""

from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError

from authz_service.base.clock import boot_seconds
from authz_service.storage.dialects import Dialect
from authz_service.telemetry.metrics import Metrics

# Single statements, which need no transaction: what they are for.
CHECK, LIST, REVISIONS, CREDENTIAL, FEED = "check", "list", "revisions", "credential", "feed"
SINGLES = (CHECK, LIST, REVISIONS, CREDENTIAL, FEED)
# Transactions; their statements are named ``snapshot_select``, ``write_commit`` and so on.
SNAPSHOT, WRITE, CONTROL = "snapshot", "write", "control"
TRANSACTIONS = (SNAPSHOT, WRITE, CONTROL)

_LOCK, _OTHER = "lock", "other"
# What a statement does, by its first word.
_VERBS = {
    word: word for word in ("select", "insert", "update", "delete", "begin", "commit", "rollback")
} | {"with": "select"}
# Its time is that of somebody else's transaction.
_LOCKING = ("FOR UPDATE", "FOR SHARE")
_ADVISORY = "SELECT pg_advisory"

_NAMES = {
    kind: {verb: f"{kind}_{verb}" for verb in (*_VERBS.values(), _LOCK, _OTHER)}
    for kind in TRANSACTIONS
}
NAMES = frozenset(SINGLES).union(*(names.values() for names in _NAMES.values()))

OK = "ok"
OUTCOMES = frozenset({OK, "lost_race", "timed_out", "unavailable", "failed"})


class Statements:
    """Counts what the statements of one database take."""

    __slots__ = ("_dialect", "_seconds", "_wait_seconds")

    def __init__(self, dialect: Dialect, metrics: Metrics) -> None:
        self._dialect = dialect
        self._seconds = metrics.sql_seconds
        self._wait_seconds = metrics.sql_pool_wait_seconds

    def waited(self, since: float) -> float:
        """Counts the wait for a connection, successful or not; returns the present boot time."""
        now = boot_seconds()
        self._wait_seconds.observe(now - since)
        return now

    def done(self, name: str, since: float) -> None:
        """Counts a statement that returned."""
        self._seconds.observe(boot_seconds() - since, name, OK)

    def failed(self, name: str, since: float, error: DBAPIError) -> None:
        """Counts a statement that raised an error."""
        dialect = self._dialect
        if dialect.lost_race(error):
            outcome = "lost_race"
        elif dialect.timed_out(error):
            outcome = "timed_out"
        elif dialect.unavailable(error):
            outcome = "unavailable"
        else:
            outcome = "failed"
        self._seconds.observe(boot_seconds() - since, name, outcome)

    def watched(self, engine: Engine, kind: str) -> Engine:
        """Returns the engine for one kind of transaction, on the same pool; it counts by itself."""
        names = _NAMES[kind]
        watched = engine.execution_options()

        @event.listens_for(watched, "before_cursor_execute")
        def begin(
            connection: Connection, cursor: Any, text: str, values: Any, context: Any, many: bool
        ) -> None:
            if text.endswith(_LOCKING) or text.startswith(_ADVISORY):
                verb = _LOCK
            else:
                verb = _VERBS.get(text.split(None, 1)[0].lower(), _OTHER)
            context.measured = names[verb], boot_seconds()

        @event.listens_for(watched, "after_cursor_execute")
        def end(
            connection: Connection, cursor: Any, text: str, values: Any, context: Any, many: bool
        ) -> None:
            name, begun = context.measured
            self.done(name, begun)

        return watched

    def watch_errors(self, engine: Engine) -> None:
        """Counts the statements of watched engines that raise; told once of the pool's own."""

        @event.listens_for(engine, "handle_error")
        def fail(context: ExceptionContext) -> None:
            measured = getattr(context.execution_context, "measured", None)
            if measured is not None and isinstance(context.sqlalchemy_exception, DBAPIError):
                name, begun = measured
                self.failed(name, begun, context.sqlalchemy_exception)
