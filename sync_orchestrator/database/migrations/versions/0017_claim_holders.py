"""The processes that claim records and events, so that the claims of a process that is gone are free soon."""

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE sync.holders (
            id bigint PRIMARY KEY,                           -- drawn from sync.ticket, and never used again
            at timestamptz NOT NULL DEFAULT sync.clock(),    -- the last heartbeat
            name text NOT NULL                               -- of the process and its machine
        ) WITH (fillfactor = 50);
        ALTER TABLE sync.records ADD COLUMN lease_holder bigint;  -- null: only lease_until ends the claim
        ALTER TABLE sync.events ADD COLUMN lease_holder bigint;
        CREATE INDEX events_being_read ON sync.events (lease_holder) WHERE state = 'leased' AND revision IS NULL;
    """)
