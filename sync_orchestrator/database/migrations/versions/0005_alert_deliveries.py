"""Which addresses have taken an alert that others have not taken yet."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        -- The receiver is a digest: an address can hold a password.
        CREATE TABLE sync.alert_deliveries (
            alert_id bigint NOT NULL REFERENCES sync.alerts ON DELETE CASCADE,
            receiver bytea NOT NULL,
            PRIMARY KEY (alert_id, receiver)
        )
    """)
