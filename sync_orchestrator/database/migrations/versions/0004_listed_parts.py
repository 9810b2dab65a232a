"""A full sync remembers what every source listed, not the owner alone."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        -- When a part last changed here: one that changed during a listing is not missed in it.
        ALTER TABLE sync.parts ADD COLUMN changed_at timestamptz NOT NULL DEFAULT sync.clock();

        -- The keys that each source listed in a full sync under way. One that is under way now begins anew.
        DELETE FROM sync.full_sync_keys;
        UPDATE sync.groups SET sync_phase = NULL, sync_cursor = NULL;
        ALTER TABLE sync.full_sync_keys ADD COLUMN part text NOT NULL;
        ALTER TABLE sync.full_sync_keys DROP CONSTRAINT full_sync_keys_pkey;
        ALTER TABLE sync.full_sync_keys ADD PRIMARY KEY (sync_id, part, key);
    """)
