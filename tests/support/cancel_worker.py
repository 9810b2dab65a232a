"""Processes of runs to be canceled: each executes one job, as a run's process does under Dagster's default launcher.

They are forks of this one, so that the libraries are loaded once. Each line on standard input is an order: ``run``
starts one and replies its process id, ``terminate`` does what Dagster's code server does for a termination (it sets an
event, at which a thread of the run's process sends SIGINT to itself), ``wait`` replies the exit code.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
import traceback
from typing import Any

import dagster as dg
from dagster._utils import start_termination_thread
from dagster._utils.interrupts import capture_interrupts

from sync_orchestrator.composition import load_config
from sync_orchestrator.core import runtime, shutdown
from sync_orchestrator.definitions import build_definitions

GRACE_SECONDS = 50.0  # a loaded machine cuts nothing off that the test is about to let go

runtime.GRACE_SECONDS = shutdown.GRACE_SECONDS = GRACE_SECONDS  # type: ignore[attr-defined]


def execute(order: dict[str, Any], terminated: Any) -> None:
    """Executes a job, over groups or for checks alone."""
    definition = build_definitions(load_config()).resolve_job_def(order["job"])
    if order["checks"]:
        definition = definition.get_subset(
            asset_selection=set(),
            asset_check_selection={dg.AssetCheckKey(dg.AssetKey(asset), name) for asset, name in order["checks"]},
        )
    over = threading.Event()
    with capture_interrupts(), dg.DagsterInstance.from_config(order["dagster_home"]) as instance:
        start_termination_thread(terminated, over)
        definition.execute_in_process(
            instance=instance,
            run_id=order["run_id"],
            tags=order["tags"],
            run_config=order["config"],
            raise_on_error=False,
        )
        over.set()


def in_a_child(order: dict[str, Any], terminated: Any) -> int:
    """Returns the id of the process that executes the order."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with open(order["output"], "w", buffering=1) as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os.environ.update(order["environment"])
            execute(order, terminated)
            status = 0
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def main() -> None:
    """Follows orders until standard input ends."""
    child, terminated = 0, multiprocessing.Event()
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "run":
            terminated = multiprocessing.Event()
            child = in_a_child(order, terminated)
            print(child, flush=True)
        elif order["do"] == "terminate":
            terminated.set()
            print("set", flush=True)
        else:
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
