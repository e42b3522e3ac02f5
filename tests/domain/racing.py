"""Lets writers of one database meet."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from authz_service.base.actor import SYSTEM
from authz_service.base.errors import Refusal
from authz_service.storage.database import Database, Transaction


def race(database: Database, *works: Callable[[Transaction], Any]) -> list[str]:
    """Runs writes at once, each in a thread, and returns the reason of each, or ``""``.

    On PostgreSQL every transaction is open before any of them does its work; SQLite opens one after
    the other, so there they meet at the door.
    """
    met = threading.Barrier(len(works), timeout=20)
    inside = database.dialect.name == "postgresql"

    def run(work: Callable[[Transaction], Any]) -> str:
        first = True

        def attempt(tx: Transaction) -> Any:
            nonlocal first
            if first and inside:
                first = False
                met.wait()
            return work(tx)

        if not inside:
            met.wait()
        try:
            database.write(attempt, actor=SYSTEM)
        except Refusal as refusal:
            return refusal.reason
        return ""

    with ThreadPoolExecutor(len(works)) as threads:
        return list(threads.map(run, works))
