"""Lets writers of one database meet."""

import itertools
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from authz_service.base.actor import SYSTEM
from authz_service.base.errors import Refusal
from authz_service.storage.database import Database, Snapshot, Transaction


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


class Race(NamedTuple):
    """Writes that are to meet, about things made for them alone.

    Attributes:
        works: What each of them does.
        seen: What is left of it, without ids or times, so that rounds can be compared.
    """

    works: Sequence[Callable[[Transaction], Any]]
    seen: Callable[[Snapshot], Hashable]


Outcome = tuple[tuple[str, ...], Hashable]

# A write may also lose its race for good (product.md C10): then it has done nothing.
LOST = "CONFLICT"


def orders(database: Database, made: Callable[[], Race], running: Sequence[int]) -> set[Outcome]:
    """Returns the outcomes of all orders in which the writes of a race can happen.

    An outcome is the reason of each write, ``""`` without one, and what is seen afterwards.

    Args:
        running: Places of the writes that happen; the others have lost.
    """
    found = set()
    for order in itertools.permutations(running):
        one = made()
        reasons = [LOST] * len(one.works)
        for number in order:
            (reasons[number],) = race(database, one.works[number])
        found.add((tuple(reasons), _seen(database, one)))
    return found


# The outcomes of all orders, by race and by which of its writes ran: found once, on the database
# that is tested first, for they are the same on both.
_possible: dict[tuple[str, tuple[int, ...]], set[Outcome]] = {}


def hold(database: Database, name: str, made: Callable[[], Race], rounds: int) -> set[Outcome]:
    """Races again and again: every outcome is one of some order. Returns those that came out.

    SQLite has one writer at a time, so that little can differ there: a quarter of the rounds.

    Args:
        name: No two races share one.
    """
    if database.dialect.name != "postgresql":
        rounds = max(1, rounds // 4)
    happened = set()
    for _ in range(rounds):
        one = made()
        reasons = race(database, *one.works)
        outcome = (tuple(reasons), _seen(database, one))
        running = tuple(number for number, reason in enumerate(reasons) if reason != LOST)
        if (name, running) not in _possible:
            _possible[name, running] = orders(database, made, running)
        possible = _possible[name, running]
        assert outcome in possible, f"{name}: {outcome} is none of {possible}"
        happened.add(outcome)
    return happened


def _seen(database: Database, one: Race) -> Hashable:
    with database.snapshot(SYSTEM) as snapshot:
        return one.seen(snapshot)
