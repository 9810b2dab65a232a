"""What keeps work flat while tables grow: an index of what is due in a business group, and vacuums in small portions.

That a group is there stands in the index's condition so that no claim of all groups takes this index, and sorts. A share
of a table of millions would be vacuumed so seldom that claims wade through what is long done: so a number of rows counts.
"""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

_VACUUMED_AFTER = {"records": 20_000, "parts": 50_000, "events": 10_000, "full_sync_keys": 50_000, "outcomes": 10_000}


def upgrade() -> None:
    op.execute("""
        CREATE INDEX records_due_of_group ON sync.records (entity, group_key, lane, due_at)
        WHERE out_of_step AND parked IS NULL AND group_key IS NOT NULL
    """)
    for table, rows in _VACUUMED_AFTER.items():
        op.execute(f"""
            ALTER TABLE sync.{table} SET (
                autovacuum_vacuum_scale_factor = 0.005, autovacuum_vacuum_threshold = {rows},
                autovacuum_vacuum_cost_delay = 0,
                autovacuum_analyze_scale_factor = 0.02, autovacuum_analyze_threshold = {rows})
        """)
