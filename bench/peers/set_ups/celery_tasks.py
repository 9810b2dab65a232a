"""Celery's tasks: one for each record, or one for 500 of them that were put together by hand.

As its guides on tasks and on optimizing advise: no results where nobody reads them, more prefetched since tasks are
short, retries by ``autoretry_for`` with backoff, a session for each process. Acknowledgement stays early, which is the
default and the fastest.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import requests
from celery import Celery

BROKER, MARK = os.environ["PEER_BROKER"], os.environ["PEER_MARK"]

app = Celery("peer", broker=BROKER)
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=64,
    task_default_queue=MARK,
    control_exchange=MARK,
    event_exchange=f"{MARK}.events",
    broker_connection_retry_on_startup=True,
    broker_transport_options={"global_keyprefix": f"{MARK}."} if BROKER.startswith("redis") else {},
)

RETRIED: dict[str, Any] = {
    "autoretry_for": (requests.RequestException,),
    "retry_backoff": True,
    "retry_kwargs": {"max_retries": 5},
}


@cache
def session() -> requests.Session:
    """One a process, made at its first call; as many connections as greenlets may want."""
    made = requests.Session()
    made.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=64))
    return made


@app.task(**RETRIED)
def single(url: str, record: dict[str, Any]) -> None:
    session().put(f"{url}/items/{record['code']}", json=record, timeout=30).raise_for_status()


@app.task(**RETRIED)
def create(url: str, record: dict[str, Any]) -> None:
    session().post(f"{url}/items", json=record, timeout=30).raise_for_status()


@app.task(**RETRIED)
def bulk(url: str, records: list[dict[str, Any]]) -> None:
    session().post(f"{url}/bulk", json={"items": records}, timeout=30).raise_for_status()
