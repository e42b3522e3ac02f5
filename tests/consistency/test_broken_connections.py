"""A connection that ends inside a transaction is no bug of ours: the caller is told to repeat.

Found by the faults "database restarted" and "stopped": both were answered with INTERNAL.
"""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from authz_service.base.actor import SYSTEM
from authz_service.base.errors import Unavailable
from authz_service.storage.database import Database
from tests.consistency.stack import pause
from tests.servers.postgresql import libpq_url


def refused(url: str, breaks: Callable[[Any], None]) -> str:
    """Returns the reason that a write is refused with whose connection breaks."""
    database = Database(url)

    def work(tx: Any) -> None:
        breaks(tx.connection)
        tx.connection.exec_driver_sql("SELECT 1")

    try:
        with pytest.raises(Unavailable) as caught:
            database.write(work, actor=SYSTEM)
        return caught.value.reason
    finally:
        database.close()


def test_a_connection_that_is_cut_in_a_write(postgresql_url: str) -> None:
    def cut(connection: Any) -> None:
        pid = connection.connection.dbapi_connection.info.backend_pid
        with psycopg.connect(libpq_url(postgresql_url), autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))

    assert refused(postgresql_url, cut) == "DATABASE_UNAVAILABLE"


def test_a_connection_that_was_idle_for_too_long_in_a_write(postgresql_url: str) -> None:
    def wait(connection: Any) -> None:
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 50")
        pause(0.3)

    assert refused(postgresql_url, wait) == "DATABASE_UNAVAILABLE"
