"""How much of the proxy's traffic takes the new path, who changed it and why, and how it fares there."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE TABLE sync.rollouts (
            route      text PRIMARY KEY,
            version    bigint NOT NULL,                            -- one step per change
            percent    double precision NOT NULL CHECK (percent BETWEEN 0 AND 100),
            shadow     boolean NOT NULL,
            allow      text[] NOT NULL,
            deny       text[] NOT NULL,
            halted     boolean NOT NULL,                           -- fell back by itself: the allow list rests, too
            changed_at timestamptz NOT NULL DEFAULT sync.clock()
        );

        CREATE TABLE sync.rollout_changes (
            id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            route    text NOT NULL,
            version  bigint NOT NULL,
            percent  double precision NOT NULL,
            shadow   boolean NOT NULL,
            allow    text[] NOT NULL,
            deny     text[] NOT NULL,
            halted   boolean NOT NULL,
            who      text NOT NULL,
            why      text NOT NULL,
            overrode text,                                         -- what spoke against it
            at       timestamptz NOT NULL DEFAULT sync.clock()
        );
        CREATE INDEX rollout_changes_of ON sync.rollout_changes (route, id);

        -- How the new path fared under one version, in pieces of a few seconds.
        CREATE TABLE sync.rollout_counts (
            route       text NOT NULL,
            version     bigint NOT NULL,
            piece       timestamptz NOT NULL,
            tried       bigint NOT NULL,
            failed      bigint NOT NULL,
            compared    bigint NOT NULL,
            different   bigint NOT NULL,
            PRIMARY KEY (route, version, piece)
        ) WITH (fillfactor = 50);

        -- The same since the beginning, with the calls that went the old way.
        CREATE TABLE sync.rollout_totals (
            route text NOT NULL,
            what  text NOT NULL,
            n     bigint NOT NULL,
            PRIMARY KEY (route, what)
        ) WITH (fillfactor = 50);
    """)
