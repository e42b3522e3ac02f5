"""Permissions: actions on resources of one type."""

from sqlalchemy import ForeignKey, Text
from sqlalchemy.orm import Mapped, mapped_column

from authz_service.storage.tables.base import Base, Key, Stamped


class Permission(Stamped, Base):
    """Named by its slug everywhere: a deleted one leaves every role in the same transaction."""

    __tablename__ = "permissions"

    slug: Mapped[Key] = mapped_column(primary_key=True)
    id: Mapped[Key] = mapped_column(unique=True)
    name: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text)
    resource_type_slug: Mapped[Key] = mapped_column(ForeignKey("resource_types.slug"), index=True)
    assignable_to_api_keys: Mapped[bool]
