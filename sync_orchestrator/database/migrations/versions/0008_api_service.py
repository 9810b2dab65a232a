"""The API service: who may call it, events by their own ids, and counters for its metrics."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE sync.api_keys (
            id         text PRIMARY KEY,                           -- the part of the key that is no secret
            name       text NOT NULL,                              -- whose it is, for people
            secret     bytea NOT NULL,                             -- SHA-256 of the whole key
            scopes     text[] NOT NULL,
            created_at timestamptz NOT NULL DEFAULT sync.clock(),
            expires_at timestamptz,
            revoked_at timestamptz,
            used_at    timestamptz                                 -- to within a minute
        );

        ALTER TABLE sync.events ADD COLUMN trace text;             -- W3C traceparent
        ALTER TABLE sync.event_history ADD COLUMN trace text;

        CREATE INDEX events_id ON sync.events (source, event_id);

        ALTER TABLE sync.tallies
            ADD COLUMN source text NOT NULL DEFAULT '',            -- empty: counted before sources were
            DROP CONSTRAINT tallies_pkey,
            ADD PRIMARY KEY (entity, source, what, slot);

        -- Calls that were to write at the third party, by what became of them.
        CREATE TABLE sync.push_tallies (
            entity  text NOT NULL,
            outcome text NOT NULL,
            slot    integer NOT NULL,
            n       bigint NOT NULL,
            PRIMARY KEY (entity, outcome, slot)
        ) WITH (fillfactor = 50);

        -- How long events took from being received to being acknowledged by the third party: n of them at most
        -- ``most`` seconds and more than the next smaller one.
        CREATE TABLE sync.latencies (
            entity  text NOT NULL,
            most    double precision NOT NULL,
            slot    integer NOT NULL,
            n       bigint NOT NULL,
            seconds double precision NOT NULL,                     -- of all of them together
            PRIMARY KEY (entity, most, slot)
        ) WITH (fillfactor = 50);
    """)
