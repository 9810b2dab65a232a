"""What Dagster's side is given to work with."""
