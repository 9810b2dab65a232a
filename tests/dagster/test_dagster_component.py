"""A company that already runs Dagster adds an entity beside its other components, as its people would: with `dg`."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tomllib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from http_server import Server
from small_systems import Backoffice, Partner, products

import sync_orchestrator
from sync_orchestrator import SyncEntityComponent
from sync_orchestrator.assets.lineage import archive_key, mirror_key
from sync_orchestrator.assets.own_runs import is_own_run
from sync_orchestrator.core.db.session import open_engine
from sync_orchestrator.core.groups.registry import known_groups

ROOT = Path(sync_orchestrator.__file__).parents[1]
COMPONENT = "sync_orchestrator.SyncEntityComponent"
URL_VARIABLE = "COMPANY_DATABASE_URL"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # each command of dg is a process that imports everything anew
    pytest.mark.filterwarnings("ignore::dagster.BetaWarning"),  # of Dagster's own call for a component's checks
]

PYPROJECT = """
[project]
name = "company"
version = "0.1.0"

[tool.dg]
directory_type = "project"

[tool.dg.cli]
suppress_warnings = ["project_and_activated_venv_mismatch"]

[tool.dg.project]
root_module = "company"
"""
PLAIN_ASSET = """
import dagster as dg


@dg.asset
def orders() -> None:
    pass
"""


def settings(source: str, third_party: str) -> dict[str, Any]:
    """One source, one third party, and two entities of the same products."""
    listed = {"params": {"shop": "{{ group }}", "page": "{{ page }}", "limit": "100"}, "paging": "page"}
    entity: dict[str, Any] = {
        "owner": "backoffice",
        "parts": {
            "backoffice": {
                "key": "sku",
                "group": "shop",
                "version": {"path": "updated_at"},
                "list": {"path": "/products", "items": "products", **listed},
                "read": {"path": "/products/{{ key }}"},
                "groups": {"path": "/shops"},
            }
        },
        "mapping": {"sku": "key", "shop": "group", "name": "backoffice.name", "price": "backoffice.price"},
        "third_party": {
            "system": "partner",
            "key_field": "sku",
            "group": "shop",
            "id": "id",
            "create": {"path": "/items"},
            "update": {"method": "PUT", "path": "/items/{{ id }}"},
            "delete": {"path": "/items/{{ id }}"},
            "read": {"path": "/items/{{ id }}"},
            "lookup": {"path": "/items", "params": {"sku": "{{ key }}"}, "items": "data"},
            "list": {"path": "/items", "items": "data", **copy.deepcopy(listed)},
        },
        "validation": {"confirm_after": "1s"},
    }
    spare = copy.deepcopy(entity)
    for each, kind in ((entity, "product"), (spare, "spare")):
        each["third_party"]["list"]["params"] |= {"kind": kind}
    return {
        "sources": {"backoffice": {"base_url": source, "headers": {"Authorization": "Bearer source-secret"}}},
        "third_parties": {"partner": {"base_url": third_party, "headers": {"X-Api-Key": "partner-secret"}}},
        "entities": {"product": entity, "spare": spare},
    }


@dataclass
class Company:
    """A `dg` project in a folder of its own, and the systems around it."""

    folder: Path
    environment: dict[str, str]
    backoffice: Backoffice
    partner: Partner

    def run_dg(self, *words: str) -> str:
        """What a command of `dg` prints, which succeeds."""
        done = subprocess.run(
            [str(Path(sys.executable).parent / "dg"), *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def load(self) -> dg.Definitions:
        """The definitions of the project's folder `defs`."""
        return dg.load_from_defs_folder(path_within_project=self.folder / "company")


