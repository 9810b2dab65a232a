"""How far sources that are asked for their changes have been asked."""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE sync.polls (
            entity   text NOT NULL,
            part     text NOT NULL,
            newest   bigint NOT NULL,                              -- the newest version that was seen
            asked_at timestamptz NOT NULL DEFAULT sync.clock(),    -- when it last answered
            PRIMARY KEY (entity, part)
        )
    """)
