"""Columns, values and kinds of alerts under the names that the glossary gives them."""

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        ALTER SEQUENCE sync.ticket RENAME TO read_sequence;
        ALTER TABLE sync.events RENAME COLUMN ticket TO read_sequence;
        ALTER TABLE sync.parts RENAME COLUMN ticket TO read_sequence;

        ALTER TABLE sync.records RENAME COLUMN out_of_step TO out_of_sync;
        ALTER TABLE sync.records RENAME COLUMN lane TO priority;
        ALTER TABLE sync.records RENAME COLUMN parked TO stopped;
        ALTER TABLE sync.records RENAME COLUMN parked_at TO stopped_at;
        ALTER TABLE sync.records RENAME COLUMN unsettled_until TO outcome_unknown_until;
        ALTER TABLE sync.records RENAME COLUMN unsettled_groups TO outcome_unknown_groups;
        ALTER TABLE sync.records DROP CONSTRAINT records_parked_check;
        UPDATE sync.records SET stopped = 'on_hold' WHERE stopped = 'held';
        ALTER TABLE sync.records
            ADD CONSTRAINT records_stopped_check CHECK (stopped IN ('dead', 'on_hold', 'discarded'));
        ALTER INDEX sync.records_parked RENAME TO records_stopped;

        ALTER TABLE sync.groups RENAME COLUMN audited_at TO compared_at;

        ALTER TABLE sync.validations DROP CONSTRAINT validations_verdict_check;
        UPDATE sync.validations SET verdict = 'in_sync' WHERE verdict = 'in_step';
        ALTER TABLE sync.validations
            ADD CONSTRAINT validations_verdict_check CHECK (verdict IN ('in_sync', 'drift', 'not_validated'));

        ALTER TABLE sync.drift DROP CONSTRAINT drift_kind_check, DROP CONSTRAINT drift_status_check;
        UPDATE sync.drift SET kind = CASE kind WHEN 'twin' THEN 'duplicate' ELSE 'unmanaged' END
        WHERE kind IN ('twin', 'foreign');
        UPDATE sync.drift SET status = 'persistent' WHERE status = 'stubborn';
        ALTER TABLE sync.drift
            ADD CONSTRAINT drift_kind_check
                CHECK (kind IN ('missing', 'stale', 'different', 'extra', 'duplicate', 'unmanaged')),
            ADD CONSTRAINT drift_status_check
                CHECK (status IN ('found', 'repairing', 'repaired', 'persistent', 'left'));

        UPDATE sync.alerts SET kind = CASE kind
            WHEN 'held' THEN 'on_hold'
            WHEN 'not_told' THEN 'outcome_undeliverable'
            WHEN 'not_asked' THEN 'poll_failing'
            WHEN 'not_consumed' THEN 'consumer_down'
            WHEN 'ahead' THEN 'version_in_future'
            WHEN 'silent' THEN 'sensor_stalled'
            WHEN 'waiting_long' THEN 'stuck_waiting'
            WHEN 'unusable' THEN 'invalid_source_records'
            WHEN 'group_name' THEN 'invalid_partition_name'
            ELSE kind END;
    """)
