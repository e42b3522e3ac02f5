"""Counts the statements that reach a database, through SQLAlchemy or past it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event

from authz_service.storage import database


@contextmanager
def counting() -> Iterator[list[str]]:
    """Collects the statements that any engine runs."""
    seen: list[str] = []

    def count(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        seen.append(statement)

    values = database._values

    def counted(connection: Any, dialect: Any, statement: Any, parameters: Any) -> Any:
        seen.append(statement.text)
        return values(connection, dialect, statement, parameters)

    event.listen(Engine, "before_cursor_execute", count)
    database._values = counted
    try:
        yield seen
    finally:
        database._values = values
        event.remove(Engine, "before_cursor_execute", count)
