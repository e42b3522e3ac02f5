"""Organizations and their configuration."""

from sqlalchemy import ForeignKey, Index, Text
from sqlalchemy.orm import Mapped, mapped_column

from authz_service.storage.tables.base import Base, Json, Key, Stamped


class Organization(Stamped, Base):
    """A customer: the container of members and the root of a resource tree."""

    __tablename__ = "organizations"

    id: Mapped[Key] = mapped_column(ForeignKey("realms.id"), primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    external_id: Mapped[Key | None] = mapped_column(unique=True)
    metadata_json: Mapped[Json]
    everyone_group_id: Mapped[Key]
    root_resource_id: Mapped[Key]


class OrganizationConfiguration(Stamped, Base):
    """Settings of one organization.

    Attributes:
        default_role_id: None = the deployment's default role.
        role_priority: Role ids, highest first; None = derived (product.md RO4).
    """

    __tablename__ = "organization_configurations"

    organization_id: Mapped[Key] = mapped_column(
        ForeignKey("organizations.id", ondelete="CASCADE"), primary_key=True
    )
    default_role_id: Mapped[Key | None] = mapped_column(ForeignKey("roles.id"))
    role_priority: Mapped[Json | None]

    __table_args__ = (Index(None, "default_role_id"),)
