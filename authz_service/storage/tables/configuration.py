"""The deployment's configuration (one row) and the credentials of its callers."""

from sqlalchemy import BigInteger, ForeignKey, LargeBinary, SmallInteger, Text
from sqlalchemy.orm import Mapped, mapped_column

from authz_service.storage.tables.base import Base, Instant, Json, Key, Stamped


class Configuration(Stamped, Base):
    """Settings of the deployment that callers change over the API (product.md 3.9).

    Attributes:
        owner_role_id: None = no role is the owner role.
        role_priority: Ids of the environment roles of type organization, highest first.
    """

    __tablename__ = "configuration"

    one: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    multiple_roles_enabled: Mapped[bool]
    default_role_id: Mapped[Key] = mapped_column(ForeignKey("roles.id"))
    owner_role_id: Mapped[Key | None] = mapped_column(ForeignKey("roles.id"))
    last_owner_guard_enabled: Mapped[bool]
    resource_depth_max: Mapped[int]
    role_priority: Mapped[Json]


class ServiceCredential(Stamped, Base):
    """What a calling service presents. Only keyed hashes of its secrets are stored.

    Attributes:
        organization_ids: Empty = unrestricted.
        old_secret_hash, old_secret_until: The secret before the last rotation, during the overlap.
    """

    __tablename__ = "service_credentials"

    id: Mapped[Key] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    scopes: Mapped[Json]
    organization_ids: Mapped[Json]
    expires_at: Mapped[Instant | None]
    is_revoked: Mapped[bool]
    secret_hash: Mapped[bytes] = mapped_column(LargeBinary)
    obfuscated_secret: Mapped[str] = mapped_column(Text)
    old_secret_hash: Mapped[bytes | None] = mapped_column(LargeBinary)
    old_secret_until: Mapped[int | None] = mapped_column(BigInteger)
    last_used_at: Mapped[int | None] = mapped_column(BigInteger)
