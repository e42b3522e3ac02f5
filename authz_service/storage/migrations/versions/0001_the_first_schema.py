"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "event_queue",
        sa.Column(
            "realm", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("realm", "sequence", name=op.f("pk_event_queue")),
    )
    op.create_table(
        "events",
        sa.Column(
            "realm", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column(
            "id", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("is_primary", sa.Boolean(), nullable=False),
        sa.Column("cause_event_id", sa.Text(), nullable=False),
        sa.Column("actor_kind", sa.Text(), nullable=False),
        sa.Column("actor_id", sa.Text(), nullable=False),
        sa.Column("on_behalf_of_user_id", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("target_type", sa.Text(), nullable=False),
        sa.Column(
            "target_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("previous", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("previous_hash", sa.LargeBinary(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("realm", "sequence", name=op.f("pk_events")),
        sa.UniqueConstraint("id", name=op.f("uq_events_id")),
    )
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_events_realm_created_at"), ["realm", "created_at"], unique=False
        )

    op.create_table(
        "kept_replies",
        sa.Column(
            "caller", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column(
            "key", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column("request_digest", sa.LargeBinary(), nullable=False),
        sa.Column("reply", sa.LargeBinary(), nullable=False),
        sa.Column("realms", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("caller", "key", name=op.f("pk_kept_replies")),
    )
    with op.batch_alter_table("kept_replies", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_kept_replies_created_at"), ["created_at"], unique=False
        )

    op.create_table(
        "realms",
        sa.Column(
            "id", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("last_hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_realms")),
    )
    op.create_table(
        "resource_types",
        sa.Column(
            "slug", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column(
            "id", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("is_built_in", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("slug", name=op.f("pk_resource_types")),
        sa.UniqueConstraint("id", name=op.f("uq_resource_types_id")),
    )
    op.create_table(
        "schema_info",
        sa.Column("one", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("compat", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("one", name=op.f("pk_schema_info")),
    )
    op.create_table(
        "service_credentials",
        sa.Column(
            "id", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("organization_ids", sa.JSON(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("is_revoked", sa.Boolean(), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("obfuscated_secret", sa.Text(), nullable=False),
        sa.Column("old_secret_hash", sa.LargeBinary(), nullable=True),
        sa.Column("old_secret_until", sa.BigInteger(), nullable=True),
        sa.Column("last_used_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_service_credentials")),
    )
    op.create_table(
        "users",
        sa.Column(
            "id", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column(
            "canonical_email",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column("email_verified", sa.Boolean(), nullable=False),
        sa.Column("email_verification_source", sa.Text(), nullable=False),
        sa.Column("first_name", sa.Text(), nullable=False),
        sa.Column("last_name", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("profile_picture_url", sa.Text(), nullable=False),
        sa.Column("phone_number", sa.Text(), nullable=False),
        sa.Column("locale", sa.Text(), nullable=False),
        sa.Column(
            "external_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=True,
        ),
        sa.Column("metadata_json", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("canonical_email", name=op.f("uq_users_canonical_email")),
        sa.UniqueConstraint("external_id", name=op.f("uq_users_external_id")),
    )
    op.create_table(
        "event_positions",
        sa.Column("position", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column(
            "realm", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["realm", "sequence"],
            ["events.realm", "events.sequence"],
            name=op.f("fk_event_positions_realm_sequence"),
        ),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_event_positions")),
    )
    with op.batch_alter_table("event_positions", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_event_positions_realm_position"), ["realm", "position"], unique=False
        )
        batch_op.create_index(
            batch_op.f("ix_event_positions_realm_sequence"), ["realm", "sequence"], unique=True
        )

    op.create_table(
        "organizations",
        sa.Column(
            "id", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "external_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=True,
        ),
        sa.Column("metadata_json", sa.JSON(), nullable=False),
        sa.Column(
            "everyone_group_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "root_resource_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["id"], ["realms.id"], name=op.f("fk_organizations_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_organizations")),
        sa.UniqueConstraint("external_id", name=op.f("uq_organizations_external_id")),
    )
    op.create_table(
        "permissions",
        sa.Column(
            "slug", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column(
            "id", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column(
            "resource_type_slug",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column("assignable_to_api_keys", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["resource_type_slug"],
            ["resource_types.slug"],
            name=op.f("fk_permissions_resource_type_slug"),
        ),
        sa.PrimaryKeyConstraint("slug", name=op.f("pk_permissions")),
        sa.UniqueConstraint("id", name=op.f("uq_permissions_id")),
    )
    with op.batch_alter_table("permissions", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_permissions_resource_type_slug"), ["resource_type_slug"], unique=False
        )

    op.create_table(
        "resource_type_parents",
        sa.Column(
            "slug", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column(
            "parent_slug",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["parent_slug"],
            ["resource_types.slug"],
            name=op.f("fk_resource_type_parents_parent_slug"),
        ),
        sa.ForeignKeyConstraint(
            ["slug"],
            ["resource_types.slug"],
            name=op.f("fk_resource_type_parents_slug"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("slug", "parent_slug", name=op.f("pk_resource_type_parents")),
    )
    with op.batch_alter_table("resource_type_parents", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_resource_type_parents_parent_slug"), ["parent_slug"], unique=False
        )

    op.create_table(
        "roles",
        sa.Column(
            "id", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column(
            "realm", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column(
            "slug", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column(
            "resource_type_slug",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["realm"], ["realms.id"], name=op.f("fk_roles_realm")),
        sa.ForeignKeyConstraint(
            ["resource_type_slug"],
            ["resource_types.slug"],
            name=op.f("fk_roles_resource_type_slug"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_roles")),
    )
    with op.batch_alter_table("roles", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_roles_realm_slug"), ["realm", "slug"], unique=True)
        batch_op.create_index(
            batch_op.f("ix_roles_resource_type_slug"), ["resource_type_slug"], unique=False
        )

    op.create_table(
        "configuration",
        sa.Column("one", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("multiple_roles_enabled", sa.Boolean(), nullable=False),
        sa.Column(
            "default_role_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "owner_role_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=True,
        ),
        sa.Column("last_owner_guard_enabled", sa.Boolean(), nullable=False),
        sa.Column("resource_depth_max", sa.Integer(), nullable=False),
        sa.Column("role_priority", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["default_role_id"], ["roles.id"], name=op.f("fk_configuration_default_role_id")
        ),
        sa.ForeignKeyConstraint(
            ["owner_role_id"], ["roles.id"], name=op.f("fk_configuration_owner_role_id")
        ),
        sa.PrimaryKeyConstraint("one", name=op.f("pk_configuration")),
    )
    op.create_table(
        "groups",
        sa.Column(
            "organization_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "id", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organizations.id"],
            name=op.f("fk_groups_organization_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("organization_id", "id", name=op.f("pk_groups")),
        sa.UniqueConstraint("id", name=op.f("uq_groups_id")),
    )
    op.create_table(
        "memberships",
        sa.Column(
            "organization_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "id", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column(
            "user_id", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organizations.id"],
            name=op.f("fk_memberships_organization_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_memberships_user_id")),
        sa.PrimaryKeyConstraint("organization_id", "id", name=op.f("pk_memberships")),
        sa.UniqueConstraint("id", name=op.f("uq_memberships_id")),
    )
    with op.batch_alter_table("memberships", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_memberships_organization_id_status_id"),
            ["organization_id", "status", "id"],
            unique=False,
        )
        batch_op.create_index(
            batch_op.f("ix_memberships_organization_id_user_id"),
            ["organization_id", "user_id"],
            unique=False,
        )
        batch_op.create_index(
            batch_op.f("ix_memberships_user_id_organization_id"),
            ["user_id", "organization_id"],
            unique=True,
        )

    op.create_table(
        "organization_configurations",
        sa.Column(
            "organization_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "default_role_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=True,
        ),
        sa.Column("role_priority", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["default_role_id"],
            ["roles.id"],
            name=op.f("fk_organization_configurations_default_role_id"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organizations.id"],
            name=op.f("fk_organization_configurations_organization_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("organization_id", name=op.f("pk_organization_configurations")),
    )
    with op.batch_alter_table("organization_configurations", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_organization_configurations_default_role_id"),
            ["default_role_id"],
            unique=False,
        )

    op.create_table(
        "resource_counts",
        sa.Column(
            "organization_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "resource_type_slug",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organizations.id"],
            name=op.f("fk_resource_counts_organization_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "organization_id", "resource_type_slug", name=op.f("pk_resource_counts")
        ),
    )
    op.create_table(
        "resources",
        sa.Column(
            "organization_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "id", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column(
            "resource_type_slug",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "external_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column(
            "parent_id", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=True
        ),
        sa.Column("depth", sa.Integer(), nullable=False),
        sa.Column(
            "path", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id", "parent_id"],
            ["resources.organization_id", "resources.id"],
            name=op.f("fk_resources_organization_id_parent_id"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organizations.id"],
            name=op.f("fk_resources_organization_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["resource_type_slug"],
            ["resource_types.slug"],
            name=op.f("fk_resources_resource_type_slug"),
        ),
        sa.PrimaryKeyConstraint("organization_id", "id", name=op.f("pk_resources")),
        sa.UniqueConstraint("id", name=op.f("uq_resources_id")),
    )
    with op.batch_alter_table("resources", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_resources_external_id_resource_type_slug_organization_id"),
            ["external_id", "resource_type_slug", "organization_id"],
            unique=True,
        )
        batch_op.create_index(
            batch_op.f("ix_resources_parent_id_resource_type_slug_id"),
            ["parent_id", "resource_type_slug", "id"],
            unique=False,
        )
        batch_op.create_index(
            batch_op.f("ix_resources_resource_type_slug"), ["resource_type_slug"], unique=False
        )

    op.create_table(
        "role_permissions",
        sa.Column(
            "role_id", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column(
            "permission_slug",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["permission_slug"],
            ["permissions.slug"],
            name=op.f("fk_role_permissions_permission_slug"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["role_id"], ["roles.id"], name=op.f("fk_role_permissions_role_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("role_id", "permission_slug", name=op.f("pk_role_permissions")),
    )
    with op.batch_alter_table("role_permissions", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_role_permissions_permission_slug_role_id"),
            ["permission_slug", "role_id"],
            unique=False,
        )

    op.create_table(
        "group_members",
        sa.Column(
            "organization_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "group_id", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column(
            "membership_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "group_id"],
            ["groups.organization_id", "groups.id"],
            name=op.f("fk_group_members_organization_id_group_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "membership_id"],
            ["memberships.organization_id", "memberships.id"],
            name=op.f("fk_group_members_organization_id_membership_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "group_id", "membership_id", "organization_id", name=op.f("pk_group_members")
        ),
    )
    with op.batch_alter_table("group_members", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_group_members_membership_id_group_id"),
            ["membership_id", "group_id"],
            unique=False,
        )

    op.create_table(
        "group_nestings",
        sa.Column(
            "organization_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "group_id", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column(
            "member_group_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "group_id"],
            ["groups.organization_id", "groups.id"],
            name=op.f("fk_group_nestings_organization_id_group_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "member_group_id"],
            ["groups.organization_id", "groups.id"],
            name="fk_group_nestings_member_group",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "group_id", "member_group_id", "organization_id", name=op.f("pk_group_nestings")
        ),
    )
    with op.batch_alter_table("group_nestings", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_group_nestings_member_group_id_group_id"),
            ["member_group_id", "group_id"],
            unique=False,
        )

    op.create_table(
        "membership_roles",
        sa.Column(
            "organization_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "membership_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "role_id", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column("source", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["organization_id", "membership_id"],
            ["memberships.organization_id", "memberships.id"],
            name=op.f("fk_membership_roles_organization_id_membership_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["role_id"], ["roles.id"], name=op.f("fk_membership_roles_role_id")
        ),
        sa.PrimaryKeyConstraint(
            "membership_id",
            "role_id",
            "source",
            "organization_id",
            name=op.f("pk_membership_roles"),
        ),
    )
    with op.batch_alter_table("membership_roles", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_membership_roles_organization_id_role_id_membership_id"),
            ["organization_id", "role_id", "membership_id"],
            unique=False,
        )
        batch_op.create_index(batch_op.f("ix_membership_roles_role_id"), ["role_id"], unique=False)

    op.create_table(
        "resource_ancestors",
        sa.Column(
            "organization_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "ancestor_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "resource_type_slug",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "resource_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "ancestor_id"],
            ["resources.organization_id", "resources.id"],
            name="fk_resource_ancestors_ancestor",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "resource_id"],
            ["resources.organization_id", "resources.id"],
            name=op.f("fk_resource_ancestors_organization_id_resource_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "ancestor_id",
            "resource_type_slug",
            "resource_id",
            "organization_id",
            name=op.f("pk_resource_ancestors"),
        ),
    )
    with op.batch_alter_table("resource_ancestors", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_resource_ancestors_resource_id_ancestor_id"),
            ["resource_id", "ancestor_id"],
            unique=False,
        )

    op.create_table(
        "role_assignments",
        sa.Column(
            "organization_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column(
            "id", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column(
            "membership_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=True,
        ),
        sa.Column(
            "group_id", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=True
        ),
        sa.Column(
            "subject_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            sa.Computed("coalesce(membership_id, group_id)", persisted=True),
            nullable=False,
        ),
        sa.Column(
            "role_id", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column(
            "resource_id",
            sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
            nullable=False,
        ),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("is_end_recorded", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "(membership_id IS NULL) <> (group_id IS NULL)",
            name=op.f("ck_role_assignments_one_subject"),
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "group_id"],
            ["groups.organization_id", "groups.id"],
            name=op.f("fk_role_assignments_organization_id_group_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "membership_id"],
            ["memberships.organization_id", "memberships.id"],
            name=op.f("fk_role_assignments_organization_id_membership_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["organization_id", "resource_id"],
            ["resources.organization_id", "resources.id"],
            name=op.f("fk_role_assignments_organization_id_resource_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["role_id"], ["roles.id"], name=op.f("fk_role_assignments_role_id")
        ),
        sa.PrimaryKeyConstraint("organization_id", "id", name=op.f("pk_role_assignments")),
        sa.UniqueConstraint("id", name=op.f("uq_role_assignments_id")),
    )
    with op.batch_alter_table("role_assignments", schema=None) as batch_op:
        batch_op.create_index(
            "ix_role_assignments_ended",
            ["expires_at"],
            unique=False,
            postgresql_where=sa.text("is_end_recorded"),
            sqlite_where=sa.text("is_end_recorded"),
        )
        batch_op.create_index(
            "ix_role_assignments_ends",
            ["expires_at"],
            unique=False,
            postgresql_where=sa.text("NOT is_end_recorded AND expires_at IS NOT NULL"),
            sqlite_where=sa.text("NOT is_end_recorded AND expires_at IS NOT NULL"),
        )
        batch_op.create_index(
            "ix_role_assignments_group_id",
            ["group_id"],
            unique=False,
            postgresql_where=sa.text("group_id IS NOT NULL"),
            sqlite_where=sa.text("group_id IS NOT NULL"),
        )
        batch_op.create_index(
            "ix_role_assignments_holders", ["resource_id", "role_id", "subject_id"], unique=False
        )
        batch_op.create_index(
            "ix_role_assignments_membership_id",
            ["membership_id"],
            unique=False,
            postgresql_where=sa.text("membership_id IS NOT NULL"),
            sqlite_where=sa.text("membership_id IS NOT NULL"),
        )
        batch_op.create_index("ix_role_assignments_role", ["role_id"], unique=False)
        batch_op.create_index(
            "uq_role_assignments_subject",
            ["subject_id", "resource_id", "role_id"],
            unique=True,
            postgresql_include=["expires_at"],
        )
    op.execute("INSERT INTO schema_info (one, compat) VALUES (1, 1)")


def downgrade() -> None:
    with op.batch_alter_table("role_assignments", schema=None) as batch_op:
        batch_op.drop_index("uq_role_assignments_subject", postgresql_include=["expires_at"])
        batch_op.drop_index("ix_role_assignments_role")
        batch_op.drop_index(
            "ix_role_assignments_membership_id",
            postgresql_where=sa.text("membership_id IS NOT NULL"),
            sqlite_where=sa.text("membership_id IS NOT NULL"),
        )
        batch_op.drop_index("ix_role_assignments_holders")
        batch_op.drop_index(
            "ix_role_assignments_group_id",
            postgresql_where=sa.text("group_id IS NOT NULL"),
            sqlite_where=sa.text("group_id IS NOT NULL"),
        )
        batch_op.drop_index(
            "ix_role_assignments_ends",
            postgresql_where=sa.text("NOT is_end_recorded AND expires_at IS NOT NULL"),
            sqlite_where=sa.text("NOT is_end_recorded AND expires_at IS NOT NULL"),
        )
        batch_op.drop_index(
            "ix_role_assignments_ended",
            postgresql_where=sa.text("is_end_recorded"),
            sqlite_where=sa.text("is_end_recorded"),
        )

    op.drop_table("role_assignments")
    with op.batch_alter_table("resource_ancestors", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_resource_ancestors_resource_id_ancestor_id"))

    op.drop_table("resource_ancestors")
    with op.batch_alter_table("membership_roles", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_membership_roles_role_id"))
        batch_op.drop_index(batch_op.f("ix_membership_roles_organization_id_role_id_membership_id"))

    op.drop_table("membership_roles")
    with op.batch_alter_table("group_nestings", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_group_nestings_member_group_id_group_id"))

    op.drop_table("group_nestings")
    with op.batch_alter_table("group_members", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_group_members_membership_id_group_id"))

    op.drop_table("group_members")
    with op.batch_alter_table("role_permissions", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_role_permissions_permission_slug_role_id"))

    op.drop_table("role_permissions")
    with op.batch_alter_table("resources", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_resources_resource_type_slug"))
        batch_op.drop_index(batch_op.f("ix_resources_parent_id_resource_type_slug_id"))
        batch_op.drop_index(
            batch_op.f("ix_resources_external_id_resource_type_slug_organization_id")
        )

    op.drop_table("resources")
    op.drop_table("resource_counts")
    with op.batch_alter_table("organization_configurations", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_organization_configurations_default_role_id"))

    op.drop_table("organization_configurations")
    with op.batch_alter_table("memberships", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_memberships_user_id_organization_id"))
        batch_op.drop_index(batch_op.f("ix_memberships_organization_id_user_id"))
        batch_op.drop_index(batch_op.f("ix_memberships_organization_id_status_id"))

    op.drop_table("memberships")
    op.drop_table("groups")
    op.drop_table("configuration")
    with op.batch_alter_table("roles", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_roles_resource_type_slug"))
        batch_op.drop_index(batch_op.f("ix_roles_realm_slug"))

    op.drop_table("roles")
    with op.batch_alter_table("resource_type_parents", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_resource_type_parents_parent_slug"))

    op.drop_table("resource_type_parents")
    with op.batch_alter_table("permissions", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_permissions_resource_type_slug"))

    op.drop_table("permissions")
    op.drop_table("organizations")
    with op.batch_alter_table("event_positions", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_event_positions_realm_sequence"))
        batch_op.drop_index(batch_op.f("ix_event_positions_realm_position"))

    op.drop_table("event_positions")
    op.drop_table("users")
    op.drop_table("service_credentials")
    op.drop_table("schema_info")
    op.drop_table("resource_types")
    op.drop_table("realms")
    with op.batch_alter_table("kept_replies", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_kept_replies_created_at"))

    op.drop_table("kept_replies")
    with op.batch_alter_table("events", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_events_realm_created_at"))

    op.drop_table("events")
    op.drop_table("event_queue")
