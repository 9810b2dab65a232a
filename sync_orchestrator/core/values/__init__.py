"""Values of records: mapping, canonical forms, names, digests, and what can be stored. Pure, without a database."""
