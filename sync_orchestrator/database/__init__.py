"""How the database is reached, started and brought to its present shape. Not here: what is asked of it (``core/``)."""
