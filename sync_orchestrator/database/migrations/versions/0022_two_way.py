"""Records that people change on both sides: links, calls that carry shared fields, natural keys, conflicts."""

from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        -- A record of ours and the one of theirs that it is. 'entity' is the one that has two_way.
        CREATE TABLE sync.links (
            entity     text NOT NULL,
            key        text NOT NULL,
            theirs_key text NOT NULL,
            made_by    text NOT NULL,                     -- key, id, the name of a natural key, or person
            made_at    timestamptz NOT NULL DEFAULT sync.clock(),
            ended      text,                              -- why neither side follows the other any more
            fields     jsonb NOT NULL DEFAULT '{}',       -- by shared field: {agreed, decision: {ours, theirs, value}}
            PRIMARY KEY (entity, key),
            UNIQUE (entity, theirs_key)
        );

        -- Pushes of linked records whose shared fields a later read may not show yet, or that may still land.
        CREATE TABLE sync.shared_calls (
            entity          text NOT NULL,
            key             text NOT NULL,
            token           bigint NOT NULL,
            carried         jsonb NOT NULL,
            before          jsonb NOT NULL,
            own             jsonb NOT NULL,
            acknowledged    bigint,                       -- the read sequence at that time
            acknowledged_at timestamptz,
            merged          boolean NOT NULL DEFAULT false,
            PRIMARY KEY (entity, key, token)
        );

        CREATE TABLE sync.match_values (
            entity text NOT NULL,
            field  text NOT NULL,
            value  text NOT NULL,
            key    text NOT NULL,
            PRIMARY KEY (entity, key, field)
        );
        CREATE INDEX match_values_value ON sync.match_values (entity, field, value);

        -- Records that are not linked and may not be made on the other side yet, and why.
        CREATE TABLE sync.link_waits (
            entity  text NOT NULL,
            key     text NOT NULL,
            reason  text NOT NULL CHECK (reason IN ('ambiguous', 'not_complete', 'create_under_way', 'not_made_there',
                                                     'unusable')),
            detail  text,
            since   timestamptz NOT NULL DEFAULT sync.clock(),
            look_at timestamptz,                          -- null: only a change of the record, or a person, ends it
            PRIMARY KEY (entity, key)
        );
        CREATE INDEX link_waits_due ON sync.link_waits (entity, look_at) WHERE look_at IS NOT NULL;

        -- Fields that both sides have changed, and changes that a policy has overruled. No value is lost unseen.
        CREATE TABLE sync.conflicts (
            id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            entity     text NOT NULL,
            group_key  text,
            key        text NOT NULL,
            theirs_key text NOT NULL,
            field      text,                              -- null: one side has deleted the record
            agreed     jsonb,
            ours       jsonb,
            theirs     jsonb,
            ours_at    timestamptz,
            theirs_at  timestamptz,
            policy     text NOT NULL,
            winner     text CHECK (winner IN ('ours', 'theirs', 'value')),
            state      text NOT NULL CHECK (state IN ('open', 'decided', 'resolved', 'overtaken', 'over')),
            resolved_by text,
            reason     text,
            at         timestamptz NOT NULL DEFAULT sync.clock(),
            ended_at   timestamptz
        );
        CREATE INDEX conflicts_of_record ON sync.conflicts (entity, key);
        CREATE UNIQUE INDEX conflicts_open ON sync.conflicts (entity, key, coalesce(field, '')) WHERE state = 'open';
        CREATE INDEX conflicts_at ON sync.conflicts (at);
    """)
