"""A record remembers where calls of unknown outcome were sent, and what creates made that came too late."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        ALTER TABLE sync.records
            -- Business groups under which calls were announced since the last time when every outcome was known.
            ADD COLUMN unsettled_groups text[] NOT NULL DEFAULT '{}',
            -- [group, id] of what was made under a lease that was another's by then, until it has been taken back.
            ADD COLUMN late_creates jsonb NOT NULL DEFAULT '[]';
    """)
