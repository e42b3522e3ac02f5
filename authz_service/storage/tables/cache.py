"""Whether the cache in Redis may be believed, and by whom (consistency.md 2.1)."""

from sqlalchemy import Boolean, Integer, SmallInteger, Text
from sqlalchemy.orm import Mapped, mapped_column

from authz_service.storage.tables.base import Base, Instant, Key


class CacheState(Base):
    """One row: the generation of the cache, and whether it is in use.

    Attributes:
        gen: Raised by every fence.
        mode: ``on``, ``settling`` or ``off``; goes round in this order.
        name: Of the life in Redis; random, new at every enable and never used again, so that a
            restored backup of this database cannot wake old keys.
        redis_run_id: The Redis process that this life is in.
        timeline: System identifier and WAL timeline of the primary.
        full_settle: A settle may not end early: the database itself failed over.
        lease_ms: How long a lease lasts; the same in all processes. 0 = no process has said yet.
    """

    __tablename__ = "cache_state"

    one: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    gen: Mapped[Instant]
    mode: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    redis_run_id: Mapped[str] = mapped_column(Text)
    timeline: Mapped[str] = mapped_column(Text)
    full_settle: Mapped[bool] = mapped_column(Boolean)
    lease_ms: Mapped[int] = mapped_column(Integer)


class NodeLease(Base):
    """The last renewal of one process's lease.

    Attributes:
        node: Random, new at every start of a process.
        renewed: By the database's clock, microseconds since 1970.
    """

    __tablename__ = "node_lease"

    node: Mapped[Key] = mapped_column(primary_key=True)
    gen: Mapped[Instant]
    renewed: Mapped[Instant]
