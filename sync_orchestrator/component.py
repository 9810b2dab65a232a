"""The component by which a project that already runs Dagster adds entities beside its other components.

In a ``defs.yaml``:

.. code-block:: yaml

    type: sync_orchestrator.SyncEntityComponent
    attributes:
      config_path: sync.yaml
      database_url_env: SYNC_DATABASE_URL
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

import dagster as dg
from pydantic import BaseModel, Field

from sync_orchestrator.builder import build_entities, build_operations
from sync_orchestrator.composition import load_config
from sync_orchestrator.config import Config
from sync_orchestrator.errors import ConfigError
from sync_orchestrator.resources.system import DATABASE_URL_VARIABLE, SystemResource
from sync_orchestrator.texts.nearest_names import unknown_name

CONFIG_PATH = "The path of `sync.yaml`, relative to the folder of this file, or absolute."
ENTITY = "The entity of `sync.yaml` whose assets and checks are defined here. By default all entities."
DATABASE_URL_ENV = "The environment variable with the URL of the Postgres database that the project works in."
OPERATIONS = (
    "Whether the jobs, sensors and schedules of `sync.yaml` are defined here, too. They work on all of its entities, "
    "so exactly one component for each `sync.yaml` defines them."
)


class SyncEntityScaffoldParams(BaseModel):
    """What `dg scaffold defs sync_orchestrator.SyncEntityComponent` takes."""

    config_path: str = Field(default="sync.yaml", description=CONFIG_PATH)
    entity: str | None = Field(default=None, description=ENTITY)
    database_url_env: str = Field(default=DATABASE_URL_VARIABLE, description=DATABASE_URL_ENV)


class SyncEntityScaffolder(dg.Scaffolder[SyncEntityScaffoldParams]):
    """Writes the ``defs.yaml`` of a component."""

    @classmethod
    def get_scaffold_params(cls) -> type[SyncEntityScaffoldParams]:
        """The parameters that the command line offers."""
        return SyncEntityScaffoldParams

    def scaffold(self, request: dg.ScaffoldRequest[SyncEntityScaffoldParams]) -> None:
        """Writes ``defs.yaml`` with the parameters that were given."""
        dg.scaffold_component(request, request.params.model_dump(exclude_none=True))


@dg.scaffold_with(SyncEntityScaffolder)
class SyncEntityComponent(dg.Component, dg.Resolvable, dg.Model):
    """Keeps a third party's copy of business data in sync with source systems, as `sync.yaml` describes it.

    Each entity gets the assets `archive` and `mirror`, its sources as external assets, its checks, and a full sync.
    """

    config_path: Annotated[str, dg.Resolver.default(description=CONFIG_PATH, examples=["sync.yaml"])] = "sync.yaml"
    entity: Annotated[str | None, dg.Resolver.default(description=ENTITY, examples=["product"])] = None
    database_url_env: Annotated[str, dg.Resolver.default(description=DATABASE_URL_ENV)] = DATABASE_URL_VARIABLE
    operations: Annotated[bool, dg.Resolver.default(description=OPERATIONS)] = True

    @classmethod
    def get_spec(cls) -> dg.ComponentTypeSpec:
        """What `dg` shows of the component."""
        return dg.ComponentTypeSpec(
            description="Keeps a third party's copy of business data in sync, and verifies it.",
            tags=["sync", "reverse-etl"],
            produces=["asset", "asset_check", "job", "schedule", "sensor", "resource"],
        )

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Builds the definitions. Raises ConfigError where ``sync.yaml`` is wrong or has no such entity."""
        path = (context.path / self.config_path).resolve()
        config = load_config(path)
        system = _system_of(path, self.database_url_env)
        definitions = [build_entities(config, self._select_entity_names(config), system)]
        if self.operations:
            definitions.append(build_operations(config, system))
        return dg.Definitions.merge(*definitions)

    def _select_entity_names(self, config: Config) -> list[str]:
        if self.entity is None:
            return list(config.entities)
        if self.entity not in config.entities:
            raise ConfigError(unknown_name(f"entity '{self.entity}'", self.entity, list(config.entities)))
        return [self.entity]


@cache
def _system_of(config_path: Path, database_url_env: str) -> SystemResource:
    """One resource for each database and ``sync.yaml``: Dagster merges definitions only if theirs is the same."""
    return SystemResource(config_path=str(config_path), database_url=dg.EnvVar(database_url_env))
