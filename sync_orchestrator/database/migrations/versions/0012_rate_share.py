"""The share of a third party's rate that is used since it last refused a call for coming too fast."""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        ALTER TABLE sync.systems
            ADD COLUMN rate_share    double precision NOT NULL DEFAULT 1 CHECK (rate_share > 0 AND rate_share <= 1),
            ADD COLUMN rate_share_at timestamptz
    """)
