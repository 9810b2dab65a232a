"""The migrations of the schema ``sync``, run by Alembic. ``versions`` has one file for each, numbered in order."""
