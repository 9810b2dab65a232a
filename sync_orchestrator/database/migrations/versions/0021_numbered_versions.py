"""Versions that are the numbers of a stream, and reads that wait until the stream has passed them."""

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        ALTER TABLE sync.streams
            ADD COLUMN numbered   text[] NOT NULL DEFAULT '{}',  -- entities whose versions are its numbers
            ADD COLUMN generation bigint NOT NULL DEFAULT nextval('sync.read_sequence');  -- another where it begins anew
        COMMENT ON COLUMN sync.streams.number IS 'pieces of transactions that brought changes; never goes back';
    """)
