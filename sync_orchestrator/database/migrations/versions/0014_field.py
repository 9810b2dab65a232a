"""What the rules from the field need: arrival order, inferred tombstones, refusals that pass, suspended systems."""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        -- Events and reads are numbered by one sequence, so that it is known which of them came later.
        ALTER TABLE sync.events ALTER COLUMN seq DROP IDENTITY;
        SELECT setval('sync.ticket', greatest(
            (SELECT last_value FROM sync.ticket), coalesce((SELECT max(seq) FROM sync.events), 0),
            coalesce((SELECT max(seq) FROM sync.event_history), 0)) + 1);
        ALTER TABLE sync.events ALTER COLUMN seq SET DEFAULT nextval('sync.ticket');

        ALTER TABLE sync.events
            ADD COLUMN ticket bigint NOT NULL DEFAULT 0,     -- the read that brought it, where it was polled
            DROP CONSTRAINT events_awaiting_check,
            -- record: its record is not here; clock: its version is in the future; source: its source does not show
            -- what it announces, or cannot be read; deletions: the cap on deletions is reached.
            ADD CONSTRAINT events_awaiting_check CHECK (awaiting IN ('record', 'clock', 'source', 'deletions'));
        CREATE INDEX events_dead ON sync.events (entity) WHERE state = 'dead' AND revision IS NULL;

        ALTER TABLE sync.parts
            ADD COLUMN seq bigint NOT NULL DEFAULT 0,        -- the event that told it; 0 for a read
            ADD COLUMN inferred boolean NOT NULL DEFAULT false;  -- a tombstone that no delete event asked for

        ALTER TABLE sync.records
            ADD COLUMN parked_at timestamptz,
            ADD COLUMN refused_at timestamptz,               -- when its payload was last refused
            ADD COLUMN refusal_retried boolean NOT NULL DEFAULT false,
            DROP CONSTRAINT records_parked_check,
            ADD CONSTRAINT records_parked_check CHECK (parked IN ('dead', 'held', 'discarded'));
        UPDATE sync.records SET parked_at = sync.clock() WHERE parked IS NOT NULL;
        CREATE INDEX records_parked ON sync.records (entity, group_key) WHERE out_of_step AND parked IS NOT NULL;

        ALTER TABLE sync.breaker_failures
            ADD COLUMN times integer NOT NULL DEFAULT 1,     -- failures since the last success
            ADD COLUMN at timestamptz NOT NULL DEFAULT sync.clock();

        ALTER TABLE sync.systems
            ADD COLUMN succeeded_at timestamptz,             -- when it last did what was asked, to within 10 s
            ADD COLUMN not_before_reason text,               -- why calls are held off until not_before
            ADD COLUMN account text,                         -- whose ids the records have
            ADD COLUMN suspended_at timestamptz,             -- no pushes until an operator adopts what is there
            ADD COLUMN suspended_reason text;

        -- How far a check of the sources has compared contents, group by group.
        ALTER TABLE sync.groups ADD COLUMN contents_checked_to text;

        -- Deletions that no delete event asked for; they count towards the caps for a while.
        CREATE TABLE sync.inferred_deletions (
            id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            entity    text NOT NULL,
            group_key text NOT NULL,
            reason    text NOT NULL,                         -- unlisted, flagged, extra, unmanaged
            n         bigint NOT NULL,
            at        timestamptz NOT NULL DEFAULT sync.clock()
        );
        CREATE INDEX inferred_deletions_entity ON sync.inferred_deletions (entity, at);

        ALTER TABLE sync.lost_notifications
            DROP CONSTRAINT lost_notifications_kind_check,
            ADD CONSTRAINT lost_notifications_kind_check
                CHECK (kind IN ('missing', 'newer', 'gone', 'older', 'different'));

        -- Ids given to us under which the third party showed another key, since they were last cleared.
        CREATE TABLE sync.stray_ids (
            system      text NOT NULL,
            entity      text NOT NULL,
            key         text NOT NULL,
            external_id text NOT NULL,
            shown_key   text NOT NULL,
            at          timestamptz NOT NULL DEFAULT sync.clock(),
            PRIMARY KEY (system, entity, key, external_id)
        );

        -- Which server this database was last seen on, to notice that it was restored.
        CREATE TABLE sync.installation (
            only_one          boolean PRIMARY KEY DEFAULT true CHECK (only_one),
            system_identifier text NOT NULL,
            timeline          bigint NOT NULL,
            database_oid      bigint NOT NULL,
            seen_at           timestamptz NOT NULL DEFAULT sync.clock()
        );
    """)
