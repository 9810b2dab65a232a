"""Source systems whose records are in a SQL database. They are only read."""
