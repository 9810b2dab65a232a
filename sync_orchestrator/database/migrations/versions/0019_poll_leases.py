"""Leases on the polls of sources, so that several workers ask each source once."""

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        ALTER TABLE sync.polls
            ADD COLUMN lease_until timestamptz,                -- null: nobody polls
            ADD COLUMN lease_token bigint NOT NULL DEFAULT 0;  -- of the poller that took the lease last
    """)
