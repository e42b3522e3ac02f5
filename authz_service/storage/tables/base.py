"""The declarative base and the column types that every table uses.

Times are whole microseconds since 1970 in UTC, as integers: both databases compare them alike and
the hot path never builds a datetime. Ids, slugs and external ids compare byte for byte.
"""

from typing import Annotated, Any

from sqlalchemy import JSON, BigInteger, MetaData, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

# Byte order on PostgreSQL whatever the database's locale; SQLite compares bytes anyway.
_bytewise = Text().with_variant(Text(collation="C"), "postgresql")

Key = Annotated[str, mapped_column(_bytewise)]
Instant = Annotated[int, mapped_column(BigInteger)]
Json = Annotated[Any, mapped_column(JSON)]


class Base(DeclarativeBase):
    """Columns and constraints only: no behaviour, no relationships between concerns."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Stamped:
    """What every object that can be changed carries. ``events.record`` writes these columns.

    Attributes:
        revision: The realm's revision when the object itself was last changed; its etag.
    """

    created_at: Mapped[Instant]
    updated_at: Mapped[Instant]
    revision: Mapped[Instant]
