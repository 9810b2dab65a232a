"""What an adoption after a restore needs: the listing of the third party, and how far the adoption is."""

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("""
        ALTER TABLE sync.groups ADD COLUMN adoption_listed_at timestamptz;  -- its listing is in sync.adoption_listing
        ALTER TABLE sync.entities ADD COLUMN adopted_at timestamptz;

        -- What the third party listed in an adoption that is under way. Not an unlogged table: after a crash it would
        -- be empty, and each record would seem to be missing.
        CREATE TABLE sync.adoption_listing (
            entity      text NOT NULL,
            group_key   text NOT NULL,
            external_id text NOT NULL,
            key         text,
            digest      bytea NOT NULL,                  -- of the mapped fields, as the third party shows them
            PRIMARY KEY (entity, group_key, external_id)
        );
        CREATE INDEX adoption_listing_key ON sync.adoption_listing (entity, key);
    """)
