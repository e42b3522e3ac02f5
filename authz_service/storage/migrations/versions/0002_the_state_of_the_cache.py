"""The state of the cache."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "cache_state",
        sa.Column("one", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("gen", sa.BigInteger(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("redis_run_id", sa.Text(), nullable=False),
        sa.Column("timeline", sa.Text(), nullable=False),
        sa.Column("full_settle", sa.Boolean(), nullable=False),
        sa.Column("lease_ms", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("one", name=op.f("pk_cache_state")),
    )
    op.create_table(
        "node_lease",
        sa.Column(
            "node", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False
        ),
        sa.Column("gen", sa.BigInteger(), nullable=False),
        sa.Column("renewed", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node", name=op.f("pk_node_lease")),
    )
    op.execute(
        "INSERT INTO cache_state"
        " (one, gen, mode, name, redis_run_id, timeline, full_settle, lease_ms)"
        " VALUES (1, 1, 'off', '', '', '', false, 0)"
    )


def downgrade() -> None:
    op.drop_table("node_lease")
    op.drop_table("cache_state")
