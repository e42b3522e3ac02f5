"""Memberships and the roles they hold themselves."""

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index, PrimaryKeyConstraint, Text
from sqlalchemy.orm import Mapped, mapped_column

from authz_service.storage.tables.base import Base, Key, Stamped


class Membership(Stamped, Base):
    """A user in an organization: the canonical subject of every decision.

    Attributes:
        status: PENDING, ACTIVE or INACTIVE.
    """

    __tablename__ = "memberships"

    organization_id: Mapped[Key] = mapped_column(
        ForeignKey("organizations.id", ondelete="CASCADE"), primary_key=True
    )
    id: Mapped[Key] = mapped_column(primary_key=True, unique=True)
    user_id: Mapped[Key] = mapped_column(ForeignKey("users.id"))
    status: Mapped[str] = mapped_column(Text)

    __table_args__ = (
        Index(None, "user_id", "organization_id", unique=True),
        # Members by status in the order of their ids; users of an organization in the order of
        # theirs: a page of either is one short scan.
        Index(None, "organization_id", "status", "id"),
        Index(None, "organization_id", "user_id"),
    )


class MembershipRole(Base):
    """An own role of a membership, held on the organization resource.

    Attributes:
        source: DIRECT or DIRECTORY; one role may have both (product.md RO6).
    """

    __tablename__ = "membership_roles"

    organization_id: Mapped[Key]
    membership_id: Mapped[Key]
    role_id: Mapped[Key] = mapped_column(ForeignKey("roles.id"))
    source: Mapped[str] = mapped_column(Text)

    __table_args__ = (
        PrimaryKeyConstraint("membership_id", "role_id", "source", "organization_id"),
        ForeignKeyConstraint(
            ["organization_id", "membership_id"],
            ["memberships.organization_id", "memberships.id"],
            ondelete="CASCADE",
        ),
        Index(None, "organization_id", "role_id", "membership_id"),
        Index(None, "role_id"),
    )
