"""Reads events, in their one order, and verifies their chains. ``events`` records them."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, select

from authz_service.base import errors
from authz_service.base.actor import Actor
from authz_service.base.clock import to_datetime
from authz_service.base.consistency import ENVIRONMENT
from authz_service.base.cursors import Place
from authz_service.domain import events, organizations
from authz_service.storage import positions, realms
from authz_service.storage.database import Snapshot
from authz_service.storage.positions import Selection, Stretch
from authz_service.storage.tables import Event, EventPosition, Organization, Realm

_DAY_MICROSECONDS = 24 * 3_600 * 1_000_000
_KIND_RULE = "a kind of event (role.created), or all kinds of a sort (role.*)"
_KIND_SHAPE = re.compile(r"[a-z_]+\.(?:[a-z_]+|\*)")
# What a credential restricted to organizations sees of the global events (EV6).
_GLOBAL_SORTS = ("role", "permission", "resource_type", "configuration", "role_priority")
_RESTRICTED_GLOBAL_KINDS = frozenset(
    kind for kind in events.KINDS if kind.partition(".")[0] in _GLOBAL_SORTS
)
# Rows in memory while a chain is recomputed.
_VERIFIED_AT_ONCE = 1_000


def view(row: Row[Any]) -> dict[str, Any]:
    """Returns an event as callers see it, but for its cursor."""
    return {
        "id": row.id,
        "kind": row.kind,
        "organization_id": "" if row.realm == ENVIRONMENT else row.realm,
        "sequence": row.sequence,
        "is_primary": bool(row.is_primary),
        "cause_event_id": row.cause_event_id,
        "actor": {"kind": f"ACTOR_KIND_{row.actor_kind}", "id": row.actor_id},
        "on_behalf_of_user_id": row.on_behalf_of_user_id,
        "request_id": row.request_id,
        "target_type": row.target_type,
        "target_id": row.target_id,
        "data": json.loads(row.data),
        "previous": json.loads(row.previous),
        "created_at": to_datetime(row.created_at),
        "previous_hash": row.previous_hash,
        "hash": row.hash,
    }


def select_events(
    actor: Actor,
    *,
    organization_id: str = "",
    include_global_events: bool = False,
    kinds: Sequence[str] = (),
    primary_only: bool = False,
    target_id: str = "",
    actor_id: str = "",
    start_at: int | None = None,
    end_at: int | None = None,
) -> Selection:
    """Returns which events a caller asks for and may see (EV3, EV6).

    Args:
        organization_id: Empty = all events.
        kinds: ``role.created`` or ``role.*``; empty = all.
        start_at, end_at: From and before this instant, microseconds since 1970.

    Raises:
        InvalidArgument: FIELD_INVALID.
        PermissionDenied: ORGANIZATION_RESTRICTED for a restricted credential that does not name one
            of its organizations.
    """
    wanted: set[str] = set()
    for i, kind in enumerate(kinds):
        wanted |= _kinds(f"kinds[{i}]", kind)
    if start_at is not None and end_at is not None and end_at < start_at:
        raise errors.field_invalid("end_at", "not before start_at")
    # The same answer whether or not an organization of that name exists.
    if actor.organization_ids and organization_id not in actor.organization_ids:
        raise errors.PermissionDenied(
            "ORGANIZATION_RESTRICTED", "the credential must name one of its organizations"
        )
    realms: tuple[str, ...] = ()
    if organization_id:
        realms = (organization_id, ENVIRONMENT) if include_global_events else (organization_id,)
    return Selection(
        realms=realms,
        kinds=frozenset(wanted) if kinds else None,
        global_kinds=(
            _RESTRICTED_GLOBAL_KINDS if actor.organization_ids and len(realms) > 1 else None
        ),
        primary_only=primary_only,
        target_id=target_id,
        actor_id=actor_id,
        start_at=start_at,
        end_at=end_at,
    )


def _kinds(field: str, kind: str) -> set[str]:
    found: set[str] = set()
    if _KIND_SHAPE.fullmatch(kind):
        sort, _, action = kind.partition(".")
        found = {
            known
            for known in events.KINDS
            if known == kind or (action == "*" and known.startswith(f"{sort}."))
        }
    if not found:
        raise errors.field_invalid(field, _KIND_RULE)
    return found


def require(snapshot: Snapshot, organization_id: str) -> None:
    """Refuses an organization that neither exists nor has left events (EV3).

    Args:
        organization_id: Empty = all; always there.

    Raises:
        NotFound: ORGANIZATION_NOT_FOUND.
    """
    if not organization_id:
        return
    connection = snapshot.connection
    is_known = organization_id != ENVIRONMENT and (
        connection.execute(
            select(Organization.id).where(Organization.id == organization_id)
        ).one_or_none()
        or connection.execute(
            select(Event.sequence).where(Event.realm == organization_id).limit(1)
        ).one_or_none()
    )
    if not is_known:
        raise organizations.not_found("organization_id", organization_id)


def get(snapshot: Snapshot, *, event_id: str) -> Row[Any]:
    """Returns one event, with its ``position``; as long as it is kept, whatever its age.

    Raises:
        NotFound: EVENT_NOT_FOUND.
    """
    row = snapshot.connection.execute(
        select(EventPosition.position, *Event.__table__.columns)
        .join(
            EventPosition,
            (EventPosition.realm == Event.realm) & (EventPosition.sequence == Event.sequence),
        )
        .where(Event.id == event_id)
    ).one_or_none()
    if row is None or not _may_see(snapshot.actor, row):
        raise errors.NotFound("EVENT_NOT_FOUND", "no such event", metadata={"event_id": event_id})
    return row


def _may_see(actor: Actor, row: Row[Any]) -> bool:
    if actor.organization_ids and row.realm == ENVIRONMENT:
        return row.kind in _RESTRICTED_GLOBAL_KINDS
    return actor.may_see(row.realm)


def beginning(snapshot: Snapshot, selection: Selection) -> int:
    """Returns the position after which a list begins: its ``start_at``, or the end of the reach.

    Raises:
        FailedPrecondition: CURSOR_EXPIRED if ``start_at`` is beyond the reach.
    """
    oldest = _oldest(snapshot)
    if selection.start_at is None:
        return positions.before(snapshot, oldest)
    if selection.start_at < oldest:
        raise expired()
    return positions.before(snapshot, selection.start_at)


def resume(snapshot: Snapshot, place: Place) -> int:
    """Returns the position after which a caller goes on that has seen all up to a place.

    Raises:
        FailedPrecondition: CURSOR_EXPIRED if the place is older than the reach, or events that
            follow it may be gone; also if the database never was there, because it was restored
            from an older state: what comes next there is not what the caller has not seen.
    """
    if place.instant < _oldest(snapshot) or place.position > positions.last(snapshot):
        raise expired()
    require_following(snapshot, place.position)
    return place.position


def next_page(snapshot: Snapshot, position: int) -> int:
    """Returns the position after which a list goes on; the reach does not overtake a walk.

    Raises:
        FailedPrecondition: CURSOR_EXPIRED if what follows was removed since the page before.
    """
    following = positions.following(snapshot, position)
    if following is not None and following.position > position + 1:
        raise expired()
    return position


def require_following(snapshot: Snapshot, position: int) -> None:
    """Refuses to go on after a position if what follows it is beyond the reach or gone.

    Raises:
        FailedPrecondition: CURSOR_EXPIRED.
    """
    following = positions.following(snapshot, position)
    if following is not None and (
        following.position > position + 1 or following.created_at < _oldest(snapshot)
    ):
        raise expired()


def end(snapshot: Snapshot) -> Place:
    """Returns the place behind all events that have a position."""
    return Place(positions.last(snapshot), snapshot.now)


def revisions(snapshot: Snapshot, selection: Selection, rows: Sequence[Row[Any]]) -> dict[str, int]:
    """Returns the state that a part of a stream stands for: it includes these events."""
    named = {row.realm for row in rows} | set(selection.realms)
    return realms.revisions(snapshot, named - {ENVIRONMENT})


def page(snapshot: Snapshot, selection: Selection, *, after: int, size: int) -> Stretch:
    """Returns the next events of a selection, oldest first, from at most 10,000 looked at."""
    return positions.read(snapshot, selection, after=after, size=size)


def expired() -> errors.FailedPrecondition:
    """CURSOR_EXPIRED: read all anew."""
    return errors.FailedPrecondition("CURSOR_EXPIRED", "events after this place may be gone")


def _oldest(snapshot: Snapshot) -> int:
    return snapshot.now - snapshot.limits.event_days * _DAY_MICROSECONDS


@dataclass(frozen=True, slots=True)
class Anchor:
    """Where a chain begins: the last event that was removed from it. By default it is whole."""

    sequence: int = 0
    hash: bytes = b""


@dataclass(frozen=True, slots=True)
class Verified:
    """What recomputing a chain has found (product.md AU5).

    Attributes:
        checked_count: Events that were looked at.
        first_sequence, last_sequence: Of these; 0 without any.
        last_hash: Of the last of these.
        broken_sequence: The first event that is missing, changed or out of its place; None if the
            chain is intact.
    """

    checked_count: int
    first_sequence: int
    last_sequence: int
    last_hash: bytes
    broken_sequence: int | None

    @property
    def intact(self) -> bool:
        """True if every event is as it was recorded, and none is missing."""
        return self.broken_sequence is None


def verify(snapshot: Snapshot, realm: str, *, anchor: Anchor = Anchor()) -> Verified:
    """Recomputes the chain of a realm, from its beginning to the head that the realm's row names.

    Args:
        realm: An organization's id, also of a deleted one, or ``*``; without any row it is intact.
    """
    sequence, previous_hash = anchor.sequence, anchor.hash
    checked = first = 0
    broken: int | None = None
    while broken is None:
        rows = _chain(snapshot, realm, after=sequence)
        for row in rows:
            if not _follows(row, sequence + 1, previous_hash):
                broken = sequence + 1
                break
            checked += 1
            first = first or row.sequence
            sequence, previous_hash = row.sequence, row.hash
        if len(rows) < _VERIFIED_AT_ONCE:
            break
    head = snapshot.connection.execute(
        select(Realm.revision, Realm.last_hash).where(Realm.id == realm)
    ).one_or_none()
    if broken is None and head is not None and tuple(head) != (sequence, previous_hash):
        # Events were cut off at the end, or the head names another last one.
        broken = sequence + 1 if head.revision > sequence else sequence
    return Verified(checked, first, sequence if checked else 0, previous_hash, broken)


def _chain(snapshot: Snapshot, realm: str, *, after: int) -> Sequence[Row[Any]]:
    return snapshot.connection.execute(
        select(*Event.__table__.columns)
        .where(Event.realm == realm, Event.sequence > after)
        .order_by(Event.sequence)
        .limit(_VERIFIED_AT_ONCE)
    ).all()


def _follows(row: Row[Any], sequence: int, previous_hash: bytes) -> bool:
    return bool(
        row.sequence == sequence
        and row.previous_hash == previous_hash
        and row.hash == events.chained(previous_hash, row._asdict())
    )
