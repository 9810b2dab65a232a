"""Changes at the source: a database's log is read, and what it says becomes change events.

``stream.py`` is the loop, and the only place that acknowledges; ``port.py`` is what it needs of a database. Of
Postgres, what is read stays as bytes in ``pgoutput.py`` (the decoder, pure), and becomes events in ``changes.py``;
``postgres.py`` speaks with the source, which is only read, and ``postgres_log.py`` makes it a source of the loop.
Of MySQL and MariaDB, ``binlog_reader.py`` takes events in; ``binlog_rows.py`` and ``binlog_statements.py`` say what
they mean, ``gtids.py`` has the positions (all pure), and ``mysql.py`` speaks with the source.
"""
