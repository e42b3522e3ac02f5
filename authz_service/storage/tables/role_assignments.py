"""Role assignments: a membership or group holds a role on a resource."""

from sqlalchemy import CheckConstraint, Computed, ForeignKey, ForeignKeyConstraint, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from authz_service.storage.tables.base import Base, Instant, Key, Stamped


class RoleAssignment(Stamped, Base):
    """Attributes:
    membership_id, group_id: Exactly one is set; they carry the foreign keys.
    subject_id: The one that is set, made by the database, so that one index serves both.
    expires_at: The first instant at which it no longer grants; None = no end.
    is_end_recorded: The event role_assignment.expired has been written for this end.
    """

    __tablename__ = "role_assignments"

    organization_id: Mapped[Key] = mapped_column(primary_key=True)
    id: Mapped[Key] = mapped_column(primary_key=True, unique=True)
    membership_id: Mapped[Key | None]
    group_id: Mapped[Key | None]
    subject_id: Mapped[Key] = mapped_column(
        Computed("coalesce(membership_id, group_id)", persisted=True)
    )
    role_id: Mapped[Key] = mapped_column(ForeignKey("roles.id"))
    resource_id: Mapped[Key]
    expires_at: Mapped[Instant | None]
    is_end_recorded: Mapped[bool]

    __table_args__ = (
        CheckConstraint("(membership_id IS NULL) <> (group_id IS NULL)", name="one_subject"),
        ForeignKeyConstraint(
            ["organization_id", "membership_id"],
            ["memberships.organization_id", "memberships.id"],
            ondelete="CASCADE",
        ),
        ForeignKeyConstraint(
            ["organization_id", "group_id"],
            ["groups.organization_id", "groups.id"],
            ondelete="CASCADE",
        ),
        ForeignKeyConstraint(
            ["organization_id", "resource_id"],
            ["resources.organization_id", "resources.id"],
            ondelete="CASCADE",
        ),
        # By subject, for decisions, and unique (RA1); by resource, for ListMembers.
        Index(
            "uq_role_assignments_subject",
            "subject_id",
            "resource_id",
            "role_id",
            unique=True,
            postgresql_include=["expires_at"],
        ),
        Index("ix_role_assignments_holders", "resource_id", "role_id", "subject_id"),
        # For the foreign keys: what a deleted membership or group takes along.
        *(
            Index(
                f"ix_role_assignments_{column}",
                column,
                postgresql_where=text(f"{column} IS NOT NULL"),
                sqlite_where=text(f"{column} IS NOT NULL"),
            )
            for column in ("membership_id", "group_id")
        ),
        Index("ix_role_assignments_role", "role_id"),
        Index(
            "ix_role_assignments_ends",
            "expires_at",
            postgresql_where=text("NOT is_end_recorded AND expires_at IS NOT NULL"),
            sqlite_where=text("NOT is_end_recorded AND expires_at IS NOT NULL"),
        ),
        # For those that go 30 days after their end.
        Index(
            "ix_role_assignments_ended",
            "expires_at",
            postgresql_where=text("is_end_recorded"),
            sqlite_where=text("is_end_recorded"),
        ),
    )
