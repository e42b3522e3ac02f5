"""Keeps a second process from serving an embedded database: its cache would miss these writes."""

import fcntl
from pathlib import Path
from typing import IO

from sqlalchemy.engine import make_url


class AlreadyServed(Exception):
    """Another process serves this database file."""


def hold(url: str) -> IO[bytes] | None:
    """Takes the lock file beside a SQLite database; closing it, or the process's end, frees it.

    Args:
        url: ``sqlite:///file``.

    Returns:
        None for a database in memory, which nobody else can have.

    Raises:
        AlreadyServed: Another process holds it.
    """
    path = make_url(url).database
    if not path or path == ":memory:":
        return None
    held = Path(f"{path}.lock").open("ab")  # noqa: SIM115 (held open)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        raise AlreadyServed(
            f"another process serves {path}: an embedded database serves one process at a time;"
            " for more, AUTHZ_DATABASE_URL must name a PostgreSQL"
        ) from None
    return held
