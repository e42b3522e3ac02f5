"""Events, their order across realms, and the kept replies of repeated calls."""

from sqlalchemy import BigInteger, ForeignKeyConstraint, Index, LargeBinary, Text
from sqlalchemy.orm import Mapped, mapped_column

from authz_service.storage.tables.base import Base, Instant, Json, Key


class Event(Base):
    """One change of one object; the audit log is a reading of these rows.

    Attributes:
        realm: The organization's id, or ``*``.
        sequence: 1, 2, 3 … without holes in a realm: the commit order.
        data, previous: JSON text, exactly as hashed.
    """

    __tablename__ = "events"

    realm: Mapped[Key] = mapped_column(primary_key=True)
    sequence: Mapped[Instant] = mapped_column(primary_key=True, autoincrement=False)
    id: Mapped[Key] = mapped_column(unique=True)
    kind: Mapped[str] = mapped_column(Text)
    is_primary: Mapped[bool]
    cause_event_id: Mapped[str] = mapped_column(Text)
    actor_kind: Mapped[str] = mapped_column(Text)
    actor_id: Mapped[str] = mapped_column(Text)
    on_behalf_of_user_id: Mapped[str] = mapped_column(Text)
    request_id: Mapped[str] = mapped_column(Text)
    target_type: Mapped[str] = mapped_column(Text)
    target_id: Mapped[Key]
    data: Mapped[str] = mapped_column(Text)
    previous: Mapped[str] = mapped_column(Text)
    created_at: Mapped[Instant]
    previous_hash: Mapped[bytes] = mapped_column(LargeBinary)
    hash: Mapped[bytes] = mapped_column(LargeBinary)

    __table_args__ = (Index(None, "realm", "created_at"),)


class EventQueueEntry(Base):
    """An event that has no place among all events yet. Written with it, removed by the feed."""

    __tablename__ = "event_queue"

    realm: Mapped[Key] = mapped_column(primary_key=True)
    sequence: Mapped[Instant] = mapped_column(primary_key=True, autoincrement=False)


class EventPosition(Base):
    """The place of an event among all events: one fixed order, the same for every reader.

    A commit order across realms cannot be had at commit without one lock for all writers; so the
    feed numbers events after they were committed (storage/positions.py). The row with the largest
    position is never removed, for the next position follows from it.

    Attributes:
        position: 1, 2, 3 … without holes but for rows that were removed.
        created_at: The latest ``created_at`` of all events up to this place, so that it never falls
            and a time finds its place by halving.
    """

    __tablename__ = "event_positions"

    position: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    realm: Mapped[Key]
    sequence: Mapped[Instant]
    created_at: Mapped[Instant]

    __table_args__ = (
        Index(None, "realm", "sequence", unique=True),
        Index(None, "realm", "position"),
        ForeignKeyConstraint(["realm", "sequence"], ["events.realm", "events.sequence"]),
    )


class KeptReply(Base):
    """The answer of a mutating call that carried an idempotency key, for 24 hours.

    Attributes:
        reply: The response message without secrets and without token.
        realms: Ids of the realms whose state a replay's token names.
    """

    __tablename__ = "kept_replies"

    caller: Mapped[Key] = mapped_column(primary_key=True)
    key: Mapped[Key] = mapped_column(primary_key=True)
    request_digest: Mapped[bytes] = mapped_column(LargeBinary)
    reply: Mapped[bytes] = mapped_column(LargeBinary)
    realms: Mapped[Json]
    created_at: Mapped[Instant] = mapped_column(index=True)