def write_metadata(folder: Path) -> None:
    """Writes the entry points of the project as an installation does; the environment's may be of an older version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    info = folder / f"sync_orchestrator-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    [(group, points)] = project["entry-points"].items()
    lines = [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Company]:
    """An empty project to which another component and ours were added."""
    folder = tmp_path_factory.mktemp("company")
    servers = [Server(), Server()]
    backoffice, partner = Backoffice(products()), Partner()
    servers[0].handler, servers[1].handler = backoffice, partner
    write_metadata(folder / "installed")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "company" / "defs").mkdir(parents=True)
    for package in (folder / "company", folder / "company" / "defs"):
        (package / "__init__.py").touch()
    (folder / "company" / "definitions.py").write_text(
        "from pathlib import Path\n\nimport dagster as dg\n\n\n@dg.definitions\ndef defs() -> dg.Definitions:\n"
        "    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)\n"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SYNC_", "DAGSTER_"))}
    path = os.pathsep.join(map(str, (folder / "installed", folder, ROOT)))
    made = Company(
        folder, {**kept, "PYTHONPATH": path, URL_VARIABLE: "postgresql://user:word@127.0.0.1:1/x"}, backoffice, partner
    )
    (folder / "company" / "defs" / "orders.py").write_text(PLAIN_ASSET)
    made.run_dg("scaffold", "defs", COMPONENT, "sync", "--database-url-env", URL_VARIABLE, "--config-path", "sync.yaml")
    (folder / "company" / "defs" / "sync" / "sync.yaml").write_text(
        yaml.safe_dump(settings(*(server.url for server in servers)), sort_keys=False)
    )
    yield made
    for server in servers:
        server.stop()


def test_dg_lists_the_component(company: Company) -> None:
    listed = json.loads(company.run_dg("list", "components", "--package", "sync_orchestrator", "--json"))["items"]
    assert [each["key"] for each in listed] == [COMPONENT]
    assert "in sync with source systems" in listed[0]["summary"]


def test_dg_explains_every_attribute() -> None:
    fields = SyncEntityComponent.model().model_fields
    assert set(fields) == {"config_path", "entity", "database_url_env", "operations"}
    assert all(field.description for field in fields.values())


def test_the_scaffolder_writes_the_attributes_that_were_given(company: Company) -> None:
    written = yaml.safe_load((company.folder / "company" / "defs" / "sync" / "defs.yaml").read_text())
    assert written == {
        "type": COMPONENT,
        "attributes": {"config_path": "sync.yaml", "database_url_env": URL_VARIABLE},
    }


def test_dg_checks_the_project_and_lists_the_assets_of_both_components(company: Company) -> None:
    checked = company.run_dg("check", "defs")
    assert "word" not in checked
    listed = json.loads(company.run_dg("list", "defs", "--json"))
    assert {asset["asset_key"] for asset in listed["assets"]} >= {
        "orders",
        "product/source/backoffice",
        "product/archive",
        "product/mirror",
        "product/third_party/partner",
        "spare/mirror",
    }
    assert {job["name"] for job in listed["jobs"]} >= {"full_sync_product", "full_sync_spare", "incremental_sync"}


@pytest.fixture
def loaded(company: Company, database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dg.Definitions:
    """The definitions of the project, loaded here, on a database of the test."""
    monkeypatch.syspath_prepend(str(company.folder))
    monkeypatch.setenv(URL_VARIABLE, database_url)
    monkeypatch.setenv("SYNC_HOME", str(tmp_path))
    monkeypatch.delenv("SYNC_CONFIG", raising=False)
    monkeypatch.delenv("SYNC_DATABASE_URL", raising=False)
    return company.load()


def test_a_full_sync_of_the_component_brings_the_third_party_in_sync(
    company: Company, loaded: dg.Definitions, database_url: str
) -> None:
    """By the job of all assets of the project, as the UI launches it, with the project's own instance."""
    with dg.DagsterInstance.ephemeral() as instance:
        with dg.build_sensor_context(instance, definitions=loaded, resources=dict(loaded.resources or {})) as context:
            ticked: Any = loaded.resolve_sensor_def("business_groups").evaluate_tick(context)
        added = {each.partitions_def_name: each.partition_keys for each in ticked.dynamic_partitions_requests}
        assert added == {"product_business_group": ["berlin", "paris"], "spare_business_group": ["berlin", "paris"]}
        instance.add_dynamic_partitions("product_business_group", ["berlin", "paris"])
        ran = loaded.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance,
            partition_key="paris",
            asset_selection=[archive_key("product"), mirror_key("product")],
        )
        assert ran.success
        assert is_own_run(ran.dagster_run, ["product", "spare"])
        newest = instance.fetch_materializations(mirror_key("product"), limit=5).records
        assert [record.partition_key for record in newest] == ["paris"]
    ours = {row["sku"] for row in company.backoffice.products.values() if row["shop"] == "paris"}
    assert {item["sku"] for item in company.partner.items.values()} == ours
    engine = open_engine(database_url)
    with engine.begin() as connection:
        assert known_groups(connection, "product") == ["berlin", "paris"]
    engine.dispose()


def test_runs_of_the_companys_own_jobs_and_assets_are_not_ours() -> None:
    """Nothing ends them as dead, and nothing raises an alert of ours when they fail."""
    orders, product = dg.AssetKey("orders"), mirror_key("product")
    for run, is_own in (
        (dg.DagsterRun(job_name="nightly"), False),
        (dg.DagsterRun(job_name="__ASSET_JOB", asset_selection=frozenset({orders})), False),
        (dg.DagsterRun(job_name="__ASSET_JOB", asset_selection=frozenset({orders, product})), False),
        (dg.DagsterRun(job_name="__ASSET_JOB", asset_selection=frozenset({product})), True),
        (dg.DagsterRun(job_name="full_sync_product"), True),
        (dg.DagsterRun(job_name="incremental_sync"), True),
    ):
        assert is_own_run(run, ["product"]) is is_own, run.job_name


def test_one_component_for_each_entity(company: Company, loaded: dg.Definitions) -> None:
    """One of them has the operations; both work through the same resource."""
    defs = company.folder / "company" / "defs"
    before = (defs / "sync" / "defs.yaml").read_text()
    attributes = {"config_path": "sync.yaml", "database_url_env": URL_VARIABLE}
    both = [
        {"type": COMPONENT, "attributes": {**attributes, "entity": "product"}},
        {"type": COMPONENT, "attributes": {**attributes, "entity": "spare", "operations": False}},
    ]
    try:
        (defs / "sync" / "defs.yaml").write_text(yaml.safe_dump_all(both))
        split = company.load()
        assert {job.name for job in split.resolve_all_job_defs()} == {job.name for job in loaded.resolve_all_job_defs()}
        assert split.resolve_asset_graph().materializable_asset_keys == (
            loaded.resolve_asset_graph().materializable_asset_keys
        )
        both[0] = {"type": COMPONENT, "attributes": {**attributes, "entity": "prodct"}}
        (defs / "sync" / "defs.yaml").write_text(yaml.safe_dump_all(both))
        with pytest.raises(Exception, match="Error while building definitions for sync") as raised:
            company.load()
        assert "unknown entity 'prodct'; did you mean product" in "".join(traceback.format_exception(raised.value))
    finally:
        (defs / "sync" / "defs.yaml").write_text(before)
