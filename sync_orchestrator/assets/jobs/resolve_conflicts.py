"""The job by which an operator decides conflicts. Thin: the decision is in ``core/two_way/resolving.py``."""

from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from sync_orchestrator import exact_json
from sync_orchestrator.assets.jobs.by_group import IN_ONE_RUN
from sync_orchestrator.assets.options import op_with, with_choices
from sync_orchestrator.assets.two_way_checks import evaluate_two_way
from sync_orchestrator.composition import build_two_ways
from sync_orchestrator.config import Config
from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.two_way.resolving import CannotResolve, Choice, resolve_alike, resolve_conflict
from sync_orchestrator.core.two_way.three_way import Winner
from sync_orchestrator.resources.job_names import RESOLVE_CONFLICTS
from sync_orchestrator.resources.system import SystemResource

WINNERS = ("ours", "theirs", "value")


class ResolveOptions(dg.Config):
    """Which conflict is decided, and how."""

    conflict: int = Field(description="The number of the conflict, as the check `conflicts` of the mirror shows it.")
    winner: str = Field(description="The side whose value goes to both sides, or `value` for another one.")
    value: str | None = Field(default=None, description='With `value`: the value as JSON, such as 12.5 or "a text".')
    all_alike: bool = Field(default=False, description="The same for all open conflicts about this field.")
    reason: str | None = Field(default=None, description="Why; it is kept with the conflict.")


def resolve_open_conflicts(
    context: dg.OpExecutionContext, config: ResolveOptions, system: SystemResource
) -> Iterator[dg.AssetCheckEvaluation | dg.Output[None]]:
    """Decides a conflict, or all of its kind, and evaluates the checks anew."""
    choice = _read_choice(config)
    two_ways = build_two_ways(system.context.config)
    by = f"run {context.run.run_id[:8]}"
    with system.keep_alive():
        try:
            if config.all_alike:
                resolved = in_transaction(
                    system.context.engine,
                    lambda connection: resolve_alike(
                        connection, two_ways, config.conflict, choice, by=by, reason=config.reason
                    ),
                )
            else:
                in_transaction(
                    system.context.engine,
                    lambda connection: resolve_conflict(
                        connection, two_ways, config.conflict, choice, by=by, reason=config.reason
                    ),
                )
                resolved = 1
        except CannotResolve as error:
            raise dg.Failure(str(error), allow_retries=False) from None
        for name in two_ways:
            yield from evaluate_two_way(system, name)
    yield dg.Output(None, metadata={"resolved": resolved})


def _read_choice(config: ResolveOptions) -> Choice:
    if (config.winner == "value") != (config.value is not None):
        raise dg.Failure("'value' goes with winner 'value', and only with that", allow_retries=False)
    if config.value is None:
        return Choice(Winner(config.winner))
    try:
        return Choice(None, exact_json.parse_text(config.value))
    except ValueError:
        raise dg.Failure(f'value: not JSON: {config.value}. A text needs quotes: "text"', allow_retries=False) from None


def resolve_job(config: Config) -> dg.JobDefinition:
    """The job that decides conflicts."""
    resolve_op = op_with(resolve_open_conflicts, with_choices(ResolveOptions, is_preset=False, winner=WINNERS))

    @dg.job(
        name=RESOLVE_CONFLICTS,
        **IN_ONE_RUN,
        description=(
            "Decides a conflict of records that people change on both sides. What is decided goes to both sides like a "
            "change. The same as `sync-orchestrator conflicts resolve`."
        ),
    )
    def run_resolve() -> None:
        resolve_op()

    return run_resolve
