"""The jobs that pause and resume pushes. Thin: the pause is in ``core/operations/status.py``."""

from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from sync_orchestrator.assets.jobs.by_group import IN_ONE_RUN
from sync_orchestrator.assets.options import op_with, with_choices
from sync_orchestrator.config import Config
from sync_orchestrator.core.systems.pauses import pauses_of
from sync_orchestrator.core.systems.pauses import set_paused as set_paused
from sync_orchestrator.core.systems.suspension import suspension_of
from sync_orchestrator.errors import SyncError
from sync_orchestrator.resources.job_names import PAUSE, RESUME
from sync_orchestrator.resources.system import SystemResource


class PauseOptions(dg.Config):
    """What is paused or resumed, and why."""

    name: str = Field(description="The entity, or the third party with all its entities.")
    reason: str | None = Field(default=None, description="Why, for those who look at this run; it is logged.")


def pause_pushes(
    context: dg.OpExecutionContext, config: PauseOptions, system: SystemResource
) -> Iterator[dg.Output[None]]:
    """Stops pushes; change events go on being recorded and archived."""
    yield from _switch_pushes(context, config, system, paused=True)


def resume_pushes(
    context: dg.OpExecutionContext, config: PauseOptions, system: SystemResource
) -> Iterator[dg.Output[None]]:
    """Lets pushes go on. Fails where the third party is suspended, since it has to be adopted first."""
    yield from _switch_pushes(context, config, system, paused=False)
    with system.context.engine.begin() as connection:
        suspension = suspension_of(connection, _system_of(system, config.name))
    if suspension is not None:
        raise dg.Failure(
            f"pushes to {_system_of(system, config.name)} stay suspended: {suspension.reason}. Run "
            "`sync-orchestrator adopt`",
            allow_retries=False,
        )


def _switch_pushes(
    context: dg.OpExecutionContext, config: PauseOptions, system: SystemResource, *, paused: bool
) -> Iterator[dg.Output[None]]:
    entities = system.context.entities
    with system.keep_alive():
        try:
            set_paused(system.context.engine, config.name, set(entities), paused=paused)
        except SyncError as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        with system.context.engine.begin() as connection:
            left = pauses_of(connection, {name: entity.system_name for name, entity in entities.items()})
    line = f"pushes of {config.name} are {'paused' if paused else 'going on'}"
    context.log.info(f"{line}: {config.reason}" if config.reason else line)
    waits = "; ".join(pause.to_text() for pause in left.values())
    reason = {} if config.reason is None else {"reason": config.reason}
    yield dg.Output(None, metadata={"result": line, **reason, "pushes that wait": waits or "none"})


def _system_of(system: SystemResource, name: str) -> str:
    return system.context.entities[name].system_name if name in system.context.entities else name


def pause_jobs(config: Config) -> list[dg.JobDefinition]:
    """The jobs that pause and resume."""
    options = with_choices(
        PauseOptions, is_preset=False, name=list(dict.fromkeys([*config.entities, *config.third_parties]))
    )
    pause_op, resume_op = op_with(pause_pushes, options), op_with(resume_pushes, options)

    @dg.job(
        name=PAUSE,
        **IN_ONE_RUN,
        description=(
            "Stops the pushes of an entity or of a third party; changes are still recorded and archived. The same as "
            "`sync-orchestrator pause`."
        ),
    )
    def run_pause() -> None:
        pause_op()

    @dg.job(
        name=RESUME,
        **IN_ONE_RUN,
        description=("Lets the pushes of an entity or of a third party go on. The same as `sync-orchestrator resume`."),
    )
    def run_resume() -> None:
        resume_op()

    return [run_pause, run_resume]
