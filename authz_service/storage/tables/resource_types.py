"""Resource types and below which types they may be placed."""

from sqlalchemy import ForeignKey, Text
from sqlalchemy.orm import Mapped, mapped_column

from authz_service.storage.tables.base import Base, Key, Stamped


class ResourceType(Stamped, Base):
    """Named by its slug everywhere: slugs never change, and a type in use is never deleted."""

    __tablename__ = "resource_types"

    slug: Mapped[Key] = mapped_column(primary_key=True)
    id: Mapped[Key] = mapped_column(unique=True)
    name: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text)
    is_built_in: Mapped[bool]


class ResourceTypeParent(Base):
    """A type below which resources of another type may be placed."""

    __tablename__ = "resource_type_parents"

    slug: Mapped[Key] = mapped_column(
        ForeignKey("resource_types.slug", ondelete="CASCADE"), primary_key=True
    )
    parent_slug: Mapped[Key] = mapped_column(
        ForeignKey("resource_types.slug"), primary_key=True, index=True
    )
