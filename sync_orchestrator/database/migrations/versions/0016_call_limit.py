"""The present limit of calls at once per third party, and who holds the lease of a business group."""

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        ALTER TABLE sync.systems
            ADD COLUMN calls_at_once   double precision,  -- the present limit in each process; null: not learned yet
            ADD COLUMN calls_max       integer,           -- the configured number
            ADD COLUMN batch_share     double precision NOT NULL DEFAULT 1 CHECK (batch_share > 0 AND batch_share <= 1),
            ADD COLUMN calls_lost_at   timestamptz,       -- when the limit was lowered last
            ADD COLUMN calls_grown_at  timestamptz,
            ADD COLUMN calls_reason    text;              -- why it was lowered
        ALTER TABLE sync.groups
            ADD COLUMN lease_holder text,
            ADD COLUMN lease_taken_at timestamptz;
    """)
