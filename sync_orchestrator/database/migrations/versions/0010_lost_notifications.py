"""What the sources have and the archive does not, found by asking them: notifications that never came."""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        ALTER TABLE sync.groups
            ADD COLUMN sources_checked_at timestamptz;       -- null: to be checked as soon as may be

        -- Those that are open: the archive has not caught up with them as far as is known.
        CREATE TABLE sync.lost_notifications (
            entity    text NOT NULL,
            part      text NOT NULL,
            key       text NOT NULL,
            kind      text NOT NULL CHECK (kind IN ('missing', 'newer', 'gone')),
            version   bigint NOT NULL,
            group_key text NOT NULL,
            found_at  timestamptz NOT NULL DEFAULT sync.clock(),
            PRIMARY KEY (entity, part, key, kind, version)
        );
        CREATE INDEX lost_notifications_group ON sync.lost_notifications (entity, group_key);

        -- How many there were, by source and day.
        CREATE TABLE sync.lost_tallies (
            entity text NOT NULL,
            source text NOT NULL,
            day    date NOT NULL,
            n      bigint NOT NULL,
            PRIMARY KEY (entity, source, day)
        );
    """)
