"""The options of jobs, as the launchpad shows them: a description of each, completion of names, all defaults.

Dagster shows the ``description`` of a field, not the docstring below it. The names of entities are known when the
definitions are built, so a job's options become a class whose field is a choice of them.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from typing import Any, Literal, TypeVar, cast

import dagster as dg
from pydantic import create_model

from sync_orchestrator.assets.cancellation import cancelable
from sync_orchestrator.config import Config
from sync_orchestrator.config.entities import Repair

ALL_ENTITIES = "all entities"
"""The default of ``entity``; no entity can have this name."""

AS_CONFIGURED: Literal["as configured"] = "as configured"
"""The default of ``repair``."""

RepairChoice = Literal["as configured", "auto", "ask", "off"]

ENTITY = "Only this entity."
GROUPS = "Only these business groups, by their names."
REPAIR = (
    "What happens to what is found: `auto` repairs it at once, `ask` leaves it to the job `repair`, 'off' (in "
    "quotes, since YAML reads a bare off as false) only reports it. By default, what `sync.yaml` says."
)
ALLOW_DELETIONS = "Raises the cap of deletions to this number, for this run."

Options = TypeVar("Options", bound=dg.Config)


def entity_choices(config: Config) -> list[str]:
    """All entities, or one of them; the default comes first."""
    return [ALL_ENTITIES, *config.entities]


def chosen_repair(choice: RepairChoice) -> Repair | None:
    """What is done about drift; None for what is configured."""
    return None if choice == AS_CONFIGURED else choice


def with_choices(options: type[Options], *, is_preset: bool = True, **choices: Sequence[str]) -> type[Options]:
    """The same options, of which some fields are choices of names.

    Args:
        options: The class of the options.
        is_preset: Whether the first choice is the default; otherwise an operator has to choose.
        choices: By the names of fields, the values that they take.

    Returns:
        A class of the same name, for ``op_with``.
    """
    fields: dict[str, Any] = {}
    for name, values in choices.items():
        field = copy(options.model_fields[name])
        if is_preset:
            field.default = values[0]
        fields[name] = (cast(Any, Literal)[tuple(values)], field)
    return cast(type[Options], create_model(options.__name__, __base__=options, **fields))


def op_with(compute: Callable[..., Iterator[object]], options: type[dg.Config]) -> dg.OpDefinition:
    """A cancelable op without an output value, whose parameter ``config`` has these options.

    Args:
        compute: The function of the op; several definitions can be built from it.
        options: Its options.
    """
    copied = types.FunctionType(compute.__code__, compute.__globals__, compute.__name__)
    copied.__annotations__ = {**compute.__annotations__, "config": options}
    copied.__doc__ = compute.__doc__
    return dg.op(out=dg.Out(dg.Nothing))(cancelable(copied))


def all_defaults(op: str, options: type[dg.Config], **changed: Any) -> Mapping[str, Any]:
    """The configuration of a job of one op with every default in it, so that the launchpad shows them all.

    Args:
        op: The name of the op.
        options: Its options, each of which has a default.
        changed: Values that this job has instead.
    """
    defaults = {name: field.default for name, field in options.model_fields.items()}
    return {"ops": {op: {"config": {**defaults, **changed}}}}
