"""Realms: one row an organization and one, ``*``, for the environment. Rows are never deleted."""

from sqlalchemy import LargeBinary, SmallInteger
from sqlalchemy.orm import Mapped, mapped_column

from authz_service.storage.tables.base import Base, Instant, Key


class Realm(Base):
    """What orders the writes of one organization, or of the environment.

    Attributes:
        revision: The sequence of the realm's last event.
        last_hash: That event's hash: the head of the realm's chain.
    """

    __tablename__ = "realms"

    id: Mapped[Key] = mapped_column(primary_key=True)
    revision: Mapped[Instant]
    last_hash: Mapped[bytes] = mapped_column(LargeBinary)


class SchemaInfo(Base):
    """One row: the number that tells a program whether it may use this database.

    Attributes:
        compat: Raised by a migration that programs before it must not meet.
    """

    __tablename__ = "schema_info"

    one: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    compat: Mapped[int]
