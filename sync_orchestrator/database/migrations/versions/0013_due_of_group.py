"""A full sync finds what of its group is out of step without reading the group, or all that is due.

That a group is there stands in the condition so that no claim of all groups takes this index, and sorts.
"""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        CREATE INDEX records_due_of_group ON sync.records (entity, group_key, lane, due_at)
        WHERE out_of_step AND parked IS NULL AND group_key IS NOT NULL
    """)
