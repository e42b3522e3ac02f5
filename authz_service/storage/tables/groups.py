"""Groups, who is in them, and groups in groups."""

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index, PrimaryKeyConstraint, Text
from sqlalchemy.orm import Mapped, mapped_column

from authz_service.storage.tables.base import Base, Key, Stamped


class Group(Stamped, Base):
    """Attributes:
    kind: STANDARD, or EVERYONE for the built-in one, which has no member rows (GR1).
    """

    __tablename__ = "groups"

    organization_id: Mapped[Key] = mapped_column(
        ForeignKey("organizations.id", ondelete="CASCADE"), primary_key=True
    )
    id: Mapped[Key] = mapped_column(primary_key=True, unique=True)
    kind: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text)


class GroupMember(Base):
    """A membership that is directly in a group."""

    __tablename__ = "group_members"

    organization_id: Mapped[Key]
    group_id: Mapped[Key]
    membership_id: Mapped[Key]

    __table_args__ = (
        PrimaryKeyConstraint("group_id", "membership_id", "organization_id"),
        ForeignKeyConstraint(
            ["organization_id", "group_id"],
            ["groups.organization_id", "groups.id"],
            ondelete="CASCADE",
        ),
        ForeignKeyConstraint(
            ["organization_id", "membership_id"],
            ["memberships.organization_id", "memberships.id"],
            ondelete="CASCADE",
        ),
        Index(None, "membership_id", "group_id"),
    )


class GroupNesting(Base):
    """A group that is directly in another: the inner one has what the outer holds."""

    __tablename__ = "group_nestings"

    organization_id: Mapped[Key]
    group_id: Mapped[Key]
    member_group_id: Mapped[Key]

    __table_args__ = (
        PrimaryKeyConstraint("group_id", "member_group_id", "organization_id"),
        ForeignKeyConstraint(
            ["organization_id", "group_id"],
            ["groups.organization_id", "groups.id"],
            ondelete="CASCADE",
        ),
        ForeignKeyConstraint(
            ["organization_id", "member_group_id"],
            ["groups.organization_id", "groups.id"],
            ondelete="CASCADE",
            name="fk_group_nestings_member_group",
        ),
        Index(None, "member_group_id", "group_id"),
    )
