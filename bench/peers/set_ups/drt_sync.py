"""drt: ``drt run`` of one sync, from a table of SQLite to its REST API destination.

``python drt_sync.py``; HOME must be a folder of its own. Its URL is no template, so a single record goes as a bulk call
of one, and a create as it is. Its pace, 10 requests a second unless said otherwise, is switched off; its retries are
five attempts with a short first wait, since the whole sync waits meanwhile.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from drt.cli.main import app
from protocol import BATCH, Case, serve


def destination(case: Case) -> dict[str, Any]:
    common = {"type": "rest_api", "method": "POST", "headers": {"Content-Type": "application/json"}}
    if case.how == "bulk":
        return {
            **common,
            "url": f"{case.url}/bulk",
            "body_mode": "batch",
            "max_records_per_request": BATCH,
            "batch_template": '{"items": {{ rows | tojson_safe }}}',
        }
    if case.how == "single":
        return {**common, "url": f"{case.url}/bulk", "body_template": '{"items": [{{ row | tojson_safe }}]}'}
    return {**common, "url": f"{case.url}/items"}


@contextmanager
def prepared(case: Case) -> Iterator[Callable[[], None]]:
    home = Path(os.environ["HOME"]) / ".drt"
    home.mkdir(exist_ok=True)
    (home / "profiles.yml").write_text(
        yaml.safe_dump({"local": {"type": "sqlite", "database": str(case.folder / "changes.sqlite")}})
    )
    columns = list(case.records[0])
    with sqlite3.connect(case.folder / "changes.sqlite") as database:
        database.execute(f"CREATE TABLE changes ({', '.join(columns)})")
        database.executemany(
            f"INSERT INTO changes VALUES ({', '.join('?' * len(columns))})",
            [tuple(record.values()) for record in case.records],
        )
    (case.folder / "drt_project.yml").write_text(yaml.safe_dump({"name": "peer", "profile": "local"}))
    (case.folder / "syncs").mkdir()
    (case.folder / "syncs" / "push.yml").write_text(
        yaml.safe_dump(
            {
                "name": "push",
                "model": "ref('changes')",
                "destination": destination(case),
                "sync": {
                    "mode": "full",
                    "batch_size": BATCH,
                    "on_error": "skip",
                    "rate_limit": {"requests_per_second": 0},
                    "retry": {"max_attempts": 5, "initial_backoff": 0.05},
                },
            }
        )
    )
    before = Path.cwd()
    os.chdir(case.folder)
    try:
        yield lambda: app(["run"], standalone_mode=False)
    finally:
        os.chdir(before)


if __name__ == "__main__":
    serve(prepared)
