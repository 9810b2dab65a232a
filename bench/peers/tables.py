"""Two tables in one Postgres compared by ``reladiff`` or ``datacompy``: ``python tables.py NAME HOST DATABASE USER``.

The tables are ``ours`` and ``theirs``, with the columns code, name, price, store. Prints seconds, megabytes and the
number of differences as JSON.
"""

import json
import sys
import time
from pathlib import Path

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
    compared = datacompy.PandasCompare(
        pandas.read_sql_table("ours", engine), pandas.read_sql_table("theirs", engine), join_columns="code"
    )
    return len(compared.all_mismatch()) + len(compared.df1_unq_rows) + len(compared.df2_unq_rows)


began = time.monotonic()
differences = {"reladiff": by_reladiff, "datacompy": by_datacompy}[NAME]()
seconds = time.monotonic() - began
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "differences": differences, "megabytes": int(peak.split()[1]) / 1024}))
