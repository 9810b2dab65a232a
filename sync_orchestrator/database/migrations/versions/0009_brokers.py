"""Messages of brokers that cannot be read, and outcomes on their way to those who want to know."""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        -- Messages of a consumer that were acknowledged to the broker without becoming events.
        CREATE TABLE sync.rejected (
            id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            consumer      text NOT NULL,
            digest        bytea NOT NULL,
            reason        text NOT NULL,
            content_type  text,
            headers       jsonb NOT NULL,
            body          bytea NOT NULL,
            -- The body's true size; a longer one was cut, and can only be looked at.
            size          bigint NOT NULL,
            times         int NOT NULL DEFAULT 1,
            first_seen_at timestamptz NOT NULL DEFAULT sync.clock(),
            last_seen_at  timestamptz NOT NULL DEFAULT sync.clock(),
            ended_at      timestamptz,
            ending        text CHECK (ending IN ('retried', 'discarded')),
            ending_reason text
        );
        -- The same message once, however often the broker delivers it.
        CREATE UNIQUE INDEX rejected_open ON sync.rejected (consumer, digest) WHERE ended_at IS NULL;

        -- What is to be told to a receiver; a row is gone once it has been.
        CREATE TABLE sync.outcomes (
            id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            receiver   text NOT NULL,
            event_id   uuid NOT NULL DEFAULT gen_random_uuid(),
            kind       text NOT NULL,
            entity     text NOT NULL,
            key        text NOT NULL,
            data       jsonb NOT NULL,
            at         timestamptz NOT NULL DEFAULT sync.clock(),
            attempts   int NOT NULL DEFAULT 0,
            not_before timestamptz,
            error      text
        );
        CREATE INDEX outcomes_of ON sync.outcomes (receiver, id);
        CREATE INDEX outcomes_resting ON sync.outcomes (receiver, entity, key, id) WHERE not_before IS NOT NULL;

        -- One sender at a time for a receiver, and how long one that is down is left alone.
        CREATE TABLE sync.outcome_receivers (
            receiver    text PRIMARY KEY,
            lease_until timestamptz,
            lease_token bigint NOT NULL DEFAULT 0,
            attempts    int NOT NULL DEFAULT 0,
            not_before  timestamptz,
            error       text
        );
    """)
