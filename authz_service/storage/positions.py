"""The one order of all events: gives committed events their positions, and reads by position.

A realm's lock orders its own events, but nothing orders those of two realms at commit. A time, an
id or a number drawn before the commit would not do: whoever has read up to it would miss an event
with a smaller one that is committed later. So positions are given to events that are already
committed, by one transaction after the other.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Row, TextClause, insert, select, text

from authz_service.base.consistency import ENVIRONMENT
from authz_service.storage.database import Control, Snapshot
from authz_service.storage.dialects import Dialect
from authz_service.storage.tables import EventPosition

# Events numbered by one transaction: it stays short, for on SQLite it keeps all writers out.
BATCH_MAX = 1_000
# Events that one statement looks at for those that pass the filters; bounds it whatever is asked.
EXAMINED_MAX = 10_000
# ``created_at`` is the time at which a write began, its position follows its commit, and servers'
# clocks differ: how much later than its neighbours an event may come.
LATE_MICROSECONDS = 3_600 * 1_000_000
# Any number that nothing else in the database takes a lock by.
_NUMBERING = 7_206_359_214


@dataclass(frozen=True, slots=True)
class Numbered:
    """What one transaction did.

    Attributes:
        count: Events it numbered; less than ``BATCH_MAX`` if it left none.
        position: The largest position now, 0 without any.
    """

    count: int
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which events a list or a stream shows; conditions are joined by *and*.

    Attributes:
        realms: One, or an organization and ``*``; empty = all.
        kinds: None = all.
        global_kinds: Of the events of ``*`` only these; None = all.
        target_id, actor_id: Empty = all.
        start_at: Not before this instant, microseconds since 1970.
        end_at: Before this instant.
    """

    realms: tuple[str, ...] = ()
    kinds: Collection[str] | None = None
    global_kinds: Collection[str] | None = None
    primary_only: bool = False
    target_id: str = ""
    actor_id: str = ""
    start_at: int | None = None
    end_at: int | None = None


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of the order that was looked at.

    Attributes:
        rows: The selected events in it, with their ``position``, oldest first.
        position: Where it ends; None = nothing selected comes after it so far.
        instant: ``created_at`` of that place.
    """

    rows: Sequence[Row[Any]]
    position: int | None = None
    instant: int = 0


def number(control: Control) -> Numbered:
    """Gives positions to events that have none, as many as one transaction should."""
    connection = control.connection
    lock = control.dialect.advisory_lock(_NUMBERING)
    if lock is not None:
        # Whoever waited here sees, in its next statements, all that the one before has numbered.
        # Without it the primary key would let only one through, and the others try in vain.
        connection.exec_driver_sql(lock)
    taken = connection.execute(_TAKE, {"limit": BATCH_MAX}).all()
    last = connection.execute(_LAST).one_or_none()
    position, latest = (last.position, last.created_at) if last else (0, 0)
    # A clock that is far ahead must not carry the times of all later positions with it.
    believable = control.now + LATE_MICROSECONDS
    rows = []
    for rising, realm, sequence in _in_order(taken):
        position += 1
        latest = max(latest, min(rising, believable))
        rows.append(
            {"position": position, "realm": realm, "sequence": sequence, "created_at": latest}
        )
    if rows:
        connection.execute(insert(EventPosition), rows)
    return Numbered(len(rows), position)


def _in_order(taken: Sequence[Row[Any]]) -> list[tuple[int, str, int]]:
    """Orders events by time as far as the order of each realm allows: (time, realm, sequence)."""
    rising: dict[str, int] = {}
    ordered = []
    for realm, sequence, created_at in sorted(tuple(row) for row in taken):
        rising[realm] = max(rising.get(realm, 0), created_at)
        ordered.append((rising[realm], realm, sequence))
    return sorted(ordered)


# In a realm the smallest sequences first: a later one must not get its position before them.
_TAKE = text(
    "DELETE FROM event_queue WHERE (realm, sequence) IN"
    " (SELECT realm, sequence FROM event_queue ORDER BY realm, sequence LIMIT :limit)"
    " RETURNING realm, sequence, (SELECT e.created_at FROM events e"
    " WHERE e.realm = event_queue.realm AND e.sequence = event_queue.sequence) AS created_at"
)
_LAST = (
    select(EventPosition.position, EventPosition.created_at)
    .order_by(EventPosition.position.desc())
    .limit(1)
)
# One statement, so that it is of one instant: the largest position, and whether events wait.
STATE = text(
    "SELECT (SELECT coalesce(max(position), 0) FROM event_positions) AS position,"
    " EXISTS (SELECT 1 FROM event_queue) AS waiting"
)


# Times never fall along the positions: halving finds the place among a million in a score of steps,
# each a look into the primary key. The place sought is in [low, high); positions may be missing.
_MIDDLE = "((h.low + h.high) / 2)"
_IS_BELOW = (
    "(SELECT p.created_at FROM event_positions p"
    f" WHERE p.position <= {_MIDDLE} ORDER BY p.position DESC LIMIT 1) < :instant"
)
_BEFORE = text(
    "WITH RECURSIVE halved(low, high) AS ("
    "SELECT min(position), max(position) + 1 FROM event_positions"
    f" UNION ALL SELECT CASE WHEN {_IS_BELOW} THEN {_MIDDLE} + 1 ELSE h.low END,"
    f" CASE WHEN {_IS_BELOW} THEN h.high ELSE {_MIDDLE} END FROM halved h WHERE h.low < h.high)"
    " SELECT max(low) - 1 FROM halved WHERE low = high"
)


def last(snapshot: Snapshot) -> int:
    """Returns the largest position, 0 without any."""
    row = snapshot.connection.execute(_LAST).one_or_none()
    return row.position if row else 0


def following(snapshot: Snapshot, position: int) -> Row[int, int] | None:
    """Returns ``position`` and ``created_at`` of the first place after this one."""
    return snapshot.connection.execute(
        select(EventPosition.position, EventPosition.created_at)
        .where(EventPosition.position > position)
        .order_by(EventPosition.position)
        .limit(1)
    ).one_or_none()


def before(snapshot: Snapshot, instant: int) -> int:
    """Returns the largest position that has only events before this instant at and below it."""
    ((found,),) = snapshot.values(_BEFORE, {"instant": instant})
    return found or 0


def read(snapshot: Snapshot, selection: Selection, *, after: int, size: int) -> Stretch:
    """Returns the selected events that come next after a position.

    Looks at a bounded number of events: fewer rows than asked for, or none, do not mean that no
    more will come; ``position`` says that.

    Args:
        size: The most rows wanted.
    """
    is_narrow = selection != Selection(realms=selection.realms)
    parameters = {
        **{f"realm_{i}": realm for i, realm in enumerate(selection.realms)},
        "after": after,
        "window": EXAMINED_MAX if is_narrow else size + 1,
    }
    rows = snapshot.connection.execute(
        _selected(snapshot.dialect, len(selection.realms)),
        {**parameters, **_conditions(snapshot.dialect, selection), "size": size + 1},
    ).all()
    if len(rows) > size:
        return Stretch(rows[:size], rows[size - 1].position, rows[size - 1].created_at)
    if not is_narrow:
        return Stretch(rows)
    looked_at = snapshot.connection.execute(
        _looked_at(snapshot.dialect, len(selection.realms), selection.end_at is not None),
        parameters,
    ).one()
    if looked_at.examined < EXAMINED_MAX:
        return Stretch(rows)
    if selection.end_at is not None and looked_at.earliest >= selection.end_at + LATE_MICROSECONDS:
        return Stretch(rows)
    return Stretch(rows, looked_at.position, looked_at.created_at)


def _conditions(dialect: Dialect, selection: Selection) -> dict[str, Any]:
    return {
        "start_at": selection.start_at,
        "end_at": selection.end_at,
        "primary_only": selection.primary_only,
        "target_id": selection.target_id,
        "actor_id": selection.actor_id,
        "any_kind": selection.kinds is None,
        "kinds": dialect.list_value(selection.kinds or ()),
        "any_global_kind": selection.global_kinds is None,
        "global_kinds": dialect.list_value(selection.global_kinds or ()),
    }


def _window(realms: int) -> str:
    """The next places, in order: of all realms, of one, or merged out of two."""
    columns = "position, realm, sequence, created_at"
    if not realms:
        return (
            f"SELECT {columns} FROM event_positions WHERE position > :after"
            " ORDER BY position LIMIT :window"
        )
    # Said as pairs, this has only one index to go by. For "realm = … ORDER BY position" a planner
    # that takes all realms for equally large walks the positions of all to find those of a small.
    each = [
        f"SELECT * FROM (SELECT {columns} FROM event_positions"
        f" WHERE (realm, position) > (:realm_{i}, :after) AND realm <= :realm_{i}"
        f" ORDER BY realm, position LIMIT :window) w{i}"
        for i in range(realms)
    ]
    union = " UNION ALL ".join(each)
    return f"SELECT {columns} FROM ({union}) w ORDER BY position LIMIT :window"


_EVENT = "e.realm = p.realm AND e.sequence = p.sequence"


@cache
def _selected(dialect: Dialect, realms: int) -> TextClause:
    # The conditions are looked at on the rows of the window, so that none needs an index.
    return text(
        "SELECT p.position, e.realm, e.sequence, e.id, e.kind, e.is_primary, e.cause_event_id,"
        " e.actor_kind, e.actor_id, e.on_behalf_of_user_id, e.request_id, e.target_type,"
        " e.target_id, e.data, e.previous, e.created_at, e.previous_hash, e.hash"
        f" FROM ({_window(realms)}) p"
        + dialect.probe("events", "e", _EVENT)
        + " WHERE (CAST(:start_at AS bigint) IS NULL OR e.created_at >= :start_at)"
        " AND (CAST(:end_at AS bigint) IS NULL OR e.created_at < :end_at)"
        " AND (e.is_primary OR NOT CAST(:primary_only AS boolean))"
        " AND CAST(:target_id AS text) IN ('', e.target_id)"
        " AND CAST(:actor_id AS text) IN ('', e.actor_id)"
        f" AND (CAST(:any_kind AS boolean) OR e.kind IN {dialect.in_list('kinds')})"
        f" AND (CAST(:any_global_kind AS boolean) OR e.realm <> '{ENVIRONMENT}'"
        f" OR e.kind IN {dialect.in_list('global_kinds')})"
        " ORDER BY p.position LIMIT :size"
    )


@cache
def _looked_at(dialect: Dialect, realms: int, with_times: bool) -> TextClause:
    places = (
        "SELECT count(*) AS examined, max(p.position) AS position, max(p.created_at) AS created_at"
    )
    if not with_times:
        return text(f"{places} FROM ({_window(realms)}) p")
    return text(
        f"{places}, min(e.created_at) AS earliest FROM ({_window(realms)}) p"
        + dialect.probe("events", "e", _EVENT)
    )
