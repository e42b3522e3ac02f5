"""Keyset paging: one page of rows in a fixed order, newest first by id unless said otherwise."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, Select, func, select
from sqlalchemy.orm import InstrumentedAttribute

from authz_service.base.pages import Cursor, Page
from authz_service.storage.database import Snapshot


def newest_first(
    snapshot: Snapshot, statement: Select[Any], key: InstrumentedAttribute[str], page: Page
) -> tuple[Sequence[Row[Any]], Cursor | None]:
    """Returns the rows of one page and the cursor of the next, None after the last page.

    Args:
        key: The id column of the listed rows; also selected by the statement under its name.
    """
    if page.after is not None:
        statement = statement.where(key < page.after[0])
    statement = statement.order_by(key.desc()).limit(page.size + 1)
    rows = snapshot.connection.execute(statement).all()
    if len(rows) <= page.size:
        return rows, None
    rows = rows[: page.size]
    return rows, (getattr(rows[-1], str(key.key)),)


def total(snapshot: Snapshot, statement: Select[Any], limit: int) -> int | None:
    """Returns how many rows a list has in all, None above the limit (product.md M26)."""
    counted = select(func.count()).select_from(statement.limit(limit + 1).subquery())
    count = snapshot.connection.execute(counted).scalar_one()
    return count if count <= limit else None


def cut(rows: Sequence[Row[Any]], page: Page) -> tuple[Sequence[Row[Any]], Cursor | None]:
    """Returns the rows of one page and its cursor from up to one row more than the page holds.

    Args:
        rows: In the order of the list, with a column ``id`` that decides it.
    """
    if len(rows) <= page.size:
        return rows, None
    rows = rows[: page.size]
    return rows, (rows[-1].id,)
