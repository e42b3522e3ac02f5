"""Resources and their place in the organization's tree."""

from sqlalchemy import ForeignKey, ForeignKeyConstraint, Index, PrimaryKeyConstraint, Text
from sqlalchemy.orm import Mapped, mapped_column

from authz_service.storage.tables.base import Base, Key, Stamped


class Resource(Stamped, Base):
    """A registered thing of one organization.

    Attributes:
        parent_id: None only for the organization resource.
        depth: 0 for the organization resource.
        path: Ids from the organization resource down to this one, joined by ``/``: the fact
            ``path(resource)`` in one column, rewritten with the subtree when it moves.
    """

    __tablename__ = "resources"

    organization_id: Mapped[Key] = mapped_column(
        ForeignKey("organizations.id", ondelete="CASCADE"), primary_key=True
    )
    id: Mapped[Key] = mapped_column(primary_key=True, unique=True)
    resource_type_slug: Mapped[Key] = mapped_column(ForeignKey("resource_types.slug"), index=True)
    external_id: Mapped[Key]
    name: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text)
    parent_id: Mapped[Key | None]
    depth: Mapped[int]
    path: Mapped[Key]

    __table_args__ = (
        ForeignKeyConstraint(
            ["organization_id", "parent_id"], ["resources.organization_id", "resources.id"]
        ),
        # The organization is last: were it first, PostgreSQL might check foreign keys through this
        # index while the table has no statistics, and read the whole organization each time.
        Index(None, "external_id", "resource_type_slug", "organization_id", unique=True),
        Index(None, "parent_id", "resource_type_slug", "id"),
    )


class ResourceAncestor(Base):
    """One row for each resource and each of its ancestors, itself included.

    The primary key holds the resources below an ancestor by type in id order: a page of any subtree
    is one short scan, however large the subtree is.
    """

    __tablename__ = "resource_ancestors"

    organization_id: Mapped[Key]
    ancestor_id: Mapped[Key]
    resource_type_slug: Mapped[Key]
    resource_id: Mapped[Key]

    __table_args__ = (
        PrimaryKeyConstraint("ancestor_id", "resource_type_slug", "resource_id", "organization_id"),
        ForeignKeyConstraint(
            ["organization_id", "resource_id"],
            ["resources.organization_id", "resources.id"],
            ondelete="CASCADE",
        ),
        ForeignKeyConstraint(
            ["organization_id", "ancestor_id"],
            ["resources.organization_id", "resources.id"],
            ondelete="CASCADE",
            name="fk_resource_ancestors_ancestor",
        ),
        Index(None, "resource_id", "ancestor_id"),
    )


class ResourceCount(Base):
    """How many resources of one type an organization has, for the limit on them.

    Counting rows would make each creation as slow as the type is large; the realm's lock makes this
    number exact. The organization resource is not counted: there is always one.
    """

    __tablename__ = "resource_counts"

    organization_id: Mapped[Key] = mapped_column(
        ForeignKey("organizations.id", ondelete="CASCADE"), primary_key=True
    )
    resource_type_slug: Mapped[Key] = mapped_column(primary_key=True)
    count: Mapped[int]
