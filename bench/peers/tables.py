"""Two tables in one Postgres compared by ``reladiff`` or ``datacompy``: ``python tables.py NAME HOST DATABASE USER``.

The tables are ``ours`` and ``theirs``, with the columns code, name, price, store. Prints seconds, megabytes and the
number of differences as JSON.
"""

import json
import resource
import sys
import time

NAME, HOST, DATABASE, USER = sys.argv[1:]


def by_reladiff() -> int:
    """By checksums of segments, as its documents show it, with threads for each side."""
    from reladiff import connect_to_table, diff_tables

    place = {"driver": "postgresql", "host": HOST, "dbname": DATABASE, "user": USER}
    one, other = (connect_to_table(place, table, "code", thread_count=2) for table in ("ours", "theirs"))
    return sum(1 for _ in diff_tables(one, other, extra_columns=("name", "price", "store")))


def by_datacompy() -> int:
    """Both tables in memory, as pandas frames."""
    import datacompy
    import pandas
    from sqlalchemy import create_engine

    engine = create_engine("postgresql+psycopg://", connect_args={"host": HOST, "dbname": DATABASE, "user": USER})
    compared = datacompy.PandasCompare(pandas.read_sql_table("ours", engine), pandas.read_sql_table("theirs", engine),
                                       join_columns="code")
    return len(compared.all_mismatch()) + len(compared.df1_unq_rows) + len(compared.df2_unq_rows)


began = time.monotonic()
differences = {"reladiff": by_reladiff, "datacompy": by_datacompy}[NAME]()
print(json.dumps({"seconds": time.monotonic() - began, "differences": differences,
                  "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
