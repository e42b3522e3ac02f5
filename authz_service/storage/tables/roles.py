"""Roles of the environment and of organizations, and the permissions they contain."""

from sqlalchemy import ForeignKey, Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from authz_service.storage.tables.base import Base, Key, Stamped


class Role(Stamped, Base):
    """A named list of permissions.

    Attributes:
        realm: ``*`` for an environment role, else the organization's id.
    """

    __tablename__ = "roles"

    id: Mapped[Key] = mapped_column(primary_key=True)
    realm: Mapped[Key] = mapped_column(ForeignKey("realms.id"))
    slug: Mapped[Key]
    name: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text)
    resource_type_slug: Mapped[Key] = mapped_column(ForeignKey("resource_types.slug"), index=True)

    __table_args__ = (Index(None, "realm", "slug", unique=True),)


class RolePermission(Base):
    """A permission in a role."""

    __tablename__ = "role_permissions"

    role_id: Mapped[Key] = mapped_column(
        ForeignKey("roles.id", ondelete="CASCADE"), primary_key=True
    )
    permission_slug: Mapped[Key] = mapped_column(
        ForeignKey("permissions.slug", ondelete="CASCADE"), primary_key=True
    )

    __table_args__ = (Index(None, "permission_slug", "role_id"),)
