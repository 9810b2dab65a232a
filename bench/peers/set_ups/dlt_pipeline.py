"""dlt: a pipeline from a file of JSON lines into a custom destination, which is how its docs do reverse ETL.

``python dlt_pipeline.py``. As its performance page advises: pages instead of rows, files that are rotated so that there
is a load job for each of ``load.workers``. Calls go through dlt's own requests client, with the retries it comes with:
five attempts, on 429, 5xx and broken connections.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dlt
from dlt.sources.helpers import requests
from protocol import BATCH, Case, batches, serve


def destination(case: Case) -> Any:
    @dlt.destination(batch_size=BATCH if case.how == "bulk" else 1, name="third_party")
    def push(items: list[dict[str, Any]], table: dict[str, Any]) -> None:
        if case.how == "bulk":
            requests.post(f"{case.url}/bulk", json={"items": items})
            return
        for item in items:
            if case.how == "create":
                requests.post(f"{case.url}/items", json=item)
            else:
                requests.put(f"{case.url}/items/{item['code']}", json=item)

    return push


@contextmanager
def prepared(case: Case) -> Iterator[Callable[[], None]]:
    source = case.folder / "changes.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in case.records))
    a_file = max(1, BATCH if case.how == "bulk" else -(-len(case.records) // case.connections))
    os.environ.update(
        {
            "LOAD__WORKERS": str(case.connections),
            "DATA_WRITER__FILE_MAX_ITEMS": str(a_file),
            "DATA_WRITER__BUFFER_MAX_ITEMS": str(a_file),
            "RUNTIME__DLTHUB_TELEMETRY": "false",
            "RUNTIME__LOG_LEVEL": "ERROR",
        }
    )

    @dlt.resource(name="changes")
    def changes() -> Iterator[list[dict[str, Any]]]:
        yield from batches([json.loads(line) for line in source.read_text().splitlines()])

    pipeline = dlt.pipeline(
        f"peer_{case.folder.name}", destination=destination(case), pipelines_dir=str(case.folder / "pipelines")
    )
    yield lambda: print(pipeline.run(changes()))


if __name__ == "__main__":
    os.environ["DLT_DATA_DIR"] = str(Path.cwd() / "dlt")
    serve(prepared)
