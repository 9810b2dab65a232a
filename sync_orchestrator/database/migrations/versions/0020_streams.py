"""Streams of captured changes, and business groups that a gap in one leaves unproven."""

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE sync.streams (
            name        text PRIMARY KEY,                      -- of the source system
            identity    text NOT NULL,                         -- of its server and database
            position    text NOT NULL,                         -- all before it is recorded
            partial     text,                                  -- pieces of the transaction there that are recorded
            number      bigint NOT NULL DEFAULT 0,             -- transactions that brought something
            tables      jsonb NOT NULL DEFAULT '{}',           -- that are captured, each with what it is known by there
            entities    text[] NOT NULL DEFAULT '{}',          -- with a part in them
            lease_token bigint,
            lease_until timestamptz,
            at          timestamptz NOT NULL DEFAULT sync.clock(),  -- when the stream was last open
            recorded_at timestamptz,                           -- when a change was last recorded
            events      bigint NOT NULL DEFAULT 0,
            retained    bigint,                                -- bytes that the source keeps for it
            behind      float8,                                -- seconds
            lost        text,                                  -- why changes are missing, until full syncs restore them
            lost_at     timestamptz,
            error       text                                   -- why it is not open
        );
        ALTER TABLE sync.groups
            ADD COLUMN unproven_since timestamptz,             -- null: no change is known to be missing
            ADD COLUMN unproven_reason text;
    """)
