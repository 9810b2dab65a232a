"""``make up``: the demo's systems, as the story left them, and everything of ours beside them; Ctrl-C ends it all.

The state is in ``.sync/demo``, or in ``SYNC_HOME`` where that is set.

With a ``sync.yaml`` in the working directory the demo's systems stay away: then it is ``sync-orchestrator up``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from pathlib import Path

import httpx

from demo import access
from demo.processes import Systems, running
from sync_orchestrator.errors import SyncError
from sync_orchestrator.private_files import make_private_home
from sync_orchestrator.supervisor.system import run_system


def main(port: int = 3000, api_port: int = 8700) -> int:
    """Runs until Ctrl-C or SIGTERM; returns the exit status."""
    if Path("sync.yaml").exists():
        return run_system(port, api_port, print)
    home = home_of_demo()
    make_private_home(home)
    os.environ.update(SYNC_HOME=str(home), SYNC_CONFIG=str(Path(__file__).with_name("sync.yaml")))
    with running(home) as systems:
        os.environ.update(systems.environment)
        for name in systems.ports:
            print(f"the demo's {name} ready at {systems.url(name)}", flush=True)
        print('the demo\'s catalogue is in a Postgres; change it: python -m demo.catalogue "UPDATE stones SET …"')
        print(f"for other commands, in another shell: export {_format_environment(systems)}", flush=True)
        systems.catalogue.prepare_capture(Path(os.environ["SYNC_CONFIG"]))
        _restore(systems, home)
        return run_system(port, api_port, print)


def home_of_demo() -> Path:
    """The folder of the demo's state."""
    return Path(os.environ.get("SYNC_HOME") or Path(".sync") / "demo").resolve()


def _format_environment(systems: Systems) -> str:
    """Where other commands find the systems: the catalogue's database, and those whose usual port was taken."""
    usual = {access.port_variable(name): str(port) for name, port in access.PORTS.items()}
    return " ".join(
        f"{name}={shlex.quote(value)}" for name, value in systems.environment.items() if usual.get(name) != value
    )


def _restore(systems: Systems, home: Path) -> None:
    """Gives the systems back what they held when the story ended."""
    with httpx.Client(timeout=60, trust_env=False) as client:
        for name in systems.ports:
            kept = home / f"{name}.json"
            if kept.exists():
                client.post(
                    f"{systems.url(name)}/_control/restore", json=json.loads(kept.read_text(encoding="utf-8"))
                ).raise_for_status()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=3000, help="of the Dagster UI")
    parser.add_argument("--api-port", type=int, default=8700, help="of POST /v1/events")
    return parser.parse_args()


if __name__ == "__main__":
    options = _options()
    try:
        sys.exit(main(options.port, options.api_port))
    except SyncError as error:
        sys.exit(f"error: {error}")
