"""How the database is reached, started and brought to its present shape."""
