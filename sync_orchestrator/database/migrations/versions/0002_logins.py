"""What logins gave, shared by all processes and machines."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        -- One row for each system that is logged in to. It holds secrets: nothing but the login itself reads it. The
        -- lease lets one process at a time log in, since a refresh token is good for one use.
        CREATE TABLE sync.logins (
            system      text PRIMARY KEY,
            number      bigint NOT NULL DEFAULT 0,           -- tells one login from the next
            mark        bytea,                               -- of the settings it was made with
            token       text,
            refresh     text,
            picked      jsonb NOT NULL DEFAULT '{}',
            renew_at    timestamptz,
            updated_at  timestamptz,
            lease_token bigint,
            lease_until timestamptz
        )
    """)
