"""Alembic's entry: runs the migrations on the connection that ``migrate.py`` hands over."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table_schema="sync",
    transactional_ddl=True,
)
context.run_migrations()
