"""Who has been told of an alert, address by address; what is open is told once more to all."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        -- What an alert's receivers know of it. An address may hold a secret, so it is known by its digest.
        CREATE TABLE sync.alert_receivers (
            alert_id   bigint NOT NULL REFERENCES sync.alerts ON DELETE CASCADE,
            receiver   text NOT NULL,
            times      int NOT NULL DEFAULT 0,      -- how often it was told that this is so
            told_at    timestamptz,
            told_as    timestamptz,                 -- the alert's updated_at when it was told
            over_at    timestamptz,                 -- when it was told that it is over
            attempts   int NOT NULL DEFAULT 0,      -- in vain, since it last took a message
            not_before timestamptz,                 -- while somebody sends, or rests after an attempt in vain
            error      text,
            PRIMARY KEY (alert_id, receiver)
        );
        ALTER TABLE sync.alerts
            DROP COLUMN sent_at, DROP COLUMN over_sent_at, DROP COLUMN sending_until, DROP COLUMN send_error
    """)
