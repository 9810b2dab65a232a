"""Source systems whose records are in files: CSV, JSON Lines and Parquet below a folder."""
