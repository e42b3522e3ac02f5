"""Users: identities that exist independently of organizations."""

from sqlalchemy import Text
from sqlalchemy.orm import Mapped, mapped_column

from authz_service.storage.tables.base import Base, Json, Key, Stamped


class User(Stamped, Base):
    """Attributes:
    canonical_email: What uniqueness and look-ups use (product.md US1).
    """

    __tablename__ = "users"

    id: Mapped[Key] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(Text)
    canonical_email: Mapped[Key] = mapped_column(unique=True)
    email_verified: Mapped[bool]
    email_verification_source: Mapped[str] = mapped_column(Text)
    first_name: Mapped[str] = mapped_column(Text)
    last_name: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    profile_picture_url: Mapped[str] = mapped_column(Text)
    phone_number: Mapped[str] = mapped_column(Text)
    locale: Mapped[str] = mapped_column(Text)
    external_id: Mapped[Key | None] = mapped_column(unique=True)
    metadata_json: Mapped[Json]
