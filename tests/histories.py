"""Histories of events: written by many at once, read by many, and judged afterwards."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import select

from authz_service.base.actor import SYSTEM
from authz_service.domain import events
from authz_service.domain.lifecycles import organizations
from authz_service.storage import realms
from authz_service.storage.database import Database, Transaction
from authz_service.storage.tables import Event, Realm

# A realm and a sequence: which event it is.
Seen = tuple[str, int]


def new_organization(database: Database, name: str = "Acme") -> str:
    """Creates an organization and returns its id."""
    return database.write(lambda tx: organizations.create(tx, name=name), actor=SYSTEM).result.id


def record(
    tx: Transaction, organization_id: str, count: int = 1, *, note: str = "", kind: str = ""
) -> None:
    """Locks an organization and records events in it."""
    realms.lock(tx, organization_id)
    for _ in range(count):
        events.record(
            tx,
            kind or "organization.updated",
            realm=organization_id,
            target_type="organization",
            target_id=organization_id,
            data={"note": note},
            tags=(),
        )


def write(database: Database, organization_id: str, count: int = 1, **more: str) -> None:
    """Records events in one transaction."""
    database.write(lambda tx: record(tx, organization_id, count, **more), actor=SYSTEM)


def truth(database: Database) -> dict[str, int]:
    """Returns every realm with its last sequence, after a look at its events: no hole in them."""
    with database.snapshot(SYSTEM) as snapshot:
        stored: dict[str, list[int]] = {}
        for realm, sequence in snapshot.connection.execute(
            select(Event.realm, Event.sequence).order_by(Event.realm, Event.sequence)
        ):
            stored.setdefault(realm, []).append(sequence)
        heads = snapshot.connection.execute(select(Realm.id, Realm.revision))
        last = {row.id: row.revision for row in heads}
    assert stored == {realm: list(range(1, revision + 1)) for realm, revision in last.items()}
    return last


def faults(last: Mapping[str, int], readers: Mapping[str, Sequence[Seen]]) -> list[str]:
    """Returns in which way readers of everything did not see one and the same history.

    Args:
        last: From ``truth``.
        readers: By name, what each has seen, in the order in which it has seen it.
    """
    found = []
    written = {(realm, n) for realm, revision in last.items() for n in range(1, revision + 1)}
    for name, seen in readers.items():
        found += [f"{name} missed {event}" for event in sorted(written - set(seen))]
        found += [f"{name} saw {event} twice" for event, n in Counter(seen).items() if n > 1]
        behind: dict[str, int] = {}
        for realm, sequence in seen:
            if sequence < behind.get(realm, 0):
                found.append(f"{name} saw {(realm, sequence)} after {behind[realm]}")
            behind[realm] = sequence
    (first_name, first), *others = readers.items()
    found += [
        f"{name} saw another order than {first_name}" for name, seen in others if seen != first
    ]
    return found


class Together:
    """Runs functions in threads, and raises in the test what any of them raised."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def start(self, *works: Callable[[], Any]) -> None:
        """Starts each in a thread of its own."""
        for work in works:
            thread = threading.Thread(target=self._run, args=(work,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def join(self, seconds: float = 60.0) -> None:
        """Waits for all that were started since the last time."""
        for thread in self._threads:
            thread.join(seconds)
        alive = [thread for thread in self._threads if thread.is_alive()]
        self._threads = []
        if self._errors:
            raise self._errors[0]
        assert not alive

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            work()
        except BaseException as error:
            self._errors.append(error)


def keys(rows: Iterable[Any]) -> list[Seen]:
    """Returns which events these rows are."""
    return [(row.realm, row.sequence) for row in rows]
