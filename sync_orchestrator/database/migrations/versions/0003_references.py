"""Since when a record waits for something that it refers to."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE sync.records ADD COLUMN waiting_since timestamptz")
