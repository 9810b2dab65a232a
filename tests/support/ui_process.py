"""The Dagster UI as a process of its own, on a prepared instance, and Dagster's state as the UI reports it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import yaml
from fakes import two_part_config
from paths import ROOT
from ports import free_ports

from sync_orchestrator.database import embedded
from sync_orchestrator.supervisor.process_tree import Tree
from sync_orchestrator.supervisor.system import wait_ready

PATIENCE = 60.0

_SELECTOR = 'repositoryName: "__repository__", repositoryLocationName: "sync_orchestrator"'
_SENSOR = f"""{{sensorOrError(sensorSelector: {{{_SELECTOR}, sensorName: "change_events"}}) {{
  __typename ... on Sensor {{id sensorState {{status}}}} }}}}"""
_RUNS = "{runsOrError {... on Runs {results {tags {key value}}}}}"
_ASSETS = "{assetsOrError {... on AssetConnection {nodes {assetMaterializations(limit: 100) {runId}}}}}"


def launch_run(name: str) -> str:
    """A mutation that launches a run, tagged with the name of the attack that sent it."""
    tags = f'{{tags: [{{key: "attack", value: "{name}"}}]}}'
    return (
        f'mutation {{launchRun(executionParams: {{selector: {{{_SELECTOR}, jobName: "maintenance"}}, '
        f'mode: "default", runConfigData: {{}}, executionMetadata: {tags}}}) {{__typename}}}}'
    )


class UiProcess:
    """A running UI. ``guarded=False`` starts Dagster's bare webserver, to show that an attack on it works."""

    def __init__(self, folder: Path, database_url: str, *, guarded: bool = True, **settings: Any) -> None:
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        config = folder / "sync.yaml"
        config.write_text(yaml.safe_dump(two_part_config(**settings).model_dump(mode="json", exclude_defaults=True)))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SYNC_", "DAGSTER_"))}
        environment = {
            **kept,
            "SYNC_HOME": str(folder),
            "SYNC_CONFIG": str(config),
            "SYNC_DATABASE_URL": database_url,
            "DAGSTER_HOME": str(folder / "dagster"),
            "SYNC_UI_URL": self.url,
            "PYTHONUNBUFFERED": "1",
            "SYNC_DAGSTER_DATABASE_URL": embedded.pgurl_for_dagster(database_url),
        }
        subprocess.run(
            [sys.executable, "-m", "sync_orchestrator.supervisor.system"],
            env=environment,
            check=True,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        workspace = str(ROOT / "workspace.yaml")
        command = (
            [sys.executable, "-m", "sync_orchestrator.ui", "--workspace", workspace, "--port", str(self.port)]
            if guarded
            else [
                str(Path(sys.executable).parent / "dagster-webserver"),
                "-w",
                workspace,
                "-h",
                "127.0.0.1",
                "-p",
                str(self.port),
            ]
        )
        self.tree = Tree(folder / "logs", environment)
        self.log = folder / "logs" / "webserver.log"
        try:
            self.program = self.tree.start_program("webserver", command, f"{self.url}/server_info")
            wait_ready(self.tree, lambda line: None, PATIENCE)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self.tree.stop()
        self.tree.dismiss_guard()

    def ask(self, query: str) -> Any:
        """The data of a GraphQL query, as a client that is no browser sends it."""
        response = httpx.post(f"{self.url}/graphql", json={"query": query}, timeout=PATIENCE, trust_env=False)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def sensor(self) -> tuple[str, str]:
        """The id of the sensor ``change_events``, and its status."""
        found = self.ask(_SENSOR)["sensorOrError"]
        return found["id"], found["sensorState"]["status"]

    def attacks(self) -> set[str]:
        """The attacks that launched a run."""
        return {
            tag["value"]
            for result in self.ask(_RUNS)["runsOrError"]["results"]
            for tag in result["tags"]
            if tag["key"] == "attack"
        }

    def materializations(self) -> int:
        """How many materializations were reported."""
        return sum(len(node["assetMaterializations"]) for node in self.ask(_ASSETS)["assetsOrError"]["nodes"])
